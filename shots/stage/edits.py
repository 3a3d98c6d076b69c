"""Pairs for editing and for reward models: films that differ in one thing, and captions of which one is wrong.

Notable choices:

- An edit changes one thing and keeps the seed, the layout and everything else, so that all other pixels may be
  compared.
- Edits keep what the writer of films keeps: nobody collides, colours stay unique, no black actor at night. What a
  film does not allow (removing its only actor) is not offered; `edit_kinds` lists what it does allow.
- A wrong caption is written with the same random state as the right one about a film altered in one fact, and it
  counts only if the parser finds exactly that fact changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from shots.errors import ShotsError
from shots.stage import words
from shots.stage.facts import CAMERA_CLASS, Facts, Observed, facts_of
from shots.stage.parse import facts_in
from shots.stage.scene import (
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
    Film,
    Placement,
)

_ROUND = ("sphere", "cylinder", "cone", "capsule")
# Actions on the spot, which can replace one another without a new layout, with their amounts.
_ON_THE_SPOT = {
    "jump": 0.75,
    "spin": 1.25,
    "grow": 1.6,
    "shrink": 0.55,
    "stretch": 1.6,
    "squash": 0.55,
    "change_colour": 1.0,
}


@dataclass(frozen=True)
class Edit:
    """`before` and `after` differ in what `instruction` asks; `kind` is one of `EDIT_KINDS`."""

    kind: str
    instruction: str
    before: Film
    after: Film


@dataclass(frozen=True)
class CaptionPair:
    """Two captions of one shot; `wrong` differs from `right` in the fact `kind` only."""

    kind: str
    shot: int
    right: str
    wrong: str


@dataclass(frozen=True)
class FilmPair:
    """Two films of which `right` shows what `caption` says of shot `shot` and `wrong` does not (in the fact `kind`)."""

    kind: str
    shot: int
    caption: str
    right: Film
    wrong: Film


def _other(rng: Random, options: tuple[str, ...], *taken: str) -> str | None:
    free = [option for option in options if option not in taken]
    return rng.choice(free) if free else None


def _with_actor(film: Film, name: str, **changes: Any) -> Film:
    return replace(film, cast=tuple(replace(actor, **changes) if actor.name == name else actor for actor in film.cast))


def _named(actor: Actor) -> str:
    return f"the {actor.colour} {actor.shape}"


def _free_colours(film: Film) -> list[str]:
    taken = {actor.colour for actor in film.cast} | {a.colour for shot in film.shots for a in shot.actions if a.colour}
    dark = film.set.style == "neon" or film.set.sky == "night"
    taken |= {"black"} if dark else set()
    taken |= {"snow": {"white"}, "grass": {"green"}}.get(film.set.floor, set())
    return [colour for colour in COLOURS if colour not in taken]


def _placed(film: Film) -> list[Actor]:
    """The cast members that stand in every shot (an edit of them shows everywhere)."""
    return [a for a in film.cast if all(any(p.actor == a.name for p in shot.placements) for shot in film.shots)]


def _radius(actor: Actor) -> float:
    return 0.5 * SIZE_SCALE[actor.size]


def _room(film: Film) -> bool:
    """Whether all actors start apart."""
    for shot in film.shots:
        places = shot.placements
        for i, one in enumerate(places):
            for two in places[i + 1 :]:
                if math.dist((one.x, one.z), (two.x, two.z)) < _radius(film.actor(one.actor)) + _radius(
                    film.actor(two.actor)
                ):
                    return False
    return True


# -- edits ------------------------------------------------------------------------------------------------------------


def _edit_colour(film: Film, rng: Random) -> Edit | None:
    free = _free_colours(film)
    actors = [
        a for a in _placed(film) if not any(x.actor == a.name and x.colour for s in film.shots for x in s.actions)
    ]
    if not free or not actors:
        return None
    actor, colour = rng.choice(actors), rng.choice(free)
    text = rng.choice(["Make {} {}.", "Change the colour of {} to {}.", "Paint {} {}.", "Turn {} {}."])
    return Edit("colour", text.format(_named(actor), colour), film, _with_actor(film, actor.name, colour=colour))


def _edit_shape(film: Film, rng: Random) -> Edit | None:
    # A spin needs a surface or a shape that shows it, and who hides needs something broad to hide behind.
    bound = {a.other for s in film.shots for a in s.actions if a.kind == "hide_behind"}
    bound |= {a.actor for s in film.shots for a in s.actions if a.kind == "spin"}
    actors = [actor for actor in _placed(film) if actor.name not in bound]
    if not actors:
        return None
    actor = rng.choice(actors)
    shape = _other(rng, SHAPES, actor.shape)
    text = rng.choice(["Turn {} into a {}.", "Replace {} by a {}.", "Make {} a {}.", "Instead of {}, show a {}."])
    return Edit(
        "shape", text.format(_named(actor), f"{actor.colour} {shape}"), film, _with_actor(film, actor.name, shape=shape)
    )


def _edit_size(film: Film, rng: Random) -> Edit | None:
    bound = {n for s in film.shots for a in s.actions if a.kind in PAIR_ACTIONS + ("grow",) for n in (a.actor, a.other)}
    options = []
    for actor in _placed(film):
        for size in SIZES:
            after = _with_actor(film, actor.name, size=size)
            if size != actor.size and actor.name not in bound and _room(after):
                options.append((actor, size, after))
    if not options:
        return None
    actor, size, after = rng.choice(options)
    text = {
        "small": ["Make {} small.", "Make {} little."],
        "medium": ["Make {} medium sized."],
        "large": ["Make {} large.", "Make {} big."],
    }[size]
    return Edit("size", rng.choice(text).format(_named(actor)), film, after)


def _edit_surface(film: Film, rng: Random) -> Edit | None:
    bound = {a.actor for s in film.shots for a in s.actions if a.kind == "spin" and film.actor(a.actor).shape in _ROUND}
    actors = [actor for actor in _placed(film) if actor.name not in bound]
    if not actors:
        return None
    actor = rng.choice(actors)
    surface = _other(rng, SURFACES, actor.surface)
    text = rng.choice(["Make {} {}.", "Give {} a {} surface.", "The surface of {} should be {}."])
    return Edit("surface", text.format(_named(actor), surface), film, _with_actor(film, actor.name, surface=surface))


def _edit_action(film: Film, rng: Random) -> Edit | None:
    options = [
        (k, i, action)
        for k, shot in enumerate(film.shots)
        for i, action in enumerate(shot.actions)
        if action.kind in _ON_THE_SPOT
        and shot.camera.move == "static"
        and sum(a.actor == action.actor or a.other == action.actor for a in shot.actions) == 1
    ]
    if not options:
        return None
    k, index, action = rng.choice(options)
    actor = film.actor(action.actor)
    spins = actor.surface == "striped" or actor.shape not in _ROUND
    kinds = [kind for kind in _ON_THE_SPOT if kind != action.kind and (kind != "spin" or spins)]
    free = _free_colours(film)
    kind = rng.choice([kind for kind in kinds if free or kind != "change_colour"])
    colour = rng.choice(free) if kind == "change_colour" else None
    changed = replace(action, kind=kind, amount=_ON_THE_SPOT[kind], colour=colour)
    verbs = [
        words.verb_forms(words.ACTION_WORDS[a.kind].train[0])[form].replace("{colour}", a.colour or "")
        for a, form in ((changed, 2), (action, 2))
    ]
    where = f"In shot {k + 1}, " if len(film.shots) > 1 else ""
    text = rng.choice(["{where}let {name} {new} instead of {old}.", "{where}{name} should {new} rather than {past}."])
    gerund = words.verb_forms(words.ACTION_WORDS[action.kind].train[0])[1].replace("{colour}", action.colour or "")
    text = text.format(where=where, name=_named(actor), new=verbs[0], old=gerund, past=verbs[1])
    return Edit("action", words.capitalised(text), film, _with_action(film, k, index, changed))


def _with_action(film: Film, shot: int, index: int, action: Action) -> Film:
    spec = film.shots[shot]
    actions = (*spec.actions[:index], action, *spec.actions[index + 1 :])
    return replace(film, shots=(*film.shots[:shot], replace(spec, actions=actions), *film.shots[shot + 1 :]))


def _edit_floor(film: Film, rng: Random) -> Edit | None:
    colours = {actor.colour for actor in film.cast}
    banned = ["snow"] * ("white" in colours) + ["grass"] * ("green" in colours)
    if film.set.style == "neon":
        return None  # neon light shows no floor
    floor = _other(rng, FLOORS, film.set.floor, *banned)
    phrase = words.FLOOR_WORDS[str(floor)].train[0]
    text = rng.choice(["Put it all on {}.", "Change the floor to {}.", "Let it happen on {}."])
    return Edit("floor", text.format(phrase), film, replace(film, set=replace(film.set, floor=str(floor))))


def _edit_sky(film: Film, rng: Random) -> Edit | None:
    if film.set.style == "neon" or film.set.fog:
        return None
    dark = any(actor.colour == "black" for actor in film.cast)
    sky = _other(rng, SKIES, film.set.sky, *(["night"] if dark else []))
    phrase = words.SKY_WORDS[str(sky)].train[0]
    text = rng.choice(["Let it happen {}.", "Show the same {}.", "Make it take place {}."])
    return Edit("sky", text.format(phrase), film, replace(film, set=replace(film.set, sky=str(sky))))


def _edit_style(film: Film, rng: Random) -> Edit | None:
    dark = any(actor.colour == "black" for actor in film.cast)
    style = _other(rng, STYLES, film.set.style, *(["neon"] if dark else []))
    phrase = words.STYLE_WORDS[str(style)].train[0]
    text = rng.choice(["Show it {}.", "Redraw it {}.", "Make the film {}."])
    after = replace(film.set, style=str(style), fog=film.set.fog and style == "realistic")
    return Edit("style", text.format(phrase), film, replace(film, set=after))


def _edit_remove(film: Film, rng: Random) -> Edit | None:
    actors = [a for a in _placed(film) if all(len(shot.placements) > 1 for shot in film.shots)]
    if not actors:
        return None
    gone = rng.choice(actors)
    shots = tuple(
        replace(
            shot,
            placements=tuple(p for p in shot.placements if p.actor != gone.name),
            actions=tuple(a for a in shot.actions if gone.name not in (a.actor, a.other)),
        )
        for shot in film.shots
    )
    text = rng.choice(["Remove {}.", "Take {} away.", "Show it without {}."])
    after = replace(film, cast=tuple(actor for actor in film.cast if actor is not gone), shots=shots)
    return Edit("remove", text.format(_named(gone)), film, after)


def _edit_add(film: Film, rng: Random) -> Edit | None:
    free = _free_colours(film)
    if not free or len(film.cast) > 2:
        return None
    colour, shape = rng.choice(free), rng.choice(SHAPES)
    actor = Actor(f"new {colour} {shape}", shape, colour, "small", rng.choice(SURFACES))
    shots = []
    for shot in film.shots:
        place = _free_spot(film, shot.placements, shot.actions, shot.camera.size, actor, rng)
        if place is None or shot.camera.move != "static":
            return None
        shots.append(replace(shot, placements=(*shot.placements, place)))
    text = rng.choice(["Add a small {}.", "Put a small {} on the stage.", "Let a small {} stand there, too."])
    return Edit(
        "add", text.format(f"{colour} {shape}"), film, replace(film, cast=(*film.cast, actor), shots=tuple(shots))
    )


def _free_spot(
    film: Film, places: tuple[Placement, ...], actions: tuple[Action, ...], size: str, actor: Actor, rng: Random
) -> Placement | None:
    """A spot in the picture, clear of everyone and of where they go."""
    half = {"wide": 2.4, "medium": 1.5, "close-up": 0.9}[size]
    for _ in range(60):
        x, z = rng.uniform(-half, half), rng.uniform(-0.9, 0.5)
        clear = True
        for place in places:
            near = _radius(film.actor(place.actor)) + _radius(actor) + 0.1
            own = [a for a in actions if place.actor in (a.actor, a.other)]
            steps = {"move_left": (-1, 0), "move_right": (1, 0), "move_toward": (0, 1), "move_away": (0, -1)}
            if any(a.kind in PAIR_ACTIONS for a in own):
                near += 1.2
            if any(a.kind in ("grow", "stretch") for a in own):
                near += 0.4
            path = [(place.x, place.z)]
            for a in own:
                dx, dz = steps.get(a.kind, (0, 0))
                path += [(place.x + dx * a.amount * u, place.z + dz * a.amount * u) for u in (0.25, 0.5, 0.75, 1.0)]
            clear = clear and all(math.dist((x, z), spot) > near for spot in path) and abs(x - place.x) > 0.8 * near
        if clear:
            return Placement(actor.name, round(x, 3), round(z, 3), round(rng.uniform(-25, 25), 1))
    return None


EDIT_KINDS: dict[str, Callable[[Film, Random], Edit | None]] = {
    "colour": _edit_colour,
    "shape": _edit_shape,
    "size": _edit_size,
    "surface": _edit_surface,
    "action": _edit_action,
    "floor": _edit_floor,
    "sky": _edit_sky,
    "style": _edit_style,
    "remove": _edit_remove,
    "add": _edit_add,
}


def edit_kinds(film: Film) -> list[str]:
    """The kinds of edit that `film` allows."""
    return [kind for kind, make in EDIT_KINDS.items() if make(film, Random(0)) is not None]


def edit_pair(film: Film, rng: Random, kind: str | None = None) -> Edit:
    """A film before and after an edit with its instruction; `kind` (a key of `EDIT_KINDS`) is drawn when None."""
    if kind is not None and kind not in EDIT_KINDS:
        raise ShotsError(f"kind: there is no edit {kind!r}; the edits are {', '.join(EDIT_KINDS)}")
    kinds = [kind] if kind is not None else rng.sample(list(EDIT_KINDS), len(EDIT_KINDS))
    for name in kinds:
        for _ in range(5):
            edit = EDIT_KINDS[name](film, rng)
            if edit is not None:
                return edit
    raise ShotsError(f"kind: film {film.seed} allows no edit {kind!r}; it allows {', '.join(edit_kinds(film))}")


# -- right and wrong --------------------------------------------------------------------------------------------------


def _alter(film: Film, shot: int, kind: str, rng: Random) -> Film | None:
    """The film with one fact of shot `shot` changed, whether or not it could be staged so; None where it has no such
    fact."""
    spec = film.shots[shot]
    names = [place.actor for place in spec.placements]
    if kind in ("floor", "sky", "style"):
        options = {"floor": FLOORS, "sky": SKIES, "style": STYLES}[kind]
        changed: dict[str, Any] = {kind: _other(rng, options, getattr(film.set, kind))}
        return replace(film, set=replace(film.set, **changed))
    if kind in ("camera", "shot_size", "angle"):
        camera = spec.camera
        if kind == "camera":
            moves = [move for move in CAMERA_MOVES if CAMERA_CLASS[move] != CAMERA_CLASS[camera.move]]
            camera = replace(camera, move=rng.choice(moves))
        elif kind == "shot_size":
            camera = replace(camera, size=str(_other(rng, SHOT_SIZES, camera.size)))
        else:
            camera = replace(camera, angle=str(_other(rng, ANGLES, camera.angle)))
        return replace(film, shots=(*film.shots[:shot], replace(spec, camera=camera), *film.shots[shot + 1 :]))
    if not names:
        return None
    if kind == "swap":
        if len(names) < 2:
            return None
        one, two = (film.actor(name) for name in rng.sample(names, 2))
        if one.shape == two.shape:
            return None
        return _with_actor(_with_actor(film, one.name, colour=two.colour), two.name, colour=one.colour)
    actor = film.actor(rng.choice(names))
    if kind == "colour":
        free = _free_colours(film)
        return _with_actor(film, actor.name, colour=rng.choice(free)) if free else None
    if kind in ("shape", "size", "surface"):
        options = {"shape": SHAPES, "size": SIZES, "surface": SURFACES}[kind]
        return _with_actor(film, actor.name, **{kind: _other(rng, options, getattr(actor, kind))})
    acting = [(i, a) for i, a in enumerate(spec.actions) if a.kind != "still"]
    if not acting:
        return None
    index, action = rng.choice(acting)
    kinds = (
        PAIR_ACTIONS
        if action.kind in PAIR_ACTIONS
        else tuple(k for k in SOLO_ACTIONS if k not in ("still", "change_colour"))
    )
    return _with_action(film, shot, index, replace(action, kind=str(_other(rng, kinds, action.kind)), colour=None))


WRONG_KINDS = (
    "colour",
    "shape",
    "size",
    "surface",
    "action",
    "swap",
    "camera",
    "shot_size",
    "angle",
    "floor",
    "sky",
    "style",
)


def _changed(right: Facts, wrong: Facts) -> set[str]:
    """The kinds of fact in which two captions differ."""
    kinds = {
        name
        for name in ("camera", "shot_size", "angle", "floor", "sky", "style", "fog")
        if getattr(right, name) != getattr(wrong, name)
    }
    one, two = list(right.actors), list(wrong.actors)
    if len(one) != len(two):
        return kinds | {"count"}
    colours = {actor.colour for actor in one}, {actor.colour for actor in two}
    if colours[0] == colours[1] and [a.colour for a in one] != [a.colour for a in two]:
        return kinds | {"swap"}
    renamed = {x.colour: y.colour for x, y in zip(one, two, strict=True)}
    for x, y in zip(one, two, strict=True):
        kinds |= {name for name in ("colour", "shape", "size", "surface") if getattr(x, name) != getattr(y, name)}
        if x.actions != y.actions or renamed.get(x.other, x.other) != y.other or x.new_colour != y.new_colour:
            kinds.add("action")
    return kinds


def caption_pair(
    film: Film, shot: int, rng: Random, observations: Observed | None = None, kind: str | None = None
) -> CaptionPair:
    """A right caption of shot `shot` (from 0) and one that is wrong in one fact only; `kind` is drawn when None."""
    if kind is not None and kind not in WRONG_KINDS:
        raise ShotsError(f"kind: there is no {kind!r}; a caption can be wrong in {', '.join(WRONG_KINDS)}")
    for _ in range(200):
        wanted = kind or rng.choice(WRONG_KINDS)
        altered = _alter(film, shot, wanted, rng)
        if altered is None:
            continue
        state = rng.getrandbits(64)
        right = words.describe(film, shot, Random(state), observations).text
        wrong = words.describe(altered, shot, Random(state), observations).text
        facts = facts_in(right), facts_in(wrong)
        if _changed(*facts) == {wanted} and len(facts[0].pairs()) == len(facts[1].pairs()):
            return CaptionPair(wanted, shot, right, wrong)
    raise ShotsError(
        f"kind: shot {shot + 1} of film {film.seed} has nothing that a caption could get wrong in {kind or 'any way'}"
    )


def film_pair(film: Film, rng: Random, kind: str | None = None, observations: Observed | None = None) -> FilmPair:
    """`film`, a minimally wrong film, and a caption that is right of the first and wrong of the second.

    `kind` is a kind of edit but "add" (captions leave out), drawn when None. With `observations` of `film`, the
    caption says
    only what a viewer can tell.
    """
    if kind is not None and (kind not in EDIT_KINDS or kind == "add"):
        raise ShotsError(
            f"kind: no film can be wrong in {kind!r}; choose of {', '.join(k for k in EDIT_KINDS if k != 'add')}"
        )
    for _ in range(100):
        edit = edit_pair(film, rng, kind)
        for shot in range(len(film.shots)):
            caption = words.describe(film, shot, rng, observations).text
            said = facts_in(caption)
            if not said.conflicts(facts_of(film, shot)) and said.conflicts(facts_of(edit.after, shot)):
                return FilmPair(edit.kind, shot, caption, film, edit.after)
    raise ShotsError(
        f"kind: film {film.seed} has no pair of kind {kind!r}; its edits are {', '.join(edit_kinds(film))}"
    )
