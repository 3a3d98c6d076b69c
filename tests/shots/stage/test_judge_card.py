"""The judge's card: written from its config.json and from reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shots.errors import ShotsError
from shots.stage.judge.card import SHIPPED, card_text, write_card


def test_the_card_shows_what_is_read_right_before_and_after_the_vae(tmp_path: Path) -> None:
    config = {
        "_class_name": "Judge",
        "sha256": {},
        "training": {"steps": 7, "seconds": 300, "held_out": {"shape": 0.5}},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    card = write_card(tmp_path)
    assert "| shape | 50 % |" in card.read_text()
    reports = {
        "stage": {"films": 4, "right": {"shape": 0.98, "present": 1.0}, "of": {}},
        "vae_round_trip": {"films": 4, "right": {"shape": 0.95}, "of": {}},
        "by_eye": {
            "films": 3,
            "agree": {"shape": [1, 2], "whole": [2, 2]},
            "readers_alike": {"shape": [2, 3], "whole": [2, 2]},
            "script": {"shape": [0, 2]},
        },  # fmt: skip
    }
    (tmp_path / "report.json").write_text(json.dumps(reports))
    write_card(tmp_path, reports=[tmp_path / "report.json"], machine="a small box", commit="abc")
    text = card.read_text()
    assert "| shape | 98 % | 95 % |" in text and "| colours that are there, read so | 100 % | - |" in text
    assert "| shape | 1 of 2 | 2 of 3 | 0 of 2 |" in text and "| all facts | 1 of 2 (50 %) |" in text
    assert "a small box" in text and "5 minutes" in text and "tests.benchmarks.judge" in text
    assert write_card(tmp_path).read_text() == text
    loop = {"seed": 5, "optimizer": "muon", "learning_rate": 0.002}
    recipe = {"loop": loop, "batch": 32, "pool_size": 1000, "extra_pools": ["/x/y"], "extra_share": 0.3}
    (tmp_path / "log.jsonl").write_text(json.dumps({"event": "recipe", "recipe": recipe}))
    assert "30 % of each batch" in write_card(tmp_path, run=tmp_path).read_text()
    assert "/x" not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["sha256"] == {}


def test_the_shipped_card_is_what_its_config_says() -> None:
    config = json.loads((SHIPPED / "config.json").read_text(encoding="utf-8"))
    assert (SHIPPED / "README.md").read_text(encoding="utf-8") == card_text(config)


def test_a_folder_without_a_judge_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ShotsError, match="no judge"):
        write_card(tmp_path)
