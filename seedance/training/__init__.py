"""Training: `train("nano-vae.yaml", ["loop.steps=100"])` runs a recipe; its `task` says what is trained.

The loop, the optimizer and recipes as such are those of `shots.runtime`. `frames` and `data` feed the VAE, which `vae`
trains, against `discriminator` when asked; `latents` draws, encodes and words clips once, `dit` trains on them;
`round_trips` sends the judge's shots through a VAE; `card` writes the model card. `open_latents` and `open` train on
open checkpoints, by LoRA or whole.

Notable choice: nothing that decodes video or serves pages is imported on this path.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from seedance.errors import SeedanceError

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
TASKS = ("frames", "vae", "latents", "dit", "open-latents", "open", "judge-pool", "judge", "steps")
_CLOCKS = {
    "vae": "loop.time_budget", "dit": "loop.time_budget", "open": "loop.time_budget", "latents": "time_budget",
    "open-latents": "time_budget", "judge": "loop.time_budget",
}  # fmt: skip


def train(recipe_path: str | Path, overrides: Iterable[str] = (), time_budget: float | None = None) -> Any:
    """Run a recipe (a path, or the name of a shipped one) with `key=value` overrides; resumes what is in its `out`.

    time_budget: seconds after which the run ends cleanly, in place of the recipe's. Returns the task's progress. Raises
    SeedanceError for a recipe that is not right.
    """
    from shots.runtime.recipe import build, load_recipe

    overrides = list(overrides)
    recipe = load_recipe(recipe_path, overrides, [RECIPES])
    task = recipe.get("task")
    if time_budget is not None:
        if task not in _CLOCKS:
            raise SeedanceError(f"time_budget: task {task!r} has no clock; give it to one of {', '.join(_CLOCKS)}")
        if not 0 < time_budget < float("inf"):
            raise SeedanceError(f"time_budget: {time_budget:g} seconds; more than 0 are needed")
        recipe = load_recipe(recipe_path, [*overrides, f"{_CLOCKS[task]}={time_budget!r}"], [RECIPES])
    if task == "frames":
        from seedance.training.frames import FramesRecipe, make_frames

        return make_frames(build(FramesRecipe, recipe))
    if task == "vae":
        from seedance.training.vae import VAERecipe, train_vae

        return train_vae(build(VAERecipe, recipe))
    if task == "latents":
        from seedance.training.latents import LatentsRecipe, build_cache

        return build_cache(build(LatentsRecipe, recipe))
    if task == "dit":
        from seedance.training.dit import DiTRecipe, train_dit

        return train_dit(build(DiTRecipe, recipe))
    if task == "open-latents":
        from seedance.training.open_latents import OpenLatentsRecipe, build_open_cache

        return build_open_cache(build(OpenLatentsRecipe, recipe))
    if task == "open":
        from seedance.training.open import OpenRecipe, train_open

        return train_open(build(OpenRecipe, recipe))
    if task == "judge-pool":
        from seedance.training.round_trips import RoundTripsRecipe, make_round_trips

        return make_round_trips(build(RoundTripsRecipe, recipe))
    if task == "judge":
        from shots.stage.judge.train import JudgeRecipe
        from shots.stage.judge.train import train as train_judge

        return train_judge(build(JudgeRecipe, recipe))
    if task == "steps":
        return run_steps(recipe.get("steps"))
    raise SeedanceError(f"recipe: task {task!r} is not one of {', '.join(TASKS)}")


def run_steps(steps: Any) -> Any:
    """Run recipes one after the other: each step is a line as the shell takes it, "RECIPE key=value ...".

    A step that is finished already ends at once, so a stopped sequence goes on where it was. Returns the last progress.
    """
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) and step.split() for step in steps):
        raise SeedanceError('steps: give a list of lines "RECIPE key=value ...", such as "nano-vae out=runs/nano/vae"')
    progress = None
    for step in steps:
        name, *overrides = shlex.split(step)
        progress = train(name, overrides)
    return progress
