"""Coordinate check of the DiT: do activations keep their size as the model grows wider, update after update?

Notable choices (after "Tensor Programs V", https://arxiv.org/abs/2203.03466, appendix D, and
https://arxiv.org/abs/2505.15270):

- A few steps of AdamW without decay, or of Muon, on one toy batch at a rate above the useful range; then the slope of
  log mean |activation| against log width, per place, averaged over seeds. Right muP gives slopes near 0 everywhere.
- The readout and the residual projections start at zero, so updates 2 to 5 are read: before the first update zero
  proves nothing.
- Two faults can be planted, to show that the check would see them: they show up in different places (the last layer,
  the output).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from seedance import flow, mup
from seedance.conditioning import Conditioning, collate
from seedance.dit import DiTConfig, VideoDiT
from shots.runtime.optim import OPTIMIZERS

Fault = Literal["hidden_lr", "readout"]


@dataclass(frozen=True)
class Coordinates:
    """Mean |activation| per place (width -> size) and its log-log slope over width."""

    sizes: dict[str, dict[int, float]]
    slopes: dict[str, float]

    @property
    def worst(self) -> float:
        """Largest |slope|."""
        return max(abs(slope) for slope in self.slopes.values())


def coordinate_check(
    widths: Sequence[int] = (64, 128, 256, 512),
    *,
    seeds: Sequence[int] = (0, 1, 2),
    updates: int = 5,
    lr: float = 2**-8,
    fault: Fault | None = None,
    optimizer: str = "adamw",
) -> Coordinates:
    """Trains toy DiTs of ``widths`` for a few steps and fits the slopes.

    Args:
        lr: rate at the base width 256.
        fault: "hidden_lr" leaves the hidden learning rate unscaled, "readout" does not divide the readout's input.
        optimizer: "adamw" (without decay) or "muon".
    """
    totals: dict[str, dict[int, float]] = {}
    for width in widths:
        for seed in seeds:
            for place, size in _sizes(width, seed, updates, lr, fault, optimizer).items():
                places = totals.setdefault(place, {})
                places[width] = places.get(width, 0.0) + size / len(seeds)
    return Coordinates(totals, {place: _slope(sizes) for place, sizes in totals.items()})


def _sizes(width: int, seed: int, updates: int, lr: float, fault: Fault | None, optimizer: str) -> dict[str, float]:
    """Mean |activation| per place over updates 2 and later."""
    torch.manual_seed(seed)
    config = DiTConfig(
        channels=8,
        dim=width,
        head_dim=16,
        spatial_layers=2,
        temporal_layers=2,
        dual_layers=1,
        text_dim=24,
        aux_labels={"label": 4},
    )
    model = VideoDiT(config)
    groups = mup.param_groups(model, lr, optimizer=optimizer)
    if fault == "hidden_lr":
        for group in groups:
            group["lr"] = lr
    for module in model.modules():
        if fault == "readout" and isinstance(module, mup.Readout):
            module.multiplier = 1.0
    stepper = OPTIMIZERS[optimizer]([{**group, "lr_scale": group["lr"] / lr} for group in groups], lr)

    seen: dict[str, list[float]] = {}
    reading = False

    def read(place: str, tensor: Tensor) -> None:
        if reading:
            seen.setdefault(place, []).append(float(tensor.detach().abs().mean()))

    def watch(place: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _module, _inputs, output: read(place, output))

    watch("time", model.time)
    watch("modulation", model.shared_mod)
    watch("aux", model.aux.readout if model.aux is not None else model.readout)
    watch("output", model.readout)
    for index, layer in enumerate(model.layers):
        for part in ("qkv", "attn_out", "mlp_out"):
            watch(f"layer {index} {part}", getattr(layer.visual, part))

    # The batch depends on the seed, never on the width.
    generator = torch.Generator().manual_seed(seed)
    films = collate(
        [
            Conditioning.text_to_video([torch.randn(5, 24, generator=generator)], [2], (3, 3), fps=12.0, channels=8)
            for _ in range(8)
        ]
    )
    x0, eps = (torch.randn(8, 8, 2, 3, 3, generator=generator) for _ in range(2))
    t = flow.sample_times(8, 2, generator=generator)
    labels = torch.randint(4, (8, 2, 3, 3), generator=generator)
    for update in range(updates + 1):
        reading = update >= 2
        v, logits = model(flow.interpolate(x0, eps, t), t, films, labels_out=True)
        auxiliary = nn.functional.cross_entropy(logits["label"].flatten(0, -2), labels.flatten())
        stepper.zero_grad()
        (flow.flow_loss(v, x0, eps) + auxiliary).backward()
        stepper.step()
    return {place: sum(sizes) / len(sizes) for place, sizes in seen.items()}


def _slope(sizes: dict[int, float]) -> float:
    x = torch.tensor([math.log(width) for width in sizes], dtype=torch.float64)
    y = torch.tensor([math.log(max(size, 1e-30)) for size in sizes.values()], dtype=torch.float64)
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum())
