"""Connections to the backend on asyncio, kept and used again; httpcore's types and exceptions outside.

Theory of operation. Each origin has its idle connections in the order in which they became idle. A request takes the
newest, so that under less load the others grow old; what is too old is at the other end. Taking, giving back, expiring
and losing one are each a step of constant cost, however many there are: one timer for each origin waits for the oldest,
and a connection that the backend closes reports that itself, so none is ever asked whether it still stands.

There is no upper bound on connections in use: there are as many as there are requests. A request is never sent twice by
the pool; who may do that is for its caller to know, who learns through httpcore's `trace` extension of connections that
are opened (event `connection.connect_tcp.started`).
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from typing import Any, Final

import httpcore

from .connection import WRITE_SIZE, Body, Connection
from .framing import ResponseParser
from .pauses import time_limit

__all__ = ["FRESH", "Pool"]

FRESH: Final = "teesign.fresh"
"""The extension of a request that must not go over a connection that was used before."""

_HEAD: Final = re.compile(rb"[!-~]+ [!-~]+ HTTP/1\.1\r\n(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\0\r\n]*\r\n)*\r\n")
"""A request's head as RFC 9112 sections 2.1 and 3 have it: nothing in a name, value or target can end a line."""

_PORTS: Final = {b"http": 80, b"https": 443}

_READ_SIZE: Final = 16 * 1024
"""How many bytes are read at once. The event loop's own reads are 16 times as large, and what a client that does not
read any more leaves in our hands grows with them."""

_Origin = tuple[bytes, bytes, int | None]


class Pool:
    """Send requests over kept connections. Anything that takes httpcore's asynchronous request interface takes this.

    To be used from one asyncio event loop.

    Args:
        max_idle: how many idle connections are kept for each origin.
        idle_timeout: for how many seconds; less than the backend keeps them, or requests meet closed ones.
        ssl_context: verifies backends reached by TLS; the system's certificates and host names by default.
    """

    def __init__(self, *, max_idle: int, idle_timeout: float, ssl_context: ssl.SSLContext | None = None) -> None:
        self._max_idle: Final = max_idle
        self._idle_timeout: Final = idle_timeout
        self._ssl_context = ssl_context
        self._buffer: Final = memoryview(bytearray(_READ_SIZE))
        self._origins: dict[_Origin, _Idle] = {}
        self._connections: set[Connection] = set()

    def __repr__(self) -> str:
        return f"Pool({len(self._connections)} connections, {sum(map(len, self._origins.values()))} of them idle)"

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request and return its response when its head has come.

        The body is to be read to its end, or closed by `Response.aclose`: the connection is kept in the first case.

        Args:
            request: its headers hold Host, and the framing of its body where it has one. Of its extensions, `timeout`
                (`connect`, `read` and `write`, in seconds), `trace` and `FRESH` are looked at.

        Raises:
            httpcore.LocalProtocolError: if the request cannot be sent as it is.
            httpcore.UnsupportedProtocol: if its URL is neither http nor https.
            httpcore.NetworkError, httpcore.TimeoutException, httpcore.RemoteProtocolError: if there is no response;
                and whatever the body raises.
        """
        head, declared = _serialize(request)
        limits = request.extensions.get("timeout", {})
        stream = request.stream
        body: bytes | AsyncGenerator[bytes, None]
        if isinstance(stream, Iterable):  # it is there already
            body = b"".join(stream)
            if declared != len(body) and (body or declared):
                raise httpcore.LocalProtocolError("The request's body is not framed by its headers.")
            if len(body) <= WRITE_SIZE:
                head, body = head + body, b""
        else:
            body = _framed(stream, declared)
        connection = await self._connection(request, limits.get("connect"))
        parser, content = await connection.exchange(
            head,
            body,
            is_head=request.method == b"HEAD",
            read_timeout=limits.get("read"),
            write_timeout=limits.get("write"),
        )
        return _Response(parser, content)

    async def aclose(self) -> None:
        """Close every connection, also those in use."""
        for connection in list(self._connections):
            connection.abort()
        while self._connections:  # noqa: ASYNC110 - two turns of the loop at most: it says of each that it is gone
            await asyncio.sleep(0)
        for idle in self._origins.values():
            idle.close()
        self._origins.clear()

    async def _connection(self, request: httpcore.Request, connect_timeout: float | None) -> Connection:
        url = request.url
        origin = (url.scheme, url.host, url.port)
        idle = self._origins.get(origin)
        if idle is None:
            if url.scheme not in _PORTS:
                raise httpcore.UnsupportedProtocol("The backend's URL is neither http nor https.")
            idle = self._origins[origin] = _Idle(self._max_idle, self._idle_timeout)
        connection = None if request.extensions.get(FRESH) else idle.take()
        if connection is not None:
            return connection
        trace = request.extensions.get("trace")
        if trace is not None:
            await trace("connection.connect_tcp.started", {"request": request})
        return await self._connect(origin, idle, connect_timeout)

    async def _connect(self, origin: _Origin, idle: _Idle, connect_timeout: float | None) -> Connection:
        scheme, host, port = origin
        loop = asyncio.get_running_loop()

        def closed(connection: Connection) -> None:
            idle.discard(connection)
            self._connections.discard(connection)

        secure: dict[str, Any] = {"ssl": self._tls()} if scheme == b"https" else {}
        try:
            async with time_limit(connect_timeout):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._buffer, idle.put, closed),
                    host.decode("ascii"),
                    port or _PORTS[scheme],
                    **secure,
                )
        except TimeoutError:
            raise httpcore.ConnectTimeout("The backend does not take the connection.") from None
        except (OSError, UnicodeError):
            # Not chained: what TLS complains about is what the other side sent.
            raise httpcore.ConnectError("There is no connection to the backend.") from None
        self._connections.add(connection)
        return connection

    def _tls(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
        return self._ssl_context


class _Response(httpcore.Response):
    """A response whose parts are of the right types; httpcore's own looks at each of them once more."""

    def __init__(self, parser: ResponseParser, content: Body) -> None:
        self.status = parser.status
        self.headers = parser.headers
        self.stream = content
        self.extensions = {"http_version": b"HTTP/" + parser.version.encode()}
        self._stream_consumed = False  # which is for `aiter_stream` and `aread` to know


class _Idle:
    """The idle connections of one origin, the one idle longest first."""

    def __init__(self, limit: int, timeout: float) -> None:
        self._limit: Final = limit
        self._timeout: Final = timeout
        self._since: OrderedDict[Connection, float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._since)

    def take(self) -> Connection | None:
        """Return the newest, or None if there is none that is young enough."""
        while self._since:
            connection, since = self._since.popitem()
            # The timer may be late, after this process was paused.
            is_old = since + self._timeout <= asyncio.get_running_loop().time()
            if not (is_old or connection.is_closed or connection.has_unread):
                return connection
            connection.abort()
        return None

    def put(self, connection: Connection) -> None:
        """Take a connection that has become idle; of too many, the oldest goes."""
        loop = asyncio.get_running_loop()
        self._since[connection] = loop.time()
        if len(self._since) > self._limit:
            self._since.popitem(last=False)[0].abort()
        if self._timer is None and self._since:
            self._timer = loop.call_later(self._timeout, self._expire)

    def discard(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._since.pop(connection, None)

    def close(self) -> None:
        """Stop waiting."""
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        while self._since:
            connection, since = next(iter(self._since.items()))
            if since + self._timeout > loop.time():
                self._timer = loop.call_at(since + self._timeout, self._expire)
                return
            del self._since[connection]
            connection.abort()


def _serialize(request: httpcore.Request) -> tuple[bytes, int | None]:
    """Return a request's head, and the declared length of its body; None if that is chunked."""
    lines = [b"%b %b HTTP/1.1" % (request.method, request.url.target)]
    lengths: list[bytes] = []
    chunked = False
    for name, value in request.headers:
        lines.append(b"%b: %b" % (name, value))
        lower = name.lower()
        if lower == b"content-length":
            lengths.append(value)
        elif lower == b"transfer-encoding":
            chunked = True
    lines.append(b"\r\n")
    head = b"\r\n".join(lines)
    if not _HEAD.fullmatch(head) or head.count(b"\n") != len(lines):
        raise httpcore.LocalProtocolError("The request's head holds what cannot be sent.")
    if len(lengths) + chunked > 1 or not all(value.isdigit() for value in lengths):
        raise httpcore.LocalProtocolError("The request's body is framed twice.")
    return head, None if chunked else int(lengths[0]) if lengths else 0


async def _framed(body: AsyncIterable[bytes], declared: int | None) -> AsyncGenerator[bytes, None]:
    """Yield a streamed body as it goes over the wire, and see to it that it has the length it was said to have."""
    sent = 0
    try:
        async for piece in body:
            sent += len(piece)
            if declared is None:
                if piece:
                    yield b"%x\r\n%b\r\n" % (len(piece), piece)
            elif sent > declared:
                raise httpcore.LocalProtocolError("The request's body is longer than its declared length.")
            else:
                yield piece
    finally:
        if isinstance(body, AsyncGenerator):
            await body.aclose()  # whoever gives it learns that no more of it is wanted
    if declared is None:
        yield b"0\r\n\r\n"
    elif sent < declared:
        raise httpcore.LocalProtocolError("The request's body is shorter than its declared length.")
