"""A job of the queue, followed by a page: what its screen shows while it is made, and what there is when it is done.

Notable choices:

- A page asks the queue a few times a second and is told only what changed. It holds nothing: when it is closed the
  film goes on being made, and a page that is loaded again follows it from there.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demos.services import Services
from seedance.errors import SeedanceError

if TYPE_CHECKING:
    from seedance.jobs import Job, Progress

EVERY = 0.25  # seconds between two questions to the queue
POSTER = 160  # pixels, height of a shot's picture on its card

IDLE: dict[str, Any] = {"state": "idle"}


async def follow(
    services: Services, job_id: str, client: str | None
) -> AsyncIterator[tuple[Job | None, dict[str, Any]]]:
    """The job and the value of a :class:`demos.widgets.Screen`, at every change until it is over.

    A job that is gone, or is another client's, gives one (None, idle).
    """
    told = None
    while True:
        try:
            job, progress = await asyncio.to_thread(_asked, services, job_id, client)
        except SeedanceError:
            yield None, IDLE
            return
        value = screen(job, progress)
        if value != told:
            told = value
            yield job, value
        if job.done:
            return
        await asyncio.sleep(EVERY)


def _asked(services: Services, job_id: str, client: str | None) -> tuple[Job, Progress]:
    return services.jobs.get(job_id, client), services.jobs.progress(job_id, client)


def screen(job: Job, progress: Progress) -> dict[str, Any]:
    """What a screen shows of a job."""
    states = {"queued": "queued", "in_progress": "running", "completed": "done"}
    value: dict[str, Any] = {"state": states.get(job.status, "failed"), "text": _words(job, progress)}
    if job.status == "cancelled":
        value["state"] = "cancelled"
    if not job.done:
        value |= {"share": progress.percent / 100, "left": progress.eta_seconds}
        value["previews"] = [data_url(picture, "jpeg") for picture in progress.previews]
    return value


def _words(job: Job, progress: Progress) -> str:
    if job.status == "queued":
        ahead = progress.position
        return "Next in line" if ahead == 0 else f"Waiting for {ahead} film{'s' if ahead > 1 else ''} before it"
    if job.status == "in_progress":
        stage, what = progress.stage.capitalize(), "step" if progress.stage == "rendering" else "frame"
        return f"{stage}, {what} {progress.step} of {progress.steps}" if progress.steps else stage
    if job.status == "completed":
        took = (job.completed_at or 0) - (job.started_at or 0)
        notes = "".join(f" Note: {note}." for note in job.result.get("warnings") or ())
        return f"Done in {took:.1f} s, seed {job.request['seed']}.{notes}"
    said = job.error_message or job.status
    return f"{said[:1].upper()}{said[1:]}."


def data_url(picture: bytes, kind: str) -> str:
    """A picture as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def shot_seeds(services: Services, job: Job, client: str | None) -> list[int | None]:
    """The seed that each shot of a film was drawn from; None where the film that it is held from is gone."""
    request, count = job.request, len(job.request["script"]["shots"])
    seeds: list[int | None] = [request["seed"]] * count
    anew = request.get("shots")
    if not anew or job.source is None:
        return seeds
    try:
        held = shot_seeds(services, services.jobs.get(job.source, client), client)
    except SeedanceError:
        held = [None] * count
    return [seeds[i] if i + 1 in anew else held[i] for i in range(count)]


def posters(film: Path, script: Mapping[str, Any]) -> list[str]:
    """The middle frame of each shot of a film, as addresses that hold the pictures."""
    import numpy as np
    from PIL import Image

    from shots.video import frames_at

    ends = np.cumsum([shot["seconds"] for shot in script["shots"]])
    middles = ends - np.diff(ends, prepend=0.0) / 2
    found = []
    for _, frame in frames_at(film, middles):
        height = min(POSTER, frame.shape[0])
        file = io.BytesIO()
        Image.fromarray(frame).resize((round(height * frame.shape[1] / frame.shape[0]), height)).save(file, "WEBP")
        found.append(data_url(file.getvalue(), "webp"))
    return found
