"""What the README says can be typed, can be typed; what it points to is there, and packages map their modules."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import cli
from seedance.training import RECIPES
from shots.runtime.recipe import load_recipe
from shots.script import Script
from unitime.training import RECIPES as GROUNDING_RECIPES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CARDS = [ROOT / folder / "README.md" for folder in ("seedance/nano", "shots/stage/judge", "unitime/nano")]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
LINES = [line for kind, block in BLOCKS if not kind for line in block.splitlines() if line.startswith("seedance ")]
TYPED = [line for line in LINES if "   " not in line.split("#")[0].rstrip()]  # the others are the synopsis


@pytest.mark.parametrize("line", TYPED)
def test_every_command_of_the_readme_is_understood(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    said = cli._parser().parse_args(cli._hyphened(words))
    if said.command == "train":
        load_recipe(said.recipe, said.overrides, [RECIPES, GROUNDING_RECIPES])
    for path in (getattr(said, "script", None), getattr(said, "from_file", None)):
        assert path is None or (ROOT / path).is_file()


def test_every_script_of_the_readme_is_one() -> None:
    forms = {kind: block for kind, block in BLOCKS if kind in ("yaml", "json") or "Shot 1:" in block}
    assert set(forms) == {"", "yaml", "json"}
    for text in forms.values():
        assert len(Script.parse(text).shots) == 2


def test_every_link_of_the_readme_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    if not all(card.is_file() for card in CARDS):
        pytest.skip("no weights are shipped yet, nor their cards and pictures")
    assert not [link for link in links if not (ROOT / link).is_file()]


def test_the_map_of_the_house_is_true() -> None:
    (house,) = [block for _, block in BLOCKS if "cli.py " in block]
    folder = Path()
    for line in house.splitlines():
        indent, words = len(line) - len(line.lstrip()), line.split()
        if not indent and words[0].endswith("/"):
            folder = Path(words[0])
        for word in words:
            if re.fullmatch(r"[\w/]+(\.py|/)", word) and (word == words[0] or word.endswith(".py")):
                base = ROOT if not indent else ROOT / folder
                assert (base / word).exists(), f"{word} of the map is not there"


@pytest.mark.parametrize(
    "package",
    ["demos", "seedance", "seedance/acceleration", "seedance/engines", "seedance/training", "shots", "shots/runtime",
     "shots/serving", "shots/stage", "shots/stage/judge", "unitime", "unitime/training"],
)
def test_every_package_says_what_each_of_its_modules_is_for(package: str) -> None:
    said = set(re.findall(r"`(\w+)`", (ROOT / package / "__init__.py").read_text(encoding="utf-8")))
    modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__", "__main__", "errors"}
    assert not modules - said
