"""What published checkpoints need, computed from their configurations.

    python -m unitime.checkpoints                    # a Markdown table of all that are known
    python -m unitime.checkpoints FOLDER ...         # of checkpoints on this machine

Notable choices:

- The sizes of a checkpoint are in its ``config.json``; those of the published ones are kept here, so the table is made
  without a network. The model is built on the meta device, where weights have sizes and no memory.
- Memory is that of the weights, and of the keys and values of a prefix that fills the format's budget. Quantised, only
  the language model's linear layers shrink, as `unitime.quantization` does it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unitime.errors import UniTimeError
from unitime.formats import FORMATS, recognise

_VISION_2 = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4}
_VISION_25 = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
}  # fmt: skip
_VISION_3 = {"hidden_size": 1024, "intermediate_size": 4096, "depth": 24, "num_heads": 16, "patch_size": 16}
_VISION_3_LARGE = {"hidden_size": 1152, "intermediate_size": 4304, "depth": 27, "num_heads": 16, "patch_size": 16}


def _config(
    kind: str, hidden: int, inner: int, layers: int, heads: int, groups: int, vocabulary: int, tied: bool,
    vision: Mapping[str, Any], head: int = 128,
) -> dict[str, Any]:  # fmt: skip
    """The part of a ``config.json`` that says how many weights there are."""
    text = {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": groups, "vocab_size": vocabulary, "head_dim": head, "tie_word_embeddings": tied,
    }  # fmt: skip
    out = {"hidden_size": hidden} if kind == "qwen2_vl" else {"out_hidden_size": hidden}
    return {
        "model_type": kind, "tie_word_embeddings": tied, "text_config": text, "vision_config": {**vision, **out},
    }  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: hub id, licence as its card states it, configuration, and the adapter that goes on it."""

    name: str
    licence: str
    config: dict[str, Any]
    adapter: str | None = None


_QWEN2_7B = _config("qwen2_vl", 3584, 18944, 28, 28, 4, 152064, False, _VISION_2)
_QWEN25_7B = _config("qwen2_5_vl", 3584, 18944, 28, 28, 4, 152064, False, _VISION_25)
_QWEN3_8B = _config("qwen3_vl", 4096, 12288, 36, 32, 8, 151936, False, _VISION_3_LARGE)
_QWEN3_8B["vision_config"]["deepstack_visual_indexes"] = [8, 16, 24]
PUBLISHED = (
    Checkpoint("Qwen/Qwen2-VL-7B-Instruct", "Apache-2.0; adapter: none stated", _QWEN2_7B, "zeqianli/UniTime"),
    Checkpoint("Qwen/Qwen2-VL-2B-Instruct", "Apache-2.0",
               _config("qwen2_vl", 1536, 8960, 28, 12, 2, 151936, True, _VISION_2)),
    Checkpoint("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen Research",
               _config("qwen2_5_vl", 2048, 11008, 36, 16, 2, 151936, True, _VISION_25)),
    Checkpoint("Qwen/Qwen2.5-VL-7B-Instruct", "Apache-2.0", _QWEN25_7B),
    Checkpoint("TencentARC/TimeLens-7B", "BSD-3-Clause", _QWEN25_7B),
    Checkpoint("Qwen/Qwen3-VL-2B-Instruct", "Apache-2.0",
               _config("qwen3_vl", 2048, 6144, 28, 16, 8, 151936, True,
                       {**_VISION_3, "deepstack_visual_indexes": [5, 11, 17]})),
    Checkpoint("Qwen/Qwen3-VL-4B-Instruct", "Apache-2.0",
               _config("qwen3_vl", 2560, 9728, 36, 32, 8, 151936, True,
                       {**_VISION_3, "deepstack_visual_indexes": [5, 11, 17]})),
    Checkpoint("Qwen/Qwen3-VL-8B-Instruct", "Apache-2.0", _QWEN3_8B),
    Checkpoint("TencentARC/TimeLens-8B", "BSD-3-Clause", _QWEN3_8B),
)  # fmt: skip


@dataclass(frozen=True)
class Needs:
    """What a checkpoint needs.

    format: of `unitime.formats`. parameters: in all. linear: of them those that are quantised. scales: bytes of their
    scales at int8. cache: bytes of keys and values, in 16 bits, of a prefix that fills the format's budget.
    """

    format: str
    parameters: int
    linear: int
    scales: int
    cache: int

    def weights(self, quantization: str | None = None) -> float:
        """Bytes of the weights: in bf16, or with the language model's layers at "int8" or "int4"."""
        rest = 2.0 * (self.parameters - self.linear)
        if quantization is None:
            return 2.0 * self.parameters
        if quantization == "int8":
            return rest + self.linear + self.scales
        return rest + self.linear * (0.5 + 1 / 64 + 2 / (64 * 256))  # NF4: a byte a block, 16 bits for 256 of those


def needs(config: Mapping[str, Any], name: str = "", adapted: bool = False) -> Needs:
    """What the checkpoint of a ``config.json`` needs. Raises UniTimeError where it is no Qwen-VL configuration."""
    import torch
    from torch import nn

    from shots.runtime.vision import transformers
    from unitime.frames import FrameRule

    library = transformers()
    kinds = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
    kind = str(config.get("model_type"))
    if kind not in kinds:
        raise UniTimeError(f"config: its model_type is {kind!r}; one of {', '.join(kinds)} is needed")
    said = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    built = getattr(library, f"{kinds[kind]}Config")(**said)
    with torch.device("meta"):
        net = getattr(library, f"{kinds[kind]}ForConditionalGeneration")(built)
    layers = [m for m in net.model.language_model.modules() if isinstance(m, nn.Linear)]
    text = net.config.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    form = recognise(name, config, adapted)
    budget = FORMATS[form].rule.get("budget", FrameRule().budget)
    return Needs(
        format=form,
        parameters=sum(p.numel() for p in net.parameters()),  # a tied lm_head counts once
        linear=sum(m.weight.numel() for m in layers),
        scales=2 * sum(m.out_features for m in layers),
        cache=4 * text.num_hidden_layers * text.num_key_value_heads * head * budget,
    )


def table(checkpoints: list[Checkpoint]) -> str:
    """A Markdown table, a row a checkpoint."""
    lines = [
        "| checkpoint | parameters | weights in bf16 | int8 | int4 | prefix of a full budget | licence | prompts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in checkpoints:
        found = needs(each.config, each.name, each.adapter is not None)
        name = f"`{each.name}`" + (f" + `{each.adapter}`" if each.adapter else "")
        sizes = " | ".join(f"{found.weights(how) / 1e9:.1f} GB" for how in (None, "int8", "int4"))
        lines.append(
            f"| {name} | {found.parameters / 1e9:.2f} B | {sizes} | {found.cache / 1e9:.1f} GB | {each.licence} | "
            f"{found.format} |"
        )
    return "\n".join(lines)


def of_folder(folder: str | Path) -> Checkpoint:
    """The checkpoint in a folder. Raises UniTimeError where it has no ``config.json``."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UniTimeError(f"checkpoint: {path} cannot be read ({error}); give the folder of a checkpoint") from error
    return Checkpoint(str(folder), "see its card", config)


if __name__ == "__main__":
    try:
        print(table([of_folder(path) for path in sys.argv[1:]] or list(PUBLISHED)))  # noqa: T201
    except UniTimeError as problem:
        sys.exit(f"unitime: {problem}")
