"""What a film is made from: one dataclass that says which latents are given, which words are said, and when.

Notable choices:

- One input form for every task (Seedance 1.0, unified task input): noisy | clean-or-zero | mask on channels.
  Text-to-image, text-to-video, first frame, first and last frame, extension and shot re-take are the same tensors
  with other masks; :func:`given_mask` is the one place that says which latent frames a mode gives, for training and
  for rendering alike.
- Shots lie one after another on the latent time axis; ``shot`` names the shot of each latent frame and ``text_shot``
  the shot of each text token, so nothing has to be recomputed from shapes once tokens are reordered into windows.
- ``seconds`` is film time. Positions are computed from it, so a clip at 6 fps does not teach half the speed.
- Dropping the text for classifier-free guidance hides it from attention but keeps ``text_shot``: positions do not
  move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from seedance.errors import SeedanceError

PADDING = -1  # text_shot of a padded text token; 0 is the global caption, k the k-th shot

Mode = Literal["text", "first", "first_last", "extend", "retake"]


@dataclass(frozen=True)
class Conditioning:
    """Everything the DiT is told beside the noisy latents and the time. B films of t latent frames on an h x w grid.

    Attributes:
        clean: (B, C, t, h, w) latents (normalised, as the VAE's ``normalize`` gives them), zero where ``mask`` is 0.
        mask: (B, t) float, 1 where the latent frame is given, 0 where it is to be made.
        text: (B, N, D) token states of the captions, all captions of a film side by side.
        text_mask: (B, N) bool, True where there is a token to attend to.
        text_shot: (B, N) int, 0 for the global caption, k for the caption of the k-th shot, -1 for padding.
        shot: (B, t) int, 1-based, non-decreasing: the shot each latent frame belongs to.
        seconds: (B, t) float, film time of each latent frame in seconds, increasing.
    """

    clean: Tensor
    mask: Tensor
    text: Tensor
    text_mask: Tensor
    text_shot: Tensor
    shot: Tensor
    seconds: Tensor

    def __post_init__(self) -> None:
        b, _, t, _, _ = self.clean.shape
        n = self.text.shape[1]
        for name, shape in (
            ("mask", (b, t)), ("shot", (b, t)), ("seconds", (b, t)), ("text_mask", (b, n)), ("text_shot", (b, n)),
        ):  # fmt: skip
            if tuple(getattr(self, name).shape) != shape:
                raise SeedanceError(
                    f"Conditioning.{name} has shape {tuple(getattr(self, name).shape)}, but clean "
                    f"{tuple(self.clean.shape)} and text {tuple(self.text.shape)} ask for {shape}"
                )

    # ------------------------------------------------------------------ making one

    @classmethod
    def text_to_video(
        cls,
        captions: Sequence[Tensor],
        frames: Sequence[int],
        grid: tuple[int, int],
        *,
        fps: float,
        channels: int = 48,
        caption: Tensor | None = None,
        ratio: int = 4,
    ) -> Conditioning:
        """One film (B = 1) from words alone; the other modes start from it.

        Args:
            captions: one (n, D) tensor of token states per shot.
            frames: latent frames of each shot.
            grid: latent height and width.
            fps: pixel frames per second; the latent frames are ``ratio / fps`` seconds apart.
            caption: (n, D) states of the global caption, if the script has one.
        """
        if len(captions) != len(frames) or not captions:
            raise SeedanceError(
                f"frames: {len(frames)} shots, but captions has {len(captions)}; give one of each per shot"
            )
        groups = ([] if caption is None else [caption]) + list(captions)
        text, text_shot = join_text(groups, list(range(0 if caption is not None else 1, len(captions) + 1)))
        shot, seconds = shot_times(frames, fps, ratio)
        t, (h, w) = sum(frames), grid
        return cls(
            clean=torch.zeros(1, channels, t, h, w),
            mask=torch.zeros(1, t),
            text=text[None],
            text_mask=(text_shot >= 0)[None],
            text_shot=text_shot[None],
            shot=shot[None],
            seconds=seconds[None],
        )

    @classmethod
    def text_to_image(cls, caption: Tensor, grid: tuple[int, int], *, channels: int = 48) -> Conditioning:
        """One picture (a film of one latent frame, B = 1) from the (n, D) token states of its caption."""
        return cls.text_to_video([caption], [1], grid, fps=1.0, channels=channels)

    def given(self, latents: Tensor, mask: Tensor) -> Conditioning:
        """The same film with the latent frames of ``mask`` (B, t) given as in ``latents`` (B, C, t, h, w)."""
        if latents.shape != self.clean.shape:
            raise SeedanceError(f"latents has shape {tuple(latents.shape)}, the film needs {tuple(self.clean.shape)}")
        mask = mask.to(self.mask)
        clean = torch.where(mask[:, None, :, None, None] > 0, latents.to(self.clean), 0)  # (B, C, t, h, w)
        return replace(self, clean=clean, mask=mask)

    def first_frame(self, latent: Tensor) -> Conditioning:
        """Image-to-video: ``latent`` (B, C, h, w) or (C, h, w) is the first latent frame."""
        return self.given(self._placed({0: latent}), given_mask("first", self.shot))

    def first_and_last(self, first: Tensor, last: Tensor) -> Conditioning:
        """``first`` and ``last`` (B, C, h, w) or (C, h, w) are the first and last latent frames."""
        t = self.frames
        return self.given(self._placed({0: first, t - 1: last}), given_mask("first_last", self.shot))

    def extend(self, leading: Tensor) -> Conditioning:
        """Extension: ``leading`` (B, C, k, h, w) with k < t are the first k latent frames, the rest is to be made."""
        k = leading.shape[2]
        if not 1 <= k < self.frames:
            raise SeedanceError(
                f"leading has {k} latent frames; a film of {self.frames} can be extended from 1 to {self.frames - 1}"
            )
        placed = {i: leading[:, :, i] for i in range(k)}
        return self.given(self._placed(placed), given_mask("extend", self.shot, leading=k))

    def retake(self, latents: Tensor, shots: Sequence[int]) -> Conditioning:
        """Shot re-take: the film ``latents`` (B, C, t, h, w) stands but for ``shots`` (1-based), made anew."""
        return self.given(latents, given_mask("retake", self.shot, shots=shots))

    def _placed(self, at: dict[int, Tensor]) -> Tensor:
        latents = torch.zeros_like(self.clean)
        for index, latent in at.items():
            if tuple(latent.shape[-3:]) != (self.clean.shape[1], *self.clean.shape[3:]):
                raise SeedanceError(
                    f"a given frame has latent shape {tuple(latent.shape[-3:])}, the film needs "
                    f"{(self.clean.shape[1], *self.clean.shape[3:])}; encode it at the film's size"
                )
            latents[:, :, index] = latent.to(latents)
        return latents

    # ------------------------------------------------------------------ changing one

    def drop_text(self, drop: Tensor | None = None) -> Conditioning:
        """Hides the words of the films in ``drop`` (B,) bool, or of all: the unconditional branch of guidance."""
        if drop is None:
            return replace(self, text_mask=torch.zeros_like(self.text_mask))
        return replace(self, text_mask=self.text_mask & ~drop.to(self.text_mask.device, torch.bool)[:, None])

    def with_text(self, other: Conditioning) -> Conditioning:
        """The same film under the words of ``other`` (a negative prompt, a re-written script)."""
        return replace(self, text=other.text, text_mask=other.text_mask, text_shot=other.text_shot)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """Moves all tensors; ``dtype`` applies to latents and text states only (masks, ids and seconds keep theirs)."""
        moved = {
            f.name: getattr(self, f.name).to(device) if device is not None else getattr(self, f.name)
            for f in fields(self)
        }
        if dtype is not None:
            moved |= {"clean": moved["clean"].to(dtype), "text": moved["text"].to(dtype)}
        return Conditioning(**moved)

    def __len__(self) -> int:
        return self.clean.shape[0]

    def __getitem__(self, index: slice) -> Conditioning:
        return Conditioning(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @property
    def frames(self) -> int:
        """Latent frames."""
        return self.clean.shape[2]


def collate(films: Sequence[Conditioning]) -> Conditioning:
    """Joins films of one latent size into a batch; shorter texts are padded with hidden tokens (``text_shot`` -1)."""
    sizes = {tuple(f.clean.shape[1:]) for f in films}
    if len(sizes) != 1:
        raise SeedanceError(
            f"films: a batch needs one latent size, got {sorted(sizes)}; sort films into buckets of one size"
        )
    longest = max(f.text.shape[1] for f in films)
    films = [pad_text(f, longest) for f in films]
    return Conditioning(**{f.name: torch.cat([getattr(film, f.name) for film in films]) for f in fields(Conditioning)})


def pad_text(film: Conditioning, length: int) -> Conditioning:
    """``film`` with its text padded to ``length`` tokens."""
    extra = length - film.text.shape[1]
    if extra <= 0:
        return film
    return replace(
        film,
        text=torch.nn.functional.pad(film.text, (0, 0, 0, extra)),
        text_mask=torch.nn.functional.pad(film.text_mask, (0, extra), value=False),
        text_shot=torch.nn.functional.pad(film.text_shot, (0, extra), value=PADDING),
    )


def join_text(groups: Sequence[Tensor], shots: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Lays captions side by side: (n_k, D) states and their shot ids -> text (N, D), text_shot (N,)."""
    text_shot = torch.cat([torch.full((g.shape[0],), k, dtype=torch.long) for g, k in zip(groups, shots, strict=True)])
    return torch.cat(list(groups)), text_shot


def shot_times(frames: Sequence[int], fps: float, ratio: int = 4) -> tuple[Tensor, Tensor]:
    """Shot ids (t,) and film seconds (t,) of latent frames, for shots of ``frames`` latent frames at ``fps`` pixel
    frames per second.

    A shot of n latent frames holds 1 + ratio (n - 1) pixel frames; latent frame i carries the time of the last pixel
    frame it holds.
    """
    if fps <= 0 or any(n < 1 for n in frames):
        raise SeedanceError(
            f"fps {fps} and frames {list(frames)}: fps must be above 0 and every shot needs a latent frame"
        )
    shot = torch.cat([torch.full((n,), k + 1, dtype=torch.long) for k, n in enumerate(frames)])
    seconds, start = [], 0
    for n in frames:
        seconds.append((start + ratio * torch.arange(n)) / fps)
        start += 1 + ratio * (n - 1)
    return shot, torch.cat(seconds).float()


def given_mask(
    mode: Mode, shot: Tensor, *, leading: int | Tensor = 1, shots: Sequence[int] | Tensor | None = None
) -> Tensor:
    """Which latent frames a mode gives: (B, t) float mask for the shot ids ``shot`` (B, t).

    Args:
        mode: "text" gives nothing; "first" the first latent frame; "first_last" the first and the last; "extend" the
            first ``leading`` (an int, or one per film); "retake" every shot but ``shots``.
        shots: for "retake", the 1-based shots to make anew: numbers for all films, or a (B, t) bool tensor True where
            a frame is made anew.
    """
    b, t = shot.shape
    index = torch.arange(t, device=shot.device).expand(b, t)  # (B, t)
    if mode == "text":
        given = torch.zeros_like(index, dtype=torch.bool)
    elif mode == "first":
        given = index == 0
    elif mode == "first_last":
        given = (index == 0) | (index == t - 1)
    elif mode == "extend":
        given = index < torch.as_tensor(leading, device=shot.device).reshape(-1, 1)
    elif mode == "retake":
        if isinstance(shots, Tensor):
            given = ~shots.bool()
        else:
            wanted = torch.tensor(list(shots or []), device=shot.device)
            missing = sorted(set(wanted.tolist()) - set(shot.unique().tolist()))
            if missing or not len(wanted):
                raise SeedanceError(f"shots to re-take: {wanted.tolist()}; the film has shots {shot.unique().tolist()}")
            given = ~torch.isin(shot, wanted)
    else:
        raise SeedanceError(f"mode {mode!r} is not one of {', '.join(get_args(Mode))}")
    return given.float()
