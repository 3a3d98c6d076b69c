"""Latents to pixels in little memory: chunk by chunk in time, tile by tile in space, smaller when memory runs out.

    for pixels in decode(step, z, chunk=4, space=16):         # (1, 3, n, H, W), in order
        ...

Notable choices:

- A VAE is one function, `Step`: a chunk of latents and what it kept -> pixels and what the next chunk needs. Causal
  VAEs then stream exactly (`native_step`, `wan_step`), and their frames come out from the first chunk on; others are
  one chunk a shot (`whole_step`).
- Tiles are decoded side by side, chunk by chunk, each with what it kept, so tiling streams too. Neighbours overlap, and
  are blended there in pixels, by weights that fall to the tile's edge, where a tile knows least of its surroundings.
- When memory runs out, decoding begins anew with tiles of half the side, down to eight cells; frames that were given
  out already are decoded again and not given twice.
- There are no tiles in time: causal VAEs need none, and they blink where others have them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seedance.errors import SeedanceError

log = logging.getLogger("seedance")

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""``step(latents (1, C, n, h, w), kept) -> (pixels (1, 3, m, H, W), kept)``; ``kept`` is None for the first chunk."""

LEAST = 8  # cells of a tile's side


@dataclass(frozen=True)
class Tiling:
    """Tiles of ``size`` latent cells a side, of which neighbours share at least ``overlap``."""

    size: int = 32
    overlap: int = 8

    def __post_init__(self) -> None:
        if self.size < 2 or not 0 < self.overlap < self.size:
            raise SeedanceError(f"tiling: {self.overlap} cells of overlap do not fit tiles of {self.size}")

    def halved(self) -> Tiling | None:
        """Tiles of half the side, None when they are as small as they may be."""
        return Tiling(size, max(size // 4, 1)) if (size := self.size // 2) >= LEAST else None


def decode(
    step: Step, z: Tensor, *, chunk: int | None, space: int, tiling: Tiling | None = None, retry: bool = True
) -> Iterator[Tensor]:
    """Pixels (1, 3, n, H, W) of latents z (1, C, t, h, w), in order.

    Args:
        step: the VAE.
        chunk: latent frames at a time; None is all of them.
        space: pixels along a side of a latent cell.
        tiling: None decodes pictures whole until memory runs out.
        retry: whether to go on in tiles when it does.

    Raises:
        SeedanceError: memory runs out with the smallest tiles too.
    """
    given = 0
    while True:
        try:
            skip = given
            for pixels in _once(step, z, z.shape[2] if chunk is None else chunk, space, tiling):
                fresh = pixels[:, :, min(skip, pixels.shape[2]) :]
                skip -= pixels.shape[2] - fresh.shape[2]
                if fresh.shape[2]:
                    given += fresh.shape[2]
                    yield fresh
            return
        except (MemoryError, RuntimeError) as error:
            if not retry or not out_of_memory(error):
                raise
        # Outside the handler: the error holds the stack, and with it the tensors that filled the memory.
        smaller = _smaller(tiling, max(z.shape[3:]))
        if smaller is None:
            raise SeedanceError(
                "decoding: memory runs out even in the smallest tiles; free some of it, or take smaller sizes"
            )
        log.warning("warning: memory ran out while decoding; going on in tiles of %d cells", smaller.size)
        tiling = smaller
        if z.device.type == "cuda":
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch ran out of memory, on any device."""
    said = str(error)
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "allocate memory" in said or "DefaultCPUAllocator" in said


def _smaller(tiling: Tiling | None, side: int) -> Tiling | None:
    """The next tiling to try for pictures of ``side`` cells."""
    if tiling is None:
        size = max(LEAST, math.ceil(side / 2))
        return Tiling(size, max(size // 4, 1)) if size < side else None
    return tiling.halved()


def _once(step: Step, z: Tensor, chunk: int, space: int, tiling: Tiling | None) -> Iterator[Tensor]:
    _, _, _, h, w = z.shape
    if tiling is None or max(h, w) <= tiling.size:
        kept: Any = None
        for piece in z.split(chunk, dim=2):
            pixels, kept = step(piece, kept)
            yield pixels
        return
    rows, columns = _spans(h, tiling), _spans(w, tiling)
    tiles = [(a, b, c, d) for a, b in rows for c, d in columns]
    held: list[Any] = [None] * len(tiles)
    for piece in z.split(chunk, dim=2):
        blended: Tensor | None = None
        for index, (a, b, c, d) in enumerate(tiles):
            pixels, held[index] = step(piece[:, :, :, a:b, c:d], held[index])
            down = _ramp(a, b, h, rows, space, pixels)[:, None]
            across = _ramp(c, d, w, columns, space, pixels)
            if blended is None:
                blended = pixels.new_zeros(*pixels.shape[:3], h * space, w * space)
            blended[..., a * space : b * space, c * space : d * space] += pixels * (down * across)
        assert blended is not None
        yield blended


def _spans(cells: int, tiling: Tiling) -> list[tuple[int, int]]:
    """Stretches of at most ``size`` cells that cover ``cells``, evenly, with at least ``overlap`` in common."""
    size = min(tiling.size, cells)
    count = max(1, math.ceil((cells - tiling.overlap) / (size - tiling.overlap))) if cells > size else 1
    return [(start := round(k * (cells - size) / max(count - 1, 1)), start + size) for k in range(count)]


def _ramp(start: int, end: int, cells: int, spans: list[tuple[int, int]], space: int, like: Tensor) -> Tensor:
    """((end - start) * space,) weights of a tile's pixels; those of all tiles over a pixel add up to 1."""
    place = torch.arange(cells * space, dtype=torch.float32, device=like.device) + 0.5

    total = sum((_height(place, a, b, cells, space) for a, b in spans), torch.zeros_like(place))
    return (_height(place, start, end, cells, space) / total)[start * space : end * space].to(like.dtype)


def _height(place: Tensor, a: int, b: int, cells: int, space: int) -> Tensor:
    """Distance of each pixel to the edges of stretch (a, b) that are seams; 0 outside."""
    left = place - a * space if a > 0 else torch.full_like(place, torch.inf)
    right = b * space - place if b < cells else torch.full_like(place, torch.inf)
    far = torch.minimum(left, right).clamp(min=0, max=cells * space)
    return torch.where((place > a * space) & (place < b * space), far, 0.0)


# ------------------------------------------------------------------------------------------------------------ the VAEs


def native_step(vae: Any) -> Step:
    """Our own :class:`seedance.vae.VideoVAE`, on latents as its decoder takes them."""
    return lambda z, kept: vae.decode_chunk(z, kept)


def wan_step(vae: Any) -> Step:
    """diffusers' ``AutoencoderKLWan`` (2.1 and 2.2), exactly as its own ``decode`` goes, one latent frame at a time.

    Its ``decode`` holds all frames until the last is done, and its copies grow with the square of their number.
    """
    count = vae._cached_conv_counts["decoder"]
    patch = vae.config.get("patch_size")

    def step(z: Tensor, kept: list[Any] | None) -> tuple[Tensor, list[Any]]:
        first, kept = kept is None, [None] * count if kept is None else kept
        x, found = vae.post_quant_conv(z), []
        for index in range(z.shape[2]):
            begins = {"first_chunk": True} if first and index == 0 else {}
            out = vae.decoder(x[:, :, index : index + 1], feat_cache=kept, feat_idx=[0], **begins)
            if patch is not None:
                from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

                out = unpatchify(out, patch_size=patch)
            found.append(out.clamp(-1, 1))
        return torch.cat(found, 2), kept

    return step


def whole_step(vae: Any, timestep: float | None = None) -> Step:
    """Any other VAE of diffusers: a shot at once."""

    def step(z: Tensor, kept: Any) -> tuple[Tensor, Any]:
        at = () if timestep is None else (torch.tensor([timestep], device=z.device, dtype=z.dtype),)
        return vae.decode(z, *at, return_dict=False)[0], None

    return step
