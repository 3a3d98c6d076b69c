"""What a film on an open checkpoint would take, from its folder's JSON and headers alone.

Notable choice: operations are the transformer's (by its family's formula) times steps and branches; the text encoder,
which runs once a shot, and the VAE are left out and said to be. Memory is all parts on one device at once, plus the
widest activations of one pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seedance.engines.engine import OpenDefaults, shot_notes
from seedance.errors import SeedanceError
from seedance.pipeline import Plan
from shots.runtime.device import pick_device, pick_dtype


def estimate(
    plan: Plan,
    defaults: OpenDefaults,
    *,
    steps: int | None = None,
    guidance_scale: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
    utilisation: float = 0.35,
) -> dict[str, Any]:
    """Frames, tokens, operations, bytes of memory and seconds of `plan`; sizes that do not fit raise SeedanceError.

    Args:
        utilisation: share of a matrix product's speed that sampling reaches.
    """
    from shots.runtime.speed import peak_flops

    checkpoint = defaults.checkpoint
    if checkpoint is None:
        raise SeedanceError("estimate: these defaults belong to no checkpoint")
    family, where = checkpoint.family, pick_device(device)
    kind, _ = pick_dtype(where, dtype)
    part = "transformer" if "transformer" in checkpoint.parts else "transformer_2"
    config = checkpoint.config(part)
    steps = defaults.steps if steps is None else steps
    scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
    tokens = [plan.ratio.tokens(n, plan.height, plan.width) for n in plan.frames]
    flops = steps * (1 if scale <= 1 else 2) * sum(family.flops(config, n) for n in tokens)
    bytes_each = {name: 4 if name == "vae" and family.fp32_vae else kind.itemsize for name in checkpoint.weights}
    weights = {name: checkpoint.numbers(name) * size for name, size in bytes_each.items()}
    _, dim, hidden = family.widths(config)
    activations = max(tokens) * (8 * dim + hidden) * kind.itemsize
    return {
        "script": plan.script.to_dict(),
        "engine": f"diffusers, {family.name}",
        "frames": list(plan.frames),
        "height": plan.height,
        "width": plan.width,
        "fps": plan.fps,
        "latent_shape": list(plan.latent_shape),
        "tokens": plan.tokens,
        "flops": flops,
        "memory_bytes": sum(weights.values()) + activations,
        "weights_bytes": weights,
        "download_bytes": checkpoint.download,
        "seconds": round(flops / (utilisation * peak_flops(where, kind)), 2),
        "device": str(where),
        "dtype": str(kind).removeprefix("torch."),
        "warnings": [*plan.notes, *shot_notes(plan, defaults), "text encoding and decoding are not counted"],
    }


def sentence(found: Mapping[str, Any]) -> str:
    """One line of an estimate and of the fit put beside it (:class:`seedance.acceleration.fit.Fit`)."""
    stages = ", ".join(f"{_gb(size)} for {stage}" for stage, size in found["stages_bytes"].items())
    how = [f"offload {found['offload']}", *(["decoded in tiles"] if found["tiling"] else [])]
    asked = ((name, value) for name, value in found["acceleration"].items() if name != "tiling")
    how += [name if value is True else f"{name} {value}" for name, value in asked]
    fetched = f"{_gb(found['download_bytes'])} to fetch; " if found["download_bytes"] else ""
    return (
        f"{fetched}{found['width']} x {found['height']}, {sum(found['frames'])} frames in {found['dtype']} on "
        f"{found['device']}: {found['tokens']} tokens, {found['flops'] / 1e12:.3g} TFLOP, {stages} "
        f"({_gb(found['free_bytes'])} free), "
        f"about {found['seconds']:.0f} s without text and decoding; {', '.join(how)}"
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
