"""Contact sheets: frames spread over films or shots, with their words below, as one picture.

    python -m shots.sheet FILM.mp4 -o strip.png     one row a shot, with the captions of the film's own record

Notable choice: a shot's frames are the ones it holds by the record; a film that tells nothing is one row.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shots.errors import ShotsError

Frames = NDArray[np.uint8]


def contact_sheet(
    films: Iterable[tuple[str, Frames]], path: str | Path, columns: int = 8, height: int = 96, per_row: int = 1
) -> Path:
    """Writes a picture with `columns` frames spread over each film and its text below, to be read by eye.

    films: (text, uint8 (T, H, W, 3)); `per_row` films stand side by side; `height` is that of a frame in pixels.
    """
    from PIL import Image, ImageDraw

    tiles = []
    for text, frames in films:
        pick = np.rint(np.linspace(0, len(frames) - 1, columns)).astype(int)
        width = round(height * frames.shape[2] / frames.shape[1])
        lines = _wrapped(text, columns * width // 6)
        tile = Image.new("RGB", (columns * width + 8, height + 13 * len(lines) + 8), "white")
        for column, frame in enumerate(frames[pick]):
            tile.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC), (column * width, 0))
        draw = ImageDraw.Draw(tile)
        for number, line in enumerate(lines):
            draw.text((2, height + 2 + 13 * number), line, fill="black")
        tiles.append(tile)
    if not tiles:
        raise ShotsError("films: there is none to show")
    rows = [tiles[i : i + per_row] for i in range(0, len(tiles), per_row)]
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (max(sum(tile.width for tile in row) for row in rows), sum(heights)), "white")
    top = 0
    for row, tall in zip(rows, heights, strict=True):
        left = 0
        for tile in row:
            sheet.paste(tile, (left, top))
            left += tile.width
        top += tall
    path = Path(path)
    sheet.save(path, optimize=True)
    return path


def _wrapped(text: str, width: int) -> list[str]:
    return [line for part in text.splitlines() for line in textwrap.wrap(part, max(20, width)) or [""]]


def film_sheet(film: str | Path, path: str | Path, columns: int = 8, height: int = 96) -> Path:
    """A contact sheet of a video file: one row a shot, each with its caption, as the file's record tells them.

    Raises ShotsError for a file that is no video and a target whose suffix names no kind of picture.
    """
    from shots.video import read_record, read_video

    if columns < 1 or height < 1:
        raise ShotsError(f"columns, height: {columns} and {height}; both must be 1 or more")
    video, record = read_video(film), read_record(film) or {}
    captions = [str(shot.get("caption", "")) for shot in (record.get("script") or {}).get("shots", ())]
    lengths = [int(count) for count in record.get("frames", ())]
    if not lengths or len(lengths) != len(captions) or sum(lengths) != len(video.frames):
        captions, lengths = [" ".join(captions) or Path(film).name], [len(video.frames)]
    shots = np.split(video.frames, np.cumsum(lengths)[:-1])
    try:
        return contact_sheet(zip(captions, shots, strict=True), path, columns, height)
    except (ValueError, OSError) as error:
        raise ShotsError(f"sheet: {path} cannot be written ({error}); give a file such as strip.png") from error


def main() -> None:
    """Make the sheet that the command line asks for, and say where it lies."""
    parser = argparse.ArgumentParser(prog="python -m shots.sheet", description="Frames of a film as one picture.")
    parser.add_argument("film", type=Path, help="video file")
    parser.add_argument("-o", "--output", type=Path, default=Path("strip.png"), help="picture (default: strip.png)")
    parser.add_argument("--columns", type=int, default=8, help="frames a shot (default: 8)")
    parser.add_argument("--height", type=int, default=96, help="of a frame, pixels (default: 96)")
    said = parser.parse_args()
    try:
        path = film_sheet(said.film, said.output, said.columns, said.height)
    except ShotsError as error:
        sys.exit(f"sheet: {error}")
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
