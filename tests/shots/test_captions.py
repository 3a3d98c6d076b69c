"""Captions: shots in, a script out that has the film's lengths, says what was found in its shots, and renders again."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shots import captions
from shots.captions import caption_film, describe_film
from shots.errors import ShotsError
from shots.script import Script
from shots.video import Video, VideoWriter


def noise(frames: int, seed: int = 0, side: int = 32) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)


def film(*lengths: int, fps: float = 8.0, first: float = 0.0) -> Video:
    """Shots of noise, each one picture held for so many frames."""
    frames = np.concatenate([np.repeat(noise(1, seed), n, 0) for seed, n in enumerate(lengths)])
    edges = np.cumsum(lengths)[:-1] / fps + first
    return Video(frames, fps, np.arange(len(frames)) / fps + first, tuple(edges.tolist()))


class Seer:
    """Captions and grounds by a table: (start, end, sentence). What a window's middle lies in, it says."""

    def __init__(self, events: Sequence[tuple[float, float, str]], size: str | None = None) -> None:
        self.events, self.size = events, size
        self.windows: list[tuple[float, float]] = []
        self.asked: list[list[str]] = []
        self.encoded = 0

    def encode(self, video: Any) -> Any:
        self.encoded += 1
        return SimpleNamespace(source=video)

    def caption(self, video: Any, *, window: Any = None) -> str:
        assert isinstance(video, SimpleNamespace)  # the handle, not the film anew for every shot
        self.windows.append(window)
        middle = sum(window) / 2
        return " ".join(said for start, end, said in self.events if start <= middle < end)

    def ground(self, video: Any, queries: Sequence[str], top_k: int = 1) -> list[Any]:
        self.asked.append(list(queries))
        found = []
        for query in queries:
            moments = tuple(
                SimpleNamespace(start=start, end=end, score=0.75) for start, end, said in self.events if query in said
            )
            found.append(SimpleNamespace(query=query, moments=moments[:top_k], status="ok" if moments else "not_found"))
        return found


class Sure(Seer):
    """Also tells the size of a shot; with `blind` by the place of an option."""

    blind = False

    def ask(self, video: Any, question: str, options: Sequence[str], *, window: Any, grounded: bool) -> Any:
        best = 0 if self.blind else list(options).index("close-up")
        return SimpleNamespace(scores=tuple(0.9 if i == best else 0.05 for i in range(len(options))))


STORY = [(0.0, 1.0, "A red cube jumps."), (1.0, 3.0, "A blue sphere spins."), (3.0, 4.0, "The red cube falls.")]


def test_every_shot_gets_its_caption_and_its_exact_length() -> None:
    seer = Seer(STORY)
    video = film(8, 16, 7)
    found = describe_film(video, seer, seer)
    assert [shot.caption for shot in found.script.shots] == [said for _, _, said in STORY]
    assert [shot.frames(8.0, 0) for shot in found.script.shots] == [8, 16, 7]
    assert [shot.check for shot in found.shots] == ["found"] * 3
    assert [(shot.start, shot.end) for shot in found.shots] == [(0.0, 1.0), (1.0, 3.0), (3.0, 3.875)]
    assert found.shots[2].moment == (3.0, 3.875)  # cut to the shot: what was found goes on to 4.0
    assert seer.encoded == 1
    assert found.doubtful == []


@pytest.mark.parametrize("fps", [12.0, 24.0, 29.97, 7.3])
def test_lengths_hold_for_any_rate(fps: float) -> None:
    lengths = [5, 3, 13, 4, 30]
    script = caption_film(film(*lengths, fps=fps), Seer([(0, 99, "It rains.")]))
    assert [shot.frames(fps, 0) for shot in script.shots] == lengths


def test_the_script_comes_back_whole_from_yaml_and_json() -> None:
    script = caption_film(film(8, 16, 7), Seer(STORY))
    assert Script.parse(script.to_yaml()) == script
    assert Script.parse(script.to_json()) == script


def test_the_script_is_understood_by_the_stage_without_edits() -> None:
    from shots.stage.parse import film_from_script

    script = caption_film(film(8, 16, 7), Seer(STORY))
    made, warnings = film_from_script(script)
    assert warnings == []
    assert [actor.name for actor in made.cast] == ["red cube", "blue sphere"]
    assert sum(shot.seconds for shot in made.shots) == pytest.approx(31 / 8)


def test_a_caption_that_is_found_in_another_shot_is_asked_again_from_the_middle() -> None:
    class Mistaken(Seer):
        def caption(self, video: Any, *, window: Any = None) -> str:
            said = super().caption(video, window=window)
            return "A red cube jumps." if window == (1.0, 3.0) else said

    seer = Mistaken(STORY)
    shot = describe_film(film(8, 16, 7), seer, seer).shots[1]
    assert seer.windows[-1] == pytest.approx((1.4, 2.6))
    assert (shot.caption, shot.check, shot.tries) == ("A blue sphere spins.", "found", 2)


def test_what_is_found_nowhere_in_its_shot_is_kept_and_marked() -> None:
    class Wrong(Seer):
        def caption(self, video: Any, *, window: Any = None) -> str:
            return "A red cube jumps." if window[0] < 3 else "A green cone."

    seer = Wrong(STORY)
    found = describe_film(film(8, 16, 7), seer, seer)
    assert [shot.check for shot in found.shots] == ["found", "elsewhere", "not_found"]
    assert found.script.shots[2].caption == "A green cone."
    assert found.doubtful == [2, 3]
    assert "elsewhere" in str(found)


def test_a_sentence_that_is_not_in_the_shot_is_dropped_where_another_is() -> None:
    class Chatty(Seer):
        def caption(self, video: Any, *, window: Any = None) -> str:
            said = super().caption(video, window=window)
            return f"{said} A dog barks." if window[0] == 1.0 else said

    seer = Chatty(STORY)
    shot = describe_film(film(8, 16, 7), seer, seer).shots[1]
    assert (shot.caption, shot.dropped, shot.check) == ("A blue sphere spins.", ("A dog barks.",), "found")


def test_without_a_grounder_nothing_is_checked() -> None:
    assert [shot.check for shot in describe_film(film(8, 16, 7), Seer(STORY)).shots] == ["unchecked"] * 3


def test_the_size_of_a_shot_is_told_only_by_who_says_the_same_either_way_round() -> None:
    sure = Sure(STORY)
    assert "close-up" in (caption_film(film(8, 16, 7), sure).shots[0].camera or "")
    sure.blind = True
    assert "shot" not in (caption_film(film(8, 16, 7), sure).shots[0].camera or "")
    assert "close-up" not in (caption_film(film(8, 16, 7), sure).shots[0].camera or "")


# -------------------------------------------------------------------------------------------------- the whole film


def test_the_film_caption_names_who_recurs_in_the_stages_words() -> None:
    found = describe_film(film(8, 16, 7), Seer(STORY))
    assert found.actors == ("red cube",)
    assert found.script.caption == "A film with a red cube."


def test_a_set_that_all_shots_share_is_said_once_more() -> None:
    events = [(0, 1, "A red cube jumps on sand at night."), (1, 9, "On sand, a red cube spins.")]
    assert caption_film(film(8, 8), Seer(events)).caption == "A film with a red cube on sand at night."


@pytest.mark.parametrize(
    ("said", "names"),
    [
        (["An old man walks his dog.", "The old man sits on a bench.", "A train leaves."], ["old man"]),
        (["A red car stops.", "A red bus waits.", "The red car is gone.", "A red bus leaves."], ["red car", "red bus"]),
        (["A chef cutting bread.", "The chef smiles at a guest."], ["chef"]),
        (["The camera rests.", "The camera rests."], []),
        (["Rain.", "Snow."], []),
    ],
)
def test_other_captions_share_the_names_they_begin_alike(said: list[str], names: list[str]) -> None:
    events = [(k, k + 1, text) for k, text in enumerate(said)]
    assert list(describe_film(film(*[8] * len(said)), Seer(events)).actors) == names


def test_a_film_of_one_shot_has_no_other_caption() -> None:
    found = describe_film(film(8), Seer(STORY))
    assert (found.script.caption, len(found.shots)) == (None, 1)


# ---------------------------------------------------------------------------------------------------- bad treatment


def test_black_frames_are_described_without_a_model() -> None:
    video = film(8, 8, 8)
    video.frames[8:16] = 3
    video.frames[16:] = 250
    seer = Seer([(0, 9, "A red cube jumps.")])
    found = describe_film(video, seer, seer)
    assert [shot.check for shot in found.shots] == ["found", "plain", "plain"]
    assert [shot.caption for shot in found.script.shots][1:] == ["The screen is black.", "The screen is white."]
    assert len(seer.windows) == 1
    assert found.actors == ()


def test_a_shot_too_short_to_be_checked_is_described_all_the_same() -> None:
    seer = Seer(STORY)
    found = describe_film(film(7, 1, 16), seer, seer)
    assert (found.shots[1].check, found.shots[1].caption) == ("brief", "A red cube jumps.")
    assert found.script.shots[1].frames(8.0, 0) == 1


def test_a_shot_of_a_blink_goes_with_the_one_before_and_no_frame_is_lost() -> None:
    script = caption_film(film(1, 20, 1, 1, 20, 1, fps=24.0), Seer([(0, 9, "It rains.")]))
    assert [shot.frames(24.0, 0) for shot in script.shots] == [23, 21]
    assert all(shot.frames(8.0, 0) > 0 for shot in script.shots)


@pytest.mark.parametrize("said", ["", " \n ", "..."])
def test_a_captioner_with_nothing_to_say_does_not_break_the_script(said: str) -> None:
    found = describe_film(film(8), Seer([(0, 9, said)]))
    assert found.shots[0].check == "undescribed"
    assert found.script.shots[0].caption == captions.UNDESCRIBED


def test_a_captioner_that_goes_round_in_circles_is_cut_short() -> None:
    said = "A cube moves away, then it moves, then it moves, then it moves"
    assert caption_film(film(8), Seer([(0, 9, said)])).shots[0].caption == "A cube moves away, then it moves."
    assert len(caption_film(film(8), Seer([(0, 9, "long " * 5000)])).shots[0].caption) <= 5000


def test_a_sentence_too_long_to_be_asked_is_asked_by_its_beginning() -> None:
    seer = Seer([(0, 9, "Rain " * 400)])
    assert describe_film(film(8), seer, seer).shots[0].check == "found"
    assert len(seer.asked[0][0]) == captions.ASKED


def test_five_hundred_cuts_are_five_hundred_shots_grounded_in_batches() -> None:
    seer = Seer([(k / 2, k / 2 + 0.5, f"Event number {k} happens.") for k in range(501)])
    found = describe_film(film(*[4] * 501), seer, seer)
    assert len(found.script.shots) == 501
    assert {shot.check for shot in found.shots} == {"found"}
    assert max(map(len, seer.asked)) == captions.TOGETHER


class Near(Seer):
    """Also looks in a stretch."""

    def ground(self, video: Any, queries: Sequence[str], top_k: int = 1, window: Any = None) -> list[Any]:
        self.windows.append(window)
        found = super().ground(video, queries, top_k=9)
        if window is not None:
            for each in found:
                each.moments = tuple(m for m in each.moments if window[0] <= m.start < m.end <= window[1])
                each.status = "ok" if each.moments else "not_found"
        return found


def test_a_long_film_is_checked_stretch_by_stretch() -> None:
    """The same sentence again much later neither helps nor harms, and the stretches cover every shot."""
    events = [(10.0 * k, 10.0 * k + 10, f"Event number {k % 20} happens.") for k in range(60)]
    seer, said = Near(events), Seer(events)
    found = describe_film(film(*[10] * 60, fps=1.0), said, seer)
    assert {shot.check for shot in found.shots} == {"found"}
    assert all((shot.moment or (0, 0))[0] == shot.start for shot in found.shots)
    assert len(seer.windows) <= 2 * 600 / captions.AROUND
    assert all(end - start <= captions.AROUND and start >= 0 and end <= 600 for start, end in seer.windows)
    short = Near(events[:6])
    describe_film(film(*[10] * 6, fps=1.0), said, short)
    assert short.windows == [None]


def test_memory_does_not_grow_with_the_length_of_a_file(tmp_path: Path) -> None:
    """Cuts and captions of a file six times as long hold no more pictures: 320 more of them would be 3.9 MB."""
    pictures = np.repeat(np.repeat(np.stack([noise(1, seed, 8)[0] for seed in range(2)]), 8, 1), 8, 2)
    peaks = []
    for shots in (3, 3, 19):  # the first time loads what is loaded once
        path = tmp_path / f"{shots}.mp4"
        with VideoWriter(path, fps=8, height=64, width=64) as writer:
            for k in range(shots):
                writer.write(np.repeat(pictures[k % 2][None], 20, 0))
        tracemalloc.start()
        found = describe_film(path, Seer([(0, 999, "It rains.")]))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(found.shots) == shots
    assert peaks[2] - peaks[1] < 1e6


def test_a_take_of_more_than_an_hour_becomes_shots_that_a_script_can_hold() -> None:
    frames = np.repeat(noise(1), 130, 0)
    video = Video(frames, 1 / 60, np.arange(130) * 60.0)
    script = caption_film(video, Seer([(0, 9999, "Nothing happens.")]))
    assert [shot.seconds for shot in script.shots] == [2600.0] * 3


def test_a_film_with_another_beginning_of_its_clock_keeps_to_it() -> None:
    seer = Seer([(start + 5, end + 5, said) for start, end, said in STORY])
    found = describe_film(film(8, 16, 7, first=5.0), seer, seer)
    assert seer.windows[0] == (5.0, 6.0)
    assert [shot.check for shot in found.shots] == ["found"] * 3


@pytest.mark.parametrize("cuts", [[0.0], [99.0], [2.0, 1.0], [1.0, 1.0]])
def test_cuts_that_are_none_are_named(cuts: list[float]) -> None:
    with pytest.raises(ShotsError, match="cuts"):
        caption_film(film(8, 16), Seer(STORY), cuts=cuts)


def test_a_file_that_is_no_video_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no film")
    seer = Seer(STORY)
    for name in ("text.mp4", "absent.mp4"):
        with pytest.raises(ShotsError, match=name):
            caption_film(tmp_path / name, seer)
    assert seer.windows == []


def test_a_file_is_cut_where_its_pictures_change(tmp_path: Path) -> None:
    path = tmp_path / "f.mp4"
    first, second = (np.full((64, 64, 3), 40, np.uint8) for _ in range(2))
    first[8:40, 8:40] = (200, 40, 40)
    second[:] = (30, 90, 160)
    second[30:60, 20:50] = (240, 240, 60)
    with VideoWriter(path, fps=12, height=64, width=64) as writer:
        writer.write(np.repeat(first[None], 24, 0))
        writer.write(np.repeat(second[None], 30, 0))
    script = caption_film(path, Seer([(0, 2, "A red square."), (2, 9, "A yellow square.")]))
    assert [(shot.caption, shot.frames(12, 0)) for shot in script.shots] == [
        ("A red square.", 24),
        ("A yellow square.", 30),
    ]
    assert script.shots[0].camera == "static camera"


def test_progress_counts_the_shots(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[int, int]] = []
    with caplog.at_level(logging.WARNING):
        caption_film(film(8, 16, 7), Seer(STORY), progress=lambda done, total, what: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert not caplog.records
