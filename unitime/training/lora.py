"""LoRA adapters that are trained: put beside a frozen language model, and saved as PEFT saves its own.

    lora = LoRA(net, LoRAConfig(r=8, alpha=8))     # from here on, net's language model computes with the adapters
    lora.save(folder, base="Qwen/Qwen2-VL-7B-Instruct")
    VisionLanguageModel.from_pretrained(base, adapter=folder)

LoRA (arXiv 2106.09685): y = W x + alpha / r * B A dropout(x); A is drawn at random and B is zero, so training starts
at the base.

Notable choices:

- Forward hooks add what the adapters say; no module of the base is replaced or written to, and the adapters' own state
  is all that a checkpoint holds.
- Every linear layer of the language model has one; ``lm_head`` and the vision tower have none (UniTime, section 4.1).
- The file's names are those that PEFT 0.21 gives them on transformers 5, and ``target_modules`` is one pattern instead
  of endings: Qwen2.5's vision tower has an ``up_proj`` too, and PEFT would adapt it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shots.runtime.weights import save_tensors
from unitime.adapters import CONFIG, WEIGHTS
from unitime.errors import UniTimeError

_PREFIX = "base_model.model."  # PEFT's wrapper, and the model in it


@dataclass(frozen=True)
class LoRAConfig:
    """Rank, scale (alpha / r) and dropout of adapters. The defaults are the published ones."""

    r: int = 8
    alpha: float = 8.0
    dropout: float = 0.05

    def __post_init__(self) -> None:
        if self.r < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise UniTimeError(
                f"lora: r {self.r}, alpha {self.alpha:g}, dropout {self.dropout:g}; r of at least 1, alpha above 0 and "
                "0 <= dropout < 1 are needed"
            )


class LoRA(nn.Module):
    """Adapters of every linear layer of a network's language model, in float32. They work until :meth:`remove`.

    net: transformers' whole model. Raises UniTimeError where its language model has no linear layer.
    """

    def __init__(self, net: Any, config: LoRAConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.scale = config.alpha / config.r
        language = net.model.language_model
        layers = {
            name: module
            for name, module in net.named_modules()
            if name.startswith("model.language_model.") and isinstance(module, nn.Linear)
        }
        if not layers:
            raise UniTimeError(f"lora: {type(language).__name__} has no linear layer to adapt")
        self.names = list(layers)
        generator = torch.Generator().manual_seed(seed)
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        self._hooks = []
        for index, module in enumerate(layers.values()):
            a = torch.empty(config.r, module.in_features)  # (r, in)
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
            self.a.append(nn.Parameter(a.to(module.weight.device)))
            self.b.append(nn.Parameter(torch.zeros(module.out_features, config.r, device=module.weight.device)))
            self._hooks.append(module.register_forward_hook(self._hook(index)))

    def _hook(self, index: int) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            a, b = self.a[index], self.b[index]
            x = F.dropout(inputs[0], self.config.dropout, self.training)  # (..., in)
            change = F.linear(F.linear(x.to(a.dtype), a), b)  # (..., out)
            return output + (self.scale * change).to(output.dtype)

        return add

    def remove(self) -> None:
        """The network computes as its base again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def tensors(self) -> dict[str, Tensor]:
        """The weights under PEFT's names."""
        named = {}
        for name, a, b in zip(self.names, self.a, self.b, strict=True):
            named[f"{_PREFIX}{name}.lora_A.weight"] = a.detach()
            named[f"{_PREFIX}{name}.lora_B.weight"] = b.detach()
        return named

    def save(self, folder: str | Path, base: str) -> Path:
        """Writes ``adapter_config.json`` and ``adapter_model.safetensors``, which PEFT and `unitime.adapters` read."""
        folder = Path(folder)
        tensors = self.tensors()
        save_tensors(tensors, folder, WEIGHTS, max_shard_bytes=sum(t.nbytes for t in tensors.values()))
        endings = "|".join(sorted({name.rsplit(".", 1)[-1] for name in self.names}))
        record = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "inference_mode": True,
            "r": self.config.r,
            "lora_alpha": self.config.alpha,
            "lora_dropout": self.config.dropout,
            "target_modules": rf"model\.language_model\..*\.({endings})",
            "bias": "none",
            "fan_in_fan_out": False,
            "use_rslora": False,
            "use_dora": False,
            "init_lora_weights": True,
            "modules_to_save": None,
        }
        (folder / CONFIG).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return folder
