"""The two detectors that find cuts, on PySceneDetect's interface: `HardCuts` and `Blends`. See `shots.cuts`.

Notable choices:

- Both are fed one frame after the other and hold the small pictures of the last second or two, never more.
- `HardCuts` takes its scores from PySceneDetect's ContentDetector. Its thresholds and those of `Blends` were set on
  stage films of training seeds and on generated films; what they reach is measured on others (`tests.benchmarks.cuts`).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scenedetect import ContentDetector, FrameTimecode, SceneDetector

Small = NDArray[np.float32]
Span = tuple[int, int]

CELLS = 16  # cells a side of the pictures that are kept
AROUND = 5  # frames on either side that a cut stands out from
RATIO = 3.0  # how far
LEAST = 3.0  # change of a cut, 8-bit steps
FLASH = 0.25  # seconds within which the old picture is back after a flash
BLANK = 1.0  # seconds within which it is back after black or white that is no cut
BACK = 0.4  # the old picture is back: it differs by less than this share of the change
DARK, LIGHT, PLAIN = 16.0, 239.0, 6.0  # a black or white picture: its mean, and how far its cells are from it
SAMPLES = 12.0  # a second, that blends are looked for in
LENGTHS = (4, 5, 6, 7, 8, 10, 12, 14, 17, 20, 24)  # of blends, in samples
MIX = 0.35  # share of a blend's change that is no mix of its ends, at most
CHANGE = 6.0  # of a blend, 8-bit steps
UNEVEN = 0.22  # how far a blend's progress may be from even


def _small(bgr: NDArray[np.uint8]) -> Small:
    """float32 (CELLS * CELLS * 3,), 8-bit steps."""
    cells = cv2.resize(bgr, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    return np.asarray(cells, np.float32).ravel()


def _blank(small: Small) -> bool:
    """Whether a picture is black or white all over."""
    mean = float(small.mean())
    return (mean < DARK or mean > LIGHT) and float(np.abs(small - mean).mean()) < PLAIN


def _apart(a: Small, b: Small) -> float:
    """Mean difference of two pictures, 8-bit steps."""
    return float(np.abs(a - b).mean())


@dataclass
class _Kept:
    """A frame that is not decided on yet, or that others are held against."""

    at: FrameTimecode
    score: float
    small: Small
    blank: bool


class HardCuts(ContentDetector):
    """Hard cuts, none of them a flash. `blanks` are the stretches of black or white, [first, end) frames."""

    def __init__(self, fps: float) -> None:
        super().__init__(threshold=math.inf, min_scene_len=0)
        self._back = max(AROUND, min(math.ceil(BLANK * fps), 120))  # frames that are looked at on either side
        self._flash = max(1, round(FLASH * fps))
        self._held: deque[_Kept] = deque(maxlen=2 * self._back + 1)
        self._next = 0  # place in `_held` of the next frame to decide on
        self.blanks: list[Span] = []

    @property
    def event_buffer_length(self) -> int:
        return self._back

    def process_frame(self, timecode: FrameTimecode, frame_img: NDArray[np.uint8]) -> list[FrameTimecode]:
        """Takes the next frame; returns cuts that are now known, of frames up to a second ago."""
        score = float(self._calculate_frame_score(timecode, frame_img))
        small = _small(frame_img)
        blank, number = _blank(small), timecode.frame_num
        if blank:
            if self.blanks and self.blanks[-1][1] == number:
                self.blanks[-1] = self.blanks[-1][0], number + 1
            else:
                self.blanks.append((number, number + 1))
        full = len(self._held) == self._held.maxlen
        self._held.append(_Kept(timecode, score, small, blank))
        self._next -= full
        return self._decided(len(self._held) - self._back)

    def post_process(self, timecode: FrameTimecode) -> list[FrameTimecode]:
        """Decides on the last frames."""
        return self._decided(len(self._held))

    def _decided(self, end: int) -> list[FrameTimecode]:
        cuts = []
        while self._next < end:
            if self._next > 0 and self._is_cut(list(self._held), self._next):
                cuts.append(self._held[self._next].at)
            self._next += 1
        return cuts

    def _is_cut(self, held: list[_Kept], i: int) -> bool:
        """Whether frame `i` of those held begins a shot."""
        score = held[i].score
        if score < LEAST:
            return False
        near = sorted(kept.score for kept in held[max(1, i - AROUND) : i] + held[i + 1 : i + 1 + AROUND])
        if len(near) > 1 and score < RATIO * (near[-2] + 0.5):
            return False
        return not (self._returns(held, i) or self._returned(held, i))

    def _returns(self, held: list[_Kept], i: int) -> bool:
        """Whether the picture before frame `i` is soon back."""
        old, change = held[i - 1], _apart(held[i - 1].small, held[i].small)
        for j in range(i + 1, len(held)):
            if j - i > self._flash and not held[j - 1].blank:
                return False
            if _apart(old.small, held[j].small) < BACK * change:
                return True
        return False

    def _returned(self, held: list[_Kept], i: int) -> bool:
        """Whether frame `i` is what was shown shortly before the picture before it."""
        change = _apart(held[i - 1].small, held[i].small)
        for j in range(i - 2, -1, -1):
            if i - j > self._flash + 1 and not held[j + 1].blank:
                return False
            if _apart(held[i].small, held[j].small) < BACK * change:
                return True
        return False


class Blends(SceneDetector):
    """Dissolves and fades. `spans` are (last frame of the old picture alone, first frame of the new one alone)."""

    def __init__(self, fps: float) -> None:
        super().__init__()
        self._every = max(1, round(fps / SAMPLES))
        self._held: deque[tuple[int, Small]] = deque(maxlen=max(LENGTHS) + 1)
        self._best: tuple[float, Span] | None = None  # of the blends that overlap
        self.spans: list[Span] = []

    def process_frame(self, timecode: FrameTimecode, frame_img: NDArray[np.uint8]) -> list[FrameTimecode]:
        """Takes the next frame; what is found goes to `spans`, as it is no one frame."""
        number = timecode.frame_num
        if number % self._every:
            return []
        self._held.append((number, _small(frame_img)))
        found = self._ending_here()
        if found is not None and self._best is not None and found[1][0] < self._best[1][1]:
            self._best = max(self._best, found)
        elif found is not None:
            self._settle()
            self._best = found
        return []

    def post_process(self, timecode: FrameTimecode) -> list[FrameTimecode]:
        """Notes the last blend."""
        self._settle()
        return []

    def _settle(self) -> None:
        if self._best is not None:
            self.spans.append(self._best[1])
        self._best = None

    def _ending_here(self) -> tuple[float, Span] | None:
        """The best blend that ends with the newest frame: (how good, its span)."""
        best: tuple[float, Span] | None = None
        x = np.stack([small for _, small in self._held])  # (n, CELLS * CELLS * 3)
        for length in LENGTHS:
            if length >= len(x):
                break
            good = blend(x[-length - 1 :])
            if good is not None and (best is None or good > best[0]):
                best = good, (self._held[-length - 1][0], self._held[-1][0])
        return best


def blend(x: Small) -> float | None:
    """How good a blend pictures (n, D) are, from the first to the last: its change in 8-bit steps; None: they are none.

    Every picture is taken apart into first + progress x (last - first) + rest. In a blend the rest is small and the
    progress even; of things that move, the rest is about as large as the change.
    """
    whole = x[-1] - x[0]  # (D,)
    change = float(np.abs(whole).mean())
    if change < CHANGE:
        return None
    moved = x[1:-1] - x[0]  # (n - 2, D)
    progress = moved @ whole / float(whole @ whole)  # (n - 2,)
    even = np.arange(1, len(x) - 1) / (len(x) - 1)
    if np.abs(progress - even).max() > UNEVEN:
        return None
    rest = np.abs(moved - progress[:, None] * whole).mean(1) / change
    mixed = float(rest.max())
    return change * (1 - mixed) if mixed <= MIX else None
