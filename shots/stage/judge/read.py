"""Reads shots and films back into facts, with a probability for each.

Notable choices:

- A shot is read from a dozen frames spread over it, with their times: any length, any frame rate, any size. Of a
  picture that is not square the middle square is read.
- A shot that is not sound (noise, a blend of two, melting) reads as "none" in everything: each probability is
  multiplied by the one that the shot is sound.
- The weights in this folder are checked against the hash in `config.json` before they are used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from shots.errors import ShotsError
from shots.runtime.device import pick_device, pick_dtype
from shots.runtime.weights import load_into, load_tensors
from shots.video import Video

from ..facts import ActorFacts, Facts
from ..scene import COLOURS
from .cuts import cut_features
from .model import SHOT_FACTS, SLOT_FACTS, JudgeConfig, JudgeNet
from .pool import fit, sample_indices

SHIPPED = Path(__file__).parent
LASTING = ("colour", "shape", "size", "surface")  # what an actor keeps from shot to shot


@dataclass(frozen=True)
class ActorReading:
    """What is read of the actor of one colour: the probability that there is one, and per fact that of each value."""

    there: float
    facts: dict[str, dict[str, float]]

    def best(self, fact: str) -> str:
        """The likeliest value of a fact."""
        return max(self.facts[fact], key=self.facts[fact].__getitem__)


@dataclass(frozen=True)
class Reading:
    """What is read of one shot: whether it is whole, per fact of the shot the probability of each value ("none" among
    them), and the actors by colour (all ten; most are not there)."""

    sound: float
    shot: dict[str, dict[str, float]]
    actors: dict[str, ActorReading]
    present: tuple[str, ...] = field(default=())

    def best(self, fact: str) -> str:
        """The likeliest value of a fact of the shot; "none" is one of them."""
        return max(self.shot[fact], key=self.shot[fact].__getitem__)

    def facts(self) -> Facts:
        """The likeliest facts, as `facts_of` gives them of a film; what reads as "none" is left out."""
        actors = []
        for colour in self.present:
            actor = self.actors[colour]
            action = actor.best("action")
            actors.append(ActorFacts(
                colour=colour, shape=actor.best("shape"), size=actor.best("size"), surface=actor.best("surface"),
                action=action,
                other=actor.best("other") if action in ("circle", "push", "jump_over", "hide_behind") else None,
                new_colour=actor.best("new_colour") if action == "change_colour" else None,
                actions=() if action == "still" else (action,),
            ))
        said = {name: value for name in SHOT_FACTS if name != "count" and (value := self.best(name)) != "none"}
        fog = said.pop("fog", None)
        return Facts(actors=tuple(actors), fog=None if fog is None else fog == "yes", **said)

    def probability(self, name: str, value: str | bool) -> float:
        """Probability of one fact by its flat name (`Facts.pairs`): "camera", "red.shape" ...; that of "red.action"
        holds the one that there is a red actor."""
        if isinstance(value, bool):
            value = "yes" if value else "no"
        colour, _, fact = name.rpartition(".")
        if not colour:
            return self.shot[fact].get(value, 0.0)
        actor = self.actors[colour]
        return actor.facts[fact].get(value, 0.0) * (1.0 if fact == "shape" else actor.there)


@dataclass(frozen=True)
class FilmReading:
    """The shots of a film, the frames at which later shots start, and how far lasting facts of its actors agree."""

    shots: tuple[Reading, ...]
    cuts: tuple[int, ...]

    def agreement(self, shown: Sequence[Facts] | None = None) -> tuple[int, int]:
        """How many lasting facts (colour, shape, size, surface) of actors agree between neighbouring shots, and of how
        many.

        With `shown`, the facts that can be told in each shot, only those told in both are counted; without, all facts
        of the actors read in either. An actor missing in one of the two shots agrees in nothing.
        """
        agree = total = 0
        for k, (first, second) in enumerate(zip(self.shots, self.shots[1:], strict=False)):
            wanted: dict[str, tuple[str, ...]] = dict.fromkeys({*first.present, *second.present}, LASTING)
            if shown is not None:
                wanted = _told_in_both(shown[k], shown[k + 1])
            for colour, facts in wanted.items():
                total += len(facts)
                if colour in first.present and colour in second.present:
                    a, b = first.actors[colour], second.actors[colour]
                    agree += sum(fact == "colour" or a.best(fact) == b.best(fact) for fact in facts)
        return agree, total


def _told_in_both(first: Facts, second: Facts) -> dict[str, tuple[str, ...]]:
    """Lasting facts by colour of the actors told in both shots."""
    told: dict[str, tuple[str, ...]] = {}
    for actor in first.actors:
        other = second.actor(actor.colour) if actor.colour is not None else None
        if actor.colour is not None and other is not None:
            known = [f for f in LASTING[1:] if getattr(actor, f) is not None and getattr(other, f) is not None]
            told[actor.colour] = ("colour", *known)
    return told


class Judge:
    """The judge with its weights, ready to read. `Judge.load()` gives the shipped one."""

    def __init__(self, model: JudgeNet) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.dtype, _ = pick_dtype(self.device)

    @classmethod
    def load(cls, folder: str | Path | None = None, device: str | None = None) -> Judge:
        """The judge in `folder`, or the shipped one. Raises ShotsError for missing, changed or unfitting weights."""
        folder = Path(folder) if folder is not None else SHIPPED
        path = folder / "config.json"
        if not path.is_file():
            raise ShotsError(f"judge: no config.json in {folder}; train one (task: judge) or install again")
        card = json.loads(path.read_text(encoding="utf-8"))
        sizes = {name: card[name] for name in JudgeConfig().to_dict() if name in card}
        if "glimpse" not in card:  # from before there was a closer view
            sizes |= {"whole": card["size"], "glimpse": 0}
        model = JudgeNet(JudgeConfig(**sizes))
        tensors = load_tensors(folder, expected_sha256=card["sha256"])
        load_into(model, {name: tensor.float() for name, tensor in tensors.items()}, f"judge at {folder}")
        return cls(model.to(pick_device(device)))

    def read(self, frames: NDArray[np.uint8], fps: float) -> Reading:
        """Reads one shot, uint8 (T, H, W, 3) at `fps` frames a second."""
        return self.read_many([frames], fps)[0]

    @torch.no_grad()
    def read_many(self, shots: Sequence[NDArray[np.uint8]], fps: float, batch: int = 16) -> list[Reading]:
        """Reads several shots of one frame rate, each uint8 (T, H, W, 3), of any lengths and sizes."""
        config = self.model.config
        if fps <= 0:
            raise ShotsError(f"judge: fps is {fps}, but must be positive")
        readings: list[Reading] = []
        for start in range(0, len(shots), batch):
            pictures, times = [], []
            for shot in shots[start : start + batch]:
                if shot.ndim != 4 or shot.shape[-1] != 3 or not len(shot) or shot.dtype != np.uint8:
                    raise ShotsError(f"judge: a shot is {shot.dtype} {shot.shape}, not uint8 (T, H, W, 3) with T >= 1")
                pick = sample_indices(len(shot), config.frames)
                pictures.append(fit(torch.from_numpy(np.ascontiguousarray(shot[pick])), config.size))
                times.append(torch.from_numpy(pick / fps).float())
            x = torch.stack(pictures).permute(0, 1, 4, 2, 3).float().to(self.device) / 255.0  # (B, T, 3, s, s)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                out = self.model(x, torch.stack(times).to(self.device))
            rows = {name: value.float().cpu() for name, value in out.items() if not name.startswith(("map", "frame/"))}
            readings += [_reading({name: value[i] for name, value in rows.items()}) for i in range(len(pictures))]
        return readings

    @torch.no_grad()
    def sound(self, frames: torch.Tensor, seconds: torch.Tensor) -> torch.Tensor:
        """Probability (B,) that each shot is whole; arguments as the network's."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(frames.to(self.device), seconds.to(self.device))["sound"].float().sigmoid().cpu()

    def cuts(self, frames: NDArray[np.uint8], threshold: float = 0.5) -> tuple[int, ...]:
        """Frames at which a hard cut starts a new shot, of uint8 (T, H, W, 3)."""
        features = cut_features(torch.from_numpy(np.ascontiguousarray(frames)))
        if not len(features):
            return ()
        with torch.no_grad():
            found = self.model.cuts.float()(features.to(self.device)).sigmoid().cpu() > threshold
        return tuple(int(i) + 1 for i in found.nonzero()[:, 0])

    def read_film(self, video: Video, cuts: Sequence[float] | None = None) -> FilmReading:
        """Reads each shot of a video.

        `cuts` are the times in seconds at which later shots start, none for one shot: the video's own by default, or
        found in the pictures where it has none.
        """
        times = cuts if cuts is not None else video.cuts or None
        starts = self.cuts(video.frames) if times is None else tuple(sorted({round(t * video.fps) for t in times}))
        starts = tuple(s for s in starts if 0 < s < len(video.frames))
        edges = [0, *starts, len(video.frames)]
        shots = [video.frames[a:b] for a, b in zip(edges, edges[1:], strict=False)]
        return FilmReading(tuple(self.read_many(shots, video.fps)), starts)


def _reading(row: dict[str, torch.Tensor]) -> Reading:
    sound = float(row["sound"].sigmoid())
    shot: dict[str, dict[str, float]] = {}
    for name, values in SHOT_FACTS.items():
        p = row[f"shot/{name}"].softmax(-1) * sound
        p[0] += 1.0 - sound
        shot[name] = dict(zip(values, p.tolist(), strict=True))
    actors: dict[str, ActorReading] = {}
    heads = {name: row[f"slot/{name}"].softmax(-1) for name in SLOT_FACTS}  # (10, n)
    for i, colour in enumerate(COLOURS):
        shape = heads["shape"][i] * sound
        there = float(shape[1:].sum())
        facts = {name: dict(zip(values, heads[name][i].tolist(), strict=True)) for name, values in SLOT_FACTS.items()}
        facts["shape"] = dict(zip(SLOT_FACTS["shape"][1:], shape[1:].tolist(), strict=True))
        actors[colour] = ActorReading(there, facts)
    return Reading(sound, shot, actors, tuple(colour for colour in COLOURS if actors[colour].there > 0.5))
