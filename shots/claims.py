"""What a script claims: the events of each shot as queries, what they could be mistaken for, and questions to ask.

Notable choices:

- A caption that the stage's grammar reads (`shots.stage.parse`) is taken apart into one event a deed, each said in the
  grammar's plainest words, so that an event and what it is compared with differ in one word only.
- Any other caption is cut into its sentences and clauses, which are asked as they stand; where one names a single
  colour of the stage's, other colours are put in its place for comparison.
- What is asked of an event: its colour, its shape, its action, whether it is here (and not in another shot), and, of
  several in one shot, their order.
- Questions are the stage's own (`shots.stage.annotate`), in groups of at most `OPTIONS`, as models are used to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from shots.script import Script
from shots.stage import words
from shots.stage.facts import ActorFacts
from shots.stage.parse import Reading, SaidAction, readings
from shots.stage.scene import COLOURS, PAIR_ACTIONS, SHAPES, SOLO_ACTIONS

OPTIONS = 4  # of a question
_CLAUSE = re.compile(
    r"(?<=[.!?;])\s+|,?\s+(?:and then|then|while|meanwhile|after that|before)\s+|,\s+and\s+", re.IGNORECASE
)
_COLOUR = re.compile(rf"\b({'|'.join(COLOURS)})\b", re.IGNORECASE)
# What one deed can hardly be told from, so that it is no fair comparison.
_ALIKE = {
    "jump": {"fall", "jump_over"},
    "fall": {"jump"},
    "jump_over": {"jump", "move_left", "move_right"},
    "push": {"move_left", "move_right"},
    "move_toward": {"grow"},
    "grow": {"move_toward", "stretch"},
    "move_away": {"shrink", "hide_behind"},
    "shrink": {"move_away", "squash"},
    "stretch": {"grow"},
    "squash": {"shrink"},
    "hide_behind": {"move_away", "move_left", "move_right"},
    "circle": {"move_left", "move_right"},
}


@dataclass(frozen=True)
class Contrast:
    """The event with one thing changed: `kind` ("colour", "shape", "action"), what it is now, how that is asked."""

    kind: str
    value: str
    query: str


@dataclass(frozen=True)
class Question:
    """A question on one fact: `options[right]` is what the script says."""

    kind: str
    text: str
    options: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Event:
    """One thing that a shot is said to show.

    query: as a grounder is asked. facts: what is claimed, by kind. step: its place among the shot's deeds, None where
    nothing is done. contrasts, questions: what helps to decide.
    """

    query: str
    facts: dict[str, str] = field(default_factory=dict)
    step: int | None = None
    contrasts: tuple[Contrast, ...] = ()
    questions: tuple[Question, ...] = ()


def claims(script: Script) -> list[tuple[Event, ...]]:
    """The events of each shot of a script, at least one a shot."""
    found = []
    for shot, reading in zip(script.shots, readings(script), strict=True):
        clear = not reading.unknown and any(actor.colour or actor.shape for actor in reading.facts.actors)
        events = _told(reading) if clear else _clauses(shot.caption)
        found.append(tuple(events))
    return found


# --------------------------------------------------------------------------------------------------- stage captions


def _name(colour: str | None, shape: str | None) -> str:
    """An actor as queries name it."""
    return f"the {colour} {shape or 'actor'}" if colour else f"the {shape or 'actor'}"


def _verb(kind: str, other: str | None, new_colour: str | None) -> str:
    phrase = words.verb_forms(words.ACTION_WORDS[kind].train[0])[0]
    return phrase.replace("{other}", other or "the other one").replace("{colour}", new_colour or "another colour")


def _told(reading: Reading) -> Iterator[Event]:
    """Events of a caption that was read: one a deed, and one for each actor that does nothing."""
    actors = reading.facts.actors
    for index, actor in enumerate(actors):
        deeds = [action for action in reading.actions if action.actor == index]
        partner = any(action.other == index for action in reading.actions)
        acting = [action for action in deeds if action.kind != "still"]
        for action in acting:
            other = actors[action.other] if action.other is not None and action.other < len(actors) else None
            yield _deed(actors, actor, action, other, lone=len(acting) == 1)
        if not acting:
            yield _presence(actors, actor, still=bool(deeds) and not partner)


def _deed(
    actors: Sequence[ActorFacts], actor: ActorFacts, action: SaidAction, other: ActorFacts | None, lone: bool
) -> Event:
    partner = _name(other.colour, other.shape) if other is not None else None

    def query(colour: str | None, shape: str | None, kind: str) -> str:
        return f"{_name(colour, shape)} {_verb(kind, partner, action.colour)}"

    kinds = [kind for kind in SOLO_ACTIONS if kind not in ("still", "change_colour")]
    if partner is not None:
        kinds += PAIR_ACTIONS
    kinds = [kind for kind in kinds if kind != action.kind and kind not in _ALIKE.get(action.kind, ())]
    contrasts = _looks(actors, actor, lambda colour, shape: query(colour, shape, action.kind))
    contrasts += [Contrast("action", kind, query(actor.colour, actor.shape, kind)) for kind in kinds]
    questions = _look_questions(actors, actor, recoloured=action.colour is not None)
    if lone and action.kind not in PAIR_ACTIONS:
        answers = [_verb(kind, None, None) for kind in kinds]
        asked = f"What does {_name(actor.colour, actor.shape)} do?"
        questions += _asked("action", asked, _verb(action.kind, None, action.colour), answers)
    return Event(
        query(actor.colour, actor.shape, action.kind),
        {**_claimed(actor), "action": action.kind.replace("_", " ")},
        action.step,
        tuple(contrasts),
        tuple(questions),
    )


def _presence(actors: Sequence[ActorFacts], actor: ActorFacts, still: bool) -> Event:
    name = _name(actor.colour, actor.shape)
    contrasts = _looks(actors, actor, lambda colour, shape: _name(colour, shape))
    questions = _look_questions(actors, actor, recoloured=False)
    facts = _claimed(actor)
    if still:
        kinds = [kind for kind in SOLO_ACTIONS if kind not in ("still", "change_colour")]
        contrasts += [Contrast("action", kind, f"{name} {_verb(kind, None, None)}") for kind in kinds]
        questions += _asked("action", f"What does {name} do?", "stands still", [_verb(k, None, None) for k in kinds])
        facts["action"] = "still"
    query = f"{name} {_verb('still', None, None)}" if still else name
    return Event(query, facts, None, tuple(contrasts), tuple(questions))


def _claimed(actor: ActorFacts) -> dict[str, str]:
    return {kind: value for kind in ("colour", "shape") if (value := getattr(actor, kind)) is not None}


def _looks(
    actors: Sequence[ActorFacts], actor: ActorFacts, query: Callable[[str | None, str | None], str]
) -> list[Contrast]:
    """The event of an actor of another colour or shape; colours that others of the shot have are left out."""
    made = []
    if actor.colour is not None:
        taken = {member.colour for member in actors} | {member.new_colour for member in actors}
        made += [Contrast("colour", c, query(c, actor.shape)) for c in COLOURS if c not in taken]
    if actor.shape is not None:
        same = {member.shape for member in actors} if actor.colour is None else {actor.shape}
        made += [Contrast("shape", s, query(actor.colour, s)) for s in SHAPES if s not in same]
    return made


def _look_questions(actors: Sequence[ActorFacts], actor: ActorFacts, recoloured: bool) -> list[Question]:
    made: list[Question] = []
    alone = sum(member.shape == actor.shape for member in actors) == 1
    if actor.colour is not None and actor.shape is not None and alone and not recoloured:
        made += _asked("colour", f"What colour is the {actor.shape}?", actor.colour, COLOURS)
    if actor.shape is not None and actor.colour is not None:
        made += _asked("shape", f"What shape is the {actor.colour} actor?", actor.shape, SHAPES)
    return made


def _asked(kind: str, text: str, right: str, answers: Sequence[str]) -> list[Question]:
    """A question with every other answer among its options, in groups; the right one stands elsewhere in each."""
    wrong = [answer for answer in answers if answer != right]
    made = []
    for number, first in enumerate(range(0, len(wrong), OPTIONS - 1)):
        options = wrong[first : first + OPTIONS - 1]
        place = number % (len(options) + 1)
        made.append(Question(kind, text, (*options[:place], right, *options[place:]), place))
    return made


# --------------------------------------------------------------------------------------------------- other captions


def _clauses(caption: str) -> Iterator[Event]:
    """A caption's sentences and clauses as events."""
    parts = [part.strip(" ,.;:!?") for part in _CLAUSE.split(caption)]
    parts = [part for part in parts if len(part.split()) > 1] or [caption]
    for step, part in enumerate(parts):
        named = _COLOUR.findall(part)
        facts, contrasts = {}, []
        if len(named) == 1:
            colour = named[0].lower()
            facts["colour"] = colour
            contrasts = [Contrast("colour", c, _COLOUR.sub(c, part)) for c in COLOURS if c != colour]
        yield Event(part, facts, step if len(parts) > 1 else None, tuple(contrasts))
