"""Vision features on disk, so that a video that was looked at once is not looked at again.

    cache = FeatureCache()
    key = cache.key(source.digest, model.fingerprint, rule.shrink, plan.key)
    if (tensors := cache.get(key)) is None:
        cache.put(key, tensors := look())

Notable choices:
- An entry is one safetensors file, written beside its place and renamed, with a checksum of its content; what is cut
  short or altered is deleted and counts as absent.
- The entries used longest ago go when there are more bytes than `limit_bytes`; a file's modification time says when it
  was used. Storing and removing happen under a lock that holds among processes and threads; reading needs none.
- A cache is a help, never a need: on a full disk, or in a folder that cannot be written, nothing is kept, the caller
  goes on, and the log says so once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from shots.files import claim
from unitime.errors import UniTimeError

log = logging.getLogger(__name__)

LIMIT_BYTES = 2 << 30
_SUFFIX = ".safetensors"


def default_folder() -> Path:
    """UNITIME_CACHE where it is set, else `unitime` in the user's cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    if named := os.environ.get("UNITIME_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unitime"


class FeatureCache:
    """Tensors by key in a folder, at most `limit_bytes` of them. May be shared by processes and threads.

    Raises UniTimeError for a negative limit.
    """

    def __init__(self, folder: str | Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        if limit_bytes < 0:
            raise UniTimeError(f"limit_bytes: {limit_bytes}; 0 or more is needed")
        self.folder = default_folder() if folder is None else Path(folder)
        self.limit_bytes = limit_bytes
        self._complained = False

    @staticmethod
    def key(*parts: str) -> str:
        """The key of what was made from all of `parts`: the video's digest, the model's fingerprint, ..."""
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """What is kept under `key`, on the CPU, or None. It then counts as used just now."""
        path = self._path(key)
        try:
            content = path.read_bytes()  # opened once: another process may put another file there at any time
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain(error)
            return None
        if (tensors := _whole(content)) is None:
            log.warning("%s is damaged; it is deleted and will be made anew", path)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):  # it was removed meanwhile, or may only be read
            os.utime(path)
        return tensors

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep `tensors` under `key`, then remove what was used longest ago until all fits the limit.

        What is larger than the limit, or cannot be written, is not kept.
        """
        path = self._path(key)
        # own memory for each: safetensors refuses tensors that share it
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        content = save(plain, {"checksum": _checksum(plain)})
        if len(content) > self.limit_bytes:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary, lock = claim(path)
            try:
                temporary.write_bytes(content)
                with self._locked():
                    self._remove_oldest(self.limit_bytes - len(content), besides=path)
                    os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
                lock.close()
        except OSError as error:
            self._complain(error)

    def _path(self, key: str) -> Path:
        if not re.fullmatch(r"[0-9A-Za-z_-]{1,128}", key):
            raise UniTimeError(f"key: {key!r}; letters, digits, - and _ are needed, as FeatureCache.key gives them")
        return self.folder / (key + _SUFFIX)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed, also by a process that dies
            yield

    def _remove_oldest(self, room: int, besides: Path) -> None:
        """Remove entries until all but `besides` have at most `room` bytes, and what dead writers left."""
        entries = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith(".part"):
                with contextlib.suppress(OSError), open(entry.path, "rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its writer lives
                    os.unlink(entry.path)
            elif entry.name.endswith(_SUFFIX) and entry.path != str(besides):
                with contextlib.suppress(FileNotFoundError):  # a damaged one, just deleted by its reader
                    status = entry.stat()
                    entries.append((status.st_mtime_ns, status.st_size, entry.path))
        held = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if held <= room:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            held -= size

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            log.warning("vision features are not kept in %s (%s)", self.folder, error.strerror or error)
        self._complained = True


def _whole(content: bytes) -> dict[str, torch.Tensor] | None:
    """The tensors in a file's content, or None where it is not what was written."""
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, ValueError, KeyError):  # the last: a kind of number that this torch does not know
        return None
    return tensors if header.get("__metadata__", {}).get("checksum") == _checksum(tensors) else None


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of the content: a sum over all bytes, at the speed of memory."""
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
