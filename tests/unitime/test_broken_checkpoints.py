"""What is wrong with a grounding checkpoint is said in one line before its weights are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shots.runtime.vision import transformers
from shots.runtime.weights import save_tensors
from tests.unitime.test_adapters import write
from unitime import model as module
from unitime.errors import UniTimeError
from unitime.model import VisionLanguageModel

FILE = "model.safetensors"


@pytest.fixture
def folder(tiny_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A tiny Qwen2-VL that a test may damage."""
    return Path(shutil.copytree(tiny_folders["qwen2_vl"], tmp_path / "model"))


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads weights has come too far."""
    kind = transformers().AutoModelForImageTextToText
    monkeypatch.setattr(kind, "from_pretrained", lambda *said, **more: pytest.fail("weights were read"))


def _sharded(folder: Path) -> list[str]:
    names: list[str] = save_tensors(load_file(folder / FILE), folder, "model", max_shard_bytes=20_000)
    assert len(names) > 2
    return names


def _cut(folder: Path) -> None:
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-100])


def _shard_cut(folder: Path) -> None:
    last = folder / _sharded(folder)[-1]
    last.write_bytes(last.read_bytes()[:-10])


def _shard_lost(folder: Path) -> None:
    (folder / _sharded(folder)[1]).unlink()


def _no_index(folder: Path) -> None:
    _sharded(folder)
    (folder / f"{FILE}.index.json").unlink()


def _no_weights(folder: Path) -> None:
    (folder / FILE).unlink()


def _dangling(folder: Path) -> None:
    (folder / FILE).unlink()
    (folder / FILE).symlink_to(folder / "gone")


def _half(folder: Path) -> None:
    (folder / "x.incomplete").write_bytes(b"x")


def _pickle(folder: Path) -> None:
    torch.save(load_file(folder / FILE), folder / "pytorch_model.bin")
    (folder / FILE).unlink()


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _other_family(folder: Path) -> None:
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "model_type": "llama"}))


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut, rf"{FILE} has \d+ bytes, its header tells of \d+; fetch the model again"),
        (_shard_cut, r"-of-.*\.safetensors has \d+ bytes, its header tells of"),
        (_shard_lost, r"model-00002-of-.*\.safetensors is missing; fetch"),
        (_no_index, "holds shards and no index of them"),
        (_no_weights, rf"{FILE} is missing; fetch"),
        (_dangling, "points to nothing: a download stopped half-way"),
        (_half, r"x\.incomplete is half a download"),
        (_pickle, r"are a pickle \(pytorch_model\.bin\), which can run code"),
        (_no_tokenizer, r"has no tokenizer \(tokenizer\.json\); fetch"),
        (_other_family, "its type is 'llama'; one of qwen2_vl"),
        (_no_config, r"holds no config\.json"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_damaged_folder_is_named_before_weights_are_read(
    folder: Path, nothing_loads: None, damage: Callable[[Path], None], said: str
) -> None:
    damage(folder)
    with pytest.raises(UniTimeError, match=said) as found:
        VisionLanguageModel.from_pretrained(folder, device="cpu")
    assert "\n" not in str(found.value)


def test_a_model_larger_than_the_memory_is_refused_with_what_would_fit(
    folder: Path, nothing_loads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 1000)
    with pytest.raises(UniTimeError, match=r"memory: the weights take .* GB of cpu, .*, quantization int8 or int4"):
        VisionLanguageModel.from_pretrained(folder, device="cpu")


def test_an_adapter_of_another_model_is_refused_before_weights_are_read(
    folder: Path, nothing_loads: None, fresh_net: Any, tmp_path: Path
) -> None:
    write(fresh_net("qwen2_vl"), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({key: torch.cat([t, t], dim=1) if "lora_A" in key else t for key, t in whole.items()}, file)
    with pytest.raises(UniTimeError, match="in this model, and .*; it is for another base"):
        VisionLanguageModel.from_pretrained(folder, device="cpu", adapter=tmp_path / "adapter")
    save_file({f"x.{key}": tensor for key, tensor in whole.items()}, file)
    with pytest.raises(UniTimeError, match="fits nowhere in this model"):
        VisionLanguageModel.from_pretrained(folder, device="cpu", adapter=tmp_path / "adapter")


def test_shards_and_one_file_are_the_same_model(folder: Path) -> None:
    one = VisionLanguageModel.from_pretrained(folder, dtype="fp32", device="cpu").net.state_dict()
    _sharded(folder)
    two = VisionLanguageModel.from_pretrained(folder, dtype="fp32", device="cpu").net.state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
