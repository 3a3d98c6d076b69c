"""What a report of ``shots.evaluation.verify`` says, as pages show it: marks on the cards, bars on a time line, words.

Notable choice: works on the report's JSON, so that a report made beside the renderer, or read from a file, is shown the
same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def of_job(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report that a job's film was verified with where it was made, None where it was not."""
    return (result.get("verification") or {}).get("report")


def words(report: Mapping[str, Any]) -> str:
    """The report in a sentence."""
    shots, failed = report["shots"], report["failed_shots"]
    if report["passed"]:
        what = "All shots show" if len(shots) > 1 else "The film shows"
        return f"{what} what the script says (score {report['score']:.2f})."
    told = f"{len(shots) - len(failed)} of {len(shots)} shots show what the script says"
    extra = "".join(f" {defect_words(defect).capitalize()}." for defect in report.get("defects", ()))
    return f"{told} (score {report['score']:.2f}).{extra}"


def defect_words(defect: Mapping[str, Any]) -> str:
    """A defect in a few words."""
    seen = f", seen {defect['found']}" if defect.get("found") else ""
    return f"{defect['kind'].replace('_', ' ')}: expected {defect['expected']}{seen}"


def timeline(report: Mapping[str, Any], player: str) -> dict[str, Any]:
    """The report as the value of a time line under a player: the shots, then each event where it was found."""
    shots = [
        {
            "start": shot["start"], "end": shot["end"], "kind": "good" if shot["passed"] else "bad",
            "text": f"{'✓' if shot['passed'] else '✗'} {shot['number']}",
        }
        for shot in report["shots"]
        if shot["end"] > shot["start"]
    ]  # fmt: skip
    cuts = [cut["time"] for cut in report.get("cuts", {}).get("found", ())]
    rows: list[dict[str, Any]] = [{"label": "Shots", "status": "ok", "moments": shots, "relevance": []}]
    for shot in report["shots"]:
        for event in shot["events"]:
            status = "ok" if event["moments"] else "not_found"
            moments = event["moments"][:1]
            rows.append({"label": event["query"], "status": status, "moments": moments, "relevance": []})
    return {"player": player, "duration": report["duration"], "cuts": cuts, "rows": rows}


def marked(cards: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """The cards with what became of their shots."""
    verdicts = {}
    for shot in report["shots"]:
        defects = [defect_words(defect) for defect in shot["defects"]]
        kind = "good" if shot["passed"] else "bad"
        verdicts[shot["number"]] = {"kind": kind, "text": f"{shot['score']:.2f}", "why": "; ".join(defects)}
    shots = [card | {"verdict": verdicts.get(i)} for i, card in enumerate(cards["shots"], start=1)]
    return {**cards, "shots": shots}


def rows(report: Mapping[str, Any]) -> list[list[Any]]:
    """One row a shot: number, whether it passed, score, caption, defects."""
    return [
        [
            shot["number"], "passed" if shot["passed"] else "failed", round(shot["score"], 2), shot["caption"],
            "; ".join(defect_words(defect) for defect in shot["defects"]) or "none",
        ]
        for shot in report["shots"]
    ]  # fmt: skip
