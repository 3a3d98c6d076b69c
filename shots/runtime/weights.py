"""Model weights: safetensors only, checked by hash, sharded small, loaded whole or not at all.

Notable choices:
- A file layout the hub's tools read: `model.safetensors`, or `model-00001-of-00003.safetensors` with
  `model.safetensors.index.json`.
- `load_into` compares every name and shape first and copies only when all fit, so a failed load leaves the module as
  it was.
- What a download lacks is found in the first bytes of its files (`header_of`, `check_download`), in milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shots.errors import ShotsError
from shots.runtime.hub import Remote, find

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
AGAIN = "fetch the model again, or copy the whole folder"
HALVES = ("*.incomplete", "*.part", "*.aria2")  # what downloads are called while they run


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shards(state: Mapping[str, Tensor], max_shard_bytes: int) -> list[dict[str, Tensor]]:
    """`state` in order, cut so that no shard exceeds `max_shard_bytes` (one larger tensor stands alone)."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        # A copy of its own: safetensors refuses tensors that share storage, as tied weights and views do.
        shards[-1][name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += tensor.nbytes
    return shards


def save_tensors(
    state: Mapping[str, Tensor], folder: str | Path, stem: str = "model", max_shard_bytes: int = 15_000_000
) -> list[str]:
    """Write `state` to `folder` as one or more safetensors files. Returns the weight files' names, in shard order.

    Each file is written beside its target and renamed when whole; files of an earlier save under the same stem that
    are no longer part of it are removed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(state, max_shard_bytes)
    count = len(shards)
    names = (
        [f"{stem}.safetensors"]
        if count == 1
        else [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    )
    for name, shard in zip(names, shards, strict=True):
        temporary = folder / f".{name}.part"
        save_file(shard, temporary, metadata={"format": "pt"})
        temporary.replace(folder / name)
    index = folder / f"{stem}.safetensors.index.json"
    if count == 1:
        index.unlink(missing_ok=True)
    else:
        total = sum(tensor.nbytes for tensor in state.values())
        where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=1) + "\n")
    for old in [folder / f"{stem}.safetensors", *folder.glob(f"{stem}-*-of-*.safetensors")]:
        if old.name not in names:
            old.unlink(missing_ok=True)
    return names


def header_of(path: Path) -> dict[str, dict[str, Any]]:
    """What the header of a safetensors file says of each tensor ("shape", "dtype", "data_offsets"), checked against the
    file's size. Raises ShotsError, which names the file, where it is missing, cut short or something else."""
    if not path.exists():
        what = "points to nothing: a download stopped half-way" if path.is_symlink() else "is missing"
        raise ShotsError(f"{path} {what}")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 2 <= length <= size - 8:
                raise ValueError("no header")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((said["data_offsets"][1] for said in header.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ShotsError(f"{path} is not a safetensors file ({error})") from error
    if size != 8 + length + end:
        raise ShotsError(f"{path} has {size} bytes, its header tells of {8 + length + end}")
    return dict(header)


def half_download(folder: Path) -> Path | None:
    """A file of `folder` that is half a download; None where all are whole."""
    return next((file for kind in HALVES for file in sorted(folder.rglob(kind))), None)


def check_download(folder: Path, stem: str = "model") -> int:
    """Finds what is missing or cut short of the weights under `stem`, and weights that are pickles, reading headers
    alone. Returns how many numbers they hold. Raises ShotsError, which names the file."""
    if (half := half_download(folder)) is not None:
        raise ShotsError(f"{half} is half a download; {AGAIN}")
    names = _files(folder, stem)
    if len(names) == 1 and not (folder / names[0]).exists():
        if pickles := sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES):
            raise ShotsError(
                f"the weights in {folder} are a pickle ({pickles[0]}), which can run code when it is read; convert it "
                "to safetensors"
            )
        if any(folder.glob("*-of-*.safetensors")):
            raise ShotsError(f"{folder} holds shards and no index of them (*.safetensors.index.json); {AGAIN}")
    try:
        headers = [header_of(folder / name) for name in names]
    except ShotsError as error:
        raise ShotsError(f"{error}; {AGAIN}") from error
    return sum(math.prod(said["shape"]) for header in headers for said in header.values())


def _files(folder: Path, stem: str) -> list[str]:
    """Names of the weight files that `folder` says it holds."""
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return [f"{stem}.safetensors"]
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ShotsError(f"weights: {index} is not a safetensors index ({error})") from error


def load_tensors(
    folder: str | Path, stem: str = "model", expected_sha256: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """All tensors saved under `stem` in `folder`, on the CPU.

    `expected_sha256` maps file name to hash; a file that differs, is missing or is not safetensors raises ShotsError.
    """
    folder = Path(folder)
    state: dict[str, Tensor] = {}
    for name in _files(folder, stem):
        path = folder / name
        if not path.is_file():
            raise ShotsError(f"weights: {path} is missing; install again or fetch the model again")
        expected = (expected_sha256 or {}).get(name)
        if expected is not None and (found := sha256_file(path)) != expected:
            raise ShotsError(
                f"weights: {path} is corrupted (SHA-256 {found[:12]}..., expected {expected[:12]}...); "
                "install again or fetch the model again"
            )
        try:
            state.update(load_file(path))
        except (safetensors.SafetensorError, OSError) as error:
            raise ShotsError(f"weights: {path} is not a whole safetensors file ({error})") from error
    return state


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy `tensors` into `module`, converting dtype, or raise ShotsError and change nothing.

    `what` names the thing in the message ("the VAE of seedance-nano"); the message lists missing, unexpected and
    wrong-shaped tensors.
    """
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    misshapen = [
        f"{name} is {tuple(tensors[name].shape)}, the model wants {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    faults = [
        f"{title}: {_some(names)}"
        for title, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", misshapen))
        if names
    ]
    if faults:
        raise ShotsError(f"weights do not fit {what}; {'; '.join(faults)}")
    with torch.no_grad():
        module.load_state_dict(dict(tensors))


def _some(names: list[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def locate(name_or_path: str | Path, shipped: Mapping[str, Path], revision: str | None = None) -> Path | Remote:
    """The folder of a model, as :func:`resolve` finds it, or what is to be fetched of a hub id ("owner/name") whose
    weights are not in the cache: to be looked at before they are.

    Raises ShotsError when it is none of them or the hub has no such model or cannot be reached.
    """
    name = str(name_or_path)
    if name in shipped:
        if not shipped[name].is_dir():
            raise ShotsError(f"model: the shipped weights of {name!r} are missing at {shipped[name]}; install again")
        return shipped[name]
    if Path(name).is_dir():
        return Path(name)
    owner, slash, rest = name.partition("/")
    if not (owner and slash and rest) or "/" in rest or owner in {".", "..", "~"}:
        known = ", ".join(sorted(shipped)) or "none"
        raise ShotsError(f"model: {name!r} is no shipped model ({known}), no folder and no hub id (owner/name)")
    return find(name, revision)


def resolve(name_or_path: str | Path, shipped: Mapping[str, Path], revision: str | None = None) -> Path:
    """The folder of a model: a shipped name, a folder, or a hub id ("owner/name", fetched and cached).

    Raises ShotsError as :func:`locate` does, and where the disk has no room for what is to be fetched.
    """
    found = locate(name_or_path, shipped, revision)
    return found if isinstance(found, Path) else found.fetch()
