"""For those who publish: a title card, a closing fade and a sound track around a film.

    publish(model.decode(film), "film.mp4", fps=12, height=128, width=128, count=108, record=film.record,
            title="The red cube", soundtrack="song.mp3")

Notable choices:

- The film itself is not touched: the card comes before its first frame, and what fades at the end is its last frame,
  held. So the shots' lengths, cuts and times in the record stay what they are, and `published.offset` in the record
  says how many seconds of the file come first; whatever holds a film against its record (`shots.evaluation`,
  `shots.sheet`) reads the film's own stretch (`read_film`). `seedance ground` and `cuts` tell the file's own times.
- moviepy fades, loops and trims; frames and sound go through the one writer (`shots.video`) in one pass, so nothing is
  encoded twice and a published file is like any other: H.264, BT.709, index in front, record inside and beside it.
- The sound begins with the card, is repeated or cut to the file's length, and fades at both ends. As much of it as the
  file is long is held in memory.
- A title is text and nothing else: markup is shown as it stands, and a letter that no font here has is refused by name,
  as a box in its place would be worse.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shots.errors import ShotsError
from shots.video import Frames, Sound, Video, VideoWriter, probe, read_record, read_video

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

CARD_SECONDS = 2.0
FADE_SECONDS = 0.4  # of the card, at both ends
CLOSING_SECONDS = 0.8  # the last frame goes dark
SOUND_FADE_SECONDS = 1.0
RATE = 44_100  # samples a second
MOST_LETTERS = 200  # of a title
SMALLEST = 8  # pixels of a title's letters
SILENCE = 1e-3  # of full scale: 60 dB below it
# Looked for by name where the system keeps fonts; Pillow's own comes last.
FONTS = (
    "DejaVuSans.ttf", "LiberationSans-Regular.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf", "NotoEmoji-Regular.ttf",
)  # fmt: skip


def check_published(
    title: str | None, soundtrack: str | Path | None, *, height: int, width: int, seconds: float
) -> None:
    """Finds what is wrong with a title or a sound track before a film is made; arguments as in `publish`.

    seconds: of the film. Raises ShotsError that names the argument.
    """
    if title is not None:
        title_card(title, height, width)
    if soundtrack is not None:
        _samples(soundtrack, seconds)


def publish(
    frames: Iterable[Frames],
    path: str | Path,
    *,
    fps: float,
    height: int,
    width: int,
    count: int,
    record: dict[str, Any] | None = None,
    title: str | None = None,
    soundtrack: str | Path | None = None,
    crf: int = 18,
) -> dict[str, Any]:
    """Writes a film with a card before it, a fade after it, and a sound track; what is None is left out.

    Args:
        frames: of the film, uint8 (t, H, W, 3), a few at a time.
        count: how many frames there are in all.
        record: of the film; with it, what was put around it is stored in the file and beside it.
        title: words of the card; with it, the film's end fades.
        soundtrack: any file with sound in it, also a video.
        crf: as for `shots.video.VideoWriter`.

    Returns what was put around the film: `title`, `offset` and `seconds` of the film in the file, `soundtrack` with its
    name and SHA-256. Raises ShotsError for what cannot be used and when the frames are not `count`.
    """
    card = closing = 0
    if title is not None:
        card, closing = (max(1, round(seconds * fps)) for seconds in (CARD_SECONDS, CLOSING_SECONDS))
    around = {
        "title": None if title is None else _said(title), "offset": card / fps, "seconds": count / fps,
        "soundtrack": None if soundtrack is None else {"name": Path(soundtrack).name, "sha256": _sha256(soundtrack)},
    }  # fmt: skip
    sound = None if soundtrack is None else _sound(soundtrack, (card + count + closing) / fps)
    told = None if record is None else {**record, "published": around}
    done, last = 0, None
    with VideoWriter(path, fps=fps, height=height, width=width, record=told, crf=crf, sound=sound) as writer:
        if title is not None:
            for frame in _fading(title_card(title, height, width), card, fps, FADE_SECONDS, FADE_SECONDS):
                writer.write(frame[None])
        for chunk in frames:
            writer.write(chunk)
            done, last = done + len(chunk), chunk[-1]
        if done != count or last is None:
            raise ShotsError(f"count: {count}, but the film has {done} frames; say how many there are")
        if closing:
            for frame in _fading(last, closing + 1, fps, 0.0, (closing + 1) / fps, skip=1):
                writer.write(frame[None])
    return around


def film_span(record: dict[str, Any] | None) -> tuple[float, float] | None:
    """Where in its file a published film begins and ends, seconds; None for a file that holds the film alone."""
    around = (record or {}).get("published")
    if not isinstance(around, dict) or around.get("title") is None:
        return None
    begin, seconds = around.get("offset"), around.get("seconds")
    if not isinstance(begin, (int, float)) or not isinstance(seconds, (int, float)):
        return None
    return float(begin), float(begin) + float(seconds)


def read_film(path: str | Path) -> Video:
    """The film in a file, without the card and the fade that were put around it; its times begin at 0."""
    record = read_record(path)
    span = film_span(record)
    if span is None:
        return read_video(path)
    half = 0.5 / probe(path).fps  # containers round times
    video = read_video(path, start=span[0] - half, end=span[1] - half)
    return replace(video, times=video.times - video.times[0], record=record)


# ------------------------------------------------------------------------------------------------------------ title


def _said(title: str) -> str:
    """A title on one line, or a ShotsError."""
    if not isinstance(title, str):
        raise ShotsError(f"title: {title!r} is not text")
    line = " ".join("".join(c if c.isprintable() else " " for c in title).split())
    if not line:
        raise ShotsError("title: empty; say what the film is called, or leave it out")
    if len(line) > MOST_LETTERS:
        raise ShotsError(f"title: {len(line)} letters, at most {MOST_LETTERS} are taken; shorten it")
    return line


def title_card(title: str, height: int, width: int) -> Frames:
    """A title in white on black, uint8 (H, W, 3): as large as fits, its lines broken between words where that can be.

    Raises ShotsError for an empty title, one that does not fit, and one with letters that no font here has.
    """
    from PIL import Image, ImageDraw

    line = _said(title)
    most = max(SMALLEST, height // 6)
    lettering = _font(line, most)
    image = Image.new("RGB", (width, height), "black")
    draw = ImageDraw.Draw(image)
    room = (0.88 * width, 0.8 * height)
    sizes = sorted({*range(SMALLEST, most, max(1, most // 16)), most}, reverse=True)
    for size, anywhere in [*((size, False) for size in sizes), *((size, True) for size in sizes)]:
        font = lettering.font_variant(size=size) if hasattr(lettering, "font_variant") else lettering
        lines = _broken(line, font, room[0], anywhere)
        box = draw.multiline_textbbox((0, 0), "\n".join(lines), font=font, align="center", spacing=size // 3)
        if box[2] - box[0] <= room[0] and box[3] - box[1] <= room[1]:
            place = ((width - box[0] - box[2]) / 2, (height - box[1] - box[3]) / 2)
            draw.multiline_text(place, "\n".join(lines), "white", font, align="center", spacing=size // 3)
            return np.asarray(image)
    raise ShotsError(f"title: {len(line)} letters do not fit a picture of {width} x {height}; shorten it")


def _font(text: str, size: int) -> FreeTypeFont | ImageFont:
    """A font that has every letter of the text."""
    from PIL import ImageFont

    fewest: set[str] | None = None
    for name in (*FONTS, None):
        try:
            font = ImageFont.load_default(size) if name is None else ImageFont.truetype(name, size)
        except OSError:  # not on this machine
            continue
        missing = _missing(text, font)
        if not missing:
            return font
        fewest = missing if fewest is None or len(missing) < len(fewest) else fewest
    letters = " ".join(sorted(fewest or set(text)))
    raise ShotsError(f"title: no font here has {letters}; leave it out, or install a font such as Noto")


def _missing(text: str, font: Any) -> set[str]:
    """Letters in whose place the font draws what it draws for none."""
    box = bytes(font.getmask("\U0010ffff"))
    wanted = {letter for letter in text if unicodedata.category(letter) not in ("Zs", "Mn", "Cf")}
    return {letter for letter in wanted if bytes(font.getmask(letter)) == box}


def _broken(text: str, font: Any, width: float, anywhere: bool) -> list[str]:
    """The text in lines no wider than `width` pixels as far as its words allow it; `anywhere` breaks long words too."""
    lines: list[str] = []
    for word in text.split():
        while anywhere and len(word) > 1 and font.getlength(word) > width:
            most = max((n for n in range(1, len(word)) if font.getlength(word[:n]) <= width), default=1)
            lines.append(word[:most])
            word = word[most:]
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _fading(
    picture: Frames, count: int, fps: float, begin: float, end: float, skip: int = 0
) -> Iterator[NDArray[np.uint8]]:
    """A picture held for `count` frames without the first `skip`, out of the dark in `begin` and into it in `end` s."""
    from moviepy import ImageClip, vfx

    seconds = count / fps
    effects = []
    if begin:
        effects.append(vfx.FadeIn(min(begin, seconds / 2)))
    if end:
        effects.append(vfx.FadeOut(min(end, seconds)))
    clip = ImageClip(picture).with_duration(seconds).with_effects(effects)
    for k in range(skip, count):
        yield np.asarray(clip.get_frame((k + 0.5) / fps)).round().astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------ sound


def _samples(path: str | Path, seconds: float) -> NDArray[np.float32]:
    """The first `seconds` of a file's sound, float32 (n, 2) at `RATE`; ShotsError where there is nothing to hear."""
    import av

    path = Path(path)
    if not path.is_file():
        raise ShotsError(f"soundtrack: {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    pieces: list[NDArray[np.float32]] = []
    wanted, got = max(1, round(seconds * RATE)), 0
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.audio:
                what = "is a picture or a film without sound" if container.streams.video else "holds no sound"
                raise ShotsError(f"soundtrack: {path} {what}; give a file that has a sound track")
            resampler = av.AudioResampler(format="flt", layout="stereo", rate=RATE)
            for frame in container.decode(container.streams.audio[0]):
                for part in resampler.resample(frame):
                    pieces.append(part.to_ndarray().reshape(-1, 2).astype(np.float32, copy=False))
                    got += len(pieces[-1])
                if got >= wanted:
                    break
    except (OSError, av.error.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ShotsError(f"soundtrack: {path} cannot be read as sound ({reason})") from error
    samples = np.concatenate(pieces)[:wanted] if pieces else np.zeros((0, 2), np.float32)
    if not len(samples) or float(np.abs(samples).max()) < SILENCE:
        heard = f"in its first {len(samples) / RATE:.1f} s, all that this film hears of it" if len(samples) else ""
        raise ShotsError(f"soundtrack: {path} is silent {heard}".rstrip() + "; give one with something to hear")
    return samples


def _sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sound(path: str | Path, seconds: float) -> Sound:
    """A file's sound, repeated or cut to `seconds`, fading at both ends."""
    from moviepy import afx
    from moviepy.audio.AudioClip import AudioArrayClip

    clip = AudioArrayClip(_samples(path, seconds), fps=RATE)
    if clip.duration < seconds:
        clip = clip.with_effects([afx.AudioLoop(duration=seconds)])
    fade = min(SOUND_FADE_SECONDS, seconds / 4)
    clip = clip.with_duration(seconds).with_effects([afx.AudioFadeIn(fade / 2), afx.AudioFadeOut(fade)])
    return Sound(RATE, clip.iter_chunks(chunksize=RATE, fps=RATE))
