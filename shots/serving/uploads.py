"""Multipart bodies. `receive_file` takes one large file out while it streams in: no more than about a megabyte of it is
in memory. `receive_form` takes a small form with small files, whole.

Notable choice: the body is parsed here rather than by the framework, which first gathers the whole upload in a
temporary file of its own, wherever that lies, and only then lets us refuse it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from shots.serving.errors import Refusal

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_PIECE = 1 << 20  # bytes gathered before they are written
_FIELDS = 64  # parts of a form
_NAME = 200  # letters of a file's name that are kept

MULTIPART = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary", "description": "a video file"}},
                }
            }
        },
    }
}
"""`openapi_extra` of a route that takes a file by `receive_file`."""


async def receive_file(request: Request, write: Callable[[bytes], None], *, seconds: float) -> str:
    """The part named "file" of a multipart body, handed to `write` (in another thread) piece by piece.

    seconds: for the whole body. Returns the file's name as the client gave it, without folders; "" when it gave none.
    Raises Refusal: 408 when it takes too long, 415 for another kind of body, 422 for one that is damaged or has no such
    part or several, and what `write` raises.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise Refusal(415, 'body: send the video as multipart/form-data, in a part named "file"')
    part = _Part()
    try:
        parser = MultipartParser(options.get(b"boundary", b""), part.callbacks())
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                parser.write(chunk)
                if len(part.data) >= _PIECE:
                    await run_in_threadpool(write, part.take())
    except FormParserError as error:
        raise Refusal(422, "body: not valid multipart/form-data") from error
    except TimeoutError as error:
        raise Refusal(408, f"body: not there within {seconds:g} seconds") from error
    if part.found != 1 or not part.ended:
        wrong = "it ends too early" if not part.ended else f"it has {part.found} of them"
        raise Refusal(422, f'file: the body needs one part named "file"; {wrong}')
    await run_in_threadpool(write, part.take())
    return part.name


class _Listener(ABC):
    """What the parser calls, as far as it is the same for all bodies: the headers of the parts, and the end."""

    def __init__(self) -> None:
        self.ended = False
        self._field = b""
        self._value = b""
        self._disposition = b""

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self.on_part_begin,
            "on_header_field": self.on_header_field,
            "on_header_value": self.on_header_value,
            "on_header_end": self.on_header_end,
            "on_headers_finished": self.on_headers_finished,
            "on_part_data": self.on_part_data,
            "on_end": self.on_end,
        }

    def on_part_begin(self) -> None:
        self._disposition = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    @abstractmethod
    def on_headers_finished(self) -> None:
        """The part is known by its disposition."""

    @abstractmethod
    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Some of the part's data."""

    def on_end(self) -> None:
        self.ended = True


class _Part(_Listener):
    """Keeps the data of the part named "file" and passes over other parts."""

    def __init__(self) -> None:
        super().__init__()
        self.data = bytearray()
        self.name = ""
        self.found = 0
        self._wanted = False

    def take(self) -> bytes:
        """The data so far, which is then forgotten."""
        data = bytes(self.data)
        self.data.clear()
        return data

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self._wanted = False

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") == b"file":
            self.found += 1
            self._wanted = self.found == 1
            if self._wanted:
                self.name = _plain(options.get(b"filename", b""))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self.data += data[start:end]


@dataclass
class Form:
    """A multipart form: its fields' texts, and its files' bytes, by their names."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


async def receive_form(request: Request, *, files: Collection[str], seconds: float) -> Form:
    """A multipart form, all of it in memory: how large it may be is for its route to say (`errors.guarded`).

    files: names of the parts that are files; all others are texts. A file's own name is not looked at. seconds: for
    the whole body. Raises Refusal: 408 when it takes too long, 415 for another kind of body, 400 for one that is
    damaged, ends too early, names a part twice or sends a text that is not UTF-8.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise Refusal(415, "body: send JSON or multipart/form-data")
    parts = _Parts()
    try:
        parser = MultipartParser(options.get(b"boundary", b""), parts.callbacks())
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                parser.write(chunk)
    except FormParserError as error:
        raise Refusal(400, "body: not valid multipart/form-data") from error
    except TimeoutError as error:
        raise Refusal(408, f"body: not there within {seconds:g} seconds") from error
    if not parts.ended:
        raise Refusal(400, "body: the form ends too early")
    form = Form()
    for name, data in parts.found:
        if name in form.fields or name in form.files:
            raise Refusal(400, f"{name[:100]}: is there twice; send it once")
        if name in files:
            form.files[name] = bytes(data)
            continue
        try:
            form.fields[name] = data.decode()
        except UnicodeDecodeError as error:
            raise Refusal(400, f"{name[:100]}: its text is not UTF-8") from error
    return form


class _Parts(_Listener):
    """Keeps the data of every part."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, bytearray]] = []

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if len(self.found) >= _FIELDS:
            raise FormParserError(f"more than {_FIELDS} parts")
        self.found.append((options.get(b"name", b"").decode("utf-8", "replace"), bytearray()))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.found[-1][1].extend(data[start:end])


def _plain(name: bytes) -> str:
    """A client's file name as something to show: no folders, no control characters, not long."""
    last = name.decode("utf-8", "replace").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(char for char in last if char.isprintable())[:_NAME]
