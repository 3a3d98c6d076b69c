"""Multi-shot MM-RoPE: where every token of a film stands, and the rotation that tells attention so.

Notable choices:

- Positions are explicit numbers per token, (t, h, w), never recomputed from shapes: windows and shots reorder tokens
  freely.
- Time is in seconds times a rate, so the same motion has the same positions at 6, 12 and 24 fps. Height and width are
  scaled to a reference grid, so a 4 x 4 and an 8 x 8 latent of the same picture share coordinates (cell centres; both
  are switches).
- Three layouts behind one function type: ``seedance`` (LCT's diagonal, https://arxiv.org/abs/2503.10589, as cited by
  Seedance 1.0), ``echoshot`` (+4 per shot, https://arxiv.org/abs/2506.15838) and ``narrative`` (+0.5 per shot,
  MultiShotMaster, https://arxiv.org/abs/2512.03041).
- The stride after a video block in the diagonal layout is max(T, H, W), as in M-RoPE; LCT does not print it.
- Dropped or padded text keeps its place: guidance and batching never move a visual token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seedance.errors import SeedanceError


@dataclass(frozen=True)
class Positions:
    """Places of all tokens: ``visual`` (B, t, h*w, 3) and ``text`` (B, N, 3), each a float (t, h, w)."""

    visual: Tensor
    text: Tensor


@dataclass(frozen=True)
class Film:
    """What a layout sees of a batch: times within the shot in position units, shot ids, and the grid's coordinates."""

    time: Tensor  # (B, t) film time in position units
    time_in_shot: Tensor  # (B, t) the same, 0 at the shot's first latent frame
    shot: Tensor  # (B, t) 1-based
    text_shot: Tensor  # (B, N) 0 global, k-th shot, -1 padding
    cells: Tensor  # (h*w, 2) coordinates of the grid's cells
    extent: float  # longest side of the grid in coordinates


Layout = Callable[[Film], Positions]


def grid_coordinates(height: int, width: int, reference: int | None, device: torch.device | None = None) -> Tensor:
    """(h*w, 2) coordinates of the cells' centres, the longer side spanning ``reference`` cells (None: one unit
    per cell)."""
    scale = 1.0 if reference is None else reference / max(height, width)
    rows = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * scale - 0.5
    columns = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * scale - 0.5
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2)


def text_index(text_shot: Tensor) -> Tensor:
    """(B, N) index of each text token within its own caption (0, 1, 2, ...)."""
    same = text_shot[:, :, None] == text_shot[:, None, :]  # (B, N, N)
    return same.tril(-1).sum(-1)


def seedance(film: Film) -> Positions:
    """Diagonal: [text][video][text][video]... along (p, p, p); the global caption is followed by a dummy
    picture (LCT 3.2.2)."""
    number = torch.arange(film.shot.shape[1] + 1, device=film.shot.device)  # groups: 0 global, as many as shots can be
    lengths = (film.text_shot[:, :, None] == number).sum(1).float()  # (B, groups) tokens
    there = film.shot[:, :, None] == number  # (B, t, groups)
    last = torch.where(there, film.time_in_shot[:, :, None], 0.0).amax(1)  # (B, groups)
    spans = torch.where(there.any(1), (last + 1).clamp(min=film.extent), 0.0)
    # The global caption's dummy picture; a script without one has no group 0.
    dummy = torch.where(lengths[:, :1] > 0, film.extent, 0.0)
    groups = lengths + torch.cat([dummy, spans[:, 1:]], 1)  # (B, groups)
    start = groups.cumsum(1) - groups  # (B, groups) where each caption begins
    video = (start + lengths).gather(1, film.shot)  # (B, t) where each frame's shot begins
    text = start.gather(1, film.text_shot.clamp(min=0)) + text_index(film.text_shot)  # (B, N)
    return _place(video + film.time_in_shot, video, video, text, film)


def _phased(film: Film, phase: float) -> Positions:
    """Film time plus ``phase`` per shot; a caption is a point in time, at its shot's phase, on the diagonal
    before the picture."""
    moment = film.time + phase * (film.shot - 1)  # (B, t)
    zero = torch.zeros_like(moment)
    length = (film.text_shot[:, :, None] == film.text_shot[:, None, :]).sum(-1)  # (B, N) of each token's caption
    behind = text_index(film.text_shot) - length  # (B, N): -n .. -1
    belongs = film.text_shot[:, :, None] == film.shot[:, None, :]  # (B, N, t)
    first = torch.where(belongs, moment[:, None, :], torch.inf).amin(-1)  # (B, N) where the caption's shot begins
    anchor = torch.where(first.isinf(), 0.0, first)
    text = torch.stack([anchor + behind, behind.float(), behind.float()], dim=-1)
    return Positions(_place(moment, zero, zero, zero[:, :0], film).visual, text)


def echoshot(film: Film) -> Positions:
    """Temporal index = frame + 4 * shot (EchoShot's TcRoPE; one rotation for text and picture instead of its
    second TaRoPE)."""
    return _phased(film, 4.0)


def narrative(film: Film) -> Positions:
    """Temporal index = frame + 0.5 * shot (MultiShotMaster's Narrative RoPE)."""
    return _phased(film, 0.5)


def _place(t: Tensor, h: Tensor, w: Tensor, text: Tensor, film: Film) -> Positions:
    rows, columns = film.cells[:, 0], film.cells[:, 1]  # (h*w,)
    visual = torch.stack(
        [t[..., None].expand(-1, -1, len(rows)), h[..., None] + rows, w[..., None] + columns], dim=-1
    )  # (B, t, h*w, 3)
    return Positions(visual, text[..., None].expand(*text.shape, 3))


LAYOUTS: dict[str, Layout] = {"seedance": seedance, "echoshot": echoshot, "narrative": narrative}


def positions(
    layout: str,
    shot: Tensor,
    seconds: Tensor,
    text_shot: Tensor,
    grid: tuple[int, int],
    *,
    rate: float = 3.0,
    reference: int | None = 8,
) -> Positions:
    """Positions of a batch of films.

    Args:
        layout: "seedance", "echoshot" or "narrative".
        shot, seconds: (B, t), see :class:`seedance.conditioning.Conditioning`; text_shot: (B, N).
        grid: latent height and width.
        rate: position units per second; 3 makes the latents of 12 fps one unit apart.
        reference: coordinates span this many cells along the longer side; None counts cells.
    """
    if layout not in LAYOUTS:
        raise SeedanceError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    shot = shot.long()
    time = seconds.float() * rate
    same = shot[:, :, None] == shot[:, None, :]  # (B, t, t)
    starts = torch.where(same, time[:, None, :], torch.inf).amin(-1)  # (B, t) when each frame's shot begins
    cells = grid_coordinates(*grid, reference, time.device)
    extent = float(max(grid) if reference is None else reference)
    return LAYOUTS[layout](Film(time, time - starts, shot, text_shot.long(), cells, extent))


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Rotated pairs of a head given to t, h, w: a quarter, and three eighths each (8, 12, 12 of a head of 64)."""
    spatial = 3 * head_dim // 16
    return head_dim // 2 - 2 * spatial, spatial, spatial


def rotation(place: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine tables (..., head_dim) of positions (..., 3), for :func:`rotate`.

    Channel i is paired with i + head_dim/2 (the half-split form of https://arxiv.org/abs/2104.09864); angles are
    taken in float32, or in float64 when ``dtype`` is.
    """
    working = torch.float64 if dtype == torch.float64 else torch.float32
    angles = []
    for axis, pairs in enumerate(axis_pairs(head_dim)):
        frequency = theta ** (-torch.arange(pairs, device=place.device, dtype=working) / max(pairs, 1))
        angles.append(place[..., axis, None].to(working) * frequency)  # (..., pairs)
    angle = torch.cat(angles, dim=-1)  # (..., head_dim/2)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates ``x`` (..., head_dim) by the tables of :func:`rotation`."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin
