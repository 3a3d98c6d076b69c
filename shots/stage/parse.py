"""From English back to facts and films: the inverse of `shots.stage.words`, tolerant of other people's sentences.

Notable choices:

- One table of patterns is built from the grammar's own phrases, in all verb forms; the longest match at each word
  wins. So every phrase that the grammar writes is read, and a few more that people type (`_EXTRA`).
- What has no meaning on the stage is skipped and returned as a warning; little words that carry none are skipped
  silently.
- A noun with the same colour, or "the" and the same shape, is the same actor; "it" is the last subject. The actors of
  a script are the same over its shots where colour and shape agree.
- What is left unsaid is drawn from the seed (colours, shapes, floor, sky) or plain (medium, matte, realistic,
  static).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random

from shots.errors import ShotsError
from shots.script import Script
from shots.stage import words
from shots.stage.facts import CAMERA_CLASS, SHOT_FACTS, ActorFacts, Facts
from shots.stage.scene import (
    COLOURS,
    FLOORS,
    PAIR_ACTIONS,
    SHAPES,
    SKIES,
    Action,
    Actor,
    Camera,
    Film,
    Placement,
    Set,
    ShotSpec,
)

_TOKEN = re.compile(r"[a-z0-9]+|[.,:;!?]")
_STOPS = frozenset(".,:;!?")
_NUMBERS = {"two": 2, "2": 2, "three": 3, "3": 3, "both": 2}
_DETERMINERS = frozenset({"a", "an", "the", "this", "that", "another", "one", "its", "our", "same", *_NUMBERS})
_PRONOUNS = frozenset({"it", "itself"})
# Shape words that mean something else without an article or an adjective before them ("it can jump").
_SHY_SHAPES = frozenset(
    {"can", "ring", "block", "tin", "spike", "funnel", "tire", "drum", "barrel", "tube", "bubble", "die"}
)
_GENERIC = frozenset({"object", "thing", "shape", "figure", "actor", "toy", "solid", "body"})
_NEUTRAL = frozenset(
    {"single", "lone", "simple", "same", "other", "and", "coloured", "colored", "round", "nice", "solid"}
)
_SEQUENCE = frozenset({"then", "after", "afterwards", "next", "finally", "later", "before"})
# Little words without a meaning of their own.
_FILLERS = frozenset(
    re.findall(
        r"\w+",
        """
    a an the this that these those there is are be being we i you see watch watches show shows shown showing
    here how video clip film movie picture view image photo animation scene set story short about of with in on
    at over and or but while as meanwhile when where which who also nearby both they them its it itself to from
    begins starts beginning starting begin start first then after afterwards next finally later before time same
    moment all happens everything camera shot us our empty nobody stage only just once again slowly quickly
    gently smoothly suddenly fast high very for by up down into onto across around along one two three some
    seconds second place takes middle frame screen has have through during until now still please make makes let
    lets does do not floor ground sky background side
        """,
    )
)
# Phrases of users that the grammar does not write.
_EXTRA: dict[str, dict[object, str]] = {
    "colour": {
        "purple": "magenta|lilac|lavender",
        "cyan": "light blue|sky blue",
        "yellow": "gold|golden",
        "red": "maroon",
    },
    "size": {"small": "smaller|short", "large": "larger|bigger|tall"},
    "surface": {"shiny": "metallic|metal|mirrored|silver", "striped": "stripes", "matte": "rubber|clay|mat"},
    "style": {
        "realistic": "realistic|realistic style|realism",
        "toon": "cartoon|toon|cartoon style|toon style|comic|anime",
        "neon": "neon|neon style|glowing neon|cyberpunk",
    },
    "sky": {
        "clear": "clear sky|sunny|daylight|blue sky|cloudless|by day",
        "cloudy": "cloudy|overcast|cloudy sky|clouds",
        "sunset": "sunset|dusk|sunset sky|sunrise",
        "night": "night|night sky|starry sky|stars|moonlight|nighttime",
        "studio": "studio|studio light|studio lights|plain backdrop|plain background",
    },
    "fog": {True: "fog|foggy|mist|misty|haze|hazy"},
    "floor": {"checker": "checkered|checker|chequered", "planks": "planks|wood|wooden"},
    "angle": {
        "eye-level": "eye level|eye level view",
        "low": "low angle|low angle view|looking up",
        "high": "from above|high angle|high angle view|top view|birds eye view|looking down",
    },
    "shot_size": {"wide": "wide", "close-up": "close up|up close|extreme close up"},
    "camera": {"static": "static|no movement", "zoom_in": "zooms in|zoom", "zoom_out": "zooms out"},
    "action": {
        "move_left": "rolls left|rolls to the left|walks left|runs left|runs to the left|flies left"
        "|moves from right to left|leaves left",
        "move_right": "rolls right|rolls to the right|walks right|runs right|runs to the right|flies right"
        "|moves from left to right",
        "move_toward": "moves closer|moves toward the viewer|moves towards the camera|rolls toward the camera"
        "|moves toward us|approaches|approaches the camera|comes toward the camera|comes toward us|comes forward",
        "move_away": "rolls away|moves back|moves backward|goes away|leaves|slides away",
        "jump": "bounces|jumps high|jumps once|jumps twice|jumps in the air|jumps in place|leaps up",
        "spin": "spins on the spot|turns|spins quickly|spins slowly|turns on the spot",
        "grow": "grows bigger|gets big",
        "shrink": "becomes small|gets small",
        "stretch": "grows tall|becomes tall",
        "squash": "gets flat|flattens itself",
        "fall": "drops|falls from above|falls onto the floor|falls to the ground",
        "still": "stands|sits|lies|sits still|rests still|does nothing",
        "circle": "circles round {other}|moves around {other}|rolls around {other}|walks around {other}"
        "|flies around {other}",
        "push": "pushes into {other}|bumps into {other}|hits {other}|knocks {other}|moves {other}",
        "jump_over": "jumps above {other}|jumps on top of {other}",
        "hide_behind": "hides in back of {other}|moves to behind {other}",
        "change_colour": "changes its colour to {colour}|changes color to {colour}|changes its color to {colour}"
        "|turns into {colour}|is turned {colour}|goes from {own} to {colour}|becomes {colour} in colour",
    },
    "companion": {
        None: "to the left of {other}|to the right of {other}|left of {other}|right of {other}|behind {other}"
        "|in front of {other}|by {other}|besides {other}|along with {other}|around {other}"
    },
}


@dataclass(frozen=True)
class _Pattern:
    tokens: tuple[str, ...]
    category: str
    value: object


@dataclass
class _Mention:
    """An actor as the text names it."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    surface: str | None = None
    definite: bool = False
    count: int = 1


@dataclass
class SaidAction:
    """An action as the text tells it: `actor` and `other` index the actors; actions of one `step` happen together."""

    actor: int
    kind: str
    step: int
    other: int | None = None
    colour: str | None = None
    direction: int | None = None


@dataclass
class Reading:
    """What one caption says: its facts, its actions in order, the camera move as named, and the words that mean
    nothing."""

    facts: Facts = Facts()
    actions: list[SaidAction] = field(default_factory=list)
    camera_move: str | None = None
    unknown: list[str] = field(default_factory=list)


def tokens_of(text: str) -> list[str]:
    """Lower-case words and stops; hyphens part words, apostrophes vanish."""
    return _TOKEN.findall(text.lower().replace("'", "").replace("’", "").replace("-", " "))


def _plural(phrase: str) -> str:
    if phrase.endswith("torus"):
        return phrase[:-2] + "i"
    return phrase + ("es" if phrase.endswith(("x", "s", "sh", "ch")) else "s")


def _all_phrases() -> Iterator[tuple[str, str, object]]:
    """Every (phrase, category, value) of the grammar, then those of users; the first meaning of a phrase counts."""
    tables: list[tuple[str, dict[str, words.Phrases]]] = [
        ("colour", words.COLOUR_WORDS),
        ("shape", words.SHAPE_WORDS),
        ("size", words.SIZE_WORDS),
        ("surface", words.SURFACE_WORDS),
        ("tail", words.SURFACE_TAILS),
        ("shot_size", words.SHOT_SIZE_WORDS),
        ("shot_size", words.SHOT_SIZE_TAILS),
        ("angle", words.ANGLE_WORDS),
        ("angle", words.ANGLE_TAGS),
        ("sky", words.SKY_WORDS),
        ("style", words.STYLE_WORDS),
        ("floor", words.FLOOR_WORDS),
        ("camera", words.CAMERA_TAGS),
    ]
    for category, table in tables:
        for value, phrases in table.items():
            for phrase in phrases.all:
                yield phrase, category, value
                if category == "shape":
                    yield _plural(phrase), "shapes", value
                if category == "floor" and phrase.split()[0] in ("a", "the"):
                    yield phrase.split(maxsplit=1)[1], category, value
    for foggy, phrases in words.FOG_WORDS.items():
        for phrase in phrases.all:
            yield phrase, "fog", foggy
    for phrase in words.COMPANIONS.all:
        yield phrase, "companion", None
    for direction, phrases in words.DIRECTION_TAILS.items():
        for phrase in phrases.all:
            yield phrase, "direction", direction
    for kind, phrases in words.ACTION_WORDS.items():
        for phrase in phrases.all:
            for form in words.verb_forms(phrase):
                yield form, "action", kind
                if form.startswith(("be ", "being ")):
                    yield "are" + form[form.index(" ") :], "action", kind
    for move, phrases in words.CAMERA_WORDS.items():
        for phrase in phrases.all:
            for form in words.verb_forms(phrase):
                yield f"the camera {form}", "camera", move
                yield f"camera {form}", "camera", move
    for category, extras in _EXTRA.items():
        for extra, listed in extras.items():
            for phrase in listed.split("|"):
                if category == "action":
                    first, _, rest = phrase.partition(" ")
                    for form in words.verb_forms(f"*{first} {rest}".strip()):
                        yield form, category, extra
                else:
                    yield phrase, category, extra
    yield "do not move", "action", "still"
    yield "does not move", "action", "still"
    for phrase in ("that is {colour}", "which is {colour}", "is {colour}", "coloured {colour}", "in {colour}"):
        yield phrase, "tint", None


@cache
def _patterns() -> dict[str, list[_Pattern]]:
    """All patterns by their first token, longest first."""
    table: dict[str, list[_Pattern]] = {}
    known: set[tuple[tuple[str, ...], bool]] = set()
    for phrase, category, value in _all_phrases():
        tokens = tuple(part if part.startswith("{") else token for part in phrase.split() for token in _split(part))
        key = (tokens, category in ("surface", "size", "colour", "shape", "shapes"))
        if key not in known:
            known.add(key)
            table.setdefault(tokens[0], []).append(_Pattern(tokens, category, value))
    for patterns in table.values():
        patterns.sort(key=lambda pattern: -len(pattern.tokens))
    return table


def _split(part: str) -> list[str]:
    return [part] if part.startswith("{") else tokens_of(part)


class _Reader:
    """Reads one caption from left to right."""

    def __init__(self, text: str, hint: Sequence[ActorFacts]) -> None:
        self.tokens = tokens_of(text)
        self.hint = list(hint)
        self.mentions: list[_Mention] = []
        self.actions: list[SaidAction] = []
        self.scene: dict[str, object] = {}
        self.camera_move: str | None = None
        self.unknown: list[str] = []
        self.subjects: list[int] = []
        self.last: int | None = None  # the actor named last, also as somebody's partner
        self.then = False
        self.joined = False  # only "and" or a comma since the last subject

    def read(self) -> Reading:
        at = 0
        while at < len(self.tokens):
            at += self._step(at)
        actors = []
        for index, mention in enumerate(self.mentions):
            own = [action for action in self.actions if action.actor == index]
            single = own[0] if len(own) == 1 else None
            turned = [action.colour for action in own if action.colour is not None]
            other = self.mentions[single.other].colour if single and single.other is not None else None
            actors.append(
                ActorFacts(
                    colour=mention.colour,
                    shape=mention.shape,
                    size=mention.size,
                    surface=mention.surface,
                    action=single.kind if single else None,
                    other=other,
                    new_colour=turned[0] if len(turned) == 1 else None,
                    actions=tuple(action.kind for action in own),
                )
            )
        facts = Facts(actors=tuple(actors), **self.scene)  # type: ignore[arg-type]
        return Reading(facts, self.actions, self.camera_move, self.unknown)

    # -- matching -------------------------------------------------------------------------------------------------

    def _adjective(self, at: int, categories: tuple[str, ...]) -> tuple[int, _Pattern] | None:
        """The longest one-meaning phrase of these categories at token `at`."""
        if at >= len(self.tokens):
            return None
        for pattern in _patterns().get(self.tokens[at], ()):
            if pattern.category in categories and tuple(self.tokens[at : at + len(pattern.tokens)]) == pattern.tokens:
                return len(pattern.tokens), pattern
        return None

    def _noun(self, at: int) -> tuple[int, _Mention] | None:
        """An actor's name at token `at`: [article] {size | surface | colour} shape [surface tail]."""
        start, mention, marked = at, _Mention(), False
        while at < len(self.tokens) and self.tokens[at] in _DETERMINERS and self._adjective(at, ("surface",)) is None:
            mention.definite = self.tokens[at] in ("the", "this", "that", "same", "both")
            mention.count = _NUMBERS.get(self.tokens[at], mention.count)
            at, marked = at + 1, True
        while True:
            shape = self._adjective(at, ("shape", "shapes"))
            adjective = self._adjective(at, ("size", "surface", "colour"))
            if adjective is not None and (shape is None or adjective[0] >= shape[0]):
                length, pattern = adjective
                if pattern.category == "colour" and mention.colour is not None:
                    return None
                setattr(mention, pattern.category, pattern.value)
                at, marked = at + length, True
            elif shape is not None:
                if not marked and self.tokens[at] in _SHY_SHAPES:
                    return None
                mention.shape = str(shape[1].value)
                if shape[1].category == "shapes" and mention.count == 1:
                    mention.count = 2
                at += shape[0]
                break
            elif (
                marked
                and at < len(self.tokens)
                and self.tokens[at] in _GENERIC
                and self.tokens[at - 1] not in _DETERMINERS
            ):
                at += 1
                break
            elif marked and at < len(self.tokens) and self.tokens[at] in _NEUTRAL and at > start:
                at += 1
            else:
                return None
        tail = self._adjective(at, ("tail",))
        if tail is not None:
            mention.surface = str(tail[1].value)
            at += tail[0]
        return at - start, mention

    def _fits(self, pattern: _Pattern, at: int) -> tuple[int, list[_Mention | None], str | None] | None:
        """Whether `pattern` stands at token `at`: (tokens used, partners named, colour named)."""
        start = at
        found: list[_Mention | None] = []
        colour: str | None = None
        for part in pattern.tokens:
            if part == "{other}":
                noun = self._noun(at)
                if noun is not None:
                    at += noun[0]
                    found.append(noun[1])
                elif at < len(self.tokens) and self.tokens[at] in _PRONOUNS:
                    at += 1
                    found.append(None)
                else:
                    return None
            elif part in ("{colour}", "{own}"):
                named = self._adjective(at, ("colour",))
                if named is None:
                    return None
                at += named[0]
                colour = str(named[1].value) if part == "{colour}" else colour
            elif at < len(self.tokens) and self.tokens[at] == part:
                at += 1
            else:
                return None
        if pattern.category == "tint" and self._adjective(at, ("shape", "shapes")) is not None:
            return None
        return at - start, found, colour

    def _step(self, at: int) -> int:
        """Reads what stands at token `at`; returns how many tokens it took."""
        token = self.tokens[at]
        noun = self._noun(at)
        best: tuple[int, _Pattern, list[_Mention | None], str | None] | None = None
        for pattern in _patterns().get(token, ()):
            fit = self._fits(pattern, at)
            if fit is not None and (best is None or fit[0] > best[0]):
                best = (fit[0], pattern, fit[1], fit[2])
        if noun is not None and (best is None or noun[0] >= best[0]):
            self._name(noun[1])
            return noun[0]
        if best is not None:
            self._meaning(best[1], best[2], best[3])
            self.joined = False
            return best[0]
        if token == "they":
            self.subjects = list(range(len(self.mentions)))
        elif token in _SEQUENCE:
            self.then = True
        elif token not in _FILLERS and token not in _STOPS and token not in _DETERMINERS:
            self.unknown.append(token)
        self.joined = self.joined and token in ("and", ",")
        return 1

    # -- meaning --------------------------------------------------------------------------------------------------

    def _find(self, mention: _Mention) -> int:
        """The index of the actor that `mention` names, new where it is not known yet."""
        for index in reversed(range(len(self.mentions))):
            known = self.mentions[index]
            if mention.colour is not None:
                recoloured = [a.colour for a in self.actions if a.actor == index and a.colour is not None]
                same = known.colour == mention.colour or mention.definite and mention.colour in recoloured
                same = same and (mention.shape is None or known.shape is None or mention.shape == known.shape)
            else:
                same = mention.definite and mention.shape in (known.shape, None)
            if same:
                for name in ("shape", "size", "surface"):
                    if getattr(known, name) is None:
                        setattr(known, name, getattr(mention, name))
                return index
        if mention.definite or mention.colour is not None:
            for actor in self.hint:
                fits = mention.colour in (actor.colour, None) and (
                    mention.shape in (actor.shape, None) or actor.shape is None
                )
                taken = any(known.colour == actor.colour for known in self.mentions)
                if fits and not taken:
                    mention = replace(mention, colour=actor.colour, shape=mention.shape or actor.shape)
                    break
        self.mentions.append(replace(mention, count=1))
        return len(self.mentions) - 1

    def _subject(self, index: int) -> None:
        self.subjects = [*self.subjects, index] if self.joined and index not in self.subjects else [index]
        self.last, self.joined = index, True

    def _name(self, mention: _Mention) -> None:
        if mention.count == 1:
            self._subject(self._find(mention))
            return
        for _ in range(mention.count):
            self.mentions.append(replace(mention, count=1))
            self._subject(len(self.mentions) - 1)

    def _meaning(self, pattern: _Pattern, partners: list[_Mention | None], colour: str | None) -> None:
        category, value = pattern.category, pattern.value
        if category in SHOT_FACTS:
            if category == "camera":
                self.camera_move = self.camera_move or str(value)
                value = CAMERA_CLASS[str(value)]
            self.scene.setdefault(category, value)
        elif category == "action":
            self._act(str(value), partners, colour)
        elif category == "companion":
            for mention in partners:
                if mention is not None:
                    self.last = self._find(mention)
        elif category == "direction":
            if self.actions:
                self.actions[-1].direction = value if isinstance(value, int) else None
        elif category == "tint":
            if self.last is not None and self.mentions[self.last].colour is None:
                self.mentions[self.last].colour = colour
        elif category in ("size", "surface", "tail"):
            name = "surface" if category == "tail" else category
            if self.last is not None:
                setattr(self.mentions[self.last], name, value)
        else:  # a loose colour names nobody
            self.unknown.append(" ".join(pattern.tokens))

    def _act(self, kind: str, partners: list[_Mention | None], colour: str | None) -> None:
        if not self.subjects:
            self._subject(self._find(_Mention(definite=True)))
        if kind == "still" and all(any(a.actor == s for a in self.actions) for s in self.subjects):
            return
        other: int | None = None
        if partners:
            named = partners[0]
            other = (
                self._find(named)
                if named is not None
                else next((i for i in reversed(range(len(self.mentions))) if i not in self.subjects), None)
            )
            self.last = other
        for subject in self.subjects:
            if other == subject:
                continue
            before = [action.step for action in self.actions if action.actor == subject]
            now = self.actions[-1].step if self.actions else 0
            if before:
                step = max(before) + 1
            elif self.then and self.actions:
                step = max(action.step for action in self.actions) + 1
            else:
                step = now
            self.actions.append(SaidAction(subject, kind, step, other, colour))
        self.then = False


def read(caption: str, cast_hint: Sequence[ActorFacts] = ()) -> Reading:
    """Everything that `caption` says of one shot. `cast_hint` names actors that "the cube" or "it" may mean."""
    return _Reader(caption, cast_hint).read()


def facts_in(caption: str, cast_hint: Sequence[ActorFacts] = ()) -> Facts:
    """The facts that `caption` says (`None` = not said).

    Where an actor is said to do several things, `action` stays `None` and `actions` lists them in order.
    """
    return read(caption, cast_hint).facts


def _readings(script: Script) -> tuple[Reading, list[Reading]]:
    """Of the whole film's caption and style, and of every shot with what the whole film's caption adds."""
    whole = read(" . ".join(text for text in (script.caption, script.style) if text))
    cast = list(whole.facts.actors)
    shots: list[Reading] = []
    for shot in script.shots:
        reading = read(shot.caption, cast)
        if shot.camera is not None:
            asked = read(shot.camera)
            if asked.camera_move is None:
                asked = read(f"the camera {shot.camera}")
            said = {name: getattr(asked.facts, name) for name in SHOT_FACTS if getattr(asked.facts, name) is not None}
            reading.facts = replace(reading.facts, **said)
            reading.camera_move = asked.camera_move or reading.camera_move
            reading.unknown += asked.unknown
        facts = reading.facts
        inherited = {
            name: getattr(whole.facts, name)
            for name in ("floor", "sky", "style", "fog")
            if getattr(facts, name) is None
        }
        actors = tuple(_with_cast(actor, whole.facts) for actor in facts.actors)
        reading.facts = replace(facts, actors=actors, **inherited)
        cast += [actor for actor in actors if all(actor.colour != known.colour for known in cast)]
        shots.append(reading)
    return whole, shots


def _with_cast(actor: ActorFacts, whole: Facts) -> ActorFacts:
    known = whole.actor(actor.colour)
    if known is None or known.shape not in (actor.shape, None):
        return actor
    return replace(actor, size=actor.size or known.size, surface=actor.surface or known.surface)


def readings(script: Script) -> list[Reading]:
    """Everything that each shot of `script` says, with the set, style and looks that its film caption adds."""
    return _readings(script)[1]


def facts_of_script(script: Script) -> list[Facts]:
    """The facts that each shot of `script` asks for, with the set, style and looks that its film caption adds."""
    return [reading.facts for reading in _readings(script)[1]]


# -- films ------------------------------------------------------------------------------------------------------------

_AMOUNT = {"static": 0.0, "pan": 20.0, "tilt": 13.0, "zoom": 1.65, "dolly": 1.65, "orbit": 48.0}


def film_from_script(script: Script, seed: int = 0, seconds: float = 3.0) -> tuple[Film, list[str]]:
    """The film that `script` describes, and warnings that name what could not be understood or shown.

    Args:
        seed: chooses whatever the script leaves open. seconds: length of the shots that name none (> 0).
    """
    if not seconds > 0:
        raise ShotsError(f"seconds={seconds}: a shot must last longer than 0 s")
    whole, readings = _readings(script)
    rng = Random(f"script-{seed}")
    warnings = [f'film caption: "{word}" means nothing on the stage' for word in whole.unknown]
    for k, reading in enumerate(readings):
        warnings += [f'shot {k + 1}: "{word}" means nothing on the stage' for word in reading.unknown]
    cast = _Casting(rng, warnings)
    shown: list[list[Actor]] = []
    for k, reading in enumerate(readings):
        if reading.facts.actors:
            shown.append(cast.members(k, reading))
        elif k and shown[-1]:
            shown.append(shown[-1])  # "Close-up." keeps whom the shot before showed
        else:
            shown.append(cast.members(k, whole) if whole.facts.actors else [])
    place = _place(rng, [whole, *readings], [actor for actors in shown for actor in actors], warnings)
    shots = []
    for k, (reading, actors) in enumerate(zip(readings, shown, strict=True)):
        length = script.shots[k].seconds or seconds
        actors = [cast.final(actor) for actor in actors]
        shots.append(_shot(rng, k, reading, actors, length, warnings))
    return Film(place, tuple(cast.actors), tuple(shots), seed), warnings


class _Casting:
    """Gives every actor of a script its looks, the same over all shots."""

    def __init__(self, rng: Random, warnings: list[str]) -> None:
        self.rng, self.warnings = rng, warnings
        self.actors: list[Actor] = []
        self._open: dict[str, set[str]] = {}  # attributes of each actor that nobody has said yet

    def final(self, actor: Actor) -> Actor:
        """The actor as all shots together describe it."""
        return next(member for member in self.actors if member.name == actor.name)

    def members(self, shot: int, reading: Reading) -> list[Actor]:
        """The actors of one shot, in the order of the reading's facts."""
        found: list[Actor] = []
        said_colours = {facts.colour for facts in reading.facts.actors}
        for index, facts in enumerate(reading.facts.actors):
            here = {actor.colour for actor in found}
            known = next(
                (actor for actor in self.actors if actor.colour not in here and self._same(actor, facts, said_colours)),
                None,
            )
            kinds = {action.kind for action in reading.actions if action.actor == index}
            hidden_by = any(action.other == index and action.kind == "hide_behind" for action in reading.actions)
            if known is None:
                known = self._new(facts, here, said_colours, kinds, hidden_by, shot)
            else:
                known = self._refine(known, facts, shot)
            found.append(known)
        return found

    @staticmethod
    def _same(actor: Actor, facts: ActorFacts, said_colours: set[str | None]) -> bool:
        if facts.colour is None:
            return facts.shape in (actor.shape, None) and actor.colour not in said_colours
        return actor.colour == facts.colour and facts.shape in (actor.shape, None)

    def _new(
        self, facts: ActorFacts, here: set[str], said: set[str | None], kinds: set[str], hidden_by: bool, shot: int
    ) -> Actor:
        colour = facts.colour
        if colour is None or colour in here:
            free = [c for c in COLOURS if c not in here and c not in said and all(a.colour != c for a in self.actors)]
            chosen = self.rng.choice(free or [c for c in COLOURS if c not in here])
            if colour is not None:
                self.warnings.append(
                    f"shot {shot + 1}: two {colour} actors cannot be told apart, so one of them is {chosen}"
                )
            colour = chosen
        shape = facts.shape or self.rng.choice(SHAPES)
        surface = facts.surface or ("striped" if "spin" in kinds else "matte")
        size = facts.size or ("large" if hidden_by else "small" if "hide_behind" in kinds else "medium")
        name = f"{colour} {shape}"
        while any(actor.name == name for actor in self.actors):
            name += "'"
        self._open[name] = {key for key in ("size", "surface") if getattr(facts, key) is None}
        self.actors.append(Actor(name, shape, colour, size, surface))
        return self.actors[-1]

    def _refine(self, actor: Actor, facts: ActorFacts, shot: int) -> Actor:
        for key in ("size", "surface"):
            value = getattr(facts, key)
            if value is None or value == getattr(actor, key):
                self._open[actor.name] -= {key} if value is not None else set()
            elif key in self._open[actor.name]:
                changed = replace(actor, **{key: value})
                self.actors[self.actors.index(actor)] = changed
                self._open[actor.name].discard(key)
                actor = changed
            else:
                kept = getattr(actor, key)
                self.warnings.append(f"shot {shot + 1}: the {actor.name} was {kept} and stays so, not {value}")
        return actor


def _place(rng: Random, readings: Sequence[Reading], actors: Sequence[Actor], warnings: list[str]) -> Set:
    said: dict[str, object] = {}
    for k, reading in enumerate(readings):
        for name in ("floor", "sky", "style", "fog"):
            value = getattr(reading.facts, name)
            if value is None:
                continue
            if said.setdefault(name, value) != value:
                warnings.append(f"shot {k}: the film keeps one set, so its {name} stays {said[name]}, not {value}")
    colours = {actor.colour for actor in actors}
    floors = [floor for floor in FLOORS if (floor, "white") != ("snow", "white" if "white" in colours else "")]
    floors = [floor for floor in floors if not (floor == "grass" and "green" in colours)]
    skies = [sky for sky in SKIES if not (sky == "night" and "black" in colours)]
    drawn = (rng.choice(floors), rng.choice(skies), rng.uniform(-1, 1), rng.choice((-1.0, 1.0)) * rng.uniform(20, 60))
    return Set(
        floor=str(said.get("floor", drawn[0])),
        sky=str(said.get("sky", drawn[1])),
        fog=bool(said.get("fog", False)),
        style=str(said.get("style", "realistic")),
        tint=round(drawn[2], 3),
        sun=round(drawn[3], 2),
    )


def _shot(rng: Random, k: int, reading: Reading, actors: list[Actor], seconds: float, warnings: list[str]) -> ShotSpec:
    from shots.stage.writer import layout

    facts = reading.facts
    move = reading.camera_move or "static"
    size = facts.shot_size or ("wide" if len(actors) > 2 else "medium")
    camera = Camera(move, size, facts.angle or "eye-level", _AMOUNT[move.split("_")[0]])
    if not actors:
        return ShotSpec(seconds, camera, (), ())
    told = sorted((action for action in reading.actions if action.kind != "still"), key=lambda action: action.step)
    told = [
        action for action in told if action.actor < len(actors) and (action.other is None or action.other < len(actors))
    ]
    plan = [(actors[a.actor], a.kind, actors[a.other] if a.other is not None else None) for a in told]
    steps = sorted({action.step for action in told})
    for attempt in range(80):
        # The framing that was asked for is kept; one that was left open widens when the actors need room.
        view = replace(camera, size="wide") if attempt >= 40 and facts.shot_size is None else camera
        shot = layout(rng, actors, view, seconds, max(len(plan), 1), plan=plan)
        if shot is not None and all(
            said.direction in (None, made.direction) for said, made in zip(told, shot.actions, strict=True)
        ):
            break
    else:
        shot = _plain_layout(actors, camera, seconds, plan)
        warnings.append(f"shot {k + 1}: there is little room for all that happens, some of it may leave the picture")
    slot = seconds / max(len(steps), 1)
    actions = []
    for said, made in zip(told, shot.actions, strict=True):
        begin = slot * steps.index(said.step)
        start, end = begin + 0.1 * slot, begin + min(0.9 * slot, 0.1 * slot + 4.5)
        colour, direction = said.colour or made.colour, said.direction or made.direction
        actions.append(replace(made, start=round(start, 2), end=round(end, 2), colour=colour, direction=direction))
    return replace(shot, actions=tuple(actions))


def _plain_layout(
    actors: Sequence[Actor], camera: Camera, seconds: float, plan: Sequence[tuple[Actor, str, Actor | None]]
) -> ShotSpec:
    """All actors in a row, actions of ordinary size: for what no layout fits."""
    gap = {"wide": 1.9, "medium": 1.5, "close-up": 1.2}[camera.size]
    spots = {actor.name: (gap * (i - (len(actors) - 1) / 2), 0.0) for i, actor in enumerate(actors)}
    ordinary = {"grow": 1.6, "stretch": 1.6, "shrink": 0.55, "squash": 0.55, "jump": 0.7, "jump_over": 1.3}
    actions = []
    for actor, kind, other in plan:
        direction = 1
        if kind in PAIR_ACTIONS and other is not None:
            direction = 1 if spots[other.name][0] >= spots[actor.name][0] else -1
        actions.append(
            Action(
                actor.name,
                kind,
                0.0,
                seconds,
                ordinary.get(kind, 1.0),
                direction,
                other.name if other else None,
            )
        )
    places = tuple(Placement(name, round(x, 3), z, 20.0) for name, (x, z) in spots.items())
    return ShotSpec(seconds, camera, places, tuple(actions))
