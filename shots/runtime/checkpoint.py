"""Training checkpoints: a folder of `step-N.pt`, each written whole or not at all.

Notable choices:
- Written to a temporary file beside the target, flushed to disk, then renamed: a kill at any moment leaves the last
  whole checkpoint as the latest.
- Loaded with `weights_only=True`: tensors and plain Python containers, never code. Shipped weights are safetensors
  (`shots.runtime.weights`); these files never leave the machine that trains.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from shots.errors import ShotsError


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every whole checkpoint in `folder`, oldest first."""
    found = []
    for path in folder.glob("step-*.pt"):
        digits = path.stem.removeprefix("step-")
        if digits.isdigit():
            found.append((int(digits), path))
    return sorted(found)


def save_checkpoint(folder: str | Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `state` as the checkpoint of `step` and delete all but the `keep` newest. Returns its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}.pt"
    for stale in folder.glob(".step-*.pt.part"):  # of a run that was killed or met a full disk
        stale.unlink(missing_ok=True)
    temporary = folder / f".{target.name}.part"
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    for _, path in _steps(folder)[:-keep]:
        path.unlink(missing_ok=True)
    return target


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint with the highest step in `folder`, or None."""
    steps = _steps(Path(folder))
    return steps[-1][1] if steps else None


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state saved at `path`, tensors on the CPU. Raises ShotsError when the file is absent or not a checkpoint."""
    path = Path(path)
    if not path.is_file():
        raise ShotsError(f"checkpoint: {path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ShotsError(
            f"checkpoint: {path} cannot be read ({error}); delete it to resume from an older one"
        ) from error
    if not isinstance(state, dict):
        raise ShotsError(f"checkpoint: {path} holds a {type(state).__name__}, not a training state")
    return state
