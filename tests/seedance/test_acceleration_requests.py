"""What saves time and memory, asked for in a request and at the shell: done, recorded, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from cli import main
from seedance import SeedanceError
from seedance.acceleration.options import DEFAULT_CACHE, Acceleration
from seedance.acceleration.parallel import ByRows
from seedance.api import RenderRequest, render
from seedance.pipeline import LatentFilm, Seedance


def test_a_request_with_a_cache_and_less_guidance_is_done_and_recorded(tiny_model: Path, tmp_path: Path) -> None:
    request = RenderRequest(
        prompts=("a red cube jumps",), model=str(tiny_model), output=tmp_path / "film.mp4", seed=1, device="cpu",
        steps=4, cache=0, guidance_interval=(0.0, 0.6), vae_tiling=True,
    )  # fmt: skip
    record = render(request).films[0].record
    used = record["acceleration"]
    assert used["cache"] == DEFAULT_CACHE and used["guidance_interval"] == [0.0, 0.6] and used["tiling"]
    assert 0 <= used["skipped"] < 1
    plain = render(RenderRequest(**{**vars(request), "cache": None, "guidance_interval": (0.0, 1.0)})).films[0].record
    assert record["flops"]["transformer"] < plain["flops"]["transformer"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mp4", "film.mp4.json"]


def test_what_was_drawn_is_kept_when_decoding_fails(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Seedance.decode

    def broken(self: Seedance, film: LatentFilm) -> object:
        raise MemoryError

    monkeypatch.setattr(Seedance, "decode", broken)
    request = RenderRequest(
        prompts=("a red cube jumps",), model=str(tiny_model), output=tmp_path / "film.mp4", seed=1, device="cpu"
    )
    with pytest.raises(MemoryError):
        render(request)
    assert [path.name for path in tmp_path.iterdir()] == ["film.undecoded.safetensors"]
    kept = LatentFilm.load(tmp_path / "film.undecoded.safetensors")
    monkeypatch.setattr(Seedance, "decode", real)
    pipe = Seedance.from_pretrained(tiny_model, device="cpu")
    fresh = pipe.sample([pipe.plan("a red cube jumps", seed=1)])[0]
    assert torch.equal(kept.latents, fresh.latents)
    np.testing.assert_array_equal(pipe.video(kept).frames, pipe.video(fresh).frames)


def test_compiled_layers_and_tiles_are_options_of_the_pipeline(tiny_model: Path) -> None:
    plain = Seedance.from_pretrained(tiny_model, device="cpu")
    tiled = Seedance.from_pretrained(tiny_model, device="cpu", acceleration=Acceleration(tiling=True))
    film = plain.sample([plain.plan("a red cube jumps", seed=1)])[0]
    np.testing.assert_array_equal(plain.video(film).frames, tiled.video(film).frames)  # smaller than one tile
    with pytest.raises(SeedanceError, match="offload"):
        Seedance.from_pretrained(tiny_model, device="cpu", acceleration=Acceleration(offload="disk"))


def test_a_pipeline_is_spread_over_a_mesh_by_one_call(tiny_model: Path, tmp_path: Path) -> None:
    plain, spread = (Seedance.from_pretrained(tiny_model, device="cpu") for _ in range(2))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        with pytest.raises(SeedanceError, match="without names"):
            spread.spread(init_device_mesh("cpu", (1,)))
        spread.spread(init_device_mesh("cpu", (1, 1), mesh_dim_names=("guidance", "sequence")))
        films = [pipe.sample([pipe.plan("a red cube jumps", seed=1)], steps=2)[0] for pipe in (plain, spread)]
    finally:
        dist.destroy_process_group()
    assert isinstance(spread.denoiser, ByRows)
    torch.testing.assert_close(films[1].latents, films[0].latents)


def test_the_shell_says_what_will_be_done_and_refuses_what_is_of_no_use(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["render", "a red cube jumps", "--model", str(tiny_model), "--dry-run", "--json"]
    assert main([*words, "--cache", "--guidance-interval", "0.1", "0.9"]) == 0
    plan = json.loads(capsys.readouterr().out)["films"][0]["record"]["plan"]
    assert plan["acceleration"] == {"cache": DEFAULT_CACHE, "guidance_interval": [0.1, 0.9]}
    assert main([*words, "--quantization", "int8"]) == 2
    assert "quantization: of no use" in capsys.readouterr().err
    assert main([*words, "--offload", "moon"]) == 2
    assert "offload: 'moon' is not one of" in capsys.readouterr().err
