"""Does a film show what its script says? Each shot is asked for what it should show; one report, one score a shot.

    report = verify(video, script, UniTime.from_pretrained("unitime-nano"))
    print(report)
    report.failed_shots()  # [2]

Notable choices:

- A caption is taken apart into events (`shots.claims`). The grounder is asked for each within its own shot, in the
  other shots, and over the whole film; and for the same event with another colour, shape or deed. A claim is doubtful
  where something else scores higher: that compares a grounder's scores with each other, which it gets right more often
  than the scores themselves.
- What was gathered for a fact (`shots.evidence`) is weighed into the probability that it holds (`shots.calibration`).
- A fact less likely than the limit is a defect. A shot passes without defects. Its score is the geometric mean of its
  events' scores, an event's that of its facts, so it ranks takes also where none or all pass.
- The film's shots are those its file tells of or, where their number is not the script's, those that can be seen
  (`shots.cuts`). Where they are fewer or more than the script's, they are matched in order by what they show; what is
  left over is missing or extra.
- The stage's judge is a measure: what it reads stands in the report, and nothing passes or fails by it.
- Times are seconds on the film's clock, shots count from 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shots.calibration import Calibration
from shots.claims import Event, claims
from shots.cuts import CutList, find_cuts
from shots.errors import ShotsError
from shots.evidence import MOST_FRAMES as MOST_FRAMES
from shots.evidence import Film, Window, Witness, log_odds, presence
from shots.protocols import Answerer, Grounder
from shots.quality import Quality, measure
from shots.script import Script
from shots.video import Video, read_record

if TYPE_CHECKING:
    from shots.protocols import FilmJudge

COMPARED = 8  # up to so many shots, each event is looked for in every one; above, in its neighbours
MATCHED = 200  # up to so many shots, a film with too few or too many is matched with its script
TOLERANCE = 1.5  # frames between a cut and where it should be


@dataclass(frozen=True)
class Defect:
    """Something that is not as the script says.

    kind: "colour", "shape", "action" (another one is seen), "place" (the event is not in its shot), "order" (of deeds),
    "cut" (a cut within the shot), "missing_shot", "extra_shot". found: what is seen instead, None where nothing is.
    where: (start, end) seconds. confidence: 0 to 1.
    """

    kind: str
    expected: str
    found: str | None
    where: Window
    confidence: float
    shot: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "expected": self.expected, "found": self.found,
            "where": {"start": round(self.where[0], 3), "end": round(self.where[1], 3)},
            "confidence": round(self.confidence, 4), "shot": self.shot,
        }  # fmt: skip

    def __str__(self) -> str:
        seen = f", found {self.found}" if self.found else ""
        return f"{self.kind.replace('_', ' ')}: expected {self.expected}{seen} ({self.confidence:.0%} sure)"


@dataclass(frozen=True)
class EventReport:
    """What became of one event.

    moments: (start, end, score) where it is found over the whole film, best first. overlap: the share of the best
    moment that lies in the event's own shot, None where it is found nowhere. present: the probability that its own
    shot shows it. facts: the probability of each fact that is claimed. score: their geometric mean.
    """

    query: str
    claimed: Mapping[str, str]
    moments: tuple[tuple[float, float, float], ...]
    overlap: float | None
    present: float
    facts: Mapping[str, float]
    score: float
    features: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)

    @property
    def found(self) -> bool:
        """Whether the grounder found it in its own shot."""
        return self.present >= 0.5

    def to_dict(self) -> dict[str, Any]:
        return {
            "query": self.query, "claimed": dict(self.claimed), "found": self.found, "present": round(self.present, 4),
            "moments": [{"start": round(s, 3), "end": round(e, 3), "score": round(p, 4)} for s, e, p in self.moments],
            "overlap": None if self.overlap is None else round(self.overlap, 4),
            "facts": {kind: round(p, 4) for kind, p in self.facts.items()}, "score": round(self.score, 4),
        }  # fmt: skip


@dataclass(frozen=True)
class ShotReport:
    """What became of one shot of the script; `start` and `end` are where it is in the film (equal: it is missing)."""

    number: int
    start: float
    end: float
    caption: str
    passed: bool
    score: float
    events: tuple[EventReport, ...]
    defects: tuple[Defect, ...]
    quality: Quality | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "number": self.number, "start": round(self.start, 3), "end": round(self.end, 3), "caption": self.caption,
            "passed": self.passed, "score": round(self.score, 4),
            "events": [event.to_dict() for event in self.events],
            "defects": [defect.to_dict() for defect in self.defects],
            "quality": None if self.quality is None else self.quality.to_dict(),
        }  # fmt: skip


@dataclass(frozen=True)
class CutReport:
    """The cuts that can be seen against those that should be there.

    expected: seconds, None where the script's lengths are not known. found: what is seen. offsets: how many frames the
    found one lies after each expected one, None where there is none. extra: seconds of cuts that nothing accounts for.
    """

    expected: tuple[float, ...] | None
    found: CutList
    offsets: tuple[float | None, ...] = ()
    extra: tuple[float, ...] = ()

    @property
    def matched(self) -> int:
        """How many expected cuts are there, within a frame."""
        return sum(offset is not None and abs(offset) <= TOLERANCE for offset in self.offsets)

    def to_dict(self) -> dict[str, Any]:
        return {
            "expected": None if self.expected is None else [round(t, 3) for t in self.expected],
            "found": self.found.to_dict()["cuts"],
            "offsets": [None if o is None else round(o, 2) for o in self.offsets],
            "matched": self.matched, "extra": [round(t, 3) for t in self.extra],
        }  # fmt: skip


@dataclass(frozen=True)
class Report:
    """A film against its script. `to_dict()` is its JSON, `str()` what the shell shows.

    defects: of the film as a whole (missing and extra shots); those of the shots stand with the shots. same_look: per
    pair of neighbouring shots with an actor in common, how alike what stands out in them is coloured (0 to 1). judge:
    what the stage's judge reads, as a measure. calibration: for which grounder the probabilities were fitted; "" is
    none, nor is it this one with other weights: then they order takes, and their size says little.
    """

    passed: bool
    score: float
    shots: tuple[ShotReport, ...]
    defects: tuple[Defect, ...]
    cuts: CutReport
    quality: Quality
    same_look: tuple[float, ...]
    fps: float
    duration: float
    limit: float
    calibration: str
    judge: Mapping[str, Any] | None = None

    def failed_shots(self) -> list[int]:
        """Numbers, from 1, of the shots that do not show what they should."""
        return [shot.number for shot in self.shots if not shot.passed]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {
            "passed": self.passed, "score": round(self.score, 4), "failed_shots": self.failed_shots(),
            "shots": [shot.to_dict() for shot in self.shots],
            "defects": [defect.to_dict() for defect in self.defects],
            "cuts": self.cuts.to_dict(), "quality": self.quality.to_dict(),
            "same_look": [round(value, 4) for value in self.same_look],
            "fps": self.fps, "duration": round(self.duration, 3), "limit": round(self.limit, 4),
            "calibration": self.calibration or None, "judge": None if self.judge is None else dict(self.judge),
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{'passed' if self.passed else 'failed'}, score {self.score:.2f}"]
        for shot in self.shots:
            mark = "ok  " if shot.passed else "FAIL"
            lines.append(
                f"{mark} shot {shot.number}  {shot.start:.2f} - {shot.end:.2f} s  {shot.score:.2f}  {shot.caption}"
            )
            lines += [f"       {defect}" for defect in shot.defects]
        lines += [f"FAIL {defect}" for defect in self.defects]
        if self.cuts.expected is not None:
            lines.append(f"cuts: {self.cuts.matched} of {len(self.cuts.expected)} where they should be, "
                         f"{len(self.cuts.extra)} more")  # fmt: skip
        told = [(name.replace("_", " "), value) for name, value in self.quality.to_dict().items() if name != "frames"]
        lines.append(", ".join(f"{name} {value:.3f}" for name, value in told if value is not None))
        if not self.calibration:
            lines.append("the probabilities were not fitted for this grounder as it is: they rank, and no more")
        return "\n".join(lines)


def verify(
    video: Video | Path | str,
    script: Script,
    grounder: Grounder,
    *,
    answerer: Answerer | None = None,
    judge: FilmJudge | None = None,
    threshold: float | None = None,
    calibration: Calibration | None = None,
    measures: bool = True,
) -> Report:
    """Holds a film against its script.

    Args:
        video: a film or a file; of a long file a shot is in memory at a time.
        script: what it should show.
        grounder: who says when something happens.
        answerer: who answers questions; None is the grounder where it can (`ask`), else nobody.
        judge: a reader of stage films (`shots.stage.judge.Judge`) whose facts are to stand in the report.
        threshold: probability below which a claim counts as a defect; None is the calibration's.
        calibration: how scores are weighed; None is what was fitted for this grounder, by its `name`.
        measures: whether to measure quality and looks too, by which nothing passes or fails; without it is quicker.

    Raises ShotsError for a video that cannot be read and a threshold that is no probability.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ShotsError(f"threshold: {threshold}; a probability from 0 to 1 is needed")
    film = Film.of(video)
    calibration = Calibration.of(grounder) if calibration is None else calibration
    if answerer is None and isinstance(grounder, Answerer):
        answerer = grounder
    witness = Witness(film, grounder, answerer)
    limit = calibration.limit if threshold is None else threshold
    return _Verdict(film, script, witness, calibration, limit, measures).report(judge)


def script_of(video: str | Path) -> Script:
    """The script that a film's own record tells. Raises ShotsError where it tells none."""
    script = (read_record(video) or {}).get("script")
    if script is None:
        raise ShotsError(f"script: {video} does not tell what it was made from; give one with --script FILE")
    return Script.from_dict(script)


class _Verdict:
    """One film and script, on the way to a report."""

    def __init__(
        self, film: Film, script: Script, witness: Witness, calibration: Calibration, limit: float, measures: bool
    ) -> None:  # fmt: skip
        self.film, self.script, self.witness = film, script, witness
        self.calibration, self.limit, self.measures = calibration, limit, measures
        self.events = claims(script)
        self.found = find_cuts(film.source)
        self.expected = expected_cuts(film, script)
        queries = [event.query for events in self.events for event in events]
        self.anywhere = witness.anywhere(queries)
        self.segments = self._segments()
        self.place = self._matched()  # segment of each shot, or None

    # -- shots ----------------------------------------------------------------------------------------------------

    def _segments(self) -> list[Window]:
        """The film's shots: as its file tells, as the script says, or as can be seen."""
        wanted = len(self.script.shots) - 1
        told = told_cuts(self.film)
        seen = [cut.time for cut in self.found.cuts]
        fits = (
            self.expected is not None
            and abs(self.expected[-1] - self.film.duration) <= 1.5 * (wanted + 1) / self.film.fps
        )
        if told is not None and len(told) == wanted:
            cuts = told
        elif len(seen) == wanted:
            cuts = seen
        elif fits and self.expected is not None:
            cuts = list(self.expected[:-1])
        else:
            cuts = seen
        edges = [0.0, *(t for t in cuts if 0 < t < self.film.duration), self.film.duration]
        return [(a, b) for a, b in zip(edges, edges[1:], strict=False) if b > a]

    def _matched(self) -> list[int | None]:
        count, there = len(self.events), len(self.segments)
        if count == there or max(count, there) > MATCHED:
            return [k if k < there else None for k in range(count)]
        gain = np.zeros((count, there))  # how likely each shot's events are in each segment
        for k, events in enumerate(self.events):
            for event in events:
                for moment in self.anywhere[event.query].moments:
                    for j, segment in enumerate(self.segments):
                        gain[k, j] += moment.score * _share((moment.start, moment.end), segment) / len(events)
            if there <= COMPARED:
                for j, segment in enumerate(self.segments):
                    here = self.witness.here([event.query for event in events], segment)
                    gain[k, j] += float(np.mean([presence(found) for found in here.values()]))
        return align(gain)

    # -- facts ----------------------------------------------------------------------------------------------------

    def _windows_of(self, k: int) -> list[int]:
        """Segments in which what shot k says is looked for: its own first."""
        own = self.place[k]
        if own is None:
            return []
        others = [j for j in range(len(self.segments)) if j != own]
        if len(self.segments) > COMPARED:
            others = [j for j in others if abs(j - own) <= 1]
        return [own, *others]

    def _present(self) -> dict[tuple[int, str], float]:
        """(segment, query) -> log-odds that it is there, of all events and what they are compared with."""
        asked: dict[int, list[str]] = {}
        for k, events in enumerate(self.events):
            for place, j in enumerate(self._windows_of(k)):
                for event in events:
                    asked.setdefault(j, []).append(event.query)
                    if place == 0:
                        asked[j] += [contrast.query for contrast in event.contrasts]
        found: dict[tuple[int, str], float] = {}
        self.moments: dict[tuple[int, str], float] = {}
        for j, queries in asked.items():
            for query, grounding in self.witness.here(queries, self.segments[j]).items():
                found[j, query] = log_odds(presence(grounding))
                if grounding.moments:
                    self.moments[j, query] = (grounding.moments[0].start + grounding.moments[0].end) / 2
        return found

    def _features(self, k: int, event: Event, present: Mapping[tuple[int, str], float]) -> tuple[Any, Any]:
        """Of each fact of an event its features, and what is seen instead."""
        own, *others = self._windows_of(k)
        here = present[own, event.query]
        features: dict[str, dict[str, float]] = {kind: {} for kind in event.facts}
        instead: dict[str, tuple[float, str]] = {}
        for contrast in event.contrasts:
            margin = here - present[own, contrast.query]
            if margin < features[contrast.kind].get("contrast", math.inf):
                features[contrast.kind]["contrast"] = margin
                said = self.calibration.weight(contrast.kind, "contrast") * margin, contrast.value
                instead[contrast.kind] = min(instead.get(contrast.kind, (math.inf, "")), said)
        for question in event.questions:
            weight = self.calibration.weight(question.kind, "asked")
            if not weight:
                continue
            answered = self.witness.answered(question, self.segments[own])
            if answered is not None and answered[0] < features[question.kind].get("asked", math.inf):
                features[question.kind]["asked"] = answered[0]
                said = weight * answered[0], answered[1]
                instead[question.kind] = min(instead.get(question.kind, (math.inf, "")), said)
        if "action" in features:
            features["action"]["present"] = here
        features["place"] = {"present": here}
        same = {self.place[i] for i, events in enumerate(self.events) if event in events}
        rest = {j: present[j, event.query] for j in others if j not in same}
        if rest:
            best = max(rest, key=rest.__getitem__)
            features["place"]["elsewhere"] = here - rest[best]
            instead["place"] = (here - rest[best], f"shot {best + 1}")
        overlap = self._overlap(k, event)
        if overlap is not None and len(self.segments) > 1:
            features["place"]["overlap"] = 2 * overlap - 1
        return features, instead

    def _overlap(self, k: int, event: Event) -> float | None:
        """Share of the best moment over the whole film that lies in shots that are said to show the event."""
        moments = self.anywhere[event.query].moments
        if not moments:
            return None
        same = [self.place[i] for i, events in enumerate(self.events) if event in events]
        span = (moments[0].start, moments[0].end)
        return min(1.0, sum(_share(span, self.segments[j]) for j in same if j is not None))

    def _order(self, k: int, present: Mapping[tuple[int, str], float]) -> tuple[float, str, str] | None:
        """The worst of neighbouring deeds in time: how much later (in shots' lengths, times 6) the later one is."""
        own = self.place[k]
        steps = sorted((event for event in self.events[k] if event.step is not None), key=lambda event: event.step or 0)
        worst: tuple[float, str, str] | None = None
        for first, second in zip(steps, steps[1:], strict=False):
            if own is None or first.step == second.step:
                continue
            a, b = self.moments.get((own, first.query)), self.moments.get((own, second.query))
            if a is None or b is None:
                continue
            length = self.segments[own][1] - self.segments[own][0]
            later = 6.0 * (b - a) / length
            if worst is None or later < worst[0]:
                worst = later, f"{first.query}, then {second.query}", f"{second.query}, then {first.query}"
        return worst

    # -- the report -----------------------------------------------------------------------------------------------

    def _shot(self, k: int, present: Mapping[tuple[int, str], float]) -> ShotReport:
        caption, own = self.script.shots[k].caption, self.place[k]
        if own is None:
            at = self._gap(k)
            gone = Defect("missing_shot", caption, None, (at, at), 1.0, k + 1)
            return ShotReport(k + 1, at, at, caption, False, 0.0, (), (gone,))
        where = self.segments[own]
        events, defects = [], []
        for event in self.events[k]:
            features, instead = self._features(k, event, present)
            facts = {kind: self.calibration.probability(kind, values) for kind, values in features.items()}
            found = self.anywhere[event.query].moments
            moments = tuple((m.start, m.end, m.score) for m in found)
            there = 1 / (1 + math.exp(-present[own, event.query]))
            report = EventReport(
                event.query, event.facts, moments, self._overlap(k, event), there, facts, _geometric(facts.values()),
                features,
            )  # fmt: skip
            events.append(report)
            for kind, p in facts.items():
                if p < self.limit:
                    seen = instead.get(kind)
                    expected = event.facts.get(kind, event.query) if kind != "place" else event.query
                    if kind in ("colour", "shape", "action"):
                        expected = f"{expected} ({event.query})"
                    other = seen[1].replace("_", " ") if seen is not None and seen[0] < 0 else None
                    defects.append(Defect(kind, expected, other, where, 1 - p, k + 1))
        scores = [event.score for event in events]
        order = self._order(k, present)
        if order is not None:
            p = self.calibration.probability("order", {"later": order[0]})
            scores.append(p)
            if p < self.limit:
                defects.append(Defect("order", order[1], order[2] if order[0] < 0 else None, where, 1 - p, k + 1))
        for cut in self.found.cuts:
            inside = min(cut.time - where[0], where[1] - cut.time) * self.film.fps
            if cut.kind == "hard" and inside > 2 * TOLERANCE:
                defects.append(Defect("cut", "one shot", f"a cut at {cut.time:.2f} s", where, 1.0, k + 1))
                scores.append(0.5)
        defects.sort(key=lambda defect: -defect.confidence)
        quality = measure(self.film.clip(where, MOST_FRAMES).frames, self.film.fps) if self.measures else None
        return ShotReport(
            k + 1, *where, caption, not defects, _geometric(scores), tuple(events), tuple(defects), quality
        )  # fmt: skip

    def _gap(self, k: int) -> float:
        """Where a missing shot should be: the end of the last one before it that is there."""
        before = [j for j in self.place[:k] if j is not None]
        return self.segments[before[-1]][1] if before else 0.0

    def report(self, judge: FilmJudge | None) -> Report:
        present = self._present()
        shots = tuple(self._shot(k, present) for k in range(len(self.events)))
        used = {j for j in self.place if j is not None}
        extra = tuple(
            Defect("extra_shot", "no such shot", f"a shot at {start:.2f} - {end:.2f} s", (start, end), 1.0)
            for j, (start, end) in enumerate(self.segments) if j not in used
        )  # fmt: skip
        judged = None if judge is None else self._judged(judge)
        measured = [shot.quality for shot in shots if shot.quality is not None]
        return Report(
            passed=all(shot.passed for shot in shots) and not extra,
            score=_geometric([shot.score for shot in shots]) * (0.5 if extra else 1.0),
            shots=shots, defects=extra, cuts=self._cuts(), quality=Quality.mean(measured),
            same_look=self._same_look() if self.measures else (),
            fps=self.film.fps, duration=self.film.duration, limit=self.limit,
            calibration="" if self.calibration.stale else self.calibration.grounder,
            judge=judged,
        )  # fmt: skip

    def _cuts(self) -> CutReport:
        if self.expected is None:
            return CutReport(None, self.found)
        wanted, fps = self.expected[:-1], self.film.fps
        offsets: list[float | None] = []
        taken: set[int] = set()
        for time in wanted:
            near = [
                (abs(cut.time - time) * fps, i) for i, cut in enumerate(self.found.cuts)
                if i not in taken and abs(cut.time - time) * fps <= max(TOLERANCE, cut.duration * fps)
            ]  # fmt: skip
            if near:
                taken.add(min(near)[1])
                offsets.append((self.found.cuts[min(near)[1]].time - time) * fps)
            else:
                offsets.append(None)
        extra = tuple(cut.time for i, cut in enumerate(self.found.cuts) if i not in taken)
        return CutReport(tuple(wanted), self.found, tuple(offsets), extra)

    def _same_look(self) -> tuple[float, ...]:
        alike = []
        for k in range(len(self.events) - 1):
            names = [{tuple(sorted(_look(event.facts).items())) for event in self.events[i]} for i in (k, k + 1)]
            first, second = self.place[k], self.place[k + 1]
            if first is not None and second is not None and (names[0] & names[1]) - {()}:
                a, b = (palette(self.film.clip(self.segments[j], 12).frames) for j in (first, second))
                alike.append(float(np.minimum(a, b).sum()))
        return tuple(alike)

    def _judged(self, judge: FilmJudge) -> dict[str, Any]:
        """The judge's facts of each shot, and how many of those the script says it agrees with."""
        from shots.stage.following import shot_hits
        from shots.stage.parse import facts_of_script

        said, right, of = facts_of_script(self.script), 0, 0
        shots: list[dict[str, Any] | None] = []
        for k, j in enumerate(self.place):
            if j is None:
                shots.append(None)
                continue
            clip = self.film.clip(self.segments[j], MOST_FRAMES)
            reading = judge.read(clip.frames, clip.fps)
            hits = shot_hits(said[k], reading)
            right, of = right + sum(hit for _, hit in hits), of + len(hits)
            shots.append({"facts": reading.facts().to_dict(), "wrong": [kind for kind, hit in hits if not hit]})
        return {"facts_right": right, "facts": of, "shots": shots}


def told_cuts(film: Film) -> list[float] | None:
    """The cuts that a film's own record tells (seconds), None where it tells none."""
    if isinstance(film.source, Video) and film.source.cuts:
        return [float(time) for time in film.source.cuts]
    lengths = film.record.get("frames")
    whole = isinstance(lengths, list) and lengths and all(isinstance(n, int) and n > 0 for n in lengths)
    if isinstance(lengths, list) and whole and abs(sum(lengths) - film.frames) <= 1:
        return [float(n) / film.fps for n in np.cumsum(lengths)[:-1]]
    return None


def expected_cuts(film: Film, script: Script) -> list[float] | None:
    """Where the script's shots should end, the last one too (seconds); None where it does not say how long they are.

    A shot of s seconds has round(s * fps) frames. Shots without a length share what the film's record tells of them.
    """
    lengths = [shot.seconds for shot in script.shots]
    if any(length is None for length in lengths):
        told = told_cuts(film)
        return [*told, film.duration] if told is not None and len(told) == len(lengths) - 1 else None
    frames = [max(1, round((length or 0.0) * film.fps)) for length in lengths]
    return [float(n) / film.fps for n in np.cumsum(frames)]


def align(gain: np.ndarray) -> list[int | None]:
    """Matches shots (rows) with segments (columns) in order, so that the sum of gains is largest; the fewer of the two
    are all matched."""
    count, there = gain.shape
    best = np.full((count + 1, there + 1), -math.inf)
    best[: count - there + 1 if count > there else 1, 0] = 0.0
    best[0, : there - count + 1 if there > count else 1] = 0.0
    for k in range(1, count + 1):
        for j in range(1, there + 1):
            skipped = best[k - 1, j] if count > there else best[k, j - 1]
            best[k, j] = max(best[k - 1, j - 1] + gain[k - 1, j - 1], skipped)
    place: list[int | None] = [None] * count
    k, j = count, there
    while k and j:
        if best[k, j] == best[k - 1, j - 1] + gain[k - 1, j - 1]:
            place[k - 1] = j - 1
            k, j = k - 1, j - 1
        elif count > there:
            k -= 1
        else:
            j -= 1
    return place


def palette(frames: np.ndarray) -> np.ndarray:
    """Colours of what stands out in a shot, uint8 (T, H, W, 3), as a histogram (64,) that sums to 1: what the middle of
    the picture has more of than its borders."""
    code = (frames[..., 0] >> 6).astype(int) * 16 + (frames[..., 1] >> 6) * 4 + (frames[..., 2] >> 6)  # (T, H, W)
    height, width = code.shape[1:]
    inner = np.zeros((height, width), bool)
    inner[height // 6 : height - height // 6, width // 6 : width - width // 6] = True
    middle = np.bincount(code[:, inner].ravel(), minlength=64) / max(1, code[:, inner].size)
    border = np.bincount(code[:, ~inner].ravel(), minlength=64) / max(1, code[:, ~inner].size)
    more = np.clip(middle - border, 0, None)
    return more / more.sum() if more.sum() > 0 else np.full(64, 1 / 64)


def _look(facts: Mapping[str, str]) -> dict[str, str]:
    return {kind: value for kind, value in facts.items() if kind in ("colour", "shape")}


def _share(span: Window, segment: Window) -> float:
    """Share of a span that lies in a segment."""
    inside = min(span[1], segment[1]) - max(span[0], segment[0])
    return max(0.0, inside) / max(span[1] - span[0], 1e-9)


def _geometric(values: Sequence[float] | Any) -> float:
    """Geometric mean of probabilities; 1 of none."""
    logs = [math.log(max(value, 1e-6)) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else 1.0
