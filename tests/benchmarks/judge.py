"""How well the shipped judge reads: `python -m tests.benchmarks.judge [--films N] [--model MODEL] > report.json`.

Held-out films of the stage as they are, and after a round trip through the VAE of a model; and 100 films of
seedance-nano that two readers read by eye (`eyes.json`). One JSON object on stdout, which
`python -m shots.stage.judge.card --report` takes.

Notable choice: what one of the readers could not tell, or the two told differently, counts nowhere.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seedance.evaluation import reconstruct
from seedance.pipeline import SHIPPED, Seedance, load_vae
from shots.runtime.weights import resolve
from shots.stage.following import evaluate_judge
from shots.stage.heldout import suite
from shots.stage.judge import Judge
from shots.stage.judge.read import Reading

SHOT = ("floor", "sky", "style", "angle", "shot_size", "camera")  # facts of a shot that the readers were asked for
EYES = Path(__file__).with_name("eyes.json")


def seen(reading: Reading) -> dict[str, str]:
    """What the judge reads of a shot with one actor, by the keys that the readers were asked for."""
    found = {name: reading.best(name) for name in SHOT}
    colour = max(reading.actors, key=lambda name: reading.actors[name].there)
    actor = reading.actors[colour]
    found |= {name: actor.best(name) for name in ("shape", "size", "surface", "action")}
    found["colour"] = colour if actor.there > 0.5 else "none"
    return {**found, "whole": "yes" if reading.sound > 0.5 else "no"}


def by_eye(judge: Judge) -> dict[str, Any]:
    """The judge beside the readers: per key [agrees, of those that both readers told alike], the readers beside each
    other, and what both told alike beside what the script says."""
    told = json.loads(EYES.read_text(encoding="utf-8"))
    index = json.loads((SHIPPED["seedance-nano"] / "model_index.json").read_text(encoding="utf-8"))
    if any(index["files"].get(name) != digest for name, digest in told["transformer"].items()):
        sys.exit(f"{EYES.name}: the films read by eye were made by other weights of seedance-nano; read new ones")
    model = Seedance.from_pretrained("seedance-nano")
    agree: dict[str, list[int]] = {key: [0, 0] for key in told["keys"]}
    alike: dict[str, list[int]] = {key: [0, 0] for key in told["keys"]}
    script: dict[str, list[int]] = {key: [0, 0] for key in told["keys"] if key != "whole"}
    items = suite(told["suite"])
    for number, (one, two) in enumerate(zip(*told["readers"], strict=True)):
        video = model(items[number].script, seed=told["seed"] + number)
        found = seen(judge.read(video.frames, video.fps))
        said = items[number].said[0]
        asked = {**vars(said.actors[0]), **{key: getattr(said, key) for key in SHOT}}
        for key, a, b in zip(told["keys"], one, two, strict=True):
            if "?" in (a, b):
                continue
            alike[key] = [alike[key][0] + (a == b), alike[key][1] + 1]
            if a == b:
                agree[key] = [agree[key][0] + (found[key] == a), agree[key][1] + 1]
                if asked.get(key) is not None:
                    script[key] = [script[key][0] + (asked[key] == a), script[key][1] + 1]
    return {"films": len(told["readers"][0]), "agree": agree, "readers_alike": alike, "script": script}


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
        "by_eye": by_eye(judge),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
