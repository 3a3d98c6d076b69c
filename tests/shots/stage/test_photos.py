"""Photographs as sets: the window moves as the caption says."""

from __future__ import annotations

import numpy as np
import pytest

from shots.errors import ShotsError
from shots.stage.photos import MOVES, photo_clip

RAMP = np.broadcast_to(np.linspace(0, 255, 400, dtype=np.uint8)[None, :, None], (300, 400, 3)).copy()


def test_a_pan_to_the_right_over_a_ramp_gets_brighter_and_to_the_left_darker() -> None:
    right = photo_clip(RAMP, 1, 32, 32, 9, 4.0, move="pan_right").frames
    left = photo_clip(RAMP, 1, 32, 32, 9, 4.0, move="pan_left").frames
    assert right is not None and left is not None
    assert right[-1].float().mean() > right[0].float().mean() + 10
    assert left[-1].float().mean() < left[0].float().mean() - 10


def test_zooming_in_narrows_the_range_seen() -> None:
    frames = photo_clip(RAMP, 2, 32, 32, 9, 4.0, move="zoom_in").frames
    assert frames is not None
    spread = [float(f.max()) - float(f.min()) for f in (frames[0], frames[-1])]
    assert spread[1] < spread[0] - 5


@pytest.mark.parametrize("move", MOVES)
def test_every_move_gives_the_asked_shape(move: str) -> None:
    frames = photo_clip(RAMP, 3, 48, 32, 5, 12.0, move=move).frames
    assert frames is not None and tuple(frames.shape) == (5, 48, 32, 3)


def test_a_picture_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(ShotsError, match="photo"):
        photo_clip(np.zeros((4, 4), np.uint8), 0)
