"""What is measured of cuts: hard cuts and gradual ones on films of the stage, and on real clips whose cuts are known.

Notable choices:
- Stage films come from seeds that no threshold was set on; every film has four shots of two seconds on one set.
- A hard cut is found within one frame, and counts once; whatever else is called a cut is false, gradual ones too.
- A gradual one is found where a gradual cut's middle lies within it (0.1 s beyond its ends).
- Of the real clips only hard cuts are listed, so only hard cuts are scored.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from shots.stage.heldout import TRAINING_SEEDS
from tests.benchmarks.figures import ROOT, Row

FIRST_SEED, FILMS = TRAINING_SEEDS + 700_000, 50
FPS, SECONDS, SHOTS = 12.0, 2.0, 4
DATA = ROOT.parent / "shared" / "data"


def cuts(limit: int | None = None) -> list[Row]:
    """F1 of hard cuts and share of gradual ones found, on the stage and on real clips."""
    count = min(FILMS, limit or FILMS)
    hard, _ = _stage(range(FIRST_SEED, FIRST_SEED + count), transitions=False)
    mixed, gradual = _stage(range(FIRST_SEED, FIRST_SEED + count), transitions=True)
    rows = [
        (f"cuts: hard cuts of {count} stage films, F1 at one frame", _told(hard), "100 %"),
        ("the same among dissolves and fades", _told(mixed), "-"),
        ("dissolves and fades of stage films found", f"{_percent(gradual[0], gradual[1])} of {gradual[1]}", ">= 80 %"),
    ]
    if DATA.is_dir():
        real = _real(DATA)
        rows.append(("cuts: hard cuts of real clips, F1 at one frame", _told(real), ">= 95 %"))
    return rows


def _stage(seeds: range, transitions: bool) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """(hits, missed, false) of hard cuts, and (found, of) of gradual ones."""
    from shots.cuts import find_cuts
    from shots.stage.render import render_film
    from shots.stage.writer import write_film
    from shots.video import Video

    hits = missed = false = found = gradual = 0
    for seed in seeds:
        film = write_film(seed, shots=SHOTS, seconds=SECONDS, transitions=transitions)
        rendered = render_film(film, 128, 128, FPS)
        frames = rendered.frames.numpy()
        left = list(find_cuts(Video(frames, FPS, np.arange(len(frames)) / FPS)).cuts)
        for edge, shot in zip(rendered.boundaries, film.shots[1:], strict=True):
            if shot.transition == "cut":
                near = [cut for cut in left if cut.kind == "hard" and abs(cut.frame - edge) <= 1]
                hits, missed = hits + bool(near), missed + (not near)
            else:
                begin = edge / FPS - (shot.transition_seconds if shot.transition == "fade" else 0.0)
                end = edge / FPS + shot.transition_seconds
                near = [cut for cut in left if cut.kind == "gradual" and begin - 0.1 <= cut.time <= end + 0.1]
                found, gradual = found + bool(near), gradual + 1
            if near:
                left.remove(near[0])
        false += len(left)
    return (hits, missed, false), (found, gradual)


def _real(data: Path) -> tuple[int, int, int]:
    """(hits, missed, false) of the hard cuts of clips whose hard cuts are listed; gradual ones are not listed."""
    from shots.cuts import find_cuts

    known = json.loads((data / "annotations" / "shot_cuts.json").read_text(encoding="utf-8"))
    hits = missed = false = 0
    for name, told in known.items():
        if isinstance(told, dict):
            wanted = told.get("hard_cuts", [])
            left = [cut.frame for cut in find_cuts(data / "video" / name).cuts if cut.kind == "hard"]
            for frame in wanted:
                near = [cut for cut in left if abs(cut - frame) <= 1]
                hits, missed = hits + bool(near), missed + (not near)
                if near:
                    left.remove(near[0])
            false += len(left)
    return hits, missed, false


def _told(counts: tuple[int, int, int]) -> str:
    hits, missed, false = counts
    return f"{_percent(2 * hits, 2 * hits + missed + false)} (n = {hits + missed}: {missed} missed, {false} false)"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
