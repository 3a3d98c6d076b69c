"""The bytes that a decoder takes, counted before it is loaded, on no device.

    count_decoding("AutoencoderKLWan", config, (16, 21, 60, 104), space=8, dtype=torch.float32)
    Counted(peak=7798367232, parked=0)

Notable choices:

- Counted and not computed by a formula: the VAE is built without numbers (torch's "meta" device) and decodes latents
  without numbers by the very step that will decode the film, while `TensorMemory` keeps account of its tensors. So
  what one version of diffusers copies and another does not, or a norm that goes over float32 in bf16, is in it.
- Three chunks are enough: from the second one on a VAE is in its stride. What it still keeps more of with every chunk,
  as attention over all frames before does, is drawn out to the shot's end.
- This takes a few tenths of a second a size, once, and what diffusers takes to be imported.
- What an operation needs for itself, such as a convolution's workspace, is not counted.
"""

from __future__ import annotations

import functools
import itertools
import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seedance.acceleration.decoding import Tiling, open_step, spread

_CHUNKS = 3


@dataclass(frozen=True)
class Counted:
    """Decoding one shot, above the weights: bytes of the device at the ``peak``, with its latents and the last chunk's
    pixels, and bytes of main memory in which what tiles keep is ``parked``."""

    peak: int
    parked: int


def count_decoding(
    cls: str,
    config: Mapping[str, Any],
    z: tuple[int, int, int, int],
    *,
    space: int,
    dtype: torch.dtype,
    tiling: Tiling | None = None,
    parks: bool = True,
) -> Counted:
    """What a VAE of diffusers takes for one shot in :func:`seedance.acceleration.decoding.decode`.

    Args:
        cls: its class.
        config: its configuration.
        z: latents (C, t, h, w).
        space: pixels along a side of a latent cell.
        dtype: numbers it decodes in.
        tiling: None decodes pictures whole.
        parks: whether what tiles keep waits elsewhere, as on cards (`decoding.parks`).

    Raises:
        SeedanceError: diffusers is not installed.
    """
    channels, count, h, w = z
    tiles = [(0, h, 0, w)] if tiling is None or max(h, w) <= tiling.size else spread(h, w, tiling)
    a, b, c, d = tiles[0]  # all are of one size
    said = json.dumps(dict(config), sort_keys=True)
    peak, kept, longest, frames = _tile(cls, said, (channels, count, b - a, d - c), dtype)
    if len(tiles) == 1:
        return Counted(peak, 0)
    # Tiles are laid into a chunk's pictures while the last chunk's are still looked at, or into the whole shot's.
    pictures = 3 * h * w * space**2 * (min(2 * longest, frames) if parks else frames)
    elsewhere = channels * count * (h * w - (b - a) * (d - c))  # latents of other tiles
    return Counted(peak + (pictures + elsewhere) * dtype.itemsize, kept * len(tiles) if parks else 0)


@functools.lru_cache(maxsize=64)
def _tile(cls: str, config: str, z: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[int, int, int, int]:
    """Of one tile: bytes of the peak, bytes kept at the end, frames of the longest chunk and of all."""
    from seedance.engines.folder import diffusers

    with torch.device("meta"):
        vae = getattr(diffusers(), cls).from_config(json.loads(config)).eval()
    torch.nn.Module.to(vae, dtype)  # its own warns of what is loaded from files
    step, chunks = open_step(vae, z[1], 0.0 if vae.config.get("timestep_conditioning") else None)
    chunks = chunks or [z[1]]
    peaks, held, frames = [], [], []
    kept: Any = None
    with torch.no_grad(), TensorMemory() as memory:
        latents = torch.empty(1, *z, device="meta", dtype=dtype)
        for piece in itertools.islice(latents.split(chunks, dim=2), _CHUNKS):
            memory.peak = memory.held
            pixels, kept = step(piece, kept)
            peaks.append(memory.peak)
            held.append(memory.held)
            frames.append(pixels.shape[2])
        left = len(chunks) - len(held)
        more = left * max(held[-1] - held[-2], 0) if left else 0
        at_end = 0 if kept is None else held[-1] - latents.nbytes - pixels.nbytes + more
    return max(*peaks, peaks[-1] + more), at_end, max(frames), sum(frames) + left * frames[-1]


class TensorMemory(TorchDispatchMode):
    """The most bytes that tensors held at once during some calls, on any device and however busy the machine is.

        with TensorMemory() as memory:
            decode(latents)
        memory.peak

    Counted are the tensors that torch's operations return, by storage, from when they are made until nothing refers to
    them. What an operation needs for itself meanwhile, such as a convolution's workspace, is not.

    Attributes: ``held``, bytes that are there now; ``peak``, the most there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._known:
            return
        self._known.add(address)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._gone, address, size)

    def _gone(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.held -= size
