"""Scenes of the stage as training and evaluation see them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shots.stage.heldout import TRAINING_SEEDS
from shots.stage.scene import ACTIONS, COLOURS
from unitime import suites
from unitime.training import scenes
from unitime.training.scenes import Ask, Told, draw, film_of, joined, lone_questions


@pytest.fixture(scope="module")
def made() -> list[scenes.Scene]:
    return [draw(seed) for seed in (1, 2, 3)]


def test_every_window_lies_in_the_scene_and_belongs_to_an_action_of_the_film(made: list[scenes.Scene]) -> None:
    asked = 0
    for scene in made:
        film = film_of(scene.told.seed)
        edges = [sum(shot.seconds for shot in film.shots[:k]) for k in range(len(film.shots))]
        starts = {(a.actor, a.kind, round(edges[k] + a.start, 1)) for k, s in enumerate(film.shots) for a in s.actions}
        for ask in scene.told.asks:
            actor = next(a for a in film.cast if (a.colour, a.shape) == (ask.colour, ask.shape))
            for start, end in ask.windows:
                asked += 1
                assert 0 <= start < end <= scene.told.duration
                assert any(abs(start - s) < 0.3 for name, kind, s in starts if (name, kind) == (actor.name, ask.kind))
    assert asked >= 5


def test_what_is_called_absent_does_not_happen(made: list[scenes.Scene]) -> None:
    for scene in made:
        film = film_of(scene.told.seed)
        done = {(film.actor(a.actor).colour, a.kind) for shot in film.shots for a in shot.actions}
        assert scene.told.absent
        assert not done & {(ask.colour, ask.kind) for ask in scene.told.absent}
        assert all(ask.windows == () and ask.texts for ask in scene.told.absent)


def test_labels_agree_with_the_pixels(made: list[scenes.Scene]) -> None:
    scene = made[0]
    assert scene.cover.shape == (len(scene.frames), 4, 4, 3)
    assert scene.cover.float().mean() > 1  # somebody is there
    for i, (colour, *_) in enumerate(scene.cast.tolist()):
        assert (colour < 0) == (not scene.cover[..., i].any())
        assert colour < len(COLOURS)
    assert set(scene.doing.unique().tolist()) <= set(range(len(ACTIONS)))


def test_a_shard_comes_back_as_it_was(made: list[scenes.Scene], tmp_path: Path) -> None:
    path = scenes.shard_path(tmp_path, 0)
    scenes.save_scenes(path, made)
    back = scenes.load_scenes(path)
    assert [scene.told for scene in back] == [scene.told for scene in made]
    assert all(torch.equal(a.frames, b.frames) and torch.equal(a.box, b.box) for a, b in zip(back, made, strict=True))


def _told(duration: float, asks: dict[str, tuple[tuple[float, float], ...]], absent: tuple[str, ...] = (),
          unclear: tuple[str, ...] = ()) -> Told:  # fmt: skip
    def ask(key: str, windows: tuple[tuple[float, float], ...]) -> Ask:
        actor, kind, *_ = key.split("|")
        colour, shape = actor.split()
        return Ask((f"the {actor} {kind}s",), windows, colour, shape, kind, key)

    found, missing = tuple(ask(k, w) for k, w in asks.items()), tuple(ask(k, ()) for k in absent)
    return Told(0, duration, found, missing, (), (), unclear)


def test_scenes_joined_are_searched_as_one() -> None:
    one = _told(10, {"red cube|jump||": ((1, 2),), "blue cone|spin||": ((3, 4),)}, absent=("red cube|fall||",))
    two = _told(8, {"red cube|jump||": ((5, 6),), "red cube|fall||": ((0, 1),)}, absent=("green torus|grow||",),
                unclear=("blue cone|spin||",))  # fmt: skip
    both = joined([one, two])
    assert both.duration == 18
    assert {ask.key: ask.windows for ask in both.asks} == {
        "red cube|jump||": ((1, 2), (15, 16)),  # the second scene's, ten seconds later
        "red cube|fall||": ((10, 11),),
    }  # the spin is gone: the second scene has one that nobody can tell
    assert [ask.key for ask in both.absent] == ["green torus|grow||"]  # the fall does happen


def test_a_question_with_two_answers_is_not_asked_of_the_whole() -> None:
    item = {"question": "In shot 1, what does the red cube do?", "options": ["jumps", "spins"], "answer": "jumps",
            "kind": "action", "shot": 1, "start": 0.0, "end": 3.0}  # fmt: skip
    told = replace(_told(6, {}), qa=(item,))
    assert [(q.text, q.start, q.end) for q in lone_questions(told)] == [("What does the red cube do?", 0.0, 3.0)]
    again = {**item, "question": "In shot 2, what does the red cube do?", "answer": "spins"}
    assert lone_questions(replace(told, qa=(item, again))) == []


def test_no_training_seed_draws_a_held_out_video() -> None:
    firsts = [first for _, first, _, _ in suites.SHORT.values()] + [suites.REPEATED_SEED, suites.LONG_SEED]
    assert min(firsts) > TRAINING_SEEDS > scenes.ScenesRecipe("scenes", Path(), 100_000).seed + 100_000


def test_grey_frames_show_nothing_and_a_lead_moves_the_windows() -> None:
    item = suites.drawn(suites.FIRST_SEED)
    blank = suites.grey(item.video)
    assert blank.duration == item.video.duration and blank.frames.std() == 0
    later = suites.grey(item.video, 4.0)
    assert later.duration == pytest.approx(item.video.duration + 4.0)
    assert (later.frames[32:] == item.video.frames).all()
    now, then = suites.asked(item)[0].windows, suites.asked(item, 4.0)[0].windows
    assert now and then and [(s + 4, e + 4) for s, e in now] == list(then)
