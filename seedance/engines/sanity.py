"""Numbers that tell silent noise from a film, looked at while a checkpoint draws.

A wrong file, a library that left a table empty, or a number format that overflows give no error: they give grey, black
or noise after minutes. Each check here costs microseconds and says what is wrong with which way out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seedance.errors import SeedanceError

LEAST_STD, MOST_STD = 1e-3, 30.0  # of normalised latents and first steps; trained, mean is about 0, spread about 1
_FORMATS = "another number format may help: --dtype bf16, or fp32"


def check_words(words: Mapping[str, Any], name: str) -> None:
    """SeedanceError if states of a text are not numbers or all alike: then the prompt says nothing."""
    for key, states in words.items():
        if not isinstance(states, Tensor) or "mask" in key or key.startswith("negative"):
            continue
        if not torch.isfinite(states).all():
            raise SeedanceError(f"model: the text states of {name} ({key}) are not numbers; {_FORMATS}")
        if key == "prompt_embeds" and float(states.float().abs().max()) == 0:
            raise SeedanceError(
                f"model: the text states of {name} are all zero, so every prompt would be the same film; its text "
                "encoder's weights are broken: fetch the model again"
            )
        if key == "prompt_embeds" and float(states.float().std(dim=-2).max()) == 0:
            raise SeedanceError(
                f"model: the text states of {name} are the same for every word; its text encoder's weights are "
                "broken: fetch the model again"
            )


def check_step(prediction: Any, name: str) -> None:
    """SeedanceError if a transformer's first answer is not numbers, or of a size that no film can come of: velocities,
    noise and clean latents all have a spread of about 1, and an answer near 0 would leave the noise as it is."""
    if not isinstance(prediction, Tensor):
        return
    _check_range(
        prediction.float(), f"the predictions of the first step of {name}",
        "so noise would come out: the transformer's weights are broken, another model's or scaled (fp8 files), or the "
        "guidance is far too strong",
    )  # fmt: skip


def _check_range(values: Tensor, what: str, then: str) -> None:
    """SeedanceError if values that should be spread by about 1 around 0 are not numbers, or far from that."""
    if not torch.isfinite(values).all():
        raise SeedanceError(f"model: {what} are not numbers; {_FORMATS}")
    spread, middle = float(values.std()), float(values.mean())
    if not LEAST_STD <= spread <= MOST_STD or abs(middle) > MOST_STD:
        raise SeedanceError(
            f"model: {what} lie around {middle:.3g} with a spread of {spread:.3g}, where about 0 and 1 are expected, "
            f"{then}"
        )


def normalised(latents: Tensor, vae: Any) -> Tensor:
    """Latents (B, C, t, h, w) as a VAE takes them -> as its transformer sees them, which is also what tiny previewing
    decoders take: by mean and deviation of each channel where the VAE has them, by one factor elsewhere."""
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    kept = getattr(vae, "_buffers", {})
    if mean is None and "latents_mean" in kept:  # LTX keeps them as tensors
        mean, std = kept["latents_mean"], kept["latents_std"]
    factor = float(config.get("scaling_factor") or 1.0)
    if mean is None or std is None:
        return latents * factor
    shape = (1, -1, 1, 1, 1)
    center = torch.as_tensor(mean, device=latents.device, dtype=latents.dtype).view(shape)
    width = torch.as_tensor(std, device=latents.device, dtype=latents.dtype).view(shape)
    return (latents - center) / width * factor


def check_latents(latents: Tensor, vae: Any, name: str) -> None:
    """SeedanceError if a shot's last latents, as the VAE takes them, are not numbers or far off the range."""
    _check_range(
        normalised(latents.float(), vae), f"the latents of {name}",
        "which decodes to noise or to one grey: its parts do not belong together, or the guidance is far too strong",
    )  # fmt: skip
