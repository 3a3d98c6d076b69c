"""Open checkpoints behind the calls of this package's own model.

    film = seedance.Seedance.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")("A red cube jumps.", seed=1)

`Seedance.from_pretrained` reads the ``_class_name`` of a folder's ``model_index.json``: "Seedance" is our own model, a
pipeline class of diffusers gives the `DiffusersSeedance` of `engine`, which is a `Seedance` with the same `plan`,
`sample`, `retake`, `decode`, `video` and `write`. `families` says what each family of checkpoints can do and what it
starts with, `folder` checks a folder and loads its parts, `names` translates between layouts, `single_file` takes a
transformer from one file, `lora` puts adapters on, `sanity` looks at the numbers, `fingerprint` names weights in
records, `estimating` says what a film would take.

For what is built on it:

- `folder.open_checkpoint(folder)` gives a `Checkpoint` (configurations, headers of all weight files, the family) and
  loads nothing; `folder.load_part(checkpoint, part, dtype, device)` loads one part. Whoever wants the text encoder gone
  before the transformer comes calls them in that order.
- `DiffusersSeedance.parts` holds the loaded parts, `.pipe(task)` the stock pipeline made of them; diffusers' hooks
  (offloading, caching, compiled blocks) go on either. `families.Family.words` gives a text's states under the names
  the pipeline takes them by; `engine.decode_shot` is the one place where latents become pixels.
- `sanity.normalised(latents, vae)` turns a film's latents, which are what the VAE takes, into what the transformer
  sees.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seedance.engines.engine import DiffusersSeedance
    from seedance.engines.folder import Checkpoint, load_part, open_checkpoint

_HOME = {
    "Checkpoint": "seedance.engines.folder",
    "DiffusersSeedance": "seedance.engines.engine",
    "load_part": "seedance.engines.folder",
    "open_checkpoint": "seedance.engines.folder",
}

__all__ = ["Checkpoint", "DiffusersSeedance", "load_part", "open_checkpoint"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'seedance.engines' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
