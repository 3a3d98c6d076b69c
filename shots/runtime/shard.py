"""Weights, gradients and optimizer state spread over processes (FSDP2, `torch.distributed.fsdp.fully_shard`).

    shard(objective, units=blocks, device=device)     # before the optimizer takes the parameters
    state = gathered(optimizer.state_dict())          # on every process: plain tensors, as one process would have
    spread(optimizer)                                 # after load_state_dict of such a state

Notable choices:

- A checkpoint holds whole tensors, the same as one process writes, so a run may go on with another number of processes.
- Every process must ask for `gathered`, since each holds a part; only one need write it down.
- Weights stay in float32 and autocast computes, as with one process: sharding changes no number but the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from shots.errors import ShotsError


def shard(module: nn.Module, units: Iterable[nn.Module], device: torch.device) -> None:
    """Spreads the parameters of `module` over all processes, in place; each of `units` is gathered when it runs.

    torch.distributed must be initialised. Raises ShotsError where parameters are already spread.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if any(_spread(parameter) for parameter in module.parameters()):
        raise ShotsError("shard: the module is spread already")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for unit in units:
        fully_shard(unit, mesh=mesh)
    fully_shard(module, mesh=mesh)


def gathered(value: Any) -> Any:
    """The same nested dicts and lists with whole tensors on the CPU for spread ones. All processes must call."""
    if isinstance(value, dict):
        return {key: gathered(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(gathered(item) for item in value)
    return value.full_tensor().cpu() if _spread(value) else value


def placed(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor spread as `like` is, or as it is where `like` is not spread."""
    if not _spread(like) or _spread(whole):
        return whole
    from torch.distributed.tensor import distribute_tensor

    spread_like: Any = like
    return distribute_tensor(whole.to(like.device), spread_like.device_mesh, spread_like.placements)


def spread(optimizer: Any) -> None:
    """Spreads an optimizer's state as its parameters are, after it was loaded from whole tensors."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = placed(value, parameter)


def load_whole(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads whole tensors into a module whose parameters may be spread. Raises ShotsError where names differ."""
    live = dict(module.state_dict())
    if set(live) != set(state):
        odd = sorted(set(live) ^ set(state))
        raise ShotsError(f"checkpoint: it fits another model ({odd[0]}, {len(odd)} names in all differ)")
    module.load_state_dict({name: placed(state[name], tensor) for name, tensor in live.items()})


def _spread(value: Any) -> bool:
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")
