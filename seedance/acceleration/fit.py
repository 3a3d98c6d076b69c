"""What each stage of a film needs, said before anything is loaded, and where its weights are to wait so that it fits.

    fit(checkpoint, plan, device=device, dtype=dtype, acceleration=Acceleration()).stages
    {"text": 11.4e9, "sampling": 4.1e9, "decoding": 3.9e9}

Notable choices:

- Three stages, one after another: texts are encoded and their encoder goes; the transformer draws; the VAE decodes.
  Each needs its own weights and its widest activations, and the film as much as the hungriest stage.
- Weights are counted from the headers of the weight files, so this takes milliseconds.
- Levels are tried from the fastest on: everything on the device; whole models waiting in main memory; blocks of the
  transformer waiting there; blocks waiting on disk. The first that fits is taken.
- Activations are estimates with a margin. Where one is too low at decoding, tiles take over (`decoding`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seedance.acceleration.options import Acceleration
from seedance.errors import SeedanceError

if TYPE_CHECKING:
    import torch

    from seedance.engines.folder import Checkpoint
    from seedance.pipeline import Plan

LEVELS = ("none", "model", "group", "disk")
MARGIN = 0.92  # of the free memory; the rest is the allocator's
_FULL = 6  # pictures at full width that a VAE's last blocks hold at once
_TILE = 32  # cells of a tile's side


@dataclass(frozen=True)
class Fit:
    """How a film will be made: ``offload`` level, bytes of the device each of ``stages`` needs, bytes ``free`` there,
    and whether it is decoded in tiles."""

    offload: str
    tiling: bool
    stages: Mapping[str, int]
    free: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "offload": self.offload, "tiling": self.tiling, "stages_bytes": dict(self.stages), "free_bytes": self.free,
        }  # fmt: skip


def fit(
    checkpoint: Checkpoint,
    plan: Plan,
    *,
    device: torch.device,
    dtype: torch.dtype,
    acceleration: Acceleration,
    free: int | None = None,
) -> Fit:
    """The fastest level at which every stage of ``plan`` fits, or the one asked for.

    Args:
        free: bytes of the device to use; None asks the device.

    Raises:
        SeedanceError: a stage fits at no level; the message names it, what it needs and what there is.
    """
    room = free_bytes(device) if free is None else free
    asked = acceleration.offload
    levels: tuple[str, ...] = LEVELS if asked == "auto" else (asked,)
    if acceleration.quantization is not None:
        levels = tuple(level for level in levels if level in ("none", "model"))
    found = {}
    for level in levels:
        for tiling in (True,) if acceleration.tiling else (False, True):
            stages = needs(checkpoint, plan, dtype, level, tiling, acceleration.quantization)
            found[level] = stages
            if max(stages.values()) <= MARGIN * room:
                return Fit(level, tiling, stages, room)
    level, stages = min(found.items(), key=lambda pair: max(pair[1].values()))
    worst = max(stages, key=lambda stage: stages[stage])
    more = "" if acceleration.quantization or "group" in levels else ", offload group or disk"
    raise SeedanceError(
        f"memory: {worst} needs {stages[worst] / 1e9:.1f} GB of {device} with offload {level}, {room / 1e9:.1f} GB are "
        f"free; take a smaller size, fewer frames{more}, or a smaller model"
    )


def needs(
    checkpoint: Checkpoint, plan: Plan, dtype: torch.dtype, level: str, tiling: bool, quantization: str | None
) -> dict[str, int]:
    """Bytes of the device that each stage needs at an offload level."""
    family = checkpoint.family
    size = dtype.itemsize
    weights = {name: checkpoint.numbers(name) * (4 if name == "vae" and family.fp32_vae else size)
               for name in checkpoint.weights}  # fmt: skip
    encoders = sum(count for name, count in weights.items() if name.startswith("text_encoder"))
    transformers = [count for name, count in weights.items() if name.startswith("transformer")]
    if quantization is not None:
        transformers = [count // size for count in transformers]
    rest = sum(weights.values()) - encoders - sum(n for name, n in weights.items() if name.startswith("transformer"))
    part = "transformer" if "transformer" in checkpoint.parts else "transformer_2"
    layers, dim, hidden = family.widths(checkpoint.config(part))
    tokens = max(plan.ratio.tokens(n, plan.height, plan.width) for n in plan.frames)
    activations = tokens * (8 * dim + hidden) * size
    block = 2 * max(transformers) // layers  # the one at work and the one on its way
    at_work = {"none": sum(transformers), "model": max(transformers), "group": block, "disk": block}[level]
    waiting = sum(transformers) if level == "none" else 0
    return {
        "text": encoders + rest if level == "none" else encoders,
        "sampling": at_work + rest + activations,
        "decoding": waiting + rest + _decoding(checkpoint, plan, tiling),
    }


def _decoding(checkpoint: Checkpoint, plan: Plan, tiling: bool) -> int:
    """Bytes of a VAE's widest activations: its last blocks, at the film's full size."""
    config, ratio = checkpoint.config("vae"), plan.ratio
    width = config.get("decoder_base_dim") or config.get("base_dim") or min(config.get("block_out_channels", (128,)))
    height, across = (min(side, _TILE * ratio.space) if tiling else side for side in (plan.height, plan.width))
    frames = ratio.time if "Wan" in checkpoint.parts["vae"][1] else max(plan.frames)
    bytes_each = 4 if checkpoint.family.fp32_vae else 2
    pictures = 3 * frames * plan.height * plan.width * bytes_each
    return _FULL * frames * height * across * width * bytes_each + pictures


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device; of main memory, what could be had without swapping."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
