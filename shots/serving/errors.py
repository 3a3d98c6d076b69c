"""Errors of the REST surfaces: always {"error": {"type", "message"}}, whatever went wrong.

Notable choices:
- A router cannot register handlers for errors, so its routes are of a class that answers for itself; `handle_errors`
  does the same for what never reaches a route (404, 405).
- An unforeseen exception is logged whole and told to the client in one sentence that gives nothing away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Match
from starlette.types import Message, Receive

from shots.errors import ShotsError, ShotsFailure

log = logging.getLogger(__name__)

TYPES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "busy",
    499: "client_left",
    500: "internal_error",
    503: "unavailable",
}
"""The `type` of an error, by its HTTP status."""

_MEANINGS = {
    400: "The body cannot be parsed, or something in the request cannot be used; the message names it.",
    401: "A key is needed.",
    403: "This server does not allow it.",
    404: "There is no such thing, or no longer.",
    408: "The body took too long to arrive.",
    413: "The body, or the video in it, is larger or longer than this server takes.",
    415: "The body is of another kind than is needed here.",
    422: "Something in the request cannot be used; the message names it.",
    429: "All places are taken; try again after the seconds in Retry-After.",
    500: "The server failed.",
    503: "The model or the storage is not available now, or the work took too long.",
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    type: str = Field(description="one of " + ", ".join(sorted(set(TYPES.values()))))
    message: str = Field(description="one sentence for a person: what was wrong, and the way out")


class ErrorBody(BaseModel):
    """The body of every response that is not a success."""

    error: ErrorDetail


class Refusal(HTTPException):
    """A request that is answered with an error: an HTTP status, a sentence, and perhaps headers."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, headers)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route that may answer with these error statuses; 500 and 503 are always among them."""
    made: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, 500, 503}):
        made[status] = {"model": ErrorBody, "description": _MEANINGS[status]}
        if status == 429:
            made[status]["headers"] = {
                "Retry-After": {"description": "seconds to wait", "schema": {"type": "integer", "minimum": 1}}
            }
    return made


def error_response(error: Exception, invalid: int = 422) -> JSONResponse:
    """The one form of error for any exception; what nobody foresaw is a 500 and goes to the log.

    invalid: the status of what cannot be used, for surfaces whose clients expect 400.
    """
    status, headers = 500, None
    if isinstance(error, HTTPException):
        status, message, headers = error.status_code, str(error.detail), error.headers
    elif isinstance(error, RequestValidationError):
        status, message = invalid, _complaints(error)
    elif isinstance(error, ClientDisconnect):
        status, message = 499, "the client left before the request was whole"
    elif isinstance(error, ShotsFailure):
        log.error("a request failed: %s", error)
        status, message = 503, "the server could not do it now; its log says why"
    elif isinstance(error, ShotsError):
        status, message = invalid, str(error)
    else:
        log.error("a request failed", exc_info=error)
        message = "the server failed; its log says why"
    if status == 404 and message == "Not Found":
        message = "there is no such address; GET /openapi.json lists what there is"
    elif status == 405:
        message = "this address takes other methods; the Allow header lists them"
    kind = TYPES.get(status, "invalid_request" if status < 500 else "internal_error")
    message = message.encode("utf-8", "replace").decode()  # a lone surrogate cannot be sent
    return JSONResponse({"error": {"type": kind, "message": message}}, status, dict(headers or {}))


def _complaints(error: RequestValidationError, most: int = 3) -> str:
    """What a request's validation found, as "where: what; where: what"; never the values themselves."""
    found = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"][1:]) or "body"
        what = problem["msg"]
        if problem["type"] == "json_invalid":
            where, what = "body", f"not valid JSON at letter {where}: {problem['ctx']['error']}"
        elif where == "body" and problem["type"] in ("model_attributes_type", "model_type"):
            what = "a JSON object is needed, sent as application/json"
        found.append(f"{where}: {what}"[:300])
    more = f"; and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(found[:most]) + more


def guarded(body_bytes: int, invalid: int = 422) -> type[APIRoute]:
    """A class of routes that answer every error in the one form and read at most `body_bytes` of a request's body.

    invalid: as in `error_response`.
    """

    class Guarded(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def answer(request: Request) -> Response:
                try:
                    announced = request.headers.get("content-length", "")
                    if announced.isascii() and announced.isdigit() and len(announced) < 20:
                        _check_size(int(announced), body_bytes)
                    return await handler(Request(request.scope, _limited(request.receive, body_bytes)))
                except Exception as error:  # the last stop before the server: everything is answered, and logged there
                    return error_response(error, invalid)

            return answer

    return Guarded


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise Refusal(413, f"body: more than the {limit} bytes that this server takes here")


def _limited(receive: Receive, limit: int) -> Receive:
    """`receive`, refusing once more than `limit` bytes of body have come."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        _check_size(size, limit)
        return message

    return counted


def handle_errors(app: FastAPI) -> None:
    """Answer errors that no route of `app` sees (404, 405, a failure in between) in the one form too."""

    async def handler(request: Request, error: Exception) -> Response:
        response = error_response(error)
        if response.status_code == 405:  # the framework names the methods of one route, where several share an address
            response.headers["Allow"] = ", ".join(_methods(request))
        return response

    for kind in (HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, handler)


def _methods(request: Request) -> list[str]:
    """The methods that the address of a request takes."""
    found = []
    for method in ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"):
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            found.append(method)
    return found
