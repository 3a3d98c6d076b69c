"""Where a video is cut: hard cuts and gradual transitions of any video, by presentation time.

    for cut in find_cuts("film.mp4").cuts:
        print(cut.time, cut.kind, cut.duration)

Notable choices:

- The detectors (`shots.detectors`) stand on PySceneDetect's: `HardCuts` takes the scores of its ContentDetector (change
  of hue, saturation and brightness) and decides as its AdaptiveDetector does, against the frames around; `Blends` is a
  detector of its `SceneDetector` interface for what it has none for: dissolves, and fades through black or white.
- A hard cut stands out among the frames `AROUND` it on either side, save one: so a fast camera and the small jumps a
  generated film makes every few frames are none, and two cuts near each other are two.
- A flash, or a few black frames, is no cut: a little later the picture is what it was.
- A blend is a stretch in which every frame is a mix of the first and the last, with ever more of the last; movement is
  not. Black or white between two blends, or between two cuts, belongs to the transition: it is one, from where the old
  picture starts to go until the new one is whole.
- One pass; small pictures of the last few seconds are kept, so an hour costs no more memory than a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shots.video import Video, each_frame, probe

if TYPE_CHECKING:
    from shots.video import Frames

Span = tuple[int, int]

SIDE = 64  # pixels of the pictures that are compared, at least


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

    from shots.detectors import Blends, HardCuts

    fps = video.fps if isinstance(video, Video) else probe(video).fps
    hard, blends = HardCuts(fps), Blends(fps)
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
    spans = _merged(found, blends.spans, hard.blanks, len(times))
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


def _merged(hard: list[int], blends: list[Span], blanks: list[Span], frames: int) -> list[Span]:
    """Changes as (first frame of the change, first frame of the new shot), in order, none touching another.

    Of a hard cut the two differ by nothing that is shown. Black and white stretches join what stands on either side of
    them, if anything does; those that the film begins or ends with part no shots.
    """
    changes = [(cut, cut) for cut in hard]
    changes += [span for span in blends if not any(span[0] < cut < span[1] for cut in hard if not _near(cut, blanks))]
    joined: list[Span] = []
    for first, new in sorted(changes):
        if joined and first <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(new, joined[-1][1])
        else:
            joined.append((first, new))
    for start, end in blanks:  # [start, end) is black or white
        beside = [span for span in joined if span[0] <= end and start <= span[1]]
        outer = start == 0 or end == frames
        if not outer and len(beside) < 2 and not any(span[0] < start and end < span[1] for span in beside):
            continue
        rest = [span for span in joined if span not in beside]
        whole = min([start, *(a for a, _ in beside)]), max([end, *(b for _, b in beside)])
        joined = sorted(rest if outer else [*rest, whole])
    return joined


def _near(cut: int, blanks: list[Span]) -> bool:
    """Whether a cut is from or to black or white."""
    return any(start - 1 <= cut <= end + 1 for start, end in blanks)
