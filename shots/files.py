"""Files that are whole or absent: written beside their target, and given its name when done.

Notable choice: a writer holds a lock on its temporary file, so that the next writer of the same target can tell the
files of the dead, which it removes, from those of the living.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import tempfile
from pathlib import Path
from typing import IO

from shots.errors import ShotsError, ShotsFailure


def check_place(path: str | Path, what: str) -> Path:
    """`path` if a file can be written there, else a ShotsError that begins with `what`; to be asked before the work."""
    path = Path(path)
    if path.is_dir():
        raise ShotsError(f"{what}: {path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ShotsError(f"{what}: the folder {path.parent} does not exist; create it or choose another")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ShotsError(
            f"{what}: nothing can be written in {path.parent} ({error.strerror}); choose another"
        ) from None
    return path


def claim(target: Path) -> tuple[Path, IO[bytes]]:
    """A new temporary file beside `target`, locked while it is open; those of dead writers are removed."""
    for name in glob.glob(str(target.parent / f".{glob.escape(target.name)}.*.part")):
        with contextlib.suppress(OSError), open(name, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its writer lives
            os.unlink(name)
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        lock = os.fdopen(descriptor, "rb")
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            break
        lock.close()  # another writer took it for a dead one's before the lock was there
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(name, 0o666 & ~mask)  # mkstemp's files are private, a new file is as open as any
    return Path(name), lock


def write_whole(path: str | Path, text: str, what: str = "output") -> Path:
    """Write `text` to `path`, so that there is the old file or the new one. Raises ShotsFailure on a full disk."""
    path = Path(path)
    try:
        temporary, lock = claim(path)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
            lock.close()
    except OSError as error:
        raise ShotsFailure(f"{what}: {path} could not be written ({error.strerror}); it is as it was") from error
    return path
