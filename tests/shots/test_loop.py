"""The loop on renderers that draw numbers: which shots are taken again, which take of a shot is kept, when it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import pytest

from shots.cuts import CutList
from shots.errors import ShotsError
from shots.evaluation import CutReport, Defect, Report, ShotReport
from shots.loop import Result, direct
from shots.protocols import Retaker
from shots.quality import Quality
from shots.script import Script, Shot
from shots.video import Video

SCRIPT = Script(tuple(Shot(f"Shot {k}", 0.25) for k in (1, 2, 3)))

Judgement = Callable[[Sequence[float]], Sequence[float]]


def shown(film: Sequence[float]) -> Video:
    """A film of three shots of two frames each, whose brightness is what the shots are worth (0 to 1)."""
    frames = np.repeat(np.array([round(255 * worth) for worth in film], np.uint8), 2)
    return Video(np.tile(frames[:, None, None, None], (1, 4, 4, 3)), 8.0, np.arange(len(frames)) / 8, (0.25, 0.5))


def report_of(scores: Sequence[float], passes: float = 0.8) -> Report:
    shots = tuple(
        ShotReport(
            k, 0.25 * (k - 1), 0.25 * k, f"Shot {k}", score >= passes, score, (),
            () if score >= passes else (Defect("colour", "red", "blue", (0.25 * (k - 1), 0.25 * k), 1 - score, k),),
        )
        for k, score in enumerate(scores, start=1)
    )  # fmt: skip
    return Report(
        all(shot.passed for shot in shots), float(np.prod(scores)), shots, (), CutReport(None, CutList(8.0, 6, ())),
        Quality.mean([]), (), 8.0, 0.75, 0.5, "",
    )  # fmt: skip


@dataclass
class Studio:
    """Draws what each shot is worth from the seed, and holds shots."""

    worths: dict[int, Sequence[float]] = field(default_factory=dict)  # by call, from 1; else drawn
    calls: list[tuple[str, tuple[int, ...], int]] = field(default_factory=list)

    def _drawn(self, seed: int) -> Sequence[float]:
        return self.worths.get(len(self.calls)) or [Random(f"{seed} {k}").random() for k in range(3)]

    def take(self, script: Script | str, *, seed: int = 0) -> Any:
        self.calls.append(("take", (1, 2, 3), seed))
        return tuple(self._drawn(seed))

    def retake(self, film: Any, shots: Sequence[int], *, seed: int | None = None) -> Any:
        assert seed is not None
        self.calls.append(("retake", tuple(shots), seed))
        drawn = self._drawn(seed)
        return tuple(drawn[k] if k + 1 in shots else worth for k, worth in enumerate(film))

    def splice(self, film: Any, other: Any, shots: Sequence[int]) -> Any:
        return tuple(other[k] if k + 1 in shots else worth for k, worth in enumerate(film))

    def video(self, film: Any) -> Video:
        return shown(film)


class Projector:
    """A renderer that makes whole films only."""

    def __init__(self, worths: Sequence[Sequence[float]]) -> None:
        self.worths, self.seeds = list(worths), []

    def __call__(self, script_or_prompt: Script | str, *, seed: int = 0) -> Video:
        self.seeds.append(seed)
        return shown(self.worths[len(self.seeds) - 1])


def seen(video: Video) -> list[float]:
    return [float(video.frames[k, 0, 0, 0]) / 255 for k in (0, 2, 4)]


def verifier(video: Video, script: Script) -> Report:
    return report_of(seen(video))


def test_a_good_first_take_is_not_taken_again() -> None:
    studio = Studio({1: (0.9, 0.9, 0.9)})
    result = direct(SCRIPT, studio, verifier, 3, seed=4)
    assert studio.calls == [("take", (1, 2, 3), 4)]
    assert result.chosen == (1, 1, 1) and result.report.passed and len(result.takes) == 1


def test_failed_shots_are_made_anew_until_they_pass_and_the_others_are_held() -> None:
    studio = Studio({1: (0.9, 0.2, 0.3), 2: (0.0, 0.9, 0.4), 3: (0.0, 0.0, 1.0)})
    result = direct(SCRIPT, studio, verifier, 5, seed=4)
    assert [call[1] for call in studio.calls] == [(1, 2, 3), (2, 3), (3,)]
    assert result.film == (0.9, 0.9, 1.0) and result.chosen == (1, 2, 3)
    assert np.array_equal(result.video.frames, shown(result.film).frames)


def test_a_worse_take_of_a_shot_is_discarded_while_a_better_one_beside_it_is_kept() -> None:
    studio = Studio({1: (0.9, 0.5, 0.5), 2: (0.9, 0.2, 0.7)})
    result = direct(SCRIPT, studio, verifier, 1)
    assert result.film == (0.9, 0.5, 0.7) and result.chosen == (1, 1, 2)
    assert [round(shot.score, 1) for shot in result.report.shots] == [0.9, 0.5, 0.7]  # of the film given back


def test_a_film_put_together_that_turns_out_worse_is_given_up() -> None:
    def spoilt(video: Video, script: Script) -> Report:  # the takes of shots 1 and 3 do not go together
        scores = seen(video)
        return report_of(
            [0.1, 0.1, 0.1] if 0.65 < scores[2] < 0.75 and scores[1] < 0.55 and scores[1] > 0.45 else scores
        )

    result = direct(SCRIPT, Studio({1: (0.9, 0.5, 0.5), 2: (0.9, 0.2, 0.7)}), spoilt, 1)
    assert result.film == (0.9, 0.5, 0.5) and result.chosen == (1, 1, 1)


def test_passing_counts_more_than_the_score() -> None:
    def picky(video: Video, script: Script) -> Report:  # dim passes
        scores = seen(video)
        return report_of(scores, passes=0.0) if scores[1] < 0.35 else report_of(scores, passes=0.99)

    result = direct(SCRIPT, Studio({1: (1.0, 0.6, 1.0), 2: (0.0, 0.3, 0.0)}), picky, 1)
    assert result.chosen == (1, 2, 1) and result.report.passed


def test_shots_that_pass_in_doubt_are_taken_again_unless_told_otherwise() -> None:
    def lenient(video: Video, script: Script) -> Report:
        return report_of(seen(video), passes=0.1)

    worths = {1: (0.9, 0.3, 0.9), 2: (0.0, 0.8, 0.0)}
    assert direct(SCRIPT, Studio(worths), lenient, 1).chosen == (1, 2, 1)
    assert direct(SCRIPT, Studio(worths), lenient, 1, doubt=0.0).chosen == (1, 1, 1)


def test_no_take_makes_the_film_worse_and_more_takes_make_it_better_on_the_whole() -> None:
    def run(seed: int, retakes: int) -> Result:
        return direct(SCRIPT, Studio(), verifier, retakes, seed=seed)

    gains = []
    for seed in range(40):
        passed = [sum(shot.passed for shot in run(seed, n).report.shots) for n in range(4)]
        assert passed == sorted(passed)
        gains.append(passed[3] - passed[0])
    assert np.mean(gains) > 0.8  # of three shots, of which a fifth pass by chance


def test_a_weak_verifier_that_ranks_is_worth_most_of_one_that_knows() -> None:
    """Scores that are noisy, shifted and squeezed choose nearly as well as the truth: only their order counts."""

    def run(verify: Callable[[Video, Script], Report]) -> float:
        return float(np.mean([sum(direct(SCRIPT, Studio(), verify, 3, seed=seed).film) for seed in range(60)]))

    def weak(video: Video, script: Script) -> Report:
        scores = [0.3 + 0.1 * worth + 0.02 * Random(f"{worth}").gauss(0, 1) for worth in seen(video)]
        return report_of(scores)

    def blind(video: Video, script: Script) -> Report:
        return report_of([0.3 + 0.1 * Random(f"blind {worth}").random() for worth in seen(video)])

    knows, ranks, guesses = run(verifier), run(weak), run(blind)
    assert guesses < ranks - 0.3 and ranks - guesses > 0.7 * (knows - guesses)


def test_the_same_seed_gives_the_same_takes_and_another_one_others() -> None:
    def record(seed: int) -> str:
        return json.dumps(direct(SCRIPT, Studio(), verifier, 3, seed=seed).to_dict())

    assert record(5) == record(5) != record(6)


def test_the_record_tells_every_take_with_its_seed_scores_and_defects() -> None:
    result = direct(SCRIPT, Studio({1: (0.9, 0.2, 0.9), 2: (0.0, 0.9, 0.0)}), verifier, 3, seed=7).to_dict()
    first, second = result["takes"]
    assert first["seed"] == 7 and [shot["passed"] for shot in first["shots"]] == [True, False, True]
    assert first["shots"][1]["defects"][0]["found"] == "blue"
    assert second["shots"] == [{"shot": 2, "passed": True, "score": 0.902, "defects": []}]
    assert result["chosen"] == [1, 2, 1] and result["passed"] and result["failed_shots"] == []


def test_a_renderer_that_holds_no_shots_gives_its_best_whole_film() -> None:
    projector = Projector([(0.9, 0.2, 0.3), (0.1, 0.9, 0.9), (0.9, 0.3, 0.2)])
    assert not isinstance(projector, Retaker)
    result = direct(SCRIPT, projector, verifier, 2, seed=3)
    assert seen(result.video) == pytest.approx([0.1, 0.9, 0.9], abs=0.01)
    assert result.chosen == (2, 2, 2) and projector.seeds[0] == 3 and len(set(projector.seeds)) == 3


def test_a_first_take_that_is_there_is_gone_on_from() -> None:
    studio = Studio({1: (0.0, 0.0, 0.9)})
    assert direct(SCRIPT, studio, verifier, 1, film=(0.9, 0.9, 0.1)).film == (0.9, 0.9, 0.9)
    assert [call[:2] for call in studio.calls] == [("retake", (3,))]


def test_it_can_be_stopped_between_takes_and_gives_the_best_so_far() -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 1

    studio = Studio({1: (0.9, 0.2, 0.3), 2: (0.0, 0.9, 0.4)})
    result = direct(SCRIPT, studio, verifier, 5, stop=stop)
    assert result.stopped and result.film == (0.9, 0.9, 0.4) and len(studio.calls) == 2


def test_an_exception_in_the_callback_ends_it_at_once() -> None:
    told: list[tuple[int, int, str]] = []

    def callback(done: int, total: int, what: str) -> None:
        told.append((done, total, what))
        if what.startswith("take 2"):
            raise KeyboardInterrupt

    studio = Studio({1: (0.9, 0.2, 0.3)})
    with pytest.raises(KeyboardInterrupt):
        direct(SCRIPT, studio, verifier, 3, callback=callback)
    assert len(studio.calls) == 1
    assert told == [
        (0, 4, "take 1: rendering"),
        (0, 4, "take 1: verifying"),
        (1, 4, "take 2: rendering shots 2, 3 again"),
    ]


def test_every_take_can_be_kept() -> None:
    kept: list[tuple[int, Any]] = []
    studio = Studio({1: (0.9, 0.2, 0.9), 2: (0.0, 0.1, 0.0), 3: (0.0, 0.9, 0.0)})
    direct(SCRIPT, studio, verifier, 2, keep=lambda take, film: kept.append((take.number, film)))
    assert kept == [(1, (0.9, 0.2, 0.9)), (2, (0.9, 0.1, 0.9)), (3, (0.9, 0.9, 0.9))]


@pytest.mark.parametrize(
    ("options", "named"), [({"retakes": -1}, "retakes"), ({"retakes": 1.5}, "retakes"), ({"doubt": 2}, "doubt")]
)
def test_a_bad_argument_is_named_before_anything_is_rendered(options: dict[str, Any], named: str) -> None:
    studio = Studio()
    with pytest.raises(ShotsError, match=named):
        direct(SCRIPT, studio, verifier, **options)
    assert not studio.calls


def test_a_verifier_that_leaves_shots_out_is_refused() -> None:
    with pytest.raises(ShotsError, match="one report a shot"):
        direct(SCRIPT, Studio(), lambda video, script: report_of([0.9, 0.9]))
