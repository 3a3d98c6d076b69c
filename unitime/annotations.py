"""Benchmarks' files: what was asked and when it happens (annotations), and what a model said (predictions).

Notable choices:

- One `Query` for every benchmark; the format is told from what stands in the file, never from its name. Read are
  QVHighlights and what looks like it (Lighthouse's jsonl of ActivityNet, Charades, TACoS, TVSum and YouTube
  Highlights), Charades-STA's text, ActivityNet-Captions' JSON, TACoS' JSON (2D-TAN: frame numbers and a rate),
  Ego4D-NLQ's JSON, UniTime's own JSON, and the stage's annotations (one file, or a folder of them).
- Times are seconds of the video. Windows beyond the video are cut to it, those that end before they start are turned
  round, and both are counted; windows without length stay (no prediction can hit them: the published scores count them
  so) and are counted. Nothing of this is silent: `Annotations.notes` says it.
- `windows` is None where the file does not say when (a test split, a set of highlights only), and empty where it says
  that the event never happens.
- Ids stay as they stand in the file, so that others' evaluators take our predictions; where a format has none, a
  query is VIDEO_K, the K-th of its video from 0, which is how Lighthouse numbers TACoS.
- Sets name their videos with and without extension, "v_" in front (ActivityNet) or a camera behind (TACoS'
  "-cam-002"); `VideoFolder` finds the file under all of these.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unitime.errors import UniTimeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Window = tuple[float, float]

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".3gp")
CLIP_SECONDS = 2.0  # QVHighlights rates clips of so many seconds


@dataclass(frozen=True)
class Query:
    """One question of a benchmark.

    Attributes:
        id: as in the file.
        video: name of the video, as in the file.
        query: what is looked for.
        windows: when it happens, (start, end) in seconds; empty: never; None: not told.
        duration: of the video, seconds; None where the file does not say.
        saliency: float (clips, annotators), how well each clip shows it, or None.
        clip_seconds: length of those clips.
    """

    id: str | int
    video: str
    query: str
    windows: tuple[Window, ...] | None
    duration: float | None = None
    saliency: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)
    clip_seconds: float = CLIP_SECONDS


@dataclass(frozen=True)
class Annotations:
    """The queries of one file, in its order.

    Attributes:
        format: "qvhighlights", "charades_sta", "activitynet", "tacos", "ego4d_nlq", "unitime" or "stage".
        clamped: windows that reached beyond the video and were cut to it.
        reversed: windows that ended before they started and were turned round.
        zero_length: windows without length, which nothing can hit.
        skipped: entries without words or without a window that could be used (Ego4D-NLQ has some).
    """

    path: Path
    format: str
    queries: tuple[Query, ...]
    clamped: int = 0
    reversed: int = 0
    zero_length: int = 0
    skipped: int = 0

    def __iter__(self) -> Iterator[Query]:
        return iter(self.queries)

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the file's windows, one sentence each."""
        said = {
            f"{self.clamped} windows reach beyond their video and were cut to it": self.clamped,
            f"{self.reversed} windows end before they start and were turned round": self.reversed,
            f"{self.zero_length} windows have no length and cannot be hit": self.zero_length,
            f"{self.skipped} entries have no words and were left out": self.skipped,
        }
        return tuple(text for text, count in said.items() if count)


@dataclass(frozen=True)
class Prediction:
    """What a model said to one query.

    Attributes:
        id: the query's.
        windows: (start, end, score), best first as listed.
        saliency: one score per clip, or None.
        status: "ok", "not_found", "parse_error", or "error" (the video could not be read).
        not_found: probability that it never happens, or None.
    """

    id: str | int
    windows: tuple[tuple[float, float, float], ...]
    saliency: tuple[float, ...] | None = None
    status: str = "ok"
    not_found: float | None = None


# ------------------------------------------------------------------------------------------------------ annotations


def read_annotations(path: str | Path) -> Annotations:
    """The queries of an annotation file, or of a folder of the stage's annotation files.

    Raises UniTimeError when nothing can be read there, when the format is none of those known, or when an entry is
    damaged; the message names the entry.
    """
    path = Path(path)
    reader = _Reader(path)
    if path.is_dir():
        reader.folder()
    else:
        reader.file()
    if not reader.queries:
        raise UniTimeError(f"annotations: {path} holds no queries")
    twice = [name for name, count in Counter(str(query.id) for query in reader.queries).items() if count > 1]
    if twice:
        raise UniTimeError(f"annotations: {path}: the id {twice[0]!r} stands at more than one query; make ids unique")
    counts = {name: reader.counts[name] for name in ("clamped", "reversed", "zero_length", "skipped")}
    return Annotations(path, reader.format, tuple(reader.queries), **counts)


class _Reader:
    """Collects the queries of one file, whatever its format, and counts what had to be put right."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.format = ""
        self.queries: list[Query] = []
        self.counts: Counter[str] = Counter()
        self.per_video: Counter[str] = Counter()

    def file(self) -> None:
        text = _text(self.path, "annotations")
        content = _parsed(text)
        if content is None and "##" in text:
            self.format = "charades_sta"
            self.charades(text)
            return
        if content is None:
            raise self.bad(f"is no JSON, no JSON lines and no Charades-STA text; {_KNOWN}")
        self.format, read = self.detect(content)
        try:
            read(content)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise self.bad(f"is {self.format} whose entries are not of the usual form ({error!r})") from error

    def folder(self) -> None:
        self.format = "stage"
        for path in sorted(self.path.glob("*.json")):
            content = _parsed(_text(path, "annotations"))
            if isinstance(content, dict) and isinstance(content.get("events"), list):  # else a video's record
                self.stage(content, path.stem)

    def detect(self, content: Any) -> tuple[str, Callable[[Any], None]]:
        if isinstance(content, dict):
            if "events" in content and "duration" in content:
                return "stage", lambda found: self.stage(found, self.path.stem)
            if isinstance(content.get("videos"), list):
                return "ego4d_nlq", self.ego4d
            entries = list(content.values())
            if entries and all(isinstance(entry, dict) and "timestamps" in entry for entry in entries):
                return ("tacos" if "fps" in entries[0] else "activitynet"), self.captions
        elif content and isinstance(content[0], dict):
            if "annos" in content[0]:
                return "unitime", self.unitime
            if "qid" in content[0] and "query" in content[0]:
                return "qvhighlights", self.qvhighlights
        raise self.bad(f"is JSON of an unknown form; {_KNOWN}")

    def qvhighlights(self, rows: list[dict[str, Any]]) -> None:
        """One dictionary a line: `qid`, `query`, `vid`, `duration`, `relevant_windows`; saliency where given."""
        for number, row in enumerate(rows, 1):
            where = f"line {number}"
            duration = self.duration(row.get("duration"), where)
            saliency, clip_seconds = None, CLIP_SECONDS
            if row.get("label") is not None:  # Lighthouse's highlight sets: every annotator's rating of every clip
                saliency = self.array(row["label"], where)
                if duration == len(saliency):  # TVSum: what it calls duration counts clips of two seconds
                    duration = len(saliency) * CLIP_SECONDS
                elif duration:
                    clip_seconds = duration / len(saliency)
            elif row.get("saliency_scores") is not None and row.get("relevant_clip_ids") is not None:
                saliency = self.qv_saliency(row, duration, where)
            self.add(
                self.key(row, "qid", where), self.key(row, "vid", where), self.key(row, "query", where),
                row.get("relevant_windows"), duration, where, saliency, clip_seconds,
            )  # fmt: skip

    def qv_saliency(self, row: dict[str, Any], duration: float | None, where: str) -> NDArray[np.float64]:
        """QVHighlights' ratings, zero for clips that nobody rated: (clips, annotators)."""
        import numpy as np

        rated = self.array(row["saliency_scores"], where)
        clips = np.asarray(row["relevant_clip_ids"], dtype=np.int64)
        if duration is None or len(clips) != len(rated):
            raise self.bad(f"{where}: duration, relevant_clip_ids and saliency_scores do not fit each other")
        total = int(duration / CLIP_SECONDS)
        if len(clips) and not 0 <= clips.min() <= clips.max() < total:
            raise self.bad(f"{where}: relevant_clip_ids beyond the {total} clips of {duration:g} s")
        saliency = np.zeros((total, rated.shape[1] if rated.ndim == 2 else 3))
        saliency[clips] = rated
        return saliency

    def captions(self, videos: dict[str, dict[str, Any]]) -> None:
        """ActivityNet-Captions and its kin (`duration`, seconds), and TACoS (`fps`, `num_frames`, frame numbers)."""
        for video, entry in videos.items():
            where = f"video {video!r}"
            sentences, timestamps = entry.get("sentences"), entry["timestamps"]
            if not (isinstance(sentences, list) and isinstance(timestamps, list) and len(sentences) == len(timestamps)):
                raise self.bad(f"{where}: as many sentences as timestamps are needed")
            if "fps" in entry:
                rate = self.duration(entry["fps"], f"{where}, fps")
                frames = self.duration(entry.get("num_frames"), f"{where}, num_frames")
                if not rate:
                    raise self.bad(f"{where}: fps {rate}; more than 0 is needed")
                duration = None if frames is None else frames / rate
                timestamps = [[time / rate for time in self.window(pair, where)] for pair in timestamps]
            else:
                duration = self.duration(entry.get("duration"), where)
            for sentence, pair in zip(sentences, timestamps, strict=True):
                self.add(None, video, sentence, [pair], duration, where)

    def charades(self, text: str) -> None:
        """Charades-STA: `VIDEO START END##sentence`, one a line; it does not tell how long a video is."""
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                head, mark, sentence = line.partition("##")
                words = head.split()
                if not mark or len(words) != 3:
                    raise self.bad(f"line {number}: VIDEO START END##SENTENCE is expected, not {line[:60]!r}")
                self.add(None, words[0], sentence, [words[1:]], None, f"line {number}")

    def ego4d(self, content: dict[str, Any]) -> None:
        """Ego4D-NLQ: videos > clips > annotations > language_queries; times are those of the clip, whose file is
        CLIP_UID.mp4. Queries of the unannotated test split have no window; empty ones are left out."""
        for video in content["videos"]:
            for clip in video.get("clips", ()):
                name = self.key(clip, "clip_uid", f"video {video.get('video_uid')!r}")
                where = f"clip {name!r}"
                begin = self.duration(clip.get("clip_start_sec"), where) or 0.0
                end = self.duration(clip.get("clip_end_sec"), where)
                duration = None if end is None else end - begin
                for annotation in clip.get("annotations", ()):
                    for index, asked in enumerate(annotation.get("language_queries", ())):
                        if not asked.get("query"):
                            self.counts["skipped"] += 1
                            continue
                        told = "clip_start_sec" in asked
                        pair = [asked["clip_start_sec"], asked.get("clip_end_sec")] if told else None
                        identity = f"{name}_{annotation.get('annotation_uid')}_{index}"
                        windows = None if pair is None else [pair]
                        self.add(identity, name, asked["query"], windows, duration, f"{where}, {identity}")

    def unitime(self, rows: list[dict[str, Any]]) -> None:
        """UniTime's own lists: `qid`, `id` (the video), `duration`, `annos` of `query` and `window` (a list)."""
        for number, row in enumerate(rows, 1):
            where = f"entry {number}"
            duration = self.duration(row.get("duration"), where)
            video = str(row.get("id") or Path(str(self.key(row, "video_path", where))).name)
            annos = self.key(row, "annos", where)
            for index, anno in enumerate(annos):
                identity = row.get("qid")
                if identity is not None and len(annos) > 1:
                    identity = f"{identity}_{index}"
                self.add(identity, video, self.key(anno, "query", where), anno.get("window"), duration, where)

    def stage(self, content: dict[str, Any], video: str) -> None:
        """The stage's annotations (DESIGN 3). Events nobody can see are not asked for; what the same actor does
        twice has two windows, for an event that happens to somebody or into something: under the same words."""
        from shots.stage.scene import PAIR_ACTIONS

        duration = self.duration(content.get("duration"), video)
        events = [event for event in content["events"] if event.get("observable", True)]

        def what(event: dict[str, Any]) -> tuple[Any, ...]:
            action = event.get("action")
            loose = action is None or action in PAIR_ACTIONS or action == "change_colour"
            return (event.get("actor"), action, event.get("query") if loose else None)

        for number, event in enumerate(events, 1):
            where = f"{video}, event {number}"
            same = [[self.key(e, "start", where), self.key(e, "end", where)] for e in events if what(e) == what(event)]
            self.add(None, video, self.key(event, "query", where), same, duration, where)

    def add(
        self,
        identity: Any,
        video: Any,
        query: Any,
        windows: Any,
        duration: float | None,
        where: str,
        saliency: NDArray[np.float64] | None = None,
        clip_seconds: float = CLIP_SECONDS,
    ) -> None:
        if not isinstance(query, str) or not query.strip():
            raise self.bad(f"{where}: the query is {query!r}; words are needed")
        video = str(video)
        if identity is None:
            stem = strip_suffix(video)
            identity = f"{stem}_{self.per_video[stem]}"
            self.per_video[stem] += 1
        put = None
        if windows is not None:
            if not isinstance(windows, list):
                raise self.bad(f"{where}: the windows are {windows!r}; [[start, end], ...] is needed")
            put = tuple(self.put_right(self.window(pair, where), duration) for pair in windows)
        self.queries.append(Query(identity, video, query.strip(), put, duration, saliency, clip_seconds))

    def put_right(self, window: Window, duration: float | None) -> Window:
        start, end = window
        if end < start:
            self.counts["reversed"] += 1
            start, end = end, start
        last = math.inf if duration is None else duration
        if start < 0 or end > last:
            self.counts["clamped"] += 1
            start, end = min(max(start, 0.0), last), min(max(end, 0.0), last)
        self.counts["zero_length"] += start == end
        return start, end

    def window(self, pair: Any, where: str) -> Window:
        if isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2:
            try:
                start, end = (float(value) for value in pair)
            except (TypeError, ValueError):
                pass
            else:
                if math.isfinite(start) and math.isfinite(end):
                    return start, end
        raise self.bad(f"{where}: the window is {pair!r}; [start, end] in seconds is needed")

    def duration(self, value: Any, where: str) -> float | None:
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not (math.isfinite(number) and number >= 0):
            raise self.bad(f"{where}: {value!r} is no length in seconds")
        return number

    def array(self, rows: Any, where: str) -> NDArray[np.float64]:
        import numpy as np

        try:
            ratings = np.asarray(rows, dtype=np.float64)
        except (TypeError, ValueError):
            ratings = np.zeros(())
        if len(rows) and ratings.ndim != 2:
            raise self.bad(f"{where}: the ratings of clips are not as many from each annotator")
        return ratings

    def key(self, row: Any, name: str, where: str) -> Any:
        if not isinstance(row, dict) or row.get(name) is None:
            raise self.bad(f"{where}: no {name!r}")
        return row[name]

    def bad(self, what: str) -> UniTimeError:
        return UniTimeError(f"annotations: {self.path} {'' if what.startswith('is ') else 'at '}{what}")


_KNOWN = (
    "known are QVHighlights-like jsonl, Charades-STA text, the JSON of ActivityNet-Captions, TACoS (2D-TAN), Ego4D-NLQ "
    "and UniTime, and the stage's annotations"
)


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UniTimeError(f"{what}: {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UniTimeError(f"{what}: {path} cannot be read as text ({error})") from error


def _parsed(text: str) -> Any:
    """What `text` holds as JSON; JSON lines become a list, a single line with an id a list of one; None if neither."""
    try:
        content = json.loads(text)
    except ValueError:
        try:
            return [json.loads(line) for line in text.split("\n") if line.strip()] or None
        except ValueError:
            return None
    return [content] if isinstance(content, dict) and "qid" in content else content


# ------------------------------------------------------------------------------------------------------ predictions


def read_predictions(path: str | Path) -> list[Prediction]:
    """The predictions of a file in QVHighlights' form: JSON lines, or one JSON list, of `qid`,
    `pred_relevant_windows` [[start, end, score], ...] and, where given, `pred_saliency_scores`, `status` and
    `not_found`. Windows without a score get falling ones in their order.

    Raises UniTimeError when the file is not of this form, or answers a query twice.
    """
    path = Path(path)
    rows = _parsed(_text(path, "predictions"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UniTimeError(
            f"predictions: {path} is neither JSON lines nor a JSON list of predictions; each needs 'qid' and "
            "'pred_relevant_windows' [[start, end, score], ...]"
        )
    predictions = [prediction(row, f"predictions: {path}, entry {number}") for number, row in enumerate(rows, 1)]
    twice = [name for name, count in Counter(str(made.id) for made in predictions).items() if count > 1]
    if twice:
        raise UniTimeError(f"predictions: {path} answers the query {twice[0]!r} more than once")
    return predictions


def prediction(row: Mapping[str, Any], where: str) -> Prediction:
    """One entry of a predictions file. Raises UniTimeError, beginning with `where`, when it is damaged."""
    windows = row.get("pred_relevant_windows")
    saliency = row.get("pred_saliency_scores")
    if row.get("qid") is None or (windows is None and saliency is None):
        raise UniTimeError(f"{where}: 'qid' and 'pred_relevant_windows' or 'pred_saliency_scores' are needed")
    try:
        read = tuple(_scored(window, index) for index, window in enumerate(windows or ()))
        scores = None if saliency is None else tuple(float(score) for score in saliency)
        absent = None if row.get("not_found") is None else float(row["not_found"])
    except (TypeError, ValueError):
        raise UniTimeError(f"{where}: windows are [start, end, score] and all scores are numbers") from None
    return Prediction(row["qid"], read, scores, str(row.get("status", "ok")), absent)


def _scored(window: Sequence[float], index: int) -> tuple[float, float, float]:
    start, end, *score = (float(value) for value in window)
    if not all(map(math.isfinite, (start, end, *score))) or len(score) > 1:
        raise ValueError(window)
    return start, end, (score[0] if score else 1.0 / (index + 1))


# ------------------------------------------------------------------------------------------------------------ videos


def strip_suffix(name: str) -> str:
    """The name of a video without its extension; other dots stay ("abc_60.0_210.0")."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in VIDEO_SUFFIXES else name


def _loose(name: str) -> str:
    """What is left of a name without the marks that some sets add and others leave out."""
    return re.sub(r"-cam-\d+$", "", strip_suffix(name)).removeprefix("v_")


class VideoFolder:
    """Finds the files of a benchmark's videos below a folder, by their stem, whatever the extension.

    Raises UniTimeError when there is no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UniTimeError(f"videos: {self.folder} is no folder; name the one that the videos are in")
        rank = {suffix: index for index, suffix in enumerate(VIDEO_SUFFIXES)}
        found = [path for path in self.folder.rglob("*") if path.suffix.lower() in rank]
        found.sort(key=lambda path: (len(path.parts), rank[path.suffix.lower()], str(path)))
        self._names = _first(found, lambda path: path.name)
        self._stems = _first(found, lambda path: path.stem)
        self._marks = _first(found, lambda path: _loose(path.name))

    def find(self, name: str) -> Path | None:
        """The file of the video called `name`, or None. The whole name counts before the stem, and that before a
        name without the set's marks."""
        base = name.replace("\\", "/").rsplit("/", 1)[-1]
        return self._names.get(base) or self._stems.get(strip_suffix(base)) or self._marks.get(_loose(base))


def _first(paths: Iterable[Path], key: Callable[[Path], str]) -> dict[str, Path]:
    """The first path under each key."""
    table: dict[str, Path] = {}
    for path in paths:
        table.setdefault(key(path), path)
    return table
