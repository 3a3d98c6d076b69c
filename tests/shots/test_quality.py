"""Quality figures: VBench's formulas, and what stands beside them so that a still film is not the best one."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from shots.errors import ShotsError
from shots.quality import Quality, flicker, measure

Frames = NDArray[np.uint8]


def moving(speed: float, frames: int = 13, side: int = 64) -> Frames:
    """A soft picture that moves to the left by `speed` pixels a frame."""
    rng = np.random.default_rng(3)
    wide = cv2.resize(
        rng.integers(0, 255, (10, 40, 3)).astype(np.uint8), (side * 4, side), interpolation=cv2.INTER_CUBIC
    )
    grid = np.float32([[1, 0, 0], [0, 1, 0]])
    shown = []
    for t in range(frames):
        grid[0, 2] = -speed * t
        shown.append(cv2.warpAffine(wide, grid, (side * 4, side), borderMode=cv2.BORDER_WRAP)[:, :side])
    return np.stack(shown)


def test_flicker_is_vbenchs_formula() -> None:
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    frames[1], frames[2] = 51, 0
    assert flicker(frames) == pytest.approx((255 - 51) / 255)


def test_a_still_film_scores_best_in_flicker_and_is_said_to_be_still() -> None:
    still, live = measure(moving(0.0), 12.0), measure(moving(2.0), 12.0)
    assert still.flicker == still.warp_smoothness == 1.0 and still.flow == 0.0
    assert still.flow_dynamic_degree == 0.0 and still.still
    assert live.flow_dynamic_degree == 1.0 and not live.still
    assert live.flicker is not None and live.flicker < 1.0


def test_flow_is_the_speed_in_shares_of_the_short_side() -> None:
    speed = measure(moving(2.0), 8.0).flow
    assert speed == pytest.approx(2.0 * 8.0 / 64, rel=0.2)


def test_noise_costs_smoothness_and_warp_error_and_even_movement_does_not() -> None:
    clean, noise = moving(1.5), np.random.default_rng(0).normal(0, 12, (13, 64, 64, 3))
    rough = np.clip(clean + noise, 0, 255).astype(np.uint8)
    good, bad = measure(clean, 12.0), measure(rough, 12.0)
    assert good.warp_smoothness and bad.warp_smoothness and good.warp_error is not None and bad.warp_error is not None
    assert good.warp_smoothness > 0.98 > bad.warp_smoothness
    assert bad.warp_error > 3 * good.warp_error


def test_too_few_frames_tell_nothing_and_say_so() -> None:
    assert measure(moving(1.0, frames=1), 12.0) == Quality(None, None, None, None, None, 1)
    pair = measure(moving(1.0, frames=2), 12.0)
    assert pair.warp_smoothness is None and pair.flicker is not None and pair.flow_dynamic_degree is not None


def test_small_pictures_are_measured_too() -> None:
    assert measure(moving(0.5, side=8), 12.0).flow is not None


def test_a_film_is_its_shots_weighed_by_their_pairs() -> None:
    short, long = Quality(0.5, 1.0, 0.0, 0.1, 0.2, 2), Quality(1.0, None, 1.0, 0.3, 0.0, 4)
    film = Quality.mean([short, long])
    assert film.flicker == pytest.approx((0.5 + 3 * 1.0) / 4)
    assert film.warp_smoothness == 1.0 and film.flow_dynamic_degree == 0.5 and film.frames == 6
    assert Quality.mean([]).flicker is None


def test_bad_frames_and_rates_are_refused() -> None:
    with pytest.raises(ShotsError, match="frames"):
        measure(np.zeros((0, 8, 8, 3), np.uint8), 12.0)
    with pytest.raises(ShotsError, match="fps"):
        measure(moving(1.0), 0.0)
