"""Editing pairs differ in what was asked and in nothing else; wrong captions are wrong in one fact."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from shots.errors import ShotsError
from shots.stage.edits import EDIT_KINDS, WRONG_KINDS, caption_pair, edit_kinds, edit_pair, film_pair
from shots.stage.facts import facts_of
from shots.stage.parse import facts_in
from shots.stage.scene import Film
from shots.stage.writer import write_film

FILMS = [write_film(seed, shots=1 + seed % 2, actors=1 + seed % 3) for seed in range(24)]


def _film_with(kind: str) -> Film:
    return next(film for film in FILMS if kind in edit_kinds(film))


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_an_edit_changes_one_thing(kind: str) -> None:
    film = _film_with(kind)
    edit = edit_pair(film, Random(1), kind)
    assert edit.kind == kind and edit.before is film and edit.after != film
    assert edit.instruction[0].isupper() and edit.instruction.endswith(".") and "{" not in edit.instruction
    after = edit.after
    assert after.seed == film.seed and len({actor.colour for actor in after.cast}) == len(after.cast)
    if kind in ("floor", "sky", "style"):
        assert replace(after, set=film.set) == film
        assert getattr(after.set, kind) != getattr(film.set, kind)
    elif kind in ("colour", "shape", "size", "surface"):
        changed = [(x, y) for x, y in zip(film.cast, after.cast, strict=True) if x != y]
        assert len(changed) == 1 and after.shots == film.shots and after.set == film.set
        assert replace(changed[0][1], **{kind: getattr(changed[0][0], kind)}) == changed[0][0]
    elif kind == "remove":
        assert len(after.cast) == len(film.cast) - 1
        gone = {actor.name for actor in film.cast} - {actor.name for actor in after.cast}
        assert not any(gone & {action.actor, action.other} for shot in after.shots for action in shot.actions)
    elif kind == "add":
        assert after.cast[:-1] == film.cast
        assert all(new.placements[:-1] == old.placements for new, old in zip(after.shots, film.shots, strict=True))
    else:
        shots = zip(film.shots, after.shots, strict=True)
        actions = [pair for s, t in shots for pair in zip(s.actions, t.actions, strict=True)]
        ((old, new),) = [(a, b) for a, b in actions if a != b]
        assert (old.actor, old.start, old.end) == (new.actor, new.start, new.end) and old.kind != new.kind


def test_edits_that_a_film_does_not_allow_are_refused() -> None:
    alone = write_film(3, actors=1)
    assert "remove" not in edit_kinds(alone)
    with pytest.raises(ShotsError, match="remove"):
        edit_pair(alone, Random(0), "remove")
    with pytest.raises(ShotsError, match="kind"):
        edit_pair(alone, Random(0), "music")


@pytest.mark.parametrize("kind", WRONG_KINDS)
def test_a_wrong_caption_is_wrong_in_one_fact(kind: str) -> None:
    film = next(
        film
        for film in FILMS
        if len({actor.shape for actor in film.cast}) > 1 and film.shots[0].actions and len(film.shots[0].placements) > 1
    )
    pair = caption_pair(film, 0, Random(2), kind=kind)
    assert pair.kind == kind and pair.right != pair.wrong
    truth = facts_of(film, 0)
    assert not facts_in(pair.right).conflicts(truth)
    assert facts_in(pair.wrong).conflicts(truth)


@pytest.mark.parametrize("kind", [kind for kind in EDIT_KINDS if kind != "add"])
def test_a_wrong_film_contradicts_the_caption(kind: str) -> None:
    pair = film_pair(_film_with(kind), Random(4), kind)
    said = facts_in(pair.caption)
    assert not said.conflicts(facts_of(pair.right, pair.shot))
    assert said.conflicts(facts_of(pair.wrong, pair.shot))


def test_pairs_are_deterministic() -> None:
    assert edit_pair(FILMS[1], Random(5)) == edit_pair(FILMS[1], Random(5))
    assert caption_pair(FILMS[1], 0, Random(5)) == caption_pair(FILMS[1], 0, Random(5))
