"""The words around a video: markers, instructions, questions and answers, and how answers are read back.

Notable choices:

- The defaults are the strings UniTime's released weights expect (arXiv 2506.18883 and its code): they are an interface,
  changed by no more than a space the weights no longer understand them. A model folder may bring its own in
  ``unitime.json``; `unitime.formats` holds those of other published checkpoints.
- A stamp is a time in seconds with one decimal, always: ``0.2``, ``12.0``, ``100.5``. So no stamp is the beginning of
  another, which is what lets `unitime.decode` treat the stamps shown as the leaves of a trie.
- Everything is put to the model as chat turns. What a user typed cannot end a turn: ``<|`` in it is broken up.
- Free text is read from the most telling form to the least: clock times and ranges first, bare numbers in pairs last,
  so that a number echoed from the query does not shift every pair after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from unitime.errors import UniTimeError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
QUERY_LENGTH = 2000  # characters of one query, question or option; longer is a mistake


@dataclass(frozen=True)
class Prompts:
    """The strings of one model. Placeholders stand in braces; each is listed with its field.

    Attributes:
        marker: before each unit or segment; ``{t}`` is the stamp. Empty: no times are shown, and only positions
            tell them, the ablation of the paper's main claim.
        one_block: the whole video is one block of tokens with no markers in it, as Qwen2.5-VL's own format has it.
        one_turn: what is asked stands in the same user turn as the video, right after it; the instructions are empty.
        fine: instruction after the video of a fine pass.
        coarse: instruction after the video of a coarse pass.
        answering: instruction after the video where a question is to be answered or a caption written; None takes
            ``fine``, so that grounding and answering share one prefix.
        query: the user turn of a grounding query; ``{query}``.
        coarse_query: the same in a coarse pass; None takes ``query``.
        opening: how a fine answer begins, before its first window.
        window: one window of an answer, lower case; ``{start}``, ``{end}``. The sentence gets a capital and a period.
        segment: one segment of a coarse answer; ``{t}``.
        not_found: the whole answer where the query does not happen; None where the model knows no such answer.
        question: the user turn of an open question; ``{question}``.
        choice: the user turn of a question with options; ``{question}``, ``{options}`` (one "(A) text" a line).
        option: the answer to a question with options; ``{letter}``.
        caption: the user turn that asks for a caption.
        system: the system turn, or None for none.
        header, footer: around each turn; ``{role}`` is system, user or assistant.
    """

    marker: str = "timestamp: {t} seconds; feature: "
    fine: str = (
        "This is a sequence interleaved with timestamps and frames. Your task is to identify the temporal window "
        "(start and end timestamps) when the given query appears."
    )
    coarse: str = (
        "This is a sequence interleaved with timestamps and frames. Your task is to identify the specific timestamp(s) "
        "when the given query appears."
    )
    answering: str | None = (
        "This is a sequence interleaved with timestamps and frames. Your task is to answer what is asked about it."
    )
    query: str = "Query:{query}\nAnswer: "
    window: str = "from {start} seconds to {end} seconds"
    segment: str = "{t} seconds"
    not_found: str | None = None
    question: str = "Question: {question}\nAnswer: "
    choice: str = "Question: {question}\nOptions:\n{options}\nPlease only give the best option.\nBest Option: "
    option: str = "({letter})"
    caption: str = (
        "Describe what this video shows in one or two short sentences: who or what is seen, how it looks, what it "
        "does, and where. Name only what can be seen; do not speak of the video, of sound or of timestamps."
    )
    system: str | None = "You are a helpful assistant."
    header: str = "<|im_start|>{role}\n"
    footer: str = "<|im_end|>\n"
    coarse_query: str | None = None
    opening: str = ""
    one_block: bool = False
    one_turn: bool = False

    def __post_init__(self) -> None:
        holes = {
            "marker": ("{t}",) if self.marker else (),
            "query": ("{query}",),
            "coarse_query": ("{query}",) if self.coarse_query is not None else (),
            "window": ("{start}", "{end}"),
            "segment": ("{t}",),
            "question": ("{question}",),
            "choice": ("{question}", "{options}"),
            "option": ("{letter}",),
            "header": ("{role}",),
        }
        for name, needed in holes.items():
            text = getattr(self, name) or ""
            if any(text.count(hole) != 1 for hole in needed):
                raise UniTimeError(f"prompts.{name}: {text!r} must hold {' and '.join(needed)} once")
        if self.window.index("{start}") > self.window.index("{end}"):
            raise UniTimeError(f"prompts.window: {self.window!r} names the end before the start")
        if self.one_turn and (self.fine or self.coarse or self.answering):
            raise UniTimeError(
                "prompts.one_turn: fine, coarse and answering must be empty; say it in query and coarse_query"
            )
        if self.one_block and self.marker:
            raise UniTimeError(f"prompts.one_block: a video in one block has no place for the marker {self.marker!r}")

    @classmethod
    def from_dict(cls, record: Mapping[str, str | bool | None]) -> Prompts:
        """Prompts from a record such as :meth:`to_dict` gives; what it leaves out is as published."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(record) - known):
            raise UniTimeError(f"prompts: unknown key {unknown[0]!r}; the keys are {', '.join(sorted(known))}")
        return cls(**record)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, str | bool | None]:
        """All of them, for ``unitime.json``."""
        return asdict(self)

    # Turns. str.replace, not str.format: a query may hold braces.

    def mark(self, seconds: float) -> str:
        """The marker before a unit or segment shown at ``seconds``."""
        return self.marker.replace("{t}", stamp(seconds))

    def instruction(self, mode: str) -> str:
        """The instruction after the video: ``mode`` is "fine", "coarse" or "answering"."""
        if mode == "answering":
            return self.fine if self.answering is None else self.answering
        return self.coarse if mode == "coarse" else self.fine

    def ask_when(self, query: str, mode: str = "fine") -> str:
        """The user turn of a grounding query in a "fine" or "coarse" pass."""
        wording = self.coarse_query if mode == "coarse" and self.coarse_query is not None else self.query
        return wording.replace("{query}", plain(query))

    def ask(self, question: str, options: Sequence[str] | None = None) -> str:
        """The user turn of a question, with its options if it has any."""
        if options is None:
            return self.question.replace("{question}", plain(question))
        lines = "\n".join(f"({letter(i)}) {plain(option)}" for i, option in enumerate(options))
        before, after = self.choice.split("{options}")
        return before.replace("{question}", plain(question)) + lines + after.replace("{question}", plain(question))

    # Answers.

    def answer(self, windows: Iterable[tuple[float, float]]) -> str:
        """A fine answer: "From 1.0 seconds to 2.5 seconds, from 7.0 seconds to 8.0 seconds.". Not found where empty."""
        parts = [
            self.window.replace("{start}", stamp(start)).replace("{end}", stamp(end)) for start, end in windows
        ]  # fmt: skip
        return capital(self.opening + ", ".join(parts)) + "." if parts else self.nothing()

    def segments(self, stamps: Iterable[float]) -> str:
        """A coarse answer: "32.0 seconds, 64.0 seconds.". Not found where empty."""
        parts = [self.segment.replace("{t}", stamp(t)) for t in stamps]
        return capital(", ".join(parts)) + "." if parts else self.nothing()

    def nothing(self) -> str:
        """The answer where the query does not happen. Raises UniTimeError where the model knows none."""
        if self.not_found is None:
            raise UniTimeError("windows: is empty, and these prompts have no not_found sentence to say so")
        return self.not_found

    def chosen(self, index: int) -> str:
        """The answer to a question with options: "(A)" for the first."""
        return self.option.replace("{letter}", letter(index))


def stamp(seconds: float) -> str:
    """A time as it is written everywhere: seconds with one decimal, never negative ("0.2", "100.5")."""
    return f"{max(0.0, round(seconds, 1)):.1f}"


def capital(text: str) -> str:
    """The text with its first letter large and the others as they are."""
    return text[:1].upper() + text[1:]


def letter(index: int) -> str:
    """The letter of the option ``index``, from 0. Raises UniTimeError where the alphabet ends."""
    if not 0 <= index < len(LETTERS):
        raise UniTimeError(f"options: there can be no more than {len(LETTERS)}")
    return LETTERS[index]


def plain(text: str) -> str:
    """What a user typed, unable to end a chat turn or to stand for a frame."""
    return text.replace("<|", "< |")


_TIME = r"(?:\d+:)?\d{1,2}:\d{2}(?:\.\d+)?|\d+(?:\.\d+)?"
_UNIT = r"\s*(?:seconds?|secs?|s\b)?\s*"
_RANGE = re.compile(rf"(?<![\d.:])({_TIME}){_UNIT}(?:-|–|—|~|to\b|until\b|till\b)\s*({_TIME})")
_CLOCK = re.compile(r"(?<![\d.:])(?:\d+:)?\d{1,2}:\d{2}(?:\.\d+)?")
_NUMBER = re.compile(rf"(?<![\d.:])(?:{_TIME})")


def parse_windows(text: str) -> list[tuple[float, float]]:
    """The windows that a free answer names, in seconds, each with start <= end; [] where it names none.

    Ranges ("3.5 to 7", "from 1:02 to 1:10.5", "0:01:02 - 0:01:10") are taken first, else clock times in pairs, else
    bare numbers in pairs; an odd one at the end is dropped.
    """
    text = text.lower()
    if ranges := _RANGE.findall(text):
        return [_ordered(seconds(a), seconds(b)) for a, b in ranges]
    for pattern in (_CLOCK, _NUMBER):
        times = [seconds(found) for found in pattern.findall(text)]
        if len(times) >= 2:
            return [_ordered(a, b) for a, b in zip(times[::2], times[1::2], strict=False)]
    return []


def parse_stamps(text: str) -> list[float]:
    """The times that a free coarse answer lists, in seconds, in order."""
    return [seconds(found) for found in _NUMBER.findall(text.lower())]


def seconds(clock: str) -> float:
    """Seconds of "75.5", "1:15.5" or "0:01:15.5"."""
    total = 0.0
    for part in clock.split(":"):
        total = total * 60 + float(part)
    return total


def _ordered(a: float, b: float) -> tuple[float, float]:
    return (a, b) if a <= b else (b, a)
