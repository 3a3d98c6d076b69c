"""Render processes that work a queue through: one a device, each watched by a thread of the server.

    workers = Workers(jobs, devices=("cuda:0", "cuda:1"))
    with workers:                                         # films are made until the block ends
        ...

Notable choices:
- A renderer (`seedance.renderer`) is started when its first job comes, and again after it died; the job it died on has
  failed and the next one goes on.
- On a CPU one core is left to the server, so that it answers while films are made.
- A job that does not stop within `grace` seconds of being cancelled, or takes longer than `seconds`, ends with its
  renderer.
- What is being made when the workers are closed is interrupted, or in line again, as `Limits.requeue` says.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from seedance.errors import SeedanceError
from seedance.jobs import Job, Jobs

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[1]  # where the renderer finds the packages, installed or not


class Workers:
    """Makes the films of `jobs`.

    devices: a renderer each; None is the best there is. load: "module:function" that a renderer makes films with;
    options: what it is called with besides model and device. threads: of torch in each renderer; None leaves a core
    free. seconds: for one film. grace: seconds in which a cancelled job must stop. on_done: told each job that was
    taken and the seconds that it took, in a worker's thread.
    """

    def __init__(
        self,
        jobs: Jobs,
        devices: Sequence[str | None] = (None,),
        *,
        load: str = "seedance.renderer:load",
        options: Mapping[str, str] | None = None,
        threads: int | None = None,
        seconds: float = 6 * 3600.0,
        grace: float = 60.0,
        on_done: Callable[[Job, float], None] | None = None,
    ) -> None:
        if not devices:
            raise SeedanceError("devices: none given; name at least one, None is the best there is")
        self._jobs = jobs
        self._stop = threading.Event()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, (cores - 1) // len(devices)) if threads is None else threads
        self._workers = [
            _Worker(jobs, _Renderer(device, load, options or {}, threads), self._stop, seconds, grace, on_done)
            for device in devices
        ]
        jobs.workers = len(devices)

    def __enter__(self) -> Workers:
        self._stop.clear()
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._jobs.wake()
        for worker in self._workers:
            worker.end()

    def pids(self) -> list[int]:
        """Process ids of the renderers that live."""
        return [pid for worker in self._workers if (pid := worker.renderer.pid) is not None]


class _Renderer:
    """One renderer process and its lines."""

    def __init__(self, device: str | None, load: str, options: Mapping[str, str], threads: int) -> None:
        self._command = [sys.executable, "-P", "-m", "seedance.renderer", "--load", load, "--threads", str(threads)]
        self._command += ["--device", device] if device else []
        for option in options.items():
            self._command += ["--option", *option]
        self._process: subprocess.Popen[str] | None = None
        self._writing = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Its process id while it lives."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> Callable[[], None]:
        """Start the process where none lives. Returns what kills this one."""
        if self.pid is None:
            path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
                env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
            )  # fmt: skip
        assert self._process is not None
        return self._process.kill

    def say(self, line: dict[str, Any]) -> None:
        """Send a line; one that is dead hears nothing."""
        process = self._process
        if process is None or process.stdin is None:
            return
        with self._writing:
            try:
                process.stdin.write(json.dumps(line) + "\n")
                process.stdin.flush()
            except (OSError, ValueError):
                log.debug("a renderer is gone")

    def hear(self) -> dict[str, Any] | None:
        """The next line; None when it died."""
        if self._process is None or self._process.stdout is None:
            return None
        try:
            text = self._process.stdout.readline()
            return json.loads(text) if text.endswith("\n") else None
        except ValueError:
            return None

    def kill(self) -> None:
        """End it, now."""
        if self._process is not None:
            self._process.kill()

    def buried(self) -> str:
        """How a dead one ended, in words; its pipes are let go of."""
        process, self._process = self._process, None
        if process is None:
            return "was not there"
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    log.debug("a renderer's pipe was broken")
        return f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"


class _Worker:
    """A thread that takes jobs and has its renderer make them."""

    def __init__(
        self,
        jobs: Jobs,
        renderer: _Renderer,
        stop: threading.Event,
        seconds: float,
        grace: float,
        on_done: Callable[[Job, float], None] | None,
    ) -> None:
        self.renderer = renderer
        self._jobs = jobs
        self._stop = stop
        self._seconds = seconds
        self._grace = grace
        self._on_done = on_done
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._serve, name="films", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Interrupt what is being made and wait for the thread."""
        self.renderer.kill()
        if self._thread is not None:
            self._thread.join(10)
        self.renderer.buried()

    def _serve(self) -> None:
        while not self._stop.is_set():
            job = self._jobs.claim(stop=self._stop)
            if job is None:
                return
            begun = time.monotonic()
            try:
                self._make(job)
            except Exception:  # a full disk under the table, say: the next job may fare better
                log.exception("%s: could not be dealt with", job.id)
                self._stop.wait(1.0)
            if self._on_done is not None:
                self._on_done(job, time.monotonic() - begun)

    def _make(self, job: Job) -> None:
        jobs, renderer = self._jobs, self.renderer
        folder = jobs.folder / "films" / job.id
        kill = renderer.start()
        if self._stop.is_set():  # which `end` may have said before there was a renderer to kill
            kill()
        cancelled, late = threading.Event(), threading.Event()

        def overdue() -> None:
            late.set()
            kill()

        def cancel() -> None:
            cancelled.set()
            renderer.say({"cancel": job.id})
            timers.append(_timer(self._grace, kill))

        timers = [_timer(self._seconds, overdue)]
        renderer.say({"make": job.id, "request": job.request, "folder": str(folder.resolve())})
        jobs.on_cancel(job.id, cancel)
        try:
            while (line := renderer.hear()) is not None:
                if line.get("id") != job.id:
                    continue
                if "done" in line:
                    jobs.finish(job.id, line["done"])
                    return
                if "failed" in line:
                    jobs.fail(job.id, *line["failed"])
                    return
                previews = [base64.b64decode(picture) for picture in line["previews"]]
                jobs.report(job.id, line["share"], line["stage"], line["step"], line["steps"], previews)
        finally:
            for timer in timers:
                timer.cancel()
        how = renderer.buried()
        if (folder / "film.mp4").exists():  # whole, and the renderer died before it could say so
            jobs.finish(job.id, {})
        elif self._stop.is_set():
            jobs.interrupt(job.id)
        elif cancelled.is_set():
            jobs.fail(job.id, "cancelled", "it was cancelled while it was made")
        elif late.is_set():
            jobs.fail(job.id, "timed_out", f"it was not made within {self._seconds:g} seconds; make it shorter")
        else:
            log.error("%s: the renderer %s", job.id, how)
            jobs.fail(job.id, "worker_died", f"the renderer {how}; too little memory is the usual reason")


def _timer(seconds: float, then: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), then)
    timer.daemon = True
    timer.start()
    return timer
