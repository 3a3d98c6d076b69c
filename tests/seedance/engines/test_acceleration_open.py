"""What saves time and memory on open checkpoints gives the film that the plain engine gives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seedance import SeedanceError
from seedance.acceleration.counting import TensorMemory, count_decoding
from seedance.acceleration.decoding import Tiling, decode, open_step
from seedance.acceleration.fit import fit, needs
from seedance.acceleration.options import Acceleration
from seedance.acceleration.quantizing import quantize
from seedance.acceleration.staged import StagedSeedance, Words
from seedance.engines.engine import decode_shot
from seedance.engines.folder import diffusers, load_part, open_checkpoint
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
    runs = []
    last = quick.pipe().transformer.blocks[-1].attn1.to_q
    last.register_forward_pre_hook(lambda *_: runs.append(1))
    whole, cut = (pipe.sample([plan], steps=6)[0] for pipe in (plain, quick))
    theirs, ours = whole.latents, cut.latents
    assert 0 < (ours - theirs).norm() < 0.2 * theirs.norm()
    skipped = 12 - len(runs)  # of two passes at six steps
    assert skipped > 0 and cut.record["acceleration"]["skipped"] == pytest.approx(skipped / 12, abs=1e-3)
    all_, done = (film.record["flops"]["transformer"] for film in (whole, cut))
    assert done == pytest.approx(all_ * (1 - skipped / 12 / 2))  # each leaves out one of two blocks
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


@pytest.mark.parametrize("name", ["wan-t2v", "wan-ti2v", "cogvideox", "hunyuan", "ltx", "ltx-condition"])
@pytest.mark.parametrize("numbers", [torch.float32, torch.bfloat16])
def test_what_decoding_is_said_to_take_is_what_it_takes(
    name: str, numbers: torch.dtype, checkpoint: Callable[[str], Path]
) -> None:
    held = open_checkpoint(checkpoint(name))
    vae = load_part(held, "vae", numbers, CPU)
    plan = make_plan("a red cube jumps", model_defaults(checkpoint(name)), num_frames=17, height=32, width=64)
    said = needs(held, plan, numbers, "model", False, None, numbers, CPU)["decoding"]
    weights = numbers.itemsize * held.numbers("vae")
    z = torch.randn(vae.config.get("z_dim") or vae.config.latent_channels, *plan.latent_shape).to(numbers)
    at = 0.05 if name == "ltx-condition" else None
    with torch.no_grad(), TensorMemory() as memory:
        for _ in decode_shot(vae, z, at, space=plan.ratio.space):
            pass
    assert 0.85 * memory.peak < said - weights < 1.2 * memory.peak


def test_wan_s_own_vae_needs_what_all_its_chunks_take() -> None:
    """480 x 832, 81 frames: the estimate from three chunks against all twenty-one of them."""
    with torch.device("meta"):
        vae = diffusers().AutoencoderKLWan().eval()
    count = functools.partial(count_decoding, "AutoencoderKLWan", vae.config, (16, 21, 60, 104), space=8)
    said, state = count(dtype=torch.float32), torch.get_rng_state()
    z = torch.empty(16, 21, 60, 104, device="meta")
    step, chunks = open_step(vae, 21)
    with torch.no_grad(), TensorMemory() as memory:
        for _ in decode(step, z[None], chunk=chunks, space=8):
            pass
    assert memory.peak > 7.5e9
    assert said.peak == pytest.approx(memory.peak, rel=0.02)
    half, tiled = count(dtype=torch.bfloat16), count(dtype=torch.float32, tiling=Tiling())
    assert said.peak / 2 < half.peak < 0.6 * said.peak  # its norms go over float32
    assert tiled.peak < 0.25 * said.peak < tiled.parked
    assert torch.equal(torch.get_rng_state(), state)  # whoever draws a film meanwhile draws the same one


def test_tiles_that_keep_more_than_main_memory_holds_are_said(checkpoint: Callable[[str], Path]) -> None:
    held = open_checkpoint(checkpoint("wan-t2v"))
    plan = make_plan("a red cube jumps", model_defaults(checkpoint("wan-t2v")), height=320, width=320)
    said: dict[str, Any] = {"device": torch.device("cuda"), "dtype": torch.float32, "free": 10**12}
    tiled = Acceleration(tiling=True, offload="none")
    assert fit(held, plan, host=10**12, acceleration=tiled, **said).tiling
    with pytest.raises(SeedanceError, match="memory: what tiles keep waits in .* of main memory"):
        fit(held, plan, host=1000, acceleration=tiled, **said)
    tiles, whole = (needs(held, plan, torch.float32, "model", tiling, None)["decoding"] for tiling in (True, False))
    assert tiles < 0.8 * whole


def test_a_vae_in_bf16_is_loaded_counted_and_recorded_so_and_shows_nearly_the_same_film(
    staged: Callable[..., StagedSeedance], checkpoint: Callable[[str], Path]
) -> None:
    plain, half = staged("wan-t2v"), staged("wan-t2v", vae_dtype="bf16")
    assert plain.parts["vae"].dtype == torch.float32 and half.parts["vae"].dtype == torch.bfloat16
    plan = plain.plan("a red cube jumps", seed=4)
    films = [pipe.sample([plan])[0] for pipe in (plain, half)]
    theirs, ours = (pipe.video(film).frames.astype(int) for pipe, film in zip((plain, half), films, strict=True))
    assert 0 < np.abs(ours - theirs).mean() < 2
    assert films[1].record["acceleration"]["vae_dtype"] == "bf16"
    said: dict[str, Any] = {"device": CPU, "dtype": torch.float32, "free": 10**12}
    full, less = (
        fit(open_checkpoint(checkpoint("wan-t2v")), plan, acceleration=Acceleration(vae_dtype=kind), **said).stages
        for kind in (None, "bf16")
    )
    assert less["decoding"] < full["decoding"]


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
        ({"vae_dtype": "bf16"}, True, "of no use"),
        ({"vae_dtype": "fp16"}, False, "vae_dtype: 'fp16' is not one of fp32, bf16"),
        ({"quantization": "int8"}, True, "of no use"),
        ({"attention": "flash"}, True, "of no use"),
        ({"cache": 2.0}, True, "threshold"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(options: dict[str, Any], native: bool, said: str) -> None:
    with pytest.raises(SeedanceError, match=said):
        Acceleration(**options).check(native)
    Acceleration().check(native)
