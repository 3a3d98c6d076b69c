"""A run's log: one JSON object a line in a file, one short line on stderr.

Notable choices:
- Every line is opened, written and closed, so a kill loses at most the line being written, and a resumed run appends.
- Numbers that JSON cannot hold (NaN, infinities) are written as strings, so every line stays valid JSON.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any


def _plain(value: Any) -> Any:
    """`value` as something JSON holds: tensors and numpy scalars become numbers, paths and the rest strings."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (int, float)):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, (bool, int, str)) or value is None else str(value)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class RunLog:
    """Log of one run. With `path` None only stderr is written; `quiet` leaves stderr out."""

    def __init__(self, path: str | Path | None = None, *, quiet: bool = False) -> None:
        self.path = Path(path) if path is not None else None
        self.quiet = quiet
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **fields: Any) -> None:
        """Append one line: `fields`, and `time` in seconds since the epoch."""
        row = _plain(fields)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": round(time.time(), 3), **row}, ensure_ascii=False) + "\n")
        if not self.quiet:
            sys.stderr.write("  ".join(f"{name} {_short(value)}" for name, value in row.items()) + "\n")
            sys.stderr.flush()
