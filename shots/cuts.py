"""Where a video is cut: hard cuts and gradual transitions of any video, by presentation time.

    for cut in find_cuts("film.mp4").cuts:
        print(cut.time, cut.kind, cut.duration)

Notable choices:

- The detectors (`shots.detectors`) stand on PySceneDetect's: `HardCuts` takes the scores of its ContentDetector (change
  of hue, saturation and brightness) and decides as its AdaptiveDetector does, against the frames around; `Blends` is a
  detector of its `SceneDetector` interface for what it has none for: dissolves, and fades through black or white.
- A hard cut stands out among the frames `AROUND` it on either side, save one, or is a single change between quiet ones:
  so a fast camera and the small jumps a generated film makes every few frames are none, and two cuts near each other
  are two. A thing that takes another colour where it stands is none, nor a title that comes or goes.
- A flash, or a few black frames, is no cut: a little later the picture is what it was.
- A blend is a stretch in which every frame is a mix of the first and the last, with ever more of the last; movement is
  not. Black or white between two blends, or between two cuts, belongs to the transition: it is one, from where the old
  picture starts to go until the new one is whole.
- One pass; small pictures of the last few seconds are kept, so an hour costs no more memory than a minute.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shots.video import Video, each_frame, probe

if TYPE_CHECKING:
    from shots.video import Frames

Span = tuple[int, int]

SIDE = 64  # pixels of the pictures that are compared, at least
TOUCH = 3  # samples between a fade out and a fade in that are one transition


@dataclass(frozen=True)
class Cut:
    """A change from one shot to the next.

    time: seconds; of a hard cut when the new shot's first frame is shown, of a gradual one its middle. frame: the frame
    shown first then, from 0. kind: "hard" or "gradual". duration: seconds a gradual one takes, 0 of a hard one.
    """

    time: float
    frame: int
    kind: str
    duration: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "time": round(self.time, 4), "frame": self.frame, "kind": self.kind, "duration": round(self.duration, 4)
        }  # fmt: skip


@dataclass(frozen=True)
class CutList:
    """The cuts of a video in order of time. fps: frames a second (the average). frames: how many there are."""

    fps: float
    frames: int
    cuts: tuple[Cut, ...]

    @property
    def times(self) -> list[float]:
        """Seconds of each cut."""
        return [cut.time for cut in self.cuts]

    def to_dict(self) -> dict[str, Any]:
        """As `seedance cuts --json` prints it."""
        return {"fps": self.fps, "frames": self.frames, "cuts": [cut.to_dict() for cut in self.cuts]}

    def __str__(self) -> str:
        lines = [f"{len(self.cuts)} cuts in {self.frames} frames at {self.fps:g} frames a second"]
        for cut in self.cuts:
            lasts = f", {cut.duration:.2f} s long" if cut.kind == "gradual" else ""
            lines.append(f"{cut.time:10.3f} s  frame {cut.frame:<7} {cut.kind}{lasts}")
        return "\n".join(lines)


def _frames(video: Video | str | Path) -> Iterator[tuple[float, Frames]]:
    """(time, frame) of a film in memory or of a file."""
    if isinstance(video, Video):
        yield from zip((video.times - video.times[0]).tolist(), video.frames, strict=True)
    else:
        yield from each_frame(video, least=(SIDE, SIDE))


def find_cuts(video: Video | str | Path) -> CutList:
    """The cuts of a film in memory or in a file. Raises ShotsError for a file that is no video."""
    import cv2
    from scenedetect import FrameTimecode

    from shots.detectors import BLANK, Blends, HardCuts

    fps = video.fps if isinstance(video, Video) else probe(video).fps
    hard = HardCuts(fps)
    blends = Blends(fps, hard)
    times: list[float] = []
    found: list[int] = []
    for number, (time, frame) in enumerate(_frames(video)):
        times.append(time)
        small = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        bgr, at = np.ascontiguousarray(small[..., ::-1]), FrameTimecode(number, fps=fps)
        found += [cut.frame_num for cut in hard.process_frame(at, bgr)]
        blends.process_frame(at, bgr)
    last = FrameTimecode(len(times) - 1, fps=fps)
    found += [cut.frame_num for cut in hard.post_process(last)]
    blends.post_process(last)
    alone, pairs = _paired(blends.spans, blends.fades, hard.blanks, TOUCH * blends.every)
    begun = [first for first, _ in pairs]  # ascending, as all that is looked up here: an hour may hold thousands
    found = [cut for cut in found if not ((k := bisect_left(begun, cut)) and cut < pairs[k - 1][1])]
    spans = _apart([*_merged(found, alone, hard.blanks, len(times), BLANK * fps), *pairs])
    return CutList(fps, len(times), tuple(_cut(span, times, fps) for span in spans))


def _cut(span: Span, times: list[float], fps: float) -> Cut:
    """A stretch of frames as a cut: (first frame of the change, first frame of the new shot)."""
    first, new = span
    if new - first <= 1:
        return Cut(times[new], new, "hard", 0.0)
    end = times[new] if new < len(times) else times[-1] + 1 / fps
    middle = (times[first] + end) / 2
    return Cut(
        middle, max(0, int(np.searchsorted(times, middle + 1e-6, side="right")) - 1), "gradual", end - times[first]
    )


def _paired(
    spans: list[Span], fades: list[tuple[bool, bool]], blanks: list[Span], gap: int
) -> tuple[list[Span], list[Span]]:
    """Blends that stand alone, and pairs: a fade to black or white with the fade from it, at most `gap` frames apart or
    with nothing else between them."""
    alone: list[Span] = []
    pairs: list[Span] = []
    starts, ends = [start for start, _ in blanks], [end for _, end in blanks]
    number = 0
    while number < len(spans):
        first, new = spans[number]
        after = spans[number + 1] if number + 1 < len(spans) else (0, 0)
        out = fades[number][0] or _holds(starts, first + 1, new + 2 * gap)
        in_ = after > (0, 0) and (fades[number + 1][1] or _holds(ends, after[0] - 2 * gap, after[1] - 1))
        if out and in_:
            last = bisect_right(starts, new + 2 * gap)  # of the blanks that begin by then the last ends last
            between = last > 0 and after[0] - 2 * gap <= ends[last - 1]
            if first >= gap and (between or after[0] <= new + gap):
                pairs.append((first, after[1]))
                number += 2
                continue
        alone.append((first, new))
        number += 1
    return alone, pairs


def _merged(hard: list[int], blends: list[Span], blanks: list[Span], frames: int, longest: float) -> list[Span]:
    """Changes as (first frame of the change, first frame of the new shot), of hard cuts and of blends that stand alone.

    Of a hard cut the two are the same. Black or white for at most `longest` frames between two hard cuts makes them one
    change; between a hard cut and a fade, the hard cut stands. A film that fades in or out is not cut there.
    """
    sharp = [cut for cut in hard if not _near(cut, blanks)]
    blends = [span for span in blends if not _holds(sharp, span[0] + 1, span[1] - 1)]
    coming = deque(sorted([*((cut, cut) for cut in hard), *blends]))
    changes: list[Span] = []
    beside: list[Span] = []  # of the blank: what ended before it can touch no later one
    for start, end in blanks:  # [start, end) is black or white
        while coming and coming[0][0] <= end:
            beside.append(coming.popleft())
        changes += [span for span in beside if span[1] < start]
        beside = [span for span in beside if span[1] >= start]
        hits = [span for span in beside if span[0] == span[1]]
        if start == 0 or end == frames or len(hits) == 1 or (hits and end - start > longest):
            beside = hits
        elif len(hits) > 1:
            beside = [(min(start, *(a for a, _ in beside)), max(end, *(b for _, b in beside)))]
    return [*changes, *beside, *coming]


def _apart(changes: list[Span]) -> list[Span]:
    """Changes in order, those that overlap made one."""
    joined: list[Span] = []
    for first, new in sorted(changes):
        if joined and first < joined[-1][1]:
            joined[-1] = joined[-1][0], max(new, joined[-1][1])
        else:
            joined.append((first, new))
    return joined


def _near(cut: int, blanks: list[Span]) -> bool:
    """Whether a cut is from or to black or white."""
    begun = bisect_right(blanks, (cut + 1, math.inf))
    return begun > 0 and cut <= blanks[begun - 1][1] + 1


def _holds(values: Sequence[int], least: int, most: int) -> bool:
    """Whether one of some ascending numbers lies from `least` to `most`."""
    place = bisect_left(values, least)
    return place < len(values) and values[place] <= most
