"""What saves time and memory on open checkpoints gives the film that the plain engine gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seedance import SeedanceError
from seedance.acceleration.fit import fit, needs
from seedance.acceleration.options import Acceleration
from seedance.acceleration.quantizing import quantize
from seedance.acceleration.staged import StagedSeedance, Words
from seedance.engines.folder import open_checkpoint
from seedance.evaluation import psnr
from seedance.pipeline import Seedance, make_plan, model_defaults
from seedance.preview import preview_frames

CPU = torch.device("cpu")
WORDS = "a red cube jumps [cut] a blue sphere spins"


@pytest.fixture
def staged(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., StagedSeedance]:
    """(name, options) -> that checkpoint, opened in stages."""

    def made(name: str, **options: Any) -> StagedSeedance:
        return StagedSeedance.open(
            open_checkpoint(checkpoint(name)), name=name, dtype="fp32", device="cpu",
            acceleration=Acceleration(**options), words=Words(tmp_path / "words"),
        )  # fmt: skip

    return made


@pytest.mark.parametrize("name", ["wan-t2v", "wan-ti2v", "ltx", "cogvideox", "hunyuan"])
def test_in_stages_the_film_is_the_plain_engines(
    name: str, staged: Callable[..., StagedSeedance], opened: Callable[[str], Seedance]
) -> None:
    plain, frugal = opened(name), staged(name)
    plan = plain.plan(WORDS, seed=4)
    theirs, ours = plain.sample([plan])[0], frugal.sample([plan])[0]
    torch.testing.assert_close(ours.latents, theirs.latents, rtol=1e-4, atol=1e-4)
    for a, b in zip(frugal.decode(ours), _regrouped(plain.decode(theirs), frugal.decode(ours)), strict=True):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
    assert frugal.parts["text_encoder"] is None and frugal.parts["transformer"] is not None
    assert ours.record["acceleration"] == {"offload": "none"}


def _regrouped(frames: Any, like: Any) -> list[np.ndarray]:
    """Frames in pieces as long as those of `like`."""
    whole = np.concatenate(list(frames))
    ends = np.cumsum([len(piece) for piece in like])
    return np.split(whole, ends[:-1])


def test_the_encoder_is_gone_before_the_transformer_comes_and_is_not_needed_twice(
    staged: Callable[..., StagedSeedance], monkeypatch: pytest.MonkeyPatch
) -> None:
    from seedance.acceleration import staged as module

    order, real = [], module.load_part

    def told(checkpoint: Any, part: str, *rest: Any) -> Any:
        order.append(part)
        return real(checkpoint, part, *rest)

    monkeypatch.setattr(module, "load_part", told)
    pipe = staged("wan-t2v")
    first = pipe.sample([pipe.plan(WORDS, seed=1)])[0]
    assert order.index("text_encoder") < order.index("transformer")
    order.clear()
    again = staged("wan-t2v")
    second = again.sample([again.plan(WORDS, seed=1)])[0]
    assert "text_encoder" not in order and "transformer" in order
    assert torch.equal(first.latents, second.latents)
    other = again.sample([again.plan("a blue cube spins", seed=1)])[0]
    assert order.count("text_encoder") == 1
    assert not torch.equal(other.latents, second.latents[:, : other.latents.shape[1]])


def test_blocks_that_wait_on_disk_draw_the_same_film(
    staged: Callable[..., StagedSeedance], opened: Callable[[str], Seedance]
) -> None:
    plain, frugal = opened("wan-t2v"), staged("wan-t2v", offload="disk")
    plan = plain.plan("a red cube jumps", seed=4)
    torch.testing.assert_close(frugal.sample([plan])[0].latents, plain.sample([plan])[0].latents, rtol=1e-4, atol=1e-4)
    (disk,) = frugal._disks
    assert disk is not None and list(Path(disk.name).rglob("*.safetensors"))


def test_a_cache_on_a_stock_transformer_draws_a_film_near_the_plain_one(
    staged: Callable[..., StagedSeedance], opened: Callable[[str], Seedance]
) -> None:
    plain, quick = opened("wan-t2v"), staged("wan-t2v", cache=0.1)
    plan = plain.plan("a red cube jumps", seed=4)
    theirs, ours = (pipe.sample([plan], steps=6)[0].latents for pipe in (plain, quick))
    assert (ours - theirs).norm() < 0.2 * theirs.norm()
    twice = quick.sample([plan], steps=6)[0].latents
    torch.testing.assert_close(twice, ours)  # nothing is left of the last film


@pytest.mark.parametrize(
    ("name", "until"),  # the first of four steps is later than that, others are not
    [("wan-t2v", 0.97), ("wan-t2v-a14b", 0.97), ("ltx-condition", 0.97), ("cogvideox", 0.6), ("hunyuan", 0.97)],
)
def test_where_guidance_does_not_act_its_pass_is_left_out(
    name: str, until: float, staged: Callable[..., StagedSeedance], opened: Callable[[str], Seedance]
) -> None:
    plain: Any = opened(name)
    plan = plain.plan("a red cube jumps", seed=4)
    how: dict[str, Any] = {"steps": 4, "guidance_scale": 4.0}
    guided, free = (plain.sample([plan], **{**how, **more})[0] for more in ({}, {"guidance_scale": 1.0}))
    never, late, always = (
        staged(name, guidance_interval=interval).sample([plan], **how)[0]
        for interval in ((5e-5, 1e-4), (0.0, until), (0.0, 1.0))
    )
    torch.testing.assert_close(always.latents, guided.latents, rtol=1e-4, atol=1e-4)
    assert (late.latents - guided.latents).abs().max() > 1e-4 < (late.latents - never.latents).abs().max()
    none, some, all_ = (film.record["flops"]["transformer"] for film in (never, late, guided))
    assert none < some < all_ and none * 2 == all_
    if "hunyuan" not in name:  # at a scale of 1 its pipeline has another guider
        torch.testing.assert_close(never.latents, free.latents, rtol=1e-3, atol=1e-3)
    assert late.record["acceleration"]["guidance_interval"] == [0.0, until]


@pytest.mark.parametrize(("how", "bound"), [("int8", 0.02), ("fp8", 0.08)])
def test_fewer_bits_change_a_velocity_by_little(how: str, bound: float) -> None:
    pytest.importorskip("torchao")
    from tests.seedance.engines.tiny_checkpoints import wan_transformer

    torch.manual_seed(0)
    model = wan_transformer(dim=24).eval()
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(1, 16, 2, 4, 4), "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 8, model.config.text_dim),
    }  # fmt: skip
    with torch.no_grad():
        exact = model(**inputs, return_dict=False)[0]
        assert quantize(model, how, CPU) > 0
        near = model(**inputs, return_dict=False)[0]
    error = float((near - exact).norm() / exact.norm())
    assert 0 < error < bound


def test_a_level_is_taken_that_fits_and_too_little_memory_is_said(checkpoint: Callable[[str], Path]) -> None:
    held = open_checkpoint(checkpoint("wan-t2v"))
    plan = make_plan("a red cube jumps", model_defaults(checkpoint("wan-t2v")))
    said: dict[str, Any] = {"device": torch.device("cuda"), "dtype": torch.float32, "acceleration": Acceleration()}
    said |= {"host": 10**12}
    most = {level: max(needs(held, plan, torch.float32, level, False, None).values()) for level in ("none", "model")}
    assert most["model"] < most["none"]
    assert fit(held, plan, free=10**12, **said).offload == "none"
    assert fit(held, plan, free=round(most["model"] / 0.9), **said).offload == "model"
    with pytest.raises(SeedanceError, match="memory: .* needs .* GB"):
        fit(held, plan, free=1000, **said)
    asked = fit(held, plan, free=10**12, **{**said, "acceleration": Acceleration(offload="group", tiling=True)})
    assert asked.offload == "group" and asked.tiling
    half = needs(held, plan, torch.bfloat16, "none", False, None)
    assert half["sampling"] < needs(held, plan, torch.float32, "none", False, None)["sampling"]


def test_a_map_fitted_to_a_foreign_vae_shows_its_pictures(opened: Callable[[str], Seedance]) -> None:
    pipe: Any = opened("wan-t2v")
    film = pipe.sample([pipe.plan("a red cube jumps", seed=4)])[0]
    shown = preview_frames(pipe, film.latents, most=2)
    assert shown.shape == (2, 16, 16, 3) and shown.dtype == np.uint8


def test_the_fit_finds_a_linear_vae_exactly() -> None:
    """A VAE whose latents are linear in its pixels is undone to rounding."""
    from types import SimpleNamespace

    torch.manual_seed(0)

    class Linear(torch.nn.Module):
        dtype: Any = torch.float32
        config: Any = {}

        def __init__(self) -> None:
            super().__init__()
            self.matrix = torch.nn.Parameter(torch.linalg.qr(torch.randn(48, 48)).Q, requires_grad=False)

        def encode(self, x: torch.Tensor) -> Any:
            b, _, t, h, w = x.shape
            picked = x[:, :, [0, t - 1]]
            cells = picked.reshape(b, 3, 2, h // 4, 4, w // 4, 4).permute(0, 2, 3, 5, 4, 6, 1).flatten(4)
            z = (cells @ self.matrix).permute(0, 4, 1, 2, 3)
            return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: z))

    from seedance.preview import _clips, fit_map
    from seedance.shapes import Ratio

    vae = Linear()
    pipe = SimpleNamespace(parts={"vae": vae}, defaults=SimpleNamespace(ratio=Ratio(4, 4)))
    clip = _clips(48, 5)[2]
    z = vae.encode(clip[None]).latent_dist.mode()[0]
    shown = torch.from_numpy(fit_map(pipe).pictures(z, [True, False]))
    wanted = ((clip[:, [0, 4]].permute(1, 2, 3, 0) + 1) * 127.5).round().to(torch.uint8)
    assert min(psnr(a, b) for a, b in zip(shown, wanted, strict=True)) > 30


@pytest.mark.parametrize(
    ("options", "native", "said"),
    [
        ({"offload": "cloud"}, False, "offload"),
        ({"quantization": "int1"}, False, "quantization"),
        ({"attention": "psychic"}, False, "attention_backend"),
        ({"attention": "sage"}, False, "sageattention"),
        ({"offload": "group", "quantization": "int8"}, False, "does not go with"),
        ({"guidance_interval": (0.9, 0.2)}, True, "guidance_interval"),
        ({"offload": "model"}, True, "of no use"),
        ({"quantization": "int8"}, True, "of no use"),
        ({"attention": "flash"}, True, "of no use"),
        ({"cache": 2.0}, True, "threshold"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(options: dict[str, Any], native: bool, said: str) -> None:
    with pytest.raises(SeedanceError, match=said):
        Acceleration(**options).check(native)
    Acceleration().check(native)
