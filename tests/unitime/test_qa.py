"""Answers come from the moment that bears on the question."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from unitime.errors import UniTimeError
from unitime.frames import FrameRule
from unitime.grounder import UniTime
from unitime.prompts import Prompts
from unitime.qa import sampled, widen

RULE = FrameRule(
    patch=4, merge=2, budget=512, min_tokens=4, max_tokens=4, fine_tokens=4, coarse_tokens=1, short_limit=16,
    long_limit=64, segment=4, max_fps=4, pair_gap=0.25,
)  # fmt: skip
QUESTION, OPTIONS = "What jumps?", ["a cube", "a cone", "nothing"]


@pytest.fixture
def model(oracle: Any) -> UniTime:
    made = UniTime(oracle(RULE, Prompts(not_found="Not found."), {QUESTION: [(41.0, 45.0)], "Who?": []}))
    made.model.replies = {QUESTION: "(B)", "Who?": "A sphere."}
    return made


def test_the_model_answers_from_the_moment_it_found(model: UniTime, film: Any) -> None:
    answer = model.ask(film(60), QUESTION, OPTIONS)
    assert (answer.answer, answer.option, str(answer)) == ("a cone", 1, "a cone")
    assert abs(answer.evidence.start - 41) < 1 and abs(answer.evidence.end - 45) < 1
    assert answer.window[0] <= 41 and answer.window[1] >= 45
    assert answer.window[1] - answer.window[0] == pytest.approx(16)
    assert len(answer.scores) == 3 and sum(answer.scores) == pytest.approx(1) and answer.scores[1] > 0.9
    read = model.model.passes[-1].stamps
    assert read[0] >= answer.window[0] and read[-1] <= answer.window[1]
    json.dumps(answer.to_dict(), allow_nan=False)


def test_where_nothing_is_found_the_whole_film_is_read(model: UniTime, film: Any) -> None:
    answer = model.ask(film(60), "Who?")
    assert (answer.answer, answer.option, answer.scores, answer.evidence) == ("A sphere.", None, None, None)
    assert answer.window == (0, 60)
    assert model.ask(film(60), "Who?", window=(5, 20)).window == (5, 20)


def test_looking_for_the_moment_can_be_left_out(model: UniTime, film: Any) -> None:
    answer = model.ask(film(60), QUESTION, OPTIONS, grounded=False, frames=8)
    assert answer.grounding is None and answer.window == (0, 60) and answer.option == 1
    assert len(model.model.passes) == 1 and len(model.model.passes[0].stamps) == 4


@pytest.mark.parametrize(
    ("reply", "option"), [(2, 2), (np.int64(0), 0), ("(C)", 2), ("b", 1), ("C.", 2), (" a CONE ", 1), ("(B) a cone", 1)]
)
def test_any_answerer_plugs_in(model: UniTime, film: Any, reply: Any, option: int) -> None:
    shown = []

    def answerer(frames: np.ndarray, question: str, options: Any) -> Any:
        shown.append(frames)
        assert (question, options) == (QUESTION, OPTIONS)
        return reply

    answer = model.ask(film(60), QUESTION, OPTIONS, answerer=answerer)
    assert (answer.option, answer.answer, answer.scores) == (option, OPTIONS[option], None)
    assert shown[0].dtype == np.uint8 and shown[0].shape[0] == 32 and shown[0].shape[3] == 3


def test_an_answerer_may_write_freely_and_see_as_many_frames_as_asked(model: UniTime, film: Any) -> None:
    answer = model.ask(film(60), QUESTION, answerer=lambda frames, *_: f"{len(frames)} frames", frames=7)
    assert (answer.answer, answer.option) == ("7 frames", None)


@pytest.mark.parametrize("reply", ["maybe", 3, -1, "D"])
def test_a_reply_that_is_no_option_is_an_error(model: UniTime, film: Any, reply: Any) -> None:
    with pytest.raises(UniTimeError, match="answerer"):
        model.ask(film(15), QUESTION, OPTIONS, answerer=lambda *_: reply)


def test_windows_are_widened_about_their_middle_within_the_film() -> None:
    assert widen((40, 44), 32, (0, 100)) == (26, 58)
    assert widen((1, 3), 32, (0, 100)) == (0, 32)
    assert widen((97, 99), 32, (0, 100)) == (68, 100)
    assert widen((10, 90), 32, (0, 100)) == (10, 90)
    assert widen((1, 3), 32, (0, 10)) == (0, 10)


def test_sampled_frames_are_as_many_as_asked_and_even(model: UniTime, film: Any) -> None:
    handle = model.encode(film(60))
    plan = sampled(handle, (10, 42), 32, even=True)
    assert plan.times.size == 32
    assert np.allclose(np.diff(plan.times.ravel()), np.diff(plan.times.ravel())[0])
    assert plan.times.min() >= 10 and plan.times.max() <= 42
    assert sampled(handle, (10, 42), 5).times.shape == (3, 2)
    assert sampled(handle, (10, 10.5), 64, even=True).times.size == 64
    assert sampled(handle, (10, 10.5), 64).times.size == 2  # as many units as there are stamps to name them


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("question", {"question": " "}), ("question", {"question": 3}), ("options", {"options": []}),
     ("options", {"options": ["a"]}), ("options", {"options": "ab"}), ("options", {"options": ["a", ""]}),
     ("options", {"options": ["a"] * 27}), ("options", {"options": 5}), ("options", {"options": ["a", "\udcff"]}),
     ("min_seconds", {"min_seconds": "x"}), ("frames", {"frames": 0}), ("min_seconds", {"min_seconds": -1}),
     ("window", {"window": (5, 5)})],
)  # fmt: skip
def test_bad_arguments_are_named(model: UniTime, film: Any, name: str, arguments: Any) -> None:
    with pytest.raises(UniTimeError, match=name):
        model.ask(film(15), **({"question": QUESTION} | arguments))
