"""Rectified flow between a film's latents and noise (Seedance 1.0 training objective;
https://arxiv.org/abs/2403.03206).

x_t = (1 - t) x0 + t eps,  v = eps - x0;  t = 0 is the film, t = 1 is noise.

Notable choices:

- Times are logit-normal, then shifted towards noise by ``t' = s t / (1 + (s - 1) t)`` (APT eq. 7, SD3 eq. 23). s
  grows with the square root of the number of tokens, length included: Seedance says "higher resolution and longer
  duration -> more noise" without the formula.
- Times are per latent frame, (B, t). One time per film is the default; one per shot or per frame are options.
- Noise is drawn per sample from a CPU generator, so a seed is the same film on any device, alone or in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from seedance.errors import SeedanceError

Per = Literal["film", "shot", "frame"]


def _over_frames(t: Tensor, like: Tensor) -> Tensor:
    """(), (B,) or (B, t) times, shaped to broadcast over latents (B, C, t, h, w)."""
    if t.ndim == 0:
        return t.to(like)
    if t.ndim == 1:
        return t[:, None, None, None, None].to(like)
    return t[:, None, :, None, None].to(like)


def interpolate(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t (B, C, t, h, w) at times ``t``, a scalar, (B,) or (B, t)."""
    time = _over_frames(t, x0)
    return (1 - time) * x0 + time * eps


def velocity(x0: Tensor, eps: Tensor) -> Tensor:
    """The flow's target, dx_t/dt = eps - x0."""
    return eps - x0


def predict_x0(x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The film that velocity ``v`` at (x, t) points to: x_t - t v."""
    return x - _over_frames(t, x) * v


def predict_eps(x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The noise that velocity ``v`` at (x, t) comes from: x_t + (1 - t) v."""
    return x + (1 - _over_frames(t, x)) * v


def shift(t: Tensor, s: float | Tensor) -> Tensor:
    """Moves times towards noise: s t / (1 + (s - 1) t); s = 1 leaves them. ``s`` may be a tensor that
    broadcasts with ``t``."""
    return s * t / (1 + (s - 1) * t)


def shift_for(tokens: int, base_tokens: int = 80, base_shift: float = 1.0, longest: float = 12.0) -> float:
    """Shift for a film of ``tokens`` latent cells: base_shift * sqrt(tokens / base_tokens), within [1, longest].

    The default base is nano's shortest training clip, 5 latent frames of 4 x 4. At inference give the requested size,
    in training the bucket's (Seedream 3.0, section 2.2.2, does the former and uses the average size for the latter).
    """
    return min(max(base_shift * math.sqrt(tokens / base_tokens), 1.0), longest)


def sample_times(
    batch: int,
    frames: int,
    *,
    generator: torch.Generator | None = None,
    shift_by: float = 1.0,
    mean: float = 0.0,
    std: float = 1.0,
    per: Per = "film",
    shot: Tensor | None = None,
) -> Tensor:
    """(B, t) logit-normal training times in (0, 1), shifted.

    Args:
        per: "film" gives all frames of a film one time; "shot" one per shot of ``shot`` (B, t); "frame" one per
            latent frame.
        mean, std: of the normal variable behind the logistic function.
    """
    if per not in ("film", "shot", "frame"):
        raise SeedanceError(f"per {per!r} is not one of film, shot, frame")
    if per == "shot" and shot is None:
        raise SeedanceError("shot: one time per shot needs the (B, t) shot ids")
    u = torch.randn(batch, frames, generator=generator) * std + mean
    if per == "film":
        u = u[:, :1].expand(batch, frames)
    elif per == "shot" and shot is not None:
        u = u.gather(1, (shot.cpu().long() - 1).clamp(0, frames - 1))
    return shift(u.sigmoid(), shift_by)


def noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """(B, *shape) float32 Gaussian noise on the CPU, sample i from ``seeds[i]`` alone."""
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])


def flow_loss(
    predicted: Tensor, x0: Tensor, eps: Tensor, given: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Mean squared error of the velocity over the latent frames to be made, in float32.

    Args:
        predicted, x0, eps: (B, C, t, h, w).
        given: (B, t), 1 where the frame was given and teaches nothing.
        weight: (B, t) extra weights; frames count in proportion.
    """
    error = (predicted.float() - velocity(x0.float(), eps.float())).square().mean(dim=(1, 3, 4))  # (B, t)
    counts = torch.ones_like(error) if given is None else 1 - given.to(error)
    if weight is not None:
        counts = counts * weight.to(error)
    return (error * counts).sum() / counts.sum().clamp(min=1e-6)
