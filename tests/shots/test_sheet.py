"""Contact sheets of films and of video files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shots.errors import ShotsError
from shots.evidence import Film
from shots.sheet import contact_sheet, film_sheet
from shots.video import Video, VideoWriter

RED, BLUE = (200, 20, 20), (20, 20, 200)


def film(path: Path, record: dict | None) -> Path:
    """Four red frames, then eight blue ones, 32 x 32."""
    frames = np.concatenate([np.full((4, 32, 32, 3), RED, np.uint8), np.full((8, 32, 32, 3), BLUE, np.uint8)])
    with VideoWriter(path, fps=12.0, height=32, width=32, record=record) as writer:
        writer.write(frames)
    return path


def test_a_contact_sheet_shows_every_film(tmp_path: Path) -> None:
    films = [("first", np.zeros((5, 16, 32, 3), np.uint8)), ("second", np.zeros((1, 16, 16, 3), np.uint8))]
    path = contact_sheet(films, tmp_path / "sheet.png", columns=3, height=16)
    width, height = Image.open(path).size
    assert width == 3 * 32 + 8 and height > 2 * 16
    with pytest.raises(ShotsError, match="none to show"):
        contact_sheet([], path)


def test_each_shot_of_a_film_has_a_row_of_its_own_frames(tmp_path: Path) -> None:
    record = {"script": {"shots": [{"caption": "red"}, {"caption": "blue"}]}, "frames": [4, 8]}
    sheet = np.asarray(Image.open(film_sheet(film(tmp_path / "a.mp4", record), tmp_path / "a.png", 4, 32)))
    below = 32 + 13 + 8  # a row: frames, one line of words, a margin
    assert np.abs(sheet[4:28, 4:124].astype(int) - RED).max() < 12
    assert np.abs(sheet[below + 4 : below + 28, 4:124].astype(int) - BLUE).max() < 12
    assert len(sheet) == 2 * below


def test_a_film_without_a_record_is_one_row(tmp_path: Path) -> None:
    sheet = np.asarray(Image.open(film_sheet(film(tmp_path / "b.mp4", None), tmp_path / "b.png", 2, 32)))
    assert len(sheet) == 32 + 13 + 8
    with pytest.raises(ShotsError, match="sheet"):
        film_sheet(tmp_path / "b.mp4", tmp_path / "b.nothing")


def test_what_is_shown_at_the_end_of_a_file_is_its_last_frame(tmp_path: Path) -> None:
    frames = np.stack([np.full((32, 32, 3), 40 * i, np.uint8) for i in range(6)])
    path = Video(frames, 12.0, np.arange(6) / 12).save(tmp_path / "short.mp4", record=False)
    assert abs(int(Film.of(path).still(5.5 / 12)[16, 16, 0]) - 200) <= 8  # no frame begins after it
