"""`python -m seedance.training RECIPE [key=value ...]`: what `accelerate launch` and `torchrun` start."""

from __future__ import annotations

import sys

from seedance.errors import SeedanceError
from seedance.training import train
from shots.errors import ShotsError

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m seedance.training RECIPE [key=value ...]")
    try:
        train(sys.argv[1], sys.argv[2:])
    except (SeedanceError, ShotsError) as error:
        sys.exit(f"seedance: {error}")
