"""How fast a device multiplies matrices: what MFU and estimates are measured against."""

from __future__ import annotations

import math
import time

import torch


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the best of four large matrix products on `device`."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    best = math.inf
    for _ in range(4):
        begin = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
