"""Tiny checkpoints of every family, written once a session."""

from __future__ import annotations

import functools
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

if importlib.util.find_spec("diffusers") is None:  # not imported here: that has to wait for torchvision's guard
    pytest.skip("the extra `open` is not installed", allow_module_level=True)

from seedance.pipeline import Seedance
from tests.seedance.engines import tiny_checkpoints

Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """name ("wan-t2v", "ltx", ...) -> the folder of that checkpoint; it is shared, so copy it before changing it."""

    @functools.cache
    def made(name: str) -> Path:
        return tiny_checkpoints.make(name, tmp_path_factory.mktemp(name))

    return made


@pytest.fixture(scope="session")
def opened(checkpoint: Checkpoint) -> Callable[[str], Seedance]:
    """name -> the loaded checkpoint in float32 on the CPU; it is shared."""

    @functools.cache
    def loaded(name: str) -> Seedance:
        return Seedance.from_pretrained(checkpoint(name), dtype="fp32", device="cpu")

    return loaded


@pytest.fixture
def copied(checkpoint: Checkpoint, tmp_path: Path) -> Callable[[str], Path]:
    """name -> a copy of that checkpoint that a test may damage."""
    return lambda name: Path(shutil.copytree(checkpoint(name), tmp_path / name))
