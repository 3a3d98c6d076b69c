"""The held-out videos of the stage and what is measured on them: `seedance evaluate grounding`.

Notable choices:

- Videos are drawn from seeds that no training draws, and only what a viewer can tell is asked. Which seeds is fixed
  here, so a figure can be made again.
- R1 counts a hit where the first window overlaps any true window by the IoU asked (moment_detr's protocol). Every row
  has its *ceiling* beside it: the same measure for the truth moved to the nearest stamps that the model was shown.
- Controls stand beside the figures: the same queries on grey frames (what can be guessed), the same events later in
  time, held-out wordings, held-out combinations of shape, colour and deed.
- A long video is many scenes one after another. Queries that several scenes fit have all their windows as truth.
- Questions on long videos name an actor that only one scene shows, so that there is one answer; the control shows the
  answerer as many frames, spread over the whole video.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shots.stage.heldout import TRAINING_SEEDS
from unitime import metrics
from unitime.annotations import Prediction, Query

if TYPE_CHECKING:
    from shots.video import Video
    from unitime.grounder import UniTime
    from unitime.training.scenes import Told

SIDE, FPS = 128, 8.0
FIRST_SEED = TRAINING_SEEDS + 400_000
SHORT = {  # name: (videos, first seed, split, wording)
    "short": (60, FIRST_SEED, "train", "train"),
    "heldout_wordings": (30, FIRST_SEED + 1000, "train", "heldout"),
    "heldout_combinations": (30, FIRST_SEED + 2000, "heldout", "train"),
}
REPEATED_SEED, REPEATED = FIRST_SEED + 3000, 30
LONG_SEED, LONG_SECONDS = FIRST_SEED + 10_000, (120, 180, 240, 600)
SHIFT = 4.0  # seconds of grey before the video


@dataclass(frozen=True)
class StageVideo:
    """A drawn video and what can be asked of it."""

    name: str
    video: Video
    told: Told


@dataclass
class Row:
    """Queries of one kind and what was said to them, with the best that the stamps shown allow."""

    queries: list[Query]
    predictions: list[Prediction]
    ceilings: list[Prediction]

    def figures(self) -> dict[str, float]:
        """R1@0.5, R1@0.7 and mIoU in percent, each with its ceiling."""
        found: dict[str, float] = {"queries": len(self.queries)}
        for name, predictions in (("", self.predictions), ("ceiling_", self.ceilings)):
            recall = metrics.recall(predictions, self.queries, (0.5, 0.7))
            found[f"{name}R1@0.5"], found[f"{name}R1@0.7"] = recall[0.5], recall[0.7]
            found[f"{name}mIoU"] = round(100 * float(metrics.best_iou(predictions, self.queries).mean()), 2)
        return found


def drawn(seed: int, split: str = "train", wording: str = "train") -> StageVideo:
    """One scene as a video of 128 x 128 pixels and 8 frames a second."""
    from shots.stage.observe import observe
    from shots.stage.render import render_film
    from shots.video import Video
    from unitime.training.scenes import film_of, tell

    film = film_of(seed, split)
    rendered = render_film(film, SIDE, SIDE, FPS)
    told = tell(film, rendered, observe(film, rendered), wording, 1)
    times = np.arange(len(rendered.frames)) / FPS
    return StageVideo(f"stage-{seed}", Video(rendered.frames.numpy(), FPS, times), told)


def long_video(number: int) -> StageVideo:
    """Long video number `number`: scenes one after another."""
    from shots.video import Video
    from unitime.training.scenes import joined

    parts: list[StageVideo] = []
    while sum(part.told.duration for part in parts) < LONG_SECONDS[number] - 4:
        parts.append(drawn(LONG_SEED + 100 * number + len(parts)))
    frames = np.concatenate([part.video.frames for part in parts])
    return StageVideo(
        f"long-{number}", Video(frames, FPS, np.arange(len(frames)) / FPS), joined([part.told for part in parts])
    )  # fmt: skip


def grey(video: Video, seconds: float = 0.0) -> Video:
    """The video with all frames grey, or, with `seconds`, itself after so many of them."""
    from shots.video import Video

    lead = round(seconds * FPS) if seconds else len(video.frames)
    empty = np.full((lead, *video.frames.shape[1:]), 127, np.uint8)
    frames = np.concatenate([empty, video.frames]) if seconds else empty
    return Video(frames, FPS, np.arange(len(frames)) / FPS)


def asked(item: StageVideo, shift: float = 0.0) -> list[Query]:
    """The queries of a video, those of events that do not happen last, with empty windows."""
    asks = [*item.told.asks, *item.told.absent]
    return [
        Query(f"{item.name}-{n}", item.name, ask.texts[0], tuple((s + shift, e + shift) for s, e in ask.windows))
        for n, ask in enumerate(asks)
    ]


def ground(
    model: UniTime, video: Any, queries: Sequence[Query], **how: Any
) -> tuple[list[Prediction], list[Prediction]]:
    """What the model says, whatever its threshold, and the truth moved to the nearest stamps of its fine passes."""
    handle = model.encode(video)
    found = model.ground(handle, [query.query for query in queries], top_k=5, threshold=1.0, **how)
    limit = model.threshold()
    said = [
        Prediction(
            query.id, tuple((m.start, m.end, m.score) for m in grounding.moments),
            status="not_found" if grounding.not_found > limit else grounding.status, not_found=grounding.not_found,
        )
        for query, grounding in zip(queries, found, strict=True)
    ]  # fmt: skip
    best = [
        Prediction(query.id, tuple((*nearest(handle, window), 1.0) for window in query.windows or ()))
        for query in queries
    ]
    return said, best


def nearest(handle: Any, window: tuple[float, float]) -> tuple[float, float]:
    """The window with its ends at the nearest stamps of a fine pass that shows it."""
    limit = handle.model.rule.short_limit
    middle = (window[0] + window[1]) / 2
    start = min(max(0.0, middle - limit / 2), max(0.0, handle.duration - limit))
    span = (start, min(handle.duration, start + limit))
    stamps = np.array(handle.plan(span, "fine").stamps)
    ends = [float(stamps[np.abs(stamps - end).argmin()]) for end in window]
    return ends[0], ends[1]


def evaluate_stage(
    model: UniTime, limit: int | None = None, progress: Callable[[int, int, str], None] = lambda *_: None
) -> dict[str, Any]:
    """Every figure on the held-out videos. `limit`: only so many videos of each kind."""
    report: dict[str, Any] = {}
    for name in SHORT:
        report |= _short(model, name, limit, progress)
    report["repeated"] = _repeated(model, limit, progress)
    report |= _long(model, limit, progress)
    return report


def _short(model: UniTime, name: str, limit: int | None, progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    count, first, split, wording = SHORT[name]
    count = min(count, limit or count)
    rows = {key: Row([], [], []) for key in ([name, "grey", "shifted"] if name == "short" else [name])}
    everything = Row([], [], [])
    for i in range(count):
        progress(i, count, name)
        item = drawn(first + i, split, wording)
        queries = asked(item)
        if split == "heldout":
            queries = [q for q, ask in zip(queries, item.told.asks, strict=False) if _is_heldout(ask)]
        if not queries:
            continue
        said, best = ground(model, item.video, queries)
        everything.queries += queries
        everything.predictions += said
        _collect(rows[name], queries, said, best)
        if name == "short":
            _collect(rows["grey"], queries, *ground(model, grey(item.video), queries))
            if item.told.duration + SHIFT <= model.model.rule.short_limit:
                later = asked(item, SHIFT)
                _collect(rows["shifted"], later, *ground(model, grey(item.video, SHIFT), later))
    progress(count, count, name)
    found: dict[str, Any] = {key: row.figures() for key, row in rows.items()}
    if name == "short":
        found["absent"] = metrics.not_found(everything.predictions, everything.queries)
        found["calibration_error"] = _calibration(everything)
    return found


def _is_heldout(ask: Any) -> bool:
    from shots.stage.heldout import is_heldout_action, is_heldout_look

    return is_heldout_look(ask.shape, ask.colour) or is_heldout_action(ask.shape, ask.kind)


def _collect(row: Row, queries: Sequence[Query], said: Sequence[Prediction], best: Sequence[Prediction]) -> None:
    """Adds the queries whose event happens."""
    for query, prediction, ceiling in zip(queries, said, best, strict=True):
        if query.windows:
            row.queries.append(query)
            row.predictions.append(prediction)
            row.ceilings.append(ceiling)


def _calibration(row: Row) -> float:
    """Distance between the score of a first window and how often such a window is right (IoU >= 0.5)."""
    first = [p.windows[0][2] if p.windows else 0.0 for p in row.predictions]
    right = metrics.best_iou(row.predictions, row.queries) >= 0.5
    return round(metrics.calibration_error(np.clip(first, 0, 1).tolist(), right.tolist()), 4)


def _repeated(model: UniTime, limit: int | None, progress: Callable[[int, int, str], None]) -> dict[str, float]:
    """mAP over all windows of events that happen more than once."""
    wanted = min(REPEATED, limit or REPEATED)
    queries: list[Query] = []
    said: list[Prediction] = []
    for item in _with_repeats():
        progress(len(queries), wanted, "repeated")
        several = [query for query in asked(item) if len(query.windows or ()) > 1]
        queries += several
        said += ground(model, item.video, several)[0]
        if len(queries) >= wanted:
            break
    levels = (0.5, 0.75)
    precision = metrics.detection_ap(said, queries, levels).mean(0)
    mean = metrics.detection_ap(said, queries).mean()
    return {
        "queries": len(queries), "mAP@0.5": round(100 * float(precision[0]), 2),
        "mAP@0.75": round(100 * float(precision[1]), 2), "mAP": round(100 * float(mean), 2),
    }  # fmt: skip


def _with_repeats() -> Iterator[StageVideo]:
    seed = REPEATED_SEED
    while True:
        item = drawn(seed)
        if any(len(ask.windows) > 1 for ask in item.told.asks):
            yield item
        seed += 1


def _long(model: UniTime, limit: int | None, progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    count = min(len(LONG_SECONDS), limit or len(LONG_SECONDS))
    rows = {"long": Row([], [], []), "long_single_pass": Row([], [], [])}
    answers: dict[str, list[int | None]] = {"grounded": [], "uniform": []}
    truth: list[int] = []
    for number in range(count):
        progress(number, count, "long")
        item = long_video(number)
        queries = [query for query in asked(item) if query.windows]
        handle = model.encode(item.video)
        _collect(rows["long"], queries, *ground(model, handle, queries))
        _collect(rows["long_single_pass"], queries, *ground(model, handle, queries, mode="fine"))
        for question, options, right in questions(item, number):
            truth.append(options.index(right))
            grounded = model.ask(handle, question, options)
            frames = 2 * len(handle.plan(grounded.window, "fine").times)
            answers["grounded"].append(grounded.option)
            answers["uniform"].append(model.ask(handle, question, options, grounded=False, frames=frames).option)
    progress(count, count, "long")
    found: dict[str, Any] = {key: row.figures() for key, row in rows.items()}
    found["video_qa"] = {
        "questions": len(truth), **{name: metrics.accuracy(said, truth) for name, said in answers.items()}
    }  # fmt: skip
    return found


def questions(item: StageVideo, number: int, most: int = 10) -> list[tuple[str, list[str], str]]:
    """(question, options, answer) of what one scene alone shows: what an actor does, turns into, looks like."""
    from unitime.training.scenes import lone_questions

    kept = [(lone.text, list(lone.options), lone.answer) for lone in lone_questions(item.told)]
    return random.Random(f"questions-{number}").sample(kept, min(most, len(kept)))
