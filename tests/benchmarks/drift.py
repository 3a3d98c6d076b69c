"""Do the actors of a film that is carried on, shot by shot, stay who they were?

    python -m tests.benchmarks.drift [--limit N] [--cache DIR] [--steps N] [--model NAME]

Films of one shot, written by the stage above the seeds of training and of the suites, are carried on ten times by a
shot (`Seedance.extend`). The stage's judge reads all shots; counted are the lasting facts of the actors (colour,
shape, size, surface) that agree with the first shot: in the first three shots that were added, and in the last three.
To reach: the latter no more than five points below the former. Beside them, how far neighbouring shots agree.

Notable choice: every film of a chain is kept in the cache, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import MODEL, Row
from tests.benchmarks.retakes import Cached

CACHE = Path("runs/drift")
FIRST_SEED = 1_000_060_000  # above the suites of shots.stage.heldout
CHAINED = 10
FILMS = 12


def chain(renderer: Cached, script: Any, seed: int) -> Any:
    """The state of a film whose first shot was carried on by all others, one by one."""
    from dataclasses import replace

    film = renderer.take(replace(script, shots=script.shots[:1]), seed=seed)
    for number, shot in enumerate(script.shots[1:], start=1):
        further = replace(script, shots=(shot,))
        base = hashlib.sha256(film.latents.numpy().tobytes()).hexdigest()
        film = renderer.kept(
            ["extend", further.to_dict(), base, seed + number],
            lambda film=film, further=further, number=number: renderer.model.extend(
                film, script=further, seed=seed + number, steps=renderer.steps
            ),
        )
    return film


def measure(
    limit: int | None = None, *, cache: Path = CACHE, steps: int | None = None, model: str = MODEL
) -> dict[str, Any]:
    """Shares of lasting facts that agree: `early` and `late` with the first shot, `neighbours` with the one before."""
    from seedance import Seedance
    from shots.stage.heldout import SuiteSpec, make_item
    from shots.stage.judge import Judge
    from shots.stage.judge.read import FilmReading

    cache.mkdir(parents=True, exist_ok=True)
    renderer, judge = Cached(Seedance.from_pretrained(model), cache, steps), Judge.load()
    spec = SuiteSpec(FILMS, FIRST_SEED, shots=1 + CHAINED)
    counts = {name: [0, 0] for name in ("early", "late", "neighbours")}
    groups = {"early": (1, 2, 3), "late": (CHAINED - 2, CHAINED - 1, CHAINED)}
    films = 0
    for index in range(FILMS if limit is None else min(limit, FILMS)):
        item = make_item(spec, index)
        video = renderer.video(chain(renderer, item.script, seed=100 * index))
        reading = judge.read_film(video, list(video.cuts))
        found = {"neighbours": [reading.agreement(item.shown)]}
        for name, places in groups.items():
            pairs = [FilmReading((reading.shots[0], reading.shots[k]), ()) for k in places]
            found[name] = [
                pair.agreement((item.shown[0], item.shown[k])) for pair, k in zip(pairs, places, strict=True)
            ]
        for name, rows in found.items():
            for agree, of in rows:
                counts[name][0] += agree
                counts[name][1] += of
        films += 1
        print(f"film {index}: {found}; so far {counts}", flush=True)
    shares = {name: agree / of if of else None for name, (agree, of) in counts.items()}
    return {"films": films, **shares, "of": {name: of for name, (_, of) in counts.items()}}


def drift(limit: int | None = None) -> list[Row]:
    """The row of the table."""
    found = measure(limit)
    early, late = found["early"] or 0.0, found["late"] or 0.0
    figure = f"{100 * early:.0f} % / {100 * late:.0f} % ({found['films']} films)"
    return [("actors as in the first shot: shots 2-4 / 9-11 of a chain", figure, "within 5 points")]


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help=f"only the first films (default: all {FILMS})")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder of films (default: {CACHE})")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    parser.add_argument("--model", default=MODEL, help="shipped name, folder or hub id")
    print(json.dumps(measure(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
