"""The video diffusion transformer: decoupled spatial and temporal layers, as Seedance 1.0 has them.

Notable choices:

- **Spatial layers** attend inside each latent frame, text and picture joined as in SD3's MMDiT. The first
  ``dual_layers`` hold two weight sets (text, visual) for modulation, QKV and MLP; later ones share one (Seaweed's
  hybrid stream). A frame's queries see the frame and the text it may read; text queries see all frames and the text
  (our reading of Seaweed, Fig. 9: the report does not say).
- **Temporal layers** hold visual tokens only: spatial windows attend over all frames. No windows where the grid fits
  one.
- One shared MLP makes the six modulation vectors from the time of each latent frame; each layer adds a table of its
  own (PixArt's AdaSingle). Given frames are at time 0. The mean of the text a frame may read joins the time
  embedding, as SD3's pooled text does (a switch).
- Input is noisy | clean or zero | mask on channels, plus Fourier features of each cell's place and second: RoPE alone
  only says where cells are relative to each other, and a small model wants to know up from down (a switch).
- No patchify; pre-RMSNorm; QK-RMSNorm; SwiGLU; residual projections and the readout start at zero; init and learning
  rates are in :mod:`seedance.mup`.
- **Everything is computed in the dtype of ``noisy``**; parameters may be float32 masters of a bfloat16 computation.
  No autocast.
- On the CPU, attention is two batched matrix products and a softmax: several times faster in bfloat16, forward and
  backward, than the fused kernel there. Elsewhere the fused kernel is used. ``tests/seedance/test_dit.py`` proves the
  two agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seedance import mup, rope
from seedance.conditioning import Conditioning
from seedance.errors import SeedanceError

# ------------------------------------------------------------------------------------------------------ configuration


@dataclass(frozen=True)
class DiTConfig:
    """Shape of a :class:`VideoDiT`; the defaults are nano's. What the Seedance report does not say is an option here.

    Attributes:
        window: cells (height, width) of a temporal window at most; None attends over the whole grid.
        text_routing: "all" lets every frame read all captions (LCT); "global+own" the global one and its shot's
            (HoloCine, MultiShotMaster).
        layout, rate, reference, theta: see :mod:`seedance.rope`.
        bands: octaves of the place features at the input; 0 for none.
        pooled_text: whether the mean of the text joins the time embedding.
        aux_labels: name -> classes of the auxiliary head; ``aux_after`` layers below it (0: a third of the depth).
    """

    channels: int = 48
    dim: int = 256
    head_dim: int = 64
    mlp_ratio: float = 2.5
    spatial_layers: int = 6
    temporal_layers: int = 6
    dual_layers: int = 2
    text_dim: int = 1152
    window: tuple[int, int] | None = (8, 8)
    text_routing: Literal["all", "global+own"] = "global+own"
    layout: str = "seedance"
    rate: float = 3.0
    reference: int | None = 8
    theta: float = 256.0
    bands: int = 4
    pooled_text: bool = True
    aux_labels: dict[str, int] = field(default_factory=dict)
    aux_after: int = 0
    base_dim: int = 256

    def __post_init__(self) -> None:
        if self.dim % self.head_dim or self.head_dim % 16:
            raise SeedanceError(f"dim {self.dim} must be a multiple of head_dim {self.head_dim}, and that of 16")
        if self.layout not in rope.LAYOUTS:
            raise SeedanceError(f"layout {self.layout!r} is not one of {', '.join(rope.LAYOUTS)}")
        if self.text_routing not in ("all", "global+own"):
            raise SeedanceError(f"text_routing {self.text_routing!r} is not one of all, global+own")

    @property
    def heads(self) -> int:
        return self.dim // self.head_dim

    @property
    def hidden(self) -> int:
        """Width of the SwiGLU, a multiple of 64."""
        return round(self.dim * self.mlp_ratio / 64) * 64

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DiTConfig:
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise SeedanceError(
                f"DiTConfig has no {', '.join(unknown)}; it has {', '.join(f.name for f in fields(cls))}"
            )
        window = values.get("window", cls.window)
        return cls(**{**values, "window": tuple(window) if window is not None else None})


# -------------------------------------------------------------------------------------------------- fused elementwise


class _ModulatedNorm(torch.autograd.Function):
    """RMSNorm times (1 + scale) plus shift, with no float32 copies: autograd's own chain takes about three
    times as long on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        inverse = _inverse_rms(x)  # (B, t, s, 1)
        ctx.save_for_backward(x, scale, inverse)
        return torch.addcmul(shift, x * inverse, 1 + scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (g,) = gradients
        x, scale, inverse = ctx.saved_tensors
        unit = x * inverse
        by_unit = g * unit
        d_unit = g * (1 + scale)
        mean = (d_unit * unit).mean(-1, keepdim=True)
        dx = d_unit.addcmul_(unit, mean, value=-1).mul_(inverse)
        return dx, by_unit.sum_to_size(scale.shape), g.sum_to_size(scale.shape)


def _inverse_rms(x: Tensor) -> Tensor:
    """1 / root mean square over the last dimension, kept."""
    return math.sqrt(x.shape[-1]) / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-6)


class _HeadsNormRotate(torch.autograd.Function):
    """QKV of all heads -> RMS-normalised, gained, rotated q and k, and v, head-major, in one pass over the
    memory each way."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        b, n, _, heads, d = qkv.shape
        major = qkv.permute(2, 0, 3, 1, 4).contiguous()  # (3, B, H, N, d)
        qk, v = major[:2], major[2]
        inverse = _inverse_rms(qk)  # (2, B, H, N, 1)
        ctx.save_for_backward(qk, inverse, gain, cos, sin)
        gained = (qk * inverse).mul_(gain)
        return torch.addcmul(gained * cos, gained.roll(d // 2, -1), sin), v

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        g, dv = gradients
        qk, inverse, gain, cos, sin = ctx.saved_tensors
        d = qk.shape[-1]
        d_gained = torch.addcmul(g * cos, (g * sin).roll(d // 2, -1), torch.ones((), dtype=g.dtype, device=g.device))
        unit = qk * inverse
        d_gain = (d_gained * unit).sum_to_size(gain.shape)
        d_unit = d_gained.mul_(gain)
        mean = (d_unit * unit).mean(-1, keepdim=True)
        d_qk = d_unit.addcmul_(unit, mean, value=-1).mul_(inverse)
        _, b, heads, n, _ = qk.shape
        d_qkv = torch.empty(b, n, 3, heads, d, dtype=g.dtype, device=g.device)
        d_qkv[:, :, :2].copy_(d_qk.permute(1, 3, 0, 2, 4))
        d_qkv[:, :, 2].copy_(dv.transpose(1, 2))
        return d_qkv, d_gain, None, None


class _SwiGLU(torch.autograd.Function):
    """silu(a) * b for x = [a | b]; the backward writes both halves in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        active = F.silu(a)
        ctx.save_for_backward(x, active)
        return active * b

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (g,) = gradients
        x, active = ctx.saved_tensors
        a, b = x.chunk(2, -1)
        dx = torch.empty_like(x)
        half = x.shape[-1] // 2
        torch.mul(g, active, out=dx[..., half:])
        dx[..., :half] = torch.ops.aten.silu_backward(g * b, a)
        return dx


# ---------------------------------------------------------------------------------------------------------- attention


@dataclass(frozen=True)
class Keys:
    """Keys and values (B, H, G, L, d) of G groups, or (B, H, 1, L, d) that all groups share, and an additive
    ``bias`` over them."""

    k: Tensor
    v: Tensor
    bias: Tensor | None = None  # broadcasts to (B, H, G, M, L)


def attend(q: Tensor, *sets: Keys, materialise: bool | None = None) -> Tensor:
    """Softmax attention of queries (B, H, G, M, d), already scaled, over the union of the key sets -> (B, H, G, M, d).

    ``materialise`` writes the score matrix out (the CPU's fast way, up to a few thousand keys); None chooses.
    """
    if materialise is None:
        materialise = q.device.type == "cpu" and sum(s.k.shape[3] for s in sets) <= 4096
    return _attend_products(q, sets) if materialise else _attend_fused(q, sets)


def _attend_products(q: Tensor, sets: tuple[Keys, ...]) -> Tensor:
    b, h, g, m, d = q.shape
    scores = []
    for s in sets:
        # Shared keys meet the queries of all groups in one product, so they are never copied per frame.
        groups = s.k.shape[2]
        score = torch.bmm(q.reshape(b * h * groups, -1, d), s.k.reshape(b * h * groups, -1, d).mT)  # (BHg, GM/g, L)
        score = score.view(b, h, g, m, -1)
        scores.append(score if s.bias is None else score + s.bias)
    weights = (torch.cat(scores, -1) if len(scores) > 1 else scores[0]).softmax(-1)  # (B, H, G, M, sum L)
    out: Tensor | None = None
    for s, weight in zip(sets, weights.split([s.k.shape[3] for s in sets], -1), strict=True):
        groups = s.k.shape[2]
        part = torch.bmm(weight.reshape(b * h * groups, g * m // groups, -1), s.v.reshape(b * h * groups, -1, d)).view(
            b, h, g, m, d
        )
        out = part if out is None else out + part
    assert out is not None
    return out


def _attend_fused(q: Tensor, sets: tuple[Keys, ...]) -> Tensor:
    b, h, g, m, d = q.shape

    def grouped(x: Tensor) -> Tensor:  # (B, H, G or 1, L, d) -> (B, G, H, L, d)
        return x.expand(b, h, g, -1, d).transpose(1, 2)

    k = torch.cat([grouped(s.k) for s in sets], 3)
    v = torch.cat([grouped(s.v) for s in sets], 3)
    bias = None
    if any(s.bias is not None for s in sets):
        parts = [
            (q.new_zeros(1) if s.bias is None else s.bias).expand(b, 1, g, _rows(sets, m), s.k.shape[3]).transpose(1, 2)
            for s in sets
        ]
        bias = torch.cat(parts, -1).flatten(0, 1)  # (BG, 1, M or 1, sum L)
        bias = bias.expand(-1, h, m, -1)
    out = F.scaled_dot_product_attention(
        grouped(q).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=bias, scale=1.0
    )
    return out.view(b, g, h, m, d).transpose(1, 2)


def _rows(sets: tuple[Keys, ...], m: int) -> int:
    return m if any(s.bias is not None and s.bias.shape[3] > 1 for s in sets) else 1


# ------------------------------------------------------------------------------------------------------------- layers


class Linear(nn.Linear):
    """A linear map in the dtype of its input, whatever the dtype of its weights."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class Stream(nn.Module):
    """One weight set of a layer: modulation table, QKV, attention output, SwiGLU. Tokens come as (B, t, s, D)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.table = nn.Parameter(torch.empty(6, config.dim))
        self.qk_gain = nn.Parameter(torch.empty(2, config.head_dim))
        self.qkv = Linear(config.dim, 3 * config.dim, bias=False)
        self.attn_out = Linear(config.dim, config.dim, bias=False)
        self.mlp_in = Linear(config.dim, 2 * config.hidden, bias=False)
        self.mlp_out = Linear(config.hidden, config.dim, bias=False)

    def modulation(self, shared: Tensor) -> tuple[Tensor, ...]:
        """Six vectors (B, t, 1, D): scale, shift, gate of attention, then of the MLP; from the shared (B, t, 6, D)."""
        return (shared + self.table.to(shared.dtype)).unsqueeze(3).unbind(2)

    def heads_of(
        self, x: Tensor, scale: Tensor, shift: Tensor, tables: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q (scaled), k, v: (B, H, N, d) of the normalised, modulated tokens."""
        b, t, s, _ = x.shape
        qkv = self.qkv(_ModulatedNorm.apply(x, scale, shift)).view(b, t * s, 3, self.heads, self.head_dim)
        gain = self.qk_gain.to(x.dtype) * x.new_tensor([[self.head_dim**-0.5], [1.0]])  # queries carry the 1/sqrt(d)
        qk, v = _HeadsNormRotate.apply(qkv, gain[:, None, None, None], *tables)
        return qk[0], qk[1], v

    def finish(
        self, x: Tensor, attended: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, gate_mlp: Tensor
    ) -> Tensor:
        """Residual of the attended tokens (B, H, N, d), then the gated SwiGLU."""
        merged = attended.transpose(1, 2).reshape(x.shape)  # (B, t, s, D)
        x = torch.addcmul(x, gate, self.attn_out(merged))
        hidden = _SwiGLU.apply(self.mlp_in(_ModulatedNorm.apply(x, scale, shift)))  # (B, t, s, hidden)
        return torch.addcmul(x, gate_mlp, self.mlp_out(hidden))


@dataclass(frozen=True)
class Context:
    """What all layers share in one forward pass."""

    grid: tuple[int, int]
    visual_mod: Tensor  # (B, t, 6, D)
    text_mod: Tensor  # (B, 1, 6, D)
    visual_tables: tuple[Tensor, Tensor]  # (B, 1, t*s, d) each
    text_tables: tuple[Tensor, Tensor]  # (B, 1, N, d) each
    visual_to_text: Tensor  # (B, 1, t, 1, N) additive: what a frame may read
    text_to_visual: Tensor | None  # (B, 1, 1, N, t*s) additive, None for all
    text_to_text: Tensor  # (B, 1, 1, N or 1, N) additive


class SpatialLayer(nn.Module):
    """Attention inside each frame, with the text; ``dual`` holds a weight set for each."""

    def __init__(self, config: DiTConfig, dual: bool) -> None:
        super().__init__()
        self.visual = Stream(config)
        self.text = Stream(config) if dual else None

    def forward(self, x: Tensor, text: Tensor, ctx: Context, last: bool = False) -> tuple[Tensor, Tensor]:
        b, t, s, _ = x.shape
        text_stream = self.text or self.visual
        scale, shift, *rest = self.visual.modulation(ctx.visual_mod)
        q, k, v = self.visual.heads_of(x, scale, shift, ctx.visual_tables)  # (B, H, t*s, d)
        text_scale, text_shift, *text_rest = text_stream.modulation(ctx.text_mod)
        text_q, text_k, text_v = text_stream.heads_of(text, text_scale, text_shift, ctx.text_tables)  # (B, H, N, d)
        frames = (*q.shape[:2], t, s, q.shape[-1])
        seen = attend(
            q.view(frames),
            Keys(k.view(frames), v.view(frames)),
            Keys(text_k[:, :, None], text_v[:, :, None], ctx.visual_to_text),
        )  # (B, H, t, s, d)
        x = self.visual.finish(x, seen.flatten(2, 3), *rest)
        if last:  # nothing reads the text afterwards
            return x, text
        read = attend(
            text_q[:, :, None],
            Keys(k[:, :, None], v[:, :, None], ctx.text_to_visual),
            Keys(text_k[:, :, None], text_v[:, :, None], ctx.text_to_text),
        )  # (B, H, 1, N, d)
        return x, text_stream.finish(text, read.squeeze(2), *text_rest)


class TemporalLayer(nn.Module):
    """Attention over all frames inside spatial windows; visual tokens only."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.visual = Stream(config)
        self.window = config.window

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        t, grid = x.shape[1], ctx.grid
        scale, shift, *rest = self.visual.modulation(ctx.visual_mod)
        q, k, v = self.visual.heads_of(x, scale, shift, ctx.visual_tables)  # (B, H, t*s, d)
        size = window_size(grid, self.window)
        if size == grid:
            attended = attend(q[:, :, None], Keys(k[:, :, None], v[:, :, None])).squeeze(2)  # (B, H, t*s, d)
        else:
            bias = window_bias(t, grid, size, x)
            keys = Keys(to_windows(k, t, grid, size), to_windows(v, t, grid, size), bias)
            attended = from_windows(attend(to_windows(q, t, grid, size), keys), t, grid, size)  # (B, H, t*s, d)
        return self.visual.finish(x, attended, *rest)


def window_size(grid: tuple[int, int], window: tuple[int, int] | None) -> tuple[int, int]:
    """Cells of the windows that cover ``grid`` with the fewest windows of at most ``window``, as even as can be."""
    if window is None:
        return grid
    (h, w), (wh, ww) = grid, window
    return math.ceil(h / math.ceil(h / wh)), math.ceil(w / math.ceil(w / ww))


def to_windows(x: Tensor, t: int, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(B, H, t*h*w, d) -> (B, H, windows, t*wh*ww, d), the grid padded with zeros to whole windows."""
    (h, w), (wh, ww) = grid, size
    b, heads, _, d = x.shape
    rows, columns = math.ceil(h / wh), math.ceil(w / ww)
    x = F.pad(x.view(b, heads, t, h, w, d), (0, 0, 0, columns * ww - w, 0, rows * wh - h))
    x = x.view(b, heads, t, rows, wh, columns, ww, d).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(b, heads, rows * columns, t * wh * ww, d)


def from_windows(x: Tensor, t: int, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Undoes :func:`to_windows`."""
    (h, w), (wh, ww) = grid, size
    b, heads, _, _, d = x.shape
    rows, columns = math.ceil(h / wh), math.ceil(w / ww)
    x = x.view(b, heads, rows, columns, t, wh, ww, d).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(b, heads, t, rows * wh, columns * ww, d)[:, :, :, :h, :w].reshape(b, heads, t * h * w, d)


def window_bias(t: int, grid: tuple[int, int], size: tuple[int, int], like: Tensor) -> Tensor | None:
    """(1, 1, windows, 1, t*wh*ww) bias that hides the padding, or None where there is none."""
    if grid[0] % size[0] == 0 and grid[1] % size[1] == 0:
        return None
    real = to_windows(like.new_ones(1, 1, t * grid[0] * grid[1], 1), t, grid, size)  # (1, 1, windows, t*wh*ww, 1)
    return hidden(real.mT > 0, like.dtype)


def hidden(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive bias: 0 where ``seen``, else a number so low that no weight is left (finite: a row may be all
    hidden in one key set)."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -1e4)


# --------------------------------------------------------------------------------------------------------- embeddings


def time_features(t: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """(..., size) sinusoids of times in [0, 1], taken at 1000 t as in DiT."""
    half = size // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angle = 1000 * t.float()[..., None] * frequencies
    return torch.cat([angle.cos(), angle.sin()], -1).to(dtype)


def place_features(shot: Tensor, seconds: Tensor, grid: tuple[int, int], bands: int, dtype: torch.dtype) -> Tensor:
    """(B, t, h*w, 6 * bands) Fourier features of height, width (edges at -1, 1) and the second in the shot, octave by
    octave.

    The lowest octave turns a quarter over the picture, and a quarter over four seconds.
    """
    h, w = grid
    same = shot[:, :, None] == shot[:, None, :]
    in_shot = seconds - torch.where(same, seconds[:, None, :], torch.inf).amin(-1)  # (B, t)
    rows = (torch.arange(h, device=shot.device) + 0.5) / h * 2 - 1
    columns = (torch.arange(w, device=shot.device) + 0.5) / w * 2 - 1
    shape = (*shot.shape, h, w)
    place = torch.stack(
        [rows[:, None].expand(shape), columns.expand(shape), (in_shot / 4)[:, :, None, None].expand(shape)], -1
    ).flatten(2, 3)  # (B, t, h*w, 3)
    octaves = math.pi / 4 * 2.0 ** torch.arange(bands, device=shot.device)
    angle = (place.float()[..., None] * octaves).flatten(-2)  # (B, t, h*w, 3 * bands)
    return torch.cat([angle.sin(), angle.cos()], -1).to(dtype)


class TimeEmbedding(nn.Module):
    """Sinusoids of the time -> MLP -> (B, t, D)."""

    def __init__(self, dim: int, features: int = 256) -> None:
        super().__init__()
        self.features = features
        self.inner = Linear(features, dim)
        self.outer = Linear(dim, dim)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self.outer(F.silu(self.inner(time_features(t, self.features, dtype))))


class AuxHead(nn.Module):
    """Predicts the stage's labels of each latent cell from a layer's tokens (in the manner of REPA,
    https://arxiv.org/abs/2410.06940)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.labels = dict(config.aux_labels)
        self.inner = Linear(config.dim, config.dim)
        self.readout = mup.Readout(config.dim, sum(self.labels.values()), config.dim / config.base_dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
        b, t, _, _ = x.shape
        logits = self.readout(F.silu(self.inner(x * _inverse_rms(x)))).view(b, t, *grid, -1)
        return dict(zip(self.labels, logits.split(list(self.labels.values()), -1), strict=True))


# ---------------------------------------------------------------------------------------------------------- the model


class VideoDiT(nn.Module):
    """Velocity of the flow for a batch of films."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # trade a second forward pass per layer for memory (training of large models)
        dim, multiplier = config.dim, config.dim / config.base_dim
        self.visual_in = Linear(2 * config.channels + 1 + 6 * config.bands, dim)
        self.text_in = Linear(config.text_dim, dim)
        self.text_pool = Linear(config.text_dim, dim) if config.pooled_text else None
        self.time = TimeEmbedding(dim)
        self.shared_mod = Linear(dim, 6 * dim)
        self.layers = nn.ModuleList()
        spatial = 0
        for kind in layer_order(config.spatial_layers, config.temporal_layers):
            if kind == "spatial":
                self.layers.append(SpatialLayer(config, dual=spatial < config.dual_layers))
                spatial += 1
            else:
                self.layers.append(TemporalLayer(config))
        self.aux = AuxHead(config) if config.aux_labels else None
        self.aux_after = config.aux_after or max(1, len(self.layers) // 3)
        self.final_mod = Linear(dim, 2 * dim)
        self.readout = mup.Readout(dim, config.channels, multiplier)
        mup.init_weights(self)

    @overload
    def forward(
        self, noisy: Tensor, timesteps: Tensor, cond: Conditioning, labels_out: Literal[False] = False
    ) -> Tensor: ...
    @overload
    def forward(
        self, noisy: Tensor, timesteps: Tensor, cond: Conditioning, labels_out: Literal[True]
    ) -> tuple[Tensor, dict[str, Tensor]]: ...
    def forward(
        self, noisy: Tensor, timesteps: Tensor, cond: Conditioning, labels_out: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Velocity (B, C, t, h, w) in the dtype of ``noisy``.

        Args:
            noisy: (B, C, t, h, w) latents on the flow; its dtype is the dtype of the computation. Where ``cond.mask``
                is 1 it is not read.
            timesteps: (B, t), (B,) or a scalar, in [0, 1]; given frames are taken at 0.
            labels_out: also return the auxiliary head's logits, name -> (B, t, h, w, classes).
        """
        x, text, embedded, ctx = self.begin(noisy, timesteps, cond)  # (B, t, s, D), (B, 1, N, D), (B, t, D)
        logits: dict[str, Tensor] = {}
        for index in range(len(self.layers)):
            x, text = self.layer(index, x, text, ctx)
            if labels_out and self.aux is not None and index + 1 == self.aux_after:
                logits = self.aux(x, ctx.grid)
        velocity = self.finish(x, embedded, ctx.grid)  # (B, C, t, h, w)
        return (velocity, logits) if labels_out else velocity

    # The three parts of a pass, for what runs some layers only (`seedance.acceleration.cache`).

    def begin(self, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor, Tensor, Context]:
        """What the layers start from: tokens (B, t, s, D), text (B, 1, N, D), time (B, t, D), and what they share."""
        b, _, t, h, w = noisy.shape
        if cond.clean.shape != noisy.shape:
            raise SeedanceError(f"noisy has shape {tuple(noisy.shape)}, cond was made for {tuple(cond.clean.shape)}")
        given = cond.mask > 0  # (B, t)
        times = timesteps.reshape(-1, 1).expand(b, t) if timesteps.ndim < 2 else timesteps
        times = torch.where(given, 0, times)  # (B, t)
        x = self._visual_tokens(noisy, given, cond)  # (B, t, s, D)
        states = cond.text.to(noisy.dtype)
        text = self.text_in(states)[:, None]  # (B, 1, N, D)
        embedded, text_embedded = self._time_embedding(times, cond, states)  # (B, t, D), (B, 1, D)
        return x, text, embedded, self._context(embedded, text_embedded, cond, (h, w))

    def layer(self, index: int, x: Tensor, text: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """Layer ``index`` on tokens (B, t, s, D) and text (B, 1, N, D)."""
        layer = self.layers[index]
        if not isinstance(layer, SpatialLayer):
            return self._run(layer, x, ctx), text
        last = not any(isinstance(later, SpatialLayer) for later in self.layers[index + 1 :])
        return self._run(layer, x, text, ctx, last)

    def finish(self, x: Tensor, embedded: Tensor, grid: tuple[int, int]) -> Tensor:
        """Velocity (B, C, t, h, w) from the last layer's tokens (B, t, s, D) and the time (B, t, D)."""
        scale, shift = self.final_mod(F.silu(embedded)).unsqueeze(2).chunk(2, -1)  # (B, t, 1, D)
        out = self.readout(_ModulatedNorm.apply(x, scale, shift))  # (B, t, s, C)
        return out.unflatten(2, grid).permute(0, 4, 1, 2, 3)

    def _run(self, layer: nn.Module, *inputs: Any) -> Any:
        if self.checkpointing and self.training:
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)

    def _visual_tokens(self, noisy: Tensor, given: Tensor, cond: Conditioning) -> Tensor:
        b, c, t, h, w = noisy.shape
        clean = cond.clean.to(noisy.dtype)
        kept = given[:, None, :, None, None]
        channels = torch.cat([torch.where(kept, clean, noisy), clean], 1)  # (B, 2C, t, h, w)
        features = [
            channels.permute(0, 2, 3, 4, 1).reshape(b, t, h * w, 2 * c),
            kept.to(noisy.dtype).reshape(b, t, 1, 1).expand(b, t, h * w, 1),
        ]
        if self.config.bands:
            features.append(place_features(cond.shot, cond.seconds, (h, w), self.config.bands, noisy.dtype))
        return self.visual_in(torch.cat(features, -1))  # (B, t, s, D)

    def _time_embedding(self, times: Tensor, cond: Conditioning, states: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the visual frames (B, t, D) and of the text (B, 1, D)."""
        open_frames = (cond.mask == 0).to(times.dtype)
        text_time = (times * open_frames).sum(1, keepdim=True) / open_frames.sum(1, keepdim=True).clamp(min=1)  # (B, 1)
        embedded = self.time(torch.cat([times, text_time], 1), states.dtype)  # (B, t+1, D)
        visual, text = embedded[:, :-1], embedded[:, -1:]
        if self.text_pool is not None:
            reads = may_read(cond, self.config.text_routing).to(states.dtype)  # (B, t, N)
            mean = reads @ states / reads.sum(-1, keepdim=True).clamp(min=1)  # (B, t, text_dim)
            visual = visual + self.text_pool(mean) * reads.amax(-1, keepdim=True)
        return visual, text

    def _context(self, visual: Tensor, text: Tensor, cond: Conditioning, grid: tuple[int, int]) -> Context:
        """Modulation from the embeddings of frames (B, t, D) and text (B, 1, D), rotations, and who reads what."""
        config, dtype = self.config, visual.dtype
        b, t, _ = visual.shape
        s = grid[0] * grid[1]
        mod = self.shared_mod(F.silu(torch.cat([visual, text], 1))).view(b, t + 1, 6, config.dim)  # (B, t+1, 6, D)
        places = rope.positions(
            config.layout, cond.shot, cond.seconds, cond.text_shot, grid, rate=config.rate, reference=config.reference
        )
        visual_tables = rope.rotation(places.visual.flatten(1, 2), config.head_dim, config.theta, dtype)  # (B, t*s, d)
        text_tables = rope.rotation(places.text, config.head_dim, config.theta, dtype)  # (B, N, d)
        reads = may_read(cond, config.text_routing)  # (B, t, N)
        present = cond.text_mask[:, None, :]  # (B, 1, N)
        text_to_visual = None
        if config.text_routing == "global+own":
            shot, own = cond.shot[:, None, :], cond.text_shot[:, :, None]
            frames = (own <= 0) | (own == shot)  # (B, N, t)
            text_to_visual = hidden(frames.repeat_interleave(s, 2), dtype)[:, None, None]  # (B, 1, 1, N, t*s)
            a, c = cond.text_shot[:, :, None], cond.text_shot[:, None, :]
            present = present & ((a <= 0) | (c == 0) | (a == c))  # (B, N, N)
        return Context(
            grid=grid,
            visual_mod=mod[:, :t],
            text_mod=mod[:, t:],
            visual_tables=(visual_tables[0][:, None], visual_tables[1][:, None]),
            text_tables=(text_tables[0][:, None], text_tables[1][:, None]),
            visual_to_text=hidden(reads, dtype)[:, None, :, None],
            text_to_visual=text_to_visual,
            text_to_text=hidden(present, dtype)[:, None, None],
        )

    def flops(self, latent: tuple[int, int, int], text_tokens: int) -> int:
        """FLOPs (two per multiply-add) of one forward pass for one film of ``latent`` (t, h, w) cells and
        ``text_tokens`` words.

        A training step costs three times this. Counts matrix products only.
        """
        config = self.config
        t, h, w = latent
        s, n, dim = h * w, text_tokens, config.dim
        cells = t * s
        stream = 4 * dim * dim + 3 * dim * config.hidden  # multiply-adds per token of one layer
        wh, ww = window_size((h, w), config.window)
        total = cells * (2 * config.channels + 1 + 6 * config.bands + config.channels) * dim + n * config.text_dim * dim
        total += (t + 1) * (256 * dim + dim * dim + 6 * dim * dim) + t * 2 * dim * dim
        total += t * config.text_dim * dim * config.pooled_text
        total += config.spatial_layers * ((cells + n) * stream + 2 * dim * (cells * (s + n) + n * (cells + n)))
        total -= (
            min(config.spatial_layers, 1) * n * (stream - 3 * dim * dim + 2 * dim * (cells + n))
        )  # the last one's text stops at QKV
        total += config.temporal_layers * (cells * stream + 2 * dim * cells * (t * wh * ww))
        return 2 * total


def layer_order(spatial: int, temporal: int) -> list[str]:
    """Kinds of the layers from the input up: alternating, spatial first; the more numerous kind is spread evenly."""
    places = [((i + 0.5) / spatial, 0, "spatial") for i in range(spatial)] + [
        ((i + 0.5) / temporal, 1, "temporal") for i in range(temporal)
    ]
    return [kind for _, _, kind in sorted(places)]


def may_read(cond: Conditioning, routing: str) -> Tensor:
    """(B, t, N) bool: which text tokens each latent frame may attend to."""
    present = cond.text_mask[:, None, :]
    if routing == "all":
        return present.expand(-1, cond.shot.shape[1], -1)
    text_shot = cond.text_shot[:, None, :]
    return present & ((text_shot == 0) | (text_shot == cond.shot[:, :, None]))
