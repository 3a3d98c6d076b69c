"""`seedance cuts` and `seedance score`: what they print, and what bad input costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import cli
from shots import Script, Shot
from shots.stage.shoot import shoot

CAPTIONS = ("A red cube jumps.", "A red cube moves to the left.")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage film of two shots of 1.5 s that tells its script."""
    folder = tmp_path_factory.mktemp("score")
    script = Script(tuple(Shot(caption, 1.5) for caption in CAPTIONS))
    return shoot(script=script, seed=3, output=folder / "film.mp4", height=64, width=64).path


def test_cuts_are_printed_as_json_and_as_lines(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cuts", str(stage), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["frames"] == 36 and [(cut["frame"], cut["kind"]) for cut in found["cuts"]] == [(18, "hard")]
    assert cli.main(["cuts", str(stage)]) == 0
    assert "frame 18" in capsys.readouterr().out


def test_a_film_is_scored_against_its_own_script_and_laid_out(
    stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    assert cli.main(["score", str(stage), "--sheet", str(sheet), "--judge", "--no-cache", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [shot["caption"] for shot in report["shots"]] == list(CAPTIONS)
    assert report["cuts"]["matched"] == 1 and report["judge"]["facts"] > 0
    assert all(0 <= shot["score"] <= 1 and shot["quality"]["flow"] > 0 for shot in report["shots"])
    assert Image.open(sheet).height > 200


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["cuts", "{}/gone.mp4"], "does not exist"),
        (["score", "{}/gone.mp4"], "does not exist"),
        (["score", "{film}", "--script", "{}/gone.yaml"], "gone.yaml does not exist"),
        (["score", "{film}", "--threshold", "7", "--no-cache"], "threshold: 7"),
    ],
)
def test_bad_input_costs_one_clear_line(
    words: list[str], says: str, stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.replace("{film}", str(stage)).replace("{}", str(tmp_path)) for word in words]
    assert cli.main(given) == 2
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err
