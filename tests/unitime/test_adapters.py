"""LoRA adapters of any age: merged whole, or refused with the model left as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unitime.adapters import merge_adapter
from unitime.errors import UniTimeError
from unitime.model import VisionLanguageModel

ENDINGS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK, ALPHA = 4, 8


@pytest.fixture
def net(fresh_net: Any) -> Any:
    return fresh_net("qwen2_vl")


def targets(net: Any) -> dict[str, Any]:
    """Every adapted module by its name in transformers 5."""
    return {
        name: module
        for name, module in net.named_modules()
        if ".language_model." in name and name.rsplit(".", 1)[-1] in ENDINGS
    }


def old(name: str) -> str:
    """The name in transformers 4.49."""
    return name.replace("model.language_model.", "model.")


def write(net: Any, folder: Path, rename: Any = old, full: bool = False, **changes: Any) -> dict[str, torch.Tensor]:
    """An adapter in a folder; returns what it should add to each module."""
    generator = torch.Generator().manual_seed(1)
    tensors, added = {}, {}
    for name, module in targets(net).items():
        a = torch.randn(RANK, module.in_features, generator=generator) * 0.1
        b = torch.randn(module.out_features, RANK, generator=generator) * 0.1
        tensors[f"base_model.model.{rename(name)}.lora_A.weight"] = a
        tensors[f"base_model.model.{rename(name)}.lora_B.weight"] = b
        added[name] = ALPHA / RANK * b @ a
    names = [rename(name) for name in targets(net)] if full else list(ENDINGS)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": names} | changes
    config |= {"base_model_name_or_path": "/somebody/else/Qwen2-VL-7B-Instruct"}
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return added


def edit(folder: Path, change: Any) -> None:
    """The adapter's tensors, changed."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("rename", [old, lambda name: name])
def test_adapters_of_both_ages_are_merged_whole(
    fresh_net: Any, tmp_path: Path, rename: Any, full: bool, family: str
) -> None:
    net = fresh_net(family)
    before = {name: module.weight.detach().clone() for name, module in targets(net).items()}
    added = write(net, tmp_path, rename, full)
    assert merge_adapter(net, tmp_path) == sorted(added)
    for name, module in targets(net).items():
        torch.testing.assert_close(module.weight.detach(), before[name] + added[name])
    assert len(added) == 3 * len(ENDINGS)


def test_scales_follow_the_configuration(net: Any, tmp_path: Path) -> None:
    before = {name: module.weight.detach().clone() for name, module in targets(net).items()}
    added = write(net, tmp_path, use_rslora=True, alpha_pattern={"q_proj": 16})
    merge_adapter(net, tmp_path)
    for name, module in targets(net).items():
        scale = (2.0 if name.endswith("q_proj") else 1.0) * RANK**0.5
        torch.testing.assert_close(module.weight.detach(), before[name] + scale * added[name])


def test_the_loader_merges_an_adapter_and_takes_its_settings(net: Any, tmp_path: Path, tiny_folders: Any) -> None:
    added = write(net, tmp_path / "adapter")
    (tmp_path / "adapter" / "unitime.json").write_text('{"not_found_threshold": 0.25}')
    model = VisionLanguageModel.from_pretrained(
        tiny_folders["qwen2_vl"], adapter=tmp_path / "adapter", dtype="fp32", device="cpu"
    )
    base = VisionLanguageModel.from_pretrained(tiny_folders["qwen2_vl"], dtype="fp32", device="cpu")
    for name, module in targets(model.net).items():
        torch.testing.assert_close(module.weight, base.net.get_submodule(name).weight + added[name])
    assert model.threshold == 0.25
    assert model.fingerprint == base.fingerprint  # the vision tower is untouched, so kept features stay good


def test_an_adapter_in_the_place_of_its_base_and_one_that_is_not_there_are_named(
    net: Any, tmp_path: Path, tiny_folders: Any
) -> None:
    write(net, tmp_path / "adapter")
    with pytest.raises(UniTimeError, match="^model: .* holds a LoRA adapter and no model; give it as the adapter"):
        VisionLanguageModel.from_pretrained(tmp_path / "adapter")
    with pytest.raises(UniTimeError, match="^adapter: 'nowhere' is .* no folder and no hub id"):
        VisionLanguageModel.from_pretrained(tiny_folders["qwen2_vl"], adapter="nowhere")


def zero(tensors: dict[str, torch.Tensor]) -> None:
    next(t for name, t in tensors.items() if "lora_B" in name).zero_()


def elsewhere(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.layers.99.self_attn.q_proj.lora_A.weight"] = torch.ones(RANK, 64)


def halved(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[next(name for name in tensors if "lora_B" in name)]


def gone(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "layers.1.mlp.up_proj" in name]:
        del tensors[name]


def misshapen(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name] = torch.ones(RANK, 63)


def magnitude(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"] = torch.ones(64)


def broken(tensors: dict[str, torch.Tensor]) -> None:
    next(t for name, t in tensors.items() if "lora_A" in name)[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "fault"),
    [(zero, "zeros"), (elsewhere, "layers.99"), (halved, "only one"), (gone, "no weights for"),
     (misshapen, "another base"), (magnitude, "magnitude"), (broken, "no numbers"), (dict.clear, "no weights")],
)  # fmt: skip
def test_a_damaged_adapter_changes_nothing(net: Any, tmp_path: Path, change: Any, fault: str) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    write(net, tmp_path)
    edit(tmp_path, change)
    with pytest.raises(UniTimeError, match=fault):
        merge_adapter(net, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "fault"),
    [({"peft_type": "IA3"}, "IA3"), ({"use_dora": True}, "DORA"), ({"r": 3}, "rank"), ({"r": "x"}, "configuration"),
     ({"target_modules": ["c_attn"]}, "c_attn")],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_refused(net: Any, tmp_path: Path, changes: Any, fault: str) -> None:
    write(net, tmp_path, **changes)
    with pytest.raises(UniTimeError, match=fault):
        merge_adapter(net, tmp_path)


def test_patterns_name_modules_of_both_ages(net: Any, tmp_path: Path) -> None:
    write(net, tmp_path, target_modules=r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj")
    assert len(merge_adapter(net, tmp_path)) == 3 * len(ENDINGS)
    write(net, tmp_path, target_modules="all-linear")
    assert len(merge_adapter(net, tmp_path)) == 3 * len(ENDINGS)


def test_a_folder_without_an_adapter_is_refused(net: Any, tmp_path: Path) -> None:
    with pytest.raises(UniTimeError, match="adapter_config"):
        merge_adapter(net, tmp_path)
    write(net, tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UniTimeError, match="missing"):
        merge_adapter(net, tmp_path)
