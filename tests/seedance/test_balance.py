"""Balanced latents: quiet channels get small, and nothing is lost on the way back."""

from __future__ import annotations

import torch

from seedance.training.vae import balance_latents, latent_statistics
from seedance.vae import VAEConfig, VideoVAE, init_pca


def test_balance_shrinks_the_channels_the_decoder_hardly_hears_and_keeps_the_round_trip() -> None:
    torch.manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(40, 3, 5, 4, 4), size=(5, 32, 32), mode="trilinear")
    x = x * 2 - 1 + 0.02 * torch.randn_like(x)
    vae = VideoVAE(VAEConfig(encoder_widths=(8, 16, 32), decoder_widths=(8, 16, 32))).eval()
    init_pca(vae, [x])
    latent_statistics(vae, [x])
    plain = vae.normalize(vae.encode(x))
    balance_latents(vae, [x], 0.5)
    z = vae.normalize(vae.encode(x))
    ratio = (z.std((0, 2, 3, 4)) / plain.std((0, 2, 3, 4)).clamp_min(1e-6)).detach()
    assert ratio.max() <= 1.0 + 1e-4 and (ratio > 0.999).sum() >= 2
    assert ratio.min() < 0.6
    assert torch.allclose(vae.denormalize(z), vae.encode(x), atol=1e-3)
