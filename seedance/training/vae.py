"""Trains the VAE: PCA start, reconstruction, then the latents' statistics.

Notable choices:
- The goal is PSNR averaged over clips, so the main term is the root of each clip's mean squared error: between the
  plain mean (which hears only the hard clips) and the mean of dB (which hears only the easy ones).
- L1 and the L1 of gradients over space and time keep edges and motion; KL is tiny (the posterior's deviation is fixed).
- The linear paths start as PCA of the training mix, so the first logged figure is the PCA floor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seedance.errors import SeedanceError
from seedance.pipeline import load_vae
from seedance.shapes import VideoShape
from seedance.training.data import Bucket, FrameBatches, SourceConfig, to_pixels
from seedance.training.discriminator import Discriminators, adversarial_terms
from seedance.vae import VAEConfig, VideoVAE, init_pca
from shots.runtime.checkpoint import latest_checkpoint
from shots.runtime.loop import LoopConfig, Progress, run_loop
from shots.runtime.runlog import RunLog
from shots.runtime.weights import save_tensors


@dataclass(frozen=True)
class VAELosses:
    """Weights of the loss terms; pixels are in [-1, 1].

    adversarial: of the patch discriminators' verdict; 0 leaves them out. It makes texture and costs PSNR, so it belongs
    into a last run from finished weights (`start`), if anywhere.
    """

    rmse: float = 1.0
    l1: float = 0.25
    gradient: float = 0.25
    kl: float = 1e-5
    adversarial: float = 0.0


@dataclass(frozen=True)
class DataConfig:
    """Sources, mixed by weight, and the shapes of batches."""

    sources: tuple[SourceConfig, ...]
    buckets: tuple[Bucket, ...] = (Bucket(17, 64, 64, 16),)


@dataclass(frozen=True)
class VAERecipe:
    """What `task: vae` reads.

    out: folder of checkpoints, log.jsonl and, when the run is finished, `final/` with config.json and weights.
    start: a folder of weights to go on from, with a fresh optimizer. freeze_encoder: train the decoder alone, so that
    the latents, their statistics and every model trained on them stay valid; needs `start`.
    pca_clips, statistics_clips: how many clips the linear paths and the latents' statistics are taken from.
    balance: see :func:`balance_latents`; 0 leaves every channel at unit variance.
    """

    task: str
    out: Path
    data: DataConfig
    loop: LoopConfig
    model: VAEConfig = field(default_factory=VAEConfig)
    losses: VAELosses = field(default_factory=VAELosses)
    start: Path | None = None
    freeze_encoder: bool = False
    pca_clips: int = 384
    statistics_clips: int = 256
    balance: float = 0.5

    def __post_init__(self) -> None:
        if self.freeze_encoder and self.start is None:
            raise SeedanceError("freeze_encoder: needs start, the folder of the weights whose encoder is kept")


class VAEObjective(nn.Module):
    """The VAE and its loss."""

    def __init__(self, vae: VideoVAE, losses: VAELosses) -> None:
        super().__init__()
        self.vae = vae
        self.losses = losses
        self.judges = Discriminators() if losses.adversarial > 0 else None

    def forward(self, frames: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x = to_pixels(frames)  # (B, 3, T, H, W)
        y, mean = self.vae(x, generator)
        with torch.autocast(x.device.type, enabled=False):
            error = y.float() - x
            mse = error.square().mean(dim=(1, 2, 3, 4))  # (B,)
            terms = {"rmse": (mse + 1e-6).sqrt().mean(), "l1": error.abs().mean(), "gradient": _gradient(error)}
            terms["kl"] = 0.5 * mean.float().square().mean()
            loss = torch.stack([getattr(self.losses, name) * term for name, term in terms.items()]).sum()
            if self.judges is not None:
                terms["adversarial"], terms["judges"] = adversarial_terms(self.judges, x, y.float())
                loss = loss + self.losses.adversarial * terms["adversarial"] + terms["judges"]
            figures = {name: term.detach() for name, term in terms.items()}
            figures["psnr"] = (-10 * torch.log10(mse.detach() / 4 + 1e-10)).mean()
        return loss, figures


def _gradient(error: Tensor) -> Tensor:
    """L1 of the differences between neighbours in space and time of error (B, 3, T, H, W)."""
    total = error.diff(dim=3).abs().mean() + error.diff(dim=4).abs().mean()
    if error.shape[2] > 1:
        total = total + error.diff(dim=2).abs().mean()
    return total


def vae_groups(objective: VAEObjective, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: the linear paths, whose PCA weights are small, move far more slowly than the convolutions."""
    vae = objective.vae
    paths = (vae.encoder.first, vae.encoder.later), (vae.decoder.first, vae.decoder.later)
    groups: list[dict[str, Any]] = []
    trained = {id(p) for p in objective.parameters() if p.requires_grad}
    for scale, linears in zip((0.02, 0.1), paths, strict=True):
        slow = [p for linear in linears for p in linear.parameters() if id(p) in trained]
        trained -= {id(p) for p in slow}
        if slow:
            groups.append({"params": slow, "lr_scale": scale, "weight_decay": 0.0})
    rest = [p for p in objective.parameters() if id(p) in trained]
    groups.insert(0, {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay})
    groups.insert(1, {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0})
    return groups


def training_flops(vae: VideoVAE, frames: Tensor) -> tuple[int, float]:
    """(samples, operations of a training step) of a batch uint8 (B, T, H, W, 3): forward, and twice that backward where
    gradients are wanted."""
    b, t, h, w, _ = frames.shape
    shape = VideoShape(t, h, w).latent
    passes = 3.0 if vae.encoder.stem.weight.requires_grad else 1.0
    return b, b * (passes * vae.encode_flops(shape) + 3.0 * vae.decode_flops(shape))


@torch.no_grad()
def latent_statistics(vae: VideoVAE, clips: Iterable[Tensor]) -> None:
    """Fill the VAE's mean and deviation per channel, first and later frames apart, from pixels (B, 3, T, H, W)."""
    firsts, laters = [], []
    for x in clips:
        z = vae.encode(x).float()
        firsts.append(z[:, :, :1].transpose(0, 1).flatten(1))
        laters.append(z[:, :, 1:].transpose(0, 1).flatten(1))
    for row, parts in enumerate((firsts, laters)):
        values = torch.cat(parts, dim=1)  # (48, N)
        if values.shape[1] < 2:
            raise SeedanceError("latent_statistics: the clips have no frames after the first; use 5 or more")
        vae.latent_mean[row] = values.mean(1)
        vae.latent_std[row] = values.std(1).clamp_min(1e-3)


@torch.no_grad()
def balance_latents(vae: VideoVAE, clips: Sequence[Tensor], power: float) -> None:
    """Make the channels that the decoder hardly hears small, by widening their deviation in `latent_std`, in place.

    A channel's weight is the RMS change of the decoded pixels when it is set to its mean; channels below the second
    loudest are scaled by (weight / second)^power. Latents that start as whitened PCA have 48 equally loud channels of
    which a dozen carry the picture: without this a flow spends most of its loss on texture, and shows blocks for long.
    power 0 changes nothing, 1 makes an error in any channel cost about the same in pixels.
    """
    weights = torch.zeros(vae.config.channels)
    for x in clips:
        z = vae.normalize(vae.encode(x).float())
        whole = vae.decode(vae.denormalize(z)).float()
        for channel in range(len(weights)):
            without = z.clone()
            without[:, channel] = 0
            change = vae.decode(vae.denormalize(without)).float() - whole
            weights[channel] += change.square().mean().cpu() / len(clips)
    loudness = weights.sqrt()
    scale = (loudness / loudness.sort(descending=True).values[1]).clamp(1e-3, 1.0) ** power
    vae.latent_std /= scale.to(vae.latent_std)


def save_vae(vae: VideoVAE, folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> list[str]:
    """Write config.json and safetensors (weights in `dtype`, statistics in fp32). Returns the weight files' names."""
    folder = Path(folder)
    state = {
        name: tensor if name.startswith("latent_") else tensor.to(dtype) for name, tensor in vae.state_dict().items()
    }
    names = save_tensors(state, folder)
    config = {"_class_name": "VideoVAE", **vae.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return names


def train_vae(recipe: VAERecipe) -> Progress:
    """Train by `recipe`; when the run is finished, write the averaged weights with statistics to `out/final`."""
    torch.manual_seed(recipe.loop.seed)
    if recipe.loop.threads is not None:
        torch.set_num_threads(recipe.loop.threads)
    out = Path(recipe.out).expanduser()
    log = RunLog(out / "log.jsonl")
    batches = FrameBatches(recipe.data.sources, recipe.data.buckets, recipe.loop.seed)
    vae = load_vae(recipe.start) if recipe.start is not None else VideoVAE(recipe.model)
    if latest_checkpoint(out) is None and recipe.start is None:
        report = init_pca(vae, _clips(batches, recipe.pca_clips, 1, Bucket(9, 64, 64, 16)))
        log.write(event="pca", **report)
    vae.train()
    vae.encoder.requires_grad_(not recipe.freeze_encoder)
    objective = VAEObjective(vae, recipe.losses)
    progress, average = run_loop(
        recipe.loop,
        objective,
        vae,
        batches,
        out,
        groups=vae_groups(objective, recipe.loop.weight_decay),
        count=lambda frames: training_flops(vae, frames),
        log=log,
    )
    if progress.finished:
        average.copy_to(vae)
        vae.eval()
        if not recipe.freeze_encoder:
            latent_statistics(vae, _clips(batches, recipe.statistics_clips, 2, Bucket(17, 128, 128, 8)))
            if recipe.balance > 0:
                balance_latents(vae, list(_clips(batches, 16, 3, Bucket(17, 128, 128, 4))), recipe.balance)
        save_vae(vae, out / "final")
        log.write(event="saved", folder=str(out / "final"))
    return progress


def _clips(batches: FrameBatches, count: int, stream: int, bucket: Bucket) -> Iterator[Tensor]:
    """About `count` clips in batches of `bucket`, pixels (B, 3, T, H, W), from a stream of numbers of its own."""
    for number in range(-(-count // bucket.batch)):
        yield to_pixels(batches.batch(bucket, 0, np.random.default_rng((stream, number))))
