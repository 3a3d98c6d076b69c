"""First-block cache: most of a pass is left out while little changes from step to step.

    model = FirstBlockCache(transformer, films=2, threshold=0.15)     # a `samplers.Denoiser`, made anew for every draw

The idea is ParaAttention's (https://github.com/chengzeyi/ParaAttention, "First Block Cache"), after TeaCache
(https://arxiv.org/abs/2411.19108): the first layer runs at every step. While what it adds to its tokens differs little
from what it added at the last whole pass, all further layers are taken to add what they added then.

Notable choices:

- Every film decides for itself, over all its guidance branches together. So a film drawn in a batch is the film drawn
  alone, and its two branches are never of different ages, which guidance would amplify.
- What the further layers add is carried on along the line through the last two whole passes, by the time of the flow,
  rather than held (``order=0``): with as many passes left out, the film is nearer the exact one (a test holds this).
- Films of a batch that need a whole pass run it in a batch of their own.
- The cache belongs to one draw. It keeps three activations per row: (rows, frames, cells, width) each.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from seedance.acceleration.options import DEFAULT_CACHE
from seedance.conditioning import Conditioning
from seedance.dit import Context, VideoDiT
from seedance.errors import SeedanceError

MOST = 3  # steps in a row without a whole pass


@dataclass
class _Kept:
    """Of the last whole pass of each row: what its first layer added, what the others did, and how that changed."""

    change: Tensor  # (R, t, s, D)
    rest: Tensor  # (R, t, s, D)
    slope: Tensor | None  # (R, t, s, D), by time
    time: Tensor  # (R, 1, 1, 1)
    age: Tensor  # (R,) steps since


class FirstBlockCache:
    """A transformer that skips its further layers where the first one says that little has changed.

    Args:
        model: the transformer; it stays as it is.
        films: how many films a batch holds; its rows are their branches, film after film within each branch.
        threshold: largest mean change of what the first layer adds, as a share of its mean size, that is passed over.
        order: 1 carries what the others add along a line, 0 holds it.
        most: whole passes come at least every ``most + 1`` steps.

    Attributes:
        passes, skipped: rows that ran, and rows of these whose further layers were left out.
    """

    def __init__(
        self, model: VideoDiT, films: int, threshold: float = DEFAULT_CACHE, *, order: int = 1, most: int = MOST
    ) -> None:
        if not 0 < threshold < 1:
            raise SeedanceError(f"cache: threshold {threshold} is not between 0 and 1; {DEFAULT_CACHE} is the default")
        self.model, self.films, self.threshold, self.order, self.most = model, films, threshold, order, most
        self.passes = self.skipped = 0
        self._kept: dict[int, _Kept] = {}  # by number of rows: outside guidance's interval there are fewer

    def __call__(self, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        """Velocity (R, C, t, h, w), as the transformer's."""
        model = self.model
        rows = len(noisy)
        before, text, embedded, ctx = model.begin(noisy, timesteps, cond)
        x, text = model.layer(0, before, text, ctx)
        change = x - before  # (R, t, s, D)
        time = timesteps.reshape(-1, 1).expand(rows, -1).float().mean(1).view(rows, 1, 1, 1)
        kept = self._kept.get(rows)
        whole = torch.arange(rows, device=x.device) if kept is None else self._changed(change, kept)
        self.passes, self.skipped = self.passes + rows, self.skipped + rows - len(whole)
        if kept is None:
            rest = self._rest(x, text, ctx)
            self._kept[rows] = _Kept(change, rest, None, time, torch.zeros(rows, dtype=torch.long, device=x.device))
            return model.finish(x + rest, embedded, ctx.grid)
        out = kept.rest.clone()
        if self.order and kept.slope is not None:
            out += kept.slope * (time - kept.time).to(out)
        kept.age += 1
        if len(whole):
            rest = self._rest(x[whole], text[whole], _rows(ctx, whole))
            slope = torch.zeros_like(kept.rest) if kept.slope is None else kept.slope
            slope[whole] = (rest - kept.rest[whole]) / (time - kept.time)[whole].to(rest)
            out[whole] = rest
            kept.rest[whole], kept.change[whole], kept.slope = rest, change[whole], slope
            kept.time, kept.age = kept.time.clone(), kept.age
            kept.time[whole], kept.age[whole] = time[whole], 0
        return model.finish(x + out, embedded, ctx.grid)

    def _changed(self, change: Tensor, kept: _Kept) -> Tensor:
        """Rows that need a whole pass: all branches of the films in which one has changed too much."""
        dims = (1, 2, 3)
        by = (change - kept.change).abs().float().mean(dims) / kept.change.abs().float().mean(dims).clamp(min=1e-12)
        stale = (by >= self.threshold) | (kept.age >= self.most)
        films = stale.view(-1, self.films).any(0)
        return films.repeat(len(change) // self.films).nonzero().flatten()

    def _rest(self, x: Tensor, text: Tensor, ctx: Context) -> Tensor:
        """What all layers after the first add to the tokens."""
        start = x
        for index in range(1, len(self.model.layers)):
            x, text = self.model.layer(index, x, text, ctx)
        return x - start


def _rows(ctx: Context, rows: Tensor) -> Context:
    """The context of some rows of a batch."""
    if len(rows) == len(ctx.visual_mod):
        return ctx
    found: dict[str, Any] = {}
    for field in fields(ctx):
        value = getattr(ctx, field.name)
        if isinstance(value, Tensor):
            found[field.name] = value[rows]
        elif isinstance(value, tuple) and isinstance(value[0], Tensor):
            found[field.name] = tuple(part[rows] for part in value)
    return replace(ctx, **found)
