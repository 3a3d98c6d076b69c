"""The judge: reads a shot or a film back into the facts of the stage. It measures only; nothing trains against it.

`shots.stage.judge.train` trains it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .read import FilmReading, Judge, Reading

__all__ = ["FilmReading", "Judge", "Reading"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import read

    return getattr(read, name)
