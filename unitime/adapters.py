"""LoRA adapters read by hand and merged into a model's weights.

Adapters saved in the time of transformers 4.49 name the language model's layers ``model.layers.*``; transformers 5 has
them under ``model.language_model.layers.*``. PEFT's own loader then warns and leaves every B matrix zero, which is the
base model without a word of error. Here every tensor of the file must find its place, every module that the adapter
says it targets must get its tensors, and no B may be all zeros; else nothing is changed and an error says why.

Notable choices:

- PEFT is not needed: ``W += scale * B @ A`` in float32 (LoRA, arXiv 2106.09685; scale is alpha / r, or alpha / sqrt(r)
  for rank-stabilised adapters, arXiv 2312.03732), with ranks and alphas per module where the adapter has them.
- The base is the caller's. ``base_model_name_or_path`` may be a path on somebody's machine and is not read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shots.errors import ShotsError
from shots.runtime.weights import load_tensors
from unitime.errors import UniTimeError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model"

_RENAMED = (  # how names began, and how transformers 5 begins them
    ("model.layers.", "model.language_model.layers."),
    ("model.embed_tokens", "model.language_model.embed_tokens"),
    ("model.norm", "model.language_model.norm"),
    ("visual.", "model.visual."),
    ("language_model.model.", "model.language_model."),
    ("language_model.", "model.language_model."),
)
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.\w+)?\.weight")


def merge_adapter(net: nn.Module, folder: str | Path) -> list[str]:
    """Merges the LoRA adapter in ``folder`` into ``net``. Returns the names of the modules it changed.

    Raises UniTimeError, with ``net`` as it was, where :func:`fitting` does.
    """
    config, pairs, modules = fitting(net, folder)
    changes = {name: _change(name, *pair, modules[name], config) for name, pair in pairs.items()}
    with torch.no_grad():
        for name, change in changes.items():
            weight = modules[name].weight
            weight.copy_((weight.float() + change.to(weight.device)).to(weight.dtype))
    return sorted(changes)


def fitting(
    net: nn.Module, folder: str | Path
) -> tuple[dict[str, Any], dict[str, tuple[Tensor, Tensor]], dict[str, nn.Linear]]:
    """The configuration of the LoRA adapter in ``folder``, its matrices by the module they change, and the modules of
    ``net``, which may be without weights, on the meta device.

    Raises UniTimeError where the folder holds no LoRA adapter, where a tensor fits nowhere, where a targeted module
    gets none, or where the adapter would change nothing.
    """
    folder = Path(folder)
    config = _config(folder)
    try:
        tensors = load_tensors(folder, WEIGHTS)
    except ShotsError as error:
        raise UniTimeError(f"adapter: {error}") from error
    modules = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    pairs = _pairs(tensors, modules, folder)
    missing = sorted(_targeted(config, modules) - set(pairs))
    if missing:
        raise UniTimeError(
            f"adapter: {folder} targets {len(missing)} modules that it has no weights for, such as {missing[0]}"
        )
    return config, pairs, modules


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = config["peft_type"]
        config["r"], config["lora_alpha"] = int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UniTimeError(f"adapter: {folder / CONFIG} is no LoRA configuration ({error})") from error
    if kind != "LORA" or config.get("use_dora"):
        raise UniTimeError(f"adapter: {folder} is of type {'DORA' if config.get('use_dora') else kind}; LORA is needed")
    return dict(config)


def _home(name: str, modules: Mapping[str, nn.Linear]) -> str | None:
    """The module that a name of any age means, or None."""
    name = name.removeprefix("base_model.model.")
    names = [name, *(new + name[len(old) :] for old, new in _RENAMED if name.startswith(old))]
    return next((candidate for candidate in names if candidate in modules), None)


def _pairs(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Linear], folder: Path
) -> dict[str, tuple[Tensor, Tensor]]:
    """A (r, in) and B (out, r) of each module. Raises UniTimeError for any tensor that does not fit."""
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        home = match and _home(match["module"], modules)
        if not match or not home:
            raise UniTimeError(
                f"adapter: {key} of {folder} fits nowhere in this model; is it for another base, or not plain LoRA?"
            )
        sides.setdefault(home, {})[match["side"]] = tensor.float()
    pairs = {}
    for name, both in sides.items():
        if set(both) != {"A", "B"}:
            raise UniTimeError(f"adapter: {folder} has only one of the two matrices of {name}")
        a, b = both["A"], both["B"]
        rows, columns = modules[name].weight.shape
        if a.ndim != 2 or b.ndim != 2 or (b.shape[0], a.shape[1], a.shape[0]) != (rows, columns, b.shape[1]):
            raise UniTimeError(
                f"adapter: {name} is {rows} x {columns} in this model, and {tuple(b.shape)} times {tuple(a.shape)} "
                f"in {folder}; it is for another base"
            )
        if not b.any() or not torch.isfinite(a).all() or not torch.isfinite(b).all():
            raise UniTimeError(f"adapter: the weights of {name} in {folder} are all zeros or no numbers: it was lost")
        pairs[name] = a, b
    if not pairs:
        raise UniTimeError(f"adapter: {folder} holds no weights")
    return pairs


def _targeted(config: Mapping[str, Any], modules: Mapping[str, nn.Linear]) -> set[str]:
    """Modules of the language model that the adapter says it changes.

    ``target_modules`` are name endings ("q_proj") or whole names of any age, or one pattern. Of the vision tower
    nothing is expected: endings such as "up_proj" may occur in it by chance.
    """
    said = config.get("target_modules") or []
    layers = {name for name in modules if ".language_model." in f".{name}"}
    if isinstance(said, str):
        if said == "all-linear":
            return layers
        old = {name: name.replace("model.language_model.", "model.", 1) for name in layers}
        return {name for name in layers if re.fullmatch(said, name) or re.fullmatch(said, old[name])}
    targeted = set()
    for target in said:
        home = _home(target, modules)
        found = {home} if home else {name for name in layers if name.endswith(f".{target}")}
        if not found and not any(name.endswith(f".{target}") for name in modules):
            raise UniTimeError(f"adapter: its target module {target!r} is not in this model; is it for another base?")
        targeted |= found
    return targeted


def _change(name: str, a: Tensor, b: Tensor, module: nn.Linear, config: Mapping[str, Any]) -> Tensor:
    """What is added to a module's weight (out, in)."""
    rank = _pattern(config.get("rank_pattern"), name, config["r"])
    if rank != a.shape[0]:
        raise UniTimeError(f"adapter: {name} has rank {a.shape[0]}, and its configuration says {rank}")
    alpha = _pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank) * (b @ a)


def _pattern(patterns: Mapping[str, Any] | None, name: str, otherwise: Any) -> Any:
    """The value whose key, a name's ending or a pattern of it, fits a module."""
    for key, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", name):
            return value
    return otherwise
