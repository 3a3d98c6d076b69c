"""How well the shipped judge reads: `python -m tests.benchmarks.judge [--films N] [--model MODEL] > report.json`.

Held-out films of the stage as they are, and after a round trip through the VAE of a model. One JSON object on stdout,
which `python -m shots.stage.judge.card --report` takes.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
import torch

from seedance.evaluation import reconstruct
from seedance.pipeline import SHIPPED, load_vae
from shots.runtime.weights import resolve
from shots.stage.following import evaluate_judge
from shots.stage.judge import Judge


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=200, help="films to read (default: 200)")
    parser.add_argument("--model", default="seedance-nano", help="whose VAE to send them through")
    said = parser.parse_args()
    judge, vae = Judge.load(), load_vae(resolve(said.model, SHIPPED))
    vae.eval()

    def round_trip(frames: np.ndarray) -> np.ndarray:
        return reconstruct(vae, torch.from_numpy(frames)).numpy()

    def progress(done: int, total: int, what: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{total} ", end="\n" if done == total else "", file=sys.stderr, flush=True)

    report = {
        "stage": evaluate_judge(judge, said.films, progress=progress),
        "vae_round_trip": evaluate_judge(judge, said.films, degrade=round_trip, progress=progress),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
