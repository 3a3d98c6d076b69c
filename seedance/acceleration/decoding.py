"""Latents to pixels in little memory: chunk by chunk in time, tile by tile in space, smaller when memory runs out.

    for pixels in decode(step, z, chunk=4, space=16):         # (1, 3, n, H, W), in order
        ...

Notable choices:

- A VAE is one function, `Step`: a chunk of latents and what it kept -> pixels and what the next chunk needs. Causal
  VAEs then stream exactly (`native_step`, `wan_step`, `cogvideox_step`, `hunyuan_step`): their frames come out from the
  first chunk on, and memory does not grow with the shot. Others are one chunk a shot (`whole_step`): LTX-Video's
  decoder looks ahead. `open_step` knows which VAE of diffusers is which.
- What a step keeps is its own and not the VAE's, so a shot left half decoded disturbs no other.
- Tiles that overlap are blended in pixels, by weights that fall to the tile's edge, where a tile knows least of its
  surroundings.
- Memory holds what one tile keeps, not what all of them do, which together is as much as tiles save (of Wan 2.1, four
  fifths of the peak). On cards tiles are decoded side by side, chunk by chunk, so that tiling streams too, and what a
  tile keeps waits in main memory, page-locked, for its turn. Where main memory is all there is, that would move
  nothing: there one tile is decoded after another, over all chunks, and what waits is pixels, which are far fewer; the
  shot's first frame then comes with its last tile.
- When memory runs out, decoding begins anew with tiles of half the side, down to eight cells; frames that were given
  out already are decoded again and not given twice.
- There are no tiles in time: causal VAEs need none, and they blink where others have them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seedance.errors import SeedanceError

log = logging.getLogger("seedance")

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""``step(latents (1, C, n, h, w), kept) -> (pixels (1, 3, m, H, W), kept)``; ``kept`` is None for the first chunk."""

Tile = tuple[int, int, int, int]
"""Rows a to b and columns c to d of latents."""

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
    step: Step,
    z: Tensor,
    *,
    chunk: int | Sequence[int] | None,
    space: int,
    tiling: Tiling | None = None,
    retry: bool = True,
) -> Iterator[Tensor]:
    """Pixels (1, 3, n, H, W) of latents z (1, C, t, h, w), in order.

    Args:
        step: the VAE.
        chunk: latent frames at a time, or how many each time; None is all of them.
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
            for pixels in _once(step, z, _lengths(chunk, z.shape[2]), space, tiling):
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


def _lengths(chunk: int | Sequence[int] | None, count: int) -> list[int]:
    """How many of `count` latent frames each chunk has."""
    if chunk is None:
        return [count]
    if isinstance(chunk, int):
        return [min(chunk, count - start) for start in range(0, count, chunk)]
    return list(chunk)


def _once(step: Step, z: Tensor, lengths: list[int], space: int, tiling: Tiling | None) -> Iterator[Tensor]:
    _, _, _, h, w = z.shape
    if tiling is None or max(h, w) <= tiling.size:
        kept: Any = None
        for piece in z.split(lengths, dim=2):
            pixels, kept = step(piece, kept)
            yield pixels
        return
    tiles, pieces = spread(h, w, tiling), z.split(lengths, dim=2)
    if not parks(z.device):
        pictures: list[Tensor | None] = [None] * len(pieces)
        for tile in tiles:
            kept = None
            for index, piece in enumerate(pieces):
                pixels, kept = step(_cut(piece, tile), kept)
                pictures[index] = _laid(pictures[index], pixels, tile, (h, w), space, tiling)
        kept = None
        while pictures:  # each is let go once it is given out
            picture = pictures.pop(0)
            assert picture is not None
            yield picture
        return
    parked: list[Any] = [None] * len(tiles)
    for piece in pieces:
        picture = None
        for index, tile in enumerate(tiles):
            kept, parked[index] = _moved(parked[index], lambda held: _fetch(held, z.device)), None
            pixels, kept = step(_cut(piece, tile), kept)
            parked[index], kept = _moved(kept, _park), None
            picture = _laid(picture, pixels, tile, (h, w), space, tiling)
        assert picture is not None
        yield picture


def parks(device: torch.device) -> bool:
    """Whether what tiles keep waits elsewhere than on ``device``."""
    return device.type == "cuda"


def _park(held: Tensor) -> Tensor:
    """A copy in main memory, page-locked as long as there are such pages."""
    try:
        place = torch.empty_like(held, device="cpu", pin_memory=True)
    except RuntimeError:
        place = torch.empty_like(held, device="cpu")
    # Later work on the device comes after this copy, and so does whatever is put in the place of what is let go.
    return place.copy_(held, non_blocking=place.is_pinned())


def _fetch(held: Tensor, device: torch.device) -> Tensor:
    return held.to(device, non_blocking=True)


def _moved(kept: Any, move: Callable[[Tensor], Tensor]) -> Any:
    """What a step kept, with every tensor in it moved."""
    if isinstance(kept, Tensor):
        return move(kept)
    if isinstance(kept, dict):
        return {name: _moved(value, move) for name, value in kept.items()}
    if isinstance(kept, (list, tuple)):
        return type(kept)(_moved(value, move) for value in kept)
    if is_dataclass(kept) and not isinstance(kept, type):
        return replace(kept, **{part.name: _moved(getattr(kept, part.name), move) for part in fields(kept)})
    return kept


def spread(h: int, w: int, tiling: Tiling) -> list[Tile]:
    """The tiles that cover latents of ``h`` x ``w`` cells."""
    return [(a, b, c, d) for a, b in _spans(h, tiling) for c, d in _spans(w, tiling)]


def _cut(piece: Tensor, tile: Tile) -> Tensor:
    a, b, c, d = tile
    return piece[:, :, :, a:b, c:d]


def _laid(
    picture: Tensor | None, pixels: Tensor, tile: Tile, cells: tuple[int, int], space: int, tiling: Tiling
) -> Tensor:
    """The picture with a tile's pixels laid upon it, by their weights; None is one that has none yet."""
    (a, b, c, d), (h, w) = tile, cells
    down = _ramp(a, b, h, _spans(h, tiling), space, pixels)[:, None]
    across = _ramp(c, d, w, _spans(w, tiling), space, pixels)
    if picture is None:
        picture = pixels.new_zeros(*pixels.shape[:3], h * space, w * space)
    picture[..., a * space : b * space, c * space : d * space] += pixels * (down * across)
    return picture


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


def open_step(vae: Any, count: int, timestep: float | None = None) -> tuple[Step, list[int] | None]:
    """The step of a VAE of diffusers, and how many of `count` latent frames it takes each time (None is all of them).

    Frames are those of ``vae.decode``. ``timestep`` is what VAEs want that remove noise themselves.
    """
    match type(vae).__name__:
        case "AutoencoderKLWan":
            return wan_step(vae), [1] * count
        case "AutoencoderKLHunyuanVideo15":
            return hunyuan_step(vae), [1] * count
        case "AutoencoderKLCogVideoX":
            # Its norms are over the frames of a chunk: other chunks than its own would be another film.
            each = vae.num_latent_frames_batch_size
            chunks = max(count // each, 1)
            return cogvideox_step(vae), [count - each * (chunks - 1), *[each] * (chunks - 1)]
    return whole_step(vae, timestep), None


def wan_step(vae: Any) -> Step:
    """``AutoencoderKLWan`` (2.1 and 2.2), exactly as its own ``decode`` goes, one latent frame at a time through the
    cache of its convolutions.

    Its ``decode`` holds all frames until the last is done, and copies all of them for every further latent frame.
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


def cogvideox_step(vae: Any) -> Step:
    """``AutoencoderKLCogVideoX``, exactly as its own ``decode`` goes, which keeps all frames until the last is done."""

    def step(z: Tensor, kept: Any) -> tuple[Tensor, Any]:
        return vae.decoder(z if vae.post_quant_conv is None else vae.post_quant_conv(z), conv_cache=kept)

    return step


def hunyuan_step(vae: Any) -> Step:
    """``AutoencoderKLHunyuanVideo15``, whose own ``decode`` keeps nothing from frame to frame and takes a shot at once.

    All of its decoder is causal. So a convolution needs the two frames before its own, attention the keys and values of
    all frames before (at the latents' own size), and the masks of the square of a shot's tokens are not needed.
    """

    def step(z: Tensor, kept: _HunyuanDecoder | None) -> tuple[Tensor, _HunyuanDecoder]:
        kept = kept or _HunyuanDecoder(vae.decoder)
        return kept(z), kept

    return step


@dataclass
class _HunyuanDecoder:
    """diffusers' ``HunyuanVideo15Decoder3D`` (a few frames at a time) and what each of its modules kept of a shot."""

    decoder: Any
    before: dict[int, Tensor] = field(default_factory=dict)  # by convolution: the last frames it saw, (1, C, 2, h, w)
    seen: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # by attention: keys and values, (1, 1, n, C)
    begun: bool = False

    def __call__(self, z: Tensor) -> Tensor:
        """Latents (1, C, n, h, w) -> pixels (1, 3, m, H, W)."""
        model = self.decoder
        x = self.conv(model.conv_in, z) + z.repeat_interleave(model.repeat, dim=1)
        x = self.resnet(model.mid_block.resnets[0], x)
        for attention, resnet in zip(model.mid_block.attentions, model.mid_block.resnets[1:], strict=True):
            x = self.resnet(resnet, x if attention is None else self.attention(attention, x))
        for block in model.up_blocks:
            for resnet in block.resnets:
                x = self.resnet(resnet, x)
            for upsampler in block.upsamplers or ():
                x = self.upsampled(upsampler, x)
        self.begun = True
        return self.conv(model.conv_out, model.conv_act(model.norm_out(x)))

    def conv(self, module: Any, x: Tensor) -> Tensor:
        """A causal convolution; the shot's first frame stands for those before it."""
        across, past = module.time_causal_padding[:4], module.time_causal_padding[4]
        before = self.before.get(id(module))
        x = torch.cat([x[:, :, :1].expand(-1, -1, past, -1, -1) if before is None else before, x], 2)
        self.before[id(module)] = x[:, :, x.shape[2] - past :].clone()
        found: Tensor = module.conv(F.pad(x, (*across, 0, 0), mode=module.pad_mode))
        return found

    def resnet(self, module: Any, x: Tensor) -> Tensor:
        out = self.conv(module.conv1, module.nonlinearity(module.norm1(x)))
        out = self.conv(module.conv2, module.nonlinearity(module.norm2(out)))
        return out + (x if module.conv_shortcut is None else module.conv_shortcut(x))

    def attention(self, module: Any, x: Tensor) -> Tensor:
        """Frame by frame: each sees itself and all before."""
        outs = []
        for frame in x.split(1, 2):
            normed = module.norm(frame)
            query, key, value = (
                part(normed).flatten(2).transpose(1, 2)[:, None] for part in (module.to_q, module.to_k, module.to_v)
            )  # (1, 1, h*w, C)
            if id(module) in self.seen:
                keys, values = self.seen[id(module)]
                key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
            self.seen[id(module)] = key, value
            out = F.scaled_dot_product_attention(query, key, value)
            outs.append(module.proj_out(out[:, 0].transpose(1, 2).unflatten(2, frame.shape[2:])) + frame)
        return torch.cat(outs, 2)

    def upsampled(self, module: Any, x: Tensor) -> Tensor:
        """Twice the side and, where the module says so, twice the frames, but for the shot's first."""
        grown, repeats = module._dcae_upsample_rearrange, module.repeats
        out = self.conv(module.conv, x)
        if not module.add_temporal_upsample:
            wide: Tensor = grown(out) + grown(x.repeat_interleave(repeats, dim=1))
            return wide
        found = []
        if not self.begun:
            width = out.shape[1] // 8  # the first half of its channels is the one frame that the first one becomes
            found.append(grown(out[:, :, :1])[:, :width] + grown(x[:, :, :1]).repeat_interleave(repeats // 2, dim=1))
            out, x = out[:, :, 1:], x[:, :, 1:]
        if x.shape[2]:
            found.append(grown(out, r1=2) + grown(x, r1=2).repeat_interleave(repeats, dim=1))
        return torch.cat(found, 2)


def whole_step(vae: Any, timestep: float | None = None) -> Step:
    """Any other VAE of diffusers: a shot at once."""

    def step(z: Tensor, kept: Any) -> tuple[Tensor, Any]:
        at = () if timestep is None else (torch.tensor([timestep], device=z.device, dtype=z.dtype),)
        return vae.decode(z, *at, return_dict=False)[0], None

    return step
