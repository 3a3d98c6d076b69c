"""The frame arithmetic is the released one, keeps its budget, and gives every window at least one unit."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unitime.errors import UniTimeError
from unitime.frames import FrameRule, smart_resize

NANO = FrameRule(
    patch=8, merge=2, budget=1024, min_tokens=16, max_tokens=16, fine_tokens=4, coarse_tokens=1, short_limit=32,
    long_limit=600, segment=8, max_fps=4, pair_gap=0.25,
)  # fmt: skip


# (height, width, seconds) -> ((H, W), raw frames, units, tokens in all), from the released code's arithmetic
@pytest.mark.parametrize(
    ("height", "width", "duration", "size", "frames", "units", "tokens"),
    [
        (360, 640, 10, (364, 644), 108, 54, 16146),
        (360, 640, 30, (364, 644), 108, 54, 16146),
        (360, 640, 60, (336, 616), 124, 62, 16368),
        (360, 640, 128, (224, 420), 272, 136, 16320),
        (1080, 1920, 30, (476, 868), 62, 31, 16337),
    ],
)
def test_fine_passes_have_the_golden_numbers(
    height: int, width: int, duration: float, size: tuple[int, int], frames: int, units: int, tokens: int
) -> None:
    plan = FrameRule().plan(duration=duration, height=height, width=width)
    assert plan.mode == "fine"
    assert plan.size == size
    assert plan.grid == plan.vision_grid == (size[0] // 28, size[1] // 28)
    assert plan.times.size == frames
    assert (plan.units, plan.tokens) == (units, tokens)
    assert plan.segments == [(k, k + 1) for k in range(units)]


@pytest.mark.parametrize(
    ("duration", "grid", "frames", "units", "per_segment", "segments", "tokens"),
    [
        (200, (6, 12), 454, 227, 36, 7, 16344),
        (480, (4, 7), 1170, 585, 39, 15, 16380),
        (1024, (3, 5), 2048, 1024, 32, 32, 15360),
        (3600, (3, 5), 582, 291, 9, 33, 4365),  # of 2048 frames sampled
    ],
)
def test_coarse_passes_have_the_golden_numbers(
    duration: float, grid: tuple[int, int], frames: int, units: int, per_segment: int, segments: int, tokens: int
) -> None:
    plan = FrameRule().plan(duration=duration, height=360, width=640)
    assert plan.mode == "coarse"
    assert plan.size == (364, 644)
    assert plan.vision_grid == (13, 23)
    assert plan.grid == grid
    assert plan.times.size == frames
    assert (plan.units, plan.tokens) == (units, tokens)
    assert plan.segment_units == per_segment
    assert len(plan.segments) == len(plan.segment_stamps) == segments


def test_segments_cover_all_units_and_are_named_by_their_first() -> None:
    plan = FrameRule().plan(duration=200, height=360, width=640)
    assert plan.segments[0] == (0, 36)
    assert plan.segments[-1] == (216, 227)
    assert plan.segment_stamps == tuple(plan.stamps[first] for first, _ in plan.segments)


def test_an_hour_in_one_pass_is_looked_at_from_end_to_end() -> None:
    plan = FrameRule().plan(duration=3600, height=360, width=640)
    assert plan.times[0, 0] == 0
    assert plan.times[-1, -1] == 3600
    gaps = np.diff([plan.stamps[first] for first, _ in plan.segments[:-1]])
    assert gaps == pytest.approx(111.3, abs=3.6)


def test_stamps_are_means_of_looks_with_one_decimal() -> None:
    plan = FrameRule().plan(duration=60, height=360, width=640)
    assert plan.times.ravel() == pytest.approx(np.linspace(0, 60, 124))
    assert plan.stamps[0] == round(60 / 123 / 2, 1) == 0.2
    assert all(stamp == round(stamp, 1) for stamp in plan.stamps)
    assert plan.stamps[-1] == round(60 - 60 / 123 / 2, 1)


def test_the_published_rule_repeats_stamps_of_short_clips_and_max_fps_does_not() -> None:
    published = FrameRule().plan(duration=2, height=360, width=640)
    assert len(set(published.stamps)) < published.units == 54
    capped = FrameRule(max_fps=2).plan(duration=2, height=360, width=640)
    assert capped.times.size == 4
    assert len(set(capped.stamps)) == capped.units == 2


def test_a_lower_rate_leaves_more_tokens_for_each_unit() -> None:
    slow = FrameRule(max_fps=1).plan(duration=128, height=1080, width=1920)
    assert slow.times.size <= 128
    assert slow.grid[0] * slow.grid[1] > 1.9 * math.prod(FrameRule().plan(duration=128, height=1080, width=1920).grid)


def test_windows_are_planned_as_videos_of_their_length() -> None:
    whole = FrameRule().plan(duration=60, height=360, width=640)
    part = FrameRule().plan(duration=5000, height=360, width=640, window=(1000, 1060))
    assert part.mode == "fine"
    assert part.times - 1000 == pytest.approx(whole.times)
    assert (part.size, part.start, part.end) == (whole.size, 1000, 1060)
    assert FrameRule().plan(duration=60, height=360, width=640, window=(50, 99)).end == 60


def test_the_mode_can_be_forced() -> None:
    assert FrameRule().plan(duration=500, height=360, width=640, mode="fine").units == 136
    coarse = FrameRule().plan(duration=20, height=360, width=640, mode="coarse")
    assert (coarse.mode, len(coarse.segments)) == ("coarse", 1)
    assert coarse.tokens <= 16384


def test_nano_sees_64_pixels_and_two_units_a_second() -> None:
    fine = NANO.plan(duration=20, height=128, width=128)
    assert (fine.mode, fine.units, fine.size, fine.vision_grid, fine.grid) == ("fine", 40, (64, 64), (4, 4), (2, 2))
    assert np.diff(fine.times, axis=1) == pytest.approx(0.25)
    assert np.diff(fine.times.mean(axis=1)) == pytest.approx(0.5)
    coarse = NANO.plan(duration=120, height=128, width=128)
    assert (coarse.mode, coarse.units, coarse.size, coarse.grid) == ("coarse", 240, (64, 64), (1, 1))
    assert coarse.segment_units == 16
    assert len(coarse.segments) == 15
    assert NANO.plan(duration=600, height=128, width=128).tokens <= 1024


def test_the_two_frames_of_a_pair_lie_the_same_apart_at_any_length() -> None:
    for duration in (0.4, 5.0, 31.7, 200.0, 600.0):
        plan = NANO.plan(duration=duration, height=128, width=128)
        assert np.diff(plan.times, axis=1) == pytest.approx(0.25)
        centres = plan.times.mean(axis=1)
        assert np.ptp(np.diff(centres)) < 1e-9 if plan.units > 1 else True


def test_fixed_grids_keep_the_ratio_as_far_as_so_few_tokens_can() -> None:
    wide = NANO.plan(duration=20, height=720, width=1280)
    assert wide.vision_grid == (3, 5)
    assert wide.grid == (2, 2)
    assert NANO.plan(duration=20, height=100, width=900).grid == (1, 4)
    assert NANO.plan(duration=20, height=900, width=100).grid == (4, 1)
    assert NANO.plan(duration=20, height=20, width=3000).vision_grid[0] == 1


def test_smart_resize_keeps_to_its_limits() -> None:
    assert smart_resize(360, 640, 28, 100352, 602112) == (364, 644)
    assert smart_resize(10, 10, 28, 128 * 784, 768 * 784) == (336, 336)
    assert smart_resize(64, 64, 32, 4096, 4096) == (64, 64)
    assert smart_resize(1, 200, 16, 256, 4096)[0] == 16


@pytest.mark.parametrize("rule", [FrameRule(), NANO, FrameRule(max_fps=30), FrameRule(patch=16, pair_gap=0.5)])
@pytest.mark.parametrize("duration", [1 / 60, 0.05, 0.1, 0.26, 0.5])
def test_the_shortest_windows_have_a_unit(rule: FrameRule, duration: float) -> None:
    for mode in ("auto", "fine", "coarse"):
        plan = rule.plan(duration=100 + duration, height=100, width=100, window=(100, 100 + duration), mode=mode)
        assert plan.units >= 1
        assert plan.times.min() >= 100
        assert plan.times.max() <= 100 + duration


@settings(max_examples=300, deadline=None)
@given(
    rule=st.sampled_from([FrameRule(), NANO, FrameRule(patch=16, max_fps=2), FrameRule(max_fps=25, pair_gap=0.1)]),
    duration=st.floats(0.01, 20000),
    part=st.tuples(st.floats(0, 0.95), st.floats(0.001, 1)),
    height=st.integers(8, 2160),
    ratio=st.floats(0.1, 10),
    mode=st.sampled_from(["auto", "fine", "coarse"]),
)
def test_every_plan_is_sound(
    rule: FrameRule, duration: float, part: tuple[float, float], height: int, ratio: float, mode: str
) -> None:
    window = (part[0] * duration, part[0] * duration + part[1] * duration)
    width = max(1, round(height * ratio))
    plan = rule.plan(duration=duration, height=height, width=width, window=window, mode=mode)  # type: ignore[arg-type]
    assert plan.times.shape == (plan.units, 2)
    assert (np.diff(plan.times.ravel()) >= 0).all()
    assert plan.times.min() >= window[0]
    assert plan.times.max() <= min(window[1], duration)
    assert plan.tokens <= max(rule.budget, plan.grid[0] * plan.grid[1])
    factor = rule.patch * rule.merge
    assert plan.size == (plan.vision_grid[0] * factor, plan.vision_grid[1] * factor)
    assert 1 <= plan.grid[0] <= plan.vision_grid[0]
    assert 1 <= plan.grid[1] <= plan.vision_grid[1]
    assert list(itertools.chain(*(range(*segment) for segment in plan.segments))) == list(range(plan.units))
    if rule.max_fps is not None:
        assert plan.times.size <= max(2, (plan.end - plan.start) * rule.max_fps + 1e-3)
        assert len(set(plan.stamps)) == plan.units


def test_the_same_arguments_give_the_same_plan_and_others_another_key() -> None:
    keys = {
        FrameRule().plan(duration=60, height=360, width=640, window=window).key
        for window in (None, (0, 60), (0, 59), (1, 60))
    }
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"duration": 0}, "duration: 0"),
        ({"duration": float("nan")}, "duration: nan"),
        ({"duration": float("inf")}, "duration: inf"),
        ({"height": 0}, "height, width: 0 x 640"),
        ({"width": 360 * 201}, "at most 200 to 1"),
        ({"window": (5, 5)}, "0 <= start < end"),
        ({"window": (5, 4)}, "0 <= start < end"),
        ({"window": (-1, 4)}, "0 <= start < end"),
        ({"window": (0, float("nan"))}, "0 <= start < end"),
        ({"window": (60, 70)}, "starts at 60 s, but the video ends at 60 s"),
        ({"window": 3}, r"\(start, end\) in seconds"),
        ({"window": (1, 2, 3)}, r"\(start, end\) in seconds"),
        ({"window": ("a", "b")}, "0 <= start < end"),
        ({"mode": "quick"}, "mode: 'quick'"),
    ],
)
def test_what_can_give_no_plan_is_named(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(UniTimeError, match=says):
        FrameRule().plan(**{"duration": 60, "height": 360, "width": 640, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [{"budget": 0}, {"patch": 1.5}, {"max_fps": 0}, {"pair_gap": -1}, {"short_limit": float("nan")},
     {"fine_tokens": 0}, {"min_tokens": 900}, {"segment": "32"}],
)  # fmt: skip
def test_rules_that_can_give_no_plan_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(UniTimeError, match=next(iter(fields))):
        FrameRule(**fields)  # type: ignore[arg-type]
