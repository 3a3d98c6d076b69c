"""How the server's renderers make films: `seedance` draws, `unitime` looks whether a film shows its script, and
`shots.loop` has failed shots taken again.

    Workers(jobs, load="demos.takes:load", options={"grounder": "unitime-nano"})

Notable choices:
- It runs in a renderer's process (`seedance.renderer`); the grounder is loaded there by the first film that is to be
  verified.
- A re-take of shots that a client asked for is the first take of its own loop.
- Every step of every take reports, and the grounder looks too whether anybody still waits, so a cancelled film stops at
  the next one, or at the grounder's next batch of frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from demos.passes import Stoppable
from seedance import renderer
from seedance.renderer import SAMPLING, Cancelled, Make, Report, Task
from unitime.errors import UniTimeError

if TYPE_CHECKING:
    from seedance.pipeline import LatentFilm, Seedance
    from shots.script import Script
    from shots.video import Video


def load(model: str, device: str | None, *, grounder: str, adapter: str = "") -> Make:
    """A maker of films with a model, which verifies with a grounder where a task says so."""
    pipe = renderer.opened(model, device)
    verifiers: list[Any] = []

    def make(task: Task, report: Report) -> Mapping[str, Any]:
        if not task.request.get("verify"):
            film = renderer.draw(pipe, task, report.within(0.0, SAMPLING))
            return renderer.write(pipe, film, task, report.within(SAMPLING, 1.0))
        if not verifiers:
            from unitime import UniTime

            verifiers.append(UniTime.from_pretrained(grounder, adapter=adapter or None, device=device))
        return verified(pipe, verifiers[0], task, report)

    return make


def verified(pipe: Seedance, grounder: Any, task: Task, report: Report) -> dict[str, Any]:
    """A task's film, verified, its failed shots taken again as often as the task says."""
    from shots.evaluation import verify
    from shots.loop import direct
    from shots.script import Script

    takes = _Takes(pipe, task, report.within(0.0, SAMPLING), task.request.get("retakes", 0) + 1)
    stoppable = Stoppable(grounder, report.cancelled)
    try:
        result = direct(
            Script.from_dict(task.request["script"]), takes,
            lambda film, script: verify(film, script, stoppable, measures=False),
            retakes=task.request.get("retakes", 0), seed=task.request["seed"], callback=takes.tell,
        )  # fmt: skip
    except UniTimeError as error:
        if report.cancelled.is_set():
            raise Cancelled from error
        raise
    film: LatentFilm = result.film
    film.record["takes"] = result.to_dict()
    said = renderer.write(pipe, film, task, report.within(SAMPLING, 1.0))
    return {**said, "verification": {**result.to_dict(), "report": result.report.to_dict()}}


class _Takes:
    """A `shots.protocols.Retaker` that draws as a task says, and reports."""

    def __init__(self, pipe: Seedance, task: Task, report: Report, most: int) -> None:
        self._pipe, self._task, self._report, self._most = pipe, task, report, most
        self._done = 0

    def tell(self, done: int, total: int, what: str) -> None:
        """Progress of the loop, between its takes."""
        self._done = min(done, total - 1)
        self._report(done / total, what)

    @property
    def _part(self) -> Report:
        return self._report.within(self._done / self._most, (self._done + 1) / self._most)

    def take(self, script_or_prompt: Script | str, *, seed: int = 0) -> LatentFilm:
        """A first take, of a script that the task has settled."""
        task = replace(self._task, request={**self._task.request, "seed": seed})
        return renderer.draw(self._pipe, task, self._part)

    def retake(self, film: LatentFilm, shots: Sequence[int], *, seed: int | None = None) -> LatentFilm:
        """The film with some shots made anew."""
        how = renderer.sampling(self._pipe, self._task, self._part, film.plan.latent_frames)
        return self._pipe.retake(film, shots, seed=seed, **how)

    def splice(self, film: LatentFilm, other: LatentFilm, shots: Sequence[int]) -> LatentFilm:
        """The film with some shots of another take of it."""
        return self._pipe.splice(film, other, shots)

    def video(self, film: LatentFilm) -> Video:
        """The film decoded, to be looked at."""
        part = self._part
        return self._pipe.video(film, callback=lambda done, total: part(1.0, "decoding", done, total))
