"""Stage films with planted defects: what a film shows, and a script that says something else of one of its shots.

Notable choices:

- The film is made from a changed script and held against the script before the change, as a renderer that got one thing
  wrong would be. The change is one word's worth: another colour, shape or deed, deeds or shots in another order, a shot
  left out.
- Captions say who does what in the grammar's plainest words or any other wording; every actor is named with its colour
  and shape, every deed can be seen (`shots.stage.observe`), and no two shots say the same.
- `calibrate` fits a grounder's weights on such films, `check` counts what is found on others.
- Films for calibration come from training seeds, films that are reported from seeds above (`shots.stage.heldout`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from shots.calibration import Calibration, Sample, fit
from shots.script import Script, Shot
from shots.stage.heldout import TRAINING_SEEDS
from shots.stage.observe import observe
from shots.stage.render import render_film
from shots.stage.scene import COLOURS, SHAPES, Action, Film
from shots.stage.words import ACTION_WORDS, COLOUR_WORDS, SHAPE_WORDS, verb_forms
from shots.stage.writer import write_film
from shots.video import Video

if TYPE_CHECKING:
    from shots.evaluation import Report
    from shots.protocols import Grounder

KINDS = ("colour", "shape", "action", "order", "missing_shot")
CALIBRATION_SEED, CHECK_SEED = 40_000_000, TRAINING_SEEDS + 600_000
PLAIN = ("move_left", "move_right", "move_toward", "move_away", "jump", "grow", "shrink", "stretch", "squash", "fall")
FALSE_ALARMS = 0.04  # of the good shots of the films that the limit is set on
_SIDE, _FPS = 128, 12.0

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Planted:
    """A film and the script it should follow; `kind` is what is wrong in `shots` (from 1), None where nothing is.

    film: what the video shows.
    """

    video: Video
    film: Film
    script: Script
    kind: str | None
    shots: tuple[int, ...]
    seed: int


def planted(seed: int, kind: str | None, shots: int = 3, seconds: float = 3.0) -> Planted:
    """The film of a seed with a planted defect; the same seed has the same script whatever the kind.

    Raises ValueError for a kind that is not one of `KINDS`.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: {kind!r}; one of {', '.join(KINDS)}, or None, is needed")
    film = _written(seed, shots, seconds)
    rng = random.Random(f"planted-{seed}-{kind}")
    script = _script(film, random.Random(f"words-{seed}"))
    shown, wrong = film, tuple[int, ...]()
    if kind == "missing_shot":
        k = rng.randrange(shots)
        shown, wrong = replace(film, shots=film.shots[:k] + film.shots[k + 1 :]), (k + 1,)
    elif kind == "order":
        k = rng.randrange(shots - 1)
        order = [*range(k), k + 1, k, *range(k + 2, shots)]
        shown, wrong = replace(film, shots=tuple(film.shots[i] for i in order)), (k + 1, k + 2)
    elif kind is not None:
        k = rng.randrange(shots)
        shown, wrong = _changed(film, k, kind, rng), (k + 1,)
    rendered = render_film(shown, _SIDE, _SIDE, _FPS)
    frames = rendered.frames.numpy()
    return Planted(Video(frames, _FPS, np.arange(len(frames)) / _FPS), shown, script, kind, wrong, seed)


def films(count: int, first_seed: int) -> Iterator[Planted]:
    """`count` films of each kind of defect, and as many without."""
    for number in range(count):
        for place, kind in enumerate((None, *KINDS)):
            yield planted(first_seed + number * (len(KINDS) + 1) + place, kind)


def _written(seed: int, shots: int, seconds: float) -> Film:
    """A film of plain deeds that can be seen, no two shots alike."""
    for attempt in range(100):
        film = write_film(seed * 100 + attempt if attempt else seed, shots=shots, seconds=seconds)
        if any(action.kind not in PLAIN for shot in film.shots for action in shot.actions):
            continue
        said = [tuple((a.actor, a.kind) for a in shot.actions) for shot in film.shots]
        if len(set(said)) < shots or not all(said):
            continue
        seen = observe(film, render_film(film, 64, 64, 4.0))
        if all(seen.sees_action(k, i) for k, shot in enumerate(film.shots) for i in range(len(shot.actions))):
            return film
    raise RuntimeError(f"no film with plain deeds could be written for seed {seed}")


def _script(film: Film, rng: random.Random) -> Script:
    """Who does what in each shot, in words of training."""

    def name(actor: str) -> str:
        known = film.actor(actor)
        return f"a {rng.choice(COLOUR_WORDS[known.colour].train[:2])} {rng.choice(SHAPE_WORDS[known.shape].train[:3])}"

    shots = []
    for spec in film.shots:
        told = [
            f"{name(action.actor)} {verb_forms(rng.choice(ACTION_WORDS[action.kind].train[:4]))[0]}"
            for action in sorted(spec.actions, key=lambda action: action.start)
        ]
        text = " while ".join(told)
        shots.append(Shot(text[0].upper() + text[1:] + ".", seconds=spec.seconds))
    return Script(tuple(shots))


def _changed(film: Film, k: int, kind: str, rng: random.Random) -> Film:
    """The film with one actor's colour or shape, or its deed, changed in shot `k` alone."""
    spec = film.shots[k]
    action = rng.choice(spec.actions)
    actor = film.actor(action.actor)
    if kind == "action":
        other = rng.choice([name for name in PLAIN if not _alike(name, action.kind)])
        done = _amounts(action, other)
        actions = tuple(done if one is action else one for one in spec.actions)
        shot = replace(spec, actions=actions)
        return replace(film, shots=(*film.shots[:k], shot, *film.shots[k + 1 :]))
    taken = {member.colour for member in film.cast}
    if kind == "colour":
        stranger = replace(actor, colour=rng.choice([c for c in COLOURS if c not in taken]))
    else:
        stranger = replace(actor, shape=rng.choice([s for s in SHAPES if s != actor.shape]))
    stranger = replace(stranger, name=f"{stranger.colour} {stranger.shape} stand-in")

    def swap(name: str | None) -> str | None:
        return stranger.name if name == actor.name else name

    shot = replace(
        spec,
        placements=tuple(replace(p, actor=swap(p.actor) or p.actor) for p in spec.placements),
        actions=tuple(replace(a, actor=swap(a.actor) or a.actor, other=swap(a.other)) for a in spec.actions),
    )
    return replace(film, cast=(*film.cast, stranger), shots=(*film.shots[:k], shot, *film.shots[k + 1 :]))


def _alike(one: str, other: str) -> bool:
    """Whether two deeds are the same or hard to tell apart."""
    groups = ({"move_toward", "grow", "stretch"}, {"move_away", "shrink", "squash"}, {"jump", "fall"})
    return one == other or any(one in group and other in group for group in groups)


def _amounts(action: Action, kind: str) -> Action:
    """The action as another kind, of ordinary size."""
    ordinary = {"grow": 1.65, "stretch": 1.65, "shrink": 0.55, "squash": 0.55, "jump": 0.8, "fall": 1.3,
                "move_toward": 1.2, "move_away": 1.8}  # fmt: skip
    return replace(action, kind=kind, amount=ordinary.get(kind, 1.0))


# -- what is found of them --------------------------------------------------------------------------------------------

FACTS = {"colour": "colour", "shape": "shape", "action": "action", "order": "place"}  # what a defect makes untrue


def samples(film: Planted, report: Report) -> Iterator[Sample]:
    """What was gathered for each fact of a film whose truth is known.

    Of a shot with a defect only the fact that is wrong is known, and only where the shot has one such fact.
    """
    for shot in report.shots:
        spoilt = shot.number in film.shots
        for event in shot.events:
            for kind, features in event.features.items():
                if not spoilt:
                    yield Sample(kind, features, True, (film.seed, shot.number))
                elif film.kind is not None and FACTS.get(film.kind) == kind and len(shot.events) == 1:
                    yield Sample(kind, features, False, (film.seed, shot.number))


def calibrate(
    grounder: Grounder, count: int = 20, first_seed: int = CALIBRATION_SEED, progress: Progress = lambda *_: None
) -> Calibration:
    """Fits weights and limit for a grounder on `count` films of each kind of defect and as many without, of training
    seeds. They are found again by the grounder's `name`, and hold for its `weights` as they are."""
    from shots.evaluation import verify

    plain = Calibration()  # by which everything is gathered, whatever it counted before
    gathered: list[Sample] = []
    for number, film in enumerate(films(count, first_seed)):
        if film.kind != "missing_shot":
            gathered += samples(film, verify(film.video, film.script, grounder, measures=False, calibration=plain))
        progress(number + 1, count * (len(KINDS) + 1), film.kind or "no defect")
    made = fit(gathered, str(getattr(grounder, "name", None) or ""), FALSE_ALARMS)
    return replace(made, weights=str(getattr(grounder, "weights", None) or ""))


def check(
    grounder: Grounder, count: int = 20, first_seed: int = CHECK_SEED, progress: Progress = lambda *_: None,
    calibration: Calibration | None = None,
) -> dict[str, Any]:  # fmt: skip
    """How many planted defects are found, and how many good shots are called bad, on films of seeds kept apart.

    A defect is found where a shot that has it fails. `named`: it was called what it is. `score`: how often the shot
    that has it scores below the mean of the same film's good shots.
    """
    from shots.evaluation import verify

    found: dict[str, list[int]] = {kind: [0, 0, 0, 0] for kind in KINDS}
    alarms = good = 0
    for number, film in enumerate(films(count, first_seed)):
        report = verify(film.video, film.script, grounder, measures=False, calibration=calibration)
        tally(film, report, found)
        fine = [shot for shot in report.shots if shot.number not in film.shots]
        alarms, good = alarms + sum(not shot.passed for shot in fine), good + len(fine)
        progress(number + 1, count * (len(KINDS) + 1), film.kind or "no defect")
    of = sum(row[3] for row in found.values())
    return {
        "films": count * (len(KINDS) + 1),
        "defects": of, "found": sum(row[0] for row in found.values()) / of,
        "good_shots": good, "false_alarms": alarms / good,
        "kinds": {
            kind: {"found": row[0] / row[3], "named": row[1] / row[3], "ranked": row[2] / row[3], "of": row[3]}
            for kind, row in found.items()
        },
    }  # fmt: skip


def tally(film: Planted, report: Report, found: dict[str, list[int]]) -> None:
    """Adds a film to counts by kind: found, named, ranked below the good shots, of how many."""
    if film.kind is None:
        return
    bad = [shot for shot in report.shots if shot.number in film.shots]
    fine = [shot.score for shot in report.shots if shot.number not in film.shots]
    named = {defect.kind for shot in bad for defect in shot.defects}
    row = found[film.kind]
    row[0] += any(not shot.passed for shot in bad)
    row[1] += film.kind in named or FACTS.get(film.kind) in named
    row[2] += float(np.mean([shot.score for shot in bad])) < float(np.mean(fine or [1.0]))
    row[3] += 1
