"""The judge: reads a shot or a film back into the facts of the stage. It measures only; nothing trains against it.

`model` is the network, `cuts` the finder of cuts, `read` what it says of shots and films. `train` trains it by
`judge.yaml`, on the shots that `pool` draws and `augment` damages; `card` writes its card.
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
