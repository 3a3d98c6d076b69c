"""What model cards share: markdown tables, shares as per cent, spans of time, and which code wrote them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shots.errors import ShotsError


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table; bars inside cells are escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines)


def share(value: float | None) -> str:
    """A share from 0 to 1 as per cent; "-" for None."""
    return "-" if value is None else f"{100 * value:.0f} %"


def span(seconds: float) -> str:
    """A time in words: minutes up to two hours, then hours."""
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def code_commit() -> str:
    """The commit of the repository this code runs from, with "-dirty" for changes since. Raises ShotsError outside of
    one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise ShotsError("commit: this code is not in a git repository; say the commit with --commit") from error


def portable(value: Any) -> Any:
    """`value` with absolute paths, which mean nothing on another machine, cut to their last part."""
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value
