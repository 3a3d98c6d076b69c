"""The server: studio, films and moments behind one lock, up before any model is."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import cli
import demos.app
from demos.app import Settings, build
from seedance.jobs import Jobs
from shots.errors import ShotsError
from shots.serving.access import client_of
from shots.video import VideoWriter

ROOT = Path(__file__).resolve().parents[2]
KEY = "a-key-of-some-length"
BEARER = {"Authorization": f"Bearer {KEY}"}


class Fake:
    """Finds everything at the beginning."""

    def encode(self, video: Path) -> Any:
        return SimpleNamespace(duration=1.0)

    def ground(self, video: Any, queries: Any, *, top_k: int, window: Any, threshold: Any) -> list[Any]:
        moment = SimpleNamespace(start=0.0, end=0.5, score=0.5)
        return [
            SimpleNamespace(query=query, moments=(moment,), status="ok", not_found=0.1, relevance=(), raw="")
            for query in queries
        ]


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(demos.app, "_grounders", lambda settings: lambda device: Fake())
    return Settings(data=tmp_path / "data", models=(str(tiny_model),), studio=False, threads=1)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(build(settings)) as client:
        yield client


def test_one_app_answers_for_films_moments_health_and_figures(client: TestClient) -> None:
    assert client.get("/health").json()["status"] == "ok"
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny0", "unitime-nano"]
    assert client.post("/v1/ground", json={"video": {"path": "no.mp4"}, "queries": ["a"]}).status_code == 404
    assert client.get("/v1/videos").json()["data"] == []
    figures = client.get("/metrics").text
    assert 'http_requests_total{method="GET",route="/health",status="200"} 1.0' in figures
    assert 'http_requests_total{method="POST",route="/v1/ground",status="404"} 1.0' in figures
    assert 'video_jobs{status="queued"} 0.0' in figures and "process_resident_memory_bytes" in figures
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/videos", "/v1/ground", "/v1/files", "/health"} <= set(paths)


def test_addresses_that_are_not_there_get_the_one_form_of_error(client: TestClient) -> None:
    for method, path, status in (("GET", "/v1/nothing", 404), ("PUT", "/v1/videos", 405), ("GET", "/v1/ground", 405)):
        answer = client.request(method, path)
        assert answer.status_code == status and set(answer.json()["error"]) == {"type", "message"}
    assert client.put("/v1/videos").headers["Allow"] == "GET, POST"
    assert client.get("/nothing").status_code == 404


def test_with_keys_everything_but_health_needs_one(settings: Settings) -> None:
    locked = Settings(**{**vars(settings), "keys": (KEY, "another-long-key")})
    with TestClient(build(locked)) as client:
        assert client.get("/health").status_code == 200
        for path in ("/", "/metrics", "/docs", "/openapi.json", "/v1/models", "/v1/videos", "/v1/files/x"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic ???"}):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401 and "Basic" in answer.headers["WWW-Authenticate"], path
        assert client.get("/metrics", headers=BEARER).status_code == 200
        assert client.get("/v1/videos", auth=("whoever", KEY)).status_code == 200  # as a browser sends it
        made = client.post("/v1/videos", json={"prompt": "A red cube.", "steps": 1}, headers=BEARER).json()
        theirs = client.get(f"/v1/videos/{made['id']}", headers={"Authorization": "Bearer another-long-key"})
        assert theirs.status_code == 404
        path = {"path": f"{made['id']}/film.mp4"}  # a path knows no owner
        answer = client.post("/v1/ground", json={"video": path, "queries": ["a"]}, headers=BEARER)
        assert answer.status_code == 403
    assert Jobs(settings.data).get(made["id"]).client == client_of(KEY)


def test_a_key_that_could_be_guessed_is_refused(settings: Settings) -> None:
    with (
        pytest.raises(ShotsError, match="8 letters"),
        TestClient(build(Settings(**{**vars(settings), "keys": ("short",)}))),
    ):
        pass


def test_moments_are_found_in_a_film_of_the_queue_without_an_upload(client: TestClient, settings: Settings) -> None:
    place = settings.data / "films" / "a-film"
    place.mkdir()
    with VideoWriter(place / "film.mp4", fps=12, height=32, width=32) as writer:
        writer.write(np.zeros((12, 32, 32, 3), np.uint8))
    body = {"video": {"path": "a-film/film.mp4"}, "queries": ["a red cube jumps"]}
    answer = client.post("/v1/ground", json=body).json()
    assert answer["groundings"][0]["moments"] == [{"start": 0.0, "end": 0.5, "score": 0.5}]
    for path in ("../jobs.sqlite", "/etc/passwd", "a-film"):
        assert client.post("/v1/ground", json={**body, "video": {"path": path}}).status_code in (404, 422)


def test_the_studio_lies_at_the_root_and_knows_whose_films_are_whose(settings: Settings) -> None:
    pytest.importorskip("gradio")
    with_page = Settings(**{**vars(settings), "studio": True, "keys": (KEY,)})
    with TestClient(build(with_page)) as client:
        page = client.get("/", auth=("me", KEY))
        assert page.status_code == 200 and "Seedance studio" in page.text
        assert client.get("/").status_code == 401
        assert client.get("/v1/nothing", headers=BEARER).json()["error"]["type"] == "not_found"
        assert client.get("/config", auth=("me", KEY)).json()["title"] == "Seedance studio"
        assert client.get("/health").json()["status"] == "ok"


def test_building_the_server_loads_no_model(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from demos.app import Settings, build;"
        f"build(Settings(data=Path({str(tmp_path)!r}), studio=False));"
        "print([name for name in ('torch', 'av', 'transformers', 'gradio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_shell_says_what_is_in_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = ["serve", "--no-studio", "--port", "0", "--data"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["serve", "--no-studio", "--port", port, "--data", str(tmp_path)]) == 1
    assert "in use" in capsys.readouterr().err
    jobs = Jobs(tmp_path / "data")
    assert cli.main([*serve, str(tmp_path / "data")]) == 1
    assert "another server" in capsys.readouterr().err
    jobs.close()
    assert cli.main([*serve, str(tmp_path / "data"), "--workers", "0"]) == 2
    assert cli.main([*serve, str(tmp_path / "data"), "--keep-days", "-1"]) == 2
    monkeypatch.setenv("SEEDANCE_API_KEYS", "short,keys")
    assert cli.main([*serve, str(tmp_path / "data")]) == 2
    assert "8 letters" in capsys.readouterr().err
