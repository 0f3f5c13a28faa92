"""The backend: where requests go, what every failure becomes, and when a request is sent again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import h11
import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teesign.testing import ManualClock
from teesign_asgi.errors import BackendError
from teesign_asgi.framing import BrokenResponseError
from teesign_asgi.pool import Pool
from teesign_asgi.types import Headers
from teesign_asgi.upstream import (
    CONNECT_TIMEOUT,
    IDLE_TIMEOUT,
    STALE_WINDOW,
    Backend,
    BackendResponse,
    default_pool,
    join_url,
)

pytestmark = pytest.mark.anyio

URL = httpcore.URL("http://backend:9000/v1/models")


class Body:
    """A response's body: pieces, then perhaps an exception; knows whether it was closed."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self.pieces = pieces
        self.closed = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the pieces."""
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def aclose(self) -> None:
        """Note it."""
        await anyio.lowlevel.checkpoint()
        self.closed += 1


class Connection:
    """What happens to one request: whether it needed a fresh connection, how long it took, and how it ended."""

    def __init__(self, end: httpcore.Response | Exception, *, fresh: bool = False, seconds: float = 0) -> None:
        self.end, self.fresh, self.seconds = end, fresh, seconds


class Upstream:
    """Answers requests one after another."""

    def __init__(self, clock: ManualClock, *connections: Connection) -> None:
        self.clock, self.connections = clock, list(connections)
        self.requests: list[httpcore.Request] = []

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Let happen to the request what is next."""
        self.requests.append(request)
        connection = self.connections.pop(0)
        trace: Callable[[str, Any], Awaitable[None]] = request.extensions["trace"]
        if connection.fresh:
            await trace("connection.connect_tcp.started", {})
        await trace("http11.send_request_headers.started", {})
        self.clock.advance(connection.seconds)
        if isinstance(connection.end, Exception):
            raise connection.end
        return connection.end


def answer(status: int = 200, headers: Headers | None = None, body: Body | None = None) -> httpcore.Response:
    """Return a response of the backend."""
    return httpcore.Response(status, headers=headers or [], content=body or Body(b"body"))


class Call:
    """A backend behind some connections, and one request to it."""

    def __init__(self, *connections: Connection) -> None:
        clock = ManualClock()
        self.upstream = Upstream(clock, *connections)
        self.backend = Backend(self.upstream, silence=7, clock=clock)

    async def __call__(
        self,
        method: str = "POST",
        url: httpcore.URL = URL,
        headers: Headers | None = None,
        content: bytes | AsyncIterator[bytes] = b"request",
    ) -> tuple[int, bytes]:
        """Send the request; return the status and the body of its response."""
        async with self.backend.respond(method, url, headers or [], content) as response:
            return response.status, await response.read(1000)

    async def kind(self, **request: Any) -> str:
        """Send the request; return the kind of error that it ends with."""
        with pytest.raises(BackendError) as caught:
            await self(**request)
        # What HTTP libraries quote goes nowhere.
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        return caught.value.kind


KINDS: list[tuple[Exception, str]] = [
    (httpcore.ConnectError(), "connect"),
    (httpcore.ConnectTimeout(), "connect"),
    (httpcore.PoolTimeout(), "connect"),
    (httpcore.ReadTimeout(), "timeout"),
    (httpcore.WriteTimeout(), "timeout"),
    (httpcore.ReadError(), "reset"),
    (httpcore.WriteError(), "reset"),
    (httpcore.RemoteProtocolError("kanarienvogel"), "closed"),
    (BrokenResponseError("kanarienvogel"), "malformed"),
    (httpcore.LocalProtocolError("kanarienvogel"), "malformed"),
    (httpcore.ProxyError("kanarienvogel"), "malformed"),
]


@pytest.mark.parametrize(("error", "kind"), KINDS)
async def test_each_failure_before_the_response_has_its_kind(error: Exception, kind: str) -> None:
    """One of a few words, and no text of the library."""
    assert await Call(Connection(error, fresh=True)).kind() == kind


@pytest.mark.parametrize(("error", "kind"), KINDS[3:10])
async def test_each_failure_within_the_response_has_its_kind(error: Exception, kind: str) -> None:
    """And the response is closed."""
    body = Body(b"beginning", error)
    assert await Call(Connection(answer(body=body))).kind() == kind
    assert body.closed == 1


@pytest.mark.parametrize("error", [httpcore.ReadError(), httpcore.WriteError(), httpcore.RemoteProtocolError()])
async def test_a_connection_closed_while_idle_is_replaced_once(error: Exception) -> None:
    """It was reused and failed at once, so the backend has seen nothing of the request."""
    call = Call(Connection(error), Connection(answer(), fresh=True))
    assert await call() == (200, b"body")
    first, second = call.upstream.requests
    assert (first.method, first.url, first.headers) == (second.method, second.url, second.headers)


def not_http() -> Exception:
    """Return what httpcore raises for a response that is none: with the parser's complaint as its context."""
    error = httpcore.RemoteProtocolError("illegal status line")
    error.__context__ = h11.RemoteProtocolError("illegal status line")
    return error


NOT_RETRIED: list[tuple[str, Connection]] = [
    ("on a fresh connection", Connection(httpcore.ReadError(), fresh=True)),
    ("late", Connection(httpcore.ReadError(), seconds=STALE_WINDOW)),
    ("by a timeout", Connection(httpcore.ReadTimeout())),
    ("with something that is no HTTP", Connection(not_http())),
    ("for want of a connection", Connection(httpcore.PoolTimeout())),
]


@pytest.mark.parametrize("connection", [row[1] for row in NOT_RETRIED], ids=[row[0] for row in NOT_RETRIED])
async def test_other_failures_are_final(connection: Connection) -> None:
    """The backend may have begun to generate, and no generation is started twice."""
    call = Call(connection, Connection(answer()))
    await call.kind()
    assert len(call.upstream.requests) == 1


async def test_a_second_failure_is_final() -> None:
    """Whatever the second connection was."""
    call = Call(Connection(httpcore.ReadError()), Connection(httpcore.ReadError()), Connection(answer()))
    assert await call.kind() == "reset"
    assert len(call.upstream.requests) == 2


async def test_a_streamed_body_is_not_sent_again() -> None:
    """Its beginning is gone."""

    async def content() -> AsyncIterator[bytes]:
        yield b"piece"

    call = Call(Connection(httpcore.ReadError()), Connection(answer()))
    assert await call.kind(content=content()) == "reset"
    assert len(call.upstream.requests) == 1


@pytest.mark.parametrize(("status", "usable"), [(199, False), (200, True), (599, True), (600, False), (101, False)])
async def test_a_final_status_lies_between_200_and_599(status: int, *, usable: bool) -> None:
    """Others are no response, and are closed all the same."""
    body = Body(b"body")
    call = Call(Connection(answer(status, body=body)))
    if usable:
        assert await call() == (status, b"body")
    else:
        assert await call.kind() == "malformed"
    assert body.closed == 1


async def test_a_response_is_closed_whatever_happens_to_its_reader() -> None:
    """Also when the reader raises, or is cancelled: then the connection goes, and generation stops."""
    body = Body(b"body")
    call = Call(Connection(answer(body=body)), Connection(answer(body=body)))
    with pytest.raises(ZeroDivisionError):
        async with call.backend.respond("GET", URL, [], b""):
            raise ZeroDivisionError
    assert body.closed == 1
    with anyio.CancelScope() as scope:
        async with call.backend.respond("GET", URL, [], b""):
            scope.cancel()
            await anyio.sleep_forever()
    assert body.closed == 2


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://backend", b"backend"),
        ("http://backend:80/", b"backend"),
        ("https://backend:443", b"backend"),
        ("http://backend:443", b"backend:443"),
        ("https://backend:80", b"backend:80"),
        ("http://10.0.0.1:9000", b"10.0.0.1:9000"),
        ("http://[::1]", b"[::1]"),
        ("http://[::1]:9000", b"[::1]:9000"),
    ],
)
async def test_the_host_header_names_the_backend(url: str, host: bytes) -> None:
    """With the port where it is not the scheme's own, and IPv6 addresses in brackets."""
    call = Call(Connection(answer()))
    await call(url=httpcore.URL(url), headers=[(b"a", b"b")])
    assert call.upstream.requests[0].headers[:2] == [(b"Host", host), (b"a", b"b")]


@pytest.mark.parametrize(
    ("method", "content", "length"),
    [
        ("POST", b"12345", b"5"),
        ("POST", b"", b"0"),
        ("PUT", b"", b"0"),
        ("PATCH", b"", b"0"),
        ("GET", b"", None),
        ("DELETE", b"", None),
        ("GET", b"1", b"1"),
    ],
)
async def test_bodies_that_are_there_have_their_length_declared(
    method: str, content: bytes, length: bytes | None
) -> None:
    """An empty one too where the method is one that has a body."""
    call = Call(Connection(answer()))
    await call(method=method, content=content)
    assert dict(call.upstream.requests[0].headers).get(b"Content-Length") == length


async def test_a_request_has_time_limits() -> None:
    """For the connection, and for silence."""
    call = Call(Connection(answer()))
    await call()
    limits = call.upstream.requests[0].extensions["timeout"]
    assert limits == {"connect": CONNECT_TIMEOUT, "pool": CONNECT_TIMEOUT, "read": 7, "write": 7}


@pytest.mark.parametrize(
    ("base", "path", "query", "url"),
    [
        ("http://host", b"/a", b"", b"http://host/a"),
        ("http://host", b"", b"", b"http://host/"),
        ("http://host/", b"/a", b"b=c", b"http://host/a?b=c"),
        ("http://host:9000/base", b"/a", b"", b"http://host:9000/base/a"),
        ("http://host/base/", b"/a", b"b", b"http://host/base/a?b"),
        ("http://host/base", b"", b"b", b"http://host/base?b"),
        ("http://host/base/", b"", b"b", b"http://host/base/?b"),
        ("https://[::1]:9000", b"/a%20b", b"", b"https://[::1]:9000/a%20b"),
        # nothing in a path or a query is taken for a host
        ("http://host", b"//evil/a", b"", b"http://host//evil/a"),
        ("http://host", b"/@evil", b"", b"http://host/@evil"),
        ("http://host", b"@evil", b"", b"http://host@evil"),
        ("http://host", b"/http://evil", b"", b"http://host/http://evil"),
        ("http://host:9000", b"/a", b"@evil/?#", b"http://host:9000/a?@evil/?#"),
    ],
)
def test_paths_are_joined_to_the_base(base: str, path: bytes, query: bytes, url: bytes) -> None:
    """Below its own path, with the query as it came."""
    joined = join_url(httpcore.URL(base), path, query)
    origin = httpcore.URL(base)
    assert (joined.scheme, joined.host, joined.port) == (origin.scheme, origin.host, origin.port)
    port = b":%d" % joined.port if joined.port else b""
    host = b"[%b]" % joined.host if b":" in joined.host else joined.host
    assert b"%b://%b%b%b" % (joined.scheme, host, port, joined.target) == url


@given(st.binary(max_size=30), st.binary(max_size=10))
def test_the_host_is_always_the_bases(path: bytes, query: bytes) -> None:
    """For any path and query."""
    joined = join_url(httpcore.URL("http://host:9000/base"), b"/" + path, query)
    assert (joined.scheme, joined.host, joined.port) == (b"http", b"host", 9000)
    assert joined.target.startswith(b"/base/" + path)


def response(*headers: tuple[bytes, bytes], body: Body | None = None) -> BackendResponse:
    """Return a response with these headers."""
    return BackendResponse(answer(headers=list(headers), body=body))


def test_headers_are_found_in_any_case() -> None:
    """Of several the first counts."""
    found = response((b"Content-Type", b"a/b"), (b"content-type", b"c/d"), (b"X", b"\xe9"))
    assert (found.header(b"content-type"), found.header(b"x"), found.header(b"y")) == ("a/b", "é", None)


@pytest.mark.parametrize(
    ("declared", "length"), [(b"12", 12), (b"0", 0), (b"", None), (b"-1", None), (b"1, 1", None), (b"\xb2", None)]
)
def test_a_declared_length_is_a_number(declared: bytes, length: int | None) -> None:
    """What is none counts as not declared."""
    assert response((b"Content-Length", declared)).content_length() == length
    assert response().content_length() is None


# trio warns of generators that are left before their end. Those of httpcore cannot be closed from outside.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(("limit", "body"), [(1, b"1"), (3, b"123"), (4, b"1234"), (6, b"123456"), (9, b"123456")])
async def test_the_beginning_of_a_body_can_be_read(limit: int, body: bytes) -> None:
    """Up to the limit, whatever the pieces are."""
    assert await response(body=Body(b"123", b"", b"456")).read(limit) == body


async def test_the_default_pool_is_ours_on_asyncio_and_httpcores_on_trio(anyio_backend: str) -> None:
    """With as many connections as there are requests, and none idle for as long as the backend allows."""
    pool = default_pool(3)
    if isinstance(pool, Pool):
        assert anyio_backend == "asyncio"
        assert (pool._max_idle, pool._idle_timeout) == (3, IDLE_TIMEOUT)
    else:
        assert anyio_backend == "trio"
        of_one = pool._pool_of(httpcore.URL("http://backend"))
        assert of_one._max_connections > 10**6
        assert of_one._max_keepalive_connections == 3
        assert of_one._keepalive_expiry == IDLE_TIMEOUT < 5
    await pool.aclose()
