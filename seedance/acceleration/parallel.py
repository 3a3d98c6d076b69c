"""One film on several devices: guidance branches apart, then the sequence, over torch's device meshes.

    torchrun --nproc-per-node 4 make.py

    mesh = init_device_mesh("cuda", (2, 2), mesh_dim_names=("guidance", "sequence"))
    pipeline.spread(mesh)                                     # every process then calls the pipeline alike

Notable choices:

- Every process runs the whole sampler on the same noise (it is drawn on the CPU), so only passes of the transformer are
  shared, and all end with the same film. Whoever writes it looks at its rank.
- `ByRows` shares out a batch's rows. The two branches of guidance are rows, so on two devices this is parallel
  guidance; nothing is exchanged but the velocities. It goes before the sequence.
- `BySequence` is Ulysses (https://arxiv.org/abs/2309.14509) on our own transformer: each process holds some of the
  latent frames. Around attention over all frames, one all-to-all gives it all frames of some heads, another gives its
  frames back. Attention within a frame needs no exchange; text states are held by all.
- Open checkpoints are spread by `parallel_open`, through the same call.
- The model file knows nothing of this; the layers' own parts (`Stream`, `attend`) are used between the exchanges.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from seedance.conditioning import Conditioning
from seedance.dit import (
    Context,
    Keys,
    SpatialLayer,
    TemporalLayer,
    VideoDiT,
    attend,
    from_windows,
    to_windows,
    window_bias,
    window_size,
)
from seedance.errors import SeedanceError
from seedance.samplers import Denoiser

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def spread(model: VideoDiT, mesh: DeviceMesh) -> Denoiser:
    """The transformer over a mesh with a dimension "guidance", "sequence", or both."""
    names = mesh.mesh_dim_names or ()
    if not names or not set(names) <= {"guidance", "sequence"}:
        raise SeedanceError(f"mesh: has dimensions {', '.join(names) or 'without names'}; name them guidance, sequence")
    spread_: Denoiser = model
    if "sequence" in names:
        spread_ = BySequence(model, mesh.get_group("sequence"))
    if "guidance" in names:
        spread_ = ByRows(spread_, mesh.get_group("guidance"))
    return spread_


class ByRows:
    """A denoiser whose rows are computed by the processes of a group, some each; all get all of them."""

    def __init__(self, model: Denoiser, group: dist.ProcessGroup | None = None) -> None:
        self.model, self.group = model, group

    def __call__(self, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        """Velocity (R, C, t, h, w), as the model's."""
        size, rank, rows = dist.get_world_size(self.group), dist.get_rank(self.group), len(noisy)
        each = -(-rows // size)
        if size == 1 or rows == 1:
            return self.model(noisy, timesteps, cond)
        # Every process computes as many rows; the last ones compute some again, which costs no time.
        mine = torch.arange(rank * each, (rank + 1) * each, device=noisy.device).clamp(max=rows - 1)
        times = timesteps if timesteps.ndim == 0 else timesteps[mine]
        found = self.model(noisy[mine], times, _rows(cond, mine)).contiguous()
        parts = [torch.empty_like(found) for _ in range(size)]
        dist.all_gather(parts, found, group=self.group)
        return torch.cat(parts)[:rows]


class BySequence:
    """:class:`VideoDiT` with its latent frames shared out over a group; all get the whole velocity.

    Heads must divide by the group's size, and there must be a latent frame for each process.
    """

    def __init__(self, model: VideoDiT, group: dist.ProcessGroup | None = None) -> None:
        self.model, self.group = model, group
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        if model.config.heads % self.size:
            raise SeedanceError(
                f"sequence: {model.config.heads} heads do not divide among {self.size} processes; take fewer"
            )

    @torch.no_grad()
    def __call__(self, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        """Velocity (R, C, t, h, w), as the model's."""
        model, frames = self.model, noisy.shape[2]
        if frames < self.size:
            raise SeedanceError(f"sequence: {frames} latent frames for {self.size} processes; take fewer processes")
        if self.size == 1:
            return model(noisy, timesteps, cond)
        x, text, embedded, whole = model.begin(noisy, timesteps, cond)
        counts = [frames // self.size + (rank < frames % self.size) for rank in range(self.size)]
        start = sum(counts[: self.rank])
        mine = slice(start, start + counts[self.rank])
        cells = x.shape[2]
        x, ctx = x[:, mine], _frames(whole, mine, cells)
        tokens = [count * cells for count in counts]
        last = max(i for i, layer in enumerate(model.layers) if isinstance(layer, SpatialLayer))
        for index, layer in enumerate(model.layers):
            if isinstance(layer, SpatialLayer):
                x, text = self._spatial(layer, x, text, ctx, whole, tokens, index == last)
            elif isinstance(layer, TemporalLayer):
                x = self._temporal(layer, x, ctx, tokens, frames)
        velocity = model.finish(x, embedded[:, mine], ctx.grid)  # (R, C, t', h, w)
        return self._gather(velocity, counts)

    def _spatial(
        self, layer: SpatialLayer, x: Tensor, text: Tensor, ctx: Context, whole: Context, tokens: list[int], last: bool
    ) -> tuple[Tensor, Tensor]:
        b, t, s, _ = x.shape
        stream = layer.text or layer.visual
        scale, shift, *rest = layer.visual.modulation(ctx.visual_mod)
        q, k, v = layer.visual.heads_of(x, scale, shift, ctx.visual_tables)  # (B, H, t'*s, d)
        text_scale, text_shift, *text_rest = stream.modulation(ctx.text_mod)
        text_q, text_k, text_v = stream.heads_of(text, text_scale, text_shift, ctx.text_tables)  # (B, H, N, d)
        frames = (*q.shape[:2], t, s, q.shape[-1])
        seen = attend(
            q.view(frames),
            Keys(k.view(frames), v.view(frames)),
            Keys(text_k[:, :, None], text_v[:, :, None], ctx.visual_to_text),
        )
        x = layer.visual.finish(x, seen.flatten(2, 3), *rest)
        if last:
            return x, text
        # The text reads all frames, head by head.
        k, v = self._to_heads(k, tokens), self._to_heads(v, tokens)  # (B, H/P, t*s, d)
        own = [part.chunk(self.size, 1)[self.rank] for part in (text_q, text_k, text_v)]
        read = attend(
            own[0][:, :, None],
            Keys(k[:, :, None], v[:, :, None], whole.text_to_visual),
            Keys(own[1][:, :, None], own[2][:, :, None], ctx.text_to_text),
        ).squeeze(2)  # (B, H/P, N, d)
        parts = [torch.empty_like(read) for _ in range(self.size)]
        dist.all_gather(parts, read.contiguous(), group=self.group)
        return x, stream.finish(text, torch.cat(parts, 1), *text_rest)

    def _temporal(self, layer: TemporalLayer, x: Tensor, ctx: Context, tokens: list[int], frames: int) -> Tensor:
        scale, shift, *rest = layer.visual.modulation(ctx.visual_mod)
        q, k, v = (
            self._to_heads(part, tokens) for part in layer.visual.heads_of(x, scale, shift, ctx.visual_tables)
        )  # (B, H/P, t*s, d)
        grid, size = ctx.grid, window_size(ctx.grid, layer.window)
        if size == grid:
            attended = attend(q[:, :, None], Keys(k[:, :, None], v[:, :, None])).squeeze(2)
        else:
            bias = window_bias(frames, grid, size, x)
            keys = Keys(to_windows(k, frames, grid, size), to_windows(v, frames, grid, size), bias)
            attended = from_windows(attend(to_windows(q, frames, grid, size), keys), frames, grid, size)
        return layer.visual.finish(x, self._to_tokens(attended, tokens), *rest)

    def _to_heads(self, x: Tensor, tokens: list[int]) -> Tensor:
        """(B, H, own tokens, d) -> (B, H/P, all tokens, d)."""
        b, heads, own, d = x.shape
        sent = x.view(b, self.size, heads // self.size, own, d).transpose(0, 1).contiguous()  # (P, B, H/P, own, d)
        sizes = [b * heads // self.size * n * d for n in tokens]
        got = x.new_empty(sum(sizes))
        dist.all_to_all_single(got, sent.flatten(), sizes, [sent.numel() // self.size] * self.size, group=self.group)
        return torch.cat(
            [part.view(b, heads // self.size, n, d) for part, n in zip(got.split(sizes), tokens, strict=True)], 2
        )

    def _to_tokens(self, x: Tensor, tokens: list[int]) -> Tensor:
        """(B, H/P, all tokens, d) -> (B, H, own tokens, d)."""
        b, heads, _, d = x.shape
        sent = torch.cat([part.flatten() for part in x.split(tokens, 2)])
        sizes = [b * heads * n * d for n in tokens]
        own = tokens[self.rank]
        got = x.new_empty(self.size * b * heads * own * d)
        dist.all_to_all_single(got, sent, [got.numel() // self.size] * self.size, sizes, group=self.group)
        return got.view(self.size, b, heads, own, d).transpose(0, 1).reshape(b, self.size * heads, own, d)

    def _gather(self, x: Tensor, counts: list[int]) -> Tensor:
        """(R, C, own frames, h, w) of every process -> (R, C, t, h, w)."""
        r, c, _, h, w = x.shape
        padded = x.new_zeros(r, c, max(counts), h, w)
        padded[:, :, : x.shape[2]] = x
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:, :, :count] for part, count in zip(parts, counts, strict=True)], 2)


def _rows(cond: Conditioning, rows: Tensor) -> Conditioning:
    """Some films of a batch."""
    return Conditioning(**{name: value[rows] for name, value in vars(cond).items()})


def _frames(ctx: Context, frames: slice, cells: int) -> Context:
    """What the layers share, for some latent frames."""
    tokens = slice(frames.start * cells, frames.stop * cells)
    cos, sin = ctx.visual_tables
    return replace(
        ctx,
        visual_mod=ctx.visual_mod[:, frames],
        visual_tables=(cos[:, :, tokens], sin[:, :, tokens]),
        visual_to_text=ctx.visual_to_text[:, :, frames],
    )
