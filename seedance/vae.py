"""Causal video VAE with ratios (4, 16, 16) and 48 channels, the first frame alone.

Seedance 1.0 and Seaweed-7B (section 3.1) give the geometry and the causality; widths and blocks are this project's.

Notable choices:
- Activations are (B, T, H, W, C). A spatial 3x3 convolution sees frames as a batch, a causal temporal convolution of
  kernel 3 sees rows as a picture of T x HW; both are zero-copy channels_last views, so a CPU runs them in bf16 at full
  speed: about 400 GFLOP/s a core; the full 3x3x3 Conv3d runs as fast but costs 4.5 times the products.
- A linear path per latent cell, set to whitened PCA by `init_pca`, runs beside the convolutions, whose last layers
  start at zero: training starts at the PCA floor. The first frame has its own matrices.
- Changes of size are space(-time)-to-channel moves with a parameter-free residual path (DC-AE, arXiv 2410.10733).
- Every causal layer leaves its last two frames in an explicit list; the next chunk takes them up. Whole clips run
  through the same code as chunks, so streaming equals whole-clip to rounding and memory does not grow with the clip.
- Before the first frame the temporal convolutions see zeros, which tells them where the clip starts.
- LayerNorm instead of RMSNorm: torch's fused kernel makes it four times faster in bf16 on CPU, with equal quality.
- The posterior has a fixed, small standard deviation (`latent_noise`); the KL term is then half the squared mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedance.errors import SeedanceError
from seedance.shapes import CHANNELS, RATIO_S, RATIO_T, LatentShape, VideoShape

PATCH = 4
_LEVELS = 3
Carry = list[Tensor]


@dataclass(frozen=True)
class VAEConfig:
    """Widths and numbers of blocks from the pixels' level (1/4 of the side, every frame) down to the latents' level."""

    channels: int = CHANNELS
    encoder_widths: tuple[int, ...] = (48, 96, 192)
    encoder_blocks: tuple[int, ...] = (1, 1, 1)
    decoder_widths: tuple[int, ...] = (64, 128, 256)
    decoder_blocks: tuple[int, ...] = (2, 2, 1)
    latent_noise: float = 0.02

    def __post_init__(self) -> None:
        for name in ("encoder_widths", "encoder_blocks", "decoder_widths", "decoder_blocks"):
            value = tuple(int(item) for item in getattr(self, name))
            object.__setattr__(self, name, value)
            if len(value) != _LEVELS or min(value) < 1:
                raise SeedanceError(f"vae.{name}: {list(value)} must be {_LEVELS} positive whole numbers, one a level")
            if name.endswith("widths") and any(
                8 * fine % coarse for fine, coarse in zip(value, value[1:], strict=False)
            ):
                raise SeedanceError(f"vae.{name}: {list(value)}: each width must divide eight times the one before it")

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON holds it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


# ---------------------------------------------------------------------------------------------------------------------
# Chunks


class _Chunk:
    """What the causal layers of one pass take over from the previous chunk, and leave for the next, in layer order."""

    def __init__(self, carry: Carry | None) -> None:
        self.first = not carry
        self.left: Carry = []
        self._taken = iter(carry or ())

    def extend(self, x: Tensor) -> Tensor:
        """x (B, T, H, W, C) with the two frames before it (zeros before the clip's start): (B, 2 + T, H, W, C)."""
        before = torch.zeros_like(x[:, :1]).expand(-1, 2, -1, -1, -1) if self.first else next(self._taken)
        x = torch.cat([before, x], dim=1)
        self.left.append(x[:, -2:].detach().clone())
        return x


# ---------------------------------------------------------------------------------------------------------------------
# Layers, all on (B, T, H, W, C)


class SpatialConv(nn.Module):
    """3x3 convolution of every frame."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        b, t, h, w, c = x.shape
        x = x.reshape(b * t, h, w, c).permute(0, 3, 1, 2)  # (BT, C, H, W), channels last in memory
        x = self.conv(x).permute(0, 2, 3, 1)  # (BT, H, W, C')
        return x.reshape(b, t, h, w, -1)


class CausalConv(nn.Module):
    """Convolution over this frame and the two before it."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, (3, 1))

    def forward(self, x: Tensor, chunk: _Chunk) -> Tensor:
        b, t, h, w, c = x.shape
        x = chunk.extend(x).reshape(b, t + 2, h * w, c).permute(0, 3, 1, 2)  # (B, C, 2 + T, HW)
        return self.conv(x).permute(0, 2, 3, 1).reshape(b, t, h, w, -1)  # (B, T, H, W, C')


class Block(nn.Module):
    """Residual (2+1)D block: norm, spatial convolution, causal convolution. The last layer starts small."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.spatial = SpatialConv(width, width)
        self.temporal = CausalConv(width, width)

    def forward(self, x: Tensor, chunk: _Chunk) -> Tensor:
        y = self.spatial(F.silu(self.norm(x)))
        return x + self.temporal(F.silu(y), chunk)


class Down(nn.Module):
    """Halves time and both sides: 2x2x2 cells into channels, then linear, plus the mean over groups of channels."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(8 * width_in, width_out)
        self.width_out = width_out

    def forward(self, x: Tensor, chunk: _Chunk) -> Tensor:
        if chunk.first:
            x = torch.cat([x[:, :1], x], dim=1)  # the first frame makes a pair with itself
        b, t, h, w, c = x.shape
        x = x.reshape(b, t // 2, 2, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 5, 2, 4, 6, 7)
        x = x.reshape(b, t // 2, h // 2, w // 2, 8 * c)  # (B, T/2, H/2, W/2, 8C)
        return self.linear(x) + x.unflatten(-1, (self.width_out, -1)).mean(-1)


class Up(nn.Module):
    """Doubles time and both sides: linear into channels, plus repeated channels, then 2x2x2 cells out of channels."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, 8 * width_out)
        self.width_out = width_out

    def forward(self, x: Tensor, chunk: _Chunk) -> Tensor:
        b, t, h, w, c = x.shape
        repeats = 8 * self.width_out // c
        x = self.linear(x) + x.repeat_interleave(repeats, dim=-1)  # (B, T, H, W, 8C')
        x = x.reshape(b, t, h, w, 2, 2, 2, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
        x = x.reshape(b, 2 * t, 2 * h, 2 * w, -1)  # (B, 2T, 2H, 2W, C')
        return x[:, 1:] if chunk.first else x  # the first frame stays alone


def _frames_to_channels(x: Tensor, size: int) -> Tensor:
    """(B, 3, T, H, W) -> (B, T, H/size, W/size, size * size * 3)."""
    b, c, t, h, w = x.shape
    x = x.reshape(b, c, t, h // size, size, w // size, size).permute(0, 2, 3, 5, 4, 6, 1)
    return x.reshape(b, t, h // size, w // size, size * size * c)


def _channels_to_frames(x: Tensor, size: int) -> Tensor:
    """(B, T, H, W, size * size * 3) -> (B, 3, T, H * size, W * size)."""
    b, t, h, w, _ = x.shape
    x = x.reshape(b, t, h, w, size, size, 3).permute(0, 6, 1, 2, 4, 3, 5)
    return x.reshape(b, 3, t, h * size, w * size)


def _group_frames(x: Tensor) -> Tensor:
    """(B, 4t, h, w, C) -> (B, t, h, w, 4C), the linear path's cells."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t // RATIO_T, RATIO_T, h, w, c).permute(0, 1, 3, 4, 2, 5)
    return x.reshape(b, t // RATIO_T, h, w, RATIO_T * c)


def _ungroup_frames(x: Tensor) -> Tensor:
    """(B, t, h, w, 4C) -> (B, 4t, h, w, C)."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h, w, RATIO_T, c // RATIO_T).permute(0, 1, 4, 2, 3, 5)
    return x.reshape(b, t * RATIO_T, h, w, c // RATIO_T)


# ---------------------------------------------------------------------------------------------------------------------
# Encoder, decoder


class Encoder(nn.Module):
    """Pixels (B, 3, T, H, W) in [-1, 1] to latents (B, t, h, w, C)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, blocks = config.encoder_widths, config.encoder_blocks
        cell = RATIO_S * RATIO_S * 3
        self.first = nn.Linear(cell, config.channels)
        self.later = nn.Linear(RATIO_T * cell, config.channels)
        self.stem = nn.Linear(PATCH * PATCH * 3, widths[0])
        self.levels = nn.ModuleList(
            nn.ModuleList(Block(width) for _ in range(count)) for width, count in zip(widths, blocks, strict=True)
        )
        self.downs = nn.ModuleList(Down(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.norm = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], config.channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, chunk: _Chunk) -> Tensor:
        cells = _frames_to_channels(x, RATIO_S)  # (B, T, h, w, 768)
        linear = [self.first(cells[:, :1])] if chunk.first else []
        if cells.shape[1] > len(linear):
            linear.append(self.later(_group_frames(cells[:, len(linear) :])))  # (B, t, h, w, C)
        y = self.stem(_frames_to_channels(x, PATCH))  # (B, T, H/4, W/4, D0)
        for level, blocks in enumerate(self.levels):
            for block in blocks:  # type: ignore[attr-defined]
                y = block(y, chunk)
            if level < len(self.downs):
                y = self.downs[level](y, chunk)  # (B, T/2, H/8, W/8, D1), (B, T/4, H/16, W/16, D2)
        return torch.cat(linear, dim=1) + self.head(F.silu(self.norm(y)))


class Decoder(nn.Module):
    """Latents (B, t, h, w, C) to pixels (B, 3, T, H, W), about [-1, 1]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, blocks = config.decoder_widths[::-1], config.decoder_blocks[::-1]
        cell = RATIO_S * RATIO_S * 3
        self.first = nn.Linear(config.channels, cell)
        self.later = nn.Linear(config.channels, RATIO_T * cell)
        self.stem = nn.Linear(config.channels, widths[0])
        self.levels = nn.ModuleList(
            nn.ModuleList(Block(width) for _ in range(count)) for width, count in zip(widths, blocks, strict=True)
        )
        self.ups = nn.ModuleList(Up(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.norm = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], PATCH * PATCH * 3)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, z: Tensor, chunk: _Chunk) -> Tensor:
        linear = [self.first(z[:, :1])] if chunk.first else []
        if z.shape[1] > len(linear):
            linear.append(_ungroup_frames(self.later(z[:, len(linear) :])))  # (B, T, h, w, 768)
        y = self.stem(z)  # (B, t, h, w, D2)
        for level, blocks in enumerate(self.levels):
            for block in blocks:  # type: ignore[attr-defined]
                y = block(y, chunk)
            if level < len(self.ups):
                y = self.ups[level](y, chunk)  # (B, 2t, 2h, 2w, D1), (B, T, 4h, 4w, D0)
        pixels = _channels_to_frames(self.head(F.silu(self.norm(y))), PATCH)  # (B, 3, T, H, W)
        return _channels_to_frames(torch.cat(linear, dim=1), RATIO_S) + pixels


# ---------------------------------------------------------------------------------------------------------------------
# The VAE


class VideoVAE(nn.Module):
    """Encoder, decoder, and the statistics that bring latents to zero mean and unit variance for diffusion.

    Pixels are (B, 3, T, H, W) in [-1, 1], T = 1 + 4n, sides multiples of 16; latents are (B, 48, 1 + n, H/16, W/16).
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: VAEConfig | None = None) -> None:
        super().__init__()
        self.config = config or VAEConfig()
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        # Row 0 is for the first latent frame, row 1 for all later ones.
        self.register_buffer("latent_mean", torch.zeros(2, self.config.channels))
        self.register_buffer("latent_std", torch.ones(2, self.config.channels))
        self._init_weights()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _init_weights(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
                if name.endswith("temporal.conv"):
                    module.weight.data.mul_(0.2)  # every block starts near the identity
            elif isinstance(module, nn.Linear) and not name.endswith("head"):
                nn.init.normal_(module.weight, std=0.5 * module.in_features**-0.5)
                nn.init.zeros_(module.bias)

    # -- whole clips

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pixels (B, 3, T, H, W) to the posterior's mean (B, 48, t, h, w); with `generator`, to a sample of it."""
        VideoShape(*x.shape[2:]).latent  # noqa: B018  (raises for sizes that do not fit)
        z, _ = self.encode_chunk(x)
        if generator is not None:
            noise = torch.randn(z.shape, generator=generator, device=generator.device, dtype=torch.float32)
            z = z + self.config.latent_noise * noise.to(z)
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, 48, t, h, w) to pixels (B, 3, 1 + 4(t - 1), 16h, 16w), about [-1, 1], not clamped."""
        x, _ = self.decode_chunk(z)
        return x

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Reconstruction (B, 3, T, H, W) and the posterior's mean (B, 48, t, h, w), for training."""
        mean = self.encode(x)
        z = mean
        if generator is not None and self.config.latent_noise > 0:
            z = mean + self.config.latent_noise * torch.randn(mean.shape, generator=generator).to(mean)
        return self.decode(z), mean

    # -- chunks

    def encode_chunk(self, x: Tensor, carry: Carry | None = None) -> tuple[Tensor, Carry]:
        """One chunk of pixels to its latents, and what the next chunk needs.

        The first chunk has no `carry` and 1 + 4n frames; every later one has the previous call's and 4n frames.
        """
        chunk = _Chunk(carry)
        z = self.encoder(x.to(self.encoder.stem.weight.dtype), chunk)
        return z.permute(0, 4, 1, 2, 3), chunk.left  # (B, 48, t, h, w)

    def decode_chunk(self, z: Tensor, carry: Carry | None = None) -> tuple[Tensor, Carry]:
        """One chunk of latents to its pixels, and what the next chunk needs. Any number of latent frames a chunk."""
        chunk = _Chunk(carry)
        x = self.decoder(z.permute(0, 2, 3, 4, 1).to(self.decoder.stem.weight.dtype), chunk)
        return x, chunk.left

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Latents of each chunk of pixels; equal to `encode` of all of them. Memory does not grow with their number."""
        carry: Carry | None = None
        for x in chunks:
            if carry is None:
                VideoShape(*x.shape[2:]).latent  # noqa: B018
            elif x.shape[2] == 0 or x.shape[2] % RATIO_T:
                raise SeedanceError(
                    f"chunks: a later chunk has {x.shape[2]} frames; only the first may have 1 + 4n, use 4n"
                )
            z, carry = self.encode_chunk(x, carry)
            yield z

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pixels of each chunk of latents; equal to `decode` of all of them. Memory does not grow with their number."""
        carry: Carry | None = None
        for z in chunks:
            x, carry = self.decode_chunk(z, carry)
            yield x

    # -- latents for diffusion

    def _per_frame(self, table: Tensor, z: Tensor, first: bool) -> Tensor:
        """Rows of a (2, C) table for the frames of z (B, C, t, h, w), as (C, t, 1, 1)."""
        rows = torch.ones(z.shape[2], dtype=torch.long, device=z.device)
        if first:
            rows[:1] = 0
        return table[rows].T[:, :, None, None].to(z.dtype)

    def normalize(self, z: Tensor, first: bool = True) -> Tensor:
        """Latents (B, 48, t, h, w) to zero mean and the variances that diffusion sees: one for the channels the picture
        hangs on, less for others (`seedance.training.vae.balance_latents`). `first`: z begins with a clip's first
        frame.
        """
        return (z - self._per_frame(self.latent_mean, z, first)) / self._per_frame(self.latent_std, z, first)

    def denormalize(self, z: Tensor, first: bool = True) -> Tensor:
        """The inverse of `normalize`."""
        return z * self._per_frame(self.latent_std, z, first) + self._per_frame(self.latent_mean, z, first)

    # -- cost

    def decode_flops(self, shape: LatentShape) -> int:
        """Floating-point operations of `decode` for one clip, a multiply-add as two; matrix products only."""
        config = self.config
        return 2 * self._macs(config.decoder_widths, config.decoder_blocks, shape)

    def encode_flops(self, shape: LatentShape) -> int:
        """Floating-point operations of `encode` for one clip that gives latents of `shape`."""
        config = self.config
        return 2 * self._macs(config.encoder_widths, config.encoder_blocks, shape)

    def _macs(self, widths: tuple[int, ...], blocks: tuple[int, ...], shape: LatentShape) -> int:
        """Multiply-adds of either half: the linear path, the layer between latents and trunk, the trunk."""
        linear = (1 + (shape.frames - 1) * RATIO_T) * RATIO_S**2 * 3 * self.config.channels
        total = shape.height * shape.width * (linear + shape.frames * widths[-1] * self.config.channels)
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            factor = 2 ** (len(widths) - 1 - level)
            frames = 1 + (shape.frames - 1) * factor
            positions = frames * shape.height * shape.width * factor**2
            total += positions * count * 12 * width * width
            total += positions * (width * PATCH * PATCH * 3 if level == 0 else 8 * widths[level - 1] * width)
        return total


@torch.no_grad()
def init_pca(vae: VideoVAE, clips: Iterable[Tensor], max_cells: int = 24_000, seed: int = 0) -> dict[str, float]:
    """Set the linear paths to whitened PCA of `clips`, pixels (B, 3, T, H, W) in [-1, 1] with T = 1 + 4n.

    Returns the PSNR in dB that the linear paths alone reach on these cells: {"first": ..., "later": ...}.
    """
    firsts, laters = [], []
    for x in clips:
        cells = _frames_to_channels(x.float(), RATIO_S)  # (B, T, h, w, 768)
        firsts.append(cells.flatten(0, 3))  # every frame is somebody's first
        laters.append(_group_frames(cells[:, 1:]).flatten(0, 3))
    generator = torch.Generator().manual_seed(seed)
    report = {}
    for name, parts in (("first", firsts), ("later", laters)):
        cells = torch.cat(parts)  # (N, 768) or (N, 3072)
        cells = cells[torch.randperm(len(cells), generator=generator)[:max_cells]]
        mean, scale, basis, error = _principal_components(cells, vae.config.channels)
        into, out = getattr(vae.encoder, name), getattr(vae.decoder, name)
        into.weight.copy_(basis.T / scale[:, None])
        into.bias.copy_(-(mean @ basis) / scale)
        out.weight.copy_(basis * scale)
        out.bias.copy_(mean)
        report[name] = -10 * torch.log10(error / 4).item()
    return report


def _principal_components(cells: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean (D,), deviations (count,), basis (D, count) of cells (N, D), and the mean squared error that is left."""
    mean = cells.mean(0)
    centred = cells - mean
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the randomised range finder; the result is then the same every time
        _, singular, basis = torch.svd_lowrank(centred, q=min(2 * count, *centred.shape), niter=4)
    basis, scale = basis[:, :count], (singular[:count] / len(cells) ** 0.5).clamp_min(1e-4)
    error = (centred - centred @ basis @ basis.T).square().mean()
    return mean, scale, basis, error
