"""From whatever a client asks for to what the renderer gets: every size of a film settled, every limit checked.

Notable choice: sizes are settled by the renderer's own `seedance.pipeline.make_plan`, so that a request is refused when
it is made and not when its turn comes; the import of torch that this costs happens on the first request.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from seedance.errors import SeedanceError
from shots.errors import ShotsError

LETTERS = 20_000  # of a prompt, or of a script as JSON

KEYS = {
    "prompt", "script", "model", "seed", "seconds", "num_frames", "height", "width", "fps", "steps", "guidance_scale",
    "negative_prompt", "sampler", "verify", "retakes", "source", "shots",
}  # fmt: skip


@dataclass(frozen=True)
class Settled:
    """A request with every size settled.

    Attributes:
        request: what the renderer gets.
        prompt: the words as they came.
        seconds: of the whole film.
        work: latent cells x passes, what its time grows with.
    """

    request: dict[str, Any]
    prompt: str
    seconds: float
    work: float


def check_keys(said: Mapping[str, Any]) -> None:
    """Raises SeedanceError for a key that no request has."""
    unknown = sorted(set(said) - KEYS)
    if unknown:
        raise SeedanceError(f"request: unknown key {', '.join(unknown)}; there are {', '.join(sorted(KEYS))}")


def settle(said: Mapping[str, Any], tokens: int) -> Settled:
    """A request checked and settled as its model's renderer will read it. tokens: most latent cells of a film.

    Raises SeedanceError that names what cannot be used.
    """
    from seedance.pipeline import make_plan, read_script

    prompt, script = said.get("prompt"), said.get("script")
    words = prompt if script is None else script
    if words is None:
        raise SeedanceError("prompt: missing; say what is to be seen, or give a script")
    if prompt is not None and not isinstance(prompt, str):
        raise SeedanceError("prompt: must be text")
    if not isinstance(words, (str, Mapping)):
        raise SeedanceError("script: must be an object, or text")
    if len(words if isinstance(words, str) else json.dumps(words)) + len(prompt or "") > LETTERS:
        raise SeedanceError(f"prompt: longer than {LETTERS} letters; make several films")
    defaults = _defaults(said["model"])
    seed = _whole("seed", said.get("seed", secrets.randbelow(2**31)), 0, 2**63 - 1)
    steps = _whole("steps", said.get("steps", defaults.steps), 1, 1000)
    scale = _between("guidance_scale", said.get("guidance_scale", defaults.guidance_scale), 0.0, 100.0)
    defaults.check(sampler=said.get("sampler"))
    if not isinstance(said.get("negative_prompt", ""), str) or len(said.get("negative_prompt", "")) > LETTERS:
        raise SeedanceError(f"negative_prompt: must be text of at most {LETTERS} letters")
    if not isinstance(said.get("verify", False), bool):
        raise SeedanceError("verify: must be true or false")
    retakes = _whole("retakes", said.get("retakes", 0), 0, 20)
    if retakes and said.get("verify") is False:
        raise SeedanceError("retakes: need verify, which says what to take again")
    sizes: dict[str, Any] = {
        "height": None if said.get("height") is None else _whole("height", said["height"], 16, 8192),
        "width": None if said.get("width") is None else _whole("width", said["width"], 16, 8192),
        "fps": None if said.get("fps") is None else _between("fps", said["fps"], 0.1, 240.0),
    }
    if said.get("num_frames") is not None:
        sizes["num_frames"] = _whole("num_frames", said["num_frames"], 1, 1 << 14)
    try:
        script = read_script(dict(words) if isinstance(words, Mapping) else words)
        if said.get("seconds") is not None:
            if said.get("num_frames") is not None:
                raise SeedanceError("num_frames: say either seconds, of the film, or num_frames, of each shot")
            script = _lasting(script, _between("seconds", said["seconds"], 0.0, 86_400.0))
    except ShotsError as error:
        raise SeedanceError(str(error)) from error
    plan = make_plan(script, defaults, seed=seed, **sizes)
    if plan.tokens > tokens:
        raise SeedanceError(
            f"seconds, size: {sum(plan.frames)} frames of {plan.width} x {plan.height} are {plan.tokens} latent cells, "
            f"at most {tokens} are taken here; make it shorter or smaller"
        )
    shots = said.get("shots")
    if shots is not None:
        if not isinstance(shots, (list, tuple)) or not shots:
            raise SeedanceError("shots: must be a list of numbers of shots, from 1")
        shots = sorted({_whole("shots", shot, 1, len(plan.frames)) for shot in shots})
    request = {
        **{name: said[name] for name in ("negative_prompt", "sampler") if said.get(name)},
        "script": plan.script.to_dict(), "model": said["model"], "seed": seed, "steps": steps, "guidance_scale": scale,
        "height": plan.height, "width": plan.width, "fps": plan.fps,
        **({"verify": True, "retakes": retakes} if said.get("verify") or retakes else {}),
        **({"shots": shots} if shots else {}),
    }  # fmt: skip
    text = prompt or " [cut] ".join(shot.caption for shot in script.shots)
    work = plan.tokens * steps * (1 if scale == 1 else 2)
    return Settled(request, text, sum(plan.frames) / plan.fps, float(work))


def inherited(said: Mapping[str, Any], old: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """A request with what it leaves unsaid taken from `old`, the settled one of a film of `seconds`.

    With `shots` it is a re-take of these shots: the film's sizes stay, and so do the other shots.
    """
    old = {name: value for name, value in old.items() if name not in ("shots", "model")}
    words = said.get("script", said.get("prompt"))
    if said.get("shots"):
        changed = {"seconds", "num_frames", "fps", "height", "width", "model"} & set(said)
        if changed:
            raise SeedanceError(f"{', '.join(sorted(changed))}: a re-take keeps the film's; leave it out")
        if words is not None:
            old["script"] = _renewed(words, old["script"])
            said = {name: value for name, value in said.items() if name not in ("prompt", "script")}
        old["seed"] = (old["seed"] + 1) % 2**31  # the same noise would give much the same shot again
    elif words is not None:
        del old["script"]
        if not {"seconds", "num_frames"} & set(said):
            old["seconds"] = seconds
    return {**old, **said}


def _renewed(words: Any, old: Mapping[str, Any]) -> dict[str, Any]:
    """New words for the shots of a script, whose lengths stay."""
    from seedance.pipeline import read_script

    new, seconds = read_script(words), [shot["seconds"] for shot in old["shots"]]
    if len(new.shots) != len(seconds):
        raise SeedanceError(f"script: has {len(new.shots)} shots, the film {len(seconds)}; give one caption per shot")
    shots = tuple(replace(shot, seconds=length) for shot, length in zip(new.shots, seconds, strict=True))
    return replace(new, shots=shots).to_dict()


@lru_cache(maxsize=32)
def _defaults(model: str) -> Any:
    from seedance.pipeline import model_defaults

    return model_defaults(model)


def _lasting(script: Any, seconds: float) -> Any:
    """`script` as long as asked for: the shots that say no seconds share what the others leave."""
    free = sum(shot.seconds is None for shot in script.shots)
    left = seconds - sum(shot.seconds or 0.0 for shot in script.shots)
    if not free or left <= 0:
        said = seconds - left
        if abs(left) < 1e-6 and not free:
            return script
        raise SeedanceError(f"seconds: {seconds:g}, but the shots of the script take {said:g}; leave seconds out")
    return replace(
        script, shots=tuple(shot if shot.seconds else replace(shot, seconds=left / free) for shot in script.shots)
    )


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SeedanceError(f"{name}: {value!r} is not a whole number from {low} to {high}")
    return value


def _between(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise SeedanceError(f"{name}: {value!r} is not a number from {low:g} to {high:g}")
    if not low <= value <= high:
        raise SeedanceError(f"{name}: {value!r} is not a number from {low:g} to {high:g}")
    return float(value)
