"""Video files: what is written is standard and whole or absent; what is read keeps its times, way up and colours."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import decord
import imageio_ffmpeg
import numpy as np
import pytest

from shots import ShotsError, Video, VideoWriter, probe, read_record, read_video
from shots import video as video_module
from shots.video import check_target, frames_at, sidecar


def film(count: int = 12, height: int = 32, width: int = 48) -> np.ndarray:
    """(count, H, W, 3): grey that brightens by 16 a frame, so that a frame's number can be read off it."""
    levels = np.arange(count, dtype=np.uint8) * 16 + 20
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames of `film` these are."""
    return [round((float(level) - 20) / 16) for level in frames.mean(axis=(1, 2, 3))]


def write_uneven(path: Path, stamps: list[int], start: int = 0, **options: int) -> None:
    """`film` with each frame shown at its own millisecond."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.time_base = Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for stamp, rgb in zip(stamps, film(len(stamps)), strict=True):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write(path: Path, frames: np.ndarray, fps: float = 12, record: dict[str, object] | None = None) -> None:
    with VideoWriter(path, fps=fps, height=frames.shape[1], width=frames.shape[2], record=record) as writer:
        writer.write(frames)


def parts(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".part")]


def ffmpeg_says(path: Path) -> str:
    """What the ffmpeg program prints about a file."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


# ---------------------------------------------------------------------------------------------------------- writing


def test_written_films_are_standard_and_the_record_is_read_by_another_program(tmp_path: Path) -> None:
    record = {"prompt": 'a "red" cube; \\ = # \n 立方体', "seed": 7, "generated": True}
    write(tmp_path / "f.mp4", film(), record=record)
    said = ffmpeg_says(tmp_path / "f.mp4")
    assert "h264" in said
    assert re.search(r"yuv420p\(tv, bt709", said)
    assert "12 fps" in said
    found = re.search(r"comment\s*: (\{.*\})", said)
    assert found is not None
    assert json.loads(found[1]) == record == read_record(tmp_path / "f.mp4")
    assert json.loads(sidecar(tmp_path / "f.mp4").read_text()) == record


def test_the_index_stands_in_front(tmp_path: Path) -> None:
    write(tmp_path / "f.mp4", film())
    raw = (tmp_path / "f.mp4").read_bytes()
    assert raw.index(b"moov") < raw.index(b"mdat")


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("fps", [12, 24000 / 1001, 7.5])
def test_frames_come_back_at_their_times(tmp_path: Path, suffix: str, fps: float) -> None:
    path = tmp_path / f"f{suffix}"
    write(path, film(), fps=fps)
    back = read_video(path)
    assert numbers(back.frames) == list(range(12))
    assert back.times == pytest.approx(np.arange(12) / fps, abs=1e-3)
    assert back.fps == pytest.approx(fps, rel=1e-2)
    assert np.abs(back.frames.astype(int) - film()).max() <= 3


def test_colours_survive_here_and_in_another_program(tmp_path: Path) -> None:
    colours = [(220, 30, 30), (30, 200, 40), (40, 50, 210), (230, 220, 40), (128, 128, 128)]
    frames = np.stack([np.full((32, 48, 3), colour, np.uint8) for colour in colours])
    write(tmp_path / "c.mp4", frames)
    ours = read_video(tmp_path / "c.mp4").frames
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(tmp_path / "c.mp4"), "-vf",
               "scale=in_color_matrix=auto:flags=accurate_rnd", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]  # fmt: skip
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    theirs = np.frombuffer(raw, np.uint8).reshape(frames.shape)
    for back in (ours, theirs):
        assert np.abs(back.astype(int) - frames).max() <= 6


def test_odd_sides_are_made_even_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "o.mp4", film(3, 31, 47))
    assert "31 x 47 has odd sides" in caplog.text.replace("47 x 31", "31 x 47")
    info = probe(tmp_path / "o.mp4")
    assert (info.height, info.width) == (32, 48)


def test_opting_out_leaves_no_record_and_removes_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "f.mp4"
    clip = Video(film(), 12.0, np.arange(12) / 12, record={"seed": 1})
    clip.save(path)
    assert read_record(path) == {"seed": 1}
    clip.save(path, record=False)
    assert read_record(path) is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.mp4"]


def test_uneven_times_are_saved_as_they_were_shown(tmp_path: Path) -> None:
    times = np.array([0.0, 0.1, 0.2, 0.7, 0.8])
    Video(film(5), 10.0, times).save(tmp_path / "u.mp4")
    assert numbers(read_video(tmp_path / "u.mp4").frames) == [0, 1, 2, 2, 2, 2, 2, 3, 4]


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write(tmp_path / name, film(), record={"seed": 1})
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_an_error_while_writing_leaves_the_old_film_untouched(tmp_path: Path) -> None:
    path = tmp_path / "f.mp4"
    write(path, film(), record={"take": 1})
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, fps=12, height=32, width=48) as writer:
        writer.write(film())
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert read_record(path) == {"take": 1}
    assert parts(tmp_path) == []


def test_a_killed_writer_leaves_no_film_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "f.mp4"
    code = (
        "import sys, time, numpy as np; from shots import VideoWriter\n"
        "writer = VideoWriter(sys.argv[1], fps=12, height=32, width=48).__enter__()\n"
        "writer.write(np.zeros((5, 32, 48, 3), np.uint8)); print('writing', flush=True); time.sleep(60)"
    )
    victim = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "writing\n"
    write(path, film())  # a second writer leaves the living one's file alone
    assert len(parts(tmp_path)) == 1
    path.unlink()
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not path.exists()
    assert len(parts(tmp_path)) == 1
    write(path, film())
    assert parts(tmp_path) == []
    assert len(read_video(path).frames) == 12


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ShotsError, match=r"f\.mp4 could not be written \(No space left on device\)"):
        write(tmp_path / "f.mp4", film(), record={"seed": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_while_frames_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = av.open

    def always_full(name: str, mode: str, **options: object) -> object:
        return real("/dev/full", mode, **options)

    monkeypatch.setattr(video_module.av, "open", always_full)
    noise = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8)
    with pytest.raises(ShotsError, match="could not be written"):
        write(tmp_path / "f.mp4", noise)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_named_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    for target, says in (
        (tmp_path / "no" / "f.mp4", "does not exist"),
        (tmp_path / "folder.mp4", "is a folder"),
        (tmp_path / "f.gif", "should end in one of"),
        (Path("/proc/f.mp4"), "nothing can be written in /proc"),
    ):
        with pytest.raises(ShotsError, match=says):
            check_target(target)
        with pytest.raises(ShotsError, match=says):
            write(target, film())


def test_frames_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ShotsError, match=r"frames: \(16, 16\) pixels"),
        VideoWriter(tmp_path / "f.mp4", fps=12, height=32, width=48) as writer,
    ):
        writer.write(np.zeros((1, 16, 16, 3), np.uint8))
    with (
        pytest.raises(ShotsError, match="no frame was written"),
        VideoWriter(tmp_path / "f.mp4", fps=12, height=8, width=8),
    ):
        pass
    with pytest.raises(ShotsError, match="fps: 0"):
        VideoWriter(tmp_path / "f.mp4", fps=0, height=8, width=8)
    with pytest.raises(ShotsError, match="one time per frame"):
        Video(film(), 12.0, np.zeros(3))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- reading


def test_uneven_presentation_times_are_honoured(tmp_path: Path) -> None:
    stamps = [0, 40, 80, 480, 520, 900]
    write_uneven(tmp_path / "v.mp4", stamps)
    back = read_video(tmp_path / "v.mp4")
    assert back.times == pytest.approx(np.array(stamps) / 1000)
    sampled = read_video(tmp_path / "v.mp4", fps=10, end=0.9)
    assert numbers(sampled.frames) == [0, 2, 2, 2, 2, 3, 4, 4, 4]
    assert sampled.fps == 10


def test_ranges_take_frames_by_their_times(tmp_path: Path) -> None:
    write(tmp_path / "f.mp4", film())
    assert numbers(read_video(tmp_path / "f.mp4", start=0.25, end=0.5).frames) == [3, 4, 5]
    assert numbers(read_video(tmp_path / "f.mp4", start=0.75).frames) == [9, 10, 11]
    assert numbers(read_video(tmp_path / "f.mp4", start=0.25, fps=6).frames) == [3, 5, 7, 9, 11]
    spread = read_video(tmp_path / "f.mp4", max_frames=3)
    assert numbers(spread.frames) == [2, 6, 10]
    assert spread.times == pytest.approx([2 / 12, 6 / 12, 10 / 12])
    assert spread.fps == pytest.approx(3)
    assert len(read_video(tmp_path / "f.mp4", max_frames=50).frames) == 12
    assert read_video(tmp_path / "f.mp4", size=(16, 16)).frames.shape == (12, 16, 16, 3)


def test_bad_ranges_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "f.mp4", film())
    for options, says in (
        ({"start": -1}, "start: -1"),
        ({"start": 2, "end": 1}, "end: 1"),
        ({"start": 100}, "shows nothing between"),
        ({"fps": 0}, "fps: 0"),
        ({"fps": float("nan")}, "fps: nan"),
        ({"max_frames": 0}, "max_frames: 0"),
        ({"size": (0, 4)}, "size:"),
    ):
        with pytest.raises(ShotsError, match=says):
            read_video(tmp_path / "f.mp4", **options)  # type: ignore[arg-type]


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    for name, says in (
        ("text.mp4", "is not a video"),
        ("empty.mp4", "is not a video"),
        ("gone.mp4", "does not exist"),
        ("sound.wav", "no pictures"),
        ("", "is a folder"),
    ):
        with pytest.raises(ShotsError, match=says):
            read_video(tmp_path / name)


def test_a_file_cut_short_gives_what_is_left_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), np.uint8)
    write(tmp_path / "w.mp4", noise)
    whole = (tmp_path / "w.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    back = read_video(tmp_path / "cut.mp4")
    assert 0 < len(back.frames) < 24


def test_transparent_video_lies_over_white(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("png", rate=5)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "rgba"
        rgba = np.zeros((16, 16, 4), np.uint8)
        rgba[8:] = (200, 0, 0, 255)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")))
        container.mux(stream.encode())
    assert probe(tmp_path / "a.mov").alpha
    back = read_video(tmp_path / "a.mov").frames
    assert (back[:, :8] == 255).all()
    assert (back[:, 8:] == (200, 0, 0)).all()


def test_seeking_finds_the_same_frames_as_decoding_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.mp4"
    with VideoWriter(path, fps=25, height=32, width=64) as writer:
        for _ in range(100):
            writer.write(film(width=64))
    sought = read_video(path, start=3.0, max_frames=7)
    monkeypatch.setattr(video_module, "_sought", None)
    monkeypatch.setattr(video_module, "_SEEK_FROM", 10**9)
    walked = read_video(path, start=3.0, max_frames=7)
    assert sought.times == pytest.approx(walked.times, abs=1e-4)
    assert np.array_equal(sought.frames, walked.frames)


def test_rotated_clips_stand_upright(data: Path) -> None:
    """Four files stored alike with four rotations in their headers; decord, which turns them too, is the witness."""
    flat = probe(data / "video" / "decord__video_0.mov")
    for name, rotation in (("90", 270), ("180", 180), ("270", 90)):
        path = data / "video" / f"decord__video_{name}.mov"
        info, clip = probe(path), read_video(path)
        assert info.rotation == rotation
        turned = rotation % 180 == 90
        assert (info.height, info.width) == ((flat.width, flat.height) if turned else (flat.height, flat.width))
        assert clip.frames.shape[1:3] == (info.height, info.width)
        assert np.abs(decord.VideoReader(str(path))[0].asnumpy().astype(int) - clip.frames[0]).mean() < 1


def test_a_delayed_start_is_on_the_files_own_clock(data: Path) -> None:
    info = probe(data / "video" / "PySceneDetect__delayed_start.mp4")
    assert (info.start, info.duration, info.frames) == (0.0, pytest.approx(0.96), 24)


def test_burned_in_frame_numbers_stand_at_their_times(data: Path) -> None:
    """The counter clip changes colour at frames 10 and 20 of 30, at 10 frames a second."""
    path = data / "video" / "PySceneDetect__counter.mp4"
    clip = read_video(path, size=(54, 96))
    hue = clip.frames[:, :8, :8].mean(axis=(1, 2))
    changes = [k for k in range(1, 30) if np.abs(hue[k] - hue[k - 1]).max() > 30]
    assert changes == [10, 20]
    assert clip.times[10] == pytest.approx(1.0)
    picked = read_video(path, start=0.95, end=1.05, size=(54, 96))
    assert picked.times == pytest.approx([1.0])


def test_every_real_clip_is_read(data: Path) -> None:
    for path in sorted((data / "video").iterdir()):
        info = probe(path)
        clip = read_video(path, max_frames=3, size=(32, 32), end=min(info.duration, 2.0))
        assert clip.frames.shape == (3, 32, 32, 3), path.name
        assert (np.diff(clip.times) > 0).all(), path.name
        assert info.frames >= 3
        assert 0 < info.fps < 61


def test_probing_and_reading_agree_on_length(data: Path) -> None:
    for name in ("torchcodec__h265_video.mp4", "sample-videos__bird.mkv", "Qwen3-VL__v_TpB_zMG3XBA.mp4"):
        path = data / "video" / name
        info = probe(path)
        clip = read_video(path, size=(8, 8))
        assert len(clip.frames) == info.frames
        assert clip.times[-1] + 1 / info.fps == pytest.approx(info.duration, abs=0.05)


def test_a_film_can_be_written_chunk_by_chunk(tmp_path: Path) -> None:
    write(tmp_path / "whole.mp4", film())
    with VideoWriter(tmp_path / "parts.mp4", fps=12, height=32, width=48) as writer:
        for start in range(0, 12, 5):
            writer.write(film()[start : start + 5])
    assert (tmp_path / "whole.mp4").read_bytes() == (tmp_path / "parts.mp4").read_bytes()


# ----------------------------------------------------------------------------------------- what is shown at many places


def moving(count: int) -> np.ndarray:
    """(count, 48, 64, 3): a pattern that drifts and changes slowly, so that pictures are predicted from each other."""
    rows, columns = np.mgrid[:48, :64] / 8
    frames = [np.stack([np.sin(rows + k / 5), np.cos(columns - k / 3), np.sin(rows * columns / 9 + k)], -1)
              for k in range(count)]  # fmt: skip
    return ((np.stack(frames) + 1) * 120).astype(np.uint8)


KINDS = {
    "b-frames.mp4": ("libx264", "bframes=3:keyint=24:min-keyint=24"),
    "open-gop.mkv": ("libx264", "bframes=5:keyint=24:open-gop=1"),
    "one-key-frame.mp4": ("libx264", "bframes=3:keyint=1000"),
    "stream.ts": ("libx264", "bframes=3:keyint=24"),
    "no-key-frames.mkv": ("libx264", "keyint=24:intra-refresh=1"),
    "order-only.avi": ("libx264", "bframes=3:keyint=24"),
    "hevc.mp4": ("libx265", "bframes=4:keyint=24:log-level=none"),
    "mpeg2.mpg": ("mpeg2video", ""),
    "mpeg4.mp4": ("mpeg4", ""),
    "vp9.webm": ("libvpx-vp9", ""),
    "av1.mkv": ("libsvtav1", ""),
}


@pytest.mark.parametrize("name", KINDS)
def test_frames_at_gives_what_decoding_everything_would(tmp_path: Path, name: str) -> None:
    """To the pixel, for dense, sparse, repeated, late and early places, in all kinds of streams."""
    codec, parameters = KINDS[name]
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV cannot write {codec}")
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        options = {codec.replace("lib", "") + "-params": parameters} if parameters else {"g": "24"}
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if codec in ("mpeg2video", "mpeg4"):
            stream.codec_context.max_b_frames = 2
        for rgb in moving(100):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    whole = read_video(path)
    first = 0.04 if name.endswith(".avi") else 0.0  # such a file has no place for the time before the first B-frame
    assert whole.times == pytest.approx(first + np.arange(100) / 25, abs=2e-3)
    draw = np.random.default_rng(0)

    def drawn(first: int, count: int) -> np.ndarray:
        return np.sort(draw.integers(first, 99, count)) / 25 + draw.uniform(0.1, 0.9) / 25

    for places in (drawn(0, 300), drawn(0, 5), drawn(60, 3), drawn(30, 2), whole.times, [3.97], [0.0], [-1.0, 9.0],
                   [0.5, 0.5, 3.5, 9.0], np.arange(0.02, 4, 0.6)):  # fmt: skip
        shown = np.maximum(np.searchsorted(whole.times, np.asarray(places) + 1e-3, side="right") - 1, 0)
        times, images = zip(*frames_at(path, places), strict=True)
        assert np.array_equal(times, whole.times[shown])
        assert np.array_equal(np.stack(images), whole.frames[shown])


def test_what_no_wanted_picture_needs_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.mp4"
    write(path, np.tile(film(), (40, 1, 1, 1)), fps=12)  # 480 frames, a key frame every 24
    decoded = []
    real = video_module._Decoder.decode

    def counted(self: object, packet: av.Packet | None) -> object:
        decoded.append(packet)
        return real(self, packet)

    monkeypatch.setattr(video_module._Decoder, "decode", counted)
    places = [5.05, 20.1, 20.1, 38.05]
    assert numbers(np.stack([img for _, img in frames_at(path, places)])) == [
        int(place * 12 + 1e-6) % 12 for place in places
    ]
    assert len(decoded) < 3 * 24


def test_pictures_far_larger_than_needed_come_shrunk_and_never_below(tmp_path: Path) -> None:
    write(tmp_path / "f.mp4", film(3, 240, 480))
    for least, shape in (((20, 40), (40, 80)), ((20, 100), (100, 200)), ((100, 100), (240, 480)), (None, (240, 480))):
        for place, (_, img) in enumerate(frames_at(tmp_path / "f.mp4", [0.0, 0.1, 0.2], least=least)):
            assert img.shape == (*shape, 3)
            assert numbers(img[None]) == [place]
    with pytest.raises(ShotsError, match="least"):
        frames_at(tmp_path / "f.mp4", [0.0], least=(0, 4))
    for places in ([1.0, 0.5], [float("nan")], [[0.0]]):
        with pytest.raises(ShotsError, match="times"):
            frames_at(tmp_path / "f.mp4", places)  # type: ignore[arg-type]


def test_a_song_with_a_cover_is_no_film(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 48, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        wave.sample_rate = 8000
        container.mux(sound.encode(wave))
        container.mux(cover.encode(av.VideoFrame.from_ndarray(film(1)[0], format="rgb24")))
        container.mux(cover.encode())
        container.mux(sound.encode())
    with pytest.raises(ShotsError, match="no pictures"):
        probe(path)


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_the_length_is_that_of_the_pictures_that_are_there(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"f{suffix}"
    with av.open(str(path), "w", options={"movflags": "faststart"} if suffix == ".mp4" else {}) as container:
        stream = container.add_stream("libx264", rate=25, options={"x264-params": "keyint=24:bframes=3"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for rgb in moving(100):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    assert probe(path).duration == pytest.approx(4.0, abs=1e-3)
    raw = path.read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(raw[: int(0.6 * len(raw))])
    cut = probe(tmp_path / f"cut{suffix}").duration
    assert 1.5 < cut < 3
    shown = read_video(tmp_path / f"cut{suffix}").times[-1]  # the last few need one that is cut off
    assert cut - 0.4 < shown < cut
