"""`python -m unitime.training RECIPE [key=value ...]`: what `accelerate launch` and `torchrun` start."""

from __future__ import annotations

import sys

from shots.errors import ShotsError
from unitime.errors import UniTimeError
from unitime.training import train

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m unitime.training RECIPE [key=value ...]")
    try:
        train(sys.argv[1], sys.argv[2:])
    except (UniTimeError, ShotsError) as error:
        sys.exit(f"unitime: {error}")
