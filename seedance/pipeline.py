"""From a prompt or a script to a film: the parts (text encoder, DiT, VAE), the model folder, and the steps between.

Notable choices:

- A render has two halves. :meth:`Seedance.sample` makes a :class:`LatentFilm` (61 KB for three seconds),
  :meth:`Seedance.decode` turns it into frames, chunk by chunk. Everything that edits a film (re-take a shot, extend it)
  works on the former, so what is kept stays exactly as it was.
- Shots are native: one latent sequence, shot after shot, each shot with its own caption and its own VAE clip. A cut is
  therefore exact, and every shot is trimmed to exactly ``round(seconds * fps)`` frames.
- Noise is drawn per film from its own seed, so a film made in a batch is the film made alone (to rounding).
- A re-take or a further shot is made seeing at most :data:`CONTEXT` other shots: the ones in which its actors first
  appear and its neighbours. They and the new ones are drawn as a short film of their own, at positions that the model
  was trained on, so a film can be carried on for ever: neither cost nor positions grow with it.
- The model folder is the hub's layout: ``model_index.json`` with the class of each component and the SHA-256 of every
  file, one folder per component with ``config.json`` and safetensors. A file that differs is named, and nothing is
  loaded partly.
- What is adjusted is said: sizes that were rounded and words that the model's world does not hold go to the record and
  to the log.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from seedance import flow, samplers
from seedance.acceleration import decoding
from seedance.acceleration.options import Acceleration, compile_layers
from seedance.conditioning import Conditioning, collate
from seedance.dit import DiTConfig, VideoDiT
from seedance.errors import SeedanceError
from seedance.shapes import NATIVE, RATIO_S, RATIO_T, Ratio, fit_frames
from seedance.text import TextEncoder
from seedance.vae import VAEConfig, VideoVAE
from shots.errors import ShotsError
from shots.runtime.device import pick_device, pick_dtype
from shots.runtime.weights import load_into, load_tensors, locate, save_tensors, sha256_file
from shots.script import Script, Shot

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from seedance.engines.folder import Checkpoint
    from shots.runtime.hub import Remote
    from shots.video import Video

log = logging.getLogger("seedance")

SHIPPED = {"seedance-nano": Path(__file__).parent / "nano"}
DEFAULT_MODEL = "seedance-nano"

DECODE_CHUNK = 4  # latent frames decoded at once
CONTEXT = 2  # shots seen beside the new one: with it the three that nano's training films have
MAX_LATENT_FRAMES = 4096  # 20 minutes at 12 fps; beyond it the request is a mistake, not a film

SAMPLERS = {"multistep": samplers.multistep, "euler": samplers.euler}

Callback = Callable[[int, int, Tensor], None]
"""``callback(step, steps, preview)``: steps done, steps in all, the latents (B, C, t, h, w) the film is heading for."""

Decoded = Callable[[int, int], None]
"""``callback(frames, total)``: how many of a film's frames are decoded, and how many it has."""


@dataclass(frozen=True)
class Defaults:
    """What a model is rendered with where the caller says nothing; stored in its ``model_index.json``."""

    height: int = 128
    width: int = 128
    fps: float = 12.0
    seconds: float = 3.0
    steps: int = 25
    guidance_scale: float = 4.0
    sampler: str = "multistep"
    shift: float = (
        1.0  # time shift of a film of ``shift_tokens`` latent cells; grows with the square root of their number
    )
    shift_tokens: int = 80

    @property
    def ratio(self) -> Ratio:
        """How pixels become latents; models of other families have their own."""
        return NATIVE

    def fit_size(self, height: int, width: int) -> tuple[int, int]:
        """The nearest height and width the model renders."""
        return self.ratio.fit_side(height), self.ratio.fit_side(width)

    def check(
        self,
        *,
        image: bool | None = None,
        last_image: bool | None = None,
        sampler: str | None = None,
        carry: str | None = None,
        lora: Sequence[str | Path] = (),
        transformer: str | Path | None = None,
    ) -> None:
        """Raises SeedanceError if the model cannot be given this or drawn so; to be asked before it is loaded.

        image, last_image: whether they are given; None is not known yet.
        """
        for option, given in (("lora", lora), ("transformer", transformer)):
            if given:
                raise SeedanceError(f"{option}: this package's own models take none; leave it out, or take an open one")
        if sampler is not None and sampler not in SAMPLERS:
            raise SeedanceError(f"sampler: {sampler!r} is not one of {', '.join(SAMPLERS)}")
        if carry is not None:
            raise SeedanceError("carry: this model makes all shots of a film at once and needs none; leave it out")


class Sizes(TypedDict, total=False):
    """A film's sizes; what is left out or None is the model's default. See :meth:`Seedance.__call__`."""

    height: int | None
    width: int | None
    num_frames: int | None
    fps: float | None


class Sampling(TypedDict, total=False):
    """How a film is drawn; what is left out or None is the model's default. See :meth:`Seedance.__call__`."""

    steps: int | None
    guidance_scale: float | None
    negative_prompt: str
    sampler: str | None
    callback: Callback | None


@dataclass(frozen=True)
class Plan:
    """One film, all sizes settled: what :meth:`Seedance.plan` makes of a request.

    Attributes:
        script: the script, every shot with its seconds.
        frames: pixel frames of each shot.
        height, width: pixels, multiples of the ratio's side (16).
        fps: frames per second.
        seed: of the noise.
        notes: what was adjusted, one sentence each.
        ratio: of pixels to latents.
    """

    script: Script
    frames: tuple[int, ...]
    height: int
    width: int
    fps: float
    seed: int
    notes: tuple[str, ...] = ()
    ratio: Ratio = NATIVE

    @property
    def latent_frames(self) -> tuple[int, ...]:
        """Latent frames of each shot: the first frame alone, then four at a time, rounded up."""
        return tuple(self.ratio.latent_frames(n) for n in self.frames)

    @property
    def grid(self) -> tuple[int, int]:
        """Latent height and width."""
        return self.height // self.ratio.space, self.width // self.ratio.space

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(t, h, w) of the whole film's latents."""
        return (sum(self.latent_frames), *self.grid)

    @property
    def tokens(self) -> int:
        """Tokens of the film: its latent cells, or patches of them where the model's ratio says so."""
        return sum(self.ratio.tokens(n, self.height, self.width) for n in self.frames)


def latent_frames(frames: int) -> int:
    """Latent frames that hold ``frames`` pixel frames of one shot."""
    return NATIVE.latent_frames(frames)


@dataclass
class LatentFilm:
    """A film before decoding: normalised latents (C, t, h, w) float32 on the CPU, and what it was made from.

    given: which latent frames a picture gave; re-takes leave them as they are.
    """

    latents: Tensor
    plan: Plan
    record: dict[str, Any] = field(default_factory=dict)
    given: tuple[int, ...] = ()

    def shots(self) -> list[Tensor]:
        """The latents (C, n, h, w) of each shot."""
        return list(self.latents.split(list(self.plan.latent_frames), dim=1))

    def save(self, path: str | Path) -> Path:
        """Writes the film's state (safetensors), to be re-taken or extended another day."""
        plan = asdict(self.plan) | {"script": self.plan.script.to_dict()}
        path = Path(path)
        temporary = path.with_name(f".{path.name}.part")
        save_file(
            {"latents": self.latents.contiguous()}, temporary,
            metadata={
                "plan": json.dumps(plan), "record": json.dumps(self.record), "given": json.dumps(self.given)
            },
        )  # fmt: skip
        temporary.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> LatentFilm:
        """Reads a state that :meth:`save` wrote."""
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:
                about = file.metadata() or {}
                latents = file.get_tensor("latents")
            plan = json.loads(about["plan"])
            plan |= {
                "script": Script.from_dict(plan["script"]),
                "frames": tuple(plan["frames"]),
                "notes": tuple(plan["notes"]),
                "ratio": Ratio(**plan.get("ratio", {})),
            }
            film = cls(latents, Plan(**plan), json.loads(about["record"]), tuple(json.loads(about.get("given", "[]"))))
            if latents.ndim != 4 or tuple(latents.shape[1:]) != film.plan.latent_shape:
                raise ValueError(f"latents {tuple(latents.shape)} for a film of {film.plan.latent_shape}")
            return film
        except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
            raise SeedanceError(
                f"film state: {path} cannot be read ({error}); give a file that LatentFilm.save wrote"
            ) from error


class Seedance:
    """Text, pictures and scripts to films. Make one with :meth:`from_pretrained`.

    Attributes:
        acceleration: what saves time and memory.
        denoiser: stands in for the transformer where it is not None: the same one over several devices
            (`seedance.acceleration.parallel`).
        tiny: a tiny autoencoder for previews (`seedance.acceleration.tiny`), None for the linear map.
    """

    acceleration = Acceleration()
    denoiser: samplers.Denoiser | None = None
    tiny: Any = None

    def __init__(
        self,
        vae: VideoVAE,
        transformer: VideoDiT,
        text_encoder: TextEncoder,
        *,
        defaults: Defaults | None = None,
        vocabulary: Sequence[str] = (),
        name: str = "custom",
        files: dict[str, str] | None = None,
        text_encoder_name: str | None = None,
    ) -> None:
        self.vae, self.transformer, self.text_encoder = vae, transformer, text_encoder
        self.defaults = defaults or Defaults()
        self.vocabulary = tuple(vocabulary)
        self.name = name
        self.files = files or {}
        self.text_encoder_name = text_encoder_name
        if text_encoder.dim != transformer.config.text_dim:
            raise SeedanceError(
                f"text_encoder: gives states of {text_encoder.dim} numbers, the transformer wants "
                f"{transformer.config.text_dim}; use the encoder the model was trained with"
            )

    # ------------------------------------------------------------------ the model folder

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = DEFAULT_MODEL,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        *,
        lora: Sequence[str | Path] = (),
        transformer: str | Path | None = None,
        pickles: Sequence[str] = (),
        acceleration: Acceleration | None = None,
    ) -> Seedance:
        """Loads a shipped model by name, a model folder, or a hub id.

        A folder in diffusers' layout (Wan, LTX-Video, HunyuanVideo 1.5, CogVideoX) gives a
        :class:`seedance.engines.DiffusersSeedance`, which is called in the same way.

        Args:
            name: "seedance-nano", a folder with a ``model_index.json``, or "owner/name" on the hub.
            revision: branch, tag or commit on the hub.
            dtype: of the DiT and the VAE ("bf16", "fp32", ...); by default what the device multiplies fastest.
            device: "cpu", "cuda", ...; by default the best one present.
            lora: adapters to put on, each ``PATH`` or ``PATH:scale``; open checkpoints only.
            transformer: a safetensors file to take the place of the folder's transformer; open checkpoints only.
            pickles: weight files of the folder that may be read though they are pickles; open checkpoints only.
            acceleration: what saves time and memory (:class:`seedance.acceleration.options.Acceleration`). With one, an
                open checkpoint's text encoder goes before its transformer comes.

        Raises:
            SeedanceError: the folder is not a model of this package or of those families, or a file is missing,
                differs from its hash or does not fit.
        """
        found = _locate(name, revision)
        if isinstance(found, Path):
            folder = found
        else:
            _check_remote(found, dtype, device, lora, transformer, pickles, acceleration)
            folder = _fetch(found)
        if (checkpoint := _open_checkpoint(folder, pickles)) is not None:
            known = folder.resolve().name if Path(name).is_dir() else str(name)
            if acceleration is not None:
                from seedance.acceleration.staged import StagedSeedance

                return StagedSeedance.open(
                    checkpoint, name=known, dtype=dtype, device=device, lora=lora, transformer=transformer,
                    acceleration=acceleration,
                )  # fmt: skip
            from seedance.engines.engine import DiffusersSeedance

            return DiffusersSeedance.open(
                checkpoint, name=known, dtype=dtype, device=device, lora=lora, transformer=transformer
            )
        Defaults().check(lora=lora, transformer=transformer)
        if pickles:
            raise SeedanceError(f"pickles: {name} has none; leave it out")
        if acceleration is not None:
            acceleration.check(native=True)
        try:
            where = pick_device(None if device is None else str(device))
            kind, _ = pick_dtype(where, None if dtype is None else str(dtype).removeprefix("torch."))
        except ShotsError as error:
            raise SeedanceError(str(error)) from error
        index = read_index(folder)
        files = dict(index.get("files", {}))
        vae = load_vae(folder)
        dit = load_transformer(folder)
        said = index.get("text_encoder", {}).get("name")
        local = folder / "text_encoder"
        try:
            text_encoder = TextEncoder.from_pretrained(local if local.is_dir() else said, device=where)
        except ShotsError as error:
            raise SeedanceError(f"text encoder of {name}: {error}") from error
        words: list[str] = []
        if "vocabulary.txt" in files:
            words = _checked(folder, "vocabulary.txt", files).read_text().split()
        statistics = dict(vae.named_buffers())
        vae.to(where, kind).eval().requires_grad_(False)
        for key, buffer in statistics.items():  # latents are float32 whatever the weights are
            setattr(vae, key, buffer.to(where))
        dit.to(where, kind).eval().requires_grad_(False)
        made = cls(
            vae,
            dit,
            text_encoder,
            defaults=_defaults(index, folder),
            vocabulary=words,
            name=str(name) if str(name) in SHIPPED else folder.resolve().name,
            files=files,
            text_encoder_name=said,
        )
        if acceleration is not None:
            made.acceleration = acceleration
            if acceleration.compile:
                compile_layers(dit)
        return made

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype | None = None, extra: dict[str, str] | None = None
    ) -> Path:
        """Writes the model folder; arguments as in :func:`save_model`. The text encoder is named, not copied."""
        return save_model(
            folder,
            self.vae,
            self.transformer,
            defaults=self.defaults,
            vocabulary=self.vocabulary,
            text_encoder=self.text_encoder_name,
            dtype=dtype,
            extra=extra,
        )

    @property
    def device(self) -> torch.device:
        """Where the DiT lies."""
        return next(self.transformer.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the DiT's weights."""
        return next(self.transformer.parameters()).dtype

    def spread(self, mesh: DeviceMesh) -> None:
        """Shares the transformer's passes out over the processes of a mesh with a dimension "guidance", "sequence", or
        both; every process then calls the pipeline alike and gets the film (`seedance.acceleration.parallel`).

        Raises SeedanceError for other dimensions, and for more processes than heads or branches allow.
        """
        from seedance.acceleration.parallel import spread

        self.denoiser = spread(self.transformer, mesh)

    # ------------------------------------------------------------------ rendering

    def __call__(
        self,
        script_or_prompt: Script | str | dict[str, Any],
        image: np.ndarray | str | Path | None = None,
        last_image: np.ndarray | str | Path | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        sampler: str | None = None,
        callback: Callback | None = None,
    ) -> Video:
        """Renders one film.

        Args:
            script_or_prompt: a Script, its dictionary form, or text in any form that ``Script.parse`` reads.
            image: first frame: uint8 (H, W, 3) or a file; resized to cover and cropped at the centre.
            last_image: last frame, likewise.
            seed: of the noise; the same seed gives the same film on any device and in any batch.
            steps: network evaluations, from 1; guidance doubles their cost.
            guidance_scale: classifier-free guidance, from 1 (off) to about 10.
            negative_prompt: what the film should be led away from.
            height, width: pixels; rounded to multiples of 16.
            num_frames: of each shot whose script says no seconds.
            fps: frames per second.
            sampler: "multistep" (second order) or "euler".
            callback: called after each step with (step, steps, preview latents).

        Raises:
            SeedanceError: an argument cannot be used; the message names it.
        """
        plan = self.plan(script_or_prompt, seed=seed, height=height, width=width, num_frames=num_frames, fps=fps)
        started = time.perf_counter()
        film = self.sample(
            [plan],
            image=image,
            last_image=last_image,
            steps=steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            sampler=sampler,
            callback=callback,
        )[0]
        video = self.video(film)
        film.record["timings"]["total"] = time.perf_counter() - started
        return video

    def plan(
        self,
        script_or_prompt: Script | str | dict[str, Any],
        *,
        seed: int = 0,
        **sizes: Unpack[Sizes],
    ) -> Plan:
        """Settles every size of a film and checks it; draws nothing. Arguments as in :meth:`__call__`."""
        plan = make_plan(script_or_prompt, self.defaults, seed=seed, **sizes)
        notes = list(plan.notes)
        unknown = self._unknown_words(plan.script)
        if unknown:
            notes.append(f"{self.name} was not trained on: {', '.join(unknown)}; the film may not show them")
        for note in notes:
            log.warning("warning: %s", note)
        return replace(plan, notes=tuple(notes))

    @torch.no_grad()
    def sample(
        self,
        plans: Sequence[Plan],
        *,
        image: np.ndarray | str | Path | None = None,
        last_image: np.ndarray | str | Path | None = None,
        **how: Unpack[Sampling],
    ) -> list[LatentFilm]:
        """Draws the latents of films of one size in one batch, each as it would be alone. Arguments as in
        :meth:`__call__`."""
        sizes = {(plan.latent_shape, plan.height, plan.width) for plan in plans}
        if len(sizes) != 1:
            raise SeedanceError(
                f"plans: a batch needs films of one size, got {sorted(s[0] for s in sizes)}; render them one by one"
            )
        started = time.perf_counter()
        cond = collate([self._words(plan) for plan in plans])
        timings = {"text": time.perf_counter() - started}
        if image is not None or last_image is not None:
            cond = self._with_pictures(cond, plans[0], image, last_image)
            timings["pictures"] = time.perf_counter() - started - timings["text"]
        kinds = [kind for kind, picture in (("first", image), ("last", last_image)) if picture is not None]
        films = self._draw(list(plans), cond, "+".join(kinds) + " frame" if kinds else "text", timings, **how)
        given = tuple(int(index) for index in cond.mask[0].nonzero())
        return [replace(film, given=given) for film in films]

    def take(
        self,
        script_or_prompt: Script | str | dict[str, Any],
        *,
        seed: int = 0,
        image: np.ndarray | str | Path | None = None,
        last_image: np.ndarray | str | Path | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        **how: Unpack[Sampling],
    ) -> LatentFilm:
        """The state of one film, not decoded; arguments as in :meth:`__call__`."""
        plan = self.plan(script_or_prompt, seed=seed, height=height, width=width, num_frames=num_frames, fps=fps)
        return self.sample([plan], image=image, last_image=last_image, **how)[0]

    @torch.no_grad()
    def retake(
        self,
        film: LatentFilm,
        shots: Sequence[int],
        *,
        script: Script | str | dict[str, Any] | None = None,
        seed: int | None = None,
        **how: Unpack[Sampling],
    ) -> LatentFilm:
        """Makes some shots of a film anew, seeing others (:func:`seen_shots`); the others stay bit for bit, and so do
        their frames.

        Args:
            film: the state of the film, from :meth:`sample`, :meth:`encode` or :meth:`LatentFilm.load`.
            shots: numbers of the shots to make anew, from 1.
            script: new words, with as many shots; by default those of the film.
            seed: of the new noise; by default one after the film's.
        """
        plan, wanted = retake_plan(film, shots, script, seed)
        anew = torch.isin(_shot_of(plan), torch.tensor(wanted))
        anew[list(film.given)] = False
        said = f"re-take of shots {', '.join(map(str, wanted))}"
        return self._redraw(film, plan, film.latents, ~anew, wanted, said, **how)

    @torch.no_grad()
    def extend(
        self,
        film: LatentFilm,
        *,
        script: Script | str | dict[str, Any] | None = None,
        seconds: float | None = None,
        seed: int | None = None,
        **how: Unpack[Sampling],
    ) -> LatentFilm:
        """Carries a film on: the last shot becomes ``seconds`` longer, or the shots of ``script`` follow.

        What was there stays bit for bit, and so do its frames; some of it is seen (:func:`seen_shots`). Exactly one of
        ``script`` and ``seconds`` is given. The seed is by default one after the film's.
        """
        if (script is None) == (seconds is None):
            raise SeedanceError("extend: give either script (further shots) or seconds (a longer last shot)")
        old = film.plan
        seed = old.seed + 1 if seed is None else seed
        if script is not None:
            further = make_plan(script, self.defaults, seed=seed, height=old.height, width=old.width, fps=old.fps)
            words, frames = (
                replace(old.script, shots=(*old.script.shots, *further.script.shots)),
                (*old.frames, *further.frames),
            )
            wanted = list(range(len(old.frames) + 1, len(frames) + 1))
        else:
            more = round(_number("seconds", seconds, 0.0, 86_400.0) * old.fps)
            frames = (*old.frames[:-1], old.frames[-1] + more)
            words = _with_seconds(old.script, frames, old.fps)
            wanted = [len(frames)]
        plan = replace(old, script=words, frames=frames, seed=seed)
        _check_length(plan.frames, plan.ratio)
        kept = film.latents.shape[1]
        total = plan.latent_shape[0]
        if total == kept:  # the frames asked for were made and trimmed already
            return replace(film, plan=plan, record=self._continued(film, plan, film.record))
        latents = torch.cat([film.latents, film.latents.new_zeros(film.latents.shape[0], total - kept, *plan.grid)], 1)
        return self._redraw(film, plan, latents, torch.arange(total) < kept, wanted, "extension", **how)

    def splice(self, film: LatentFilm, other: LatentFilm, shots: Sequence[int]) -> LatentFilm:
        """``film`` with the shots of these numbers, from 1, of ``other``, which has the same lengths and sizes."""
        if (film.plan.frames, film.latents.shape) != (other.plan.frames, other.latents.shape):
            raise SeedanceError(
                f"other: has shots of {other.plan.frames} frames at {other.plan.width} x {other.plan.height}, the film "
                f"{film.plan.frames} at {film.plan.width} x {film.plan.height}; only takes of one film can be spliced"
            )
        theirs = torch.isin(_shot_of(film.plan), torch.tensor(list(shots), dtype=torch.long))  # (t,)
        said = list(film.plan.script.shots)
        for number in shots:
            said[number - 1] = other.plan.script.shots[number - 1]
        plan = replace(film.plan, script=replace(film.plan.script, shots=tuple(said)))
        latents = torch.where(theirs[None, :, None, None], other.latents, film.latents)
        return replace(film, latents=latents, plan=plan, record=film.record | {"script": plan.script.to_dict()})

    def _redraw(
        self,
        film: LatentFilm,
        plan: Plan,
        latents: Tensor,
        kept: Tensor,
        wanted: Sequence[int],
        task: str,
        **how: Unpack[Sampling],
    ) -> LatentFilm:
        """Draws the latent frames of ``latents`` (C, t, h, w) that are not ``kept`` (t,) bool, all in the shots
        ``wanted``, in a film of these and of the shots they see."""
        seen = seen_shots(plan.script, wanted)
        numbers = sorted({*wanted, *seen})
        inside = torch.isin(_shot_of(plan), torch.tensor(numbers))  # (t,)
        part = replace(
            plan,
            script=replace(plan.script, shots=tuple(plan.script.shots[k - 1] for k in numbers)),
            frames=tuple(plan.frames[k - 1] for k in numbers),
        )
        cond = self._words(part).given(latents[None, :, inside], kept[None, inside].float())
        drawn = self._draw([part], cond, task, {}, **how)[0]
        made = latents.clone()
        made[:, inside] = drawn.latents
        record = self._continued(film, plan, drawn.record | {"seen_shots": seen})
        return LatentFilm(made, plan, record, film.given)

    def _continued(self, film: LatentFilm, plan: Plan, how: dict[str, Any]) -> dict[str, Any]:
        """How ``film`` became the film of ``plan``; what was done before stands in the record's history."""
        before = {key: film.record[key] for key in ("task", "seed", "steps", "guidance_scale") if key in film.record}
        history = [*film.record.get("history", []), *([before] if before else [])]
        return {**how, **self._record(plan), "history": history}

    def _draw(
        self,
        plans: list[Plan],
        cond: Conditioning,
        task: str,
        timings: dict[str, float],
        **how: Unpack[Sampling],
    ) -> list[LatentFilm]:
        """Noise to latents under ``cond``; the one place where the sampler runs."""
        plan, defaults = plans[0], self.defaults
        said, callback = {key: value for key, value in how.items() if value is not None}, how.get("callback")
        negative_prompt = how.get("negative_prompt") or ""
        steps = int(_number("steps", said.get("steps", defaults.steps), 1, 1000))
        scale = _number("guidance_scale", said.get("guidance_scale", defaults.guidance_scale), 0.0, 100.0)
        name = str(said.get("sampler", defaults.sampler))
        if name not in SAMPLERS:
            raise SeedanceError(f"sampler: {name!r} is not one of {', '.join(SAMPLERS)}")
        started = time.perf_counter()
        cond = cond.to(self.device)
        against = None
        if negative_prompt:
            words = self._words(replace(plan, script=Script(shots=tuple(Shot(negative_prompt) for _ in plan.frames))))
            against = cond.with_text(collate([words] * len(plans)).to(self.device))
        saving = self.acceleration
        denoiser = saving.cached(self.denoiser or self.transformer, len(plans))
        model = samplers.guided(
            denoiser, cond, scale=scale, negative=against, interval=saving.guidance_interval, dtype=self.dtype
        )
        noise = flow.noise([p.seed for p in plans], (cond.clean.shape[1], *plan.latent_shape)).to(
            self.device
        )  # (B, C, t, h, w)
        shift = flow.shift_for(plan.tokens, base_tokens=defaults.shift_tokens, base_shift=defaults.shift)
        times = samplers.times(steps, shift=shift)

        def report(step: samplers.Step) -> None:
            if callback is not None:
                callback(step.index, step.steps, step.x0)

        latents = SAMPLERS[name](model, noise, times, callback=report)  # (B, C, t, h, w)
        given = cond.mask[:, None, :, None, None] > 0
        latents = torch.where(given, cond.clean.float(), latents.float()).cpu()
        spent = time.perf_counter() - started
        passes = sum(2 if scale != 1.0 and acts else 1 for acts in saving.branches(times))
        skipped = getattr(denoiser, "skipped", 0) / max(getattr(denoiser, "passes", 0), 1)  # by the cache
        layers = len(self.transformer.layers)
        flops = self.transformer.flops(plan.latent_shape, cond.text.shape[1]) * passes * len(plans)
        flops = round(flops * (1 - skipped * (layers - 1) / layers))
        films = []
        for index, p in enumerate(plans):
            record = self._record(
                p,
                task=task,
                steps=steps,
                sampler=name,
                guidance_scale=scale,
                negative_prompt=negative_prompt,
                shift=shift,
            )
            record["timings"] = {**timings, "sampling": spent}
            record["flops"] = {"transformer": flops // len(plans)}
            if used := saving.used():
                record["acceleration"] = used | ({"skipped": round(skipped, 3)} if saving.cache is not None else {})
            films.append(LatentFilm(latents[index].contiguous(), p, record))
        return films

    # ------------------------------------------------------------------ decoding

    @torch.no_grad()
    def decode(self, film: LatentFilm) -> Iterator[np.ndarray]:
        """The film's frames, uint8 (n, H, W, 3), a few at a time: memory does not grow with the film."""
        tiling = decoding.Tiling() if self.acceleration.tiling else None
        for latents, frames in zip(film.shots(), film.plan.frames, strict=True):
            done = 0
            for pixels in decode_latents(self.vae, [latents], tiling):
                if done < frames:
                    yield pixels[: frames - done]
                done += len(pixels)

    def video(self, film: LatentFilm, *, callback: Decoded | None = None) -> Video:
        """Decodes a film whole; ``callback`` as for :meth:`write`."""
        from shots.video import Video

        started = time.perf_counter()
        frames = np.concatenate(list(self._decoded(film, callback)))  # (T, H, W, 3)
        film.record.setdefault("timings", {})["decoding"] = time.perf_counter() - started
        fps = film.plan.fps
        return Video(
            frames=frames, fps=fps, times=np.arange(len(frames)) / fps, cuts=cut_times(film.plan), record=film.record
        )

    def write(
        self,
        film: LatentFilm,
        path: str | Path,
        *,
        record: bool = True,
        crf: int = 18,
        callback: Decoded | None = None,
    ) -> dict[str, Any]:
        """Decodes a film straight into a file, chunk by chunk. Returns the record that was written.

        ``callback(frames, total)`` is told how many of the film's frames are there, at first 0 and then after every
        chunk; what it raises ends the decoding, and nothing is left of the file.
        """
        from shots.video import VideoWriter

        started = time.perf_counter()
        plan = film.plan
        with VideoWriter(
            path, fps=plan.fps, height=plan.height, width=plan.width, record=film.record if record else None, crf=crf
        ) as writer:
            for frames in self._decoded(film, callback):
                writer.write(frames)
            film.record.setdefault("timings", {})["decoding and writing"] = time.perf_counter() - started
        return film.record

    def _decoded(self, film: LatentFilm, callback: Decoded | None) -> Iterator[np.ndarray]:
        """:meth:`decode`, with somebody told of every chunk."""
        done, total = 0, sum(film.plan.frames)
        if callback is not None:
            callback(done, total)
        for frames in self.decode(film):
            yield frames
            done += len(frames)
            if callback is not None:
                callback(done, total)

    def render_to(
        self, path: str | Path, script_or_prompt: Script | str | dict[str, Any], **options: Any
    ) -> LatentFilm:
        """Renders a film and streams it into ``path``; options as in :meth:`__call__`. Returns the film's state."""
        film = self.take(script_or_prompt, **options)
        self.write(film, path)
        return film

    @torch.no_grad()
    def encode(self, video: Video, script_or_prompt: Script | str | dict[str, Any]) -> LatentFilm:
        """Turns a video into a film state to re-take or extend: each shot between ``video.cuts`` is encoded alone.

        The video is taken at its own rate and size, multiples of 16; ``script_or_prompt`` has one shot per stretch.
        """
        script = read_script(script_or_prompt)
        total, height, width, _ = video.frames.shape
        if height % RATIO_S or width % RATIO_S:
            raise SeedanceError(
                f"video: is {width} x {height}, sides must be multiples of {RATIO_S}; read it with size=(height, width)"
            )
        edges = [0, *(round(cut * video.fps) for cut in video.cuts), total]
        frames = tuple(b - a for a, b in zip(edges, edges[1:], strict=False))
        if len(frames) != len(script.shots):
            raise SeedanceError(
                f"script: has {len(script.shots)} shots, the video {len(frames)}; give one caption per shot"
            )
        pieces = [self._encode_frames(video.frames[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
        plan = Plan(_with_seconds(script, frames, video.fps), frames, height, width, video.fps, seed=0)
        return LatentFilm(torch.cat(pieces, dim=1), plan, dict(video.record or {}))

    def _encode_frames(self, frames: np.ndarray) -> Tensor:
        """One shot, uint8 (n, H, W, 3) -> normalised latents (C, t, h, w); the last frame is held to fill up."""
        short = fit_frames(len(frames)) - len(frames)
        pixels = torch.from_numpy(np.concatenate([frames, np.repeat(frames[-1:], short, axis=0)]))
        x = pixels.to(self.device).permute(3, 0, 1, 2)[None].float() / 127.5 - 1  # (1, 3, T, H, W)
        return self.vae.normalize(self.vae.encode(x).float())[0].cpu()

    # ------------------------------------------------------------------ conditions

    def _words(self, plan: Plan) -> Conditioning:
        """The plan's captions as conditioning, on the CPU."""
        script = plan.script
        shared = ". ".join(part for part in (script.caption, script.style) if part)
        spoken = [f"{shot.caption}. {shot.camera}" if shot.camera else shot.caption for shot in script.shots]
        states = [s.float().cpu() for s in self.text_encoder.encode_list([*([shared] if shared else []), *spoken])]
        return Conditioning.text_to_video(
            states[-len(spoken) :],
            plan.latent_frames,
            plan.grid,
            fps=plan.fps,
            channels=self.transformer.config.channels,
            caption=states[0] if shared else None,
            ratio=RATIO_T,
        )

    def _with_pictures(
        self,
        cond: Conditioning,
        plan: Plan,
        image: np.ndarray | str | Path | None,
        last_image: np.ndarray | str | Path | None,
    ) -> Conditioning:
        first = None if image is None else self._encode_frames(self._picture(image, plan, "image")[None])[:, 0]
        if last_image is None:
            assert first is not None
            return cond.first_frame(first)
        if cond.frames < 2:
            raise SeedanceError("last_image: the film has a single latent frame; give it at least two frames")
        # A later latent holds four frames: the picture held still gives the latent a film ending on it would have.
        held = np.repeat(self._picture(last_image, plan, "last_image")[None], 1 + 2 * RATIO_T, axis=0)
        last = self._encode_frames(held)[:, -1]
        if first is not None:
            return cond.first_and_last(first, last)
        latents, mask = torch.zeros_like(cond.clean), torch.zeros_like(cond.mask)
        latents[:, :, -1], mask[:, -1] = last, 1
        return cond.given(latents, mask)

    def _picture(self, picture: np.ndarray | str | Path, plan: Plan, what: str) -> np.ndarray:
        """A picture at the film's size, uint8 (H, W, 3)."""
        from shots.images import fit_image, read_image

        try:
            pixels = read_image(picture) if isinstance(picture, (str, Path)) else np.asarray(picture)
        except ShotsError as error:
            raise SeedanceError(f"{what}: {str(error).removeprefix('image: ')}") from error
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise SeedanceError(f"{what}: an array must be uint8 (H, W, 3), got {pixels.dtype} {pixels.shape}")
        return fit_image(pixels, plan.height, plan.width)

    def _unknown_words(self, script: Script) -> list[str]:
        if not self.vocabulary:
            return []
        text = " ".join(
            [
                *(s.caption for s in script.shots),
                *(s.camera or "" for s in script.shots),
                script.caption or "",
                script.style or "",
            ]
        )
        return list(TextEncoder.unknown_words(text, set(self.vocabulary)))

    def _record(self, plan: Plan, **how: Any) -> dict[str, Any]:
        return {
            "generated": True,
            "prompt": plan.script.shots[0].caption if len(plan.script.shots) == 1 else None,
            "script": plan.script.to_dict(),
            "seed": plan.seed,
            "model": {"name": self.name, "files": self.files},
            "height": plan.height,
            "width": plan.width,
            "fps": plan.fps,
            "frames": list(plan.frames),
            **how,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "warnings": list(plan.notes),
            "versions": {
                "seedance": package_version("seedance"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }


# ---------------------------------------------------------------------- plain functions


def make_plan(
    script_or_prompt: Script | str | dict[str, Any],
    defaults: Defaults,
    *,
    seed: int = 0,
    **sizes: Unpack[Sizes],
) -> Plan:
    """Checks and settles a film's sizes without a model. Arguments as in :meth:`Seedance.__call__`."""
    script = read_script(script_or_prompt)
    notes: list[str] = []
    said, ratio = {key: value for key, value in sizes.items() if value is not None}, defaults.ratio
    asked = [int(_number(what, said.get(what, getattr(defaults, what)), 1, 8192)) for what in ("height", "width")]
    sides = defaults.fit_size(*asked)
    for what, side, fitted in zip(("height", "width"), asked, sides, strict=True):
        if fitted != side:
            odd = f"is not a multiple of {ratio.side}" if side % ratio.side else "is no size of this model"
            notes.append(f"{what} {side} {odd}; {fitted} is used")
    rate = float(_number("fps", said.get("fps", defaults.fps), 0.1, 240.0))
    seconds = max(1, round(defaults.seconds * rate))
    otherwise = int(_number("num_frames", said.get("num_frames", seconds), 1, MAX_LATENT_FRAMES * ratio.time))
    frames = []
    for number, shot in enumerate(script.shots, start=1):
        if shot.seconds is not None:
            count = round(_number(f"shot {number}: seconds", shot.seconds, 0.0, 86_400.0) * rate)
            if count < 1:
                raise SeedanceError(
                    f"shot {number}: {shot.seconds} seconds at {rate:g} fps hold no frame; give at least {1 / rate:.3g}"
                )
        else:
            count = otherwise
        frames.append(count)
    _check_length(frames, ratio)
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise SeedanceError(f"seed: {seed!r} is not a whole number from 0 to 2^63 - 1")
    words = _with_seconds(script, frames, rate)
    return Plan(words, tuple(frames), sides[0], sides[1], rate, seed, tuple(notes), ratio)


def _check_length(frames: Sequence[int], ratio: Ratio) -> None:
    if (total := sum(ratio.latent_frames(n) for n in frames)) > MAX_LATENT_FRAMES:
        raise SeedanceError(
            f"script: {sum(frames)} frames are {total} latent frames, the limit is {MAX_LATENT_FRAMES}; "
            "make several films"
        )


def _shot_of(plan: Plan) -> Tensor:
    """(t,) number of the shot, from 1, of each latent frame."""
    lengths = torch.tensor(plan.latent_frames)
    return torch.repeat_interleave(torch.arange(1, len(lengths) + 1), lengths)


def seen_shots(script: Script, wanted: Sequence[int], most: int = CONTEXT) -> list[int]:
    """Which other shots are seen while the shots ``wanted`` (numbers from 1) are made: at most ``most``, ascending.

    The shots in which the actors of the wanted ones first appear, as far as the captions are understood
    (:mod:`shots.stage.parse`; else the film's first), and the last ones before; then those that follow. One place is
    always the previous shot's, so that a long chain keeps both its cast and its course.
    """
    from shots.stage.parse import facts_of_script

    others = [k for k in range(1, len(script.shots) + 1) if k not in wanted]
    if len(others) <= most:
        return others
    casts = [{(actor.colour, actor.shape) for actor in facts.actors} for facts in facts_of_script(script)]
    cast = set().union(*(casts[k - 1] for k in wanted))
    first = {next((k for k in others if actor in casts[k - 1]), None) for actor in cast} - {None}
    begin = min(wanted)
    before = [k for k in reversed(others) if k < begin]
    after = [k for k in others if k > begin]
    order = [*before[:1], *sorted(k for k in first or {others[0]} if k is not None), *before, *after]
    return sorted(list(dict.fromkeys(order))[:most])


def retake_plan(
    film: LatentFilm, shots: Sequence[int], script: Script | str | dict[str, Any] | None, seed: int | None
) -> tuple[Plan, list[int]]:
    """The plan of a film of which some shots are made anew, and their numbers in order; as :meth:`Seedance.retake`.

    Raises SeedanceError for shots that the film has not, and for words of another number of shots.
    """
    wanted = sorted(set(shots))
    if not wanted or wanted[0] < 1 or wanted[-1] > len(film.plan.frames):
        raise SeedanceError(f"shots: {list(shots)}; the film has shots 1 to {len(film.plan.frames)}")
    plan = replace(film.plan, seed=film.plan.seed + 1 if seed is None else seed)
    if script is not None:
        words = read_script(script)
        if len(words.shots) != len(plan.frames):
            raise SeedanceError(
                f"script: has {len(words.shots)} shots, the film {len(plan.frames)}; give one caption per shot"
            )
        plan = replace(plan, script=_with_seconds(words, plan.frames, plan.fps))
    return plan, wanted


def read_script(script_or_prompt: Script | str | dict[str, Any]) -> Script:
    """Any form of script as a Script; SeedanceError says what is wrong with it."""
    try:
        if isinstance(script_or_prompt, Script):
            script = script_or_prompt
        elif isinstance(script_or_prompt, dict):
            script = Script.from_dict(script_or_prompt)
        else:
            script = Script.parse(script_or_prompt)
    except ShotsError as error:
        raise SeedanceError(str(error)) from error
    if not script.shots:
        raise SeedanceError("script: has no shots; give at least one caption")
    return script


def cut_times(plan: Plan) -> tuple[float, ...]:
    """Seconds of the cuts between the shots of a film."""
    return tuple(float(n) / plan.fps for n in np.cumsum(plan.frames)[:-1])


def to_uint8(pixels: Tensor) -> np.ndarray:
    """(3, T, H, W) in [-1, 1] -> uint8 (T, H, W, 3)."""
    return (
        ((pixels.float().clamp(-1, 1) + 1) * 127.5)
        .round()
        .to(torch.uint8)
        .permute(1, 2, 3, 0)
        .contiguous()
        .cpu()
        .numpy()
    )


@torch.no_grad()
def decode_latents(
    vae: VideoVAE, shots: Sequence[Tensor], tiling: decoding.Tiling | None = None
) -> Iterator[np.ndarray]:
    """Normalised latents (C, n, h, w) of shots -> uint8 frames (k, H, W, 3), a few at a time, every shot on its own; in
    tiles where ``tiling`` says so, or when memory runs out."""
    device = vae.latent_mean.device
    for latents in shots:
        z = vae.denormalize(latents[None].to(device))  # (1, C, n, h, w)
        step = decoding.native_step(vae)
        for chunk in decoding.decode(step, z, chunk=DECODE_CHUNK, space=RATIO_S, tiling=tiling):  # (1, 3, T, H, W)
            yield to_uint8(chunk[0])


# ---------------------------------------------------------------------- model folders


def save_model(
    folder: str | Path,
    vae: VideoVAE,
    transformer: VideoDiT,
    *,
    defaults: Defaults | None = None,
    vocabulary: Sequence[str] = (),
    text_encoder: str | None = None,
    dtype: torch.dtype | None = None,
    extra: dict[str, str] | None = None,
) -> Path:
    """Writes a model folder that :meth:`Seedance.from_pretrained` reads; ``model_index.json`` comes last.

    Args:
        vocabulary: the words the model was trained on.
        text_encoder: name or hub id of the text encoder; None is the shipped one.
        dtype: to store the weights in; by default as they are held. Latent statistics stay float32.
        extra: further text files (name: contents).
    """
    folder = Path(folder)
    parts: tuple[tuple[str, torch.nn.Module, dict[str, Any]], ...] = (
        ("vae", vae, vae.config.to_dict()),
        ("transformer", transformer, transformer.config.to_dict()),
    )
    for part, module, config in parts:
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        weights = {name for name, _ in module.named_parameters()}
        state = {
            name: tensor.to(dtype) if dtype is not None and name in weights else tensor
            for name, tensor in module.state_dict().items()
        }
        save_tensors(state, folder / part)
    if vocabulary:
        (folder / "vocabulary.txt").write_text("\n".join(vocabulary) + "\n")
    for name, contents in (extra or {}).items():
        (folder / name).write_text(contents)
    files = [
        *folder.glob("vae/*"),
        *folder.glob("transformer/*"),
        *folder.glob("text_encoder/*"),
        *folder.glob("vocabulary.txt"),
    ]
    index = {
        "_class_name": Seedance.__name__,
        "_seedance_version": package_version("seedance"),
        "vae": ["seedance.vae", "VideoVAE"],
        "transformer": ["seedance.dit", "VideoDiT"],
        "text_encoder": {"name": text_encoder},
        "defaults": asdict(defaults or Defaults()),
        "files": {path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(files) if path.is_file()},
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")
    return folder


def load_vae(folder: str | Path) -> VideoVAE:
    """The VAE of a shipped model, of a model folder, or of a folder that holds the VAE alone; float32, on the CPU."""
    place, files = _component(SHIPPED.get(str(folder), Path(folder)), "vae")
    config = _config(place, files)
    try:
        vae = VideoVAE(VAEConfig(**config))
        load_into(vae, load_tensors(place, expected_sha256=files), f"the VAE in {place}")
    except (ShotsError, TypeError) as error:
        raise SeedanceError(str(error)) from error
    return vae


def load_transformer(folder: str | Path) -> VideoDiT:
    """The DiT of a shipped model, of a model folder, or of a folder that holds the DiT alone; float32, on the CPU."""
    place, files = _component(SHIPPED.get(str(folder), Path(folder)), "transformer")
    transformer = VideoDiT(DiTConfig.from_dict(_config(place, files)))
    try:
        load_into(transformer, load_tensors(place, expected_sha256=files), f"the transformer in {place}")
    except ShotsError as error:
        raise SeedanceError(str(error)) from error
    return transformer


def _component(folder: Path, part: str) -> tuple[Path, dict[str, str]]:
    """The folder of a component, and the expected hashes of its files by name."""
    if not (folder / "model_index.json").is_file():
        return (folder / part if (folder / part).is_dir() else folder), {}
    files: dict[str, str] = read_index(folder).get("files", {})
    return folder / part, {name.removeprefix(f"{part}/"): h for name, h in files.items() if name.startswith(f"{part}/")}


def model_defaults(name: str | Path, revision: str | None = None, pickles: Sequence[str] = ()) -> Defaults:
    """The :class:`Defaults` of a model, without loading it. Arguments as in :meth:`Seedance.from_pretrained`."""
    found = _locate(name, revision)
    if (checkpoint := _open_checkpoint(found, pickles)) is not None:
        from seedance.engines.engine import defaults_of

        return defaults_of(checkpoint)
    if pickles:
        raise SeedanceError(f"pickles: {name} has none; leave it out")
    folder = _small(found)
    return _defaults(read_index(folder), folder)


def _open_checkpoint(found: Path | Remote, pickles: Sequence[str] = ()) -> Checkpoint | None:
    """The checked folder of an open checkpoint in diffusers' layout; None for this package's own models."""
    from seedance.engines import folder as folders

    folder = _small(found)
    if not (folder / "model_index.json").is_file():
        return None
    if not folders.read_index(folder)["_class_name"].endswith("Pipeline"):
        return None
    return folders.open_checkpoint(found, pickles) if isinstance(found, Path) else folders.open_remote(found, pickles)


def _check_remote(
    found: Remote,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    lora: Sequence[str | Path],
    transformer: str | Path | None,
    pickles: Sequence[str],
    acceleration: Acceleration | None,
) -> None:
    """Refuses what loading would refuse, before any weights are fetched. Arguments as in
    :meth:`Seedance.from_pretrained`."""
    try:
        pick_dtype(
            pick_device(None if device is None else str(device)),
            None if dtype is None else str(dtype).removeprefix("torch."),
        )
    except ShotsError as error:
        raise SeedanceError(str(error)) from error
    checkpoint = _open_checkpoint(found, pickles)
    if checkpoint is None:
        read_index(found.folder)
        Defaults().check(lora=lora, transformer=transformer)
    else:
        from seedance.engines.engine import defaults_of

        defaults_of(checkpoint).check(lora=lora, transformer=transformer)
    if acceleration is not None:
        acceleration.check(native=checkpoint is None)


def _defaults(index: dict[str, Any], folder: Path) -> Defaults:
    try:
        return Defaults(**index.get("defaults", {}))
    except TypeError as error:
        raise SeedanceError(f"model: {folder / 'model_index.json'}: defaults: {error}") from error


def model_config(name: str | Path, part: str, revision: str | None = None) -> dict[str, Any]:
    """The configuration of a component ("vae", "transformer") of a model, without loading it."""
    return _config(*_component(_small(_locate(name, revision)), part))


def _small(found: Path | Remote) -> Path:
    """Where the small files of a model lie, its weights beside them or not."""
    return found if isinstance(found, Path) else found.folder


def _fetch(found: Remote) -> Path:
    try:
        return found.fetch()
    except ShotsError as error:
        raise SeedanceError(str(error)) from error


def _locate(name: str | Path, revision: str | None = None) -> Path | Remote:
    if Path(name).is_file():
        raise SeedanceError(
            f"model: {name} is one file, which holds one part at most; give the folder of its whole model, and the "
            "file as transformer (--transformer)"
        )
    try:
        return locate(name, SHIPPED, revision)
    except ShotsError as error:
        raise SeedanceError(str(error)) from error


def read_index(folder: Path) -> dict[str, Any]:
    """The ``model_index.json`` of a model folder, checked to be one of ours."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise SeedanceError(f"model: {folder} has no model_index.json; give a folder that save_pretrained wrote")
    try:
        index = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise SeedanceError(f"model: {path} cannot be read ({error})") from error
    if not isinstance(index, dict) or index.get("_class_name") != "Seedance":
        found = index.get("_class_name") if isinstance(index, dict) else type(index).__name__
        raise SeedanceError(f"model: {folder} holds a {found}, not a Seedance; load it with its own class")
    return index


def package_version(package: str) -> str:
    """Version of an installed package, "unknown" in a bare checkout."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _checked(folder: Path, name: str, files: dict[str, str]) -> Path:
    path = folder / name
    if not path.is_file():
        raise SeedanceError(f"model: {path} is missing; install again or fetch the model again")
    if name in files and (found := sha256_file(path)) != files[name]:
        raise SeedanceError(
            f"model: {path} is corrupted (SHA-256 {found[:12]}..., expected {files[name][:12]}...); "
            "install again or fetch the model again"
        )
    return path


def _config(folder: Path, files: dict[str, str]) -> dict[str, Any]:
    path = _checked(folder, "config.json", files)
    try:
        # Names that begin with an underscore are the hub's (_class_name), not ours.
        return {key: value for key, value in json.loads(path.read_text()).items() if not key.startswith("_")}
    except (TypeError, ValueError, AttributeError) as error:
        raise SeedanceError(f"model: {path} is not a configuration ({error})") from error


def _number(name: str, value: Any, low: float, high: float) -> float:
    """``value`` as a finite number in [low, high], or a SeedanceError that names it."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise SeedanceError(f"{name}: {value!r} is not a number") from None
    if not math.isfinite(number) or not low <= number <= high:
        raise SeedanceError(f"{name}: {value} is outside {low:g} to {high:g}")
    return number


def _with_seconds(script: Script, frames: Sequence[int], fps: float) -> Script:
    """The script with the length each shot really gets."""
    return replace(script, shots=tuple(replace(s, seconds=n / fps) for s, n in zip(script.shots, frames, strict=True)))
