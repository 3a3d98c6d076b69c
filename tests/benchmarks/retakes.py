"""What taking failed shots again is worth: shots with all core facts right, on the held-out three-shot scripts.

    python -m tests.benchmarks.retakes [--limit N] [--cache DIR] [--retakes N] [--doubt P] [--steps N]

Three figures, all read by the stage's judge, which chooses in the last one only: one take; the loop (`shots.loop`) with
the shipped grounder; and of four independent takes the best of each shot by the judge, which no chooser can beat. What
the loop is to reach is half of what that gains over one take.

Notable choices:
- Every take is kept in the cache by what it was made of, so a run that was stopped goes on where it was, and another
  grounder needs no new first takes.
- No further independent take is drawn once each shot of a film was right in one: the best of more would be no better.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.benchmarks.figures import MODEL, Row

GROUNDER = "unitime-nano"
CACHE = Path("runs/retakes")
TAKES = 4


@dataclass
class Cached:
    """A model whose takes are kept in a folder by what they were made of; a `Retaker`."""

    model: Any
    folder: Path
    steps: int | None = None

    def kept(self, key: Sequence[Any], make: Any) -> Any:
        """The film that `key` stands for: from the folder, or made and put there."""
        from seedance.pipeline import LatentFilm

        said = json.dumps([self.model.files, self.steps, *key], sort_keys=True)
        path = self.folder / f"{hashlib.sha256(said.encode()).hexdigest()[:24]}.safetensors"
        if not path.exists():
            make().save(path)
        return LatentFilm.load(path)

    def take(self, script: Any, *, seed: int = 0) -> Any:
        return self.kept(["take", script.to_dict(), seed], lambda: self.model.take(script, seed=seed, steps=self.steps))

    def retake(self, film: Any, shots: Sequence[int], *, seed: int | None = None) -> Any:
        base = hashlib.sha256(film.latents.numpy().tobytes()).hexdigest()
        key = ["retake", film.plan.script.to_dict(), base, list(shots), seed]
        return self.kept(key, lambda: self.model.retake(film, shots, seed=seed, steps=self.steps))

    def splice(self, film: Any, other: Any, shots: Sequence[int]) -> Any:
        return self.model.splice(film, other, shots)

    def video(self, film: Any) -> Any:
        return self.model.video(film)


def right_shots(item: Any, video: Any, judge: Any) -> list[bool]:
    """Whether all core facts of each shot that says any are right."""
    from shots.stage.following import CORE, shot_hits

    reading = judge.read_film(video, list(video.cuts))
    return [
        all(hit for kind, hit in shot_hits(said, shot) if kind in CORE)
        for said, shot in zip(item.said, reading.shots, strict=True)
        if said.actors
    ]


def measure(
    limit: int | None = None,
    *,
    cache: Path = CACHE,
    retakes: int = 3,
    doubt: float | None = None,
    steps: int | None = None,
    model: str = MODEL,
    grounder: str = GROUNDER,
) -> dict[str, Any]:
    """Counts of right shots: `shots`, `one`, `loop`, `best`, and `recovered`, the share of the best's gain."""
    from seedance import Seedance
    from shots.evaluation import verify
    from shots.loop import DOUBT, direct
    from shots.stage.heldout import suite
    from shots.stage.judge import Judge
    from unitime import UniTime

    cache.mkdir(parents=True, exist_ok=True)
    renderer = Cached(Seedance.from_pretrained(model), cache, steps)
    finder, judge = UniTime.from_pretrained(grounder), Judge.load()
    found = {"films": 0, "shots": 0, "one": 0, "loop": 0, "best": 0, "takes": 0}
    for number, item in enumerate(suite("three_shots")[:limit]):
        first = renderer.take(item.script, seed=number)
        one = right_shots(item, renderer.video(first), judge)
        result = direct(
            item.script, renderer, lambda video, script: verify(video, script, finder), retakes, seed=number,
            film=first, doubt=DOUBT if doubt is None else doubt,
        )  # fmt: skip
        loop = right_shots(item, result.video, judge)
        best, seeds = list(one), Random(f"independent {number}")
        for _ in range(TAKES - 1):
            if all(best):
                break
            other = renderer.video(renderer.take(item.script, seed=seeds.randrange(2**31)))
            best = [a or b for a, b in zip(best, right_shots(item, other, judge), strict=True)]
        found["films"] += 1
        found["takes"] += len(result.takes)
        for name, right in (("one", one), ("loop", loop), ("best", best)):
            found[name] += sum(right)
        found["shots"] += len(one)
        marks = {
            name: "".join(".#"[hit] for hit in right) for name, right in (("one", one), ("loop", loop), ("best", best))
        }
        print(f"film {number}: {marks}, of takes {result.chosen} of {len(result.takes)}; so far {found}", flush=True)
    gain = found["best"] - found["one"]
    return {**found, "recovered": (found["loop"] - found["one"]) / gain if gain else None}


def retakes(limit: int | None = None) -> list[Row]:
    """The row of the table."""
    found = measure(limit)
    shots = found["shots"]
    told = " / ".join(f"{100 * found[name] / shots:.0f}" for name in ("one", "loop", "best"))
    share = "-" if found["recovered"] is None else f"{100 * found['recovered']:.0f} %"
    what = "three shots, all core facts right: one take / `--retakes 3` / best of four by the judge; gain recovered"
    return [(what, f"{told} % of {shots} shots; {share}", ">= 50 % of the gain")]


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="only the first scripts (default: all 30)")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder of takes (default: {CACHE})")
    parser.add_argument("--retakes", type=int, default=3)
    parser.add_argument("--doubt", type=float, help="passed shots with a lower score are taken again (default: 0.5)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    parser.add_argument("--model", default=MODEL, help="shipped name, folder or hub id")
    parser.add_argument("--grounder", default=GROUNDER, help="shipped name, folder or hub id")
    print(json.dumps(measure(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
