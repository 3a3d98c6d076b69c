"""Adaptive frame scaling: which moments of a video to look at, and at what size, so that a token budget is kept.

    plan = FrameRule().plan(duration=200, height=360, width=640)
    plan.times, plan.stamps, plan.size, plan.grid

UniTime (arXiv 2506.18883, section 3.2): N_res = floor(N_total / N_f) tokens a frame. Short windows are *resized* before
the vision tower (a fine pass, one stamp per unit); longer ones are encoded at normal size and their token grid is
*compressed* (a coarse pass, one stamp per segment).

Notable choices:
- Pure arithmetic: nothing is read, and the same arguments give the same plan.
- The defaults reproduce the released code's arithmetic, which the released weights expect. Its "frame" is a temporal
  patch of two raw frames, here a *unit*, and its limits of 128, 1024 and 32 frames are compared with seconds.
- There the budget decides how many frames are looked at, not a rate, so a clip of 10 s is sampled at 10.8 frames a
  second and neighbouring stamps, which have one decimal, may be equal. `max_fps` stops that.
- With `max_fps` or `pair_gap` the stamps of a plan differ from each other, so that each names one unit.
- `still` shows one picture twice in each unit, for checkpoints that were trained on frames as single pictures.
- Some checkpoints name times that were not shown as stamps. For those `answer_step` says which times an answer may name
  (:meth:`FrameRule.answer_times`).
- Above `long_limit` a coarse pass shows no more units than `long_limit` seconds hold at its rate, as released; whoever
  wants every part of a long video seen plans windows of at most `long_limit`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unitime.errors import UniTimeError

Mode = Literal["auto", "fine", "coarse"]

_MAX_RATIO = 200  # of the sides of a picture, as in Qwen's smart_resize
_MOST_ANSWERS = 2000  # times that an answer may choose from
_STAMP = 0.1 + 1e-6  # seconds between units so that stamps of one decimal differ


@dataclass(frozen=True, eq=False)
class FramePlan:
    """When to look and at what size.

    mode: "fine" or "coarse". times: float64 (units, temporal patch), seconds on the file's own clock, ascending within
    [start, end]. stamps: one per unit, the mean or the first of its times, rounded to one decimal. size: (H, W) pixels
    for the vision tower. vision_grid: (h, w) merged tokens that the tower gives per unit. grid: (h, w) tokens per unit
    after compression, `vision_grid` where there is none. segment_units: units under one marker, 1 in a fine plan.
    start, end: the window, seconds.
    """

    mode: str
    times: NDArray[np.float64]
    stamps: tuple[float, ...]
    size: tuple[int, int]
    vision_grid: tuple[int, int]
    grid: tuple[int, int]
    segment_units: int
    start: float
    end: float

    @property
    def units(self) -> int:
        return len(self.stamps)

    @property
    def tokens(self) -> int:
        """Visual tokens shown in all."""
        return self.units * self.grid[0] * self.grid[1]

    @property
    def segments(self) -> list[tuple[int, int]]:
        """Ranges [first, last) of the units under each marker."""
        return [
            (first, min(first + self.segment_units, self.units)) for first in range(0, self.units, self.segment_units)
        ]

    @property
    def segment_stamps(self) -> tuple[float, ...]:
        """The stamp of each segment's first unit, which stands in its marker."""
        return self.stamps[:: self.segment_units]

    @property
    def key(self) -> str:
        """Hex digest of the whole plan, to keep what was made of its frames under."""
        shape = f"{self.mode} {self.times.shape} {self.size} {self.vision_grid} {self.grid} {self.segment_units}"
        return hashlib.sha256(shape.encode() + np.ascontiguousarray(self.times).tobytes()).hexdigest()


@dataclass(frozen=True)
class FrameRule:
    """How a token budget becomes a plan. The defaults are those of the released code for Qwen2-VL.

    patch, merge: pixels of a patch's side, patches of a token's side. temporal_patch: raw frames in a unit.
    budget: visual tokens a pass may show. min_tokens, max_tokens: of one unit at the vision tower.
    coarse_tokens: least tokens per unit after compression in a coarse pass.
    fine_tokens: None: a fine pass is resized, never compressed, and a coarse pass takes as many tokens per unit as the
    budget allows. A number: the grids are fixed, about `fine_tokens` per unit in a fine pass and `coarse_tokens` in a
    coarse one, and the budget decides the count alone.
    short_limit: seconds up to which one fine pass is made. long_limit: seconds above which callers divide a video.
    segment: seconds under one marker in a coarse pass. coarse_floor: raw frames of a coarse pass at its least tokens.
    base_fps: raw frames a second that the budget is shared among. max_fps: never more raw frames a second; None: no
    limit. pair_gap: seconds between the raw frames of a unit, whose centres are then uniform, so that a speed looks the
    same at any rate; None: all raw frames are uniform. shrink: how token grids are compressed; "bilinear" as published
    reads at most four tokens for each new one, "area" takes the mean of all, as a model shown one token a unit needs.
    answer_seconds: a moment is widened to so many seconds before a question is answered from it.
    stamp_at: whether a unit's stamp is the "mean" of its frames' times or the "first" of them. still: whether all
    frames of a unit are its first one. answer_step: seconds between the times that an answer may name; None: the
    stamps, as published.
    Raises UniTimeError for a value that can give no plan.
    """

    patch: int = 14
    merge: int = 2
    temporal_patch: int = 2
    budget: int = 16384
    min_tokens: int = 128
    max_tokens: int = 768
    coarse_tokens: int = 16
    fine_tokens: int | None = None
    short_limit: float = 128.0
    long_limit: float = 1024.0
    segment: float = 32.0
    coarse_floor: int = 2048
    base_fps: float = 2.0
    max_fps: float | None = None
    pair_gap: float | None = None
    shrink: Literal["bilinear", "area"] = "bilinear"
    answer_seconds: float = 32.0
    stamp_at: Literal["mean", "first"] = "mean"
    still: bool = False
    answer_step: float | None = None

    def __post_init__(self) -> None:
        counts = ("patch", "merge", "temporal_patch", "budget", "min_tokens", "max_tokens", "coarse_tokens",
                  "coarse_floor", "fine_tokens")  # fmt: skip
        for name in counts:
            value = getattr(self, name)
            if value is None and name == "fine_tokens":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UniTimeError(f"{name}: {value!r}; a whole number of at least 1 is needed")
        seconds = ("short_limit", "long_limit", "segment", "base_fps", "max_fps", "pair_gap", "answer_seconds",
                   "answer_step")  # fmt: skip
        for name in seconds:
            value = getattr(self, name)
            if value is None and name in ("max_fps", "pair_gap", "answer_step"):
                continue
            if not _is_number(value) or not value > 0:
                raise UniTimeError(f"{name}: {value!r}; a number above 0 is needed")
        if self.shrink not in ("bilinear", "area"):
            raise UniTimeError(f"shrink: {self.shrink!r}; 'bilinear' or 'area' is needed")
        if self.stamp_at not in ("mean", "first"):
            raise UniTimeError(f"stamp_at: {self.stamp_at!r}; 'mean' or 'first' is needed")
        if not isinstance(self.still, bool):
            raise UniTimeError(f"still: {self.still!r}; true or false is needed")
        if self.answer_step is not None and self.answer_step < 0.1:
            raise UniTimeError(f"answer_step: {self.answer_step:g}; times have one decimal, so at least 0.1 is needed")
        if self.min_tokens > self.max_tokens:
            raise UniTimeError(f"min_tokens: {self.min_tokens} is above max_tokens, {self.max_tokens}")

    def plan(
        self,
        *,
        duration: float,
        height: int,
        width: int,
        window: tuple[float, float] | None = None,
        mode: Mode = "auto",
    ) -> FramePlan:
        """The plan for a video of `height` x `width` pixels that ends at `duration` seconds on its own clock.

        window: (start, end) seconds to look at; an end beyond the duration is taken for it; None: the whole video.
        mode: "fine", "coarse", or "auto": fine up to `short_limit` seconds, else coarse. At least one unit is planned.
        Raises UniTimeError for an empty or impossible window, duration or size.
        """
        start, end = _window(duration, window)
        span = end - start
        if mode not in ("auto", "fine", "coarse"):
            raise UniTimeError(f"mode: {mode!r}; 'auto', 'fine' or 'coarse' is needed")
        fine = mode == "fine" or (mode == "auto" and span <= self.short_limit)
        rate = self.base_fps if self.max_fps is None else min(self.base_fps, self.max_fps)
        nominal = max(_to_multiple(int(span * rate), self.temporal_patch), self.temporal_patch)
        share = self.budget / nominal * self.temporal_patch  # tokens a unit could have at the base rate
        at_floor = not fine and min(self.max_tokens, share) <= self.coarse_tokens
        size, grid = self._sizes(height, width, fine, share)
        count = self.budget // (grid[0] * grid[1]) * self.temporal_patch
        if at_floor:
            count = min(count, self.coarse_floor)
        units = self._units(count, span)
        times = self._times(units, start, end)
        if self.still:
            times = np.repeat(times[:, :1], self.temporal_patch, axis=1)
        per_second = units / span
        if not fine and span > self.long_limit and (most := max(1, int(self.long_limit * per_second))) < units:
            times = times[np.rint(np.linspace(0, units - 1, most)).astype(int)]
        return FramePlan(
            mode="fine" if fine else "coarse",
            times=times,
            stamps=tuple(
                round(float(at), 1) for at in (times[:, 0] if self.stamp_at == "first" else times.mean(axis=1))
            ),
            size=size,
            vision_grid=(size[0] // self._factor, size[1] // self._factor),
            grid=grid,
            segment_units=1 if fine else max(1, int(self.segment * per_second + 1e-9)),
            start=start,
            end=end,
        )

    def answer_times(self, plan: FramePlan) -> tuple[float, ...]:
        """The times, seconds with one decimal, that an answer about a fine `plan` may name: its stamps, or from its
        start to its end one every `answer_step` seconds, more where that would be over 2,000 of them."""
        if self.answer_step is None:
            return plan.stamps
        first, last = math.ceil(plan.start * 10 - 1e-6), math.floor(plan.end * 10 + 1e-6)  # tenths of a second
        step = max(round(self.answer_step * 10), math.ceil((last - first) / _MOST_ANSWERS))
        tenths = sorted({first, *range(-(-first // step) * step, last + 1, step), max(first, last)})
        return tuple(tenth / 10 for tenth in tenths)

    @property
    def _factor(self) -> int:
        """Pixels of a token's side."""
        return self.patch * self.merge

    @property
    def _reach(self) -> float:
        """Seconds from a unit's first look to its last where `pair_gap` says so."""
        return (self.pair_gap or 0.0) * (self.temporal_patch - 1)

    def _sizes(self, height: int, width: int, fine: bool, share: float) -> tuple[tuple[int, int], tuple[int, int]]:
        """((H, W) pixels for the vision tower, (h, w) tokens per unit shown)."""
        factor, area = self._factor, self._factor**2
        least = self.min_tokens * area
        room = int(1.05 * least)  # so that rounding both sides down does not end far below the least
        if self.fine_tokens is not None:
            size = smart_resize(height, width, factor, least, max(self.max_tokens * area, room))
            vision = (size[0] // factor, size[1] // factor)
            return size, _shrunk(vision, self.fine_tokens if fine else self.coarse_tokens)
        if fine:
            size = smart_resize(height, width, factor, least, max(min(self.max_tokens, share) * area, room))
            return size, (size[0] // factor, size[1] // factor)
        size = smart_resize(height, width, factor, least, max(self.max_tokens * area, room))
        floor = self.coarse_tokens * area
        low = smart_resize(height, width, factor, floor, max(min(self.max_tokens, share) * area, floor))
        return size, (min(low[0], size[0]) // factor, min(low[1], size[1]) // factor)

    def _units(self, count: int, span: float) -> int:
        """How many units `span` seconds get where the budget allows `count` raw frames."""
        units = count // self.temporal_patch
        if self.max_fps is not None:
            units = min(units, int(span * self.max_fps / self.temporal_patch + 1e-6))
        if self.max_fps is not None or self.pair_gap is not None:
            step = max(_STAMP, self._reach + 1e-9)  # units do not overlap either
            units = min(units, int(max(0.0, span - self._reach) / step) + 1)
        return max(1, units)

    def _times(self, units: int, start: float, end: float) -> NDArray[np.float64]:
        """(units, temporal patch): when to look, within [start, end]."""
        if self.pair_gap is None:
            return np.linspace(start, end, units * self.temporal_patch).reshape(units, self.temporal_patch)
        span = end - start
        reach = min(self._reach, span)
        margin = max(span / units, reach) / 2
        centres = np.linspace(start + margin, end - margin, units) if units > 1 else np.array([(start + end) / 2])
        looks = np.linspace(-reach / 2, reach / 2, self.temporal_patch) if self.temporal_patch > 1 else np.zeros(1)
        return np.clip(centres[:, None] + looks, start, end)


def smart_resize(height: int, width: int, factor: int, min_pixels: float, max_pixels: float) -> tuple[int, int]:
    """(height, width) as multiples of `factor` with about the same ratio and an area in the given range (Qwen2-VL).

    Never less than one `factor` a side, so a very long picture may have more than `max_pixels`. Raises UniTimeError for
    a picture without area or with sides more than 200 to 1.
    """
    if not (_is_number(height) and _is_number(width)) or height < 1 or width < 1:
        raise UniTimeError(f"height, width: {height} x {width} pixels; at least 1 x 1 is needed")
    if max(height, width) > _MAX_RATIO * min(height, width):
        raise UniTimeError(f"height, width: {height} x {width} pixels; sides may be at most {_MAX_RATIO} to 1: crop it")
    sides = max(factor, round(height / factor) * factor), max(factor, round(width / factor) * factor)
    if sides[0] * sides[1] > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        sides = math.floor(height / shrink / factor) * factor, math.floor(width / shrink / factor) * factor
    elif sides[0] * sides[1] < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        sides = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return max(factor, sides[0]), max(factor, sides[1])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


def _to_multiple(value: int, step: int) -> int:
    return round(value / step) * step


def _window(duration: float, window: tuple[float, float] | None) -> tuple[float, float]:
    """The window as (start, end) within [0, duration]."""
    if not _is_number(duration) or duration <= 0:
        raise UniTimeError(f"duration: {duration!r} seconds; a number above 0 is needed")
    if window is None:
        return 0.0, float(duration)
    try:
        start, end = window
    except (TypeError, ValueError):
        raise UniTimeError(f"window: {window!r}; (start, end) in seconds is needed") from None
    if not (_is_number(start) and _is_number(end)) or start < 0 or end <= start:
        raise UniTimeError(f"window: ({start}, {end}) seconds; 0 <= start < end is needed")
    if start >= duration:
        raise UniTimeError(f"window: it starts at {start:g} s, but the video ends at {duration:g} s")
    return float(start), float(min(end, duration))


def _shrunk(grid: tuple[int, int], tokens: int) -> tuple[int, int]:
    """The grid of at most `tokens` tokens, no larger than `grid`, that comes closest to its ratio and to `tokens`."""
    height, width = grid
    if height * width <= tokens:
        return grid
    ratio = math.log(width / height)
    choices = [(h, w) for h in range(1, min(height, tokens) + 1) for w in range(1, min(width, tokens // h) + 1)]
    return min(choices, key=lambda hw: abs(math.log(hw[1] / hw[0]) - ratio) + math.log(tokens / (hw[0] * hw[1])))
