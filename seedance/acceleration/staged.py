"""An open checkpoint whose parts are in memory one after another, the transformer fitted out as was asked for.

    pipeline = StagedSeedance.open(checkpoint, name="wan", acceleration=Acceleration(offload="model"))

Notable choices:

- The texts of a whole request are encoded first, by the text encoder alone; it is gone before the transformer comes.
  Wan's encoder is four times its 1.3B transformer. The states of texts are kept on disk by a hash of the encoder's
  files and the words, so a film made again needs no encoder at all. ``SEEDANCE_CACHE`` names the folder; the newest
  `KEPT` stay.
- Encoding on the device is tried first; where memory runs out, it is done on the CPU, which says so.
- Offloading is diffusers' own: its hooks for whole models, and its group offloading, block by block with a stream of
  its own on CUDA, from main memory or from disk.
- Decoding goes on in tiles when memory runs out.
- On the CPU there is nowhere to offload to but the disk: "model" and "group" are then as "none".
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

import numpy as np
import torch
from torch import Tensor

from seedance.acceleration.decoding import out_of_memory
from seedance.acceleration.fit import settle
from seedance.acceleration.options import ATTENTION, Acceleration
from seedance.engines.engine import DiffusersSeedance, preflight, shot_prompt
from seedance.engines.families import Family
from seedance.engines.folder import Checkpoint, load_part
from seedance.errors import SeedanceError
from seedance.pipeline import LatentFilm, Plan, Sampling, read_script
from shots.errors import ShotsError
from shots.runtime.device import pick_device, pick_dtype
from shots.script import Script

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

log = logging.getLogger("seedance")

KEPT = 512  # texts on disk, a few megabytes each


def words_folder() -> Path:
    """Where states of texts are kept: SEEDANCE_CACHE, or `seedance` in the user's cache folder."""
    if named := os.environ.get("SEEDANCE_CACHE"):
        return Path(named).expanduser() / "words"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "seedance" / "words"


class Words:
    """States of texts by their key, in memory and on disk."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = words_folder() if folder is None else folder
        self._held: dict[str, dict[str, Any]] = {}

    def get(self, key: str) -> dict[str, Any] | None:
        """The states kept under `key`, on the CPU; None where there are none, or none that can be read."""
        if key not in self._held:
            from safetensors import SafetensorError, safe_open

            path = self.folder / f"{key}.safetensors"
            try:
                with safe_open(str(path), framework="pt") as file:
                    found: dict[str, Any] = dict.fromkeys(json.loads((file.metadata() or {}).get("none", "[]")))
                    found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                path.touch()
            except (OSError, SafetensorError, ValueError):
                return None
            self._held[key] = found
        return self._held[key]

    def put(self, key: str, states: Mapping[str, Any]) -> None:
        """Keeps states; a disk that takes none is said and does no harm."""
        from safetensors.torch import save

        held = {name: value.detach().cpu().contiguous() if isinstance(value, Tensor) else value
                for name, value in states.items()}  # fmt: skip
        self._held[key] = held
        tensors = {name: value for name, value in held.items() if isinstance(value, Tensor)}
        none = [name for name, value in held.items() if value is None]
        if len(tensors) + len(none) != len(held):
            return  # something that safetensors cannot hold stays in memory alone
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as file:
                file.write(save(tensors, metadata={"none": json.dumps(none)}))
            Path(file.name).replace(self.folder / f"{key}.safetensors")
            files = sorted(self.folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
            for old in files[:-KEPT]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("warning: states of texts are not kept (%s)", error)


class _Remembering:
    """A family that answers for texts from what is kept, and asks the real one for everything else."""

    def __init__(self, family: Family, owner: StagedSeedance) -> None:
        self._family, self._owner = family, owner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def words(self, pipe: Any, prompt: str, negative: str, scale: float) -> dict[str, Any]:
        """As :meth:`Family.words`, on the device."""
        return self._owner.recalled(prompt, negative, scale)


@dataclass
class _Absent:
    """What a pipeline asks of a part that it does not run: HunyuanVideo's for its VAE's and its transformer's sizes."""

    config: Any
    dtype: torch.dtype
    part: Any  # itself, where it is loaded: not shown to the pipeline, which would compute where it lies

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)


class StagedSeedance(DiffusersSeedance):
    """A :class:`DiffusersSeedance` that loads as it goes.

    Attributes:
        acceleration: what was asked for; the first films settle an ``offload`` of "auto".
        words: the states of texts.
    """

    words: Words
    _adapters: Sequence[Any]
    _single: Any
    _disks: list[tempfile.TemporaryDirectory[str] | None]  # where blocks wait
    _family: Family

    @classmethod
    def open(
        cls,
        checkpoint: Checkpoint,
        *,
        name: str,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        lora: Sequence[str | Path] = (),
        transformer: str | Path | None = None,
        acceleration: Acceleration | None = None,
        words: Words | None = None,
    ) -> StagedSeedance:
        """Loads the small parts of a checked folder; arguments as in :meth:`DiffusersSeedance.open`."""
        said = acceleration or Acceleration()
        said.check(native=False)
        try:
            where = pick_device(None if device is None else str(device))
            kind, why = pick_dtype(where, None if dtype is None else str(dtype).removeprefix("torch."))
        except ShotsError as error:
            raise SeedanceError(str(error)) from error
        log.info("%s: %s on %s, %s", name, kind, where, why)
        adapters, single = preflight(checkpoint, lora, transformer)
        named = (key for key, value in checkpoint.index.items() if isinstance(value, list) and not key.startswith("_"))
        parts: dict[str, Any] = dict.fromkeys(named, None)
        for part in checkpoint.parts:
            if not part.startswith(("text_encoder", "transformer")):
                numbers = said.vae_format(checkpoint.family.fp32_vae, kind) if part == "vae" else kind
                parts[part] = load_part(checkpoint, part, numbers, where)
        # Convolutions over time and space run much faster so on cards, and need no copies.
        for parameter in parts["vae"].parameters():
            # On cards alone: on a CPU this layout is slower. 2-D convolutions have weights without it.
            if parameter.ndim == 5 and where.type == "cuda":
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        made = cls(checkpoint, parts, name=name, device=where, dtype=kind)
        made.acceleration = said
        made.words = words or Words()
        made._adapters, made._single = adapters, single
        made._family = checkpoint.family
        made.checkpoint = replace(checkpoint, family=cast(Family, _Remembering(checkpoint.family, made)))
        if single is not None:
            made.files["transformer"] = single.fingerprint
        return made

    # ------------------------------------------------------------------ texts

    def recalled(self, prompt: str, negative: str, scale: float) -> dict[str, Any]:
        """The states of a text, on the device; encoded now where they are not kept."""
        key = self._key(prompt, negative, scale)
        if self.words.get(key) is None:
            self.learn([prompt], negative, scale)
        held = self.words.get(key)
        assert held is not None
        return {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in held.items()}

    def learn(self, prompts: Sequence[str], negative: str, scale: float) -> None:
        """Encodes those texts that are not kept; the encoder is in memory only meanwhile."""
        asked = dict.fromkeys(prompts)
        wanted = [prompt for prompt in asked if self.words.get(self._key(prompt, negative, scale)) is None]
        if not wanted:
            return
        try:
            self._encode(wanted, negative, scale, self.device)
            return
        except (RuntimeError, MemoryError) as error:
            if self.device.type == "cpu" or not out_of_memory(error):
                raise
        self._drop_encoders()
        log.warning("warning: the text encoder does not fit the device; texts are encoded on the CPU")
        self._encode(wanted, negative, scale, torch.device("cpu"))

    def _encode(self, prompts: Sequence[str], negative: str, scale: float, device: torch.device) -> None:
        from seedance.engines.folder import diffusers

        encoders = {
            part: load_part(self.checkpoint, part, self.dtype, device)
            for part in self.checkpoint.parts
            if part.startswith("text_encoder")
        }
        held, self.parts = self.parts, {**self.parts, **encoders}
        pipes, self._pipes = self._pipes, {}
        try:
            for part in self.parts:  # nothing but encoders: a pipeline computes where its first model lies
                if part.startswith(("transformer", "vae", "image_encoder")):
                    self.parts[part] = self._told_of(part, held[part])
            diffusers()
            pipe = DiffusersSeedance.pipe(self, "words")
            with torch.no_grad():
                for prompt in prompts:
                    states = self._family.words(pipe, prompt, negative, scale)
                    self.words.put(self._key(prompt, negative, scale), states)
        finally:
            self.parts, self._pipes = held, pipes
            encoders.clear()
            self._drop_encoders()

    def _told_of(self, part: str, loaded: Any) -> Any:
        """What stands in for a part while texts are encoded."""
        if part not in self.checkpoint.weights:
            return None
        from diffusers.configuration_utils import FrozenDict

        return _Absent(FrozenDict(self.checkpoint.config(part)), self.dtype, loaded)

    def _drop_encoders(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _key(self, prompt: str, negative: str, scale: float) -> str:
        encoders = {name: mark for name, mark in self.files.items() if name.startswith("text_encoder")}
        said = [
            self._family.name, self.checkpoint.index.get("_class_name"), encoders, str(self.dtype), prompt, negative,
            scale > 1,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    # ------------------------------------------------------------------ the transformer

    def pipe(self, task: str = "text") -> Any:
        """As :meth:`DiffusersSeedance.pipe`; the first call loads the transformer."""
        if any(self.parts[part] is None for part in self._transformers()):
            self._load_transformers()
        fresh = self._family.pipeline(self.checkpoint, task) not in self._pipes
        pipe = super().pipe(task)
        if fresh and self.acceleration.offload == "model" and self.device.type != "cpu":
            pipe._exclude_from_cpu_offload = [*pipe._exclude_from_cpu_offload, "vae", "image_encoder"]
            pipe.enable_model_cpu_offload(device=self.device)
        return pipe

    def _transformers(self) -> list[str]:
        return [part for part in self.checkpoint.parts if part.startswith("transformer")]

    def _load_transformers(self) -> None:
        from seedance.engines.lora import load_lora
        from seedance.engines.single_file import load_single_file

        said = self.acceleration
        waits = said.offload in ("model", "group", "disk") or said.quantization is not None
        first = torch.device("cpu") if waits else self.device
        for part in self._transformers():
            if self._single is not None and part == "transformer":
                self.parts[part] = load_single_file(self._single, self.checkpoint, self.dtype, first)
            else:
                self.parts[part] = load_part(self.checkpoint, part, self.dtype, first)
        self._pipes.clear()
        for adapter in self._adapters:
            self.adapters += load_lora(adapter, self._family, self.parts)
        self._disks = [fit_out(self.parts[part], said, self.device) for part in self._transformers()]
        if self.spread_over is not None:
            for part in self._transformers():
                self.spread_over.put_on(self.parts[part])

    def spread(self, mesh: DeviceMesh) -> None:
        """As :meth:`DiffusersSeedance.spread`; transformers that are yet to be loaded are spread then."""
        if self.acceleration.cache is not None and "sequence" in (mesh.mesh_dim_names or ()):
            raise SeedanceError(
                "cache: parts of a sequence would not agree on what changed; leave it out, or the dimension sequence"
            )
        super().spread(mesh)

    # ------------------------------------------------------------------ films

    def sample(
        self,
        plans: Sequence[Plan],
        *,
        image: np.ndarray | str | Path | None = None,
        last_image: np.ndarray | str | Path | None = None,
        **how: Unpack[Sampling],
    ) -> list[LatentFilm]:
        """As :meth:`DiffusersSeedance.sample`; all texts are encoded before the transformer is loaded."""
        self.defaults.check(image=image is not None, last_image=last_image is not None)
        self._settle(plans)
        self._learn_scripts([plan.script for plan in plans], how)
        return super().sample(plans, image=image, last_image=last_image, **how)

    def retake(
        self,
        film: LatentFilm,
        shots: Sequence[int],
        *,
        script: Script | str | dict[str, Any] | None = None,
        seed: int | None = None,
        context: int = 0,
        **how: Unpack[Sampling],
    ) -> LatentFilm:
        """As :meth:`DiffusersSeedance.retake`."""
        self._settle([film.plan])
        self._learn_scripts([film.plan.script if script is None else read_script(script)], how)
        return super().retake(film, shots, script=script, seed=seed, context=context, **how)

    def extend(
        self,
        film: LatentFilm,
        *,
        script: Script | str | dict[str, Any] | None = None,
        seconds: float | None = None,
        seed: int | None = None,
        context: int = 0,
        **how: Unpack[Sampling],
    ) -> LatentFilm:
        """As :meth:`DiffusersSeedance.extend`."""
        if script is not None and seconds is None:
            old = film.plan.script
            self._settle([film.plan])
            self._learn_scripts([replace(old, shots=(*old.shots, *read_script(script).shots))], how)
        return super().extend(film, script=script, seconds=seconds, seed=seed, context=context, **how)

    def _settle(self, plans: Sequence[Plan]) -> None:
        """Takes the first offload level at which the films fit, while there is a choice: no transformer is loaded."""
        if self.acceleration.offload == "auto":
            self.acceleration = settle(
                self.checkpoint, plans, device=self.device, dtype=self.dtype, acceleration=self.acceleration
            )

    def _told(self, *args: Any) -> dict[str, Any]:
        self.pipe()  # its adapters belong into the record
        return super()._told(*args)

    def _learn_scripts(self, scripts: Sequence[Script], how: Sampling) -> None:
        settings = self._settings(how)
        prompts = [shot_prompt(script, n) for script in scripts for n in range(1, len(script.shots) + 1)]
        self.learn(prompts, settings.negative, settings.scale)

    def _record(self, *args: Any, **how: Any) -> dict[str, Any]:
        record = super()._record(*args, **how)
        record["acceleration"] = {**self.acceleration.used(), "offload": self.acceleration.offload}
        return record

    @property
    def _decoding(self) -> dict[str, bool]:
        return {"tiling": self.acceleration.tiling, "retry": True}


class Skips:
    """Counts the ``passes`` of a stock transformer whose further blocks diffusers' cache left out."""

    def __init__(self, model: Any) -> None:
        self.passes = 0
        for block in model.modules():
            registry = getattr(block, "_diffusers_hook", None)
            hook = None if registry is None else registry.get_hook("fbc_leader_block_hook")
            if hook is not None:
                decide = hook._should_compute_remaining_blocks
                # As theirs, not compiled: a counter in a compiled block would compile it anew at every count.
                hook._should_compute_remaining_blocks = torch.compiler.disable(partial(self._counted, decide))

    def _counted(self, decide: Callable[[Tensor], bool], residual: Tensor) -> bool:
        runs = decide(residual)
        self.passes += not runs
        return runs


def fit_out(model: Any, said: Acceleration, device: torch.device) -> tempfile.TemporaryDirectory[str] | None:
    """Puts on a transformer of diffusers what was asked for. Returns the folder its blocks wait in, if they do on disk;
    it is to be held as long as the transformer."""
    if said.quantization is not None:
        from seedance.acceleration.quantizing import quantize

        quantize(model, said.quantization, device)
        if said.offload == "model" and device.type != "cpu":
            model.to("cpu")
    if said.attention != "sdpa":
        try:
            model.set_attention_backend(ATTENTION[said.attention])
        except (ValueError, RuntimeError, ImportError) as error:
            raise SeedanceError(
                f"attention_backend: {said.attention} cannot be used here ({str(error).splitlines()[0]}); leave it out"
            ) from error
    if said.cache is not None:
        from diffusers import FirstBlockCacheConfig

        model.enable_cache(FirstBlockCacheConfig(threshold=said.cache))
        model._seedance_skips = Skips(model)
    if said.compile:
        model.compile_repeated_blocks(dynamic=True)
    if said.offload == "disk" or said.offload == "group" and device.type != "cpu":
        cuda = device.type == "cuda"
        disk = tempfile.TemporaryDirectory(prefix="seedance-") if said.offload == "disk" else None
        where = {} if disk is None else {"offload_to_disk_path": disk.name}
        model.enable_group_offload(
            onload_device=device, offload_device=torch.device("cpu"), offload_type="block_level",
            num_blocks_per_group=1, use_stream=cuda, **where,
        )  # fmt: skip
        return disk
    return None
