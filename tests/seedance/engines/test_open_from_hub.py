"""Open checkpoints by hub id: what is asked of the hub, in which order, and what never is.

The client reads a header as the first 100 kB of its file, so the transformer here has shards of more than that.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seedance import Seedance, SeedanceError
from seedance.api import RenderRequest, render
from tests.fake_hub import FakeHub, serving
from tests.seedance.engines.tiny_checkpoints import wan_transformer

HEADER = 100_001  # bytes
SHARDS = "transformer/diffusion_pytorch_model-0000{}-of-00002.safetensors"


@pytest.fixture(scope="module")
def sharded(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wan checkpoint whose transformer lies in two shards of 200 kB and more."""
    folder = Path(shutil.copytree(checkpoint("wan-t2v"), tmp_path_factory.mktemp("sharded") / "wan"))
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    wan_transformer(dim=72).save_pretrained(folder / "transformer", max_shard_size="400KB")
    assert all((folder / SHARDS.format(k)).stat().st_size > 2 * HEADER for k in (1, 2))
    return folder


@pytest.fixture
def hub(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with that checkpoint as "owner/wan"."""
    with serving(tmp_path / "cache", monkeypatch) as served:
        served.folders["owner/wan"] = sharded
        yield served


def request(tmp_path: Path, **more: Any) -> RenderRequest:
    said = {"prompts": ["a red cube"], "output": tmp_path / "film.mp4", "model": "owner/wan", "device": "cpu"}
    return RenderRequest(**{**said, "dtype": "fp32", "seed": 1, **more})


def only_headers(hub: FakeHub, folder: Path) -> bool:
    """Whether every weight file's header was asked for, and nothing beyond it."""
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*.safetensors")}
    asked = hub.weights()
    return {name for _, name, _ in asked} == files and all(
        method == "GET" and count <= HEADER for method, _, count in asked
    ) and all(hub.sent(name) <= HEADER for name in files)  # fmt: skip


def in_cache(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_dry_run_fetches_headers_only_and_says_what_the_folder_would(
    hub: FakeHub, sharded: Path, tmp_path: Path
) -> None:
    (film,) = render(request(tmp_path, dry_run=True)).films
    plan = film.record["plan"]
    assert only_headers(hub, sharded) and in_cache(tmp_path) == []
    assert plan["download_bytes"] == sum(file.stat().st_size for file in sharded.rglob("*.safetensors"))
    names = [name for _, name, _ in hub.asked]
    assert names[0] == "model_index.json"
    first = min(k for k, name in enumerate(names) if name.endswith(".safetensors"))
    small = {file.relative_to(sharded).as_posix() for file in sharded.rglob("*.json")}
    assert set(names[:first]) == small and all(name.endswith(".safetensors") for name in names[first:])
    (local,) = render(request(tmp_path, dry_run=True, model=str(sharded))).films
    varying = {"free_bytes": 0, "seconds": 0, "download_bytes": 0}
    assert plan | varying == local.record["plan"] | varying


def test_too_little_memory_is_said_before_any_weights_come(
    hub: FakeHub, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seedance.acceleration.fit.free_bytes", lambda device: 1000)
    with pytest.raises(SeedanceError, match=r"^memory: .* are free; take a smaller size"):
        render(request(tmp_path))
    assert only_headers(hub, sharded) and in_cache(tmp_path) == []


def test_a_full_disk_is_said_before_any_weights_come(
    hub: FakeHub, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shots.runtime.hub.shutil.disk_usage", lambda place: SimpleNamespace(free=100_000))
    for ask in (lambda: render(request(tmp_path, dry_run=True)), lambda: Seedance.from_pretrained("owner/wan")):
        with pytest.raises(SeedanceError, match=r"^disk: 'owner/wan' takes 0\.0 GB more, .* free under .*; make room"):
            ask()
    assert only_headers(hub, sharded) and in_cache(tmp_path) == []


@pytest.mark.parametrize("index", [{"_class_name": "StableDiffusionPipeline"}, {"_class_name": "UniTime"}, None])
def test_another_kind_of_model_is_refused_from_its_index(
    hub: FakeHub, sharded: Path, tmp_path: Path, index: dict[str, Any] | None
) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "other"))
    said = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**said, **(index or {})}))
    if index is None:  # a language model, say
        (folder / "model_index.json").unlink()
    hub.folders["owner/wan"] = folder
    for ask in (lambda: render(request(tmp_path, dry_run=True)), lambda: Seedance.from_pretrained("owner/wan")):
        with pytest.raises(SeedanceError, match=r"no engine for a Stable|holds a UniTime|has no model_index\.json"):
            ask()
    assert hub.asked and hub.weights() == []


def test_a_part_of_another_family_is_refused_by_the_hub_id_and_from_headers(
    hub: FakeHub, sharded: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "other"))
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "LTXVideoTransformer3DModel"}))
    hub.folders["owner/wan"] = folder
    said = r"the transformer in owner/wan/transformer is a LTXVideoTransformer3DModel, Wan has a WanTransformer3DModel"
    with pytest.raises(SeedanceError, match=said):
        Seedance.from_pretrained("owner/wan", device="cpu")
    assert only_headers(hub, folder)


def test_a_weight_file_cut_short_on_the_hub_is_refused_from_its_header(
    hub: FakeHub, sharded: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "other"))
    shard = folder / SHARDS.format(2)
    shard.write_bytes(shard.read_bytes()[: HEADER + 5])
    hub.folders["owner/wan"] = folder
    with pytest.raises(SeedanceError, match=rf"00002-of-00002\.safetensors of 'owner/wan' has {HEADER + 5} bytes"):
        Seedance.from_pretrained("owner/wan", device="cpu")
    assert in_cache(tmp_path) == []


def test_a_film_says_its_line_then_fetches_and_the_next_one_asks_nobody(
    hub: FakeHub, sharded: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line: list[str] = []
    only: list[bool] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if " to fetch; " in record.getMessage():
                line.append(record.getMessage())
                only.append(only_headers(hub, sharded))

    watch, log = Watch(), logging.getLogger("seedance")
    log.addHandler(watch)
    try:
        with caplog.at_level(logging.INFO, logger="seedance"):
            (film,) = render(request(tmp_path)).films
    finally:
        log.removeHandler(watch)
    assert film.path is not None and film.path.is_file()
    assert only == [True] and line[0].startswith("owner/wan: 0.00")
    whole = {file.relative_to(sharded).as_posix(): file.stat().st_size for file in sharded.rglob("*.safetensors")}
    assert all(hub.sent(name) >= size for name, size in whole.items())
    before = hub.requests
    (again,) = render(request(tmp_path, dry_run=True)).films
    assert again.record["plan"]["download_bytes"] == 0
    Seedance.from_pretrained("owner/wan", device="cpu", dtype="fp32")
    assert hub.requests == before


def test_training_refuses_a_checkpoint_before_its_weights_come_and_fetches_another(
    hub: FakeHub, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    from seedance.training.open_latents import find_checkpoint

    hub.folders["owner/i2v"] = checkpoint("wan-i2v")
    with pytest.raises(SeedanceError, match=r"the transformer in owner/i2v takes 36 channels, its VAE has 16"):
        find_checkpoint("owner/i2v")
    assert in_cache(tmp_path) == []
    found = find_checkpoint("owner/wan")
    assert found.download == 0 and found.folder.is_relative_to(tmp_path / "cache")
    assert len(in_cache(tmp_path)) == 4


def test_small_files_in_the_cache_are_no_model_where_the_hub_is_away(
    hub: FakeHub, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download("owner/wan", allow_patterns=["*.json"])
    away = "http://127.0.0.1:9"  # where nobody listens
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", away)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", f"{away}/{{repo_id}}/{{filename}}")
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", away)
    with pytest.raises(SeedanceError, match=r"not in the cache and the hub cannot be reached; run `hf download owner"):
        render(request(tmp_path, dry_run=True))


def test_the_rest_of_a_stopped_download_is_what_is_counted_and_fetched(
    hub: FakeHub, sharded: Path, tmp_path: Path
) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download("owner/wan", allow_patterns=["vae/*", "text_encoder/*", SHARDS.format(1)])
    hub.asked.clear()
    (film,) = render(request(tmp_path, dry_run=True)).films
    rest = SHARDS.format(2)
    assert film.record["plan"]["download_bytes"] == (sharded / rest).stat().st_size
    hub.asked.clear()
    Seedance.from_pretrained("owner/wan", device="cpu", dtype="fp32")
    assert {name for method, name, _ in hub.weights() if method == "GET"} == {rest}


def test_a_dry_run_of_this_packages_own_kind_of_model_needs_no_weights_either(
    hub: FakeHub, tiny_model: Path, tmp_path: Path
) -> None:
    hub.folders["owner/own"] = tiny_model
    (film,) = render(request(tmp_path, dry_run=True, model="owner/own")).films
    assert film.record["plan"]["tokens"] > 0
    assert hub.asked and hub.weights() == []
