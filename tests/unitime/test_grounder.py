"""The public class: right windows from the passes over a video, and a clear word for what cannot be asked."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unitime.errors import UniTimeError
from unitime.frames import FrameRule
from unitime.grounder import Grounding, Moment, UniTime
from unitime.model import VisionLanguageModel
from unitime.prompts import Prompts
from unitime.reading import read_units

# Two units a second up to 16 s, segments of 4 s up to 64 s, halves above.
RULE = FrameRule(
    patch=4, merge=2, budget=512, min_tokens=4, max_tokens=4, fine_tokens=4, coarse_tokens=1, short_limit=16,
    long_limit=64, segment=4, max_fps=4, pair_gap=0.25,
)  # fmt: skip
ABLE = Prompts(not_found="Not found.")
EVENTS = {"jump": [(3.0, 6.0)], "twice": [(2.0, 4.0), (9.0, 12.0)], "never": [], "late": [(41.0, 45.0)]}
EVENTS |= {"apart": [(10.0, 14.0), (50.0, 55.0)], "far": [(151.0, 156.0)]}


def close(moment: Moment, start: float, end: float, within: float = 0.75) -> bool:
    return abs(moment.start - start) <= within and abs(moment.end - end) <= within


@pytest.fixture
def able(oracle: Any) -> UniTime:
    """A model that knows the events and can say that there is none."""
    return UniTime(oracle(RULE, ABLE, EVENTS))


@pytest.fixture
def unable(oracle: Any) -> UniTime:
    """A model that knows the events and has no word for nothing."""
    return UniTime(oracle(RULE, Prompts(), EVENTS))


@pytest.fixture
def untaught(tiny_models: Any) -> UniTime:
    """A real network of random weights."""
    tiny = tiny_models["qwen2_vl"]
    rule = FrameRule(budget=256, min_tokens=4, max_tokens=4, short_limit=16, long_limit=64, segment=4, max_fps=4)
    return UniTime(VisionLanguageModel(tiny.net, tiny.tokenizer, rule=rule, prompts=ABLE))


@pytest.mark.parametrize("decoding", ["constrained", "text"])
def test_a_short_film_is_grounded_in_one_fine_pass(able: UniTime, film: Any, decoding: Any) -> None:
    jump, twice, never = able.ground(film(15), ["jump", "twice", "never"], top_k=3, decoding=decoding)
    assert jump.status == twice.status == "ok" and never.status == "not_found"
    assert close(jump.moments[0], 3, 6)
    assert sorted(round(m.start) for m in twice.moments[:2]) == [2, 9]
    assert never.moments == () and never.not_found > 0.9
    assert jump.raw.startswith("From ") and never.not_found > jump.not_found
    assert [p.mode for p in able.model.passes] == ["fine"]


def test_relevance_is_high_where_it_happens(able: UniTime, film: Any) -> None:
    (found,) = able.ground(film(15), ["jump"])
    inside = [v for t, v in found.relevance if 3.5 < t < 5.5]
    outside = [v for t, v in found.relevance if t < 2 or t > 7]
    assert min(inside) > 0.8 and max(outside) < 0.2
    times = [t for t, _ in found.relevance]
    assert times == sorted(times)


@pytest.mark.parametrize("decoding", ["constrained", "text"])
def test_a_longer_film_is_searched_coarsely_then_finely(able: UniTime, film: Any, decoding: Any) -> None:
    late, never = able.ground(film(60), ["late", "never"], decoding=decoding)
    assert close(late.moments[0], 41, 45)
    assert never.status == "not_found"
    assert able.model.passes[0].mode == "coarse"
    assert all(p.mode == "fine" for p in able.model.passes[1:])
    assert all(0 <= t <= 60 and 0 <= v <= 1 for t, v in late.relevance)


def test_hits_that_lie_apart_are_not_bridged(able: UniTime, film: Any) -> None:
    (apart,) = able.ground(film(60), ["apart"], top_k=2)
    assert sorted((round(m.start), round(m.end)) for m in apart.moments) == [(10, 14), (50, 55)]
    assert all(p.stamps[-1] - p.stamps[0] < 20 for p in able.model.passes[1:])


@pytest.mark.parametrize("which", ["able", "unable"])
def test_a_long_film_is_halved_until_its_parts_are_short(which: str, film: Any, request: Any) -> None:
    model = request.getfixturevalue(which)
    (far,) = model.ground(film(200), ["far"])
    assert close(far.moments[0], 151, 156)
    coarse = [p for p in model.model.passes if p.mode == "coarse"]
    assert [round(p.stamps[0]) for p in coarse[:4]] == [0, 50, 100, 150]
    assert len(coarse) == (4 if which == "able" else 5)  # one more over what all parts gave


def test_a_window_restricts_what_is_looked_at(able: UniTime, film: Any) -> None:
    jump, late = able.ground(film(60), ["jump", "late"], window=(38, 50))
    assert jump.status == "not_found" and close(late.moments[0], 41, 45)
    assert all(38 <= t <= 50 for p in able.model.passes for t in p.stamps)
    (cut,) = able.ground(film(60), ["late"], window=(43, 50))
    assert cut.moments[0].start >= 43


def test_the_mode_can_be_chosen(able: UniTime, film: Any) -> None:
    assert close(able.ground(film(60), ["late"], mode="fine")[0].moments[0], 41, 45, 1.5)
    assert [p.mode for p in able.model.passes] == ["fine"]
    assert close(able.ground(film(15), ["jump"], mode="coarse")[0].moments[0], 3, 6)
    assert able.model.passes[1].mode == "coarse"


def test_the_threshold_decides_what_is_not_found(able: UniTime, film: Any) -> None:
    handle = able.encode(film(15))
    assert able.ground(handle, ["never"], threshold=1)[0].status == "ok"
    assert able.ground(handle, ["jump"], threshold=0)[0].status == "not_found"
    able.model.threshold = 0.0
    assert able.ground(handle, ["jump"])[0].status == "not_found"


def test_a_model_without_a_word_for_nothing_lends_its_best_score(unable: UniTime, film: Any) -> None:
    jump, never = unable.ground(film(15), ["jump", "never"])
    assert jump.status == never.status == "ok"
    assert never.not_found > 0.5 > jump.not_found
    assert unable.ground(film(15), ["never"], threshold=0.5)[0].status == "not_found"


def test_text_that_names_no_time_is_a_parse_error(unable: UniTime, film: Any) -> None:
    assert unable.ground(film(15), ["never"], decoding="text")[0].status == "parse_error"
    assert unable.ground(film(60), ["never"], decoding="text")[0].status == "parse_error"


def test_text_that_names_an_instant_is_a_moment_about_it(able: UniTime, film: Any) -> None:
    able.model.reply = lambda *_: "From 3.0 seconds to 3.0 seconds."
    (found,) = able.ground(film(15), ["jump"], decoding="text")
    assert found.status == "ok" and close(found.moments[0], 2.75, 3.25, 0.3)


@pytest.mark.parametrize("decoding", ["constrained", "text"])
def test_what_else_is_asked_changes_no_answer(able: UniTime, film: Any, decoding: Any) -> None:
    able.model.events = EVENTS | {"last": [(50.0, 55.0)]}
    queries = ["last", "twice", "apart"]  # what is looked at for the first is looked at last for the third
    together = able.ground(film(60), queries, top_k=3, decoding=decoding)
    assert [able.ground(film(60), [query], top_k=3, decoding=decoding)[0] for query in queries] == together


def test_a_handle_of_another_model_is_refused(able: UniTime, unable: UniTime, film: Any) -> None:
    with pytest.raises(UniTimeError, match="another model"):
        able.ground(unable.encode(film(15)), ["jump"])


def test_what_a_film_costs_is_paid_once(able: UniTime, film: Any) -> None:
    handle = able.encode(film(60))
    able.ground(handle, ["late"])
    looked, passes = able.model.looked, len(able.model.passes)
    able.ground(handle, ["late"])
    assert (able.model.looked, len(able.model.passes)) == (looked, passes)


def test_what_was_seen_is_kept_on_disk_and_made_anew_when_damaged(untaught: UniTime, film: Any, tmp_path: Any) -> None:
    from unitime.features import FeatureCache

    def ground() -> list[Grounding]:
        return UniTime(untaught.model, FeatureCache(tmp_path)).ground(film(40), ["a cat"], top_k=2, threshold=1)

    looks: list[int] = []
    look = untaught.model.vision
    untaught.model.vision = lambda frames, grid: looks.append(len(frames)) or look(frames, grid)
    first = ground()
    seen = sum(looks)
    assert seen and ground() == first and sum(looks) == seen
    entries = sorted(tmp_path.glob("*.safetensors"))
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-9])
    assert ground() == first and sum(looks) == 2 * seen
    assert sorted(tmp_path.glob("*.safetensors")) == entries
    untaught.model.rule = replace(untaught.model.rule, shrink="area")
    ground()
    assert sum(looks) == 3 * seen and len(list(tmp_path.glob("*.safetensors"))) == 2 * len(entries)


def test_little_memory_changes_no_answer(able: UniTime, film: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = able.ground(film(60), ["late", "apart"], top_k=2)
    monkeypatch.setattr("unitime.grounder.FEATURE_BYTES", 1)
    monkeypatch.setattr("unitime.grounder.PREFIX_BYTES", 1)
    assert able.ground(film(60), ["late", "apart"], top_k=2) == wanted


def test_a_path_is_grounded_like_the_film(able: UniTime, film: Any, tmp_path: Any) -> None:
    path = film(15).save(tmp_path / "film.mp4")
    assert close(able.ground(path, ["jump"])[0].moments[0], 3, 6)
    assert close(able.ground(str(path), ["jump"])[0].moments[0], 3, 6)


def test_two_hundred_queries_are_answered_in_order(untaught: UniTime, film: Any) -> None:
    queries = [f"thing {i % 67}" for i in range(200)]
    found = untaught.ground(film(3), queries)
    assert [g.query for g in found] == queries
    assert found[0] == found[67]
    alone = untaught.ground(film(3), ["thing 1"], threshold=1)[0]
    assert close(
        untaught.ground(film(3), queries, threshold=1)[1].moments[0], alone.moments[0].start, alone.moments[0].end
    )


@pytest.mark.parametrize("seconds", [0.5, 15, 40, 150])
def test_times_and_scores_of_random_weights_stay_in_range(untaught: UniTime, film: Any, seconds: float) -> None:
    video = film(seconds)
    for found in untaught.ground(video, ["एक बिल्ली", "a cat"], top_k=4, threshold=1):
        assert found.status == "ok" and 1 <= len(found.moments) <= 4
        scores = [m.score for m in found.moments]
        assert scores == sorted(scores, reverse=True)
        for moment in found.moments:
            assert 0 <= moment.start < moment.end <= video.duration and 0 <= moment.score <= 1
        assert all(0 <= t <= video.duration and 0 <= v <= 1 for t, v in found.relevance)
        assert 0 <= found.not_found <= 1
        json.dumps(found.to_dict(), allow_nan=False)


def test_every_real_clip_is_answered_within_its_length(untaught: UniTime, data: Path) -> None:
    """Variable rates, rotation, 10 bit, AV1, HEVC, a late start, no duration in the header: all through one network."""
    answered = 0
    for path in sorted((data / "video").iterdir()):
        handle = untaught.encode(path)
        end = min(handle.duration, 20.0)
        for found in untaught.ground(handle, ["a dog runs", "一只狗"], top_k=3, threshold=1, window=(0.0, end)):
            assert found.status == "ok" and found.moments, path.name
            for moment in found.moments:
                assert 0 <= moment.start < moment.end <= handle.duration and 0 <= moment.score <= 1, path.name
            assert all(0 <= t <= handle.duration and 0 <= v <= 1 for t, v in found.relevance), path.name
        answered += 1
    assert answered > 30


def test_what_is_left_of_a_broken_file_and_a_single_frame_are_answered(
    untaught: UniTime, film: Any, tmp_path: Path
) -> None:
    whole = film(30).save(tmp_path / "whole.mp4", record=False).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    film(0.5).save(tmp_path / "one.mp4", record=False)
    for name, most in (("cut.mp4", 29.0), ("one.mp4", 0.5)):
        handle = untaught.encode(tmp_path / name)
        (found,) = untaught.ground(handle, ["a cat"], threshold=1)
        assert 0 < handle.duration <= most and 0 <= found.moments[0].start < found.moments[0].end <= handle.duration
    (tmp_path / "head.mp4").write_bytes(whole[:200])
    with pytest.raises(UniTimeError, match="video"):
        untaught.encode(tmp_path / "head.mp4")


def test_captions_are_text(able: UniTime, film: Any) -> None:
    able.model.replies[ABLE.caption] = "A red cube jumps."
    assert able.caption(film(15)) == "A red cube jumps."
    assert able.caption(film(60), window=(3, 9)) == "A red cube jumps."


@pytest.mark.parametrize(
    "window", [(math.nan, 5), (0, math.nan), (5, 5), (6, 5), (-1, 5), (99, 100), (0, math.inf), (1,), "ab", 3]
)
def test_an_impossible_window_is_named(able: UniTime, film: Any, window: Any) -> None:
    with pytest.raises(UniTimeError, match="window"):
        able.ground(film(15), ["jump"], window=window)


@pytest.mark.parametrize("queries", [[], [""], ["a", "  "], [3], None, 5, ["x" * 5000], ["\udcff"]])
def test_queries_that_cannot_be_asked_are_named(able: UniTime, film: Any, queries: Any) -> None:
    with pytest.raises(UniTimeError, match="queries"):
        able.ground(film(15), queries)


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_k", 0), ("top_k", 1.5), ("threshold", 2), ("threshold", math.nan), ("mode", "quick"), ("decoding", "free")],
)
def test_bad_arguments_are_named(able: UniTime, film: Any, name: str, value: Any) -> None:
    with pytest.raises(UniTimeError, match=name):
        able.ground(film(15), ["jump"], **{name: value})


def test_what_is_no_video_is_a_clear_error(able: UniTime, tmp_path: Any) -> None:
    (tmp_path / "text.mp4").write_text("no film")
    for source in (tmp_path / "text.mp4", tmp_path / "absent.mp4", 5):
        with pytest.raises(UniTimeError, match="video"):
            able.ground(source, ["jump"])


def test_a_single_query_may_stand_alone(able: UniTime, film: Any) -> None:
    assert [g.query for g in able.ground(film(15), "jump")] == ["jump"]


def test_a_request_can_be_cancelled(able: UniTime, film: Any) -> None:
    gone = threading.Event()
    gone.set()
    with pytest.raises(UniTimeError, match="cancelled"):
        able.ground(film(15), ["jump"], cancelled=gone)


def test_a_running_request_stops_between_batches_of_frames_and_leaves_the_handle_whole(
    able: UniTime, film: Any
) -> None:
    gone, looked = threading.Event(), able.model.vision

    def looks_once(frames: Any, grid: Any) -> Any:
        gone.set()  # the client leaves while the first batch is being looked at
        return looked(frames, grid)

    handle = able.encode(film(15))
    handle.frames = lambda plan: read_units(handle.source, plan, chunk=4)  # type: ignore[method-assign]
    able.model.vision = looks_once  # type: ignore[method-assign]
    for call in (able.ground, able.ask):
        gone.clear()
        with pytest.raises(UniTimeError, match="cancelled"):
            call(handle, ["jump"] if call == able.ground else "What?", cancelled=gone)  # type: ignore[operator]
    assert able.model.looked == 8  # one batch of each request  # type: ignore[attr-defined]
    with pytest.raises(UniTimeError, match="cancelled"):
        able.caption(handle, cancelled=gone)
    assert close(able.ground(handle, ["jump"])[0].moments[0], 3, 6)


def test_the_json_form_is_the_documented_one() -> None:
    found = Grounding("q", (Moment(1.0, 2.0, 0.5),), "ok", ((0.5, 0.1),), 0.2, "From")
    assert found.to_dict() == {
        "query": "q", "moments": [{"start": 1.0, "end": 2.0, "score": 0.5}], "status": "ok", "not_found": 0.2,
        "relevance": [[0.5, 0.1]], "raw": "From",
    }  # fmt: skip
