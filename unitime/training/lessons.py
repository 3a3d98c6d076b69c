"""From benchmarks' files to packed sequences: what a grounding model is shown, asked and told (task ``adapt``).

One *lesson* is one pass over a video with everything that is asked of it. A video of up to ``rule.short_limit`` seconds
gives one fine pass. A longer one gives what the grounder will do with it (UniTime, section on multi-granularity data):
a coarse pass, several times over, and fine passes over its pieces on grids of fixed lengths.

Notable choices:

- Pieces are three quarters, a half and a quarter of ``rule.short_limit``: the published 96, 64 and 32 s for the
  published rule, and right for any other. A rest shorter than a quarter of a piece goes with the piece before it.
- A fine answer names the smallest stamps that enclose the moment, as published; with prompts of a model's own, the
  nearest ones, which `unitime.training.text` teaches and which miss by less. A coarse answer lists every segment that
  overlaps the moment, once, in order; a segment reaches to where the next one begins, as the grounder takes it.
- What lies outside a piece is cut off; a remnant shorter than a tenth of a second counts neither as there nor as not
  there. "Not here" is taught where the prompts have a sentence for it, and only by queries of the same video.
- Nothing is left out in silence: what could not be used is counted, and every video is named.
"""

from __future__ import annotations

import bisect
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unitime import sequence
from unitime.annotations import Query, VideoFolder, Window, read_annotations
from unitime.errors import UniTimeError
from unitime.features import FeatureCache
from unitime.frames import FramePlan, FrameRule
from unitime.grounder import VideoHandle
from unitime.model import Features, VisionLanguageModel
from unitime.prompts import Prompts

REMNANT = 0.1  # seconds, the grain of stamps
_PIECES = (0.75, 0.5, 0.25)  # of rule.short_limit
_EDGE = 1e-6
_MARKER = 12  # tokens of a marker, about; for sorting by length alone

Tell = Callable[..., None]


@dataclass(frozen=True)
class Source:
    """A file of annotations in any format of `unitime.annotations`, and the folder of its videos."""

    annotations: Path
    videos: Path


@dataclass(frozen=True)
class LessonConfig:
    """How videos become lessons.

    queries, tokens: most queries, and most tokens of queries and answers together, in one sequence. repeat: how often a
    coarse pass is seen for every fine one (N_rep). pieces: seconds of the fine pieces of a long video; None: three
    quarters, half and a quarter of the rule's ``short_limit``. negatives: share of the queries asked of parts of a
    video that do not show them; none are where the prompts have no sentence for it. snap: "enclosing" or "nearest"
    stamps; None: enclosing for the published prompts, nearest for others.
    """

    queries: int = 20
    tokens: int = 2048
    repeat: int = 4
    pieces: list[float] | None = None
    negatives: float = 0.2
    snap: str | None = None

    def __post_init__(self) -> None:
        for name in ("queries", "tokens", "repeat"):
            if getattr(self, name) < 1:
                raise UniTimeError(f"lessons.{name}: {getattr(self, name)}; at least 1 is needed")
        if not 0 <= self.negatives < 1:
            raise UniTimeError(f"lessons.negatives: {self.negatives:g}; 0 <= negatives < 1 is needed")
        if self.snap not in (None, "enclosing", "nearest"):
            raise UniTimeError(f"lessons.snap: {self.snap!r} is not one of enclosing, nearest")
        if self.pieces is not None and not all(seconds > 0 for seconds in self.pieces):
            raise UniTimeError(f"lessons.pieces: {self.pieces}; seconds above 0 are needed")


@dataclass(frozen=True)
class Lesson:
    """One pass over a window (start, end) seconds of a video, and what is asked there: (user turn, answer) each.

    length: tokens of the sequence, about.
    """

    video: Path
    mode: str
    window: Window
    asks: tuple[tuple[str, str], ...]
    length: int


# Arithmetic of passes and labels.


def passes(duration: float, rule: FrameRule, pieces: Sequence[float] | None = None) -> list[list[tuple[str, Window]]]:
    """(mode, window) of every pass over a video, those that cover it once in one list."""
    if duration <= rule.short_limit:
        return [[("fine", (0.0, duration))]]
    grids = [share * rule.short_limit for share in _PIECES] if pieces is None else pieces
    coarse = [("coarse", part) for part in _halved((0.0, duration), rule.long_limit)]
    return [coarse, *([("fine", part) for part in cut(duration, seconds)] for seconds in grids)]


def _halved(window: Window, longest: float) -> list[Window]:
    """The window in halves of halves, as the grounder searches what is longer than ``rule.long_limit``."""
    start, end = window
    if end - start <= longest:
        return [window]
    middle = (start + end) / 2
    return _halved((start, middle), longest) + _halved((middle, end), longest)


def cut(duration: float, seconds: float) -> list[Window]:
    """A video in pieces of so many seconds. A rest shorter than a quarter of a piece goes with the last of them."""
    count = max(1, int(duration // seconds))
    if duration - count * seconds >= seconds / 4:
        count += 1
    edges = [*(k * seconds for k in range(count)), duration]
    return list(zip(edges, edges[1:], strict=False))


def within(windows: Iterable[Window], part: Window) -> list[Window] | None:
    """What of the windows lies in a part, in order; None where it is nothing but a remnant."""
    kept, remnant = [], False
    for start, end in sorted(set(windows)):
        left, right = max(start, part[0]), min(end, part[1])
        if right - left >= min(REMNANT, end - start) - _EDGE and right > left:
            kept.append((left, right))
        remnant = remnant or right > left
    return None if remnant and not kept else kept


def fine_answer(windows: Iterable[Window], stamps: Sequence[float], snap: str) -> list[Window]:
    """The stamps that stand for each window: the smallest that enclose it, or the nearest; the outer ones beyond them.

    stamps: ascending. Windows that come to the same stamps are named once.
    """
    named = []
    for start, end in windows:
        if snap == "nearest":
            first = min(range(len(stamps)), key=lambda i: abs(stamps[i] - start))
            last = min(range(len(stamps)), key=lambda i: abs(stamps[i] - end))
        else:
            first = max(bisect.bisect_right(stamps, start + _EDGE) - 1, 0)
            last = min(bisect.bisect_left(stamps, end - _EDGE), len(stamps) - 1)
        named.append((stamps[first], stamps[last]))
    return list(dict.fromkeys(named))


def coarse_answer(windows: Sequence[Window], plan: FramePlan) -> list[float]:
    """The stamp of every segment of the plan that overlaps one of the windows."""
    begins = [plan.start, *(float(plan.times[first, 0]) for first, _ in plan.segments[1:]), plan.end]
    extents = zip(plan.segment_stamps, begins, begins[1:], strict=False)
    return [
        t for t, left, right in extents if any(min(e, right) - max(s, left) > _EDGE for s, e in windows)
    ]  # fmt: skip


# Lessons of one video.


def lessons_of(
    handle: VideoHandle, video: Path, queries: Sequence[tuple[str, Sequence[Window]]], config: LessonConfig, seed: int,
    counts: Counter[str] | None = None,
) -> list[Lesson]:  # fmt: skip
    """Everything that a video teaches; queries are (words, windows), and windows are empty where it never happens.

    Coarse lessons come as often as ``config.repeat`` says. ``counts`` gathers what was asked, by its kind.
    """
    prompts, rule = handle.model.prompts, handle.model.rule
    counts = Counter() if counts is None else counts
    rng = random.Random(f"{seed} {handle.digest}")
    lessons = []
    for cover in passes(handle.duration, rule, config.pieces):
        whole = len(cover) == 1 or cover[0][0] == "coarse"  # here "never" is asked whatever the share
        asked: list[list[tuple[str, list[Window]]]] = [[] for _ in cover]
        absent: list[tuple[int, str]] = []
        for number, (_, part) in enumerate(cover):
            for words, windows in queries:
                inside = within(windows, part)
                if inside or (inside is not None and whole and not windows):
                    asked[number].append((words, inside))
                elif inside is not None:
                    absent.append((number, words))
        if prompts.not_found is not None:
            wanted = round(config.negatives / (1 - config.negatives) * sum(map(len, asked)))
            for number, words in rng.sample(absent, min(wanted, len(absent))):
                asked[number].append((words, []))
        for (mode, part), asks in zip(cover, asked, strict=True):
            if asks:
                packed = _packed(handle, video, mode, part, asks, config)
                counts[mode] += len(packed)
                counts["asked"] += len(asks)
                counts["not_found"] += sum(not windows for _, windows in asks)
                lessons += packed * (config.repeat if mode == "coarse" else 1)
    return lessons


def _packed(
    handle: VideoHandle, video: Path, mode: Any, part: Window, asks: Sequence[tuple[str, list[Window]]],
    config: LessonConfig,
) -> list[Lesson]:  # fmt: skip
    """The lessons of one pass: one, or several where there is too much to ask for one sequence."""
    model, plan = handle.model, handle.plan(part, mode)
    snap = config.snap or ("enclosing" if model.prompts.window == Prompts().window else "nearest")
    groups: list[list[tuple[str, str]]] = []
    sizes: list[int] = []  # tokens asked and answered in each
    for words, windows in asks:
        turn = model.prompts.ask_when(words, mode)
        if mode == "coarse":
            answer = model.prompts.segments(coarse_answer(windows, plan))
        else:
            answer = model.prompts.answer(fine_answer(windows, model.rule.answer_times(plan), snap))
        size = len(sequence.continuation(model.tokenizer, model.prompts, turn, answer))
        if not groups or len(groups[-1]) == config.queries or sizes[-1] + size > config.tokens:
            groups.append([])
            sizes.append(0)
        groups[-1].append((turn, answer))
        sizes[-1] += size
    shown = plan.tokens + _MARKER * len(plan.segments)
    return [Lesson(video, mode, part, tuple(g), shown + size) for g, size in zip(groups, sizes, strict=True)]


# All files.


def survey(
    sources: Sequence[Source], model: VisionLanguageModel, config: LessonConfig, seed: int, tell: Tell
) -> list[Lesson]:
    """The lessons of all files. ``tell`` is told, as fields of a log line, what each file says, every video that is
    missing or cannot be read, and what was made of the rest.

    Raises UniTimeError for annotations that cannot be read and where no lesson is left.
    """
    counts: Counter[str] = Counter()
    by_video: dict[Path, list[tuple[str, Sequence[Window]]]] = {}
    for source in sources:
        annotations, folder = read_annotations(source.annotations), VideoFolder(source.videos)
        tell(event="annotations", file=str(source.annotations), format=annotations.format, queries=len(annotations),
             notes=list(annotations.notes))  # fmt: skip
        missing: Counter[str] = Counter()
        for query in annotations:
            windows = _usable(query, model.prompts, counts)
            if windows is None:
                continue
            path = folder.find(query.video)
            if path is None:
                missing[query.video] += 1
                continue
            by_video.setdefault(path, []).append((query.query, windows))
        for name, lost in missing.items():
            tell(event="skipped", video=name, queries=lost, why=f"no file of that name in {source.videos}")
        counts["videos_missing"] += len(missing)
    lessons = []
    for path, queries in by_video.items():
        try:
            handle = VideoHandle(model, path)
        except UniTimeError as error:
            counts["videos_unreadable"] += 1
            tell(event="skipped", video=str(path), queries=len(queries), why=str(error))
            continue
        there = [(q, w) for q, w in queries if not w or within(w, (0.0, handle.duration))]
        counts["beyond_the_end"] += len(queries) - len(there)
        counts["videos"] += 1
        counts["queries"] += len(there)
        lessons += lessons_of(handle, path, there, config, seed, counts)
    tell(event="lessons", sequences=len(lessons), **counts)
    if not lessons:
        raise UniTimeError("data: no query of these files can be trained on; the lines above say why")
    return lessons


def _usable(query: Query, prompts: Prompts, counts: Counter[str]) -> tuple[Window, ...] | None:
    """The windows to teach, or None, counted, where there is nothing to teach."""
    if query.windows is None:
        counts["windows_not_told"] += 1
        return None
    windows = tuple((start, end) for start, end in query.windows if end > start)
    if query.windows and not windows:
        counts["windows_without_length"] += 1
        return None
    if not windows and prompts.not_found is None:
        counts["never_happens_unsayable"] += 1
        return None
    return windows


# Sequences and batches.


@dataclass(frozen=True, eq=False)
class Item:
    """A lesson as tensors: the sample, the features of the units it shows, and the weight (L + N,) of each token's
    loss: 1 / n for the n tokens of an answer, so that every query counts the same, alone or packed."""

    sample: sequence.Sample
    features: Features
    weights: Tensor
    queries: int


@dataclass(frozen=True, eq=False)
class Batch:
    """Items padded to one length M: ids (B, M), positions (3, B, M), mask (B, 1, M, M), pads (P, 2), features of each,
    and weights (B, M) that sum to 1."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    pads: Tensor
    features: list[Features]
    weights: Tensor
    queries: int

    def __len__(self) -> int:
        return self.queries

    def to(self, device: torch.device) -> Batch:
        """On another device."""
        features = [
            Features(f.tokens.to(device), None if f.deepstack is None else f.deepstack.to(device), f.grid)
            for f in self.features
        ]
        return Batch(
            self.ids.to(device), self.positions.to(device), self.mask.to(device), self.pads.to(device), features,
            self.weights.to(device), self.queries,
        )  # fmt: skip


def make_item(lesson: Lesson, model: VisionLanguageModel, cache: FeatureCache | None) -> Item:
    """A lesson's sequence; its frames are looked at where the cache does not know them.

    Raises UniTimeError where they cannot be read.
    """
    handle = VideoHandle(model, lesson.video, cache)
    mode: Any = lesson.mode
    plan = handle.plan(lesson.window, mode)
    prefix = sequence.build_prefix(
        plan, model.prompts, model.tokenizer, model.family, tokens_per_second=model.tokens_per_second
    )
    tails = [sequence.continuation(model.tokenizer, model.prompts, turn, answer) for turn, answer in lesson.asks]
    learned = [(tail.labels != sequence.IGNORE).float() for tail in tails]
    weights = torch.cat([torch.zeros(len(prefix)), *(part / part.sum() for part in learned)])
    return Item(sequence.join(prefix, tails), handle.features(plan), weights, len(tails))


def collate(items: Sequence[Item], pad_id: int) -> Batch:
    """A batch of items."""
    ids, _, positions, mask, pads = sequence.collate([item.sample for item in items], pad_id)
    weights = torch.zeros(ids.shape)
    for row, item in zip(weights, items, strict=True):
        row[: len(item.weights)] = item.weights
    queries = sum(item.queries for item in items)
    return Batch(ids, positions, mask, pads, [item.features for item in items], weights / queries, queries)


class Batches:
    """Batch number -> batch: endless epochs over the lessons, each in an order of its own that the seed alone decides.

    Lessons of one batch are about equally long: they are sorted within pools of `POOL` batches. A lesson whose video
    turns out not to be readable is told once for each video and the next lesson takes its place.
    """

    POOL = 8

    def __init__(
        self, lessons: Sequence[Lesson], model: VisionLanguageModel, cache: FeatureCache | None, size: int, seed: int,
        tell: Tell,
    ) -> None:  # fmt: skip
        self.lessons, self.model, self.cache, self.size = lessons, model, cache, size
        self.seed, self.tell = seed, tell
        self.pad = model.tokenizer.pad_token_id or 0
        self._broken: set[Path] = set()
        self._order: tuple[int, list[int]] = (-1, [])
        self._pool: tuple[int, list[list[int]]] = (-1, [])

    def __call__(self, number: int) -> Batch:
        pool, place = divmod(number, self.POOL)
        if self._pool[0] != pool:
            each = self.size * self.POOL
            drawn = [self._lesson(i) for i in range(pool * each, (pool + 1) * each)]
            if self.size > 1:
                drawn.sort(key=lambda i: self.lessons[i].length)
            parts = [drawn[i : i + self.size] for i in range(0, each, self.size)]
            if self.size > 1:
                random.Random(f"{self.seed} pool {pool}").shuffle(parts)
            self._pool = pool, parts
        return collate([self._item(i) for i in self._pool[1][place]], self.pad)

    def _lesson(self, place: int) -> int:
        """The lesson at a place in the endless row of epochs."""
        epoch, within_epoch = divmod(place, len(self.lessons))
        if self._order[0] != epoch:
            order = list(range(len(self.lessons)))
            random.Random(f"{self.seed} epoch {epoch}").shuffle(order)
            self._order = epoch, order
        return self._order[1][within_epoch]

    def _item(self, index: int) -> Item:
        for lesson in (*self.lessons[index:], *self.lessons[:index]):
            if lesson.video in self._broken:
                continue
            try:
                return make_item(lesson, self.model, self.cache)
            except UniTimeError as error:
                self._broken.add(lesson.video)
                lost = sum(other.video == lesson.video for other in self.lessons)
                self.tell(event="skipped", video=str(lesson.video), sequences=lost, why=str(error))
        raise UniTimeError("data: no video can be read any more; the lines above say why")
