"""From noise to film: samplers as pure functions, and guidance as a wrapper of the model.

Every sampler is called as ``sampler(model, x, times, callback)``. ``model(x, t)`` gives the velocity at a scalar
time, ``times`` falls from 1 (noise) to 0 (film), and ``callback`` sees every step.

Notable choices:

- Time on the flow is the only variable: no sigmas, no alphas. All samplers go through :func:`step`, which takes the
  data prediction x0 and moves along the interpolation, adding fresh noise when asked.
- The second-order sampler is the two-step Adams-Bashforth method on the velocity: one network call per step.
  DPM-Solver++(2M) (https://arxiv.org/abs/2211.01095) in flow form was tried first: its variable, log((1 - t) / t), is
  infinite at both ends, it fell short of second order on exact flows (1.8), and its error at 8 to 128 steps was up to
  several times larger there. A change for the better needs such a figure.
- The SDE sampler has the flow's marginals at every noise level (the family of Flow-GRPO,
  https://arxiv.org/abs/2505.05470); each step is Gaussian with a known mean and standard deviation, as alignment
  needs.
- Guidance runs both branches in one batch. Given frames are the model's own business: it never reads their noise, and
  :func:`guided` returns the velocity that leads straight to the given latents, so they end exactly where they were
  given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from seedance import flow
from seedance.conditioning import Conditioning, collate
from seedance.errors import SeedanceError

Model = Callable[[Tensor, Tensor], Tensor]  # (x, scalar time) -> velocity


@dataclass(frozen=True)
class Step:
    """What a callback sees after a step: its number of all, the time reached, the sample there and the film
    predicted."""

    index: int
    steps: int
    time: float
    x: Tensor
    x0: Tensor


Callback = Callable[[Step], None]


class Sampler(Protocol):
    """Any sampler of this module."""

    def __call__(self, model: Model, x: Tensor, times: Tensor, callback: Callback | None = None) -> Tensor: ...


def times(steps: int, shift: float = 1.0) -> Tensor:
    """(steps + 1,) float64 times from 1 to 0, uniform and then shifted towards noise."""
    if steps < 1:
        raise SeedanceError(f"steps is {steps}; a film needs at least 1")
    return flow.shift(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)


def step(x: Tensor, x0: Tensor, t: float, s: float, spread: float = 0.0, fresh: Tensor | None = None) -> Tensor:
    """From time t down to s < t, given the film ``x0`` that the model predicts at (x, t).

    The noise level s is made of what is left of the predicted noise and of ``spread`` <= s of ``fresh`` noise,

        x_s = (1 - s) x0 + sqrt(s^2 - spread^2) eps + spread * fresh,   eps = (x - (1 - t) x0) / t.

    With spread 0 this is Euler's step.
    """
    kept = math.sqrt(max(s * s - spread * spread, 0.0))
    ratio = kept / t
    moved = ratio * x + (1 - s - ratio * (1 - t)) * x0
    return moved if fresh is None or spread == 0 else moved + spread * fresh


def euler(model: Model, x: Tensor, times: Tensor, callback: Callback | None = None) -> Tensor:
    """First-order steps along the flow."""
    for i, (t, s) in enumerate(_pairs(times)):
        x0 = _film(model, x, t)
        x = step(x, x0, t, s)
        _tell(callback, i, times, s, x, x0)
    return x


def multistep(model: Model, x: Tensor, times: Tensor, callback: Callback | None = None) -> Tensor:
    """Two-step Adams-Bashforth with uneven steps: the velocity is extrapolated to the step's middle from the
    last two."""
    before: tuple[float, Tensor] | None = None  # (length, velocity) of the step before
    for i, (t, s) in enumerate(_pairs(times)):
        now = _time(t, x)
        v = model(x, now)
        ahead = v if before is None else v + (t - s) / (2 * before[0]) * (v - before[1])
        x0 = flow.predict_x0(x, v, now)
        x = step(x, flow.predict_x0(x, ahead, now), t, s)
        before = (t - s, v)
        _tell(callback, i, times, s, x, x0)
    return x


def sde(
    model: Model,
    x: Tensor,
    times: Tensor,
    callback: Callback | None = None,
    *,
    noise: Callable[[int, Tensor], Tensor],
    level: float = 0.7,
) -> Tensor:
    """Steps that keep the flow's marginals and add noise; ``noise(i, x)`` gives the fresh noise of step i in the
    shape of x.

    Args:
        level: 0 is :func:`euler`, 1 replaces as much noise as a DDPM step does.
    """
    for i, (t, s) in enumerate(_pairs(times)):
        x0 = _film(model, x, t)
        spread = sde_spread(t, s, level)
        x = step(x, x0, t, s, spread, noise(i, x) if spread > 0 else None)
        _tell(callback, i, times, s, x, x0)
    return x


def sde_spread(t: float, s: float, level: float) -> float:
    """Standard deviation of the fresh noise of an SDE step from t to s.

    ``level`` times that of the ancestral step, s * sqrt(1 - (s (1 - t) / (t (1 - s)))^2): DDIM's eta
    (https://arxiv.org/abs/2010.02502, eq. 16) on the flow's noise-to-signal ratio t / (1 - t).
    """
    if s <= 0:
        return 0.0
    ratio = s * (1 - t) / (t * (1 - s))
    return level * s * math.sqrt(max(1 - ratio * ratio, 0.0))


def sde_log_prob(x: Tensor, reached: Tensor, x0: Tensor, t: float, s: float, level: float) -> Tensor:
    """(B,) mean log density per element of ``reached`` under the SDE step from (x, t) to s with film prediction
    ``x0``."""
    spread = sde_spread(t, s, level)
    if spread <= 0:
        raise SeedanceError(
            f"the step from {t} to {s} at level {level} is deterministic and has no density; leave out the last step"
        )
    error = (reached - step(x, x0, t, s, spread)).float() / spread
    return (-0.5 * error.square() - math.log(spread) - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)


def _pairs(times: Tensor) -> list[tuple[float, float]]:
    values = [float(t) for t in times]
    if len(values) < 2 or any(s >= t for t, s in zip(values, values[1:], strict=False)):
        raise SeedanceError(f"times must fall strictly from noise to film, got {values}")
    return list(zip(values, values[1:], strict=False))


def _film(model: Model, x: Tensor, t: float) -> Tensor:
    time = _time(t, x)
    return flow.predict_x0(x, model(x, time), time)


def _time(t: float, x: Tensor) -> Tensor:
    return torch.tensor(t, dtype=x.dtype if x.dtype == torch.float64 else torch.float32, device=x.device)


def _tell(callback: Callback | None, index: int, times: Tensor, s: float, x: Tensor, x0: Tensor) -> None:
    if callback is not None:
        callback(Step(index + 1, len(times) - 1, s, x, x0))


# ----------------------------------------------------------------------------------------------------------- guidance


class Denoiser(Protocol):
    """The part of :class:`seedance.dit.VideoDiT` that sampling needs."""

    def __call__(self, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor: ...


def guided(
    model: Denoiser,
    cond: Conditioning,
    *,
    scale: float = 1.0,
    negative: Conditioning | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
    rescale: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Model:
    """The velocity of ``model`` under ``cond`` with classifier-free guidance, for any sampler.

    Args:
        scale: v = v_off + scale (v_on - v_off); 1 runs one branch only.
        negative: what guidance leads away from; None hides the text.
        interval: times at which guidance acts (https://arxiv.org/abs/2404.07724); outside, one branch runs.
        rescale: 0..1, how far the guided film prediction is given the standard deviation of the unguided one
            (https://arxiv.org/abs/2305.08891, section 3.4).
        dtype: dtype of the model's computation; the sample itself keeps its own.
    """
    both = collate([cond, cond.drop_text() if negative is None else negative]) if scale != 1 else cond
    films = len(cond)
    given = (cond.mask > 0)[:, None, :, None, None]  # (B, 1, t, 1, 1)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        inside = scale != 1 and interval[0] <= float(t) <= interval[1]
        noisy = x if dtype is None else x.to(dtype)
        if inside:
            on, off = model(torch.cat([noisy, noisy]), t, both).to(x.dtype).split(films)
            v = off + scale * (on - off)
            if rescale > 0:
                v = _rescaled(x, v, on, t, rescale)
        else:
            v = model(noisy, t, cond).to(x.dtype)
        # On the straight line to the given latents: x0 = x - t v.
        return torch.where(given, (x - cond.clean.to(x)) / t, v)

    return velocity


def _rescaled(x: Tensor, v: Tensor, on: Tensor, t: Tensor, rescale: float) -> Tensor:
    film, plain = flow.predict_x0(x, v, t), flow.predict_x0(x, on, t)
    dims = tuple(range(1, x.ndim))
    matched = film * (plain.std(dims, keepdim=True) / film.std(dims, keepdim=True).clamp(min=1e-6))
    return (x - (rescale * matched + (1 - rescale) * film)) / t
