"""A process that makes films, one after another: what `seedance.workers` starts, and talks to line by line.

    python -m seedance.renderer --load seedance.renderer:load --device cpu --threads 1

    in    {"make": ID, "request": {...}, "folder": DIR}         {"cancel": ID}
    out   {"id": ID, "share": 0.4, "stage": "rendering", "step": 10, "steps": 25, "previews": [base64 JPEG, ...]}
          {"id": ID, "done": {...}}                             {"id": ID, "failed": [CODE, MESSAGE]}

Notable choices:
- A process and not a thread: sampling holds the interpreter's lock often enough to make a server stutter, and a film
  that needs more memory than there is takes the renderer with it, not the server. It asks to be killed first.
- It lives as long as its standard input: when the server is gone, however it went, the renderer goes at once.
- What makes a film is named as "module:function" and imported here: `load(model, device, **options)` gives a function
  `make(task, report)`. So the server can add what `seedance` must not import, such as a verifier.
- A cancelled job is noticed at its next report, which comes with every step and with every few frames that are decoded:
  `report` raises Cancelled, which runs through sampler and writer, and they leave nothing behind.
- Previews are a few frames of where the latents are heading, never in more than a tenth of the time.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from seedance.errors import SeedanceError
from shots.errors import ShotsError, ShotsFailure

if TYPE_CHECKING:
    from torch import Tensor

    from seedance.pipeline import LatentFilm, Seedance

log = logging.getLogger(__name__)

SAMPLING = 0.9  # share of a film's time before it is decoded and written
PREVIEWS = 4, 8  # pictures of a film: at least, and at most where it has more shots
_APART = 1.0  # seconds between previews, at least
_OFTEN = 0.05  # seconds between what is said within a stage
_PART = 0.1  # of the time, at most, for previews


class Cancelled(Exception):
    """Nobody wants the film any more."""


@dataclass(frozen=True)
class Task:
    """One film to be made: a settled request (`seedance.settle`), and the folder with its pictures that it goes to."""

    id: str
    request: dict[str, Any]
    folder: Path

    def picture(self, name: str) -> Path | None:
        """The file of "image" or "last_image", where one was given."""
        path = self.folder / f"{name}.png"
        return path if path.exists() else None


@dataclass(eq=False)
class Report:
    """Says how a task goes, and raises Cancelled when it is to stop."""

    say: Callable[[dict[str, Any]], None]
    cancelled: threading.Event
    _last: tuple[str, float] = ("", 0.0)

    _span: tuple[float, float] = (0.0, 1.0)

    def within(self, low: float, high: float) -> Report:
        """A report on a part of the work, whose shares from 0 to 1 are `low` to `high` of this one's."""
        start, end = (self._span[0] + (self._span[1] - self._span[0]) * share for share in (low, high))
        return replace(self, _span=(start, end), _last=("", 0.0))

    def __call__(self, share: float, stage: str, step: int = 0, steps: int = 0, previews: Sequence[bytes] = ()) -> None:
        if self.cancelled.is_set():
            raise Cancelled
        now = time.monotonic()
        if stage == self._last[0] and now - self._last[1] < _OFTEN and not previews:
            return
        self._last = stage, now
        pictures = [base64.b64encode(picture).decode() for picture in previews]
        share = self._span[0] + (self._span[1] - self._span[0]) * share
        self.say({"share": share, "stage": stage, "step": step, "steps": steps, "previews": pictures})


Make = Callable[[Task, Report], Mapping[str, Any]]
"""Writes film.mp4 into the task's folder, whole or not at all, and returns what is to be said of it."""

Load = Callable[..., Make]
"""`load(model, device, **options)`; the options are those of `seedance.workers.Workers`."""


def opened(model: str, device: str | None) -> Seedance:
    """A model to make films with. An open checkpoint comes in stages, as its first film fits the device; a tiny
    autoencoder (TAEHV) in its folder, ``tiny.safetensors``, shows its previews."""
    from seedance.acceleration.options import Acceleration
    from seedance.engines.engine import DiffusersSeedance
    from seedance.pipeline import Seedance

    pipe = Seedance.from_pretrained(model, device=device, acceleration=Acceleration())
    if isinstance(pipe, DiffusersSeedance) and (tiny := pipe.checkpoint.folder / "tiny.safetensors").is_file():
        from seedance.acceleration.tiny import load_tiny

        pipe.tiny = load_tiny(tiny, pipe.device)
    return pipe


def load(model: str, device: str | None) -> Make:
    """A maker of films with a model by name, folder or hub id. It does not verify."""
    pipe = opened(model, device)

    def make(task: Task, report: Report) -> dict[str, Any]:
        if task.request.get("verify"):
            raise SeedanceError("verify: this server has no grounder to verify with; leave verify and retakes out")
        film = draw(pipe, task, report.within(0.0, SAMPLING))
        return write(pipe, film, task, report.within(SAMPLING, 1.0))

    return make


def draw(pipe: Seedance, task: Task, report: Report) -> LatentFilm:
    """The latents of a task's film: all of it, or the shots that are to be taken again."""
    from seedance.pipeline import LatentFilm

    request = task.request
    report(0.0, "rendering")
    if request.get("shots"):
        old = LatentFilm.load(task.folder / "source.safetensors")
        how = sampling(pipe, task, report, old.plan.latent_frames)
        return pipe.retake(old, request["shots"], script=request["script"], seed=request["seed"], **how)
    sizes: dict[str, Any] = {name: request[name] for name in ("seed", "height", "width", "fps")}
    plan = pipe.plan(request["script"], **sizes)
    pictures = {name: task.picture(name) for name in ("image", "last_image")}
    how = sampling(pipe, task, report, plan.latent_frames)
    return pipe.sample([plan], image=pictures["image"], last_image=pictures["last_image"], **how)[0]


def sampling(pipe: Seedance, task: Task, report: Report, lengths: Sequence[int]) -> dict[str, Any]:
    """How a task's film is drawn, as `Seedance.sample` and `retake` take it, with a callback that reports.

    lengths: latent frames of each shot.
    """
    preview = _Preview(pipe, lengths)

    def step(done: int, steps: int, heading: Tensor) -> None:
        report(done / steps, "rendering", done, steps, preview(heading[0]) if done < steps else ())

    how: dict[str, Any] = {name: task.request.get(name) for name in ("steps", "guidance_scale", "sampler")}
    return how | {"negative_prompt": task.request.get("negative_prompt", ""), "callback": step}


def write(pipe: Seedance, film: LatentFilm, task: Task, report: Report) -> dict[str, Any]:
    """Put a film, its latents and its record into the task's folder. Returns what is said of it."""
    state = task.folder / "film.state.safetensors"
    try:
        report(0.0, "writing")
        film.save(state)
        record = pipe.write(
            film, task.folder / "film.mp4", callback=lambda done, total: report(done / total, "writing", done, total)
        )
    except BaseException:
        state.unlink(missing_ok=True)  # nothing can be re-taken from a film that is not there
        raise
    return {name: record[name] for name in ("warnings", "timings", "frames") if name in record}


class _Preview:
    """Small pictures of where a film is heading, as often as they are cheap."""

    def __init__(self, pipe: Seedance, lengths: Sequence[int]) -> None:
        self._pipe, self._lengths = pipe, tuple(lengths)
        self._spent = 0.0
        self._began = self._last = time.monotonic()

    def __call__(self, heading: Tensor) -> tuple[bytes, ...]:
        """Latents (C, t, h, w) -> JPEG pictures; none when it is too early for the next."""
        now = time.monotonic()
        if now - self._last < _APART or self._spent > _PART * (now - self._began):
            return ()
        from PIL import Image

        from seedance.preview import preview_frames

        lengths = self._lengths if sum(self._lengths) == heading.shape[1] else None  # engines may draw a shot at a time
        most = min(max(len(self._lengths), PREVIEWS[0]), PREVIEWS[1])
        pictures = []
        for frame in preview_frames(self._pipe, heading, most, lengths):  # uint8 (H, W, 3)
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "JPEG", quality=80)
            pictures.append(file.getvalue())
        self._last = time.monotonic()
        self._spent += self._last - now
        return tuple(pictures)


# -------------------------------------------------------------------------------------------------------- the process


class _Server:
    """The other end of the lines."""

    def __init__(self, lines: IO[str], out: IO[str]) -> None:
        self._out = out
        self._writing = threading.Lock()
        self._cancelled: dict[str, threading.Event] = {}
        self.tasks: queue.Queue[Task] = queue.Queue()
        threading.Thread(target=self._listen, args=(lines,), daemon=True).start()

    def say(self, line: Mapping[str, Any]) -> None:
        with self._writing:
            self._out.write(json.dumps(line) + "\n")
            self._out.flush()

    def report(self, id_: str) -> Report:
        return Report(lambda line: self.say({"id": id_, **line}), self._cancelled[id_])

    def _listen(self, lines: IO[str]) -> None:
        for text in lines:
            line = json.loads(text)
            if "make" in line:
                self._cancelled = {line["make"]: threading.Event()}
                self.tasks.put(Task(line["make"], line["request"], Path(line["folder"])))
            elif line.get("cancel") in self._cancelled:
                self._cancelled[line["cancel"]].set()
        os._exit(1)  # the server is gone, and nobody waits for what is being made


def run(task: Task, make: Callable[[], Make], server: _Server) -> None:
    """Make one film and say how it went."""
    report = server.report(task.id)
    try:
        made: dict[str, Any] = {"done": dict(make()(task, report))}
    except Cancelled:
        made = {"failed": ["cancelled", "it was cancelled while it was made"]}
    except ShotsFailure as error:
        log.exception("%s: failed", task.id)
        made = {"failed": ["storage", _without(error, task)]}
    except (SeedanceError, ShotsError) as error:
        made = {"failed": ["invalid_request", _without(error, task)]}
    except Exception as error:
        log.exception("%s: failed", task.id)
        made = {"failed": ["render_failed", "the renderer failed; the server's log says why"]}
        if isinstance(error, MemoryError) or "OutOfMemoryError" in type(error).__name__ or "allocate mem" in str(error):
            made = {"failed": ["out_of_memory", "there is too little memory for this film; make it shorter or smaller"]}
    server.say({"id": task.id, **made})


def _without(error: Exception, task: Task) -> str:
    """What an error says, without the server's folders."""
    return str(error).replace(f"{task.folder}/", "").replace(str(task.folder), "the job's folder")


def main() -> None:
    """Make films until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m seedance.renderer", description="Makes films for a server.")
    parser.add_argument("--load", default="seedance.renderer:load", help="module:function that loads what makes films")
    parser.add_argument("--device", help="cpu, cuda, ...; by default the best there is")
    parser.add_argument("--threads", type=int, help="of torch, on the CPU")
    parser.add_argument("--option", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="for --load")
    said = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, format="renderer: %(message)s", level=logging.WARNING)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to the log, and not among the lines
    with contextlib.suppress(OSError):
        os.nice(5)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    server = _Server(sys.stdin, out)
    if said.threads:
        import torch

        torch.set_num_threads(said.threads)
    module, _, name = said.load.partition(":")
    load_: Load = getattr(import_module(module), name)
    loaded: dict[str, Make] = {}
    while True:
        task = server.tasks.get()

        def maker(model: str = task.request["model"]) -> Make:
            if model not in loaded:
                loaded.clear()  # one model at a time is in memory
                loaded[model] = load_(model, said.device, **dict(said.option))
            return loaded[model]

        run(task, maker, server)


if __name__ == "__main__":
    main()
