"""Photographs as sets: slow pans and zooms over a still, so that first-frame conditioning learns real pictures.

The window's path is a closed form of time; each frame is one bilinear look-up in a copy of the photograph that was
first reduced (area average) to about the window's resolution, so nothing aliases and nothing shimmers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..clip import Clip, ClipShot
from ..errors import ShotsError
from .motion import ease

MOVES = ("static", "pan_left", "pan_right", "tilt_up", "tilt_down", "zoom_in", "zoom_out")
_WORDS = {
    "static": ("A photograph.", "A still photograph, the camera does not move.", "A real picture, held still."),
    "pan_left": ("A photograph, the camera pans left.", "Slow pan to the left over a real picture."),
    "pan_right": ("A photograph, the camera pans right.", "Slow pan to the right over a real picture."),
    "tilt_up": ("A photograph, the camera tilts up.", "Slow tilt up over a real picture."),
    "tilt_down": ("A photograph, the camera tilts down.", "Slow tilt down over a real picture."),
    "zoom_in": ("A photograph, the camera zooms in.", "Slow zoom into a real picture."),
    "zoom_out": ("A photograph, the camera zooms out.", "Slow zoom out of a real picture."),
}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def photo_clip(
    photo: NDArray[np.uint8],
    seed: int,
    height: int = 128,
    width: int = 128,
    frames: int = 37,
    fps: float = 12.0,
    move: str | None = None,
    source: str = "photo",
) -> Clip:
    """A clip of `frames` frames that looks over `photo`, uint8 (H, W, 3), with a camera move drawn from `seed` unless
    given.

    Raises ShotsError for a photo that is not uint8 (H, W, 3) or an unknown move.
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
        raise ShotsError(f"photo: {photo.dtype} {photo.shape} is not uint8 (H, W, 3); read it with shots.read_image")
    rng = random.Random(f"photo-{seed}")
    move = rng.choice(MOVES) if move is None else move
    if move not in MOVES:
        raise ShotsError(f"move: {move!r} is none of {', '.join(MOVES)}")
    seconds = max((frames - 1) / fps, 1e-6)
    p = torch.arange(frames, dtype=torch.float64) / fps / seconds if frames > 1 else torch.zeros(1, dtype=torch.float64)
    p = 0.35 * ease(p) + 0.65 * p
    # The window: its height as a share of the largest window that fits, and its centre, both in [-1, 1] photo
    # coordinates.
    tall, wide = photo.shape[:2]
    largest = min(tall / height, wide / width)  # photo pixels per output pixel at share 1
    ratio = rng.uniform(1.2, 1.6)
    small = rng.uniform(0.45, 0.65)
    large = min(small * ratio, 1.0)
    share = torch.full_like(p, small)
    if move == "zoom_in":
        share = large * (small / large) ** p
    elif move == "zoom_out":
        share = small * (large / small) ** p
    room_x, room_y = 1.0 - share * largest * width / wide, 1.0 - share * largest * height / tall
    x, y = room_x * rng.uniform(-1, 1), room_y * rng.uniform(-1, 1)
    way = 2.0 * p - 1.0
    reach = rng.uniform(0.5, 1.0)
    if move in ("pan_left", "pan_right"):
        x = room_x * reach * (way if move == "pan_right" else -way)
    elif move in ("tilt_up", "tilt_down"):
        y = room_y * reach * (way if move == "tilt_down" else -way)
    frames_out = _look(photo, share * largest, x, y, height, width)
    caption = rng.choice(_WORDS[move])
    return Clip(frames_out, None, fps, (ClipShot(caption, 0, frames),), caption=caption, source=f"{source}-{seed}")


def photo_clips(
    folder: str | Path, height: int = 128, width: int = 128, frames: int = 37, fps: float = 12.0, seed: int = 0
) -> Iterator[Clip]:
    """Endless clips over the pictures of `folder`, in turn. Raises ShotsError where it holds none."""
    from ..images import read_image

    files = sorted(f for f in Path(folder).iterdir() if f.suffix.lower() in SUFFIXES)
    if not files:
        raise ShotsError(f"folder: {folder} holds no picture ({', '.join(SUFFIXES)})")
    photos = [read_image(file) for file in files]
    while True:
        for file, photo in zip(files, photos, strict=True):
            yield photo_clip(photo, seed, height, width, frames, fps, source=file.stem)
            seed += 1


def _look(photo: NDArray[np.uint8], scale: Tensor, x: Tensor, y: Tensor, height: int, width: int) -> Tensor:
    """Windows of the photo at centres x, y (T,) in [-1, 1] and `scale` (T,) photo pixels per pixel: uint8 (T, h, w,
    3)."""
    image = torch.from_numpy(np.ascontiguousarray(photo)).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
    tall, wide = photo.shape[:2]
    step = float(scale.min())
    if step > 1.0:
        image = F.interpolate(image, (max(1, round(tall / step)), max(1, round(wide / step))), mode="area")
    theta = torch.zeros(len(scale), 2, 3, dtype=torch.float32)
    theta[:, 0, 0], theta[:, 1, 1] = (scale * width / wide).float(), (scale * height / tall).float()
    theta[:, 0, 2], theta[:, 1, 2] = x.float(), y.float()
    grid = F.affine_grid(theta, [len(scale), 3, height, width], align_corners=False)
    seen = F.grid_sample(
        image.expand(len(scale), -1, -1, -1), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return seen.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
