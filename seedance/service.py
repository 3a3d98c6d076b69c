"""The REST surface of films, in the shape that OpenAI's video API had: ask for a film, look how it goes, fetch it.

    POST   /v1/videos                  {"prompt": "A red cube jumps.", "seconds": "3", "size": "128x128"} -> a video
    GET    /v1/videos/{id}             queued, in_progress, completed or failed; per cent; seconds left
    GET    /v1/videos/{id}/content     the film; ?variant=thumbnail or spritesheet: a picture of it
    POST   /v1/videos/{id}/cancel      withdraw it, and keep what is known of it
    POST   /v1/videos/{id}/remix       the same with other words; with "shots" only those are made anew
    DELETE /v1/videos/{id}             withdraw it, and forget it
    GET    /v1/videos                  yours, page by page
    GET    /v1/models

`router(jobs, workers)` goes into any FastAPI app. It is a module of its own and not part of `seedance.api`, whose
requests the shell shares: importing this one needs the `serve` extra.

Notable choices:
- Code written for that API runs with another base URL: bodies are JSON or a form with the picture `input_reference`,
  lengths and sizes are texts, and its model names stand for the first model here (`Settings.aliases`). What it did not
  have are further fields: script, seed, fps, steps, guidance_scale, negative_prompt, references, verify, retakes.
- What cannot be used is answered with 400, as its clients expect, an unknown field too; nothing is left out silently.
- A film that was cancelled or interrupted has failed, as far as its clients can tell, and `error.code` says how.
- Pictures come in the request; none is fetched from anywhere.
- With API keys a client sees its own films only, and another's is a 404; without, everybody sees all of them, and
  clients are told apart by their address for the limits alone.
- Words of a client are data: they come back as JSON and nowhere as a page.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import math
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from seedance.errors import SeedanceError
from seedance.jobs import Job, Jobs, NoSuchJob, Progress, QueueFull
from seedance.settle import LETTERS
from seedance.workers import Workers
from shots.errors import ShotsError
from shots.serving.errors import Refusal, documented, guarded
from shots.serving.uploads import receive_form

log = logging.getLogger(__name__)

_ENVELOPE = 1 << 20  # bytes of a request that are not pictures
_SWEEP = 60.0  # seconds between looks for films that are too old
_SHEET = 6  # frames a shot on a sprite sheet


@dataclass(frozen=True)
class Settings:
    """What the routes allow, besides the queue's own `seedance.jobs.Limits`.

    Attributes:
        aliases: names that stand for the first model that is served.
        other_models: what else is served here, for GET /v1/models.
        picture_bytes: of one picture.
        picture_pixels: width x height of one picture.
        transfer_seconds: for a request to arrive.
        in_hand: requests read and checked at a time; more wait.
    """

    aliases: tuple[str, ...] = ("sora-2", "sora-2-pro")
    other_models: tuple[str, ...] = ()
    picture_bytes: int = 16 << 20
    picture_pixels: int = 8192 * 8192
    transfer_seconds: float = 60.0
    in_hand: int = 8


# --------------------------------------------------------------------------------------------------- what is sent


def _size_of(value: Any) -> Any:
    """ "1280x720" as (width, height)."""
    if isinstance(value, str):
        width, x, height = value.lower().partition("x")
        if x and width.isascii() and width.isdigit() and height.isascii() and height.isdigit() and len(value) < 12:
            return int(width), int(height)
    raise ValueError('give it as "WIDTHxHEIGHT", in pixels')


def _number_of(value: Any) -> Any:
    """A number, or a text that holds one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("give a number")
    number = float(value) if len(str(value)) < 32 else math.nan
    if not math.isfinite(number):
        raise ValueError("give a number")
    return number


def _json_of(value: Any) -> Any:
    """What a form can only send as text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        return json.loads(value)
    return value


class CreateVideo(BaseModel):
    """What POST /v1/videos takes. Only `prompt` or `script` is needed."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str | None, Field(max_length=LETTERS, description='"[cut]" and "Shot 1: ..." make shots')] = None
    model: Annotated[str | None, Field(max_length=200)] = None
    seconds: Annotated[
        float | None, BeforeValidator(_number_of), Field(description="of the whole film; a number or its text")
    ] = None
    size: Annotated[
        tuple[int, int] | None,
        BeforeValidator(_size_of, json_schema_input_type=str),
        Field(description='"WIDTHxHEIGHT", pixels; the default is the model\'s'),
    ] = None
    input_reference: Annotated[
        str | dict[str, Any] | None,
        BeforeValidator(_json_of),
        Field(description="first picture: a file of a form; in JSON a data URL, or {image_url: data URL}"),
    ] = None
    script: Annotated[
        str | dict[str, Any] | None,
        BeforeValidator(_json_of),
        Field(description="{title?, style?, caption?, shots: [{caption, seconds?, camera?}]}; goes before the prompt"),
    ] = None
    seed: Annotated[int | None, Field(ge=0, lt=2**63)] = None
    fps: Annotated[float | None, Field(gt=0, le=240)] = None
    steps: Annotated[int | None, Field(ge=1, le=1000)] = None
    guidance_scale: Annotated[float | None, Field(ge=0, le=100)] = None
    negative_prompt: Annotated[str | None, Field(max_length=LETTERS)] = None
    references: Annotated[
        list[dict[str, str]] | None,
        BeforeValidator(_json_of),
        Field(max_length=2, description="[{role: first_frame | last_frame, image: data URL}]"),
    ] = None
    verify: Annotated[bool | None, Field(description="look whether every shot shows what it should")] = None
    retakes: Annotated[int | None, Field(ge=0, le=20, description="how often failed shots are made anew")] = None


class RemixVideo(BaseModel):
    """What POST /v1/videos/{id}/remix takes; all that is not said stays as it was."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str | None, Field(max_length=LETTERS)] = None
    script: Annotated[str | dict[str, Any] | None, BeforeValidator(_json_of)] = None
    shots: Annotated[
        list[int] | None, Field(min_length=1, description="from 1: only these are made anew, the others stay")
    ] = None
    seed: Annotated[int | None, Field(ge=0, lt=2**63)] = None


class VideoError(BaseModel):
    code: Annotated[str, Field(description="cancelled, interrupted, invalid_request, out_of_memory, worker_died, ...")]
    message: str


class Video(BaseModel):
    """A film, made or to be made. Times are whole seconds since 1970."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: Annotated[int, Field(ge=0, le=100)]
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str
    seconds: Annotated[str, Field(description="of the whole film")]
    size: Annotated[str, Field(description='"WIDTHxHEIGHT", pixels')]
    error: VideoError | None
    remixed_from_video_id: str | None
    stage: Annotated[str, Field(description="what is being done")]
    eta_seconds: Annotated[float | None, Field(description="until it is done; null while nothing is known")]
    position: Annotated[int, Field(description="films that come before it")]
    seed: int
    fps: float
    steps: int
    guidance_scale: float
    script: dict[str, Any]
    warnings: list[str]
    verification: Annotated[dict[str, Any] | None, Field(description="where it was asked for")]


class VideoList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "seedance"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def video_of(job: Job, progress: Progress, expires_at: float | None) -> Video:
    """A job as its clients see it."""
    status = job.status if job.status in ("queued", "in_progress", "completed") else "failed"
    wrong = None if job.error_code is None else VideoError(code=job.error_code, message=job.error_message or "")
    return Video(
        id=job.id, model=job.model, status=status, progress=progress.percent, created_at=int(job.created_at),
        completed_at=None if job.completed_at is None else int(job.completed_at),
        expires_at=None if expires_at is None else int(expires_at), prompt=job.prompt, seconds=f"{job.seconds:.6g}",
        size=f"{job.width}x{job.height}", error=wrong, remixed_from_video_id=job.source, stage=progress.stage,
        eta_seconds=None if progress.eta_seconds is None else round(progress.eta_seconds, 1),
        position=progress.position, seed=job.request["seed"], fps=job.request["fps"], steps=job.request["steps"],
        guidance_scale=job.request["guidance_scale"], script=job.request["script"],
        warnings=list(job.result.get("warnings", ())), verification=job.result.get("verification"),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the work


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    """The queue's errors as answers."""
    try:
        yield
    except NoSuchJob as error:
        raise Refusal(404, "video: there is no such video, or no longer") from error
    except QueueFull as error:
        raise Refusal(429, str(error), {"Retry-After": str(error.retry_after)}) from error
    except SeedanceError as error:
        raise Refusal(400, str(error)) from error


@dataclass(frozen=True)
class _Client:
    """sees: whose jobs may be seen, None is everybody's. name: whose a new job is."""

    sees: str | None
    name: str


def _client(request: Request) -> _Client:
    known = getattr(request.state, "client", None)
    if known is not None:
        return _Client(known, known)
    return _Client(None, f"at {request.client.host}" if request.client else "")


class _Service:
    """The state behind the routes."""

    def __init__(self, jobs: Jobs, workers: Workers | None, settings: Settings) -> None:
        self.jobs, self.workers, self.settings = jobs, workers, settings
        self._in_hand = asyncio.Semaphore(settings.in_hand)

    @contextlib.asynccontextmanager
    async def running(self, _: Any) -> AsyncIterator[None]:
        """The lifespan: films are made while it lasts."""
        sweeping = asyncio.create_task(self._sweep())
        try:
            if self.workers is None:
                yield
            else:
                self.workers.__enter__()
                try:
                    yield
                finally:
                    await run_in_threadpool(self.workers.__exit__, None, None, None)
        finally:
            sweeping.cancel()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            try:
                await run_in_threadpool(self.jobs.sweep)
            except (OSError, sqlite3.Error):  # a disk that is full or gone now may be there the next time
                log.exception("old films could not be removed")

    async def create(self, request: Request) -> Video:
        """Take in a request for a film."""
        client = _client(request)
        with _answered():  # before a body is read that a refusal would waste
            await run_in_threadpool(self.jobs.check_place, client.name)
        async with self._in_hand:
            fields, files = await self._body(request)
            wanted = _checked(CreateVideo, fields)
            return await run_in_threadpool(self._submit, wanted, files, client)

    async def _body(self, request: Request) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Fields and files of a request, JSON or a form."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            form = await receive_form(request, files=("input_reference",), seconds=self.settings.transfer_seconds)
            return dict(form.fields), form.files
        if kind != "application/json":
            raise Refusal(415, "body: send application/json or multipart/form-data")
        try:
            async with asyncio.timeout(self.settings.transfer_seconds):
                body = await request.body()
            fields = json.loads(body)
        except TimeoutError as error:
            raise Refusal(408, f"body: not there within {self.settings.transfer_seconds:g} seconds") from error
        except (ValueError, RecursionError) as error:
            raise Refusal(400, "body: not valid JSON") from error
        if not isinstance(fields, dict):
            raise Refusal(400, "body: a JSON object is needed")
        return fields, {}

    def _submit(self, wanted: CreateVideo, files: Mapping[str, bytes], client: _Client) -> Video:
        said = wanted.model_dump(exclude_none=True, exclude={"size", "input_reference", "references"})
        if wanted.size is not None:
            said["width"], said["height"] = wanted.size
        if said.get("model") in self.settings.aliases:
            del said["model"]
        pictures = self._pictures(wanted, files)
        with _answered():
            job = self.jobs.submit(said, client=client.name, pictures=pictures, sees=client.sees)
            return self.video(job)

    def _pictures(self, wanted: CreateVideo, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """The pictures of a request, looked at."""
        found: list[tuple[str, str, bytes]] = []
        if "input_reference" in files:
            found.append(("image", "input_reference", files["input_reference"]))
        elif wanted.input_reference is not None:
            url = wanted.input_reference
            if isinstance(url, dict):
                if set(url) != {"image_url"} or not isinstance(url["image_url"], str):
                    raise Refusal(400, "input_reference: give a file, a data URL, or {image_url: data URL}")
                url = url["image_url"]
            found.append(("image", "input_reference", _data(url, "input_reference")))
        for number, each in enumerate(wanted.references or ()):
            where, role = f"references.{number}", each.get("role")
            if set(each) != {"role", "image"} or role not in ("first_frame", "last_frame"):
                raise Refusal(400, f"{where}: give role, first_frame or last_frame, and image, a data URL")
            found.append(("image" if role == "first_frame" else "last_image", where, _data(each["image"], where)))
        if len({name for name, _, _ in found}) < len(found):
            raise Refusal(400, "references: two pictures for the same frame; give one")
        for _, where, data in found:
            self._look(data, where)
        return {name: data for name, _, data in found}

    def _look(self, data: bytes, where: str) -> None:
        """Raises Refusal for what is no picture, or too large a one, before it is decoded whole."""
        import io

        from PIL import Image

        if len(data) > self.settings.picture_bytes:
            raise Refusal(413, f"{where}: more than the {self.settings.picture_bytes} bytes that this server takes")
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")) as picture:
                width, height = picture.size
                if width * height <= self.settings.picture_pixels:
                    picture.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise Refusal(400, f"{where}: not a picture that can be read; use PNG, JPEG or WebP") from error
        if width * height > self.settings.picture_pixels:
            raise Refusal(413, f"{where}: more than the {self.settings.picture_pixels} pixels that this server takes")

    def video(self, job: Job) -> Video:
        """A job as its clients see it, now."""
        return video_of(job, self.jobs.progress(job.id), self.jobs.expires_at(job))

    def look(self, id_: str, client: _Client) -> Video:
        with _answered():
            return self.video(self.jobs.get(id_, client.sees))

    def cancel(self, id_: str, client: _Client) -> Video:
        with _answered():
            return self.video(self.jobs.cancel(id_, client.sees))

    def delete(self, id_: str, client: _Client) -> None:
        with _answered():
            self.jobs.delete(id_, client.sees)

    def remix(self, id_: str, wanted: RemixVideo, client: _Client) -> Video:
        with _answered():
            self.jobs.get(id_, client.sees)
            said = {"source": id_, **wanted.model_dump(exclude_none=True)}
            return self.video(self.jobs.submit(said, client=client.name, sees=client.sees))

    def page(self, client: _Client, limit: int, after: str | None, order: str) -> VideoList:
        with _answered():
            found = self.jobs.list(client.sees, limit=limit + 1, after=after, newest_first=order == "desc")
            data = []
            for job in found[:limit]:
                with contextlib.suppress(NoSuchJob):  # deleted since it was looked up
                    data.append(self.video(job))
        return VideoList(
            data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None,
            has_more=len(found) > limit,
        )  # fmt: skip

    def content(self, id_: str, variant: str, client: _Client) -> Response:
        """The film, or a picture of it."""
        with _answered():
            job = self.jobs.get(id_, client.sees)
            if job.status != "completed":
                previews = self.jobs.progress(id_).previews
                if variant == "thumbnail" and previews:
                    return Response(previews[0], media_type="image/jpeg")
                raise Refusal(404, f"video: it is not ready, its status is {self.video(job).status}")
            film = self.jobs.film(id_)
        if not film.exists():
            raise Refusal(404, "video: there is no such video, or no longer")
        if variant == "video":
            return FileResponse(film, media_type="video/mp4", filename=f"{id_}.mp4", stat_result=film.stat())
        path, kind = film.with_name(f"{variant}.png"), "image/png"
        if not path.exists():
            _picture_of(film, path, variant)
        return FileResponse(path, media_type=kind, filename=f"{id_}-{path.name}", stat_result=path.stat())


def _checked(kind: type[Any], fields: Mapping[str, Any]) -> Any:
    """The fields as `kind`, or a refusal that names what is wrong, never the values themselves."""
    try:
        return kind.model_validate({name: value for name, value in fields.items() if value is not None})
    except (ValidationError, RecursionError) as error:
        problems = error.errors() if isinstance(error, ValidationError) else []
        told = []
        for problem in problems[:3]:
            where = ".".join(str(part) for part in problem["loc"][:3]) or "body"
            if problem["type"] == "extra_forbidden":
                told.append(f"{where[:100]}: no such field; there are {', '.join(kind.model_fields)}")
            else:
                told.append(f"{where[:100]}: {problem['msg'].removeprefix('Value error, ')}"[:300])
        raise Refusal(400, "; ".join(told) or "body: nested too deeply") from error


def _data(url: str, where: str) -> bytes:
    """The bytes of a data URL."""
    head, comma, body = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise Refusal(400, f"{where}: give the picture itself, as data:image/png;base64,...; nothing is fetched")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"{where}: its base64 is damaged") from error


def _picture_of(film: Path, path: Path, variant: str) -> None:
    """A picture of a film, made when it is first asked for."""
    temporary = path.with_name(f".{os.urandom(4).hex()}.{path.name}")
    try:
        if variant == "spritesheet":
            from shots.sheet import film_sheet

            film_sheet(film, temporary, columns=_SHEET)
        else:
            from PIL import Image

            from shots.video import frames_at

            Image.fromarray(next(iter(frames_at(film, [0.0])))[1]).save(temporary)
        os.replace(temporary, path)
    except (OSError, ShotsError) as error:
        temporary.unlink(missing_ok=True)
        raise Refusal(404, "video: there is no such video, or no longer") from error


# ----------------------------------------------------------------------------------------------------- the routes

VideoId = Annotated[str, InPath(min_length=1, max_length=64)]
_BODY = {"application/json": {"schema": CreateVideo.model_json_schema()}}
_FORM = {"multipart/form-data": {"schema": CreateVideo.model_json_schema()}}


def router(jobs: Jobs, workers: Workers | None = None, settings: Settings | None = None) -> APIRouter:
    """The routes of this module, for any FastAPI app.

    workers: made to work while the app lives; None where something else works the queue through. An app that includes
    the router runs its lifespan; it should also call `shots.serving.errors.handle_errors`, and say whose a request is
    in `request.state.client` where that is to be told (`shots.serving.access`).
    """
    settings = settings or Settings()
    service = _Service(jobs, workers, settings)
    made = APIRouter(
        tags=["seedance"],
        lifespan=service.running,
        route_class=guarded(3 * settings.picture_bytes + _ENVELOPE, invalid=400),  # two pictures, in base64
        generate_unique_id_function=lambda route: f"seedance_{route.name}",
    )

    @made.post(
        "/v1/videos",
        openapi_extra={"requestBody": {"required": True, "content": {**_BODY, **_FORM}}},
        responses=documented(400, 408, 413, 415, 429),
    )
    async def create(request: Request) -> Video:
        """Ask for a film. It is made when its turn comes."""
        return await service.create(request)

    @made.get("/v1/videos", responses=documented(400, 404))
    def page(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(max_length=64, description="the last id of the page before")] = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoList:
        """Your films, the newest first or last."""
        return service.page(_client(request), limit, after, order)

    @made.get("/v1/videos/{video_id}", responses=documented(400, 404))
    def look(request: Request, response: Response, video_id: VideoId) -> Video:
        """How a film goes."""
        video = service.look(video_id, _client(request))
        # The header tells the client's polling helper when to look again.
        response.headers["openai-poll-after-ms"] = str(round(min(max(100 * (video.eta_seconds or 5), 250), 5000)))
        return video

    @made.get(
        "/v1/videos/{video_id}/content",
        response_class=FileResponse,
        responses={
            200: {"content": {"video/mp4": {}, "image/png": {}, "image/jpeg": {}}, "description": "The file."},
            **documented(400, 404),
        },
    )
    def content(
        request: Request, video_id: VideoId, variant: Literal["video", "thumbnail", "spritesheet"] = "video"
    ) -> Response:
        """The film, or a picture of it; while it is being made its thumbnail is a preview."""
        return service.content(video_id, variant, _client(request))

    @made.post("/v1/videos/{video_id}/cancel", responses=documented(400, 404))
    def cancel(request: Request, video_id: VideoId) -> Video:
        """Withdraw a film: one in line is never made, one being made stops at its next step."""
        return service.cancel(video_id, _client(request))

    @made.post("/v1/videos/{video_id}/remix", responses=documented(400, 404, 413, 429))
    def remix(request: Request, video_id: VideoId, body: RemixVideo) -> Video:
        """The same film with other words, or with some of its shots made anew."""
        return service.remix(video_id, body, _client(request))

    @made.delete("/v1/videos/{video_id}", responses=documented(400, 404))
    def delete(request: Request, video_id: VideoId) -> VideoDeleted:
        """Remove a film; one that is not made yet is withdrawn."""
        service.delete(video_id, _client(request))
        return VideoDeleted(id=video_id)

    @made.get("/v1/models", responses=documented())
    def models() -> ModelList:
        """What is served here."""
        return ModelList(data=[Model(id=name) for name in (*jobs.models, *settings.other_models)])

    @made.get("/v1/models/{name:path}", responses=documented(404))
    def model(name: str) -> Model:
        """One of them."""
        if name not in (*jobs.models, *settings.other_models):
            raise Refusal(404, "model: it is not served here; GET /v1/models lists what is")
        return Model(id=name)

    return made


def film_metrics(registry: Any, jobs: Jobs) -> Callable[[Job, float], None]:
    """Tell Prometheus of the queue in `registry`. Returns what `Workers` calls with every job that it is done with."""
    from prometheus_client import Counter, Histogram
    from prometheus_client.core import GaugeMetricFamily

    class Queue:
        def collect(self) -> Iterator[Any]:
            counts = jobs.counts()
            states = GaugeMetricFamily("video_jobs", "Jobs that are kept, by their status", labels=["status"])
            for status, count in counts.items():
                states.add_metric([status], count)
            yield states
            yield GaugeMetricFamily("video_queue_depth", "Jobs in line", value=counts["queued"])
            yield GaugeMetricFamily("video_disk_bytes", "Bytes of all films", value=jobs.disk_bytes())

    registry.register(Queue())
    seconds = Histogram(
        "video_render_seconds", "From a job's turn to its end", registry=registry,
        buckets=(0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200),
    )  # fmt: skip
    ended = Counter("video_jobs_ended", "Jobs that were worked on and ended, by how", ("status",), registry=registry)

    def done(job: Job, took: float) -> None:
        try:
            status = jobs.get(job.id).status
        except SeedanceError:  # deleted while it was made
            status = "cancelled"
        ended.labels(status).inc()
        if status == "completed":
            seconds.observe(took)

    return done
