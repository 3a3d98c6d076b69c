"""Pictures of where a film is heading, in milliseconds, for those who watch it being drawn.

    preview_frames(pipeline, latents, most=4)       # latents: what a callback of `Seedance.sample` is given

Notable choices:

- Our own VAE carries a linear path beside its convolutions, from each latent cell to its 16 x 16 pixels. That path
  alone is the preview: it costs one small matrix product, and a test holds it within 25 dB of the whole decoder.
- Open checkpoints' VAEs have no such path, so one is fitted on the first preview: least squares from the latent cells
  of a few pictures of noise, edges and drifting colour, made here and encoded by that VAE, to their pixels. First and
  later latent frames have a map each, as causal VAEs write them differently.
- A tiny autoencoder on a pipeline (its attribute `tiny`) takes the place of the map: it costs more and shows more.
- A few frames are picked over the whole film; none is decoded that is not shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seedance.errors import SeedanceError

if TYPE_CHECKING:
    from seedance.pipeline import Seedance

_CLIPS, _CELLS = 6, 12  # of the fit: how many clips, of how many latent cells a side
_PIXELS = 4  # along a side of a cell, of a fitted map


@dataclass(frozen=True)
class LatentMap:
    """Linear maps from a latent cell (C,) to its pixels (side * side * 3,) in [-1, 1], of first and of later frames.

    ``weight`` is (2, side * side * 3, C), ``bias`` (2, side * side * 3), float32 on the CPU.
    """

    weight: Tensor
    bias: Tensor
    side: int

    def pictures(self, latents: Tensor, first: Sequence[bool]) -> np.ndarray:
        """Latents (C, n, h, w), of which ``first`` begin a shot -> uint8 (n, h * side, w * side, 3)."""
        which = torch.tensor([0 if begins else 1 for begins in first])
        cells = latents.float().cpu().permute(1, 2, 3, 0)  # (n, h, w, C)
        n, h, w, _ = cells.shape
        pixels = torch.baddbmm(self.bias[which][:, None], cells.flatten(1, 2), self.weight[which].mT)  # (n, h*w, 3ss)
        pixels = pixels.add_(1).mul_(127.5).clamp_(0, 255).round_().to(torch.uint8)
        pixels = pixels.view(n, h, w, self.side, self.side, 3).permute(0, 1, 3, 2, 4, 5)
        return pixels.reshape(n, h * self.side, w * self.side, 3).numpy()


def preview_frames(
    pipeline: Seedance, latents: Tensor, most: int = 4, lengths: Sequence[int] | None = None
) -> np.ndarray:
    """Pictures of a film that is being drawn, uint8 (n, h, w, 3), n at most ``most``, in the film's order.

    Args:
        pipeline: the one that draws it.
        latents: (C, t, h, w), or (1, C, t, h, w), as a callback is given them.
        lengths: latent frames of each shot (``plan.latent_frames``); with as many shots as pictures or more, each
            picture is a shot's first frame. None: one shot.

    Raises:
        SeedanceError: ``latents`` is a batch of films, or ``lengths`` are not the film's.
    """
    z = latents[0] if latents.ndim == 5 and len(latents) == 1 else latents
    if z.ndim != 4:
        raise SeedanceError(f"latents: shape {tuple(latents.shape)} is not that of one film; give (C, t, h, w)")
    if most < 1:
        raise SeedanceError(f"most: {most} pictures; give at least 1")
    starts = _starts(z.shape[1], lengths)
    chosen = _chosen(z.shape[1], starts, most)
    picked = z[:, chosen].detach()
    tiny = getattr(pipeline, "tiny", None)
    if tiny is not None:
        shown: np.ndarray = tiny.pictures(picked)
        return shown
    return latent_map(pipeline).pictures(picked, [index in starts for index in chosen])


def latent_map(pipeline: Seedance) -> LatentMap:
    """The pipeline's map from latents to pixels, made on the first call and kept on the pipeline."""
    held: LatentMap | None = getattr(pipeline, "_latent_map", None)
    if held is None:
        vae = getattr(pipeline, "vae", None)
        held = _own_path(vae) if vae is not None else fit_map(pipeline)
        pipeline._latent_map = held  # type: ignore[attr-defined]
    return held


def _own_path(vae: Any) -> LatentMap:
    """The linear path of our own VAE's decoder, with the latents' statistics taken into it."""
    side = round((vae.decoder.first.out_features // 3) ** 0.5)
    std, mean = vae.latent_std.float().cpu(), vae.latent_mean.float().cpu()  # (2, C): first, later
    # A later latent holds four frames; the last of them is what the next one follows on from.
    last = [
        (layer.weight[-side * side * 3 :].float().cpu(), layer.bias[-side * side * 3 :].float().cpu())
        for layer in (vae.decoder.first, vae.decoder.later)
    ]
    weight = torch.stack([w * std[row] for row, (w, _) in enumerate(last)])
    bias = torch.stack([b + w @ mean[row] for row, (w, b) in enumerate(last)])
    return LatentMap(weight, bias, side)


@torch.no_grad()
def fit_map(pipeline: Any) -> LatentMap:
    """Fits a map to the VAE of an open checkpoint (:class:`seedance.engines.DiffusersSeedance`)."""
    from seedance.engines.sanity import normalised

    vae, ratio = pipeline.parts["vae"], pipeline.defaults.ratio
    clips = _clips(ratio.space * _CELLS, 1 + ratio.time)  # (N, 3, T, H, W)
    where, dtype = next(vae.parameters()).device, vae.dtype
    found = []
    for clip in clips:
        z = vae.encode(clip[None].to(where, dtype)).latent_dist.mode()
        found.append(normalised(z.float(), vae).cpu())
    latents = torch.cat(found)  # (N, C, 2, h, w)
    side = min(_PIXELS, ratio.space)
    weights, biases = [], []
    for frame, pixel in ((0, 0), (latents.shape[2] - 1, clips.shape[2] - 1)):
        x = latents[:, :, frame].permute(0, 2, 3, 1).flatten(0, 2)  # (cells, C)
        height, width = (cells * side for cells in latents.shape[3:])
        small = F.adaptive_avg_pool2d(clips[:, :, pixel], (height, width))  # (N, 3, h * side, w * side)
        n, _, hs, ws = small.shape
        y = small.view(n, 3, hs // side, side, ws // side, side).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(0, 2)
        weight, bias = _least_squares(x, y)
        weights.append(weight)
        biases.append(bias)
    return LatentMap(torch.stack(weights), torch.stack(biases), side)


def _least_squares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias of the ridge regression of y (N, out) on x (N, in)."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    a, b = (x - mean_x).double(), (y - mean_y).double()
    gram = a.mT @ a
    gram += 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, a.mT @ b).mT.float()  # (out, in)
    return weight, mean_y - weight @ mean_x


def _clips(side: int, frames: int) -> Tensor:
    """(N, 3, T, side, side) in [-1, 1]: smooth colour with hard-edged patches, drifting; the same every time."""
    generator = torch.Generator().manual_seed(0)
    wide, clips = side + frames, []
    for _ in range(_CLIPS):
        picture = torch.zeros(3, wide, wide)
        for cells, height in ((3, 0.8), (9, 0.4), (27, 0.15)):
            noise = torch.randn(1, 3, cells, cells, generator=generator)
            picture += height * F.interpolate(noise, (wide, wide), mode="bicubic")[0]
        for _ in range(8):
            size = wide * torch.tensor([0.9, 0.9, 0.4, 0.4])
            y, x, h, w = (torch.rand(4, generator=generator) * size).long().tolist()
            picture[:, y : y + h, x : x + w] = (2 * torch.rand(3, generator=generator) - 1)[:, None, None]
        picture = picture.clamp(-1, 1)
        clips.append(torch.stack([picture[:, k : k + side, k : k + side] for k in range(frames)], 1))
    return torch.stack(clips)


def _starts(frames: int, lengths: Sequence[int] | None) -> list[int]:
    """Latent frames that begin a shot."""
    if lengths is None:
        return [0]
    if sum(lengths) != frames or min(lengths) < 1:
        raise SeedanceError(f"lengths: {list(lengths)} do not add up to the film's {frames} latent frames")
    return [sum(lengths[:k]) for k in range(len(lengths))]


def _chosen(frames: int, starts: Sequence[int], most: int) -> list[int]:
    """Which latent frames to show: first frames of shots while there are enough, else evenly over the film."""
    if len(starts) >= most:
        return [starts[k * len(starts) // most] for k in range(most)]
    count = min(most, frames)
    return sorted({round(k * (frames - 1) / max(count - 1, 1)) for k in range(count)})
