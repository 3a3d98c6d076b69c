"""Models on the hub: one that is in the cache is used as it lies; of another, small files come first and weights last.

    found = find("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", None)  # its folder, where all of it is in the cache
    folder = found if isinstance(found, Path) else found.fetch()

Notable choices:
- A model whose files are all in the cache is opened without a word to the hub. A branch that has moved on since is
  brought up to date by ``hf download``.
- Of another one the small files come (JSON, vocabularies), a few megabytes. `Remote.outline` puts hollow weight files
  beside them: the headers, read by range, and then as many zeros as there are bytes, which a sparse file keeps for
  nothing. Whatever checks a folder by its headers so checks one whose weights are still on the hub.
- The disk is asked for room before the first weight comes, for all of them together.
- Of a pipeline only the folders of its parts are fetched, not what lies beside.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

from shots.errors import ShotsError

_INDEX = "model_index.json"
_SMALL = ("*.json", "*.txt", "*.model", "*.jinja")
_WEIGHTS = "*.safetensors"
_AT_ONCE = 8  # headers

_outlines: dict[Path, tempfile.TemporaryDirectory[str]] = {}  # by snapshot; they go with the process
_lock = threading.Lock()


@dataclass(frozen=True)
class Remote:
    """A model on the hub of which weights are not in the cache.

    Attributes:
        name: "owner/name".
        folder: its small files, in the cache.
        weights: bytes of each of its weight files.
        download: bytes of those that are still to be fetched.
        patterns: of all files that belong to it.
    """

    name: str
    folder: Path
    weights: Mapping[str, int]
    download: int
    patterns: Sequence[str]

    def outline(self) -> Path:
        """A folder like the model's, its weight files hollow: to be checked, not loaded. Raises ShotsError."""
        with _lock, _said(self.name, None):
            if self.folder not in _outlines:
                with ThreadPoolExecutor(_AT_ONCE) as several:
                    headers = dict(zip(self.weights, several.map(self._header, self.weights), strict=True))
                made = tempfile.TemporaryDirectory(prefix="outline-")
                self._write(Path(made.name) / self.name.rpartition("/")[2], headers)
                _outlines[self.folder] = made
            return Path(_outlines[self.folder].name) / self.name.rpartition("/")[2]

    def check_room(self) -> None:
        """Raises ShotsError if the cache's disk has no room for what is still to be fetched."""
        cache = self.folder.parents[2]
        if self.download > (free := shutil.disk_usage(cache).free):
            raise ShotsError(
                f"disk: {self.name!r} takes {self.download / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free under "
                f"{cache}; make room, or set HF_HOME to a folder on a larger disk"
            )

    def fetch(self) -> Path:
        """Fetches what is missing; the model's folder. Raises ShotsError, first of all where the disk has no room."""
        from huggingface_hub import snapshot_download

        self.check_room()
        with _said(self.name, None):
            found = snapshot_download(self.name, revision=self.folder.name, allow_patterns=list(self.patterns))
        return Path(found)

    def _header(self, file: str) -> dict[str, Any]:
        """What the header of a weight file says of each tensor, read from the hub."""
        from huggingface_hub import parse_safetensors_file_metadata
        from huggingface_hub.errors import SafetensorsParsingError

        try:
            said = parse_safetensors_file_metadata(self.name, file, revision=self.folder.name).tensors
        except SafetensorsParsingError as error:
            raise ShotsError(f"model: {file} of {self.name!r} on the hub is not a safetensors file") from error
        header = {
            name: {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": list(one.data_offsets)}
            for name, one in said.items()
        }
        if (end := _end(header)) + 10 > self.weights[file]:
            raise ShotsError(
                f"model: {file} of {self.name!r} has {self.weights[file]} bytes on the hub, its header tells of {end} "
                "and more; take another revision"
            )
        return header

    def _write(self, place: Path, headers: Mapping[str, Mapping[str, Any]]) -> None:
        for file in self.folder.rglob("*"):
            if file.is_file() and file.suffix != ".safetensors":
                target = place / file.relative_to(self.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                if any(fnmatch(file.name, kind) for kind in _SMALL):
                    shutil.copyfile(file, target)
                else:  # what else is in the cache, pickles say, is there by name
                    target.touch()
        for name, header in headers.items():
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            said = json.dumps(header).encode()
            with target.open("wb") as hollow:
                hollow.write(len(said).to_bytes(8, "little") + said)
                hollow.truncate(8 + len(said) + _end(header))


def find(name: str, revision: str | None) -> Path | Remote:
    """The folder of a hub id of which all is in the cache, else what there is to fetch, its small files fetched.

    Without a network, and with nothing that tells whether a snapshot in the cache is whole, that snapshot: whoever
    opens it says what it lacks. Raises ShotsError where the hub has no such model, refuses it or cannot be reached.
    """
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    with _said(name, revision):
        if (whole := _cached(name, revision)) is not None:
            return whole
        first = Path(snapshot_download(name, revision=revision, allow_patterns=[_INDEX]))
        commit, patterns = first.name, _patterns(first)
        small = [pattern for pattern in patterns if not pattern.endswith(_WEIGHTS)]
        folder = Path(snapshot_download(name, revision=commit, allow_patterns=small))
        try:
            listed = get_cached_repo_tree(name, revision=commit)
        except CachedRepoTreeNotFoundError:
            return folder
        wanted = [pattern for pattern in patterns if pattern.endswith(_WEIGHTS)]
        files = [file for file in listed if any(fnmatch(file.path, pattern) for pattern in wanted)]
        missing = {}
        for file in files:
            blob = file.blob_id if file.lfs is None else file.lfs.sha256
            if not (folder / file.path).exists() and not (folder.parents[1] / "blobs" / blob).exists():
                missing[blob] = file.size
        return Remote(name, folder, {file.path: file.size for file in files}, sum(missing.values()), patterns)


def _cached(name: str, revision: str | None) -> Path | None:
    """The snapshot in the cache, where it is known to be whole; asks nobody."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    try:
        get_cached_repo_tree(name, revision=revision)  # raises where no list of its files tells what "all" is
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[_INDEX], local_files_only=True))
        found = snapshot_download(name, revision=revision, allow_patterns=_patterns(folder), local_files_only=True)
    except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
        return None
    return Path(found)


def _patterns(folder: Path) -> list[str]:
    """Patterns of the files that belong to a model, of which `folder` has the index if there is one."""
    kinds, index = [*_SMALL, _WEIGHTS], folder / _INDEX
    said = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else None
    if not isinstance(said, dict) or not str(said.get("_class_name")).endswith("Pipeline"):
        return kinds
    parts = [key for key, value in said.items() if isinstance(value, list) and value and value[-1] is not None]
    return [_INDEX, "seedance.json", *(f"{part}/{kind}" for part in parts for kind in kinds)]


def _end(header: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes of the tensors a header tells of."""
    return max((int(said["data_offsets"][1]) for said in header.values()), default=0)


@contextmanager
def _said(name: str, revision: str | None) -> Iterator[None]:
    """What the hub's client raises, as a ShotsError with the way out."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # Of the HTTP library under the client: without an answer there is no error of the hub's own.
    broken = cast("type[Exception]", HfHubHTTPError.__mro__[1])
    try:
        yield
    except ShotsError:
        raise
    except GatedRepoError as error:
        raise ShotsError(
            f"model: {name!r} is gated; accept its terms on its page on the hub, then log in (hf auth login) or set "
            "HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise ShotsError(
            f"model: {name!r} has no revision {revision!r} on the hub; leave it out to take main"
        ) from error
    except RepositoryNotFoundError as error:
        raise ShotsError(
            f"model: the hub has no {name!r}, or it is private; check the name, or set HF_TOKEN to see your own"
        ) from error
    except (broken, HFValidationError, OSError, ValueError) as error:
        silent = isinstance(error, broken) and not isinstance(error, HfHubHTTPError)
        if silent or isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            raise ShotsError(
                f"model: {name!r} is not in the cache and the hub cannot be reached; run `hf download {name}` where "
                "there is a network and set HF_HOME to its cache, or give a folder"
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ShotsError(f"model: {name!r} could not be fetched from the hub ({reason})") from error
