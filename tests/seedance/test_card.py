"""The model card: written from the facts of a training, the same from the folder alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from seedance.errors import SeedanceError
from seedance.training.card import write_card
from shots.runtime.cards import portable, span, table

FACTS = {
    "recipe": {
        "out": "/home/somebody/runs/dit",
        "init_from": None,
        "loop": {"seed": 0, "learning_rate": 0.001, "ema": 0.999},
        "stages": [{"until": 1.0, "mix": [{"bucket": "v64", "batch": 8, "weight": 1.0, "frames": 1}]}],
        "modes": {"text": 0.6, "first_last": 0.4},
    },
    "buckets": {
        "v64": {"clips": 9, "shots": 1, "frames": 17, "height": 64, "width": 64, "fps": 5.0, "seed": 3, "folder": None}
    },
    "steps": 12, "clips_seen": 3456, "seconds": 600, "losses": {"eval_v64": 0.5}, "device": "1 CPU threads",
    "parameters": 2_000_000,
}  # fmt: skip
VAE_REPORT = {
    "stage": {
        "clips": 48,
        "vae": {"mean": 31.25, "p10": 24.0, "min": 20.0},
        "pca": {"mean": 28.0, "p10": 23.0, "min": 19.0},
        "per_clip": {},
    },
    "real": "left out: no folder",
    "seed": 0,
}


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "training.json").write_text(json.dumps(FACTS))
    return folder


@pytest.fixture
def vae_run(tmp_path: Path) -> Path:
    rows = [
        {"event": "start", "parameters": 1_500_000, "dtype": "torch.bfloat16", "device": "cpu", "threads": 1},
        {"step": 50, "samples": 700},
        {"event": "end", "step": 50, "finished": True, "seconds": 120.4},
    ]
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "vae"


def test_the_card_tells_recipe_time_machine_data_figures_and_how_to_go_on(
    model: Path, vae_run: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps(VAE_REPORT))
    write_card(
        model, vae_runs=[vae_run], recipes=["nano-vae-frames"], reports=[report], machine="a small box", commit="abc123"
    )
    card = (model / "README.md").read_text()
    for said in (
        "license: apache-2.0", "2.0 M", "1.5 M", "10 minutes", "2 minutes", "3,456 views", "700 crops", "a small box",
        "commit abc123", "seed 0", "CC BY 4.0", "seedance evaluate vae", "| 48 | 31.2", "init_from=seedance-nano",
        "100 % v64 (pictures) x 8", "## Limits",
    ):  # fmt: skip
        assert said in card, said
    assert "evaluate prompts" not in card, "no figures where nothing was measured"


def test_the_card_is_written_again_from_the_folder_alone(model: Path, vae_run: Path) -> None:
    first = write_card(model, vae_runs=[vae_run], recipes=["nano-vae-frames"], machine="a small box").read_text()
    assert write_card(model).read_text() == first


def test_every_run_that_led_to_the_weights_is_told(model: Path, vae_run: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    (first / "training.json").write_text(json.dumps(FACTS | {"steps": 777}))
    facts = FACTS | {"recipe": FACTS["recipe"] | {"init_from": "/home/first"}}
    (model / "training.json").write_text(json.dumps(facts))
    card = write_card(model, vae_runs=[vae_run, vae_run], before=[first]).read_text()
    assert "| transformer, run 1 | 777 |" in card and "| transformer, run 2 | 12 |" in card and "| VAE, run 2 |" in card
    assert "weights of the run before it" in card


def test_no_path_of_the_training_machine_is_stored(model: Path) -> None:
    write_card(model)
    assert "/home" not in (model / "training.json").read_text()
    assert portable({"a": ["/x/y/z", "b/c", 1]}) == {"a": ["z", "b/c", 1]}


def test_a_run_that_is_not_finished_and_a_folder_without_facts_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, "samples": 2}))
    with pytest.raises(SeedanceError, match="no finished run"):
        write_card(model, vae_runs=[tmp_path])
    (model / "training.json").unlink()
    with pytest.raises(SeedanceError, match=r"training\.json"):
        write_card(model)


def test_tables_and_times_read_well() -> None:
    assert table(("a", "b"), [(1, "x|y")]).splitlines() == ["| a | b |", "|---|---|", "| 1 | x\\|y |"]
    assert (span(600), span(9000)) == ("10 minutes", "2.5 hours")
