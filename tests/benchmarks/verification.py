"""What is measured of verification: planted defects found, with the shipped grounder and with one that knows all.

    python -m tests.benchmarks.verification --calibrate [--films N] [--model MODEL]

fits the weights of a grounder's verification on films of training seeds and writes them to `shots/verification.json`;
to be done whenever its weights change.

Notable choices:
- The figures are of films from seeds that neither training nor calibration draws (`shots.stage.planted`).
- `Oracle`, the grounder that knows all, is the film's own facts: what is missed with it is the fault of verification.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shots.calibration import SHIPPED, Calibration
from shots.stage.parse import read
from shots.stage.planted import CALIBRATION_SEED, CHECK_SEED, KINDS, Planted, calibrate, check, films, tally
from tests.benchmarks.figures import Row

MODEL = "unitime-nano"
FILMS = 20  # of each kind of defect, and without


@dataclass(frozen=True)
class Seen:
    """A moment and a grounding at once: what a query that happens once needs."""

    query: str
    start: float
    end: float
    score: float

    @property
    def moments(self) -> Sequence[Seen]:
        return (self,) if self.score else ()

    @property
    def status(self) -> str:
        return "ok" if self.score else "not_found"


class Oracle:
    """A grounder that knows what a film of the stage shows."""

    def __init__(self, film: Planted) -> None:
        self.film = film

    def ground(
        self, video: Any, queries: Sequence[str], top_k: int = 1, *, window: tuple[float, float] | None = None
    ) -> list[Seen]:
        return [self._seen(query, window) for query in queries]

    def _seen(self, query: str, window: tuple[float, float] | None) -> Seen:
        reading = read(query)
        asked = reading.facts.actors[0]
        begin = 0.0
        for shot in self.film.film.shots:
            for action in shot.actions:
                actor = self.film.film.actor(action.actor)
                start, end = begin + action.start, begin + min(action.end, shot.seconds)
                same = (actor.colour, actor.shape, action.kind) == (asked.colour, asked.shape, asked.action)
                if same and (window is None or window[0] <= (start + end) / 2 <= window[1]):
                    return Seen(query, start, end, 1.0)
            begin += shot.seconds
        return Seen(query, 0.0, 0.0, 0.0)


def verification(limit: int | None = None) -> list[Row]:
    """Planted defects found and good shots called bad."""
    from unitime import UniTime

    count = min(FILMS, limit or FILMS)
    found = check(UniTime.from_pretrained(MODEL), count, CHECK_SEED, _report)
    kinds = ", ".join(f"{kind.replace('_', ' ')} {row['found']:.0%}" for kind, row in found["kinds"].items())
    ranked = sum(row["ranked"] * row["of"] for row in found["kinds"].values()) / found["defects"]
    sure, alarms = oracle(count)
    return [
        ("verification: planted defects found / false alarms",
         f"{found['found']:.0%} of {found['defects']} / {found['false_alarms']:.0%} of {found['good_shots']} shots "
         f"({kinds})", ">= 90 / <= 5 %"),
        ("the same, shots with a defect that score below the film's others", f"{ranked:.0%}", "-"),
        ("the same, with a grounder that knows what is shown", f"{sure:.0%} / {alarms:.0%}", ">= 90 / <= 5 %"),
    ]  # fmt: skip


def oracle(count: int, first_seed: int = CHECK_SEED) -> tuple[float, float]:
    """Shares of planted defects found and of good shots called bad, with `Oracle` and plain weights."""
    from shots.evaluation import verify

    counts: dict[str, list[int]] = {kind: [0, 0, 0, 0] for kind in KINDS}
    alarms = good = 0
    for film in films(count, first_seed):
        report = verify(film.video, film.script, Oracle(film), measures=False, calibration=Calibration())
        tally(film, report, counts)
        fine = [shot for shot in report.shots if shot.number not in film.shots]
        alarms, good = alarms + sum(not shot.passed for shot in fine), good + len(fine)
    return sum(row[0] for row in counts.values()) / sum(row[3] for row in counts.values()), alarms / good


def _report(done: int, total: int, what: str) -> None:
    print(f"film {done} of {total}: {what}", file=sys.stderr, flush=True)


def main() -> None:
    """Calibrate or check as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrate", action="store_true", help="fit and write; else check what is written")
    parser.add_argument("--films", type=int, default=FILMS, help="of each kind of defect, and without")
    parser.add_argument("--model", default=MODEL, help="shipped name, folder or hub id")
    arguments = parser.parse_args()
    from unitime import UniTime

    grounder = UniTime.from_pretrained(arguments.model)
    if not arguments.calibrate:
        print(json.dumps(check(grounder, arguments.films, CHECK_SEED, _report), indent=1))
        return
    made = calibrate(grounder, arguments.films, CALIBRATION_SEED, _report)
    known = json.loads(SHIPPED.read_text(encoding="utf-8")) if SHIPPED.is_file() else {}
    known[arguments.model] = made.to_dict()
    SHIPPED.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(made.to_dict(), indent=1))


if __name__ == "__main__":
    main()
