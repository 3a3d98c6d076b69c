"""The judge's network: one shot in, a reading of every fact about it out. Six hundred thousand parameters.

Notable choices:

- Object-centric: a dense head says for each cell of a 24 x 24 grid which colour of actor is there (colours name actors
  on the stage), and ten fixed colour slots pool the picture's features under their own map. The share of the picture,
  the centre and the spread of that map go with the features, so moves and growth are read from measured geometry.
- Shape, size and surface are read from a second, closer look: the square around each actor found, cut from the full
  picture and brought to one size (a glimpse, as in RAM, Mnih et al. 2014, arXiv:1406.6247; where to look is taken from
  the map and not learnt). An actor of a wide shot, a dozen pixels high, is then seen at the size of a near one.
- Motion is seen by shifting a quarter of the channels one frame forward and back before a spatial convolution
  (TSM, Lin et al. 2019, arXiv:1811.08383), and by how well each cell matches its neighbours of the next frame (the cost
  volume of PWC-Net, Sun et al. 2018, arXiv:1709.02371), of which the mean displacement is taken as well. The matched
  features are high-passed: then a linear reader of the untrained network's displacements tells 90 % of the cameras,
  without it 73 %, hardly more than the share of static ones.
- After pooling, 11 tokens a frame (ten colours and the whole picture) attend over time and over each other. Tokens
  carry seconds, so a speed is a speed at any frame rate.
- Every fact can be read as "none": index 0 of each head, except for what only a present actor has (size, surface ...).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..facts import CAMERA_CLASSES
from ..scene import ACTIONS, ANGLES, COLOURS, FLOORS, SHAPES, SHOT_SIZES, SIZES, SKIES, STYLES, SURFACES
from .cuts import CutHead

MAX_COUNT = 5
_GLIMPSES = 4  # most actors of a frame that are looked at closer

# What is read per colour, and per shot. A name stands for index i; "none" first where nothing may be there.
SLOT_FACTS: dict[str, tuple[str, ...]] = {
    "shape": ("none", *SHAPES),
    "size": SIZES,
    "surface": SURFACES,
    "action": ACTIONS,
    "other": COLOURS,
    "new_colour": COLOURS,
}
FRAME_FACTS = ("shape", "size", "surface")  # of SLOT_FACTS, those that each frame is asked for too, in training
SHOT_FACTS: dict[str, tuple[str, ...]] = {
    "count": ("none", *(str(n) for n in range(1, MAX_COUNT + 1))),
    "camera": ("none", *CAMERA_CLASSES),
    "shot_size": ("none", *SHOT_SIZES),
    "angle": ("none", *ANGLES),
    "floor": ("none", *FLOORS),
    "sky": ("none", *SKIES),
    "style": ("none", *STYLES),
    "fog": ("none", "no", "yes"),
}


@dataclass(frozen=True)
class JudgeConfig:
    """Sizes of the judge. `size` is the side of the square picture it reads, `whole` the side at which it looks at the
    whole of it, `glimpse` that of its closer view of one actor (a multiple of 8; 0: there is none), `frames` how
    many frames it takes of a shot."""

    size: int = 128
    whole: int = 96
    glimpse: int = 32
    frames: int = 12
    stem: int = 24
    fine: int = 48
    deep: int = 80
    slot: int = 88
    heads: int = 4
    layers: int = 2

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    @property
    def grid(self) -> int:
        """Cells along one side of the dense colour map."""
        return self.whole // 4


class ChannelNorm(nn.Module):
    """Layer norm over the channels of a (N, C, H, W) map stored channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias)  # (N, H, W, C)
        return y.permute(0, 3, 1, 2)  # (N, C, H, W)


def shift_in_time(x: Tensor, frames: int) -> Tensor:
    """Moves an eighth of the channels of (B T, C, H, W) one frame later and an eighth one earlier; zeros come in."""
    n = x.shape[1] // 8
    video = x.permute(0, 2, 3, 1).unflatten(0, (-1, frames))  # (B, T, H, W, C), as it lies in memory
    later, earlier, rest = video.split([n, n, x.shape[1] - 2 * n], dim=-1)
    later = F.pad(later, (0, 0, 0, 0, 0, 0, 1, -1))  # (B, T, H, W, C/8)
    earlier = F.pad(earlier, (0, 0, 0, 0, 0, 0, -1, 1))  # (B, T, H, W, C/8)
    return torch.cat([later, earlier, rest], dim=-1).flatten(0, 1).permute(0, 3, 1, 2)  # (B T, C, H, W)


def matches(x: Tensor, frames: int) -> Tensor:
    """How alike each cell of (B T, C, g, g) is to the cells up to 2 columns and 1 row away in the next frame, cosines
    (B T, 15, g, g), each feature less its mean over 5 x 5 cells. The last frame is compared with itself."""
    x = x - F.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False)  # (B T, C, g, g)
    unit = F.normalize(x.permute(0, 2, 3, 1), dim=-1).to(x.dtype).unflatten(0, (-1, frames))  # (B, T, g, g, C)
    after = torch.cat([unit[:, 1:], unit[:, -1:]], dim=1).flatten(0, 1)  # (B T, g, g, C)
    after = F.pad(after, (0, 0, 2, 2, 1, 1))  # (B T, g + 2, g + 4, C)
    here, grid = unit.flatten(0, 1), x.shape[-1]
    found = [
        (here * after[:, dy : dy + grid, dx : dx + grid]).sum(-1) for dy in range(3) for dx in range(5)
    ]  # 15 x (B T, g, g)
    return torch.stack(found, dim=1)


def displacement(found: Tensor) -> Tensor:
    """Mean displacement to the next frame (N, 2, g, g), columns and rows in cells, from `matches` (N, 15, g, g)."""
    weight = (10.0 * found.float()).softmax(1).unflatten(1, (3, 5))  # (N, 3, 5, g, g)
    columns = torch.arange(-2.0, 3.0, device=found.device)[:, None, None]  # (5, 1, 1)
    rows = torch.arange(-1.0, 2.0, device=found.device)[:, None, None]  # (3, 1, 1)
    return torch.stack([(weight.sum(1) * columns).sum(1), (weight.sum(2) * rows).sum(1)], dim=1)


class PictureBlock(nn.Module):
    """Pre-norm residual block: time shift, 3 x 3 convolution, GELU, 1 x 1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        y = shift_in_time(self.norm(x), frames)  # (B T, C, H, W)
        y = self.out(F.gelu(self.conv(y)))  # (B T, C, H, W)
        return x + y


class Attention(nn.Module):
    """Plain multi-head self-attention over the second-last axis."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (..., L, 3, h, d)
        q, k, v = (part.transpose(-3, -2) for part in qkv.unbind(-3))  # (..., h, L, d)
        y = F.scaled_dot_product_attention(q, k, v)  # (..., h, L, d)
        return self.out(y.transpose(-3, -2).flatten(-2))  # (..., L, D)


class SlotBlock(nn.Module):
    """Attention over the frames of each slot, then over the slots of each frame, then an MLP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm_time, self.norm_slots, self.norm_mlp = (nn.LayerNorm(dim) for _ in range(3))
        self.over_time = Attention(dim, heads)
        self.over_slots = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.over_time(self.norm_time(x).transpose(1, 2)).transpose(1, 2)  # (B, T, S, D)
        x = x + self.over_slots(self.norm_slots(x))  # (B, T, S, D)
        return x + self.mlp(self.norm_mlp(x))  # (B, T, S, D)


def geometry(maps: Tensor) -> Tensor:
    """Size, place and spread of soft maps (B, T, K, g, g) in [0, 1], as (B, T, K, 7) features of order one.

    Features: amount (saturating), logarithm of the share of the picture, centre x and y and standard deviations x and y
    (picture = [-1, 1]), highest value. Places of an empty map are 0.
    """
    grid = maps.shape[-1]
    axis = (torch.arange(grid, device=maps.device, dtype=maps.dtype) + 0.5) * (2.0 / grid) - 1.0  # (g,)
    mass = maps.sum((-2, -1))  # (B, T, K) cells
    columns, rows = maps.sum(-2), maps.sum(-1)  # (B, T, K, g)
    total = mass + 0.05
    cx, cy = (columns @ axis) / total, (rows @ axis) / total  # (B, T, K)
    vx = (columns @ axis.square()) / total - cx.square()  # (B, T, K)
    vy = (rows @ axis.square()) / total - cy.square()  # (B, T, K)
    there = mass / (mass + 0.5)
    share = (mass + 0.2).log() - 2.0
    spread = [4.0 * v.clamp_min(1e-4).sqrt() for v in (vx, vy)]
    return torch.stack([there, share, 2.0 * cx, 2.0 * cy, *spread, maps.amax((-2, -1))], dim=-1)  # (B, T, K, 7)


def windows(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Where to look closer: of soft maps (N, K, g, g) the squares around what they show, and whether there is anything.

    Returns (N, K, 3) centre x and y and half side (picture = [-1, 1]), and bool (N, K). A square is a quarter wider
    than a square actor would be; weak places of a map do not count.
    """
    grid = maps.shape[-1]
    axis = (torch.arange(grid, device=maps.device, dtype=maps.dtype) + 0.5) * (2.0 / grid) - 1.0  # (g,)
    strong = (maps - 0.2).clamp_min(0.0)  # (N, K, g, g)
    columns, rows = strong.sum(-2), strong.sum(-1)  # (N, K, g)
    total = strong.sum((-2, -1))  # (N, K)
    safe = total.clamp_min(1e-3)
    cx, cy = (columns @ axis) / safe, (rows @ axis) / safe  # (N, K)
    vx = (columns @ axis.square()) / safe - cx.square()  # (N, K)
    vy = (rows @ axis.square()) / safe - cy.square()  # (N, K)
    half = 2.2 * torch.maximum(vx, vy).clamp_min(0.0).sqrt() + 1.0 / grid  # (N, K)
    return torch.stack([cx, cy, half.clamp(3.0 / grid, 1.1)], dim=-1), total > 0.4


class Glimpse(nn.Module):
    """A closer look: the squares around actors, at one size, each to one feature (M, slot)."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.side = config.glimpse
        self.stem = nn.Conv2d(4, 24, 3, stride=2, padding=1)
        self.down1 = nn.Conv2d(24, 48, 3, stride=2, padding=1)
        self.norm1 = ChannelNorm(48)
        self.conv = nn.Conv2d(48, 48, 3, padding=1)
        self.mix = nn.Conv2d(48, 48, 1)
        self.norm2 = ChannelNorm(48)
        self.down2 = nn.Conv2d(48, 64, 3, stride=2, padding=1)
        self.gather = nn.Conv2d(64, 128, config.glimpse // 8, groups=64)
        self.out = nn.Linear(129, config.slot)

    @torch.no_grad()
    def cut(self, frames: Tensor, maps: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cuts the squares of up to `most` actors of each frame.

        frames (N, 3, s, s), maps (N, K, g, g) soft. Returns where they belong, index (M,) into N K; pictures
        (M, 4, side, side), colours and the actor's own map; logarithms of half sides (M, 1).
        """
        places, there = windows(maps)  # (N, K, 3), (N, K)
        mass = torch.where(there, maps.sum((-2, -1)), 0.0)  # (N, K)
        best = mass.topk(min(most, maps.shape[1]), dim=1).indices  # (N, most)
        index = best + torch.arange(len(maps), device=maps.device)[:, None] * maps.shape[1]  # (N, most)
        place = places.flatten(0, 1)[index]  # (N, most, 3)
        fine = 2 * self.side  # twice as fine, then averaged: an actor that fills the picture is not to alias
        axis = (torch.arange(fine, device=maps.device, dtype=maps.dtype) + 0.5) * (2.0 / fine) - 1.0
        square = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)  # (2S, 2S, 2)
        where = place[..., None, None, :2] + place[..., None, None, 2:] * square  # (N, most, 2S, 2S, 2)
        seen = F.grid_sample(frames.float(), where.flatten(1, 2), align_corners=False)  # (N, 3, most 2S, 2S)
        seen = F.avg_pool2d(seen, 2).unflatten(2, (-1, self.side)).transpose(1, 2).flatten(0, 1)  # (N most, 3, S, S)
        index, place = index.flatten(), place.flatten(0, 1)  # (N most,), (N most, 3)
        keep = there.flatten()[index]  # (N most,)
        index, seen, place = index[keep], seen[keep], place[keep]
        where = where.flatten(0, 1)[keep]  # (M, 2S, 2S, 2)
        own = F.grid_sample(maps.flatten(0, 1)[index][:, None], where, align_corners=False)  # (M, 1, 2S, 2S)
        return index, torch.cat([seen, F.avg_pool2d(own, 2) * 2.0 - 1.0], dim=1), place[:, 2:].log()

    def forward(self, pictures: Tensor, half: Tensor) -> Tensor:
        """Features (M, slot) of pictures (M, 4, S, S) and logarithms of half sides (M, 1)."""
        x = F.gelu(self.stem(pictures.contiguous(memory_format=torch.channels_last)))  # (M, 24, S/2, S/2)
        x = self.down1(x)  # (M, 48, S/4, S/4)
        x = x + self.mix(F.gelu(self.conv(self.norm1(x))))  # (M, 48, S/4, S/4)
        x = F.gelu(self.down2(self.norm2(x)))  # (M, 64, S/8, S/8)
        x = F.gelu(self.gather(x)).flatten(1)  # (M, 128)
        return self.out(torch.cat([x, half.to(x.dtype)], dim=1))  # (M, slot)


class JudgeNet(nn.Module):
    """Reads shots. See `shots.stage.judge.read.Judge` for videos in and names out."""

    def __init__(self, config: JudgeConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or JudgeConfig()
        self.stem = nn.Conv2d(3, c.stem, 3, stride=2, padding=1)
        self.down1 = nn.Conv2d(c.stem, c.fine, 3, stride=2, padding=1)
        self.fine = nn.ModuleList([PictureBlock(c.fine) for _ in range(2)])
        self.down2 = nn.Conv2d(c.fine, c.deep, 3, stride=2, padding=1)
        self.match_in = nn.Conv2d(c.fine, 16, 1)
        self.match_out = nn.Conv2d(17, c.deep, 2, stride=2)
        self.deep = nn.ModuleList([PictureBlock(c.deep) for _ in range(2)])
        self.place_fine = nn.Parameter(torch.zeros(2, c.fine, c.grid))  # rows, columns
        self.place_deep = nn.Parameter(torch.zeros(2, c.deep, c.grid // 2))
        self.norm_fine, self.norm_deep = ChannelNorm(c.fine), ChannelNorm(c.deep)
        self.lift = nn.Conv2d(c.deep, c.fine, 1)
        self.colour = nn.Conv2d(c.fine, 1 + len(COLOURS), 1)

        self.slot_in = nn.Linear(c.fine + c.deep + 9, c.slot)
        self.glimpse = Glimpse(c) if c.glimpse else None
        self.region_in = nn.Conv2d(c.deep, 16, 1)
        self.region_out = nn.Linear(9 * 18, c.slot)
        self.slot_name = nn.Parameter(0.5 * torch.randn(len(COLOURS) + 1, c.slot))
        self.seconds = nn.Linear(8, c.slot)
        self.slots = nn.ModuleList([SlotBlock(c.slot, c.heads) for _ in range(c.layers)])
        self.norm_slots = nn.LayerNorm(c.slot)
        for name in FRAME_FACTS if c.glimpse else FRAME_FACTS[:1]:
            setattr(self, f"frame_{name}", nn.Linear(c.slot, len(SLOT_FACTS[name])))
        self.slot_out = nn.Linear(2 * c.slot, c.slot)
        self.shot_out = nn.Linear(2 * c.slot, c.slot)
        self.slot_heads = nn.ModuleDict({name: nn.Linear(c.slot, len(v)) for name, v in SLOT_FACTS.items()})
        self.shot_heads = nn.ModuleDict({name: nn.Linear(c.slot, len(v)) for name, v in SHOT_FACTS.items()})
        self.sound = nn.Linear(c.slot, 1)  # whether the shot is whole: neither noise, nor blended, nor melted
        self.cuts = CutHead()  # on its own features, fitted apart

    def forward(self, frames: Tensor, seconds: Tensor) -> dict[str, Tensor]:
        """Logits of every fact.

        frames: float (B, T, 3, s, s) in [0, 1]; seconds: (B, T) of each frame in its shot. Returns "slot/<fact>"
        (B, 10, n), "shot/<fact>" (B, n), "sound" (B,), and for training "map" (B, T, 11, g, g) and "frame/<fact>"
        (B, T, 10, n). Names of the indices: `SLOT_FACTS`, `SHOT_FACTS`.
        """
        batch, count = frames.shape[:2]
        full = (frames.flatten(0, 1) - 0.45) * 4.0  # (BT, 3, s, s)
        x = full
        if self.config.whole != self.config.size:
            x = F.interpolate(full, (self.config.whole,) * 2, mode="bilinear", align_corners=False)  # (BT, 3, w, w)
        x = F.gelu(self.stem(x.contiguous(memory_format=torch.channels_last)))  # (BT, stem, s/2, s/2)
        x = self.down1(x)  # (BT, fine, g, g)
        x = x + (self.place_fine[0, :, :, None] + self.place_fine[1, :, None, :])  # (BT, fine, g, g)
        found = matches(self.match_in(x), count)  # (BT, 15, g, g)
        flow = 3.0 * displacement(found)  # (BT, 2, g, g)
        motion = self.match_out(torch.cat([found, flow.to(found.dtype)], dim=1))  # (BT, deep, g/2, g/2)
        for block in self.fine:
            x = block(x, count)  # (BT, fine, g, g)
        y = self.down2(self.norm_fine(x)) + motion  # (BT, deep, g/2, g/2)
        y = y + (self.place_deep[0, :, :, None] + self.place_deep[1, :, None, :])  # (BT, deep, g/2, g/2)
        for block in self.deep:
            y = block(y, count)  # (BT, deep, g/2, g/2)
        y = self.norm_deep(y)  # (BT, deep, g/2, g/2)
        x = self.norm_fine(x) + F.interpolate(self.lift(y), scale_factor=2.0, mode="nearest")  # (BT, fine, g, g)
        x = F.gelu(x)  # (BT, fine, g, g)
        colour = self.colour(x).float()  # (BT, 11, g, g)

        maps = colour.softmax(1)  # (BT, 11, g, g), the first is what is no actor
        maps = torch.cat([maps[:, 1:], maps[:, :1]], dim=1)  # (BT, 11, g, g), the last is what is no actor
        coarse = F.avg_pool2d(maps, 2)  # (BT, 11, g/2, g/2)
        near = torch.einsum("nkc,ndc->nkd", maps.flatten(2).to(x.dtype), x.flatten(2))  # (BT, 11, fine)
        far = torch.einsum("nkc,ndc->nkd", coarse.flatten(2).to(y.dtype), y.flatten(2))  # (BT, 11, deep)
        near = near.float() / (maps.sum((-2, -1)) + 0.5)[..., None]  # (BT, 11, fine)
        far = far.float() / (coarse.sum((-2, -1)) + 0.125)[..., None]  # (BT, 11, deep)
        measured = geometry(maps.unflatten(0, (batch, count))).flatten(0, 1)  # (BT, 11, 7)
        moved = torch.einsum("nkc,ndc->nkd", maps.flatten(2), flow.flatten(2))  # (BT, 11, 2)
        moved = moved / (maps.sum((-2, -1)) + 0.5)[..., None]  # (BT, 11, 2)
        tokens = self.slot_in(torch.cat([near, far, measured, moved], dim=-1))  # (BT, 11, D)
        if self.glimpse is not None:
            index, pictures, half = self.glimpse.cut(full, maps[:, :-1], _GLIMPSES)
            close = tokens.new_zeros(maps.shape[0] * (maps.shape[1] - 1), tokens.shape[-1])  # (BT 10, D)
            close = close.index_copy(0, index, self.glimpse(pictures, half).to(tokens.dtype))
            close = F.pad(close.unflatten(0, (-1, len(COLOURS))), (0, 0, 0, 1))  # (BT, 11, D), not the whole picture
            tokens = tokens + close  # (BT, 11, D)
        tokens = tokens.unflatten(0, (batch, count))  # (B, T, 11, D)
        regions = torch.cat([F.adaptive_avg_pool2d(self.region_in(y), 3), F.adaptive_avg_pool2d(flow, 3)], dim=1)
        regions = regions.flatten(1)  # (BT, 18 * 9)
        whole = self.region_out(regions).unflatten(0, (batch, count))  # (B, T, D)
        tokens = torch.cat([tokens[:, :, :-1], tokens[:, :, -1:] + whole[:, :, None]], dim=2)  # (B, T, 11, D)
        tokens = tokens + self.slot_name + self.seconds(_clock(seconds))[:, :, None]  # (B, T, 11, D)
        heads = {name: head for name in FRAME_FACTS if (head := getattr(self, f"frame_{name}", None)) is not None}
        frame = {name: head(tokens[:, :, :-1]).float() for name, head in heads.items()}  # (B, T, 10, n)
        for block in self.slots:
            tokens = block(tokens)  # (B, T, 11, D)
        tokens = self.norm_slots(tokens)  # (B, T, 11, D)
        pooled = torch.cat([tokens.mean(1), tokens.amax(1)], dim=-1)  # (B, 11, 2D)
        slots = F.gelu(self.slot_out(pooled[:, :-1]))  # (B, 10, D)
        shot = F.gelu(self.shot_out(pooled[:, -1]))  # (B, D)

        out = {f"slot/{name}": head(slots).float() for name, head in self.slot_heads.items()}  # (B, 10, n)
        out |= {f"shot/{name}": head(shot).float() for name, head in self.shot_heads.items()}  # (B, n)
        out["sound"] = self.sound(shot).float()[:, 0]  # (B,)
        out["map"] = colour.unflatten(0, (batch, count))  # (B, T, 11, g, g)
        out |= {f"frame/{name}": value for name, value in frame.items()}
        return out

    def flops(self, batch: int = 1) -> int:
        """Multiply-adds x 2 of one forward pass over `batch` shots, two actors in each frame; norms and attention
        scores left out as small."""
        c = self.config
        pixels = {"stem": (c.whole // 2) ** 2, "fine": c.grid**2, "deep": (c.grid // 2) ** 2}
        fine, deep = c.fine, c.deep
        per_frame = pixels["stem"] * 27 * c.stem + pixels["fine"] * (
            9 * c.stem * fine + 2 * 10 * fine * fine + 16 * fine + 15 * 16 + fine * (1 + len(COLOURS))
        )
        per_frame += pixels["deep"] * (9 * fine * deep + 2 * 10 * deep * deep + deep * fine)
        s = c.glimpse
        per_glimpse = (s // 2) ** 2 * 9 * 4 * 24 + (s // 4) ** 2 * (9 * 24 * 48 + 10 * 48 * 48)
        per_glimpse += (s // 8) ** 2 * (9 * 48 * 64 + 128)
        per_token = self.slot_in.weight.numel() + c.layers * 12 * c.slot**2
        return int(2 * batch * c.frames * (per_frame + 2 * per_glimpse + (len(COLOURS) + 1) * per_token))


def _clock(seconds: Tensor) -> Tensor:
    """Features of times: (B, T) seconds to (B, T, 8): waves of 1, 2, 4 and 8 seconds."""
    angles = seconds[..., None] * (2.0 * math.pi / torch.tensor([1.0, 2.0, 4.0, 8.0], device=seconds.device))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)  # (B, T, 8)
