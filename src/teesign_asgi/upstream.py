"""The backend: requests out, responses in, every failure as a `BackendError`.

Anything with httpcore's request interface can stand here; by default it is `Pool` on asyncio, and httpcore's own
connection pools on trio. This is the one place that calls it, so it is also the one place where its exceptions are
translated. They are never chained or logged as text: HTTP libraries quote what the other side sent.

A pooled connection that the backend has closed in the meantime shows itself at once: writing fails, or reading ends
without a byte, within a network round trip. Such a request is sent once more on a fresh connection, if its body can be
sent again. A connection that fails later, or was fresh, is not: the backend may have begun to generate, and no
generation is started twice.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterator, MutableMapping
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from typing import Any, Final, Protocol

import anyio
import h11
import httpcore

from .connection import Body
from .errors import BackendError
from .framing import BrokenResponseError
from .pool import FRESH, Pool
from .strict import StrictBackend
from .tasks import on_asyncio
from .types import Headers

__all__ = ["AsyncRequestInterface", "Backend", "HttpcorePools", "default_pool", "join_url"]

CONNECT_TIMEOUT: Final = 10.0
"""Seconds until a connection must stand."""

IDLE_TIMEOUT: Final = 4.0
"""Seconds that a connection stays in the pool. Shorter than the 5 s after which vLLM's server closes idle ones."""

STALE_WINDOW: Final = 0.2
"""Seconds in which a reused connection must have failed to count as one that was closed while idle."""

_UNUSABLE: Final = (httpcore.NetworkError, httpcore.ProtocolError)
_REFUSED: Final = (httpcore.TimeoutException, httpcore.ProxyError)
_BROKEN_OFF: Final = (httpcore.TimeoutException, *_UNUSABLE)


class HttpcorePools:
    """httpcore's connection pools on trio, one for each origin: what one keeps is counted over all its origins.

    Args:
        max_idle: how many idle connections are kept for each origin.
    """

    def __init__(self, *, max_idle: int) -> None:
        self._max_idle: Final = max_idle
        self._tls: Final = ssl.create_default_context()
        self._pools: Final[dict[tuple[bytes, bytes, int | None], httpcore.AsyncConnectionPool]] = {}

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request; see `AsyncRequestInterface`."""
        return await self._pool_of(request.url).handle_async_request(request)

    def _pool_of(self, url: httpcore.URL) -> httpcore.AsyncConnectionPool:
        origin = (url.scheme, url.host, url.port)
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = httpcore.AsyncConnectionPool(
                ssl_context=self._tls,
                max_connections=None,
                max_keepalive_connections=self._max_idle,
                keepalive_expiry=IDLE_TIMEOUT,
                network_backend=StrictBackend(httpcore.TrioBackend()),
            )
        return pool

    async def aclose(self) -> None:
        """Close every connection."""
        while self._pools:
            await self._pools.popitem()[1].aclose()


def default_pool(max_keepalive: int) -> Pool | HttpcorePools:
    """Return the connection pool for the running event loop, with as many connections as there are requests.

    Args:
        max_keepalive: how many idle connections are kept for each origin.
    """
    if on_asyncio():
        return Pool(max_idle=max_keepalive, idle_timeout=IDLE_TIMEOUT)
    return HttpcorePools(max_idle=max_keepalive)


def join_url(base: httpcore.URL, path: bytes = b"", query: bytes = b"") -> httpcore.URL:
    """Return the URL of a path below a base.

    The host is always the base's: the path is appended to the base's, whatever it looks like.

    Args:
        base: an absolute URL without a query.
        path: begins with a slash; nothing for the base itself, as it is.
        query: without its question mark.
    """
    target = base.target.rstrip(b"/") + path if path else base.target
    if query:
        target = b"%b?%b" % (target, query)
    return httpcore.URL(scheme=base.scheme, host=base.host, port=base.port, target=target)


class AsyncRequestInterface(Protocol):
    """What an upstream has to do: httpcore's asynchronous request interface, which its pools and connections have."""

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request and return its response, whose body is streamed and must be closed.

        Raises one of httpcore's exceptions where that fails.
        """


class Backend:
    """Send requests to the backend.

    Args:
        http: what carries them.
        silence: the longest time in seconds without a byte from the backend.
        clock: returns seconds that never go backwards.
    """

    def __init__(self, http: AsyncRequestInterface, *, silence: float, clock: Callable[[], float]) -> None:
        self._http: Final = http
        self._clock: Final = clock
        self._timeouts: Final = {
            "connect": CONNECT_TIMEOUT,
            "pool": CONNECT_TIMEOUT,
            "read": silence,
            "write": silence,
        }

    def respond(
        self, method: str, url: httpcore.URL, headers: Headers, content: bytes | AsyncIterator[bytes]
    ) -> AbstractAsyncContextManager[BackendResponse]:
        """Send a request and hold its response open.

        Args:
            method: the method.
            url: where to; see `join_url`.
            headers: end-to-end headers, without Host and without framing, unless `content` is a stream: then they
                hold `content-length` or `transfer-encoding`.
            content: the body. A stream is sent as it comes; what it raises comes out of here unchanged.

        Raises:
            BackendError: if there is no usable response head. The connection is closed.
        """
        return _HeldResponse(self._send(method, url, headers, content))

    async def _send(
        self, method: str, url: httpcore.URL, headers: Headers, content: bytes | AsyncIterator[bytes]
    ) -> httpcore.Response:
        sent = [(b"Host", _authority(url.scheme, url.host, url.port)), *headers]
        if isinstance(content, bytes) and (content or method in ("POST", "PUT", "PATCH")):
            sent.append((b"Content-Length", str(len(content)).encode()))
        connected = False

        async def trace(event: str, _: Any) -> None:
            nonlocal connected
            connected = connected or event.startswith("connection.connect_")

        stream = _Whole(content) if isinstance(content, bytes) else content
        for attempt in (1, 2):
            # Whatever had one idle connection closed may have had them all: `Pool` opens a fresh one when told so. Nor
            # does a stream, which cannot be sent again, go over one that may have ended.
            fresh = attempt == 2 or stream is content
            extensions = {"timeout": self._timeouts, "trace": trace, FRESH: fresh}
            request = _Request(method, url, sent, stream, extensions)
            begun = self._clock()
            try:
                return await self._http.handle_async_request(request)
            except _UNUSABLE as error:
                stale = not connected and _came_to_nothing(error) and self._clock() - begun < STALE_WINDOW
                if attempt == 2 or not stale or not isinstance(content, bytes):
                    raise BackendError(_kind(error)) from None
            except _REFUSED as error:
                raise BackendError(_kind(error)) from None
        raise AssertionError("unreachable")


class _Request(httpcore.Request):
    """A request whose parts are of the right types; httpcore's own looks at each, which takes longer than to send."""

    def __init__(
        self,
        method: str,
        url: httpcore.URL,
        headers: Headers,
        stream: AsyncIterable[bytes],
        extensions: MutableMapping[str, Any],
    ) -> None:
        self.method = method.encode("ascii")
        self.url = url
        self.headers = headers
        self.stream = stream
        self.extensions = extensions


class _Whole:
    """A body that is there already, in both ways in which httpcore's interface may ask for it."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        yield self._body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._body)


class _Once:
    """The one piece of a body. No generator: httpcore leaves those unfinished when sending fails."""

    __slots__ = ("_piece",)

    def __init__(self, piece: bytes) -> None:
        self._piece = piece

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._piece:
            raise StopAsyncIteration
        piece, self._piece = self._piece, b""
        return piece


class BackendResponse:
    """A response whose head has come and whose body has not been read.

    Attributes:
        status: the status code.
        headers: names and values as they came.
    """

    __slots__ = ("_body", "headers", "status")

    def __init__(self, response: httpcore.Response) -> None:
        stream = response.stream
        self._body = stream if isinstance(stream, Body) else _Streamed(response)
        self.status: Final[int] = response.status
        self.headers: Final[Headers] = response.headers

    def header(self, name: bytes) -> str | None:
        """Return the value of a header, or None if it did not come. Of several the first counts."""
        for candidate, value in self.headers:
            if candidate.lower() == name:
                return value.decode("latin-1")
        return None

    def content_length(self) -> int | None:
        """Return the length of the body in bytes, where it is declared."""
        length = self.header(b"content-length") or ""
        return int(length) if length.isascii() and length.isdecimal() else None

    async def next_chunk(self) -> bytes:
        """Return the next bytes of the body, as they arrive; b"" at its end, which is only where its framing says so.

        Raises:
            BackendError: if it breaks off, or nothing comes for too long.
        """
        try:
            return await self._body.next_chunk()
        except _BROKEN_OFF as error:
            raise BackendError(_kind(error)) from None

    async def read(self, limit: int) -> bytes:
        """Return the first `limit` bytes of the body, or all if it is shorter.

        Raises:
            BackendError: as `next_chunk`.
        """
        body = b""
        while len(body) < limit and (chunk := await self.next_chunk()):
            body += chunk
        return body[:limit]

    async def aclose(self) -> None:
        """Be done with the response, which closes its connection unless it has been read to its end."""
        await self._body.aclose()


class _Streamed:
    """The body of a response that does not come from `Pool`, in the way of one that does."""

    __slots__ = ("_pieces", "_response")

    def __init__(self, response: httpcore.Response) -> None:
        assert isinstance(response.stream, AsyncIterable)
        self._response = response
        self._pieces = aiter(response.stream)

    async def next_chunk(self) -> bytes:
        """Return the next bytes, b"" at the end."""
        async for chunk in self._pieces:
            if chunk:
                return chunk
        return b""

    async def aclose(self) -> None:
        """Close the response, whoever else wants this to end."""
        with anyio.CancelScope(shield=True):
            if isinstance(self._pieces, AsyncGenerator):
                await self._pieces.aclose()
            await self._response.aclose()


class _HeldResponse:
    """A response that is closed when its block is left."""

    __slots__ = ("_coming", "_response")

    def __init__(self, coming: Coroutine[Any, Any, httpcore.Response]) -> None:
        self._coming = coming

    async def __aenter__(self) -> BackendResponse:
        self._response = BackendResponse(await self._coming)
        if not 200 <= self._response.status <= 599:
            await self._response.aclose()
            raise BackendError("malformed")
        return self._response

    async def __aexit__(self, *_: object) -> None:
        await self._response.aclose()


@lru_cache
def _authority(scheme: bytes, host: bytes, port: int | None) -> bytes:
    """Return the value of the Host header (RFC 9110 section 7.2): without the port if that is the scheme's own."""
    shown = b"[%b]" % host if b":" in host else host
    return shown if port in (None, {b"http": 80, b"https": 443}.get(scheme)) else b"%b:%d" % (shown, port)


def _came_to_nothing(error: Exception) -> bool:
    """Tell whether a connection failed, rather than what came over it.

    `Pool` has an exception of its own for that; of httpcore's, the parser's complaint is the context.
    """
    return not isinstance(error, BrokenResponseError) and not isinstance(error.__context__, h11.ProtocolError)


def _kind(error: Exception) -> str:
    if isinstance(error, BrokenResponseError):
        return error.kind
    if isinstance(error, httpcore.RemoteProtocolError) and _came_to_nothing(error):
        return "closed"
    for types, kind in _KINDS:
        if isinstance(error, types):
            return kind
    return "malformed"


# From the most to the least specific; the first that fits counts.
_KINDS: Final = (
    ((httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout), "connect"),
    ((httpcore.TimeoutException,), "timeout"),
    ((httpcore.NetworkError,), "reset"),
    ((httpcore.RemoteProtocolError,), "malformed"),
)
