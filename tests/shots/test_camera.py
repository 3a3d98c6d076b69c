"""The camera's move is read off pictures whose movement is known, and nothing is told where nothing can be."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from shots.camera import GAP, camera_motion, looks
from shots.errors import ShotsError


def texture(seed: int = 0, side: int = 160) -> Any:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)


def pairs(matrix: Any, count: int = 5) -> list[Any]:
    """A texture and the same after an affine map about its middle."""
    made = []
    for seed in range(count):
        picture = texture(seed)
        about = np.array([[1, 0, 79.5], [0, 1, 79.5], [0, 0, 1]])
        full = about @ np.vstack([matrix, [0, 0, 1]]) @ np.linalg.inv(about)
        moved = cv2.warpAffine(picture, full[:2], (160, 160), borderMode=cv2.BORDER_REFLECT)
        made.append((picture, moved))
    return made


@pytest.mark.parametrize(
    ("matrix", "move"),
    [
        ([[1, 0, 0], [0, 1, 0]], "static"),
        ([[1, 0, 4], [0, 1, 0]], "pan_left"),  # what is seen goes right
        ([[1, 0, -4], [0, 1, 0]], "pan_right"),
        ([[1, 0, 0], [0, 1, 4]], "tilt_up"),
        ([[1, 0, 0], [0, 1, -4]], "tilt_down"),
        ([[1.04, 0, 0], [0, 1.04, 0]], "zoom_in"),
        ([[0.96, 0, 0], [0, 0.96, 0]], "zoom_out"),
        ([[1, 0.06, 0], [0, 1, 0]], "orbit_left"),  # the near floor goes right, the far wall left
        ([[1, -0.06, 0], [0, 1, 0]], "orbit_right"),
    ],
)
def test_a_known_movement_is_named(matrix: Any, move: str) -> None:
    assert camera_motion(pairs(matrix), GAP).move == move


def test_rates_are_shares_of_the_picture_a_second() -> None:
    motion = camera_motion(pairs([[1, 0, 4], [0, 1, -2]]), 0.25)
    assert motion.right == pytest.approx(4 / 160 / 0.25, rel=0.1)
    assert motion.down == pytest.approx(-2 / 160 / 0.25, rel=0.1)


def test_an_actor_that_moves_is_no_camera_that_moves() -> None:
    made = []
    for seed in range(5):
        first, second = texture(seed), texture(seed)
        patch = texture(seed + 50, 80)
        first[40:120, 20:100], second[40:120, 28:108] = patch, patch
        made.append((first, second))
    assert camera_motion(made, GAP).move == "static"


def test_where_nothing_agrees_nothing_is_told() -> None:
    strangers = [(texture(seed), texture(seed + 100)) for seed in range(6)]
    assert camera_motion(strangers, GAP).move is None
    grey = np.full((64, 64, 3), 90, np.uint8)
    assert camera_motion([(grey, grey)], GAP).move is None


def test_looks_lie_within_their_shot() -> None:
    for start, end in ((0.0, 10.0), (5.0, 5.1), (2.0, 2.6), (0.0, 3600.0)):
        found = looks(start, end)
        assert 1 <= len(found) <= 8
        assert all(start < first < second < end for first, second in found)
        assert [t for pair in found for t in pair] == sorted(t for pair in found for t in pair)
    assert looks(1.0, 1.0) == []


def test_bad_pictures_are_named() -> None:
    picture = texture()
    with pytest.raises(ShotsError, match="pairs"):
        camera_motion([], GAP)
    with pytest.raises(ShotsError, match="one size"):
        camera_motion([(picture, picture[:96])], GAP)
    with pytest.raises(ShotsError, match="16 x 16"):
        camera_motion([(picture[:8], picture[:8])], GAP)


def test_moves_of_stage_films_are_told() -> None:
    from shots.stage.facts import CAMERA_CLASS, facts_of
    from shots.stage.observe import observe
    from shots.stage.render import render_film
    from shots.stage.writer import write_film

    right = told = 0
    for seed in range(970_000_000, 970_000_005):
        film = write_film(seed, shots=2, seconds=2.0)
        rendered = render_film(film, 96, 96, 12.0)
        edges = [0, *rendered.boundaries, len(rendered.times)]
        seen = observe(film, rendered)
        for k in range(len(film.shots)):
            true = facts_of(film, k, seen).camera
            shown = [
                tuple(rendered.frames[edges[k] + int(12 * t)].numpy() for t in pair)
                for pair in looks(0.0, (edges[k + 1] - edges[k]) / 12)
            ]
            move = camera_motion(shown, GAP).move  # type: ignore[arg-type]
            if true is not None and move is not None:
                told += 1
                right += CAMERA_CLASS[move] == true
    assert told >= 6
    assert right >= 0.8 * told
