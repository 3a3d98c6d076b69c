"""What `shots` expects of a model, without importing one.

`cli.py` and `demos/` put the real ones in: `seedance.Seedance` is a Renderer, `unitime.UniTime` is a Grounder and an
Answerer. Small on purpose: whatever has these methods will do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from shots.script import Script
    from shots.stage.judge.read import Reading
    from shots.video import Frames, Video


class Renderer(Protocol):
    """Makes a film from a script; the same seed gives the same film."""

    def __call__(self, script_or_prompt: Script | str, *, seed: int = 0) -> Video: ...


@runtime_checkable
class Retaker(Protocol):
    """A renderer that can hold shots: makes some of a film anew while the others stay as they are.

    A film is whatever `take` gives, its state before it is shown; `video` shows it.
    """

    def take(self, script_or_prompt: Script | str, *, seed: int = 0) -> Any:
        """A first take of the whole film."""

    def retake(self, film: Any, shots: Sequence[int], *, seed: int | None = None) -> Any:
        """The film with the shots of these numbers, from 1, made anew."""

    def splice(self, film: Any, other: Any, shots: Sequence[int]) -> Any:
        """The film with the shots of these numbers, from 1, taken from `other`, another take of it."""

    def video(self, film: Any) -> Video:
        """The film to be seen."""


class Moment(Protocol):
    """A stretch of a video in seconds, with the score that the query is there (0 to 1)."""

    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    @property
    def score(self) -> float: ...


class Grounding(Protocol):
    """Where a query happens: moments best first; status is "ok", "not_found" or "parse_error"."""

    @property
    def query(self) -> str: ...
    @property
    def moments(self) -> Sequence[Moment]: ...
    @property
    def status(self) -> str: ...


class Grounder(Protocol):
    """Says when each query happens in a video, given as frames or as a file.

    One that also takes `window=` (seconds) is asked about stretches of a long video.
    """

    def ground(self, video: Video | str | Path, queries: Sequence[str], top_k: int = 1) -> Sequence[Grounding]: ...


class Captioner(Protocol):
    """Says in words what a stretch of a video, (start, end) seconds, shows.

    One that also has `ask(video, question, options, window=, grounded=)`, with a reply that has `scores`, is asked for
    the size of each shot.
    """

    def caption(self, video: Video | str | Path, *, window: tuple[float, float] | None = None) -> str: ...


@runtime_checkable
class Answerer(Protocol):
    """Answers a question about a video in words, or with one of the options.

    One that also takes `window=` (seconds) is asked about a stretch of the video; a reply with `scores`, one a option,
    is weighed by them.
    """

    def ask(self, video: Video | str | Path, question: str, options: Sequence[str] | None = None) -> str: ...


class FilmJudge(Protocol):
    """Reads the facts of a stage shot, uint8 (T, H, W, 3), off its pictures; `shots.stage.judge.Judge` is one."""

    def read(self, frames: Frames, fps: float) -> Reading: ...


def takes(call: Callable[..., Any], name: str) -> bool:
    """Whether a function takes an argument of that name."""
    try:
        known = inspect.signature(call).parameters
    except (TypeError, ValueError):
        return False
    return name in known or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
