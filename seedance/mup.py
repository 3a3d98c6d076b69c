"""Maximal update parametrisation: what each weight's start, learning rate and decay are, at any width.

Notable choices:

- One table (:data:`ROLES`) names the role of every parameter: *input* (finite -> wide: embeddings, tables, biases,
  gains), *hidden* (wide -> wide), *output* (wide -> finite: the readouts). The rules per role are those of "Scaling
  Diffusion Transformers Efficiently via muP" (https://arxiv.org/abs/2505.15270, table 1) with Adam: init std
  1/sqrt(fan_in); learning rate / width multiplier for hidden only; readout starts at zero and its input is divided by
  the width multiplier.
- The base width is nano's, 256, so nano itself is trained with plain rates and everything tuned on it carries over.
- Under Muon a hidden matrix moves by lr * sqrt(width) in spectral norm when its steps have AdamW's size, so its rate
  falls with the square root of the multiplier only (arXiv 2502.16982, section 2.2, put beside table 1 above).
- Beyond the paper: Adam's eps goes with the gradients' size (1 / multiplier for hidden), and decay keeps lr * decay
  constant.
- Head size stays fixed and heads grow, so attention keeps 1/sqrt(d).
- Projections back into the residual stream start at zero and their gates at one. Zero tells a coordinate check
  nothing before the second update, so :mod:`seedance.coordinates` reads later ones.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedance.errors import SeedanceError

Role = Literal["input", "hidden", "output"]

# (ending of the parameter's name, role, start). First match wins. "fan_in" draws N(0, 1/fan_in).
ROLES: tuple[tuple[str, Role, str], ...] = (
    ("bias", "input", "zero"),
    ("qk_gain", "input", "one"),
    ("table", "input", "gates"),
    ("visual_in.weight", "input", "fan_in"),
    ("text_in.weight", "input", "fan_in"),
    ("text_pool.weight", "input", "fan_in"),
    ("time.inner.weight", "input", "fan_in"),
    ("time.outer.weight", "hidden", "fan_in"),
    ("shared_mod.weight", "hidden", "zero"),
    ("final_mod.weight", "hidden", "zero"),
    ("qkv.weight", "hidden", "fan_in"),
    ("mlp_in.weight", "hidden", "fan_in"),
    ("attn_out.weight", "hidden", "zero"),
    ("mlp_out.weight", "hidden", "zero"),
    ("aux.inner.weight", "hidden", "fan_in"),
    ("readout.weight", "output", "zero"),
)


class HasWidth(Protocol):
    """A model configuration that knows its width and the width its hyperparameters were tuned at."""

    dim: int
    base_dim: int


class Readout(nn.Linear):
    """Wide -> finite map in the dtype of its input, which it divides by the width multiplier."""

    def __init__(self, wide: int, out: int, multiplier: float) -> None:
        super().__init__(wide, out)
        self.multiplier = multiplier

    def forward(self, input: Tensor) -> Tensor:
        scaled = input if self.multiplier == 1 else input / self.multiplier
        return F.linear(scaled, self.weight.to(input.dtype), self.bias.to(input.dtype))


def role_of(name: str) -> tuple[Role, str]:
    """Role and start of the parameter called ``name``."""
    for ending, role, start in ROLES:
        if name.endswith(ending):
            return role, start
    raise SeedanceError(f"parameter {name} has no role: add it to seedance.mup.ROLES")


@torch.no_grad()
def init_weights(model: nn.Module) -> None:
    """Starts every parameter as the table says."""
    for name, parameter in model.named_parameters():
        start = role_of(name)[1]
        if start == "fan_in":
            parameter.normal_(0.0, parameter.shape[1] ** -0.5)
        elif start == "one":
            parameter.fill_(1.0)
        elif start == "gates":  # scale, shift, gate, twice
            parameter.zero_()
            parameter[2::3] = 1.0
        else:
            parameter.zero_()


def param_groups(
    model: nn.Module, lr: float, *, weight_decay: float = 0.0, eps: float = 1e-8, multiplier: float | None = None,
    optimizer: str = "adamw",
) -> list[dict[str, Any]]:  # fmt: skip
    """Groups of a model with a ``config`` of :class:`HasWidth`: hidden matrices at lr / m, eps / m and decay * m;
    vectors undecayed. For "muon" the hidden matrices are marked ``"hidden"`` and have lr / sqrt(m), decay * sqrt(m).

    ``multiplier`` is width / base width when the model has no config. Schedules must multiply each group's own
    ``lr``.
    """
    if multiplier is None:
        config: HasWidth = model.config  # type: ignore[assignment]
        multiplier = config.dim / config.base_dim
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((role_of(name)[0], name.endswith("weight")), []).append(parameter)
    made = []
    for (role, matrix), parameters in groups.items():
        muon = optimizer == "muon" and role == "hidden" and matrix
        m = multiplier if role == "hidden" else 1.0
        if muon:
            m = m**0.5
        made.append(
            {
                "params": parameters, "lr": lr / m, "eps": eps / m, "weight_decay": weight_decay * m if matrix else 0.0,
                "role": role, **({"hidden": True} if muon else {}),
            }
        )  # fmt: skip
    return made
