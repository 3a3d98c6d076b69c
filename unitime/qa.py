"""Questions about a video, answered from the moment that bears on them: ground, widen, sample, answer.

    answer = model.ask("film.mp4", "What does the red cube do?", ["It jumps.", "It falls."])
    print(answer, answer.option, answer.evidence)

The protocol is UniTime's (arXiv 2506.18883, section on VideoQA): the question itself is grounded, a window shorter than
32 s is extended about its middle to 32 s, 32 frames are sampled from it, and any video model answers.

Notable choices:

- The answerer is the grounding model itself, which weighs the options' letters against each other (or writes freely
  where there are none), or any callable that takes frames, question and options.
- The callable gets the published 32 frames. The model itself reads the window as its own frame rule says, stamps and
  all, unless ``frames`` fixes their number.
- Where nothing was found, the whole video is looked at, and the answer says so by having no evidence.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unitime.decode import choose, generate
from unitime.errors import UniTimeError
from unitime.frames import FramePlan
from unitime.prompts import LETTERS

if TYPE_CHECKING:
    from unitime.grounder import Grounding, Moment, UniTime, VideoHandle

FRAMES = 32
MAX_TOKENS = 64

Answerer = Callable[[NDArray[np.uint8], str, "Sequence[str] | None"], "str | int"]
"""``answerer(frames, question, options)``: uint8 (n, H, W, 3); an option's index, its letter or text, or any text."""


@dataclass(frozen=True)
class Answer:
    """An answer and what it rests on.

    Attributes:
        question: as it was asked.
        answer: in words: an option's text, or free text.
        option: index of the option, None for an open question.
        scores: probability of each option, where the answerer gives them.
        evidence: the moment found for the question, None where none was found or looked for.
        window: (start, end) seconds that the answer was read from.
        grounding: all that was found for the question, None where nothing was looked for.
    """

    question: str
    answer: str
    option: int | None
    scores: tuple[float, ...] | None
    evidence: Moment | None
    window: tuple[float, float]
    grounding: Grounding | None = None

    def __str__(self) -> str:
        return self.answer

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "question": self.question,
            "answer": self.answer,
            "option": self.option,
            "scores": None if self.scores is None else list(self.scores),
            "evidence": None if self.evidence is None else self.evidence.to_dict(),
            "window": list(self.window),
        }


def answer(
    model: UniTime,
    video: Any,
    question: str,
    options: Sequence[str] | None = None,
    *,
    answerer: Answerer | None = None,
    grounded: bool = True,
    window: tuple[float, float] | None = None,
    min_seconds: float | None = None,
    frames: int | None = None,
    threshold: float | None = None,
    max_tokens: int = MAX_TOKENS,
    cancelled: threading.Event | None = None,
) -> Answer:
    """Answers a question about a video.

    Args:
        model, video: as for ``UniTime.ground``.
        question: in words.
        options: answers to choose from, 2 to 26; None for an open question.
        answerer: who answers; None is the model itself.
        grounded: whether to look for the moment first; if not, the whole window is read.
        window: (start, end) seconds to stay between; None is the whole video.
        min_seconds: what a shorter moment is widened to; None is the rule's `answer_seconds`, or the
            longest fine pass if that is shorter.
        frames: how many frames the answerer is shown; None is 32 for a callable, and for the model what its rule says.
        threshold: as for ``UniTime.ground``.
        max_tokens: of a free answer.
        cancelled: set it to stop between passes and batches of frames, which raises UniTimeError.
    """
    from unitime.grounder import check_text, stop_if

    check_text("question", question)
    options = _check_options(options)
    if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
        raise UniTimeError(f"frames: {frames!r}; a whole number of at least 1 is needed")
    rule = model.model.rule
    least = min(rule.answer_seconds, rule.short_limit) if min_seconds is None else min_seconds
    if isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least < np.inf:
        raise UniTimeError(f"min_seconds: {min_seconds!r}; a number of seconds is needed")
    handle = model.encode(video)
    whole = handle.plan(window, "fine")
    span = (whole.start, whole.end)
    found = None
    if grounded:
        found = model.ground(handle, [question], window=window, threshold=threshold, cancelled=cancelled)[0]
    evidence = found.moments[0] if found is not None and found.moments else None
    seen = span if evidence is None else widen((evidence.start, evidence.end), least, span)
    stop_if(cancelled)

    if answerer is not None:
        plan = sampled(handle, seen, frames or FRAMES, even=True)
        shown = np.concatenate([part.reshape(-1, *part.shape[2:]) for part in handle.frames(plan)])
        text, option = _understood(answerer(shown[: frames or FRAMES], question, options), options)
        return Answer(question, text, option, None, evidence, seen, found)
    plan = handle.plan(seen) if frames is None else sampled(handle, seen, frames)
    prefix = handle.prefix(plan, "answering", cancelled)
    prompts = model.model.prompts
    turn = prompts.ask(question, options)
    if options is None:
        return Answer(
            question, generate(model.model, prefix, [turn], max_tokens)[0], None, None, evidence, seen, found
        )  # fmt: skip
    scores = choose(model.model, prefix, turn, [prompts.chosen(i) for i in range(len(options))])
    best = int(scores.argmax())
    return Answer(question, options[best], best, tuple(map(float, scores)), evidence, seen, found)


def widen(window: tuple[float, float], least: float, span: tuple[float, float]) -> tuple[float, float]:
    """The window extended about its middle to at least ``least`` seconds, shifted to stay within ``span``."""
    start, end = window
    need = min(max(least, end - start), span[1] - span[0])
    start = (start + end - need) / 2
    start = min(max(start, span[0]), span[1] - need)
    return start, start + need


def sampled(handle: VideoHandle, window: tuple[float, float], frames: int, even: bool = False) -> FramePlan:
    """A fine plan of ``frames`` frames (rounded up to whole units); with ``even`` all of them equally far apart."""
    rule = handle.model.rule
    units = -(-frames // rule.temporal_patch)
    plan = handle.plan(window, "fine")
    rule = replace(
        rule,
        budget=units * plan.grid[0] * plan.grid[1],
        min_tokens=plan.vision_grid[0] * plan.vision_grid[1],
        max_tokens=plan.vision_grid[0] * plan.vision_grid[1],
        max_fps=None,
        pair_gap=None if even else rule.pair_gap,
    )
    times = rule.plan(duration=handle.duration, height=handle.height, width=handle.width, window=window, mode="fine")
    return replace(plan, times=times.times, stamps=times.stamps)


def _check_options(options: Sequence[str] | None) -> list[str] | None:
    """The options as a list. Raises UniTimeError for fewer than two, too many, an empty one, and what is no text."""
    if options is None:
        return None
    from unitime.grounder import check_text

    if isinstance(options, str) or not isinstance(options, Iterable):
        raise UniTimeError(f"options: {options!r}; a list of texts is needed")
    listed = list(options)
    if not 2 <= len(listed) <= len(LETTERS):
        raise UniTimeError(f"options: there are {len(listed)}; 2 to {len(LETTERS)} are needed")
    for option in listed:
        check_text("options", option)
    return listed


def _understood(reply: Any, options: Sequence[str] | None) -> tuple[str, int | None]:
    """An answerer's reply as text and option."""
    if options is None:
        return str(reply), None
    if isinstance(reply, int | np.integer) and not isinstance(reply, bool):
        if not 0 <= reply < len(options):
            raise UniTimeError(f"answerer: it chose option {reply} of {len(options)}")
        return options[int(reply)], int(reply)
    text = str(reply).strip()
    for i, option in enumerate(options):
        if text.casefold() == option.strip().casefold():
            return option, i
    bare = text.lstrip("(").rstrip(".").split(")")[0].strip().upper()
    if len(bare) == 1 and (i := LETTERS.find(bare)) >= 0 and i < len(options):
        return options[i], i
    raise UniTimeError(f"answerer: {text!r} is none of the options; it may reply with an index, a letter or the text")
