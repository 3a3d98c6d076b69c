"""Uploaded videos on disk, under names that cannot be guessed, until they are too old or there is no more room.

Notable choices:
- NAME.video beside NAME.json, in a folder that one process owns (a lock says so); only names of this form are touched,
  so a folder that holds other things too loses nothing. What a killed process left half written is removed.
- Room is asked for while an upload grows, not when it is whole: the files used longest ago make way for it. A file that
  a job works on stays on disk until the job is done, even when it was deleted meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from shots.errors import ShotsError, ShotsFailure
from shots.files import write_whole
from shots.serving.errors import Refusal

_OURS = re.compile(r"file-[0-9a-f]{32}\.(video|json|part)|\.file-[0-9a-f]{32}\.json\..+\.part")


@dataclass(frozen=True)
class Stored:
    """One video. created: seconds since 1970. duration: seconds. width, height: pixels. fps: frames a second."""

    id: str
    name: str
    bytes: int
    created: float
    duration: float
    width: int
    height: int
    fps: float


@dataclass(eq=False)
class _Entry:
    stored: Stored
    used: float
    leases: int = 0
    gone: bool = False


@dataclass(eq=False)
class Incoming:
    """A file that is being written; `write` asks the store for room first."""

    id: str
    path: Path
    size: int = 0
    _file: IO[bytes] | None = field(default=None, repr=False)
    _store: Store | None = field(default=None, repr=False)

    def write(self, data: bytes) -> None:
        """Append. Raises Refusal 503 when there is no room for it."""
        if self._file is None or self._store is None:
            raise ShotsFailure(f"{self.path.name}: closed already")
        self._store._make_room(self, len(data))
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise Refusal(503, f"file: it could not be stored ({error.strerror})") from error


class Store:
    """Videos in a folder.

    folder: made when absent; None is a temporary one, removed at the end. total: bytes for all together. seconds: how
    long a file is kept. on_gone: told the id of every file that goes.
    """

    def __init__(self, folder: Path | None, *, total: int, seconds: float, on_gone: Callable[[str], None]) -> None:
        self._given = folder
        self._total = total
        self._seconds = seconds
        self._on_gone = on_gone
        self._folder: Path | None = None
        self._owner: IO[str] | None = None
        self._entries: dict[str, _Entry] = {}
        self._incoming: set[Incoming] = set()
        self._lock = threading.RLock()

    def expires(self, stored: Stored) -> float:
        """When a file goes, seconds since 1970."""
        return stored.created + self._seconds

    def get(self, id_: str) -> Stored:
        """The file of this id. Raises Refusal 404 when there is none, or no longer."""
        with self._lock:
            return self._entry(id_).stored

    @contextlib.contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """A new file to write to; what is not kept by then is removed at the end of the `with` block."""
        with self._lock:
            folder = self._opened()
            id_ = f"file-{secrets.token_hex(16)}"
            file = Incoming(id_, folder / f"{id_}.part", _store=self)
            self._incoming.add(file)
        try:
            with open(file.path, "xb") as file._file:
                yield file
        finally:
            with self._lock:
                self._incoming.discard(file)
            file.path.unlink(missing_ok=True)

    def keep(
        self, file: Incoming, *, name: str, duration: float, width: int, height: int, fps: float
    ) -> Stored:
        """Keep what was written as a file of the store."""
        stored = Stored(file.id, name, file.size, time.time(), duration, width, height, fps)
        with self._lock:
            folder = self._opened()
            entry = _Entry(stored, stored.created)
            try:
                write_whole(folder / f"{file.id}.json", json.dumps(asdict(stored)), "files")
                os.replace(file.path, folder / f"{file.id}.video")
            except BaseException:
                self._unlink(entry)  # else one half would lie there, counted by nobody, until the next start
                raise
            self._entries[file.id] = entry
            self._incoming.discard(file)
        return stored

    def lease(self, id_: str) -> tuple[Stored, Path, Callable[[], None]]:
        """A file, where it lies, and what to call once it is no longer needed there."""
        with self._lock:
            entry = self._entry(id_)
            entry.leases += 1
            entry.used = time.time()

        def release() -> None:
            with self._lock:
                entry.leases -= 1
                if entry.gone and entry.leases == 0:
                    self._unlink(entry)

        return entry.stored, self._opened() / f"{id_}.video", release

    def delete(self, id_: str) -> None:
        """Remove a file. Raises Refusal 404 when there is none."""
        with self._lock:
            self._drop(self._entry(id_))

    def sweep(self) -> None:
        """Remove what is too old."""
        with self._lock:
            for entry in list(self._entries.values()):
                if self.expires(entry.stored) <= time.time():
                    self._drop(entry)

    def close(self) -> None:
        """Let go of the folder; a temporary one is removed."""
        with self._lock:
            if self._owner is not None:
                self._owner.close()
            if self._folder is not None and self._given is None:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = self._owner = None
            self._entries.clear()

    def _entry(self, id_: str) -> _Entry:
        self._opened()
        self.sweep()
        if id_ not in self._entries:
            raise Refusal(404, "file_id: there is no such file, or no longer; upload it to /v1/files")
        return self._entries[id_]

    def _drop(self, entry: _Entry) -> None:
        del self._entries[entry.stored.id]
        entry.gone = True
        if entry.leases == 0:
            self._unlink(entry)
        self._on_gone(entry.stored.id)

    def _unlink(self, entry: _Entry) -> None:
        if self._folder is not None:
            for suffix in ("json", "video"):
                (self._folder / f"{entry.stored.id}.{suffix}").unlink(missing_ok=True)

    def _make_room(self, file: Incoming, size: int) -> None:
        """Count `size` more bytes for `file`, removing what was used longest ago while there is no room."""
        with self._lock:
            self.sweep()
            coming = sum(other.size for other in self._incoming) + size
            idle = sorted((e for e in self._entries.values() if e.leases == 0), key=lambda entry: entry.used)
            while coming + sum(entry.stored.bytes for entry in self._entries.values()) > self._total:
                if not idle:
                    raise Refusal(503, "file: the server's storage is full; try again later", {"Retry-After": "60"})
                self._drop(idle.pop(0))
            file.size += size

    def _opened(self) -> Path:
        """The folder, made this process's on first use."""
        with self._lock:
            if self._folder is None:
                folder = self._given or Path(tempfile.mkdtemp(prefix="files-"))
                try:
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                    self._owner = (folder / ".lock").open("w")
                    fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ShotsFailure(f"files: {folder} is another server's; choose another folder") from error
                except OSError as error:
                    raise ShotsFailure(f"files: {folder} cannot be used ({error.strerror})") from error
                self._load(folder)
                self._folder = folder
            return self._folder

    def _load(self, folder: Path) -> None:
        """The files of an earlier process; what is not whole is removed."""
        for path in sorted(folder.iterdir()):
            if not _OURS.fullmatch(path.name):
                continue
            try:
                stored = Stored(**json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
                if stored.id != path.stem or path.with_suffix(".video").stat().st_size != stored.bytes:
                    raise ShotsError(f"files: {path} is not whole")
            except (OSError, ValueError, TypeError, ShotsError):
                path.unlink(missing_ok=True)
            else:
                self._entries[stored.id] = _Entry(stored, stored.created)
