"""The optimizer, its schedule and the moving average of weights.

Notable choices:
- AdamW with betas (0.9, 0.95) and fp32 masters; parameters of one dimension get no weight decay.
- Muon (orthogonalised momentum, https://kellerjordan.github.io/posts/muon/) for the matrices inside a network where a
  run asks for it, AdamW for all else; its steps are scaled to AdamW's size (arXiv 2502.16982), so one learning rate
  serves both.
- A model that follows muP hands over its own groups, each with `lr_scale`; others are one group.
- Warm-up, stable, decay (arXiv 2404.06395): the decay starts when the last share of the run begins, whether the run is
  counted in steps or by the clock, so a run can be ended at any time and still decays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from shots.errors import ShotsError
from shots.runtime.shard import placed


def parameter_groups(module: nn.Module, weight_decay: float, inside: nn.Module | None = None) -> list[dict[str, Any]]:
    """Matrices with weight decay, vectors and scalars without; the linear maps of `inside` are a group marked
    ``"hidden"``, which Muon takes."""
    linear = [m.weight for m in inside.modules() if isinstance(m, nn.Linear)] if inside is not None else []
    hidden = {id(weight) for weight in linear if weight.requires_grad}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1 and id(p) not in hidden], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if hidden:
        groups.append(
            {"params": [p for p in trained if id(p) in hidden], "weight_decay": weight_decay, "hidden": True}
        )
    return groups


def adamw(
    groups: Iterable[dict[str, Any]], learning_rate: float, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.AdamW:
    """AdamW over `groups`; a group's `lr_scale` (default 1) multiplies the learning rate at every step."""
    return torch.optim.AdamW(_prepared(groups, learning_rate), lr=learning_rate, betas=betas, fused=True)


def _prepared(groups: Iterable[dict[str, Any]], learning_rate: float) -> list[dict[str, Any]]:
    return [{"lr_scale": 1.0, **group, "lr": learning_rate * group.get("lr_scale", 1.0)} for group in groups]


class MuonAndAdamW:
    """Muon over the groups marked ``"hidden"`` (see `parameter_groups`), AdamW over the others, as one optimizer.

    A convolution's kernel (out, in, ...) is taken as the matrix (out, in ...). Raises ShotsError when no group is
    marked.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], learning_rate: float, betas: tuple[float, float] = (0.9, 0.95)
    ) -> None:
        groups = list(groups)
        hidden = [group for group in groups if group.get("hidden")]
        if not hidden:
            raise ShotsError("loop.optimizer: muon wants hidden matrices, which this task does not name; use adamw")
        others = [group for group in groups if not group.get("hidden")]
        self._kernels: list[tuple[Tensor, Tensor]] = []
        hidden = [{**group, "params": [self._matrix(p) for p in group["params"]]} for group in hidden]
        made = torch.optim.Muon(_prepared(hidden, learning_rate), lr=learning_rate, adjust_lr_fn="match_rms_adamw")
        self._parts: tuple[torch.optim.Optimizer, ...] = (adamw(others, learning_rate, betas), made)

    def _matrix(self, parameter: Tensor) -> Tensor:
        """The parameter, or the matrix that shares a kernel's memory."""
        if parameter.ndim == 2:
            return parameter
        matrix = parameter.detach().view(len(parameter), -1)
        self._kernels.append((parameter, matrix))
        return matrix

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
        return [group for part in self._parts for group in part.param_groups]

    def step(self) -> None:
        """One step of both."""
        for kernel, matrix in self._kernels:
            matrix.grad = None if kernel.grad is None else kernel.grad.reshape(matrix.shape)
        for part in self._parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none)
        for kernel, _ in self._kernels:
            kernel.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take states saved by `state_dict`."""
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)


Optimizer = torch.optim.Optimizer | MuonAndAdamW
OPTIMIZERS: dict[str, Callable[[Iterable[dict[str, Any]], float], Optimizer]] = {"adamw": adamw, "muon": MuonAndAdamW}


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Give every group the rate times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


def warmup_stable_decay(step: int, progress: float, warmup_steps: int, decay: float, floor: float) -> float:
    """The factor on the learning rate at `step` (from 0), `progress` (0 to 1) of the run done.

    Linear from 0 over `warmup_steps`; 1; then linear to `floor` over the last `decay` share of the run.
    """
    factor = min(1.0, (step + 1) / max(1, warmup_steps))
    if decay > 0 and progress > 1 - decay:
        factor = min(factor, floor + (1 - floor) * max(0.0, 1 - progress) / decay)
    return factor


class MovingAverage:
    """Exponential moving average of a module's parameters, kept in fp32; buffers are taken as they are."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: tensor.detach().clone().float() for name, tensor in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module's weights after optimizer step `step` (from 0); early steps move faster."""
        if not self.shadow:  # of an empty module, where nothing is to be averaged
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        live = [parameter.detach().float() for _, parameter in module.named_parameters()]
        torch._foreach_lerp_(list(self.shadow.values()), live, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's parameters with the average."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.shadow[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return self.shadow

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take averages saved by `state_dict`."""
        for name, tensor in self.shadow.items():
            tensor.copy_(placed(state[name], tensor))
