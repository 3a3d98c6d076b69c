"""The VAE: shapes, causality, streaming, the PCA start, statistics, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from seedance.errors import SeedanceError
from seedance.pipeline import load_vae
from seedance.shapes import LatentShape, VideoShape, fit_frames, fit_side
from seedance.training.vae import latent_statistics, save_vae
from seedance.vae import VAEConfig, VideoVAE, init_pca
from shots.errors import ShotsError

TINY = VAEConfig(
    encoder_widths=(8, 16, 32), encoder_blocks=(1, 1, 1), decoder_widths=(8, 16, 32), decoder_blocks=(1, 2, 1)
)


@pytest.fixture
def vae() -> VideoVAE:
    """A tiny VAE whose every path carries signal: the zero-initialised heads are filled."""
    torch.manual_seed(0)
    vae = VideoVAE(TINY).eval()
    for head in (vae.encoder.head, vae.decoder.head):
        torch.nn.init.normal_(head.weight, std=0.3)
    return vae


def clips(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_geometry_round_trips_and_says_what_fits() -> None:
    assert VideoShape(37, 128, 128).latent == LatentShape(10, 8, 8)
    assert LatentShape(10, 8, 8).video == VideoShape(37, 128, 128)
    assert LatentShape(10, 8, 8).cells == 640
    assert [fit_frames(n) for n in (0, 1, 2, 5, 6, 36)] == [1, 1, 5, 5, 9, 37]
    assert [fit_side(n) for n in (1, 16, 120, 130)] == [16, 16, 128, 128]
    with pytest.raises(SeedanceError, match="frames: 36 is not 1 \\+ 4n; use 37"):
        _ = VideoShape(36, 128, 128).latent
    with pytest.raises(SeedanceError, match="height: 100 is not a multiple of 16; use 96"):
        _ = VideoShape(37, 100, 128).latent


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_sixteen_pixels_and_four_frames_make_a_cell_and_the_first_frame_stands_alone(
    vae: VideoVAE, frames: int
) -> None:
    x = clips(2, 3, frames, 32, 48)
    z = vae.encode(x)
    assert z.shape == (2, 48, 1 + frames // 4, 2, 3)
    assert vae.decode(z).shape == x.shape


def test_sizes_off_the_grid_are_refused(vae: VideoVAE) -> None:
    with pytest.raises(SeedanceError, match="frames: 4"):
        vae.encode(clips(1, 3, 4, 32, 32))
    with pytest.raises(SeedanceError, match="width: 40"):
        vae.encode(clips(1, 3, 5, 32, 40))


@torch.no_grad()
def test_later_frames_never_change_earlier_latents_or_pixels(vae: VideoVAE) -> None:
    x = clips(1, 3, 17, 32, 32)
    z = vae.encode(x)
    for edge in (1, 5, 9, 13):  # the frames before `edge` make 1 + (edge - 1) / 4 latents
        other = x.clone()
        other[:, :, edge:] = clips(1, 3, 17 - edge, 32, 32, seed=1)
        changed = (vae.encode(other) - z).abs().amax(dim=(0, 1, 3, 4))
        kept = 1 + (edge - 1) // 4
        assert changed[:kept].max() < 1e-5
        assert changed[kept] > 1e-2
    y = vae.decode(z)
    other = z.clone()
    other[:, :, 3:] += 1
    changed = (vae.decode(other) - y).abs().amax(dim=(0, 1, 3, 4))
    assert changed[:9].max() < 1e-5
    assert changed[9] > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(1, 4, 4, 4, 4), (5, 8, 4), (9, 8), (1, 16)])
def test_encoding_chunk_by_chunk_equals_encoding_the_whole_clip(vae: VideoVAE, sizes: tuple[int, ...]) -> None:
    x = clips(2, 3, 17, 32, 32)
    streamed = torch.cat(list(vae.encode_stream(x.split(sizes, dim=2))), dim=2)
    torch.testing.assert_close(streamed, vae.encode(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (2, 3), (4, 1)])
def test_decoding_chunk_by_chunk_equals_decoding_the_whole_clip(vae: VideoVAE, sizes: tuple[int, ...]) -> None:
    z = torch.randn(2, 48, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    streamed = torch.cat(list(vae.decode_stream(z.split(sizes, dim=2))), dim=2)
    torch.testing.assert_close(streamed, vae.decode(z), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_a_chunk_leaves_does_not_grow(vae: VideoVAE) -> None:
    carry = None
    sizes = []
    for _ in range(3):
        _, carry = vae.decode_chunk(torch.randn(1, 48, 2, 2, 2), carry)
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in carry))
    assert sizes[0] == sizes[1] == sizes[2]


def test_a_later_chunk_of_a_wrong_length_is_refused(vae: VideoVAE) -> None:
    with pytest.raises(SeedanceError, match="later chunk has 5 frames"):
        list(vae.encode_stream([clips(1, 3, 5, 32, 32), clips(1, 3, 5, 32, 32)]))


@torch.no_grad()
def test_a_fresh_vae_starts_at_the_floor_of_principal_components() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = (
        torch.randn(8, 3, 5, 16, 16, generator=generator) * 0.1
    )  # groups of four live in 8 dimensions, frames in 40
    weights = torch.randn(400, 8, generator=generator)
    x = torch.einsum("nk,kcthw->ncthw", weights, factors)
    vae = VideoVAE(TINY).eval()
    report = init_pca(vae, [x])
    assert report["later"] > 60  # 48 components hold 8 dimensions exactly
    torch.testing.assert_close(vae.decode(vae.encode(x)), x, atol=5e-3, rtol=0)
    z = vae.encode(x)
    assert z[:, :8, 1:].std() == pytest.approx(1.0, abs=0.1)  # whitened


@torch.no_grad()
def test_normalized_latents_have_zero_mean_and_unit_variance_first_and_later_frames_apart(vae: VideoVAE) -> None:
    batches = [clips(8, 3, 17, 32, 32, seed=number) * (0.5 + number) for number in range(3)]
    latent_statistics(vae, batches)
    z = torch.cat([vae.encode(x) for x in batches])
    n = vae.normalize(z)
    for part in (n[:, :, :1], n[:, :, 1:]):
        assert part.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-3
        assert (part.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 0.05
    torch.testing.assert_close(vae.denormalize(n), z, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(vae.normalize(z[:, :, 1:], first=False), n[:, :, 1:])


def test_a_sample_of_the_posterior_comes_from_its_generator(vae: VideoVAE) -> None:
    x = clips(1, 3, 5, 32, 32)
    mean = vae.encode(x)
    a = vae.encode(x, torch.Generator().manual_seed(3))
    b = vae.encode(x, torch.Generator().manual_seed(3))
    assert torch.equal(a, b)
    assert (a - mean).std().item() == pytest.approx(TINY.latent_noise, rel=0.2)


def test_the_vae_knows_its_operations(vae: VideoVAE) -> None:
    """Against a count of the multiply-adds of every matrix product that runs."""
    from torch.utils.flop_counter import FlopCounterMode

    x = clips(1, 3, 9, 32, 32)
    shape = VideoShape(9, 32, 32).latent
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        z = vae.encode(x)
    assert vae.encode_flops(shape) == pytest.approx(counter.get_total_flops(), rel=0.05)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.decode(z)
    assert vae.decode_flops(shape) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_saved_weights_come_back_with_statistics_and_half_precision_changes_little(
    vae: VideoVAE, tmp_path: Path
) -> None:
    latent_statistics(vae, [clips(4, 3, 17, 32, 32)])
    assert save_vae(vae, tmp_path) == ["model.safetensors"]
    again = load_vae(tmp_path)
    assert again.config == vae.config
    assert torch.equal(again.latent_mean, vae.latent_mean)
    x = clips(1, 3, 5, 32, 32)
    with torch.no_grad():
        assert (again.encode(x) - vae.encode(x)).abs().max() < 0.05


def test_weights_that_do_not_fit_are_named(vae: VideoVAE, tmp_path: Path) -> None:
    save_vae(vae, tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"latent_noise"', '"noise"'))
    with pytest.raises((SeedanceError, ShotsError), match="noise"):
        load_vae(tmp_path)


def test_widths_that_cannot_be_shortcut_are_refused() -> None:
    with pytest.raises(SeedanceError, match="decoder_widths"):
        VAEConfig(decoder_widths=(64, 128, 240))
    with pytest.raises(SeedanceError, match="encoder_blocks"):
        VAEConfig(encoder_blocks=(1, 1))


def test_the_nano_vae_has_less_than_three_million_parameters() -> None:
    vae = VideoVAE()
    assert sum(parameter.numel() for parameter in vae.parameters()) < 3_000_000
    encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in (vae.encoder, vae.decoder))
    assert encoder < decoder
