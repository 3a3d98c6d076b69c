"""Cuts: hard ones to the frame, blends as one, and nothing where nothing is cut."""

from __future__ import annotations

import json
from pathlib import Path
from time import process_time

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from shots.cuts import CutList, _merged, _paired, find_cuts
from shots.detectors import HardCuts
from shots.errors import ShotsError
from shots.stage.render import render_film
from shots.stage.writer import write_film
from shots.video import Video

Frames = NDArray[np.uint8]
FPS = 12.0


def scene(seed: int, frames: int, speed: float = 1.0, side: int = 48) -> Frames:
    """A soft random picture that the camera pans over, uint8 (frames, side, side, 3)."""
    rng = np.random.default_rng(seed)
    wide = cv2.resize(
        rng.integers(0, 255, (6, 24, 3)).astype(np.uint8), (side * 4, side), interpolation=cv2.INTER_CUBIC
    )
    shown = [np.roll(wide, -round(speed * t), axis=1)[:, :side] for t in range(frames)]
    return np.stack(shown)


def film(*parts: Frames, fps: float = FPS) -> Video:
    frames = np.concatenate(parts)
    return Video(frames, fps, np.arange(len(frames)) / fps)


def mixed(before: Frames, after: Frames, share: NDArray[np.float64]) -> Frames:
    return np.round(before + (after.astype(float) - before) * share[:, None, None, None]).astype(np.uint8)


def found(video: Video) -> list[tuple[int, str]]:
    return [(cut.frame, cut.kind) for cut in find_cuts(video).cuts]


def test_hard_cuts_are_found_to_the_frame() -> None:
    assert found(film(scene(1, 20), scene(2, 9), scene(3, 25))) == [(20, "hard"), (29, "hard")]


def test_a_shot_alone_has_no_cut_however_fast_the_camera() -> None:
    assert found(film(scene(1, 40, speed=0))) == []
    assert found(film(scene(1, 40, speed=6))) == []


def test_the_jumps_of_a_generated_film_every_fourth_frame_are_no_cuts() -> None:
    still = scene(4, 48, speed=0).astype(float)
    jump = np.repeat(np.random.default_rng(0).normal(0, 6, (12, *still.shape[1:])), 4, axis=0)
    assert found(film(np.clip(still + jump, 0, 255).astype(np.uint8))) == []


def set_with_actor(places: list[tuple[int, int]], colour: tuple[int, int, int] = (220, 60, 40)) -> Frames:
    """One set (a busy floor that stays where it is) with a striped square whose corner is at (x, y) in each frame."""
    floor = np.repeat(np.repeat(np.random.default_rng(7).integers(60, 160, (16, 16, 3)), 4, 0), 4, 1)
    stripes = np.where((np.arange(14) // 3 % 2)[None, :, None] > 0, np.array(colour), np.array([240, 240, 240]))
    frames = np.repeat(floor[None], len(places), 0).astype(np.uint8)
    for frame, (x, y) in zip(frames, places, strict=True):
        frame[y : y + 14, x : x + 14] = stripes
    return frames


def test_a_cut_on_the_same_set_is_found_where_the_actor_has_just_landed() -> None:
    falls = [(10, y) for y in (4, 4, 4, 4, 4, 4, 4, 4, 4, 5, 8, 13, 20, 29, 38, 38)]
    moved = set_with_actor([*falls, *[(36, 38)] * 16])
    assert found(film(moved)) == [(16, "hard")]
    assert found(film(set_with_actor([*falls, *[(10, 38)] * 16]))) == []


def test_an_actor_that_takes_another_colour_is_no_cut_at_once_or_little_by_little() -> None:
    before, after = set_with_actor([(20, 20)] * 24), set_with_actor([(20, 20)] * 24, colour=(40, 60, 220))
    breath = np.random.default_rng(0).normal(0, 1.5, (48, 1, 1, 1))  # the light is never quite the same
    at_once = np.concatenate([before, after]) + breath
    assert found(film(np.clip(at_once, 0, 255).astype(np.uint8))) == []
    share = np.clip((np.arange(24) - 6) / 12, 0, 1)
    assert found(film(mixed(before, after, share))) == []


def test_a_title_that_comes_and_goes_over_a_still_picture_is_no_cut() -> None:
    plain = np.repeat(cv2.GaussianBlur(scene(3, 1, side=64)[0], (0, 0), 9)[None], 60, 0)
    for frame in plain[20:40]:
        cv2.putText(frame, "TITLE", (8, 36), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (250, 250, 250), 1)
    assert found(film(plain)) == []


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("frames", [1, 2, 8])
def test_flashes_and_black_frames_within_a_shot_are_no_cuts(value: int, frames: int) -> None:
    shot = scene(5, 48, speed=0.5)
    shot[20 : 20 + frames] = value
    assert found(film(shot)) == []


def test_a_dissolve_is_one_gradual_cut_with_its_middle_and_length() -> None:
    share, one, two = (np.arange(8) + 0.5) / 8, scene(1, 28, speed=0.25), scene(2, 28, speed=0.25)
    cuts = find_cuts(film(one[:20], mixed(one[20:], two[:8], share), two[8:])).cuts
    assert len(cuts) == 1 and cuts[0].kind == "gradual"
    assert cuts[0].time == pytest.approx(24 / FPS, abs=0.17)
    assert cuts[0].duration == pytest.approx(8 / FPS, abs=0.34)


@pytest.mark.parametrize("rest", [0, 6, 30])
@pytest.mark.parametrize("level", [0, 255])
def test_a_fade_through_black_or_white_is_one_gradual_cut(rest: int, level: int) -> None:
    share, one, two = (np.arange(8) + 0.5) / 8, scene(1, 28, speed=0.25), scene(2, 28, speed=0.25)
    plain = np.full((8, 48, 48, 3), level, np.uint8)
    out, in_ = mixed(one[20:], plain, share), mixed(plain, two[:8], share)
    cuts = find_cuts(film(one[:20], out, np.repeat(plain[:1], rest, 0), in_, two[8:])).cuts
    assert [cut.kind for cut in cuts] == ["gradual"]
    assert cuts[0].time == pytest.approx((28 + rest / 2) / FPS, abs=0.25)


def test_black_between_two_shots_belongs_to_the_cut() -> None:
    black = np.zeros((5, 48, 48, 3), np.uint8)
    cuts = find_cuts(film(scene(1, 24), black, scene(2, 24))).cuts
    assert [(cut.kind, round(cut.duration * FPS)) for cut in cuts] == [("gradual", 5)]


def test_a_film_that_fades_in_and_out_is_not_cut_there() -> None:
    shot, share = scene(1, 48, speed=0.25), (np.arange(10) + 0.5) / 10
    black = np.zeros((10, 48, 48, 3), np.uint8)
    parts = black, mixed(black, shot[:10], share), shot[10:38], mixed(shot[38:], black, share), black
    assert found(film(*parts)) == []


def test_five_hundred_cuts_are_five_hundred() -> None:
    parts = [scene(seed, 7, speed=0, side=16) for seed in range(501)]
    cuts = found(film(*parts))
    assert [frame for frame, _ in cuts] == [7 * (k + 1) for k in range(500)]


def test_times_are_those_at_which_frames_are_shown() -> None:
    frames = np.concatenate([scene(1, 20), scene(2, 20)])
    times = np.cumsum(np.r_[0.5, np.tile([0.04, 0.2], 20)[:39]])
    cut = find_cuts(Video(frames, 1 / float(np.diff(times).mean()), times)).cuts[0]
    assert cut.frame == 20 and cut.time == pytest.approx(times[20] - times[0])


def test_a_file_is_cut_as_the_film_in_memory(tmp_path: Path) -> None:
    video = film(scene(1, 18, side=64), scene(2, 18, side=64))
    path = video.save(tmp_path / "cut.mp4")
    told = find_cuts(path)
    assert [(cut.frame, cut.kind) for cut in told.cuts] == found(video) == [(18, "hard")]
    assert json.loads(json.dumps(told.to_dict())) == {
        "fps": 12.0, "frames": 36, "cuts": [{"time": 1.5, "frame": 18, "kind": "hard", "duration": 0.0}]
    }  # fmt: skip
    assert "1.500 s" in str(told)


def test_an_hour_of_film_keeps_no_more_pictures_than_a_second_needs(tmp_path: Path) -> None:
    long = film(*[scene(seed, 300, side=16) for seed in range(6)], fps=0.5)  # an hour
    assert long.duration == 3600
    cuts = find_cuts(long)
    assert cuts.frames == 1800 and [cut.frame for cut in cuts.cuts] == [300, 600, 900, 1200, 1500]
    assert HardCuts(60.0)._held.maxlen == 2 * 60 + 1


def test_thousands_of_black_frames_and_cuts_are_put_together_in_no_time() -> None:
    hard = [frame for k in range(6000) for frame in (6 * k + 3, 6 * k + 4)]
    black = [(6 * k + 3, 6 * k + 4) for k in range(6000)]
    begun = process_time()
    changes = _merged(hard, [(6 * k, 6 * k + 3) for k in range(6000)], black, 36_010, 12.0)
    alone, pairs = _paired([(6 * k, 6 * k + 3) for k in range(6000)], [(False, False)] * 6000, black, 3)
    assert process_time() - begun < 2.0
    assert len(changes) >= 6000 and len(alone) + 2 * len(pairs) == 6000


def test_one_frame_and_what_is_no_video(tmp_path: Path) -> None:
    assert find_cuts(film(scene(1, 1))) == CutList(FPS, 1, ())
    (tmp_path / "x.mp4").write_text("no video")
    with pytest.raises(ShotsError, match="not a video"):
        find_cuts(tmp_path / "x.mp4")


def test_hard_cuts_of_a_stage_film_on_one_set() -> None:
    rendered = render_film(write_film(710_000, shots=3, seconds=2.0), 96, 96, FPS)
    assert found(film(rendered.frames.numpy())) == [(frame, "hard") for frame in rendered.boundaries]


def test_real_clips_are_cut_where_they_are_known_to_be(data: Path) -> None:
    counter = find_cuts(data / "video" / "PySceneDetect__counter.mp4").cuts
    assert [(cut.frame, cut.kind) for cut in counter] == [(10, "hard"), (20, "hard")]
    fades = find_cuts(data / "video" / "PySceneDetect__fades.mp4").cuts
    assert [cut.kind for cut in fades] == ["gradual"] * 2
    assert [cut.frame for cut in fades] == pytest.approx([84, 167], abs=2)
