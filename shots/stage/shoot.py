"""Films with their ground truth as files: `seedance stage`.

Notable choices:
- A film from a seed is cut into shots of about three seconds; a film from a script is as long as it says.
- Each shot goes into the file as soon as it is drawn; what stays of it is a few numbers a frame, so memory does not
  grow with the film.
"""

from __future__ import annotations

import json
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shots.errors import ShotsError
from shots.files import check_place, write_whole
from shots.script import MAX_SECONDS, Script
from shots.stage.annotate import annotations as annotate
from shots.stage.observe import observe
from shots.stage.parse import film_from_script
from shots.stage.render import joined, render_parts
from shots.stage.scene import STAGE_VERSION
from shots.stage.writer import write_film
from shots.video import VideoWriter, check_target

log = logging.getLogger(__name__)

_SHOT_SECONDS = 3.0


@dataclass(frozen=True)
class Take:
    """A film that was shot: where it lies, how long it is, and the seed that shoots it again."""

    path: Path
    annotations: Path | None
    seed: int
    seconds: float
    shots: int
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "path": str(self.path),
            "annotations": str(self.annotations) if self.annotations else None,
            "seed": self.seed,
            "duration": self.seconds,
            "shots": self.shots,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        also = f" and {self.annotations}" if self.annotations else ""
        return f"{self.path}{also}: {self.seconds:g} s, shots {self.shots}, seed {self.seed}"


def shoot(
    output: str | Path,
    annotations: str | Path | None = None,
    *,
    script: str | Path | Script | None = None,
    seed: int | None = None,
    seconds: float | None = None,
    height: int = 128,
    width: int = 128,
    fps: float = 12.0,
    record: bool = True,
) -> Take:
    """Render a film of the stage into `output` and its annotations (JSON, DESIGN 3) into `annotations`.

    Args:
        script: what is to be seen (a file or a Script); None lets the seed write the film.
        seed: decides what is left unsaid; None draws one.
        seconds: of the whole film when the seed writes it (default 9), else of each shot that does not say its own
            (default 3). height, width: pixels, from 16. fps: frames a second.
        record: whether the file tells how it was made.

    Raises ShotsError when an argument cannot be used or a place cannot be written.
    """
    output = check_target(output)
    if annotations is not None:
        annotations = check_place(annotations, "annotations")
    if seconds is not None and not 0 < seconds <= MAX_SECONDS:
        raise ShotsError(f"seconds: {seconds}; more than 0 and at most {MAX_SECONDS:g} are needed")
    if not (16 <= height <= 4096 and 16 <= width <= 4096):
        raise ShotsError(f"height, width: {height} x {width}; 16 to 4096 pixels are needed")
    if not 1 <= fps <= 120:
        raise ShotsError(f"fps: {fps}; 1 to 120 frames a second are needed")
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    warnings: list[str] = []
    if script is None:
        length = 9.0 if seconds is None else seconds
        count = max(1, round(length / _SHOT_SECONDS))
        film = write_film(seed, shots=count, seconds=length / count, split="any", transitions=True)
    else:
        script = script if isinstance(script, Script) else Script.load(script)
        film, warnings = film_from_script(script, seed=seed, seconds=_SHOT_SECONDS if seconds is None else seconds)
    for warning in warnings:
        log.warning("warning: %s", warning)
    about = {
        "generated": True,
        "stage_version": STAGE_VERSION,
        "seed": seed,
        "script": script.to_dict() if script else None,
        "warnings": warnings,
    }
    drawn = []
    with VideoWriter(output, fps=fps, height=height, width=width, record=about if record else None) as writer:
        for part in render_parts(film, height, width, fps):
            writer.write(part.frames.cpu().numpy())
            drawn.append(part.without_pictures())
        rendered = joined(film, drawn, fps)
        truth = annotate(film, rendered, observe(film, rendered), random.Random(f"annotations-{seed}"))
    if annotations is not None:
        write_whole(annotations, json.dumps(truth, ensure_ascii=False, indent=1) + "\n", "annotations")
    return Take(
        output, Path(annotations) if annotations else None, seed, truth["duration"], len(film.shots), tuple(warnings)
    )
