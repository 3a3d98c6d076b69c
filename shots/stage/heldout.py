"""What training never sees, and the evaluation suites that are fixed in the repository.

Notable choices:

- Held-out combinations are explicit tables: six of the sixty looks (shape and colour) and eight of the shape and
  action pairs. Every shape, colour and action occurs in training in other combinations.
- A suite is a list of film seeds from a range of its own, above every training seed. `python -m shots.stage.heldout`
  writes, renders and observes the films once and stores their scripts and facts in `suites.json`, which is what
  evaluation reads: a suite does not move when the grammar grows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from shots.errors import ShotsError
from shots.script import Script, Shot
from shots.stage.facts import Facts, facts_of

HELDOUT_LOOKS: frozenset[tuple[str, str]] = frozenset(
    {
        ("sphere", "cyan"),
        ("cube", "purple"),
        ("cylinder", "yellow"),
        ("cone", "pink"),
        ("torus", "orange"),
        ("capsule", "blue"),
    }
)
HELDOUT_ACTIONS: frozenset[tuple[str, str]] = frozenset(
    {
        ("sphere", "squash"),
        ("cube", "circle"),
        ("cylinder", "jump"),
        ("cone", "grow"),
        ("torus", "move_left"),
        ("capsule", "fall"),
        ("sphere", "push"),
        ("cube", "move_toward"),
    }
)
TRAINING_SEEDS = 1_000_000_000  # training draws its seeds below, suites above
SUITES_FILE = Path(__file__).with_name("suites.json")


def is_heldout_look(shape: str, colour: str) -> bool:
    """Whether no actor in training has this shape and colour."""
    return (shape, colour) in HELDOUT_LOOKS


def is_heldout_action(shape: str, kind: str) -> bool:
    """Whether no actor of this shape does this action in training."""
    return (shape, kind) in HELDOUT_ACTIONS


@dataclass(frozen=True)
class SuiteSpec:
    """How the films of a suite are written: `write_film(seed, shots=, actors=, split=)` and the wording of their
    captions."""

    count: int
    first_seed: int
    shots: int = 1
    actors: int | None = 1
    split: str = "train"
    wording: str = "train"
    seconds: float = 3.0


SUITES: dict[str, SuiteSpec] = {
    "one_actor": SuiteSpec(100, TRAINING_SEEDS),
    "two_actors": SuiteSpec(50, TRAINING_SEEDS + 10_000, actors=2),
    "three_shots": SuiteSpec(30, TRAINING_SEEDS + 20_000, shots=3, actors=None),
    "heldout_wordings": SuiteSpec(50, TRAINING_SEEDS + 30_000, wording="heldout"),
    "heldout_combinations": SuiteSpec(50, TRAINING_SEEDS + 40_000, split="heldout"),
    "first_frame": SuiteSpec(40, TRAINING_SEEDS + 50_000, actors=None),
}


@dataclass(frozen=True)
class SuiteItem:
    """One film to generate and score.

    `said` holds, per shot, the facts its caption says (what a generated film is scored on); `shown` all facts that a
    viewer of
    the stage's own render can tell. `seed`, `shots`, `actors` and `split` rewrite the film itself (its first frame,
    say).
    """

    seed: int
    shots: int
    actors: int | None
    split: str
    seconds: float
    script: Script
    said: tuple[Facts, ...]
    shown: tuple[Facts, ...]

    def film(self) -> Any:
        """The stage's own film of this item (`shots.stage.scene.Film`)."""
        from shots.stage.writer import write_film

        return write_film(self.seed, shots=self.shots, actors=self.actors, split=self.split, seconds=self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {
            "seed": self.seed,
            "shots": self.shots,
            "actors": self.actors,
            "split": self.split,
            "seconds": self.seconds,
            "script": self.script.to_dict(),
            "said": [facts.to_dict() for facts in self.said],
            "shown": [facts.to_dict() for facts in self.shown],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SuiteItem:
        """The inverse of `to_dict`."""
        return cls(
            seed=data["seed"],
            shots=data["shots"],
            actors=data["actors"],
            split=data["split"],
            seconds=data["seconds"],
            script=Script.from_dict(data["script"]),
            said=tuple(Facts.from_dict(item) for item in data["said"]),
            shown=tuple(Facts.from_dict(item) for item in data["shown"]),
        )


def make_item(spec: SuiteSpec, index: int) -> SuiteItem:
    """Writes, renders, observes and captions film number `index` of a suite."""
    from shots.stage.observe import observe
    from shots.stage.render import render_film
    from shots.stage.words import describe, describe_film
    from shots.stage.writer import write_film

    seed = spec.first_seed + index
    film = write_film(seed, shots=spec.shots, actors=spec.actors, split=spec.split, seconds=spec.seconds)
    observations = observe(film, render_film(film))
    rng = Random(f"suite-{seed}")
    captions = [describe(film, k, rng, observations, wording=spec.wording) for k in range(spec.shots)]
    script = Script(
        shots=tuple(Shot(caption.text, seconds=spec.seconds) for caption in captions),
        caption=describe_film(film, rng, spec.wording, observations) if spec.shots > 1 else None,
    )
    return SuiteItem(
        seed=seed,
        shots=spec.shots,
        actors=spec.actors,
        split=spec.split,
        seconds=spec.seconds,
        script=script,
        said=tuple(caption.facts for caption in captions),
        shown=tuple(facts_of(film, k, observations) for k in range(spec.shots)),
    )


def suite(name: str) -> list[SuiteItem]:
    """The items of the suite called `name` (a key of `SUITES`), as fixed in the repository."""
    if name not in SUITES:
        raise ShotsError(f"suite: there is no {name!r}; the suites are {', '.join(SUITES)}")
    return [SuiteItem.from_dict(item) for item in json.loads(SUITES_FILE.read_text())[name]]


def write_suites(path: Path = SUITES_FILE) -> int:
    """Makes all suites and writes them to `path`, one item a line; returns how many items there are."""
    blocks = []
    for name, spec in SUITES.items():
        lines = [json.dumps(make_item(spec, index).to_dict()) for index in range(spec.count)]
        blocks.append(f"{json.dumps(name)}: [\n" + ",\n".join(lines) + "\n]")
    path.write_text("{\n" + ",\n".join(blocks) + "\n}\n")
    return sum(spec.count for spec in SUITES.values())


if __name__ == "__main__":
    write_suites()
