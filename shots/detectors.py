"""The two detectors that find cuts, on PySceneDetect's interface: `HardCuts` and `Blends`. See `shots.cuts`.

Notable choices:

- Both are fed one frame after the other and hold the small pictures of the last second or two, never more.
- `HardCuts` takes its scores from PySceneDetect's ContentDetector, and beside them the change that is left when blocks
  of the picture may move (`matched`): how far a frame stands out is the geometric mean of both ratios.
- A frame stands out among all changes around it, or by itself: a single change between two quiet frames, where the
  changes around are movement (each about as large as the next one) and not single too. So an actor who has just landed
  hides no cut, and the jumps of a generated film, single but many, are none.
- Whether the old shot goes on is asked of the part of the picture that changes, as two shots may share a set and a
  camera: where its edges stay, there is no cut however much the light or the coding changes; where its outline alone
  stays, what lies within took another look, and a cut has to stand out further.
- `Blends` weighs how much a stretch changes, how much of the change is no mix of its ends, how much of the picture it
  takes, and how it compares with the movement before and after, by weights of a logistic regression.
- Thresholds and weights were set on stage films of training seeds; what they reach is measured on others
  (`tests.benchmarks.cuts`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scenedetect import ContentDetector, FrameTimecode, SceneDetector

Small = NDArray[np.float32]
Fine = NDArray[np.uint8]
Span = tuple[int, int]

FINE, SIDE, CELLS = 64, 32, 16  # cells a side of pictures whose edges, changes by block, and colours are compared
REACH, BLOCK = 3, 4  # cells that a block may move, and its side
AROUND = 5  # frames on either side that a cut stands out from
RATIO = 2.0  # how far
LEAST = 0.3  # matched change of a cut, 8-bit steps
ALONE = 1.9  # how far a single change stands out from its neighbours, and from other single ones around
SAME = 0.8  # edges of what changed agree more than this: the pictures are of one shot, unless
SUDDEN = 20.0  # a cut stands out so far
OUTLINE = 0.5  # the outline of what changed stays to this share: it is of one shot, unless
INSIDE = 5.5  # a cut stands out so far
SEEN = 4.0  # change of a pixel that counts, 8-bit steps, at least, and
PART = 0.2  # share of the largest changes
BARE = 0.1  # edges of what was there, as a share of what is there now, or the other way: a title comes or goes
FLASH = 0.25  # seconds within which the old picture is back after a flash
BLANK = 1.0  # seconds within which it is back after black or white that is no cut
BACK = 0.4  # the old picture is back: it differs by less than this share of the change
DIM = 0.35  # share of the light, or of what lacks to white, of a picture that is all but black or white
DARK, LIGHT, PLAIN = 16.0, 239.0, 6.0  # a black or white picture: its mean, and how far its cells are from it
SAMPLES = 12.0  # a second, that blends are looked for in
LENGTHS = (4, 5, 6, 7, 8, 10, 12, 14, 17, 20, 24)  # of blends, in samples
BESIDE = 3  # samples before and after a blend that it is compared with
MIX = 0.3  # share of a blend's change that is no mix of its ends, at most
CHANGE = 2.0  # of a blend, 8-bit steps, at least
SHARE = 0.3  # of the picture that takes part in it, at least: a title that appears is none
LOCAL = 0.7  # of the picture: what changes less may be a thing that takes another colour
STAYS = 0.7  # share of a blend's change that moved blocks do not explain, at least
STANDS = 1.15  # times the movement before and after, that a blend changes at least
UNEVEN = 0.25  # how far a blend's progress may be from even
WEIGHTS = {"one": 3.3, "change": 0.8, "rest": -8.3, "share": 2.9, "stands": 6.5, "length": -0.7}
SURE = 2.0  # log-odds of a blend, at least
_STILL = np.array([0.3, 0.15])  # score and matched change of a picture in which nothing happens
_LARGEST = 20  # pixels that change more than what counts as the largest change


def _cells(bgr: NDArray[np.uint8], side: int) -> Small:
    """float32 (side, side, 3), 8-bit steps."""
    return np.asarray(cv2.resize(bgr, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _fine(bgr: NDArray[np.uint8]) -> Fine:
    """uint8 (FINE, FINE, 3)."""
    return np.asarray(cv2.resize(bgr, (FINE, FINE), interpolation=cv2.INTER_AREA), np.uint8)


def matched(before: Small, after: Small) -> float:
    """Mean change, 8-bit steps, of pictures (SIDE, SIDE, 3) whose blocks may have moved by up to REACH cells."""
    wide = np.pad(before, ((REACH, REACH), (REACH, REACH), (0, 0)), mode="edge").reshape(SIDE + 2 * REACH, -1)
    flat, blocks = after.reshape(SIDE, -1), SIDE // BLOCK
    best = np.full((blocks, blocks), np.inf, np.float32)
    for dy in range(2 * REACH + 1):
        for dx in range(2 * REACH + 1):
            change = cv2.absdiff(flat, wide[dy : dy + SIDE, 3 * dx : 3 * (dx + SIDE)])  # (SIDE, 3 * SIDE)
            np.minimum(best, cv2.resize(change, (blocks, blocks), interpolation=cv2.INTER_AREA), out=best)
    return float(best.mean())


class Standing(NamedTuple):
    """What stays of a picture's edges where it changes.

    same: their correlation, -1 to 1. outline: share of the changed part's outline that is an edge before and after, 0
    to 1. replaced: edges of the picture that has fewer there, as a share of the other's, 0 to 1. share: of the picture
    that changes.
    """

    same: float
    outline: float
    replaced: float
    share: float


def standing(before: Fine, after: Fine) -> Standing:
    """What stays from one picture to another, uint8 (FINE, FINE, 3); all of it where nothing changes."""
    a, b = before.astype(np.float32), after.astype(np.float32)
    change = np.abs(a - b).max(2)  # (FINE, FINE)
    largest = float(np.partition(change.ravel(), -_LARGEST)[-_LARGEST])
    changed = (change > max(SEEN, PART * largest)).astype(np.uint8)
    if not changed.any():
        return Standing(1.0, 1.0, 1.0, 0.0)
    whole = cv2.morphologyEx(changed, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    near = np.ones((3, 3), np.uint8)
    part, outline = cv2.dilate(changed, near) > 0, cv2.dilate(whole, near) > cv2.erode(whole, near)
    edges = [np.concatenate([cv2.Sobel(x, cv2.CV_32F, 1, 0), cv2.Sobel(x, cv2.CV_32F, 0, 1)], 2) for x in (a, b)]
    one, two = edges[0][part], edges[1][part]  # (n, 6) both
    same = float((one * two).sum() / (np.linalg.norm(one) * np.linalg.norm(two) + 1e-6))
    strong = np.stack([np.linalg.norm(x, axis=2) for x in edges])  # (2, FINE, FINE)
    fewer, more = sorted(float(x[part].sum()) for x in strong)
    round_ = strong[:, outline]  # (2, m); of a picture that changes all over, m is 0
    stays = float(round_.min(0).sum() / (round_.max(0).sum() + 1e-6))
    return Standing(same, stays, fewer / (more + 1e-6), float(part.mean()))


def _stays(stands: Standing) -> bool:
    """Whether the edges of what changed stay, all of them or its outline."""
    return stands.same > SAME or stands.outline > OUTLINE


def _blank(small: Small) -> bool:
    """Whether a picture is black or white all over."""
    mean = float(small.mean())
    return (mean < DARK or mean > LIGHT) and float(np.abs(small - mean).mean()) < PLAIN


def _faded(small: Small, other: Small) -> bool:
    """Whether a picture is all but black or white beside another one."""
    dark, light = (
        float(small.mean()) / (float(other.mean()) + 1),
        float(255 - small.mean()) / (256 - float(other.mean())),
    )
    return _blank(small) or min(dark, light) < DIM and float(np.abs(small - small.mean()).mean()) < 2 * PLAIN


def _apart(a: Small, b: Small) -> float:
    """Mean difference of two pictures, 8-bit steps."""
    return float(np.abs(a - b).mean())


@dataclass
class _Kept:
    """A frame that is not decided on yet, or that others are held against."""

    at: FrameTimecode
    score: float
    matched: float
    picture: Fine
    small: Small
    blank: bool


class HardCuts(ContentDetector):
    """Hard cuts, none of them a flash. `blanks` are the stretches of black or white, [first, end) frames."""

    def __init__(self, fps: float) -> None:
        super().__init__(threshold=math.inf, min_scene_len=0)
        self._back = max(AROUND + 1, min(math.ceil(BLANK * fps), 120))  # frames that are looked at on either side
        self._flash = max(1, round(FLASH * fps))
        self._held: deque[_Kept] = deque(maxlen=2 * self._back + 1)
        self._next = 0  # place in `_held` of the next frame to decide on
        self._last: Small | None = None
        self.moved = 0.0  # matched change of the newest frame
        self.blanks: list[Span] = []

    @property
    def event_buffer_length(self) -> int:
        return self._back

    def process_frame(self, timecode: FrameTimecode, frame_img: NDArray[np.uint8]) -> list[FrameTimecode]:
        """Takes the next frame; returns cuts that are now known, of frames up to a second ago."""
        score = float(self._calculate_frame_score(timecode, frame_img))
        cells, small = _cells(frame_img, SIDE), _cells(frame_img, CELLS)
        moved = matched(self._last, cells) if self._last is not None else 0.0
        self._last, self.moved = cells, moved
        blank, number = _blank(small), timecode.frame_num
        if blank:
            if self.blanks and self.blanks[-1][1] == number:
                self.blanks[-1] = self.blanks[-1][0], number + 1
            else:
                self.blanks.append((number, number + 1))
        full = len(self._held) == self._held.maxlen
        self._held.append(_Kept(timecode, score, moved, _fine(frame_img), small, blank))
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
        change = _apart(held[i - 1].small, held[i].small)
        if held[i].matched < LEAST or (held[i].blank and held[i - 1].blank and change < DARK):
            return False
        among, alone = _stands(held, i)
        if among < RATIO and alone < ALONE:
            return False
        stays = standing(held[i - 1].picture, held[i].picture)
        if _stays(stays) and max(among, alone) < (SUDDEN if stays.same > SAME else INSIDE):
            return False
        if stays.replaced < BARE and stays.share < SHARE:
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


def _stands(held: Sequence[_Kept], i: int) -> tuple[float, float]:
    """How far frame `i` stands out: among all changes around it, and as a single change (0 at the film's ends)."""
    first, end = max(1, i - AROUND), min(len(held), i + 1 + AROUND)
    changes = np.array([[kept.score, kept.matched] for kept in held[first - 1 : end + 1]])  # (n, 2)
    beside = np.maximum(np.vstack([np.zeros(2), changes[:-1]]), np.vstack([changes[1:], np.zeros(2)]))  # (n, 2)
    single = np.maximum(changes - beside, 0)  # (n, 2)
    here, around = i - first + 1, [j for j in range(1, end - first + 1) if j != i - first + 1]
    save = int(len(around) == 2 * AROUND)  # where the film begins or ends there is half as much to stand out from

    def far(values: NDArray[np.float64], others: NDArray[np.float64]) -> float:
        return float(np.sqrt((values / (others + _STILL)).prod()))

    among = far(changes[here], _largest(changes[around], save))
    if not 1 < i < len(held) - 1:
        return among, 0.0
    return among, min(far(changes[here], beside[here]), far(single[here], _largest(single[around], save)))


def _largest(values: NDArray[np.float64], save: int) -> NDArray[np.float64]:
    """The largest of some values (n, 2) of either kind, save so many; 0 of none."""
    return np.sort(values, axis=0)[-1 - save] if len(values) > save else np.zeros(2)


class Blends(SceneDetector):
    """Dissolves and fades. `spans` are (last frame of the old picture alone, first frame of the new one alone); `fades`
    says of each whether it ends, and whether it begins, with black or white.

    beside: a detector of hard cuts that is fed the same frames first; where both compare the same pictures it is done
    once.
    """

    def __init__(self, fps: float, beside: HardCuts | None = None) -> None:
        super().__init__()
        self.every = max(1, round(fps / SAMPLES))
        self._beside = beside if self.every == 1 else None
        self._held: deque[tuple[int, float, float, Small, Fine]] = deque(maxlen=max(LENGTHS) + 1 + 2 * BESIDE)
        self._last: Small | None = None
        self._best: tuple[float, Span, tuple[bool, bool]] | None = None  # of the blends that overlap
        self.spans: list[Span] = []
        self.fades: list[tuple[bool, bool]] = []

    def process_frame(self, timecode: FrameTimecode, frame_img: NDArray[np.uint8]) -> list[FrameTimecode]:
        """Takes the next frame; what is found goes to `spans`, as it is no one frame."""
        number = timecode.frame_num
        if number % self.every:
            return []
        cells = _cells(frame_img, SIDE)
        last = cells if self._last is None else self._last
        moved = self._beside.moved if self._beside is not None else matched(last, cells)
        self._last = cells
        self._held.append((number, moved, _apart(last, cells), _cells(frame_img, CELLS), _fine(frame_img)))
        self._look(len(self._held) - 1 - BESIDE)
        return []

    def post_process(self, timecode: FrameTimecode) -> list[FrameTimecode]:
        """Looks at what ends with the last frames."""
        for end in range(len(self._held) - BESIDE, len(self._held)):
            self._look(end)
        self._settle()
        return []

    def _settle(self) -> None:
        if self._best is not None:
            self.spans.append(self._best[1])
            self.fades.append(self._best[2])
        self._best = None

    def _look(self, end: int) -> None:
        """Looks for blends that end with the sample in place `end`."""
        held = list(self._held)
        best: tuple[float, Span, tuple[bool, bool]] | None = None
        moved = np.array([moved for _, moved, _, _, _ in held])
        change = np.array([change for _, _, change, _, _ in held])
        for length in LENGTHS:
            start = end - length
            if start < 0:
                break
            beside = np.concatenate([moved[max(1, start - BESIDE + 1) : start + 1], moved[end + 1 : end + 1 + BESIDE]])
            inside = slice(start + 1, end + 1)
            if moved[inside].sum() < STAYS * change[inside].sum():
                continue
            x = np.stack([small for _, _, _, small, _ in held[start : end + 1]])
            sure = blend(x, moved[inside], beside)
            if sure >= SURE and (best is None or sure > best[0]):
                plain = _faded(x[-1], x[0]), _faded(x[0], x[-1])
                stands = standing(held[start][4], held[end][4])
                if stands.share < LOCAL and _stays(stands):
                    continue  # something takes another colour; a fade changes all of the picture
                best = sure, (held[start][0], held[end][0]), plain
        if best is None:
            return
        if self._best is not None and best[1][0] < self._best[1][1]:
            self._best = max(self._best, best)
        else:
            self._settle()
            self._best = best


def blend(pictures: Small, moved: NDArray[np.float64], beside: NDArray[np.float64]) -> float:
    """Log-odds that pictures (n, h, w, 3) blend from the first to the last; -inf where they cannot.

    moved: the matched change of each step (n - 1,); beside: of some steps before and after. Every picture is taken
    apart into first + progress x (last - first) + rest. In a blend the rest is small and the progress even; of things
    that move, the rest is about as large as the change.
    """
    x = pictures.reshape(len(pictures), -1)
    whole = x[-1] - x[0]  # (D,)
    change = float(np.abs(whole).mean())
    if change < CHANGE:
        return -math.inf
    gone = x[1:-1] - x[0]  # (n - 2, D)
    progress = gone @ whole / float(whole @ whole)  # (n - 2,)
    even = np.arange(1, len(x) - 1) / (len(x) - 1)
    rest = float((np.abs(gone - progress[:, None] * whole).mean(1) / change).max())
    if rest > MIX or np.abs(progress - even).max() > UNEVEN:
        return -math.inf
    cell = np.abs(whole).reshape(-1, 3).mean(1)  # (h * w,)
    share = float(cell.sum() ** 2 / (len(cell) * (cell**2).sum()))  # of the picture that takes part
    if share < SHARE:
        return -math.inf
    stands = moved.mean() / ((float(np.median(beside)) if len(beside) else 0.0) + 0.2)
    if stands < STANDS:
        return -math.inf
    told = {
        "one": 1.0, "change": math.log(change), "rest": rest, "share": math.log(share),
        "stands": math.log(max(stands, 1e-3)), "length": math.log(len(x) - 1),
    }  # fmt: skip
    return sum(WEIGHTS[name] * value for name, value in told.items())
