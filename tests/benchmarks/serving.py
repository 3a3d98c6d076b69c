"""How the server bears a crowd and a kill: `python -m tests.benchmarks.serving`, about three minutes.

    crowd   50 clients for 2 minutes against one render worker: no answer of 500 or above, no lost job, memory that does
            not grow, and how long /health takes meanwhile
    kill    20 jobs, kill -9 of the server once 5 are done, a second server on the same folder: how each job ended

Films are tiny and their model is of random weights: what is measured is the server, not the drawing. Clients are
threads of one further process, so that their own work does not count as the server's.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.benchmarks.figures import ROOT, Row


def tiny_model(folder: Path) -> Path:
    """A whole model of random weights: 32 x 32 pixels, half a second."""
    import torch

    from seedance.dit import DiTConfig, VideoDiT
    from seedance.pipeline import Defaults, save_model
    from seedance.vae import VAEConfig, VideoVAE

    torch.manual_seed(0)
    vae = VideoVAE(VAEConfig(encoder_widths=(8, 16, 32), decoder_widths=(8, 16, 32), decoder_blocks=(1, 1, 1)))
    transformer = VideoDiT(DiTConfig(dim=64, head_dim=32, spatial_layers=1, temporal_layers=1, dual_layers=1))
    return save_model(folder, vae, transformer, defaults=Defaults(height=32, width=32, steps=2, seconds=0.5))


class Server:
    """`seedance serve` in a process of its own."""

    def __init__(self, data: Path, model: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "cli.py", "serve", "--port", "0", "--no-studio", "--json", "--data", str(data),
             "--model", str(model), "--per-client", "60", *options],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.address = json.loads(self.process.stdout.readline())["address"]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=60.0)

    def memory(self) -> int:
        """Bytes of the server and of its renderer."""
        process = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))

    def end(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(30)


def film(client: httpx.Client, statuses: Counter[int], **fields: Any) -> str | None:
    """Ask for a film; its id, or None where the server is full, after the seconds it asks to wait."""
    answer = client.post("/v1/videos", json={"prompt": "A red cube jumps.", **fields})
    statuses[answer.status_code] += 1
    if answer.status_code == 429:
        time.sleep(min(float(answer.headers["Retry-After"]), 5.0))
        return None
    answer.raise_for_status()
    return str(answer.json()["id"])


def ended(client: httpx.Client, id_: str, statuses: Counter[int]) -> dict[str, Any]:
    """The video of an id once nothing more happens to it."""
    while True:
        answer = client.get(f"/v1/videos/{id_}")
        statuses[answer.status_code] += 1
        answer.raise_for_status()
        video: dict[str, Any] = answer.json()
        if video["status"] in ("completed", "failed"):
            return video
        time.sleep(float(answer.headers["openai-poll-after-ms"]) / 1000)


def crowd(model: Path, clients: int, seconds: float) -> dict[str, Any]:
    """`clients` that ask for films, wait for them, fetch them, and ask again."""
    statuses: Counter[int] = Counter()
    films: Counter[str] = Counter()
    wrong: list[str] = []
    health: list[float] = []
    memory: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "data", model, "--queue", "60")
        with server.client() as client:  # the model is loaded before the clock starts
            first = film(client, statuses)
            assert first is not None
            ended(client, first, statuses)
        until = time.monotonic() + seconds

        def ask() -> None:
            try:
                with server.client() as client:
                    while time.monotonic() < until:
                        id_ = film(client, statuses)
                        if id_ is None:
                            continue
                        video = ended(client, id_, statuses)
                        films[video["status"]] += 1
                        answer = client.get(f"/v1/videos/{id_}/content")
                        statuses[answer.status_code] += 1
                        if answer.content[4:8] != b"ftyp":
                            wrong.append(f"{id_}: its content is no film")
            except (httpx.HTTPError, KeyError) as error:
                wrong.append(f"{type(error).__name__}: {error}")

        def watch() -> None:
            with server.client() as client:
                while time.monotonic() < until:
                    begun = time.perf_counter()
                    statuses[client.get("/health").status_code] += 1
                    health.append(time.perf_counter() - begun)
                    memory.append(server.memory())
                    time.sleep(0.1)

        threads = [threading.Thread(target=ask) for _ in range(clients)] + [threading.Thread(target=watch)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with server.client() as client:
            figures = client.get("/metrics").text
        server.end()
    lines = [line for line in figures.splitlines() if line.startswith("video_jobs{")]
    counted = {line.split('"')[1]: int(float(line.split()[-1])) for line in lines}
    quarter = max(1, len(memory) // 4)
    quantiles = statistics.quantiles(health, n=100, method="inclusive")
    return {
        "clients": clients,
        "seconds": seconds,
        "answers": {str(status): count for status, count in sorted(statuses.items())},
        "answers_5xx": sum(count for status, count in statuses.items() if status >= 500),
        "films": dict(films),
        "jobs_lost": 1 + sum(films.values()) - counted["completed"] - counted["failed"],
        "jobs_left": counted["queued"] + counted["in_progress"],
        "wrong": wrong[:5],
        "health_ms": {"p50": round(1e3 * quantiles[49], 1), "p99": round(1e3 * quantiles[98], 1),
                      "max": round(1e3 * max(health), 1), "asked": len(health)},
        "memory_mb": {"second quarter": round(statistics.median(memory[quarter : 2 * quarter]) / 1e6),
                      "last quarter": round(statistics.median(memory[-quarter:]) / 1e6)},
    }  # fmt: skip


def kill(model: Path, jobs: int, after: int) -> dict[str, Any]:
    """A server killed among its jobs, and the next one on its folder."""
    statuses: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "data", model)
        with server.client() as client:
            asked = [film(client, statuses, steps=60) for _ in range(jobs)]
            done: list[str] = []
            while len(done) < after:
                answer = client.get("/v1/videos", params={"limit": 100}).json()["data"]
                done = [video["id"] for video in answer if video["status"] == "completed"]
                time.sleep(0.05)
            films = {id_: client.get(f"/v1/videos/{id_}/content").content for id_ in done}
        server.end(signal.SIGKILL)
        server = Server(Path(folder) / "data", model)
        with server.client() as client:
            how = Counter(
                (video["error"] or {"code": "completed"})["code"]
                for video in (ended(client, str(id_), statuses) for id_ in asked)
            )
            same = sum(client.get(f"/v1/videos/{id_}/content").content == data for id_, data in films.items())
        server.end()
    return {"jobs": jobs, "done_before_the_kill": len(films), "of_these_unchanged": same, "ended": dict(how),
            "accounted_for": how["completed"] + how["interrupted"]}  # fmt: skip


def serving() -> list[Row]:
    """Both rows of the table of figures."""
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(Path(folder) / "model")
        many, killed = crowd(model, 50, 120.0), kill(model, 20, 5)
    if many["wrong"]:
        raise RuntimeError(f"serving: {many['wrong']}")
    films, memory, health = sum(many["films"].values()), many["memory_mb"], many["health_ms"]["p99"]
    how = killed["ended"]
    return [
        (
            "50 clients for 2 min, one render worker, tiny model",
            f"{films:,} films; {many['answers_5xx']} answers of 5xx, {many['jobs_lost']} jobs lost, "
            f"{memory['second quarter']} and {memory['last quarter']} MB, `/health` p99 {health:.0f} ms",
            "no 5xx, none lost, flat, < 200 ms",
        ),
        (
            f"kill -9 in the middle of {killed['jobs']} jobs, restarted",
            f"{how.get('completed', 0)} done, {how.get('interrupted', 0)} said to be interrupted",
            f"{killed['jobs']} of {killed['jobs']}",
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="How the server bears a crowd and a kill.")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--jobs", type=int, default=20, help="of the kill")
    parser.add_argument("--only", choices=("crowd", "kill"))
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(Path(folder) / "model")
        result = {}
        if said.only != "kill":
            result["crowd"] = crowd(model, said.clients, said.seconds)
        if said.only != "crowd":
            result["kill"] = kill(model, said.jobs, min(5, said.jobs - 1))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
