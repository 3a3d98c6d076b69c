"""The REST surface: what it answers, what it refuses, and that nothing gets round it. The grounder is a fake."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from starlette.testclient import TestClient

from shots.serving import fetch as fetching
from shots.serving import store as storing
from shots.serving.errors import TYPES, Refusal
from shots.serving.workers import Workers
from shots.video import VideoWriter
from unitime.api import Settings, app, router
from unitime.errors import UniTimeError

ROOT = Path(__file__).resolve().parents[2]
Queued = Callable[[int], Awaitable[None]]


@dataclass(frozen=True)
class Moment:
    start: float
    end: float
    score: float


class Fake:
    """Grounds everything at 0.2-0.8 s; counts what it is asked; waits at `gate` when there is one."""

    def __init__(self) -> None:
        self.encoded: list[Path] = []
        self.batches: list[list[str]] = []
        self.options: dict[str, Any] = {}
        self.gate: threading.Event | None = None
        self.entered = threading.Event()
        self.problem: Exception | None = None

    def encode(self, video: Path) -> Any:
        assert video.stat().st_size > 0
        self.encoded.append(video)
        return SimpleNamespace(duration=1.0, path=video)

    def ground(self, video: Any, queries: Any, *, top_k: int, window: Any, threshold: Any) -> list[Any]:
        self.batches.append(list(queries))
        self.options = {"top_k": top_k, "window": window, "threshold": threshold}
        self._pass()
        if self.problem is not None:
            raise self.problem
        return [
            SimpleNamespace(
                query=query, moments=(Moment(0.2, 0.8, 0.75),) * top_k, status="ok", not_found=0.125,
                relevance=((0.25, 0.5), (0.75, 1.0)), raw="From 0.2 seconds to 0.8 seconds.",
            )
            for query in queries
        ]  # fmt: skip

    def ask(self, video: Any, question: str, options: Any, *, window: Any) -> Any:
        self.options = {"window": window}
        self._pass()
        scores = None if options is None else [1.0] + [0.0] * (len(options) - 1)
        option = None if options is None else 0
        answer = "a cube" if options is None else options[0]
        return SimpleNamespace(answer=answer, option=option, scores=scores, evidence=Moment(0.0, 1.0, 0.5))

    def _pass(self) -> None:
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(15)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "film.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3), dtype=np.uint8)
    with VideoWriter(path, fps=12, height=48, width=64) as writer:
        writer.write(frames)
    return path


@pytest.fixture
def folder(tmp_path: Path, clip: Path) -> Path:
    """The folder that the server may read, with film.mp4 in it."""
    made = tmp_path / "videos"
    made.mkdir()
    (made / "film.mp4").write_bytes(clip.read_bytes())
    return made


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def client(fake: Fake, folder: Path, tmp_path: Path) -> Iterator[TestClient]:
    with served(fake, videos=folder, files=tmp_path / "files") as client:
        yield client


@contextlib.contextmanager
def served(fake: Fake, **options: Any) -> Iterator[TestClient]:
    with TestClient(app(lambda device: fake, Settings(**options)), raise_server_exceptions=False) as client:
        yield client


def ground(client: TestClient, **changes: Any) -> Any:
    return client.post("/v1/ground", json={"video": {"path": "film.mp4"}, "queries": ["a cube jumps"], **changes})


def upload(client: TestClient, content: bytes, name: str = "film.mp4") -> Any:
    return client.post("/v1/files", files={"file": (name, content)})


def refused(response: Any, status: int, words: str = "") -> str:
    """The message of an error, after checking its form."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"type", "message"}
    assert body["error"]["type"] == TYPES[status]
    assert words in body["error"]["message"]
    return str(body["error"]["message"])


# --------------------------------------------------------------------------------------------- what it answers


def test_importing_the_surface_loads_nothing_heavy() -> None:
    code = "import sys, unitime.api; print([n for n in ('torch', 'transformers', 'av', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_moments_come_back_for_every_query_in_order(client: TestClient, fake: Fake) -> None:
    body = ground(client, queries=["eins", "二つ目", "ثلاثة"], top_k=2, window=[0, 0.9], threshold=0.5).json()
    assert [grounding["query"] for grounding in body["groundings"]] == ["eins", "二つ目", "ثلاثة"]
    assert body["groundings"][0] == {
        "query": "eins",
        "moments": [{"start": 0.2, "end": 0.8, "score": 0.75}] * 2,
        "status": "ok",
        "not_found": 0.125,
    }
    assert body["video"] == {"duration": 1.0}
    assert body["model"] == "unitime-nano"
    assert body["usage"]["queries"] == 3
    assert fake.options == {"top_k": 2, "window": (0.0, 0.9), "threshold": 0.5}


def test_relevance_and_words_come_only_when_asked_for(client: TestClient) -> None:
    grounding = ground(client, **{"return": {"relevance": True, "raw": True}}).json()["groundings"][0]
    assert grounding["relevance"] == [{"time": 0.25, "value": 0.5}, {"time": 0.75, "value": 1.0}]
    assert grounding["raw"] == "From 0.2 seconds to 0.8 seconds."


def test_a_question_is_answered_with_its_evidence(client: TestClient) -> None:
    asked = {"video": {"path": "film.mp4"}, "question": "What jumps?"}
    plain = client.post("/v1/ask", json=asked).json()
    assert plain["answer"] == "a cube"
    assert plain["evidence"] == {"start": 0.0, "end": 1.0, "score": 0.5}
    assert "option" not in plain
    chosen = client.post("/v1/ask", json={**asked, "options": ["a cone", "a cube"]}).json()
    assert (chosen["option"], chosen["answer"], chosen["scores"]) == (0, "a cone", [1.0, 0.0])


def test_a_question_may_keep_to_a_window(client: TestClient, fake: Fake) -> None:
    asked = {"video": {"path": "film.mp4"}, "question": "What jumps?", "window": [0.25, 1]}
    assert client.post("/v1/ask", json=asked).status_code == 200
    assert fake.options == {"window": (0.25, 1.0)}
    refused(client.post("/v1/ask", json={**asked, "window": [1, 0.25]}), 422, "window")


def test_the_model_loads_once_and_not_before_it_is_needed(folder: Path, fake: Fake) -> None:
    loaded: list[str | None] = []

    def load(device: str | None) -> Fake:
        loaded.append(device)
        return fake

    with TestClient(app(load, Settings(videos=folder, devices=("cpu",)))) as client:
        assert client.get("/openapi.json").status_code == 200
        refused(client.get("/v1/files/file-none"), 404)
        assert loaded == []
        ground(client)
        ground(client)
    assert loaded == ["cpu"]


def test_two_hundred_queries_go_to_the_model_in_batches(client: TestClient, fake: Fake) -> None:
    queries = [f"event {number}" for number in range(200)]
    body = ground(client, queries=queries).json()
    assert [grounding["query"] for grounding in body["groundings"]] == queries
    assert sum(fake.batches, []) == queries
    assert max(map(len, fake.batches)) == 16


def test_a_grounder_that_takes_the_event_is_given_it(folder: Path) -> None:
    class Telling(Fake):
        def ask(self, video: Any, question: str, options: Any, *, window: Any, cancelled: threading.Event) -> Any:
            self.told = cancelled
            return super().ask(video, question, options, window=window)

    fake = Telling()
    with served(fake, videos=folder) as client:
        asked = client.post("/v1/ask", json={"video": {"path": "film.mp4"}, "question": "What?"})
        assert asked.status_code == 200
    assert isinstance(fake.told, threading.Event)


# ------------------------------------------------------------------------------------------------ uploaded files


def test_an_uploaded_video_is_encoded_once_and_asked_many_times(client: TestClient, fake: Fake, clip: Path) -> None:
    sent = upload(client, clip.read_bytes(), "../../etc/f\u202eilm.mp4")
    assert sent.status_code == 201
    facts = sent.json()
    assert re.fullmatch("file-[0-9a-f]{32}", facts["id"])
    assert facts["name"] == "film.mp4"
    assert (facts["bytes"], facts["width"], facts["height"]) == (clip.stat().st_size, 64, 48)
    assert facts["duration"] == pytest.approx(1.0, abs=0.01)
    assert facts["expires_at"] - facts["created_at"] == 24 * 3600
    assert client.get(f"/v1/files/{facts['id']}").json() == facts
    cached = [ground(client, video={"file_id": facts["id"]}).json()["usage"]["cached"] for _ in range(3)]
    assert cached == [False, True, True]
    assert len(fake.encoded) == 1


@pytest.mark.parametrize("step", ["rename", "note"])
def test_a_file_that_cannot_be_kept_leaves_nothing_behind(
    client: TestClient, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*where: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if step == "rename":
        monkeypatch.setattr(storing.os, "replace", full)
    else:
        monkeypatch.setattr(storing, "write_whole", full)
    assert upload(client, clip.read_bytes()).status_code >= 500
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "files").iterdir()] == [".lock"]
    assert upload(client, clip.read_bytes()).status_code == 201


def test_a_deleted_file_is_gone_from_disk_and_its_handle_forgotten(
    client: TestClient, fake: Fake, clip: Path, tmp_path: Path
) -> None:
    class Handle:
        duration = 1.0

    handles: list[Any] = []
    fake.encode = lambda video: handles.append(weakref.ref(handle := Handle())) or handle  # type: ignore[method-assign]
    first, second = (upload(client, clip.read_bytes()).json()["id"] for _ in range(2))
    assert first != second
    ground(client, video={"file_id": first})
    assert handles[0]() is not None
    assert client.delete(f"/v1/files/{first}").json() == {"id": first, "deleted": True}
    for response in (
        client.get(f"/v1/files/{first}"),
        client.delete(f"/v1/files/{first}"),
        ground(client, video={"file_id": first}),
    ):
        refused(response, 404, "no such file")
    gc.collect()
    assert handles[0]() is None
    left = sorted(path.name for path in (tmp_path / "files").iterdir())
    assert left == [".lock", f"{second}.json", f"{second}.video"]


def test_only_so_many_handles_are_kept(folder: Path, fake: Fake, clip: Path) -> None:
    for name in "abc":
        (folder / f"{name}.mp4").write_bytes(clip.read_bytes())
    with served(fake, videos=folder, handles=2) as client:
        cached = [ground(client, video={"path": f"{n}.mp4"}).json()["usage"]["cached"] for n in "abacab"]
    assert cached == [False, False, True, False, True, False]


def test_a_local_file_that_was_written_anew_is_encoded_anew(
    client: TestClient, fake: Fake, folder: Path, clip: Path
) -> None:
    ground(client)
    assert ground(client).json()["usage"]["cached"]
    (folder / "new.mp4").write_bytes(clip.read_bytes())
    os.replace(folder / "new.mp4", folder / "film.mp4")
    assert not ground(client).json()["usage"]["cached"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a video"),
        (b"Dear reader, this is text.\n" * 50, "not a video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "not a video"),
        (b"ffconcat version 1.0\nfile film.mp4\n", "not a video"),
        (b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n", "not a video"),
        (b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>', "not a video"),
    ],
    ids=["nothing", "text", "hls", "concat", "sdp", "dash"],
)
def test_what_is_no_video_is_refused_and_not_kept(
    client: TestClient, tmp_path: Path, content: bytes, words: str
) -> None:
    refused(upload(client, content), 422, words)
    assert [path.name for path in (tmp_path / "files").iterdir()] == [".lock"]


def test_a_playlist_of_the_servers_own_films_is_not_played(client: TestClient, folder: Path) -> None:
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile film.mp4\n")
    refused(ground(client, video={"path": "list.mp4"}), 422, "not a video")


def test_sound_alone_and_a_cut_off_film_are_refused_without_the_servers_paths(
    client: TestClient, clip: Path, tmp_path: Path
) -> None:
    import av

    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    for content in ((tmp_path / "sound.mp4").read_bytes(), clip.read_bytes()[:200]):
        assert str(tmp_path) not in refused(upload(client, content), 422, "file")


def test_an_upload_too_large_is_refused_before_it_is_whole(fake: Fake, tmp_path: Path) -> None:
    def body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'
        for _ in range(200):
            yield bytes(1 << 16)
        yield b"\r\n--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    with served(fake, files=tmp_path / "files", file_bytes=1 << 20, files_bytes=1 << 24) as client:
        refused(upload(client, bytes(1 << 22)), 413, "more than")  # the length was announced
        refused(client.post("/v1/files", content=body(), headers=headers), 413, "more than")
        refused(upload(client, bytes((1 << 20) + 1)), 413, "file: more than the 1048576 bytes")
        assert [path.name for path in (tmp_path / "files").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x--\r\n",
        b"not multipart",
        b'--x\r\nContent-Disposition: form-data; name="other"\r\n\r\nhi\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\ncut off',
        b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\na\r\n' * 2 + b"--x--\r\n",
        b"--x\r\n" + b"A: b\r\n" * 10000,
    ],
    ids=["empty", "no part", "garbage", "another part", "cut off", "two files", "many headers"],
)
def test_a_damaged_upload_is_a_clear_error(client: TestClient, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    message = refused(client.post("/v1/files", content=body, headers=headers), 422)
    assert "multipart" in message or 'one part named "file"' in message


def test_an_upload_of_another_kind_or_without_a_boundary_is_refused(client: TestClient) -> None:
    refused(client.post("/v1/files", json={}), 415, "multipart/form-data")
    refused(client.post("/v1/files", content=b"x", headers={"Content-Type": "multipart/form-data"}), 422)


def test_a_film_too_long_or_too_large_is_refused(fake: Fake, folder: Path, clip: Path) -> None:
    with served(fake, videos=folder, video_seconds=0.5) as client:
        refused(upload(client, clip.read_bytes()), 413, "1 seconds long; at most 0.5")
        refused(ground(client), 413, "film.mp4")
    with served(fake, videos=folder, video_pixels=48 * 64 - 1) as client:
        refused(upload(client, clip.read_bytes()), 413, "pixels")


def test_old_files_go_and_full_storage_makes_way_for_new_ones(
    fake: Fake, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(storing.time, "time", lambda: clock[0])
    size = clip.stat().st_size
    with served(fake, file_bytes=size, files_bytes=2 * size + 10, file_seconds=60) as client:
        ids = []
        for _ in range(2):
            clock[0] += 1
            ids.append(upload(client, clip.read_bytes()).json()["id"])
        clock[0] += 1
        ground(client, video={"file_id": ids[0]})  # so the second was used longest ago
        ids.append(upload(client, clip.read_bytes()).json()["id"])
        assert [client.get(f"/v1/files/{id_}").status_code for id_ in ids] == [200, 404, 200]
        clock[0] += 59
        assert [client.get(f"/v1/files/{id_}").status_code for id_ in ids] == [404, 404, 200]


def test_files_outlive_the_server_and_what_it_left_half_written_does_not(
    fake: Fake, clip: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "files"
    with served(fake, files=kept) as client:
        facts = upload(client, clip.read_bytes()).json()
    (kept / f"file-{'a' * 32}.part").write_bytes(b"half")
    (kept / f"file-{'b' * 32}.video").write_bytes(b"no record")
    (kept / f"file-{'c' * 32}.json").write_text('{"id": 3}')
    (kept / "notes.txt").write_text("somebody else's")
    with served(fake, files=kept) as client:
        assert client.get(f"/v1/files/{facts['id']}").json() == facts
        left = sorted(path.name for path in kept.iterdir())
        assert left == [".lock", f"{facts['id']}.json", f"{facts['id']}.video", "notes.txt"]
        with served(fake, files=kept) as other:
            refused(upload(other, clip.read_bytes()), 503)


def test_only_so_many_uploads_run_at_a_time(fake: Fake) -> None:
    async def scenario(serve: Served) -> None:
        headers = [(b"content-type", b"multipart/form-data; boundary=x")]
        slow = asyncio.create_task(serve.call("POST", "/v1/files", b"--x\r\n", headers=headers, whole=False))
        await asyncio.sleep(0.05)
        assert (await serve.call("POST", "/v1/files", b"--x\r\n", headers=headers)).status_code == 429
        slow.cancel()

    run(scenario, fake, transfers=1)


def test_an_upload_that_trickles_or_breaks_off_is_given_up(fake: Fake, tmp_path: Path) -> None:
    async def scenario(serve: Served) -> None:
        headers = [(b"content-type", b"multipart/form-data; boundary=x")]
        start = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc'
        late = await serve.call("POST", "/v1/files", start, headers=headers, whole=False)
        refused(late, 408, "not there within 0.1 seconds")
        gone = asyncio.Event()
        gone.set()
        left = await serve.call("POST", "/v1/files", start, headers=headers, whole=False, gone=gone)
        refused(left, 499)
        assert [path.name for path in (tmp_path / "files").iterdir()] == [".lock"]

    run(scenario, fake, transfer_seconds=0.1, files=tmp_path / "files")


# ------------------------------------------------------------------------------------------------ bad requests


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"queries": []}, "queries"),
        ({"queries": ["x"] * 201}, "queries"),
        ({"queries": [""]}, "queries.0"),
        ({"queries": [" \n"]}, "queries.0"),
        ({"queries": ["x" * 2001]}, "queries.0"),
        ({"queries": "one"}, "queries"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 21}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"top_k": "1"}, "top_k"),
        ({"window": [0.5, 0.5]}, "window"),
        ({"window": [0.9, 0.1]}, "window"),
        ({"window": [-1, 1]}, "window"),
        ({"window": [1]}, "window"),
        ({"threshold": 1.5}, "threshold"),
        ({"video": {}}, "one of file_id, path and url"),
        ({"video": {"path": "a", "url": "http://b"}}, "one of file_id, path and url"),
        ({"video": "film.mp4"}, "one of file_id, path and url"),
        ({"video": {"path": 3}}, "path"),
        ({"colour": "red"}, "colour"),
        ({"return": {"saliency": True}}, "saliency"),
    ],
)
def test_a_bad_request_is_told_which_argument_is_wrong(
    client: TestClient, fake: Fake, changes: dict[str, Any], words: str
) -> None:
    refused(ground(client, **changes), 422, words)
    assert fake.batches == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
@pytest.mark.parametrize("key", ["window", "threshold"])
def test_numbers_that_are_not_finite_are_refused(client: TestClient, number: str, key: str) -> None:
    value = f"[0, {number}]" if key == "window" else number
    body = f'{{"video": {{"path": "film.mp4"}}, "queries": ["a"], "{key}": {value}}}'
    refused(client.post("/v1/ground", content=body, headers={"Content-Type": "application/json"}), 422, key)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b'{"queries": ', 422),
        (b"[" * 100_000, 400),
        (b'{"top_k": 1' + b"0" * 5000 + b"}", 400),
        (b'{"top_k": "\xff"}', 400),
        (b'{"video": {"path": "film.mp4"}, "queries": ["\\ud800"]}', 422),
        (b" " * (1 << 21), 413),
    ],
    ids=["empty", "cut off", "deep", "long number", "not UTF-8", "half a letter", "large"],
)
def test_a_body_that_is_no_request_is_refused(client: TestClient, body: bytes, status: int) -> None:
    refused(client.post("/v1/ground", content=body, headers={"Content-Type": "application/json"}), status)


def test_broken_json_is_told_where_it_breaks(client: TestClient) -> None:
    sent = client.post("/v1/ask", content=b'{"question": what}', headers={"Content-Type": "application/json"})
    assert refused(sent, 422) == "body: not valid JSON at letter 13: Expecting value"


def test_unknown_addresses_and_methods_get_the_same_form_of_error(client: TestClient) -> None:
    refused(client.get("/v2/ground"), 404, "no such address")
    refused(client.get("/v1/ground"), 405)
    wrong = client.put("/v1/files/file-a")
    refused(wrong, 405, "Allow")
    assert wrong.headers["Allow"] == "DELETE, GET"


def test_the_router_keeps_its_form_of_error_and_its_lifespan_in_another_app(folder: Path, fake: Fake) -> None:
    other = FastAPI()
    other.include_router(router(lambda device: fake, Settings(videos=folder)), prefix="/unitime")
    with TestClient(other) as client:
        refused(client.post("/unitime/v1/ground", json={}), 422, "queries")
        asked = client.post("/unitime/v1/ground", json={"video": {"path": "film.mp4"}, "queries": ["a"]})
        assert asked.status_code == 200
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("worker-")]
        assert threads
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("setting", ["queue", "handles", "file_bytes", "video_seconds"])
def test_settings_that_make_no_sense_are_refused(setting: str) -> None:
    with pytest.raises(UniTimeError, match=setting):
        Settings(**{setting: float("nan")})
    with pytest.raises(UniTimeError, match=setting):
        Settings(**{setting: -1})


# ------------------------------------------------------------------------------------------------- local paths


def test_local_paths_and_urls_are_off_unless_allowed(fake: Fake) -> None:
    with served(fake) as client:
        refused(ground(client), 403, "upload")
        refused(ground(client, video={"url": "https://example.com/film.mp4"}), 403, "upload")


def test_nothing_outside_the_allowed_folder_can_be_reached_or_told_from_what_is_absent(
    client: TestClient, fake: Fake, folder: Path, clip: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "secret.mp4"
    outside.write_bytes(clip.read_bytes())
    (folder / "sub").mkdir()
    (folder / "link.mp4").symlink_to(outside)
    (folder / "up").symlink_to(tmp_path)
    (folder / "circle").symlink_to(folder / "circle")
    os.mkfifo(folder / "pipe.mp4")
    (tmp_path / "videos-too").mkdir()
    (tmp_path / "videos-too" / "film.mp4").write_bytes(clip.read_bytes())
    wrong = [
        "absent.mp4", "../secret.mp4", "sub/../../secret.mp4", str(outside), "/etc/passwd", "link.mp4", "up/secret.mp4",
        "circle", "sub", ".", "pipe.mp4", "a\0b", "x" * 4000, "../videos-too/film.mp4", "~/film.mp4",
    ]  # fmt: skip
    messages = {refused(ground(client, video={"path": path}), 404) for path in wrong}
    assert len(messages) == 1
    assert str(tmp_path) not in messages.pop()
    assert fake.encoded == []


def test_inside_the_allowed_folder_every_way_of_writing_a_path_works(client: TestClient, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "inner.mp4").symlink_to(folder / "film.mp4")
    for path in ("film.mp4", "./film.mp4", "sub/../film.mp4", str(folder / "film.mp4"), "inner.mp4"):
        assert ground(client, video={"path": path}).status_code == 200


# -------------------------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "::127.0.0.1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:1::1", "2001:db8::1", "nonsense", "",
    ],
)  # fmt: skip
def test_no_address_inside_a_network_counts_as_public(address: str) -> None:
    assert not fetching.public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet_count_as_public(address: str) -> None:
    assert fetching.public(address)


def resolve(monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]]) -> list[str]:
    """Let names resolve so; returns a list that every look-up is written to."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *rest: Any, **options: Any) -> list[Any]:
        asked.append(host)
        if host not in names:
            raise socket.gaierror(f"no {host}")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in names[host]]

    monkeypatch.setattr(fetching.socket, "getaddrinfo", getaddrinfo)
    return asked


def no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(fetching.socket, "create_connection", connect)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://localhost/", "http://private.test/", "http://mixed.test/", "http://2130706433/",
        "http://[::1]/", "http://meta.test/latest/meta-data",
    ],
)  # fmt: skip
def test_an_allowed_name_is_still_not_fetched_from_inside_the_network(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    resolve(
        monkeypatch,
        {
            "127.0.0.1": ["127.0.0.1"], "localhost": ["127.0.0.1"], "private.test": ["10.0.0.7"],
            "mixed.test": ["8.8.8.8", "192.168.0.1"], "2130706433": ["127.0.0.1"], "::1": ["::1"],
            "meta.test": ["169.254.169.254"],
        },
    )  # fmt: skip
    no_connection(monkeypatch)
    hosts = frozenset(
        {"127.0.0.1", "localhost", "private.test", "mixed.test", "2130706433", "::1", "meta.test"}
    )
    with served(fake, hosts=hosts) as client:
        refused(ground(client, video={"url": url}), 403, "private network")


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("http://other.test/", 403),
        ("http://good.test.other.test/", 403),
        ("http://good.test:8080/", 403),
        ("http://good.test:99999/", 422),
        ("http://user:word@good.test/", 422),
        ("http://good.test@other.test/", 422),
        ("http://other.test\\@good.test/", 422),
        ("http://good.test/a b", 422),
        ("http://good.test/\r\nHost: other.test", 422),
        ("http://gööd.test/", 422),
        ("http://", 422),
        ("http://[::1/", 422),
        ("file:///etc/passwd", 422),
        ("ftp://good.test/", 422),
        ("gopher://good.test/", 422),
        ("http://unknown.test/", 422),
    ],
)
def test_other_hosts_ports_and_schemes_are_not_fetched(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, url: str, status: int
) -> None:
    resolve(monkeypatch, {"good.test": ["8.8.8.8"], "other.test": ["8.8.4.4"]})
    no_connection(monkeypatch)
    with served(fake, hosts=frozenset({"good.test", "unknown.test"})) as client:
        refused(ground(client, video={"url": url}), status)


@pytest.fixture
def host(clip: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server on this machine behind the name films.test, for once taken for public."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content, kind = clip.read_bytes(), self.path.split("?")[0]
            if kind.startswith("/to-"):
                where = {
                    "/to-film": "/film.mp4", "/to-inside": f"http://inside.test:{port}/film.mp4", "/to-itself": kind,
                    "/to-other": "http://other.test/", "/to-file": "file:///etc/passwd", "/to-nowhere": "",
                }[kind]  # fmt: skip
                self.send_response(302)
                if where:
                    self.send_header("Location", where)
                self.end_headers()
            elif kind == "/film.mp4":
                assert self.headers["Host"] == f"films.test:{port}"
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            elif kind == "/endless":
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    for _ in range(1000):
                        self.wfile.write(bytes(1 << 14))
            elif kind == "/short":
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:100])
            elif kind == "/trickle":
                with contextlib.suppress(OSError):
                    for _ in range(100):
                        self.wfile.write(b"H")
                        time.sleep(0.1)
            elif kind == "/packed":
                self.send_response(200)
                self.send_header("Content-Encoding", "gzip")
                self.end_headers()
            else:
                self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    names = {"films.test": "127.0.0.1", "inside.test": "10.0.0.7", "other.test": "127.0.0.1", "127.0.0.1": "127.0.0.1"}
    resolve(monkeypatch, {name: [address] for name, address in names.items()})
    real = fetching.public
    monkeypatch.setattr(fetching, "public", lambda address: address == "127.0.0.1" or real(address))
    yield f"films.test:{port}"
    server.shutdown()
    server.server_close()


def fetching_from(fake: Fake, host: str, **options: Any) -> Any:
    port = host.rpartition(":")[2]
    return served(fake, hosts=frozenset({host, f"inside.test:{port}"}), **options)


def test_a_film_on_an_allowed_host_is_fetched_and_not_kept(fake: Fake, host: str, tmp_path: Path) -> None:
    with fetching_from(fake, host, files=tmp_path / "files") as client:
        for path in ("/film.mp4?a=b", "/to-film"):
            answer = ground(client, video={"url": f"http://{host}{path}"})
            assert answer.status_code == 200, answer.text
            assert not answer.json()["usage"]["cached"]
        assert [path.name for path in (tmp_path / "files").iterdir()] == [".lock"]
    assert len(fake.encoded) == 2


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/to-inside", 403, "private network"),
        ("/to-other", 403, "not fetch from that host"),
        ("/to-file", 422, "http"),
        ("/to-nowhere", 422, "nowhere"),
        ("/to-itself", 422, "redirects"),
        ("/absent", 422, "404"),
        ("/endless", 413, "more than"),
        ("/short", 422, "reached"),
        ("/packed", 422, "compressed"),
        ("/trickle", 422, "within 0.5 seconds"),
    ],
)
def test_what_an_allowed_host_may_try_is_refused(
    fake: Fake, host: str, tmp_path: Path, path: str, status: int, words: str
) -> None:
    seconds = 0.5 if path == "/trickle" else 20.0
    with fetching_from(fake, host, files=tmp_path / "files", file_bytes=1 << 20, transfer_seconds=seconds) as client:
        begun = time.monotonic()
        refused(ground(client, video={"url": f"http://{host}{path}"}), status, words)
        assert time.monotonic() - begun < 8  # the trickle would go on for longer
        assert [path.name for path in (tmp_path / "files").iterdir()] == [".lock"]
    assert fake.encoded == []


def test_the_connection_goes_to_the_address_that_was_checked(
    fake: Fake, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([["127.0.0.1"], ["10.0.0.7"]])  # the name changes its mind after the check
    asked: list[str] = []

    def getaddrinfo(name: str, port: int, *rest: Any, **options: Any) -> list[Any]:
        if name != "films.test":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, port))]
        asked.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in next(answers)]

    monkeypatch.setattr(fetching.socket, "getaddrinfo", getaddrinfo)
    with fetching_from(fake, host) as client:
        assert ground(client, video={"url": f"http://{host}/film.mp4"}).status_code == 200
    assert asked == ["films.test"]


def test_https_is_not_left_for_http() -> None:
    parts = fetching.urlsplit("https://good.test/a")
    with pytest.raises(Refusal, match="less safe"):
        fetching._next("https://good.test/a", parts, "http://good.test/a")


# ----------------------------------------------------------------------- the queue, and clients that leave


@dataclass
class Answer:
    status_code: int
    headers: dict[str, str]
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


class Served:
    """An app, called as a server calls it: clients may stay silent, and leave."""

    def __init__(self, made: FastAPI) -> None:
        self.app = made

    async def call(
        self,
        method: str,
        path: str,
        body: bytes,
        *,
        headers: list[tuple[bytes, bytes]] | None = None,
        whole: bool = True,
        gone: asyncio.Event | None = None,
    ) -> Answer:
        """whole: whether the body ends with `body`. gone: when the client leaves; None: never."""
        sent: list[dict[str, Any]] = []
        messages = [{"type": "http.request", "body": body, "more_body": not whole}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "client": ("test", 1),
            "server": ("test", 80), "headers": headers or [(b"content-type", b"application/json")],
        }  # fmt: skip
        await self.app(scope, receive, send)
        heads = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], heads, b"".join(part.get("body", b"") for part in sent[1:]).decode())

    async def ground(self, *queries: str, gone: asyncio.Event | None = None) -> Answer:
        body = {"video": {"path": "film.mp4"}, "queries": queries or ["a"]}
        return await self.call("POST", "/v1/ground", json.dumps(body).encode(), gone=gone)


@contextlib.asynccontextmanager
async def serving(load: Callable[[str | None], Any], options: dict[str, Any]) -> AsyncIterator[Served]:
    made = app(load, Settings(**options))
    async with made.router.lifespan_context(made):
        yield Served(made)


def run(scenario: Callable[[Served], Awaitable[None]], fake: Any, **options: Any) -> None:
    async def whole() -> None:
        async with serving(lambda device: fake, options) as served_:
            await scenario(served_)

    asyncio.run(asyncio.wait_for(whole(), 20))


async def entered(fake: Fake) -> None:
    """Returns once the grounder is at work."""
    assert await asyncio.to_thread(fake.entered.wait, 5)


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> Queued:
    """`await queued(n)` returns once n more jobs have been given to the workers."""
    count = threading.Semaphore(0)
    submit = Workers.submit

    def counted(self: Workers[Any], work: Any) -> Any:
        job = submit(self, work)
        count.release()
        return job

    monkeypatch.setattr(Workers, "submit", counted)

    async def wait(jobs: int) -> None:
        for _ in range(jobs):
            assert await asyncio.to_thread(count.acquire, timeout=10)

    return wait


def test_a_full_queue_says_when_to_try_again_and_takes_jobs_once_there_is_room(
    fake: Fake, folder: Path, queued: Queued
) -> None:
    async def scenario(serve: Served) -> None:
        fake.gate = threading.Event()
        running = asyncio.create_task(serve.ground("first"))
        await entered(fake)
        waiting = [asyncio.create_task(serve.ground(f"waits {n}")) for n in range(2)]
        await queued(3)
        full = await serve.ground("too many")
        refused(full, 429, "the queue is full")
        assert 1 <= int(full.headers["retry-after"]) <= 600
        fake.gate.set()
        assert [answer.status_code for answer in await asyncio.gather(running, *waiting)] == [200] * 3
        assert (await serve.ground("again")).status_code == 200
        assert ["too many"] not in fake.batches

    run(scenario, fake, videos=folder, queue=2)


def test_a_job_whose_client_left_the_queue_is_never_run_and_its_place_is_free(
    fake: Fake, folder: Path, queued: Queued
) -> None:
    async def scenario(serve: Served) -> None:
        fake.gate = threading.Event()
        running = asyncio.create_task(serve.ground("first"))
        await entered(fake)
        gone = asyncio.Event()
        leaving = asyncio.create_task(serve.ground("leaves", gone=gone))
        await queued(2)
        assert (await serve.ground("too many")).status_code == 429
        gone.set()
        refused(await leaving, 499)
        staying = asyncio.create_task(serve.ground("stays"))
        await queued(1)
        fake.gate.set()
        assert (await running).status_code == (await staying).status_code == 200
        assert fake.batches == [["first"], ["stays"]]

    run(scenario, fake, videos=folder, queue=1)


def test_a_running_job_whose_client_leaves_stops_between_batches(fake: Fake, folder: Path) -> None:
    async def scenario(serve: Served) -> None:
        fake.gate = threading.Event()
        gone = asyncio.Event()
        leaving = asyncio.create_task(serve.ground("one", "two", "three", gone=gone))
        await entered(fake)
        gone.set()
        refused(await leaving, 499)
        fake.gate.set()
        assert (await serve.ground("next")).status_code == 200
        assert fake.batches == [["one"], ["next"]]

    run(scenario, fake, videos=folder, batch=1)


def test_a_running_grounder_is_told_that_its_client_left(folder: Path) -> None:
    class Patient(Fake):
        def ground(self, video: Any, queries: Any, *, cancelled: threading.Event, **options: Any) -> list[Any]:
            self.entered.set()
            self.told = cancelled.wait(5)
            return []

    fake = Patient()

    async def scenario(serve: Served) -> None:
        gone = asyncio.Event()
        leaving = asyncio.create_task(serve.ground("one", gone=gone))
        await entered(fake)
        gone.set()
        refused(await leaving, 499)

    run(scenario, fake, videos=folder)
    assert fake.told


def test_a_file_deleted_while_a_job_works_on_it_goes_when_the_job_is_done(
    fake: Fake, clip: Path, tmp_path: Path
) -> None:
    files = tmp_path / "files"

    async def scenario(serve: Served) -> None:
        body = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + clip.read_bytes() + b"\r\n--x--\r\n"
        headers = [(b"content-type", b"multipart/form-data; boundary=x")]
        id_ = (await serve.call("POST", "/v1/files", body, headers=headers)).json()["id"]
        fake.gate = threading.Event()
        request = json.dumps({"video": {"file_id": id_}, "queries": ["a"]}).encode()
        running = asyncio.create_task(serve.call("POST", "/v1/ground", request))
        await entered(fake)
        assert (await serve.call("DELETE", f"/v1/files/{id_}", b"")).status_code == 200
        refused(await serve.call("GET", f"/v1/files/{id_}", b""), 404)
        assert (files / f"{id_}.video").exists()
        fake.gate.set()
        assert (await running).status_code == 200
        assert [path.name for path in files.iterdir()] == [".lock"]

    run(scenario, fake, files=files)


def test_an_answer_that_takes_too_long_is_given_up(fake: Fake, folder: Path) -> None:
    async def scenario(serve: Served) -> None:
        fake.gate = threading.Event()
        refused(await serve.ground("slow"), 503, "no answer within 0.3 seconds")
        fake.gate.set()

    run(scenario, fake, videos=folder, answer_seconds=0.3)


def test_a_server_that_stops_answers_those_who_wait(fake: Fake, folder: Path, queued: Queued) -> None:
    fake.gate = threading.Event()
    answers: list[Any] = []

    async def scenario(serve: Served) -> None:
        first = asyncio.create_task(serve.ground("first"))
        await entered(fake)
        answers.extend([first, asyncio.create_task(serve.ground("waits"))])
        await queued(2)
        threading.Timer(0.2, fake.gate.set if fake.gate else print).start()

    async def whole() -> None:
        async with serving(lambda device: fake, {"videos": folder}) as served_:
            await scenario(served_)
        first, waits = await asyncio.gather(*answers)
        assert first.status_code == 200
        refused(waits, 503, "stopping")

    asyncio.run(asyncio.wait_for(whole(), 20))
    assert fake.batches == [["first"]]


def test_every_device_has_its_own_worker(folder: Path) -> None:
    both = threading.Barrier(2)

    class Together(Fake):
        def ground(self, *arguments: Any, **options: Any) -> list[Any]:
            both.wait(5)  # passes only when two run at once
            return super().ground(*arguments, **options)

    async def whole() -> None:
        async with serving(lambda device: Together(), {"videos": folder, "devices": ("cuda:0", "cuda:1")}) as serve:
            answers = await asyncio.gather(serve.ground("one"), serve.ground("two"))
            assert [answer.status_code for answer in answers] == [200, 200]

    asyncio.run(asyncio.wait_for(whole(), 20))


# ------------------------------------------------------------------------------------------------ failures


def test_a_model_that_cannot_be_loaded_is_tried_again(folder: Path, fake: Fake) -> None:
    tries: list[int] = []

    def load(device: str | None) -> Fake:
        tries.append(1)
        if len(tries) == 1:
            raise UniTimeError("no weights at /srv/secret")
        return fake

    with TestClient(app(load, Settings(videos=folder))) as client:
        assert "secret" not in refused(ground(client), 503, "unitime-nano could not be loaded")
        assert ground(client).status_code == 200


def test_what_the_grounder_refuses_is_told_without_the_servers_paths(
    client: TestClient, fake: Fake, folder: Path
) -> None:
    fake.problem = UniTimeError(f"window: {folder / 'film.mp4'} ends before 9 s")
    assert str(folder) not in refused(ground(client), 422, "window: video film.mp4 ends before 9 s")


@pytest.mark.parametrize(
    ("problem", "status"),
    [
        (RuntimeError("CUDA: device-side secret"), 500),
        (KeyError("secret"), 500),
        (MemoryError(), 503),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: secret"), 503),
    ],
    ids=["runtime", "key", "memory", "allocator"],
)
def test_a_failure_is_one_sentence_and_the_server_goes_on(
    client: TestClient, fake: Fake, problem: Exception, status: int
) -> None:
    fake.problem = problem
    assert "secret" not in refused(ground(client), status)
    fake.problem = None
    assert ground(client).status_code == 200


def test_a_score_past_one_by_rounding_is_one_and_one_that_is_no_number_is_a_failure(folder: Path) -> None:
    class Rounded(Fake):
        score = 1.0 + 1e-7

        def ground(self, *arguments: Any, **options: Any) -> list[Any]:
            [found] = super().ground(*arguments, **options)
            found.moments = (Moment(0.0, 1.0, self.score),)
            return [found]

    fake = Rounded()
    with served(fake, videos=folder) as client:
        assert ground(client).json()["groundings"][0]["moments"][0]["score"] == 1.0
        fake.score = float("nan")
        refused(ground(client), 500)


# ------------------------------------------------------------------------------------------ the document


def test_the_document_describes_every_answer(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {"/v1/ground", "/v1/ask", "/v1/files", "/v1/files/{file_id}"}
    for path in document["paths"].values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                schema = answer["content"]["application/json"]["schema"]["$ref"]
                assert (schema == "#/components/schemas/ErrorBody") == (int(status) >= 400)
            assert {"500", "503"} <= set(operation["responses"])
    assert "HTTPValidationError" not in document["components"]["schemas"]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Any:
    made = app(lambda device: Fake(), Settings(videos=clip.parent, files=tmp_path_factory.mktemp("fuzzed")))
    return schemathesis.openapi.from_asgi("/openapi.json", made)


OPERATIONS = [
    ("POST", "/v1/ground"),
    ("POST", "/v1/ask"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files/{file_id}"),
    ("DELETE", "/v1/files/{file_id}"),
]
# What fits the document may still be no video, so that it is accepted is not asked for.
EXCEPT = [schemathesis.checks.positive_data_acceptance]


def fuzz(cases: Any, check: Callable[[schemathesis.Case], None]) -> None:
    """Run `check` on a bounded number of drawn requests, the same ones every time."""

    @given(case=cases)
    @settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def drawn(case: schemathesis.Case) -> None:
        check(case)

    drawn()


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_that_fits_the_document_or_does_not_brings_the_server_down(
    fuzzed: Any, method: str, path: str, mode: schemathesis.GenerationMode
) -> None:
    fuzz(
        fuzzed[path][method].as_strategy(generation_mode=mode),
        lambda case: case.call_and_validate(excluded_checks=EXCEPT),
    )


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("path", "model"), [("/v1/ground", "GroundRequest"), ("/v1/ask", "AskRequest")])
def test_a_question_about_a_real_film_is_answered_exactly_when_it_fits_the_document(
    fuzzed: Any, path: str, model: str, mode: schemathesis.GenerationMode
) -> None:
    document = fuzzed.raw_schema
    fits = jsonschema_rs.validator_for({**document["components"]["schemas"][model], **document}).is_valid

    def check(case: schemathesis.Case) -> None:
        if not isinstance(case.body, dict) or case.media_type != "application/json":
            return
        case.body["video"] = {"path": "film.mp4"}
        right = fits(case.body) and (not case.body.get("window") or case.body["window"][0] < case.body["window"][1])
        response = case.call(headers={"Content-Type": "application/json"})
        assert response.status_code == (200 if right else 422), response.text
        case.validate_response(response, excluded_checks=[*EXCEPT, schemathesis.checks.negative_data_rejection])

    fuzz(fuzzed[path]["POST"].as_strategy(generation_mode=mode), check)
