"""The threshold above which a model says "not found", set on scenes that nothing else uses: task ``calibrate``.

Notable choice: the threshold is written into the model folder's ``unitime.json``, where loading finds it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from shots.runtime.runlog import RunLog
from unitime.errors import UniTimeError
from unitime.metrics import calibrate_threshold


@dataclass(frozen=True)
class CalibrateRecipe:
    """What ``task: calibrate`` reads. model: folder. scenes: how many, from `seed` on, each up to half a minute."""

    task: str
    model: Path
    scenes: int = 60
    seed: int = 350_000_000


def calibrate(recipe: CalibrateRecipe) -> float:
    """Asks every scene for what happens in it and for what does not, and writes the best threshold. Returns it."""
    from unitime.grounder import UniTime
    from unitime.suites import asked, drawn

    settings = recipe.model / "unitime.json"
    if not settings.is_file():
        raise UniTimeError(f"model: {recipe.model} holds no unitime.json; give the folder that training wrote")
    model = UniTime.from_pretrained(recipe.model)
    scores: list[float] = []
    present: list[bool] = []
    for number in range(recipe.scenes):
        item = drawn(recipe.seed + number)
        queries = asked(item)
        found = model.ground(item.video, [query.query for query in queries], threshold=1.0)
        scores += [grounding.not_found for grounding in found]
        present += [bool(query.windows) for query in queries]
    threshold = round(calibrate_threshold(scores, present), 4)
    record = json.loads(settings.read_text())
    settings.write_text(json.dumps({**record, "not_found_threshold": threshold}, indent=1) + "\n")
    RunLog(None).write(event="calibrated", queries=len(scores), threshold=threshold)
    return threshold
