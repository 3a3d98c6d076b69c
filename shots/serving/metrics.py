"""What Prometheus is told of a server's requests: how many, how they ended, how long they took.

Notable choice: requests are told apart by their route ("/v1/videos/{id}"), never by their path, which clients choose.
"""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.005, 0.02, 0.1, 0.2, 0.5, 1, 5, 30, 120, 600)


class Counted:
    """`app` with its requests counted in `registry`."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._requests = Counter("http_requests", "Requests answered", ("method", "route", "status"), registry=registry)
        self._seconds = Histogram(
            "http_request_seconds", "From request to the end of its answer", ("route",), buckets=SECONDS,
            registry=registry,
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the app's life."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, begun = 499, time.perf_counter()  # a client that leaves gets no answer

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            status = 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if len(scope["method"]) <= 7 and scope["method"].isalpha() else "other"
            self._requests.labels(method, route, str(status)).inc()
            self._seconds.labels(route).observe(time.perf_counter() - begun)
