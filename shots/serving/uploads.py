"""Take the file out of a multipart upload while it streams in: no more than about a megabyte of it is in memory.

Notable choice: the body is parsed here rather than by the framework, which first gathers the whole upload in a
temporary file of its own, wherever that lies, and only then lets us refuse it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from shots.serving.errors import Refusal

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_PIECE = 1 << 20  # bytes gathered before they are written
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


class _Part:
    """What the parser calls: keeps the data of the part named "file" and passes over other parts."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.name = ""
        self.found = 0
        self.ended = False
        self._field = b""
        self._value = b""
        self._disposition = b""
        self._wanted = False

    def take(self) -> bytes:
        """The data so far, which is then forgotten."""
        data = bytes(self.data)
        self.data.clear()
        return data

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
        self._disposition, self._wanted = b"", False

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

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

    def on_end(self) -> None:
        self.ended = True


def _plain(name: bytes) -> str:
    """A client's file name as something to show: no folders, no control characters, not long."""
    last = name.decode("utf-8", "replace").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(char for char in last if char.isprintable())[:_NAME]
