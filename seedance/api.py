"""Requests and results: the one form in which the shell, the REST service and the studio ask for films.

Notable choices:

- Everything that can be wrong is found before the model is loaded or a step is taken: sizes, files, the output's place.
- A request may hold several prompts and several samples of each. Films of one size are drawn in one batch, as many at
  once as fit a fixed number of tokens; each is the film it would be alone.
- A dry run goes through the same checks and the model's configuration only; its times come from a matrix product timed
  on the spot and the share of it that renders have been seen to reach.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedance.acceleration.options import DEFAULT_CACHE, Acceleration
from seedance.errors import SeedanceError

if TYPE_CHECKING:
    from shots.loop import Verifier

log = logging.getLogger("seedance")

BATCH_TOKENS = 8192  # latent cells drawn at once
UTILISATION = 0.35  # share of a matrix product's speed that sampling reaches, for the estimate of a dry run

Progress = Callable[[int, int, str], None]
"""``progress(done, total, what)``."""


@dataclass(frozen=True)
class RenderRequest:
    """One request for films. Exactly one of ``prompts``, ``script`` and ``from_file`` says what to render.

    Attributes:
        prompts: one film each; "[cut]" and "Shot 1: ..." make shots.
        script: a Script, its dictionary form, or a file.
        from_file: a text file with one prompt a line.
        output: video file; with several films a number is put before its suffix.
        image, last_image: pictures the films start and end with.
        seed: of the first sample, later ones count up; None draws one.
        steps, guidance_scale, height, width, fps, sampler: None takes the model's.
        num_frames: of each shot that does not say its seconds.
        model: shipped name, folder or hub id; revision: of the hub id; pickles: weight files of its folder that may be
            read though they are pickles, relative to the folder.
        lora: adapters, each ``PATH`` or ``PATH:scale``; transformer: a file in the place of the model's transformer;
            carry: how actors come from shot to shot ("last", "key", "none"); all three for open checkpoints only.
        offload, quantization, compile, cache, vae_tiling, vae_dtype, attention_backend, guidance_interval: what saves
            time and memory (:class:`seedance.acceleration.options.Acceleration`); a cache of 0 takes the default
            threshold.
        num_samples: films per prompt.
        record: whether how the film was made is stored in it and beside it.
        state: also write the film's latents beside it (``.state.safetensors``), to be re-taken or extended.
        from_state: such a state, or the film it stands beside, to be taken up again: what ``prompts`` or ``script`` say
            becomes further shots, or with ``retake_shots`` (numbers from 1) new words for these, which are made anew.
        verify: have each shot looked at by ``render``'s verifier; retakes: how often failed shots are made anew.
        keep_takes: folder for every take, with its state.
        title: words of a card before the film, "" for the script's title; soundtrack: a file with its sound.
        dry_run: check and plan only.
        profile: print stage times and MFU in the result's text.
    """

    prompts: tuple[str, ...] = ()
    script: Any = None
    from_file: Path | None = None
    output: Path = Path("film.mp4")
    image: Path | None = None
    last_image: Path | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    sampler: str | None = None
    model: str = "seedance-nano"
    revision: str | None = None
    pickles: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    transformer: Path | None = None
    carry: str | None = None
    offload: str = "auto"
    quantization: str | None = None
    compile: bool = False
    cache: float | None = None
    vae_tiling: bool = False
    vae_dtype: str | None = None
    attention_backend: str = "sdpa"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    num_samples: int = 1
    dtype: str | None = None
    device: str | None = None
    record: bool = True
    state: bool = False
    from_state: Path | None = None
    retake_shots: tuple[int, ...] = ()
    verify: bool = False
    retakes: int = 0
    keep_takes: Path | None = None
    title: str | None = None
    soundtrack: Path | None = None
    dry_run: bool = False
    profile: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RenderRequest:
        """A request from JSON; ``prompt`` may stand for a single prompt, unknown keys are named."""
        values = dict(values)
        if "prompt" in values:
            values["prompts"] = (*values.get("prompts", ()), values.pop("prompt"))
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise SeedanceError(f"request: unknown key {', '.join(unknown)}; there are prompt, {', '.join(known)}")
        for name in ("from_state", "keep_takes", "soundtrack"):
            if values.get(name) is not None:
                values[name] = Path(values[name])
        values["retake_shots"] = tuple(values.get("retake_shots") or ())
        for name in ("output", "image", "last_image", "from_file", "transformer"):
            if values.get(name) is not None:
                values[name] = Path(values[name])
        return cls(**{**values, **{name: tuple(values.get(name) or ()) for name in ("prompts", "lora", "pickles")}})

    @property
    def acceleration(self) -> Acceleration:
        """What saves time and memory."""
        return Acceleration(
            cache=DEFAULT_CACHE if self.cache == 0 else self.cache,
            guidance_interval=(float(self.guidance_interval[0]), float(self.guidance_interval[1])),
            compile=self.compile,
            attention=self.attention_backend,
            quantization=self.quantization,
            offload=self.offload,
            tiling=self.vae_tiling,
            vae_dtype=self.vae_dtype,
        )


@dataclass
class FilmResult:
    """One film: where it was written (None on a dry run), its seed, and its record.

    loop: where it was verified, its report and takes, a :class:`shots.loop.Result`; report, sheet: the files.
    """

    path: Path | None
    seed: int
    record: dict[str, Any]
    loop: Any = None
    report: Path | None = None
    sheet: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        told: dict[str, Any] = {"path": self.path and str(self.path), "seed": self.seed, "record": self.record}
        if self.loop is not None:
            told |= {"report": str(self.report), "sheet": str(self.sheet), "verification": self.loop.report.to_dict()}
        return told


@dataclass
class RenderResult:
    """The films of a request, in the order of its prompts, samples of a prompt together."""

    films: list[FilmResult] = field(default_factory=list)
    profile: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The result as one JSON object."""
        return {"films": [film.to_dict() for film in self.films]}

    def __str__(self) -> str:
        lines = []
        for film in self.films:
            if film.path is None:
                lines.append(f"would render, seed {film.seed}: " + json.dumps(film.record["plan"]))
                continue
            lines.append(f"{film.path}  seed {film.seed}")
            if film.loop is not None:
                takes = len(film.loop.takes)
                lines += [f"  {line}" for line in str(film.loop.report).splitlines()]
                lines.append(f"  {takes} take{'s' if takes > 1 else ''}; its shots are of {list(film.loop.chosen)}")
                lines.append(f"  {film.report}  {film.sheet}")
            if self.profile:
                times = ", ".join(f"{what} {seconds:.2f} s" for what, seconds in film.record["timings"].items())
                work = film.record["flops"]["transformer"] / 1e9
                lines.append(f"  {times}; sampling {work:.1f} GFLOP, MFU {film.record.get('mfu', 0):.0%}")
        return "\n".join(lines)


def render(
    request: RenderRequest, progress: Progress | None = None, pipeline: Any = None, verifier: Verifier | None = None
) -> RenderResult:
    """Makes the films of ``request`` and writes them.

    Args:
        progress: told (steps done, steps in all, what) as the work goes on.
        pipeline: a loaded :class:`seedance.pipeline.Seedance` to use instead of ``request.model``.
        verifier: ``verifier(video, script)`` says what each shot shows, such as :func:`shots.evaluation.verify` with a
            grounder; needed where ``request.verify``. A film whose shots still fail is written all the same.

    Raises:
        SeedanceError, ShotsError: something in the request cannot be used; the message names it, nothing is written.
    """
    from seedance import takes
    from seedance.pipeline import Plan, Seedance, Sizes, make_plan, model_defaults
    from shots.images import read_image

    takes.check(request, verifier)
    if request.from_state is not None:
        return _resume(request, progress, pipeline, verifier)
    scripts = _scripts(request)
    if not isinstance(request.num_samples, int) or not 1 <= request.num_samples <= 1000:
        raise SeedanceError(f"num_samples: {request.num_samples!r} is not a whole number from 1 to 1000")
    seed = secrets.randbelow(2**31) if request.seed is None else request.seed
    paths = _paths(request, len(scripts) * request.num_samples)
    pictures = {
        name: None if path is None else read_image(path)
        for name, path in (("image", request.image), ("last_image", request.last_image))
    }
    defaults = (
        model_defaults(request.model, request.revision, request.pickles) if pipeline is None else pipeline.defaults
    )
    sizes: Sizes = {
        "height": request.height,
        "width": request.width,
        "num_frames": request.num_frames,
        "fps": request.fps,
    }
    ends = {"image": request.image is not None, "last_image": request.last_image is not None}
    _check_model(request, defaults, pipeline, **ends)
    # All of them, before the model is loaded.
    settled = [make_plan(script, defaults, seed=seed, **sizes) for script in scripts]
    for plan in settled:
        takes.check_around(request, plan)
    acceleration = settle_acceleration(request, defaults, settled)
    if pipeline is not None and request.acceleration.used():
        raise SeedanceError("acceleration: the model is loaded already; say it when it is loaded")
    if request.dry_run:
        made = [
            make_plan(script, defaults, seed=seed + k, **sizes)
            for script in scripts
            for k in range(request.num_samples)
        ]
        return RenderResult([FilmResult(None, plan.seed, {"plan": estimate(plan, request, defaults)}) for plan in made])

    if pipeline is None:
        _foretell(settled, defaults, request)
    model: Any = pipeline or Seedance.from_pretrained(
        request.model, revision=request.revision, dtype=request.dtype, device=request.device, lora=request.lora,
        transformer=request.transformer, pickles=request.pickles, acceleration=acceleration,
    )  # fmt: skip
    if request.carry is not None:
        model.carry = request.carry
    plans: list[Plan] = []
    for script in scripts:
        first = model.plan(script, seed=seed, **sizes)
        plans += [replace(first, seed=seed + k) for k in range(request.num_samples)]
    peak = 0.0
    if request.profile:
        from shots.runtime.speed import peak_flops

        peak = peak_flops(model.device, model.dtype)
    result = RenderResult([], request.profile)
    for group in _batches(plans):
        start = len(result.films)

        def report(step: int, steps: int, preview: Any, start: int = start, size: int = len(group)) -> None:
            if progress is not None:
                progress(
                    step,
                    steps,
                    "rendering" if len(plans) == 1 else f"rendering {start + 1}-{start + size} of {len(plans)}",
                )

        films = model.sample(
            group,
            image=pictures["image"],
            last_image=pictures["last_image"],
            steps=request.steps,
            guidance_scale=request.guidance_scale,
            negative_prompt=request.negative_prompt,
            sampler=request.sampler,
            callback=report,
        )
        for film in films:
            path = paths[len(result.films)]
            if peak:
                film.record["mfu"] = (
                    len(films) * film.record["flops"]["transformer"] / film.record["timings"]["sampling"] / peak
                )
            result.films.append(_finish(model, film, path, request, progress, verifier))
    return result


def _resume(
    request: RenderRequest, progress: Progress | None, pipeline: Any, verifier: Verifier | None
) -> RenderResult:
    """A film that is there already, carried on or made anew in part."""
    from seedance import takes
    from seedance.pipeline import Seedance, model_defaults

    film = takes.load_state(request.from_state or "")
    scripts = _scripts(request) if request.prompts or request.script or request.from_file else []
    words = takes.check_resumed(request, scripts, film)
    (path,) = _paths(request, 1)
    takes.check_around(request, film.plan)
    defaults = (
        model_defaults(request.model, request.revision, request.pickles) if pipeline is None else pipeline.defaults
    )
    _check_model(request, defaults, pipeline)
    acceleration = settle_acceleration(request, defaults, [film.plan])
    if not request.lora and (worn := [said["file"] for said in film.record.get("lora", ())]) and pipeline is None:
        log.warning("warning: the film was made with %s, new shots are made without; say lora too", ", ".join(worn))
    model: Any = pipeline or Seedance.from_pretrained(
        request.model, revision=request.revision, dtype=request.dtype, device=request.device, lora=request.lora,
        transformer=request.transformer, pickles=request.pickles, acceleration=acceleration,
    )  # fmt: skip
    if request.carry is not None:
        model.carry = request.carry
    seed = secrets.randbelow(2**31) if request.seed is None else request.seed
    film = takes.resume(model, film, request, words, seed, progress)
    return RenderResult([_finish(model, film, path, request, progress, verifier)], request.profile)


def _finish(
    model: Any, film: Any, path: Path, request: RenderRequest, progress: Progress | None, verifier: Verifier | None
) -> FilmResult:
    """A film that is drawn: verified where that is wanted, then written with all that belongs beside it."""
    from seedance import takes

    loop = report = sheet = None
    if request.verify and verifier is not None:
        film, loop = takes.verified(model, film, request, verifier, path, progress)
    with _kept(film, path.with_suffix(".undecoded.safetensors")):
        takes.write(model, film, path, request, takes.check_around(request, film.plan))
    if loop is not None:
        report, sheet = takes.write_report(loop, path)
    return FilmResult(path, film.plan.seed, film.record, loop, report, sheet)


@contextmanager
def _kept(film: Any, path: Path) -> Iterator[None]:
    """What was drawn, in a file while it is decoded and written; it outlives a failure to do so."""
    from safetensors import SafetensorError

    try:
        film.save(path)
    except (OSError, SafetensorError) as error:
        log.warning("warning: what was drawn cannot be kept (%s)", error)
    try:
        yield
    except BaseException:
        if path.is_file():
            log.warning("warning: what was drawn is kept in %s, for LatentFilm.load and Seedance.write", path)
        raise
    path.unlink(missing_ok=True)


def _check_model(request: RenderRequest, defaults: Any, pipeline: Any, **given: bool) -> None:
    """Holds what a request says of the model's parts against the model, before it is loaded."""
    defaults.check(
        sampler=request.sampler, carry=request.carry, lora=request.lora, transformer=request.transformer, **given
    )  # fmt: skip
    if pipeline is not None and (request.lora or request.transformer):
        raise SeedanceError("lora, transformer: the model is loaded already; give them when it is loaded")


def settle_acceleration(request: RenderRequest, defaults: Any, plans: Sequence[Any]) -> Acceleration:
    """What saves time and memory, checked against the model, with the offload level that lets every film fit.

    Raises SeedanceError for what cannot be used, and where a film fits at no level.
    """
    from seedance.engines.engine import OpenDefaults

    asked = request.acceleration
    asked.check(native=not isinstance(defaults, OpenDefaults))
    if not isinstance(defaults, OpenDefaults):
        return asked
    from seedance.acceleration.fit import settle

    (device, dtype), checkpoint = _where(request), defaults.checkpoint
    assert checkpoint is not None
    return settle(checkpoint, plans, device=device, dtype=dtype, acceleration=asked)


def _foretell(plans: Sequence[Any], defaults: Any, request: RenderRequest) -> None:
    """Says what each film of an open checkpoint will take and how it will be made, before its weights are loaded."""
    from seedance.engines.engine import OpenDefaults
    from seedance.engines.estimating import sentence

    if isinstance(defaults, OpenDefaults):
        for plan in plans:
            log.info("%s: %s", request.model, sentence(estimate(plan, request, defaults)))


def _where(request: RenderRequest) -> tuple[Any, Any]:
    from shots.runtime.device import pick_device, pick_dtype

    device = pick_device(request.device)
    return device, pick_dtype(device, request.dtype)[0]


def estimate(plan: Any, request: RenderRequest, defaults: Any) -> dict[str, Any]:
    """What rendering ``plan`` with a model of these ``defaults`` would take, from its configuration: frames, tokens,
    FLOPs, memory, seconds; of an open checkpoint also the bytes that are still to be fetched from the hub."""
    import torch

    from seedance.dit import DiTConfig, VideoDiT
    from seedance.engines import estimating
    from seedance.engines.engine import OpenDefaults
    from seedance.pipeline import model_config
    from seedance.shapes import LatentShape
    from seedance.vae import VAEConfig, VideoVAE
    from shots.runtime.speed import peak_flops

    device, dtype = _where(request)
    if isinstance(defaults, OpenDefaults):
        from seedance.acceleration.fit import fit

        assert defaults.checkpoint is not None
        found = estimating.estimate(
            plan, defaults, steps=request.steps, guidance_scale=request.guidance_scale, device=request.device,
            dtype=request.dtype, utilisation=UTILISATION,
        )  # fmt: skip
        fits = fit(defaults.checkpoint, plan, device=device, dtype=dtype, acceleration=request.acceleration)
        peak = max(fits.stages.values())
        return {**found, "memory_bytes": peak, **fits.to_dict(), "acceleration": request.acceleration.used()}
    with torch.device("meta"):
        transformer = VideoDiT(DiTConfig.from_dict(model_config(request.model, "transformer", request.revision)))
        vae = VideoVAE(VAEConfig(**model_config(request.model, "vae", request.revision)))
    words = sum(len(shot.caption.split()) + 4 for shot in plan.script.shots)
    steps = defaults.steps if request.steps is None else request.steps
    scale = defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
    branches = 1 if scale == 1 else 2
    sampling = transformer.flops(plan.latent_shape, words) * steps * branches
    decoding = sum(vae.decode_flops(LatentShape(n, *plan.grid)) for n in plan.latent_frames)
    weights = sum(p.numel() for m in (transformer, vae) for p in m.parameters()) * dtype.itemsize
    # The widest activations of a pass: a SwiGLU's two halves and its inputs, for every token of every branch.
    config = transformer.config
    activations = branches * plan.tokens * (8 * config.dim + 3 * config.hidden) * dtype.itemsize
    return {
        "script": plan.script.to_dict(),
        "frames": list(plan.frames),
        "height": plan.height,
        "width": plan.width,
        "fps": plan.fps,
        "latent_shape": list(plan.latent_shape),
        "tokens": plan.tokens,
        "flops": sampling + decoding,
        "memory_bytes": weights + activations,
        "seconds": round((sampling + decoding) / (UTILISATION * peak_flops(device, dtype)), 2),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "acceleration": request.acceleration.used(),
        "warnings": list(plan.notes),
    }


def _scripts(request: RenderRequest) -> list[Any]:
    """What is to be rendered, one script a film."""
    from seedance.pipeline import read_script
    from shots.errors import ShotsError
    from shots.script import Script

    given = [name for name in ("prompts", "script", "from_file") if getattr(request, name)]
    if len(given) != 1:
        raise SeedanceError(
            f"request: {' and '.join(given) or 'nothing'} given; give one of a prompt, --script, --from-file"
        )
    if request.prompts:
        return [read_script(prompt) for prompt in request.prompts]
    if request.from_file is not None:
        return [read_script(prompt) for prompt in prompts_in(request.from_file)]
    try:
        return [Script.load(request.script) if isinstance(request.script, (str, Path)) else read_script(request.script)]
    except ShotsError as error:
        raise SeedanceError(str(error)) from error


def prompts_in(path: str | Path) -> list[str]:
    """The prompts of a text file, one a line; empty lines and lines that begin with # are left out."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SeedanceError(
            f"from_file: {path} cannot be read ({error}); give a text file with one prompt a line"
        ) from error
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise SeedanceError(f"from_file: {path} holds no prompts; write one a line")
    return prompts


def _paths(request: RenderRequest, count: int) -> list[Path]:
    """Where the films go, checked to be writable."""
    from shots.video import check_target

    output = Path(request.output)
    width = len(str(count))
    paths = [output] if count == 1 else [output.with_stem(f"{output.stem}-{n:0{width}d}") for n in range(1, count + 1)]
    for path in paths:
        check_target(path)
    return paths


def _batches(plans: Sequence[Any]) -> Iterator[list[Any]]:
    """Neighbouring plans of one size, at most :data:`BATCH_TOKENS` together."""
    group: list[Any] = []
    for plan in plans:
        full = group and (len(group) + 1) * plan.tokens > BATCH_TOKENS
        if group and (full or (plan.latent_shape, plan.frames) != (group[0].latent_shape, group[0].frames)):
            yield group
            group = []
        group.append(plan)
    if group:
        yield group
