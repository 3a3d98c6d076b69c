"""The examples show what the stage's world holds, so that the shipped model can draw them."""

from __future__ import annotations

from pathlib import Path

import pytest

from seedance.api import prompts_in
from shots.script import Script
from shots.stage.heldout import is_heldout_action, is_heldout_look
from shots.stage.parse import film_from_script

EXAMPLES = Path(__file__).resolve().parent.parent / "seedance" / "examples"
SCRIPTS = [Script.load(path) for path in sorted(EXAMPLES.iterdir()) if path.name != "prompts.txt"]
PROMPTS = [Script.parse(prompt) for prompt in prompts_in(EXAMPLES / "prompts.txt")]


@pytest.mark.parametrize("script", SCRIPTS + PROMPTS, ids=lambda script: script.title or script.shots[0].caption)
def test_every_word_of_an_example_means_something_and_was_trained_on(script: Script) -> None:
    film, warnings = film_from_script(script, seed=0)
    assert not warnings
    shapes = {actor.name: actor.shape for actor in film.cast}
    assert len(shapes) <= 3
    assert not [actor for actor in film.cast if is_heldout_look(actor.shape, actor.colour)]
    done = [action for shot in film.shots for action in shot.actions]
    assert not [action for action in done if is_heldout_action(shapes[action.actor], action.kind)]


def test_there_is_an_example_of_each_form_of_script() -> None:
    assert {path.suffix for path in EXAMPLES.iterdir()} == {".yaml", ".json", ".txt"}
