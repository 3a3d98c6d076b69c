"""The parser inverts the grammar, and bears other people's sentences."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shots.errors import ShotsError
from shots.script import Script, Shot
from shots.stage import words
from shots.stage.facts import ActorFacts, Facts, facts_of
from shots.stage.parse import facts_in, facts_of_script, film_from_script, read
from shots.stage.scene import ACTIONS, PAIR_ACTIONS
from shots.stage.writer import write_film


def _comparable(facts: Facts) -> Facts:
    """Several actions leave open which is the core one; the order of naming is no fact."""
    actors = [replace(actor, action=None, other=None) if len(actor.actions) > 1 else actor for actor in facts.actors]
    return replace(facts, actors=tuple(sorted(actors, key=lambda actor: str(actor.colour))))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from(["train", "heldout"]), st.sampled_from(["short", "medium", "long"]))
def test_reading_inverts_writing(seed: int, wording: str, level: str) -> None:
    film = write_film(seed, seconds=(3.0, 7.0)[seed % 2], split="any")
    caption = words.describe(film, 0, Random(seed), wording=wording, level=level)
    reading = read(caption.text)
    assert reading.unknown == []
    assert _comparable(reading.facts) == _comparable(caption.facts), caption.text


@pytest.mark.parametrize("kind", ACTIONS)
def test_every_action_phrase_in_every_form(kind: str) -> None:
    for phrase in words.ACTION_WORDS[kind].all:
        for form, lead in zip(words.verb_forms(phrase), ("", "", "begins to "), strict=True):
            text = form.format(other="a blue cone", colour="pink", own="red")
            facts = facts_in(f"A red cube {lead}{text}.")
            actor = facts.actor("red")
            assert actor is not None and actor.action == kind, text
            assert actor.other == ("blue" if kind in PAIR_ACTIONS else None)
            assert actor.new_colour == ("pink" if kind == "change_colour" else None)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_the_film_of_a_script_shows_what_it_says(seed: int, shots: int) -> None:
    film = write_film(seed, shots=shots, split="any")
    rng = Random(seed)
    captions = [words.describe(film, k, rng) for k in range(shots)]
    script = Script(
        tuple(Shot(caption.text) for caption in captions), caption=words.describe_film(film, rng) if shots > 1 else None
    )
    staged, _ = film_from_script(script, seed=seed)
    assert staged == film_from_script(script, seed=seed)[0]
    assert len(staged.shots) == shots
    for k, caption in enumerate(captions):
        assert not _comparable(caption.facts).conflicts(facts_of(staged, k)), caption.text


def test_plain_prompts() -> None:
    assert facts_in("A red cube jumps.").actors == (ActorFacts("red", "cube", action="jump", actions=("jump",)),)
    facts = facts_in("a small shiny blue ball and a green box jump. The ball then turns pink. Camera: zoom in.")
    ball, box = facts.actors
    assert ball.actions == ("jump", "change_colour") and ball.new_colour == "pink" and ball.action is None
    assert (ball.size, ball.surface, box.action, facts.camera) == ("small", "shiny", "jump", "in")
    assert facts_in("a red cube next to a blue cone spins").actor("red").actions == ("spin",)  # type: ignore[union-attr]
    assert [actor.colour for actor in facts_in("three spheres").actors] == [None] * 3


def test_unknown_words_are_named() -> None:
    film, warnings = film_from_script(Script.parse("A fluffy red cube jumps over the moon."), seed=1)
    assert [actor.name for actor in film.cast] == ["red cube"]
    assert any('"fluffy"' in warning for warning in warnings) and any('"moon"' in warning for warning in warnings)


def test_two_of_one_colour_are_told_apart() -> None:
    film, warnings = film_from_script(Script.parse("Two red balls jump."), seed=1)
    assert len({actor.colour for actor in film.cast}) == 2 and warnings


def test_the_cast_recurs_and_pronouns_reach_over_shots() -> None:
    script = Script(
        (Shot("A large red cube jumps."), Shot("It spins.", seconds=2.0, camera="pan left"), Shot("The cube falls.")),
        caption="A film with a striped red cube on snow at night.",
    )
    film, warnings = film_from_script(script)
    assert warnings == []
    assert len(film.cast) == 1 and film.cast[0].surface == "striped" and film.cast[0].size == "large"
    assert [shot.actions[0].kind for shot in film.shots] == ["jump", "spin", "fall"]
    assert film.shots[1].camera.move == "pan_left" and film.shots[1].seconds == 2.0
    assert (film.set.floor, film.set.sky) == ("snow", "night")
    facts = facts_of_script(script)
    assert all(shot.floor == "snow" and shot.actors[0].surface == "striped" for shot in facts)


def test_order_and_direction_are_kept() -> None:
    film, _ = film_from_script(Script.parse("A red cube pushes a green box to the left, then spins."), seed=2)
    push, spin = film.shots[0].actions
    assert push.direction == -1 and push.other == "green cube" and push.end <= spin.start <= spin.end <= 3.0
    film, _ = film_from_script(Script.parse("A red cube jumps while a blue cone grows."), seed=2)
    jump, grow = film.shots[0].actions
    assert jump.start == grow.start
    film, _ = film_from_script(Script.parse("A red cube jumps. Then a blue cone grows."), seed=2)
    jump, grow = film.shots[0].actions
    assert jump.end <= grow.start


def test_an_empty_stage_and_bad_seconds() -> None:
    film, warnings = film_from_script(Script.parse("An empty stage at night."))
    assert film.cast == () and film.shots[0].placements == () and not warnings
    with pytest.raises(ShotsError, match="seconds"):
        film_from_script(Script.parse("A red cube."), seconds=0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.text(alphabet="abcdefghijklmnopqrstuvwxyz ,.:'-é红", max_size=80)
    | st.lists(
        st.sampled_from(
            [
                "a",
                "the",
                "red",
                "blue",
                "cube",
                "ball",
                "it",
                "and",
                "then",
                "jumps",
                "circles",
                "next",
                "to",
                "turns",
                "pink",
                "camera",
                "the",
                "pans",
                "left",
                "two",
                "behind",
                "with",
                "before",
            ]
        )
    ).map(" ".join)
)
def test_any_text_is_read(text: str) -> None:
    facts = facts_in(text)
    if text.strip():
        film, _ = film_from_script(Script((Shot(text),)))
        assert len(film.shots[0].placements) == len(facts.actors)
