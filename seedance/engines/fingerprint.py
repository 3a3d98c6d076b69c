"""Which weights a film was made with, said in its record without reading tens of gigabytes first.

Notable choice: three ways, the dearest for small files only. A file that the hub's cache links to is named by its own
SHA-256 there; a small file is hashed; of a large one the length, the header and 64 stretches spread over it are hashed,
marked ``sampled:``, which tells two fine-tunes apart though not one changed byte.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from shots.runtime.weights import sha256_file

if TYPE_CHECKING:
    from seedance.engines.folder import Checkpoint

WHOLE = 64 << 20  # bytes; larger files are sampled
STRETCHES, STRETCH = 64, 64 << 10


def fingerprint(path: Path) -> str:
    """64 hex digits of a whole file, or ``sampled:`` and 64 of a large one."""
    real = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name
    size = real.stat().st_size
    if size <= WHOLE:
        return sha256_file(real)
    digest = hashlib.sha256(str(size).encode())
    with real.open("rb") as file:
        for k in range(STRETCHES):
            file.seek(k * (size - STRETCH) // (STRETCHES - 1))
            digest.update(file.read(STRETCH))
    return f"sampled:{digest.hexdigest()}"


def fingerprints(checkpoint: Checkpoint) -> dict[str, str]:
    """The fingerprint of each weight file of a checkpoint, by its name in the folder."""
    files = [tensors.path for weights in checkpoint.weights.values() for tensors in weights]
    files += [checkpoint.folder / name for name in checkpoint.pickles]
    return {file.relative_to(checkpoint.folder).as_posix(): fingerprint(file) for file in sorted(files)}
