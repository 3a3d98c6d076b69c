"""Prompt following: scoring films, first frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from shots.errors import ShotsError
from shots.script import Script, Shot
from shots.stage.facts import ActorFacts, Facts
from shots.stage.following import (
    Score,
    evaluate_first_frames,
    evaluate_judge,
    evaluate_prompts,
    jumps,
    psnr,
    shot_hits,
    shot_starts,
)
from shots.stage.heldout import SuiteItem, SuiteSpec, make_item
from shots.stage.judge.model import SHOT_FACTS, SLOT_FACTS, JudgeConfig, JudgeNet
from shots.stage.judge.read import FilmReading, Judge, Reading, _reading
from shots.stage.render import render_film
from shots.stage.scene import COLOURS
from shots.video import Video


def reading_of(facts: Facts) -> Reading:
    """What a judge would read that sees exactly `facts`."""
    row = {f"slot/{name}": torch.zeros(10, len(values)) for name, values in SLOT_FACTS.items()}
    row |= {f"shot/{name}": torch.zeros(len(values)) for name, values in SHOT_FACTS.items()}
    row["sound"] = torch.tensor(20.0)
    row["slot/shape"][:, 0] = 20.0
    for actor in facts.actors:
        for name, values in SLOT_FACTS.items():
            value = getattr(actor, name)
            if value is not None:
                row[f"slot/{name}"][COLOURS.index(actor.colour or "red"), values.index(value)] = 40.0
    for name, values in SHOT_FACTS.items():
        value = str(len(facts.actors)) if name == "count" else getattr(facts, name)
        if value is not None:
            value = {True: "yes", False: "no", "0": "none"}.get(value, value)
            row[f"shot/{name}"][values.index(value)] = 40.0
    return _reading(row)


RED = ActorFacts("red", "cube", "large", "matte", "jump", actions=("jump",))
BLUE = ActorFacts("blue", "sphere", None, "striped", "still")
SAID = Facts((RED, BLUE), camera="static", shot_size="medium", floor="sand", fog=True)


def test_a_film_that_shows_everything_scores_one():
    score = Score()
    score.add(SAID, reading_of(SAID), 2)
    report = score.report()
    assert report["facts_per_type"] == 1.0 and report["all_core_facts"] == 1.0
    assert report["of"] == {
        "action": 2, "camera": 1, "colour": 2, "count": 1, "floor": 1, "fog": 1, "shape": 2, "shot_size": 1, "size": 1,
        "surface": 2,
    }


def test_types_of_facts_weigh_the_same_however_often_they_are_said():
    shown = replace(SAID, actors=(replace(RED, action="spin"), BLUE), floor="grass")
    score = Score()
    score.add(SAID, reading_of(shown), 2)
    report = score.report()
    assert report["types"]["action"] == 0.5 and report["types"]["floor"] == 0.0
    assert report["facts_per_type"] == pytest.approx(1.0 - 1.5 / 10)
    assert report["all_core_facts"] == 0.0  # one action of the two is wrong


def test_a_size_is_no_core_fact_and_an_actor_that_is_missing_has_none():
    score = Score()
    score.add(SAID, reading_of(replace(SAID, actors=(replace(RED, size="small"), BLUE))))
    assert score.report()["all_core_facts"] == 1.0
    score = Score()
    score.add(Facts((RED,)), reading_of(Facts((BLUE,))))
    assert score.report()["facts_per_type"] == 0.0


def test_an_actor_of_open_colour_is_the_one_that_fits_best():
    said = Facts((BLUE, ActorFacts(None, "cube", action="jump")))
    green = replace(RED, colour="green")
    assert all(hit for _, hit in shot_hits(said, reading_of(Facts((BLUE, green)))))
    assert not all(hit for _, hit in shot_hits(said, reading_of(Facts((BLUE,)))))


def test_shots_start_where_their_seconds_say():
    script = Script((Shot("a", seconds=1.0), Shot("b"), Shot("c", seconds=0.01)))
    assert shot_starts(script, 12.0, 2.0) == [0, 12, 36, 37]


class Stage:
    """A renderer that always shows what the script says, and the judge that sees it: the top of the scale."""

    def __init__(self, items: list[SuiteItem], extra: int = 0) -> None:
        self.items, self.extra = {item.script: item for item in items}, extra
        self.last: SuiteItem | None = None

    def __call__(self, script_or_prompt: Script | str, *, image: np.ndarray | None = None, seed: int = 0) -> Video:
        assert isinstance(script_or_prompt, Script)
        self.last = self.items[script_or_prompt]
        frames = render_film(self.last.film(), 32, 32, 12.0).frames.numpy()
        frames = np.concatenate([frames, frames[: self.extra]])
        return Video(frames, 12.0, np.arange(len(frames)) / 12.0)

    def read_film(self, video: Video, cuts: list[float]) -> FilmReading:
        assert self.last is not None
        return FilmReading(tuple(reading_of(facts) for facts in self.last.shown), tuple(round(t * 12) for t in cuts))

    def read(self, frames: np.ndarray, fps: float) -> Reading:
        assert self.last is not None
        return reading_of(self.last.shown[0])

    def cuts(self, frames: np.ndarray) -> tuple[int, ...]:
        return (12, 20)


@pytest.fixture(scope="module")
def items() -> list[SuiteItem]:
    spec = SuiteSpec(3, 2_000_000_000, shots=2, actors=1, seconds=1.0)
    return [make_item(spec, index) for index in range(3)]


def test_the_stage_itself_follows_its_scripts_and_not_those_of_others(items: list[SuiteItem]):
    stage, seen = Stage(items), []
    report = evaluate_prompts(
        stage,
        items,
        stage,
        progress=lambda done, of, text: seen.append((done, of)),
        keep=lambda item, video, reading: seen.append(item),
    )
    assert report["following"]["facts_per_type"] == 1.0 and report["following"]["all_core_facts"] == 1.0
    assert report["shuffled"]["facts_per_type"] < 0.7 and report["shuffled"]["all_core_facts"] < 0.5
    assert report["consistency"] == 1.0 and report["sound"] == 1.0
    assert report["cuts_found"] == 1.0 and report["false_cuts"] == 3
    assert (3, 3) in seen and items[0] in seen


def test_a_film_of_the_wrong_length_is_refused(items: list[SuiteItem]):
    stage = Stage(items, extra=2)
    with pytest.raises(ShotsError, match="26 frames for a script of 24"):
        evaluate_prompts(stage, items, stage)
    with pytest.raises(ShotsError, match="no films"):
        evaluate_prompts(stage, [], stage)


def test_a_first_frame_that_is_kept_loses_nothing(items: list[SuiteItem]):
    stage = Stage(items)

    def animate(script: Script | str, *, image: np.ndarray, seed: int = 0) -> Video:
        video = stage(script)
        return replace(video, frames=np.concatenate([image[None], video.frames[1:]]))

    report = evaluate_first_frames(animate, items, stage, lambda x: x ^ np.uint8(1), height=32, width=32)
    assert report["autoencoder_psnr"] == pytest.approx(48.13, abs=0.01) and report["frame_0_psnr"] == np.inf
    assert report["following"]["facts_per_type"] == 1.0


def test_a_jump_after_the_first_frame_shows():
    steady = np.repeat(np.arange(0, 170, 10, dtype=np.uint8), 12).reshape(17, 2, 2, 3)
    first, later = jumps(steady)
    assert first == later == 25.0
    shaken = steady.copy()
    shaken[0] = 200
    assert jumps(shaken)[0] > 3 * later
    with pytest.raises(ShotsError, match="at least 9"):
        jumps(steady[:8])


def test_psnr_of_a_step_of_one_is_48_db():
    a = np.zeros((1, 4, 4, 3), np.uint8)
    assert psnr(a, a + 1) == pytest.approx(48.13, abs=0.01) and psnr(a, a) == np.inf


def test_the_judge_is_checked_on_every_kind_of_fact():
    torch.manual_seed(0)
    judge = Judge(JudgeNet(JudgeConfig(size=32, frames=4, stem=8, fine=16, deep=16, slot=16, heads=2, layers=1)))
    report = evaluate_judge(judge, films=3)
    assert {"shape", "camera", "present", "absent", "broken_called"} <= set(report["right"])
    assert all(0 <= share <= 1 for share in report["right"].values())
