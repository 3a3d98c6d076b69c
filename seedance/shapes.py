"""The one place where pixels become latents: sizes of videos and of their latents.

Notable choice: ratios (4, 16, 16) with the first frame alone, so 1 + 4n frames make 1 + n latent frames
(Seedance 1.0, section "VAE"; Seaweed-7B has the same geometry).
"""

from __future__ import annotations

from dataclasses import dataclass

from seedance.errors import SeedanceError

RATIO_T = 4
RATIO_S = 16
CHANNELS = 48


@dataclass(frozen=True)
class VideoShape:
    """Frames, height and width of a video in pixels."""

    frames: int
    height: int
    width: int

    @property
    def latent(self) -> LatentShape:
        """The latent shape. Raises SeedanceError when the video does not fit the VAE's grid."""
        if self.frames < 1 or (self.frames - 1) % RATIO_T:
            raise SeedanceError(
                f"frames: {self.frames} is not 1 + {RATIO_T}n; use {fit_frames(self.frames)} and trim what is too much"
            )
        for name, side in (("height", self.height), ("width", self.width)):
            if side < RATIO_S or side % RATIO_S:
                raise SeedanceError(f"{name}: {side} is not a multiple of {RATIO_S}; use {fit_side(side)}")
        return LatentShape(1 + (self.frames - 1) // RATIO_T, self.height // RATIO_S, self.width // RATIO_S)


@dataclass(frozen=True)
class LatentShape:
    """Frames, height and width of a latent, in cells."""

    frames: int
    height: int
    width: int

    @property
    def video(self) -> VideoShape:
        """The shape that decoding gives."""
        return VideoShape(1 + (self.frames - 1) * RATIO_T, self.height * RATIO_S, self.width * RATIO_S)

    @property
    def cells(self) -> int:
        """Number of latent cells, which is the DiT's number of picture tokens."""
        return self.frames * self.height * self.width


@dataclass(frozen=True)
class Ratio:
    """How a model's pixels become latent cells, and cells tokens; the defaults are this package's own VAE and DiT.

    Attributes:
        time: pixel frames of every latent frame but the first, which holds one.
        space: pixels along a side of a latent cell.
        patch, patch_time: latent cells along a side of a token, and latent frames of one.
        group: latent frames after the first come in multiples of it.
    """

    time: int = RATIO_T
    space: int = RATIO_S
    patch: int = 1
    patch_time: int = 1
    group: int = 1

    @property
    def side(self) -> int:
        """What a video's sides are multiples of, in pixels."""
        return self.space * self.patch

    def latent_frames(self, frames: int) -> int:
        """Latent frames that hold ``frames`` pixel frames of one shot."""
        return 1 + max(0, -(-(frames - 1) // (self.time * self.group))) * self.group

    def fit_frames(self, frames: int) -> int:
        """The smallest number of frames that fill latents whole and is not below ``frames``: 1 + ``time`` n."""
        return 1 + (self.latent_frames(frames) - 1) * self.time

    def fit_side(self, side: int) -> int:
        """The allowed side nearest to ``side``."""
        return max(self.side, round(side / self.side) * self.side)

    def tokens(self, frames: int, height: int, width: int) -> int:
        """Tokens of one shot of ``frames`` pixel frames."""
        steps = -(-self.latent_frames(frames) // self.patch_time)
        return steps * (height // self.side) * (width // self.side)


NATIVE = Ratio()


def fit_frames(frames: int) -> int:
    """The smallest 1 + 4n that is not below `frames`."""
    return 1 + max(0, -(-(frames - 1) // RATIO_T)) * RATIO_T


def fit_side(side: int) -> int:
    """The multiple of 16 nearest to `side`, at least 16."""
    return max(RATIO_S, round(side / RATIO_S) * RATIO_S)
