"""When does it happen? The public class: videos in, moments with scores out.

    model = UniTime.from_pretrained("unitime-nano")
    handle = model.encode("film.mp4")
    for grounding in model.ground(handle, ["a red cube jumps", "the sphere falls"], top_k=3):
        ...

Notable choices:

- Up to ``rule.short_limit`` seconds one fine pass looks at the whole window. Above, a coarse pass lists the segments
  where the query may be, and fine passes look closely at the likeliest runs of them. Runs that do not touch are not
  bridged, as the released code does: each is looked at, and their moments compete by score. A wrong first pick can so
  be put right.
- Above ``rule.long_limit`` the window is halved until its parts are short enough, and every part is searched (UniTime,
  section on long videos). A model that can say "not found" lets the parts compete directly; for one that cannot, the
  segments retrieved from all parts are shown together once more and retrieved from again, as the paper does.
- What a video costs is paid once: its handle keeps vision features and read prefixes (the latest used, within a limit
  of memory), all queries share them, and features also go to a cache on disk where there is one.
- A score is the chance that a moment is a hit: the mass of answers that overlap it by IoU >= 0.5, times the probability
  that there is something to find. ``not_found`` is the probability of the opposite; where it lies above the threshold
  no moment is given. A model without a "not found" answer lends one minus its best score.
- Times never leave the video, nor the window that was asked for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np

from shots.errors import ShotsError
from shots.runtime.weights import resolve, sha256_file
from unitime.decode import (
    CoarseAnswer,
    FineAnswer,
    generate,
    ground_coarse,
    ground_fine,
    lengthened,
    spacing,
    window_iou,
)
from unitime.errors import UniTimeError
from unitime.frames import FramePlan
from unitime.model import SHIPPED, Features, Prefix, VisionLanguageModel
from unitime.prompts import QUERY_LENGTH, parse_stamps, parse_windows
from unitime.reading import describe, read_units
from unitime.sequence import build_prefix

if TYPE_CHECKING:
    from unitime.features import FeatureCache
    from unitime.qa import Answer, Answerer

Window = tuple[float, float]
Mode = Literal["auto", "fine", "coarse"]
Decoding = Literal["constrained", "text"]

FEATURE_BYTES = 256 << 20  # vision features that a handle keeps in memory
PREFIX_BYTES = 1 << 30  # keys and values of read prefixes that a handle keeps; the latest one whatever its size
CANDIDATES = 3  # runs of segments that are looked at closely, for each query
POOLED = 12  # segments of a long video that are shown together once more, for each query
DEFAULT_THRESHOLD = 0.5  # for models that can say "not found"

T = TypeVar("T")
Cancelled = threading.Event | None


def stop_if(cancelled: Cancelled) -> None:
    """Raises UniTimeError once the event is set: nobody waits any more."""
    if cancelled is not None and cancelled.is_set():
        raise UniTimeError("cancelled: nobody waits for the answer any more")


@dataclass(frozen=True)
class Moment:
    """A stretch of a video: seconds on its own clock within [0, duration], and the chance (0 to 1) that it is a hit."""

    start: float
    end: float
    score: float

    def to_dict(self) -> dict[str, float]:
        return {"start": self.start, "end": self.end, "score": self.score}


@dataclass(frozen=True)
class Grounding:
    """What was found for one query.

    Attributes:
        query: as it was asked.
        moments: best first; none where the status is not "ok".
        status: "ok", "not_found", or "parse_error" (free text that names no time).
        relevance: (time, value) in order of time: the probability that what is asked for happens then.
        not_found: probability that it happens nowhere in the window.
        raw: the answer as the model words it.
    """

    query: str
    moments: tuple[Moment, ...]
    status: str
    relevance: tuple[tuple[float, float], ...] = ()
    not_found: float = 0.0
    raw: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "query": self.query,
            "moments": [moment.to_dict() for moment in self.moments],
            "status": self.status,
            "not_found": self.not_found,
            "relevance": [list(point) for point in self.relevance],
            "raw": self.raw,
        }


class VideoHandle:
    """A video that is being asked about, with what was made of it so far. Made by :meth:`UniTime.encode`.

    Attributes:
        source: the file or :class:`shots.Video`.
        duration, height, width, digest: of the video; the digest names its content.
    """

    def __init__(self, model: VisionLanguageModel, source: Any, cache: FeatureCache | None = None) -> None:
        try:
            info = describe(source)
        except ShotsError as error:
            raise UniTimeError(str(error)) from error
        self.model, self.source, self.cache = model, source, cache
        self.duration, self.digest = float(info.duration), info.digest
        self.height, self.width = info.height, info.width
        self._features: _Recent[Features] = _Recent(FEATURE_BYTES)
        self._prefixes: _Recent[Prefix] = _Recent(PREFIX_BYTES)

    def plan(self, window: Window | None = None, mode: Mode = "auto") -> FramePlan:
        """Which frames a pass over the window looks at."""
        return self.model.rule.plan(
            duration=self.duration, height=self.height, width=self.width, window=window, mode=mode
        )  # fmt: skip

    def features(self, plan: FramePlan, cancelled: Cancelled = None) -> Features:
        """What the vision tower makes of a plan's frames: from memory, from the cache on disk, or by looking.

        cancelled: set it to stop before the next batch of frames, which raises UniTimeError and keeps nothing.
        """
        return self._features.get(plan.key, lambda: self._cached(plan, cancelled), lambda f: f.nbytes)

    def prefix(self, plan: FramePlan, mode: str, cancelled: Cancelled = None) -> Prefix:
        """The plan's frames as the model has read them, with the instruction of "fine", "coarse" or "answering"."""
        return self.prefix_of(plan, mode, plan.key, lambda: self.features(plan, cancelled))

    def prefix_of(self, plan: Any, mode: str, key: Hashable, features: Callable[[], Features]) -> Prefix:
        """The same for anything that is shown like a plan; ``key`` names what it shows."""
        instruction = self.model.prompts.instruction(mode)

        def read() -> Prefix:
            sequence = build_prefix(
                plan, self.model.prompts, self.model.tokenizer, self.model.family,
                instruction=instruction, tokens_per_second=self.model.tokens_per_second,
            )  # fmt: skip
            return self.model.prefill(sequence, features())

        return self._prefixes.get((key, instruction), read, lambda p: p.nbytes)

    def _cached(self, plan: FramePlan, cancelled: Cancelled) -> Features:
        if self.cache is None:
            return self._look(plan, cancelled)
        key = self.cache.key(self.digest, self.model.fingerprint, self.model.rule.shrink, plan.key)
        kept = self.cache.get(key)
        if kept is not None:
            return Features.from_tensors(kept)
        features = self._look(plan, cancelled)
        self.cache.put(key, features.tensors())
        return features

    def _look(self, plan: FramePlan, cancelled: Cancelled) -> Features:
        parts = []
        try:
            for frames in self.frames(plan):
                stop_if(cancelled)
                parts.append(self.model.vision(frames, plan.grid))
        except ShotsError as error:
            raise UniTimeError(str(error)) from error
        return Features.cat(parts)

    def frames(self, plan: FramePlan) -> Iterator[Any]:
        """The plan's frames in order, uint8 (n, 2, H, W, 3) at a time."""
        per_unit = (plan.size[0] // self.model.patch) * (plan.size[1] // self.model.patch)
        yield from read_units(self.source, plan, chunk=max(1, 4096 // per_unit))


class _Recent(Generic[T]):
    """The latest used things, as many as fit into some bytes and at least one."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """What is kept under ``key``, or what ``make`` gives, which is kept from then on."""
        with self._lock:
            if key not in self._kept:
                made = make()
                self._kept[key] = made, size(made)
                while len(self._kept) > 1 and sum(n for _, n in self._kept.values()) > self.most:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key][0]


class UniTime:
    """Grounds queries in videos and answers questions about them. Make one with :meth:`from_pretrained`."""

    def __init__(self, model: VisionLanguageModel, cache: FeatureCache | None = None, name: str | None = None) -> None:
        self.model = model
        self.cache = cache
        self.name = name  # what it was loaded by: what was fitted for a model (`shots.calibration`) is found by it
        self._folder: Path | None = None  # what it was loaded from

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "unitime-nano",
        *,
        adapter: str | Path | None = None,
        revision: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        cache: FeatureCache | None = None,
        prompts: str | None = None,
        quantization: str | None = None,
        max_fps: float | None = None,
    ) -> UniTime:
        """A shipped name, a folder or a hub id of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint.

        Args:
            name_or_path, revision: the model.
            adapter: LoRA weights to merge in: a folder or a hub id.
            dtype: "bf16", "fp16" or "fp32"; None chooses for the device.
            device: "cpu", "cuda", "cuda:1", "mps"; None is the best there is.
            cache: where vision features are kept on disk between runs; None keeps none.
            prompts: how the checkpoint is spoken to, a name in `unitime.formats`; None recognises it.
            quantization: "int8" or "int4" keeps the language model in fewer bits; None leaves it.
            max_fps: frames a second that are looked at, at most; None is the checkpoint's own rule, which for published
                weights spends its whole budget on any clip, however short.

        Raises UniTimeError where the model cannot be found, read, or shown a video.
        """
        loaded = VisionLanguageModel.from_pretrained(
            name_or_path, adapter=adapter, revision=revision, dtype=dtype, device=device, prompts=prompts,
            quantization=quantization, max_fps=max_fps,
        )  # fmt: skip
        made = cls(loaded, cache, None if adapter is not None else str(name_or_path))
        made._folder = None if adapter is not None else resolve(name_or_path, SHIPPED, revision)
        return made

    @cached_property
    def weights(self) -> str | None:
        """sha256 of the weights it was loaded with: of their file or, of several, of their hashes in order of name.

        None where it was not loaded from a folder, or an adapter was merged in. What was fitted for a model
        (`shots.calibration`) holds for these weights only. Read from the files when it is first asked for.
        """
        if self._folder is None:
            return None
        found = [sha256_file(file) for file in sorted(self._folder.glob("*.safetensors"))]
        return found[0] if len(found) == 1 else sha256("".join(found).encode()).hexdigest()

    def encode(self, video: Any) -> VideoHandle:
        """A handle on a video (a path or a :class:`shots.Video`), to be asked many times.

        Frames are looked at when the first question needs them, and kept for the next ones. Raises UniTimeError where
        the file cannot be read. A handle is given back as it is; one of another model is refused.
        """
        if not isinstance(video, VideoHandle):
            return VideoHandle(self.model, video, self.cache)
        if video.model is not self.model:
            raise UniTimeError("video: this handle was encoded by another model; encode the video with this one")
        return video

    def ground(
        self,
        video: Any,
        queries: Sequence[str],
        top_k: int = 1,
        *,
        window: Window | None = None,
        mode: Mode = "auto",
        threshold: float | None = None,
        decoding: Decoding = "constrained",
        cancelled: threading.Event | None = None,
    ) -> list[Grounding]:
        """Says when each query happens in a video.

        Args:
            video: a path, a :class:`shots.Video`, or a handle from :meth:`encode`.
            queries: in words, any number; they may repeat.
            top_k: moments to give for each, at most.
            window: (start, end) seconds to look between; None is the whole video.
            mode: "auto" takes one fine pass up to ``rule.short_limit`` seconds and goes from coarse to fine above;
                "fine" takes one fine pass whatever the length, "coarse" always looks coarsely first.
            threshold: ``not_found`` above which nothing is given; 1 always gives moments, None is the model's own.
            decoding: "constrained" to the stamps shown, with probabilities; or "text", the model's own words, greedy.
            cancelled: set it to stop between passes and batches of frames, which raises UniTimeError.

        Returns one :class:`Grounding` a query, in order.
        """
        queries = _check_queries(queries)
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise UniTimeError(f"top_k: {top_k!r}; a whole number of at least 1 is needed")
        if mode not in ("auto", "fine", "coarse"):
            raise UniTimeError(f"mode: {mode!r}; 'auto', 'fine' or 'coarse' is needed")
        if decoding not in ("constrained", "text"):
            raise UniTimeError(f"decoding: {decoding!r}; 'constrained' or 'text' is needed")
        limit = self.threshold(threshold)
        handle = self.encode(video)
        span = handle.plan(window, "fine")  # checks the window
        search = _Search(handle, top_k, decoding, cancelled)
        unique = list(dict.fromkeys(queries))
        whole = (span.start, span.end)
        if mode == "fine" or (mode == "auto" and span.end - span.start <= self.model.rule.short_limit):
            here = search.fine(whole, unique)
            found = [here[query].grounding(query, limit) for query in unique]
        else:
            found = search.coarse_to_fine(whole, unique, limit)
        by_query = dict(zip(unique, found, strict=True))
        return [by_query[query] for query in queries]

    def ask(
        self,
        video: Any,
        question: str,
        options: Sequence[str] | None = None,
        *,
        answerer: Answerer | None = None,
        cancelled: threading.Event | None = None,
        **policy: Any,
    ) -> Answer:
        """Answers a question about a video from the moment that bears on it; see :func:`unitime.qa.answer`."""
        from unitime.qa import answer

        return answer(self, video, question, options, answerer=answerer, cancelled=cancelled, **policy)

    def caption(
        self,
        video: Any,
        *,
        window: Window | None = None,
        max_tokens: int = 96,
        cancelled: threading.Event | None = None,
    ) -> str:
        """What a video, or a window (start, end) of it, shows, in a sentence or two: `shots.protocols.Captioner`.

        ``cancelled`` is as for :meth:`ground`.
        """
        handle = self.encode(video)
        prefix = handle.prefix(handle.plan(window), "answering", cancelled)
        return generate(self.model, prefix, [self.model.prompts.caption], max_tokens)[0]

    def threshold(self, threshold: float | None = None) -> float:
        """The ``not_found`` above which nothing is given: the one asked for, or with None the model's own."""
        if threshold is not None:
            if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
                raise UniTimeError(f"threshold: {threshold!r}; a probability from 0 to 1 is needed")
            return float(threshold)
        if self.model.threshold is not None:
            return self.model.threshold
        return 1.0 if self.model.prompts.not_found is None else DEFAULT_THRESHOLD


# One request.


@dataclass(frozen=True, eq=False)
class _Found:
    """What passes over a window gave for one query, before the threshold."""

    moments: tuple[Moment, ...]
    not_found: float
    relevance: tuple[tuple[float, float], ...]
    raw: str | None
    parsed: bool = True

    def grounding(self, query: str, threshold: float) -> Grounding:
        if not self.parsed:
            return Grounding(query, (), "parse_error", self.relevance, self.not_found, self.raw)
        absent = self.not_found > threshold or not self.moments
        moments = () if absent else self.moments
        return Grounding(query, moments, "not_found" if absent else "ok", self.relevance, self.not_found, self.raw)


@dataclass(frozen=True)
class _Candidate:
    """A window to be looked at closely.

    weight: the probability that what is asked for lies in it. mass: the probability of just this run of segments.
    """

    start: float
    end: float
    weight: float
    mass: float


@dataclass(eq=False)
class _Search:
    """Passes over one video for one request."""

    handle: VideoHandle
    top_k: int
    decoding: Decoding
    cancelled: threading.Event | None

    @property
    def model(self) -> VisionLanguageModel:
        return self.handle.model

    def check(self) -> None:
        stop_if(self.cancelled)

    # Fine.

    def fine(self, window: Window, queries: Sequence[str]) -> dict[str, _Found]:
        """One fine pass over a window for some queries."""
        self.check()
        plan = self.handle.plan(window, "fine")
        prefix = self.handle.prefix(plan, "fine", self.cancelled)
        if self.decoding == "text":
            turns = [self.model.prompts.ask_when(query) for query in queries]
            texts = generate(self.model, prefix, turns)
            return {query: self._from_text(text, plan) for query, text in zip(queries, texts, strict=True)}
        clock = self._clock(plan)
        times = [t - clock for t in self.model.rule.answer_times(plan)]
        found = ground_fine(self.model, prefix, times, queries, several=self.top_k > 1)
        answers = [answer.later(clock) for answer in found] if clock else found
        return {query: self._from_answer(answer, plan) for query, answer in zip(queries, answers, strict=True)}

    def _clock(self, plan: FramePlan) -> float:
        """Seconds at which the model's clock starts: 0 where it is shown stamps, else where the window begins."""
        return plan.start if self.model.prompts.one_block else 0.0

    def _from_answer(self, answer: FineAnswer, plan: FramePlan) -> _Found:
        moments = _within([Moment(s.start, s.end, s.score) for s in answer.moments(self.top_k)], plan.start, plan.end)
        times = np.clip(answer.stamps, plan.start, plan.end).tolist()
        return _Found(
            moments,
            self._absent(answer.found, moments),
            tuple(zip(times, answer.relevance().tolist(), strict=True)),
            self.model.prompts.answer(answer.picks),
        )

    def _from_text(self, text: str, plan: FramePlan) -> _Found:
        if text == self.model.prompts.not_found:
            return _Found((), 1.0, (), text)
        stamps = np.unique(plan.stamps)
        clock = self._clock(plan)
        windows = [lengthened((a + clock, b + clock), spacing(stamps)) for a, b in parse_windows(text)]
        moments = _within([Moment(a, b, 1.0) for a, b in windows], plan.start, plan.end)[: self.top_k]
        inside = [float(any(a <= t <= b for a, b in windows)) for t in stamps]
        times = np.clip(stamps, plan.start, plan.end).tolist()
        return _Found(moments, 0.0, tuple(zip(times, inside, strict=True)), text, bool(moments))

    def _absent(self, found: float, moments: Sequence[Moment]) -> float:
        """The probability that there is nothing: the model's own, or what its best score leaves."""
        if self.model.prompts.not_found is not None:
            return min(max(1.0 - found, 0.0), 1.0)
        return 1.0 - max((m.score for m in moments), default=0.0)

    # Coarse, then fine.

    def coarse_to_fine(self, window: Window, queries: list[str], threshold: float) -> list[Grounding]:
        """Segments first, then fine passes over the likeliest runs of them."""
        parts = [self.handle.plan(part, "coarse") for part in _halved(window, self.model.rule.long_limit)]
        retrieved = [self._retrieve(plan, queries) for plan in parts]
        candidates: dict[str, list[_Candidate]] = {}
        for i, query in enumerate(queries):
            answers = [answers[i] for answers in retrieved]
            if len(parts) > 1 and self.model.prompts.not_found is None and not self.model.prompts.one_block:
                candidates[query] = self._pooled(parts, answers, query)
            else:
                runs = [run for plan, a in zip(parts, answers, strict=True) for run in _runs(plan, a)]
                candidates[query] = self._candidates(runs, (parts[0].start, parts[-1].end))
        seen = {window: self.fine(window, asking) for window, asking in _by_window(candidates).items()}
        close = {query: [(c, seen[c.start, c.end][query]) for c in candidates[query]] for query in queries}
        return [
            self._merged(close[query], _coarse_relevance(parts, [a[i] for a in retrieved])).grounding(query, threshold)
            for i, query in enumerate(queries)
        ]

    @property
    def _most(self) -> int:
        return max(CANDIDATES, min(self.top_k, 8))

    def _retrieve(self, plan: FramePlan, queries: Sequence[str]) -> list[CoarseAnswer]:
        self.check()
        prefix = self.handle.prefix(plan, "coarse", self.cancelled)
        return self._listed(prefix, [t - self._clock(plan) for t in plan.segment_stamps], queries)

    def _listed(
        self, prefix: Prefix, stamps: Sequence[float], queries: Sequence[str], adjacent: Sequence[bool] | None = None
    ) -> list[CoarseAnswer]:
        if self.decoding == "constrained":
            return ground_coarse(self.model, prefix, stamps, queries, adjacent=adjacent)
        texts = generate(self.model, prefix, [self.model.prompts.ask_when(query, "coarse") for query in queries])
        return [CoarseAnswer.listing(parse_stamps(text), stamps, adjacent) for text in texts]

    def _candidates(self, runs: Sequence[_Candidate], window: Window) -> list[_Candidate]:
        """The likeliest runs of segments as windows to look at, best first.

        Runs that overlap or touch are one where a fine pass has room for both; so is an event that crosses the border
        of two parts. Where there is room, half a segment more is shown on either side.
        """
        rule = self.model.rule
        chosen: list[_Candidate] = []
        for run in sorted(runs, key=lambda r: -r.mass):
            touching = [c for c in chosen if run.start <= c.end and c.start <= run.end]
            start = min(c.start for c in [run, *touching])
            end = max(c.end for c in [run, *touching])
            if touching and end - start <= rule.short_limit:
                chosen[chosen.index(touching[0])] = replace(
                    run, start=start, end=end, weight=max(c.weight for c in [run, *touching])
                )  # fmt: skip
                chosen = [c for c in chosen if c not in touching[1:]]
            elif len(chosen) < self._most and not any(c.start <= run.start and run.end <= c.end for c in chosen):
                chosen.append(run)
        return [self._widened(c, window) for c in chosen]

    def _widened(self, run: _Candidate, window: Window) -> _Candidate:
        rule = self.model.rule
        margin = min(rule.segment / 2, max(0.0, (rule.short_limit - (run.end - run.start)) / 2))
        return replace(run, start=max(run.start - margin, window[0]), end=min(run.end + margin, window[1]))

    def _pooled(self, parts: Sequence[FramePlan], answers: Sequence[CoarseAnswer], query: str) -> list[_Candidate]:
        """Segments retrieved from all parts of a long video, shown together and retrieved from again."""
        self.check()
        best = sorted(
            ((p, s) for p, answer in enumerate(answers) for s in range(len(answer.listed))),
            key=lambda ps: -answers[ps[0]].found * answers[ps[0]].listed[ps[1]],
        )[:POOLED]
        pool = _Pool.of(parts, sorted(best))
        prefix = self.handle.prefix_of(
            pool, "coarse", pool.key, lambda: Features.cat([
                self.handle.features(parts[p], self.cancelled).select(range(*parts[p].segments[s]))
                for p, s in pool.members
            ]),
        )  # fmt: skip
        answer = self._listed(prefix, pool.segment_stamps, [query], pool.adjacent)[0]
        runs = []
        for first, last, mass in answer.spans:
            (p, s), (q, r) = pool.members[first], pool.members[last]
            weight = answer.found * float(answer.listed[first : last + 1].max())
            runs.append(_Candidate(_extent(parts[p], s)[0], _extent(parts[q], r)[1], weight, mass))
        return self._candidates(runs, (parts[0].start, parts[-1].end))

    def _merged(self, close: list[tuple[_Candidate, _Found]], coarse: list[tuple[float, float]]) -> _Found:
        """One answer out of fine passes over several windows."""
        if not close:  # free text that lists no segment
            return _Found((), 1.0, tuple(coarse), None, self.model.prompts.not_found is not None)
        if all(not found.parsed for _, found in close):
            return replace(close[0][1], relevance=tuple(coarse))
        moments: list[Moment] = []
        every = [replace(m, score=m.score * c.weight) for c, found in close for m in found.moments]
        for moment in sorted(every, key=lambda m: -m.score):
            if all(window_iou((moment.start, moment.end), (m.start, m.end)) < 0.5 for m in moments):
                moments.append(moment)
        chosen = tuple(moments[: self.top_k])
        present = max(c.weight * (1.0 - found.not_found) for c, found in close)
        points = [p for p in coarse if not any(c.start <= p[0] <= c.end for c, _ in close)]
        points += [(t, value * c.weight) for c, found in close for t, value in found.relevance]
        best = max(close, key=lambda pair: max((m.score for m in pair[1].moments), default=0.0) * pair[0].weight)
        return _Found(chosen, self._absent(present, chosen), tuple(sorted(points)), best[1].raw)


@dataclass(frozen=True, eq=False)
class _Pool:
    """Segments of several coarse plans, shown as one: a plan as :func:`unitime.sequence.build_prefix` needs it."""

    members: tuple[tuple[int, int], ...]  # (part, segment) of each
    times: Any
    grid: tuple[int, int]
    segments: list[tuple[int, int]]
    segment_stamps: tuple[float, ...]
    adjacent: list[bool]
    key: str
    mode: str = "coarse"

    @classmethod
    def of(cls, parts: Sequence[FramePlan], members: Sequence[tuple[int, int]]) -> _Pool:
        """The segments named by (part, segment), in order of time; of segments with one stamp the first."""
        seen: dict[float, tuple[int, int]] = {}
        for p, s in members:
            seen.setdefault(parts[p].segment_stamps[s], (p, s))
        kept = tuple(seen.values())
        times = [parts[p].times[slice(*parts[p].segments[s])] for p, s in kept]
        ends = np.cumsum([len(t) for t in times]).tolist()
        flat = [(p, s, s == len(parts[p].segments) - 1) for p, s in kept]
        adjacent = [
            (p == q and s + 1 == r) or (q == p + 1 and last and r == 0)
            for (p, s, last), (q, r, _) in zip(flat[:-1], flat[1:], strict=True)
        ]
        key = " ".join(f"{parts[p].key}:{s}" for p, s in kept)
        segments = list(zip([0, *ends[:-1]], ends, strict=True))
        return cls(kept, np.concatenate(times), parts[0].grid, segments, tuple(seen), adjacent, key)


def _runs(plan: FramePlan, answer: CoarseAnswer) -> list[_Candidate]:
    """The runs of segments of a pass as windows."""
    return [
        _Candidate(
            _extent(plan, first)[0], _extent(plan, last)[1],
            answer.found * float(answer.listed[first : last + 1].max()), answer.found * mass,
        )
        for first, last, mass in answer.spans
    ]  # fmt: skip


def _extent(plan: FramePlan, segment: int) -> Window:
    """Seconds that a segment stands for: up to where the next one begins, the window's ends for the outer ones."""
    begins = [plan.start, *(float(plan.times[first, 0]) for first, _ in plan.segments[1:]), plan.end]
    return begins[segment], begins[segment + 1]


def _halved(window: Window, longest: float) -> list[Window]:
    """The window in halves of halves, until none is longer than ``longest``."""
    start, end = window
    if end - start <= longest:
        return [window]
    middle = (start + end) / 2
    return _halved((start, middle), longest) + _halved((middle, end), longest)


def _by_window(candidates: dict[str, list[_Candidate]]) -> dict[Window, list[str]]:
    """The queries that want to look at each window."""
    asking: dict[Window, list[str]] = {}
    for query, wanted in candidates.items():
        for candidate in wanted:
            asking.setdefault((candidate.start, candidate.end), []).append(query)
    return asking


def _coarse_relevance(parts: Sequence[FramePlan], answers: Sequence[CoarseAnswer]) -> list[tuple[float, float]]:
    """(time, probability) at the middle of every segment."""
    return [
        (sum(_extent(plan, s)) / 2, float(answer.found * value))
        for plan, answer in zip(parts, answers, strict=True)
        for s, value in enumerate(answer.listed)
    ]


def _within(moments: Sequence[Moment], start: float, end: float) -> tuple[Moment, ...]:
    """The moments cut to [start, end]; what lies outside is dropped."""
    cut = [Moment(max(m.start, start), min(m.end, end), min(max(m.score, 0.0), 1.0)) for m in moments]
    return tuple(m for m in cut if m.end > m.start)


def _check_queries(queries: Any) -> list[str]:
    """The queries as a list. Raises UniTimeError for none, for an empty one, and for what is no text."""
    if isinstance(queries, str):
        queries = [queries]
    try:
        listed = list(queries)
    except TypeError:
        raise UniTimeError(f"queries: {type(queries).__name__}; a list of texts is needed") from None
    if not listed:
        raise UniTimeError("queries: there are none; give at least one")
    for query in listed:
        check_text("queries", query)
    return listed


def check_text(name: str, text: Any) -> None:
    """Raises UniTimeError unless ``text`` is a text with something in it and of a length to be read."""
    if not isinstance(text, str):
        raise UniTimeError(f"{name}: {text!r} is no text")
    if not text.strip():
        raise UniTimeError(f"{name}: one is empty; say in words what to look for")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UniTimeError(f"{name}: {text!r} holds half a letter (a lone surrogate); give it as UTF-8") from None
    if len(text) > QUERY_LENGTH:
        raise UniTimeError(f"{name}: one has {len(text)} characters; at most {QUERY_LENGTH} are read")
