"""The model card: `python -m seedance.training.card FOLDER [--vae-run RUN ...] [--report FILE ...] [--machine TEXT]`.

Notable choices:

- What is known of a training is kept in the folder's `training.json`: the DiT's facts, which the export writes, and
  what is given here (the VAE's runs, runs of the DiT before the last, the recipes of earlier steps, reports, machine,
  commit). `README.md` is written from that file and the configurations alone, so running this again without options
  gives the same card.
- Figures are copied from reports, which `seedance evaluate vae|prompts --json` prints; the card names the command.
- Absolute paths are cut to their last part before anything is stored.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from seedance.errors import SeedanceError
from seedance.training import RECIPES
from shots.errors import ShotsError
from shots.runtime.cards import code_commit, portable, share, span, table
from shots.runtime.recipe import load_recipe

# Real clips and pictures of the shipped recipes: what they are, where from, under which licence.
REAL = {
    "PySceneDetect__testvideo.mp4": ("six shots and their transitions", "Breakthrough/PySceneDetect", "BSD-3-Clause"),
    "PySceneDetect__delayed_start.mp4": ("two seconds of video", "Breakthrough/PySceneDetect", "BSD-3-Clause"),
    "moviepy__big_buck_bunny_0_30.webm": (
        "Big Buck Bunny, first 30 s (c) Blender Foundation", "Zulko/moviepy", "MIT; the film CC BY 3.0",
    ),
    "sample-videos__bottle-detection.mp4": ("bottles on a table", "intel-iot-devkit/sample-videos", "CC BY 4.0"),
    "sample-videos__bird.mkv": ("a sign of sign language", "intel-iot-devkit/sample-videos", "CC BY 4.0"),
    "sample-videos__book.mkv": ("a sign of sign language", "intel-iot-devkit/sample-videos", "CC BY 4.0"),
    "sample-videos__eat.mkv": ("a sign of sign language", "intel-iot-devkit/sample-videos", "CC BY 4.0"),
    "torchcodec__av1_video.mkv": ("a test pattern", "pytorch/torchcodec", "BSD-3-Clause"),
    "torchcodec__h264_10bits.mp4": ("a test pattern", "pytorch/torchcodec", "BSD-3-Clause"),
    "scikit-image__astronaut.png": ("a portrait by NASA", "scikit-image/scikit-image", "public domain"),
    "scikit-image__chelsea.png": ("a cat", "scikit-image/scikit-image", "CC0"),
    "scikit-image__coffee.png": ("a cup of coffee", "scikit-image/scikit-image", "CC0"),
    "scikit-image__rocket.jpg": ("the launch of a rocket", "scikit-image/scikit-image", "public domain"),
    "scikit-image__camera.png": ("a man with a camera", "scikit-image/scikit-image", "CC0"),
}  # fmt: skip

SUITES = {
    "one_actor": "one actor",
    "two_actors": "two actors",
    "three_shots": "three-shot scripts, per shot",
    "heldout_wordings": "held-out wordings",
    "heldout_combinations": "held-out combinations",
}


def write_card(
    folder: str | Path,
    *,
    vae_runs: Iterable[str | Path] = (),
    before: Iterable[str | Path] = (),
    recipes: Iterable[str | Path] = (),
    reports: Iterable[str | Path] = (),
    machine: str | None = None,
    commit: str | None = None,
) -> Path:
    """Adds what is given to the model folder's `training.json` and writes its `README.md`.

    vae_runs: folders of the VAE's runs, in order, with their log.jsonl. before: model folders that earlier runs of the
    DiT exported, in order, where the last run went on from their weights. recipes: of the steps before the DiT
    (`task: vae`, `frames`, ...), files or names of shipped ones. reports: JSON files that `seedance evaluate` printed.
    machine: what it was trained on, in words. commit: of the code that trained it.

    Raises SeedanceError for a folder without `training.json` and for files that are not what they should be.
    """
    folder = Path(folder)
    facts = portable(_read(folder / "training.json"))
    if found := [vae_facts(Path(run) / "log.jsonl") for run in vae_runs]:
        facts["vae"] = found
    if earlier := [_read(Path(run) / "training.json") for run in before]:
        facts["before"] = [{name: run[name] for name in ("steps", "clips_seen", "seconds")} for run in earlier]
    for path in recipes:
        recipe = portable(load_recipe(path, shipped=[RECIPES]))
        facts.setdefault("recipes", {})[str(recipe.get("task"))] = recipe
    for path in reports:
        report = _read(Path(path))
        report.pop("seed", None)
        facts.setdefault("reports", {})["prompts" if "one_actor" in report else "vae"] = report
    facts |= {name: value for name, value in (("machine", machine), ("commit", commit)) if value is not None}
    (folder / "training.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    card = folder / "README.md"
    card.write_text(card_text(folder, facts), encoding="utf-8")
    return card


def vae_facts(log: Path) -> dict[str, Any]:
    """The facts of a VAE's run, over all its starts, from its log.jsonl."""
    try:
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise SeedanceError(
            f"vae_runs: {log} cannot be read ({error}); give the folder of a run of task vae"
        ) from error
    starts = [row for row in rows if row.get("event") == "start"]
    ends = [row for row in rows if row.get("event") == "end"]
    seen = [row for row in rows if "samples" in row]
    if not (starts and ends and seen and ends[-1].get("finished")):
        raise SeedanceError(
            f"vae_runs: {log} tells of no finished run; let it finish first (seedance train resumes it)"
        )
    return {
        "parameters": starts[0]["parameters"],
        "dtype": str(starts[0]["dtype"]).removeprefix("torch."),
        "device": starts[0]["device"],
        "threads": starts[0]["threads"],
        "steps": ends[-1]["step"],
        "seconds": round(ends[-1]["seconds"]),
        "crops_seen": seen[-1]["samples"],
    }


def card_text(folder: Path, facts: dict[str, Any]) -> str:
    """The card of a model folder, markdown, from its `training.json` and its configurations."""
    transformer = _read(folder / "transformer" / "config.json")
    index = _read(folder / "model_index.json")
    parts = [_head(facts, transformer, index), _use(index), _training(facts), _data(facts)]
    parts += [_figures(facts.get("reports", {})), _limits(folder), _continue(facts), _LICENCE]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(facts: dict[str, Any], transformer: dict[str, Any], index: dict[str, Any]) -> str:
    layers = f"{transformer['spatial_layers']} spatial and {transformer['temporal_layers']} temporal layers"
    vae = f"; the VAE {facts['vae'][0]['parameters'] / 1e6:.1f} M" if "vae" in facts else ""
    defaults = index["defaults"]
    size = f"{defaults['height']} x {defaults['width']}"
    return f"""---
license: apache-2.0
pipeline_tag: text-to-video
library_name: seedance
---

# seedance-nano

A small text-to-video model in the manner of Seedance 1.0: a causal video VAE (ratios 4 x 16 x 16, 48 channels) and a
flow-matching transformer with decoupled spatial and temporal layers and multi-shot rotary positions. One network makes
films from text, from a first picture, from a first and a last one, goes on where a film ends, and re-takes single shots
of a script. It is trained on the project's own procedural film set, and draws that world: coloured solids that move,
jump, spin, push and circle each other, seen by a moving camera.

- transformer: {facts["parameters"] / 1e6:.1f} M parameters, width {transformer["dim"]}, {layers}{vae}
- text: all-MiniLM-L6-v2 (Apache-2.0), frozen, not in this folder
- made for {size} pixels, {defaults["fps"]:g} frames a second, several shots of about {defaults["seconds"]:g} s"""


def _use(index: dict[str, Any]) -> str:
    defaults = index["defaults"]
    return f"""## Use

```python
from seedance import Seedance

film = Seedance.from_pretrained("seedance-nano")("A red cube jumps. [cut] A blue sphere spins.", seed=1)
film.save("film.mp4")
```

Defaults: {defaults["steps"]} steps, guidance {defaults["guidance_scale"]:g}. Weights are safetensors and are
checked against the hashes in `model_index.json`."""


def _training(facts: dict[str, Any]) -> str:
    loop = facts["recipe"]["loop"]
    vaes, transformers = facts.get("vae", []), [*facts.get("before", []), facts]
    rows = [
        (_run("VAE", vaes, k), run["steps"], f"{run['crops_seen']:,} crops", span(run["seconds"]))
        for k, run in enumerate(vaes)
    ] + [
        (
            _run("transformer", transformers, k),
            run["steps"],
            f"{run['clips_seen']:,} views of clips",
            span(run["seconds"]),
        )
        for k, run in enumerate(transformers)
    ]
    lines = ["## Training", "", table(("part", "steps", "seen", "time"), rows), ""]
    lines.append(f"- on: {facts.get('machine', facts['device'])}")
    lines.append(f"- code: commit {facts['commit']}" if "commit" in facts else "- code: commit not recorded")
    lines.append(f"- seed {loop['seed']}, learning rate {loop['learning_rate']:g}, EMA {loop['ema']:g}")
    if facts["recipe"].get("init_from"):
        what = "the run before it" if "before" in facts else facts["recipe"]["init_from"]
        lines.append(f"- the last run of the transformer started from the weights of {what}")
    lines.append("- losses at the end, on clips held out of the cache: " + _listed(facts.get("losses", {})))
    lines.append("- the recipes, whole: `training.json`")
    last = "the last run" if "before" in facts else "its run"
    lines += ["", f"Stages of the transformer, by share of {last}; each draws its batches from these buckets:", ""]
    lines.append(table(("until", "mix"), [(share(s["until"]), _mix(s["mix"])) for s in facts["recipe"]["stages"]]))
    modes = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in facts["recipe"]["modes"].items())
    return "\n".join([*lines, "", f"Given frames, by weight: {modes}."])


def _run(part: str, runs: list[dict[str, Any]], number: int) -> str:
    return part if len(runs) == 1 else f"{part}, run {number + 1}"


def _mix(mix: list[dict[str, Any]]) -> str:
    total = sum(part["weight"] for part in mix)
    return ", ".join(
        f"{share(part['weight'] / total)} {part['bucket']}{' (pictures)' if part.get('frames') == 1 else ''}"
        f" x {part['batch']}"
        for part in mix
    )


def _listed(losses: dict[str, float]) -> str:
    return ", ".join(f"{name.removeprefix('eval_')} {value:.3f}" for name, value in losses.items()) or "not recorded"


def _data(facts: dict[str, Any]) -> str:
    rows = []
    for name, bucket in facts["buckets"].items():
        where = f"the folder {bucket['folder']}" if bucket.get("folder") else f"the stage, seeds from {bucket['seed']}"
        size = f"{bucket['frames']} frames of {bucket['height']} x {bucket['width']} at {bucket['fps']:.3g}/s"
        rows.append((name, bucket["clips"], bucket["shots"], size, where))
    lines = ["## Data", "", "The transformer:", ""]
    lines.append(table(("bucket", "clips at most", "shots", "each shot", "from"), rows))
    lines += [
        "",
        "The stage is this project's own renderer (`shots/stage`, Apache-2.0), its captions are its own grammar's.",
    ]
    frames = facts.get("recipes", {}).get("frames")
    if frames:
        names = [Path(name).name for name in (*frames.get("videos", ()), *frames.get("pictures", ()))]
        unknown = ("", "not recorded", "not recorded")
        lines += ["", "The VAE: clips of the stage, and crops of these, which are not part of the project:", ""]
        lines.append(table(("file", "what", "from", "licence"), [(n, *REAL.get(n, unknown)) for n in names]))
    return "\n".join(lines)


def _figures(reports: dict[str, Any]) -> str:
    if not reports:
        return ""
    lines = ["## Measured"]
    if "vae" in reports:
        rows = []
        for name, what in (("stage", "held-out stage clips"), ("real", "held-out real clips")):
            found = reports["vae"].get(name)
            if isinstance(found, dict):
                vae, pca = found["vae"], found["pca"]
                figures = [f"{value:.1f}" for value in (vae["mean"], vae["p10"], vae["min"], pca["mean"])]
                rows.append((what, found["clips"], *figures))
        head = ("128 x 128, PSNR in dB", "clips", "mean", "tenth percentile", "worst", "PCA of the same size")
        lines += ["", "`seedance evaluate vae`", "", table(head, rows)]
    if "prompts" in reports:
        lines += ["", "`seedance evaluate prompts`", "", *_following(reports["prompts"])]
    return "\n".join(lines)


def _following(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, what in SUITES.items():
        if name in found:
            straight, shuffled = found[name]["following"], found[name]["shuffled"]
            pairs = [share(r[key]) for r in (straight, shuffled) for key in ("facts_per_type", "all_core_facts")]
            rows.append((what, found[name]["films"], *pairs))
    head = ("scripts", "films", "facts per type", "all core facts", "shuffled: facts", "shuffled: core")
    lines = [table(head, rows), ""]
    lines.append("Facts are those a script says and a viewer could tell, read by the judge (`shots/stage/judge`); core")
    lines.append("facts are colour, shape and action of every actor. Shuffled: the same films against other scripts.")
    films, first = found.get("three_shots"), found.get("first_frame")
    if films:
        lines += ["", f"- the same actor over the shots of a script: {share(films['consistency'])}"]
        lines.append(f"- cuts at the script's times: {share(films['cuts_found'])}; inside shots: {films['false_cuts']}")
    if first:
        lines.append(
            f"- first frame given: frame 0 lies {first['below_autoencoder_db']:.2f} dB below the VAE's own picture;"
            f" change to the next frames {first['first_jump']:.1f}, later {first['later_jump']:.1f} (8-bit steps);"
            f" action facts {share(first['action_facts'])}"
        )
    return lines


def _limits(folder: Path) -> str:
    words = folder / "vocabulary.txt"
    known = "the captions of its data"
    if words.is_file():
        known = f"the {len(words.read_text(encoding='utf-8').split())} words of `vocabulary.txt`"
    return f"""## Limits

- It draws the stage and nothing else: no people, animals, places, faces or writing. It was trained on
  {known}; other words are named in a warning, and whatever is nearest is drawn.
- English only: the text encoder reads no other language, and at most 64 word pieces of a caption.
- Sizes, lengths and frame rates far from those it was trained on come out worse. More than two actors, and actions
  between actors, are hardest.
- A photograph as first frame goes through a VAE that has seen few real pictures, and motion learned from solids.
- It is a small model trained for a short time (see above): read the figures before relying on it.
- Films say in their metadata that they are generated."""


def _continue(facts: dict[str, Any]) -> str:
    cpu = "nano-cpu" if "cuda" not in str(facts["device"]).lower() and "CPU" in str(facts["device"]) else "nano"
    return f"""## Train it further

```
seedance train {cpu}-latents vae=seedance-nano          # draws, encodes and words the clips
seedance train {cpu}-dit vae=seedance-nano init_from=seedance-nano
```

The optimizer starts afresh; on a GPU use the recipes `nano-latents` and `nano-dit` likewise. On clips of your own:
`finetune-folder-latents`, then `finetune-folder-dit`."""


_LICENCE = """## Licence

Apache-2.0, weights and code. The licences of the data stand above."""


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SeedanceError(f"{path.name}: {path} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise SeedanceError(f"{path.name}: {path} must hold one JSON object")
    return found


def main() -> None:
    """Write the card that the command line asks for, and say where it lies."""
    parser = argparse.ArgumentParser(prog="python -m seedance.training.card", description="Write a model card.")
    parser.add_argument("folder", type=Path, help="model folder, with the training.json of its export")
    parser.add_argument("--vae-run", nargs="+", default=[], metavar="FOLDER", help="the VAE's run folders, in order")
    parser.add_argument("--before", nargs="+", default=[], metavar="FOLDER", help="models that runs before exported")
    parser.add_argument("--recipe", nargs="+", default=[], metavar="FILE", help="recipes of the steps before the DiT")
    parser.add_argument(
        "--report", nargs="+", default=[], type=Path, metavar="FILE", help="what seedance evaluate printed"
    )
    parser.add_argument("--machine", metavar="TEXT", help="what it was trained on")
    parser.add_argument("--commit", help='of the code that trained it; "here" is the one checked out')
    said = parser.parse_args()
    try:
        path = write_card(
            said.folder, vae_runs=said.vae_run, before=said.before, recipes=said.recipe, reports=said.report,
            machine=said.machine, commit=code_commit() if said.commit == "here" else said.commit,
        )  # fmt: skip
    except (SeedanceError, ShotsError) as error:
        sys.exit(f"card: {error}")
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
