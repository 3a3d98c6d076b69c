"""Annotations against the film and its pixels."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from shots.stage.annotate import annotations
from shots.stage.observe import Observations, observe
from shots.stage.render import render_film
from shots.stage.scene import Film
from shots.stage.writer import write_film


@pytest.fixture(scope="module")
def made() -> list[tuple[Film, Observations, dict[str, Any]]]:
    """Four small films of one to three shots with their annotations."""
    films = []
    for seed in range(4):
        film = write_film(seed, shots=1 + seed % 3, actors=1 + seed % 3, seconds=3.0, actions_per_shot=1 + seed % 2)
        rendered = render_film(film, 48, 48, 6)
        observations = observe(film, rendered)
        films.append((film, observations, annotations(film, rendered, observations, Random(seed))))
    return films


def test_shots_cover_the_film(made: list[tuple[Film, Observations, dict[str, Any]]]) -> None:
    for film, _, data in made:
        assert json.loads(json.dumps(data)) == data
        assert data["fps"] == 6 and data["duration"] == pytest.approx(film.seconds)
        edges = [0.0]
        for shot in data["shots"]:
            assert shot["start"] == pytest.approx(edges[-1])
            edges.append(shot["end"])
            assert shot["caption"]
        assert edges[-1] == data["duration"]


def test_events_are_all_actions_at_their_times(made: list[tuple[Film, Observations, dict[str, Any]]]) -> None:
    for film, observations, data in made:
        expected = [(k, i, action) for k, shot in enumerate(film.shots) for i, action in enumerate(shot.actions)]
        assert len(data["events"]) == len(expected)
        for event, (k, index, action) in zip(data["events"], expected, strict=True):
            start = sum(shot.seconds for shot in film.shots[:k])
            assert event["start"] == pytest.approx(start + action.start, abs=1e-3)
            assert event["end"] == pytest.approx(start + action.end, abs=1e-3)
            assert (event["actor"], event["action"]) == (action.actor, action.kind)
            assert event["observable"] == observations.sees_action(k, index)


def test_questions_are_sound(made: list[tuple[Film, Observations, dict[str, Any]]]) -> None:
    kinds = set()
    for film, observations, data in made:
        assert data["qa"]
        for qa in data["qa"]:
            kinds.add(qa["kind"])
            assert qa["options"].count(qa["answer"]) == 1 and len(set(qa["options"])) == len(qa["options"]) >= 2
            assert 0 <= qa["start"] < qa["end"] <= data["duration"] + 1e-6
            assert qa["question"].endswith("?") and "{" not in qa["question"]
            k = qa["shot"] - 1
            if qa["kind"] == "camera":
                assert observations.sees_camera(k)
            if qa["kind"] == "count":
                assert int(qa["answer"]) == len(film.shots[k].placements)
    assert {"shape", "action", "count", "when", "who", "camera"} <= kinds


class NothingSeen:
    """Observations of a viewer in the dark."""

    def _nothing(self, *_: object) -> bool:
        return False

    sees_actor = sees_surface = sees_size = sees_action = sees_still = sees_camera = sees_set = _nothing


def test_what_nobody_can_tell_is_never_asked() -> None:
    film = write_film(1, actors=2)
    rendered = render_film(film, 32, 32, 4)
    data = annotations(film, rendered, NothingSeen(), Random(0))
    assert data["qa"] == []
    assert not any(event["observable"] for event in data["events"])


def test_nobody_is_asked_who_did_what_by_an_actor_that_is_hardly_seen() -> None:
    film = write_film(300_000_273, shots=1, seconds=6.2, actors=3, actions_per_shot=3)
    rendered = render_film(film, 64, 64, 4)
    seen = observe(film, rendered)
    hidden = [a.actor for i, a in enumerate(film.shots[0].actions) if seen.sees_action(0, i)
              and not seen.sees_actor(0, a.actor)]  # fmt: skip
    assert hidden == ["black cone"]
    asked = annotations(film, rendered, seen, Random(0))["qa"]
    assert all(item["answer"] != "the black cone" for item in asked if item["kind"] == "who")
