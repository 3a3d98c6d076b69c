"""Training of the DiT: masks, stages, resuming, export, and the shipped recipes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from seedance.conditioning import Conditioning
from seedance.dit import DiTConfig, VideoDiT
from seedance.errors import SeedanceError
from seedance.pipeline import Seedance, load_vae
from seedance.training import RECIPES
from seedance.training.dit import DiTRecipe, Feeder, draw_mask, label_loss, train_dit
from seedance.training.latents import Bucket, LatentsRecipe, build_cache, fingerprint
from shots.errors import ShotsError
from shots.runtime.recipe import build, load_recipe

EVEN = {"text": 1.0, "first": 1.0, "first_last": 1.0, "extend": 1.0, "retake": 1.0}


@pytest.fixture(scope="module")
def cache(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    size = {"height": 32, "width": 32, "frames": 5, "fps": 4}
    buckets = {"clips": {**size, "clips": 6}, "shots": {**size, "shots": 2, "clips": 4, "seed": 50}}
    folder = tmp_path_factory.mktemp("cache")
    return build_cache(
        LatentsRecipe("latents", folder, buckets, vae=tiny_model, workers=1, shard_clips=6, device="cpu")
    )


def recipe(where: Path, tiny_model: Path, out: Path, **changes: Any) -> DiTRecipe:
    values: dict[str, Any] = {
        "task": "dit",
        "out": str(out),
        "cache": str(where),
        "vae": str(tiny_model),
        "eval_clips": 2,
        "samples": 1,
        "sample_minutes": 0,
        "refresh_minutes": 0,
        "defaults": {"steps": 2, "height": 32, "width": 32},
        "model": {
            "dim": 64,
            "head_dim": 32,
            "spatial_layers": 1,
            "temporal_layers": 1,
            "dual_layers": 1,
            "aux_labels": {"colour": 11},
        },
        "loop": {
            "steps": 6,
            "log_every": 2,
            "checkpoint_every": 3,
            "device": "cpu",
            "dtype": "fp32",
            "warmup_steps": 1,
        },
        "stages": [
            {"until": 0.5, "mix": [{"bucket": "clips", "batch": 2, "frames": 1}]},
            {"until": 1.0, "mix": [{"bucket": "clips", "batch": 2}, {"bucket": "shots", "batch": 2}], "modes": EVEN},
        ],
    }
    return build(DiTRecipe, {**values, **changes})


def feeder_of(made: DiTRecipe, resumed: float = 0.0) -> Feeder:
    return Feeder(made, fingerprint(load_vae(made.vae), None), torch.device("cpu"), resumed=resumed)


def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(
    cache: Path, tiny_model: Path, tmp_path: Path
) -> None:
    whole = train_dit(recipe(cache, tiny_model, tmp_path / "whole"))
    for path in (tmp_path / "whole").glob("step-*3.pt"):  # what a kill after step 3 would have left behind
        (tmp_path / "killed").mkdir()
        path.rename(tmp_path / "killed" / path.name)
    resumed = train_dit(recipe(cache, tiny_model, tmp_path / "killed"))
    first, second = (load_file(folder / "transformer" / "model.safetensors") for folder in (whole, resumed))
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_the_exported_model_renders_and_knows_its_words(cache: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = train_dit(recipe(cache, tiny_model, tmp_path / "run"))
    pipe = Seedance.from_pretrained(folder, device="cpu")
    assert pipe("A red cube.", num_frames=5).frames.shape == (5, 32, 32, 3)
    assert "cube" in pipe.vocabulary or "sphere" in pipe.vocabulary
    assert list((tmp_path / "run" / "samples").glob("*.png")) and (folder / "training.json").is_file()
    again = train_dit(
        recipe(cache, tiny_model, tmp_path / "more", init_from=str(folder), loop={"steps": 1, "device": "cpu"})
    )
    assert (again / "model_index.json").is_file()


def test_every_mode_is_drawn_with_its_own_mask() -> None:
    shot = torch.tensor([[1, 1, 2, 2, 3, 3]]).expand(600, -1)
    masks = Counter(tuple(int(v) for v in row) for row in draw_mask(shot, EVEN, torch.Generator().manual_seed(0)))
    assert {
        (0,) * 6,
        (1, 0, 0, 0, 0, 0),
        (1, 0, 0, 0, 0, 1),
        (1, 1, 1, 1, 1, 0),
        (1, 1, 0, 0, 1, 1),
        (0, 0, 1, 1, 0, 0),
    } <= set(masks)
    assert (1,) * 6 not in masks  # something is always to be made
    only = draw_mask(shot, {"retake": 1.0}, torch.Generator().manual_seed(0))
    assert (only.sum(1) > 0).all() and (only.sum(1) < 6).all() and (only[:, 0::2] == only[:, 1::2]).all()


def test_a_single_shot_is_never_re_taken_and_a_picture_never_given() -> None:
    generator = torch.Generator().manual_seed(0)
    assert draw_mask(torch.ones(50, 4, dtype=torch.long), {"retake": 1.0}, generator).sum() == 0
    assert draw_mask(torch.ones(50, 1, dtype=torch.long), EVEN, generator).sum() == 0


def test_the_label_loss_is_small_for_right_labels_and_counts_actors_over_background() -> None:
    labels = {"colour": torch.tensor([[[[0, 0], [0, 3]]]], dtype=torch.int8)}
    right = {"colour": torch.nn.functional.one_hot(labels["colour"].long(), 11).float() * 20}
    misses_actor = {"colour": torch.nn.functional.one_hot(torch.zeros(1, 1, 2, 2, dtype=torch.long), 11).float() * 20}
    assert label_loss(right, labels, 0.1) < 1e-3
    assert label_loss(misses_actor, labels, 0.1) > 5 > label_loss(misses_actor, labels, 1.0) / 1.001


def test_stages_follow_the_run_and_batches_repeat_by_number(cache: Path, tiny_model: Path, tmp_path: Path) -> None:
    feeder = feeder_of(recipe(cache, tiny_model, tmp_path))
    assert feeder(0).batch.latents.shape[2] == 1 and feeder(5).batch.latents.shape[2] > 1
    assert feeder(5).modes == EVEN and feeder(0).modes != EVEN
    a, b = feeder(4), feeder(4)
    assert torch.equal(a.batch.latents, b.batch.latents) and torch.equal(a.batch.cond.text, b.batch.cond.text)
    by_clock = recipe(cache, tiny_model, tmp_path, loop={"time_budget": 1000.0})
    assert feeder_of(by_clock)(10**6).batch.latents.shape[2] == 1
    assert feeder_of(by_clock, resumed=900.0)(0).batch.latents.shape[2] > 1


def test_clips_kept_for_evaluation_are_never_trained_on(cache: Path, tiny_model: Path, tmp_path: Path) -> None:
    feeder = feeder_of(recipe(cache, tiny_model, tmp_path))
    kept = feeder.stores["clips"].latents[:2, :, 0].float()
    seen = torch.cat([feeder(n).batch.latents[:, :, 0] for n in range(3) for _ in (0,)])
    assert all((clip != other).any() for clip in seen for other in kept)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stages": [{"until": 0.5, "mix": []}]}, "until"),
        ({"modes": {"dream": 1.0}}, "dream"),
        ({"colour": 1}, "colour"),
        ({"stages": [{"until": 1.0, "mix": [{"bucket": "big", "batch": 1}]}]}, "big"),
        ({"cache": "/nowhere"}, "nowhere"),
    ],
)
def test_a_recipe_that_is_not_right_is_named(
    cache: Path, tiny_model: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises((SeedanceError, ShotsError), match=named):
        train_dit(recipe(cache, tiny_model, tmp_path, **changes))


def shipped(task: str) -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml") if yaml.safe_load(path.read_text())["task"] == task)


@pytest.mark.parametrize("name", shipped("dit"))
def test_every_shipped_dit_recipe_is_one_and_its_buckets_are_made_by_its_latents_recipe(name: str) -> None:
    made = build(DiTRecipe, load_recipe(name, shipped=[RECIPES]))
    latents = load_recipe(name.replace("-dit", "-latents"), shipped=[RECIPES])
    assert {share.bucket for stage in made.stages for share in stage.mix} <= set(latents["buckets"])
    assert [latents["out"]] == ([made.cache] if isinstance(made.cache, str) else made.cache)
    DiTConfig.from_dict(made.model)


@pytest.mark.parametrize("name", shipped("latents"))
def test_every_shipped_latents_recipe_is_one(name: str) -> None:
    made = build(LatentsRecipe, load_recipe(name, shipped=[RECIPES]))
    assert [Bucket.from_dict(bucket, said) for bucket, said in made.buckets.items()]


def test_the_large_model_has_1_3_billion_weights_and_takes_480p() -> None:
    made = build(DiTRecipe, load_recipe("video-1b3-480p-dit", shipped=[RECIPES]))
    said = load_recipe("video-1b3-480p-latents", shipped=[RECIPES])["buckets"]
    buckets = {name: Bucket.from_dict(name, values) for name, values in said.items()}
    with torch.device("meta"):
        model = VideoDiT(DiTConfig.from_dict(made.model))
        assert 1.2e9 < sum(p.numel() for p in model.parameters()) < 1.4e9
        t, h, w = buckets["v480"].latent_shape
        assert (16 * h, 16 * w) == (480, 848)
        shot, seconds = torch.ones(1, t, dtype=torch.long), torch.zeros(1, t)
        text = torch.zeros(1, 64, model.config.text_dim)
        cond = Conditioning(
            torch.zeros(1, 48, t, h, w),
            torch.zeros(1, t),
            text,
            torch.ones(1, 64, dtype=torch.bool),
            torch.ones(1, 64, dtype=torch.long),
            shot,
            seconds,
        )
        assert model(torch.zeros(1, 48, t, h, w), torch.zeros(1), cond).shape == (1, 48, t, h, w)
