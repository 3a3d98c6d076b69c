"""Open checkpoints through diffusers, behind the same calls as this package's own model.

Notable choices:

- The drawing is diffusers' own: its pipeline classes run as they stand, so a seed gives the film that the stock
  pipeline gives. They are watched at two doors: at the scheduler's step (progress, previews, cancelling), and at the
  VAE, where their last latents are caught. What a family does between its last step and its VAE needs no code here, and
  a film's latents are what the VAE takes: `video`, `write`, `retake` and a saved state work on them as on our own.
- These models make one shot. A script is rendered shot by shot, each from its own caption completed by the film's
  (`shot_prompt`) and its own seed (`shot_seed`), and the actors are carried over as the checkpoint allows (`carry`):
  "last", a shot begins from the last frame of the one before; "key", every shot begins from the film's first frame;
  "none". Checkpoints that take only words carry nothing but the words, and all shots draw the same noise, which keeps
  looks alike where nothing else does. Frames go shot by shot into one writer and are encoded once.
- A re-take draws the shots asked for from the frames that stand beside them now; all other latents stay bit for bit.
- Noise comes from a CPU generator, so that a seed means the same film on every device.
- The first numbers of a checkpoint are looked at (`sanity`): silent noise is an error, not a film.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from seedance.acceleration.decoding import Tiling, decode, open_step
from seedance.acceleration.guiding import some_guidance
from seedance.engines import sanity
from seedance.engines.families import Family, Start, picture
from seedance.engines.fingerprint import fingerprints
from seedance.engines.folder import Checkpoint, diffusers, load_part
from seedance.errors import SeedanceError
from seedance.pipeline import (
    Callback,
    Defaults,
    LatentFilm,
    Plan,
    Sampling,
    Seedance,
    _number,
    _with_seconds,
    make_plan,
    package_version,
    read_script,
    retake_plan,
    to_uint8,
)
from seedance.shapes import Ratio
from shots.errors import ShotsError
from shots.runtime.device import pick_device, pick_dtype
from shots.script import Script

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from seedance.acceleration.parallel_open import Spread
    from seedance.engines.lora import Adapter
    from seedance.engines.single_file import SingleFile

log = logging.getLogger("seedance")

CARRY = ("last", "key", "none")
TRANSFORMERS = ("transformer", "transformer_2")
SEED_STEP = 1_000_003  # between the seeds of a film's shots; a prime, so that films of neighbouring seeds share none


@dataclass(frozen=True)
class OpenDefaults(Defaults):
    """What an open checkpoint is rendered with where the caller says nothing.

    Attributes:
        negative_prompt: the family's own, used where the caller gives none.
        most_frames: the longest shot it was trained on.
        call: further arguments of the pipeline.
    """

    negative_prompt: str = ""
    most_frames: int = 0
    call: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None

    @property
    def ratio(self) -> Ratio:
        assert self.checkpoint is not None
        return self.checkpoint.family.ratio(self.checkpoint)

    def fit_size(self, height: int, width: int) -> tuple[int, int]:
        assert self.checkpoint is not None
        return self.checkpoint.family.fit_size(self.checkpoint, height, width)

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
        """Raises SeedanceError if the checkpoint cannot be given this; reads no more than headers and adapters."""
        assert self.checkpoint is not None
        tasks, name = self.checkpoint.family.tasks(self.checkpoint), self.checkpoint.folder.name
        if sampler is not None:
            self.check_sampler(sampler)
        if carry is not None and carry not in CARRY:
            raise SeedanceError(f"carry: {carry!r} is not one of {', '.join(CARRY)}")
        if carry in ("last", "key") and "image" not in tasks:
            raise SeedanceError(f"carry: {name} takes no first frames, so its shots share words only; leave it out")
        if tasks == {"last"} and (image is False or last_image is False):
            raise SeedanceError(f"image, last_image: {name} makes the way from one picture to another; give both")
        if image and not tasks & {"image", "last"}:
            raise SeedanceError(f"image: {name} makes films from words alone; leave it out, or take an I2V model")
        if last_image and "last" not in tasks:
            raise SeedanceError(f"last_image: {name} takes no last frame; leave it out, or take an FLF2V model")
        if image is False and "text" not in tasks:
            raise SeedanceError(f"image: {name} brings a picture to life and needs one; give the first frame")
        if last_image and image is False and self.checkpoint.family.name == "Wan":
            raise SeedanceError(f"image: {name} takes a last frame beside a first one; give both")
        if lora or transformer is not None:
            preflight(self.checkpoint, lora, transformer)

    def check_sampler(self, sampler: str) -> None:
        """Raises SeedanceError for any sampler but the checkpoint's own scheduler."""
        if sampler != self.sampler:
            raise SeedanceError(f"sampler: this model is drawn with its own scheduler ({self.sampler}); leave it out")


def preflight(
    checkpoint: Checkpoint, lora: Sequence[str | Path], transformer: str | Path | None
) -> tuple[list[Adapter], SingleFile | None]:
    """Adapters and a transformer's file, read and held against the checkpoint before any of its weights are loaded."""
    from seedance.engines.lora import matched, read_lora, targets
    from seedance.engines.single_file import empty, open_single_file

    single = None if transformer is None else open_single_file(transformer, checkpoint)
    adapters = [read_lora(said) for said in lora]
    hollow = {part: empty(checkpoint, part) for part in checkpoint.parts if part in TRANSFORMERS} if adapters else {}
    for adapter in adapters:
        for part in targets(adapter, hollow):
            matched(adapter, checkpoint.family, hollow[part])
    return adapters, single


def defaults_of(checkpoint: Checkpoint) -> OpenDefaults:
    """The defaults of a checkpoint: its family's, or what the ``seedance.json`` beside its index says."""
    start: Start = checkpoint.family.start(checkpoint)
    said: dict[str, Any] = {
        "height": start.height, "width": start.width, "fps": start.fps, "seconds": start.frames / start.fps,
        "steps": start.steps, "guidance_scale": start.guidance_scale, "negative_prompt": start.negative_prompt,
        "call": start.call,
    }  # fmt: skip
    own = checkpoint.folder / "seedance.json"
    if own.is_file():
        from seedance.engines.folder import _json

        said |= _json(own).get("defaults", {})
    scheduler = checkpoint.parts.get("scheduler", ("", "its own"))[1]
    try:
        return OpenDefaults(**said, sampler=scheduler, most_frames=start.frames, checkpoint=checkpoint)
    except TypeError as error:
        raise SeedanceError(f"model: {own}: defaults: {error}") from error


def shot_prompt(script: Script, number: int) -> str:
    """The words of shot `number` (from 1): its caption and camera, then what the film's caption and style say.

    The shot comes first, since text beyond an encoder's length is cut off. A script of one bare caption is just that.
    """
    shot = script.shots[number - 1]
    parts = [part for part in (shot.caption, shot.camera, script.caption, script.style) if part]
    if len(parts) == 1:
        return parts[0]
    return " ".join(part if part[-1] in ".!?。！？" else f"{part}." for part in parts)


def shot_seed(seed: int, number: int, carried: bool) -> int:
    """The seed of shot `number` (from 1) of a film: the film's own for the first; later ones `SEED_STEP` apart where
    pictures carry the actors over, the same for all where only words do."""
    return (seed + (number - 1) * SEED_STEP) % 2**63 if carried else seed


class _Caught(Exception):
    """The latents a pipeline gives its VAE, and with what."""

    def __init__(self, latents: Tensor, timestep: Tensor | None) -> None:
        super().__init__("the latents are there")
        self.latents, self.timestep = latents, timestep


class DiffusersSeedance(Seedance):
    """An open checkpoint as a renderer; :meth:`Seedance.from_pretrained` makes one of a folder in diffusers' layout.

    Attributes:
        checkpoint: what its folder says.
        parts: the loaded parts by name, those of diffusers' pipelines.
        tasks: what it can be given: "text", "image", "last".
        carry: how actors come from shot to shot: one of `CARRY`, as far as `tasks` allows.
        adapters: what `lora` put on it, for the record.
        spread_over: what shares its passes out over several devices, None where nothing does.
    """

    spread_over: Spread | None = None

    def __init__(
        self, checkpoint: Checkpoint, parts: dict[str, Any], *, name: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.checkpoint, self.parts, self.name = checkpoint, parts, name
        self.defaults: OpenDefaults = defaults_of(checkpoint)
        self.vocabulary = ()
        self.files = fingerprints(checkpoint)
        self.text_encoder_name = None
        self.carry = "last"
        self.adapters: list[dict[str, Any]] = []
        self._device, self._dtype = device, dtype
        self._pipes: dict[str, Any] = {}
        self.tasks = checkpoint.family.tasks(checkpoint)

    # ------------------------------------------------------------------ the model folder

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
    ) -> DiffusersSeedance:
        """Loads a checked folder; arguments as in :meth:`Seedance.from_pretrained`."""
        from seedance.engines.lora import load_lora
        from seedance.engines.single_file import load_single_file

        try:
            where = pick_device(None if device is None else str(device))
            kind, why = pick_dtype(where, None if dtype is None else str(dtype).removeprefix("torch."))
        except ShotsError as error:
            raise SeedanceError(str(error)) from error
        log.info("%s: %s on %s, %s", name, kind, where, why)
        adapters, single = preflight(checkpoint, lora, transformer)
        parts: dict[str, Any] = dict.fromkeys(
            (key for key, said in checkpoint.index.items() if isinstance(said, list) and not key.startswith("_")), None
        )
        for part in checkpoint.parts:
            if single is not None and part == "transformer":
                parts[part] = load_single_file(single, checkpoint, kind, where)
                continue
            fp32 = part == "vae" and checkpoint.family.fp32_vae
            parts[part] = load_part(checkpoint, part, torch.float32 if fp32 else kind, where)
        made = cls(checkpoint, parts, name=name, device=where, dtype=kind)
        if single is not None:
            made.files["transformer"] = single.fingerprint
        for adapter in adapters:
            made.adapters += load_lora(adapter, checkpoint.family, parts)
        return made

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype | None = None, extra: dict[str, str] | None = None
    ) -> Path:
        """Not offered: the checkpoint lies in its own folder already."""
        raise SeedanceError(f"save_pretrained: {self.name} came from {self.checkpoint.folder}; copy that folder")

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the transformer."""
        return self._dtype

    def pipe(self, task: str = "text") -> Any:
        """The stock pipeline of diffusers that does `task` ("text", "image", "last", or "words" to encode them alone),
        made of the loaded parts."""
        name = self.checkpoint.family.pipeline(self.checkpoint, task)
        if name not in self._pipes:
            import inspect

            kind = getattr(diffusers(), name)
            takes = inspect.signature(kind.__init__).parameters
            config = {k: v for k, v in self.checkpoint.index.items() if not k.startswith("_") and not _is_part(v)}
            said = {key: value for key, value in {**config, **self.parts}.items() if key in takes}
            made = kind(**said)
            made.set_progress_bar_config(disable=True)
            self._pipes[name] = made
        return self._pipes[name]

    def spread(self, mesh: DeviceMesh) -> None:
        """As :meth:`Seedance.spread`: guidance branches of every family, sequences of Wan and LTX-Video."""
        from seedance.acceleration.parallel_open import Spread

        if self.spread_over is not None:
            raise SeedanceError(f"mesh: {self.name} is spread over one already; load it anew")
        self.spread_over = Spread(mesh, self.checkpoint)
        for part in TRANSFORMERS:
            if self.parts.get(part) is not None:
                self.spread_over.put_on(self.parts[part])

    # ------------------------------------------------------------------ rendering

    def plan(self, script_or_prompt: Script | str | dict[str, Any], *, seed: int = 0, **sizes: Any) -> Plan:
        """Settles every size of a film and checks it; draws nothing. Arguments as in :meth:`__call__`."""
        plan = make_plan(script_or_prompt, self.defaults, seed=seed, **sizes)
        notes = [*plan.notes, *shot_notes(plan, self.defaults)]
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
        """Draws the latents of films, one after the other, shot by shot. Arguments as in :meth:`__call__`.

        The first picture begins the first shot, the last one ends the last shot.
        """
        settings, films = self._settings(how), []
        self.defaults.check(image=image is not None, last_image=last_image is not None)
        if self.tasks == {"last"} and any(len(plan.frames) > 1 for plan in plans):
            raise SeedanceError(f"script: {self.name} makes one shot from one picture to another; give one shot")
        total = settings.steps * sum(len(plan.frames) for plan in plans)
        meter = _Meter(how.get("callback"), total)
        for plan in plans:
            ends = {
                key: self._picture(given, plan, what)
                for key, given, what in (("image", image, "image"), ("last", last_image, "last_image"))
                if given is not None
            }
            films.append(self._film(plan, ends, settings, meter))
        spent = sum(film.record["timings"]["sampling"] for film in films)
        for film in films:  # as with our own model, the time is that of all films drawn together
            film.record["timings"]["sampling"] = spent
        return films

    @torch.no_grad()
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
        """Makes some shots of a film anew; the others stay bit for bit. Arguments as in :meth:`Seedance.retake`, but
        these models see the frames beside a shot and no other shots, so ``context`` says nothing to them.

        A shot begins from the frame that `carry` gives it in the film as it stands; where the checkpoint takes last
        frames and the next shot began from this one's, it ends on the frame the next begins with.
        """
        plan, wanted = retake_plan(film, shots, script, seed)
        settings = self._settings(how)
        meter = _Meter(how.get("callback"), settings.steps * len(wanted))
        return self._film(plan, {}, settings, meter, kept=film, wanted=wanted)

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
        """Carries a film on by the shots of ``script``, each beginning as `carry` says; what was there stays."""
        if script is None or seconds is not None:
            raise SeedanceError(
                f"extend: {self.name} makes one shot at a time and cannot lengthen one; give script (further shots)"
            )
        old = film.plan
        seed = old.seed if seed is None else seed
        more = make_plan(script, self.defaults, seed=seed, height=old.height, width=old.width, fps=old.fps)
        words = replace(old.script, shots=(*old.script.shots, *more.script.shots))
        plan = replace(old, script=words, frames=(*old.frames, *more.frames), seed=seed)
        wanted = list(range(len(old.frames) + 1, len(plan.frames) + 1))
        settings = self._settings(how)
        meter = _Meter(how.get("callback"), settings.steps * len(wanted))
        with torch.no_grad():
            return self._film(plan, {}, settings, meter, kept=film, wanted=wanted, task="extension")

    def splice(self, film: LatentFilm, other: LatentFilm, shots: Sequence[int]) -> LatentFilm:
        """As :meth:`Seedance.splice`; what the record tells of a shot comes with it."""
        made = super().splice(film, other, shots)
        mine, theirs = film.record.get("shots"), other.record.get("shots")
        if not mine or not theirs:
            return made
        told = [theirs[n - 1] if n in shots else shot for n, shot in enumerate(mine, start=1)]
        return replace(made, record=made.record | {"shots": told})

    # ------------------------------------------------------------------ decoding

    @torch.no_grad()
    def decode(self, film: LatentFilm) -> Iterator[np.ndarray]:
        """The film's frames, uint8 (n, H, W, 3), a few at a time and never more than a shot."""
        for number, frames in enumerate(film.plan.frames, start=1):
            done = 0
            for pixels in self._decode_shot(film, number):
                if done < frames:
                    yield pixels[: frames - done]
                done += len(pixels)

    @torch.no_grad()
    def _encode_frames(self, frames: np.ndarray) -> Tensor:
        """One shot, uint8 (n, H, W, 3) -> latents (C, t, h, w) as the VAE takes them; the last frame fills up."""
        short = self.defaults.ratio.fit_frames(len(frames)) - len(frames)
        pixels = torch.from_numpy(np.concatenate([frames, np.repeat(frames[-1:], short, axis=0)]))
        vae = self.parts["vae"]
        x = pixels.permute(3, 0, 1, 2)[None].to(self.device, torch.float32) / 127.5 - 1  # (1, 3, T, H, W)
        return _cpu(vae.encode(x.to(vae.dtype)).latent_dist.mode()[0])

    @torch.no_grad()
    def encode(self, video: Any, script_or_prompt: Script | str | dict[str, Any]) -> LatentFilm:
        """Turns a video into a film state to re-take or extend: each shot between ``video.cuts`` is encoded alone."""
        script, ratio = read_script(script_or_prompt), self.defaults.ratio
        total, height, width, _ = video.frames.shape
        if height % ratio.side or width % ratio.side:
            raise SeedanceError(
                f"video: is {width} x {height}, sides must be multiples of {ratio.side}; read it with size=(height, "
                "width)"
            )
        edges = [0, *(round(cut * video.fps) for cut in video.cuts), total]
        frames = tuple(b - a for a, b in zip(edges, edges[1:], strict=False))
        if len(frames) != len(script.shots):
            raise SeedanceError(
                f"script: has {len(script.shots)} shots, the video {len(frames)}; give one caption per shot"
            )
        pieces = [self._encode_frames(video.frames[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
        words = _with_seconds(script, frames, video.fps)
        plan = Plan(words, frames, height, width, video.fps, seed=0, ratio=ratio)
        return LatentFilm(torch.cat(pieces, dim=1), plan, dict(video.record or {}))

    def _decode_shot(self, film: LatentFilm, number: int) -> Iterator[np.ndarray]:
        """The frames of shot `number`, uint8 (n, H, W, 3), with those that fill up its last latent."""
        latents, space = film.shots()[number - 1], film.plan.ratio.space
        at = film.record.get("decode_timestep")
        for pixels in decode_shot(self.parts["vae"], latents, at, space=space, **self._decoding):
            yield to_uint8(pixels[0])

    @property
    def _decoding(self) -> dict[str, bool]:
        """How :func:`decode_shot` goes on: as the stock pipeline, whole pictures come what may."""
        return {}

    def _frame(self, film: LatentFilm, number: int, which: str) -> np.ndarray:
        """The first or last frame that is seen of shot `number`, uint8 (H, W, 3)."""
        wanted, start = 0 if which == "first" else film.plan.frames[number - 1] - 1, 0
        for frames in self._decode_shot(film, number):
            if wanted < start + len(frames):
                pixels: np.ndarray = frames[wanted - start].copy()
                return pixels
            start += len(frames)
        raise SeedanceError(f"shot {number}: its latents hold {start} of {wanted + 1} frames; make it anew")

    # ------------------------------------------------------------------ drawing

    def _settings(self, how: Sampling) -> _Settings:
        said, defaults = {key: value for key, value in how.items() if value is not None}, self.defaults
        if "sampler" in said:
            defaults.check_sampler(str(said["sampler"]))
        return _Settings(
            steps=int(_number("steps", said.get("steps", defaults.steps), 1, 1000)),
            scale=_number("guidance_scale", said.get("guidance_scale", defaults.guidance_scale), 0.0, 100.0),
            negative=str(said.get("negative_prompt") or defaults.negative_prompt),
        )

    def _film(
        self,
        plan: Plan,
        ends: Mapping[str, np.ndarray],
        settings: _Settings,
        meter: _Meter,
        *,
        kept: LatentFilm | None = None,
        wanted: Sequence[int] | None = None,
        task: str | None = None,
    ) -> LatentFilm:
        """Draws the shots `wanted` (all) of a film, beside those of `kept`."""
        count = len(plan.frames)
        numbers = list(range(1, count + 1)) if wanted is None else list(wanted)
        carried = "image" in self.tasks and self.carry != "none"
        pieces: list[Tensor | None] = [None] * count
        shots: list[dict[str, Any]] = [{} for _ in range(count)]
        if kept is not None:
            held = kept.shots()
            pieces[: len(held)] = held
            before = kept.record.get("shots") or [{} for _ in held]
            shots[: len(before)] = [dict(shot) for shot in before]
        record = self._told(plan, settings, task)
        timings = {"text": 0.0, "sampling": 0.0, "pictures": 0.0}
        saved, skipped = meter.saved, meter.skipped
        if kept is not None and "decode_timestep" in kept.record:
            record["decode_timestep"] = kept.record["decode_timestep"]
        for number in numbers:
            started = time.perf_counter()
            so_far = _partial(plan, pieces, record)
            given = self._beside(number, plan, so_far, ends, kept, shots, numbers)
            began = time.perf_counter()
            timings["pictures"] += began - started
            prompt, seed = shot_prompt(plan.script, number), shot_seed(plan.seed, number, carried)
            latents, timestep, spent = self._shot(plan, number, prompt, seed, given, settings, meter)
            timings["text"] += spent
            timings["sampling"] += time.perf_counter() - began - spent
            pieces[number - 1] = latents
            if timestep is not None:
                record["decode_timestep"] = timestep
            shots[number - 1] = {"prompt": prompt, "seed": seed, "from": sorted(given) or ["text"]}
        record["shots"] = shots
        kinds = [word for word, key in (("first", "image"), ("last", "last")) if key in ends]
        if task is None and wanted is not None:
            record["task"] = f"re-take of shots {', '.join(map(str, numbers))}"
        elif task is None:
            record["task"] = "+".join(kinds) + " frame" if kinds else "text"
        record["timings"] = {key: value for key, value in timings.items() if value or key != "pictures"}
        record["flops"] = {"transformer": self._flops(plan, numbers, settings) - (meter.saved - saved)}
        if meter.skipped > skipped:
            branches = 1 if self.checkpoint.family.doubled else settings.branches
            share = (meter.skipped - skipped) / (settings.steps * branches * len(numbers))
            record["acceleration"] = {**record.get("acceleration", {}), "skipped": round(share, 3)}
        whole = torch.cat([piece for piece in pieces if piece is not None], dim=1)
        return LatentFilm(whole, plan, record)

    def _beside(
        self,
        number: int,
        plan: Plan,
        film: LatentFilm,
        ends: Mapping[str, np.ndarray],
        kept: LatentFilm | None,
        shots: Sequence[Mapping[str, Any]],
        anew: Sequence[int],
    ) -> dict[str, np.ndarray]:
        """The pictures shot `number` is given, uint8 (H, W, 3) by "image" and "last"; the shots `anew` are drawn."""
        given: dict[str, np.ndarray] = {}
        count, can = len(plan.frames), self.tasks
        if number == 1:
            if "image" in ends:
                given["image"] = ends["image"]
            elif kept is not None and ("image" in shots[0].get("from", ()) or "text" not in can):
                # Its own picture is not kept, but the film begins with it.
                given["image"] = self._frame(film, 1, "first")
        elif "image" in can and self.carry == "last":
            given["image"] = self._frame(film, number - 1, "last")
        elif "image" in can and self.carry == "key":
            given["image"] = ends["image"] if "image" in ends else self._frame(film, 1, "first")
        elif "text" not in can:  # it needs a picture, whatever `carry` says
            given["image"] = self._frame(film, 1, "first")
        if "last" in can and "image" in given:
            if number == count and "last" in ends:
                given["last"] = ends["last"]
            elif number == count and kept is not None and "last" in shots[-1].get("from", ()):
                given["last"] = self._frame(film, number, "last")
            elif kept is not None and number < count and self.carry == "last" and number + 1 not in anew:
                given["last"] = self._frame(film, number + 1, "first")
        elif number == count and "last" in ends:
            given["last"] = ends["last"]
        return given

    def _shot(
        self,
        plan: Plan,
        number: int,
        prompt: str,
        seed: int,
        given: Mapping[str, np.ndarray],
        settings: _Settings,
        meter: _Meter,
    ) -> tuple[Tensor, float | None, float]:
        """Draws one shot: its latents (C, t, h, w) on the CPU, the timestep its VAE wants, and the seconds that the
        text took."""
        family, ratio = self.checkpoint.family, plan.ratio
        pipe = self.pipe("last" if "last" in given else "image" if "image" in given else "text")
        frames = ratio.fit_frames(plan.frames[number - 1])
        began = time.perf_counter()
        words = family.words(self.pipe("words"), prompt, settings.negative, settings.scale)
        sanity.check_words(words, self.name)
        spent = time.perf_counter() - began
        said = family.arguments(
            pipe,
            {key: picture(pixels) for key, pixels in given.items()},
            height=plan.height, width=plan.width, frames=frames, fps=plan.fps, scale=settings.scale,
        )  # fmt: skip
        shape = (ratio.latent_frames(frames), *plan.grid)
        if self.spread_over is not None:
            self.spread_over.begin(ratio.tokens(frames, plan.height, plan.width), settings.branches == 2)
        generator, before = torch.Generator("cpu").manual_seed(seed), self._skipped()
        watched = _watched(pipe, family, meter, shape, self.name, self.spread_over)
        with some_guidance(pipe, family, self._interval(settings)) as saved, watched:
            try:
                pipe(
                    **words, **said, **self.defaults.call, num_inference_steps=settings.steps, generator=generator,
                    output_type="pt",
                )  # fmt: skip
            except _Caught as caught:
                latents, timestep = caught.latents, caught.timestep
            except (ValueError, TypeError) as error:
                raise SeedanceError(f"{self.name}: shot {number}: {str(error).splitlines()[0]}") from error
            else:
                raise SeedanceError(f"model: the pipeline of {self.name} never reached its VAE; say --model another")
            finally:
                pipe.maybe_free_model_hooks()
        if tuple(latents.shape[2:]) != shape:
            raise SeedanceError(
                f"shot {number}: {self.name} made latents of {tuple(latents.shape[2:])} where {shape} were planned; "
                "choose other sizes"
            )
        sanity.check_latents(latents, self.parts["vae"], self.name)
        skipped = self._skipped() - before
        meter.saved += self._spared(plan, number, settings, saved.passes, skipped)
        meter.skipped += skipped
        return _cpu(latents[0]), None if timestep is None else float(timestep.flatten()[0]), spent

    def _skipped(self) -> int:
        """Passes whose further blocks a cache has left out so far."""
        skips = (getattr(self.parts.get(part), "_seedance_skips", None) for part in TRANSFORMERS)
        return sum(one.passes for one in skips if one is not None)

    def _spared(self, plan: Plan, number: int, settings: _Settings, passes: int, skipped: int) -> int:
        """Operations that shot `number` was spared by `passes` without words and `skipped` ones after their first
        block."""
        family = self.checkpoint.family
        one = self._flops(plan, [number], replace(settings, steps=1, scale=1.0))
        part = "transformer" if "transformer" in self.checkpoint.parts else "transformer_2"
        layers, _, _ = family.widths(self.checkpoint.config(part))
        rows = settings.branches if family.doubled else 1
        return passes * one + skipped * rows * one * (layers - 1) // layers

    def _interval(self, settings: _Settings) -> tuple[float, float]:
        """Times at which guidance acts."""
        interval = self.acceleration.guidance_interval
        if settings.branches == 1 or interval == (0.0, 1.0):
            return 0.0, 1.0
        if self.spread_over is not None:
            raise SeedanceError("guidance_interval: does not go with several devices; leave it out")
        if self.checkpoint.family.doubled and self.acceleration.cache is not None:
            raise SeedanceError(
                f"guidance_interval: {self.checkpoint.family.name} runs both branches at once, whose cache would not "
                "fit one; leave one of the two out"
            )
        return interval

    def _flops(self, plan: Plan, numbers: Sequence[int], settings: _Settings) -> int:
        config = self.checkpoint.config("transformer" if "transformer" in self.checkpoint.parts else "transformer_2")
        return settings.steps * settings.branches * sum(
            self.checkpoint.family.flops(config, plan.ratio.tokens(plan.frames[n - 1], plan.height, plan.width))
            for n in numbers
        )  # fmt: skip

    def _told(self, plan: Plan, settings: _Settings, task: str | None) -> dict[str, Any]:
        scheduler = self.parts["scheduler"]
        shift = scheduler.config.get("flow_shift", scheduler.config.get("shift"))
        record = self._record(
            plan,
            task=task,
            steps=settings.steps,
            sampler=type(scheduler).__name__,
            guidance_scale=settings.scale,
            negative_prompt=settings.negative,
            shift=shift,
            carry=self.carry if "image" in self.tasks else "none",
        )
        family = self.checkpoint.family.name
        record["engine"] = {"name": "diffusers", "family": family, "call": dict(self.defaults.call)}
        if self.adapters:
            record["lora"] = self.adapters
        record["versions"] |= {name: package_version(name) for name in ("diffusers", "transformers")}
        return record


@dataclass(frozen=True)
class _Settings:
    """How a film is drawn, all settled."""

    steps: int
    scale: float
    negative: str

    @property
    def branches(self) -> int:
        """Passes of the transformer a step."""
        return 1 if self.scale <= 1 else 2


@dataclass
class _Meter:
    """Counts a request's steps, the operations it was spared and the passes a cache cut short, and tells the caller."""

    callback: Callback | None
    total: int
    done: int = 0
    saved: int = 0
    skipped: int = 0

    def step(self, preview: Callable[[], Tensor]) -> None:
        self.done += 1
        if self.callback is not None:
            self.callback(min(self.done, self.total), self.total, preview())


@contextmanager
def _watched(
    pipe: Any, family: Family, meter: _Meter, shape: tuple[int, int, int], name: str, spread: Spread | None
) -> Iterator[None]:
    """Watches a stock pipeline at its scheduler, and stops it at its VAE with `_Caught`."""
    scheduler, vae = pipe.scheduler, pipe.vae
    step, first = scheduler.step, True

    def stepped(*args: Any, **kwargs: Any) -> Any:
        nonlocal first
        if spread is not None:
            spread.check_step(name)
        found = step(*args, **kwargs)
        if first:
            sanity.check_step(args[0], name)
            first = False
        meter.step(lambda: family.unpacked(pipe, _heading_for(scheduler, args, kwargs, found), shape).float())
        return found

    def decode(latents: Tensor, timestep: Tensor | None = None, **kwargs: Any) -> Any:
        raise _Caught(latents, timestep)

    scheduler.step, vae.decode = stepped, decode
    try:
        yield
    finally:
        del scheduler.step, vae.decode


def _heading_for(scheduler: Any, args: Sequence[Any], kwargs: Mapping[str, Any], found: Any) -> Tensor:
    """The clean latents that a step was heading for; the step's own result where its scheduler does not say."""
    if scheduler.config.get("prediction_type", "flow_prediction") != "flow_prediction":
        return found[1] if isinstance(found, tuple) and len(found) > 1 else found[0]  # DDIM and DPM say it
    index = scheduler.step_index
    if index is None or not 1 <= index <= len(scheduler.sigmas):
        return found[0] if isinstance(found, tuple) else found.prev_sample
    velocity, latents = args[0], args[2] if len(args) > 2 else kwargs["sample"]
    if velocity.shape != latents.shape:
        return found[0] if isinstance(found, tuple) else found.prev_sample
    return latents - scheduler.sigmas[index - 1].to(latents.device) * velocity


def decode_shot(
    vae: Any,
    latents: Tensor,
    timestep: float | None = None,
    *,
    space: int,
    tiling: bool = False,
    retry: bool = False,
) -> Iterator[Tensor]:
    """Latents (C, t, h, w) of one shot as its VAE takes them -> pixels (1, 3, n, H, W) in [-1, 1], in order, a few
    frames at a time where the VAE is causal.

    Args:
        timestep: what VAEs want that remove noise themselves.
        space: pixels along a side of a latent cell.
        tiling: whether to decode in tiles.
        retry: whether to do so when memory runs out.

    Raises:
        SeedanceError: the pixels are no numbers.
    """
    hook = getattr(vae, "_hf_hook", None)
    if hook is not None:  # offloaded: ``vae.decode`` would fetch its weights, and it is not always what is called
        hook.pre_forward(vae)
    z = latents[None].to(vae.device, vae.dtype)
    step, chunks = open_step(vae, z.shape[2], timestep)
    tiles = Tiling() if tiling else None
    for pixels in decode(step, z, chunk=chunks, space=space, tiling=tiles, retry=retry):
        if not torch.isfinite(pixels).all():
            raise SeedanceError("model: the VAE's pixels are not numbers; decode in float32: --dtype fp32")
        yield pixels


def shot_notes(plan: Plan, defaults: OpenDefaults) -> list[str]:
    """What is to be said of a plan's shots, one sentence each."""
    most = defaults.most_frames
    long = [n for n, frames in enumerate(plan.frames, start=1) if frames > most]
    if not long:
        return []
    which = f"shots {', '.join(map(str, long))} are" if len(long) > 1 else f"shot {long[0]} is"
    return [f"{which} longer than the {most} frames the model was trained on; it may drift, so cut it in two"]


def _partial(plan: Plan, pieces: Sequence[Tensor | None], record: dict[str, Any]) -> LatentFilm:
    """What there is of a film, to decode single shots of it; gaps are empty."""
    some = next((piece for piece in pieces if piece is not None), None)
    if some is None:
        return LatentFilm(torch.empty(0), plan, record)
    shapes = [(some.shape[0], n, *some.shape[2:]) for n in plan.latent_frames]
    filled = [some.new_zeros(shape) if p is None else p for p, shape in zip(pieces, shapes, strict=True)]
    return LatentFilm(torch.cat(filled, dim=1), plan, record)


def _is_part(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _cpu(latents: Tensor) -> Tensor:
    return latents.detach().float().cpu().contiguous()
