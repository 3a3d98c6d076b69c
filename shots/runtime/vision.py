"""The only door through which torchvision, transformers and torchao are imported.

torchvision's PyPI wheel is a CUDA build. Beside a CPU torch its compiled operators do not load, and importing it (and
with it almost any model of transformers) fails with "operator torchvision::nms does not exist". Everything we use of it
is written in Python, so the guard declares the two operator schemas it looks for, and only when the compiled ones are
really missing. Where torchao is installed transformers imports it, and its compiled operators do not load there either:
it works without them, and what it says of that on every start is left out.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@cache
def _guard() -> torch.library.Library | None:
    """Declare torchvision's missing schemas once per process. Returns the library that must stay alive, or None."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return None
    for compiled in Path(found.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(compiled)
        except OSError:
            continue  # a build for another torch: exactly the case the guard is for
    missing = [schema for name, schema in _SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)]
    if not missing:
        return None
    library = torch.library.Library("torchvision", "DEF" if len(missing) == len(_SCHEMAS) else "FRAGMENT")
    for schema in missing:
        library.define(schema)
    return library


@cache
def _quieten() -> None:
    """Leave out what torchao, and diffusers of it, warn of while being imported; all else they say is kept."""
    for name, said in (
        ("torchao", "Failed to load"), ("torchao.kernel.intmm", "Detected no triton"),
        ("diffusers.quantizers.torchao.torchao_quantizer", "Unable to import `torchao` Tensor"),  # for pickles
        ("torch.utils._pytree", "is an Enum subclass"),
    ):  # fmt: skip
        logging.getLogger(name).addFilter(partial(_lacks, said))


def _lacks(said: str, record: logging.LogRecord) -> bool:
    return said not in str(record.msg)


def torchvision() -> ModuleType:
    """The torchvision module with `transforms.v2`; compiled operators may be absent, what is Python works."""
    _guard()
    import torchvision as module
    import torchvision.transforms.v2  # not loaded by torchvision itself

    return module


def transformers() -> ModuleType:
    """The transformers module, safe to import beside any build of torchvision or none."""
    _guard()
    _quieten()
    import transformers as module

    return module


def torchao_quantization() -> ModuleType:
    """The module torchao.quantization, which need not be installed: raises ImportError then."""
    _quieten()
    import torchao.quantization as module

    return module
