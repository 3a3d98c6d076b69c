"""The REST surface of films: OpenAI's client runs unchanged, bad treatment costs an answer, a kill loses nothing."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import schemathesis
import uvicorn
from fastapi import FastAPI
from hypothesis import HealthCheck, assume, given, settings
from PIL import Image
from prometheus_client import CollectorRegistry, generate_latest
from starlette.testclient import TestClient

from seedance.jobs import Jobs, Limits
from seedance.service import Settings, film_metrics, router
from seedance.workers import Workers
from shots.serving.access import Access
from shots.serving.errors import TYPES, handle_errors
from shots.video import read_record, read_video

ROOT = Path(__file__).resolve().parents[2]
KEYS = ("first-secret-key", "second-secret-key")


def app(jobs: Jobs, workers: Workers | None = None, keys: tuple[str, ...] = (), **limits: Any) -> FastAPI:
    made = FastAPI()
    made.include_router(router(jobs, workers, Settings(**limits)))
    handle_errors(made)
    made.add_middleware(Access, keys=keys)
    return made


@pytest.fixture
def jobs(tiny_model: Path, tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(tmp_path / "data", Limits(queue=5, per_client=3), models=(str(tiny_model),))
    yield made
    made.close()


@pytest.fixture
def client(jobs: Jobs) -> Iterator[TestClient]:
    """A client of a server where nothing is made: jobs stay in line."""
    with TestClient(app(jobs, picture_bytes=4096)) as client:
        yield client


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real server with a real renderer."""
    jobs = Jobs(tmp_path_factory.mktemp("server"), Limits(per_client=30), models=(str(tiny_model),))
    registry = CollectorRegistry()
    workers = Workers(jobs, threads=1, on_done=film_metrics(registry, jobs))
    served = app(jobs, workers, KEYS)

    @served.get("/figures")
    def figures() -> str:
        return generate_latest(registry).decode()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = uvicorn.Server(uvicorn.Config(served, log_level="warning"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        running.should_exit = True
        thread.join(20)
        jobs.close()


@pytest.fixture
def videos(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key=KEYS[0])


def png(width: int = 40, height: int = 40, colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def complaint(response: Any, status: int) -> str:
    """The message of an error, checked for its one form and for paths."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"type", "message"} and error["type"] == TYPES[status]
    assert "/tmp" not in error["message"] and "Traceback" not in error["message"]
    return str(error["message"])


# --------------------------------------------------------------------------------------------------- OpenAI's client


def test_code_written_for_openai_makes_a_film_with_another_base_url(videos: openai.OpenAI) -> None:
    video = videos.videos.create(prompt="A red cube jumps.", model="sora-2", seconds="1", size="48x32")  # type: ignore[arg-type]
    assert video.object == "video" and video.status in ("queued", "in_progress") and video.progress < 100
    video = videos.videos.poll(video.id, poll_interval_ms=100)
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    assert (video.seconds, video.size, video.prompt) == ("1", "48x32", "A red cube jumps.")
    assert video.completed_at is not None and video.expires_at is not None
    assert video.created_at <= video.completed_at < video.expires_at
    film = videos.videos.download_content(video.id).read()
    assert film[4:8] == b"ftyp"
    assert videos.videos.list(limit=1).data[0].id == video.id
    deleted = videos.videos.delete(video.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (video.id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError):
        videos.videos.retrieve(video.id)
    assert "tiny0" in [model.id for model in videos.models.list()]
    assert videos.models.retrieve("tiny0").object == "model"


def test_its_form_with_a_picture_and_our_further_fields(videos: openai.OpenAI, tmp_path: Path) -> None:
    name = ("../../stränge/🎬 film.png", png(colour="blue"), "image/png")
    script = {"shots": [{"caption": "A red cube.", "seconds": 0.5}, {"caption": "A blue sphere.", "seconds": 0.25}]}
    video = videos.videos.create_and_poll(
        prompt="two shots", input_reference=name, poll_interval_ms=100,
        extra_body={"script": json.dumps(script), "seed": 7, "steps": 3, "fps": 8, "guidance_scale": 2.5},
    )  # fmt: skip
    assert video.status == "completed" and (video.seconds, video.prompt) == ("0.75", "two shots")
    said = video.to_dict()
    assert (said["seed"], said["steps"], said["fps"], said["guidance_scale"]) == (7, 3, 8.0, 2.5)
    assert said["script"] == script and said["stage"] == "completed"
    path = tmp_path / "film.mp4"
    videos.videos.download_content(video.id).write_to_file(path)
    record = read_record(path)
    assert record is not None and record["seed"] == 7 and record["task"] == "first frame"
    assert len(read_video(path).frames) == 6
    for variant in ("thumbnail", "spritesheet"):
        picture = videos.videos.download_content(video.id, variant=variant).read()  # type: ignore[arg-type]
        assert Image.open(io.BytesIO(picture)).size[0] >= 32

    remix = videos.videos.remix(video.id, prompt="A red cube. [cut] A red cone.", extra_body={"shots": [2]})
    assert remix.remixed_from_video_id == video.id
    assert videos.videos.poll(remix.id, poll_interval_ms=100).status == "completed"
    videos.videos.download_content(remix.id).write_to_file(tmp_path / "remix.mp4")
    first, second = (read_record(tmp_path / name) for name in ("film.mp4", "remix.mp4"))
    assert first is not None and second is not None and second["task"] == "re-take of shots 2"
    again = videos.videos.remix(video.id, prompt="A cone.")
    assert videos.videos.poll(again.id, poll_interval_ms=100).seconds == "0.75"


def test_a_client_gets_nothing_of_another_and_nothing_without_a_key(server: str, videos: openai.OpenAI) -> None:
    mine = videos.videos.create(prompt="A red cube.", extra_body={"steps": 1})
    other = openai.OpenAI(base_url=f"{server}/v1", api_key=KEYS[1], max_retries=0)
    for ask in (
        lambda: other.videos.retrieve(mine.id), lambda: other.videos.delete(mine.id),
        lambda: other.videos.download_content(mine.id), lambda: other.videos.remix(mine.id, prompt="mine"),
        lambda: other.videos.list(after=mine.id), lambda: other.post(f"/videos/{mine.id}/cancel", cast_to=object),
    ):  # fmt: skip
        with pytest.raises(openai.NotFoundError, match="no such video"):
            ask()
    assert other.videos.list().data == []
    assert videos.videos.poll(mine.id, poll_interval_ms=100).status == "completed"
    stranger = openai.OpenAI(base_url=f"{server}/v1", api_key="not-a-key", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="key is needed"):
        stranger.videos.list()


def test_a_cancelled_film_has_failed_and_says_why(server: str, videos: openai.OpenAI) -> None:
    video = videos.videos.create(
        prompt="A red cube.", size="64x64", seconds="4", extra_body={"steps": 1000},  # type: ignore[arg-type]
    )  # fmt: skip
    while videos.videos.retrieve(video.id).progress < 1:
        time.sleep(0.05)
    begun = time.monotonic()
    videos.post(f"/videos/{video.id}/cancel", cast_to=object)
    video = videos.videos.poll(video.id, poll_interval_ms=50)
    assert video.status == "failed" and video.error is not None and video.error.code == "cancelled"
    assert time.monotonic() - begun < 20
    with urllib.request.urlopen(
        urllib.request.Request(f"{server}/figures", headers={"Authorization": f"Bearer {KEYS[0]}"})
    ) as response:
        figures = response.read().decode()
    assert 'video_jobs_ended_total{status=\\"cancelled\\"} 1.0' in figures
    assert "video_render_seconds_count" in figures and "video_queue_depth 0.0" in figures


def test_many_clients_at_once_are_all_served_in_order_while_the_server_answers(server: str) -> None:
    """A small stand-in for tests/benchmarks/serving.py."""
    made: list[tuple[float, Any]] = []
    wrong: list[object] = []

    def render(number: int) -> None:
        client = openai.OpenAI(base_url=f"{server}/v1", api_key=KEYS[number % 2], max_retries=0)
        try:
            video = client.videos.create_and_poll(
                prompt=f"A red cube. {number}", poll_interval_ms=100, extra_body={"steps": 2, "seed": number}
            )
            assert client.videos.download_content(video.id).read()[4:8] == b"ftyp"
            made.append((video.created_at, video))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=render, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong and len(made) == 12
    assert {video.prompt for _, video in made} == {f"A red cube. {number}" for number in range(12)}


# -------------------------------------------------------------------------------------------------------- bad treatment


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "nope": 1}, "nope"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "a", "model": "gpt"}, "gpt"),
        ({"prompt": "a", "seconds": "soon"}, "seconds"),
        ({"prompt": "a", "seconds": -4}, "seconds"),
        ({"prompt": "a", "size": "720p"}, "size"),
        ({"prompt": "a", "size": "1280x"}, "size"),
        ({"prompt": "a", "steps": 0}, "steps"),
        ({"prompt": "a", "script": "[1"}, "script"),
        ({"prompt": "a", "script": {"scenes": []}}, "scenes"),
        ({"prompt": "a", "input_reference": "https://example.com/a.png"}, "nothing is fetched"),
        ({"prompt": "a", "input_reference": "data:image/png;base64,###"}, "base64"),
        ({"prompt": "a", "input_reference": url(b"GIF89a no")}, "not a picture"),
        ({"prompt": "a", "input_reference": {"file_id": "x"}}, "image_url"),
        ({"prompt": "a", "references": [{"role": "middle", "image": url(png())}]}, "references.0"),
        ({"prompt": "a", "references": [{"role": "first_frame", "image": url(png())}] * 2}, "two pictures"),
        ({"prompt": "a", "references": [{"role": "first_frame"}]}, "references.0"),
    ],
)
def test_what_cannot_be_used_is_a_400_that_names_it(client: TestClient, fields: dict[str, Any], named: str) -> None:
    assert named in complaint(client.post("/v1/videos", json=fields), 400)
    assert client.get("/v1/videos").json()["data"] == []


def test_bodies_that_are_no_request_are_refused(client: TestClient) -> None:
    complaint(client.post("/v1/videos", content=b"{", headers={"Content-Type": "application/json"}), 400)
    complaint(client.post("/v1/videos", content=b"[]", headers={"Content-Type": "application/json"}), 400)
    complaint(client.post("/v1/videos", content=b"[" * 5000, headers={"Content-Type": "application/json"}), 400)
    complaint(client.post("/v1/videos", content=b"a=b", headers={"Content-Type": "text/plain"}), 415)
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nA red cube.\r\n'
    assert "too early" in complaint(client.post("/v1/videos", content=part, headers=form), 400)
    assert "twice" in complaint(client.post("/v1/videos", content=part * 2 + b"--x--\r\n", headers=form), 400)
    complaint(client.post("/v1/videos", content=part * 65 + b"--x--", headers=form), 400)
    assert "no such field" in complaint(
        client.post("/v1/videos", content=part.replace(b"prompt", b"x") + b"--x--", headers=form), 400
    )
    for query in ("limit=0", "limit=101", "limit=x", "order=up"):
        complaint(client.get(f"/v1/videos?{query}"), 400)
    complaint(client.get("/v1/videos?after=video_0"), 404)
    complaint(client.get("/v1/videos/..%2F..%2Fetc%2Fpasswd/content"), 404)
    complaint(client.get("/v1/videos/nix/content?variant=soul"), 400)
    assert "aloud" in complaint(client.post("/v1/videos/nix/remix", json={"prompt": "a", "aloud": 1}), 400)


def test_a_picture_too_large_is_refused_and_so_is_one_of_too_many_pixels(client: TestClient, jobs: Jobs) -> None:
    noise = os.urandom(5000)
    assert "4096 bytes" in complaint(
        client.post("/v1/videos", data={"prompt": "a"}, files={"input_reference": ("a.png", noise)}), 413
    )
    with TestClient(app(jobs, picture_pixels=100 * 100)) as small:
        answer = small.post("/v1/videos", json={"prompt": "a", "input_reference": url(png(101, 100))})
    assert "10000 pixels" in complaint(answer, 413)


def test_four_gigabytes_are_refused_by_their_announcement_and_by_counting(server: str) -> None:
    host, port = server.removeprefix("http://").split(":")
    head = (
        f"POST /v1/videos HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {KEYS[0]}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n"
    )
    part = b'--x\r\nContent-Disposition: form-data; name="input_reference"; filename="a.png"\r\n\r\n'
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(f"{head}Content-Length: {4 << 30}\r\n\r\n".encode() + part)
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n{len(part):x}\r\n".encode() + part + b"\r\n")
        sent, answer = 0, b""
        connection.settimeout(0.0)
        block = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
        while sent < 4 << 30 and not answer:
            try:
                sent += connection.send(block[sent % len(block) :])
            except BlockingIOError:
                time.sleep(0.001)
            except OSError:
                break
            try:
                answer = connection.recv(4096)
            except BlockingIOError:
                continue
            except OSError:
                break
    assert sent < 256 << 20 and b" 413 " in answer.split(b"\r\n")[0]


def test_an_upload_cut_off_half_way_leaves_nothing(server: str, videos: openai.OpenAI) -> None:
    host, port = server.removeprefix("http://").split(":")
    before = {video.id for video in videos.videos.list(limit=100).data}
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            f"POST /v1/videos HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {KEYS[0]}\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 9000\r\n\r\n--x\r\n"
            'Content-Disposition: form-data; name="prompt"\r\n\r\nA red cube.\r\n--x\r\n'
            'Content-Disposition: form-data; name="input_reference"; filename="a.png"\r\n\r\nhalf'.encode()
        )
    time.sleep(0.2)
    assert {video.id for video in videos.videos.list(limit=100).data} == before


def test_html_in_words_and_names_comes_back_as_data(client: TestClient, jobs: Jobs) -> None:
    words = '<img src=x onerror="alert(1)"> a red cube & "more" </script>'
    made = client.post("/v1/videos", data={"prompt": words}, files={"input_reference": ("<b>/../é🎬.png", png())})
    assert made.status_code == 200 and made.headers["content-type"] == "application/json"
    assert made.json()["prompt"] == words and client.get("/v1/videos").json()["data"][0]["prompt"] == words
    assert sorted(path.name for path in jobs.place(made.json()["id"]).iterdir()) == ["image.png"]
    assert jobs.get(made.json()["id"]).request["script"]["shots"][0]["caption"] == words


def test_first_and_last_pictures_come_as_references(client: TestClient, jobs: Jobs) -> None:
    roles = [{"role": "last_frame", "image": url(png(colour="blue"))}, {"role": "first_frame", "image": url(png())}]
    made = client.post("/v1/videos", json={"prompt": "a", "references": roles}).json()
    place = jobs.place(made["id"])
    assert (place / "image.png").read_bytes() == png() and (place / "last_image.png").read_bytes() == png(colour="blue")
    twice = {"prompt": "a", "references": roles, "input_reference": {"image_url": url(png())}}
    assert "two pictures" in complaint(client.post("/v1/videos", json=twice), 400)


def test_full_queues_are_a_429_with_the_seconds_to_wait(client: TestClient) -> None:
    answers = [client.post("/v1/videos", json={"prompt": "a"}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert "of your films" in complaint(answers[-1], 429) and int(answers[-1].headers["Retry-After"]) >= 1
    assert client.delete(f"/v1/videos/{answers[0].json()['id']}").json()["deleted"] is True
    assert client.post("/v1/videos", json={"prompt": "a"}).status_code == 200
    unmade = client.get(f"/v1/videos/{answers[1].json()['id']}/content")
    assert "queued" in complaint(unmade, 404)


def test_pages_of_another_site_may_not_use_the_server(client: TestClient) -> None:
    foreign = {"Origin": "https://example.com"}
    complaint(client.post("/v1/videos", json={"prompt": "a"}, headers=foreign), 403)
    assert client.get("/v1/videos", headers=foreign).status_code == 200
    assert client.post("/v1/videos", json={"prompt": "a"}, headers={"Origin": "http://testserver"}).status_code == 200


def test_whatever_fits_the_schema_gets_an_answer_that_the_schema_has(tiny_model: Path, tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "data", Limits(queue=4, per_client=4), models=(str(tiny_model),))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app(jobs))
    with TestClient(app(jobs)) as client:
        for path, method in (("/v1/videos", "POST"), ("/v1/videos", "GET"), ("/v1/videos/{video_id}/remix", "POST")):
            strategy = schema[path][method].as_strategy()

            @given(case=strategy)
            @settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            def answers(case: Any) -> None:
                assume(case.media_type != "multipart/form-data")  # the test's client can send texts and files only
                response = client.request(**case.as_transport_kwargs(base_url="http://testserver"))
                assert response.status_code in (200, 400, 404, 413, 415, 429), response.text
                if response.status_code != 200:
                    assert set(response.json()["error"]) == {"type", "message"}

            answers()
    jobs.close()


# ---------------------------------------------------------------------------------------------------------- kill -9


def _serve(data: Path, model: Path, *options: str) -> tuple[subprocess.Popen[str], openai.OpenAI]:
    """A server of its own, as the shell starts it."""
    server = subprocess.Popen(
        [sys.executable, "cli.py", "serve", "--port", "0", "--no-studio", "--json", "--threads", "1",
         "--data", str(data), "--model", str(model), *options],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    address = json.loads(server.stdout.readline())["address"]
    return server, openai.OpenAI(base_url=f"{address}/v1", api_key="none")


def test_a_server_killed_among_its_jobs_loses_none(tiny_model: Path, tmp_path: Path) -> None:
    server, client = _serve(tmp_path, tiny_model)
    try:
        asked = [client.videos.create(prompt="A red cube.", extra_body={"steps": 30}).id for _ in range(6)]
        while sum(client.videos.retrieve(id_).status == "completed" for id_ in asked) < 2:
            time.sleep(0.05)
        films = {id_: client.videos.download_content(id_).read() for id_ in asked[:2]}
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
    server, client = _serve(tmp_path, tiny_model)
    try:
        ended = [client.videos.poll(id_, poll_interval_ms=100) for id_ in asked]
        told = [video.error.code if video.error else video.status for video in ended]
        assert told.count("interrupted") <= 1 and set(told) <= {"completed", "interrupted"}
        assert all(client.videos.download_content(id_).read() == film for id_, film in films.items())
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
