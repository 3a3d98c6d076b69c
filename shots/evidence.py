"""What a grounder, and whoever answers questions, say of a film: differences of log-odds, ready to be weighed.

Notable choices:

- Small protocols, more where there is more: a grounder that takes `window=` and `threshold=`, or gives `not_found`, is
  asked so; one that does not is shown the shot alone, cut out of the film.
- A grounder that can `encode` a film looks at it once for all its questions.
- Everything asked in one window is asked in one call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shots.calibration import CLIP
from shots.claims import Question
from shots.errors import ShotsError
from shots.protocols import Answerer, Grounder, Grounding, takes
from shots.publish import film_span, read_film
from shots.video import Frames, Video, frames_at, probe, read_record, read_video

Window = tuple[float, float]
LEAST = 1e-3  # probabilities nearer to 0 and 1 are not told apart
MOST_FRAMES = 300  # of a shot, that are looked at for measures


@dataclass(eq=False)
class Film:
    """A film in memory or in a file: its clock, and its frames a shot at a time."""

    source: Video | Path
    fps: float
    duration: float
    frames: int
    record: dict[str, Any]

    @classmethod
    def of(cls, video: Video | str | Path) -> Film:
        """Of a `Video` or a file; of a published one (`shots.publish`) the film alone, in memory.

        Raises ShotsError for a file that is no video.
        """
        if isinstance(video, Video):
            return cls(video, video.fps, video.duration, len(video.frames), video.record or {})
        path = Path(video)
        info, record = probe(path), read_record(path) or {}
        if film_span(record) is not None:
            return cls.of(read_film(path))
        return cls(path, info.fps, info.duration, info.frames, record)

    def clip(self, window: Window, most: int | None = None) -> Video:
        """The frames shown in a window, at least one; with `most`, those about its middle if there are more."""
        start, end = window
        if most is not None and (end - start) * self.fps > most:
            middle, half = (start + end) / 2, most / self.fps / 2
            start, end = middle - half, middle + half
        if isinstance(self.source, Path):
            return read_video(self.source, start=max(0.0, start), end=end)
        video = self.source
        at = video.times - video.times[0]
        inside = np.flatnonzero((at >= start - 1e-6) & (at < end - 1e-6))
        if not len(inside):
            inside = np.array([min(len(at) - 1, int(np.searchsorted(at, start)))])
        return Video(video.frames[inside], video.fps, at[inside] - at[inside[0]])

    def still(self, time: float) -> Frames:
        """What is shown at a time, uint8 (H, W, 3)."""
        if isinstance(self.source, Path):  # the last frame is shown on, though none begins any more
            return next(iter(frames_at(self.source, [time])))[1]
        return self.clip((time, time + 1.5 / self.fps)).frames[0]


def log_odds(probability: float) -> float:
    """Of a probability, within what is believed (`CLIP`)."""
    p = min(max(probability, LEAST), 1 - LEAST)
    return min(max(math.log(p / (1 - p)), -CLIP), CLIP)


def presence(grounding: Grounding) -> float:
    """The probability that what was asked for is there: one minus `not_found` where that is given, else the score."""
    absent = getattr(grounding, "not_found", None)
    best = max((moment.score for moment in grounding.moments), default=0.0)
    if absent is None or (grounding.status == "ok" and absent == 0.0):
        return best if grounding.status == "ok" else 0.0
    return 1.0 - float(absent)


class Witness:
    """Asks one film. `answerer` is who answers questions: None where nobody does."""

    def __init__(self, film: Film, grounder: Grounder, answerer: Answerer | None) -> None:
        self.film, self.grounder, self.answerer = film, grounder, answerer
        source = film.source
        encode = getattr(grounder, "encode", None)
        self._handle: Any = encode(source) if callable(encode) else source
        shared = answerer is grounder
        self._asked: Any = self._handle if shared else source
        self._clips: dict[Window, Video] = {}

    def _clip(self, window: Window) -> Video:
        if window not in self._clips:
            self._clips = {window: self.film.clip(window, MOST_FRAMES)}  # one at a time, as films may be long
        return self._clips[window]

    def _ground(self, queries: Sequence[str], window: Window | None, top_k: int) -> Sequence[Grounding]:
        how: dict[str, Any] = {"top_k": top_k}
        if takes(self.grounder.ground, "threshold"):
            how["threshold"] = 1.0  # moments whatever the probability that there is nothing
        subject: Any = self._handle
        if window is not None:
            if takes(self.grounder.ground, "window"):
                how["window"] = window
            else:
                subject = self._clip(window)
        found = self.grounder.ground(subject, list(queries), **how)
        if len(found) != len(queries):
            raise ShotsError(f"grounder: {len(found)} groundings for {len(queries)} queries; one each is needed")
        return found

    def here(self, queries: Sequence[str], window: Window) -> dict[str, Grounding]:
        """What is found of each query in a window."""
        unique = list(dict.fromkeys(queries))
        return dict(zip(unique, self._ground(unique, window, 1), strict=True)) if unique else {}

    def anywhere(self, queries: Sequence[str], top_k: int = 3) -> dict[str, Grounding]:
        """What is found of each query in the whole film."""
        unique = list(dict.fromkeys(queries))
        return dict(zip(unique, self._ground(unique, None, top_k), strict=True)) if unique else {}

    def answered(self, question: Question, window: Window) -> tuple[float, str] | None:
        """How much likelier (log) the right option is than the best other one, and that one; None: nobody answers."""
        if self.answerer is None:
            return None
        how: dict[str, Any] = {}
        subject: Any = self._asked
        if takes(self.answerer.ask, "window"):
            how["window"] = window
            if takes(self.answerer.ask, "grounded"):
                how["grounded"] = False
        else:
            subject = self._clip(window)
        reply = self.answerer.ask(subject, question.text, list(question.options), **how)
        scores = getattr(reply, "scores", None)
        if scores is None:
            said = str(reply).strip().casefold()
            scores = [float(option.casefold() == said) for option in question.options]
        logs = [math.log(max(float(score), LEAST)) for score in scores]
        other = max((i for i in range(len(logs)) if i != question.right), key=logs.__getitem__)
        margin = min(max(logs[question.right] - logs[other], -CLIP), CLIP)
        return margin, question.options[other]
