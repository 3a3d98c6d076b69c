"""`Clip`: the one training sample, for the stage and for folders of real clips alike.

Notable choice: a clip carries frames, or latents once it has been through a VAE, or both; everything else (captions per
shot, events, labels, source) stays the same, so what trains on one kind of clip trains on the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shots.errors import ShotsError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ClipShot:
    """One shot of a clip: its caption, and its frames `start` (inclusive) to `end` (exclusive)."""

    caption: str
    start: int
    end: int


@dataclass
class Clip:
    """One training sample.

    frames: uint8 (T, H, W, 3) or None. latents: float (C, t, h, w) or None; at least one of the two.
    fps: frames a second. shots: in order, without gap or overlap, the last ending at T.
    caption: of the whole clip, may be empty. events: as in the stage's annotations (query, actor, action, start, end in
    seconds). labels: per latent cell and frame, only where the source knows them. source: where the clip comes from.
    """

    frames: Tensor | None
    latents: Tensor | None
    fps: float
    shots: tuple[ClipShot, ...]
    caption: str = ""
    events: tuple[dict[str, Any], ...] = ()
    labels: dict[str, Tensor] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        if self.frames is None and self.latents is None:
            raise ShotsError(f"clip {self.source!r}: neither frames nor latents")
        if not self.shots:
            raise ShotsError(f"clip {self.source!r}: no shots; a clip without cuts is one shot over all its frames")
        edge = 0
        for number, shot in enumerate(self.shots, start=1):
            if shot.start != edge or shot.end <= shot.start:
                raise ShotsError(
                    f"clip {self.source!r}: shot {number} is frames {shot.start} to {shot.end}, "
                    f"but must start at {edge} and hold at least one"
                )
            edge = shot.end
        if self.frames is not None and edge != self.frames.shape[0]:
            raise ShotsError(f"clip {self.source!r}: the shots hold {edge} frames, the clip {self.frames.shape[0]}")

    @property
    def length(self) -> int:
        """Number of frames T."""
        return self.shots[-1].end

    @property
    def cuts(self) -> tuple[float, ...]:
        """Times of the cuts between shots, seconds."""
        return tuple(shot.start / self.fps for shot in self.shots[1:])
