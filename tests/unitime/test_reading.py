"""Frames come from where the plan looks, whatever the file, in one pass; what is no video is said clearly."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from shots import ShotsError, Video, VideoWriter
from shots.runtime.vision import torchvision
from shots.video import frames_at
from unitime import reading
from unitime.errors import UniTimeError
from unitime.frames import FramePlan, FrameRule
from unitime.reading import describe, read_units

NANO = FrameRule(
    patch=8, merge=2, budget=1024, min_tokens=16, max_tokens=16, fine_tokens=4, coarse_tokens=1, short_limit=32,
    long_limit=600, segment=8, max_fps=4, pair_gap=0.25,
)  # fmt: skip


def film(count: int = 12, height: int = 32, width: int = 48) -> np.ndarray:
    """(count, H, W, 3): grey that brightens by 16 a frame, so that a frame's number can be read off it."""
    levels = np.arange(count, dtype=np.uint8) * 16 + 20
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def numbers(units: np.ndarray) -> list[int]:
    """Which frames of `film` these are, units (n, 2, H, W, 3)."""
    return [round((float(level) - 20) / 16) for level in units.mean(axis=(2, 3, 4)).ravel()]


def looking(times: list[float], size: tuple[int, int] = (32, 48)) -> FramePlan:
    """A plan that looks at these times, two for each unit."""
    looks = np.array(times).reshape(-1, 2)
    stamps = tuple(round(float(mean), 1) for mean in looks.mean(axis=1))
    return FramePlan("fine", looks, stamps, size, (1, 1), (1, 1), 1, times[0], times[-1])


def whole(source: object, plan: FramePlan, chunk: int = 16) -> np.ndarray:
    return np.concatenate(list(read_units(source, plan, chunk)))  # type: ignore[arg-type]


def write(path: Path | io.BytesIO, stamps: list[int], *, kind: str | None = None, codec: str = "libx264",
          pix_fmt: str = "yuv420p", rotation: int = 0, **options: str) -> None:  # fmt: skip
    """`film` with each frame shown at its own millisecond."""
    with av.open(path if isinstance(path, io.BytesIO) else str(path), "w", format=kind, options=options) as container:
        stream = container.add_stream(codec, rate=1000, options={"crf": "10", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for stamp, rgb in zip(stamps, film(len(stamps)), strict=True):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_frames_are_those_shown_at_the_planned_times(tmp_path: Path) -> None:
    write(tmp_path / "uneven.mp4", [0, 40, 80, 480, 520, 900])
    looks = [0.0, 0.039, 0.04, 0.1, 0.3, 0.479, 0.48, 0.5, 0.7, 0.9, 0.9, 5.0]
    assert numbers(whole(tmp_path / "uneven.mp4", looking(looks))) == [0, 0, 1, 2, 2, 2, 3, 3, 4, 5, 5, 5]


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [("libx264", "yuv420p", ".mkv"), ("libx265", "yuv420p10le", ".mp4"), ("libsvtav1", "yuv420p", ".mkv"),
     ("mpeg4", "yuv420p", ".avi")],
)  # fmt: skip
def test_codecs_and_ten_bits(tmp_path: Path, codec: str, pix_fmt: str, suffix: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV cannot write {codec}")
    path = tmp_path / f"clip{suffix}"
    with av.open(str(path), "w") as container:
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, pix_fmt
        for rgb in film(12, 96, 128):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    info = describe(path)
    assert (info.height, info.width, info.start) == (96, 128, 0)
    assert info.duration == pytest.approx(1.2, abs=0.01)
    assert numbers(whole(path, looking([0.0, 0.25, 0.55, 1.15]))) == [0, 2, 5, 11]


def test_a_late_start_shows_the_first_picture_until_the_second(tmp_path: Path) -> None:
    """Sound from 0 s on, pictures from 2 s on."""
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for part in range(32):
            wave = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            wave.sample_rate, wave.pts = 8000, part * 800
            container.mux(sound.encode(wave))
        for number, rgb in enumerate(film()):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = 20 + number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    info = describe(path)
    assert (info.start, info.duration) == (pytest.approx(2.0), pytest.approx(3.2))
    assert numbers(whole(path, looking([0.0, 1.9, 2.05, 2.15, 2.55, 3.15]))) == [0, 0, 0, 1, 5, 11]


def test_pictures_stand_upright(tmp_path: Path) -> None:
    write(tmp_path / "turned.mp4", [0, 100, 200], rotation=90)
    info = describe(tmp_path / "turned.mp4")
    assert (info.height, info.width) == (48, 32)
    plan = FrameRule(patch=8, max_fps=4).plan(duration=info.duration, height=info.height, width=info.width)
    assert plan.size[0] > plan.size[1]
    assert whole(tmp_path / "turned.mp4", plan).shape == (plan.units, 2, *plan.size, 3)


def test_a_file_that_does_not_say_its_length(tmp_path: Path) -> None:
    write(tmp_path / "live.mkv", [0, 100, 200, 300, 400, 500], kind="matroska", live="1")
    with av.open(str(tmp_path / "live.mkv")) as container:
        assert container.duration is None
    info = describe(tmp_path / "live.mkv")
    assert 0.5 <= info.duration <= 0.6
    assert numbers(whole(tmp_path / "live.mkv", looking([0.05, 0.25, 0.45, 0.5]))) == [0, 2, 4, 5]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".gif"])
def test_a_single_picture_is_a_video_of_one_unit(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"one{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("gif" if suffix == ".gif" else "libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "rgb8" if suffix == ".gif" else "yuv420p"
        frame = av.VideoFrame.from_ndarray(film(1)[0], format="rgb24")
        container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    info = describe(path)
    assert 0 < info.duration - info.start < 1
    plan = NANO.plan(duration=info.duration, height=info.height, width=info.width)
    units = whole(path, plan)
    assert units.shape == (1, 2, *plan.size, 3)
    assert np.array_equal(units[:, 0], units[:, 1])


def test_films_in_memory_are_read_like_files(tmp_path: Path) -> None:
    clip = Video(film(), 10.0, np.arange(12) / 10)
    clip.save(tmp_path / "clip.mp4")
    plan = NANO.plan(duration=1.2, height=32, width=48)
    assert np.abs(whole(clip, plan).astype(int) - whole(tmp_path / "clip.mp4", plan)).max() <= 3
    info, file = describe(clip), describe(tmp_path / "clip.mp4")
    assert (info.height, info.width, info.fps, info.start) == (32, 48, 10.0, 0.0)
    assert info.duration == pytest.approx(file.duration) == pytest.approx(1.2)
    late = Video(film(), 10.0, 5 + np.arange(12) / 10)
    assert (describe(late).start, describe(late).duration) == (5.0, pytest.approx(6.2))
    assert numbers(whole(late, looking([0.0, 5.05, 5.15, 9.0]))) == [0, 0, 1, 11]


def test_the_chunks_are_the_whole_in_order() -> None:
    clip = Video(film(), 10.0, np.arange(12) / 10)
    plan = looking([k / 10 for k in range(10)])
    parts = list(read_units(clip, plan, chunk=2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert numbers(np.concatenate(parts)) == list(range(10))
    assert next(iter(read_units(clip, plan))).dtype == np.uint8
    with pytest.raises(UniTimeError, match="chunk: 0"):
        read_units(clip, plan, chunk=0)


def test_resizing_is_bicubic_with_antialiasing_and_shrinking_first_changes_little(data: Path) -> None:
    path = data / "video" / "sam2__01_dog.mp4"
    bicubic = torchvision().transforms.InterpolationMode.BICUBIC
    resize = torchvision().transforms.v2.functional.resize
    for size in ((364, 644), (64, 112)):
        plan = looking([1.0, 1.3], size)
        ours = whole(path, plan)[0]
        for (_, img), got in zip(frames_at(path, [1.0, 1.3]), ours, strict=True):
            direct = resize(torch.from_numpy(img).permute(2, 0, 1), list(size), interpolation=bicubic, antialias=True)
            apart = np.abs(direct.permute(1, 2, 0).numpy().astype(int) - got)
            assert apart.mean() < (0.01 if size[0] > 300 else 1.5)


def test_a_file_is_described_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, probed = tmp_path / "a.mp4", []
    probe = reading.probe
    monkeypatch.setattr(reading, "probe", lambda file: (probed.append(file), probe(file))[1])
    write(path, [0, 100, 200])
    before = describe(path)
    assert describe(str(path)) is before and len(probed) == 1
    write(path, [0, 100, 200, 300])
    after = describe(path)
    assert after.duration > before.duration and after.digest != before.digest and len(probed) == 2
    path.unlink()
    with pytest.raises(ShotsError):
        describe(path)


def test_the_digest_follows_the_content_and_not_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.mp4", [0, 100, 200])
    raw = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(raw)
    write(tmp_path / "c.mp4", [0, 100, 300])
    for whole_limit in (reading._WHOLE, 100):  # all bytes, or blocks of a file taken for a large one
        monkeypatch.setattr(reading, "_WHOLE", whole_limit)
        monkeypatch.setattr(reading, "_BLOCK", 64)
        digests = [describe(tmp_path / name).digest for name in ("a.mp4", "b.mp4", "c.mp4")]
        assert digests[0] == digests[1] != digests[2]
    clips = [
        Video(film(), 10.0, np.arange(12) / 10),
        Video(film(), 10.0, np.arange(12) / 10),
        Video(film()[::-1], 10.0, np.arange(12) / 10),
        Video(film(), 10.0, np.arange(12) / 9),
    ]
    digests = [describe(clip).digest for clip in clips]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    for name, says in (
        ("text.mp4", "is not a video"), ("empty.mp4", "is not a video"), ("gone.mp4", "does not exist"),
        ("sound.m4a", "no pictures"), ("", "is a folder"),
    ):  # fmt: skip
        with pytest.raises(ShotsError, match=says):
            describe(tmp_path / name)
        with pytest.raises(ShotsError, match=says):
            whole(tmp_path / name, looking([0.0, 0.1]))
    for wrong in (None, 3, film()):
        with pytest.raises(UniTimeError, match="a path or a shots.Video is needed"):
            describe(wrong)  # type: ignore[arg-type]


def test_a_file_cut_short_is_as_long_as_what_is_left(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 64, 64, 3), np.uint8)
    with VideoWriter(tmp_path / "w.mp4", fps=12, height=64, width=64) as writer:  # a key frame every two seconds
        writer.write(noise)
    raw = (tmp_path / "w.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "head.mp4").write_bytes(raw[:200])
    info = describe(tmp_path / "cut.mp4")
    assert 3 < info.duration < 5
    plan = NANO.plan(duration=info.duration, height=64, width=64)
    assert len(whole(tmp_path / "cut.mp4", plan)) == plan.units
    with pytest.raises(ShotsError):
        describe(tmp_path / "head.mp4")


def test_every_real_clip_gives_the_frames_of_its_plan(data: Path) -> None:
    for path in sorted((data / "video").iterdir()):
        info = describe(path)
        plan = NANO.plan(duration=info.duration, height=info.height, width=info.width)
        assert plan.times.min() >= 0, path.name
        assert plan.times.max() <= info.duration, path.name
        units = whole(path, plan)
        assert units.shape == (plan.units, 2, *plan.size, 3), path.name
        assert units.std() > 1, path.name


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's account of memory")
def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    """Pictures of 277 MB pass through; from a tenth of the way on, less than a tenth of that is added."""
    with VideoWriter(tmp_path / "long.mp4", fps=4, height=360, width=640) as writer:
        for level in range(400):
            writer.write(np.full((1, 360, 640, 3), level % 250, np.uint8))
    plan = looking(list(np.arange(400) / 4), (360, 640))
    held = []
    for _ in read_units(tmp_path / "long.mp4", plan, chunk=4):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        held.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
    assert len(held) == 50
    assert max(held) - held[5] < 27
