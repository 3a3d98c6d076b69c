"""What `evaluate vae` measures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from seedance import evaluation
from seedance.errors import SeedanceError
from seedance.training import RECIPES
from seedance.training.data import to_frames, to_pixels
from seedance.training.discriminator import Discriminators, adversarial_terms
from seedance.vae import VideoVAE
from shots.runtime.recipe import load_recipe


def test_psnr_is_that_of_eight_bit_frames() -> None:
    a = torch.full((2, 4, 4, 3), 100, dtype=torch.uint8)
    assert evaluation.psnr(a, a) == 100.0
    assert evaluation.psnr(a, a + 5) == pytest.approx(34.15, abs=0.01)  # 20 log10(255 / 5)
    with pytest.raises(SeedanceError, match="one shape"):
        evaluation.psnr(a, a[:1])


def test_frames_survive_the_way_to_pixels_and_back() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16, 1).expand(1, 1, 16, 16, 3)
    assert torch.equal(to_frames(to_pixels(frames)), frames)


def test_held_out_videos_are_never_trained_on() -> None:
    suite = yaml.safe_load(evaluation.SUITE.read_text())
    trained = {Path(name).name for name in load_recipe("nano-vae-frames", shipped=[RECIPES])["videos"]}
    assert not trained & set(suite["real"]["videos"])
    assert set(suite["baseline"]["videos"]) <= trained
    sources = load_recipe("nano-vae", shipped=[RECIPES])["data"]["sources"]
    stage = next(source for source in sources if source["kind"] == "stage")
    assert suite["stage"]["seed"] > stage["seed"] + 1_000_000


def test_the_suite_measures_the_vae_and_the_linear_baseline_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = {
        "height": 32, "width": 32, "fps": 12.0, "frames": 5,
        "stage": {"seed": 900000000, "clips": 3}, "real": {"windows": 1, "videos": []},
        "baseline": {"stage": {"seed": 1000000, "clips": 30}, "videos": []},
    }  # fmt: skip
    file = tmp_path / "suite.yaml"
    file.write_text(yaml.safe_dump(suite))
    monkeypatch.setattr(evaluation, "SUITE", file)
    monkeypatch.setattr(evaluation, "REAL_CLIPS", tmp_path / "nowhere")
    torch.manual_seed(0)
    result = evaluation.evaluate_vae(VideoVAE(), clips=2)
    assert result["stage"]["clips"] == 2
    assert list(result["stage"]["per_clip"]) == ["stage#900000000", "stage#900000001"]
    assert result["stage"]["pca"]["mean"] > result["stage"]["vae"]["mean"]  # an untrained VAE draws noise
    assert result["stage"]["vae"]["min"] <= result["stage"]["vae"]["p10"] <= result["stage"]["vae"]["mean"]
    assert "left out" in result["real"]
    with pytest.raises(SeedanceError, match="not a folder"):
        evaluation.evaluate_vae(VideoVAE(), real=tmp_path / "nowhere")


def test_every_listed_real_clip_is_there_and_long_enough(data: Path) -> None:
    from shots.video import probe

    suite = yaml.safe_load(evaluation.SUITE.read_text())
    for name in suite["real"]["videos"] + suite["baseline"]["videos"]:
        info = probe(data / "video" / name)
        assert info.fps >= suite["fps"]
        if name in suite["real"]["videos"]:
            assert info.duration - info.start >= suite["frames"] / suite["fps"]


def test_the_vae_and_its_discriminators_pay_separately() -> None:
    torch.manual_seed(0)
    judges = Discriminators(width=4)
    real, made = torch.rand(2, 3, 5, 16, 16), torch.rand(2, 3, 5, 16, 16, requires_grad=True)
    paid, own = adversarial_terms(judges, real, made)
    paid.backward(retain_graph=True)
    assert made.grad is not None
    assert made.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in judges.parameters())
    made.grad = None
    own.backward()
    assert made.grad is None
    assert all(parameter.grad is not None for parameter in judges.parameters())


def test_discriminators_learn_to_tell_clips_from_noise() -> None:
    torch.manual_seed(0)
    judges = Discriminators(width=4)
    optimizer = torch.optim.Adam(judges.parameters(), lr=1e-2)
    real = torch.linspace(-1, 1, 16).expand(4, 3, 5, 16, 16)
    losses = []
    for _ in range(30):
        _, own = adversarial_terms(judges, real, torch.randn(4, 3, 5, 16, 16))
        optimizer.zero_grad()
        own.backward()
        optimizer.step()
        losses.append(own.item())
    assert losses[-1] < 0.7 * losses[0]
