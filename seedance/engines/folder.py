"""A checkpoint's folder: what it must hold, checked before anything is loaded, and its parts loaded one by one.

Notable choices:

- `open_checkpoint` reads JSON and the first bytes of each weight file only. A missing part, a download that stopped
  half-way, a shard cut short, a part of another family and weights as pickles are found in milliseconds and said in one
  line, before minutes are spent. `open_remote` does so for a hub id before its weights are fetched.
- The libraries' own loaders warn of missing tensors and draw random ones in their place. Here that is an error.
- UMT5 looks words up in ``encoder.embed_tokens``, which is ``shared`` under another name although its configuration
  says that nothing is tied; a library that takes it at its word leaves zeros, and every prompt is the same film. The
  two are tied here, and a table of zeros is refused.
- Pickles run code when they are read. They are refused unless the caller names the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedance.engines.families import Family, family_of
from seedance.errors import SeedanceError
from shots.errors import ShotsError
from shots.runtime.weights import AGAIN, PICKLES, half_download, header_of

if TYPE_CHECKING:
    import torch

    from shots.runtime.hub import Remote

DIFFUSERS = "pip install 'seedance[open]'"  # what brings diffusers
_STEMS = ("diffusion_pytorch_model", "model")  # of diffusers' and of transformers' weights
_SETTINGS = ("tokenizer_config.json", "preprocessor_config.json", "scheduler_config.json", "guider_config.json")


@dataclass(frozen=True)
class Tensors:
    """What the header of one safetensors file says: shape and number format of each tensor."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    formats: Mapping[str, str]

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        total = 0
        for shape in self.shapes.values():
            count = 1
            for side in shape:
                count *= side
            total += count
        return total


@dataclass(frozen=True)
class Checkpoint:
    """A checked folder.

    Attributes:
        folder: where it lies.
        index: its ``model_index.json``.
        family: which family it belongs to.
        parts: library and class of each part it has.
        configs: the configuration of each part that has one.
        weights: headers of each part's weight files; empty for parts without weights and for named pickles.
        variants: parts whose files carry a variant ("fp16") in their names.
        pickles: files that are read though they are pickles, relative to the folder.
        download: bytes of weights that are still on the hub; the folder's are hollow then and cannot be loaded.
    """

    folder: Path
    index: Mapping[str, Any]
    family: Family
    parts: Mapping[str, tuple[str, str]]
    configs: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, tuple[Tensors, ...]]
    variants: Mapping[str, str] = field(default_factory=dict)
    pickles: tuple[str, ...] = ()
    download: int = 0

    def config(self, part: str) -> Mapping[str, Any]:
        """The configuration of `part`, empty where it has none."""
        return self.configs.get(part, {})

    def numbers(self, part: str) -> int:
        """Parameters of `part`, from the headers of its files."""
        return sum(tensors.numbers for tensors in self.weights.get(part, ()))


def read_index(folder: Path) -> dict[str, Any]:
    """The ``model_index.json`` of any model folder, this package's own or diffusers'."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise SeedanceError(
            f"model: {folder} has no model_index.json; give a folder that save_pretrained wrote, or fetch the model "
            "again if its download stopped half-way"
        )
    index = _json(path)
    if not isinstance(index.get("_class_name"), str):
        raise SeedanceError(f"model: {path} names no pipeline class (_class_name); give a model folder")
    return index


def open_checkpoint(folder: str | Path, pickles: Sequence[str] = ()) -> Checkpoint:
    """Checks a checkpoint in diffusers' layout; reads no tensor.

    Args:
        pickles: weight files that may be read though they are pickles, by their names relative to the folder
            ("vae/diffusion_pytorch_model.bin"); they are read with ``weights_only=True``.

    Raises:
        SeedanceError: the folder cannot be used; the message names the file and the way out.
    """
    folder = Path(folder)
    index = read_index(folder)
    family = family_of(index["_class_name"])
    if (half := half_download(folder)) is not None:
        raise SeedanceError(f"model: {half} is half a download; {AGAIN}")
    for name in pickles:
        if not (folder / name).is_file():
            raise SeedanceError(f"pickles: {folder / name} does not exist; name a file of the model's folder")
    parts, configs, weights, variants = {}, {}, {}, {}
    for part, said in index.items():
        if part.startswith("_") or not (isinstance(said, list) and len(said) == 2) or said[1] is None:
            continue
        library, cls = str(said[0]), str(said[1])
        parts[part] = (library, cls)
        place = folder / part
        if not place.is_dir():
            raise SeedanceError(f"model: {folder} lacks its {part} ({place} is missing); {AGAIN}")
        configs[part] = _config(place, part, cls)
        wanted = family.parts.get(part)
        for found in {cls, configs[part].get("_class_name", cls)} if wanted else ():
            if found != wanted:
                raise SeedanceError(
                    f"model: the {part} in {place} is a {found}, {family.name} has a {wanted}; give a folder whose "
                    "parts belong together"
                )
        if (place / "config.json").is_file() and "Tokenizer" not in cls and "Processor" not in cls:
            weights[part], variant = _weights(place, part, folder, pickles)
            if variant:
                variants[part] = variant
    missing = sorted(set(family.parts) - set(parts) - {"transformer_2"})
    if missing == ["transformer"] and "transformer_2" in parts:
        missing = []
    if missing:
        raise SeedanceError(f"model: {folder / 'model_index.json'} names no {', '.join(missing)}; {AGAIN}")
    checkpoint = Checkpoint(folder, index, family, parts, configs, weights, variants, tuple(pickles))
    family.tasks(checkpoint)  # an unknown kind of transformer is refused here
    _statistics(checkpoint)
    return checkpoint


def open_remote(found: Remote, pickles: Sequence[str] = ()) -> Checkpoint:
    """As :func:`open_checkpoint`, of a model whose weights are still on the hub: its class is looked at before their
    headers are asked for, and nothing more of them is. The disk has to have room for them."""
    family_of(read_index(found.folder)["_class_name"])
    try:
        outline = found.outline()
        found.check_room()
    except ShotsError as error:
        raise SeedanceError(str(error)) from error
    try:
        return replace(open_checkpoint(outline, pickles), download=found.download)
    except SeedanceError as error:
        raise SeedanceError(str(error).replace(str(outline), found.name)) from error


def read_header(path: Path) -> Tensors:
    """The header of a safetensors file, checked against the file's size: a file cut short is named."""
    try:
        header = header_of(path)
    except ShotsError as error:
        raise SeedanceError(f"model: {error}; {AGAIN}") from error
    return Tensors(
        path,
        {name: tuple(said["shape"]) for name, said in header.items()},
        {name: said["dtype"] for name, said in header.items()},
    )


def load_part(
    checkpoint: Checkpoint, part: str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Any:
    """Loads one part of a checkpoint, whole or not at all; modules come in evaluation mode, on `device`.

    Args:
        dtype: of a module's weights; None keeps the stored one. What the model's class keeps in float32 stays so.

    Raises:
        SeedanceError: the part cannot be read, or its tensors are not those of its configuration.
    """
    library, cls = checkpoint.parts[part]
    kind = _class(library, cls)
    place, named = checkpoint.folder / part, [n for n in checkpoint.pickles if n.startswith(f"{part}/")]
    options: dict[str, Any] = {"local_files_only": True}
    module = part in checkpoint.weights
    if module:
        options |= {"output_loading_info": True, "use_safetensors": not named}
        options |= {"torch_dtype" if library == "diffusers" else "dtype": dtype}
        if part in checkpoint.variants:
            options["variant"] = checkpoint.variants[part]
    try:
        loaded = kind.from_pretrained(str(place), **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise SeedanceError(f"model: the {part} in {place} cannot be loaded ({_first(error)}); {AGAIN}") from error
    if not module:
        return loaded
    model, said = loaded
    missing = set(said["missing_keys"])
    twins = _tie(model)
    lacking = sorted(missing if twins <= missing else missing - twins)
    misfit = sorted(str(name) for name in [*said.get("mismatched_keys", ()), *said.get("error_msgs", ())])
    if lacking or misfit:
        what = f"lacks {_some(lacking)}" if lacking else f"has tensors of other shapes: {_some(misfit)}"
        raise SeedanceError(f"model: the {part} in {place} {what}; {AGAIN}")
    check_embeddings(model, f"the {part} in {place}")
    return model.to(device).eval().requires_grad_(False)


def check_embeddings(model: Any, what: str) -> None:
    """SeedanceError if the table in which an encoder looks words up is zeros or not numbers."""
    table = _table(model)
    if table is None or table.is_meta:
        return
    total = float(table.detach().float().abs().sum())
    if not 0 < total < float("inf"):
        raise SeedanceError(
            f"model: {what} has word embeddings that are {'zeros' if total == 0 else 'not numbers'}, so every prompt "
            "would be the same film; fetch the model again, or install the versions in constraints.txt"
        )


def diffusers() -> Any:
    """The diffusers module, imported on first use and quiet about what it finds installed."""
    from shots.runtime.vision import transformers

    try:
        transformers()  # through the guard, since diffusers imports it too
        import diffusers as module
    except ImportError as error:
        raise SeedanceError(f"model: this one needs diffusers ({error}); {DIFFUSERS}") from error
    return module


# ---------------------------------------------------------------------------------------------------------- inside


def _class(library: str, cls: str) -> Any:
    """A class that a model's index names, from the two libraries that may be named there and no other."""
    from shots.runtime.vision import transformers

    homes = {"diffusers": diffusers, "transformers": transformers}
    home = homes.get(library.partition(".")[0])
    if home is None:
        raise SeedanceError(f"model: a part of the library {library!r}, whose code would run unseen, is not loaded")
    found = getattr(home(), cls, None)
    if found is None:
        raise SeedanceError(f"model: {library} has no {cls}; a newer one may: pip install -U {library}")
    return found


def _config(place: Path, part: str, cls: str) -> dict[str, Any]:
    """The configuration of a part; SeedanceError where there is none."""
    for name in ("config.json", *_SETTINGS):
        if (place / name).is_file():
            return _json(place / name)
    if "Tokenizer" in cls and any((place / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        return {}
    raise SeedanceError(f"model: {place} holds no configuration of the {part} ({cls}); {AGAIN}")


def _weights(place: Path, part: str, folder: Path, pickles: Sequence[str]) -> tuple[tuple[Tensors, ...], str]:
    """Headers of a part's weight files and their variant ("" mostly); SeedanceError where one is missing or cut."""
    for stem in _STEMS:
        for index in sorted(place.glob(f"{stem}.safetensors.index*.json")):
            where = _json(index).get("weight_map")
            if not isinstance(where, dict):
                raise SeedanceError(f"model: {index} is not an index of shards; {AGAIN}")
            shards = {name: read_header(place / name) for name in sorted(set(where.values()))}
            lost = [key for key, name in where.items() if key not in shards[name].shapes]
            if lost:
                raise SeedanceError(f"model: {index} names {_some(lost)}, which the shards do not hold; {AGAIN}")
            return tuple(shards.values()), _variant(index.name, r"index\.([^.]+)\.json$")
        plain = place / f"{stem}.safetensors"
        if plain.exists() or plain.is_symlink():
            return (read_header(plain),), ""
        for file in sorted(place.glob(f"{stem}.*.safetensors")):
            return (read_header(file),), _variant(file.name, rf"^{stem}\.([^.]+)\.safetensors$")
    shards_only = sorted(place.glob("*-of-*.safetensors"))
    if shards_only:
        raise SeedanceError(f"model: {place} holds shards and no index of them (*.safetensors.index.json); {AGAIN}")
    files = sorted(file for file in place.iterdir() if file.suffix in PICKLES)
    named = [file for file in files if file.relative_to(folder).as_posix() in pickles]
    if named:
        return (), ""
    if files:
        said = files[0].relative_to(folder).as_posix()
        raise SeedanceError(
            f"model: the weights of the {part} are a pickle ({files[0]}), which can run code when it is read; take "
            f"safetensors, or name the file, if you trust it: --pickle {said}, in Python pickles=({said!r},)"
        )
    raise SeedanceError(f"model: {place} holds no weights (safetensors) of the {part}; {AGAIN}")


def _variant(name: str, pattern: str) -> str:
    found = re.search(pattern, name)
    return found[1] if found else ""


def _statistics(checkpoint: Checkpoint) -> None:
    """SeedanceError if the VAE's latent statistics are not one positive number a channel."""
    config = checkpoint.config("vae")
    channels = config.get("z_dim") or config.get("latent_channels")
    for name in ("latents_mean", "latents_std"):
        values = config.get(name)
        if values is not None and (len(values) != channels or (name == "latents_std" and min(values) <= 0)):
            raise SeedanceError(
                f"model: {checkpoint.folder / 'vae' / 'config.json'}: {name} has {len(values)} values for {channels} "
                f"channels, or one that is not positive; {AGAIN}"
            )


def _tie(model: Any) -> set[str]:
    """Ties an encoder's word table to ``shared`` where it has both; the names that are then no longer missing."""
    shared, encoder = getattr(model, "shared", None), getattr(model, "encoder", None)
    if shared is None or encoder is None or getattr(encoder, "embed_tokens", None) is None:
        return set()
    if not (shared.weight == encoder.embed_tokens.weight).all():
        if float(shared.weight.detach().abs().sum()) == 0:  # the other name of the one table came with numbers in it
            shared.weight = encoder.embed_tokens.weight
        else:
            encoder.embed_tokens.weight = shared.weight
    return {"shared.weight", "encoder.embed_tokens.weight"}


def _table(model: Any) -> Any:
    encoder = getattr(model, "encoder", None)
    inner = encoder if getattr(encoder, "embed_tokens", None) is not None else model
    table = getattr(inner, "embed_tokens", None)
    return None if table is None else table.weight


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SeedanceError(f"model: {path} cannot be read ({error}); {AGAIN}") from error
    if not isinstance(found, dict):
        raise SeedanceError(f"model: {path} is not a JSON object; {AGAIN}")
    return found


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:300]


def _some(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
