"""Who may ask: a layer around a whole ASGI app, before anything of a request is read.

Notable choices:
- A key is taken as "Authorization: Bearer KEY", as API clients send it, or as the password of HTTP Basic, for which a
  browser asks by itself, so that pages and API have one lock.
- Keys are compared by their digests, all of them, in constant time. What the app gets to know of a client is
  `request.state.client`, the start of its key's digest; without keys it is None.
- A page of another site must not use a server that trusts its own machine: what changes things is refused when it
  comes from another origin.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from shots.errors import ShotsError
from shots.serving.errors import Refusal, error_response

_HARMLESS = {"GET", "HEAD", "OPTIONS"}


def client_of(key: str) -> str:
    """What stands for the owner of a key where jobs are kept: 16 hex digits."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def check_keys(keys: Collection[str]) -> None:
    """Raises ShotsError for keys that could be guessed."""
    if any(len(key) < 8 for key in keys):
        raise ShotsError("api key: shorter than 8 letters; take one that cannot be guessed")


class Access:
    """`app` behind a lock.

    keys: one a client; none: everybody may ask. free: paths that need no key.
    """

    def __init__(self, app: ASGIApp, keys: Collection[str] = (), free: Collection[str] = ("/health",)) -> None:
        check_keys(keys)
        self._app = app
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._free = frozenset(free)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the app's life."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        state = scope["state"] = {**scope.get("state", {}), "client": None}
        refusal = self._foreign(scope, headers)
        if refusal is None and self._digests and scope["path"] not in self._free:
            state["client"] = self._client(headers.get("authorization", ""))
            if state["client"] is None:
                refusal = Refusal(401, "a key is needed: send the header Authorization: Bearer KEY",
                                  {"WWW-Authenticate": 'Basic realm="films", charset="UTF-8"'})  # fmt: skip
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await error_response(refusal)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _foreign(self, scope: Scope, headers: Headers) -> Refusal | None:
        origin = headers.get("origin")
        if origin is None or scope["type"] == "http" and scope["method"] in _HARMLESS:
            return None
        if urlsplit(origin).netloc.lower() == headers.get("host", "").lower():
            return None
        return Refusal(403, "Origin: pages of another site may not use this server")

    def _client(self, said: str) -> str | None:
        """Whose key a header holds."""
        kind, _, value = said.partition(" ")
        if kind.lower() == "basic":
            try:
                value = base64.b64decode(value, validate=True).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                return None
        elif kind.lower() != "bearer":
            return None
        digest = hashlib.sha256(value.strip().encode("utf-8", "replace")).digest()
        # No way out at the first that fits: how long it takes tells nothing.
        return digest.hex()[:16] if sum(hmac.compare_digest(digest, known) for known in self._digests) else None
