"""The model card of unitime-nano: `python -m unitime.training.card FOLDER [--run PART LOG ...] [--report FILE] ...`.

Notable choices:

- What is known of a training is kept in the folder's `training.json`; `README.md` is written from that file and the
  configuration alone, so running this again without options gives the same card.
- Figures are copied from the report that `seedance evaluate grounding --json` prints.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shots.runtime.cards import code_commit, portable, span, table
from unitime.errors import UniTimeError


def run_facts(part: str, log: Path) -> dict[str, Any]:
    """What the log of a run says of it: steps, samples, seconds and the last figures."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    if not steps:
        raise UniTimeError(f"run: {log} holds no step")
    last = {key: value for key, value in steps[-1].items() if isinstance(value, float) and key not in ("time", "lr")}
    seconds = max(row.get("seconds", 0.0) for row in rows)
    return {"part": part, "steps": max(row.get("step", 0) for row in rows), "samples": steps[-1]["samples"],
            "seconds": round(seconds), "last": last}  # fmt: skip


def write_card(
    folder: Path, runs: Sequence[tuple[str, Path]] = (), report: Path | None = None, machine: str | None = None,
    note: str | None = None,
) -> Path:  # fmt: skip
    """Writes ``training.json`` and ``README.md`` into a model folder. Returns the card."""
    store = folder / "training.json"
    facts: dict[str, Any] = json.loads(store.read_text()) if store.is_file() else {}
    if runs:
        facts["runs"] = [run_facts(part, log) for part, log in runs]
        facts["commit"] = code_commit()
    if report is not None:
        facts["report"] = json.loads(report.read_text())
    facts |= {key: value for key, value in (("machine", machine), ("note", note)) if value is not None}
    store.write_text(json.dumps(portable(facts), indent=1) + "\n")
    card = folder / "README.md"
    card.write_text(card_text(facts, json.loads((folder / "config.json").read_text()), _settings(folder)))
    return card


def _settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder / "unitime.json").read_text())
    return settings


def card_text(facts: dict[str, Any], config: dict[str, Any], settings: dict[str, Any]) -> str:
    """The card in markdown."""
    text, vision = config["text_config"], config["vision_config"]
    rule = settings["rule"]
    runs = [(r["part"], r["steps"], f"{r['samples']:,}", span(r["seconds"])) for r in facts.get("runs", [])]
    report = facts.get("report")
    return f"""---
license: apache-2.0
pipeline_tag: video-text-to-text
library_name: seedance
---

# unitime-nano

A small multimodal language model that says when something happens in a video, in the manner of UniTime (arXiv
2506.18883): the class and the code path of Qwen2-VL with a tiny configuration and a tokenizer of its own. It is trained
on the project's procedural film set and knows that world: coloured solids that move, jump, spin, grow, push and circle
each other. It also answers the stage's questions and captions its shots.

- vision: depth {vision["depth"]}, width {vision["embed_dim"]}, patches of {vision["patch_size"]} pixels; language: \
{text["num_hidden_layers"]} layers, width {text["hidden_size"]}, {text["vocab_size"]} tokens
- sees units of two frames {rule["pair_gap"]:g} s apart at 64 x 64 pixels, at most {rule["max_fps"] / 2:g} a second; \
one pass up to {rule["short_limit"]:g} s, longer videos coarse to fine
- "not found" above a probability of {settings.get("not_found_threshold", 0.5):g}

## Use

```python
from unitime import UniTime

for grounding in UniTime.from_pretrained("unitime-nano").ground("clip.mp4", ["the red cube jumps"], top_k=3):
    print(grounding.query, grounding.status, grounding.moments)
```

## Training

{table(("part", "steps", "samples", "time"), runs)}

- on: {facts.get("machine", "-")}
- code: commit {facts.get("commit", "-")}
- recipe: `seedance train unitime-nano`. {facts.get("note", "")}
- data: scenes of the stage (`shots/stage`, Apache-2.0), 5 to 30 s, drawn, worded and labelled by this project; nothing
  else. Samples of the tower are units; of the language model, queries.

## Measured

{_measured(report) if report else "Not measured yet."}

## Limits

- It knows the stage and nothing else: what it says of a real video means nothing. Use a large model there.
- English, in the words of the stage's grammar; held-out wordings are found less often (see above).
- Pictures are looked at in 64 x 64 pixels: small actors, surfaces and sizes are hard.

## Licence

Apache-2.0, weights and code.
"""


def _measured(report: dict[str, Any]) -> str:
    """The figures of a report as a table."""
    names = {
        "short": "5-30 s", "shifted": "the same, 4 s later", "grey": "the same on grey frames",
        "heldout_wordings": "held-out wordings", "heldout_combinations": "held-out combinations",
        "long": "2-10 min, coarse to fine", "long_single_pass": "2-10 min, one pass",
    }  # fmt: skip
    measures = ("R1@0.5", "R1@0.7", "mIoU")
    rows = [
        (names[key], row["queries"], *(f"{row[m]:.0f} ({row[f'ceiling_{m}']:.0f})" for m in measures))
        for key, row in report.items()
        if key in names
    ]
    absent, repeated, asked = report["absent"], report["repeated"], report["video_qa"]
    return f"""`seedance evaluate grounding`, in percent; in brackets the most that the stamps shown allow

{table(("videos", "queries", "R1@0.5", "R1@0.7", "mIoU"), rows)}

- events that repeat, mAP over all windows: {repeated["mAP@0.5"]:.0f} % at IoU 0.5, {repeated["mAP"]:.0f} % over \
0.5-0.95 ({repeated["queries"]} queries)
- absent events called "not found": recall {absent["recall"]:.0f} %, precision {absent["precision"]:.0f} %
- calibration error of scores: {report["calibration_error"]:.2f}
- VideoQA on 2-10 min: {asked["grounded"]:.0f} % grounded, {asked["uniform"]:.0f} % from as many frames spread evenly \
({asked["questions"]} questions)"""


def main() -> None:
    """Writes the card that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--run", nargs=2, action="append", default=[], metavar=("PART", "LOG"), help="in order")
    parser.add_argument("--report", type=Path, help="what `seedance evaluate grounding --json` printed")
    parser.add_argument("--machine", help="what it was trained on")
    parser.add_argument("--note", help="how the runs differ from the recipe")
    said = parser.parse_args()
    runs = [(part, Path(log)) for part, log in said.run]
    write_card(said.folder, runs, said.report, said.machine, said.note)


if __name__ == "__main__":
    main()
