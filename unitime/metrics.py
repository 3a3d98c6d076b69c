"""How good predicted moments are, by the published protocols.

Two protocols, which give different numbers for the same predictions; every report says which it is:

- ``moment_detr``: QVHighlights' evaluator. R1@t: the first window as listed, against the true window that it overlaps
  most, hit at IoU >= t. mAP: at most ten windows, by falling score, each taking the best true window that is still
  free; interpolated AP, per query, averaged over queries and over t = 0.5 ... 0.95. Saliency ("HL"): mAP and HIT@1 of
  clips rated Fair (2), Good (3), VeryGood (4) or better, per annotator.
- ``unitime``: UniTime's evaluator. Set IoU of *all* predicted windows with *all* true ones, hit at IoU > t (strictly),
  and its mean; beside it CG-Bench's R@IoU, IoP (the part of the prediction that is right) and IoG (the part of the
  truth that is found).

Notable choices:

- numpy only and vectorised over queries; `tests/unitime/test_metrics.py` holds the published numbers.
- UniTime adds up the intersections of all pairs, so windows that overlap each other count twice and IoU can leave
  [0, 1]; here windows are merged first, which gives the same whenever they do not overlap.
- A prediction without windows is a miss, never left out. Queries that the predictions do not mention are left out, as
  both published evaluators do, and counted as `missing`; `count_missing` makes them misses.
- Queries whose event never happens have no place in either protocol; they are scored by `not_found`.
- UniTime's protocol knows answers, not rankings: all windows count. Of a ranking (ten windows, most of them unlikely)
  that makes nonsense, so `min_score` says from which score on windows after the first belong to the answer.
- Percentages are rounded to two decimals, as published.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unitime.annotations import Prediction, Query
from unitime.errors import UniTimeError

Array = NDArray[np.float64]

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
LENGTHS = {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, 150.0)}  # seconds, from exclusive
RATINGS = {"Fair": 2, "Good": 3, "VeryGood": 4}
MAX_WINDOWS = 10  # of a query count for mAP


# ----------------------------------------------------------------------------------------------- windows, as numbers


def pairwise_iou(first: Array, second: Array) -> Array:
    """IoU of each of (..., P, 2) with each of (..., G, 2) windows: (..., P, G). Two windows without length: 0."""
    a, b = first[..., :, None, :], second[..., None, :, :]
    inter = np.clip(np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0]), 0, None)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def merged(windows: Sequence[Sequence[float]]) -> Array:
    """The union of `windows` ((start, end, ...) each) as separate windows in order: (N, 2)."""
    joined: list[list[float]] = []
    for start, end in sorted((window[0], window[1]) for window in windows):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    return np.array(joined, dtype=np.float64).reshape(-1, 2)


def set_overlap(
    predicted: Sequence[Sequence[float]], truth: Sequence[Sequence[float]], *, merge: bool = True
) -> tuple[float, float, float]:
    """(IoU, IoP, IoG) of two sets of windows: intersection over union, over the prediction and over the truth.

    With ``merge=False`` it is UniTime's sum over all pairs, in which overlapping windows count more than once.
    """
    a = merged(predicted) if merge else _windows(predicted)
    b = merged(truth) if merge else _windows(truth)
    inter = float(
        np.clip(np.minimum(a[:, None, 1], b[None, :, 1]) - np.maximum(a[:, None, 0], b[None, :, 0]), 0, None).sum()
    )
    of_a, of_b = float((a[:, 1] - a[:, 0]).sum()), float((b[:, 1] - b[:, 0]).sum())
    return _ratio(inter, of_a + of_b - inter), _ratio(inter, of_a), _ratio(inter, of_b)


def set_iou(predicted: Sequence[Sequence[float]], truth: Sequence[Sequence[float]], *, merge: bool = True) -> float:
    """IoU of two sets of windows; see `set_overlap`."""
    return set_overlap(predicted, truth, merge=merge)[0]


def best_iou(predictions: Sequence[Prediction], queries: Sequence[Query], top_k: int = 1) -> Array:
    """Highest IoU of the first `top_k` predicted windows, as listed, with any true one, per query: (N,)."""
    predicted, _ = _padded([_windows(made.windows[:top_k]) for made in predictions])
    truth, _ = _padded([_windows(query.windows or ()) for query in queries])
    return pairwise_iou(predicted, truth).max(axis=(1, 2), initial=0.0)


def recall(
    predictions: Sequence[Prediction],
    queries: Sequence[Query],
    thresholds: Sequence[float] = THRESHOLDS,
    top_k: int = 1,
) -> dict[float, float]:
    """R@k: share of queries, in percent, for which one of the first `top_k` windows has IoU >= t, per t."""
    ious = best_iou(predictions, queries, top_k)
    return {t: _percent((ious >= t).mean()) for t in thresholds}


def detection_ap(
    predictions: Sequence[Prediction], queries: Sequence[Query], thresholds: Sequence[float] = THRESHOLDS
) -> Array:
    """Average precision of each query's windows at each IoU threshold: (N, T), as moment_detr's evaluator (VOC 2011).

    The first `MAX_WINDOWS` windows count, by falling score; each is right if a true window that no earlier one took
    has IoU >= t with it, and takes the one it overlaps most.
    """
    ordered = [sorted(made.windows[:MAX_WINDOWS], key=lambda window: -window[2]) for made in predictions]
    predicted, _ = _padded([_windows(windows) for windows in ordered])  # (N, P, 2)
    truth, counts = _padded([_windows(query.windows or ()) for query in queries])  # (N, G, 2), (N,)
    ious = pairwise_iou(predicted, truth)  # (N, P, G)
    levels = np.asarray(thresholds)[:, None]  # (T, 1)
    number, ranks, slots = ious.shape
    taken = np.zeros((number, len(thresholds), slots), dtype=bool)
    right = np.zeros((number, len(thresholds), ranks))
    for rank in range(ranks):
        iou = ious[:, rank, None, :]  # (N, 1, G)
        free = (iou >= levels) & ~taken  # (N, T, G)
        best = slots - 1 - np.where(free, iou, -1.0)[..., ::-1].argmax(-1)  # of equals the last, as published
        hit: NDArray[np.bool_] = np.any(free, axis=-1)  # (N, T)
        right[:, :, rank] = hit
        taken |= hit[..., None] & (best[..., None] == np.arange(slots))
    found = right.cumsum(-1)
    precision = found / np.arange(1, ranks + 1)
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    return (right * envelope).sum(-1) / np.maximum(counts, 1)[:, None]  # recall rises by 1 / count where right


# ---------------------------------------------------------------------------------------------------------- saliency


def highlight_ap(scores: Array, labels: NDArray[np.bool_], lengths: NDArray[np.int64]) -> Array:
    """Interpolated AP of clips ranked by score, per query and annotator: (N, A).

    scores: (N, C). labels: (N, C, A), whether the annotator found the clip good. lengths: (N,), clips that exist.
    Clips of equal score are taken together; the mean is over the ranks where recall rises. No good clip: 0.
    """
    number, clips = scores.shape
    exists: NDArray[np.bool_] = np.arange(clips)[None, :] < lengths[:, None]
    order = np.argsort(np.where(exists, -scores, np.inf), axis=1, kind="stable")
    ranked = np.take_along_axis(np.where(exists, scores, -np.inf), order, 1)  # those that exist come first
    good = np.take_along_axis(labels & exists[..., None], order[..., None], 1)  # (N, C, A)
    last = np.ones((number, clips), dtype=bool)  # the last of its equals
    last[:, :-1] = (ranked[:, :-1] != ranked[:, 1:]) | (np.arange(1, clips) == lengths[:, None])
    last &= exists
    found = good.cumsum(1) * last[..., None]
    precision = found / np.arange(1, clips + 1)[:, None]
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    before = np.zeros_like(found)
    before[:, 1:] = np.maximum.accumulate(found, axis=1)[:, :-1]
    rises = found > before
    return (envelope * rises).sum(1) / np.maximum(rises.sum(1), 1)


def highlights(predictions: Sequence[Prediction], queries: Sequence[Query], rating: float) -> dict[str, float]:
    """QVHighlights' saliency scores, in percent: HL-mAP over queries and annotators; HL-Hit1: whether the highest
    clip has at least `rating` from any annotator. Missing clips score 0; a clip beyond the video is a miss."""
    lengths = np.array([len(_rated(query)) for query in queries])
    annotators = max(_rated(query).shape[1] for query in queries)
    labels = np.zeros((len(queries), max(int(lengths.max()), 1), annotators), dtype=bool)
    scores = np.zeros(labels.shape[:2])
    hits = np.zeros(len(queries), dtype=bool)
    for row, (made, query) in enumerate(zip(predictions, queries, strict=True)):
        ratings = _rated(query)
        labels[row, : len(ratings), : ratings.shape[1]] = ratings >= rating
        if made.saliency:
            given = np.nan_to_num(np.asarray(made.saliency), nan=-np.inf)
            scores[row, : min(len(given), len(ratings))] = given[: len(ratings)]
            top = int(given.argmax())
            hits[row] = top < len(ratings) and bool(labels[row, top].any())
    return {"HL-mAP": _percent(highlight_ap(scores, labels, lengths).mean()), "HL-Hit1": _percent(hits.mean())}


def top_highlight_map(predictions: Sequence[Prediction], queries: Sequence[Query], top: int = 5) -> float:
    """TVSum's top-5 mAP as UMT and Lighthouse have it, in percent: for each annotator, clips rated above the median
    are good; trapezoidal AP of the `top` clips ranked first."""
    values = []
    for made, query in zip(predictions, queries, strict=True):
        ratings = _rated(query)
        given = np.zeros(len(ratings))
        given[: len(made.saliency or ())] = (made.saliency or ())[: len(ratings)]
        ranked = np.argsort(-given, kind="stable")[:top]
        median = np.sort(ratings, axis=0)[(len(ratings) - 1) // 2]  # the lower one of two, as torch has it
        good = (ratings > median)[ranked].astype(np.float64)  # (top, annotators)
        total = np.maximum(good.sum(0), 1)
        precision = good.cumsum(0) / np.arange(1, len(good) + 1)[:, None]
        before = np.vstack([np.ones(good.shape[1]), precision[:-1]])
        values.append((good / total * (before + precision) / 2).sum(0))
    return _percent(np.mean(values))


# --------------------------------------------------------------------------------------------- scores, absence, answers


def calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017): mean distance between confidence and share of right ones over
    equal bins of confidence in [0, 1], weighted by how many fall into each. 0 is best; 0 for nothing."""
    sure, true = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if sure.shape != true.shape or (len(sure) and not 0 <= sure.min() <= sure.max() <= 1):
        raise UniTimeError("confidence: one value in [0, 1] per outcome is needed")
    if not len(sure):
        return 0.0
    slot = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)  # (low, high], 0 in the first
    gaps = np.bincount(slot, weights=sure - true, minlength=bins)
    return float(np.abs(gaps).sum() / len(sure))


def not_found(predictions: Sequence[Prediction], queries: Sequence[Query]) -> dict[str, float]:
    """How well absent events are told, in percent: recall (absent ones called not found), precision (of those called
    so), and the `threshold` on the probability of absence that would tell these queries apart best."""
    absent = np.array([query.windows == () for query in queries])
    called = np.array([made.status == "not_found" for made in predictions])
    both = float((absent & called).sum())
    result = {
        "absent": int(absent.sum()),
        "recall": _percent(_ratio(both, float(absent.sum()))),
        "precision": _percent(_ratio(both, float(called.sum()))),
    }
    told = [made.not_found for made in predictions]
    if absent.any() and not absent.all() and all(value is not None for value in told):
        scores = [float(value or 0) for value in told]
        result["threshold"] = round(calibrate_threshold(scores, (~absent).tolist()), 4)
    return result


def calibrate_threshold(scores: Sequence[float], present: Sequence[bool]) -> float:
    """The ``not_found`` threshold that tells absent from present queries best.

    Args:
        scores: ``Grounding.not_found`` of each query, from `ground` with any threshold.
        present: whether it does happen.

    Returns the threshold with the highest balanced accuracy (Youden's J: mean share of absent and of present
    queries told right), midway between the scores beside it. F1 would reward a weak model for calling everything
    absent; here that is worth a coin's throw, and of equally good thresholds the highest is taken, so that a model that
    cannot tell withholds nothing. Raises UniTimeError where there is not at least one of each kind.
    """
    values = np.asarray(scores, dtype=np.float64)
    absent = ~np.asarray(present, dtype=bool)
    if values.shape != absent.shape or values.ndim != 1:
        raise UniTimeError(f"scores, present: {values.shape} and {absent.shape}; one of each per query is needed")
    if not np.isfinite(values).all():
        raise UniTimeError("scores: one is not a number")
    if absent.all() or not absent.any():
        raise UniTimeError("present: queries of both kinds are needed to tell them apart")
    known = np.unique(values)
    edges = np.concatenate([[0.0], (known[1:] + known[:-1]) / 2, [1.0]])
    said = values[None, :] > edges[:, None]  # (edges, queries)
    balanced = said[:, absent].mean(axis=1) + (~said)[:, ~absent].mean(axis=1)
    return float(edges[np.flatnonzero(balanced >= balanced.max() - 1e-12)[-1]])


def accuracy(answers: Sequence[Hashable], truth: Sequence[Hashable]) -> float:
    """VideoQA: share of right answers (options or words), in percent. An answer that is missing (None) is wrong."""
    if len(answers) != len(truth) or not truth:
        raise UniTimeError(f"answers: {len(answers)} for {len(truth)} questions; one for each is needed")
    return _percent(float(np.mean([a is not None and a == t for a, t in zip(answers, truth, strict=True)])))


# ---------------------------------------------------------------------------------------------------------- protocols


def evaluate(
    predictions: Sequence[Prediction],
    queries: Sequence[Query],
    protocol: str,
    *,
    min_score: float | None = None,
    count_missing: bool = False,
) -> dict[str, Any]:
    """The report of one protocol, percentages.

    Args:
        protocol: "moment_detr" or "unitime".
        min_score: set IoU counts the first window, and others from this score on; None is all, as published.
        count_missing: queries without a prediction are misses; else they are left out.

    Raises UniTimeError for another protocol, or predictions that answer none of the queries.
    """
    if protocol not in PROTOCOLS:
        raise UniTimeError(f"protocol: {protocol!r} is none of {', '.join(PROTOCOLS)}")
    made = {str(prediction.id): prediction for prediction in predictions}
    asked = [query for query in queries if count_missing or str(query.id) in made]
    if not asked or not made.keys() & {str(query.id) for query in queries}:
        raise UniTimeError(
            f"predictions: none of their {len(made)} ids is one of the annotations' {len(queries)}; "
            "the two files are not of the same set"
        )
    paired = [made.get(str(query.id)) or Prediction(query.id, ()) for query in asked]
    counts = {
        "protocol": protocol,
        "queries": len(asked),
        "missing": sum(str(query.id) not in made for query in queries),
        "unknown": len(made.keys() - {str(query.id) for query in queries}),
    }
    told = [(p, q) for p, q in zip(paired, asked, strict=True) if q.windows]
    report = _moment_detr(paired, asked, told) if protocol == "moment_detr" else _unitime(asked, told, min_score)
    return {**report, **counts, **_extras(paired, asked)}


PROTOCOLS = ("moment_detr", "unitime")


def _moment_detr(
    paired: Sequence[Prediction], asked: Sequence[Query], told: Sequence[tuple[Prediction, Query]]
) -> dict[str, Any]:
    """The report as moment_detr's evaluator writes it, key for key, with R1@0.3 and mIoU of the first window beside."""
    brief: dict[str, float] = {}
    report: dict[str, Any] = {"brief": brief}
    if told and any(made.windows or made.saliency is None for made in paired):
        ranges: dict[str, tuple[float, float] | None] = {**LENGTHS, "full": None}
        for name, limits in ranges.items():
            within = told if limits is None else [(p, _of_length(q, *limits)) for p, q in told]
            within = [(p, q) for p, q in within if q.windows]
            if within:
                report[name] = _retrieval(*zip(*within, strict=True))
        brief |= {f"MR-full-R1@{t}": report["full"]["MR-R1"][t] for t in ("0.5", "0.7")}
        brief["MR-full-mAP"] = report["full"]["MR-mAP"]["average"]
        brief |= {f"MR-full-mAP@{t}": report["full"]["MR-mAP"][t] for t in ("0.5", "0.75")}
        brief |= {f"MR-{name}-mAP": report[name]["MR-mAP"]["average"] for name in sorted(LENGTHS) if name in report}
        made, queries = zip(*told, strict=True)
        report["also"] = {
            "R1@0.3": recall(made, queries, [0.3])[0.3],
            "mIoU": _percent(best_iou(made, queries).mean()),
            **{f"R5@{t}": value for t, value in recall(made, queries, [0.3, 0.5], top_k=5).items()},
        }
    rated = [(p, q) for p, q in zip(paired, asked, strict=True) if q.saliency is not None]
    if rated and any(made.saliency for made, _ in rated):
        made, queries = zip(*rated, strict=True)
        if any(query.windows is not None for query in queries):
            for name, rating in RATINGS.items():
                scores = report[f"HL-min-{name}"] = highlights(made, queries, rating)
                brief |= {f"HL-min-{name}-{key.removeprefix('HL-')}": value for key, value in scores.items()}
        else:
            brief["HL-top5-mAP"] = top_highlight_map(made, queries)
    if not brief and not any(query.windows == () for query in asked):
        raise UniTimeError("annotations: they hold neither windows nor ratings that the predictions could be held to")
    return report


def _retrieval(predictions: Sequence[Prediction], queries: Sequence[Query]) -> dict[str, dict[str, float]]:
    per_threshold = detection_ap(predictions, queries).mean(0)
    precision = {str(t): _percent(value) for t, value in zip(THRESHOLDS, per_threshold, strict=True)}
    hits = {str(t): value for t, value in recall(predictions, queries).items()}
    return {"MR-mAP": {**precision, "average": _percent(per_threshold.mean())}, "MR-R1": hits}


def _unitime(
    asked: Sequence[Query], told: Sequence[tuple[Prediction, Query]], min_score: float | None
) -> dict[str, Any]:
    """UniTime's report: R1@t (set IoU > t) and mIoU, with CG-Bench's three figures."""
    if not told and any(query.windows == () for query in asked):
        return {}
    if not told:
        raise UniTimeError("annotations: they hold no windows that predictions could be held to")
    overlaps = np.array([set_overlap(_answer(made, min_score), query.windows or ()) for made, query in told])  # (N, 3)
    ious = overlaps[:, 0]
    return {
        **{f"R1@{t}": _percent((ious > t).mean()) for t in (0.3, 0.5, 0.7)},
        "mIoU": _percent(ious.mean()),
        "IoP": _percent(overlaps[:, 1].mean()),
        "IoG": _percent(overlaps[:, 2].mean()),
        "R@IoU": _percent(np.mean([(ious >= t).mean() for t in (0.1, 0.2, 0.3, 0.4, 0.5)])),
        "windows": "all" if min_score is None else f"the first, others from a score of {min_score:g} on",
    }


def _answer(made: Prediction, min_score: float | None) -> Sequence[Sequence[float]]:
    if min_score is None:
        return made.windows
    return [*made.windows[:1], *(window for window in made.windows[1:] if window[2] >= min_score)]


def _extras(paired: Sequence[Prediction], asked: Sequence[Query]) -> dict[str, Any]:
    """What neither protocol measures: calibration of the first window's score (right: IoU >= 0.5), absent events."""
    extras: dict[str, Any] = {}
    scored = [(p, q) for p, q in zip(paired, asked, strict=True) if p.windows and q.windows is not None]
    if scored and all(0 <= made.windows[0][2] <= 1 for made, _ in scored):
        made, queries = zip(*scored, strict=True)
        right = (best_iou(made, queries) >= 0.5).tolist()
        extras["calibration_error"] = round(calibration_error([p.windows[0][2] for p in made], right), 4)
    if any(query.windows == () for query in asked) or any(made.status == "not_found" for made in paired):
        extras["not_found"] = not_found(paired, asked)
    return extras


# ------------------------------------------------------------------------------------------------------------- helpers


def _windows(windows: Sequence[Sequence[float]]) -> Array:
    """(N, 2) of (start, end, ...)."""
    return np.array([window[:2] for window in windows], dtype=np.float64).reshape(-1, 2)


def _padded(rows: Sequence[Array]) -> tuple[Array, NDArray[np.int64]]:
    """Windows of all queries as one array (N, M, 2), filled up with windows without length, and how many there were."""
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    block = np.zeros((len(rows), max(int(counts.max(initial=0)), 1), 2))
    for index, row in enumerate(rows):
        block[index, : len(row)] = row
    return block, counts


def _of_length(query: Query, low: float, high: float) -> Query:
    """`query` with its windows of low < seconds <= high only."""
    kept = tuple(window for window in query.windows or () if low < window[1] - window[0] <= high)
    return Query(query.id, query.video, query.query, kept, query.duration)


def _rated(query: Query) -> Array:
    if query.saliency is None:
        raise UniTimeError(f"annotations: query {query.id!r} has no ratings of clips")
    return query.saliency.reshape(len(query.saliency), -1)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _percent(share: float | np.floating[Any]) -> float:
    return float(f"{100 * float(share):.2f}")
