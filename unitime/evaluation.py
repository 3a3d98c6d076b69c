"""Runs a grounder over a benchmark and scores what it said.

Notable choices:

- The predictions file has QVHighlights' keys, one line a query, so that others' evaluators read it too; `status`,
  `not_found` and, where something went wrong, `error` stand beside them.
- It is written as the run goes. A killed run is taken up where it stopped: queries whose line is whole are not asked
  again, and a torn last line is removed. A file of something else, of other queries or of another model is refused.
- All queries of a video are asked together (a model with `encode` sees it once), some at a time, so that little is
  lost by a kill and memory stays flat.
- A video that is missing or cannot be read never stops the run: its queries are written with status "error", count as
  misses, and are reported. Running out of memory does stop it, as the next video would fare no better.
- UniTime's protocol takes an answer, not a ranking: of the windows asked for it counts the first, and others that are
  more likely right than not.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shots.errors import ShotsError
from shots.files import check_place, write_whole
from shots.protocols import Grounder, Grounding
from unitime.annotations import (
    Annotations,
    Prediction,
    Query,
    VideoFolder,
    prediction,
    read_annotations,
    read_predictions,
)
from unitime.errors import UniTimeError
from unitime.metrics import PROTOCOLS, evaluate

QUERIES_AT_ONCE = 32
LIKELY = 0.5  # score from which a window after the first belongs to the answer

Progress = Callable[[int, int, str], None]
"""``progress(done, total, what)``."""


@dataclass
class GroundingRun:
    """What a run over a benchmark gave.

    Attributes:
        output: the predictions file.
        queries: how many were asked for.
        resumed: how many of them had been answered before.
        failed: why videos could not be used, by their name.
        usable: how many of the queries are about other videos.
        notes: what was done to the annotations.
        reports: both protocols' figures, by name.
    """

    output: Path
    queries: int
    resumed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    usable: int = 0
    notes: tuple[str, ...] = ()
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "predictions": str(self.output),
            "queries": self.queries,
            "resumed": self.resumed,
            "failed": self.failed,
            "notes": list(self.notes),
            **self.reports,
        }

    def __str__(self) -> str:
        lines = [f"{self.queries} queries in {self.output}, {self.resumed} of them from before", *self.notes]
        lines += [f"not usable, counted as missed: {name}: {why}" for name, why in self.failed.items()]
        if self.failed:
            lines.append('to try them again, remove their lines ("status": "error") and run once more')
        return "\n".join([*lines, *(report_text(report) for report in self.reports.values())])


def evaluate_files(
    predictions: str | Path,
    annotations: str | Path,
    protocol: str,
    *,
    min_score: float | None = None,
    count_missing: bool = False,
) -> dict[str, Any]:
    """The report of `protocol` ("moment_detr" or "unitime") on a predictions file; see `metrics.evaluate`.

    Raises UniTimeError when a file cannot be read or the two do not fit.
    """
    truth = read_annotations(annotations)
    report = evaluate(
        read_predictions(predictions), truth.queries, protocol, min_score=min_score, count_missing=count_missing
    )
    notes = list(truth.notes)
    if report["missing"]:
        fate = "count as missed" if count_missing else "were left out (count_missing makes them misses)"
        notes.append(f"{report['missing']} queries have no prediction and {fate}")
    if report["unknown"]:
        notes.append(f"{report['unknown']} predictions answer no query of the annotations and were left out")
    return {**report, "notes": notes}


def evaluate_grounding(
    load: Callable[[], Grounder],
    annotations: str | Path,
    videos: str | Path,
    output: str | Path,
    *,
    top_k: int = 10,
    limit: int | None = None,
    model: str | None = None,
    progress: Progress | None = None,
) -> GroundingRun:
    """Ask a grounder every query of a benchmark, and score the answers by both protocols.

    A query whose event a model calls not found has no windows and counts as a miss; published checkpoints, which know
    no such answer, always give windows.

    Args:
        load: gives the grounder; called after everything else is found right, and not at all when nothing is to do.
        annotations: a file (or folder) that `read_annotations` reads.
        videos: the folder of its videos.
        output: predictions, JSON lines; if it is there, the run goes on from it.
        top_k: windows asked for per query.
        limit: only the first so many queries.
        model: its name, written into every line; a file made by another is not gone on with.
        progress: told how many queries are done, and how long the rest will take.

    Raises UniTimeError for bad input, OSError or ShotsFailure when the output can no longer be written.
    """
    if top_k < 1 or (limit is not None and limit < 1):
        raise UniTimeError(f"top_k, limit: {top_k}, {limit}; at least 1 is needed")
    truth, folder = read_annotations(annotations), VideoFolder(videos)
    try:
        path = check_place(output, "output")
    except ShotsError as error:
        raise UniTimeError(str(error)) from error
    queries = truth.queries[:limit]
    made = _resume(path, truth, model)
    asked = {str(query.id) for query in queries}
    run = GroundingRun(path, len(queries), resumed=len(asked & made.keys()), notes=truth.notes)
    left = [query for query in queries if str(query.id) not in made]
    if left:
        _fill(run, load(), left, folder, top_k, model, progress)
    answers = [answer for answer in read_predictions(path) if str(answer.id) in asked]
    run.failed |= _failures(path, asked)
    run.usable = sum(query.video not in run.failed for query in queries)
    for protocol in PROTOCOLS:
        try:
            run.reports[protocol] = evaluate(answers, queries, protocol, min_score=LIKELY)
        except (
            UniTimeError
        ) as error:  # a test split, or a set of highlights only: the predictions are there all the same
            run.notes += (f"no figures by {protocol}: {error}",)
    return run


def _fill(
    run: GroundingRun,
    grounder: Grounder,
    left: Sequence[Query],
    folder: VideoFolder,
    top_k: int,
    model: str | None,
    progress: Progress | None,
) -> None:
    """Append a line for each query that is left, video by video."""
    begin, done = time.monotonic(), 0
    with run.output.open("a", encoding="utf-8") as file:
        for name, queries in _by_video(left).items():
            for query, row in _video_rows(grounder, folder.find(name), queries, top_k):
                file.write(json.dumps(_line(query, row, model), ensure_ascii=False) + "\n")
                file.flush()
                done += 1
                if progress is not None:
                    spent = time.monotonic() - begin
                    rest = spent / done * (len(left) - done)
                    progress(run.resumed + done, run.queries, f"grounding, {time_text(rest)} left:")


def _video_rows(
    grounder: Grounder, path: Path | None, queries: Sequence[Query], top_k: int
) -> Iterator[tuple[Query, dict[str, Any]]]:
    """What the grounder says to each query of one video, or why it cannot."""
    if path is None:
        for query in queries:
            yield query, _error(f"no file of {query.video!r} in the folder of videos")
        return
    encode = getattr(grounder, "encode", None)
    try:
        video = path if encode is None else encode(path)
    except _UNREADABLE as error:
        for query in queries:
            yield query, _error(error)
        return
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        group = queries[start : start + QUERIES_AT_ONCE]
        try:
            answers = grounder.ground(video, [query.query for query in group], top_k=top_k)
        except _UNREADABLE:
            for query in group:  # one of them may be at fault: each on its own
                try:
                    answer = grounder.ground(video, [query.query], top_k=top_k)[0]
                except _UNREADABLE as error:
                    yield query, _error(error)
                else:
                    yield query, _answer(answer, query)
        else:
            for query, answer in zip(group, answers, strict=True):
                yield query, _answer(answer, query)


_UNREADABLE = (ShotsError, UniTimeError, OSError)


def _answer(grounding: Grounding, query: Query) -> dict[str, Any]:
    row: dict[str, Any] = {
        "pred_relevant_windows": [
            [round(moment.start, 3), round(moment.end, 3), round(moment.score, 6)] for moment in grounding.moments
        ]
    }
    relevance = getattr(grounding, "relevance", ())
    if query.saliency is not None and relevance:
        import numpy as np

        middles = (np.arange(len(query.saliency)) + 0.5) * query.clip_seconds
        times, values = zip(*relevance, strict=True)
        row["pred_saliency_scores"] = [round(float(value), 6) for value in np.interp(middles, times, values)]
    row["status"] = grounding.status
    absent = getattr(grounding, "not_found", None)
    if absent is not None:
        row["not_found"] = round(float(absent), 6)
    return row


def _error(why: object) -> dict[str, Any]:
    return {"pred_relevant_windows": [], "status": "error", "error": " ".join(str(why).split())}


def _line(query: Query, row: dict[str, Any], model: str | None) -> dict[str, Any]:
    line = {"qid": query.id, "query": query.query, "vid": query.video, **row}
    return line if model is None else {**line, "model": model}


# ------------------------------------------------------------------------------------------------------------- resume


def _resume(path: Path, truth: Annotations, model: str | None) -> dict[str, Prediction]:
    """The predictions that are whole in the output; a torn last line is taken out of it."""
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UniTimeError(f"output: {path} cannot be read ({error.strerror}); choose another") from error
    kept, made = [], {}
    known = {str(query.id) for query in truth}
    lines = re.findall(r"[^\n]*\n|[^\n]+$", text)  # not splitlines: words may hold other line separators
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not line.endswith("\n") and number == len(lines) and _torn(line):
            continue  # a killed run's last line; whole or not, it is asked again
        if not isinstance(row, dict) or "pred_relevant_windows" not in row:
            raise UniTimeError(f"output: {path}, line {number}, is no prediction; choose another file or remove it")
        answer = prediction(row, f"output: {path}, line {number}")
        if str(answer.id) not in known:
            raise UniTimeError(
                f"output: {path} answers {answer.id!r}, which {truth.path} does not ask; choose another file"
            )
        if model is not None and row.get("model", model) != model:
            raise UniTimeError(f"output: {path} was made by the model {row['model']!r}, not {model!r}; choose another")
        if str(answer.id) not in made:
            made[str(answer.id)] = answer
            kept.append(line)
    if len(kept) < len(lines):
        write_whole(path, "".join(kept))
    return made


def _torn(line: str) -> bool:
    """Whether `line` may be the beginning of one of our lines."""
    start = '{"qid": '
    return line.startswith(start) or start.startswith(line)


def _failures(path: Path, asked: set[str]) -> dict[str, str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return {row["vid"]: row["error"] for row in rows if row.get("status") == "error" and str(row["qid"]) in asked}


# --------------------------------------------------------------------------------------------------------------- words


def report_text(report: dict[str, Any]) -> str:
    """A report of `metrics.evaluate` as lines of name and figure."""
    lines = [f"protocol {report['protocol']}"]
    for key, value in {**report, **report.get("brief", {}), **report.get("also", {})}.items():
        if isinstance(value, (int, float, str)) and key != "protocol":
            lines.append(f"  {key:<26} {value}")
    lines += [f"  not_found.{key:<16} {value}" for key, value in report.get("not_found", {}).items()]
    return "\n".join([*lines, *(f"  {note}" for note in report.get("notes", ()))])


def time_text(seconds: float) -> str:
    """A length of time in words: "40 s", "12 min", "3 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _by_video(queries: Sequence[Query]) -> dict[str, list[Query]]:
    """Queries by their video, in the order in which videos are first met."""
    groups: dict[str, list[Query]] = {}
    for query in queries:
        groups.setdefault(query.video, []).append(query)
    return groups
