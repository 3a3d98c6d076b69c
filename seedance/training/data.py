"""Frames for training: the stage, rendered in the background, and folders of real clips, as crops of several sizes.

Notable choices:
- A batch is a pure function of its number: which clip, which crop, which flip come from a generator seeded by it. A
  resumed run sees the data an unkilled one would have seen.
- Stage clips are rendered by worker processes into a folder, ahead of use, and each is used about `reuse` times. The
  clips that draw n may take depend on n alone; one that is not there yet is rendered on the spot.
- Real clips are read from `.npy` files, uint8 (T, H, W, 3), so that a training machine needs nothing that decodes
  video; task `frames` (`seedance.training.frames`) makes them, each clip at several sizes, and training only cuts
  pieces out. A pack or a folder of clips (`shots.folder`) serves as well.
- Batches are of several shapes (buckets), each with its own number of clips.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seedance.errors import SeedanceError
from seedance.shapes import VideoShape
from shots.clip import Clip
from shots.stage.scene import STAGE_VERSION

Frames = NDArray[np.uint8]


class FrameSource(Protocol):
    """Something that gives the frames of a clip for every draw."""

    def frames(self, draw: int, rng: np.random.Generator) -> Frames:
        """uint8 (T, H, W, 3), perhaps memory-mapped, never to be written to."""


@dataclass(frozen=True)
class Bucket:
    """One batch shape: `batch` clips of frames x height x width, taken with probability proportional to `weight`."""

    frames: int
    height: int
    width: int
    batch: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        VideoShape(self.frames, self.height, self.width).latent  # noqa: B018  (raises for sizes that do not fit)
        if self.batch < 1 or self.weight < 0:
            raise SeedanceError(f"bucket: batch {self.batch} and weight {self.weight} must be positive")


@dataclass(frozen=True)
class SourceConfig:
    """One source of a mix. kind: "stage", "arrays" (a folder of .npy), "pack" (a file) or "folder" (videos, pictures).

    path: the folder or file; for the stage where rendered clips are kept. augment: also other speeds, backwards and
    other colours. height, width, frames, fps: of each clip, for the stage and a folder. For the stage alone: seed of
    the first clip, shots, reuse, pool (clips that the first draws choose from), workers (processes that render ahead).
    """

    kind: str
    path: Path
    weight: float = 1.0
    augment: bool = False
    seed: int = 0
    height: int = 128
    width: int = 128
    frames: int = 37
    fps: float = 12.0
    shots: int = 1
    reuse: int = 40
    pool: int = 64
    workers: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("stage", "arrays", "pack", "folder"):
            raise SeedanceError(f"data.sources: kind {self.kind!r} is not stage, arrays, pack or folder")


def open_source(config: SourceConfig) -> FrameSource:
    """The source that a configuration describes."""
    if config.kind == "stage":
        return StageSource(config)
    if config.kind == "arrays":
        return ArraySource(config.path)
    from shots.folder import clips_in_folder, load_pack

    if config.kind == "pack":
        return ClipSource(load_pack(config.path))
    return ClipSource(clips_in_folder(config.path, config.frames, (config.height, config.width), config.fps))


# ---------------------------------------------------------------------------------------------------------------------
# Sources


class ArraySource:
    """A folder of `.npy` files, uint8 (T, H, W, 3); longer clips are drawn more often (as the root of their length).

    Raises SeedanceError when there are none, or one is of another kind.
    """

    def __init__(self, path: Path) -> None:
        files = sorted(file for file in Path(path).expanduser().glob("*.npy") if not file.name.startswith("."))
        if not files:
            raise SeedanceError(f"data.sources: {path} holds no .npy clips; make them with task: frames")
        self._clips = [np.load(file, mmap_mode="r") for file in files]
        for file, clip in zip(files, self._clips, strict=True):
            if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
                raise SeedanceError(f"data.sources: {file} is {clip.dtype} {clip.shape}, not uint8 (T, H, W, 3)")
        self._shares = _shares([clip.shape[0] ** 0.5 for clip in self._clips], "data.sources")

    def frames(self, draw: int, rng: np.random.Generator) -> Frames:
        return self._clips[int(rng.choice(len(self._clips), p=self._shares))]


class ClipSource:
    """Clips held in memory; each is drawn equally often."""

    def __init__(self, clips: Iterable[Clip]) -> None:
        self._clips: list[Frames] = [clip.frames.numpy() for clip in clips if clip.frames is not None]
        if not self._clips:
            raise SeedanceError("data.sources: a pack or folder without frames")

    def frames(self, draw: int, rng: np.random.Generator) -> Frames:
        return self._clips[int(rng.integers(len(self._clips)))]


def _render_to(file: Path, seed: int, config: SourceConfig) -> None:
    """Render stage clip `seed` and keep its frames; written beside the target and renamed when whole."""
    from shots import stage

    clip = stage.clip(seed, config.height, config.width, config.frames, config.fps, shots=config.shots, split="train")
    assert clip.frames is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.npy")
    np.save(temporary, clip.frames.numpy())
    temporary.replace(file)


def _one_thread() -> None:
    torch.set_num_threads(1)


class StageSource:
    """Stage clips number seed, seed + 1, ... of one size, rendered ahead of use into `config.path`."""

    AHEAD = 16

    def __init__(self, config: SourceConfig) -> None:
        self._config = config
        self._folder = Path(config.path).expanduser()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._pending: dict[int, Future[None]] = {}
        self._asked = 0
        self._pool = None
        if config.workers > 0:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(config.workers, mp_context=spawn, initializer=_one_thread)

    def _file(self, number: int) -> Path:
        config = self._config
        size = f"{config.frames}x{config.height}x{config.width}-{config.fps:g}fps-{config.shots}"
        return self._folder / f"stage{STAGE_VERSION}-{size}-{config.seed + number:08d}.npy"

    def available(self, draw: int) -> int:
        """How many clips draw number `draw` may choose from."""
        return self._config.pool + draw // self._config.reuse

    def _ask(self, until: int) -> None:
        """Have clips up to number `until` rendered in the background."""
        if self._pool is None:
            return
        for number in range(self._asked, until):
            if not self._file(number).exists():
                self._pending[number] = self._pool.submit(
                    _render_to, self._file(number), self._config.seed + number, self._config
                )
        self._asked = max(self._asked, until)

    def frames(self, draw: int, rng: np.random.Generator) -> Frames:
        available = self.available(draw)
        self._ask(available + self.AHEAD)
        number = int(rng.integers(available))
        file = self._file(number)
        if not file.exists():
            if number in self._pending:
                self._pending.pop(number).result()
            else:
                _render_to(file, self._config.seed + number, self._config)
        clip: Frames = np.load(file, mmap_mode="r")
        return clip


# ---------------------------------------------------------------------------------------------------------------------
# Crops and batches


def crop(clip: Frames, bucket: Bucket, rng: np.random.Generator, augment: bool) -> Frames:
    """A random piece of `clip`, uint8 (frames, height, width, 3), perhaps mirrored.

    With `augment` also every second or third frame, backwards, and other colours: for few real clips. A clip that is
    shorter than the bucket is played forth and back; a smaller one is repeated at the edges.
    """
    length, height, width, _ = clip.shape
    stride = 1
    if augment and bucket.frames > 1:
        fitting = [s for s in (1, 2, 2, 3) if (bucket.frames - 1) * s < length]
        stride = int(rng.choice(fitting)) if fitting else 1
    span = (bucket.frames - 1) * stride + 1
    start = int(rng.integers(max(1, length - span + 1)))
    times = start + np.arange(bucket.frames) * stride
    times = np.abs((times + length - 1) % max(1, 2 * (length - 1)) - (length - 1)) if length > 1 else times * 0
    if rng.random() < (0.5 if augment else 0.1):
        times = times[::-1]
    top = int(rng.integers(max(1, height - bucket.height + 1)))
    left = int(rng.integers(max(1, width - bucket.width + 1)))
    low, high = int(times.min()), int(times.max()) + 1
    piece = np.asarray(clip[low:high, top : top + bucket.height, left : left + bucket.width])[times - low]
    missing = (bucket.height - piece.shape[1], bucket.width - piece.shape[2])
    if max(missing) > 0:
        piece = np.pad(piece, ((0, 0), (0, max(0, missing[0])), (0, max(0, missing[1])), (0, 0)), mode="edge")
    if rng.random() < 0.5:
        piece = piece[:, :, ::-1]
    if augment:
        if rng.random() < 0.2:
            piece = piece[:, ::-1]
        if rng.random() < 0.3:
            piece = piece[..., rng.permutation(3)]
        if rng.random() < 0.6:
            gain, shift = rng.uniform(0.7, 1.25, 3) ** (1 if rng.random() < 0.5 else 0), rng.uniform(-25, 25)
            contrast = rng.uniform(0.7, 1.25)
            table = np.clip((np.arange(256)[:, None] - 128) * contrast * gain + 128 + shift, 0, 255).astype(np.uint8)
            piece = np.stack([table[:, channel][piece[..., channel]] for channel in range(3)], axis=-1)
    return np.ascontiguousarray(piece)


class FrameBatches:
    """Batch number -> uint8 (B, T, H, W, 3), the same for the same number."""

    def __init__(self, sources: Sequence[SourceConfig], buckets: Sequence[Bucket], seed: int) -> None:
        if not sources or not buckets:
            raise SeedanceError("data: at least one source and one bucket are needed")
        self._augment = [config.augment for config in sources]
        self._shares = _shares([config.weight for config in sources], "data.sources")
        self._bucket_shares = _shares([bucket.weight for bucket in buckets], "data.buckets")
        self._sources = [open_source(config) for config in sources]
        self._buckets, self._seed = list(buckets), seed
        self._mean_batch = float(np.dot(self._bucket_shares, [bucket.batch for bucket in buckets]))

    def __call__(self, number: int) -> Tensor:
        rng = np.random.default_rng((self._seed, number))
        bucket = self._buckets[int(rng.choice(len(self._buckets), p=self._bucket_shares))]
        return self.batch(bucket, number, rng)

    def batch(self, bucket: Bucket, number: int, rng: np.random.Generator) -> Tensor:
        """Batch `number` in the shape of `bucket`."""
        pieces = []
        for _ in range(bucket.batch):
            which = int(rng.choice(len(self._sources), p=self._shares))
            draw = int(number * self._mean_batch * self._shares[which])
            clip = self._sources[which].frames(draw, rng)
            pieces.append(crop(clip, bucket, rng, self._augment[which]))
        return torch.from_numpy(np.stack(pieces))


def _shares(weights: list[float], what: str) -> NDArray[np.float64]:
    total = sum(weights)
    if total <= 0 or min(weights) < 0:
        raise SeedanceError(f"{what}: the weights {weights} must not be negative and must not all be zero")
    return np.array(weights) / total


def to_pixels(frames: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) to float32 (B, 3, T, H, W) in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1.0)


def to_frames(pixels: Tensor) -> Tensor:
    """(B, 3, T, H, W) in [-1, 1] to uint8 (B, T, H, W, 3), clamped and rounded."""
    return pixels.float().add(1.0).mul(127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1)
