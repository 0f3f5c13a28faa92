"""What any pool does for the proxy, ours and httpcore's, on each event loop that they are for."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import anyio
import httpcore
import pytest
from raw_backend import CHUNKED, HOST, OK, PATIENCE, RawBackend, Served, always, answers, fetch, in_turn, pause, until

from teesign_asgi.errors import BackendError
from teesign_asgi.framing import BrokenResponseError
from teesign_asgi.upstream import AsyncRequestInterface, Backend, default_pool

pytestmark = pytest.mark.anyio

Kind = Literal["ours", "httpcore on asyncio", "strict httpcore on trio"]


@pytest.fixture(params=["ours", "httpcore on asyncio", "strict httpcore on trio"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Which pool, and where."""
    chosen: Kind = request.param
    return chosen


@pytest.fixture
def anyio_backend(kind: Kind) -> str:
    """The event loop."""
    return "trio" if kind == "strict httpcore on trio" else "asyncio"


@pytest.fixture
async def upstream(kind: Kind) -> AsyncIterator[AsyncRequestInterface]:
    """The pool."""
    pool = httpcore.AsyncConnectionPool(keepalive_expiry=4.0) if kind == "httpcore on asyncio" else default_pool(10)
    yield pool
    await pool.aclose()


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """TLS of a backend that pools trust which are made after this."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


OTHER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother"


@pytest.mark.parametrize("kind", ["ours", "strict httpcore on trio"])
async def test_the_end_of_a_tls_connection_ends_no_response(
    kind: Kind,  # noqa: ARG001 - it chooses the event loop
    trusted: ssl.SSLContext,
) -> None:
    """Anybody on the way can bring that about; a length or a last chunk they cannot."""
    upstream = default_pool(10)
    with RawBackend(answers(OK, b"HTTP/1.1 200 OK\r\n\r\nhel"), context=trusted) as backend:
        url = backend.url(scheme=b"https")
        assert await fetch(upstream, url) == (200, b"hello")
        with pytest.raises(BrokenResponseError):
            await fetch(upstream, url)
    await upstream.aclose()


@pytest.mark.parametrize("kind", ["ours", "strict httpcore on trio"])
async def test_what_tls_holds_behind_a_response_is_nobodys_answer(
    kind: Kind,  # noqa: ARG001 - it chooses the event loop
    trusted: ssl.SSLContext,
) -> None:
    """Records that come together are read from the socket together, and from TLS as there is room for them."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 32000\r\nX: "
    two_records = head + b"x" * (32_768 - 32_000 - len(head) - 4) + b"\r\n\r\n" + b"y" * 32_000

    def script(served: Served) -> None:
        served.read()
        served.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        served.send(two_records)
        served.send(OTHER)
        served.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        served.wait_until_gone()

    upstream = default_pool(10)
    with RawBackend(script, answers(OK), context=trusted) as backend:
        url = backend.url(scheme=b"https")
        assert await fetch(upstream, url) == (200, b"y" * 32_000)
        assert await fetch(upstream, url) == (200, b"hello")
        assert len(backend.served) == 2
    await upstream.aclose()


@pytest.mark.parametrize("kind", ["ours", "strict httpcore on trio"])
async def test_what_comes_by_tls_while_a_response_waits_is_nobodys_answer(
    kind: Kind,  # noqa: ARG001 - it chooses the event loop
    trusted: ssl.SSLContext,
) -> None:
    """An event loop may have read it from the socket meanwhile, without handing it on."""

    def script(served: Served) -> None:
        served.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 32000\r\n\r\n" + b"y" * 32_000)
        time.sleep(0.1)
        served.send(OTHER)
        served.wait_until_gone()

    upstream = default_pool(10)
    with RawBackend(script, answers(OK), context=trusted) as backend:
        url = backend.url(scheme=b"https")
        response = await upstream.handle_async_request(httpcore.Request("GET", url, headers=[HOST]))
        await anyio.sleep(0.3)
        assert await response.aread() == b"y" * 32_000
        assert await fetch(upstream, url) == (200, b"hello")
        assert len(backend.served) == 2
    await upstream.aclose()


async def body_of(upstream: AsyncRequestInterface, url: httpcore.URL, *, slowly: bool) -> bytes:
    """Return the body of a response, taken as it comes or with a rest after each piece."""
    response = await upstream.handle_async_request(httpcore.Request("GET", url, headers=[HOST]))
    body = b""
    async for chunk in response.aiter_stream():
        body += chunk
        if slowly:
            await anyio.sleep(0.01)
    await response.aclose()
    return body


@pytest.mark.parametrize("slowly", [False, True], ids=["at once", "slowly"])
@pytest.mark.parametrize("size", [33_000, 300_000])
@pytest.mark.parametrize("kind", ["ours", "strict httpcore on trio"])
async def test_a_whole_response_right_before_the_end_of_its_tls_connection_is_whole(
    kind: Kind,  # noqa: ARG001 - it chooses the event loop
    trusted: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
    size: int,
    *,
    slowly: bool,
) -> None:
    """What TLS still holds when the end is seen comes out, however much it is, and nothing is logged about the end."""

    def script(served: Served) -> None:
        served.answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
        served.end_tls()
        served.wait_until_gone()

    upstream = default_pool(0)  # else the next request may go out before the end of this connection is there
    with RawBackend(script, context=trusted) as backend:
        for _ in range(5):
            assert await body_of(upstream, backend.url(scheme=b"https"), slowly=slowly) == b"x" * size
    await upstream.aclose()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("kind", ["ours", "strict httpcore on trio"])
async def test_a_tls_connection_that_ends_as_soon_as_it_stands_has_no_response(
    kind: Kind,  # noqa: ARG001 - it chooses the event loop
    trusted: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The end may come with the last message of the handshake, before anybody could ask."""
    trusted.maximum_version = ssl.TLSVersion.TLSv1_2  # in which the backend has the last word

    def script(served: Served) -> None:
        served.end_tls()
        served.wait_until_gone()

    upstream = default_pool(10)
    with RawBackend(script, context=trusted) as backend:
        for _ in range(5):
            with pytest.raises((httpcore.NetworkError, httpcore.RemoteProtocolError)):
                await fetch(upstream, backend.url(scheme=b"https"))
    await upstream.aclose()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
@pytest.mark.parametrize("end", ["closes", "sends no more", "reads no more"])
@pytest.mark.parametrize("kind", ["ours", "strict httpcore on trio"])
async def test_a_success_for_a_part_of_the_request_is_none(
    kind: Kind,  # noqa: ARG001 - it chooses the event loop
    upstream: AsyncRequestInterface,
    end: str,
    *,
    kept: bool,
) -> None:
    """It would be signed as the answer to what the backend has not been asked. Nor is the request sent again."""

    def script(served: Served) -> None:
        if kept:
            served.answer()
        served.read()
        served.send(OK)
        time.sleep(0.1)  # it is read before a reset takes it away
        if end == "closes":
            served.close()
        elif end == "sends no more":
            served.socket.shutdown(socket.SHUT_WR)
        time.sleep(0.7)

    backend = Backend(upstream, silence=0.5, clock=time.monotonic)
    with RawBackend(script) as raw:
        if kept:
            assert await fetch(upstream, raw.url()) == (200, b"hello")
        with pytest.raises(BackendError):
            async with backend.respond("POST", raw.url(), [], b"x" * (16 << 20)):
                pass
        assert len(raw.served) == 1


@pytest.mark.parametrize("kind", ["ours", "strict httpcore on trio"])
async def test_a_request_whose_pool_is_closed_is_not_sent_again(
    kind: Kind,  # noqa: ARG001 - it chooses the event loop
) -> None:
    """That looks like an idle connection which had ended, but it was us, and the generation may have begun."""
    upstream, asked = default_pool(10), 0

    def script(served: Served) -> None:
        nonlocal asked
        served.answer()
        while served.read() != b"\r\n\r\n":
            asked += 1

    async def ask() -> None:
        with pytest.raises(BackendError, match="closed"):
            async with Backend(upstream, silence=5, clock=time.monotonic).respond("POST", raw.url(), [], b""):
                pass

    with RawBackend(script) as raw:
        await fetch(upstream, raw.url())
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await until(lambda: asked == 1)
                await upstream.aclose()
        assert len(raw.served) == asked == 1


AGREED: list[tuple[str, bytes, tuple[int, bytes]]] = [
    ("a length", OK, (200, b"hello")),
    ("chunks", CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", (200, b"hello")),
    ("trailers", CHUNKED + b"5\r\nhello\r\n0\r\nA: b\r\n\r\n", (200, b"hello")),
    ("an interim response", b"HTTP/1.1 103 Early\r\nA: b\r\n\r\n" + OK, (200, b"hello")),
    ("no content", b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
    ("an error", b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno", (500, b"no")),
    ("a redirect", b"HTTP/1.1 302 No\r\nLocation: /else\r\nContent-Length: 0\r\n\r\n", (302, b"")),
]


@pytest.mark.parametrize(("response", "expected"), [row[1:] for row in AGREED], ids=[row[0] for row in AGREED])
@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
async def test_a_response_comes_through(
    upstream: AsyncRequestInterface, response: bytes, expected: tuple[int, bytes], *, bytewise: bool
) -> None:
    """In whatever packets it comes; and the connection carries the next one."""
    pieces = [response[place : place + 1] for place in range(len(response))] if bytewise else [response]

    def script(served: Served) -> None:
        for _ in range(2):
            served.read()
            served.send(*pieces)
        served.wait_until_gone()

    with RawBackend(script) as backend:
        assert await fetch(upstream, backend.url()) == expected
        assert await fetch(upstream, backend.url()) == expected
        assert len(backend.served) == 1


BROKEN: list[tuple[str, bytes, type[Exception]]] = [
    ("nothing", b"", httpcore.RemoteProtocolError),
    ("garbage", b"garbage\r\n\r\n", httpcore.RemoteProtocolError),
    ("half a head", b"HTTP/1.1 200 OK\r\nConte", httpcore.RemoteProtocolError),
    ("less than the length", OK[:-1], httpcore.RemoteProtocolError),
    ("no last chunk", CHUNKED + b"5\r\nhello\r\n", httpcore.RemoteProtocolError),
    ("a folded line", b"HTTP/1.1 200 OK\r\nA: b\r\n\0c\r\n\r\n", httpcore.RemoteProtocolError),
]


@pytest.mark.parametrize(("response", "error"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
async def test_a_broken_response_is_an_error(
    upstream: AsyncRequestInterface, response: bytes, error: type[Exception]
) -> None:
    """The same one from either pool."""
    with RawBackend(in_turn(lambda served: served.answer(response), Served.close)) as backend, pytest.raises(error):
        await fetch(upstream, backend.url())


GIVEN_UP: list[tuple[str, bytes]] = [
    ("said to close", b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"),
    ("of HTTP/1.0", b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    ("with bytes behind the response", OK + b"x"),
    ("with bytes behind the last chunk", CHUNKED + b"5\r\nhello\r\n0\r\n\r\nx"),
    ("with a line end behind the response", OK + b"\r\n"),
    ("with a line end behind the last chunk", CHUNKED + b"5\r\nhello\r\n0\r\n\r\n\r\n"),
    ("with a second response behind the first", OK + OTHER),
]


@pytest.mark.parametrize("response", [row[1] for row in GIVEN_UP], ids=[row[0] for row in GIVEN_UP])
async def test_a_connection_is_not_used_again(kind: Kind, upstream: AsyncRequestInterface, response: bytes) -> None:
    """The next client gets its own response, and nothing else; which httpcore by itself does not see to."""
    if kind == "httpcore on asyncio":
        pytest.skip("it is for those who pass it in; the proxy does not use it")
    with RawBackend(answers(response), always) as backend:
        assert await fetch(upstream, backend.url()) == (200, b"hello")
        assert await fetch(upstream, backend.url()) == (200, b"hello")
        assert len(backend.served) == 2


FAILURES = (httpcore.ReadError, BrokenResponseError)


async def test_a_reset_is_an_error(upstream: AsyncRequestInterface) -> None:
    """Before the response, and within it."""
    for step in (Served.read, lambda served: served.answer(OK[:-1])):
        with RawBackend(in_turn(step, Served.reset)) as backend, pytest.raises(FAILURES):
            await fetch(upstream, backend.url())


ENDED: list[tuple[str, bytes, Callable[[Served], None], str]] = [
    ("closed without a byte", b"", Served.close, "closed"),
    ("closed within the head", b"HTTP/1.1 200 OK\r\nConte", Served.close, "closed"),
    ("closed within a length", OK[:-1], Served.close, "closed"),
    ("closed within chunks", CHUNKED + b"5\r\nhello\r\n", Served.close, "closed"),
    ("reset within the head", b"HTTP/1.1 200 OK\r\nConte", Served.reset, "reset"),
    ("reset within the body", OK[:-1], Served.reset, "reset"),
    ("no response", b"garbage\r\n\r\n", Served.close, "malformed"),
    ("no chunks", CHUNKED + b"garbage\r\n", Served.close, "malformed"),
]


@pytest.mark.parametrize(("response", "end", "word"), [row[1:] for row in ENDED], ids=[row[0] for row in ENDED])
async def test_a_response_that_does_not_come_whole_has_a_word_for_that(
    kind: Kind, upstream: AsyncRequestInterface, response: bytes, end: Callable[[Served], None], word: str
) -> None:
    """A backend that dies is not one that talks nonsense; httpcore by itself does not tell."""
    if kind == "httpcore on asyncio":
        pytest.skip("it is for those who pass it in; the proxy does not use it")
    script = in_turn(lambda served: served.answer(response), lambda _: time.sleep(0.05), end)
    backend = Backend(upstream, silence=60, clock=time.monotonic)
    with RawBackend(script) as raw, pytest.raises(BackendError) as caught:
        async with backend.respond("GET", raw.url(), [], b"") as answer:
            await answer.read(100)
    assert caught.value.kind == word


async def test_a_reset_within_the_head_is_told_apart(kind: Kind, upstream: AsyncRequestInterface) -> None:
    """The backend had begun to answer, so the request must not be sent again; httpcore by itself does not tell."""
    if kind == "httpcore on asyncio":
        pytest.skip("it is for those who pass it in; the proxy does not use it")
    script = in_turn(lambda served: served.answer(OK[:20]), lambda _: time.sleep(0.05), Served.reset)
    with RawBackend(script) as backend, pytest.raises(BrokenResponseError):
        await fetch(upstream, backend.url())


async def test_nobody_listening_is_an_error(upstream: AsyncRequestInterface) -> None:
    """Of the connection."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = httpcore.URL(scheme=b"http", host=b"127.0.0.1", port=unused.getsockname()[1], target=b"/")
        with pytest.raises(httpcore.ConnectError):
            await fetch(upstream, url)


async def test_a_backend_that_takes_no_connection_is_given_up(upstream: AsyncRequestInterface) -> None:
    """After the time limit."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(2):  # they fill its backlog
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(listener.getsockname())
        url = httpcore.URL(scheme=b"http", host=b"127.0.0.1", port=listener.getsockname()[1], target=b"/")
        with pytest.raises(httpcore.ConnectTimeout):
            await fetch(upstream, url, timeout={"connect": 0.1})


@pytest.mark.parametrize("beginning", [b"", OK[:20], OK[:-1]], ids=["at once", "in the head", "in the body"])
async def test_silence_is_an_error(upstream: AsyncRequestInterface, beginning: bytes) -> None:
    """After the time limit, wherever it begins; the connection is closed."""
    with RawBackend(answers(beginning)) as backend:
        begun = time.monotonic()
        with pytest.raises(httpcore.ReadTimeout):
            await fetch(upstream, backend.url(), timeout={"read": 0.2})
        assert 0.2 <= time.monotonic() - begun < 1


async def test_a_slow_response_is_not_silence(upstream: AsyncRequestInterface) -> None:
    """As long as something comes, it may take any time."""

    def script(served: Served) -> None:
        served.read()
        for place in range(0, len(OK), 4):
            served.send(OK[place : place + 4])
            time.sleep(0.15)
        served.wait_until_gone()

    with RawBackend(script) as backend:
        assert await fetch(upstream, backend.url(), timeout={"read": 1.0}) == (200, b"hello")


async def test_a_pause_of_this_process_is_not_silence(upstream: AsyncRequestInterface) -> None:
    """What came while nobody could look counts, although the time limit has passed by then."""

    def script(served: Served) -> None:
        served.answer(OK[:-5])
        time.sleep(1.0)
        served.send(OK[-5:-2])
        time.sleep(2.7)
        served.send(OK[-2:])
        served.wait_until_gone()

    with RawBackend(script) as backend:
        async with anyio.create_task_group() as group:
            group.start_soon(pause, 0.3, 2.3)
            assert await fetch(upstream, backend.url(), timeout={"read": 2.2}) == (200, b"hello")


async def test_a_streamed_body_is_chunked(upstream: AsyncRequestInterface) -> None:
    """As its header says; empty pieces do not end it."""
    sent: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        for piece in (b"abc", b"", b"defg"):
            yield piece

    def script(served: Served) -> None:
        sent.append(served.read(b"0\r\n\r\n"))
        served.send(OK)
        served.wait_until_gone()

    with RawBackend(script) as backend:
        headers = [(b"transfer-encoding", b"chunked")]
        assert await fetch(upstream, backend.url(), "POST", headers=headers, content=body()) == (200, b"hello")
    assert sent[0].endswith(b"\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")


async def test_what_the_body_raises_comes_out(upstream: AsyncRequestInterface) -> None:
    """Unchanged, and the connection is closed."""

    async def body() -> AsyncIterator[bytes]:
        yield b"abc"
        raise ZeroDivisionError

    with RawBackend(in_turn(Served.read, Served.wait_until_gone)) as backend:
        with pytest.raises(ZeroDivisionError):
            await fetch(upstream, backend.url(), "POST", headers=[(b"transfer-encoding", b"chunked")], content=body())
        await until(lambda: any(served.gone_at for served in backend.served))


UNSENDABLE: list[tuple[str, dict[str, Any]]] = [
    ("a line end in a value", {"headers": [(b"A", b"b\r\nC: d")]}),
    ("a bare LF in a value", {"headers": [(b"A", b"b\nC: d")]}),
    ("a bare CR in a value", {"headers": [(b"A", b"b\rC: d")]}),
    ("a NUL in a value", {"headers": [(b"A", b"b\0")]}),
    ("a space in a name", {"headers": [(b"A b", b"c")]}),
    ("no name", {"headers": [(b"", b"c")]}),
    ("a space in the method", {"method": "GET /"}),
]


@pytest.mark.parametrize("options", [row[1] for row in UNSENDABLE], ids=[row[0] for row in UNSENDABLE])
async def test_what_would_be_another_request_is_not_sent(
    upstream: AsyncRequestInterface, options: dict[str, Any]
) -> None:
    """A method or header that holds more than itself."""
    with RawBackend(answers()) as backend, pytest.raises(httpcore.LocalProtocolError):
        await fetch(upstream, backend.url(), **options)


async def test_only_http_is_spoken(upstream: AsyncRequestInterface) -> None:
    """And https."""
    with pytest.raises(httpcore.UnsupportedProtocol):
        await fetch(upstream, httpcore.URL("ftp://127.0.0.1/"))


async def test_cancellation_closes_the_connection(upstream: AsyncRequestInterface) -> None:
    """Within a second, so that generation stops."""
    with RawBackend(in_turn(Served.read, Served.wait_until_gone)) as backend:
        with anyio.move_on_after(0.1):
            await fetch(upstream, backend.url())
        left = time.monotonic()
        await until(lambda: any(served.gone_at for served in backend.served))
        assert backend.served[0].gone_at - left < 1
