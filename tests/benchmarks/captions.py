"""What is measured of captions: stage films captioned into scripts, whose facts are held against the films'.

    python -m tests.benchmarks.captions [--limit N] [--model MODEL] [--oracle]

Notable choices:
- Films are of seeds that no training draws, written to files and read back: cuts are found, not known.
- A fact is right if the script says it of the shot (`shots.stage.parse`) and it holds there (`shots.stage.facts`), as
  far as a viewer can tell; that an actor is there is a fact of its own. Beside the share of what is said that is right
  stands the share of what could be said that is: a caption of two words is easily right.
- The judge reads the film's shots for the same facts, with no knowledge of the truth: the chain that holds for films
  whose truth nobody knows.
- `--oracle` captions from the film's own facts in the stage's words: what the chain itself loses.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shots.captions import describe_film
from shots.stage.facts import Facts, facts_of
from shots.stage.observe import Observations, observe
from shots.stage.parse import facts_of_script
from shots.stage.render import render_film
from shots.stage.scene import Film
from shots.stage.words import describe_shot
from shots.stage.writer import write_film
from shots.video import VideoWriter
from tests.benchmarks.figures import Row

MODEL = "unitime-nano"
FILMS = 50
SEED = 985_000_000  # of the first film
FPS, SIDE, SHOTS, SECONDS = 12.0, 128, 3, 3.0
CORE = ("colour", "shape", "action")


@dataclass
class Tally:
    """Facts and cuts counted over films."""

    right: int = 0
    said: int = 0
    tellable: int = 0
    core: list[int] = field(default_factory=lambda: [0, 0])  # right, tellable
    camera: list[int] = field(default_factory=lambda: [0, 0])  # right, said
    judged: list[int] = field(default_factory=lambda: [0, 0])  # right, said
    cuts: list[int] = field(default_factory=lambda: [0, 0, 0])  # found within a frame, true, found
    checks: dict[str, int] = field(default_factory=dict)

    def add(self, said: Facts, true: Facts) -> None:
        """Counts one shot; what a viewer cannot tell counts neither way."""
        claimed, holds = known(said), known(true)
        present = {actor.colour for actor in true.actors}
        for name, value in claimed.items():
            colour = name.rpartition(".")[0]
            if name not in holds and (not colour or colour in present):
                continue  # nobody can tell
            self.said += 1
            self.right += holds.get(name) == value
            if name == "camera":
                self.camera[0] += holds[name] == value
                self.camera[1] += 1
        self.tellable += len(holds)
        for name, value in holds.items():
            if name.rpartition(".")[2] in CORE:
                self.core[0] += claimed.get(name) == value
                self.core[1] += 1

    def report(self) -> dict[str, Any]:
        """Shares, and of how many."""
        return {
            "said_right": _share(self.right, self.said), "said": self.said,
            "told": _share(self.right, self.tellable), "tellable": self.tellable,
            "core_told": _share(*self.core), "core": self.core[1],
            "camera_right": _share(*self.camera), "cameras": self.camera[1],
            "judge_agrees": _share(*self.judged), "judged": self.judged[1],
            "cuts_within_a_frame": _share(self.cuts[0], self.cuts[1]), "cuts": self.cuts[1],
            "false_cuts": self.cuts[2] - self.cuts[0],
            "checks": self.checks,
        }  # fmt: skip


def known(facts: Facts) -> dict[str, str | bool]:
    """Every fact under a flat name, that an actor is there among them."""
    return facts.pairs() | {f"{actor.colour}.colour": True for actor in facts.actors if actor.colour is not None}


def _share(right: int, of: int) -> float | None:
    return right / of if of else None


class Knowing:
    """A captioner that knows the film, and says of a window what the shot in its middle shows."""

    def __init__(self, film: Film, edges: list[float], seen: Observations) -> None:
        self.film, self.edges, self.seen = film, edges, seen

    def caption(self, video: Any, *, window: tuple[float, float] | None = None) -> str:
        middle = sum(window or (0.0, 0.0)) / 2
        k = max(k for k, start in enumerate(self.edges[:-1]) if start <= middle or k == 0)
        return describe_shot(self.film, k, random.Random(f"captions-{self.film.seed}-{k}"), self.seen)


def measure(model: Any, films: int = FILMS) -> dict[str, Any]:
    """Captions the films and counts; `model` None captions from the films' own facts and checks nothing."""
    from shots.stage.following import shot_hits
    from shots.stage.judge import Judge

    judge, tally = Judge.load(), Tally()
    for number in range(films):
        film = write_film(SEED + number, shots=SHOTS, seconds=SECONDS)
        rendered = render_film(film, SIDE, SIDE, FPS)
        seen = observe(film, rendered)
        pictures = rendered.frames.numpy()
        starts = [0, *rendered.boundaries, len(pictures)]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film.mp4"
            with VideoWriter(path, fps=FPS, height=SIDE, width=SIDE) as writer:
                writer.write(pictures)
            captioner = model or Knowing(film, [start / FPS for start in starts], seen)
            made = describe_film(path, captioner, model)
        found = [round(shot.start * FPS) for shot in made.shots[1:]]
        hits = sum(any(abs(cut - true) <= 1 for cut in found) for true in starts[1:-1])
        tally.cuts = [a + b for a, b in zip(tally.cuts, (hits, len(starts) - 2, len(found)), strict=True)]
        told = facts_of_script(made.script)
        for k, (first, last) in enumerate(zip(starts, starts[1:], strict=False)):
            middle = (first + last) / 2 / FPS
            j = next(j for j, shot in enumerate(made.shots) if middle < shot.end or j == len(made.shots) - 1)
            tally.add(told[j], facts_of(film, k, seen))
            agreed = [hit for _, hit in shot_hits(told[j], judge.read(pictures[first:last], FPS))]
            tally.judged = [tally.judged[0] + sum(agreed), tally.judged[1] + len(agreed)]
        for shot in made.shots:
            tally.checks[shot.check] = tally.checks.get(shot.check, 0) + 1
        print(f"film {number + 1}/{films}", file=sys.stderr, flush=True)
    return {"films": films, **tally.report()}


def captions(limit: int | None = None) -> list[Row]:
    """Facts of the scripts that stage films are captioned into, and their cuts."""
    from unitime import UniTime

    films = min(FILMS, limit or FILMS)
    found = measure(UniTime.from_pretrained(MODEL), films)

    def percent(name: str) -> str:
        return "-" if found[name] is None else f"{100 * found[name]:.0f} %"

    return [
        (f"caption -> script, {films} stage films: facts said that are right; facts told; core facts told",
         f"{percent('said_right')} of {found['said']}; {percent('told')}; {percent('core_told')}", ">= 85 %"),
        ("the same by the judge: facts said that it reads", percent("judge_agrees"), ">= 85 %"),
        ("camera moves told from the pictures: right", f"{percent('camera_right')} of {found['cameras']}", ">= 85 %"),
        ("cuts of captioned films within one frame; false ones",
         f"{percent('cuts_within_a_frame')} of {found['cuts']}; {found['false_cuts']}", "100 %; 0"),
    ]  # fmt: skip


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=FILMS, help="films, for a quick look")
    parser.add_argument("--model", default=MODEL, help="shipped name, folder or hub id")
    parser.add_argument("--oracle", action="store_true", help="caption from the films' own facts")
    arguments = parser.parse_args()
    model = None
    if not arguments.oracle:
        from unitime import UniTime

        model = UniTime.from_pretrained(arguments.model)
    print(json.dumps(measure(model, arguments.limit), indent=1))


if __name__ == "__main__":
    main()
