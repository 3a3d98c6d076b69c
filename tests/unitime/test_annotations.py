"""Benchmarks' files: every format becomes the same queries, what is wrong in them is counted or named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unitime.annotations import VideoFolder, read_annotations, read_predictions, strip_suffix
from unitime.errors import UniTimeError

QV = {"qid": 7, "query": "A cube jumps", "duration": 10, "vid": "abc_0.0_10.0", "relevant_windows": [[2, 6]]}
EGO = {
    "version": "v1",
    "videos": [
        {
            "video_uid": "V",
            "clips": [
                {
                    "clip_uid": "C",
                    "clip_start_sec": 0.0,
                    "clip_end_sec": 480.0,
                    "annotations": [
                        {
                            "annotation_uid": "A",
                            "language_queries": [
                                {"query": "Where is the cup?", "clip_start_sec": 3.5, "clip_end_sec": 8.0},
                                {"query": None, "clip_start_sec": 1.0, "clip_end_sec": 2.0},
                                {"clip_start_sec": 1.0, "clip_end_sec": 2.0},
                                {"query": "What did I open?", "clip_start_sec": 9.0, "clip_end_sec": 9.0},
                                {"query": "Whom did I meet?"},
                            ],
                        }
                    ],
                }
            ],
        }
    ],
}
STAGE = {
    "fps": 12,
    "duration": 6.0,
    "shots": [],
    "events": [
        {"query": "the red cube jumps", "actor": "a", "action": "jump", "start": 1.0, "end": 2.0, "observable": True},
        {"query": "a red cube hops", "actor": "a", "action": "jump", "start": 4.0, "end": 5.0, "observable": True},
        {"query": "the ball spins", "actor": "b", "action": "spin", "start": 0.0, "end": 1.0, "observable": False},
        {"query": "the ball turns red", "actor": "b", "action": "change_colour", "start": 1.0, "end": 2.0},
        {"query": "the ball turns blue", "actor": "b", "action": "change_colour", "start": 3.0, "end": 4.0},
    ],
    "qa": [],
}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def lines(*rows: Any) -> str:
    return "\n".join(json.dumps(row) for row in rows) + "\n"


# ------------------------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize(
    ("content", "form", "first"),
    [
        (lines(QV, {**QV, "qid": 8}), "qvhighlights", (7, "abc_0.0_10.0", "A cube jumps", ((2, 6),), 10)),
        (lines(QV), "qvhighlights", (7, "abc_0.0_10.0", "A cube jumps", ((2, 6),), 10)),
        ([QV], "qvhighlights", (7, "abc_0.0_10.0", "A cube jumps", ((2, 6),), 10)),
        (lines({**QV, "relevant_windows": []}), "qvhighlights", (7, "abc_0.0_10.0", "A cube jumps", (), 10)),
        (lines({**QV, "relevant_windows": None}), "qvhighlights", (7, "abc_0.0_10.0", "A cube jumps", None, 10)),
        (
            "AO8RW 0.0 6.9##a person puts a book down.\n\nAO8RW 3 4.5##they leave.\n",
            "charades_sta",
            ("AO8RW_0", "AO8RW", "a person puts a book down.", ((0, 6.9),), None),
        ),
        (
            {"v_x": {"duration": 20, "timestamps": [[1, 2], [3, 25]], "sentences": [" It starts.", " It ends."]}},
            "activitynet",
            ("v_x_0", "v_x", "It starts.", ((1, 2),), 20),
        ),
        (
            {"s1-d2.avi": {"fps": 10, "num_frames": 200, "timestamps": [[15, 30]], "sentences": ["She cuts."]}},
            "tacos",
            ("s1-d2_0", "s1-d2.avi", "She cuts.", ((1.5, 3.0),), 20),
        ),
        (EGO, "ego4d_nlq", ("C_A_0", "C", "Where is the cup?", ((3.5, 8.0),), 480)),
        (
            [{"qid": 0, "id": "3MSZA", "annos": [{"query": "a light", "window": [[24.3, 30.4]]}], "duration": 30.96}],
            "unitime",
            (0, "3MSZA", "a light", ((24.3, 30.4),), 30.96),
        ),
        (STAGE, "stage", ("file_0", "file", "the red cube jumps", ((1, 2), (4, 5)), 6)),
    ],
)
def test_every_format_becomes_the_same_queries(tmp_path: Path, content: Any, form: str, first: tuple[Any, ...]) -> None:
    read = read_annotations(write(tmp_path / "file.any", content))
    query = next(iter(read))
    assert read.format == form
    assert (query.id, query.video, query.query, query.windows, query.duration) == first


def test_the_stages_own_file_is_read(tmp_path: Path) -> None:
    from shots.stage.shoot import shoot

    shoot(output=tmp_path / "a.mp4", annotations=tmp_path / "a.json", seed=4, seconds=4, height=32, width=32, fps=4)
    events = [event for event in json.loads((tmp_path / "a.json").read_text())["events"] if event["observable"]]
    read = read_annotations(tmp_path)  # the folder; the video's own record beside it is no annotation file
    assert events
    assert (tmp_path / "a.mp4.json").exists()
    assert [query.query for query in read] == [event["query"] for event in events]
    assert all((event["start"], event["end"]) in query.windows for event, query in zip(events, read, strict=True))
    assert VideoFolder(tmp_path).find(read.queries[0].video) == tmp_path / "a.mp4"


def test_what_the_stage_shows_twice_has_two_windows_and_what_nobody_sees_is_not_asked(tmp_path: Path) -> None:
    read = read_annotations(write(tmp_path / "file.json", STAGE))
    assert [query.query for query in read] == [STAGE["events"][k]["query"] for k in (0, 1, 3, 4)]  # type: ignore[index]
    assert [query.windows for query in read] == [((1, 2), (4, 5)), ((1, 2), (4, 5)), ((1, 2),), ((3, 4),)]


def test_ego4d_leaves_out_queries_without_words_and_keeps_those_without_window_or_length(tmp_path: Path) -> None:
    read = read_annotations(write(tmp_path / "nlq.json", EGO))
    assert [(query.id, query.windows) for query in read] == [
        ("C_A_0", ((3.5, 8.0),)), ("C_A_3", ((9.0, 9.0),)), ("C_A_4", None),
    ]  # fmt: skip
    assert (read.skipped, read.zero_length) == (2, 1)
    assert len(read.notes) == 2


def test_windows_beyond_the_video_are_cut_and_reversed_ones_turned_and_both_are_counted(tmp_path: Path) -> None:
    windows = [[-1, 4], [8, 12], [9, 7], [11, 12]]
    read = read_annotations(write(tmp_path / "a.jsonl", lines({**QV, "relevant_windows": windows})))
    assert read.queries[0].windows == ((0, 4), (8, 10), (7, 9), (10, 10))
    assert (read.clamped, read.reversed, read.zero_length) == (3, 1, 1)
    assert "3 windows reach beyond" in read.notes[0]


def test_saliency_covers_the_whole_video_with_zero_where_nobody_rated(tmp_path: Path) -> None:
    rated = {**QV, "relevant_clip_ids": [1, 2], "saliency_scores": [[1, 2, 3], [4, 4, 4]]}
    query = read_annotations(write(tmp_path / "a.jsonl", lines(rated))).queries[0]
    assert query.saliency is not None
    assert query.saliency.tolist() == [[0, 0, 0], [1, 2, 3], [4, 4, 4], [0, 0, 0], [0, 0, 0]]


# ---------------------------------------------------------------------------------------------------------- real files


def test_the_benchmarks_own_files_are_read_whole(data: Path) -> None:
    folder = data / "annotations"
    counted = {
        "moment_detr__highlight_val_release.jsonl": ("qvhighlights", 1550, 0),
        "VideoX__ActivityNet_val.json": ("activitynet", 17505, 134),
        "VideoX__TACoS_val.json": ("tacos", 4436, 0),
        "Time-R1__novel_word.json": ("activitynet", 695, 109),  # Charades-STA's sentences in ActivityNet's form
    }
    for name, expected in counted.items():
        read = read_annotations(folder / name)
        assert (read.format, len(read), read.clamped) == expected
        assert all(0 <= s <= e <= (q.duration or 0) for q in read for s, e in q.windows or ())


def test_tacos_says_the_same_in_frames_and_in_seconds(data: Path) -> None:
    frames = read_annotations(data / "annotations" / "VideoX__TACoS_val.json").queries
    seconds = read_annotations(data / "annotations" / "lighthouse__tacos_val_release.jsonl").queries
    assert [(q.id, q.query, strip_suffix(q.video)) for q in frames] == [(q.id, q.query, q.video) for q in seconds]
    np.testing.assert_allclose([q.windows for q in frames], [q.windows for q in seconds], atol=1e-9)
    np.testing.assert_allclose([q.duration for q in frames], [q.duration for q in seconds], atol=1e-9)


def test_tvsum_has_ratings_of_two_second_clips_and_no_windows(data: Path) -> None:
    queries = read_annotations(data / "annotations" / "lighthouse__tvsum_val_release.jsonl").queries
    assert len(queries) == 10
    assert all(query.windows is None and query.saliency is not None for query in queries)
    assert queries[0].saliency is not None
    assert queries[0].saliency.shape == (74, 20)
    assert queries[0].duration == 148.0


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is no JSON, no JSON lines and no Charades-STA text; known are QVHighlights"),
        ("hello", "is no JSON"),
        ({"a": 1}, "unknown form"),
        ([], "unknown form"),
        ([1, 2], "unknown form"),
        (lines(QV, QV), "the id '7' stands at more than one query"),
        (lines({**QV, "vid": None}), "line 1: no 'vid'"),
        (lines(QV, {**QV, "qid": 8, "query": "  "}), "line 2: the query is '  '; words are needed"),
        (lines({**QV, "relevant_windows": [[1, 2, 3]]}), r"the window is \[1, 2, 3\]; \[start, end\] in seconds"),
        (lines({**QV, "relevant_windows": [[1, float("nan")]]}), "the window is"),
        (lines({**QV, "relevant_windows": 5}), "line 1: the windows are 5"),
        (lines({**QV, "relevant_clip_ids": ["a"], "saliency_scores": [[1, 1, 1]]}), "not of the usual form"),
        ({"videos": [3]}, "is ego4d_nlq whose entries are not of the usual form"),
        (lines({**QV, "duration": "long"}), "'long' is no length in seconds"),
        (lines({**QV, "relevant_clip_ids": [9], "saliency_scores": [[1, 1, 1]]}), "beyond the 5 clips"),
        (lines({**QV, "relevant_clip_ids": [1, 2], "saliency_scores": [[1, 1, 1]]}), "do not fit each other"),
        ("AO8RW 0.0##a person.\n", "line 1: VIDEO START END##SENTENCE"),
        ("AO8RW 0.0 x##a person.\n", "line 1: the window is"),
        ({"v": {"duration": 3, "timestamps": [[0, 1]], "sentences": []}}, "as many sentences as timestamps"),
        ({"v": {"fps": 0, "num_frames": 3, "timestamps": [], "sentences": []}}, "fps 0"),
        ({"events": [], "duration": 3}, "holds no queries"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_place(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(UniTimeError, match=says) as caught:
        read_annotations(write(tmp_path / "a.txt", content))
    assert str(caught.value).startswith(f"annotations: {tmp_path / 'a.txt'}")


def test_a_file_that_is_not_there_or_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\x00\x93")
    with pytest.raises(UniTimeError, match="cannot be read as text"):
        read_annotations(tmp_path / "a.bin")
    with pytest.raises(UniTimeError, match="does not exist"):
        read_annotations(tmp_path / "gone.json")
    with pytest.raises(UniTimeError, match="holds no queries"):
        read_annotations(tmp_path)


# ---------------------------------------------------------------------------------------------------------- predictions


def test_predictions_are_read_from_lines_and_from_a_list(tmp_path: Path) -> None:
    row = {"qid": 1, "pred_relevant_windows": [[0, 1, 0.5], [2, 3]], "status": "not_found", "not_found": 0.7}
    for content in (lines(row), [row]):
        made = read_predictions(write(tmp_path / "p.jsonl", content))[0]
        assert made.windows == ((0.0, 1.0, 0.5), (2.0, 3.0, 0.5))
        assert (made.id, made.saliency, made.status, made.not_found) == (1, None, "not_found", 0.7)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("nothing", "neither JSON lines nor a JSON list"),
        ([{"pred_relevant_windows": []}], "entry 1: 'qid' and"),
        (lines({"qid": 1}), "entry 1: 'qid' and"),
        (lines({"qid": 1, "pred_relevant_windows": [[0]]}), "windows are"),
        (lines({"qid": 1, "pred_relevant_windows": [[0, float("nan"), 1]]}), "windows are"),
        (lines({"qid": 1, "pred_relevant_windows": [[0, 1, 1, 1]]}), "windows are"),
        (lines({"qid": 1, "pred_relevant_windows": 3}), "windows are"),
        (lines({"qid": 1, "pred_saliency_scores": ["high"]}), "scores are numbers"),
        (lines(*[{"qid": 1, "pred_relevant_windows": []}] * 2), "answers the query '1' more than once"),
    ],
)
def test_predictions_that_are_wrong_are_refused_with_the_place(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(UniTimeError, match=says):
        read_predictions(write(tmp_path / "p.jsonl", content))


# --------------------------------------------------------------------------------------------------------------- videos


def test_videos_are_found_under_all_the_names_that_sets_give_them(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    names = ["abc_60.0_210.0.mp4", "deep/s1-d2-cam-002.avi", "v_Q.mkv", "R.webm", "R.mp4", "notes.txt"]
    for name in names:
        (tmp_path / name).touch()
    folder = VideoFolder(tmp_path)
    assert folder.find("abc_60.0_210.0") == tmp_path / names[0]
    assert folder.find("v_abc_60.0_210.0.mp4") == tmp_path / names[0]  # TimeChat's way
    assert folder.find("s1-d2.avi") == folder.find("s1-d2-cam-002") == folder.find("s1-d2") == tmp_path / names[1]
    assert folder.find("Q") == folder.find("v_Q.mp4") == tmp_path / names[2]
    assert folder.find("R") == tmp_path / "R.mp4"
    assert folder.find("R.webm") == tmp_path / "R.webm"
    assert folder.find("./videos/R.mp4") == tmp_path / "R.mp4"
    assert folder.find("notes") is None
    assert folder.find("abc_60.0_210") is None  # a dot in a name is no extension
    with pytest.raises(UniTimeError, match="is no folder"):
        VideoFolder(tmp_path / "gone")
