"""What becomes of a film between its first draw and its file: further shots, shots made anew, verdicts, title, sound.

Notable choices:

- Everything here works on a film's latents (:class:`seedance.pipeline.LatentFilm`), so what is not made anew stays to
  the bit. A film kept with ``state`` is taken up again from its state, or from its video with the state beside it.
- Who verifies is given from outside; this package knows no grounder. The loop is :mod:`shots.loop`.
- The record of a film with re-takes has the seed it was begun with, which with the same request gives the same film
  again, and under ``verification`` every take with its seed, scores and defects.
- Beside a verified ``film.mp4`` stand ``film.report.json`` and ``film.sheet.png``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedance.errors import SeedanceError
from shots.errors import ShotsError

if TYPE_CHECKING:
    from seedance.api import RenderRequest
    from seedance.pipeline import LatentFilm, Plan
    from shots.loop import Result, Take, Verifier
    from shots.script import Script
    from shots.video import Video

Progress = Callable[[int, int, str], None]
STATE = ".state.safetensors"


@dataclass
class Takes:
    """A model with how it is to draw: a :class:`shots.protocols.Retaker`."""

    model: Any
    how: dict[str, Any]

    def take(self, script_or_prompt: Script | str, *, seed: int = 0) -> LatentFilm:
        """A first take."""
        film: LatentFilm = self.model.take(script_or_prompt, seed=seed, **self.how)
        return film

    def retake(self, film: LatentFilm, shots: Sequence[int], *, seed: int | None = None) -> LatentFilm:
        """The film with some shots made anew."""
        made: LatentFilm = self.model.retake(film, shots, seed=seed, **self.how)
        return made

    def splice(self, film: LatentFilm, other: LatentFilm, shots: Sequence[int]) -> LatentFilm:
        """The film with some shots of another take."""
        made: LatentFilm = self.model.splice(film, other, shots)
        return made

    def video(self, film: LatentFilm) -> Video:
        """The film to be seen."""
        shown: Video = self.model.video(film)
        return shown


def how(request: RenderRequest, progress: Progress | None) -> dict[str, Any]:
    """How a request wants its films drawn, as the model's methods take it."""

    def report(step: int, steps: int, preview: Any) -> None:
        if progress is not None:
            progress(step, steps, "rendering")

    return {
        "steps": request.steps, "guidance_scale": request.guidance_scale, "negative_prompt": request.negative_prompt,
        "sampler": request.sampler, "callback": report,
    }  # fmt: skip


def check(request: RenderRequest, verifier: Verifier | None) -> None:
    """Finds what does not go together in what a request says of takes, before anything is loaded."""
    if request.verify and verifier is None:
        raise SeedanceError("verify: nobody is there to do it; give render() a verifier, or leave it out")
    if not isinstance(request.retakes, int) or not 0 <= request.retakes <= 100:
        raise SeedanceError(f"retakes: {request.retakes!r} is not a whole number from 0 to 100")
    for name, said in (("retakes", request.retakes), ("keep_takes", request.keep_takes)):
        if said and not request.verify:
            raise SeedanceError(f"{name}: only a film that is verified is taken again; say verify too")
    if request.retake_shots and request.from_state is None:
        raise SeedanceError("retake_shots: names shots of a film that is there already; say from_state too")
    if request.keep_takes is not None:
        try:
            Path(request.keep_takes).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SeedanceError(f"keep_takes: {request.keep_takes} cannot be made ({error.strerror})") from error


def check_around(request: RenderRequest, plan: Plan) -> str | None:
    """The title of a film, None where none is wanted; it and the sound track are checked."""
    from shots.publish import check_published

    title = request.title
    if title == "":
        title = plan.script.title
        if title is None:
            raise SeedanceError("title: the script has none; say it (--title TEXT), or leave it out")
    if title is not None or request.soundtrack is not None:
        seconds = sum(plan.frames) / plan.fps
        check_published(title, request.soundtrack, height=plan.height, width=plan.width, seconds=seconds)
    return title


# ------------------------------------------------------------------------------------------- films that are there


def load_state(path: str | Path) -> LatentFilm:
    """The state of a film, from its own file or that beside the film's video."""
    from seedance.pipeline import LatentFilm

    path = Path(path)
    if path.suffix != ".safetensors":
        beside = path.with_suffix(STATE)
        if not beside.is_file():
            raise SeedanceError(f"from_state: {beside} does not exist; render with --state to keep a film's state")
        path = beside
    if not path.is_file():
        raise SeedanceError(f"from_state: {path} does not exist; render with --state to keep a film's state")
    return LatentFilm.load(path)


def check_resumed(request: RenderRequest, scripts: Sequence[Script], film: LatentFilm) -> Script | None:
    """The words that are to be made of a film that is there already; None where it stays as it is."""
    changed = ("from_file", "image", "last_image", "height", "width", "fps", "dry_run")
    if wrong := [name for name in changed if getattr(request, name)]:
        raise SeedanceError(f"{', '.join(wrong)}: cannot be said of a film that is taken up again; leave it out")
    if len(scripts) > 1 or request.num_samples != 1:
        raise SeedanceError("from_state: one film is taken up at a time; give one prompt and one sample")
    words = scripts[0] if scripts else None
    if not (words or request.retake_shots or request.verify or request.title is not None or request.soundtrack):
        raise SeedanceError(
            "from_state: say what is to be done: a prompt or --script for further shots, --retake-shots, --verify, "
            "--title or --soundtrack"
        )
    if not request.retake_shots:
        return words
    there = len(film.plan.frames)
    if any(not 1 <= shot <= there for shot in request.retake_shots):
        raise SeedanceError(f"retake_shots: {list(request.retake_shots)}; the film has shots 1 to {there}")
    return film.plan.script if words is None else reworded(film.plan.script, request.retake_shots, words)


def reworded(script: Script, shots: Sequence[int], words: Script) -> Script:
    """A script with new words for some shots: one caption for each of them, or one for each shot of the film."""
    numbers = sorted(set(shots))
    if len(words.shots) == len(script.shots):
        return words
    if len(words.shots) != len(numbers):
        raise SeedanceError(
            f"script: {len(words.shots)} captions for {len(numbers)} shots to make anew of {len(script.shots)}; "
            "give one for each shot that is made anew"
        )
    said = list(script.shots)
    for number, shot in zip(numbers, words.shots, strict=True):
        said[number - 1] = replace(shot, seconds=said[number - 1].seconds)
    return replace(script, shots=tuple(said))


def resume(
    model: Any, film: LatentFilm, request: RenderRequest, words: Script | None, seed: int, progress: Progress | None
) -> LatentFilm:
    """A film that is there already with shots made anew or added; `words` as `check_resumed` gives them."""
    made_by = film.record.get("model", {}).get("files", {})
    own = {name: sha for name, sha in model.files.items() if name.startswith("vae/")}
    if any(made_by.get(name, sha) != sha for name, sha in own.items()):
        raise SeedanceError(
            f"from_state: the film was made by {film.record['model'].get('name')}, whose latents {model.name} cannot "
            "read; give that as --model"
        )
    if request.retake_shots:
        made: LatentFilm = model.retake(film, request.retake_shots, script=words, seed=seed, **how(request, progress))
        return made
    if words is None:
        return film
    if request.num_frames is not None:
        seconds = request.num_frames / film.plan.fps
        words = replace(words, shots=tuple(replace(s, seconds=s.seconds or seconds) for s in words.shots))
    longer: LatentFilm = model.extend(film, script=words, seed=seed, **how(request, progress))
    return longer


# ----------------------------------------------------------------------------------------------------- to the file


def verified(
    model: Any,
    film: LatentFilm,
    request: RenderRequest,
    verifier: Verifier,
    path: Path,
    progress: Progress | None,
) -> tuple[LatentFilm, Result]:
    """The best film of all takes, and what was said of them. `path`: the film's file, after which takes are named."""
    from shots.loop import direct

    def keep(take: Take, state: LatentFilm) -> None:
        if request.keep_takes is None:
            return
        file = Path(request.keep_takes) / f"{path.stem}.take-{take.number}{path.suffix}"
        state = replace(state, record={**state.record, "verification": {"takes": [take.to_dict()]}})
        model.write(state, file, record=request.record)
        state.save(file.with_suffix(STATE))

    result = direct(
        film.plan.script, Takes(model, how(request, progress)), verifier, request.retakes, seed=film.plan.seed,
        film=film, callback=progress, keep=keep,
    )  # fmt: skip
    said = {**result.to_dict(), "retakes": request.retakes}
    plan = replace(result.film.plan, seed=film.plan.seed)
    told = {key: result.film.record[key] for key in ("shots",) if key in result.film.record}  # each of its own take
    return replace(result.film, plan=plan, record={**film.record, **told, "verification": said}), result


def write(model: Any, film: LatentFilm, path: Path, request: RenderRequest, title: str | None) -> None:
    """A film into its file, with title and sound where they are wanted, and its state where that is to be kept."""
    plan, around = film.plan, None
    if title is None and request.soundtrack is None:
        model.write(film, path, record=request.record)
    else:
        from shots.publish import publish

        around = publish(
            model.decode(film), path, fps=plan.fps, height=plan.height, width=plan.width, count=sum(plan.frames),
            record=film.record if request.record else None, title=title, soundtrack=request.soundtrack,
        )  # fmt: skip
    if request.state:
        film.save(path.with_suffix(STATE))
    if around is not None:
        film.record["published"] = around  # of this file, not of the state


def write_report(result: Result, path: Path) -> tuple[Path, Path]:
    """The report beside a film: as JSON and as a picture."""
    from shots.files import write_whole
    from shots.sheet import report_sheet

    told = {**result.report.to_dict(), "loop": result.to_dict()}
    report = write_whole(path.with_suffix(".report.json"), json.dumps(told, ensure_ascii=False, indent=1) + "\n")
    try:
        sheet = report_sheet(result.video, result.report, path.with_suffix(".sheet.png"))
    except OSError as error:
        raise ShotsError(f"sheet: {path.with_suffix('.sheet.png')} cannot be written ({error})") from error
    return report, sheet
