"""One film of an open checkpoint on several devices: guidance branches apart, then the sequence.

    torchrun --nproc-per-node 4 make.py

    mesh = init_device_mesh("cuda", (2, 2), mesh_dim_names=("guidance", "sequence"))
    pipeline.spread(mesh)                                     # as `parallel` does with our own model

Notable choices:

- Every process runs the whole stock pipeline on the same noise; only passes of the transformer are shared, and all end
  with the same film. Callbacks run in every process and have to end it in all of them or in none.
- Some pipelines ask for both branches of guidance in one batch (LTX-Video, CogVideoX): its rows are shared out. Others
  ask for one after the other (Wan, HunyuanVideo 1.5). Of two processes, each then computes the branch that is its own
  and gives an empty tensor for the other, which is filled in with the second call. Pipelines put the two together only
  when they have both, and a step that is taken before is an error.
- The sequence is shared out by diffusers' own Ulysses, where it has a plan for the transformer: Wan, and LTX-Video up
  to 0.9.1, before its pipeline added tokens of pictures. Its plan for LTX-Video shares out the text too, whose mask
  then has more heads than the queries; here texts stay whole.
- diffusers names a mesh by the number of accelerators, of which a CPU has none. The mesh is given to it ready made, so
  what tests run with gloo is what devices run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from seedance.errors import SeedanceError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from seedance.engines.folder import Checkpoint

# Pipelines that add the tokens of pictures to those of the film, and give all of them one time or each its own.
_UNLIKE = ("LTXConditionPipeline",)


class Spread:
    """What a mesh does to the transformers of one pipeline.

    Args:
        mesh: over all processes, with a dimension "guidance" of two processes, a dimension "sequence", or both.
        checkpoint: whose transformers it is.

    Raises:
        SeedanceError: the mesh has other dimensions, or diffusers or the heads do not allow what it asks for.
    """

    def __init__(self, mesh: DeviceMesh, checkpoint: Checkpoint) -> None:
        from torch.distributed.device_mesh import DeviceMesh

        from seedance.engines.folder import diffusers

        names = mesh.mesh_dim_names or ()
        if not names or not set(names) <= {"guidance", "sequence"}:
            raise SeedanceError(
                f"mesh: has dimensions {', '.join(names) or 'without names'}; name them guidance, sequence"
            )
        branches, parts = (mesh.size(names.index(name)) if name in names else 1 for name in ("guidance", "sequence"))
        if branches > 2:
            raise SeedanceError(f"mesh: guidance has two branches for {branches} processes; give it 2, sequence more")
        family, kind = checkpoint.family, checkpoint.index["_class_name"]
        plan = getattr(diffusers(), family.parts["transformer"])._cp_plan
        if parts > 1 and (plan is None or kind in _UNLIKE):
            raise SeedanceError(f"mesh: no sequence of {kind} is shared out; name its one dimension guidance")
        part = "transformer" if "transformer" in checkpoint.parts else "transformer_2"
        heads = checkpoint.config(part)["num_attention_heads"]
        if heads % parts:
            raise SeedanceError(f"sequence: {heads} heads do not divide among {parts} processes; take fewer")
        self.parts = parts
        self._group = mesh.get_group("guidance") if branches == 2 else None
        self._branches: list[_Branches] = []
        self._context = None
        if parts > 1:
            ranks = mesh.mesh if "guidance" in names else mesh.mesh[None]
            if names == ("sequence", "guidance"):
                ranks = ranks.T
            named = ("guidance", "ring", "ulysses")
            mesh = DeviceMesh(mesh.device_type, ranks.reshape(branches, 1, parts), mesh_dim_names=named)
            self._context = diffusers().ContextParallelConfig(ulysses_degree=parts, mesh=mesh)

    def put_on(self, model: Any) -> None:
        """Shares out the passes of a transformer, in place; once it has been fitted out otherwise."""
        if self._context is not None:
            _share_sequence(model, self._context)
        if self._group is not None:
            model.forward = _Branches(model.forward, self._group, model.config.out_channels)
            self._branches.append(model.forward)

    def begin(self, tokens: int, guided: bool) -> None:
        """To be called before every shot: of how many tokens it is, and whether it is drawn with guidance.

        Raises SeedanceError for tokens that do not divide: diffusers' way for unlike parts needs more than gloo has.
        """
        for branches in self._branches:
            branches.guided, branches.open = guided, None
        if tokens % self.parts:
            raise SeedanceError(
                f"sequence: {tokens} tokens do not divide among {self.parts} processes; choose other sizes, or "
                "fewer processes"
            )

    def check_step(self, name: str) -> None:
        """Raises SeedanceError if a step is about to be taken with one branch still open."""
        if any(branches.open is not None for branches in self._branches):
            raise SeedanceError(
                f"mesh: {name} left guidance out at a step, which two processes cannot share; leave out the dimension "
                "guidance"
            )


class _Branches:
    """The forward of a transformer whose two branches of guidance are computed by the two processes of a group."""

    def __init__(self, forward: Callable[..., Any], group: dist.ProcessGroup, channels: int) -> None:
        functools.update_wrapper(self, forward)  # its signature is looked at
        self.forward, self.group, self.channels = forward, group, channels
        self.rank = dist.get_rank(group)
        self.guided = True
        self.open: Tensor | None = None  # the first branch, until the second is asked for

    def __call__(self, *args: Any, **said: Any) -> tuple[Tensor]:
        states: Tensor = said["hidden_states"] if "hidden_states" in said else args[0]
        if not self.guided:
            found: Tensor = self.forward(*args, **said)[0]
            return (found,)
        return (self._rows(*args, **said) if len(states) == 2 else self._turn(states, *args, **said),)

    def _rows(self, *args: Any, **said: Any) -> Tensor:
        """Both branches in one batch: a row each."""

        def mine(value: Any) -> Any:
            batch = isinstance(value, Tensor) and value.ndim > 0 and len(value) == 2
            return value[self.rank : self.rank + 1] if batch else value

        own = self.forward(*map(mine, args), **{key: mine(value) for key, value in said.items()})[0].contiguous()
        rows = [torch.empty_like(own) for _ in range(2)]
        dist.all_gather(rows, own, group=self.group)
        return torch.cat(rows)

    def _turn(self, states: Tensor, *args: Any, **said: Any) -> Tensor:
        """One branch a call: the first process computes the first one, the second the second."""
        number = 0 if self.open is None else 1
        if self.rank == number:
            branch: Tensor = self.forward(*args, **said)[0].contiguous()
        else:
            branch = states.new_empty(len(states), self.channels, *states.shape[2:])
        if self.open is None:
            self.open = branch
            return branch
        first, self.open = self.open, None
        if first.shape != branch.shape or first.dtype != branch.dtype:
            raise SeedanceError(
                f"mesh: the transformer gives {tuple(branch.shape)} of {branch.dtype}, not what was left open for it; "
                "leave out the dimension guidance"
            )
        dist.broadcast(first, group_src=0, group=self.group)
        dist.broadcast(branch, group_src=1, group=self.group)
        return branch


def _share_sequence(model: Any, context: Any) -> None:
    """diffusers' Ulysses on a transformer."""
    from diffusers import ParallelConfig
    from diffusers.models._modeling_parallel import ContextParallelInput

    def with_mesh(config: Any) -> Any:
        model._parallel_config = ParallelConfig(context_parallel_config=config)
        model._parallel_config.setup(dist.get_rank(), dist.get_world_size(), model.device, mesh=config.mesh)
        return model._parallel_config

    plan = dict(model._cp_plan)
    ltx = type(model).__name__ == "LTXVideoTransformer3DModel"
    if ltx:  # with pictures it is given a time for every token
        tokens = {"hidden_states": 3, "timestep": 2}
        plan[""] = {key: ContextParallelInput(split_dim=1, expected_dims=dims) for key, dims in tokens.items()}
    model._resolve_parallel_config = with_mesh
    try:
        model.enable_parallelism(config=context, cp_plan=plan)
    except ValueError as error:
        raise SeedanceError(f"sequence: {str(error).splitlines()[0]}; leave out attention_backend") from error
    finally:
        del model._resolve_parallel_config
    if ltx:
        for block in model.transformer_blocks:
            block.attn2.processor._parallel_config = None
