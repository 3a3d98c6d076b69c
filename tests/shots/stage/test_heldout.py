"""The evaluation suites: fixed, whole, and still the films their seeds write."""

from __future__ import annotations

import pytest

from shots.errors import ShotsError
from shots.stage.facts import facts_of
from shots.stage.heldout import SUITES, TRAINING_SEEDS, SuiteItem, make_item, suite
from shots.stage.parse import facts_in
from shots.stage.writer import film_is_heldout


@pytest.mark.parametrize("name", SUITES)
def test_suites_are_whole(name: str) -> None:
    items, spec = suite(name), SUITES[name]
    assert len(items) == spec.count
    assert len({item.seed for item in items}) == spec.count and min(item.seed for item in items) >= TRAINING_SEEDS
    for item in items:
        assert len(item.script.shots) == len(item.said) == len(item.shown) == spec.shots
        assert SuiteItem.from_dict(item.to_dict()) == item
        for shot, said in zip(item.script.shots, item.said, strict=True):
            assert {a.colour for a in facts_in(shot.caption).actors} == {a.colour for a in said.actors}


@pytest.mark.parametrize("name", SUITES)
def test_seeds_still_write_the_films_of_the_suites(name: str) -> None:
    for item in suite(name)[:6]:
        film = item.film()
        for k, said in enumerate(item.said):
            assert not said.conflicts(facts_of(film, k)), f"{name} {item.seed}: the writer has moved; remake the suites"
        assert film_is_heldout(film) == (name == "heldout_combinations")


def test_a_remade_item_shows_the_same() -> None:
    made, fixed = make_item(SUITES["one_actor"], 0), suite("one_actor")[0]
    assert (made.seed, made.shown) == (fixed.seed, fixed.shown)
    assert not made.said[0].conflicts(made.shown[0])


def test_unknown_suite() -> None:
    with pytest.raises(ShotsError, match="one_actor"):
        suite("no such suite")
