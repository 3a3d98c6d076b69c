"""One call from a seed to training data: a film written, rendered, observed, captioned and labelled.

Notable choices:

- A shot of `frames` frames at `fps` lasts (frames - 1) / fps seconds in the world, so that a low frame rate shows the
  same actions at the same speed as a high one.
- A single frame is a still: it is drawn at a random moment, and its caption says nothing that takes time.
- Labels sit on the latent grid (16 x 16 pixels, first frame alone, then groups of four), for auxiliary targets.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ..clip import Clip, ClipShot
from ..errors import ShotsError
from .facts import core_action
from .observe import Observations, observe
from .render import Rendered, render_film
from .scene import ACTIONS, COLOURS, SHAPES, SIZES, SURFACES, Film
from .words import describe_film, describe_shot
from .writer import write_film

LABELS: dict[str, int] = {
    "colour": 1 + len(COLOURS),
    "shape": 1 + len(SHAPES),
    "size": 1 + len(SIZES),
    "surface": 1 + len(SURFACES),
    "action": 1 + len(ACTIONS),
}
"""Name -> number of classes of the per-cell labels; class 0 is "no actor here"."""
_CELL_SHARE = 0.12  # an actor that covers less of a cell does not label it


@dataclass
class Sample:
    """A film with its pixels and what can be told from them."""

    film: Film
    rendered: Rendered
    observations: Observations

    def clip(self, rng: random.Random, wording: str = "train") -> Clip:
        """The sample as a training `Clip`, captioned anew with `rng`."""
        edges = [0, *self.rendered.boundaries, len(self.rendered.frames)]
        shots = tuple(
            ClipShot(describe_shot(self.film, k, rng, self.observations, wording), edges[k], edges[k + 1])
            for k in range(len(edges) - 1)
        )
        return Clip(
            frames=self.rendered.frames,
            latents=None,
            fps=self.rendered.fps,
            shots=shots,
            caption=describe_film(self.film, rng, wording, self.observations),
            labels=cell_labels(self.film, self.rendered),
            source=f"stage-{self.film.seed}",
        )


def sample(
    seed: int,
    *,
    height: int = 128,
    width: int = 128,
    frames: int = 37,
    fps: float = 12.0,
    shots: int = 1,
    actors: int | None = None,
    split: str = "train",
    device: torch.device | str | None = None,
) -> Sample:
    """Writes, renders and observes the film of `seed`.

    Args:
        height, width: pixels. frames: per shot, 1 + 4n to fit the VAE (not enforced). fps: frames per second. shots:
        number
        of shots. actors: cast size, drawn when None. split: see `shots.stage.writer.write_film`.
    """
    if frames < 1 or shots < 1:
        raise ShotsError(f"frames={frames}, shots={shots}: both must be at least 1")
    seconds = (frames - 1) / fps if frames > 1 else 3.0
    film = write_film(seed, shots=shots, seconds=seconds, actors=actors, split=split)
    if frames > 1:
        times = [torch.arange(frames, dtype=torch.float64) / fps] * shots
    else:
        rng = random.Random(f"still-{seed}")
        times = [torch.tensor([rng.uniform(0.0, seconds)], dtype=torch.float64) for _ in range(shots)]
    rendered = render_film(film, height, width, fps, times=times, device=device)
    return Sample(film, rendered, observe(film, rendered))


def clip(
    seed: int,
    height: int = 128,
    width: int = 128,
    frames: int = 37,
    fps: float = 12.0,
    shots: int = 1,
    split: str = "train",
    device: torch.device | str | None = None,
) -> Clip:
    """The training clip of `seed`: the same arguments give the same clip, bit for bit on one kind of device."""
    made = sample(seed, height=height, width=width, frames=frames, fps=fps, shots=shots, split=split, device=device)
    return made.clip(random.Random(f"words-{seed}"))


def cell_labels(film: Film, rendered: Rendered) -> dict[str, Tensor]:
    """What is in each latent cell: int8 tensors (t, h // 16, w // 16) by the names of `LABELS`, 0 where no actor is.

    Each shot is grouped on its own, first frame alone, then fours, so t is the sum over shots of 1 + (frames - 1) // 4.
    """
    edges = [0, *rendered.boundaries, len(rendered.frames)]
    per_shot: dict[str, list[Tensor]] = {name: [] for name in LABELS}
    for k, shot in enumerate(film.shots):
        instance = rendered.instance[edges[k] : edges[k + 1]]  # (T, H, W)
        cover = torch.stack([(instance == i + 1).float() for i in range(len(film.cast))], 1)  # (T, N, H, W)
        cover = torch.nn.functional.avg_pool2d(cover, 16)  # (T, N, h, w)
        later = cover[1 : 1 + (len(cover) - 1) // 4 * 4]
        groups = torch.cat([cover[:1], later.view(-1, 4, *later.shape[1:]).mean(1)]) if len(later) else cover[:1]
        share, who = groups.max(dim=1)  # (t, h, w)
        table = torch.zeros(len(LABELS), 1 + len(film.cast), dtype=torch.int8, device=instance.device)
        for i, actor in enumerate(film.cast):
            core = core_action([a for a in shot.actions if a.actor == actor.name])
            values = (
                COLOURS.index(actor.colour),
                SHAPES.index(actor.shape),
                SIZES.index(actor.size),
                SURFACES.index(actor.surface),
                ACTIONS.index(core.kind if core else "still"),
            )
            table[:, 1 + i] = torch.tensor(values, dtype=torch.int8) + 1
        index = torch.where(share >= _CELL_SHARE, who + 1, torch.zeros_like(who))
        for row, name in enumerate(LABELS):
            per_shot[name].append(table[row][index])
    return {name: torch.cat(parts) for name, parts in per_shot.items()}
