"""Title cards, fades and sound around a film: what is added, and that the film and its record stay what they were."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from shots.cuts import find_cuts
from shots.errors import ShotsError
from shots.evaluation import verify
from shots.publish import RATE, check_published, film_span, publish, read_film, title_card
from shots.script import Script, Shot
from shots.sheet import film_sheet
from shots.video import Frames, VideoWriter, probe, read_record, read_video

SCRIPT = Script((Shot("A red cube jumps.", 1.0), Shot("A blue sphere spins.", 1.5)))
LENGTHS = (12, 18)
CARD, CLOSING = 24, 10  # frames at 12 fps


def scene() -> Frames:
    """30 frames of 96 x 128 in two shots: a patch that moves over a red ground, then over a blue one."""
    frames = np.zeros((30, 96, 128, 3), np.uint8)
    frames[:12], frames[12:] = (190, 60, 50), (40, 70, 200)
    for k, frame in enumerate(frames):
        frame[30:60, 2 * k : 2 * k + 30] = (230, 230, 90) if k < 12 else (90, 230, 120)
    return frames


def record() -> dict[str, Any]:
    return {"script": SCRIPT.to_dict(), "seed": 1, "frames": list(LENGTHS), "fps": 12.0}


def sung(path: Path, seconds: float, rate: int = 22_050, loud: float = 0.5, codec: str = "pcm_s16le") -> Path:
    """A file with a tone that climbs from 200 Hz, one channel."""
    time = np.arange(round(seconds * rate)) / rate
    wave = (loud * np.sin(2 * np.pi * (200 + 40 * time) * time)).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def heard(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1).T


def made(path: Path, **how: Any) -> dict[str, Any]:
    chunks = np.split(scene(), [7, 20])
    return publish(chunks, path, fps=12, height=96, width=128, count=30, record=record(), **how)


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sung(tmp_path_factory.mktemp("sound") / "song.wav", 2.0)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory, song: Path) -> Path:
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    made(path, title="The red cube & <b>the sphere</b>", soundtrack=song)
    return path


def test_the_film_lies_between_card_and_fade_and_is_what_it_is_without_them(film: Path, tmp_path: Path) -> None:
    video = read_video(film)
    assert len(video.frames) == CARD + 30 + CLOSING
    assert np.abs(video.frames[CARD : CARD + 30].astype(int) - scene()).mean() < 4  # what the codec loses
    card = video.frames[:CARD].reshape(CARD, -1).max(axis=1)
    assert card[CARD // 2] > 200 and card[0] < 100 and card[-1] < 100  # out of the dark and back
    tail = video.frames[CARD + 30 :].reshape(CLOSING, -1).mean(axis=1)
    assert (np.diff(tail) < 0).all() and tail[-1] < 0.15 * video.frames[CARD + 29].mean()


def test_the_record_keeps_the_shots_and_says_where_the_film_begins(film: Path) -> None:
    told = read_record(film)
    assert told is not None
    around = told.pop("published")
    assert told == record()
    assert around["offset"] == 2.0 and around["seconds"] == 2.5
    assert around["title"] == "The red cube & <b>the sphere</b>"
    assert around["soundtrack"]["name"] == "song.wav" and len(around["soundtrack"]["sha256"]) == 64
    assert film_span(read_record(film)) == (2.0, 4.5)
    assert json.loads(film.with_name("film.mp4.json").read_text())["published"] == around


def test_times_cuts_verification_and_sheet_of_the_published_film_fit_its_record(film: Path, tmp_path: Path) -> None:
    cuts = [cut.time for cut in find_cuts(film).cuts]
    assert any(abs(time - (2.0 + 1.0)) < 0.05 for time in cuts)  # the file's own clock: offset + 12 frames

    asked: list[float] = []

    class Everywhere:  # finds everything in its place
        def ground(self, video: Any, queries: Sequence[str], top_k: int = 1) -> list[Any]:
            asked.append(video.duration)
            moment = SimpleNamespace(start=0.0, end=video.duration, score=0.9)
            return [SimpleNamespace(query=query, moments=[moment], status="ok") for query in queries]

    report = verify(film, SCRIPT, Everywhere())
    assert [(shot.start, round(shot.end, 6)) for shot in report.shots] == [(0.0, 1.0), (1.0, 2.5)]
    assert report.cuts.expected == (1.0,) and report.cuts.matched == 1 and not report.cuts.extra
    assert not report.defects and max(asked) == pytest.approx(2.5)
    rows = film_sheet(film, tmp_path / "strip.png")
    from PIL import Image

    assert Image.open(rows).height > 2 * 96  # a row a shot


def test_the_file_is_written_as_every_film_is(film: Path) -> None:
    info = probe(film)
    assert info.codec == "h264" and info.has_audio and info.start == 0.0
    assert read_video(film).times[CARD] == pytest.approx(2.0, abs=1e-6)
    with av.open(str(film)) as container:
        picture = container.streams.video[0].codec_context
        assert picture.pix_fmt == "yuv420p" and int(picture.colorspace) == 1 and int(picture.color_range) == 1
        assert container.streams.audio[0].codec_context.name == "aac"
    raw = film.read_bytes()
    assert raw.index(b"moov") < raw.index(b"mdat")
    assert sorted(p.name for p in film.parent.iterdir()) == ["film.mp4", "film.mp4.json"]


def test_sound_is_repeated_to_the_film_s_length_and_fades(film: Path, song: Path) -> None:
    samples, seconds = heard(film), (CARD + 30 + CLOSING) / 12
    assert len(samples) / RATE == pytest.approx(seconds, abs=0.05)
    level = [float(np.abs(part).max()) for part in np.array_split(samples, 16)]
    assert min(level[2:12]) > 0.25  # beyond the song's two seconds too
    assert level[-1] < 0.5 * level[8]
    assert np.allclose(samples[:, 0], samples[:, 1], atol=0.02)  # one channel became two
    second = np.abs(np.fft.rfft(samples[int(2.1 * RATE) : int(2.3 * RATE), 0]))
    assert np.argmax(second) / 0.2 == pytest.approx(200 + 2 * 40 * 0.2, abs=15)  # it began anew


def test_a_longer_track_is_cut_and_a_film_may_have_sound_alone(tmp_path: Path) -> None:
    long = sung(tmp_path / "long.wav", 9.0)
    around = made(tmp_path / "film.mkv", soundtrack=long)
    assert around["offset"] == 0.0 and around["title"] is None
    video = read_video(tmp_path / "film.mkv")
    assert len(video.frames) == 30 and film_span(read_record(tmp_path / "film.mkv")) is None
    assert len(heard(tmp_path / "film.mkv")) / RATE == pytest.approx(2.5, abs=0.05)


def test_the_film_of_a_container_that_rounds_times_is_found_to_the_frame(tmp_path: Path) -> None:
    chunks = [scene()]
    publish(chunks, tmp_path / "f.mkv", fps=7, height=96, width=128, count=30, record=record(), title="Seven")
    found = read_film(tmp_path / "f.mkv")
    assert len(found.frames) == 30 and found.times[0] == 0
    assert np.abs(found.frames.astype(int) - scene()).mean() < 4


def test_a_real_film_s_own_sound_serves_as_track(data: Path, tmp_path: Path) -> None:
    sources = [path for path in sorted((data / "video").iterdir()) if path.suffix in (".webm", ".mp4")]
    with_sound = [path for path in sources if probe(path).has_audio]
    if not with_sound:
        pytest.skip("no clip with sound there")
    made(tmp_path / "film.mp4", soundtrack=with_sound[0])
    assert np.abs(heard(tmp_path / "film.mp4")).max() > 1e-3


@pytest.mark.parametrize(
    "title", ["A", "Ünïcode – naïve “quotes”", "<b>bold</b> & more", "line\none\ttab", "Куб", "x" * 40]
)
def test_a_title_is_drawn_whole_within_the_picture(title: str) -> None:
    card = title_card(title, 128, 192)
    assert card.shape == (128, 192, 3) and card.max() > 200
    edge = np.concatenate([card[:4].ravel(), card[-4:].ravel(), card[:, :4].ravel(), card[:, -4:].ravel()])
    assert edge.max() == 0


def test_markup_is_text(tmp_path: Path) -> None:
    assert not np.array_equal(title_card("<b>bold</b>", 96, 160), title_card("bold", 96, 160))


@pytest.mark.parametrize(
    ("title", "says"),
    [
        ("Lights \U0001f3ac camera \U0001fae0", "no font here has"), ("", "empty"), (" \n\x00 ", "empty"),
        ("word " * 45, "at most 200"), ("w" * 190, "do not fit"),
    ],
)  # fmt: skip
def test_a_title_that_cannot_be_shown_is_named_before_anything_is_made(title: str, says: str) -> None:
    with pytest.raises(ShotsError, match=f"title: .*{says}"):
        check_published(title, None, height=64, width=64, seconds=3.0)


def test_the_letters_that_no_font_has_are_named() -> None:
    with pytest.raises(ShotsError, match="\U0001fae0"):
        title_card("ok \U0001fae0", 96, 96)


def silent(tmp_path: Path) -> Path:
    return sung(tmp_path / "silent.wav", 1.0, loud=0.0)


def picture_only(tmp_path: Path) -> Path:
    with VideoWriter(tmp_path / "mute.mp4", fps=12, height=32, width=32) as writer:
        writer.write(np.zeros((3, 32, 32, 3), np.uint8))
    return tmp_path / "mute.mp4"


def text(tmp_path: Path) -> Path:
    (tmp_path / "song.mp3").write_text("la la la")
    return tmp_path / "song.mp3"


def late(tmp_path: Path) -> Path:
    path = sung(tmp_path / "tone.wav", 1.0)
    raw = path.read_bytes()
    body = raw.index(b"data") + 8
    quiet = sung(tmp_path / "quiet.wav", 6.0, loud=0.0).read_bytes()
    (tmp_path / "late.wav").write_bytes(quiet[: quiet.index(b"data") + 8] + quiet[body:] + raw[body:])
    return tmp_path / "late.wav"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "none.mp3", "does not exist"), (lambda folder: folder, "is a folder"),
        (silent, "silent"), (late, "all that this film hears"), (picture_only, "without sound"),
        (text, "cannot be read as sound"),
    ],
)  # fmt: skip
def test_a_track_that_cannot_be_heard_is_named(make: Any, says: str, tmp_path: Path) -> None:
    track = make(tmp_path)
    with pytest.raises(ShotsError, match=f"soundtrack: .*{says}"):
        check_published(None, track, height=64, width=64, seconds=3.0)


def test_nothing_is_left_where_the_frames_are_not_as_many_as_said(tmp_path: Path) -> None:
    with pytest.raises(ShotsError, match="count"):
        publish([scene()], tmp_path / "f.mp4", fps=12, height=96, width=128, count=31, title="A")
    assert not list(tmp_path.iterdir())


def test_moviepy_is_loaded_only_when_it_is_needed() -> None:
    code = "import sys, shots.publish, shots.evaluation; sys.exit(any(m in sys.modules for m in ('moviepy', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
