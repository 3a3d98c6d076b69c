"""The queue of films to be made: in SQLite, so that it outlives the process, and on disk beside what it made.

    jobs = Jobs("data")                                   # the folder is this process's alone, a lock says so
    job = jobs.submit({"prompt": "A red cube jumps.", "seed": 1}, client="me")
    for job in jobs.follow(job.id):                       # at every change, until it is done
        print(job.status, jobs.progress(job.id))          # per cent, stage, seconds left, preview pictures
    jobs.film(job.id)                                     # the film's path; its record lies beside it
    jobs.get(job.id, client="me"), jobs.list(client="me"), jobs.cancel(job.id), jobs.delete(job.id)

`submit` checks and settles a request and puts it in line; `seedance.workers` takes jobs out with `claim` and says how
they go with `report`, `finish` and `fail`. The REST service (`seedance.service`) and the studio use this one interface,
so whatever asks, films are made in the order in which they were asked for.

Notable choices:
- A row is committed (WAL, full sync) when a job is put in line, begun or done; steps and previews live in memory only,
  so that no step of a film waits for a disk.
- A film is whole before its row says so: written beside its place, synced, renamed (`shots.video.VideoWriter`), then
  the row. A server that finds a begun job on its start looks for the film: if it lies there the job is completed, else
  it was interrupted, or is put in line again where the limits say so.
- Every job has a folder named by its id: pictures, film, record, and the film's latents, from which shots are re-taken.
  Folders without a row are removed on a start; ids are looked up in the table and never become paths by themselves.
- What is kept is bounded: by age, by the bytes of all films (the oldest go first; the newest film always stays), by the
  jobs in line, and by those of one client.
- `client` says whose a job is. None sees everything; another client's job is answered as one that never was.
- Importing this loads no torch; the first `submit` loads it to settle the film's sizes as the renderer will.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import re
import secrets
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Literal

from seedance.errors import SeedanceError
from seedance.settle import check_keys, inherited, settle
from shots.errors import ShotsFailure

log = logging.getLogger(__name__)

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled", "interrupted"]
WAITING: tuple[Status, ...] = ("queued", "in_progress")
STATUSES: tuple[Status, ...] = ("queued", "in_progress", "completed", "failed", "cancelled", "interrupted")

PICTURES = ("image", "last_image")

_ID = re.compile(r"video_[0-9a-f]{32}")
_VERSION = 1  # of the table
_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    client TEXT NOT NULL,
    status TEXT NOT NULL,
    request TEXT NOT NULL,
    prompt TEXT NOT NULL,
    model TEXT NOT NULL,
    seconds REAL NOT NULL,
    work REAL NOT NULL,
    source TEXT,
    created_at REAL NOT NULL,
    started_at REAL,
    completed_at REAL,
    error_code TEXT,
    error_message TEXT,
    result TEXT NOT NULL DEFAULT '{}',
    bytes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, number);
CREATE INDEX IF NOT EXISTS jobs_by_client ON jobs (client, number);
"""


class NoSuchJob(SeedanceError):
    """There is no job of this id, or it is another client's."""


class QueueFull(SeedanceError):
    """No place in line. retry_after: whole seconds after which one should be free."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(f"{message}; try again in {retry_after} seconds")
        self.retry_after = retry_after


@dataclass(frozen=True)
class Limits:
    """What the queue allows.

    Attributes:
        queue: jobs in line, those being made included.
        per_client: of them, of one client.
        tokens: latent cells of one film, 16 x 16 pixels x 4 frames each.
        keep_seconds: after which a job that is done goes, with its film.
        disk_bytes: of all jobs' folders together; the oldest done go first.
        requeue: whether a job that a killed server was making is made again, from its start.
    """

    queue: int = 100
    per_client: int = 20
    tokens: int = 65_536
    keep_seconds: float = 7 * 24 * 3600.0
    disk_bytes: int = 20 << 30
    requeue: bool = False

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name != "requeue" and not (math.isfinite(value) and value > 0):
                raise SeedanceError(f"{each.name}: {value}; a finite number above 0 is needed")


@dataclass(frozen=True)
class Job:
    """What the table says of a job. Times are seconds since 1970, sizes pixels.

    Attributes:
        request: what the renderer gets: a script with every shot's seconds, seed, height, width, fps, and the rest as
            it was asked for.
        prompt: the words as they came.
        seconds: length of the film.
        source: the job whose film this one changes.
        error_code, error_message: why it was not made: "render_failed", "worker_died", "cancelled", "interrupted", ...
        result: what the renderer said when it was done: warnings, timings, frames, scores where it was verified.
    """

    number: int
    id: str
    client: str
    status: Status
    request: dict[str, Any]
    prompt: str
    model: str
    seconds: float
    work: float
    source: str | None
    created_at: float
    started_at: float | None
    completed_at: float | None
    error_code: str | None
    error_message: str | None
    result: dict[str, Any]
    bytes: int

    @property
    def done(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status not in WAITING

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self.request["width"])

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.request["height"])


@dataclass(frozen=True)
class Progress:
    """How a job goes.

    Attributes:
        percent: 0 to 100; 100 only when it is completed.
        stage: "queued", "loading", "rendering", "writing", ..., or the job's status when it is done.
        step, steps: of this stage.
        position: jobs that come before it.
        eta_seconds: until it is done; None while nothing is known.
        previews: JPEG pictures of where the film is heading, a few frames over all of it, in their order.
    """

    percent: int = 0
    stage: str = "queued"
    step: int = 0
    steps: int = 0
    position: int = 0
    eta_seconds: float | None = None
    previews: tuple[bytes, ...] = ()


@dataclass
class _Running:
    """What is known of a job that is being made, in memory."""

    share: float = 0.0
    stage: str = "loading"
    step: int = 0
    steps: int = 0
    previews: tuple[bytes, ...] = ()
    began: float | None = None  # when the first step began: loading a model tells nothing of the steps
    cancelled: bool = False
    on_cancel: list[Callable[[], None]] = field(default_factory=list)


class Jobs:
    """A queue of films in a folder. Safe to use from any thread.

    folder: made when absent, this process's alone while it is open; None is a temporary one, removed at the end.
    models: shipped names, folders or hub ids of what makes films; clients ask for them by name, a folder's being its
    last part, and the first is taken where none is said. Raises SeedanceError for a folder of a later
    version and ShotsFailure for one that cannot be used.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        limits: Limits | None = None,
        *,
        models: Sequence[str] = ("seedance-nano",),
    ) -> None:
        self.limits = limits or Limits()
        self._where = {Path(model).name if Path(model).is_dir() else model: model for model in models}
        self.models = tuple(self._where)
        self._temporary = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="films-") if folder is None else folder)
        self._changed = threading.Condition(threading.RLock())
        self._running: dict[str, _Running] = {}
        self._version = 0  # counts changes, for those who wait for one
        self._closed = False
        self.workers = 1  # how many take jobs, for the time left; set by `seedance.workers`
        self._lock = self._own()
        try:
            self._table = self._open()
            self._recover()
        except BaseException:
            self._lock.close()
            raise
        self._rate = self._measured()
        self.sweep()

    # ------------------------------------------------------------------ asking

    def submit(
        self,
        request: Mapping[str, Any],
        *,
        client: str = "",
        pictures: Mapping[str, bytes] | None = None,
        sees: str | None = None,
    ) -> Job:
        """Check a request and put it in line.

        Args:
            request: `prompt` (text in any form that `Script.parse` reads) or `script` (its dictionary or text, which
                goes before a prompt), and what else is wanted: `model`, `seed` (drawn and told where it is not given),
                `seconds` (of the whole film, shared by the shots that say none), `num_frames` (of each such shot),
                `height`, `width`, `fps`, `steps`, `guidance_scale`, `negative_prompt`, `sampler`, `verify`, `retakes`.
                With `source`, the id of a completed job, everything not said is as it was there; `shots` (numbers
                from 1) then names the shots to make anew while the others stay bit for bit.
            client: whose job it is.
            pictures: "image" and "last_image", files of pictures that the film starts and ends with.
            sees: whose jobs `source` may name; None is anyone's.

        Raises:
            SeedanceError: something in the request cannot be used; the message names it.
            NoSuchJob: `source` is no job, or none of `sees`.
            QueueFull: there is no place in line.
        """
        said = {name: value for name, value in request.items() if value is not None}
        check_keys(said)
        source = self._source(said, sees) if "source" in said else None
        if source is not None:
            said = {"model": source.model, **inherited(said, source.request, source.seconds)}
        elif "shots" in said:
            raise SeedanceError("shots: names shots of an earlier film; give its job as source too")
        said.setdefault("model", self.models[0])
        if said["model"] not in self.models:
            raise SeedanceError(f"model: {said['model']!r} is not served here; there is {', '.join(self.models)}")
        files = {name: data for name, data in (pictures or {}).items() if data}
        if strange := sorted(set(files) - set(PICTURES)):
            raise SeedanceError(f"pictures: {', '.join(strange)}; image and last_image are taken")
        if said.get("shots") and files:
            raise SeedanceError("shots: re-takes of shots take no pictures; leave one of the two out")
        self.check_place(client)
        settled = settle({**said, "model": self._where[said["model"]]}, self.limits.tokens)
        id_ = f"video_{secrets.token_hex(16)}"
        with self._changed:
            self.check_place(client)
            self._keep_inputs(id_, files, source, settled.request)
            try:
                self._table.execute(
                    "INSERT INTO jobs (id, client, status, request, prompt, model, seconds, work, source, created_at) "
                    "VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?)",
                    (id_, client, json.dumps(settled.request), settled.prompt, said["model"], settled.seconds,
                     settled.work, source and source.id, time.time()),
                )  # fmt: skip
            except BaseException:
                self._remove(id_)
                raise
            self._tell()
            return self.get(id_)

    def check_place(self, client: str = "") -> None:
        """Raises QueueFull when a job of this client submitted now would be refused."""
        with self._changed:
            if self._closed:
                raise ShotsFailure("jobs: the queue is closed")
            counts = dict(
                self._table.execute(
                    "SELECT client = ?, COUNT(*) FROM jobs WHERE status IN ('queued', 'in_progress') GROUP BY 1",
                    (client,),
                ).fetchall()
            )
            mine, all_ = counts.get(1, 0), sum(counts.values())
            if all_ >= self.limits.queue:
                raise QueueFull(f"the queue is full: {all_} films are in line", self._retry_after())
            if mine >= self.limits.per_client:
                raise QueueFull(f"{mine} of your films are in line, and no more may be", self._retry_after())

    def get(self, id_: str, client: str | None = None) -> Job:
        """The job of this id. Raises NoSuchJob when there is none, or none of this client."""
        with self._changed:
            row = self._table.execute("SELECT * FROM jobs WHERE id = ?", (id_,)).fetchone()
        if row is None or client is not None and row["client"] != client:
            raise NoSuchJob("id: there is no such job, or no longer")
        return _job(row)

    def list(
        self, client: str | None = None, *, limit: int = 20, after: str | None = None, newest_first: bool = True
    ) -> Sequence[Job]:
        """At most `limit` jobs of a client, or of all, that come after the job `after` in the order asked for."""
        order, sign = ("DESC", "<") if newest_first else ("ASC", ">")
        where, values = ["1"], []
        if client is not None:
            where.append("client = ?")
            values.append(client)
        if after is not None:
            where.append(f"number {sign} ?")
            values.append(str(self.get(after, client).number))
        with self._changed:
            rows = self._table.execute(
                f"SELECT * FROM jobs WHERE {' AND '.join(where)} ORDER BY number {order} LIMIT ?", (*values, limit)
            ).fetchall()
        return [_job(row) for row in rows]

    def progress(self, id_: str, client: str | None = None) -> Progress:
        """How the job goes: per cent, stage, seconds left, previews."""
        with self._changed:
            job = self.get(id_, client)
            if job.status == "queued":
                ahead = self._ahead(job)
                return Progress(position=len(ahead), eta_seconds=self._eta(job, ahead))
            now = self._running.get(id_)
            if job.status != "in_progress" or now is None:
                return Progress(percent=100 if job.status == "completed" else 0, stage=job.status)
            stage = "cancelling" if now.cancelled else now.stage
            percent = min(99, math.floor(100 * now.share))
            return Progress(percent, stage, now.step, now.steps, 0, self._left(job, now), now.previews)

    def follow(self, id_: str, client: str | None = None, timeout: float | None = None) -> Iterator[Job]:
        """The job at once and after every change of it or its progress, until it is done or `timeout` seconds pass.

        A job that is deleted meanwhile ends it without a word more.
        """
        until = None if timeout is None else time.monotonic() + timeout
        told: object = None
        job = self.get(id_, client)
        while True:
            with self._changed:
                version = self._version
                try:
                    job = self.get(id_, client)
                except NoSuchJob:
                    return
                state = (job, self.progress(id_))
            if state != told:
                told = state
                yield job
            if job.done:
                return
            with self._changed:
                left = None if until is None else until - time.monotonic()
                if self._closed or left is not None and left <= 0:
                    return
                if self._version == version:
                    self._changed.wait(left)

    def cancel(self, id_: str, client: str | None = None) -> Job:
        """Withdraw a job: one in line is never made, one being made stops at its next step. Nothing happens to one
        that is done."""
        with self._changed:
            job = self.get(id_, client)
            if job.status == "queued":
                self._end(id_, "cancelled", "cancelled", "it was cancelled before it began")
            elif job.status == "in_progress" and (now := self._running.get(id_)) and not now.cancelled:
                now.cancelled = True
                for told in now.on_cancel:
                    told()
                self._tell()
            return self.get(id_)

    def delete(self, id_: str, client: str | None = None) -> None:
        """Remove a job and its film for good; one that is not done is cancelled first."""
        with self._changed:
            self.cancel(id_, client)
            self._table.execute("DELETE FROM jobs WHERE id = ?", (id_,))
            if id_ not in self._running:  # else its worker still writes there; the folder goes when it lets go
                self._remove(id_)
            self._tell()

    def film(self, id_: str, client: str | None = None) -> Path:
        """The film of a completed job. Raises SeedanceError while there is none."""
        job = self.get(id_, client)
        if job.status != "completed":
            raise SeedanceError(f"id: the film is not there, its job is {job.status.replace('_', ' ')}")
        return self.place(id_) / "film.mp4"

    def place(self, id_: str) -> Path:
        """The folder of a job: image.png and last_image.png as given, film.mp4, film.mp4.json,
        film.state.safetensors. Raises NoSuchJob."""
        return self.folder / "films" / self.get(id_).id

    def counts(self) -> dict[Status, int]:
        """How many jobs there are of each status."""
        with self._changed:
            found = dict(self._table.execute("SELECT status, COUNT(*) FROM jobs GROUP BY status").fetchall())
        return {status: found.get(status, 0) for status in STATUSES}

    def disk_bytes(self) -> int:
        """Bytes of all jobs that are done."""
        with self._changed:
            return int(self._table.execute("SELECT COALESCE(SUM(bytes), 0) FROM jobs").fetchone()[0])

    # ------------------------------------------------------------------ making

    def claim(self, timeout: float | None = None, stop: threading.Event | None = None) -> Job | None:
        """The job that has waited longest, now being made; waits for one at most `timeout` seconds. None when there is
        none, the queue was closed, or `stop` is set and `wake` was called."""
        until = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._closed and not (stop is not None and stop.is_set()):
                row = self._table.execute(
                    "SELECT id FROM jobs WHERE status = 'queued' ORDER BY number LIMIT 1"
                ).fetchone()
                if row is not None:
                    self._table.execute(
                        "UPDATE jobs SET status = 'in_progress', started_at = ? WHERE id = ?", (time.time(), row["id"])
                    )
                    self._running[row["id"]] = _Running()
                    self._tell()
                    return self.get(row["id"])
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
        return None

    def on_cancel(self, id_: str, tell: Callable[[], None]) -> None:
        """Have `tell` called, in whichever thread, when the job being made is to stop; at once if it is already."""
        with self._changed:
            now = self._running.get(id_)
            if now is not None:
                now.on_cancel.append(tell)
                if now.cancelled:
                    tell()

    def report(
        self, id_: str, share: float, stage: str, step: int = 0, steps: int = 0, previews: Sequence[bytes] = ()
    ) -> None:
        """Say how a job that is being made goes. share: of all of its work, 0 to 1."""
        with self._changed:
            now = self._running.get(id_)
            if now is None:
                return
            if now.began is None:
                now.began = time.monotonic()
            now.share = max(now.share, min(share, 1.0))  # what is looked at or taken again puts nothing back
            now.stage, now.step, now.steps = stage, step, steps
            now.previews = tuple(previews) or now.previews
            self._tell()

    def finish(self, id_: str, result: Mapping[str, Any]) -> None:
        """The film lies in the job's folder, whole: commit it. A job that was deleted meanwhile goes now."""
        with self._changed:
            now = self._running.get(id_)
            folder = self.folder / "films" / id_
            _sync(folder)  # the new names in it are to be on the disk before the row tells of them
            changed = self._table.execute(
                "UPDATE jobs SET status = 'completed', completed_at = ?, result = ?, bytes = ? WHERE id = ?",
                (time.time(), json.dumps(result), _size(folder), id_),
            ).rowcount
            if changed and now is not None and now.began is not None:
                work = self.get(id_).work
                fresh = (time.monotonic() - now.began) / work
                self._rate = fresh if self._rate is None else 0.7 * self._rate + 0.3 * fresh
            self._let_go(id_)
            self.sweep()

    def fail(self, id_: str, code: str, message: str) -> None:
        """The job was not made. code: "render_failed", "worker_died", "cancelled", ...; message: for a person."""
        status: Status = code if code in ("cancelled", "interrupted") else "failed"  # type: ignore[assignment]
        with self._changed:
            self._end(id_, status, code, message)
            self._let_go(id_)

    def interrupt(self, id_: str) -> None:
        """A job being made is made no more, through no fault of its own: it is interrupted, or in line again."""
        with self._changed:
            for path in (self.folder / "films" / id_).glob(".*.part"):  # what its writer left
                path.unlink(missing_ok=True)
            if self.limits.requeue:
                self._table.execute("UPDATE jobs SET status = 'queued', started_at = NULL WHERE id = ?", (id_,))
            else:
                self._end(id_, "interrupted", "interrupted", "the server stopped while it was made; ask again")
            self._let_go(id_)

    # ------------------------------------------------------------------ keeping house

    def sweep(self) -> None:
        """Remove what is too old, and the oldest while there is more than fits."""
        with self._changed:
            old = time.time() - self.limits.keep_seconds
            done = self._table.execute(
                "SELECT id, status, bytes, completed_at FROM jobs WHERE completed_at IS NOT NULL ORDER BY completed_at"
            ).fetchall()
            total = sum(row["bytes"] for row in done)
            newest = next((row["id"] for row in reversed(done) if row["status"] == "completed"), None)
            for row in done:
                crowded = total > self.limits.disk_bytes and row["bytes"] and row["id"] != newest
                if row["completed_at"] <= old or crowded:
                    total -= row["bytes"]
                    self.delete(row["id"])

    def expires_at(self, job: Job) -> float | None:
        """When a job that is done goes, seconds since 1970; earlier when room is needed."""
        return None if job.completed_at is None else job.completed_at + self.limits.keep_seconds

    def close(self) -> None:
        """Let go of the folder; what is in line stays there for the next process. Workers are to be ended first."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            self._table.close()
            self._lock.close()
            if self._temporary:
                shutil.rmtree(self.folder, ignore_errors=True)

    def wake(self) -> None:
        """Have those who wait in `claim` look at their `stop`."""
        with self._changed:
            self._tell()

    # ------------------------------------------------------------------ within

    def _own(self) -> IO[str]:
        """The lock that makes the folder this process's."""
        try:
            (self.folder / "films").mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("w")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ShotsFailure(f"data: {self.folder} is another server's; choose another folder") from error
        except OSError as error:
            raise ShotsFailure(f"data: {self.folder} cannot be used ({error.strerror}); choose another") from error
        return lock

    def _open(self) -> sqlite3.Connection:
        path = self.folder / "jobs.sqlite"
        try:
            # Autocommit: every statement here is a transaction of its own.
            table = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            table.row_factory = sqlite3.Row
            table.execute("PRAGMA journal_mode = WAL")
            table.execute("PRAGMA synchronous = FULL")
            version = table.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise SeedanceError(f"data: {path} was written by a later version; choose another folder")
            table.executescript(_TABLE)
            table.execute(f"PRAGMA user_version = {_VERSION}")
        except sqlite3.Error as error:
            raise ShotsFailure(f"data: {path} cannot be used ({error}); choose another folder") from error
        return table

    def _recover(self) -> None:
        """Put right what a process that was killed left."""
        for row in self._table.execute(
            "SELECT id, status FROM jobs WHERE status IN ('in_progress', 'interrupted')"
        ).fetchall():
            folder = self.folder / "films" / row["id"]
            if (folder / "film.mp4").exists():  # made, and killed before the row said so
                self._table.execute(
                    "UPDATE jobs SET status = 'completed', completed_at = ?, bytes = ?, "
                    "error_code = NULL, error_message = NULL WHERE id = ?",
                    (time.time(), _size(folder), row["id"]),
                )  # fmt: skip
            elif row["status"] == "in_progress":
                self.interrupt(row["id"])
        known = {row["id"] for row in self._table.execute("SELECT id FROM jobs")}
        for folder in (self.folder / "films").iterdir():
            if _ID.fullmatch(folder.name) and folder.name not in known:
                self._remove(folder.name)

    def _source(self, said: Mapping[str, Any], sees: str | None) -> Job:
        """The completed job that a request goes on from."""
        source = self.get(str(said["source"]), sees)
        if source.status != "completed":
            raise SeedanceError(f"source: that film is {source.status.replace('_', ' ')}; wait until it is completed")
        if said.get("shots") and not (self.place(source.id) / "film.state.safetensors").exists():
            raise SeedanceError("shots: that film's latents were not kept; render it anew")
        return source

    def _keep_inputs(self, id_: str, files: Mapping[str, bytes], source: Job | None, request: dict[str, Any]) -> None:
        """The job's folder with all that it is made from, so that the source may go."""
        folder = self.folder / "films" / id_
        try:
            folder.mkdir(mode=0o700)
            for name, data in files.items():
                (folder / f"{name}.png").write_bytes(data)  # read by what it holds, whatever kind of picture it is
            if source is not None:
                wanted = [] if request.get("shots") else [f"{name}.png" for name in PICTURES if name not in files]
                for name in wanted:
                    if (there := self.place(source.id) / name).exists():
                        shutil.copyfile(there, folder / name)
                if request.get("shots"):
                    shutil.copyfile(self.place(source.id) / "film.state.safetensors", folder / "source.safetensors")
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise ShotsFailure(f"data: {self.folder} cannot be written ({error.strerror})") from error

    def _end(self, id_: str, status: Status, code: str, message: str) -> None:
        self._table.execute(
            "UPDATE jobs SET status = ?, completed_at = ?, error_code = ?, error_message = ?, bytes = ? WHERE id = ?",
            (status, time.time(), code, message, _size(self.folder / "films" / id_), id_),
        )
        self._tell()

    def _let_go(self, id_: str) -> None:
        """A worker is done with a job, which may have been deleted meanwhile."""
        self._running.pop(id_, None)
        if self._table.execute("SELECT 1 FROM jobs WHERE id = ?", (id_,)).fetchone() is None:
            self._remove(id_)
        self._tell()

    def _remove(self, id_: str) -> None:
        shutil.rmtree(self.folder / "films" / id_, ignore_errors=True)

    def _tell(self) -> None:
        self._version += 1
        self._changed.notify_all()

    # ------------------------------------------------------------------ time left

    def _measured(self) -> float | None:
        """Seconds a unit of work has lately taken."""
        rows = self._table.execute(
            "SELECT completed_at - started_at AS took, work FROM jobs WHERE status = 'completed' AND started_at > 0 "
            "ORDER BY number DESC LIMIT 20"
        ).fetchall()
        work = sum(row["work"] for row in rows)
        return sum(row["took"] for row in rows) / work if work else None

    def _ahead(self, job: Job) -> Sequence[Job]:
        """Jobs that come before a queued one."""
        rows = self._table.execute(
            "SELECT * FROM jobs WHERE status = 'in_progress' OR status = 'queued' AND number < ?", (job.number,)
        )
        return [_job(row) for row in rows]

    def _eta(self, job: Job, ahead: Sequence[Job]) -> float | None:
        if self._rate is None:
            return None
        waits = 0.0
        for other in ahead:
            now = self._running.get(other.id)
            left = None if now is None else self._left(other, now)
            waits += other.work * self._rate if left is None else left
        return waits / self.workers + job.work * self._rate

    def _left(self, job: Job, now: _Running) -> float | None:
        """Seconds that a job being made still takes: by its own pace once it has one."""
        if now.began is not None and now.share > 0.02:
            return (time.monotonic() - now.began) * (1 - now.share) / now.share
        return None if self._rate is None else job.work * self._rate

    def _retry_after(self) -> int:
        """Whole seconds until a place should be free."""
        lefts = [left for id_, now in self._running.items() if (left := self._left(self.get(id_), now)) is not None]
        return min(600, max(1, math.ceil(min(lefts, default=5.0))))


def _job(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in row.keys()}  # noqa: SIM118  (a Row iterates over its values)
    return Job(**{**values, "request": json.loads(row["request"]), "result": json.loads(row["result"])})


def _size(folder: Path) -> int:
    """Bytes of what lies in a job's folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) if folder.is_dir() else 0


def _sync(folder: Path) -> None:
    """Have the names in `folder` on the disk."""
    with contextlib.suppress(OSError):  # some file systems sync no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
