"""Ground truth of a rendered film as plain JSON: shots with captions and tags, events with times, questions with
answers.

Notable choices:

- Times are seconds of the video. A shot starts at its first frame and ends where the next one starts.
- Every action is an event; `observable` says whether a viewer can tell it. Questions use observable facts only, and
  name an actor only by what tells it from all others that are seen.
- Each question has its evidence: the moment (`start`, `end`) and the shot (from 1) that answer it.
"""

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from shots.stage import words
from shots.stage.facts import Facts, Observed, facts_of
from shots.stage.scene import (
    ACTIONS,
    COLOURS,
    FLOORS,
    PAIR_ACTIONS,
    SHAPES,
    SIZES,
    SKIES,
    STYLES,
    SURFACES,
    Action,
    Film,
)

if TYPE_CHECKING:
    from shots.stage.render import Rendered

_CAMERA_NAMES = {
    "static": "it stays still",
    "pan_left": "it pans left",
    "pan_right": "it pans right",
    "tilt_up": "it tilts up",
    "tilt_down": "it tilts down",
    "in": "it moves or zooms in",
    "out": "it moves or zooms out",
    "orbit_left": "it orbits to the left",
    "orbit_right": "it orbits to the right",
}
_CLEAR_GAP = 0.4  # seconds between two events before a viewer is asked for their order


def annotations(film: Film, rendered: "Rendered", observations: Observed, rng: Random) -> dict[str, Any]:
    """All annotations of `film` as rendered: `fps`, `duration`, `caption`, `shots`, `events` and `qa` (DESIGN 3)."""
    edges = [index / rendered.fps for index in (0, *rendered.boundaries, len(rendered.times))]
    shots = []
    for k, spec in enumerate(film.shots):
        shots.append(
            {
                "start": round(edges[k], 3),
                "end": round(edges[k + 1], 3),
                "caption": words.describe_shot(film, k, rng, observations),
                "camera": spec.camera.move,
                "transition": spec.transition,
                "tags": facts_of(film, k, observations).to_dict(),
            }
        )
    events = []
    for k, spec in enumerate(film.shots):
        for index, action in enumerate(spec.actions):
            events.append(
                {
                    "query": words.event_query(film, k, action, rng),
                    "actor": action.actor,
                    "action": action.kind,
                    "shot": k + 1,
                    "start": round(min(edges[k] + action.start, edges[k + 1]), 3),
                    "end": round(min(edges[k] + action.end, edges[k + 1]), 3),
                    "observable": bool(observations.sees_action(k, index)),
                }
            )
    return {
        "fps": rendered.fps,
        "duration": round(edges[-1], 3),
        "seed": film.seed,
        "caption": words.describe_film(film, rng, observations=observations),
        "shots": shots,
        "events": events,
        "qa": questions(film, edges, observations, rng),
    }


def questions(film: Film, edges: Sequence[float], observations: Observed, rng: Random) -> list[dict[str, Any]]:
    """Every question the film answers. `edges` are the starts of all shots and the film's end (seconds)."""
    asker = _Asker(film, edges, observations, rng)
    for k in range(len(film.shots)):
        asker.shot(k)
    asker.whole_film()
    return asker.asked


class _Asker:
    def __init__(self, film: Film, edges: Sequence[float], observations: Observed, rng: Random) -> None:
        self.film, self.edges, self.seen, self.rng = film, edges, observations, rng
        self.facts: list[Facts] = [facts_of(film, k, observations) for k in range(len(film.shots))]
        self.asked: list[dict[str, Any]] = []

    def ask(
        self,
        kind: str,
        shot: int,
        question: str,
        answer: str,
        others: Sequence[str],
        moment: tuple[float, float] | None = None,
    ) -> None:
        """Adds a question with up to three wrong options drawn from `others`."""
        wrong = sorted({option for option in others if option != answer})
        options = [answer, *self.rng.sample(wrong, min(3, len(wrong)))]
        self.rng.shuffle(options)
        start, end = moment or (self.edges[shot], self.edges[shot + 1])
        where = f"In shot {shot + 1}, " if len(self.film.shots) > 1 and moment is None else ""
        text = where + question if where else words.capitalised(question)
        self.asked.append(
            {
                "question": text,
                "options": options,
                "answer": answer,
                "kind": kind,
                "shot": shot + 1,
                "start": round(start, 3),
                "end": round(end, 3),
            }
        )

    def _verb(self, action: Action, form: int = 0) -> str:
        """The canonical words for an action, its partner named by colour and shape."""
        phrase = words.verb_forms(words.ACTION_WORDS[action.kind].train[0])[form]
        if action.other is not None:
            other = self.film.actor(action.other)
            phrase = phrase.replace("{other}", f"the {other.colour} {other.shape}")
        return phrase.replace("{colour}", action.colour or "")

    def _told(self, k: int) -> list[tuple[int, Action]]:
        return [
            (index, action)
            for index, action in enumerate(self.film.shots[k].actions)
            if action.kind != "still" and self.seen.sees_action(k, index)
        ]

    def shot(self, k: int) -> None:
        facts, spec = self.facts[k], self.film.shots[k]
        shapes = [actor.shape for actor in facts.actors]
        if len(facts.actors) == len(spec.placements):
            self.ask("count", k, "how many actors are there?", str(len(facts.actors)), ["1", "2", "3", "4", "5"])
        for actor in facts.actors:
            name = f"the {actor.colour} {actor.shape}"
            recoloured = "change_colour" in {
                a.kind for a in spec.actions if self.film.actor(a.actor).colour == actor.colour
            }
            if shapes.count(actor.shape) == 1 and not recoloured and actor.colour and actor.shape:
                self.ask("colour", k, f"what colour is the {actor.shape}?", actor.colour, COLOURS)
            if actor.shape is not None:
                self.ask("shape", k, f"what shape is the {actor.colour} actor?", actor.shape, SHAPES)
            if actor.size is not None:
                self.ask("size", k, f"how large is {name}?", actor.size, SIZES)
            if actor.surface is not None:
                self.ask("surface", k, f"what is the surface of {name} like?", actor.surface, SURFACES)
            self._doings(k, name, actor.colour)
        if facts.camera is not None:
            self.ask(
                "camera", k, "how does the camera move?", _CAMERA_NAMES[facts.camera], list(_CAMERA_NAMES.values())
            )
        tables = {"floor": FLOORS, "sky": SKIES, "style": STYLES}
        texts = {"floor": "what is the floor?", "sky": "what is the sky like?", "style": "what is the picture's style?"}
        for fact, options in tables.items():
            value = getattr(facts, fact)
            if value is not None and k == 0:
                self.ask(fact, k, texts[fact], value, options)
        self._order(k)

    def _doings(self, k: int, name: str, colour: str | None) -> None:
        """What one actor does, when, and what comes first."""
        spec = self.film.shots[k]
        own = [
            (i, a)
            for i, a in enumerate(spec.actions)
            if self.film.actor(a.actor).colour == colour and a.kind != "still"
        ]
        told = sorted(
            (action for index, action in self._told(k) if (index, action) in own), key=lambda action: action.start
        )
        options = [
            words.verb_forms(words.ACTION_WORDS[kind].train[0])[0] for kind in ACTIONS if kind not in PAIR_ACTIONS
        ]
        options = [option.replace("{colour}", "another colour") for option in options]
        if len(told) != len(own) or not own:
            actor = self.facts[k].actor(colour)
            if not own and actor is not None and actor.action == "still":
                self.ask("action", k, f"what does {name} do?", "stands still", options)
            return
        kinds = {action.kind for action in told}
        for action in told:
            moment = (self.edges[k] + action.start, self.edges[k] + action.end)
            if len(told) == 1:
                wrong = [o for o in options if not (action.kind == "change_colour" and "another colour" in o)]
                wrong = [
                    o
                    for o in wrong
                    if not (action.kind in PAIR_ACTIONS and o in ("jumps", "moves left", "moves right"))
                ]
                self.ask("action", k, f"what does {name} do?", self._verb(action), wrong)
            if action.colour is not None and [a.kind for a in told].count("change_colour") == 1:
                self.ask("new_colour", k, f"what colour does {name} turn?", action.colour, COLOURS)
            if self._unique(action):
                self._when(k, name, action, moment)
        if len(told) > 1 and len(kinds) == len(told):
            verbs = [self._verb(action) for action in told]
            self.ask("first", k, f"what does {name} do first?", verbs[0], verbs[1:] + options)
            self.ask("last", k, f"what does {name} do last?", verbs[-1], verbs[:-1] + options)

    def _unique(self, action: Action) -> bool:
        """Whether this actor does this only once in the film, so that "when" has one answer."""
        return (
            sum(a.actor == action.actor and a.kind == action.kind for shot in self.film.shots for a in shot.actions)
            == 1
        )

    def _when(self, k: int, name: str, action: Action, moment: tuple[float, float]) -> None:
        end = self.edges[-1]
        width = moment[1] - moment[0]
        right = f"from {moment[0]:.1f} s to {moment[1]:.1f} s"
        wrong = []
        for _ in range(12):
            start = self.rng.uniform(0, max(end - width, 0))
            overlap = min(start + width, moment[1]) - max(start, moment[0])
            if overlap < 0.3 * width:
                wrong.append(f"from {start:.1f} s to {start + width:.1f} s")
        if len(wrong) >= 2:
            self.ask("when", k, f"when does {name} {self._verb(action, 2)}?", right, wrong, moment)

    def _order(self, k: int) -> None:
        """Who acts first, and before or after, between two actors."""
        told = self._told(k)
        for index, (_, one) in enumerate(told):
            for _, two in told[index + 1 :]:
                apart = abs(one.start - two.start) > _CLEAR_GAP and (one.end <= two.start or two.end <= one.start)
                if one.actor == two.actor or not apart or not (self._unique(one) and self._unique(two)):
                    continue
                first, second = (one, two) if one.start < two.start else (two, one)
                names = {
                    a.actor: f"the {self.film.actor(a.actor).colour} {self.film.actor(a.actor).shape}"
                    for a in (one, two)
                }
                self.ask("who_first", k, "who acts first?", names[first.actor], [names[second.actor]])
                asked, told_of = self.rng.sample([first, second], 2)
                done = f"{names[told_of.actor]} {self._verb(told_of)}"
                self.ask(
                    "before_after",
                    k,
                    f"does {names[asked.actor]} {self._verb(asked, 2)} before or after {done}?",
                    "before" if asked is first else "after",
                    ["before", "after"],
                )

    def whole_film(self) -> None:
        """Questions on all shots together: who does something, and how many shots there are."""
        last = len(self.film.shots) - 1
        span = (self.edges[0], self.edges[-1])
        if last > 0 and all(shot.transition == "cut" for shot in self.film.shots):
            self.ask(
                "shots", last, "how many shots does the film have?", str(last + 1), [str(n) for n in range(1, 7)], span
            )
        everyone = {
            actor.name: f"the {actor.colour} {actor.shape}"
            for actor in self.film.cast
            if any(self.seen.sees_actor(k, actor.name) for k in range(last + 1))
        }
        absent = [f"the {colour} {shape}" for colour in COLOURS for shape in SHAPES]
        absent = [name for name in absent if all(name.split()[1] != actor.colour for actor in self.film.cast)]
        every = [action for shot in self.film.shots for action in shot.actions]
        for k in range(last + 1):
            for _, action in self._told(k):
                alone = sum(other.kind == action.kind for other in every) == 1
                if alone and action.actor in everyone:  # a short deed may be clear, and who did it not
                    others = [name for actor, name in everyone.items() if actor != action.actor]
                    moment = (self.edges[k] + action.start, self.edges[k] + action.end)
                    wrong = others if len(others) > 2 else others + self.rng.sample(absent, 3 - len(others))
                    self.ask("who", k, f"who {self._verb(action)}?", everyone[action.actor], wrong, moment)
