"""What each stage of a film needs, said before anything is loaded, and where its weights are to wait so that it fits.

    fit(checkpoint, plan, device=device, dtype=dtype, acceleration=Acceleration()).stages
    {"text": 11.4e9, "sampling": 4.1e9, "decoding": 3.9e9}

Notable choices:

- Three stages, one after another: texts are encoded and their encoder goes; the transformer draws; the VAE decodes.
  Each needs its own weights and its widest activations, and the film as much as the hungriest stage.
- Weights are counted from the headers of the weight files; what the VAE takes by decoding shapes without numbers
  (`counting`), a few tenths of a second. Too low an estimate there is a film lost after minutes of drawing.
- Levels are tried from the fastest on: everything on the device; whole models waiting in main memory; blocks of the
  transformer waiting there; blocks waiting on disk. The first that fits is taken, and what waits in main memory has to
  fit there too. On the CPU there is one memory, so only the disk makes room.
- A text encoder that does not fit the device is no obstacle where main memory holds it: `staged` encodes there then.
- Activations of the transformer are estimates with a margin. Where memory runs out at decoding nevertheless, tiles
  take over (`decoding`).
- What tiles keep waits in main memory on cards, so it has to fit there; on the CPU pictures wait (`decoding`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from seedance.acceleration.options import Acceleration
from seedance.errors import SeedanceError
from shots.runtime.device import free_bytes, main_memory

if TYPE_CHECKING:
    import torch

    from seedance.acceleration.counting import Counted
    from seedance.engines.folder import Checkpoint
    from seedance.pipeline import Plan

LEVELS = ("none", "model", "group", "disk")
MARGIN = 0.92  # of the free memory; the rest is the allocator's


@dataclass(frozen=True)
class Fit:
    """How a film will be made: ``offload`` level, bytes of the device each of ``stages`` needs (none for texts that are
    encoded on the CPU), bytes ``free`` there, and whether it is decoded in tiles."""

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
    host: int | None = None,
) -> Fit:
    """The fastest level at which every stage of ``plan`` fits, or the one asked for.

    Args:
        free: bytes of the device to use; None asks the device. host: the same of main memory.

    Raises:
        SeedanceError: a stage fits at no level; the message names it, what it needs and what there is.
    """
    room = free_bytes(device) if free is None else free
    asked = acceleration.offload
    levels: tuple[str, ...] = (asked,)
    if asked == "auto":
        levels = ("none", "disk") if device.type == "cpu" else LEVELS
    if acceleration.quantization is not None:
        levels = tuple(level for level in levels if level in ("none", "model"))
    vae = acceleration.vae_format(checkpoint.family.fp32_vae, dtype)
    have, tried = main_memory() if host is None else host, []
    waiting, encoders = _bytes(checkpoint, dtype, "transformer"), _bytes(checkpoint, dtype, "text_encoder")
    for level in levels:
        moved = level in ("model", "group") and device.type != "cpu"
        alike = level if moved or level == "disk" else "none"
        for tiling in (True,) if acceleration.tiling else (False, True):
            stages = needs(checkpoint, plan, dtype, alike, tiling, acceleration.quantization, vae, device)
            if device.type != "cpu" and stages["text"] > MARGIN * room and encoders <= MARGIN * have:
                stages["text"] = 0
            worst = max(stages, key=lambda stage: stages[stage])
            if stages[worst] > MARGIN * room:
                tried.append((stages[worst] - room, f"{worst} needs {_gb(stages[worst])} of {device}", level, room))
            elif moved and waiting > MARGIN * have:
                said = f"the transformer waits in {_gb(waiting)} of main memory"
                tried.append((waiting - have, said, level, have))
            elif (beside := _decoding(checkpoint, plan, vae, tiling, device).parked) + moved * waiting > MARGIN * have:
                said = f"what tiles keep waits in {_gb(beside)} of main memory"
                tried.append((beside + moved * waiting - have, said, level, have))
            else:
                return Fit(level, tiling, stages, room)
    _, said, level, there = min(tried)
    more = "" if acceleration.quantization or "disk" in levels else ", offload disk"
    raise SeedanceError(
        f"memory: {said} with offload {level}, {_gb(there)} are free; take a smaller size, fewer frames{more}, or a "
        "smaller model"
    )


def settle(
    checkpoint: Checkpoint,
    plans: Sequence[Plan],
    *,
    device: torch.device,
    dtype: torch.dtype,
    acceleration: Acceleration,
) -> Acceleration:
    """What was asked for, with the level, and tiles where they are needed, at which every one of ``plans`` fits."""
    found = [fit(checkpoint, plan, device=device, dtype=dtype, acceleration=acceleration) for plan in plans]
    level = max((one.offload for one in found), key=LEVELS.index)
    return replace(acceleration, offload=level, tiling=acceleration.tiling or any(one.tiling for one in found))


def _bytes(checkpoint: Checkpoint, dtype: torch.dtype, kind: str) -> int:
    """Bytes of the parts whose names begin with ``kind``, in main memory."""
    return dtype.itemsize * sum(checkpoint.numbers(name) for name in checkpoint.weights if name.startswith(kind))


def needs(
    checkpoint: Checkpoint,
    plan: Plan,
    dtype: torch.dtype,
    level: str,
    tiling: bool,
    quantization: str | None,
    vae: torch.dtype | None = None,
    device: torch.device | None = None,
) -> dict[str, int]:
    """Bytes of the device that each stage needs at an offload level.

    Args:
        vae: numbers of the VAE; None are those its family asks for. device: where; None is a card.
    """
    family = checkpoint.family
    size, vae = dtype.itemsize, vae or Acceleration().vae_format(family.fp32_vae, dtype)
    weights = {name: checkpoint.numbers(name) * (vae.itemsize if name == "vae" else size)
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
        "decoding": waiting + rest + _decoding(checkpoint, plan, vae, tiling, device).peak,
    }


def _decoding(
    checkpoint: Checkpoint, plan: Plan, vae: torch.dtype, tiling: bool, device: torch.device | None
) -> Counted:
    """What decoding the longest shot takes above weights."""
    from seedance.acceleration.counting import count_decoding
    from seedance.acceleration.decoding import Tiling, parks

    config, ratio = checkpoint.config("vae"), plan.ratio
    channels = config.get("z_dim") or config["latent_channels"]
    latents = (channels, ratio.latent_frames(max(plan.frames)), plan.height // ratio.space, plan.width // ratio.space)
    return count_decoding(
        checkpoint.parts["vae"][1], config, latents, space=ratio.space, dtype=vae,
        tiling=Tiling() if tiling else None, parks=device is None or parks(device),
    )  # fmt: skip


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
