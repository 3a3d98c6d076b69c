"""Grounding checkpoints by hub id: what is refused before their weights are fetched, and what is fetched then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fake_hub import FakeHub, serving
from unitime import UniTime, UniTimeError
from unitime import model as module

HEADER = 100_001  # bytes; what the client reads for a header
FILE = "model.safetensors"


@pytest.fixture
def hub(tiny_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a tiny Qwen2-VL as "owner/qwen"."""
    with serving(tmp_path / "cache", monkeypatch) as served:
        served.folders["owner/qwen"] = tiny_folders["qwen2_vl"]
        assert (tiny_folders["qwen2_vl"] / FILE).stat().st_size > HEADER
        yield served


def test_another_family_is_refused_from_its_configuration(
    hub: FakeHub, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_folders["qwen2_vl"], tmp_path / "other"))
    (other / "config.json").write_text(json.dumps({"model_type": "llama"}))
    hub.folders["owner/qwen"] = other
    with pytest.raises(UniTimeError, match=r"its type is 'llama'; one of"):
        UniTime.from_pretrained("owner/qwen", device="cpu")
    assert hub.asked and hub.weights() == []
    (other / "config.json").rename(other / "adapter_config.json")
    hub.folders["owner/adapter"] = other
    with pytest.raises(UniTimeError, match=r"holds a LoRA adapter and no model"):
        UniTime.from_pretrained("owner/adapter", device="cpu")
    assert hub.weights() == []


@pytest.mark.parametrize("what", ["memory", "disk"])
def test_too_little_room_is_said_from_the_header(hub: FakeHub, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "memory":
        monkeypatch.setattr(module, "free_bytes", lambda device: 1000)
    else:
        monkeypatch.setattr("shots.runtime.hub.shutil.disk_usage", lambda place: SimpleNamespace(free=100_000))
    with pytest.raises(UniTimeError, match=rf"^{what}: .* free"):
        UniTime.from_pretrained("owner/qwen", device="cpu")
    assert [method for method, _, _ in hub.weights()] == ["GET"] and hub.sent(FILE) <= HEADER


def test_weights_come_last_and_the_next_one_asks_nobody(hub: FakeHub, tiny_folders: dict[str, Path]) -> None:
    found = UniTime.from_pretrained("owner/qwen", device="cpu")
    names = [name for _, name, _ in hub.asked]
    assert set(names[names.index(FILE) :]) == {FILE}
    assert hub.sent(FILE) >= (tiny_folders["qwen2_vl"] / FILE).stat().st_size
    before = hub.requests
    assert UniTime.from_pretrained("owner/qwen", device="cpu").weights == found.weights is not None
    assert hub.requests == before
