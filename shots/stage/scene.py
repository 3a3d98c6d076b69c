"""The vocabulary of the film set: what a film on the stage can hold, as plain frozen dataclasses.

Notable choices:

- One `Film` is one set (floor, sky, light, style) with one cast; each `ShotSpec` picks actors, a camera and timed
  actions.
- Units: world units (an actor of medium size is one unit tall), seconds from the start of the shot, degrees.
- World axes as seen by the default camera: +x right, +y up, +z toward the viewer. "Left" is the picture's left.
- Within a shot no two actors share a colour, so a colour names an actor and every fact about it can be asked by colour.
- `STAGE_VERSION` and the golden hashes in the tests freeze what is drawn; after weights ship, only additions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

STAGE_VERSION = 1

SHAPES = ("sphere", "cube", "cylinder", "cone", "torus", "capsule")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "black")
SIZES = ("small", "medium", "large")
SURFACES = ("matte", "shiny", "striped")

# Linear-light albedo of each colour name.
COLOUR_RGB: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.035, 0.03),
    "orange": (0.95, 0.27, 0.012),
    "yellow": (0.92, 0.72, 0.03),
    "green": (0.04, 0.42, 0.06),
    "cyan": (0.03, 0.62, 0.68),
    "blue": (0.03, 0.10, 0.75),
    "purple": (0.24, 0.03, 0.55),
    "pink": (0.95, 0.32, 0.52),
    "white": (0.88, 0.88, 0.88),
    "black": (0.012, 0.012, 0.014),
}
SIZE_SCALE: dict[str, float] = {"small": 0.72, "medium": 1.0, "large": 1.38}

SOLO_ACTIONS = (
    "still",
    "move_left",
    "move_right",
    "move_toward",
    "move_away",
    "jump",
    "spin",
    "grow",
    "shrink",
    "stretch",
    "squash",
    "fall",
    "change_colour",
)
PAIR_ACTIONS = ("circle", "push", "jump_over", "hide_behind")
ACTIONS = SOLO_ACTIONS + PAIR_ACTIONS

CAMERA_MOVES = (
    "static",
    "pan_left",
    "pan_right",
    "tilt_up",
    "tilt_down",
    "zoom_in",
    "zoom_out",
    "dolly_in",
    "dolly_out",
    "orbit_left",
    "orbit_right",
)
SHOT_SIZES = ("wide", "medium", "close-up")
ANGLES = ("eye-level", "low", "high")

FLOORS = ("checker", "tiles", "planks", "sand", "grass", "snow", "concrete")
SKIES = ("clear", "cloudy", "sunset", "night", "studio")
STYLES = ("realistic", "toon", "neon")
TRANSITIONS = ("cut", "dissolve", "fade")


@dataclass(frozen=True)
class Actor:
    """One member of the cast. `name` is unique in the film (its first colour and shape by default)."""

    name: str
    shape: str
    colour: str
    size: str = "medium"
    surface: str = "matte"


@dataclass(frozen=True)
class Action:
    """What one actor does between `start` and `end` (seconds in the shot).

    `amount` is the action's size in its own unit: distance (move_*, push), height (jump, fall), turns (spin, circle),
    final scale factor (grow, shrink, stretch, squash); unused for the others. `colour` is the new colour of
    `change_colour`; `other` names the second actor of the pair actions. `direction` (+1 right / +1 counter-clockwise
    seen from above, -1 the other way) serves spin, circle, push and jump_over.
    """

    actor: str
    kind: str
    start: float
    end: float
    amount: float = 1.0
    direction: int = 1
    other: str | None = None
    colour: str | None = None


@dataclass(frozen=True)
class Camera:
    """Where the shot is seen from. `amount` is degrees (pan, tilt, orbit), or the ratio of picture scales (zoom,
    dolly)."""

    move: str = "static"
    size: str = "medium"
    angle: str = "eye-level"
    amount: float = 0.0
    focus: tuple[float, float, float] = (0.0, 0.5, 0.0)


@dataclass(frozen=True)
class Placement:
    """Start of one actor in one shot: floor position (x, z), heading in degrees, scale factor beside its size."""

    actor: str
    x: float
    z: float
    heading: float = 0.0


@dataclass(frozen=True)
class Set:
    """Floor, sky, light and drawing style of the whole film."""

    floor: str = "checker"
    sky: str = "clear"
    fog: bool = False
    style: str = "realistic"
    tint: float = 0.0  # in [-1, 1]: varies the floor's colour without changing its name
    sun: float = 35.0  # degrees to the right of the camera axis from which the light comes


@dataclass(frozen=True)
class ShotSpec:
    """One shot: seconds, camera, who stands where, who does what, and how the shot begins (`transition`)."""

    seconds: float
    camera: Camera
    placements: tuple[Placement, ...]
    actions: tuple[Action, ...]
    transition: str = "cut"
    transition_seconds: float = 0.0


@dataclass(frozen=True)
class Film:
    """A whole film on the stage: its set, its cast and its shots."""

    set: Set
    cast: tuple[Actor, ...]
    shots: tuple[ShotSpec, ...]
    seed: int = 0
    notes: dict[str, str] = field(default_factory=dict)

    def actor(self, name: str) -> Actor:
        """The cast member called `name`; `KeyError` names it where there is none."""
        for actor in self.cast:
            if actor.name == name:
                return actor
        raise KeyError(name)

    @property
    def seconds(self) -> float:
        return sum(shot.seconds for shot in self.shots)
