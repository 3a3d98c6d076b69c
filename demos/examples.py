"""The films that the studio begins with, rendered by the shipped weights and kept small in the package.

    python -m demos.examples          renders them into demos/examples/, as after a release of new weights

Notable choice: each is kept with the request that made it and its record, so that the page fills its form with what
really made the film, and anyone can make it again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from demos.services import EXAMPLES

MOST_BYTES = 200_000  # of all films together
CRF = 24  # of H.264: smaller files than a render's 18, hardly to be told apart at this size

SCRIPTS: dict[str, tuple[str, int]] = {
    "jump": ("A red cube jumps.", 7),
    "orbit": ("A cyan cone stands still on a checkered floor. The camera orbits to the left.", 3),
    "night": ("A small orange cube shrinks on the sand at night.", 11),
    "two-shots": ("A red cube jumps beside a blue cone. [cut] A blue cone moves to the right on the grass.", 5),
    "three-shots": (
        "A red cube and a blue sphere on a wooden floor by day. Shot 1: The red cube jumps. "
        "Shot 2: The blue sphere moves to the right. Shot 3: The red cube spins. The camera zooms in.", 1,
    ),
}  # fmt: skip
"""name: (prompt, seed)."""


def render(folder: Path, model: str = "seedance-nano") -> list[dict[str, Any]]:
    """Renders the examples into ``folder`` with an index, ``examples.json``; returns what stands in the index."""
    from seedance import Seedance
    from shots.script import Script

    folder.mkdir(parents=True, exist_ok=True)
    pipeline = Seedance.from_pretrained(model)
    index = []
    for name, (prompt, seed) in SCRIPTS.items():
        plan = pipeline.plan(prompt, seed=seed)
        film = pipeline.sample([plan])[0]
        pipeline.write(film, folder / f"{name}.mp4", crf=CRF)
        (folder / f"{name}.mp4.json").unlink(missing_ok=True)  # the index holds it
        script, defaults = Script.parse(prompt), pipeline.defaults
        shots = len(script.shots)
        detail = f"{shots} shot{'s' if shots > 1 else ''} · {sum(plan.frames) / plan.fps:g} s · seed {seed}"
        title = " · ".join(shot.caption for shot in script.shots)
        request = {
            "script": script.to_dict(), "seed": seed, "height": plan.height, "width": plan.width, "fps": plan.fps,
            "steps": defaults.steps, "guidance_scale": defaults.guidance_scale,
        }  # fmt: skip
        item = {"id": name, "title": title, "detail": detail, "film": f"{name}.mp4"}
        index.append({"item": item, "request": request, "record": film.record})
        sys.stderr.write(f"{name}: {(folder / f'{name}.mp4').stat().st_size} bytes\n")
    (folder / "examples.json").write_text(json.dumps(index, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return index


def main() -> None:
    """Renders the examples and says how large they are."""
    parser = argparse.ArgumentParser(prog="python -m demos.examples", description="Render the studio's examples.")
    parser.add_argument("-o", "--output", type=Path, default=EXAMPLES, help="folder (default: that of the package)")
    parser.add_argument("--model", default="seedance-nano", help="default: seedance-nano")
    said = parser.parse_args()
    index = render(said.output, said.model)
    size = sum((said.output / each["item"]["film"]).stat().st_size for each in index)
    sys.stdout.write(f"{len(index)} films, {size} bytes in {said.output}\n")
    if size > MOST_BYTES:
        sys.exit(f"examples: {size} bytes are more than {MOST_BYTES}; make some shorter")


if __name__ == "__main__":
    main()
