"""Adapters in the four ways they are written: each changes the film as the matrices say, or is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from seedance.engines.engine import preflight
from seedance.engines.lora import load_lora, read_lora, split_scale
from seedance.engines.names import original
from seedance.errors import SeedanceError
from seedance.pipeline import Seedance

Opened = Callable[[str], Any]
MODULES = ["blocks.0.attn1.to_q", "blocks.1.attn2.to_out.0", "blocks.1.ffn.net.0.proj", "blocks.1.ffn.net.2"]
RANK, ALPHA = 2, 4.0


def pairs(pipe: Any, modules: list[str] = MODULES) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    sizes = {name: pipe.parts["transformer"].get_submodule(name).weight.shape for name in modules}
    return {
        name: (torch.randn(RANK, size[1], generator=generator), torch.randn(size[0], RANK, generator=generator))
        for name, size in sizes.items()
    }


def comfy(found: dict[str, Any]) -> dict[str, torch.Tensor]:
    state = {}
    for name, (down, up) in found.items():
        key = f"diffusion_model.{original('Wan', name)}"
        state |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up, f"{key}.alpha": torch.tensor(ALPHA)}
    return state


def kohya(found: dict[str, Any]) -> dict[str, torch.Tensor]:
    state = {}
    for name, (down, up) in found.items():
        key = "lora_unet_" + original("Wan", name).replace(".", "_")
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(ALPHA)}
    return state


def peft(found: dict[str, Any]) -> dict[str, torch.Tensor]:
    state = {}
    for name, (down, up) in found.items():
        state |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    return state


def diffsynth(found: dict[str, Any]) -> dict[str, torch.Tensor]:
    state = {}
    for name, (down, up) in found.items():
        key = original("Wan", name)
        state |= {f"{key}.lora_A.default.weight": down, f"{key}.lora_B.default.weight": up}
    return state


DIALECTS = {"Comfy": comfy, "kohya": kohya, "PEFT": peft, "DiffSynth": diffsynth}


def forward(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 16, 2, 4, 4, generator=generator)
    words = torch.randn(1, 7, 32, generator=generator)
    found: torch.Tensor = model(x, torch.tensor([400.0]), words, return_dict=False)[0]
    return found


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_is_the_same_change(checkpoint: Callable[[str], Path], tmp_path: Path, dialect: str) -> None:
    folder = checkpoint("wan-t2v")
    plain = Seedance.from_pretrained(folder, dtype="fp32", device="cpu")
    found = {name: (down.contiguous(), up.contiguous()) for name, (down, up) in pairs(plain).items()}
    save_file(DIALECTS[dialect](found), tmp_path / "a.safetensors")
    ours: Any = Seedance.from_pretrained(folder, dtype="fp32", device="cpu", lora=[f"{tmp_path / 'a.safetensors'}:0.5"])
    strength = 0.5 * (ALPHA / RANK if dialect in ("Comfy", "kohya") else 1.0)
    before = forward(plain.parts["transformer"])  # type: ignore[attr-defined]
    for name, (down, up) in found.items():
        plain.parts["transformer"].get_submodule(name).weight += strength * up @ down  # type: ignore[attr-defined]
    wanted = forward(plain.parts["transformer"])  # type: ignore[attr-defined]
    torch.testing.assert_close(forward(ours.parts["transformer"]), wanted, atol=1e-4, rtol=1e-4)
    assert (wanted - before).abs().max() > 0.01
    assert ours.adapters[0]["dialect"] == dialect and ours.adapters[0]["modules"] == len(MODULES)
    assert ours("a red cube", seed=1).record["lora"][0]["scale"] == 0.5


def test_two_adapters_add_up(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoint("wan-t2v")
    plain: Any = Seedance.from_pretrained(folder, dtype="fp32", device="cpu")
    first, second = pairs(plain, MODULES[:1]), pairs(plain, MODULES[2:3])
    save_file(peft(first), tmp_path / "a.safetensors")
    save_file(comfy(second), tmp_path / "b.safetensors")
    both: Any = Seedance.from_pretrained(
        folder, dtype="fp32", device="cpu", lora=[tmp_path / "a.safetensors", f"{tmp_path / 'b.safetensors'}:2"]
    )
    for found, strength in ((first, 1.0), (second, 2 * ALPHA / RANK)):
        for name, (down, up) in found.items():
            plain.parts["transformer"].get_submodule(name).weight += strength * up @ down
    torch.testing.assert_close(
        forward(both.parts["transformer"]), forward(plain.parts["transformer"]), atol=1e-4, rtol=1e-4
    )


def test_an_adapter_s_own_alpha_beside_it_counts(opened: Opened, tmp_path: Path) -> None:
    save_file(peft(pairs(opened("wan-t2v"))), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": RANK}))
    assert {pair.alpha for pair in read_lora(tmp_path).pairs.values()} == {6.0}


def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(opened: Opened, tmp_path: Path) -> None:
    pipe = opened("wan-t2v")
    found = pairs(pipe)
    wide = {name: (torch.randn(RANK, 64), torch.randn(64, RANK)) for name in MODULES[:1]}
    cases: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        "none": ({"text_model.q.lora_A.weight": torch.randn(2, 8), "text_model.q.lora_B.weight": torch.randn(8, 2)},
                 "fits no module of this Wan model .*another model's adapter"),
        "part": ({**peft(found), "lora_te_q.lora_down.weight": torch.randn(2, 8),
                  "lora_te_q.lora_up.weight": torch.randn(8, 2)},
                 "fits in part: 4 modules are known, but not lora_te_q"),
        "more": ({**peft(found), "blocks.0.attn1.to_q.dora_scale": torch.randn(3)}, "but not .*dora_scale"),
        "wide": (peft(wide), r"another model: blocks.0.attn1.to_q is \(24, 24\), the adapter changes \(64, 64\)"),
        "half": ({"blocks.0.attn1.to_q.lora_A.weight": torch.randn(2, 24)}, "one half of blocks.0.attn1.to_q"),
        "weights": ({"proj.weight": torch.randn(2, 2)}, r"holds no LoRA pair \(proj.weight\)"),
    }  # fmt: skip
    before = forward(pipe.parts["transformer"])
    for name, (state, said) in cases.items():
        save_file(state, tmp_path / f"{name}.safetensors")
        with pytest.raises(SeedanceError, match=said):
            preflight(pipe.checkpoint, [tmp_path / f"{name}.safetensors"], None)
        with pytest.raises(SeedanceError, match=said):
            load_lora(read_lora(tmp_path / f"{name}.safetensors"), pipe.checkpoint.family, pipe.parts)
    (tmp_path / "a.pt").write_bytes(b"x")
    for place, said in (
        (tmp_path / "gone.safetensors", "does not exist"),
        (tmp_path / "a.pt", "pickle"),
        (tmp_path, "name the"),
    ):
        with pytest.raises(SeedanceError, match=said):
            read_lora(place)
    assert torch.equal(forward(pipe.parts["transformer"]), before)


def test_the_two_experts_get_the_files_made_for_them(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoint("wan-t2v-a14b")
    plain: Any = Seedance.from_pretrained(folder, dtype="fp32", device="cpu")
    for name in ("a_high_noise", "a_low_noise", "a"):
        save_file(comfy(pairs(plain)), tmp_path / f"{name}.safetensors")
        found: Any = Seedance.from_pretrained(
            folder, dtype="fp32", device="cpu", lora=[tmp_path / f"{name}.safetensors"]
        )
        on = {"a_high_noise": ["transformer"], "a_low_noise": ["transformer_2"], "a": ["transformer", "transformer_2"]}
        assert [adapter["part"] for adapter in found.adapters] == on[name]


def test_a_scale_stands_after_the_last_colon() -> None:
    assert split_scale("a.safetensors:0.75") == (Path("a.safetensors"), 0.75)
    assert split_scale("c:/a.safetensors") == (Path("c:/a.safetensors"), 1.0)
    assert split_scale(Path("a")) == (Path("a"), 1.0)
    with pytest.raises(SeedanceError, match="scale 'nan'"):
        split_scale("a.safetensors:nan")
