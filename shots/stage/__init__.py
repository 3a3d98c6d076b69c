"""The stage: a procedural film set whose every fact is known.

`scene` is the vocabulary, `writer` writes films, `motion` moves them, `render` draws them, `photos` makes sets of
stills, `observe` says what can be told from the pixels, `facts` names that once for all, `words` and `parse` go from
films to English and back. `annotate` and `edits` make the tasks, `clips` does it all from one seed, `shoot` writes
files. `judge` reads films back into facts, `heldout` fixes what is never trained on, and `following` scores films by
both. `planted` makes films that differ from their scripts in one thing, to set and to check verification by.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .clips import LABELS, Sample, clip, sample
    from .render import Rendered, render_film
    from .scene import STAGE_VERSION, Film
    from .writer import write_film

_HOME = {
    "STAGE_VERSION": "scene",
    "Film": "scene",
    "LABELS": "clips",
    "Rendered": "render",
    "Sample": "clips",
    "clip": "clips",
    "render_film": "render",
    "sample": "clips",
    "write_film": "writer",
}
__all__ = ["LABELS", "STAGE_VERSION", "Film", "Rendered", "Sample", "clip", "render_film", "sample", "write_film"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'shots.stage' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
