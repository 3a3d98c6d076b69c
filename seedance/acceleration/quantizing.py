"""A transformer in fewer bits: the matrices of its repeated blocks in int8 or fp8, through torchao.

=====  ===========================================================  =====================================
name   weights                                                      products
=====  ===========================================================  =====================================
int8   whole numbers, one scale a row                               in the model's own number format
fp8    e4m3, one scale a row                                        in fp8 on cards that have it (8.9 up)
=====  ===========================================================  =====================================

Notable choices:

- What is not in a block (embeddings, modulation of the last layer, readout) stays as it is: it is small, and errors
  there reach every token. So do adapters beside the matrices, whose changes would drown in the rounding.
- Matrix by matrix, each moved to the device first, so that the device never holds the model at full size.
- A test holds the error of a tiny transformer's velocity within 2 % (int8) and 8 % (fp8).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from seedance.acceleration.options import QUANTIZATION
from seedance.errors import SeedanceError
from shots.runtime.vision import torchao_quantization

_BLOCKS = ("blocks", "transformer_blocks", "single_transformer_blocks")


def quantize(model: nn.Module, how: str, device: torch.device) -> int:
    """Shrinks the matrices of a transformer's blocks, in place, on ``device``. Returns how many.

    Raises SeedanceError for another word than "int8" and "fp8", without torchao, and where there are no blocks.
    """
    library = _torchao(how)
    if how == "int8":
        config: Any = library.Int8WeightOnlyConfig()
    elif device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        config = library.Float8DynamicActivationFloat8WeightConfig(granularity=library.PerRow())
    else:
        config = library.Float8WeightOnlyConfig()
    shrunk = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.split(".")[0] in _BLOCKS and ".lora_" not in name:
            module.to(device)
            library.quantize_(module, config)
            shrunk += 1
    if not shrunk:
        raise SeedanceError(f"quantization: {type(model).__name__} has no blocks of matrices; leave it out")
    model.to(device)
    return shrunk


def _torchao(how: str) -> Any:
    if how not in QUANTIZATION:
        raise SeedanceError(f"quantization: {how!r} is not one of {', '.join(QUANTIZATION)}")
    try:
        return torchao_quantization()
    except ImportError as error:
        raise SeedanceError(f"quantization: {how} needs torchao ({error}); pip install 'seedance[open]'") from error
