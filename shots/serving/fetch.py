"""Download a video from a host on an allow-list, and never from an address inside the network.

Notable choices:
- The name is resolved once per hop, every address it has must be public, and the connection goes to one of the
  addresses that were checked: a name that resolves otherwise a moment later changes nothing.
- Redirects are followed by hand, at most `REDIRECTS`, each checked like the first address.
- Plain `http.client`, no proxy and no environment variable: a proxy would resolve the name anew.
- One deadline for all of it: at its end the socket is shut, whatever trickles.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection
from urllib.parse import SplitResult, urljoin, urlsplit

from shots.serving.errors import Refusal

REDIRECTS = 5
_CHUNK = 1 << 16  # bytes
_SILENCE = 10.0  # seconds without a byte
_PORTS = {"http": 80, "https": 443}

_TUNNELS = [  # IPv6 ranges that carry an IPv4 address inside, which may be any
    ipaddress.ip_network(range_) for range_ in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
]
_UNICAST = ipaddress.ip_network("2000::/3")  # all of IPv6 that is handed out


def fetch(
    url: str,
    write: Callable[[bytes], None],
    *,
    hosts: Collection[str],
    limit: int,
    seconds: float,
    stop: threading.Event | None = None,
) -> None:
    """Download `url`, handing its bytes to `write` piece by piece.

    hosts: lower-case names that may be asked on the usual ports; "name:8080" allows that port. limit: bytes. seconds:
    for all of it. stop: looked at between pieces. Raises Refusal: 403 for an address that is not allowed, 413 for too
    much, 422 for what cannot be fetched.
    """
    deadline = time.monotonic() + seconds
    for _ in range(REDIRECTS + 1):
        parts = _checked(url, hosts)
        connection = _Pinned(parts, deadline)
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), connection.shut)
        timer.daemon = True
        timer.start()
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"Accept-Encoding": "identity", "User-Agent": "seedance", "Connection": "close"}
            connection.request("GET", target, headers=headers)
            with connection.getresponse() as response:
                if response.status not in (301, 302, 303, 307, 308):
                    return _copy(response, write, limit, deadline, stop)
                url = _next(url, parts, response.headers.get("Location"))
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() >= deadline:
                raise Refusal(422, f"video.url: not fetched within {seconds:g} seconds") from error
            raise Refusal(422, "video.url: the host could not be reached, or does not speak HTTP") from error
        finally:
            timer.cancel()
            connection.close()
    raise Refusal(422, f"video.url: more than {REDIRECTS} redirects")


def _checked(url: str, hosts: Collection[str]) -> SplitResult:
    """The parts of `url`, if its scheme, host and port are allowed."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise Refusal(422, "video.url: not a URL") from error
    if parts.scheme not in _PORTS or not host:
        raise Refusal(422, "video.url: not a URL that begins with http:// or https:// and names a host")
    if "@" in parts.netloc:
        raise Refusal(422, "video.url: no user name or password can stand in it")
    if not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
        raise Refusal(422, "video.url: spaces, controls and letters outside ASCII must be percent-encoded")
    usual = port is None or port == _PORTS[parts.scheme]
    if not ((usual and host in hosts) or f"{host}:{port or _PORTS[parts.scheme]}" in hosts):
        raise Refusal(403, "video.url: this server does not fetch from that host; upload the video to /v1/files")
    return parts


def _next(url: str, parts: SplitResult, location: str | None) -> str:
    """Where a redirect leads."""
    if not location:
        raise Refusal(422, "video.url: the host redirects to nowhere")
    try:
        following = urljoin(url, location)
    except ValueError as error:
        raise Refusal(422, "video.url: the host redirects to what is not a URL") from error
    if parts.scheme == "https" and not following.lower().startswith("https:"):
        raise Refusal(403, "video.url: the host redirects from https to something less safe")
    return following


def _copy(
    response: http.client.HTTPResponse,
    write: Callable[[bytes], None],
    limit: int,
    deadline: float,
    stop: threading.Event | None,
) -> None:
    """The body of a response, piece by piece."""
    if response.status != 200:
        raise Refusal(422, f"video.url: the host answered with status {response.status}")
    if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise Refusal(422, "video.url: the host sends it compressed, though asked not to")
    too_large = Refusal(413, f"video.url: more than the {limit} bytes that this server takes")
    if response.length is not None and response.length > limit:
        raise too_large
    announced, size = response.length, 0
    while piece := response.read1(_CHUNK):
        size += len(piece)
        if size > limit:
            raise too_large
        if stop is not None and stop.is_set():
            raise Refusal(499, "the client left")
        if time.monotonic() >= deadline:
            raise TimeoutError
        write(piece)
    if time.monotonic() >= deadline:  # the end of the body, or of the socket
        raise TimeoutError
    if announced is not None and size < announced:
        raise http.client.IncompleteRead(b"", announced - size)


def public(address: str) -> bool:
    """Whether `address` (IPv4 or IPv6, as text) belongs to the internet at large, and to one host of it."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip not in _UNICAST or any(ip in tunnel for tunnel in _TUNNELS):
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_link_local)


def _addresses(host: str, port: int) -> list[str]:
    """Every address of `host`, all of them public, in the resolver's order."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refusal(422, "video.url: the host's name cannot be resolved") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not addresses or not all(public(address) for address in addresses):
        raise Refusal(403, "video.url: the host is inside a private network; only public ones are fetched from")
    return addresses


class _Pinned(http.client.HTTPConnection):
    """A connection to one of the addresses that were checked, whatever the name resolves to later."""

    def __init__(self, parts: SplitResult, deadline: float) -> None:
        host = parts.hostname or ""
        super().__init__(host, parts.port or _PORTS[parts.scheme])
        self._secure = parts.scheme == "https"
        self._deadline = deadline
        self._open: socket.socket | None = None
        self.default_port = _PORTS[parts.scheme]  # else the Host header names the port

    def connect(self) -> None:
        problem: OSError = OSError("no address")
        for address in _addresses(self.host, self.port):
            left = min(_SILENCE, self._deadline - time.monotonic())
            if left <= 0:
                raise TimeoutError
            try:
                self._open = socket.create_connection((address, self.port), left)
                break
            except OSError as error:
                problem = error
        else:
            raise problem
        self.sock = self._open
        if self._secure:
            self.sock = ssl.create_default_context().wrap_socket(self._open, server_hostname=self.host)
            self._open = self.sock

    def shut(self) -> None:
        """End all waiting on the socket, from another thread."""
        if self._open is not None:
            with contextlib.suppress(OSError):
                self._open.shutdown(socket.SHUT_RDWR)
