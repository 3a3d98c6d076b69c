"""What a generator does to pictures, done to the training shots: damage to read through, and damage to call out.

Notable choices:

- Mild damage (blur, lost resolution, block quantisation, grain, wobble, ghosting, colour casts, cells that do not fit
  their neighbours) leaves the labels as they are: what a viewer reads through is not "not sound".
- Broken shots get `sound` = 0. Where nothing of the picture is left they read as "none" throughout; where a picture is
  left (blends, halves, shuffles, melts) the other facts are neither right nor wrong and are not trained.
- A frozen shot is sound: its actors are still and its camera is static.
- Everything is drawn from the given numpy generator, so a batch is a function of its seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..scene import ACTIONS, COLOURS
from .model import SHOT_FACTS, SLOT_FACTS

_SLOT, _SHOT = list(SLOT_FACTS), list(SHOT_FACTS)
_SHAPE, _ACTION, _CAMERA = _SLOT.index("shape"), _SLOT.index("action"), _SHOT.index("camera")


def _mirror(names: tuple[str, ...]) -> Tensor:
    """Index of each name's mirror image; a last entry keeps -1 as it is."""
    swap = [names.index(n.replace("left", "*").replace("right", "left").replace("*", "right")) for n in names]
    return torch.tensor([*swap, -1])


_MIRROR_ACTION, _MIRROR_CAMERA = _mirror(SLOT_FACTS["action"]), _mirror(SHOT_FACTS["camera"])


@dataclass
class Batch:
    """Shots ready for the network.

    frames float (B, T, 3, s, s) in [0, 1]; seconds (B, T); slot long (B, facts, 10); shot long (B, facts); sound (B,)
    in {0, 1}, or -1 where it is open; map float (B, T, 11, g, g) shares of each cell (none first); mapped (B,) bool,
    whether `map` holds.
    """

    frames: Tensor
    seconds: Tensor
    slot: Tensor
    shot: Tensor
    sound: Tensor
    map: Tensor
    mapped: Tensor


def plain(raw: dict[str, Tensor]) -> Batch:
    """A batch of the pool as it is."""
    frames = raw["frames"].permute(0, 1, 4, 2, 3).float() / 255.0
    count, time = frames.shape[:2]
    cover = raw["cover"].float() / 255.0  # (B, T, A, g, g)
    shares = torch.zeros(count, time, 1 + len(COLOURS), *cover.shape[-2:])
    index = (raw["cover_colour"].long() + 1)[..., None, None].expand_as(cover)  # (B, T, A, g, g)
    shares.scatter_add_(2, index, cover)
    shares[:, :, 0] = (1.0 - shares[:, :, 1:].sum(2)).clamp_min(0.0)
    return Batch(
        frames, raw["seconds"].float(), raw["slot"].long(), raw["shot"].long(), torch.ones(count), shares,
        torch.ones(count, dtype=torch.bool),
    )


def _resize(x: Tensor, size: int, antialias: bool = False) -> Tensor:
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=antialias)


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (T, 3, s, s)."""
    reach = max(1, math.ceil(2.5 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel[:, :, None, :], groups=3)
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel[:, :, :, None], groups=3)


def _dct() -> Tensor:
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)[None]
    matrix = torch.cos(math.pi * (n + 0.5) * k / 8.0) * 0.5
    matrix[0] *= math.sqrt(0.5)
    return matrix


_DCT = _dct()
_STEP = 1.0 + torch.arange(8.0)[:, None] + torch.arange(8.0)[None]  # coarser for finer detail, as JPEG's tables are


def _quantise(x: Tensor, strength: float) -> Tensor:
    """Rounds the 8 x 8 block cosines of (T, 3, s, s), as JPEG and H.264 do; `strength` is the step of the lowest."""
    blocks = x.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # (T, 3, s/8, s/8, 8, 8)
    step = _STEP * strength
    coded = (_DCT @ blocks @ _DCT.T / step).round() * step
    return (_DCT.T @ coded @ _DCT).transpose(3, 4).flatten(4, 5).flatten(2, 3)


def _warp(x: Tensor, rng: np.random.Generator, pixels: float, cells: int) -> Tensor:
    """Moves the points of (T, 3, s, s) by a smooth random field of `pixels` rms that drifts over the frames."""
    time, size = x.shape[0], x.shape[-1]
    ends = torch.from_numpy(rng.standard_normal((2, 2, cells, cells), dtype=np.float32))
    p = torch.linspace(0.0, 1.0, time)[:, None, None, None] * (0.5 * math.pi)
    field = (ends[0] * p.cos() + ends[1] * p.sin()) * (2.0 * pixels / size)
    field = F.interpolate(field, (size, size), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    axis = (torch.arange(size) + 0.5) * (2.0 / size) - 1.0
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1) + field
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _cells(x: Tensor, rng: np.random.Generator) -> Tensor:
    """A picture (T, 3, s, s) as a generator of latents leaves it that is short of training: cells and groups of frames
    that do not quite fit their neighbours in colour and place, some of them washed out."""
    time, _, size, _ = x.shape
    cells, group = int(rng.choice([8, 8, 16])), int(rng.integers(1, 4))
    turns = -(-time // group)

    def spread(values: Tensor) -> Tensor:
        """(turns or 1, C, cells, cells) over frames and pixels."""
        over = values if len(values) == 1 else values.repeat_interleave(group, 0)[:time]
        return F.interpolate(over, (size, size), mode="nearest")

    pixels = float(rng.uniform(0.0, 2.5))
    field = spread(_noise((turns, 2, cells, cells), rng) * (2.0 * pixels / size)).permute(0, 2, 3, 1)
    axis = (torch.arange(size) + 0.5) * (2.0 / size) - 1.0
    place = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    y = F.grid_sample(x, place + field, mode="bilinear", padding_mode="reflection", align_corners=False)
    washed = spread((_uniform((turns, 1, cells, cells), rng) < float(rng.uniform(0.0, 0.25))).float())
    small = F.interpolate(y, (2 * cells, 2 * cells), mode="area")
    y = y + (_resize(small, size) - y) * washed
    lasting, passing = (float(rng.uniform(0.0, 0.05)) for _ in range(2))
    y = y + spread(_noise((1, 3, cells, cells), rng)) * lasting
    return y + spread(_noise((turns, 3, cells, cells), rng)) * passing


def _uniform(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random(shape, dtype=np.float32))


def _noise(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def mild(x: Tensor, rng: np.random.Generator, cells: float = 0.4) -> Tensor:
    """Damage a reader sees through, to one shot (T, 3, s, s) in [0, 1]; `cells`: share of shots whose cells do not fit
    their neighbours."""
    time, _, size, _ = x.shape
    if rng.random() < 0.35:
        x = _resize(_resize(x, int(rng.integers(size * 2 // 5, size)), antialias=True), size)
    elif rng.random() < 0.3:
        x = _blur(x, float(rng.uniform(0.4, 1.3)))
    if rng.random() < 0.12:
        x = _warp(x, rng, float(rng.uniform(0.3, 1.0)), int(rng.integers(4, 13)))
    if cells and rng.random() < cells:
        x = _cells(x, rng)
    if rng.random() < 0.12:
        other = x[[0, *range(time - 1)]] if rng.random() < 0.5 else x[[*range(1, time), time - 1]]
        x = x + (other - x) * float(rng.uniform(0.05, 0.25))
    if rng.random() < 0.7:
        gain = torch.from_numpy(1.0 + 0.04 * rng.standard_normal((1, 3, 1, 1), dtype=np.float32))
        x = x * gain * float(rng.uniform(0.92, 1.08)) + float(rng.uniform(-0.03, 0.03))
        grey = x.mean(1, keepdim=True)
        x = grey + (x - grey) * float(rng.uniform(0.85, 1.1))
    if rng.random() < 0.2:
        x = _quantise(x, float(rng.uniform(0.01, 0.05)))
    if rng.random() < 0.2:
        cells = int(rng.choice([6, 12, 24]))
        x = x + _resize(_noise((time, 3, cells, cells), rng), size) * float(rng.uniform(0.01, 0.04))
    if rng.random() < 0.2:
        x = x + _noise(tuple(x.shape), rng) * float(rng.uniform(0.01, 0.04))
    return x.clamp(0.0, 1.0)


def _nothing(x: Tensor, rng: np.random.Generator) -> Tensor:
    """A shot (T, 3, s, s) with no picture in it: one colour, a gradient, or noise of some grain, still or moving."""
    time, _, size, _ = x.shape
    colour = torch.from_numpy(rng.random((1, 3, 1, 1), dtype=np.float32))
    kind = rng.integers(4)
    if kind == 0:
        return colour.expand_as(x).clone()
    frames = 1 if rng.random() < 0.3 else time
    cells = {1: size, 2: int(rng.integers(2, 7)), 3: int(rng.integers(8, 40))}[int(kind)]
    noise = _resize(_noise((frames, 3, cells, cells), rng), size)
    return (colour + noise * float(rng.uniform(0.1, 0.5))).expand_as(x).clone()


def spoil(batch: Batch, i: int, other: Tensor, rng: np.random.Generator) -> None:
    """Breaks shot `i` of the batch in place; `other` is some other shot's frames (T, 3, s, s)."""
    x = batch.frames[i]
    time, _, size, _ = x.shape
    batch.sound[i] = 0.0
    batch.mapped[i] = False
    kind = str(rng.choice(["nothing", "smear", "blend", "halves", "splice", "shuffle", "melt"]))
    if kind == "nothing":
        y = _nothing(x, rng)
    elif kind == "smear":
        y = _resize(_resize(x, int(rng.integers(3, 7)), antialias=True), size)
    elif kind == "blend":
        y = x + (other - x) * float(rng.uniform(0.35, 0.65))
    elif kind == "halves":
        y, edge = x.clone(), int(rng.integers(size // 4, size * 3 // 4))
        if rng.random() < 0.5:
            y[:, :, edge:] = other[:, :, edge:]
        else:
            y[:, :, :, edge:] = other[:, :, :, edge:]
    elif kind == "splice":
        y, edge = x.clone(), int(rng.integers(time // 4, time * 3 // 4 + 1))
        y[edge:] = other[edge:]
    elif kind == "shuffle":
        y = x[torch.from_numpy(rng.permutation(time))]
    else:
        y = _warp(x, rng, float(rng.uniform(7.0, 16.0)), int(rng.integers(4, 9)))
    if kind in ("nothing", "smear"):
        batch.shot[i] = 0
        batch.slot[i] = -1
        batch.slot[i, _SHAPE] = 0
    else:
        batch.shot[i] = -1
        batch.slot[i] = -1
    if kind in ("splice", "shuffle", "blend") and float((y - x).abs().mean()) < 0.03:
        batch.sound[i] = -1.0  # two stills of the same stage: nothing a viewer would call broken
    batch.frames[i] = y


def freeze(batch: Batch, i: int, k: int) -> None:
    """Holds frame `k` of shot `i` for the whole shot, in place. What that frame does not show is no longer known."""
    here = batch.map[i, k].sum((-2, -1))[1:] > 0.5  # (10,) by colour: half a cell or more
    actor = batch.slot[i, _SHAPE] > 0
    batch.frames[i] = batch.frames[i, k].clone()
    batch.map[i] = batch.map[i, k].clone()
    batch.slot[i, :, ~here] = -1
    batch.slot[i, 1:] = -1
    batch.slot[i, _ACTION, actor & here] = ACTIONS.index("still")
    batch.shot[i, _CAMERA] = SHOT_FACTS["camera"].index("static")
    batch.shot[i, _SHOT.index("count")] = -1


def flip(batch: Batch, i: int) -> None:
    """Mirrors shot `i` left to right, in place."""
    batch.frames[i] = batch.frames[i].flip(-1)
    batch.map[i] = batch.map[i].flip(-1)
    batch.slot[i, _ACTION] = _MIRROR_ACTION[batch.slot[i, _ACTION]]
    batch.shot[i, _CAMERA] = _MIRROR_CAMERA[batch.shot[i, _CAMERA]]


def augment(batch: Batch, rng: np.random.Generator, broken: float = 0.1, frozen: float = 0.03) -> Batch:
    """The batch with mirrored, frozen, broken and mildly damaged shots; changes it in place and returns it."""
    count = len(batch.frames)
    for i in range(count):
        if rng.random() < 0.5:
            flip(batch, i)
    clean = batch.frames.clone() if broken else batch.frames
    for i in range(count):
        fate = rng.random()
        if fate < broken and count > 1:
            spoil(batch, i, clean[(i + int(rng.integers(1, count))) % count], rng)
        elif fate < broken + frozen:
            freeze(batch, i, int(rng.integers(batch.frames.shape[1])))
        batch.frames[i] = mild(batch.frames[i], rng)
    return batch
