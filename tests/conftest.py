"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real clips, pictures and annotations that lies beside the repository on some machines."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real test material at {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole model of random weights, for the real loaders: 32 x 32 pixels, half a second, 2 steps."""
    import torch

    from seedance.dit import DiTConfig, VideoDiT
    from seedance.pipeline import Defaults, save_model
    from seedance.vae import VAEConfig, VideoVAE

    torch.manual_seed(0)
    vae = VideoVAE(VAEConfig(encoder_widths=(8, 16, 32), decoder_widths=(8, 16, 32), decoder_blocks=(1, 1, 1)))
    transformer = VideoDiT(DiTConfig(dim=64, head_dim=32, spatial_layers=1, temporal_layers=1, dual_layers=1))
    defaults = Defaults(height=32, width=32, steps=2, seconds=0.5)
    words = ["a", "red", "cube", "blue", "sphere", "jumps", "spins"]
    return save_model(tmp_path_factory.mktemp("tiny"), vae, transformer, defaults=defaults, vocabulary=words)
