"""Verification: what is wrong in a film comes out, what is right does not, and odd scripts and films cost nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shots import Script, Shot, Video, verify
from shots.calibration import CLIP, Calibration, Sample, Weights, fit
from shots.claims import claims
from shots.errors import ShotsError
from shots.evaluation import align, script_of
from shots.evidence import log_odds
from shots.sheet import report_sheet
from shots.stage.planted import CHECK_SEED, KINDS, Planted, planted
from tests.benchmarks.verification import Oracle

FPS = 12.0


@dataclass(frozen=True)
class Found:
    query: str
    moments: tuple[Any, ...] = ()
    status: str = "not_found"


@dataclass(frozen=True)
class Moment:
    start: float
    end: float
    score: float


class Believer:
    """A grounder of the smallest kind: every query is there, all the time, but for those that hold a given word."""

    def __init__(self, but: str = "\0") -> None:
        self.but = but
        self.asked: list[str] = []

    def ground(self, video: Any, queries: Sequence[str], top_k: int = 1) -> list[Found]:
        self.asked += queries
        there = Moment(0.0, video.duration, 0.9)
        return [Found(q) if self.but in q else Found(q, (there,), "ok") for q in queries]


class Teller:
    """Answers what it is told to, whatever the options."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers

    def ask(self, video: Any, question: str, options: Sequence[str] | None = None) -> str:
        return next((a for part, a in self.answers.items() if part in question and a in (options or ())), "")


def film(shots: int, frames: int = 24, cuts: bool = True) -> Video:
    """Shots of noise of their own, 32 x 32."""
    rng = np.random.default_rng(0)
    looks = [np.repeat(np.repeat(rng.integers(0, 255, (8, 8, 3)), 4, 0), 4, 1) for _ in range(shots)]
    pictures = np.concatenate([np.repeat(look[None], frames, 0) for look in looks]).astype(np.uint8)
    told = tuple(k * frames / FPS for k in range(1, shots)) if cuts else ()
    return Video(pictures, FPS, np.arange(len(pictures)) / FPS, told)


def script(*captions: str, seconds: float | None = 2.0) -> Script:
    return Script(tuple(Shot(caption, seconds) for caption in captions))


# ------------------------------------------------------------------------------------------------- planted defects


@cache
def made(kind: str | None) -> Planted:
    return planted(CHECK_SEED + 11, kind, shots=2, seconds=2.0)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_with_a_grounder_that_knows_all_the_shots_with_a_defect_fail_and_no_other(kind: str | None) -> None:
    bad = made(kind)
    report = verify(bad.video, bad.script, Oracle(bad), measures=False, calibration=Calibration())
    assert report.failed_shots() == list(bad.shots)
    assert report.passed == (kind is None)
    kinds = {defect.kind for shot in report.shots for defect in shot.defects}
    assert (kind in kinds or (kind, "place" in kinds) == ("order", True)) if kind else not kinds


def test_a_defect_says_what_was_expected_found_and_where() -> None:
    bad = made("colour")
    report = verify(bad.video, bad.script, Oracle(bad), measures=False, calibration=Calibration())
    shot = report.shots[bad.shots[0] - 1]
    defect = next(defect for defect in shot.defects if defect.kind == "colour")
    stranger = bad.film.cast[-1]
    assert defect.found == stranger.colour and defect.where == (shot.start, shot.end)
    assert 0.5 < defect.confidence <= 1.0 and stranger.colour not in defect.expected


def test_the_same_seed_has_the_same_script_and_other_kinds_are_refused() -> None:
    assert made("shape").script == made(None).script
    with pytest.raises(ValueError, match="kind"):
        planted(CHECK_SEED, "smell")


# ------------------------------------------------------------------------------------------------- claims


def test_a_stage_caption_becomes_events_with_one_word_changed_for_comparison() -> None:
    (events,) = claims(script("A tiny red box hops while a blue ball spins around."))
    assert [event.query for event in events] == ["the red cube jumps", "the blue sphere spins"]
    first = events[0]
    assert first.facts == {"colour": "red", "shape": "cube", "action": "jump"}
    queries = {contrast.query for contrast in first.contrasts}
    assert {"the green cube jumps", "the red torus jumps", "the red cube spins"} <= queries
    assert "the blue cube jumps" not in queries  # blue is there, and "falls" looks like jumping
    assert "the red cube falls" not in queries and first.query not in queries
    assert all(question.options[question.right] in ("red", "cube", "jumps") for question in first.questions)


def test_other_captions_are_asked_clause_by_clause() -> None:
    (events,) = claims(script("A woman in a red coat opens the door, then she waves. <b>Rain</b> 🌧 falls."))
    assert [event.query for event in events] == [
        "A woman in a red coat opens the door", "she waves", "<b>Rain</b> 🌧 falls",
    ]  # fmt: skip
    assert {contrast.kind for contrast in events[0].contrasts} == {"colour"}
    assert events[1].contrasts == () and [event.step for event in events] == [0, 1, 2]


def test_every_shot_claims_something() -> None:
    odd = script("Close-up.", "🙂", "&lt;script&gt;", "The cube jumps.", "An empty stage.", "No.")
    assert all(claims(odd))


# ------------------------------------------------------------------------------------------------- small grounders


def test_the_smallest_grounder_will_do_and_is_shown_the_shot_alone() -> None:
    grounder = Believer(but="jumps")
    report = verify(film(2), script("A red cube spins.", "A red cube jumps."), grounder, calibration=Calibration())
    assert report.failed_shots() == [2]
    assert report.shots[1].events[0].present < 0.01 and not report.shots[1].events[0].found
    assert "the red cube jumps" in grounder.asked


def test_an_answerer_is_believed_against_a_grounder_that_says_yes_to_all() -> None:
    told = script("A red cube spins.")
    right = verify(film(1), told, Believer(), answerer=Teller({"colour": "red", "shape": "cube", "do": "spins"}))
    wrong = verify(film(1), told, Believer(), answerer=Teller({"colour": "blue", "shape": "cube", "do": "spins"}))
    assert right.passed and not wrong.passed
    assert [(d.kind, d.found) for d in wrong.shots[0].defects] == [("colour", "blue")]


def test_a_grounder_that_answers_too_few_queries_is_refused() -> None:
    class Short(Believer):
        def ground(self, video: Any, queries: Sequence[str], top_k: int = 1) -> list[Found]:
            return super().ground(video, queries, top_k)[:-1]

    with pytest.raises(ShotsError, match="grounder"):
        verify(film(1), script("A red cube spins."), Short())


def test_the_threshold_decides_and_must_be_a_probability() -> None:
    strict = verify(film(1), script("A red cube spins."), Believer(), threshold=1.0)
    assert strict.failed_shots() == [1] and verify(film(1), script("A red cube."), Believer(), threshold=0.0).passed
    with pytest.raises(ShotsError, match="threshold"):
        verify(film(1), script("A red cube."), Believer(), threshold=2.0)


# ------------------------------------------------------------------------------------------------- odd films


def test_fewer_shots_than_the_script_are_missing_and_more_are_extra() -> None:
    three = script("A red cube spins.", "A blue cone jumps.", "A red cube falls.")
    fewer = verify(film(2, cuts=False), three, Believer())
    assert len(fewer.shots) == 3 and not fewer.passed
    gone = [shot for shot in fewer.shots if shot.defects and shot.defects[0].kind == "missing_shot"]
    assert len(gone) == 1 and gone[0].score == 0.0 and gone[0].start == gone[0].end
    more = verify(film(4, cuts=False), three, Believer())
    assert [defect.kind for defect in more.defects] == ["extra_shot"] and not more.passed


def test_a_film_without_a_cut_for_a_script_of_three_shots_of_no_length() -> None:
    report = verify(film(1), script(*["A red cube spins."] * 3, seconds=None), Believer())
    assert len(report.shots) == 3 and len(report.failed_shots()) == 2 and report.cuts.expected is None


def test_cuts_are_held_against_the_script_in_frames() -> None:
    report = verify(film(3), script(*["A red cube spins."] * 3), Believer())
    assert report.cuts.expected == (2.0, 4.0) and report.cuts.offsets == (0.0, 0.0) and report.cuts.matched == 2
    late = Script((Shot("A red cube spins.", 1.5), Shot("A red cube spins.", 2.5), Shot("A red cube spins.", 2.0)))
    assert verify(film(3), late, Believer()).cuts.offsets == (None, 0.0)


def test_a_cut_within_a_shot_is_a_defect_of_that_shot() -> None:
    video = film(2)
    video.cuts = ()
    told = Script((Shot("A red cube spins.", 1.0), Shot("A red cube spins.", 3.0)))
    video.record = {"frames": [12, 36]}
    report = verify(video, told, Believer())
    assert [(shot.number, shot.defects[0].kind) for shot in report.shots if shot.defects] == [(2, "cut")]


def test_an_actor_never_introduced_and_html_and_emoji_go_through(tmp_path: Path) -> None:
    captions = ["It jumps over the other one.", "<img src=x onerror=alert(1)> 🎬 «été»", "The green torus, again."]
    video = film(3)
    report = verify(video, script(*captions), Believer())
    again = json.loads(json.dumps(report.to_dict()))
    assert [shot["caption"] for shot in again["shots"]] == captions
    assert len(again["shots"]) == 3 and str(report)
    assert Image.open(report_sheet(video, report, tmp_path / "sheet.png")).width > 600


def test_black_frames_are_a_film_too() -> None:
    video = Video(np.zeros((24, 32, 32, 3), np.uint8), FPS, np.arange(24) / FPS)
    report = verify(video, script("A red cube spins."), Believer())
    assert report.quality.flow_dynamic_degree == 0.0 and report.quality.still


def test_many_shots_are_asked_in_their_own_windows_and_their_neighbours_only() -> None:
    grounder = Believer()
    report = verify(film(12, frames=12), script(*["A red cube spins."] * 12, seconds=1.0), grounder, measures=False)
    assert len(report.shots) == 12 and report.shots[0].quality is None
    assert grounder.asked.count("the red cube spins") <= 1 + 3 * 12


def test_a_file_is_held_against_its_own_record(tmp_path: Path) -> None:
    video = film(2)
    video.record = {"script": script("A red cube spins.", "A blue cone jumps.").to_dict(), "frames": [24, 24]}
    path = video.save(tmp_path / "film.mp4")

    class Pathed(Believer):
        def ground(self, video: Any, queries: Sequence[str], top_k: int = 1) -> list[Found]:
            return super().ground(film(2) if isinstance(video, Path) else video, queries, top_k)

    report = verify(path, script_of(path), Pathed())
    assert [shot.end for shot in report.shots] == pytest.approx([2.0, 4.0]) and report.cuts.matched == 1
    bare = film(1).save(tmp_path / "bare.mp4")
    with pytest.raises(ShotsError, match="--script"):
        script_of(bare)


def test_a_sheet_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    video = film(1)
    report = verify(video, script("A red cube spins."), Believer())
    with pytest.raises(ShotsError, match=r"sheet\.png"):
        report_sheet(video, report, tmp_path / "sheet.nothing")


# ------------------------------------------------------------------------------------------------- calibration


def test_what_tells_nothing_gets_no_weight_and_raises_no_alarm() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for n in range(200):
        good = n % 2 == 0
        told = {"contrast": float(rng.normal(2 if good else -2)), "asked": float(rng.normal())}
        rows.append(Sample("colour", told, good, (n, 1)))
        rows.append(Sample("shape", {"contrast": float(rng.normal()), "asked": float(rng.normal())}, good, (n, 1)))
    fitted = fit(rows, "me", 0.05)
    assert fitted.kinds["colour"].weights["contrast"] > 5 * fitted.kinds["colour"].weights.get("asked", 0.0)
    failed = {row.shot for row in rows if fitted.probability(row.kind, row.features) < fitted.limit}
    good = {(n, 1) for n in range(0, 200, 2)}
    assert len(failed & good) <= 0.05 * len(good)
    assert len(failed - good) >= 0.85 * len(good)


def test_weights_are_never_negative_and_survive_a_file(tmp_path: Path) -> None:
    rows = [Sample("place", {"present": -float(good), "elsewhere": float(good)}, good, (n, 0))
            for n, good in enumerate([True, False] * 20)]  # fmt: skip
    fitted = fit(rows)
    assert all(weight >= 0 for weight in fitted.kinds["place"].weights.values())
    (tmp_path / "c.json").write_text(json.dumps(fitted.to_dict()))
    again = Calibration.load(tmp_path / "c.json")
    assert again.to_dict() == fitted.to_dict()
    with pytest.raises(ShotsError, match="calibration"):
        Calibration.load(tmp_path / "none.json")
    with pytest.raises(ShotsError, match="false_alarms"):
        fit(rows, false_alarms=1.0)


def test_a_grounder_without_a_calibration_gets_plain_weights_and_the_report_says_so() -> None:
    assert Calibration.of(Believer()).grounder == ""
    assert "rank" in str(verify(film(1), script("A red cube spins."), Believer()))


def test_what_was_fitted_to_other_weights_is_told_once_and_claims_no_probability(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = {"me": replace(Calibration(limit=0.25, grounder="me"), weights="a" * 64).to_dict()}
    path = tmp_path / "verification.json"
    path.write_text(json.dumps(known))
    grounder = Believer()
    grounder.name, grounder.weights = "me", "a" * 64  # type: ignore[attr-defined]
    same = Calibration.of(grounder, path)
    assert (same.limit, same.stale, caplog.text) == (0.25, False, "")
    grounder.weights = "b" * 64  # type: ignore[attr-defined]
    for _ in range(2):
        other = Calibration.of(grounder, path)
    assert other.stale and other.limit == 0.25 and len(caplog.records) == 1 and "--calibrate" in caplog.text
    told = script("A red cube spins.")
    assert verify(film(1), told, grounder, calibration=same).to_dict()["calibration"] == "me"
    stale = verify(film(1), told, grounder, calibration=other)
    assert stale.to_dict()["calibration"] is None and "they rank, and no more" in str(stale)


def test_what_ships_for_verification_was_fitted_to_the_weights_that_ship() -> None:
    from unitime.grounder import SHIPPED, UniTime

    grounder = UniTime.__new__(UniTime)  # its name and folder, without loading it
    grounder.name, grounder._folder = "unitime-nano", SHIPPED["unitime-nano"]
    assert not Calibration.of(grounder).stale and Calibration.of(grounder).grounder == "unitime-nano", (
        "unitime/nano has other weights: python -m tests.benchmarks.verification --calibrate --films 12"
    )


def test_certainty_is_not_believed_beyond_a_limit() -> None:
    assert log_odds(1.0) == CLIP and log_odds(0.0) == -CLIP and log_odds(0.5) == 0.0
    assert Weights(0.0, {"a": 1.0}).probability({"b": 5.0}) == 0.5


def test_shots_are_matched_in_order_with_all_of_the_fewer() -> None:
    gain = np.array([[0.1, 0.0], [0.9, 0.2], [0.0, 0.8]])
    assert align(gain) == [None, 0, 1]
    assert align(gain.T) == [1, 2]
    assert align(np.eye(3)) == [0, 1, 2]
