"""The judge's card: `python -m shots.stage.judge.card [FOLDER] [--run RUN] [--report FILE ...] [--machine TEXT]`.

Notable choice: what is known is kept in the folder's `config.json` under `training`; `README.md` is written from that
file alone. Reports are what `python -m tests.benchmarks.judge` prints.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shots.errors import ShotsError
from shots.runtime.cards import code_commit, portable, share, span, table

SHIPPED = Path(__file__).parent
_NOT_FACTS = ("absent", "broken_called", "present", "sound")  # kinds that stand apart from the facts of a shot


def write_card(
    folder: str | Path = SHIPPED,
    *,
    run: str | Path | None = None,
    reports: Iterable[str | Path] = (),
    machine: str | None = None,
    commit: str | None = None,
) -> Path:
    """Adds what is given to `config.json` and writes the folder's `README.md`.

    run: folder of its training, whose log.jsonl tells the recipe. reports: JSON files {"stage": report,
    "vae_round_trip": report, "by_eye": agreement}, as the benchmark prints them. machine: what it was trained on, in
    words. commit: of the code that trained it.

    Raises ShotsError for a folder without a judge and a report that cannot be read.
    """
    folder = Path(folder)
    config = _read(folder / "config.json")
    if config.get("_class_name") != "Judge":
        raise ShotsError(f"folder: {folder} holds no judge; train one with seedance train (task: judge)")
    training: dict[str, Any] = config.setdefault("training", {})
    if run is not None:
        training["recipe"] = _recipe(Path(run) / "log.jsonl")
    for path in reports:
        training.setdefault("reports", {}).update(_read(Path(path)))
    training |= {name: value for name, value in (("machine", machine), ("commit", commit)) if value is not None}
    config["training"] = portable(training)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    card = folder / "README.md"
    card.write_text(card_text(config), encoding="utf-8")
    return card


def card_text(config: dict[str, Any]) -> str:
    """The card, markdown, of a judge's `config.json`."""
    training = config["training"]
    told = [f"- steps {training.get('steps', 'not recorded')}, {span(training.get('seconds', 0))}"]
    told += [f"- on: {training['machine']}"] if "machine" in training else []
    told += [f"- code: commit {training['commit']}"] if "commit" in training else []
    if recipe := training.get("recipe"):
        loop = recipe["loop"]
        rate = f"{loop['optimizer']} at {loop['learning_rate']:g}"
        told.append(f"- seed {loop['seed']}, batches of {recipe['batch']}, {rate}")
        told.append(f"- {recipe['pool_size']:,} shots, each used many times, each time damaged otherwise")
        if recipe.get("extra_pools"):
            told.append(f"- {share(recipe['extra_share'])} of each batch: shots that went through the VAE and back")
    parts = [_ABOUT, "## Training\n\n" + "\n".join([*told, _DATA]), _figures(training), _by_eye(training), _LIMITS]
    return "\n\n".join(part for part in parts if part) + "\n"


_ABOUT = """---
license: apache-2.0
library_name: seedance
---

# The judge

A small network that reads a shot of the stage back into facts: how many actors, for each of ten colours the shape,
size, surface and action of the actor of that colour or "none", camera, shot size, angle, floor, sky, style and fog, and
whether the shot is sound at all. A second, tiny network over neighbouring frames finds hard cuts. It is the ruler of
`seedance evaluate prompts`. It measures only: no reward, no selection of takes and no training target uses it.

```python
from shots.stage.judge import Judge

reading = Judge.load().read_film(shots.read_video("film.mp4"))
```"""

_DATA = """- data: shots of the stage, drawn by this project, with their labels; blurred, coarsened, recoloured, and a
  share of them spoilt (noise, blends of two shots, melting), which must read as "not sound"
- recipe: `judge.yaml` as of that commit (`seedance train shots/stage/judge/judge.yaml`)
- the seeds of the shots it is measured on are never drawn for training"""

_LIMITS = """## Limits

It knows the stage and nothing else; what it says of a real video means nothing. It tells actors apart by colour: two of
one colour read as one. A figure of prompt following cannot be finer than this ruler: compare it with the shares above.

## Licence

Apache-2.0."""


def _figures(training: dict[str, Any]) -> str:
    reports = training.get("reports", {})
    if reports:
        names = {"stage": "held-out clips", "vae_round_trip": "after a round trip through the VAE"}
        columns = {title: reports[name] for name, title in names.items() if name in reports}
        kinds = sorted({kind for report in columns.values() for kind in report["right"]})
        films = ", ".join(f"{report['films']} films" for report in columns.values())
        head, command = ("share read right", *columns), f"`python -m tests.benchmarks.judge` ({films})"
        rights = [report["right"] for report in columns.values()]
    elif training.get("held_out"):
        rights = [training["held_out"]]
        kinds = sorted(rights[0])
        head, command = ("share read right", "held-out shots"), "At the end of the training (last line of its log):"
    else:
        return ""
    kinds = [kind for kind in kinds if kind not in _NOT_FACTS] + [kind for kind in kinds if kind in _NOT_FACTS]
    rows = [(_NAMES.get(kind, kind.replace("_", " ")), *(share(right.get(kind)) for right in rights)) for kind in kinds]
    return f"## Measured\n\n{command}\n\n{table(head, rows)}"


def _by_eye(training: dict[str, Any]) -> str:
    """The judge beside readers of generated films, where a report tells of them."""
    report = training.get("reports", {}).get("by_eye")
    if report is None:
        return ""
    agree, alike, script = report["agree"], report["readers_alike"], report.get("script", {})
    rows = [
        (
            _NAMES.get(key, key.replace("_", " ")), f"{right} of {of}", "{} of {}".format(*alike[key]),
            "{} of {}".format(*script[key]) if key in script else "-",
        )
        for key, (right, of) in agree.items()
    ]  # fmt: skip
    right, of = (sum(part) for part in zip(*(pair for key, pair in agree.items() if key != "whole"), strict=True))
    rows.append(("all facts", f"{right} of {of} ({share(right / of) if of else '-'})", "", ""))
    about = (
        f"Beside two readers by eye, on {report['films']} films of seedance-nano (the same command). What one of them\n"
        "could not tell, or the two told differently, is left out. The last column is prompt following by eye."
    )
    head = ("", "judge as both readers", "readers alike", "both as the script says")
    return f"{about}\n\n{table(head, rows)}"


_NAMES = {
    "whole": "whole, or falls to pieces",
    "absent": "colours that are not there, read so",
    "present": "colours that are there, read so",
    "sound": "whole shots read as whole",
    "broken_called": "spoilt shots read as not whole",
    "other": "whom an actor pushes, circles, ...",
}


def _recipe(log: Path) -> dict[str, Any]:
    """The recipe of the last start that a run's log tells of."""
    try:
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise ShotsError(f"run: {log} cannot be read ({error}); give the folder of a judge's training") from error
    starts = [row["recipe"] for row in rows if row.get("event") == "recipe"]
    if not starts:
        raise ShotsError(f"run: {log} tells of no start; give the folder of a judge's training")
    return dict(starts[-1])


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ShotsError(f"{path.name}: {path} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise ShotsError(f"{path.name}: {path} must hold one JSON object")
    return found


def main() -> None:
    """Write the card that the command line asks for, and say where it lies."""
    parser = argparse.ArgumentParser(prog="python -m shots.stage.judge.card", description="Write the judge's card.")
    parser.add_argument("folder", type=Path, nargs="?", default=SHIPPED, help="the judge's folder (default: shipped)")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="run folder of its training, with log.jsonl")
    parser.add_argument("--report", nargs="+", default=[], type=Path, metavar="FILE", help="tests.benchmarks.judge's")
    parser.add_argument("--machine", metavar="TEXT", help="what it was trained on")
    parser.add_argument("--commit", help='of the code that trained it; "here" is the one checked out')
    said = parser.parse_args()
    try:
        commit = code_commit() if said.commit == "here" else said.commit
        path = write_card(said.folder, run=said.run, reports=said.report, machine=said.machine, commit=commit)
    except ShotsError as error:
        sys.exit(f"card: {error}")
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
