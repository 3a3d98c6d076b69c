"""The shell: what it prints, how it exits, and that bad treatment costs one clear line and nothing else."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cli
from shots import probe, read_record, read_video
from shots import video as video_module

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line in this process: (exit status, stdout, stderr)."""

    def command(*words: object) -> tuple[int, str, str]:
        try:
            status = cli.main([str(word) for word in words])
        except SystemExit as stop:  # argparse's way out
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return command


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------------------ usage


def test_help_needs_no_torch_and_names_every_command() -> None:
    code = "import sys, cli\ntry: cli.main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    assert all(name in done.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize(
    "words", [[], ["dance"], ["render", "--steps", "many", "a"], ["render", "--what", "a"], ["train"]]
)
def test_bad_usage_exits_with_two(run: Run, words: list[str]) -> None:
    status, out, err = run(*words)
    assert status == 2
    assert out == ""
    assert "usage:" in err


def test_underscores_in_flags_are_hyphens_and_values_stay() -> None:
    words = ["render", "--num_frames=9", "--negative_prompt", "a_b", "--", "--a_b"]
    assert cli._hyphened(words) == ["render", "--num-frames=9", "--negative-prompt", "a_b", "--", "--a_b"]


def test_env_tells_versions_and_the_dtype_with_its_reason(run: Run) -> None:
    status, out, _ = run("env", "--json")
    told = json.loads(out)
    assert status == 0
    assert told["packages"]["torch"]
    assert told["dtype_reason"]
    assert "dtype_reason" in run("env")[1]


def test_models_are_listed(run: Run) -> None:
    status, out, _ = run("models", "--json")
    assert status == 0
    assert [model["name"] for model in json.loads(out)["models"]] == ["seedance-nano", "unitime-nano"]


# ----------------------------------------------------------------------------------------------------------- render


def test_a_script_becomes_a_film_with_exact_lengths_and_a_record(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    script = tmp_path / "s.yaml"
    script.write_text("shots: [{caption: a red cube jumps, seconds: 0.5}, {caption: a blue sphere, seconds: 0.25}]")
    film = tmp_path / "f.mp4"
    status, out, err = run("render", "--script", script, "-o", film, "--model", tiny_model, "--seed", 3, "--fps", 12)
    assert status == 0, err
    assert "seed 3" in out
    assert str(film) in out
    assert probe(film).frames == 6 + 3
    record = read_record(film)
    assert record is not None
    assert record["generated"] is True
    assert record["seed"] == 3
    assert [shot["caption"] for shot in record["script"]["shots"]] == ["a red cube jumps", "a blue sphere"]
    assert record["model"]["files"]


def test_json_is_one_object_on_stdout_and_the_drawn_seed_is_in_it(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    words = ("render", "a red cube", "-o", tmp_path / "f.mp4", "--model", tiny_model, "--num_frames", 5)
    status, out, _ = run(*words, "--json")
    assert status == 0
    seed = json.loads(out)["films"][0]["seed"]
    before = (tmp_path / "f.mp4").read_bytes()
    assert run(*words, "--seed", seed)[0] == 0
    again = read_video(tmp_path / "f.mp4").frames
    (tmp_path / "f.mp4").write_bytes(before)
    assert np.array_equal(read_video(tmp_path / "f.mp4").frames, again)


def test_several_prompts_and_samples_are_several_films(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red cube\n\n# a remark\na blue sphere\n")
    words = ("--from-file", tmp_path / "p.txt", "--num-samples", 2, "--num-frames", 5, "--seed", 7, "--no-record")
    status, out, err = run("render", *words, "-o", tmp_path / "f.mp4", "--model", tiny_model, "--json")
    assert status == 0, err
    films = json.loads(out)["films"]
    assert [film["seed"] for film in films] == [7, 8, 7, 8]
    assert leftovers(tmp_path) == ["f-1.mp4", "f-2.mp4", "f-3.mp4", "f-4.mp4", "p.txt"]
    assert read_record(tmp_path / "f-1.mp4") is None


def test_a_dry_run_checks_and_writes_nothing(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    words = ("render", "a red cube", "-o", tmp_path / "f.mp4", "--model", tiny_model, "--dry-run", "--json")
    status, out, err = run(*words)
    assert status == 0, err
    assert json.loads(out)["films"][0]["path"] is None
    assert leftovers(tmp_path) == []


def test_sizes_that_do_not_fit_are_rounded_and_unknown_words_named(
    run: Run, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("--height", 30, "--width", 50, "--num-frames", 5, "--model", tiny_model, "-o", tmp_path / "f.mp4")
    assert run("render", "a purple elephant", *words)[0] == 0
    info = probe(tmp_path / "f.mp4")
    assert (info.height % 16, info.width % 16) == (0, 0)
    assert "height 30" in caplog.text
    assert "purple" in caplog.text
    assert "elephant" in caplog.text


def test_any_readable_picture_can_be_the_first_frame(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    Image.new("CMYK", (40, 30), (0, 200, 200, 0)).save(tmp_path / "c.jpg")
    Image.new("RGBA", (30, 40), (0, 255, 0, 128)).save(tmp_path / "a.png")
    words = ("--num-frames", 9, "--model", tiny_model, "-o", tmp_path / "f.mp4", "--last-image", tmp_path / "a.png")
    status, _, err = run("render", "a cube", "--image", tmp_path / "c.jpg", *words)
    assert status == 0, err
    assert probe(tmp_path / "f.mp4").frames == 9


FILES = {
    "none.yaml": "shots: []",
    "zero.yaml": "shots: [{caption: a cube, seconds: 0}]",
    "minus.yaml": "shots: [{caption: a cube, seconds: -1}]",
    "key.yaml": "shots: [{caption: a cube, second: 1}]",
    "empty.txt": "\n",
    "photo.png": "this is no picture",
}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "nothing given"),
        (["a cube", "--script", "{}/key.yaml"], "give one of"),
        (["  "], "empty"),
        (["cube " * 2000], "at most 5000"),
        (["--script", "{}/none.yaml"], "has none"),
        (["--script", "{}/zero.yaml"], "shot 1, seconds: 0"),
        (["--script", "{}/minus.yaml"], "shot 1, seconds: -1"),
        (["--script", "{}/key.yaml"], "did you mean 'seconds'"),
        (["--script", "{}/gone.yaml"], "does not exist"),
        (["--from-file", "{}/empty.txt"], "holds no prompts"),
        (["a cube", "--image", "{}/photo.png"], "is not a picture"),
        (["a cube", "--last-image", "{}/gone.png"], "does not exist"),
        (["a cube", "--num-frames", "0"], "num_frames: 0"),
        (["a cube", "--steps", "0"], "steps: 0"),
        (["a cube", "--num-samples", "0"], "num_samples: 0"),
        (["a cube", "--fps", "nan"], "fps: nan"),
        (["a cube", "--height", "-16"], "height: -16"),
        (["a cube", "--seed", "-1"], "seed: -1"),
        (["a cube", "--model", "seedance-giga"], "'seedance-giga' is no shipped model"),
        (["a cube", "--model", "{}"], "no model_index.json"),
        (["a cube", "-o", "{}/no/f.mp4"], "does not exist"),
        (["a cube", "-o", "{}/sub.mp4"], "is a folder"),
        (["a cube", "-o", "/proc/f.mp4"], "nothing can be written in /proc"),
        (["a cube", "-o", "{}/f.gif"], "should end in"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_bad_requests_cost_one_clear_line(
    run: Run, tiny_model: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    (tmp_path / "sub.mp4").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    before = leftovers(tmp_path)
    given = [word.replace("{}", str(tmp_path)) for word in words]
    status, out, err = run("render", "--model", tiny_model, "-o", tmp_path / "f.mp4", *given)
    assert (status, out) == (2, "")
    assert says in err
    assert err.startswith("seedance: ")
    assert err.count("\n") == 1
    assert leftovers(tmp_path) == before


def test_corrupted_weights_are_named_and_nothing_is_rendered(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    weights = model / "transformer" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    status, out, err = run("render", "a cube", "--model", model, "-o", tmp_path / "f.mp4")
    assert status != 0
    assert "transformer/model.safetensors is corrupted (SHA-256" in err
    assert err.count("\n") == 1
    weights.unlink()
    assert "is missing" in run("render", "a cube", "--model", model, "-o", tmp_path / "f.mp4")[2]
    assert leftovers(tmp_path) == ["model"]


def test_a_full_disk_exits_with_one_and_keeps_the_film_that_was_there(
    run: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    film = tmp_path / "f.mp4"
    words = ("render", "a cube", "--num-frames", 5, "--no-record", "--model", tiny_model, "-o", film)
    assert run(*words, "--seed", 1)[0] == 0
    before = film.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(video_module.os, "fsync", full)
        status, out, err = run(*words, "--seed", 2)
    assert (status, out) == (1, "")
    assert "could not be written (No space left on device)" in err
    assert film.read_bytes() == before
    assert leftovers(tmp_path) == ["f.mp4", "f.undecoded.safetensors"]  # what was drawn is not lost


def test_a_film_too_large_for_the_memory_costs_one_clear_line(
    run: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1099511627776 bytes")

    monkeypatch.setattr("seedance.pipeline.Seedance.sample", full)
    status, out, err = run("render", "a cube", "--model", tiny_model, "-o", tmp_path / "f.mp4")
    assert (status, out) == (1, "")
    assert "not enough memory" in err
    assert err.count("\n") == 1
    assert leftovers(tmp_path) == []


def test_a_killed_render_leaves_nothing_after_the_next_one(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    film = tmp_path / "f.mp4"
    words = ["render", "a cube", "--model", str(tiny_model), "-o", str(film), "--seed", "1", "--steps", "1"]
    long = [sys.executable, "cli.py", *words, "--num-frames", "1201", "--guidance-scale", "1"]
    victim = subprocess.Popen(long, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".f.mp4.*.part")):
        assert victim.poll() is None, "the render ended before it could be killed"
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not film.exists()
    assert run(*words, "--num-frames", 5)[0] == 0
    assert leftovers(tmp_path) == ["f.mp4", "f.mp4.json"]


def test_the_same_command_gives_the_same_film(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        words = ("--seed", 5, "--num-frames", 9, "--no-record", "--model", tiny_model, "-o", tmp_path / name)
        assert run("render", "a red cube [cut] a blue sphere", *words)[0] == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


# ------------------------------------------------------------------------------------------------------------ stage


def test_the_stage_writes_a_film_and_its_truth(run: Run, tmp_path: Path) -> None:
    film, truth = tmp_path / "f.mp4", tmp_path / "f.json"
    words = ("stage", "--seed", 4, "--seconds", 5, "--height", 32, "--width", 48, "--fps", 4)
    status, out, err = run(*words, "-o", film, "--annotations", truth)
    assert status == 0, err
    assert "seed 4" in out
    told = json.loads(truth.read_text())
    assert told["duration"] == pytest.approx(probe(film).duration, abs=0.3)
    assert told["shots"][-1]["end"] == told["duration"]
    assert {"fps", "shots", "events", "qa"} <= told.keys()
    assert run(*words, "-o", tmp_path / "g.mp4", "--annotations", tmp_path / "g.json")[0] == 0
    assert json.loads((tmp_path / "g.json").read_text()) == told
    assert film.read_bytes() == (tmp_path / "g.mp4").read_bytes()


def test_the_stage_follows_a_script_and_names_what_it_cannot_show(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "s.yaml").write_text("shots: [{caption: a red cube jumps over an elephant, seconds: 1}]")
    words = ("--script", tmp_path / "s.yaml", "--seed", 1, "--height", 32, "--width", 32, "--fps", 4)
    status, out, err = run("stage", *words, "-o", tmp_path / "f.mp4", "--json")
    assert status == 0, err
    assert json.loads(out)["duration"] == 1.0
    assert "elephant" in caplog.text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seconds", "0"], "seconds: 0"),
        (["--fps", "0"], "fps: 0"),
        (["--height", "4"], "height, width: 4"),
        (["--annotations", "{}/no/a.json"], "annotations: the folder"),
        (["--script", "{}/gone.yaml"], "does not exist"),
    ],
)
def test_bad_stage_requests_cost_one_clear_line(run: Run, tmp_path: Path, words: list[str], says: str) -> None:
    given = [word.replace("{}", str(tmp_path)) for word in words]
    status, _, err = run("stage", "-o", tmp_path / "f.mp4", *given)
    assert status == 2
    assert says in err
    assert err.count("\n") == 1
    assert leftovers(tmp_path) == []


# ------------------------------------------------------------------------------------------------------------ train


def test_bad_recipes_cost_one_clear_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("task: dance\n")
    for words, says in (
        ([tmp_path / "gone.yaml"], "gone.yaml"),
        ([tmp_path / "r.yaml"], "task 'dance'"),
        ([tmp_path / "r.yaml", "--time-budget", "5"], "task 'dance' has no clock"),
        (["nano-vae", "--time-budget", "0"], "time_budget: 0 seconds"),
    ):
        status, _, err = run("train", *words)
        assert status == 2
        assert says in err
        assert err.count("\n") == 1
