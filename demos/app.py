"""The server: the studio, films and moments in one ASGI app, behind one lock.

    GET  /                         the studio (`demos.studio`)
    ...  /v1/videos, /v1/models    films (`seedance.service`)
    POST /v1/ground, /v1/ask, ...  moments (`unitime.api`)
    GET  /health, /metrics         whether it is up, and what Prometheus wants to know
    GET  /docs, /openapi.json      what there is

Notable choices:
- `build(settings)` gives the app, `serve(settings)` runs it until it is stopped. Building it loads no model and no
  torch; the page and /health are up at once, and the first film and the first question load what they need.
- Films are made by processes of their own (`seedance.workers`), so /health answers while they are.
- All of the server's files lie in one folder: queue and films in it, what was uploaded in `uploads`. One server at a
  time; what was in line when it ended, however it ended, is gone on with by the next.
- With API keys everything but /health needs one: API clients send it as a bearer token, browsers ask for it as a
  password. The studio then shows a client its own films only, as the API does.
- /v1/ground reads the films of the queue by "ID/film.mp4" without an upload; not with API keys, as a path knows no
  owner.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.routing import Match, Mount

from seedance import __version__, service
from seedance.errors import SeedanceError
from seedance.jobs import Jobs, Limits
from seedance.workers import Workers
from shots.serving.access import Access, check_keys
from shots.serving.errors import Refusal, error_response, handle_errors
from unitime import api as grounding

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@dataclass(frozen=True)
class Settings:
    """What a server is.

    Attributes:
        data: folder of the queue, films and uploads, this server's alone.
        models: that make films, the first by default: shipped names, folders or hub ids.
        grounder, adapter: what finds moments, and the LoRA weights to put on it.
        keys: API keys, one a client; none: everybody may ask.
        devices: a renderer each; None is the best there is.
        threads: of torch in each renderer; None leaves a core free.
        studio: whether the page is served too.
        load: "module:function" that renderers make films with (`demos.takes`).
        limits, videos, moments: of the queue, of its routes, and of the grounding routes.
    """

    data: Path = Path("outputs/server")
    models: tuple[str, ...] = ("seedance-nano",)
    grounder: str = "unitime-nano"
    adapter: str | None = None
    keys: tuple[str, ...] = ()
    devices: tuple[str | None, ...] = (None,)
    threads: int | None = None
    studio: bool = True
    load: str = "demos.takes:load"
    limits: Limits = field(default_factory=Limits)
    videos: service.Settings | None = None
    moments: grounding.Settings | None = None


def build(settings: Settings) -> FastAPI:
    """The app. It takes its folder at once, and lets go of it when the app's life ends."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, GCCollector, ProcessCollector, generate_latest

    from shots.serving.metrics import Counted

    check_keys(settings.keys)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    jobs = Jobs(settings.data, settings.limits, models=settings.models)
    try:
        workers = Workers(
            jobs, settings.devices, load=settings.load, threads=settings.threads,
            options={"grounder": settings.grounder, "adapter": settings.adapter or ""},
            on_done=service.film_metrics(registry, jobs),
        )  # fmt: skip

        @contextlib.asynccontextmanager
        async def life(_: FastAPI) -> AsyncIterator[None]:
            try:
                yield
            finally:
                await run_in_threadpool(jobs.close)

        app = FastAPI(
            title="Seedance", summary="Films from scripts, and moments in films.", version=__version__,
            lifespan=life,
        )  # fmt: skip
        videos = settings.videos or service.Settings(other_models=(settings.grounder,))
        app.include_router(service.router(jobs, workers, videos))
        moments = settings.moments or grounding.Settings(
            model=settings.grounder, files=settings.data / "uploads",
            videos=None if settings.keys else jobs.folder / "films",
        )  # fmt: skip
        app.include_router(grounding.router(_grounders(settings), moments))
        handle_errors(app)

        @app.get("/health", tags=["server"])
        async def health() -> dict[str, str]:
            """Answers as long as the server does."""
            return {"status": "ok", "version": app.version}

        @app.get("/metrics", tags=["server"], response_class=Response)
        def metrics() -> Response:
            """Figures for Prometheus."""
            return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

        @app.api_route("/v1/{rest:path}", methods=list(METHODS), include_in_schema=False)
        async def nothing(request: Request) -> Response:
            """Else the studio, which lies at the root, would answer what no route of the API does."""
            allowed = _methods(app, request)
            headers = {"Allow": ", ".join(allowed)} if allowed else None
            return error_response(Refusal(405 if allowed else 404, "Not Found", headers))

        if settings.studio:
            _add_studio(app, settings, jobs)
        app.add_middleware(Access, keys=settings.keys)
        app.add_middleware(Counted, registry=registry)
    except BaseException:
        jobs.close()
        raise
    return app


def serve(settings: Settings, host: str, port: int, told: Callable[[str], None]) -> None:
    """Run the server until it is stopped. told: called with its address once it is this server's."""
    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=512)
    with listening:
        app = build(settings)
        shown = f"[{host}]" if ":" in host else host
        told(f"http://{shown}:{listening.getsockname()[1]}")
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5, server_header=False)
        uvicorn.Server(config).run(sockets=[listening])


def _grounders(settings: Settings) -> grounding.Load:
    def load(device: str | None) -> Any:
        from unitime import UniTime

        return UniTime.from_pretrained(settings.grounder, adapter=settings.adapter, device=device)

    return load


def _add_studio(app: FastAPI, settings: Settings, jobs: Jobs) -> None:
    """The page, at the root, under everything else."""
    if find_spec("gradio") is None:
        raise SeedanceError("studio: gradio is not installed; install the demo extra, or serve with --no-studio")
    import gradio

    from demos.services import Services
    from demos.studio import build as build_page
    from demos.studio import page_options

    grounders, lock = _grounders(settings), threading.Lock()

    def grounder() -> Any:
        with lock:
            return grounders(None)

    def client(request: Any) -> str | None:
        return getattr(request, "username", None) if settings.keys else None

    services = Services(jobs, grounder, client=client)
    options = page_options(services)
    if settings.keys:
        options["auth_dependency"] = lambda request: request.state.client
    gradio.mount_gradio_app(app, build_page(services), path="/", **options)


def _methods(app: FastAPI, request: Request) -> list[str]:
    """The methods that an address of the API takes."""
    routes = [r for r in app.routes if not isinstance(r, Mount) and getattr(r, "name", None) != "nothing"]
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    return [method for method in METHODS if any(r.matches(scopes[method])[0] is Match.FULL for r in routes)]
