"""Guidance at some times only, on stock pipelines: where it does not act, the pass without words is left out.

    with some_guidance(pipe, family, (0.2, 0.9)) as saved:
        pipe(...)
    saved.passes                                                # passes of one film's transformer that were left out

Limited intervals of guidance are those of https://arxiv.org/abs/2404.07724.

Notable choices:

- The pipelines run as they stand. They mix ``without + scale * (with - without)``; a transformer that answers for the
  pass without words what it answered with them makes that the pass with words.
- Pipelines that call twice a step (Wan, HunyuanVideo 1.5) give both calls the same latents: the second is told by that.
  Those that call once with doubled rows (LTX-Video, CogVideoX) get the half with words, twice.
- The time of a step is what the transformer is shown: 1 is noise, 0 the film.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from seedance.engines.families import Family


@dataclass
class Saved:
    """How many passes were left out."""

    passes: int = 0


@contextmanager
def some_guidance(pipe: Any, family: Family, interval: tuple[float, float]) -> Iterator[Saved]:
    """While it lasts, the transformers of a guided pipeline do not run without words at times outside ``interval``."""
    saved, put = Saved(), []
    if interval != (0.0, 1.0):
        for name in ("transformer", "transformer_2"):
            if (model := getattr(pipe, name, None)) is not None:
                put.append((model, model.__dict__.get("forward"), _guard(model, pipe, family.doubled, interval, saved)))
    try:
        yield saved
    finally:
        for model, before, guard in put:
            if model.__dict__.get("forward") is not guard:
                continue  # an offloading hook has put its own there meanwhile
            if before is None:
                del model.forward
            else:
                model.forward = before


def _guard(model: Any, pipe: Any, doubled: bool, interval: tuple[float, float], saved: Saved) -> Any:
    """A transformer's ``forward`` that leaves out what is not wanted, put in place."""
    plain, (low, high) = model.forward, interval
    kept: dict[str, Any] = {}

    def forward(*args: Any, **said: Any) -> Any:
        noisy = said["hidden_states"] if "hidden_states" in said else args[0]
        steps = pipe.scheduler.config.num_train_timesteps
        if low <= float(said["timestep"].max()) / steps <= high:
            return plain(*args, **said)
        if doubled:
            saved.passes += 1
            half = len(noisy) // 2
            words = {key: _last(value, half) for key, value in said.items()}
            found = plain(*(_last(value, half) for value in args), **words)
            return (torch.cat([found[0], found[0]]), *found[1:])
        if kept.get("noisy") is noisy:
            saved.passes += 1
            return kept["found"]
        kept.update(noisy=noisy, found=plain(*args, **said))
        return kept["found"]

    model.forward = forward
    return forward


def _last(value: Any, half: int) -> Any:
    """The second half of what has a row a branch."""
    return value[half:] if isinstance(value, Tensor) and value.ndim and len(value) == 2 * half else value
