"""How well films follow their prompts: what the judge reads in them beside what was asked for.

Notable choices:

- Scored are the facts that a script says and that a viewer could tell (`SuiteItem.said`), averaged per type of fact, so
  that frequent types do not drown rare ones; beside it, how many shots have all core facts right (colour, shape and
  action of every actor).
- The same films are scored against the next film's script as well: what a renderer gets that ignores its prompt.
- An actor whose colour the script leaves open is matched to the actor of the film that fits it best.
- It measures only. Nothing here may choose takes or train a model.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shots.errors import ShotsError
from shots.script import Script
from shots.stage.facts import ActorFacts, Facts

if TYPE_CHECKING:
    from shots.protocols import Renderer
    from shots.stage.heldout import SuiteItem
    from shots.stage.judge.read import FilmReading, Judge, Reading
    from shots.video import Video

Frames = NDArray[np.uint8]
Progress = Callable[[int, int, str], None]
Degrade = Callable[[Frames], Frames]
CORE = ("colour", "shape", "action")


class Animator(Protocol):
    """Makes a film from a script and its first frame, uint8 (H, W, 3)."""

    def __call__(self, script_or_prompt: Script | str, *, image: Frames, seed: int = 0) -> Video: ...


@dataclass
class Score:
    """Facts counted by type, and shots by whether all their core facts are right."""

    facts: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    core: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, said: Facts, reading: Reading, count: int | None = None) -> None:
        """Adds one shot: what was said of it, what is read in it, and the number of actors where that was said."""
        core = True
        for kind, right in shot_hits(said, reading, count):
            self.facts[kind][0] += right
            self.facts[kind][1] += 1
            core = core and (right or kind not in CORE)
        if said.actors:
            self.core[0] += core
            self.core[1] += 1

    def report(self) -> dict[str, Any]:
        """Shares: per type, their mean, and all core facts right; `of` says how many were counted."""
        shares = {kind: right / of for kind, (right, of) in sorted(self.facts.items())}
        return {
            "facts_per_type": float(np.mean(list(shares.values()))) if shares else None,
            "all_core_facts": self.core[0] / self.core[1] if self.core[1] else None,
            "types": shares,
            "of": {kind: of for kind, (_, of) in sorted(self.facts.items())},
        }


def shot_hits(said: Facts, reading: Reading, count: int | None = None) -> list[tuple[str, bool]]:
    """(type of fact, whether the reading agrees) for every fact said of a shot."""
    hits: list[tuple[str, bool]] = []
    if count is not None:
        hits.append(("count", reading.best("count") == (str(count) if count else "none")))
    for kind in ("camera", "shot_size", "angle", "floor", "sky", "style"):
        value = getattr(said, kind)
        if value is not None:
            hits.append((kind, reading.best(kind) == value))
    if said.fog is not None:
        hits.append(("fog", reading.best("fog") == ("yes" if said.fog else "no")))
    taken = {actor.colour for actor in said.actors}
    for actor in said.actors:
        colour = actor.colour
        if colour is None:
            colour = _closest(actor, reading, taken)
            taken.add(colour)
        else:
            hits.append(("colour", colour in reading.present))
        hits += _actor_hits(actor, colour, reading)
    return hits


def _actor_hits(actor: ActorFacts, colour: str | None, reading: Reading) -> list[tuple[str, bool]]:
    hits = []
    for kind in ("shape", "size", "surface", "action", "other", "new_colour"):
        value = getattr(actor, kind)
        if value is not None:
            hits.append((kind, colour in reading.present and reading.actors[colour].best(kind) == value))
    return hits


def _closest(actor: ActorFacts, reading: Reading, taken: set[str | None]) -> str | None:
    """The colour of the actor in the film that agrees best with one whose colour was left open."""
    free = [colour for colour in reading.present if colour not in taken]
    return max(free, key=lambda colour: sum(hit for _, hit in _actor_hits(actor, colour, reading)), default=None)


def shot_starts(script: Script, fps: float, default_seconds: float = 3.0) -> list[int]:
    """Frame at which each shot of a script starts, and the number of frames: a shot of s seconds has round(s * fps)."""
    edges = [0]
    for shot in script.shots:
        edges.append(edges[-1] + max(1, round((shot.seconds or default_seconds) * fps)))
    return edges


def _counts(item: SuiteItem) -> list[int | None]:
    """Number of actors per shot, where the caption names every one that can be seen."""
    numbers = [(len(said.actors), len(shown.actors)) for said, shown in zip(item.said, item.shown, strict=True)]
    return [said if said and said == shown else None for said, shown in numbers]


def evaluate_prompts(
    renderer: Renderer,
    suite: Sequence[SuiteItem],
    judge: Judge,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    keep: Callable[[SuiteItem, Video, FilmReading], None] | None = None,
) -> dict[str, Any]:
    """Renders a suite and scores it.

    `progress` gets (films done, films, the last film's prompt); `keep` every film with its reading, for a contact
    sheet.
    Film number i is rendered from seed `seed + i`. The report: shares of facts right per type, their mean and all core
    facts right (`following`), the same against shuffled prompts (`shuffled`), shots that read as whole (`sound`),
    lasting facts of actors that agree from shot to shot (`consistency`), cuts found at the script's frames, and others.
    """
    if not suite:
        raise ShotsError("suite: it holds no films")
    readings: list[FilmReading] = []
    found_cuts = wanted_cuts = false_cuts = agree = lasting = 0
    seconds = 0.0
    for number, item in enumerate(suite):
        begun = time.monotonic()
        video = renderer(item.script, seed=seed + number)
        seconds += time.monotonic() - begun
        edges = shot_starts(item.script, video.fps, item.seconds)
        if edges[-1] != len(video.frames):
            raise ShotsError(f"renderer: {len(video.frames)} frames for a script of {edges[-1]} at {video.fps:g} fps")
        reading = judge.read_film(video, [edge / video.fps for edge in edges[1:-1]])
        readings.append(reading)
        seen, wanted = set(judge.cuts(video.frames)), set(edges[1:-1])
        found_cuts, wanted_cuts, false_cuts = (
            found_cuts + len(seen & wanted), wanted_cuts + len(wanted), false_cuts + len(seen - wanted)
        )
        same, of = reading.agreement(item.shown)
        agree, lasting = agree + same, lasting + of
        if keep is not None:
            keep(item, video, reading)
        if progress is not None:
            progress(number + 1, len(suite), item.script.shots[0].caption)
    straight, shuffled = Score(), Score()
    for number, item in enumerate(suite):
        other = suite[(number + 1) % len(suite)]
        for k, shot in enumerate(readings[number].shots):
            straight.add(item.said[k], shot, _counts(item)[k])
            wrong = k % len(other.said)
            shuffled.add(other.said[wrong], shot, _counts(other)[wrong])
    shots = [shot for reading in readings for shot in reading.shots]
    return {
        "films": len(suite),
        "shots": len(shots),
        "seconds_per_film": seconds / len(suite),
        "following": straight.report(),
        "shuffled": shuffled.report(),
        "sound": float(np.mean([shot.sound > 0.5 for shot in shots])),
        "consistency": agree / lasting if lasting else None,
        "cuts_found": found_cuts / wanted_cuts if wanted_cuts else None,
        "false_cuts": false_cuts,
    }


def psnr(a: Frames, b: Frames) -> float:
    """Peak signal-to-noise ratio of two uint8 arrays of one shape, dB; infinite where they are equal."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10.0 * math.log10(255.0**2 / error)


def jumps(frames: Frames) -> tuple[float, float]:
    """How much the picture changes from frame 0 to the mean of frames 1-4, and, averaged, from each later frame 4 k to
    the mean of the four after it: mean absolute differences in 8-bit steps. Each four frames come from one latent."""
    x = frames.astype(np.float32)
    steps = [float(np.abs(x[i] - x[i + 1 : i + 5].mean(0)).mean()) for i in range(0, len(x) - 4, 4)]
    if len(steps) < 2:
        raise ShotsError(f"frames: {len(x)} are too few to compare jumps; at least 9 are needed")
    return steps[0], float(np.mean(steps[1:]))


def evaluate_first_frames(
    animator: Animator,
    suite: Sequence[SuiteItem],
    judge: Judge,
    roundtrip: Degrade,
    *,
    height: int = 128,
    width: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Films from a first frame and a prompt: is the picture kept, does the film go on smoothly, is the prompt followed.

    The first frames are the stage's own. `roundtrip` sends uint8 (1, H, W, 3) through the video autoencoder and back:
    the best that frame 0 can be.
    """
    import torch

    from shots.stage.render import render_film

    if not suite:
        raise ShotsError("suite: it holds no films")
    kept, best, first, later, score = [], [], [], [], Score()
    for number, item in enumerate(suite):
        film = item.film()
        still = [torch.zeros(1, dtype=torch.float64) for _ in film.shots]
        picture = render_film(film, height, width, times=still).frames[:1].numpy()
        video = animator(item.script, image=picture[0], seed=seed + number)
        kept.append(psnr(video.frames[:1], picture))
        best.append(psnr(roundtrip(picture), picture))
        edge = shot_starts(item.script, video.fps, item.seconds)[1]
        begin, rest = jumps(video.frames[:edge])
        first.append(begin)
        later.append(rest)
        score.add(item.said[0], judge.read(video.frames[:edge], video.fps))
        if progress is not None:
            progress(number + 1, len(suite), item.script.shots[0].caption)
    report = score.report()
    return {
        "films": len(suite),
        "frame_0_psnr": float(np.mean(kept)),
        "autoencoder_psnr": float(np.mean(best)),
        "below_autoencoder_db": float(np.mean(best) - np.mean(kept)),
        "first_jump": float(np.mean(first)),
        "later_jump": float(np.mean(later)),
        "action_facts": report["types"].get("action"),
        "following": report,
    }


def evaluate_suites(
    renderer: Renderer,
    animator: Animator,
    judge: Judge,
    roundtrip: Degrade,
    *,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The reports of all suites fixed in the repository, by name; `limit` takes only the first films of each."""
    from shots.stage.heldout import SUITES, suite

    if limit is not None and limit < 1:
        raise ShotsError(f"limit: {limit}; at least 1 film of each suite is needed")
    reports: dict[str, Any] = {}
    for name in SUITES:
        items = suite(name)[:limit]
        if name == "first_frame":
            reports[name] = evaluate_first_frames(animator, items, judge, roundtrip, seed=seed, progress=progress)
        else:
            reports[name] = evaluate_prompts(renderer, items, judge, seed=seed, progress=progress)
    return reports


def evaluate_judge(
    judge: Judge, films: int = 200, degrade: Degrade | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """The judge against the stage, on films it never saw: share of observable facts read right, per type.

    `degrade` maps uint8 (T, 128, 128, 3), T = 1 + 4 n, to the same shape: a round trip through a video autoencoder,
    say. `absent` is the share of colours that are not there and read so; `broken_called` that of spoilt shots that read
    as not whole.
    """
    import torch

    from shots.stage.judge.augment import plain, spoil
    from shots.stage.judge.pool import CHECK_SEEDS, Example, examples, stack
    from shots.stage.judge.train import count_right

    rng = np.random.default_rng(0)
    right: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    rows: list[Example] = []
    for number in range(films):
        rows += examples(CHECK_SEEDS + 1_000_000 + number, judge.model.config, degrade)
        if progress is not None:
            progress(number + 1, films, f"film {number}")
        if len(rows) >= 16 or number == films - 1:
            batch = plain(stack(rows))
            for kind, (hits, of) in count_right(judge.model, batch, judge.dtype).items():
                right[kind][0] += hits
                right[kind][1] += of
            clean = batch.frames.clone()
            for i in range(len(rows)):
                spoil(batch, i, clean[(i + 1) % len(rows)], rng)
            with torch.no_grad():
                called = judge.sound(batch.frames, batch.seconds) < 0.5
            judged = batch.sound == 0
            right["broken_called"][0] += int((called & judged).sum())
            right["broken_called"][1] += int(judged.sum())
            rows = []
    return {
        "films": films,
        "right": {kind: hits / of for kind, (hits, of) in sorted(right.items()) if of},
        "of": {kind: of for kind, (_, of) in sorted(right.items()) if of},
    }


def told(facts: Facts) -> str:
    """Facts in one line, for a contact sheet."""
    return ", ".join(f"{name} {value}" for name, value in facts.pairs().items())
