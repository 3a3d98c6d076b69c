"""A recipe of steps runs its recipes in order, with their overrides, and says what a bad list should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from seedance import training
from seedance.errors import SeedanceError
from seedance.training import RECIPES
from shots.runtime.recipe import load_recipe


def test_steps_run_in_order_with_their_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, tuple[str, ...]]] = []
    recipe = tmp_path / "all.yaml"
    recipe.write_text("task: steps\nsteps:\n  - one a=1 b.c=2\n  - two\n")
    real = training.train

    def spy(name: str | Path, overrides: tuple[str, ...] = ()) -> str:
        seen.append((str(name), tuple(overrides)))
        return str(name)

    monkeypatch.setattr(training, "train", spy)
    assert real(recipe) == "two"
    assert seen == [("one", ("a=1", "b.c=2")), ("two", ())]


def test_a_list_that_is_none_is_refused() -> None:
    with pytest.raises(SeedanceError, match="steps"):
        training.run_steps([])


@pytest.mark.parametrize("name", ["nano", "nano-cpu"])
def test_every_step_of_a_shipped_sequence_is_a_shipped_recipe_and_hands_over_its_folder(name: str) -> None:
    steps = [line.split() for line in load_recipe(name, shipped=[RECIPES])["steps"]]
    recipes = [load_recipe(step[0], step[1:], [RECIPES]) for step in steps]
    _, vae, latents, dit = recipes
    assert latents["vae"] == dit["vae"] == f"{vae['out']}/final"
    assert latents["out"] in dit["cache"]
