"""LoRA adapters in the four ways they are written, put on a checkpoint's transformers or refused.

Notable choices:

- Dialects: Comfy and diffusion-pipe (``diffusion_model.blocks.0.self_attn.q.lora_A.weight``), kohya and musubi
  (``lora_unet_blocks_0_self_attn_q.lora_down.weight`` with ``.alpha``), diffusers and PEFT
  (``transformer.blocks.0.attn1.to_q.lora_A.weight``), DiffSynth (``blocks.0.self_attn.q.lora_A.default.weight``). All
  become one form: a pair of matrices a module.
- An adapter that fits nothing loads without a word elsewhere and does nothing. Here no match is an error, a match in
  part is an error that names the rest, and a pair of other widths is the adapter of another model.
- Adapters are put beside the weights with PEFT, not into them: bf16 would round a small change away.
- ``alpha / rank`` is folded into the second matrix, so that the scale a caller gives is the only one left.
- Wan 2.2's two experts: a file that says ``transformer_2.`` or has "low" in its name goes on the second, one with
  "high" on the first, any other on both.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedance.engines.families import Family
from seedance.engines.fingerprint import fingerprint
from seedance.engines.folder import DIFFUSERS, _json, _some, read_header
from seedance.engines.names import aliases, bare
from seedance.errors import SeedanceError
from shots.runtime.weights import PICKLES

if TYPE_CHECKING:
    from torch import Tensor

_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_DOWN = re.compile(r"^(?P<module>.+?)\.(?:lora_A|lora_down|lora\.down)(?:\.[^.]+)??\.weight$")
_UP = re.compile(r"^(?P<module>.+?)\.(?:lora_B|lora_up|lora\.up)(?:\.[^.]+)??\.weight$")


@dataclass(frozen=True)
class Pair:
    """One module's change: ``up @ down * alpha / rank``."""

    down: Tensor  # (rank, in)
    up: Tensor  # (out, rank)
    alpha: float


@dataclass(frozen=True)
class Adapter:
    """An adapter as its file has it.

    Attributes:
        path: the file. scale: how strongly it is put on. dialect: how it is written.
        pairs: by the module's name in the file. others: keys that are no part of a pair.
    """

    path: Path
    scale: float
    dialect: str
    pairs: Mapping[str, Pair]
    others: tuple[str, ...] = ()


def split_scale(said: str | Path) -> tuple[Path, float]:
    """``PATH[:scale]`` as a path and a number (1 where none is given)."""
    text = str(said)
    head, colon, tail = text.rpartition(":")
    if colon and head:
        try:
            scale = float(tail)
        except ValueError:
            return Path(text), 1.0
        if not math.isfinite(scale):
            raise SeedanceError(f"lora: the scale {tail!r} of {head} is not a number; 1 is full strength")
        return Path(head), scale
    return Path(text), 1.0


def read_lora(said: str | Path) -> Adapter:
    """Reads an adapter, ``PATH[:scale]``: a safetensors file or a folder that holds one.

    Raises:
        SeedanceError: there is none, or what is there is no LoRA.
    """
    import safetensors

    place, scale = split_scale(said)
    path = _file(place)
    header = read_header(path)
    downs = {found["module"]: key for key in header.shapes if (found := _DOWN.match(key))}
    ups = {found["module"]: key for key in header.shapes if (found := _UP.match(key))}
    if not downs:
        raise SeedanceError(f"lora: {path} holds no LoRA pair ({_some(sorted(header.shapes))}); give an adapter's file")
    if single := sorted(set(downs) ^ set(ups)):
        raise SeedanceError(f"lora: {path} holds one half of {_some(single)}; it is damaged, fetch it again")
    pairs, alphas = {}, {key for key in header.shapes if key.endswith(".alpha")}
    with safetensors.safe_open(str(path), framework="pt") as file:
        told = _told_alpha(path, file.metadata() or {})
        for module, key in downs.items():
            down, up = file.get_tensor(key), file.get_tensor(ups[module])
            rank = down.shape[0]
            if up.ndim < 2 or up.shape[1] != rank:
                raise SeedanceError(f"lora: {path}: {module} has matrices of ranks {rank} and {tuple(up.shape)[1:]}")
            alpha = float(file.get_tensor(f"{module}.alpha")) if f"{module}.alpha" in alphas else told(rank)
            pairs[module] = Pair(down, up, alpha)
    used = {*downs.values(), *ups.values(), *(f"{module}.alpha" for module in downs)}
    others = tuple(sorted(set(header.shapes) - used))
    return Adapter(path, scale, _dialect(next(iter(downs.values()))), pairs, others)


def matched(adapter: Adapter, family: Family, transformer: Any) -> dict[str, Pair]:
    """The adapter's pairs by the transformer's own module names.

    Raises:
        SeedanceError: none fits, some do not, or they are of other widths.
    """
    modules = {name: m.weight for name, m in transformer.named_modules() if getattr(m, "weight", None) is not None}
    modules = {name.replace(".base_layer", ""): weight for name, weight in modules.items() if ".lora_" not in name}
    known = aliases(family.name, modules)
    found, rest = {}, list(adapter.others)
    for raw, pair in adapter.pairs.items():
        name = known.get(bare(raw))
        if name is None:
            rest.append(raw)
        else:
            found[name] = pair
    where = f"lora: {adapter.path} ({adapter.dialect})"
    if not found:
        raise SeedanceError(
            f"{where} fits no module of this {family.name} model ({_some(rest)}); it is another model's adapter"
        )
    wrong = [
        f"{name} is {tuple(modules[name].shape)}, the adapter changes {(pair.up.shape[0], *pair.down.shape[1:])}"
        for name, pair in found.items()
        if (pair.up.shape[0], *pair.down.shape[1:]) != tuple(modules[name].shape)
    ]
    if wrong:
        raise SeedanceError(f"{where} is an adapter of another model: {_some(wrong, 1)}")
    if rest:
        raise SeedanceError(
            f"{where} fits in part: {len(found)} modules are known, but not {_some(rest)}; half an adapter is none"
        )
    return found


def load_lora(adapter: Adapter, family: Family, parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Puts an adapter on the transformers among `parts`; what a film's record says of it.

    Raises:
        SeedanceError: it does not fit; nothing is changed.
    """
    fitting = {part: matched(adapter, family, parts[part]) for part in targets(adapter, parts)}
    for part, pairs in fitting.items():
        _put_on(parts[part], pairs, adapter)
    return [
        {
            "file": adapter.path.name, "fingerprint": fingerprint(adapter.path), "scale": adapter.scale,
            "dialect": adapter.dialect, "part": part, "modules": len(pairs),
        }
        for part, pairs in fitting.items()
    ]  # fmt: skip


def _put_on(model: Any, pairs: Mapping[str, Pair], adapter: Adapter) -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise SeedanceError(f"lora: adapters need peft ({error}); {DIFFUSERS}") from error
    state = {}
    for name, pair in pairs.items():
        state[f"{name}.lora_A.weight"] = pair.down.float()
        state[f"{name}.lora_B.weight"] = pair.up.float() * (pair.alpha / pair.down.shape[0])
    before = list(getattr(model, "peft_config", {}))
    name = f"adapter_{len(before)}"
    scales = {**getattr(model, "_seedance_scales", {}), name: adapter.scale}
    model.load_lora_adapter(state, prefix=None, adapter_name=name)
    on = sum(name in getattr(module, "lora_A", {}) for module in model.modules())
    if on != len(pairs):
        raise SeedanceError(f"lora: {adapter.path}: {on} of {len(pairs)} modules took it; update diffusers and peft")
    model._seedance_scales = scales
    model.set_adapters(list(scales), list(scales.values()))
    model.requires_grad_(False)


def targets(adapter: Adapter, parts: Mapping[str, Any]) -> list[str]:
    """Which of the transformers among `parts` an adapter goes on."""
    experts = [part for part in ("transformer", "transformer_2") if parts.get(part) is not None]
    if len(experts) < 2:
        return experts
    second = [key.startswith("transformer_2.") for key in adapter.pairs]
    if all(second) or "low" in adapter.path.stem.lower():
        return ["transformer_2"]
    if "high" in adapter.path.stem.lower() or any(key.startswith("transformer.") for key in adapter.pairs):
        return ["transformer"]
    return experts


def _file(place: Path) -> Path:
    if place.is_dir():
        for name in _FILES:
            if (place / name).is_file():
                return place / name
        files = sorted(place.glob("*.safetensors"))
        if len(files) == 1:
            return files[0]
        raise SeedanceError(f"lora: {place} holds {len(files)} safetensors files; name the adapter's own")
    if place.suffix in PICKLES:
        raise SeedanceError(f"lora: {place} is a pickle, which can run code when it is read; convert it to safetensors")
    if not place.is_file():
        raise SeedanceError(f"lora: {place} does not exist; give a .safetensors file or a folder, PATH[:scale]")
    return place


def _told_alpha(path: Path, header: Mapping[str, str]) -> Any:
    """rank -> alpha, as PEFT's configuration beside the file or in its header has it; else the rank itself."""
    said: dict[str, Any] = {}
    if (path.parent / "adapter_config.json").is_file() and path.name in _FILES:
        said = _json(path.parent / "adapter_config.json")
    elif "lora_adapter_metadata" in header:
        flat = json.loads(header["lora_adapter_metadata"])
        said = {key.rpartition(".")[2]: value for key, value in flat.items()}
    if said.get("alpha_pattern") or said.get("use_dora"):
        raise SeedanceError(f"lora: {path} scales its modules apart (alpha_pattern, DoRA), which is not supported")
    alpha = said.get("lora_alpha")
    if alpha is None:
        return float
    if said.get("use_rslora"):
        return lambda rank: float(alpha) * math.sqrt(rank)
    return lambda rank: float(alpha)


def _dialect(key: str) -> str:
    if re.match(r"lora_(unet|transformer)_", key):
        return "kohya"
    if ".default." in key:
        return "DiffSynth"
    if bare(key) != key and "diffusion_model." in key:
        return "Comfy"
    return "PEFT"
