"""Scripts: what each shot of a film shows, and for how long.

Three text forms, one meaning: plain text ("A red cube jumps. [cut] A blue sphere spins.", or "Shot 1: ... Shot 2:
..."), YAML and JSON. A plain prompt is a script of one shot.

Notable choices:
- Strict: an unknown key, an empty caption, a shot of no length is an error that says where it stands, never a guess.
- Captions are kept on one line with single spaces, so that every form gives the same script back.
- In plain text, what stands before "Shot 1:" is the caption of the whole film.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shots.errors import ShotsError

MAX_TEXT = 5000  # characters of one caption; the longest published benchmark prompts have about 3200
MAX_SHOTS = 5000  # an hour of shots shorter than a second
MAX_SECONDS = 3600.0  # of one shot

_CUT = re.compile(r"\[\s*cut\s*\]", re.IGNORECASE)
_LABEL = re.compile(r"\bshot\s+(\d+)\s*:", re.IGNORECASE)
_YAML_SHOTS = re.compile(r"^shots\s*:", re.MULTILINE)


def _text(value: object, where: str) -> str:
    """`value` as one line of text, or a ShotsError that names `where`."""
    if not isinstance(value, str):
        raise ShotsError(f"{where}: {value!r} is not text; write it in quotes")
    line = " ".join(value.split())
    if not line:
        raise ShotsError(f"{where}: empty; say in a few words what is to be seen")
    if len(line) > MAX_TEXT:
        raise ShotsError(f"{where}: {len(line)} characters, at most {MAX_TEXT} are taken; shorten it")
    try:
        line.encode()
    except UnicodeEncodeError:
        raise ShotsError(f"{where}: not valid UTF-8 text") from None
    return line


def _length(value: object, where: str) -> float:
    """`value` as a shot's length in seconds, or a ShotsError that names `where`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ShotsError(f"{where}: {value!r} is not a number of seconds")
    if not (math.isfinite(value) and 0 < value <= MAX_SECONDS):
        raise ShotsError(f"{where}: {value} seconds; a shot lasts more than 0 and at most {MAX_SECONDS:g} seconds")
    return float(value)


@dataclass(frozen=True)
class Shot:
    """One shot: what it shows, its length in seconds (None: the renderer's default), and how the camera sees it."""

    caption: str
    seconds: float | None = None
    camera: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "caption", _text(self.caption, "caption"))
        if self.seconds is not None:
            object.__setattr__(self, "seconds", _length(self.seconds, "seconds"))
        if self.camera is not None:
            object.__setattr__(self, "camera", _text(self.camera, "camera"))

    def frames(self, fps: float, default: int) -> int:
        """Frames of this shot at `fps`: round(seconds x fps), or `default` when it gives no length.

        Raises ShotsError when that is less than one.
        """
        count = default if self.seconds is None else round(self.seconds * fps)
        if count < 1:
            raise ShotsError(f"seconds: {self.seconds} s at {fps:g} frames a second is no frame at all; make it longer")
        return count


@dataclass(frozen=True)
class Script:
    """A film: its shots in order; `caption` describes the whole, `style` and `title` are what they say."""

    shots: tuple[Shot, ...]
    title: str | None = None
    style: str | None = None
    caption: str | None = None

    def __post_init__(self) -> None:
        if not self.shots:
            raise ShotsError("shots: the script has none; give at least one")
        if len(self.shots) > MAX_SHOTS:
            raise ShotsError(f"shots: {len(self.shots)} of them, at most {MAX_SHOTS} are taken; make several films")
        object.__setattr__(self, "shots", tuple(self.shots))
        for name in ("title", "style", "caption"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _text(getattr(self, name), name))

    @classmethod
    def parse(cls, text: str) -> Script:
        """The script that `text` is in any of its forms: plain, "[cut]", "Shot 1: ...", YAML or JSON.

        Raises ShotsError for text that is empty, too long or not a whole script.
        """
        if text.lstrip().startswith("{"):
            return cls.from_dict(_from_json(text))
        if _YAML_SHOTS.search(text):
            return cls.from_dict(_from_yaml(text))
        return _from_plain(text)

    @classmethod
    def load(cls, path: str | Path) -> Script:
        """The script in a file: .json, .yaml or .yml by their names, anything else as `parse` reads it."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ShotsError(f"script: {path} does not exist") from None
        except UnicodeDecodeError:
            raise ShotsError(f"script: {path} is not a text file in UTF-8") from None
        except OSError as error:
            raise ShotsError(f"script: {path} cannot be read ({error.strerror})") from error
        readers = {".json": _from_json, ".yaml": _from_yaml, ".yml": _from_yaml}
        reader = readers.get(path.suffix.lower())
        try:
            return cls.from_dict(reader(text)) if reader else cls.parse(text)
        except ShotsError as error:
            raise ShotsError(f"script {path}: {error}") from None

    @classmethod
    def from_dict(cls, d: object) -> Script:
        """The script of parsed JSON or YAML: {"title"?, "style"?, "caption"?, "shots": [{"caption", "seconds"?,
        "camera"?}]}. Raises ShotsError for any other key or shape."""
        top = _mapping(d, "script", ("title", "style", "caption", "shots"))
        rows = top.get("shots")
        if not isinstance(rows, list):
            raise ShotsError("shots: missing or not a list; a script is {shots: [{caption: ...}, ...]}")
        shots = []
        for number, row in enumerate(rows, start=1):
            where = f"shot {number}"
            fields = _mapping(row, where, ("caption", "seconds", "camera"))
            if "caption" not in fields:
                raise ShotsError(f"{where}: has no caption; say what it shows")
            try:
                shots.append(Shot(**fields))
            except ShotsError as error:
                raise ShotsError(f"{where}, {error}") from None
        return cls(tuple(shots), top.get("title"), top.get("style"), top.get("caption"))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; what is not given is left out."""
        top = {"title": self.title, "style": self.style, "caption": self.caption}
        rows = [{"caption": shot.caption, "seconds": shot.seconds, "camera": shot.camera} for shot in self.shots]
        return {
            **{key: value for key, value in top.items() if value is not None},
            "shots": [{key: value for key, value in row.items() if value is not None} for row in rows],
        }

    def to_yaml(self) -> str:
        """The YAML form."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)

    def to_json(self) -> str:
        """The JSON form, indented."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)


def _mapping(value: object, where: str, known: tuple[str, ...]) -> dict[str, Any]:
    """`value` if it is a mapping with no keys but `known`; keys that hold nothing are left out."""
    if not isinstance(value, dict):
        raise ShotsError(f"{where}: {str(value)[:60]!r} is not a mapping with the keys {', '.join(known)}")
    for key in value:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise ShotsError(f"{where}: unknown key {str(key)!r}; {hint}")
    return {key: item for key, item in value.items() if item is not None}


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ShotsError(f"script: the key {key!r} stands twice in one place")
    return dict(pairs)


def _from_json(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_no_twins)
    except json.JSONDecodeError as error:
        raise ShotsError(f"script: not valid JSON ({error.msg}, line {error.lineno})") from None
    except RecursionError:
        raise ShotsError("script: not valid JSON (nested too deep)") from None


class _StrictLoader(yaml.SafeLoader):
    """YAML's plain types only, and no key twice, where PyYAML would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _no_twins([(str(key.value), None) for key, _ in node.value])
        return super().construct_mapping(node, deep=deep)


def _from_yaml(text: str) -> object:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ShotsError(f"script: not valid YAML ({error.problem}{line})") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise ShotsError(f"script: not valid YAML ({reason})") from None


def _from_plain(text: str) -> Script:
    labels = [(int(match[1]), match) for match in _LABEL.finditer(text)]
    caption = None
    if _CUT.search(text):
        parts = [_LABEL.sub("", part, count=1) if _LABEL.match(part.lstrip()) else part for part in _CUT.split(text)]
    elif labels and [number for number, _ in labels] == list(range(1, len(labels) + 1)):
        starts = [match.end() for _, match in labels]
        ends = [match.start() for _, match in labels[1:]] + [len(text)]
        parts = [text[start:end] for start, end in zip(starts, ends, strict=True)]
        caption = text[: labels[0][1].start()].strip() or None
    else:
        return Script((Shot(_text(text, "prompt")),))
    shots = [Shot(_text(part, f"shot {number}")) for number, part in enumerate(parts, start=1)]
    return Script(tuple(shots), caption=caption)
