"""A video as a script: cut, described shot by shot, checked against the video, and ready to be rendered again.

    script = caption_film("film.mp4", captioner, grounder)
    film = describe_film("film.mp4", captioner, grounder)   # the same with times, checks and camera moves
    film.script.to_yaml()

Notable choices:

- The cuts are the film's own where it is in memory and says so, else found (`shots.cuts`). A dissolve ends one shot and
  begins the next at its middle; neither is described from frames that show both.
- A shot lasts from its first frame to the next one's, so that at the film's frame rate the script has as many frames as
  the film. A shot longer than a script may hold becomes several; one shorter than `LEAST` goes with the one before.
- Every sentence is grounded in the whole film, or, of a film longer than `AROUND`, in the stretch of so many seconds
  that its shot and its neighbours fill: else checking would cost shots times length. One that is found in its shot
  stands, with its moment, trimmed to the shot. One that is found elsewhere or nowhere is dropped where another of its
  shot stands. A shot of which nothing is found is described anew from its middle, away from the cuts; the first
  description stays if that is no better found, and is marked.
- A shot that is one plain colour is described as that, and no model is asked: models see things in the dark. One
  shorter than `BRIEF` seconds is described but not checked: times of one decimal do not resolve it.
- The camera's move is measured (`shots.camera`), the size of the shot is asked for where the captioner answers
  questions and is sure. Both stand in the shot's `camera`.
- The caption of the film names the actors that recur. Captions that the stage's grammar reads are compared by colour
  and shape and say the set that all share; of others, the words after an article that several shots begin alike.
- The video is read once for its cuts and once for camera and colours; pictures are not kept, so memory does not grow
  with the film.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shots.errors import ShotsError
from shots.files import check_place, write_whole
from shots.protocols import takes
from shots.script import MAX_SECONDS, MAX_SHOTS, MAX_TEXT, Script, Shot
from shots.video import Video, frames_at, probe

if TYPE_CHECKING:
    from shots.protocols import Captioner, Grounder, Grounding

Frames = NDArray[np.uint8]
Window = tuple[float, float]
Progress = Callable[[int, int, str], None]

BRIEF = 0.3  # seconds below which a shot is not checked
LEAST = 0.08  # seconds of a shot; a shorter one could not be rendered at a film's usual rates
AROUND = 120.0  # seconds of film that sentences are grounded in
TOGETHER = 16  # sentences grounded at a time
ASKED = 500  # characters of a sentence that are grounded
MOMENTS = 3  # of each sentence that may lie in its shot
NAMED = 6  # actors in the caption of the film, at most
SURE = 0.6  # probability from which the size of a shot is told
SIZES = ("wide shot", "medium shot", "close-up")
UNDESCRIBED = "A shot that could not be described."
_FORMS = (".yaml", ".yml", ".json")
_SIDE = 128  # pixels of the short side of the pictures that are looked at here
_PLAIN = 4.0  # standard deviation, of 255, below which a picture is one plain colour
_DARK, _BRIGHT = 32.0, 223.0  # mean, of 255, of black and of white
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_ARTICLE = re.compile(r"\b(?:an?|the)\s+(?=((?:[^\W\d_][\w'-]*\s*){1,4}))", re.IGNORECASE)
# Words that end a name.
_AFTER = frozenset(
    re.findall(
        r"\w+",
        """
    a an and are as at be beside by for from has he her his in into is it its of off on onto or over she that the their
    then there they this to under up was which while who with
        """,
    )
)
_NOBODY = frozenset(re.findall(r"\w+", "background camera film floor frame ground picture scene screen shot sky view"))


@dataclass(frozen=True)
class CaptionedShot:
    """One shot as it was described.

    Attributes:
        number: from 1.
        start, end: seconds on the video's own clock.
        caption: what stands in the script.
        camera: its move and size in words, None where neither can be told.
        check: "found" in this shot, "elsewhere" (found, but in another), "not_found", "plain" (one colour, so nothing
            was asked), "brief" (too short to be checked), "undescribed", or "unchecked".
        moment: (start, end) within the shot where the caption was found, else None.
        score: the grounder's of that moment, 0 to 1.
        dropped: sentences of the description that were not found here.
        tries: how often the shot was described.
    """

    number: int
    start: float
    end: float
    caption: str
    camera: str | None = None
    check: str = "unchecked"
    moment: Window | None = None
    score: float | None = None
    dropped: tuple[str, ...] = ()
    tries: int = 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; what is not known is left out."""
        moment = None
        if self.moment is not None:
            moment = {"start": round(self.moment[0], 4), "end": round(self.moment[1], 4), "score": self.score}
        row = {
            "number": self.number, "start": round(self.start, 4), "end": round(self.end, 4), "caption": self.caption,
            "camera": self.camera, "check": self.check, "moment": moment, "dropped": list(self.dropped) or None,
            "tries": self.tries,
        }  # fmt: skip
        return {key: value for key, value in row.items() if value is not None}


@dataclass(frozen=True)
class CaptionedFilm:
    """A video's script, and how each of its shots came to be described. actors: names of those that recur."""

    script: Script
    shots: tuple[CaptionedShot, ...]
    actors: tuple[str, ...] = ()

    @property
    def doubtful(self) -> list[int]:
        """Numbers of the shots whose captions were not found in them."""
        return [shot.number for shot in self.shots if shot.check in ("elsewhere", "not_found", "undescribed")]

    def to_dict(self) -> dict[str, Any]:
        """As `seedance caption --json` prints it."""
        return {
            "script": self.script.to_dict(),
            "actors": list(self.actors),
            "shots": [shot.to_dict() for shot in self.shots],
        }

    def __str__(self) -> str:
        lines = [] if self.script.caption is None else [self.script.caption]
        for shot in self.shots:
            camera = f" ({shot.camera})" if shot.camera else ""
            lines.append(f"{shot.start:9.2f} - {shot.end:8.2f} s  {shot.check:<11} {shot.caption}{camera}")
        return "\n".join(lines)


def caption_film(
    video: Video | str | Path,
    captioner: Captioner,
    grounder: Grounder | None = None,
    *,
    cuts: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> Script:
    """The script of a video; arguments and errors as of :func:`describe_film`."""
    return describe_film(video, captioner, grounder, cuts=cuts, progress=progress).script


def describe_film(
    video: Video | str | Path,
    captioner: Captioner,
    grounder: Grounder | None = None,
    *,
    cuts: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> CaptionedFilm:
    """Describes a video shot by shot.

    Args:
        video: a film in memory or a file.
        captioner: describes each shot in its window; one that also answers questions (`ask`) tells the shot's size.
        grounder: checks the descriptions; None leaves them as they are.
        cuts: seconds on the video's own clock at which later shots start; None: the film's own, or found.
        progress: `progress(done, total, what)`, called for every shot that was described and checked.

    Raises ShotsError for a file that is no video, for cuts that are no times within it, and where there are more shots
    than a script may hold.
    """
    shots = _shots(video, cuts)
    if len(shots) > MAX_SHOTS:
        raise ShotsError(f"video: {len(shots)} shots, a script holds at most {MAX_SHOTS}; caption it in parts")
    describing = _Describing(video, captioner, grounder, progress or (lambda done, total, what: None))
    found = describing.describe(shots)
    actors, whole = _film_caption([shot.caption for shot in found if shot.check not in ("plain", "undescribed")])
    script = Script(
        tuple(Shot(shot.caption, _seconds(shot), shot.camera) for shot in found), caption=whole
    )  # fmt: skip
    return CaptionedFilm(script, tuple(found), actors)


def check_script_place(path: str | Path) -> Path:
    """`path` if a script can be written there, else a ShotsError; to be asked before the work, not after it."""
    path = Path(path)
    if path.suffix.lower() not in _FORMS:
        raise ShotsError(f"output: {path} should end in one of {', '.join(_FORMS)}")
    return check_place(path, "output")


def save_script(script: Script, path: str | Path) -> Path:
    """Write a script as YAML or JSON, by the name's ending, whole or not at all. Raises ShotsError as above."""
    path = check_script_place(path)
    return write_whole(path, script.to_yaml() if path.suffix.lower() != ".json" else script.to_json() + "\n", "output")


# ------------------------------------------------------------------------------------------------------------ shots


@dataclass(frozen=True)
class _Span:
    """A shot: its edges, and the seconds within them that show nothing else."""

    start: float
    end: float
    clear: Window


def _shots(video: Video | str | Path, cuts: Sequence[float] | None) -> list[_Span]:
    """The shots of a video between its cuts, those that a script cannot hold in parts."""
    if isinstance(video, Video):
        first = float(video.times[0])
        last = first + video.duration
    else:
        info = probe(video)
        first, last = info.start, max(info.duration, info.start + 1 / max(info.fps, 1e-6))
    changes = _changes(video, first) if cuts is None else [(float(t), float(t), float(t)) for t in cuts]
    if cuts is not None:
        times = [time for _, time, _ in changes]
        if any(not first < time < last for time in times) or any(a >= b for a, b in pairwise(times)):
            raise ShotsError(f"cuts: ascending seconds between {first:g} and {last:g} are needed, not {times[:8]}")
    edges = [(first, first, first), *(c for c in changes if first < c[1] < last), (last, last, last)]
    spans: list[_Span] = []
    for (_, start, clear), (spoilt, end, _) in pairwise(edges):
        window = (clear, spoilt) if spoilt - clear > 0.5 * (end - start) else (start, end)
        parts = math.ceil((end - start) / MAX_SECONDS - 1e-9)
        if parts <= 1:
            spans.append(_Span(start, end, window))
        else:
            ends = np.linspace(start, end, parts + 1).tolist()
            spans += [_Span(a, b, (max(a, window[0]), min(b, window[1]))) for a, b in pairwise(ends)]
    return _joined(spans)


def _joined(spans: Sequence[_Span]) -> list[_Span]:
    """The shots, those too short to be one with the shot before, the first with the next."""
    kept: list[_Span] = []
    for span in spans:
        if kept and min(span.end - span.start, kept[-1].end - kept[-1].start) < LEAST:
            longer = max(kept[-1], span, key=lambda each: each.end - each.start)
            kept[-1] = _Span(kept[-1].start, span.end, longer.clear)
        else:
            kept.append(span)
    return kept


def _changes(video: Video | str | Path, first: float) -> list[tuple[float, float, float]]:
    """(where the old shot stops being clear, the cut, where the new one is) of every cut, seconds."""
    if isinstance(video, Video) and video.cuts:
        return [(t, t, t) for t in sorted(set(video.cuts))]
    from shots.cuts import find_cuts

    found = find_cuts(video)
    shift = first if isinstance(video, Video) else 0.0  # of a film in memory, cuts count from its first frame
    changes = []
    for cut in found.cuts:
        # A dissolve's middle may lie between two frames; a shot begins with one.
        time = cut.time if cut.kind == "hard" else math.floor(cut.time * found.fps + 1e-6) / found.fps
        changes.append(
            (shift + cut.time - cut.duration / 2, shift + time, shift + cut.time + cut.duration / 2)
        )  # fmt: skip
    return changes


def _seconds(shot: CaptionedShot) -> float:
    """A shot's length for a script: as many digits as tell every frame apart."""
    return max(1e-4, round(shot.end - shot.start, 4))


# --------------------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class _Looks:
    """What the pictures of a shot tell without a model: its one colour, if it has but one, and the camera's move."""

    plain: str | None
    move: str | None


def _look(video: Video | str | Path, shots: Sequence[_Span]) -> Iterator[_Looks]:
    """Looks at every shot, in one pass."""
    from shots.camera import camera_motion, looks

    pairs = [looks(*shot.clear) for shot in shots]
    pictures = _pictures(video, [time for shot in pairs for pair in shot for time in pair])
    for shot in pairs:
        shown = [(next(pictures), next(pictures)) for _ in shot]
        plain = _plain_colour([picture for pair in shown for picture in pair])
        if plain is not None or not shown or min(shown[0][0].shape[:2]) < 16:
            yield _Looks(plain, None)
        else:
            yield _Looks(None, camera_motion(shown, shot[0][1] - shot[0][0]).move)


def _pictures(video: Video | str | Path, times: Sequence[float]) -> Iterator[Frames]:
    """What is shown at ascending times."""
    if isinstance(video, Video):
        places = np.searchsorted(video.times, np.asarray(times) + 1e-6, side="right") - 1
        yield from (video.frames[max(0, place)] for place in places)
    else:
        yield from (picture for _, picture in frames_at(video, times, least=(_SIDE, _SIDE)))


def _plain_colour(pictures: Sequence[Frames]) -> str | None:
    """ "black", "white" or "plain" where all pictures are that and nothing else, else None."""
    if not pictures or any(float(picture.std(axis=(0, 1)).max()) >= _PLAIN for picture in pictures):
        return None
    means = [float(picture.mean()) for picture in pictures]
    if max(means) < _DARK:
        return "black"
    return "white" if min(means) > _BRIGHT else "plain"


# ------------------------------------------------------------------------------------------------------ description


@dataclass
class _Told:
    """A description of a shot on its way: its sentences, and what was found of each."""

    sentences: list[str]
    found: dict[str, tuple[Window, float]] = field(default_factory=dict)
    elsewhere: bool = False


class _Describing:
    """One video being described."""

    def __init__(
        self, video: Video | str | Path, captioner: Captioner, grounder: Grounder | None, progress: Progress
    ) -> None:
        self.video, self.captioner, self.grounder, self.progress = video, captioner, grounder, progress
        self.shown = _encoded(captioner, video)
        self.ends: Window = (0.0, 0.0)  # of the film
        self.searched = self.shown if grounder is captioner or grounder is None else _encoded(grounder, video)

    def describe(self, spans: Sequence[_Span]) -> list[CaptionedShot]:
        self.ends = (spans[0].start, spans[-1].end)
        shots: list[CaptionedShot] = []
        for number, (span, look) in enumerate(zip(spans, _look(self.video, spans), strict=True), start=1):
            shots.append(self._described(number, span, look))
            self.progress(number, len(spans), "shots described")
        doubtful = [shot for shot in shots if shot.check == "unchecked"]
        if self.grounder is None or not doubtful:
            return shots
        checked = {shot.number: shot for shot in self._checked(doubtful, "shots checked")}
        again = [
            replace(shot, caption=text, tries=2)
            for shot in checked.values()
            if shot.check != "found" and (text := self._said(_middle(spans[shot.number - 1].clear))) is not None
            and text != shot.caption
        ]  # fmt: skip
        better = [shot for shot in self._checked(again, "shots described anew") if shot.check == "found"]
        checked |= {shot.number: shot for shot in better}
        return [checked.get(shot.number, shot) for shot in shots]

    def _described(self, number: int, span: _Span, look: _Looks) -> CaptionedShot:
        """A shot with its first description."""
        shot = CaptionedShot(number, span.start, span.end, UNDESCRIBED)
        if look.plain is not None:
            colour = "one plain colour" if look.plain == "plain" else look.plain
            return replace(shot, caption=f"The screen is {colour}.", check="plain", tries=0)
        text = self._said(span.clear)
        if text is None:
            return replace(shot, check="undescribed", camera=_camera(look.move, None))
        check = "brief" if span.end - span.start < BRIEF else "unchecked"
        return replace(shot, caption=text, check=check, camera=_camera(look.move, self._size(span.clear)))

    def _said(self, window: Window) -> str | None:
        """What the captioner says of a window, on one line; None where it says nothing."""
        text = " ".join(self.captioner.caption(self.shown, window=window).split())
        text = _unrepeated(text)[:MAX_TEXT].strip()
        return text if re.search(r"\w", text) else None

    def _size(self, window: Window) -> str | None:
        """The size of a shot, where the captioner answers questions about a window with probabilities and is sure.

        It is asked with the sizes in either order: a model that goes by the place of an option contradicts itself.
        """
        ask = getattr(self.captioner, "ask", None)
        if ask is None:
            return None
        told: list[str] = []
        for options in (SIZES, SIZES[::-1]):
            answer = ask(self.shown, "How is this shot framed?", options, window=window, grounded=False)
            scores = getattr(answer, "scores", None) or (0.0,)
            if len(scores) != len(options) or max(scores) < SURE:
                return None
            told.append(options[int(np.argmax(scores))])
        return told[0] if told[0] == told[1] else None

    # Checks.

    def _checked(self, shots: Sequence[CaptionedShot], what: str) -> list[CaptionedShot]:
        """The shots with what was found of their captions."""
        checked: list[CaptionedShot] = []
        for near, window in self._stretches(shots):
            told = [_Told(_SENTENCE.split(shot.caption)) for shot in near]
            asked = list(dict.fromkeys(sentence for each in told for sentence in each.sentences))
            groundings: dict[str, Grounding] = {}
            for first in range(0, len(asked), TOGETHER):
                groundings |= self._grounded(asked[first : first + TOGETHER], window)
            checked += [_judged(shot, each, groundings) for shot, each in zip(near, told, strict=True)]
            self.progress(len(checked), len(shots), what)
        return checked

    def _stretches(self, shots: Sequence[CaptionedShot]) -> Iterator[tuple[list[CaptionedShot], Window | None]]:
        """The shots that are checked together, and the seconds they are looked for in, None for the whole film."""
        first, last = self.ends
        if last - first <= AROUND or self.grounder is None or not takes(self.grounder.ground, "window"):
            yield list(shots), None
            return
        groups: list[list[CaptionedShot]] = []
        for shot in shots:
            if groups and shot.end - groups[-1][0].start <= AROUND / 2:
                groups[-1].append(shot)
            else:
                groups.append([shot])
        for near in groups:
            start, end = near[0].start, near[-1].end
            more = max(0.0, AROUND - (end - start)) / 2
            yield near, (max(first, start - more), min(last, end + more))

    def _grounded(self, sentences: Sequence[str], window: Window | None) -> dict[str, Grounding]:
        """What the grounder finds of each sentence."""
        if self.grounder is None:
            return {}
        ground: Callable[..., Sequence[Grounding]] = self.grounder.ground
        within = {} if window is None else {"window": window}
        queries = [sentence[:ASKED] for sentence in sentences]
        answers = ground(self.searched, queries, top_k=MOMENTS, **within)
        if len(answers) != len(sentences):
            raise ShotsError(f"grounder: {len(answers)} groundings for {len(sentences)} queries; one each is needed")
        return dict(zip(sentences, answers, strict=True))


def _encoded(model: Any, video: Video | str | Path) -> Any:
    """The video as a model wants to be asked about it many times, where it has a way (`encode`)."""
    encode = getattr(model, "encode", None)
    return encode(video) if callable(encode) else video


def _middle(window: Window) -> Window:
    """The middle three fifths of a window."""
    fifth = (window[1] - window[0]) / 5
    return window[0] + fifth, window[1] - fifth


def _judged(shot: CaptionedShot, told: _Told, groundings: dict[str, Grounding]) -> CaptionedShot:
    """A shot with its check, its moment, and its caption without the sentences that were not found in it."""
    for sentence in told.sentences:
        moments = groundings[sentence].moments
        here = [m for m in moments if _within(m.start, m.end, shot)]
        if here:
            best = max(here, key=lambda m: m.score)
            told.found[sentence] = (max(best.start, shot.start), min(best.end, shot.end)), float(best.score)
        told.elsewhere = told.elsewhere or bool(moments)
    if not told.found:
        return replace(shot, check="elsewhere" if told.elsewhere else "not_found")
    kept = [sentence for sentence in told.sentences if sentence in told.found]
    windows = [told.found[sentence][0] for sentence in kept]
    return replace(
        shot,
        caption=" ".join(kept),
        check="found",
        moment=(min(start for start, _ in windows), max(end for _, end in windows)),
        score=min(told.found[sentence][1] for sentence in kept),
        dropped=tuple(sentence for sentence in told.sentences if sentence not in told.found),
    )


def _within(start: float, end: float, shot: CaptionedShot) -> bool:
    """Whether a moment lies in a shot for the larger part of the shorter of the two."""
    shared = min(end, shot.end) - max(start, shot.start)
    return shared > 0.5 * min(end - start, shot.end - shot.start)


def _unrepeated(text: str) -> str:
    """The text up to where it goes round in circles, as small models do: a clause that follows itself stands once."""
    parts = re.split(r"(?<=[,;.!?])\s+", text)
    kept: list[str] = []
    for part in parts:
        same = kept and part.strip(" ,;.!?").casefold() == kept[-1].strip(" ,;.!?").casefold()
        if not same:
            kept.append(part)
    joined = " ".join(kept).rstrip(" ,;")
    return joined if not joined or joined[-1] in ".!?" else joined + "."


def _camera(move: str | None, size: str | None) -> str | None:
    """The camera in words: "medium shot, pan left"."""
    from shots.stage.words import CAMERA_TAGS

    parts = [size, CAMERA_TAGS[move].train[0] if move is not None else None]
    return ", ".join(part for part in parts if part) or None


# ------------------------------------------------------------------------------------------------- the whole film


def _film_caption(captions: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """(names of those that recur, a caption of the film that names them); None where there is nobody to name.

    Of one shot it names nobody: its caption says all.
    """
    if len(captions) < 2:
        return (), None
    actors, where = _stage_cast(captions)
    if actors is None:
        actors, where = _named(captions), ""
    if not actors and not where:
        return (), None
    who = f" with {_listed([_with_article(actor) for actor in actors])}" if actors else ""
    return tuple(actors), f"A film{who}{where}."


def _stage_cast(captions: Sequence[str]) -> tuple[list[str] | None, str]:
    """(actors that recur, the set that all shots share) of captions in the stage's words; (None, "") of others."""
    from shots.stage import words
    from shots.stage.parse import read

    readings = [read(caption) for caption in captions]
    clear = [reading for reading in readings if not reading.unknown]
    if 2 * len(clear) < len(readings):
        return None, ""
    seen = Counter(
        name
        for reading in readings
        for name in {f"{a.colour} {a.shape}" for a in reading.facts.actors if a.colour and a.shape}
    )
    actors = [name for name, count in seen.most_common() if count > 1]
    where = ""
    tables: tuple[tuple[str, Any, str], ...] = (
        ("floor", words.FLOOR_WORDS, " on "), ("sky", words.SKY_WORDS, " "), ("style", words.STYLE_WORDS, ", "),
    )  # fmt: skip
    for fact, table, before in tables:
        values = {getattr(reading.facts, fact) for reading in readings} - {None}
        if len(values) == 1:
            where += f"{before}{table[values.pop()].train[0]}"
    return actors, where


def _named(captions: Sequence[str]) -> list[str]:
    """Names that several captions begin alike after an article: "red car" of "a red car drives", "the red car is"."""
    phrases: Counter[tuple[str, ...]] = Counter()
    for caption in captions:
        found: set[tuple[str, ...]] = set()
        for following in _ARTICLE.findall(caption):
            name: list[str] = []
            for word in following.lower().split():
                if word in _AFTER or word.endswith("ing"):
                    break
                name.append(word)
                found.add(tuple(name))
        phrases.update(found)
    several = {phrase: count for phrase, count in phrases.items() if count > 1}
    longer: Counter[tuple[str, ...]] = Counter()
    for phrase, count in several.items():
        longer[phrase[:-1]] += count
    names: dict[tuple[str, ...], None] = {}
    for phrase in sorted(several, key=len):
        # "man" of "man walks" and "man sits" is a name; "red" of "red cube" and "red car" is none.
        if longer[phrase] < several[phrase] and not any(phrase[:n] in names for n in range(1, len(phrase))):
            names[phrase] = None
    told = [name for name in names if name[-1] not in _NOBODY]
    return [" ".join(name) for name in sorted(told, key=lambda name: -several[name])][:NAMED]


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
