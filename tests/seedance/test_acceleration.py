"""What saves time and memory does not change the film, or says by how much."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from seedance import SeedanceError, samplers
from seedance.acceleration import decoding
from seedance.acceleration.cache import FirstBlockCache
from seedance.acceleration.decoding import Tiling, decode, native_step
from seedance.acceleration.tiny import TinyDecoder, load_tiny
from seedance.conditioning import Conditioning, collate
from seedance.dit import DiTConfig, VideoDiT
from seedance.vae import VAEConfig, VideoVAE

CONFIG = DiTConfig(dim=64, head_dim=16, spatial_layers=3, temporal_layers=3, dual_layers=1, text_dim=24, window=(2, 3))


def transformer() -> VideoDiT:
    """A small transformer with all its paths open."""
    torch.manual_seed(0)
    model = VideoDiT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.02)
    return model.eval().requires_grad_(False)


def films(count: int = 2) -> Conditioning:
    """Films of two shots on a 3 x 4 grid."""
    torch.manual_seed(1)
    made = []
    for _ in range(count):
        words = [torch.randn(3, 24), torch.randn(4, 24)]
        made.append(Conditioning.text_to_video(words, [2, 3], (3, 4), fps=12.0, caption=torch.randn(2, 24)))
    return collate(made)


# -------------------------------------------------------------------------------------------------------------- cache


def draw(model: samplers.Denoiser, cond: Conditioning, steps: int = 8, **how: Any) -> Tensor:
    torch.manual_seed(2)
    x = torch.randn(2, *cond.clean.shape[1:])[: len(cond)]
    return samplers.multistep(samplers.guided(model, cond, scale=3.0, **how), x, samplers.times(steps))


def test_a_cache_that_may_reuse_nothing_changes_nothing() -> None:
    model, cond = transformer(), films()
    cache = FirstBlockCache(model, 2, 1e-9)
    torch.testing.assert_close(draw(cache, cond), draw(model, cond), rtol=1e-5, atol=1e-5)
    assert cache.passes == 2 * 2 * 8 and cache.skipped == 0


def test_a_cache_leaves_out_passes_and_stays_nearer_the_film_than_fewer_steps_do() -> None:
    model, cond = transformer(), films()
    cache = FirstBlockCache(model, 2, 0.2)
    exact, saved = draw(model, cond, 16), draw(cache, cond, 16)
    share = cache.skipped / cache.passes
    assert 0.2 < share <= 0.75
    coarse = draw(model, cond, round(16 * (1 - share)))
    assert (saved - exact).norm() < (coarse - exact).norm()


def test_carrying_on_along_a_line_is_nearer_than_holding() -> None:
    model, cond = transformer(), films()
    exact = draw(model, cond, 16)
    line, held = (FirstBlockCache(model, 2, 0.2, order=order) for order in (1, 0))
    errors = [(draw(cache, cond, 16) - exact).norm() for cache in (line, held)]
    assert errors[0] < 0.8 * errors[1]
    assert line.skipped >= 0.9 * held.skipped > 0


def test_a_film_drawn_in_a_batch_with_the_cache_is_the_film_drawn_alone() -> None:
    model, cond = transformer(), films()
    cond_alone = Conditioning(**{name: value[:1] for name, value in vars(cond).items()})
    both = draw(FirstBlockCache(model, 2, 0.2), cond)
    alone = draw(FirstBlockCache(model, 1, 0.2), cond_alone)
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-4)


def test_the_cache_works_where_guidance_is_skipped() -> None:
    model, cond = transformer(), films()
    cache = FirstBlockCache(model, 2, 0.1)
    found = draw(cache, cond, interval=(0.3, 0.9))
    assert torch.isfinite(found).all()
    assert cache.passes < 2 * 2 * 8
    with pytest.raises(SeedanceError, match="threshold"):
        FirstBlockCache(model, 2, 0.0)


# ----------------------------------------------------------------------------------------------------------- decoding


def small_vae() -> VideoVAE:
    torch.manual_seed(0)
    vae = VideoVAE(VAEConfig(encoder_widths=(8, 16, 32), decoder_widths=(8, 16, 32), decoder_blocks=(1, 1, 1)))
    torch.nn.init.normal_(vae.decoder.head.weight, std=0.05)
    return vae.eval().requires_grad_(False)


def test_tiles_of_the_whole_picture_and_chunks_give_what_the_vae_gives() -> None:
    vae, z = small_vae(), torch.randn(1, 48, 5, 6, 7)
    whole = vae.decode(z)
    for chunk in (None, 1, 2):
        found = torch.cat(list(decode(native_step(vae), z, chunk=chunk, space=16, tiling=Tiling(8, 2))), 2)
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


def test_tiles_are_blended_to_nearly_what_the_whole_gives_and_leave_no_seam() -> None:
    vae, z = small_vae(), torch.randn(1, 48, 3, 16, 20)
    whole = vae.decode(z)
    found = torch.cat(list(decode(native_step(vae), z, chunk=1, space=16, tiling=Tiling(8, 4))), 2)
    assert found.shape == whole.shape
    error = (found - whole).abs()
    assert error.max() < 0.1 * whole.std() and error.mean() < 5e-3 * whole.std()


@pytest.mark.parametrize("cells", [9, 16, 31])
def test_the_weights_of_all_tiles_add_up_to_one(cells: int) -> None:
    spans = decoding._spans(cells, Tiling(8, 3))
    assert spans[0][0] == 0 and spans[-1][1] == cells
    assert all(a[1] - b[0] >= 3 for a, b in zip(spans, spans[1:], strict=False))
    total = torch.zeros(cells * 4)
    for a, b in spans:
        total[a * 4 : b * 4] += decoding._ramp(a, b, cells, spans, 4, total)
    torch.testing.assert_close(total, torch.ones(cells * 4))


def greedy(vae: VideoVAE, most: int) -> tuple[decoding.Step, list[int]]:
    """A VAE with memory for `most` cells of a chunk, and what it was asked for."""
    asked: list[int] = []

    def step(z: Tensor, kept: Any) -> tuple[Tensor, Any]:
        asked.append(z.shape[3] * z.shape[4])
        if kept is not None and asked[-1] > most:  # the first chunk still fits
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return vae.decode_chunk(z, kept)

    return step, asked


def test_decoding_goes_on_in_tiles_when_memory_runs_out_and_gives_no_frame_twice() -> None:
    vae, z = small_vae(), torch.randn(1, 48, 4, 16, 16)
    step, asked = greedy(vae, 100)
    found = torch.cat(list(decode(step, z, chunk=1, space=16)), 2)
    whole = vae.decode(z)
    assert found.shape == whole.shape
    torch.testing.assert_close(found[:, :, :1], whole[:, :, :1])  # given out before memory ran out
    assert (found - whole).abs().mean() < 0.02 * whole.std()
    assert asked[0] == 256 and asked[-1] == 64


def test_decoding_gives_up_with_advice_and_other_errors_come_through() -> None:
    vae, z = small_vae(), torch.randn(1, 48, 2, 16, 16)
    with pytest.raises(SeedanceError, match="smallest tiles"):
        list(decode(greedy(vae, 1)[0], z, chunk=1, space=16))

    def broken(z: Tensor, kept: Any) -> tuple[Tensor, Any]:
        raise RuntimeError("a kernel is missing")

    with pytest.raises(RuntimeError, match="kernel"):
        list(decode(broken, z, chunk=1, space=16))


# ----------------------------------------------------------------------------------------------------------- previews


def test_a_tiny_autoencoder_is_read_by_the_shapes_of_its_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    made = TinyDecoder(16, (12, 8, 8, 4), (1, 2, 2), patch=2).eval()
    extra = {"encoder.0.weight": torch.zeros(1)}
    save_file({**made.state_dict(), **extra}, tmp_path / "taew.safetensors")
    tiny = load_tiny(tmp_path / "taew.safetensors")
    z = torch.randn(16, 3, 4, 5)
    assert tiny.ratio == 4 and tiny.patch == 2
    pixels = tiny.decode(z)
    assert pixels.shape == (3, 9, 64, 80) and pixels.min() >= 0 and pixels.max() <= 1
    torch.testing.assert_close(pixels, made.decode(z))
    torch.testing.assert_close(tiny.decode(z[:, :2]), pixels[:, :5])  # causal
    shown = tiny.pictures(z)
    assert shown.shape == (3, 64, 80, 3) and shown.dtype == np.uint8
    with pytest.raises(SeedanceError, match="channels"):
        tiny.decode(torch.randn(48, 1, 4, 4))


def test_files_that_are_no_tiny_autoencoder_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"decoder.1.weight": torch.zeros(4, 4, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(SeedanceError, match="TAEHV"):
        load_tiny(tmp_path / "other.safetensors")
    with pytest.raises(SeedanceError, match="safetensors"):
        load_tiny(tmp_path / "taehv.pth")


# ----------------------------------------------------------------------------------------------------- many processes


def _member(rank: int, where: str, into: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    from seedance.acceleration.parallel import spread

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{where}", rank=rank, world_size=2)
    try:
        with torch.no_grad():
            for name in ("guidance", "sequence"):
                model = spread(transformer(), init_device_mesh("cpu", (2,), mesh_dim_names=(name,)))
                torch.save(draw(model, films(), 2), f"{into}.{name}.{rank}")
    finally:
        dist.destroy_process_group()


def test_two_processes_draw_the_film_that_one_draws(tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    into = str(tmp_path / "film")
    mp.spawn(_member, (str(tmp_path / "meet"), into), nprocs=2)
    alone = draw(transformer(), films(), 2)
    for name in ("guidance", "sequence"):
        for rank in range(2):
            torch.testing.assert_close(torch.load(f"{into}.{name}.{rank}"), alone, rtol=1e-4, atol=1e-5)


def test_a_sequence_is_not_shared_among_more_than_its_heads_allow(tmp_path: Path) -> None:
    from seedance.acceleration.parallel import BySequence

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        model = transformer()
        torch.testing.assert_close(draw(BySequence(model), films(), 2), draw(model, films(), 2))
        fake = BySequence.__new__(BySequence)
        with pytest.raises(SeedanceError, match="heads"), _size(3):
            fake.__init__(model)  # type: ignore[misc]
    finally:
        dist.destroy_process_group()


class _size:
    """The group as if it had so many processes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.was = dist.get_world_size
        dist.get_world_size = lambda group=None: self.size

    def __exit__(self, *error: object) -> None:
        dist.get_world_size = self.was
