"""Tiny autoencoders for previews in pixels: decoders of the TAEHV family (https://github.com/madebyollin/taehv, MIT).

    pipeline.tiny = load_tiny("taew2_1.safetensors")      # `preview_frames` then shows its pictures

Notable choices:

- The weights' own shapes say the widths, the latents' channels, by how much each stage stretches time, and the side of
  a pixel patch: one loader reads taehv, taew2_1, taew2_2, taehv1_5 and what else has these names.
- It takes latents as the transformer sees them (normalised), not as the full VAE takes them.
- All convolutions are two-dimensional, over frames as a batch; a memory block sees the frame before its own.
- A preview decodes single latent frames, each as a clip of its own, and shows the last pixel frame of each.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedance.errors import SeedanceError

_STAGES = ((3, 7, 8), (9, 13, 14), (15, 19, 20))  # places of a stage: memory blocks from, time, convolution
_HEAD = 22


class Memory(nn.Module):
    """Residual block over frames (T, C, H, W), each with the frame before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        before = F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1]  # the first frame follows on from zeros
        return F.relu(self.conv(torch.cat([x, before], 1)) + x)


class Stretch(nn.Module):
    """Each frame to ``times`` frames."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * times, 1, bias=False)
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        t, c, h, w = x.shape
        return self.conv(x).reshape(t * self.times, c, h, w)


class Soft(nn.Module):
    """Latents softly limited to [-3, 3]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class TinyDecoder(nn.Module):
    """Latents (C, t, h, w) of one shot to pixels in [0, 1].

    Args:
        channels: of the latents.
        widths: of the three stages and of the last convolution's input.
        times: by how much each stage stretches time.
        patch: pixels along a side that the last convolution gives at once.
    """

    def __init__(
        self, channels: int, widths: tuple[int, ...] = (256, 128, 64, 64), times: tuple[int, ...] = (1, 2, 2),
        patch: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.channels, self.times, self.patch = channels, times, patch
        layers: list[nn.Module] = [Soft(), nn.Conv2d(channels, widths[0], 3, padding=1), nn.ReLU()]
        for stage, stretch in enumerate(times):
            wide, narrow = widths[stage], widths[stage + 1]
            layers += [Memory(wide), Memory(wide), Memory(wide), nn.Upsample(scale_factor=2), Stretch(wide, stretch)]
            layers.append(nn.Conv2d(wide, narrow, 3, padding=1, bias=False))
        layers += [nn.ReLU(), nn.Conv2d(widths[-1], 3 * patch * patch, 3, padding=1)]
        self.decoder = nn.Sequential(*layers)

    @property
    def ratio(self) -> int:
        """Pixel frames of a latent frame."""
        return int(np.prod(self.times))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (C, t, h, w) -> pixels (3, 1 + ratio (t - 1), H, W) in [0, 1]."""
        weight = next(self.decoder.parameters())
        if latents.shape[0] != self.channels:
            raise SeedanceError(
                f"tiny autoencoder: made for latents of {self.channels} channels, these have {latents.shape[0]}; take "
                "the one of this model's family"
            )
        x = self.decoder(latents.to(weight.device, weight.dtype).transpose(0, 1))  # (T, 3pp, H, W)
        x = F.pixel_shuffle(x, self.patch).clamp(0, 1)
        return x[self.ratio - 1 :].transpose(0, 1)  # the first latent holds one frame, written last

    def pictures(self, latents: Tensor) -> np.ndarray:
        """Latent frames (C, n, h, w), each on its own -> uint8 (n, H, W, 3)."""
        frames = [self.decode(latents[:, k : k + 1])[:, 0] for k in range(latents.shape[1])]
        pixels = torch.stack(frames).float().mul(255).round().to(torch.uint8)  # (n, 3, H, W)
        shown: np.ndarray = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return shown


def load_tiny(path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> TinyDecoder:
    """Reads the decoder of a tiny autoencoder from safetensors in the TAEHV format.

    Raises SeedanceError for a pickle, another format, and a file that lacks a tensor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise SeedanceError(f"tiny autoencoder: {path} is not safetensors; pickles can run code when they are read")
    try:
        held = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise SeedanceError(f"tiny autoencoder: {path} cannot be read ({error}); fetch it again") from error
    state = {name: tensor for name, tensor in held.items() if name.startswith("decoder.")}
    try:
        widths = [state["decoder.1.weight"].shape[0]]
        widths += [state[f"decoder.{conv}.weight"].shape[0] for _, _, conv in _STAGES]
        grown = [state[f"decoder.{place}.conv.weight"].shape for _, place, _ in _STAGES]
        patch = round((state[f"decoder.{_HEAD}.weight"].shape[0] / 3) ** 0.5)
        model = TinyDecoder(
            state["decoder.1.weight"].shape[1], tuple(widths), tuple(a // b for a, b, *_ in grown), patch
        )
        model.load_state_dict(state)
    except (KeyError, RuntimeError, ZeroDivisionError) as error:
        raise SeedanceError(
            f"tiny autoencoder: {path} is not in the TAEHV format ({str(error).splitlines()[0]}); give a file of "
            "that family"
        ) from error
    return model.to(device, dtype).eval().requires_grad_(False)
