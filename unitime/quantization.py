"""Large language models in fewer bits: the weights of their linear layers in 8 or 4, through torchao.

    quantize(net, "int8", torch.device("cuda"))

=====  ==================================================  ===================  =====================================
name   weights                                             bytes of a weight    error of a product (test, normal data)
=====  ==================================================  ===================  =====================================
int8   whole numbers, one scale per row                    1                    about 0.5 %
int4   NF4 (QLoRA, arXiv 2305.14314), double quantised     0.52                 about 9 %
=====  ==================================================  ===================  =====================================

Notable choices:

- The vision tower, the embeddings and ``lm_head`` stay as they are: kept features stay the same, and next-token
  probabilities, which are all that constrained decoding reads, suffer least.
- Layer by layer: each is moved to the device first and shrunk there, so the device never holds the whole model at full
  size. An adapter is merged before.
- Weights only: products are computed in the model's own dtype, so this saves memory, not arithmetic.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from shots.runtime.vision import torchao_quantization
from unitime.errors import UniTimeError

QUANTIZATIONS = ("int8", "int4")
_BLOCK, _SCALER_BLOCK = 64, 256  # weights that share a scale, and scales that share one, as in QLoRA


def quantize(net: Any, how: str, device: torch.device) -> int:
    """Shrinks the linear layers of a network's language model, in place, on ``device``. Returns how many.

    Raises UniTimeError for another word than "int8" and "int4", where torchao is missing, and where a weight's size
    does not divide into blocks.
    """
    library = _torchao(how)
    shrunk = 0
    for name, module in net.model.language_model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        module.to(device)
        if how == "int8":
            library.quantize_(module, library.Int8WeightOnlyConfig())
        else:
            if module.weight.numel() % _BLOCK:
                raise UniTimeError(
                    f"quantization: {name} has {module.weight.numel()} weights, no multiple of {_BLOCK}; use 'int8'"
                )
            scales = math.gcd(module.weight.numel() // _BLOCK, _SCALER_BLOCK)
            module.weight = nn.Parameter(library.to_nf4(module.weight.detach(), _BLOCK, scales), requires_grad=False)
        shrunk += 1
    return shrunk


def check(how: str | None) -> None:
    """Raises UniTimeError, before anything is loaded, for a word that is none and where torchao is missing."""
    if how is not None:
        _torchao(how)


def _torchao(how: str) -> Any:
    if how not in QUANTIZATIONS:
        raise UniTimeError(f"quantization: {how!r} is not one of {', '.join(QUANTIZATIONS)}")
    try:
        return torchao_quantization()
    except ImportError as error:
        raise UniTimeError(f"quantization: {how} needs torchao ({error}); pip install 'seedance[open]'") from error
