"""The frames of a plan, from a file or from a film in memory, as a stream.

    source = describe("clip.mp4")
    plan = FrameRule().plan(duration=source.duration, height=source.height, width=source.width)
    for frames in read_units("clip.mp4", plan):  # uint8 (n, 2, H, W, 3)
        ...

Notable choices:
- Frames are taken by presentation time, never by index: at each planned time, what a player would show then. Before the
  first picture that is the first, after the last one the last.
- One pass over the file; what no planned time needs is not decoded, and memory does not grow with the video.
- A file is probed and hashed once a process, until it changes.
- Resized as Qwen2-VL's processor does, bicubic with antialiasing and not cropped. Pictures at least three times as
  large are shrunk to about twice the size while they are decoded, which changes a pixel by about one level of 255.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from shots.errors import ShotsError
from shots.runtime.vision import torchvision
from shots.video import Video, frames_at, probe
from unitime.errors import UniTimeError
from unitime.frames import FramePlan

Frames = NDArray[np.uint8]

_WHOLE = 64 << 20  # bytes; larger files are known by their size and by blocks spread over them
_BLOCKS, _BLOCK = 64, 256 << 10
_SHOWN = 0.04  # seconds that a picture is taken to be shown where its file does not say


@dataclass(frozen=True)
class SourceInfo:
    """What there is to ground in.

    duration: when the last frame ends, start: when the first is shown, seconds on the file's own clock. height, width:
    pixels, upright. fps: average frames a second. digest: hex, the same for the same content under any name.
    """

    duration: float
    start: float
    height: int
    width: int
    fps: float
    digest: str


def describe(source: str | Path | Video) -> SourceInfo:
    """What `source` holds. The digest is SHA-256 of all bytes of a file up to 64 MiB, and beyond that of its size and
    of 64 blocks spread over it, so that an hour of video is known at once; of a film in memory, its pixels and times.

    Raises ShotsError for a file that is no video or holds no picture that can be decoded, UniTimeError for what is
    neither a path nor a film.
    """
    if isinstance(source, Video):
        height, width = source.frames.shape[1:3]
        start = float(source.times[0])
        return SourceInfo(start + source.duration, start, height, width, source.fps, _digest_of_film(source))
    path = _path(source)
    try:
        state = path.stat()
    except (OSError, ValueError):
        return _of_file.__wrapped__(path)  # says what is wrong
    return _of_file(path, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _of_file(path: Path, *_: int) -> SourceInfo:
    """What a file holds; remembered while it is the same file, as large and as old."""
    info = probe(path)
    duration = info.duration if info.duration > info.start else info.start + _SHOWN
    return SourceInfo(duration, info.start, info.height, info.width, info.fps, _digest_of_file(path))


def read_units(source: str | Path | Video, plan: FramePlan, chunk: int = 16) -> Iterator[Frames]:
    """The frames of `plan` in order: uint8 (n, temporal patch, H, W, 3), RGB, with (H, W) = plan.size and n <= chunk.

    Raises UniTimeError for a bad `chunk` or source, ShotsError for a file that cannot be read.
    """
    if chunk < 1:
        raise UniTimeError(f"chunk: {chunk} units; at least 1 is needed")
    looks = plan.times.ravel()
    if isinstance(source, Video):
        pictures = _shown_in(source, looks)
    else:
        pictures = (img for _, img in frames_at(_path(source), looks, least=plan.size))
    return _chunks(_resized(pictures, plan.size), plan, chunk)


def _chunks(pictures: Iterator[Frames], plan: FramePlan, chunk: int) -> Iterator[Frames]:
    units, frames = plan.times.shape
    for first in range(0, units, chunk):
        batch = np.empty((min(chunk, units - first), frames, *plan.size, 3), np.uint8)
        for place in np.ndindex(batch.shape[:2]):
            batch[place] = next(pictures)
        yield batch


def _resized(pictures: Iterator[Frames], size: tuple[int, int]) -> Iterator[Frames]:
    """Each picture, uint8 (h, w, 3), as (H, W, 3); one that comes several times in a row is resized once."""
    transforms = torchvision().transforms
    before = after = np.empty((0, 0, 3), np.uint8)
    for img in pictures:
        if img is not before:
            pixels = torch.from_numpy(img).permute(2, 0, 1)  # (3, h, w)
            pixels = transforms.v2.functional.resize(
                pixels, list(size), interpolation=transforms.InterpolationMode.BICUBIC, antialias=True
            )
            before, after = img, pixels.permute(1, 2, 0).numpy()  # (H, W, 3)
        yield after


def _shown_in(film: Video, looks: NDArray[np.float64]) -> Iterator[Frames]:
    """What `film` shows at each of the times `looks`."""
    if not (np.diff(film.times) >= 0).all():  # so that NaN does not pass
        raise UniTimeError("video: its times do not ascend")
    places = np.maximum(np.searchsorted(film.times, looks + 1e-6, side="right") - 1, 0)
    last, img = -1, film.frames[0]
    for place in places:
        if place != last:
            last, img = int(place), np.ascontiguousarray(film.frames[place])
        yield img


def _path(source: object) -> Path:
    if not isinstance(source, str | Path):
        raise UniTimeError(f"video: {type(source).__name__} given; a path or a shots.Video is needed")
    return Path(source)


def _digest_of_film(film: Video) -> str:
    digest = hashlib.sha256(f"{film.frames.shape} {film.fps}".encode())
    digest.update(film.times.tobytes())
    for frame in film.frames:
        digest.update(frame.tobytes())
    return digest.hexdigest()


def _digest_of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size <= _WHOLE:
                file.seek(0)
                return hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256(f"{size}".encode())
            for place in np.linspace(0, size - _BLOCK, _BLOCKS).astype(int):
                file.seek(int(place))
                digest.update(file.read(_BLOCK))
            return digest.hexdigest()
    except OSError as error:
        raise ShotsError(f"video: {path} cannot be read ({error.strerror})") from error
