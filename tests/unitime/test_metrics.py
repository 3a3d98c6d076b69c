"""Both protocols: the published numbers on published predictions, plain re-tellings of the rules, and hand-worked
cases."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from unitime.annotations import Prediction, Query, read_annotations, read_predictions
from unitime.errors import UniTimeError
from unitime.metrics import (
    THRESHOLDS,
    accuracy,
    best_iou,
    calibrate_threshold,
    calibration_error,
    detection_ap,
    evaluate,
    highlight_ap,
    highlights,
    merged,
    pairwise_iou,
    recall,
    set_iou,
    set_overlap,
    top_highlight_map,
)

Windows = Sequence[Sequence[float]]


def said(name: int, *windows: tuple[float, ...], **more: object) -> Prediction:
    scored = tuple((w[0], w[1], w[2] if len(w) > 2 else 0.9 - 0.1 * k) for k, w in enumerate(windows))
    return Prediction(name, scored, **more)  # type: ignore[arg-type]


def asked(name: int, *windows: tuple[float, float], duration: float = 100.0) -> Query:
    return Query(name, f"v{name}", "a red cube jumps", windows, duration)


# -------------------------------------------------------------------------------------------------- published numbers


def test_moment_detrs_published_numbers_are_reproduced_to_the_last_digit(data: Path) -> None:
    folder = data / "annotations"
    published = json.loads((folder / "moment_detr__sample_val_preds_metrics_raw.json").read_text())
    predictions = read_predictions(folder / "moment_detr__sample_val_preds.jsonl")
    annotations = read_annotations(folder / "moment_detr__highlight_val_release.jsonl")
    report = evaluate(predictions, annotations.queries, "moment_detr")
    assert (report["queries"], report["missing"]) == (1550, 0)
    assert {key: report[key] for key in published} == published


def test_timechats_highlight_predictions_score_as_its_evaluator_scores_them(data: Path) -> None:
    """TimeChat's evaluator (moment_detr's, with scikit-learn's curve) run on these two files gives these numbers. The
    metrics file that lies beside them in its repository (VeryGood 11.77 / 16.06) is of other predictions: it tells of
    235 hits among 1463 queries, and counting shows 276 in these."""
    folder = data / "annotations"
    predictions = read_predictions(folder / "TimeChat__vhd_example_pred_file.json")
    annotations = read_annotations(folder / "TimeChat__vhd_example_gt_file.json")
    report = evaluate(predictions, annotations.queries, "moment_detr")
    assert (report["queries"], report["missing"]) == (1463, 87)
    assert report["brief"] == {
        "HL-min-Fair-mAP": 28.8,
        "HL-min-Fair-Hit1": 24.61,
        "HL-min-Good-mAP": 22.8,
        "HL-min-Good-Hit1": 23.17,
        "HL-min-VeryGood-mAP": 13.24,
        "HL-min-VeryGood-Hit1": 18.87,
    }
    published = json.loads((folder / "TimeChat__vhd_metrics.json").read_text())
    assert round(published["brief"]["HL-min-VeryGood-Hit1"] * 1463 / 100) == 235
    rows = [json.loads(line) for line in (folder / "TimeChat__vhd_example_gt_file.json").read_text().splitlines()]
    truth = {row["qid"]: dict(zip(row["relevant_clip_ids"], row["saliency_scores"], strict=True)) for row in rows}
    tops = [(made.id, int(np.argmax(made.saliency))) for made in predictions if made.saliency]
    assert sum(max(truth[name].get(clip, [0])) >= 4 for name, clip in tops) == 276


# ---------------------------------------------------------------------------------------------- the rules, told plainly


def plain_iou(a: Sequence[float], b: Sequence[float]) -> float:
    inter = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - inter
    return inter / union if union else 0.0


def plain_ap(predicted: Windows, truth: Windows, threshold: float) -> float:
    """VOC 2011, one query and one threshold."""
    taken: set[int] = set()
    right = []
    for window in sorted(predicted[:10], key=lambda w: -w[2]):
        ious = [plain_iou(window, true) for true in truth]
        order = [k for k in sorted(range(len(truth)), key=lambda k: ious[k]) if ious[k] >= threshold][::-1]
        match = next((k for k in order if k not in taken), None)
        right.append(match is not None)
        taken |= set() if match is None else {match}
    total = 0.0
    for k in range(len(right)):
        if right[k]:
            total += max(sum(right[: j + 1]) / (j + 1) for j in range(k, len(right))) / len(truth)
    return total


def test_detection_ap_is_the_rule_told_plainly() -> None:
    rng = np.random.default_rng(0)
    predictions, queries = [], []
    for name in range(60):
        windows = [tuple(np.sort(rng.integers(0, 12, 2)).astype(float)) for _ in range(rng.integers(1, 6))]
        spread = [(a + d, b + e, s) for a, b in windows for d, e, s in rng.integers(0, 3, (3, 3))]
        guesses = [(min(a, b), max(a, b), s / 2) for a, b, s in spread][: rng.integers(0, 13)]
        predictions.append(Prediction(name, tuple(guesses)))
        queries.append(asked(name, *windows))
    ours = detection_ap(predictions, queries)
    plain = [
        [plain_ap(p.windows, q.windows or (), t) for t in THRESHOLDS] for p, q in zip(predictions, queries, strict=True)
    ]
    assert 0.1 < ours.mean() < 0.9
    np.testing.assert_allclose(ours, plain, atol=1e-12)


def plain_highlight_ap(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Mean, over the thresholds at which recall rises, of the best precision at that recall or a higher one."""
    points = []
    for threshold in sorted(set(scores), reverse=True):
        chosen = [label for score, label in zip(scores, labels, strict=True) if score >= threshold]
        points.append((sum(chosen), sum(chosen) / len(chosen)))
    rises = [k for k, (found, _) in enumerate(points) if found > (points[k - 1][0] if k else 0)]
    return float(np.mean([max(precision for _, precision in points[k:]) for k in rises])) if rises else 0.0


def test_highlight_ap_is_the_rule_told_plainly() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 9, 50)
    scores = rng.integers(-2, 3, (50, 8)).astype(float)
    labels = rng.random((50, 8, 3)) < 0.4
    labels[0], labels[1] = False, True
    ours = highlight_ap(scores, labels, lengths)
    for row, length in enumerate(lengths):
        for who in range(3):
            plain = plain_highlight_ap(scores[row, :length].tolist(), labels[row, :length, who].tolist())
            assert ours[row, who] == pytest.approx(plain)
    assert ours[0].tolist() == [0, 0, 0]
    assert ours[1].tolist() == [1, 1, 1]


# --------------------------------------------------------------------------------------------------------- hand-worked


def test_a_hit_at_exactly_the_threshold_counts_for_moment_detr_and_not_for_unitime() -> None:
    queries, predictions = [asked(1, (0, 10)), asked(2, (0, 10))], [said(1, (0, 5)), said(2, (0, 10))]
    assert evaluate(predictions, queries, "moment_detr")["brief"]["MR-full-R1@0.5"] == 100.0
    assert evaluate(predictions, queries, "unitime")["R1@0.5"] == 50.0


def test_moment_detr_takes_the_first_window_as_listed_for_r1_and_the_highest_score_for_map() -> None:
    queries, predictions = [asked(1, (0, 10))], [said(1, (50, 60, 0.1), (0, 10, 0.9))]
    brief = evaluate(predictions, queries, "moment_detr")["brief"]
    assert brief["MR-full-R1@0.5"] == 0.0
    assert brief["MR-full-mAP"] == 100.0
    assert recall(predictions, queries, [0.5], top_k=2) == {0.5: 100.0}


def test_a_true_window_is_found_once_and_the_second_finder_is_wrong() -> None:
    # Ranked: right, double, right. Precision 1, 1/2, 2/3; recall 1/2, 1/2, 1. AP = (1 + 2/3) / 2.
    made = said(1, (0, 10), (0, 10), (20, 30))
    assert detection_ap([made], [asked(1, (0, 10), (20, 30))], [0.5])[0, 0] == pytest.approx(5 / 6)


def test_length_splits_keep_windows_of_their_length_and_queries_that_have_some() -> None:
    queries = [asked(1, (0, 10), (20, 60)), asked(2, (0, 20))]
    report = evaluate([said(1, (0, 10), (20, 60)), said(2, (0, 20))], queries, "moment_detr")
    assert report["short"]["MR-R1"]["0.95"] == 100.0  # ten seconds are short
    assert report["middle"]["MR-R1"]["0.95"] == 100.0
    assert report["long"]["MR-R1"]["0.95"] == 0.0  # the first window is not the long one
    assert report["long"]["MR-mAP"]["average"] == 50.0
    assert "MR-short-mAP" in report["brief"]
    assert "short" not in evaluate([said(2, (0, 20))], queries[1:], "moment_detr")


def test_set_iou_is_of_all_windows_together() -> None:
    predicted, truth = [(0, 10, 0.9), (20, 30, 0.8)], [(5, 10), (20, 40)]
    assert set_iou(predicted, truth) == pytest.approx(15 / 30)
    assert set_overlap(predicted, truth) == pytest.approx((15 / 30, 15 / 20, 15 / 25))
    assert set_iou([], truth) == 0.0
    assert set_iou([(3, 3)], [(3, 3)]) == 0.0


def test_overlapping_windows_count_twice_as_published_and_once_when_merged() -> None:
    predicted, truth = [(0, 10), (0, 10)], [(0, 10)]
    assert set_iou(predicted, truth, merge=False) == pytest.approx(20 / 10)  # (10 + 10) / (20 + 10 - 20)
    assert set_iou(predicted, truth) == 1.0
    apart = [(0, 4), (6, 9)]
    assert set_iou(apart, truth, merge=False) == pytest.approx(set_iou(apart, truth))
    assert merged([(5, 8), (0, 2), (2, 3), (6, 7)]).tolist() == [[0, 3], [5, 8]]


def test_unitime_reports_cg_benchs_figures_beside_its_own() -> None:
    # IoU 1, 0.25 and 0: over 0.3 one of three; CG-Bench's mean recall at 0.1 ... 0.5 is (2 + 2 + 1 + 1 + 1) / 15.
    queries = [asked(1, (0, 10)), asked(2, (0, 20)), asked(3, (0, 10))]
    report = evaluate([said(1, (0, 10)), said(2, (15, 20)), said(3, (50, 60))], queries, "unitime")
    expected = {"R1@0.3": 33.33, "R1@0.5": 33.33, "mIoU": 41.67, "IoP": 66.67, "IoG": 41.67, "R@IoU": 46.67}
    assert {key: report[key] for key in expected} == expected
    assert report["windows"] == "all"


def test_of_a_ranking_unitime_can_count_the_likely_windows_only() -> None:
    queries, predictions = [asked(1, (0, 10), (20, 30))], [said(1, (0, 10, 0.4), (20, 30, 0.6), (50, 90, 0.1))]
    assert evaluate(predictions, queries, "unitime")["mIoU"] == pytest.approx(100 * 20 / 60, abs=0.01)
    assert evaluate(predictions, queries, "unitime", min_score=0.5)["mIoU"] == 100.0
    assert evaluate(predictions, queries, "unitime", min_score=0.7)["mIoU"] == 50.0


@pytest.mark.parametrize("protocol", ["moment_detr", "unitime"])
def test_an_answer_without_windows_is_a_miss_and_a_query_without_an_answer_is_left_out(protocol: str) -> None:
    queries = [asked(1, (0, 10)), asked(2, (0, 10)), asked(3, (0, 10))]
    predictions = [said(1, (0, 10)), said(2, status="parse_error"), said(9, (0, 10))]

    def r1(**options: bool) -> float:
        report = evaluate(predictions, queries, protocol, **options)
        assert (report["missing"], report["unknown"]) == (1, 1)
        return float(report["R1@0.5"] if protocol == "unitime" else report["brief"]["MR-full-R1@0.5"])

    assert r1() == 50.0
    assert r1(count_missing=True) == 33.33


def test_ids_match_as_numbers_or_as_text() -> None:
    query = Query("7", "v", "a cube", ((0.0, 10.0),))
    assert evaluate([said(7, (0, 10))], [query], "unitime")["mIoU"] == 100.0


def test_a_true_window_without_length_is_hit_by_nothing() -> None:
    queries = [asked(1, (5, 5))]
    assert best_iou([said(1, (5, 5))], queries).tolist() == [0.0]
    assert best_iou([said(1, (0, 10))], queries).tolist() == [0.0]
    assert pairwise_iou(np.array([[0.0, 4.0]]), np.array([[2.0, 6.0], [4.0, 8.0]])).tolist() == [[2 / 6, 0.0]]


def test_absent_events_are_scored_apart_and_leave_the_other_figures_alone() -> None:
    queries = [asked(1, (0, 10)), asked(2, (0, 10)), asked(3), asked(4)]
    predictions = [
        said(1, (0, 10), not_found=0.1),
        said(2, status="not_found", not_found=0.6),
        said(3, status="not_found", not_found=0.8),
        said(4, (0, 5), not_found=0.7),
    ]
    report = evaluate(predictions, queries, "unitime")
    assert report["R1@0.5"] == 50.0
    assert report["not_found"] == {"absent": 2, "recall": 50.0, "precision": 50.0, "threshold": 0.65}


def test_the_calibrated_threshold_tells_absent_from_present() -> None:
    scores, present = [0.1, 0.2, 0.35, 0.6, 0.9], [True, True, True, False, False]
    assert 0.35 < calibrate_threshold(scores, present) < 0.6
    assert calibrate_threshold([0.5, 0.4], [True, False]) == 1.0  # no threshold tells them apart: nothing is withheld
    assert calibrate_threshold([0.5] * 9 + [0.4], [False] * 9 + [True]) == pytest.approx(0.45)
    rng = np.random.default_rng(0)
    absent = rng.random(400) < 0.3
    noisy = np.clip(np.where(absent, 0.7, 0.3) + rng.normal(0, 0.1, 400), 0, 1)
    assert 0.4 < calibrate_threshold(noisy.tolist(), (~absent).tolist()) < 0.6
    for bad in (([], []), ([0.1], [True]), ([0.1, 0.2], [True]), ([0.1, math.nan], [True, False])):
        with pytest.raises(UniTimeError, match="present|scores"):
            calibrate_threshold(*bad)
    assert calibrate_threshold([0.5, 0.5, 0.5], [False, True, True]) == 1.0  # equals stay together


def test_a_weak_model_is_not_made_to_call_everything_absent() -> None:
    # Seven in ten absent and scores that hardly tell: the best F1 of "not found" would come from saying it always.
    rng = np.random.default_rng(1)
    absent = rng.random(2000) < 0.7
    scores = np.clip(0.5 + 0.05 * absent + rng.normal(0, 0.1, 2000), 0, 1)
    threshold = calibrate_threshold(scores.tolist(), (~absent).tolist())
    kept, called = (scores <= threshold)[~absent].mean(), (scores > threshold)[absent].mean()
    assert kept > 0.4 and called > 0.4
    assert kept + called > 1.1


def test_calibration_error_is_the_mean_gap_between_confidence_and_truth() -> None:
    # Two at 0.95 of which one is right: a gap of 0.45. Two at 0.25, none right: 0.25. Mean 0.35.
    assert calibration_error([0.95, 0.95, 0.25, 0.25], [True, False, False, False]) == pytest.approx(0.35)
    assert calibration_error([0.5, 0.5], [True, False]) == 0.0
    assert calibration_error([0.0, 1.0], [False, True]) == 0.0
    assert calibration_error([], []) == 0.0
    with pytest.raises(UniTimeError, match="confidence"):
        calibration_error([1.5], [True])
    queries = [asked(1, (0, 10)), asked(2, (0, 10))]
    report = evaluate([said(1, (0, 10, 0.95)), said(2, (50, 60, 0.95))], queries, "moment_detr")
    assert report["calibration_error"] == 0.45
    assert "calibration_error" not in evaluate([said(1, (0, 10, 7.0))], queries, "moment_detr")


def test_saliency_counts_missing_clips_as_zero_and_tops_beyond_the_video_as_misses() -> None:
    ratings = np.array([[0, 0, 0], [4, 2, 0], [2, 2, 2]], dtype=float)
    query = Query(1, "v", "a cube", ((2.0, 6.0),), 6.0, ratings)
    assert highlights([said(1, saliency=(0.0, 0.9, 0.1))], [query], 4)["HL-Hit1"] == 100.0  # one annotator is enough
    assert highlights([said(1, saliency=(-3.0, -2.0))], [query], 2)["HL-Hit1"] == 100.0
    # The clip left out scores 0, above the others: annotator 3 rates it best (AP 1), annotators 1 and 2 both rank
    # it and clip 1 before clip 0 (AP 1): all three 1.
    assert highlights([said(1, saliency=(-3.0, -2.0))], [query], 2)["HL-mAP"] == 100.0
    assert highlights([said(1, saliency=(0.0, 0.1, 0.1, 9.0))], [query], 2)["HL-Hit1"] == 0.0
    assert highlights([said(1)], [query], 2)["HL-Hit1"] == 0.0


def test_top_five_map_is_trapezoidal_over_clips_rated_above_the_median() -> None:
    ratings = np.array([[5.0], [1.0], [4.0], [1.0], [1.0], [1.0]])  # clips 0 and 2 are good
    query = Query("a", "a", "a train", None, 12.0, ratings)
    best = said(1, saliency=(9.0, 1.0, 8.0, 0.0, 0.0, 0.0))
    second = said(1, saliency=(8.0, 9.0, 7.0, 0.0, 0.0, 0.0))
    assert top_highlight_map([best], [query]) == 100.0
    # Bad, good, good: precision 0, 1/2, 2/3; AP = (0 + 1/2) / 4 + (1/2 + 2/3) / 4.
    assert top_highlight_map([second], [query]) == pytest.approx(100 * (0.5 + 7 / 6) / 4, abs=0.01)
    report = evaluate([Prediction("a", (), best.saliency)], [query], "moment_detr")
    assert report["brief"] == {"HL-top5-mAP": 100.0}


def test_accuracy_counts_missing_answers_as_wrong() -> None:
    assert accuracy([0, 2, None, 1], [0, 1, 1, 1]) == 50.0
    assert accuracy(["blue", "red"], ["blue", "blue"]) == 50.0
    with pytest.raises(UniTimeError, match="one for each"):
        accuracy([1], [1, 2])


def test_what_cannot_be_scored_is_refused_with_the_reason() -> None:
    with pytest.raises(UniTimeError, match="protocol: 'voc' is none of moment_detr, unitime"):
        evaluate([said(1)], [asked(1, (0, 1))], "voc")
    with pytest.raises(UniTimeError, match="not of the same set"):
        evaluate([said(1, (0, 1))], [asked(2, (0, 1))], "unitime")
    untold = [Query(1, "v", "a cube", None)]
    for protocol in ("moment_detr", "unitime"):
        with pytest.raises(UniTimeError, match="annotations: they hold n"):
            evaluate([said(1, (0, 1))], untold, protocol)
