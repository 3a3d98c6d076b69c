"""Task `frames`: videos and pictures to `.npy` clips at several sizes, for training machines that decode nothing.

Notable choices:
- Each video is stored at every size that is not above its own, short side in pixels, at up to `fps` frames a second:
  training then only cuts pieces out, and sees the sharpness that a downscaled clip has.
- A picture becomes slow pans and zooms over it, at sub-pixel steps, so that stills teach motion too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seedance.errors import SeedanceError
from seedance.training.data import Frames


@dataclass(frozen=True)
class FramesRecipe:
    """What `task: frames` reads.

    out: folder of the .npy files. videos, pictures: files, under `folder` unless absolute. sides: short sides in
    pixels. fps: at most. pans: clips made of each picture, of pan_frames frames of pan_side x pan_side pixels.
    seed: of the pans.
    """

    task: str
    out: Path
    folder: Path
    videos: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    sides: tuple[int, ...] = (128, 192, 256)
    fps: float = 24.0
    pans: int = 6
    pan_frames: int = 48
    pan_side: int = 160
    seed: int = 0


def pan(picture: Frames, frames: int, side: int, rng: np.random.Generator) -> Frames:
    """A slow pan and zoom over `picture` uint8 (H, W, 3): uint8 (frames, side, side, 3)."""
    from PIL import Image

    image = Image.fromarray(picture)
    width, height = image.size
    short = min(width, height)
    begin = rng.uniform(0.35, 0.95) * short
    end = np.clip(begin * rng.uniform(0.8, 1.25), min(side, short), short)
    start = rng.uniform(0, 1, 2)
    stop = np.clip(start + rng.uniform(-0.4, 0.4, 2), 0, 1)
    made = []
    for moment in np.linspace(0, 1, frames):
        size = begin + (end - begin) * moment
        x, y = (start + (stop - start) * moment) * (width - size, height - size)
        piece = image.resize((side, side), Image.Resampling.BICUBIC, box=(x, y, x + size, y + size))
        made.append(np.asarray(piece))
    return np.stack(made)


def make_frames(recipe: FramesRecipe) -> list[Path]:
    """Write the clips of a recipe; those there already are kept. Returns the files."""
    from shots.images import read_image
    from shots.video import probe, read_video

    out = Path(recipe.out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(recipe.seed)
    files = []
    for name in (*recipe.videos, *recipe.pictures):
        if not (recipe.folder / name).is_file():
            raise SeedanceError(f"frames: {recipe.folder / name} is not there; set folder to where the clips are")
    for name in recipe.videos:
        source = recipe.folder / name
        info = probe(source)
        for side in recipe.sides:
            short = min(info.height, info.width)
            if side > short:
                continue
            file = out / f"{source.stem}-{side}.npy"
            if not file.exists():
                size = (round(info.height * side / short), round(info.width * side / short))
                video = read_video(source, start=info.start, fps=min(recipe.fps, info.fps), size=size)
                _save(file, video.frames)
            files.append(file)
    for name in recipe.pictures:
        picture = read_image(recipe.folder / name)
        for number in range(recipe.pans):
            file = out / f"{Path(name).stem}-pan{number}.npy"
            made = pan(picture, recipe.pan_frames, recipe.pan_side, rng)
            if not file.exists():
                _save(file, made)
            files.append(file)
    return files


def _save(file: Path, frames: Frames) -> None:
    """Written beside the target and renamed when whole."""
    temporary = file.with_name(f".{file.name}.part.npy")
    np.save(temporary, frames)
    temporary.replace(file)
