"""Which device and which number format, and why.

Notable choices:
- bf16 matrix products are about four times faster than fp32 on CPUs with AVX512-BF16 or AMX and slower on all others,
  so the CPU's own flags decide.
- The reason is returned beside the dtype, to be printed: a slow run should explain itself.
"""

from __future__ import annotations

import os

import torch

from shots.errors import ShotsError

_DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
}


def pick_device(name: str | None = None) -> torch.device:
    """The named device ("cpu", "cuda", "cuda:1", "mps"), or with None the best one present.

    Raises ShotsError for a name torch does not know and for a device this machine does not have.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ShotsError(f"device: {name!r} is no device torch knows; use cpu, cuda, cuda:N or mps") from None
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
        "meta": True,
    }
    if not present.get(device.type, False):
        raise ShotsError(f"device: {name!r} is not present on this machine; leave it out to take the best one present")
    return device


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else main_memory()


def main_memory() -> int:
    """Bytes of main memory that could be had without swapping."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AVX512-BF16, AMX or Arm's BF16)."""
    flags = torch.cpu.get_capabilities()
    return any(flags.get(flag, False) for flag in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


def pick_dtype(device: torch.device, requested: str | None = None) -> tuple[torch.dtype, str]:
    """The dtype to compute in on `device` and the reason for it, one short phrase.

    `requested` is bf16, fp16 or fp32 (long names too); None chooses. Raises ShotsError for any other word.
    """
    if requested is not None:
        if requested not in _DTYPES:
            raise ShotsError(f"dtype: {requested!r} is not one of bf16, fp16, fp32")
        return _DTYPES[requested], "as requested"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU has bf16 tensor cores"
        return torch.float32, "the GPU has no bf16 tensor cores"
    if device.type == "cpu":
        if cpu_has_bf16():
            return torch.bfloat16, "the CPU multiplies bf16 in hardware"
        return torch.float32, "the CPU has no bf16 instructions, where bf16 is slower than fp32"
    return torch.float32, f"fp32 is the safe choice on {device.type}"
