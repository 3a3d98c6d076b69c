"""Running a grounder over a benchmark: nothing stops it, nothing is asked twice, and the shell prints what it gave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import cli
import shots
import unitime
from shots.errors import ShotsError
from unitime import evaluation
from unitime.errors import UniTimeError
from unitime.evaluation import GroundingRun, evaluate_grounding, time_text


@dataclass(frozen=True)
class Moment:
    start: float
    end: float
    score: float

    def to_dict(self) -> dict[str, float]:
        return dict(vars(self))


@dataclass(frozen=True)
class Grounding:
    query: str
    moments: tuple[Moment, ...]
    status: str = "ok"
    not_found: float = 0.25
    relevance: tuple[tuple[float, float], ...] = ((0.0, 0.0), (10.0, 1.0))

    def to_dict(self) -> dict[str, Any]:
        return {"query": self.query, "moments": [m.to_dict() for m in self.moments], "status": self.status}


@dataclass(frozen=True)
class Handle:
    path: Path
    duration: float = 10.0


@dataclass(frozen=True)
class Answer:
    answer: str
    evidence: Moment | None

    def __str__(self) -> str:
        return self.answer

    def to_dict(self) -> dict[str, Any]:
        return {"answer": self.answer}


class Fake:
    """Finds everything from second 2 to 6; a file that says "broken" cannot be read, a query "bad" not answered."""

    def __init__(self, die_after: int | None = None) -> None:
        self.encoded: list[str] = []
        self.asked: list[str] = []
        self.die_after = die_after

    def encode(self, video: Path) -> Handle:
        self.encoded.append(Path(video).name)
        if Path(video).read_text() == "broken":
            raise ShotsError(f"video: {video} is not a video\nthat can be read")
        return Handle(Path(video))

    def ground(self, video: Any, queries: Sequence[str], top_k: int = 1, **more: Any) -> list[Grounding]:
        if self.die_after is not None and len(self.asked) >= self.die_after:
            raise KeyboardInterrupt
        if "bad" in queries:
            raise UniTimeError("queries: 'bad' is not asked")
        self.asked += queries
        found = (Moment(2.0, 6.0, 0.75), Moment(7.0, 8.0, 0.125))[:top_k]
        return [Grounding(q, () if q == "never" else found, "not_found" if q == "never" else "ok") for q in queries]

    def ask(self, video: Path, question: str, options: Sequence[str] | None = None, *, window: Any = None) -> Answer:
        return Answer(options[0] if options else "yes", self.ground(video, [question])[0].moments[0])


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """Three videos of two queries each: a is fine, b is broken, c is not there."""
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "a.mp4").write_text("fine")
    (videos / "b.mp4").write_text("broken")
    rows = [
        {"qid": k, "query": f"event {k}", "duration": 10, "vid": "abc"[k // 2], "relevant_windows": [[2, 6]]}
        for k in range(6)
    ]
    (tmp_path / "truth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(folder: Path, fake: Fake, **options: Any) -> GroundingRun:
    return evaluate_grounding(
        lambda: fake, folder / "truth.jsonl", folder / "videos", folder / "p.jsonl", **{"top_k": 2, **options}
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "p.jsonl").read_text().splitlines()]


def test_videos_that_cannot_be_used_are_reported_and_missed_and_stop_nothing(benchmark: Path) -> None:
    fake = Fake()
    made = run(benchmark, fake)
    assert fake.encoded == ["a.mp4", "b.mp4"]  # each once
    assert rows(benchmark)[0] == {
        "qid": 0, "query": "event 0", "vid": "a", "pred_relevant_windows": [[2.0, 6.0, 0.75], [7.0, 8.0, 0.125]],
        "status": "ok", "not_found": 0.25,
    }  # fmt: skip
    assert [row["status"] for row in rows(benchmark)] == ["ok", "ok", "error", "error", "error", "error"]
    assert set(made.failed) == {"b", "c"}
    assert made.failed["b"].endswith("is not a video that can be read")
    assert "no file of 'c'" in made.failed["c"]
    assert made.reports["unitime"]["R1@0.5"] == 33.33
    assert made.reports["moment_detr"]["brief"]["MR-full-R1@0.5"] == 33.33
    assert made.reports["unitime"]["mIoU"] == 33.33  # the unlikely second window is no part of the answer
    assert "not usable, counted as missed: b" in str(made)


def test_a_killed_run_goes_on_and_asks_only_what_is_left(benchmark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "QUERIES_AT_ONCE", 1)
    with pytest.raises(KeyboardInterrupt):
        run(benchmark, Fake(die_after=1))
    whole = (benchmark / "p.jsonl").read_text()
    assert whole.count("\n") == 1
    (benchmark / "p.jsonl").write_text(whole + '{"qid": 1, "query": "event 1", "vi')  # a line torn by a kill
    fake = Fake()
    made = run(benchmark, fake)
    assert fake.asked == ["event 1"]
    assert [row["qid"] for row in rows(benchmark)] == [0, 1, 2, 3, 4, 5]
    assert made.resumed == 1
    uninterrupted = (benchmark / "p.jsonl").read_text()
    (benchmark / "p.jsonl").unlink()
    run(benchmark, Fake())
    assert (benchmark / "p.jsonl").read_text() == uninterrupted


@pytest.mark.parametrize("torn", ["{", '{"qid', '{"qid": 5, "query": "e\u2028v', '{"qid": 0, "status": "ok"}'])
def test_whatever_a_kill_leaves_of_a_line_is_done_again(benchmark: Path, torn: str) -> None:
    run(benchmark, Fake(), limit=1)
    with (benchmark / "p.jsonl").open("a") as file:
        file.write(torn)
    assert run(benchmark, Fake(), limit=2).resumed == 1
    assert [row["qid"] for row in rows(benchmark)] == [0, 1]


def test_a_finished_run_needs_no_model_and_gives_the_same_figures(benchmark: Path) -> None:
    def load() -> Fake:
        raise AssertionError("the model was loaded")

    first = run(benchmark, Fake())
    again = evaluate_grounding(load, benchmark / "truth.jsonl", benchmark / "videos", benchmark / "p.jsonl")
    assert again.resumed == 6
    assert again.reports == first.reports
    assert again.failed == first.failed


def test_one_query_that_cannot_be_answered_does_not_take_the_others_along(benchmark: Path) -> None:
    row = {"qid": 9, "query": "bad", "duration": 10, "vid": "a", "relevant_windows": [[2, 6]]}
    with (benchmark / "truth.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    run(benchmark, Fake())
    told = {row["qid"]: row for row in rows(benchmark)}
    assert [told[k]["status"] for k in (0, 1, 9)] == ["ok", "ok", "error"]
    assert told[9]["error"] == "queries: 'bad' is not asked"


def test_many_queries_of_a_video_are_asked_some_at_a_time_and_encoded_once(
    benchmark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    class Counting(Fake):
        def ground(self, video: Any, queries: Sequence[str], top_k: int = 1, **more: Any) -> list[Grounding]:
            sizes.append(len(queries))
            return super().ground(video, queries, top_k)

    monkeypatch.setattr(evaluation, "QUERIES_AT_ONCE", 3)
    many = [{"qid": k, "query": f"q{k}", "duration": 10, "vid": "a", "relevant_windows": []} for k in range(7)]
    (benchmark / "truth.jsonl").write_text("\n".join(map(json.dumps, many)))
    fake = Counting()
    made = run(benchmark, fake)
    assert sizes == [3, 3, 1]
    assert fake.encoded == ["a.mp4"]
    assert "R1@0.5" not in made.reports["unitime"]  # nothing ever happens: there is no window to hit
    assert made.reports["unitime"]["not_found"]["recall"] == 0.0


def test_a_test_split_gets_predictions_and_no_figures(benchmark: Path) -> None:
    row = {"qid": 1, "query": "it", "duration": 10, "vid": "a"}
    (benchmark / "truth.jsonl").write_text(json.dumps(row))
    made = run(benchmark, Fake())
    assert len(rows(benchmark)) == 1
    assert made.reports == {}
    assert len([note for note in made.notes if note.startswith("no figures by")]) == 2


def test_absent_events_and_saliency_reach_the_reports(benchmark: Path) -> None:
    happens = {"qid": 1, "query": "it", "duration": 10, "vid": "a", "relevant_windows": [[2, 6]]}
    happens |= {"relevant_clip_ids": [4], "saliency_scores": [[4, 4, 4]]}
    never = {"qid": 2, "query": "never", "duration": 10, "vid": "a", "relevant_windows": []}
    (benchmark / "truth.jsonl").write_text("\n".join(map(json.dumps, [happens, never])))
    made = run(benchmark, Fake())
    assert rows(benchmark)[0]["pred_saliency_scores"] == [0.1, 0.3, 0.5, 0.7, 0.9]  # relevance at the clips' middles
    report = made.reports["moment_detr"]
    assert report["brief"]["HL-min-VeryGood-Hit1"] == 100.0
    assert (report["not_found"]["recall"], report["not_found"]["precision"]) == (100.0, 100.0)


def test_a_plain_grounder_without_encode_will_do(benchmark: Path) -> None:
    class Plain:
        def ground(self, video: Any, queries: Sequence[str], top_k: int = 1) -> list[Grounding]:
            if Path(video).read_text() == "broken":
                raise OSError("unreadable")
            return [Grounding(query, (Moment(2, 6, 1.0),)) for query in queries]

    made = evaluate_grounding(Plain, benchmark / "truth.jsonl", benchmark / "videos", benchmark / "p.jsonl")
    assert made.reports["unitime"]["R1@0.7"] == 33.33


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("my notes\n", "line 1, is no prediction"),
        ("my notes", "line 1, is no prediction"),
        ('{"qid": 0, "query": "a", "vid": "a", "relevant_windows": [[0, 1]]}\n', "line 1, is no prediction"),
        ('{"qid": 77, "pred_relevant_windows": []}\n', "answers 77, which"),
        ('{"qid": 0, "pred_relevant_windows": [], "model": "other"}\n', "was made by the model 'other', not 'nano'"),
    ],
)
def test_a_file_of_something_else_is_not_gone_on_with_and_stays(benchmark: Path, content: str, says: str) -> None:
    (benchmark / "p.jsonl").write_text(content)
    with pytest.raises(UniTimeError, match=says):
        run(benchmark, Fake(), model="nano")
    assert (benchmark / "p.jsonl").read_text() == content


@pytest.mark.parametrize(
    ("options", "says"),
    [({"top_k": 0}, "top_k"), ({"limit": 0}, "limit"), ({"output": "no/p.jsonl"}, "output: the folder")],
)
def test_bad_requests_are_found_before_the_model_is_loaded(benchmark: Path, options: dict[str, Any], says: str) -> None:
    def load() -> Fake:
        raise AssertionError("the model was loaded")

    output = benchmark / options.pop("output", "p.jsonl")
    with pytest.raises(UniTimeError, match=says):
        evaluate_grounding(load, benchmark / "truth.jsonl", benchmark / "videos", output, **options)


def test_progress_counts_all_queries_and_tells_the_time_left(benchmark: Path) -> None:
    run(benchmark, Fake(), limit=1)
    told: list[tuple[int, int, str]] = []
    run(benchmark, Fake(), progress=lambda *words: told.append(words))
    assert [(done, total) for done, total, _ in told] == [(k, 6) for k in range(2, 7)]
    assert told[-1][2] == "grounding, 0 s left:"
    assert [time_text(t) for t in (40, 300, 7500)] == ["40 s", "5 min", "2 h 5 min"]


# -------------------------------------------------------------------------------------------------------- the shell


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs one command line with the fake as the model: (status, stdout, stderr)."""
    made: dict[str, Any] = {}

    class Loader:
        @staticmethod
        def from_pretrained(name: str, **options: Any) -> Fake:
            made.update(name=name, **options)
            return Fake()

    monkeypatch.setitem(vars(unitime), "UniTime", Loader)
    monkeypatch.setitem(vars(unitime), "FeatureCache", lambda: "cache")
    monkeypatch.setattr(shots, "probe", lambda path: None)  # these files hold nothing, and the fake does not mind

    def command(*words: object) -> tuple[int, str, str]:
        try:
            status = cli.main([str(word) for word in words])
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    command.made = made  # type: ignore[attr-defined]
    return command


def test_ground_prints_moments_of_every_query(shell: Any, benchmark: Path) -> None:
    video = benchmark / "videos" / "a.mp4"
    words = ("ground", video, "a cube jumps", "never", "--top-k", 2, "--window", 1, 9, "--threshold", 0.5)
    status, out, err = shell(*words)
    assert (status, err) == (0, "")
    assert out == "a cube jumps: 2.00 - 6.00 s (0.75), 7.00 - 8.00 s (0.12)\nnever: not_found\n"
    others = ("--json", "--no-cache", "--model", "m", "--adapter", "d", "--prompts", "unitime")
    told = json.loads(shell(*words, *others, "--quantization", "int8", "--max-fps", 2, "--revision", "v1")[1])
    assert (told["video"], told["duration"]) == (str(video), 10.0)
    assert told["groundings"][0]["moments"][0] == {"start": 2.0, "end": 6.0, "score": 0.75}
    how = {"prompts": "unitime", "quantization": "int8", "max_fps": 2.0, "revision": "v1"}
    assert shell.made == {"name": "m", "adapter": "d", "cache": None, **how}


def test_ask_prints_the_answer_and_where_it_was_seen(shell: Any, benchmark: Path) -> None:
    words = ("ask", benchmark / "videos" / "a.mp4", "What colour is it?", "--option", "red", "--option", "blue")
    assert shell(*words) == (0, "red (seen at 2.00 - 6.00 s)\n", "")
    assert json.loads(shell(*words, "--json")[1])["answer"] == "red"
    how = {"prompts": None, "quantization": None, "max_fps": None, "revision": None}
    assert shell.made == {"name": "unitime-nano", "adapter": None, "cache": "cache", **how}


def test_a_video_that_cannot_be_read_costs_one_clear_line(shell: Any, benchmark: Path) -> None:
    for words in (("ground", benchmark / "videos" / "b.mp4", "a"), ("ground", benchmark / "videos" / "a.mp4", "bad")):
        status, out, err = shell(*words)
        assert (status, out) == (2, "")
        assert err.startswith("seedance: ")
        assert err.count("\n") == 1


def test_evaluate_grounding_writes_predictions_and_prints_both_protocols(shell: Any, benchmark: Path) -> None:
    words = ("evaluate", "grounding", "--annotations", benchmark / "truth.jsonl", "--videos", benchmark / "videos")
    status, out, err = shell(*words, "-o", benchmark / "p.jsonl", "--limit", 4)
    assert status == 0
    assert "protocol moment_detr" in out
    assert "protocol unitime" in out
    assert "grounding, 0 s left: 4/4" in err
    told = json.loads(shell(*words, "-o", benchmark / "p.jsonl", "--json")[1])
    assert (told["queries"], told["resumed"]) == (6, 4)
    assert told["unitime"]["R1@0.5"] == 33.33
    assert rows(benchmark)[0]["model"] == "unitime-nano"
    (benchmark / "videos" / "a.mp4").unlink()
    status, out, err = shell(*words, "-o", benchmark / "q.jsonl")
    assert status == 1  # not one answer: figures are printed, and are none
    assert "not usable" in out and "videos: none that are asked about" in err
    status, _, err = shell("evaluate", "grounding", "--videos", benchmark)
    assert (status, err.count("\n")) == (2, 1)
    assert "give --annotations FILE and --videos DIR" in err


def test_metrics_scores_files_by_the_protocol_asked_for(shell: Any, benchmark: Path) -> None:
    run(benchmark, Fake(), limit=3)
    words = ("metrics", benchmark / "p.jsonl", benchmark / "truth.jsonl", "--protocol")
    status, out, _ = shell(*words, "unitime", "--min-score", 0.5, "--json")
    told = json.loads(out)
    assert status == 0
    assert (told["protocol"], told["R1@0.5"], told["missing"]) == ("unitime", 66.67, 3)
    assert "3 queries have no prediction" in told["notes"][0]
    assert json.loads(shell(*words, "unitime", "--count-missing", "--min-score", 0.5, "--json")[1])["R1@0.5"] == 33.33
    assert "MR-full-mAP " in shell(*words, "moment_detr")[1]
    for bad in ((*words, "voc"), words[:-1], ("metrics", benchmark / "gone", *words[2:], "unitime")):
        assert shell(*bad)[0] == 2
