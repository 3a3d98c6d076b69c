"""Requests for films on open checkpoints, as the shell and the server make them: adapters with every saving, verified
and taken again, taken up again, and refused before anything is loaded where memory is short."""

from __future__ import annotations

import base64
import functools
import io
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cli import main
from seedance import SeedanceError, renderer
from seedance.acceleration import fit as fitting
from seedance.acceleration.fit import fit, needs
from seedance.acceleration.options import Acceleration
from seedance.acceleration.staged import StagedSeedance, Words
from seedance.acceleration.tiny import TinyDecoder
from seedance.api import RenderRequest, render
from seedance.engines.engine import SEED_STEP
from seedance.engines.folder import open_checkpoint
from seedance.pipeline import LatentFilm, Seedance, make_plan, model_defaults
from tests.seedance.engines.test_open_lora import MODULES, pairs, peft
from tests.seedance.test_takes import Critic

Make = Callable[[str], Path]
TWO = "a red cube jumps [cut] a blue sphere spins"


@pytest.fixture
def adapter(opened: Callable[[str], Any], tmp_path: Path) -> str:
    """An adapter of the tiny Wan, at half strength."""
    save_file(peft(pairs(opened("wan-t2v"))), tmp_path / "style.safetensors")
    return f"{tmp_path / 'style.safetensors'}:0.5"


def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are traced as they are compiled, but no code is made of the graph: that takes a minute."""
    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(real, backend="eager"))


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({}, 1e-5),
        ({"offload": "model"}, 1e-5),
        ({"offload": "group"}, 1e-5),
        ({"compile": True, "offload": "disk", "cache": 1e-6}, 1e-4),
        ({"quantization": "int8"}, 0.05),
    ],
    ids=lambda value: "+".join(map(str, value)) or "plain" if isinstance(value, dict) else "",
)
def test_an_adapter_goes_with_every_saving(
    checkpoint: Make, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any],
    bound: float,
) -> None:  # fmt: skip
    if "quantization" in options:
        pytest.importorskip("torchao")
    _eager(monkeypatch)
    folder = checkpoint("wan-t2v")
    plain: Any = Seedance.from_pretrained(folder, dtype="fp32", device="cpu", lora=[adapter])
    plan = plain.plan("a red cube jumps", seed=4)
    wanted = plain.sample([plan])[0].latents
    ours = StagedSeedance.open(
        open_checkpoint(folder), name="wan", dtype="fp32", device="cpu", lora=[adapter],
        acceleration=Acceleration(**options), words=Words(tmp_path / "words"),
    )  # fmt: skip
    first, second = (ours.sample([plan])[0] for _ in range(2))
    assert (first.latents - wanted).norm() <= bound * wanted.norm()
    assert torch.equal(first.latents, second.latents)
    for film in (first, second):  # the first one is drawn while the transformer is not loaded yet
        assert [(said["scale"], said["modules"]) for said in film.record["lora"]] == [(0.5, len(MODULES))]
    if "quantization" in options:  # an adapter's own matrices are not rounded
        kinds = {name: type(p.data) for name, p in ours.parts["transformer"].named_parameters()}
        assert {kind for name, kind in kinds.items() if ".lora_" in name} == {torch.Tensor}
        assert any(kind is not torch.Tensor for kind in kinds.values())


# ---------------------------------------------------------------------- memory


def test_each_stage_is_the_one_that_is_named_where_it_is_the_largest(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = open_checkpoint(checkpoint("wan-t2v"))
    plan = make_plan("a red cube jumps", model_defaults(checkpoint("wan-t2v")))
    for worst in ("text", "sampling", "decoding"):
        told = {stage: 10 * 10**9 if stage == worst else 10**9 for stage in ("text", "sampling", "decoding")}
        monkeypatch.setattr(fitting, "needs", lambda *said, told=told: dict(told))
        with pytest.raises(SeedanceError, match=rf"memory: {worst} needs 10\.0 GB of cpu .* 5\.0 GB are free") as found:
            fit(
                held, plan, device=torch.device("cpu"), dtype=torch.float32, acceleration=Acceleration(), free=5 * 10**9
            )
        assert "\n" not in str(found.value)


def test_texts_are_encoded_in_main_memory_where_only_their_encoder_is_too_large_for_the_device(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = open_checkpoint(checkpoint("wan-t2v"))
    plan = make_plan("a red cube jumps", model_defaults(checkpoint("wan-t2v")))
    monkeypatch.setattr(fitting, "needs", lambda *said: {"text": 10**10, "sampling": 10**9, "decoding": 10**9})
    said: dict[str, Any] = {"device": torch.device("cuda"), "dtype": torch.float32, "free": 5 * 10**9}
    found = fit(held, plan, host=10**12, acceleration=Acceleration(), **said)
    assert (found.offload, found.stages["text"]) == ("none", 0)
    with pytest.raises(SeedanceError, match="memory: text needs"):
        fit(held, plan, host=10, acceleration=Acceleration(), **said)


def test_what_waits_in_main_memory_has_to_fit_there(checkpoint: Make) -> None:
    held = open_checkpoint(checkpoint("wan-t2v"))
    plan = make_plan("a red cube jumps", model_defaults(checkpoint("wan-t2v")))
    said: dict[str, Any] = {"device": torch.device("cuda"), "dtype": torch.float32}
    tight = max(needs(held, plan, torch.float32, "model", False, None).values()) + 1
    free = int(tight / fitting.MARGIN) + 1
    assert fit(held, plan, free=free, host=10**12, acceleration=Acceleration(), **said).offload == "model"
    assert fit(held, plan, free=free, host=10, acceleration=Acceleration(), **said).offload == "disk"
    with pytest.raises(SeedanceError, match=r"the transformer waits in .* of main memory .*, offload disk"):
        fit(held, plan, free=free, host=10, acceleration=Acceleration(offload="model"), **said)


def test_on_the_cpu_only_the_disk_makes_room(checkpoint: Make) -> None:
    held = open_checkpoint(checkpoint("wan-t2v"))
    plan = make_plan("a red cube jumps", model_defaults(checkpoint("wan-t2v")))
    said: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
    worst = {level: max(needs(held, plan, torch.float32, level, True, None).values()) for level in ("none", "disk")}
    assert worst["disk"] < worst["none"]
    free = int(worst["disk"] / fitting.MARGIN) + 1
    assert fit(held, plan, free=free, acceleration=Acceleration(), **said).offload == "disk"
    with pytest.raises(SeedanceError, match="memory: "):  # a model that waits in main memory is in main memory
        fit(held, plan, free=free, acceleration=Acceleration(offload="model"), **said)


def test_too_little_memory_is_said_at_the_shell_and_from_python_before_a_part_is_loaded(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from seedance.acceleration import staged

    folder = checkpoint("wan-t2v")
    monkeypatch.setattr(fitting, "free_bytes", lambda device: 1000)
    words = ["render", "a red cube", "--model", str(folder), "-o", str(tmp_path / "a.mp4"), "--device", "cpu"]
    assert main([*words, "--dtype", "fp32"]) == 2
    said = capsys.readouterr().err
    assert "memory: " in said and "take a smaller size" in said and "Traceback" not in said
    pipe: Any = Seedance.from_pretrained(folder, dtype="fp32", device="cpu", acceleration=Acceleration())
    monkeypatch.setattr(staged, "load_part", lambda *said: pytest.fail(f"{said[1]} was loaded"))
    with pytest.raises(SeedanceError, match="memory: "):
        pipe("a red cube", seed=1)


def test_what_a_film_will_take_is_said_before_a_part_is_loaded(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from seedance.acceleration import staged

    def stopped(*_: Any) -> None:
        raise SeedanceError("a part was loaded")

    monkeypatch.setattr(staged, "load_part", stopped)
    words = ["render", "a red cube", "--model", str(checkpoint("wan-t2v")), "-o", str(tmp_path / "a.mp4")]
    assert main([*words, "--device", "cpu", "--dtype", "fp32", "--vae-tiling", "--cache", "0.2"]) == 2
    said = [record.getMessage() for record in caplog.records]
    told = next(at for at, line in enumerate(said) if "tokens" in line)
    assert told < next(at for at, line in enumerate(said) if "on cpu, " in line)  # what the loading begins with
    for part in ("32 x 32, 5 frames in float32 on cpu: 8 tokens", "TFLOP", "GB for sampling", "GB for decoding",
                 "offload none, decoded in tiles, cache 0.2"):  # fmt: skip
        assert part in said[told]


# ---------------------------------------------------------------------- verified, taken again


def test_a_film_of_an_open_checkpoint_is_verified_and_its_failed_shots_are_taken_again(
    checkpoint: Make, tmp_path: Path
) -> None:
    request = RenderRequest(
        prompts=(TWO,), model=str(checkpoint("wan-ti2v")), output=tmp_path / "film.mp4", seed=3, device="cpu",
        dtype="fp32", verify=True, retakes=2, keep_takes=tmp_path / "takes", state=True,
    )  # fmt: skip
    critic = Critic(lambda look, shot: shot != 2 or look > 1)  # shot 2 passes from the second look on
    film = render(request, verifier=critic).films[0]
    loop = film.record["verification"]
    assert loop["passed"] and loop["chosen"] == [1, 2] and [len(take["shots"]) for take in loop["takes"]] == [2, 1]
    first, second = (LatentFilm.load(tmp_path / f"takes/film.take-{n}.state.safetensors") for n in (1, 2))
    kept = LatentFilm.load(tmp_path / "film.state.safetensors")
    assert torch.equal(kept.shots()[0], first.shots()[0]) and torch.equal(kept.shots()[1], second.shots()[1])
    assert not torch.equal(first.shots()[1], second.shots()[1])
    told = kept.record["shots"]  # the second shot's own seed, and what it began from
    assert told[0]["seed"] == 3 and told[1]["seed"] == loop["takes"][1]["seed"] + SEED_STEP
    assert told[1]["from"] == ["image"] and kept.record["seed"] == 3
    report = json.loads((tmp_path / "film.report.json").read_text())
    assert report["passed"] and (tmp_path / "film.sheet.png").stat().st_size > 0


def test_what_is_told_of_a_spliced_shot_comes_with_it(opened: Callable[[str], Any]) -> None:
    pipe = opened("wan-ti2v")
    one, two = (pipe.sample([pipe.plan(TWO, seed=seed, num_frames=5)])[0] for seed in (1, 2))
    both = pipe.splice(one, two, [2])
    assert torch.equal(both.shots()[1], two.shots()[1]) and torch.equal(both.shots()[0], one.shots()[0])
    assert both.record["shots"] == [one.record["shots"][0], two.record["shots"][1]]
    assert pipe.retake(both, [1]).shots()[1].equal(two.shots()[1])


def test_the_shell_verifies_an_open_checkpoints_film_with_the_shipped_grounder(
    checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "film.mp4"
    main(["render", TWO, "--model", str(checkpoint("wan-t2v")), "-o", str(file), "--seed", "1", "--device", "cpu",
          "--verify", "--retakes", "1", "--json"])  # fmt: skip
    said = json.loads(capsys.readouterr().out)["films"][0]
    verdict = said["verification"]
    assert len(verdict["shots"]) == 2 and isinstance(verdict["passed"], bool)
    assert said["record"]["engine"]["family"] == "Wan" and file.is_file() and Path(said["sheet"]).is_file()
    assert 1 <= len(said["record"]["verification"]["takes"]) <= 2


# ---------------------------------------------------------------------- the server's renderer


def test_the_servers_renderer_opens_a_checkpoint_in_stages_and_shows_previews_by_its_tiny_autoencoder(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(checkpoint("wan-t2v"), tmp_path / "wan"))
    torch.manual_seed(0)
    save_file(TinyDecoder(16, (4, 4, 4, 4)).state_dict(), folder / "tiny.safetensors")
    monkeypatch.setattr(renderer, "_APART", 0.0)
    monkeypatch.setattr(renderer, "_PART", 1e9)
    said: list[dict[str, Any]] = []
    make = renderer.load(str(folder), "cpu")
    request = {"script": {"shots": [{"caption": "a red cube"}]}, "seed": 1, "height": 32, "width": 32, "fps": 8.0,
               "steps": 3}  # fmt: skip
    (tmp_path / "job").mkdir()
    told = make(renderer.Task("job", request, tmp_path / "job"), renderer.Report(said.append, threading.Event()))
    assert (tmp_path / "job" / "film.mp4").is_file() and told["frames"]
    film = LatentFilm.load(tmp_path / "job" / "film.state.safetensors")
    assert film.record["acceleration"]["offload"] == "none"  # what the estimate took
    pictures = [base64.b64decode(picture) for line in said for picture in line["previews"]]
    assert pictures and Image.open(io.BytesIO(pictures[0])).size == (32, 32)  # its pixels, not the linear map's 16
    save_file({"x": torch.zeros(1)}, folder / "tiny.safetensors")
    with pytest.raises(SeedanceError, match="TAEHV"):
        renderer.load(str(folder), "cpu")


# ---------------------------------------------------------------------- taken up again


def test_a_kept_film_is_taken_up_with_its_adapter_and_not_without_a_word(
    checkpoint: Make, adapter: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said: dict[str, Any] = {"model": str(checkpoint("wan-t2v")), "device": "cpu", "dtype": "fp32", "state": True}
    film = render(
        RenderRequest(prompts=(TWO,), output=tmp_path / "film.mp4", seed=3, lora=(adapter,), num_frames=5, **said)
    ).films[0]
    assert film.record["lora"][0]["file"] == "style.safetensors"
    again: dict[str, Any] = {**said, "from_state": tmp_path / "film.mp4", "retake_shots": (2,), "seed": 3}
    states = {}
    for name, more in (("with", {"lora": (adapter,)}), ("without", {})):
        caplog.clear()
        made = render(RenderRequest(output=tmp_path / f"{name}.mp4", **again, **more)).films[0]
        assert ("lora" in made.record) == (name == "with")
        assert ("made with style.safetensors" in caplog.text) == (name == "without")
        states[name] = LatentFilm.load(tmp_path / f"{name}.state.safetensors")
    assert torch.equal(states["with"].shots()[0], states["without"].shots()[0])
    assert not torch.equal(states["with"].shots()[1], states["without"].shots()[1])
    with pytest.raises(SeedanceError, match="does not exist"):
        render(RenderRequest(output=tmp_path / "no.mp4", lora=("gone.safetensors",), **again))
    with pytest.raises(SeedanceError, match="carry: .* takes no first frames"):
        render(RenderRequest(output=tmp_path / "no.mp4", carry="last", **again))
