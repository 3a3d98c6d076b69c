"""The judge: reads a shot or a film back into the facts of the stage. It measures only; nothing trains against it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .read import FilmReading, Judge, Reading
    from .train import JudgeRecipe, train

_HOME = {"Judge": "read", "Reading": "read", "FilmReading": "read", "JudgeRecipe": "train", "train": "train"}

__all__ = ["FilmReading", "Judge", "JudgeRecipe", "Reading", "train"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Importing the submodule `train` binds it here under its own name; the function of that name is what is public.
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
