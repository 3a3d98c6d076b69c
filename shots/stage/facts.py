"""What holds in one shot, as plain data that the grammar, the parser and the judge exchange.

Notable choices:

- `None` always means "not said" (from a caption) or "not to be told by a viewer" (from a film): it is never asked or
  scored.
- An actor is known by its colour, which is unique within a shot. Only captions may leave the colour open
  (`colour=None`).
- `action` is the core action, the longest one; `actions` holds all of them in order. An actor that does nothing is
  "still". An actor that another one pushes moves without acting, so its `action` is `None`.
- Zooming and dollying look alike to a viewer who is not told which, so both are the camera class "in" or "out".
- Imports nothing but the vocabulary: the judge reads facts without torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from shots.stage.scene import Action, Film

CAMERA_CLASSES = (
    "static",
    "pan_left",
    "pan_right",
    "tilt_up",
    "tilt_down",
    "in",
    "out",
    "orbit_left",
    "orbit_right",
)
CAMERA_CLASS: dict[str, str] = {
    "static": "static",
    "pan_left": "pan_left",
    "pan_right": "pan_right",
    "tilt_up": "tilt_up",
    "tilt_down": "tilt_down",
    "zoom_in": "in",
    "dolly_in": "in",
    "zoom_out": "out",
    "dolly_out": "out",
    "orbit_left": "orbit_left",
    "orbit_right": "orbit_right",
}
SHOT_FACTS = ("camera", "shot_size", "angle", "floor", "sky", "style", "fog")
ACTOR_FACTS = ("shape", "size", "surface", "action", "other", "new_colour")


class Observed(Protocol):
    """What a viewer can tell in each shot (`shots.stage.observe` computes it from the pixels); shots count from 0."""

    def sees_actor(self, shot: int, actor: str) -> bool: ...

    def sees_surface(self, shot: int, actor: str) -> bool: ...

    def sees_size(self, shot: int, actor: str) -> bool: ...

    def sees_action(self, shot: int, index: int) -> bool: ...

    def sees_still(self, shot: int, actor: str) -> bool: ...

    def sees_camera(self, shot: int) -> bool: ...

    def sees_set(self, shot: int, fact: str) -> bool: ...


@dataclass(frozen=True)
class ActorFacts:
    """What is known of one actor in one shot. `other` is the colour of the second actor of a pair action, `new_colour`
    the colour its only `change_colour` ends in, `actions` every action in order (`action` is the core one of them)."""

    colour: str | None
    shape: str | None = None
    size: str | None = None
    surface: str | None = None
    action: str | None = None
    other: str | None = None
    new_colour: str | None = None
    actions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What is known of one shot: its actors and, for each name in `SHOT_FACTS`, a value or `None`."""

    actors: tuple[ActorFacts, ...] = ()
    camera: str | None = None
    shot_size: str | None = None
    angle: str | None = None
    floor: str | None = None
    sky: str | None = None
    style: str | None = None
    fog: bool | None = None

    def actor(self, colour: str | None) -> ActorFacts | None:
        """The facts of the actor of that colour, or `None` where there is none."""
        return next((actor for actor in self.actors if actor.colour == colour), None)

    def pairs(self) -> dict[str, str | bool]:
        """Every known fact under a flat name: `"camera"`, `"red.shape"`, `"red.action"` ... (the colour names the
        actor)."""
        known: dict[str, str | bool] = {}
        for name in SHOT_FACTS:
            value = getattr(self, name)
            if value is not None:
                known[name] = value
        for actor in self.actors:
            for name in ACTOR_FACTS:
                value = getattr(actor, name)
                if value is not None:
                    known[f"{actor.colour}.{name}"] = value
        return known

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data; what is not known is left out."""
        data: dict[str, Any] = {name: getattr(self, name) for name in SHOT_FACTS if getattr(self, name) is not None}
        data["actors"] = [
            {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in asdict(actor).items()
                if value is not None and value != ()
            }
            for actor in self.actors
        ]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Facts:
        """The inverse of `to_dict`; unknown keys are a `TypeError`, as for any dataclass."""
        actors = tuple(
            ActorFacts(**{"colour": None, **actor, "actions": tuple(actor.get("actions", ()))})
            for actor in data.get("actors", ())
        )
        return cls(actors=actors, **{key: value for key, value in data.items() if key != "actors"})

    def conflicts(self, other: Facts) -> list[str]:
        """Names of the facts known on both sides with different values (an actor missing in `other` is one, too)."""
        mine, theirs = self.pairs(), other.pairs()
        wrong = [name for name, value in mine.items() if name in theirs and theirs[name] != value]
        present = {actor.colour for actor in other.actors}
        return wrong + [f"{actor.colour}.missing" for actor in self.actors if actor.colour not in present]


def core_action(actions: list[Action]) -> Action | None:
    """The longest of an actor's actions in a shot (the first of equals), or `None` where it has none."""
    return max(actions, key=lambda action: round(action.end - action.start, 3), default=None)


def facts_of(film: Film, shot: int, observations: Observed | None = None) -> Facts:
    """All facts that hold in shot number `shot` (from 0) of `film` and, with `observations`, that a viewer can tell."""
    spec = film.shots[shot]
    pushed = {action.other for action in spec.actions if action.kind == "push"}
    actors = []
    for placement in spec.placements:
        actor = film.actor(placement.actor)
        name = actor.name
        if observations is not None and not observations.sees_actor(shot, name):
            continue
        own = [
            (index, action)
            for index, action in enumerate(spec.actions)
            if action.actor == name and action.kind != "still"
        ]
        if observations is not None:
            told = [action for index, action in own if observations.sees_action(shot, index)]
        else:
            told = [action for _, action in own]
        core = core_action([action for _, action in own])
        kind: str | None
        other = new_colour = None
        if core is None:
            clear = observations is None or observations.sees_still(shot, name)
            kind = "still" if clear and name not in pushed else None
        elif core in told:
            kind, new_colour = core.kind, core.colour
            if core.other is not None and (observations is None or observations.sees_actor(shot, core.other)):
                other = film.actor(core.other).colour
        else:
            kind = None
        size_told = observations is None or observations.sees_size(shot, name)
        surface_told = observations is None or observations.sees_surface(shot, name)
        actors.append(
            ActorFacts(
                colour=actor.colour,
                shape=actor.shape,
                size=actor.size if size_told else None,
                surface=actor.surface if surface_told else None,
                action=kind,
                other=other,
                new_colour=new_colour,
                actions=tuple(action.kind for action in sorted(told, key=lambda action: action.start)),
            )
        )
    camera_told = observations is None or observations.sees_camera(shot)
    scene: dict[str, Any] = {
        "shot_size": spec.camera.size,
        "angle": spec.camera.angle,
        "floor": film.set.floor,
        "sky": film.set.sky,
        "style": film.set.style,
        "fog": film.set.fog,
    }
    if observations is not None:
        scene = {name: value for name, value in scene.items() if observations.sees_set(shot, name)}
    return Facts(actors=tuple(actors), camera=CAMERA_CLASS[spec.camera.move] if camera_told else None, **scene)
