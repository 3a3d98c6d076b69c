"""One worker per device behind one bounded queue.

Notable choices:
- A worker is a thread that loads its own state (a model) on its first job and runs one job at a time: two forward
  passes at once on one device are slower than one after the other, and take the memory of both.
- The queue is bounded: a job that finds no place is refused at once, with the seconds after which to try again, rather
  than kept until its client has given up.
- A cancelled job that still waits leaves the queue and is never run; one that runs is told through an event, which it
  looks at between its steps.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from shots.errors import ShotsError

log = logging.getLogger(__name__)

State = TypeVar("State")


class Full(Exception):
    """No place in the queue. retry_after: whole seconds after which one should be free."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} seconds")
        self.retry_after = retry_after


class Closed(Exception):
    """The workers are being stopped; the job was not run."""


class NotLoaded(Exception):
    """A worker's state could not be loaded; the cause is in `__cause__`. The next job tries again."""


class Job(Generic[State]):
    """One piece of work. `future` gets its result, `cancel` withdraws it. waited: seconds in the queue."""

    def __init__(self, pool: Workers[State], work: Callable[[State, threading.Event], Any]) -> None:
        self.future: Future[Any] = Future()
        self.cancelled = threading.Event()
        self.waited = 0.0
        self._pool = pool
        self._work = work
        self._since = time.monotonic()

    def cancel(self) -> None:
        """A waiting job leaves the queue, a running one is told; nothing happens to one that is done."""
        self.cancelled.set()
        if self.future.cancel():
            self._pool._leave(self)

    def _run(self, state: Callable[[], State]) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        self.waited = time.monotonic() - self._since
        try:
            result = self._work(state(), self.cancelled)
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Workers(Generic[State]):
    """Threads, one per device, that share a queue.

    load: makes a worker's state from its device; called in the worker's thread on its first job. devices: one name a
    worker, None is the best there is. queue: how many jobs may wait besides those that run, 0 or more.
    """

    def __init__(
        self, load: Callable[[str | None], State], devices: Sequence[str | None] = (None,), queue: int = 16
    ) -> None:
        if not devices or queue < 0:
            raise ShotsError(f"devices, queue: {len(devices)} devices, {queue} places; at least 1 and 0 are needed")
        self._load = load
        self._devices = tuple(devices)
        self._places = queue
        self._waiting: deque[Job[State]] = deque()
        self._running: dict[int, Job[State]] = {}
        self._states: dict[int, State] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._seconds = 1.0  # what a job has lately taken, a running mean
        self._closed = False
        self._changed = threading.Condition()

    def submit(self, work: Callable[[State, threading.Event], Any]) -> Job[State]:
        """Queue `work(state, cancelled)`. Raises Full when there is no place and Closed after `close`."""
        with self._changed:
            if self._closed:
                raise Closed
            self._check_place()
            job = Job(self, work)
            self._waiting.append(job)
            for number, device in enumerate(self._devices):
                if number not in self._threads:
                    thread = threading.Thread(target=self._serve, args=(number, device), name=f"worker-{number}")
                    thread.daemon = True
                    self._threads[number] = thread
                    thread.start()
            self._changed.notify()
            return job

    def check_place(self) -> None:
        """Raises Full when a job submitted now would be refused; to be asked before work that a refusal would waste."""
        with self._changed:
            self._check_place()

    def _check_place(self) -> None:
        ahead = len(self._waiting) + len(self._running)
        if ahead >= len(self._devices) + self._places:
            raise Full(min(600, max(1, math.ceil(self._seconds * (len(self._waiting) + 1) / len(self._devices)))))

    def states(self) -> list[State]:
        """The states loaded so far."""
        with self._changed:
            return list(self._states.values())

    def open(self) -> None:
        """Take jobs again after `close`."""
        with self._changed:
            self._closed = False

    def close(self, seconds: float = 10.0) -> None:
        """Turn away what waits (Closed), tell what runs, and let the threads end; waits for them at most `seconds`."""
        with self._changed:
            self._closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
            running = list(self._running.values())
            threads = list(self._threads.values())
            self._changed.notify_all()
        for job in waiting:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(Closed())
        for job in running:
            job.cancel()
        until = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _leave(self, job: Job[State]) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def _serve(self, number: int, device: str | None) -> None:
        def state() -> State:
            if number not in self._states:
                try:
                    loaded = self._load(device)
                except Exception as error:
                    raise NotLoaded from error
                with self._changed:
                    self._states[number] = loaded
            return self._states[number]

        while True:
            with self._changed:
                while not self._waiting:
                    if self._closed:
                        del self._threads[number]
                        self._states.pop(number, None)
                        return
                    self._changed.wait()
                job = self._waiting.popleft()
                self._running[number] = job
            begun = time.monotonic()
            try:
                job._run(state)
            finally:
                with self._changed:
                    del self._running[number]
                    self._seconds = 0.7 * self._seconds + 0.3 * (time.monotonic() - begun)
