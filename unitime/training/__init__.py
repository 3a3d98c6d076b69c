"""Training of grounding models: `train("unitime-nano", ["text.loop.time_budget=60"])` runs a recipe.

`scenes` draws and annotates what is trained on, `vision` trains nano's vision tower on dense labels, `nano` builds the
nano model and its tokenizer and caches features, `text` trains a language model on packed queries. `adapt` trains any
checkpoint on benchmarks' files: `lessons` makes the sequences, `lora` the adapters of a large model. `calibrate` sets
a model's threshold, `card` writes nano's card.

Notable choices:
- Nothing that decodes video or serves pages is imported on the way to nano's weights; `adapt` and `calibrate` read
  videos.
- `accelerate launch -m unitime.training RECIPE` has several processes train together; they share the tasks `TOGETHER`.
  What one process does by itself is refused there, rather than done by all of them into the same files.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unitime.errors import UniTimeError

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
TASKS = ("scenes", "vision", "nano", "text", "calibrate", "adapt", "grounding-steps")
TOGETHER = ("vision", "text", "adapt")
_CLOCKS = {
    "scenes": "time_budget", "vision": "loop.time_budget", "text": "loop.time_budget", "adapt": "loop.time_budget",
}  # fmt: skip


def train(recipe_path: str | Path, overrides: Iterable[str] = (), time_budget: float | None = None) -> Any:
    """Run a recipe (a path, or the name of a shipped one) with `key=value` overrides; resumes what is in its `out`.

    time_budget: seconds after which the run ends cleanly, in place of the recipe's. Returns the task's result. Raises
    UniTimeError or ShotsError for a recipe that is not right.
    """
    from shots.runtime.recipe import build, load_recipe

    overrides = list(overrides)
    recipe = load_recipe(recipe_path, overrides, [RECIPES])
    task = recipe.get("task")
    if time_budget is not None:
        if task not in _CLOCKS:
            raise UniTimeError(f"time_budget: task {task!r} has no clock; give it to one of {', '.join(_CLOCKS)}")
        if not 0 < time_budget < float("inf"):
            raise UniTimeError(f"time_budget: {time_budget:g} seconds; more than 0 are needed")
        recipe = load_recipe(recipe_path, [*overrides, f"{_CLOCKS[task]}={time_budget!r}"], [RECIPES])
    if task in TASKS and task not in TOGETHER and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UniTimeError(
            f"recipe: task {task!r} is done by one process; run it with `seedance train`, and launch only recipes of "
            f"the tasks {', '.join(TOGETHER)} in several"
        )
    if task == "scenes":
        from unitime.training.scenes import ScenesRecipe, draw_scenes

        return draw_scenes(build(ScenesRecipe, recipe))
    if task == "vision":
        from unitime.training.vision import VisionRecipe, train_vision

        return train_vision(build(VisionRecipe, recipe))
    if task == "nano":
        from unitime.training.nano import NanoRecipe, make_nano

        return make_nano(build(NanoRecipe, recipe))
    if task == "text":
        from unitime.training.nano import train_text
        from unitime.training.text import TextRecipe

        return train_text(build(TextRecipe, recipe))
    if task == "calibrate":
        from unitime.training.calibrate import CalibrateRecipe, calibrate

        return calibrate(build(CalibrateRecipe, recipe))
    if task == "adapt":
        from unitime.training.adapt import AdaptRecipe, train_adapt

        return train_adapt(build(AdaptRecipe, recipe))
    if task == "grounding-steps":
        steps = recipe.get("steps")
        if not isinstance(steps, list) or not steps or not all(isinstance(s, str) and s.split() for s in steps):
            raise UniTimeError('steps: give a list of lines "RECIPE key=value ..."')
        done = None
        for step in steps:
            name, *settings = shlex.split(step)
            done = train(name, settings)
        return done
    raise UniTimeError(f"recipe: task {task!r} is not one of {', '.join(TASKS)}")
