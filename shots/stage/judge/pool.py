"""Rendered shots with everything that holds in them, kept on disk for the judge's training and check.

Notable choices:

- A shot is kept as the judge will see it: a dozen frames spread over it, at the judge's size. Nothing else is drawn.
- Beside the frames lies, for each frame, which colour of actor covers how much of each cell; an actor that changes
  colour counts under the colour it has at that moment.
- All looks and actions are drawn, also those that no generator sees in training: the judge must read them. What is held
  out for the judge is a range of seeds.
- What a viewer cannot tell is -1 in the labels: it is neither trained nor scored.
- Shards are memory-mapped, appear whole or not at all, and shard k holds the same shots whoever makes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from shots.errors import ShotsError

from ..facts import Facts, facts_of
from ..heldout import TRAINING_SEEDS
from ..observe import observe
from ..render import render_film, shot_frames
from ..scene import COLOURS, Film
from ..writer import write_film
from .model import MAX_COUNT, SHOT_FACTS, SLOT_FACTS, JudgeConfig

Degrade = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

ACTORS = 5  # most actors a shot can label
SHARD = 128  # shots in a shard
EMPTY_SHARE = 0.03  # shots drawn without their actors, so that an empty stage is known
CHECK_SEEDS = TRAINING_SEEDS + 500_000_000  # first seed of what checks the judge
SECONDS = (2.0, 2.5, 3.0, 3.0, 3.0, 4.0, 5.0)


@dataclass
class Example:
    """One shot for training or for the check.

    frames uint8 (T, s, s, 3); seconds float32 (T,); cover uint8 (T, ACTORS, g, g), 255 = the actor fills the cell;
    cover_colour int8 (T, ACTORS), index in COLOURS or -1; slot int8 (facts, 10) and shot int8 (facts,) in the order of
    SLOT_FACTS and SHOT_FACTS, -1 where nobody can tell.
    """

    frames: NDArray[np.uint8]
    seconds: NDArray[np.float32]
    cover: NDArray[np.uint8]
    cover_colour: NDArray[np.int8]
    slot: NDArray[np.int8]
    shot: NDArray[np.int8]


def sample_indices(length: int, count: int) -> NDArray[np.int64]:
    """`count` frame numbers spread over 0 .. length - 1, ends included; repeats where the shot is shorter."""
    return np.rint(np.linspace(0, length - 1, count)).astype(np.int64)


def labels_of(film: Film, shot: int, facts: Facts) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """`facts` of a shot as indices: (facts, 10) per colour and (facts,) per shot; -1 is unknown."""
    names = list(SLOT_FACTS)
    slot = np.full((len(names), len(COLOURS)), -1, np.int8)
    slot[names.index("shape")] = 0
    spec = film.shots[shot]
    for placement in spec.placements:  # not to be seen, until the facts say so
        slot[names.index("shape"), COLOURS.index(film.actor(placement.actor).colour)] = -1
    for action in spec.actions:
        if action.colour is not None:
            slot[names.index("shape"), COLOURS.index(action.colour)] = -1
    for actor in facts.actors:
        for row, name in enumerate(names):
            value = getattr(actor, name)
            if value is not None and actor.colour is not None:
                slot[row, COLOURS.index(actor.colour)] = SLOT_FACTS[name].index(value)
    count = len(spec.placements)
    values: dict[str, str | None] = {
        "count": ("none", *map(str, range(1, MAX_COUNT + 1)))[count] if count == len(facts.actors) else None,
        "fog": None if facts.fog is None else ("yes" if facts.fog else "no"),
    }
    values |= {name: getattr(facts, name) for name in SHOT_FACTS if name not in values}
    known = []
    for name, names_of in SHOT_FACTS.items():
        value = values[name]
        known.append(-1 if value is None else names_of.index(value))
    return slot, np.array(known, np.int8)


def _colour_at(film: Film, shot: int, name: str, times: Tensor) -> list[int]:
    """Index in COLOURS of what colour an actor shows at `times` (T,)."""
    shown = [COLOURS.index(film.actor(name).colour)] * len(times)
    for action in sorted(film.shots[shot].actions, key=lambda a: a.start):
        if action.actor == name and action.kind == "change_colour" and action.colour is not None:
            middle = 0.5 * (action.start + action.end)
            new = COLOURS.index(action.colour)
            shown = [new if float(t) >= middle else old for t, old in zip(times, shown, strict=True)]
    return shown


def examples_of(film: Film, config: JudgeConfig, degrade: Degrade | None = None) -> Iterator[Example]:
    """Renders the shots of `film` as the judge would sample them at 12 frames a second.

    `degrade` maps the whole shot, uint8 (T, 128, 128, 3) at 12 fps with T = 1 + 4 n, to one of the same shape: a round
    trip through a video autoencoder, say.
    """
    lengths = [shot_frames(shot.seconds, 12.0) for shot in film.shots]
    picks = [sample_indices(length, config.frames) for length in lengths]
    times = [torch.from_numpy(pick).to(torch.float64) / 12.0 for pick in picks]
    drawn = render_film(film, config.size, config.size, 12.0, times=times)
    seen = observe(film, drawn)
    frames = drawn.frames
    if degrade is not None:
        whole = render_film(film, 128, 128, 12.0, times=[torch.arange(n + (1 - n) % 4) / 12.0 for n in lengths])
        shots = [whole.frames[whole.shot_index == k].numpy() for k in range(len(lengths))]
        changed = [torch.from_numpy(degrade(shot)[pick]) for shot, pick in zip(shots, picks, strict=True)]
        frames = fit(torch.cat(changed), config.size)
    for k in range(len(film.shots)):
        rows = drawn.shot_index == k
        cover = np.zeros((config.frames, ACTORS, config.grid, config.grid), np.uint8)
        colour = np.full((config.frames, ACTORS), -1, np.int8)
        for place, placement in enumerate(film.shots[k].placements[:ACTORS]):
            index = next(i for i, actor in enumerate(film.cast) if actor.name == placement.actor)
            mask = (drawn.instance[rows] == index + 1).float()[:, None]  # (T, 1, s, s)
            share = F.adaptive_avg_pool2d(mask, config.grid)[:, 0]  # (T, g, g)
            cover[:, place] = (share * 255.0).round().to(torch.uint8).numpy()
            colour[:, place] = _colour_at(film, k, placement.actor, times[k])
        slot, shot = labels_of(film, k, facts_of(film, k, seen))
        yield Example(frames[rows].numpy(), times[k].numpy().astype(np.float32), cover, colour, slot, shot)


def examples(seed: int, config: JudgeConfig, degrade: Degrade | None = None) -> Iterator[Example]:
    """The shots of the stage's film number `seed`; every third film has three."""
    rng = np.random.default_rng([seed, 77])
    film = write_film(seed, shots=3 if seed % 3 == 0 else 1, seconds=float(rng.choice(SECONDS)), split="any")
    if rng.random() < EMPTY_SHARE:
        film = replace(film, shots=tuple(replace(shot, placements=(), actions=()) for shot in film.shots))
    yield from examples_of(film, config, degrade)


def fit(frames: Tensor, size: int) -> Tensor:
    """uint8 (T, H, W, 3) to uint8 (T, size, size, 3): the centre square, area-averaged where it shrinks."""
    side = min(frames.shape[1:3])
    top, left = (frames.shape[1] - side) // 2, (frames.shape[2] - side) // 2
    square = frames[:, top : top + side, left : left + side]
    if side == size:
        return square
    x = square.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def stack(rows: Sequence[Example]) -> dict[str, Tensor]:
    """The fields of shots, stacked, by name."""
    return {f.name: torch.from_numpy(np.stack([getattr(row, f.name) for row in rows])) for f in fields(Example)}


_FIELDS = ("frames", "cover", "facts")


def _shard_path(folder: Path, number: int, field: str) -> Path:
    return folder / f"shard-{number:05d}.{field}.{'npz' if field == 'facts' else 'npy'}"


def _write(path: Path, save: Callable[[Path], None]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part.{path.suffix[1:]}")
    save(part)
    part.replace(path)


def make_shard(
    folder: Path, number: int, config: JudgeConfig, degrade: Degrade | None = None, first_seed: int = 0
) -> None:
    """Writes shard `number` of a pool: SHARD shots of the films from seed `first_seed + number * SHARD` on."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Example] = []
    seed = first_seed + number * SHARD
    while len(rows) < SHARD:
        rows += examples(seed, config, degrade)
        seed += 1
    rows = rows[:SHARD]
    small: dict[str, Any] = {name: value.numpy() for name, value in stack(rows).items()}
    frames, cover = small.pop("frames"), small.pop("cover")
    _write(_shard_path(folder, number, "frames"), lambda path: np.save(path, frames))
    _write(_shard_path(folder, number, "cover"), lambda path: np.save(path, cover))
    # Written last: a shard counts once its facts are there.
    _write(_shard_path(folder, number, "facts"), lambda path: np.savez(path, **small))


def fill(
    folder: Path, count: int, config: JudgeConfig, threads: int | None = 1, degrade: Degrade | None = None,
    first_seed: int = 0,
) -> None:
    """Makes the missing shards of a pool of `count` shots, in order, on `threads` threads (see `make_shard`)."""
    if threads is not None:
        torch.set_num_threads(threads)
    for number in range(-(-count // SHARD)):
        if not _shard_path(folder, number, "facts").is_file():
            make_shard(folder, number, config, degrade, first_seed)


class Pool:
    """The shards in a folder, growing while others add to it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._shards: dict[int, dict[str, NDArray]] = {}

    def refresh(self) -> int:
        """Takes in new shards, in order and without gaps; returns the number of shots now in the pool."""
        while True:
            number = len(self._shards)
            paths = {field: _shard_path(self.folder, number, field) for field in _FIELDS}
            if not paths["facts"].is_file():
                return len(self)
            shard: dict[str, NDArray] = {field: np.load(paths[field], mmap_mode="r") for field in ("frames", "cover")}
            with np.load(paths["facts"]) as facts:
                shard |= {name: facts[name] for name in facts.files}
            if shard["slot"].shape[1] != len(SLOT_FACTS) or shard["shot"].shape[1] != len(SHOT_FACTS):
                raise ShotsError(f"pool: {paths['facts']} has other facts than this judge reads; delete {self.folder}")
            self._shards[number] = shard

    def __len__(self) -> int:
        return len(self._shards) * SHARD

    def batch(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """The named fields of the shots at `indices`, stacked."""
        if not len(self):
            raise ShotsError(f"pool: {self.folder} holds no shots")
        where = [divmod(int(i), SHARD) for i in indices]
        rows = {f.name: [self._shards[shard][f.name][row] for shard, row in where] for f in fields(Example)}
        return {field: torch.from_numpy(np.stack(values)) for field, values in rows.items()}
