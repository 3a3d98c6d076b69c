"""Films verified, taken again, carried on and titled by request, on a whole model of random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cli
from seedance.api import RenderRequest, RenderResult, render
from seedance.errors import SeedanceError
from seedance.pipeline import LatentFilm, Seedance
from seedance.takes import load_state, reworded
from shots.cuts import CutList
from shots.errors import ShotsError
from shots.evaluation import CutReport, Defect, Report, ShotReport
from shots.quality import Quality
from shots.script import Script
from shots.video import Video, read_record, read_video

WORDS = "A red cube jumps. [cut] A blue sphere spins. [cut] A red cube spins."


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Seedance:
    pipe = Seedance.from_pretrained(tiny_model, dtype="fp32", device="cpu")
    torch.manual_seed(3)
    for parameter in pipe.transformer.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return pipe


class Critic:
    """Passes shots by a rule of (number of the look, number of the shot), and scores them by how bright they are."""

    def __init__(self, passes: Callable[[int, int], bool]) -> None:
        self.passes, self.looks = passes, 0

    def __call__(self, video: Video, script: Script) -> Report:
        self.looks += 1
        edges = [0.0, *video.cuts, video.duration]
        shots = []
        for k, shot in enumerate(script.shots, start=1):
            start, end = edges[k - 1], edges[k]
            ok, bright = self.passes(self.looks, k), video.frames[round(start * video.fps)].mean() / 255
            defects = () if ok else (Defect("colour", "red", None, (start, end), 0.9, k),)
            shots.append(ShotReport(k, start, end, shot.caption, ok, 0.5 + bright / 2, (), defects))
        return Report(
            all(shot.passed for shot in shots), 0.5, tuple(shots), (), CutReport(None, CutList(12.0, 1, ())),
            Quality.mean([]), (), video.fps, video.duration, 0.5, "",
        )  # fmt: skip


def made(pipe: Seedance, path: Path, critic: Any = None, **how: Any) -> RenderResult:
    how = {"prompts": (WORDS,), "num_frames": 5, "seed": 3, **how}
    if "from_state" in how:
        how = {"prompts": (), **{key: value for key, value in how.items() if key not in ("prompts", "num_frames")}} | {
            "prompts": how["prompts"] if how["prompts"] != (WORDS,) else ()
        }
    return render(RenderRequest(output=path, **how), pipeline=pipe, verifier=critic)


def test_failed_shots_are_taken_again_and_the_report_stands_beside_the_film(pipe: Seedance, tmp_path: Path) -> None:
    critic = Critic(lambda look, shot: shot != 2 or look > 2)  # shot 2 passes in the third look
    result = made(
        pipe, tmp_path / "film.mp4", critic, verify=True, retakes=3, keep_takes=tmp_path / "takes", state=True
    )
    film = result.films[0]
    told = read_record(tmp_path / "film.mp4")
    assert told is not None and told["seed"] == film.seed == 3 and told["task"] == "text"
    loop = told["verification"]
    assert loop["passed"] and loop["retakes"] == 3 and [len(take["shots"]) for take in loop["takes"]] == [3, 1, 1]
    assert loop["chosen"] == [1, 3, 1] and loop["takes"][0]["shots"][1]["defects"][0]["kind"] == "colour"
    report = json.loads((tmp_path / "film.report.json").read_text())
    assert report["passed"] and report["loop"]["chosen"] == [1, 3, 1]
    assert (tmp_path / "film.sheet.png").stat().st_size > 0
    names = sorted(path.name for path in (tmp_path / "takes").iterdir())
    assert [name for name in names if name.endswith(".mp4")] == [f"film.take-{n}.mp4" for n in (1, 2, 3)]
    first, third = (LatentFilm.load(tmp_path / f"takes/film.take-{n}.state.safetensors") for n in (1, 3))
    kept = LatentFilm.load(tmp_path / "film.state.safetensors")
    assert torch.equal(kept.latents, pipe.splice(first, third, [2]).latents)
    said = json.loads(json.dumps(result.to_dict()))["films"][0]
    assert said["verification"]["passed"] and said["report"].endswith("film.report.json")
    assert "its shots are of [1, 3, 1]" in str(result)


def test_the_same_request_gives_the_same_takes(pipe: Seedance, tmp_path: Path) -> None:
    records = []
    for name in ("a.mp4", "b.mp4"):
        result = made(pipe, tmp_path / name, Critic(lambda look, shot: False), verify=True, retakes=2)
        records.append(result.films[0].record["verification"])
    assert records[0] == records[1] and len(records[0]["takes"]) == 3
    assert np.array_equal(*(read_video(tmp_path / name).frames for name in ("a.mp4", "b.mp4")))


def test_a_film_whose_shots_still_fail_is_written_and_says_so(pipe: Seedance, tmp_path: Path) -> None:
    result = made(pipe, tmp_path / "film.mp4", Critic(lambda look, shot: shot > 1), verify=True)
    assert (tmp_path / "film.mp4").exists() and result.films[0].record["verification"]["failed_shots"] == [1]
    assert "FAIL shot 1" in str(result)


def test_a_kept_film_is_carried_on_and_made_anew_in_part(pipe: Seedance, tmp_path: Path) -> None:
    made(pipe, tmp_path / "film.mp4", state=True)
    first = load_state(tmp_path / "film.mp4")
    made(
        pipe, tmp_path / "longer.mp4", from_state=tmp_path / "film.mp4", prompts=("A cone jumps.",), state=True, seed=8
    )
    longer = load_state(tmp_path / "longer.state.safetensors")
    assert longer.plan.frames == (5, 5, 5, 6) and torch.equal(longer.latents[:, :6], first.latents)
    assert read_record(tmp_path / "longer.mp4")["seed"] == 8  # type: ignore[index]
    made(
        pipe, tmp_path / "anew.mp4", from_state=tmp_path / "longer.mp4", retake_shots=(2,), prompts=("A red sphere.",),
        state=True,
    )  # fmt: skip
    anew = load_state(tmp_path / "anew.mp4")
    assert [shot.caption for shot in anew.plan.script.shots][1:3] == ["A red sphere.", "A red cube spins."]
    assert torch.equal(anew.latents[:, :2], longer.latents[:, :2]) and torch.equal(
        anew.latents[:, 4:], longer.latents[:, 4:]
    )
    assert not torch.equal(anew.latents[:, 2:4], longer.latents[:, 2:4])
    assert len(anew.record["history"]) == 2


def test_a_kept_film_can_be_verified_and_titled_without_being_drawn_again(pipe: Seedance, tmp_path: Path) -> None:
    made(pipe, tmp_path / "film.mp4", state=True)
    critic = Critic(lambda look, shot: True)
    made(
        pipe, tmp_path / "titled.mp4", critic, from_state=tmp_path / "film.mp4", verify=True, title="Three", state=True
    )
    plain, titled = read_video(tmp_path / "film.mp4"), read_video(tmp_path / "titled.mp4")
    assert len(titled.frames) == 24 + 15 + 10 and critic.looks == 1
    told = read_record(tmp_path / "titled.mp4")
    assert told is not None and told["frames"] == [5, 5, 5] and told["published"]["offset"] == 2.0
    assert np.abs(titled.frames[24:39].astype(int) - plain.frames).mean() < 3
    assert torch.equal(load_state(tmp_path / "film.mp4").latents, load_state(tmp_path / "titled.mp4").latents)
    assert "published" not in load_state(tmp_path / "titled.mp4").record


def test_new_words_are_for_the_shots_named_or_for_all() -> None:
    script = Script.parse(WORDS)
    assert [s.caption for s in reworded(script, [3, 1], Script.parse("One. [cut] Three.")).shots] == [
        "One.", "A blue sphere spins.", "Three.",
    ]  # fmt: skip
    assert reworded(script, [1], Script.parse(WORDS)) == script
    with pytest.raises(SeedanceError, match="2 captions for 1 shots"):
        reworded(script, [1], Script.parse("One. [cut] Two."))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"verify": True}, "verify: nobody"), ({"retakes": 2}, "retakes: only a film that is verified"),
        ({"retakes": -1}, "retakes"), ({"retake_shots": (1,)}, "say from_state too"),
        ({"from_state": "none.mp4"}, "render with --state"), ({"title": ""}, "the script has none"),
        ({"title": "\U0001fae0"}, "title: no font"), ({"soundtrack": Path("none.mp3")}, "soundtrack: .*does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_named_before_anything_is_drawn(
    pipe: Seedance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], says: str
) -> None:
    monkeypatch.setattr(Seedance, "_draw", lambda *_, **__: pytest.fail("drawn"))
    with pytest.raises((SeedanceError, ShotsError), match=says):
        made(pipe, tmp_path / "film.mp4", **how)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({}, "say what is to be done"), ({"retake_shots": (4,)}, "shots 1 to 3"),
        ({"height": 64, "verify": True}, "height"), ({"prompts": ("A.", "B.")}, "one film"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_with_a_kept_film_is_named(
    pipe: Seedance, tmp_path: Path, how: dict[str, Any], says: str
) -> None:
    made(pipe, tmp_path / "film.mp4", state=True)
    with pytest.raises(SeedanceError, match=says):
        made(pipe, tmp_path / "new.mp4", Critic(lambda *_: True), from_state=tmp_path / "film.mp4", **how)
    assert not (tmp_path / "new.mp4").exists()


def test_a_state_of_another_model_s_latents_is_refused(pipe: Seedance, tmp_path: Path) -> None:
    film = pipe.take(WORDS, num_frames=5)
    film.record["model"] = {"name": "other", "files": dict.fromkeys(pipe.files, "0" * 64)}
    film.save(tmp_path / "other.state.safetensors")
    with pytest.raises(SeedanceError, match="made by other"):
        made(pipe, tmp_path / "new.mp4", from_state=tmp_path / "other.state.safetensors", prompts=("A cone.",))


def test_the_shell_verifies_keeps_and_takes_up_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def verifier(name: str) -> Critic:
        asked.append(name)
        return Critic(lambda look, shot: look > 1)

    monkeypatch.setattr(cli, "_verifier", verifier)
    film, out = str(tmp_path / "film.mp4"), ["--model", str(tiny_model), "--json", "--seed", "1"]
    assert cli.main(["render", WORDS, "-o", film, "--verify", "--retakes", "2", "--state", *out]) == 0
    said = json.loads(capsys.readouterr().out)["films"][0]
    assert said["verification"]["passed"] and len(said["record"]["verification"]["takes"]) == 2
    anew = str(tmp_path / "anew.mp4")
    assert cli.main(["render", "--from-state", film, "--retake-shots", "1,3", "-o", anew, *out]) == 0
    assert json.loads(capsys.readouterr().out)["films"][0]["record"]["task"] == "re-take of shots 1, 3"
    titled = str(tmp_path / "titled.mp4")
    assert cli.main(["render", WORDS, "--title", "-o", titled, *out]) == 2
    assert "title: the script has none" in capsys.readouterr().err
    assert asked == ["unitime-nano"]
