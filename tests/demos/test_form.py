"""The studio's plain functions: fields to requests and back, reports to marks, results to files."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace
from typing import Any

import pytest

from demos import form, ground, verdict
from demos.ask import shown
from demos.follow import screen, shot_seeds
from seedance.errors import SeedanceError
from seedance.jobs import NoSuchJob, Progress
from shots.errors import ShotsError

SCRIPT = {
    "shots": [{"caption": "A red cube jumps.", "seconds": 2.0}, {"caption": "A blue cone spins.", "seconds": 1.0}]
}


def fields(**said: Any) -> dict[str, Any]:
    return {"mode": "Shots", "cards": form.cards_of(SCRIPT), "prompt": "", "seed": "7", **said}


def test_a_prompt_and_cards_say_the_same_and_keep_what_the_other_cannot_say() -> None:
    cards = form.cards_of(SCRIPT)
    text = form.to_text(cards)
    assert text == "A red cube jumps. [cut]\nA blue cone spins."
    assert form.to_cards(text, cards)["shots"] == cards["shots"]  # seconds are back
    assert form.to_cards("A green torus falls. [cut] A blue cone spins.", cards)["shots"][1] == cards["shots"][1]
    assert form.to_cards("  ", cards) == form.empty_cards()


def test_a_request_holds_what_was_said_and_no_more() -> None:
    assert form.request_of(fields()) == {"script": SCRIPT, "seed": 7}
    said = fields(size="128 × 192", fps="12", steps=" 9 ", guidance="3,5", negative=" fog ", style="toon", length="4")
    assert form.request_of(said) == {
        "script": {"style": "toon", **SCRIPT}, "seed": 7, "height": 128, "width": 192, "fps": 12.0, "steps": 9,
        "guidance_scale": 3.5, "negative_prompt": "fog",
    }  # fmt: skip
    drawn = form.request_of({"mode": "Prompt", "prompt": "A cube. [cut] A cone.", "seed": "", "length": "4"})
    assert [shot["seconds"] for shot in drawn["script"]["shots"]] == [4.0, 4.0]
    assert 0 <= drawn["seed"] < form.LARGEST_SEED


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"cards": form.empty_cards()}, "nothing is written"),
        ({"seed": "many"}, "seed"),
        ({"seed": "-5"}, "seed"),
        ({"steps": "2.5"}, "steps"),
        ({"fps": "fast"}, "fps"),
        ({"cards": {"shots": [{"caption": "A cube.", "seconds": -1}]}}, "shot 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(said: dict[str, Any], named: str) -> None:
    with pytest.raises((SeedanceError, ShotsError), match=named):
        form.request_of(fields(**said))


def test_locked_shots_stay_and_only_where_they_stood() -> None:
    cards = form.with_take(form.cards_of(SCRIPT), "take", SCRIPT, [7, 7])
    assert [card["shot"] for card in cards["shots"]] == [1, 2] and cards["retakes"]
    cards["shots"][0]["locked"] = True
    request = form.request_of(fields(cards=cards, size="128 × 128"))
    assert request == {"script": SCRIPT, "seed": 7, "source": "take", "shots": [2]}
    moved = {"shots": cards["shots"][::-1]}
    with pytest.raises(SeedanceError, match="shot 2 is locked and was shot 1"):
        form.request_of(fields(cards=moved))
    cards["shots"][1]["locked"] = True
    with pytest.raises(SeedanceError, match="every shot is locked"):
        form.request_of(fields(cards=cards))
    cards["shots"][1]["take"] = "another"
    with pytest.raises(SeedanceError, match="different takes"):
        form.request_of(fields(cards=cards))


def test_a_card_whose_words_changed_no_longer_belongs_to_its_take() -> None:
    cards = form.with_take(form.cards_of(SCRIPT), "take", SCRIPT, [7, 7])
    cards["shots"][0]["caption"] = "A green torus falls."
    again = form.with_take(cards, "later", SCRIPT, [8, 8])
    assert "take" not in again["shots"][0] and again["shots"][1]["take"] == "later"


def test_a_job_fills_the_form_that_asks_for_it_again() -> None:
    request = {"script": {**SCRIPT, "style": "toon"}, "seed": 3, "height": 64, "width": 32, "fps": 12.0, "steps": 4}
    said = form.fields_of(request)
    assert form.request_of(said) == request


def test_each_shot_tells_the_seed_it_was_really_drawn_from() -> None:
    def job(seed: int, source: str | None = None, shots: list[int] | None = None) -> Any:
        return SimpleNamespace(request={"script": SCRIPT, "seed": seed, "shots": shots}, source=source)

    class Kept:
        def get(self, id_: str, client: str | None) -> Any:
            if id_ != "first":
                raise NoSuchJob("gone")
            return job(1)

    services: Any = SimpleNamespace(jobs=Kept())
    assert shot_seeds(services, job(1), None) == [1, 1]
    assert shot_seeds(services, job(2, "first", [2]), None) == [1, 2]
    assert shot_seeds(services, job(2, "lost", [2]), None) == [None, 2]


def test_the_screen_says_how_a_job_stands() -> None:
    def job(status: str, **more: Any) -> Any:
        return SimpleNamespace(
            status=status, done=status not in ("queued", "in_progress"), request={"seed": 5}, result={},
            started_at=1.0, completed_at=3.5, error_message="it is too large", **more,
        )  # fmt: skip

    assert screen(job("queued"), Progress(position=2))["text"] == "Waiting for 2 films before it"
    running = screen(job("in_progress"), Progress(40, "rendering", 2, 5, 0, 9.0, (b"picture",)))
    assert (running["text"], running["share"], running["left"]) == ("Rendering, step 2 of 5", 0.4, 9.0)
    assert running["previews"][0].startswith("data:image/")
    assert screen(job("completed"), Progress())["text"] == "Done in 2.5 s, seed 5."
    assert screen(job("failed"), Progress()) == {"state": "failed", "text": "It is too large."}
    assert screen(job("cancelled"), Progress())["state"] == "cancelled"


REPORT: dict[str, Any] = {
    "passed": False, "score": 0.4, "failed_shots": [2], "duration": 3.0, "defects": [],
    "cuts": {"found": [{"time": 2.0}]},
    "shots": [
        {"number": 1, "start": 0.0, "end": 2.0, "caption": "A red cube jumps.", "passed": True, "score": 0.8,
         "defects": [],
         "events": [{"query": "a red cube jumps", "moments": [{"start": 0.1, "end": 1.5, "score": 0.9}]}]},
        {"number": 2, "start": 2.0, "end": 3.0, "caption": "A blue cone spins.", "passed": False, "score": 0.2,
         "defects": [{"kind": "colour", "expected": "blue", "found": "green"}],
         "events": [{"query": "a blue cone spins", "moments": []}]},
    ],
}  # fmt: skip


def test_a_report_marks_the_cards_and_draws_what_failed() -> None:
    cards = verdict.marked(form.cards_of(SCRIPT), REPORT)["shots"]
    assert [card["verdict"]["kind"] for card in cards] == ["good", "bad"]
    assert cards[1]["verdict"]["why"] == "colour: expected blue, seen green"
    bars = verdict.timeline(REPORT, "player")
    assert [moment["kind"] for moment in bars["rows"][0]["moments"]] == ["good", "bad"]
    assert [row["status"] for row in bars["rows"]] == ["ok", "ok", "not_found"] and bars["cuts"] == [2.0]
    assert verdict.words(REPORT) == "1 of 2 shots show what the script says (score 0.40)."
    assert verdict.rows(REPORT)[1] == [2, "failed", 0.2, "A blue cone spins.", "colour: expected blue, seen green"]


def test_moments_are_exported_whole_and_no_cell_is_a_formula() -> None:
    moment = {"start": 0.123456, "end": 1.0, "score": 0.5}
    result = {
        "video": "film.mp4", "duration": 2.0,
        "groundings": [
            {"query": "=1+1", "status": "ok", "moments": [moment]}, {"query": "b", "status": "not_found", "moments": []}
        ],
    }  # fmt: skip
    as_json, as_csv = ground.exported(result, "film")
    assert json.loads(as_json.read_text()) == result
    rows = list(csv.DictReader(as_csv.open()))
    assert [row["query"] for row in rows] == ["'=1+1", "b"] and rows[0]["start"] == "0.123" and rows[1]["start"] == ""
    as_json.unlink(), as_csv.unlink(), as_csv.parent.rmdir()


def test_an_answer_plays_its_evidence_or_says_that_there_is_none() -> None:
    said = {"answer": "It jumps.", "option": 0, "scores": [0.7, 0.3], "window": [0.0, 4.0]}
    evidence = {"start": 1.0, "end": 2.0, "score": 0.5}
    told, bars = shown({**said, "evidence": evidence}, ["It jumps.", "It falls."], 4.0)
    assert bars["play"] == [1.0, 2.0] and told["options"][1] == {"text": "It falls.", "score": 0.3}
    told, bars = shown({**said, "evidence": None}, ["It jumps.", "It falls."], 4.0)
    assert "play" not in bars and "whole film" in told["basis"]
