"""The models that ship with the packages, from their files alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors


@dataclass(frozen=True)
class ShippedModel:
    """A shipped model: where it lies, its parameters, the size of its weight files in bytes; 0 where it is missing."""

    name: str
    path: Path
    parameters: int
    size: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "path": str(self.path)}

    def __str__(self) -> str:
        if not self.size:
            return f"{self.name}  missing at {self.path}; install again"
        return f"{self.name}  {self.parameters / 1e6:.1f} M parameters, {self.size / 1e6:.1f} MB  {self.path}"


def shipped_models(shipped: Mapping[str, Path]) -> list[ShippedModel]:
    """Every model that `--model` knows by name; `shipped` says where each lies."""
    found = []
    for name, folder in shipped.items():
        files = sorted(folder.rglob("*.safetensors"))
        found.append(ShippedModel(name, folder, sum(map(_numbers, files)), sum(file.stat().st_size for file in files)))
    return found


def _numbers(file: Path) -> int:
    """How many numbers a safetensors file holds, from its header."""
    with safetensors.safe_open(file, framework="pt") as tensors:
        total = 0
        for key in tensors.keys():  # noqa: SIM118  (a file's handle is no mapping)
            count = 1
            for side in tensors.get_slice(key).get_shape():
                count *= side
            total += count
        return total
