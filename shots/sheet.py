"""Contact sheets: frames spread over films or shots, with their words below, as one picture.

    python -m shots.sheet FILM.mp4 -o strip.png     one row a shot, with the captions of the film's own record

`report_sheet` lays a verification out: what each shot shows, what was found where, and what is wrong.

Notable choice: a shot's frames are the ones it holds by the record; a film that tells nothing is one row.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shots.errors import ShotsError

if TYPE_CHECKING:
    from shots.evaluation import Report, ShotReport
    from shots.video import Video

GOOD, BAD, FAINT, INK, PAPER = "#2e7d32", "#c62828", "#dcdcdc", "#222222", "white"
MARGIN, LINE = 12, 17  # pixels about a sheet of a report, and of a line of its text

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
    from shots.publish import read_film
    from shots.video import read_record

    if columns < 1 or height < 1:
        raise ShotsError(f"columns, height: {columns} and {height}; both must be 1 or more")
    video, record = read_film(film), read_record(film) or {}
    captions = [str(shot.get("caption", "")) for shot in (record.get("script") or {}).get("shots", ())]
    lengths = [int(count) for count in record.get("frames", ())]
    if not lengths or len(lengths) != len(captions) or sum(lengths) != len(video.frames):
        captions, lengths = [" ".join(captions) or Path(film).name], [len(video.frames)]
    shots = np.split(video.frames, np.cumsum(lengths)[:-1])
    try:
        return contact_sheet(zip(captions, shots, strict=True), path, columns, height)
    except (ValueError, OSError) as error:
        raise ShotsError(f"sheet: {path} cannot be written ({error}); give a file such as strip.png") from error


def report_sheet(
    video: Video | str | Path, report: Report, path: str | Path, columns: int = 6, height: int = 120
) -> Path:
    """A report as one picture: per shot its frames and caption, and a time line of the film for each of its events.

    On a time line the shot's own stretch is grey, bars are the moments found (the stronger, the likelier), green where
    they lie in it and red where they do not. What is wrong is written in red. Raises ShotsError for a target whose
    suffix names no kind of picture, and for a video that cannot be read.
    """
    from PIL import Image

    from shots.evidence import Film

    if columns < 1 or height < 8:
        raise ShotsError(f"columns, height: {columns} and {height}; at least 1 and 8 are needed")
    film = Film.of(video)
    first = film.still(0.0)
    wide = max(1, round(height * first.shape[1] / first.shape[0]))
    width = max(columns * (wide + 4), 640) + 2 * MARGIN
    blocks = [_head(report, width)]
    blocks += [_block(film, report, shot, columns, (height, wide), width) for shot in report.shots]
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks)), PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    path = Path(path)
    try:
        sheet.save(path, optimize=True)
    except (ValueError, OSError) as error:
        raise ShotsError(f"sheet: {path} cannot be written ({error}); give a file such as sheet.png") from error
    return path


def _font(size: int = 13) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _plain(text: str) -> str:
    """What the font can draw: other signs become question marks."""
    return text.encode("latin-1", "replace").decode("latin-1")


def _head(report: Report, width: int) -> Any:
    """The film as a whole."""
    from PIL import Image, ImageDraw

    failed = report.failed_shots()
    said = [("passed" if report.passed else "failed") + f"   score {report.score:.2f}   {report.duration:.1f} s"]
    said += [f"failed shots: {', '.join(map(str, failed))}"] if failed else []
    said += [str(defect) for defect in report.defects]
    quality = {k: v for k, v in report.quality.to_dict().items() if k != "frames" and v is not None}
    told = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in quality.items())
    block = Image.new("RGB", (width, MARGIN + 24 + LINE * (len(said) + bool(told) - 1)), PAPER)
    draw = ImageDraw.Draw(block)
    draw.text((MARGIN, MARGIN), _plain(said[0]), fill=GOOD if report.passed else BAD, font=_font(18))
    top = MARGIN + 26
    for line in said[1:]:
        draw.text((MARGIN, top), _plain(line), fill=BAD, font=_font())
        top += LINE
    if told:
        draw.text((MARGIN, top), told, fill=INK, font=_font())
    return block


def _block(film: Any, report: Report, shot: ShotReport, columns: int, size: tuple[int, int], width: int) -> Any:
    """One shot: frames, caption, time lines, defects."""
    from PIL import Image, ImageDraw

    letters = (width - 2 * MARGIN) // 7
    caption = _wrapped(_plain(f"{shot.number}  {shot.caption}"), letters)
    wrong = [line for defect in shot.defects for line in _wrapped(_plain(str(defect)), letters)]
    pictures = size[0] + 6 if shot.end > shot.start else 0
    tall = MARGIN + pictures + LINE * (len(caption) + 2 * len(shot.events) + len(wrong)) + 10
    block = Image.new("RGB", (width, tall), PAPER)
    draw = ImageDraw.Draw(block)
    top = MARGIN
    draw.rectangle((0, MARGIN // 2, 4, tall - 4), fill=GOOD if shot.passed else BAD)
    if pictures:
        for column in range(columns):
            time = shot.start + (column + 0.5) * (shot.end - shot.start) / columns
            still = Image.fromarray(film.still(time)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
            block.paste(still, (MARGIN + column * (size[1] + 4), top))
        top += pictures
    for number, line in enumerate(caption):
        draw.text((MARGIN, top), line, fill=INK, font=_font())
        if number == 0:
            score = f"{'ok' if shot.passed else 'FAILED'}  {shot.score:.2f}"
            left = width - MARGIN - draw.textlength(score, font=_font())
            draw.rectangle((left - 6, top, width, top + LINE - 1), fill=PAPER)
            draw.text((left, top), score, fill=GOOD if shot.passed else BAD, font=_font())
        top += LINE
    for event in shot.events:
        draw.text((MARGIN, top), _plain(f"{event.query}   {event.score:.2f}")[:letters], fill="#666666", font=_font(12))
        top += LINE
        _time_line(draw, report, shot, event.moments, (MARGIN, top, width - MARGIN, top + LINE - 6))
        top += LINE
    for line in wrong:
        draw.text((MARGIN, top), line, fill=BAD, font=_font())
        top += LINE
    return block


def _time_line(draw: Any, report: Report, shot: ShotReport, moments: Iterable[Any], box: tuple[int, ...]) -> None:
    """The film from left to right, with what was found of one event."""
    left, top, right, bottom = box
    scale = (right - left) / max(report.duration, 1e-9)

    def at(time: float) -> float:
        return left + min(max(time, 0.0), report.duration) * scale

    draw.line((left, (top + bottom) / 2, right, (top + bottom) / 2), fill=FAINT)
    if shot.end > shot.start:
        draw.rectangle((at(shot.start), top, at(shot.end), bottom), fill=FAINT)
    for other in report.shots:
        draw.line((at(other.start), top, at(other.start), bottom), fill="#aaaaaa")
    for start, end, score in reversed(list(moments)):
        inside = min(end, shot.end) - max(start, shot.start)
        good = inside >= 0.5 * (end - start)
        strong = 0.25 + 0.75 * min(max(score, 0.0), 1.0)
        colour = tuple(round(255 - strong * (255 - c)) for c in ((46, 125, 50) if good else (198, 40, 40)))
        draw.rectangle((at(start), top + 2, max(at(end), at(start) + 2), bottom - 2), fill=colour)


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
