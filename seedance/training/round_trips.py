"""Task `judge-pool`: shots of the stage after a round trip through a VAE, for the judge, which reads generated films.

Notable choice: the films are others than those of the judge's own pool, so that each trip is a new shot to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from seedance.errors import SeedanceError

FIRST_SEED = 200_000_000  # of the films; the judge's own pool counts from 0


@dataclass(frozen=True)
class RoundTripsRecipe:
    """What `task: judge-pool` reads.

    pool: folder of the shards, one of `extra_pools` of ``task: judge``. vae: a shipped model's name, a model's folder
    or a VAE's. pool_size: shots. threads: None leaves torch's choice.
    """

    task: str
    pool: Path
    vae: str = "seedance-nano"
    pool_size: int = 2048
    threads: int | None = None


def make_round_trips(recipe: RoundTripsRecipe) -> Path:
    """Draws, encodes and decodes the shots; goes on where it was stopped. Returns the folder."""
    from seedance.evaluation import reconstruct
    from seedance.pipeline import load_vae
    from shots.stage.judge.model import JudgeConfig
    from shots.stage.judge.pool import fill

    if recipe.pool_size < 1:
        raise SeedanceError(f"pool_size: {recipe.pool_size} must be 1 or more")
    vae = load_vae(recipe.vae).eval()

    def degrade(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        with torch.no_grad():
            return reconstruct(vae, torch.from_numpy(frames)).numpy()

    fill(recipe.pool, recipe.pool_size, JudgeConfig(), recipe.threads, degrade, FIRST_SEED)
    return recipe.pool
