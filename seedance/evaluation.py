"""Measures on held-out sets that are fixed in the repository: `evaluate_vae`.

Notable choices:
- PSNR is of 8-bit frames, per clip over all its frames, then averaged; the tenth percentile stands beside the mean.
- Beside every figure stands a linear baseline of the same size: PCA to 48 channels of the same cells, fitted on clips
  of the kind the VAE was trained on.
- Real clips are looked for in the folder of test material and left out, which the result says, where there is none.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from seedance.errors import SeedanceError
from seedance.training.data import to_frames, to_pixels
from seedance.vae import VAEConfig, VideoVAE, init_pca

SUITE = Path(__file__).with_name("suites") / "vae.yaml"
REAL_CLIPS = Path(__file__).resolve().parents[2] / "shared" / "data" / "video"
_CHUNK = 4  # latent frames decoded at a time


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 clips of one shape, at most 100."""
    if a.shape != b.shape:
        raise SeedanceError(f"psnr: the clips are {tuple(a.shape)} and {tuple(b.shape)}; they must be of one shape")
    error = (a.float() - b.float()).square().mean().item()
    return min(100.0, -10 * torch.log10(torch.tensor(max(error, 1e-12) / 255**2)).item())


@torch.no_grad()
def reconstruct(vae: VideoVAE, frames: Tensor) -> Tensor:
    """uint8 (T, H, W, 3) through the VAE and back, by the posterior's mean, streamed; T = 1 + 4n."""
    device = vae.latent_mean.device
    z = vae.encode(to_pixels(frames[None].to(device)))  # (1, 48, t, h, w)
    chunks = [to_frames(x) for x in vae.decode_stream(z.split(_CHUNK, dim=2))]
    return torch.cat(chunks, dim=1)[0].cpu()


def stage_clips(suite: dict[str, Any], seed: int, clips: int, split: str) -> Iterator[Tensor]:
    """`clips` one-shot stage clips from `seed` on, uint8 (T, H, W, 3)."""
    from shots import stage

    for number in range(seed, seed + clips):
        clip = stage.clip(number, suite["height"], suite["width"], suite["frames"], suite["fps"], split=split)
        assert clip.frames is not None
        yield clip.frames


def real_clips(
    suite: dict[str, Any], folder: Path, videos: Iterable[str], windows: int
) -> Iterator[tuple[str, Tensor]]:
    """(name, uint8 (T, H, W, 3)): up to `windows` clips of each video, one after the other, covering and centred.

    Raises SeedanceError when a video of the list is not in `folder`.
    """
    from shots.video import probe, read_video

    frames, fps = suite["frames"], suite["fps"]
    for name in videos:
        if not (folder / name).is_file():
            raise SeedanceError(f"evaluate: {folder / name} is missing; the list of real clips is fixed in {SUITE}")
        info = probe(folder / name)
        video = read_video(folder / name, start=info.start, fps=fps, size=(suite["height"], suite["width"]))
        for window in range(min(windows, len(video.frames) // frames)):
            piece = video.frames[window * frames : (window + 1) * frames]
            yield f"{name}#{window}", torch.from_numpy(piece.copy())


def linear_baseline(clips: Iterable[Tensor]) -> VideoVAE:
    """A VAE that is nothing but PCA to 48 channels of `clips`, uint8 (T, H, W, 3): its convolutions add zero."""
    vae = VideoVAE(
        VAEConfig(
            encoder_widths=(4, 4, 4), encoder_blocks=(1, 1, 1), decoder_widths=(4, 4, 4), decoder_blocks=(1, 1, 1)
        )
    )
    init_pca(vae, (to_pixels(clip[None]) for clip in clips))
    return vae.eval()


def _summary(values: dict[str, float]) -> dict[str, float]:
    ordered = sorted(values.values())
    return {
        "mean": round(statistics.fmean(ordered), 3),
        "p10": round(statistics.quantiles(ordered, n=10, method="inclusive")[0], 3)
        if len(ordered) > 1
        else round(ordered[0], 3),
        "min": round(ordered[0], 3),
    }


def evaluate_vae(vae: VideoVAE, real: Path | None = None, clips: int | None = None) -> dict[str, Any]:
    """PSNR in dB of the VAE on the fixed suite, and of the linear baseline, per set.

    real: the folder of real videos (default `../shared/data/video` beside the project; left out when absent). clips:
    only so many of each set, for a quick look. Returns {"stage": {"clips", "vae": {"mean", "p10", "min"},
    "pca": {...}, "per_clip"}, "real": ...}.
    """
    suite = yaml.safe_load(SUITE.read_text(encoding="utf-8"))
    folder = Path(real) if real is not None else REAL_CLIPS
    vae.eval()
    base = suite["baseline"]
    sets: dict[str, tuple[Iterable[Tensor], Iterable[tuple[str, Tensor]]]] = {
        "stage": (
            stage_clips(suite, base["stage"]["seed"], base["stage"]["clips"], "train"),
            (
                (f"stage#{suite['stage']['seed'] + number}", frames)
                for number, frames in enumerate(stage_clips(suite, **suite["stage"], split="heldout"))
            ),
        )
    }
    result: dict[str, Any] = {}
    if folder.is_dir():
        sets["real"] = (
            (frames for _, frames in real_clips(suite, folder, base["videos"], 99)),
            real_clips(suite, folder, suite["real"]["videos"], suite["real"]["windows"]),
        )
    elif real is not None:
        raise SeedanceError(f"evaluate: {folder} is not a folder; give the folder that holds the real clips")
    else:
        result["real"] = f"left out: {folder} is not there"
    for name, (fit, held_out) in sets.items():
        pca = linear_baseline(fit)
        by_vae, by_pca = {}, {}
        for source, frames in islice(held_out, clips):
            by_vae[source] = psnr(frames, reconstruct(vae, frames))
            by_pca[source] = psnr(frames, reconstruct(pca, frames))
        result[name] = {
            "clips": len(by_vae),
            "vae": _summary(by_vae),
            "pca": _summary(by_pca),
            "per_clip": {source: round(value, 2) for source, value in by_vae.items()},
        }
    return result
