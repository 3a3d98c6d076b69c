"""Captions by real models: any Qwen-VL describes a film shot by shot and checks itself; the shell writes scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cli
from shots.captions import describe_film
from shots.script import Script
from shots.video import Video, VideoWriter
from unitime.errors import UniTimeError
from unitime.frames import FrameRule
from unitime.grounder import UniTime
from unitime.model import VisionLanguageModel
from unitime.prompts import Prompts

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line in this process: (exit status, stdout, stderr)."""

    def command(*words: object) -> tuple[int, str, str]:
        try:
            status = cli.main([str(word) for word in words])
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return command


@pytest.fixture
def two_shots(tmp_path: Path) -> Path:
    """A file of two shots of noise, 1 s and 1.5 s."""
    path = tmp_path / "film.mp4"
    with VideoWriter(path, fps=8, height=64, width=64) as writer:
        for seed, frames in enumerate((8, 12)):
            picture = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            picture = picture.repeat(8, 0).repeat(8, 1) // 2 + 100 * seed
            writer.write(np.repeat(picture[None].astype(np.uint8), frames, 0))
    return path


@pytest.fixture
def loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is a failure of the test."""

    def load(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(UniTime, "from_pretrained", load)


def test_every_family_describes_and_checks_a_film(tiny: Any, film: Any) -> None:
    rule = FrameRule(budget=128, min_tokens=4, max_tokens=4, max_fps=4, patch=tiny.patch)
    model = UniTime(VisionLanguageModel(tiny.net, tiny.tokenizer, rule=rule, prompts=Prompts(not_found="Not found.")))
    video = film(6)
    video = Video(video.frames.repeat(4, 1).repeat(4, 2), video.fps, video.times, (2.0,))
    found = describe_film(video, model, model)
    assert [shot.frames(2.0, 0) for shot in found.script.shots] == [4, 8]
    assert {shot.check for shot in found.shots} <= {"found", "elsewhere", "not_found", "undescribed"}
    assert Script.parse(found.script.to_yaml()) == found.script


def test_a_caption_is_what_is_said_of_its_window(oracle: Any, film: Any) -> None:
    rule = FrameRule(patch=4, merge=2, budget=64, min_tokens=4, max_tokens=4, max_fps=4)
    known = oracle(rule, Prompts(), {})
    known.replies = {known.prompts.caption: "A red cube jumps."}
    model = UniTime(known)
    assert model.caption(film(8), window=(2.0, 4.0)) == "A red cube jumps."
    shown = known.passes[-1].stamps
    assert min(shown) >= 2.0 and max(shown) <= 4.0
    with pytest.raises(UniTimeError, match="window"):
        model.caption(film(8), window=(9.0, 12.0))


def test_the_shipped_model_captions_at_the_shell_and_the_script_comes_back(
    run: Run, two_shots: Path, tmp_path: Path
) -> None:
    target = tmp_path / "script.yaml"
    status, out, err = run("caption", two_shots, "-o", target, "--no-cache")
    assert status == 0, err
    assert str(target) in out
    assert [shot.frames(8, 0) for shot in Script.load(target).shots] == [8, 12]
    status, out, _ = run("caption", two_shots, "--no-check", "--json", "--no-cache")
    told = json.loads(out)
    assert status == 0
    assert [shot["check"] for shot in told["shots"]] == ["unchecked", "unchecked"]
    assert told["output"] is None
    status, out, _ = run("caption", two_shots, "--no-check", "--no-cache")
    assert Script.parse(out).to_dict() == told["script"]


@pytest.mark.usefixtures("loads_nothing")
@pytest.mark.parametrize(
    "words", [("ground", "{}", "a cube"), ("ask", "{}", "What?"), ("caption", "{}")], ids=lambda words: words[0]
)
def test_a_missing_or_broken_video_is_named_before_weights_are_loaded(
    run: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "text.mp4").write_text("no film")
    for name in ("absent.mp4", "text.mp4", ""):
        status, out, err = run(*(str(tmp_path / name) if word == "{}" else word for word in words))
        assert (status, out) == (2, "")
        assert str(tmp_path / name) in err
        assert "Traceback" not in err


@pytest.mark.usefixtures("loads_nothing")
@pytest.mark.parametrize("name", ["script.txt", "film.mp4", "no_folder/script.yaml", ""])
def test_a_script_that_cannot_be_written_is_named_before_weights_are_loaded(
    run: Run, two_shots: Path, tmp_path: Path, name: str
) -> None:
    before = two_shots.read_bytes()
    status, _, err = run("caption", two_shots, "-o", tmp_path / name)
    assert status == 2
    assert "output" in err
    assert two_shots.read_bytes() == before


def test_a_question_at_the_shell_keeps_to_its_window(run: Run, two_shots: Path) -> None:
    words = ("ask", two_shots, "What?", "--option", "a", "--option", "b", "--no-cache", "--json")
    status, out, err = run(*words, "--window", 0.5, 1.5)
    assert status == 0, err
    start, end = json.loads(out)["window"]
    assert 0.5 <= start < end <= 1.5
    assert run(*words, "--window", 5, 9)[0] == 2
