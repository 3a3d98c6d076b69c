"""Training of nano's vision tower on dense labels: task ``vision``. The language model comes afterwards.

Notable choices:

- The tower is transformers' own Qwen2-VL vision transformer, small. What it sees is one unit: two frames half a second
  apart (in a quarter of a second growth is less than a pixel). Its merged tokens, a 4 x 4 grid, must tell what stands
  in their cell; the same tokens shrunk to 2 x 2 (as a fine pass shows them) and to 1 x 1 (as a coarse pass does) must
  tell, for each of ten colours, whether an actor of that colour is there, of which shape, where and how large, what it
  is doing and how it moves. Colours name actors on the stage; pairs across a cut, pairs in which somebody changes
  colour, and those after it, are left out.
- All heads are linear, so that what they read lies open in the features, and are thrown away afterwards.
- Light damage (brightness, contrast, noise, blur) stands for compression and resizing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shots.runtime.loop import LoopConfig, run_loop
from shots.runtime.optim import parameter_groups
from shots.runtime.vision import transformers
from shots.runtime.weights import load_into, load_tensors, save_tensors
from shots.stage.scene import ACTIONS, COLOURS, SHAPES, SURFACES
from unitime.errors import UniTimeError
from unitime.training.scenes import CELLS, FPS, GAP, STILL, Scene, load_scenes

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's, as Qwen2-VL's
_SEEN_CELL, _SEEN_POOLED, _SEEN_WHOLE = 0.10, 0.02, 0.008  # share of a cell that an actor must cover to be asked of it
_GEOMETRY = 8  # place, log size, their change; each scaled to about one
_WEIGHT = (0.3, 0.3, 1.0, 1.0, 2.0, 2.0, 1.5, 1.5)  # place is all but hidden: rotary positions are relative
_CELL = (1 + len(COLOURS), len(SHAPES), len(SURFACES), len(ACTIONS), _GEOMETRY)


@dataclass(frozen=True)
class VisionRecipe:
    """What ``task: vision`` reads.

    out: run folder. scenes: folder of shards. batch: units a step. held_out: scenes of the first shard never trained
    on. config: of the tower (transformers' Qwen2VLVisionConfig); hidden_size is the language model's width.
    start: folder of a tower to go on from.
    """

    task: str
    out: Path
    scenes: Path
    loop: LoopConfig
    batch: int = 256
    held_out: int = 16
    config: dict[str, Any] = field(default_factory=dict)
    start: Path | None = None


def build_tower(config: dict[str, Any]) -> nn.Module:
    """The vision transformer of Qwen2-VL in the given size."""
    family = transformers().models.qwen2_vl
    config_of = family.configuration_qwen2_vl.Qwen2VLVisionConfig(**config)
    tower = family.modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel(config_of)
    with torch.no_grad():  # a third of the patches' filters begin as differences of the two frames: what moves is small
        filters = tower.patch_embed.proj.weight[: config["embed_dim"] // 3]  # (C / 3, 3, 2, patch, patch)
        filters[:, :, 0].mul_(3.0)
        filters[:, :, 1] = -filters[:, :, 0]
    built: nn.Module = tower
    return built


class Units:
    """Every pair of frames `GAP` apart of all scenes, with what is in it; whole in memory."""

    def __init__(self, folder: Path, held_out: int) -> None:
        paths = sorted(folder.glob("scenes-*.safetensors"))
        if not paths:
            raise UniTimeError(f"scenes: there is no shard in {folder}; draw them with the scenes recipe first")
        scenes = [scene for path in paths for scene in load_scenes(path)]
        self.frames = torch.cat([scene.frames for scene in scenes])  # (F, 64, 64, 3)
        self.cover = torch.cat([scene.cover for scene in scenes])  # (F, 4, 4, 3)
        self.doing = torch.cat([scene.doing for scene in scenes])  # (F, 3)
        self.box = torch.cat([scene.box for scene in scenes])  # (F, 3, 4)
        self.cast = torch.stack([scene.cast for scene in scenes])  # (S, 3, 4)
        lengths = torch.tensor([len(scene.frames) for scene in scenes])
        self.scene = torch.repeat_interleave(torch.arange(len(scenes)), lengths)  # (F,)
        shot = torch.cat([_shots(scene) for scene in scenes]) + 1000 * self.scene  # (F,)
        fit = shot[:-GAP] == shot[GAP:]  # what moves between two shots is nobody's movement
        told = torch.cat([_true_to_colour(scene) for scene in scenes])
        pairs = (fit & told[:-GAP] & told[GAP:]).nonzero()[:, 0]
        self.kept, self.free = pairs[self.scene[pairs] < held_out], pairs[self.scene[pairs] >= held_out]

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """Pairs at frames `index` (N,)."""
        box = self.box[index].float(), self.box[index + GAP].float()
        size = [(b[..., 2:] - b[..., :2]).clamp_min(0.02).log() for b in box]  # (N, 3, 2)
        place = [(b[..., :2] + b[..., 2:]) / 2 for b in box]
        middle, extent = (place[0] + place[1]) / 2 - 0.5, (size[0] + size[1]) / 2 + 1.4
        geometry = torch.cat(
            [4 * middle, 2 * extent, 20 * (place[1] - place[0]), 8 * (size[1] - size[0])], -1
        ).clamp(-3, 3)  # (N, 3, 8)
        return {
            "frames": torch.stack([self.frames[index], self.frames[index + GAP]], 1),  # (N, 2, 64, 64, 3)
            "cover": (self.cover[index].float() + self.cover[index + GAP].float()) / 510,  # (N, 4, 4, 3)
            "doing": self.doing[index + GAP // 2].long(),  # (N, 3)
            "cast": self.cast[self.scene[index]].long(),  # (N, 3, 4)
            "geometry": geometry,
        }


def _true_to_colour(scene: Scene) -> Tensor:
    """(F,) bool: whether every actor still has the colour that it is called by."""
    doing = scene.doing == ACTIONS.index("change_colour")  # (F, 3)
    true = torch.ones(len(doing), dtype=torch.bool)
    for start, end, _ in scene.told.shots:
        first, last = round(start * FPS), round(end * FPS)
        true[first:last] = ~(doing[first:last].any(1).cummax(0).values)
    return true


def _shots(scene: Scene) -> Tensor:
    """(F,) the shot of every frame."""
    edges = torch.tensor([round(start * FPS) for start, _, _ in scene.told.shots[1:]])
    return torch.bucketize(torch.arange(len(scene.frames)), edges, right=True)


def patches(frames: Tensor, patch: int = 8, merge: int = 2) -> Tensor:
    """Normalised pixels (N, 2, H, W, 3) in [0, 1] as rows (N h w, 3 * 2 * patch * patch).

    Ordered as transformers' video processor orders them: the patches of one merged token together.
    """
    n, t, height, width, _ = frames.shape
    mean, std = torch.tensor(MEAN, device=frames.device), torch.tensor(STD, device=frames.device)
    x = ((frames - mean) / std).permute(0, 4, 1, 2, 3)  # (N, 3, 2, H, W)
    h, w = height // patch // merge, width // patch // merge
    x = x.view(n, 3, t, h, merge, patch, w, merge, patch)
    x = x.permute(0, 3, 6, 4, 7, 1, 2, 5, 8)  # (N, h, w, merge, merge, 3, 2, patch, patch)
    return x.reshape(n * h * w * merge * merge, -1)


def damaged(frames: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 (N, 2, H, W, 3) as floats in [0, 1], lightly damaged, each unit otherwise; drawn alike for every device."""
    n = len(frames)
    x = frames.float() / 255

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, 1, 1, generator=generator).to(x.device)

    x = (x - 0.5) * draw(0.85, 1.15) + 0.5 + draw(-0.06, 0.06)
    noise = torch.randn(x.shape, generator=generator).to(x.device) * draw(0.0, 0.03)
    soft = x.flatten(0, 1).permute(0, 3, 1, 2)
    soft = F.avg_pool2d(F.pad(soft, (1, 1, 1, 1), mode="replicate"), 3, 1).permute(0, 2, 3, 1).view_as(x)
    return (torch.lerp(x, soft, draw(-0.3, 0.6)) + noise).clamp(0, 1)


def run_tower(tower: Any, rows: Tensor, units: int) -> Tensor:
    """Merged tokens (N, 16, D) of `units` 64 x 64 units given as `rows` of patches; every unit attends to itself only.

    The tower's own forward pass takes the units one by one; they are all of one size here, so one batch does.
    """
    rotate = transformers().models.qwen2_vl.modeling_qwen2_vl.apply_rotary_pos_emb_vision
    side = 2 * CELLS
    x = F.linear(rows, tower.patch_embed.proj.weight.flatten(1)).view(units, side * side, -1)  # (N, 64, C)
    cos, sin = (part.to(x.device) for part in positions(tower, side))  # (64, d)
    for block in tower.blocks:
        attention, y = block.attn, block.norm1(x)
        q, k, v = attention.qkv(y).view(units, side * side, 3, attention.num_heads, -1).unbind(2)  # (N, 64, h, d)
        q, k = rotate(q, k, cos, sin)
        q, k, v = (z.transpose(1, 2).to(x.dtype) for z in (q, k, v))  # (N, h, 64, d)
        weights = (q @ k.transpose(2, 3) * attention.scaling).softmax(-1)
        x = x + attention.proj((weights @ v).transpose(1, 2).reshape(units, side * side, -1))
        x = x + block.mlp(block.norm2(x))
    return tower.merger(x.flatten(0, 1)).view(units, CELLS * CELLS, -1)


def positions(tower: Any, side: int) -> tuple[Tensor, Tensor]:
    """Rotary cosines and sines (side^2, d) of one unit, as the tower's forward pass has them."""
    place = transformers().models.qwen2_vl.modeling_qwen2_vl.get_vision_position_ids
    ids = place(torch.tensor([[1, side, side]]), tower.spatial_merge_size, kwargs={})
    cos, sin = tower.rotary_pos_emb(torch.zeros(side * side, 1), ids)
    return cos, sin


class DenseVision(nn.Module):
    """The tower and the linear heads that tell what its features hold; forward gives the loss of a batch of units."""

    def __init__(self, tower: nn.Module, width: int) -> None:
        super().__init__()
        self.tower = tower
        self.cell = nn.Linear(width, sum(_CELL))
        self.pooled = nn.ModuleList(
            nn.Linear(width, len(COLOURS) * (1 + len(SHAPES) + len(ACTIONS) + _GEOMETRY)) for _ in range(2)
        )

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        frames = damaged(batch["frames"], generator) if self.training else batch["frames"].float() / 255
        tokens = run_tower(self.tower, patches(frames), len(frames))  # (N, 16, D)
        cover = batch["cover"]
        figures: dict[str, Tensor] = {}
        loss = self.cells(tokens, cover.flatten(1, 2), batch, figures)
        grid = tokens.view(len(tokens), CELLS, CELLS, -1)
        quarter = grid.unflatten(1, (2, 2)).unflatten(3, (2, 2)).mean((2, 4)).flatten(1, 2)  # (N, 4, D)
        shares = cover.unflatten(1, (2, 2)).unflatten(3, (2, 2)).mean((2, 4)).flatten(1, 2)  # (N, 4, 3)
        loss = loss + self.by_colour(0, quarter, shares, _SEEN_POOLED, batch, figures)
        whole, share = grid.mean((1, 2))[:, None], cover.mean((1, 2))[:, None]  # (N, 1, D), (N, 1, 3)
        loss = loss + 0.5 * self.by_colour(1, whole, share, _SEEN_WHOLE, batch, figures)
        return loss, figures

    def cells(
        self, tokens: Tensor, cover: Tensor, batch: dict[str, Tensor], figures: dict[str, Tensor]
    ) -> Tensor:
        """What the actor that covers most of a cell is, does and moves like; cover (N, 16, 3)."""
        cast, doing = batch["cast"], batch["doing"]
        *logits, geometry = self.cell(tokens).float().split(_CELL, -1)
        share, who = cover.max(-1)  # (N, 16)
        here = share >= _SEEN_CELL
        of = cast.gather(1, who[..., None].expand(-1, -1, 4))  # (N, 16, 4)
        colour = torch.where(here, of[..., 0] + 1, 0)
        weight = torch.where(here, 1.0, 0.1)
        loss = (F.cross_entropy(logits[0].flatten(0, 1), colour.flatten(), reduction="none") * weight.flatten()).sum()
        loss = loss / weight.sum()
        wanted = (of[..., 1], of[..., 3], doing.gather(1, who))
        for name, scores, target in zip(("shape", "surface", "doing"), logits[1:], wanted, strict=True):
            part = F.cross_entropy(scores[here], target[here])
            figures[f"cell_{name}"] = (scores[here].argmax(-1) == target[here]).float().mean()
            loss = loss + part
        moves = batch["geometry"].gather(1, who[..., None].expand(-1, -1, _GEOMETRY))  # (N, 16, 8)
        missed = geometry[here] - moves[here]  # (K, 8)
        figures["cell_motion"] = missed[:, 4:6].abs().mean()
        return loss + 4.0 * _missed(missed)

    def by_colour(
        self, level: int, tokens: Tensor, share: Tensor, seen: float, batch: dict[str, Tensor],
        figures: dict[str, Tensor],
    ) -> Tensor:  # fmt: skip
        """Per colour: is it there, and if so what is it, what does it do, how does it move; share (N, P, 3)."""
        name = ("quarter", "whole")[level]
        scores = self.pooled[level](tokens).float().unflatten(-1, (len(COLOURS), -1))  # (N, P, 10, k)
        there, shape, doing, geometry = scores.split([1, len(SHAPES), len(ACTIONS), _GEOMETRY], -1)
        cast, n, p = batch["cast"], tokens.shape[0], tokens.shape[1]
        real = (cast[..., 0] >= 0)[:, None] & (share >= seen)  # (N, P, 3)
        at, where, who = real.nonzero(as_tuple=True)
        colour = cast[at, who, 0]
        target = torch.zeros(n, p, len(COLOURS), device=share.device)
        target[at, where, colour] = 1.0
        presence = F.binary_cross_entropy_with_logits(there[..., 0], target)
        acts = batch["doing"][at, who]
        rare = torch.where(acts == STILL, 0.15, 1.0)  # most of the time everybody stands still
        said = doing[at, where, colour]
        told = (F.cross_entropy(said, acts, reduction="none") * rare).sum() / rare.sum()
        looks = F.cross_entropy(shape[at, where, colour], cast[at, who, 1])
        missed = geometry[at, where, colour] - batch["geometry"][at, who]  # (K, 8)
        right = (said.argmax(-1) == acts).float()
        figures[f"{name}_there"] = ((there[..., 0] > 0) == (target > 0)).float()[target > 0].mean()
        figures[f"{name}_doing"] = right[acts != STILL].mean()
        figures[f"{name}_still"] = right[acts == STILL].mean()
        figures[f"{name}_shape"] = (shape[at, where, colour].argmax(-1) == cast[at, who, 1]).float().mean()
        figures[f"{name}_place"], figures[f"{name}_size"], figures[f"{name}_motion"], figures[f"{name}_growth"] = (
            missed.abs().view(-1, 4, 2).mean((0, 2)).unbind()
        )
        return 5.0 * presence + told + 0.5 * looks + 3.0 * _missed(missed)


def _missed(missed: Tensor) -> Tensor:
    """Weighted smooth L1 of (K, 8) errors of geometry."""
    each = F.smooth_l1_loss(missed, torch.zeros_like(missed), beta=0.2, reduction="none")
    return (each * torch.tensor(_WEIGHT, device=each.device)).mean()


def flops(tower: Any, side: int = 2 * CELLS) -> float:
    """Multiplications and additions of one unit, forward: two per weight and patch, and attention."""
    count = side * side
    weights = sum(p.numel() for name, p in tower.named_parameters() if "merger" not in name and p.dim() > 1)
    merger = sum(p.numel() for p in tower.merger.parameters() if p.dim() > 1)
    attention = 4 * count * count * tower.config.embed_dim * tower.config.depth
    return 2.0 * weights * count + 2.0 * merger * count / tower.spatial_merge_size**2 + attention


def train_vision(recipe: VisionRecipe) -> Path:
    """Trains the tower; resumes what is in `out`. Returns the folder with the averaged tower, ``out/tower``."""
    units = Units(recipe.scenes, recipe.held_out)
    torch.manual_seed(recipe.loop.seed)
    tower = build_tower(recipe.config)
    if recipe.start is not None:
        load_into(tower, load_tensors(recipe.start), "the vision tower")
    model = DenseVision(tower, recipe.config["hidden_size"])

    def batches(number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(recipe.loop.seed * 7_368_787 + number)
        return units.batch(units.free[torch.randint(len(units.free), (recipe.batch,), generator=generator)])

    def look(progress: Any, average: Any) -> dict[str, float]:
        if progress.step % (10 * recipe.loop.log_every):
            return {}
        return evaluate(model, units)

    each = 3 * flops(tower)
    _, average = run_loop(
        recipe.loop, model, model.tower, batches, recipe.out,
        groups=parameter_groups(model, recipe.loop.weight_decay, model.tower),
        count=lambda batch: (len(batch["frames"]), each * len(batch["frames"])),
        to_device=lambda batch, device: {name: x.to(device) for name, x in batch.items()}, every_log=look,
    )  # fmt: skip
    average.copy_to(tower)
    target = recipe.out / "tower"
    if int(os.environ.get("RANK", "0")) == 0:
        save_tensors(tower.state_dict(), target)
    return target


@torch.no_grad()
def evaluate(model: DenseVision, units: Units, most: int = 768) -> dict[str, float]:
    """The figures on held-out units, undamaged."""
    index = units.kept[torch.linspace(0, len(units.kept) - 1, min(most, len(units.kept))).long()]
    model.eval()
    device = next(model.parameters()).device
    batch = {name: x.to(device) for name, x in units.batch(index).items()}
    _, figures = model(batch, torch.Generator())
    model.train()
    return {f"held_{name}": float(value) for name, value in figures.items()}
