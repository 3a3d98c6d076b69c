"""Seedance: text and pictures to multi-shot films.

    film = seedance.Seedance.from_pretrained("seedance-nano")("A red cube jumps. [cut] A blue sphere spins.", seed=1)
    film.save("film.mp4")

`api` takes requests, `pipeline` turns a script into a film and holds the model folder. The parts: `text` encodes
words, `conditioning` puts every task into one form, `dit` is the transformer with the positions of `rope` and the
widths of `mup`, `flow` is what it learns, `samplers` draw by it, `vae` and `shapes` go between pixels and latents.
`preview` shows a film while it is drawn, `takes` has it verified, taken again, carried on and titled. `engines` runs
open checkpoints behind the same calls, `acceleration` saves time and memory. `evaluation` measures, `coordinates`
checks muP, `training` makes the weights. A server has its films in the queue of `jobs`, which takes what `settle` has
checked; `workers` work it through, with one `renderer` process a device; `service` is the REST surface. `recipes`,
`suites`, `examples` and `nano`, the shipped model, are files.

Notable choice: public names are looked up on first use, so `import seedance` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seedance.api import RenderRequest, RenderResult, render
    from seedance.dit import DiTConfig, VideoDiT
    from seedance.errors import SeedanceError
    from seedance.jobs import Jobs
    from seedance.pipeline import Seedance
    from seedance.preview import preview_frames
    from seedance.vae import VAEConfig, VideoVAE

__version__ = "0.1.0"

_HOME = {
    "DiTConfig": "seedance.dit",
    "Jobs": "seedance.jobs",
    "RenderRequest": "seedance.api",
    "RenderResult": "seedance.api",
    "Seedance": "seedance.pipeline",
    "SeedanceError": "seedance.errors",
    "VAEConfig": "seedance.vae",
    "VideoDiT": "seedance.dit",
    "VideoVAE": "seedance.vae",
    "preview_frames": "seedance.preview",
    "render": "seedance.api",
}

__all__ = [
    "DiTConfig",
    "Jobs",
    "RenderRequest",
    "RenderResult",
    "Seedance",
    "SeedanceError",
    "VAEConfig",
    "VideoDiT",
    "VideoVAE",
    "preview_frames",
    "render",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'seedance' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
