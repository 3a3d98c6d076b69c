"""A hub on this machine for the real client: the repositories of a few folders, and a list of what was asked for."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "5" * 40


class FakeHub:
    """What it holds, and what was asked for: "GET" or "HEAD", the file, and how many bytes of it were sent."""

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self.asked: list[tuple[str, str, int]] = []
        self.requests = 0

    def weights(self) -> list[tuple[str, str, int]]:
        """What was asked for of weight files."""
        return [one for one in self.asked if one[1].endswith(".safetensors")]

    def sent(self, file: str) -> int:
        """Bytes of a file that were sent in all."""
        return sum(count for _, name, count in self.asked if name == file)


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.requests += 1
            path = self.path.partition("?")[0]
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/[^/]+", path):
                self._json({"id": found[1], "sha": COMMIT, "siblings": []})
            elif found := re.fullmatch(rf"/api/models/([^/]+/[^/]+)/tree/{COMMIT}", path):
                folder = hub.folders[found[1]]
                files = sorted(file for file in folder.rglob("*") if file.is_file())
                self._json([self._entry(folder, file) for file in files])
            elif found := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", path):
                self._file(hub.folders[found[1]], found[2])
            else:  # what else the client asks of the real hub
                self.send_error(404)

        do_HEAD = do_GET

        def _entry(self, folder: Path, file: Path) -> dict[str, Any]:
            size, name = file.stat().st_size, file.relative_to(folder).as_posix()
            entry: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": _digest(file)[:40]}
            if file.suffix == ".safetensors":
                entry["lfs"] = {"oid": _digest(file), "size": size, "pointerSize": 130}
            return entry

        def _json(self, said: Any) -> None:
            body = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self._send(body)

        def _file(self, folder: Path, name: str) -> None:
            body, digest = (folder / name).read_bytes(), _digest(folder / name)
            length = len(body)
            if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                body = body[int(span[1]) : int(span[2]) + 1 if span[2] else None]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {span[1]}-{int(span[1]) + len(body) - 1}/{length}")
            else:
                self.send_response(200)
            hub.asked.append((self.command, name, 0 if self.command == "HEAD" else len(body)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{digest if name.endswith(".safetensors") else digest[:40]}"')
            self._send(body)

        def _send(self, body: bytes) -> None:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *said: Any) -> None:
            pass

    return Handler


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def serving(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The client asks a server on this machine, and keeps what it gets in `cache`."""
    import huggingface_hub

    hub = FakeHub()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        files = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
        yield hub
        server.shutdown()
