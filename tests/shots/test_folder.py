"""Folders of clips with captions become training samples, and come back from a pack unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shots import ShotsError, VideoWriter
from shots.folder import clips_in_folder, load_pack, pack_clips


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """long.mp4 (30 frames, three shots), short.mp4 (4 frames, no caption), photo.png (NAME.txt); 10 frames a second."""
    for name, count in (("long", 30), ("sub/short", 4)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with VideoWriter(tmp_path / f"{name}.mp4", fps=10, height=32, width=48) as writer:
            levels = np.arange(count, dtype=np.uint8) * 8
            writer.write(np.broadcast_to(levels[:, None, None, None], (count, 32, 48, 3)))
    (tmp_path / "long.yaml").write_text(
        "caption: all of it\nshots: [{caption: one, seconds: 0.8}, {caption: two, seconds: 1.4}, {caption: three}]"
    )
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photo.png")
    (tmp_path / "photo.txt").write_text("a red square")
    return tmp_path


def test_videos_are_cut_into_clips_and_captions_follow_the_frames(folder: Path) -> None:
    first, second, photo, short = clips_in_folder(folder, frames=13, size=(16, 24), fps=10)
    assert first.frames is not None
    assert first.frames.shape == (13, 16, 24, 3)
    assert [(shot.caption, shot.start, shot.end) for shot in first.shots] == [("one", 0, 8), ("two", 8, 13)]
    assert [(shot.caption, shot.start, shot.end) for shot in second.shots] == [("two", 0, 9), ("three", 9, 13)]
    assert first.caption == second.caption == "all of it"
    assert second.frames is not None
    levels = second.frames.float().mean(dim=(1, 2, 3)) / 8
    assert torch.allclose(levels, torch.arange(13.0, 26.0), atol=0.5)
    assert photo.length == 1
    assert photo.shots[0].caption == "a red square"
    assert short.length == 4
    assert short.shots[0].caption == ""


def test_a_lower_rate_takes_every_second_frame(folder: Path) -> None:
    clip = next(iter(clips_in_folder(folder, frames=9, size=(16, 24), fps=5)))
    assert clip.frames is not None
    assert torch.allclose(clip.frames.float().mean(dim=(1, 2, 3)) / 8, torch.arange(0.0, 18.0, 2), atol=0.5)


def test_a_film_of_the_stage_is_captioned_by_its_annotations(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "film.mp4", fps=10, height=32, width=32) as writer:
        writer.write(np.zeros((20, 32, 32, 3), np.uint8))
    shots = [
        {"start": 0.0, "end": 0.8, "caption": "one", "camera": "static", "tags": {}},
        {"start": 0.8, "end": 2.0, "caption": "two", "camera": "pan_left", "tags": {}},
    ]
    event = {"query": "a cube jumps", "actor": "a", "action": "jump", "start": 0.9, "end": 1.5}
    told = {"fps": 10, "duration": 2.0, "seed": 1, "caption": "both", "shots": shots, "events": [event], "qa": []}
    (tmp_path / "film.json").write_text(json.dumps(told))
    first, second = clips_in_folder(tmp_path, frames=10, size=(32, 32), fps=10)
    assert [(shot.caption, shot.start, shot.end) for shot in first.shots] == [("one", 0, 8), ("two", 8, 10)]
    assert [(shot.caption, shot.start, shot.end) for shot in second.shots] == [("two", 0, 10)]
    assert first.caption == "both"
    assert [(clip.events[0]["start"], clip.events[0]["end"]) for clip in (first, second)] == [
        pytest.approx((0.9, 1.0)), pytest.approx((0.0, 0.5)),
    ]  # fmt: skip


def test_a_list_of_captions_goes_before_files_beside(folder: Path) -> None:
    rows = [
        {"file": "photo.png", "caption": "from the list", "width": 64},
        {"file": "sub/short.mp4", "shots": [{"caption": "a", "seconds": 0.2}, {"caption": "b", "seconds": 0.2}]},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    *_, photo, short = clips_in_folder(folder, frames=13, size=(16, 24), fps=10)
    assert photo.shots[0].caption == "from the list"
    assert [(shot.caption, shot.start, shot.end) for shot in short.shots] == [("a", 0, 2), ("b", 2, 4)]


def test_a_pack_gives_the_clips_back(folder: Path) -> None:
    clips = list(clips_in_folder(folder, frames=13, size=(16, 24), fps=10))
    assert pack_clips(clips, folder / "pack.safetensors") == 4
    for before, after in zip(clips, load_pack(folder / "pack.safetensors"), strict=True):
        assert before.frames is not None
        assert after.frames is not None
        assert torch.equal(before.frames, after.frames)
        assert (before.shots, before.caption, before.fps, before.source) == (
            after.shots,
            after.caption,
            after.fps,
            after.source,
        )


def test_faults_are_named(folder: Path, tmp_path: Path) -> None:
    def read() -> None:
        list(clips_in_folder(folder, frames=5, size=(16, 16), fps=10))

    for row, says in (
        ('{"file": "photo.png"}', "metadata.jsonl, line 1: a row is"),
        ('{"file": "gone.png", "caption": "a"}', "'gone.png' is not there"),
        ('{"file": "photo.png", "caption": ""}', "line 1: shot 1, caption: empty"),
        ("no json", "metadata.jsonl, line 1"),
    ):
        (folder / "metadata.jsonl").write_text(row)
        with pytest.raises(ShotsError, match=says):
            read()
    (folder / "metadata.jsonl").unlink()
    (folder / "long.yaml").write_text("shots: [{caption: one}, {caption: two}]")
    with pytest.raises(ShotsError, match=r"long\.mp4: shot 1 does not say its seconds"):
        read()
    with pytest.raises(ShotsError, match="does not exist"):
        list(clips_in_folder(folder / "gone", 5, (16, 16), 10))
    (folder / "empty").mkdir()
    with pytest.raises(ShotsError, match="holds no video"):
        list(clips_in_folder(folder / "empty", 5, (16, 16), 10))
    (folder / "noise.safetensors").write_bytes(b"noise")
    with pytest.raises(ShotsError, match="is not a pack"):
        load_pack(folder / "noise.safetensors")
