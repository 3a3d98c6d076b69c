"""Writes random films: who stands where, does what, seen how. Deterministic from a seed, on plain Python numbers.

Notable choices:

- Layouts are made by construction and checked by a cheap model of the paths (positions at a few moments, discs on the
  floor): actors start apart, stay in the picture, and only pair actions bring them together.
- A camera move never meets an action that a viewer could not tell from it (no zoom while an actor grows or comes
  nearer).
- `split="train"` never shows a held-out combination (`shots.stage.heldout`); `split="heldout"` always shows one.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

from .heldout import is_heldout_action, is_heldout_look
from .motion import CAMERA_DISTANCE, actor_radius
from .scene import (
    ANGLES,
    CAMERA_MOVES,
    COLOURS,
    FLOORS,
    PAIR_ACTIONS,
    SHAPES,
    SHOT_SIZES,
    SIZE_SCALE,
    SIZES,
    SKIES,
    SOLO_ACTIONS,
    STYLES,
    SURFACES,
    Action,
    Actor,
    Camera,
    Film,
    Placement,
    Set,
    ShotSpec,
)

_HALF_VIEW = math.tan(math.radians(19.0))
_MOMENTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
# Actions that read the same as a moving camera, by the camera's kind.
_CLASH = {
    "zoom": {"grow", "shrink", "move_toward", "move_away", "hide_behind"},
    "dolly": {"grow", "shrink", "move_toward", "move_away", "hide_behind"},
    "pan": {"move_left", "move_right", "push", "jump_over", "circle"},
    "tilt": {"jump", "fall", "stretch", "squash", "grow", "shrink"},
    "orbit": {"spin", "circle", "move_left", "move_right", "push", "jump_over", "hide_behind"},
    "static": set(),
}
_ACTION_WEIGHT = {"still": 0.7, "fall": 0.8, "hide_behind": 0.6, "circle": 0.8}


def write_film(
    seed: int,
    *,
    shots: int = 1,
    seconds: float = 3.0,
    actors: int | None = None,
    split: str = "train",
    transitions: bool = False,
    actions_per_shot: int | None = None,
) -> Film:
    """A random film of `shots` shots of `seconds` each.

    Args:
        actors: cast size 1..3, drawn (56 % one, 34 % two, 10 % three) when None.
        split: "train", "heldout" (the first actor's look or its action is a held-out combination) or "any".
        transitions: some shots begin with a dissolve or a fade instead of a cut.
        actions_per_shot: actions of the leading actors in a shot; by default one per 3.5 s, at least one.
    """
    rng = random.Random(f"stage-{seed}")
    for _ in range(200):
        count = actors if actors is not None else rng.choices((1, 2, 3), (56, 34, 10))[0]
        place = _write_set(rng)
        cast = _write_cast(rng, count, place, split)
        made: list[ShotSpec] = []
        for k in range(shots):
            shot = _write_shot(rng, cast, place, seconds, split, actions_per_shot, multi=shots > 1)
            if shot is None:
                break
            if transitions and k and rng.random() < 0.5:
                kind = rng.choice(("dissolve", "fade"))
                shot = replace(shot, transition=kind, transition_seconds=round(rng.uniform(0.4, 0.9), 2))
            made.append(shot)
        if len(made) == shots:
            film = Film(place, cast, tuple(made), seed)
            if split == "any" or film_is_heldout(film) == (split == "heldout"):
                return film
    raise RuntimeError(f"no film could be laid out for seed {seed}, shots={shots}, actors={actors}, split={split!r}")


def film_is_heldout(film: Film) -> bool:
    """Whether any actor's look, or any action of an actor in any shot, is a held-out combination."""
    if any(is_heldout_look(a.shape, a.colour) for a in film.cast):
        return True
    return any(is_heldout_action(film.actor(a.actor).shape, a.kind) for shot in film.shots for a in shot.actions)


def _write_set(rng: random.Random) -> Set:
    style = rng.choices(STYLES, (0.76, 0.12, 0.12))[0]
    sky = rng.choice(SKIES)
    fog = style == "realistic" and rng.random() < 0.1
    sun = rng.choice((-1.0, 1.0)) * rng.uniform(20.0, 60.0)
    return Set(rng.choice(FLOORS), sky, fog, style, round(rng.uniform(-1, 1), 3), round(sun, 2))


def _write_cast(rng: random.Random, count: int, place: Set, split: str) -> tuple[Actor, ...]:
    banned: set[str] = {"black"} if place.style == "neon" or place.sky == "night" else set()
    banned |= {"snow": {"white"}, "grass": {"green"}}.get(place.floor, set())
    colours = rng.sample([c for c in COLOURS if c not in banned], count)
    cast: list[Actor] = []
    for colour in colours:
        shape = rng.choice(SHAPES)
        if split == "train":
            shape = rng.choice([s for s in SHAPES if not is_heldout_look(s, colour)])
        elif split == "heldout" and not cast and rng.random() < 0.7:
            shape = rng.choice([s for s in SHAPES if is_heldout_look(s, colour)] or [shape])
        size = rng.choices(SIZES, (0.25, 0.5, 0.25))[0]
        surface = rng.choices(SURFACES, (0.5, 0.25, 0.25))[0]
        cast.append(Actor(f"{colour} {shape}", shape, colour, size, surface))
    return tuple(cast)


def _write_camera(rng: random.Random, small: bool) -> Camera:
    move = rng.choices(CAMERA_MOVES, [12.0] + [1.0] * (len(CAMERA_MOVES) - 1))[0]
    size = rng.choices(SHOT_SIZES, (0.0 if small else 0.2, 0.55, 0.25))[0]
    angle = rng.choices(ANGLES, (0.6, 0.2, 0.2))[0]
    amount = {
        "pan": rng.uniform(17, 24),
        "tilt": rng.uniform(11, 15),
        "zoom": rng.uniform(1.5, 1.8),
        "dolly": rng.uniform(1.5, 1.8),
        "orbit": rng.uniform(40, 60),
        "static": 0.0,
    }[move.split("_")[0]]
    return Camera(move, size, angle, round(amount, 2))


def _write_shot(
    rng: random.Random,
    cast: tuple[Actor, ...],
    place: Set,
    seconds: float,
    split: str,
    actions: int | None,
    multi: bool,
) -> ShotSpec | None:
    for _ in range(40):
        camera = _write_camera(rng, any(a.size == "small" for a in cast))
        members = list(cast)
        if multi and len(cast) > 1 and rng.random() < 0.25:  # now and then a shot of one of them alone
            members = [rng.choice(members)]
        wanted = actions if actions is not None else max(1, int(seconds // 3.5))
        shot = layout(rng, members, camera, seconds, wanted, split)
        if shot is not None:
            return shot
    return None


def layout(
    rng: random.Random,
    members: list[Actor],
    camera: Camera,
    seconds: float,
    wanted: int,
    split: str = "any",
    plan: list[tuple[Actor, str, Actor | None]] | None = None,
) -> ShotSpec | None:
    """Places `members` and times `wanted` actions one after another (or those of `plan`: actor, kind, other); None if
    it does not fit."""
    reach = CAMERA_DISTANCE[camera.size] * _HALF_VIEW
    clash = _CLASH[camera.move.split("_")[0]]
    spots = _spots(rng, members, reach)
    if spots is None:
        return None
    if plan is None:
        plan = []
        for _ in range(wanted):
            actor = members[0] if wanted == 1 and rng.random() < 0.7 else rng.choice(members)
            step = _choose(rng, actor, members, camera, clash, split)
            if step is None:
                return None
            plan.append(step)
        if (
            wanted == 1 and len(members) > 1 and plan[0][2] is None and rng.random() < 0.3
        ):  # a second one acts at the same time
            rest = [m for m in members if m is not plan[0][0]]
            step = _choose(rng, rng.choice(rest), members, camera, clash, split)
            if step is not None and step[2] is None:
                plan.append(step)
    slot = seconds / max(wanted, 1)
    timed: list[Action] = []
    state = {
        name: [x, z, SIZE_SCALE[next(m for m in members if m.name == name).size]] for name, (x, z) in spots.items()
    }
    for i, (actor, kind, other) in enumerate(plan):
        begin = slot * min(i, wanted - 1)
        start = begin + rng.uniform(0.05, 0.18) * slot
        end = min(begin + slot * rng.uniform(0.80, 0.96), start + 4.5)
        action = _perform(
            rng,
            actor,
            kind,
            other,
            round(start, 2),
            round(end, 2),
            state,
            reach,
            first=i == 0,
            spots=spots,
            members=members,
        )
        if action is None:
            return None
        timed.append(action)
    if not _in_view(members, timed, spots, camera, reach):
        return None
    heading = {m.name: rng.uniform(-25, 25) + (30.0 if m.shape == "cube" else 0.0) for m in members}
    places = tuple(
        Placement(m.name, round(spots[m.name][0], 3), round(spots[m.name][1], 3), round(heading[m.name], 1))
        for m in members
    )
    return ShotSpec(seconds, camera, places, tuple(timed))


def _spots(rng: random.Random, members: list[Actor], reach: float) -> dict[str, tuple[float, float]] | None:
    """Start positions (x, z) that lie apart and in the picture."""
    for _ in range(30):
        spots: dict[str, tuple[float, float]] = {}
        for m in members:
            r = actor_radius(m.shape, m.size)
            z = rng.uniform(-1.0, 0.6)
            limit = max((reach - 0.3 * z) * 0.86 - r, 0.1)
            spots[m.name] = (rng.uniform(-limit, limit), z)
        pairs = [(a, b) for i, a in enumerate(members) for b in members[i + 1 :]]
        if all(_apart(spots[a.name], spots[b.name], a, b) for a, b in pairs):
            return spots
    return None


def _apart(p: tuple[float, float], q: tuple[float, float], a: Actor, b: Actor, gap: float = 0.12) -> bool:
    near = actor_radius(a.shape, a.size) + actor_radius(b.shape, b.size)
    # Beside each other in the picture, or clearly in front: nobody starts hidden.
    return abs(p[0] - q[0]) > near * 0.85 and math.dist(p, q) > near + gap


def _choose(
    rng: random.Random, actor: Actor, members: list[Actor], camera: Camera, clash: set[str], split: str
) -> tuple[Actor, str, Actor | None] | None:
    others = [m for m in members if m is not actor]
    kinds = [k for k in SOLO_ACTIONS + (PAIR_ACTIONS if others else ()) if k not in clash]
    if split == "train":
        kinds = [k for k in kinds if not is_heldout_action(actor.shape, k)]
    elif split == "heldout" and rng.random() < 0.5:
        kinds = [k for k in kinds if is_heldout_action(actor.shape, k)] or kinds
    if actor.surface != "striped" and actor.shape in ("sphere", "cylinder", "cone", "capsule"):
        kinds = [k for k in kinds if k != "spin"]
    if not kinds:
        return None
    kind = rng.choices(kinds, [_ACTION_WEIGHT.get(k, 1.0) for k in kinds])[0]
    other = rng.choice(others) if kind in PAIR_ACTIONS else None
    if kind == "hide_behind" and other is not None:
        big, small = SIZE_SCALE[other.size], SIZE_SCALE[actor.size]
        if big < small * 1.3 or other.shape in ("torus", "cone", "capsule"):
            return None
    return actor, kind, other


def _perform(
    rng: random.Random,
    actor: Actor,
    kind: str,
    other: Actor | None,
    start: float,
    end: float,
    state: dict[str, list[float]],
    reach: float,
    *,
    first: bool,
    spots: dict[str, tuple[float, float]],
    members: list[Actor],
) -> Action | None:
    """One action with its amount, bending start positions where the first action needs room; advances `state` (x, z,
    size)."""
    x, z, size = state[actor.name]
    r = actor_radius(actor.shape, actor.size) * size / SIZE_SCALE[actor.size]
    edge = reach * 0.86 - r
    amount, direction, colour = 1.0, rng.choice((-1, 1)), None

    def put(name: str, nx: float, nz: float) -> None:
        spots[name] = (nx, nz)
        state[name][0], state[name][1] = nx, nz

    if kind in ("move_left", "move_right"):
        sign = 1.0 if kind == "move_right" else -1.0
        if first:
            x = -sign * rng.uniform(0.35, 0.95) * edge
            put(actor.name, x, z)
        room = edge - sign * x
        if room < 0.55 * reach:
            return None
        amount = rng.uniform(max(0.55 * reach, 0.6 * room), room)
        state[actor.name][0] = x + sign * amount
    elif kind == "move_toward":
        amount = rng.uniform(1.1, 1.5) * reach / 2.0
        if first:
            put(actor.name, x * 0.7, rng.uniform(-1.1, -0.3))
        elif z + amount > 1.3:
            return None
        state[actor.name][1] += amount
    elif kind == "move_away":
        amount = rng.uniform(1.4, 2.2) * reach / 2.0
        if first:
            put(actor.name, x * 0.7, rng.uniform(0.2, 0.9))
        elif z - amount < -3.2:
            return None
        state[actor.name][1] -= amount
    elif kind == "jump":
        amount = rng.uniform(0.55, 0.95) * min(1.0, reach / 1.9)
    elif kind == "spin":
        amount = rng.uniform(0.9, 1.6)
    elif kind in ("grow", "stretch"):
        amount = rng.uniform(1.5, 1.8)
        if size * amount > 2.2:
            return None
    elif kind in ("shrink", "squash"):
        amount = rng.uniform(0.48, 0.62)
        if size * amount < 0.42:
            return None
    elif kind == "fall":
        amount = min(1.6, reach + 0.35 - size)
        if not first or amount < 0.5:
            return None
    elif kind == "change_colour":
        taken = {m.colour for m in members}
        colour = rng.choice([c for c in COLOURS if c not in taken])
    elif other is not None:
        ox, oz, osize = state[other.name]
        o_r = actor_radius(other.shape, other.size) * osize / SIZE_SCALE[other.size]
        if kind == "push":
            sign = float(direction)
            amount = rng.uniform(0.5, 0.8) * reach / 2.0
            gap = rng.uniform(0.15, 0.5) * reach / 2.0
            if first:
                ox = sign * rng.uniform(-0.35, 0.05) * edge
                put(other.name, ox, oz)
            put_x = ox - sign * (r + o_r + gap)
            if first:
                put(actor.name, put_x, oz)
            elif abs(oz - z) > 0.25 or sign * (ox - x) < r + o_r:
                return None
            if abs(ox + sign * amount) > reach * 0.9 - o_r or abs(put_x) > reach * 0.95 - r * 0.6:
                return None
            state[other.name][0] = ox + sign * amount
            state[actor.name][0] = ox + sign * amount - sign * (r + o_r) * 0.96
        elif kind == "jump_over":
            sign = float(direction)
            step = (r + o_r) * 1.25 + 0.1
            if first:
                put(other.name, ox * 0.2, oz)
                put(actor.name, ox * 0.2 - sign * step, oz)
            elif abs(oz - z) > 0.25 or not step * 0.8 < abs(ox - x) < step * 1.3:
                return None
            else:
                sign = 1.0 if ox > x else -1.0
            direction = int(sign)
            amount = osize * 1.02 + 0.15
            state[actor.name][0] = state[other.name][0] * 2 - state[actor.name][0]
            if amount + size > reach + 0.75:
                return None
        elif kind == "circle":
            radius = (r + o_r) * 1.05 + 0.15
            if first:
                angle = rng.uniform(0, 2 * math.pi)
                put(other.name, ox * 0.25, min(oz, 0.0) * 0.5)
                ox, oz = spots[other.name]
                put(actor.name, ox + radius * math.sin(angle), oz + radius * math.cos(angle))
            elif not radius * 0.9 < math.dist((x, z), (ox, oz)) < radius * 1.4:
                return None
            if abs(ox) + radius > reach * 0.9 - r * 0.6:
                return None
        elif kind == "hide_behind":
            if first:
                side = rng.choice((-1.0, 1.0))
                put(other.name, ox * 0.4, rng.uniform(0.0, 0.4))
                ox, oz = spots[other.name]
                put(actor.name, ox + side * (r + o_r + rng.uniform(0.2, 0.5)), oz - rng.uniform(0.5, 0.9))
                x = spots[actor.name][0]
            if abs(x) > reach * 0.9 - r:
                return None
            amount = r + o_r + 0.15
            state[actor.name][0], state[actor.name][1] = ox, oz - amount
    if kind in ("grow", "shrink", "stretch", "squash"):
        state[actor.name][2] *= amount
    return Action(actor.name, kind, start, end, round(amount, 3), direction, other.name if other else None, colour)


def _path(action: Action, u: float, spot: tuple[float, float]) -> tuple[float, float]:
    """Floor position of the acting actor at progress `u` for the straight moves; pair actions keep their own
    clearances."""
    x, z = spot
    step = {"move_left": (-1.0, 0.0), "move_right": (1.0, 0.0), "move_toward": (0.0, 1.0), "move_away": (0.0, -1.0)}
    dx, dz = step.get(action.kind, (0.0, 0.0))
    return x + dx * action.amount * u, z + dz * action.amount * u


def _in_view(
    members: list[Actor], actions: list[Action], spots: dict[str, tuple[float, float]], camera: Camera, reach: float
) -> bool:
    """Whether nobody collides on the way, and everybody stays in the picture while the camera moves."""
    drift = 0.0
    if camera.move.startswith("pan"):
        drift = CAMERA_DISTANCE[camera.size] * math.tan(math.radians(camera.amount / 2)) * 0.8
    if camera.move.startswith(("zoom", "dolly")):
        reach = reach / math.sqrt(camera.amount)
    partners = {frozenset((a.actor, a.other)) for a in actions if a.other}
    where = dict(spots)
    for action in actions or [Action(members[0].name, "still", 0, 1)]:
        for u in _MOMENTS:
            here = dict(where)
            here[action.actor] = _path(action, u, where[action.actor])
            for i, a in enumerate(members):
                r = actor_radius(a.shape, a.size)
                if abs(here[a.name][0]) + drift > (reach - 0.3 * here[a.name][1]) - r * 0.55:
                    return False
                for b in members[i + 1 :]:
                    if frozenset((a.name, b.name)) in partners:
                        continue
                    near = r + actor_radius(b.shape, b.size)
                    if math.dist(here[a.name], here[b.name]) < near * 1.02:
                        return False
        where[action.actor] = _path(action, 1.0, where[action.actor])
    return True
