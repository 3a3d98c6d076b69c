"""The REST surface: upload a video once, ask many times when something happens in it, or what.

    POST   /v1/files        a video file, multipart       -> its id
    GET    /v1/files/{id}   what is known of it
    DELETE /v1/files/{id}
    POST   /v1/ground       a video and queries           -> moments with scores
    POST   /v1/ask          a video and a question        -> an answer and the moment it was found in

`router(load, settings)` goes into any FastAPI app; `app(load, settings)` is one by itself.

Notable choices:
- Importing this loads no torch. `load(device)` is called in a worker's thread when its first job comes.
- One worker per device behind a bounded queue (`shots.serving.workers`). A client that leaves takes its job with it:
  a waiting one is never run, a running one stops at the next batch of queries, and inside one where the grounder's
  methods take a `cancelled` event.
- The encoded handles of uploaded and local files are kept per worker, the least recently used goes first, so that the
  second request on a video only pays for its queries. A fetched URL is removed after its answer.
- Local paths and URLs are off unless the settings name a folder or hosts. Every file, wherever from, is looked at
  before a decoder sees it (`shots.serving.videos`).
- Every error is {"error": {"type", "message"}}; a message names the argument, and no path of the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import math
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi import Path as InPath
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, StringConstraints, Tag
from starlette.concurrency import run_in_threadpool

from shots.errors import ShotsError
from shots.serving.errors import Refusal, documented, guarded, handle_errors
from shots.serving.fetch import fetch
from shots.serving.store import Store, Stored
from shots.serving.uploads import MULTIPART, receive_file
from shots.serving.videos import admit, local
from shots.serving.workers import Closed, Full, NotLoaded, Workers
from unitime.errors import UniTimeError
from unitime.prompts import QUERY_LENGTH

log = logging.getLogger(__name__)

Result = TypeVar("Result")

QUERIES = 200  # in one request
TOP_K = 20
OPTIONS = 26  # of one question
_ENVELOPE = 1 << 16  # bytes of an upload that are not the file
_SWEEP = 60.0  # seconds between looks for files that are too old


class Grounder(Protocol):
    """What is served: `unitime.UniTime`, or anything that grounds like it.

    `encode`, `ground` and `ask` may take `cancelled`, a threading.Event that is set when nobody waits any more; what
    they return or raise after that is thrown away.
    """

    def encode(self, video: Path) -> Any:
        """A handle with `.duration`, seconds."""

    def ground(
        self,
        video: Any,
        queries: Sequence[str],
        *,
        top_k: int,
        window: tuple[float, float] | None,
        threshold: float | None,
    ) -> Sequence[Any]:
        """One `unitime.Grounding` a query."""

    def ask(
        self, video: Any, question: str, options: Sequence[str] | None, *, window: tuple[float, float] | None
    ) -> Any:
        """A `unitime.Answer`."""


Load = Callable[[str | None], Grounder]
"""Makes the grounder of a device; None is the best there is."""


@dataclass(frozen=True)
class Settings:
    """What a server allows. Every limit answers 413 or 422 when passed, a full queue 429.

    Attributes:
        model: the name that responses carry.
        devices: one worker each; None is the best there is.
        queue: jobs that may wait, besides those that run.
        handles: encoded videos kept per worker.
        batch: queries put to the model at once; between batches it is noticed that a client left.
        answer_seconds: for a whole answer, fetching and waiting included.
        body_bytes: of a JSON body.
        videos: folder below which local paths are read; None: no local paths.
        hosts: that URLs are fetched from, "name" (usual ports) or "name:port"; none: no URLs.
        files: folder of uploaded files, this server's alone; None: a temporary one.
        file_bytes: of one upload or fetched video.
        files_bytes: of all uploaded and fetched videos together; the files used longest ago make way.
        file_seconds: after which an uploaded file goes.
        video_seconds: longest video.
        video_pixels: largest picture, width x height.
        transfer_seconds: for one upload, or one fetch.
        transfers: uploads and fetches at a time.
    """

    model: str = "unitime-nano"
    devices: tuple[str | None, ...] = (None,)
    queue: int = 16
    handles: int = 4
    batch: int = 16
    answer_seconds: float = 600.0
    body_bytes: int = 1 << 20
    videos: Path | None = None
    hosts: frozenset[str] = frozenset()
    files: Path | None = None
    file_bytes: int = 2 << 30
    files_bytes: int = 20 << 30
    file_seconds: float = 24 * 3600.0
    video_seconds: float = 4 * 3600.0
    video_pixels: int = 7680 * 4320
    transfer_seconds: float = 600.0
    transfers: int = 4

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least = 0 if each.name == "queue" else 1
            if isinstance(value, (int, float)) and not (math.isfinite(value) and value > 0 or value == least):
                raise UniTimeError(f"{each.name}: {value}; a finite number above 0 is needed")
        if not self.devices:
            raise UniTimeError("devices: none given; name at least one, None is the best there is")
        if self.files_bytes < self.file_bytes:
            raise UniTimeError(f"files_bytes: {self.files_bytes} is less than one file's {self.file_bytes}")


# --------------------------------------------------------------------------------------------------- what is sent


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Window = Annotated[
    list[Seconds] | None,
    Field(min_length=2, max_length=2, description="[start, end], seconds; only there is looked; null: everywhere"),
]
Words = Annotated[str, StringConstraints(min_length=1, max_length=QUERY_LENGTH, pattern=r"\S")]


def _whole(value: Any) -> Any:
    """1.0 is a whole number too: JSON has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class FileVideo(_Body):
    """A video that was uploaded."""

    file_id: Annotated[str, Field(min_length=1, max_length=64, description="from POST /v1/files")]


class PathVideo(_Body):
    """A video on the server, where it allows a folder."""

    path: Annotated[str, Field(min_length=1, max_length=4096, description="below the folder that the server allows")]


class UrlVideo(_Body):
    """A video on another host, where the server allows that host."""

    url: Annotated[str, Field(min_length=1, max_length=2048, pattern=r"^https?://", description="http or https")]


def _which(video: Any) -> str | None:
    """The one key that says where a video is, of a request not yet checked."""
    if isinstance(video, BaseModel):
        return next(iter(type(video).model_fields))
    names = {"file_id", "path", "url"} & set(video) if isinstance(video, dict) else set()
    return names.pop() if len(names) == 1 else None


Video = Annotated[
    Annotated[FileVideo, Tag("file_id")] | Annotated[PathVideo, Tag("path")] | Annotated[UrlVideo, Tag("url")],
    Discriminator(
        _which, custom_error_type="video", custom_error_message="give an object with one of file_id, path and url"
    ),
]


class Wanted(_Body):
    """What else to return."""

    relevance: Annotated[bool, Field(description="how relevant each time that was looked at is")] = False
    raw: Annotated[bool, Field(description="the model's own words, where it was asked for words")] = False


class GroundRequest(_Body):
    """When do these things happen in this video?"""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"video": {"path": "film.mp4"}, "queries": ["a red cube jumps"], "top_k": 3}],
        }
    )

    video: Video
    queries: Annotated[list[Words], Field(min_length=1, max_length=QUERIES)]
    top_k: Annotated[
        int, Field(ge=1, le=TOP_K, description="moments per query, at most"), BeforeValidator(_whole)
    ] = 1
    window: Window = None
    threshold: Annotated[
        Share | None,
        Field(description="with `not_found` above it a query gets no moments; 1: always some; null: the model's own"),
    ] = None
    wanted: Annotated[Wanted, Field(alias="return")] = Wanted()


class AskRequest(_Body):
    """A question about a video, answered from the moment that bears on it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"video": {"path": "film.mp4"}, "question": "What jumps?", "options": ["a cube", "a cone"]}],
        }
    )

    video: Video
    question: Words
    options: Annotated[list[Words] | None, Field(min_length=2, max_length=OPTIONS)] = None
    window: Window = None


# ----------------------------------------------------------------------------------------------- what comes back


Time = Annotated[float, Field(ge=0, allow_inf_nan=False, description="seconds on the file's own clock")]


class VideoFacts(BaseModel):
    duration: Annotated[float, Field(ge=0, allow_inf_nan=False, description="seconds")]


class MomentFacts(BaseModel):
    start: Time
    end: Time
    score: Annotated[Share, Field(description="probability that this is the moment")]


class RelevancePoint(BaseModel):
    time: Time
    value: Annotated[Share, Field(description="probability that it happens then")]


class GroundingFacts(BaseModel):
    query: str
    moments: list[MomentFacts]
    status: Literal["ok", "not_found", "parse_error"]
    not_found: Annotated[Share, Field(description="probability that it never happens")]
    relevance: Annotated[list[RelevancePoint] | None, Field(description="only when asked for")] = None
    raw: Annotated[str | None, Field(description="only when asked for, and where there are words")] = None


class Usage(BaseModel):
    """What an answer took. Seconds are of the clock on the wall."""

    queries: int
    cached: Annotated[bool, Field(description="whether the encoded video was at hand")]
    waiting_seconds: Seconds
    encoding_seconds: Seconds
    answering_seconds: Seconds


class GroundResponse(BaseModel):
    id: str
    model: str
    video: VideoFacts
    groundings: Annotated[list[GroundingFacts], Field(description="one a query, in their order")]
    usage: Usage


class AskResponse(BaseModel):
    id: str
    model: str
    video: VideoFacts
    answer: str
    option: Annotated[int | None, Field(ge=0, description="which of the options, from 0; only with options")] = None
    scores: Annotated[list[Share] | None, Field(description="probability of each option; only with options")] = None
    evidence: Annotated[MomentFacts | None, Field(description="the moment that was looked at")] = None
    usage: Usage


class FileFacts(BaseModel):
    id: Annotated[str, Field(description="for file_id; whoever knows it can use and delete the file")]
    name: str
    bytes: int
    duration: Annotated[float, Field(description="seconds")]
    width: Annotated[int, Field(description="pixels")]
    height: Annotated[int, Field(description="pixels")]
    fps: Annotated[float, Field(description="frames a second, the average")]
    created_at: Annotated[int, Field(description="seconds since 1970")]
    expires_at: Annotated[int, Field(description="seconds since 1970; earlier when room is needed")]


FileId = Annotated[str, InPath(min_length=1, max_length=64)]


class FileDeleted(BaseModel):
    id: str
    deleted: bool


# ------------------------------------------------------------------------------------------------------- the work


@dataclass(frozen=True)
class _Source:
    """A video that a job may use. key: under which its handle is kept, None: it is not. name: for messages."""

    path: Path
    key: str | None
    name: str
    release: Callable[[], None] = lambda: None


@dataclass(eq=False)
class _Loaded:
    """A worker's grounder and the handles it has made, the latest used last."""

    grounder: Grounder
    most: int
    handles: OrderedDict[str, Any] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def encoded(self, source: _Source, cancelled: threading.Event) -> tuple[Any, bool]:
        """The handle of a video, and whether it was at hand."""
        with self.lock:
            if source.key is not None and source.key in self.handles:
                self.handles.move_to_end(source.key)
                return self.handles[source.key], True
        handle = self.call("encode", cancelled, source.path)
        if source.key is not None:
            with self.lock:
                self.handles[source.key] = handle
                while len(self.handles) > self.most:
                    self.handles.popitem(last=False)
        return handle, False

    def call(self, name: str, cancelled: threading.Event, *arguments: Any, **options: Any) -> Any:
        """The grounder's method of this name, with `cancelled` where it takes it."""
        method = getattr(self.grounder, name)
        if "cancelled" in inspect.signature(method).parameters:
            options["cancelled"] = cancelled
        return method(*arguments, **options)

    def forget(self, key: str | None = None) -> None:
        """Let go of the handle of `key`, or of all."""
        with self.lock:
            if key is None:
                self.handles.clear()
            else:
                self.handles.pop(key, None)


@dataclass(frozen=True)
class _Done:
    """What a job brings back."""

    duration: float
    found: Any
    cached: bool
    encoding: float
    answering: float


_Question = Callable[[_Loaded, Any, threading.Event], Any]
"""`question(loaded, handle, cancelled)`: what is done with an encoded video."""


def _work(source: _Source, question: _Question) -> Callable[[_Loaded, threading.Event], _Done]:
    """The job: encode, then ask. Runs in a worker's thread."""

    def work(loaded: _Loaded, cancelled: threading.Event) -> _Done:
        begun = time.monotonic()
        try:
            handle, cached = loaded.encoded(source, cancelled)
            between = time.monotonic()
            found = question(loaded, handle, cancelled)
        except (UniTimeError, ShotsError) as error:
            raise type(error)(str(error).replace(str(source.path), source.name)) from error
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            loaded.forget()
            log.error("%s: not enough memory", source.name, exc_info=error)
            raise Refusal(503, "not enough memory for this video; try a shorter window or fewer queries") from error
        return _Done(float(handle.duration), found, cached, between - begun, time.monotonic() - between)

    return work


def _out_of_memory(error: Exception) -> bool:
    """Whether Python or torch ran out of memory; torch's class is known by its name."""
    said = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or "OutOfMemoryError" in said or "allocate memory" in said


class _Service:
    """The state behind the routes: workers, files, and how many transfers are under way."""

    def __init__(self, load: Load, settings: Settings) -> None:
        self.settings = settings
        self.workers = Workers(
            lambda device: _Loaded(load(device), settings.handles), settings.devices, settings.queue
        )
        self.store = Store(
            settings.files, total=settings.files_bytes, seconds=settings.file_seconds, on_gone=self._forget
        )
        self._transfers = 0

    def _forget(self, key: str) -> None:
        for loaded in self.workers.states():
            loaded.forget(key)

    @contextlib.contextmanager
    def transfer(self) -> Iterator[None]:
        """One of the places for uploads and fetches."""
        if self._transfers >= self.settings.transfers:
            raise Refusal(429, "too many uploads and fetches at a time; try again", {"Retry-After": "5"})
        self._transfers += 1
        try:
            yield
        finally:
            self._transfers -= 1

    @contextlib.asynccontextmanager
    async def running(self, _: Any) -> AsyncIterator[None]:
        """The lifespan: old files go while it lasts, workers and folder are let go of at its end."""
        self.workers.open()
        sweeping = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            sweeping.cancel()
            await run_in_threadpool(self.workers.close)
            self.store.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            await run_in_threadpool(self.store.sweep)

    async def answer(self, request: Request, video: Any, queries: int, question: _Question) -> tuple[_Done, Usage]:
        """Do a job for a request while its client is there."""
        return await _while_connected(request, self._answer(video, queries, question), self.settings.answer_seconds)

    async def _answer(self, video: Any, queries: int, question: _Question) -> tuple[_Done, Usage]:
        try:
            self.workers.check_place()
            source = await self._source(video)
            try:
                job = self.workers.submit(_work(source, question))
            except BaseException:
                source.release()
                raise
            job.future.add_done_callback(lambda _: source.release())
            try:
                done: _Done = await asyncio.wrap_future(job.future)
            finally:
                job.cancel()
        except Full as error:
            raise Refusal(429, f"the queue is full; try again in {error.retry_after} seconds",
                          {"Retry-After": str(error.retry_after)}) from error  # fmt: skip
        except Closed as error:
            raise Refusal(503, "the server is stopping") from error
        except NotLoaded as error:
            log.error("%s could not be loaded", self.settings.model, exc_info=error.__cause__)
            raise Refusal(503, f"the model {self.settings.model} could not be loaded") from error
        except UniTimeError as error:
            raise Refusal(422, str(error)) from error
        usage = Usage(
            queries=queries,
            cached=done.cached,
            waiting_seconds=job.waited,
            encoding_seconds=done.encoding,
            answering_seconds=done.answering,
        )
        return done, usage

    async def _source(self, video: FileVideo | PathVideo | UrlVideo) -> _Source:
        """Where a request's video lies, looked at and kept there until released."""
        if isinstance(video, FileVideo):
            stored, path, release = self.store.lease(video.file_id)
            return _Source(path, stored.id, f"video {stored.id}", release)
        if isinstance(video, PathVideo):
            path = await run_in_threadpool(local, video.path, self.settings.videos)
            name = f"video {video.path}"
            await run_in_threadpool(self._admit, path, name)
            state = path.stat()  # the key of its handle: a file that was written anew is another video
            return _Source(path, f"{path} {state.st_ino} {state.st_size} {state.st_mtime_ns}", name)
        return await self._fetched(video.url)

    def _admit(self, path: Path, name: str) -> Any:
        return admit(path, name, seconds=self.settings.video_seconds, pixels=self.settings.video_pixels)

    async def _fetched(self, url: str) -> _Source:
        """A video from another host, in a file that goes when it is released."""
        settings, stop = self.settings, threading.Event()
        stack = contextlib.ExitStack()
        file = stack.enter_context(self.store.incoming())
        try:
            with self.transfer():
                fetching = asyncio.get_running_loop().run_in_executor(
                    None, lambda: fetch(url, file.write, hosts=settings.hosts, limit=settings.file_bytes,
                                        seconds=settings.transfer_seconds, stop=stop)
                )  # fmt: skip
                try:
                    await asyncio.shield(fetching)
                finally:
                    stop.set()
                    await asyncio.wait([fetching])  # the thread writes to the file until it has seen the event
            await run_in_threadpool(self._admit, file.path, "video.url")
        except BaseException:
            stack.close()
            raise
        return _Source(file.path, None, "video.url", stack.close)

    async def upload(self, request: Request) -> Stored:
        """Take in a file, look at it, and keep it."""
        with self.transfer(), self.store.incoming() as file:

            def write(data: bytes) -> None:
                if file.size + len(data) > self.settings.file_bytes:
                    raise Refusal(413, f"file: more than the {self.settings.file_bytes} bytes that this server takes")
                file.write(data)

            name = await receive_file(request, write, seconds=self.settings.transfer_seconds)
            info = await run_in_threadpool(self._admit, file.path, "file")
            return await run_in_threadpool(
                lambda: self.store.keep(file, name=name, duration=info.duration, width=info.width,
                                        height=info.height, fps=info.fps)
            )  # fmt: skip

    def facts(self, stored: Stored) -> FileFacts:
        """What a client is told of a file."""
        return FileFacts(
            id=stored.id,
            name=stored.name,
            bytes=stored.bytes,
            duration=stored.duration,
            width=stored.width,
            height=stored.height,
            fps=stored.fps,
            created_at=int(stored.created),
            expires_at=int(self.store.expires(stored)),
        )


async def _while_connected(request: Request, work: Coroutine[Any, Any, Result], seconds: float) -> Result:
    """The result of `work`, which is cancelled when the client leaves or `seconds` are over."""
    task = asyncio.create_task(work)
    left = asyncio.create_task(_left(request))
    try:
        done, _ = await asyncio.wait((task, left), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        if left in done:
            raise Refusal(499, "the client left before the answer")
        raise Refusal(503, f"no answer within {seconds:g} seconds; try a shorter window or fewer queries")
    finally:
        task.cancel()
        left.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _left(request: Request) -> None:
    """Returns when the client of a request that was read whole has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _batches(queries: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for first in range(0, len(queries), size):
        yield queries[first : first + size]


def _share(value: float) -> float:
    """A probability, rid of what sums of probabilities leave beyond 0 and 1. What is no number stays none."""
    return max(min(float(value), 1.0), 0.0)


def _moment(found: Any) -> MomentFacts:
    return MomentFacts(start=float(found.start), end=float(found.end), score=_share(found.score))


def _grounding(found: Any, wanted: Wanted) -> GroundingFacts:
    """A `unitime.Grounding` as it is sent."""
    return GroundingFacts(
        query=found.query,
        moments=[_moment(moment) for moment in found.moments],
        status=found.status,
        not_found=_share(found.not_found),
        relevance=[RelevancePoint(time=float(when), value=_share(value)) for when, value in found.relevance]
        if wanted.relevance
        else None,
        raw=found.raw if wanted.raw else None,
    )


# ----------------------------------------------------------------------------------------------------- the routes


def router(load: Load, settings: Settings | None = None) -> APIRouter:
    """The routes of this module, for any FastAPI app.

    load: makes the grounder of a device (`lambda device: UniTime.from_pretrained("unitime-nano", device=device)`),
    called when the first job comes. An app that includes the router runs its lifespan, which ends the workers; it
    should also call `shots.serving.errors.handle_errors`, so that unknown addresses get the one form of error too.
    """
    settings = settings or Settings()
    service = _Service(load, settings)
    made = APIRouter(
        tags=["unitime"],
        lifespan=service.running,
        route_class=guarded(settings.body_bytes),
        generate_unique_id_function=_operation,
    )
    busy = (400, 403, 404, 413, 422, 429)

    @made.post("/v1/ground", response_model_exclude_none=True, responses=documented(*busy))
    async def ground(request: Request, body: GroundRequest) -> GroundResponse:
        """Moments at which each query happens in the video, the best first."""
        window = _span(body.window)

        def question(loaded: _Loaded, handle: Any, cancelled: threading.Event) -> list[Any]:
            found: list[Any] = []
            for batch in _batches(body.queries, settings.batch):
                if cancelled.is_set():
                    raise Refusal(499, "the client left before the answer")
                found += loaded.call(
                    "ground", cancelled, handle, batch, top_k=body.top_k, window=window, threshold=body.threshold
                )
            return found

        done, usage = await service.answer(request, body.video, len(body.queries), question)
        return GroundResponse(
            id=f"ground-{secrets.token_hex(8)}",
            model=settings.model,
            video=VideoFacts(duration=done.duration),
            groundings=[_grounding(each, body.wanted) for each in done.found],
            usage=usage,
        )

    @made.post("/v1/ask", response_model_exclude_none=True, responses=documented(*busy))
    async def ask(request: Request, body: AskRequest) -> AskResponse:
        """An answer to the question, found at the moment that bears on it."""
        window = _span(body.window)

        def question(loaded: _Loaded, handle: Any, cancelled: threading.Event) -> Any:
            return loaded.call("ask", cancelled, handle, body.question, body.options, window=window)

        done, usage = await service.answer(request, body.video, 1, question)
        answer = done.found
        scores = answer.scores if body.options is not None else None
        return AskResponse(
            id=f"ask-{secrets.token_hex(8)}",
            model=settings.model,
            video=VideoFacts(duration=done.duration),
            answer=answer.answer,
            option=answer.option,
            scores=None if scores is None else [_share(score) for score in scores],
            evidence=None if answer.evidence is None else _moment(answer.evidence),
            usage=usage,
        )

    files = APIRouter(route_class=guarded(settings.file_bytes + _ENVELOPE))

    @files.post(
        "/v1/files", status_code=201, openapi_extra=MULTIPART, responses=documented(400, 408, 413, 415, 422, 429)
    )
    async def upload(request: Request) -> FileFacts:
        """Upload a video once, to ask about it many times by its id."""
        return service.facts(await service.upload(request))

    @files.get("/v1/files/{file_id}", responses=documented(404, 422))
    async def look(file_id: FileId) -> FileFacts:
        """What is known of an uploaded file."""
        return service.facts(await run_in_threadpool(service.store.get, file_id))

    @files.delete("/v1/files/{file_id}", responses=documented(404, 422))
    async def delete(file_id: FileId) -> FileDeleted:
        """Remove an uploaded file."""
        await run_in_threadpool(service.store.delete, file_id)
        return FileDeleted(id=file_id, deleted=True)

    made.include_router(files)
    return made


def _span(window: list[float] | None) -> tuple[float, float] | None:
    """A request's window. Raises Refusal 422 for one that ends before it starts."""
    if window is None:
        return None
    start, end = window
    if start >= end:
        raise Refusal(422, f"window: its end, {end:g}, is not after its start, {start:g}")
    return start, end


def _operation(route: Any) -> str:
    """What generated clients call a route."""
    return f"unitime_{route.name}"


def app(load: Load, settings: Settings | None = None) -> FastAPI:
    """An app of these routes alone: for tests, or behind `uvicorn`."""
    made = FastAPI(title="UniTime", summary="When does it happen? Moments and answers for videos.", version="1")
    made.include_router(router(load, settings))
    handle_errors(made)
    return made
