"""A transformer from one file: fine-tunes as they are passed around, in diffusers' names or the family's own.

Notable choices:

- The folder still says everything else (text encoder, VAE, scheduler, the transformer's sizes); the file takes the
  place of the folder's transformer.
- Names and shapes are compared from the file's header before anything is loaded, with the reason in one line.
- What is written has the family's own names and no prefix: the published files are like that, and other tools tell the
  model by such names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedance.engines.fingerprint import fingerprint
from seedance.engines.folder import Checkpoint, _class, _some, read_header
from seedance.engines.names import bare, original
from seedance.errors import SeedanceError
from shots.runtime.weights import PICKLES

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SingleFile:
    """A checked file: `names` maps the transformer's tensors to the file's."""

    path: Path
    names: Mapping[str, str]
    fingerprint: str


def open_single_file(path: str | Path, checkpoint: Checkpoint) -> SingleFile:
    """Checks that `path` holds the transformer of `checkpoint`; reads its header only.

    Raises:
        SeedanceError: it is no safetensors file, or holds another model; the message says what differs.
    """
    path = Path(path)
    if path.suffix in PICKLES:
        raise SeedanceError(
            f"transformer: {path} is a pickle, which can run code when it is read; convert it to safetensors"
        )
    if not path.is_file():
        raise SeedanceError(f"transformer: {path} is no file; give a .safetensors file of the transformer alone")
    header = read_header(path)
    held: dict[str, str] = {}
    for name in header.shapes:
        held[bare(name)] = name
    wanted = {name: tuple(tensor.shape) for name, tensor in empty(checkpoint).state_dict().items()}
    theirs = {name: original(checkpoint.family.name, name) for name in wanted}
    # norm2 and norm3 stand in both layouts: the layout is decided by the names that stand in one alone.
    own = sum(name in held for name in wanted if theirs[name] not in wanted)
    foreign = sum(name in held for name in theirs.values() if name not in wanted)
    names = theirs if foreign > own else {name: name for name in wanted}
    where = f"transformer: {path}"
    lacking = [name for name in names.values() if name not in held]
    if len(lacking) > len(names) // 2:
        raise SeedanceError(
            f"{where} is no {checkpoint.family.name} transformer: it lacks {len(lacking)} of {len(names)} tensors; "
            "give a file of the model in --model"
        )
    unknown = [name for name in held if name not in set(names.values())]
    wrong = [
        f"{theirs} is {header.shapes[held[theirs]]}, not {wanted[ours]}"
        for ours, theirs in names.items()
        if theirs in held and header.shapes[held[theirs]] != wanted[ours]
    ]
    for what, found in (("lacks", lacking), ("is of another size:", wrong), ("also holds", unknown)):
        if found:
            raise SeedanceError(f"{where} {what} {_some(found)}; give a file of the model in --model, unscaled")
    return SingleFile(path, {ours: held[name] for ours, name in names.items()}, fingerprint(path))


def load_single_file(
    file: SingleFile, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Any:
    """The transformer of a checked file, on `device`; what its class keeps in float32 stays so."""
    import safetensors
    import torch

    model = empty(checkpoint)
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    state = {}
    with safetensors.safe_open(str(file.path), framework="pt") as tensors:
        for ours, theirs in file.names.items():
            kind = torch.float32 if kept & set(ours.split(".")) else dtype
            state[ours] = tensors.get_tensor(theirs).to(kind)
    model.load_state_dict(state, strict=True, assign=True)
    return model.to(device).eval().requires_grad_(False)


def save_single_file(state: Mapping[str, torch.Tensor], family: str, path: str | Path) -> Path:
    """Writes a transformer's tensors, given by diffusers' names, as one file in the layout of `family` ("Wan", say),
    which other tools read. The file is there when it is whole."""
    from safetensors.torch import save_file

    path = Path(path)
    theirs = {original(family, name): tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    part = path.with_name(f"{path.name}.part")
    save_file(theirs, part, metadata={"format": "pt"})
    part.replace(path)
    return path


def empty(checkpoint: Checkpoint, part: str = "transformer") -> Any:
    """A transformer of the checkpoint's sizes without numbers (its tables of positions have them)."""
    from accelerate import init_empty_weights

    library, cls = checkpoint.parts[part]
    with init_empty_weights():
        return _class(library, cls).from_config(dict(checkpoint.config(part)))
