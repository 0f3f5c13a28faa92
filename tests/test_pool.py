"""Our pool: the bytes that go out, when connections are kept and when given up, and who is slowed down by whom."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import socket
import ssl
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import anyio
import httpcore
import pytest
from raw_backend import (
    CHUNKED,
    HOST,
    OK,
    PATIENCE,
    RawBackend,
    Served,
    always,
    answers,
    fetch,
    in_turn,
    pause,
    until,
)
from support import without_collector

from teesign_asgi.connection import Connection
from teesign_asgi.framing import BrokenResponseError, ResponseParser
from teesign_asgi.pool import Pool
from teesign_asgi.upstream import Backend

pytestmark = pytest.mark.anyio

SILENCE = 0.1
"""Seconds that a backend may be silent where that is what fails."""


@pytest.fixture
def anyio_backend() -> str:
    """The event loop that it is for."""
    return "asyncio"


def pool(**options: Any) -> Pool:
    """Return a pool."""
    return Pool(**{"max_idle": 10, "idle_timeout": 4.0, **options})


@pytest.fixture
async def ours() -> AsyncIterator[Pool]:
    """A pool, closed afterwards."""
    made = pool()
    yield made
    await made.aclose()


@pytest.mark.parametrize("pieces", [[b"12345"], [b"1", b"2"], []], ids=["longer", "shorter", "empty"])
async def test_a_body_of_another_length_than_declared_is_not_completed(ours: Pool, pieces: list[bytes]) -> None:
    """The backend would wait for the rest, or take it for another request."""

    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    received: list[bytes] = []

    def script(served: Served) -> None:
        served.read()
        with contextlib.suppress(OSError):
            while data := served.socket.recv(100):
                received.append(data)

    with RawBackend(script) as backend, pytest.raises(httpcore.LocalProtocolError):
        await fetch(ours, backend.url(), "POST", headers=[(b"content-length", b"4")], content=body())
    assert len(b"".join(received)) <= 4


@pytest.mark.parametrize("target", [b"/a b", b"/a\r\nB: c", b"/\0", b""])
async def test_a_target_that_ends_the_request_line_is_not_sent(ours: Pool, target: bytes) -> None:
    """It would be another request."""
    with RawBackend(answers()) as backend, pytest.raises(httpcore.LocalProtocolError):
        await fetch(ours, backend.url(target))


async def test_a_response_that_is_left_early_closes_the_connection(ours: Pool) -> None:
    """What is still to come would be taken for the next response."""
    with RawBackend(answers(OK[:-1])) as backend:
        response = await ours.handle_async_request(httpcore.Request("GET", backend.url(), headers=[HOST]))
        await response.aclose()
        await response.aclose()
        await until(lambda: any(served.gone_at for served in backend.served))


async def test_exactly_these_bytes_are_sent(ours: Pool) -> None:
    """The head and a short body, as they were given."""
    seen: list[bytes] = []

    def script(served: Served) -> None:
        seen.append(served.read(b"body"))
        served.send(OK)

    with RawBackend(script) as backend:
        headers = [(b"a", b"b c"), (b"Content-Length", b"4")]
        await fetch(ours, backend.url(b"/x?y"), "POST", headers=headers, content=b"body")
    assert seen == [b"POST /x?y HTTP/1.1\r\nHost: backend\r\na: b c\r\nContent-Length: 4\r\n\r\nbody"]


async def test_what_came_in_one_read_leaves_in_one_piece(ours: Pool) -> None:
    """Sixty-four chunks of one packet are one piece for the reader."""
    body = CHUNKED + b"1\r\nx\r\n" * 64
    with RawBackend(answers(body + b"0\r\n\r\n")) as backend:
        response = await ours.handle_async_request(httpcore.Request("GET", backend.url(), headers=[HOST]))
        assert [chunk async for chunk in response.aiter_stream()] == [b"x" * 64]
        await response.aclose()


async def test_a_large_body_arrives_whole(ours: Pool) -> None:
    """In both directions at once; more than any buffer holds."""
    body = bytes(range(256)) * 16_384

    def script(served: Served) -> None:
        served.read()
        while len(served.received) < len(body):
            served.received += served.socket.recv(65_536)
        served.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), served.received)
        served.wait_until_gone()

    with RawBackend(script) as backend:
        headers = [(b"content-length", b"%d" % len(body))]
        assert await fetch(ours, backend.url(), "POST", headers=headers, content=body) == (200, body)


async def test_a_slow_reader_slows_the_backend(ours: Pool) -> None:
    """What nobody takes stays in the sockets, and time spent not reading is not the backend's silence."""
    sent = 0

    def script(served: Served) -> None:
        nonlocal sent
        served.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(1000):
            served.send(bytes(100_000))
            sent += 100_000

    with RawBackend(script) as backend:
        extensions = {"timeout": {"read": 0.8}}
        request = httpcore.Request("GET", backend.url(), headers=[HOST], extensions=extensions)
        response = await ours.handle_async_request(request)
        await anyio.sleep(1.2)
        assert sent < 20_000_000
        size = 0
        async for chunk in response.aiter_stream():
            size += len(chunk)
        assert size == 100_000_000
        await response.aclose()


async def test_a_backend_that_takes_nothing_is_given_up(ours: Pool) -> None:
    """After the time limit for writing."""
    body = bytes(50_000_000)
    headers = [(b"content-length", b"%d" % len(body))]
    with RawBackend(in_turn(Served.read, lambda _: time.sleep(1))) as backend, pytest.raises(httpcore.WriteTimeout):
        await fetch(ours, backend.url(), "POST", headers=headers, content=body, timeout={"write": 0.2})


async def test_a_pause_of_this_process_is_not_a_backend_that_does_not_connect(ours: Pool) -> None:
    """The connection is there when the process goes on, although the time limit has passed by then."""

    async def ask(url: httpcore.URL) -> None:
        assert await fetch(ours, url, timeout={"connect": 0.3}) == (200, b"hello")

    with RawBackend(always) as backend:
        async with anyio.create_task_group() as group:
            group.start_soon(ask, backend.url())
            await anyio.lowlevel.checkpoint()
            time.sleep(0.6)  # noqa: ASYNC251 - the pause under test


async def test_a_pause_of_this_process_is_not_a_backend_that_takes_nothing(ours: Pool) -> None:
    """What it took while nobody could look counts, although the time limit has passed by then."""
    body = bytes(20_000_000)
    headers = [(b"content-length", b"%d" % len(body))]

    def script(served: Served) -> None:
        served.read()
        time.sleep(0.3)
        left = len(body) - len(served.received)
        while left:
            left -= len(served.socket.recv(65_536))
        served.send(OK)
        served.wait_until_gone()

    with RawBackend(script) as backend:
        async with anyio.create_task_group() as group:
            group.start_soon(pause, 0.1, 0.7)
            options = {"headers": headers, "content": body, "timeout": {"write": 0.5}}
            assert await fetch(ours, backend.url(), "POST", **options) == (200, b"hello")


@pytest.mark.parametrize("piece", [b"piece", b"x" * (8 << 20)], ids=["taken", "not taken"])
@pytest.mark.parametrize("status", [401, 413])
async def test_an_early_error_is_delivered(ours: Pool, status: int, piece: bytes) -> None:
    """The rest of the body is not sent, whoever gives it is left before that, and the connection is not kept."""
    left = False

    async def body() -> AsyncIterator[bytes]:
        nonlocal left
        try:
            while True:
                yield piece
                await anyio.sleep(0.01)
        finally:
            left = True

    def script(served: Served) -> None:
        served.answer(b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\nno" % status)
        served.wait_until_gone()

    with RawBackend(script) as backend:
        headers = [(b"transfer-encoding", b"chunked")]
        content = body()
        request = httpcore.Request("POST", backend.url(), headers=[HOST, *headers], content=content)
        response = await ours.handle_async_request(request)
        assert left
        assert (response.status, await response.aread()) == (status, b"no")
        await response.aclose()
        await until(lambda: backend.served[0].gone_at > 0)


async def test_an_early_success_waits_for_the_request(ours: Pool) -> None:
    """Whoever sees the response may rely on the whole body having been taken."""
    taken = False

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        yield b"abc"
        await anyio.sleep(0.1)
        taken = True

    async def ask(url: httpcore.URL) -> bool:
        headers = [HOST, (b"content-length", b"3")]
        response = await ours.handle_async_request(httpcore.Request("POST", url, headers=headers, content=body()))
        seen = taken
        await response.aread()
        await response.aclose()
        return seen

    with RawBackend(answers(OK)) as backend:
        assert await ask(backend.url())
        assert repr(ours) == "Pool(1 connections, 1 of them idle)"


def uploaded_in_part(url: httpcore.URL) -> httpcore.Request:
    """Return a request whose body never comes to its end."""

    async def body() -> AsyncIterator[bytes]:
        yield b"a prompt"
        await anyio.sleep_forever()

    return httpcore.Request("POST", url, headers=[HOST, (b"transfer-encoding", b"chunked")], content=body())


def sent_at_once(url: httpcore.URL) -> httpcore.Request:
    """Return a request whose body is there already, for a backend that is given up soon."""
    headers = [HOST, (b"content-length", b"8")]
    return httpcore.Request(
        "POST", url, headers=headers, content=b"a prompt", extensions={"timeout": {"read": SILENCE}}
    )


@pytest.mark.parametrize(
    ("make", "response"),
    [
        *itertools.product(
            [sent_at_once, uploaded_in_part],
            [b"", OK[:10], OK[:-1], b"nonsense\r\n\r\n", OK.replace(b"200", b"500")],
        ),
        (sent_at_once, None),
    ],
)
async def test_nothing_of_a_request_that_failed_is_kept(
    ours: Pool, make: Callable[[httpcore.URL], httpcore.Request], response: bytes | None
) -> None:
    """It goes when it is over, and not when the collector finds it: in it are a prompt and the way to its client."""

    def script(served: Served) -> None:
        served.read(b"prompt")
        if response is None:
            served.wait_until_gone()
        else:
            served.send(response)
            served.close()

    async def ask(url: httpcore.URL) -> weakref.ref[httpcore.Request]:
        request = make(url)
        with contextlib.suppress(httpcore.NetworkError, httpcore.RemoteProtocolError, httpcore.ReadTimeout):
            answer = await ours.handle_async_request(request)
            try:
                await answer.aread()
            finally:
                await answer.aclose()
        return weakref.ref(request)

    with without_collector(), RawBackend(script) as backend:
        asked = await ask(backend.url())
        await until(lambda: asked() is None)


async def test_nothing_of_an_answer_that_is_left_is_kept(ours: Pool) -> None:
    """What has come of it and was not taken goes with its connection, and not when the collector runs."""
    gc.collect()
    with without_collector(), RawBackend(answers(OK[:-1])) as backend:
        response = await ours.handle_async_request(httpcore.Request("GET", backend.url(), headers=[HOST]))
        await response.aclose()
        del response
        await until(lambda: any(served.gone_at for served in backend.served))
        assert not any(isinstance(each, ResponseParser) for each in gc.get_objects())


async def test_connections_are_used_again_newest_first(ours: Pool) -> None:
    """So that under less load the others grow old."""
    with RawBackend(always) as backend:
        for _ in range(3):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(fetch, ours, backend.url())
        assert len(backend.served) == 3
        newest = backend.served[-1]
        await fetch(ours, backend.url())
        assert repr(ours) == "Pool(3 connections, 3 of them idle)"
        assert newest in backend.served


@pytest.mark.usefixtures("slow_network")
async def test_a_request_that_met_a_closed_connection_goes_over_a_fresh_one(ours: Pool) -> None:
    """Not over the next idle one: what had closed the first may have closed them all."""
    dying = in_turn(lambda served: served.answer(OK), Served.read, Served.reset)
    with RawBackend(dying, dying, always) as backend:
        async with anyio.create_task_group() as group:
            group.start_soon(fetch, ours, backend.url())
            group.start_soon(fetch, ours, backend.url())
        assert "2 of them idle" in repr(ours)
        relayed = Backend(ours, silence=PATIENCE, clock=time.monotonic)
        async with relayed.respond("GET", backend.url(), [], b"") as response:
            assert await response.read(100) == b"hello"
        assert len(backend.served) == 3


async def test_idle_connections_expire() -> None:
    """After their time, without any request; younger ones stay."""
    ours = pool(idle_timeout=2.4)
    with RawBackend(always) as backend:
        async with anyio.create_task_group() as group:
            group.start_soon(fetch, ours, backend.url())
            group.start_soon(fetch, ours, backend.url())
        await anyio.sleep(1.2)
        await fetch(ours, backend.url())
        await until(lambda: repr(ours) == "Pool(1 connections, 1 of them idle)")
        await until(lambda: repr(ours) == "Pool(0 connections, 0 of them idle)")
    await ours.aclose()


async def test_an_old_connection_is_not_used_although_its_timer_is_late() -> None:
    """As after a pause of the whole process."""
    ours = pool(idle_timeout=0.05)
    with RawBackend(always) as backend:
        await fetch(ours, backend.url())
        time.sleep(0.1)  # noqa: ASYNC251 - the pause under test
        await fetch(ours, backend.url())
        assert len(backend.served) == 2
    await ours.aclose()


@pytest.mark.parametrize("limit", [0, 1, 2])
async def test_no_more_idle_connections_are_kept_than_asked_for(limit: int) -> None:
    """Those too many are closed at once."""
    ours = pool(max_idle=limit)
    with RawBackend(always) as backend:
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(fetch, ours, backend.url())
        await until(lambda: repr(ours) == f"Pool({limit} connections, {limit} of them idle)")
    await ours.aclose()


@pytest.mark.parametrize(
    "end",
    [Served.close, Served.reset, lambda served: served.send(b"HTTP/1.1 408 Late\r\n\r\n")],
    ids=["closed", "reset", "unasked bytes"],
)
async def test_an_idle_connection_is_dropped_the_moment_it_is_unusable(
    ours: Pool, end: Callable[[Served], None]
) -> None:
    """Nobody has to ask."""
    ending = threading.Event()

    def script(served: Served) -> None:
        served.answer()
        ending.wait(PATIENCE)
        end(served)
        with contextlib.suppress(OSError):
            served.wait_until_gone()

    with RawBackend(script, always) as backend:
        await fetch(ours, backend.url())
        assert repr(ours) == "Pool(1 connections, 1 of them idle)"
        ending.set()
        await until(lambda: repr(ours) == "Pool(0 connections, 0 of them idle)")
        assert await fetch(ours, backend.url()) == (200, b"hello")


async def test_what_waits_on_an_idle_connection_is_nobodys_answer(ours: Pool) -> None:
    """It came before the next request went out, although nobody has had the time to read it."""
    finished, sent = threading.Event(), threading.Event()

    def script(served: Served) -> None:
        served.answer()
        assert finished.wait(PATIENCE)
        served.send(b"HTTP/1.1 203 Unasked\r\nContent-Length: 0\r\n\r\n")
        sent.set()
        served.wait_until_gone()

    with RawBackend(script, always) as backend:
        await fetch(ours, backend.url())
        finished.set()
        assert sent.wait(PATIENCE)  # and the event loop waits with us
        assert (await fetch(ours, backend.url()))[0] == 200
        assert len(backend.served) == 2


async def test_a_new_connection_is_traced(ours: Pool) -> None:
    """So that a caller knows whether one was used again."""
    events: list[str] = []

    async def trace(event: str, _: Any) -> None:
        events.append(event)

    with RawBackend(always) as backend:
        for _ in range(2):
            request = httpcore.Request("GET", backend.url(), headers=[HOST], extensions={"trace": trace})
            await (await ours.handle_async_request(request)).aread()
    assert events == ["connection.connect_tcp.started"]


async def test_closing_the_pool_closes_every_connection(ours: Pool) -> None:
    """Also those in use."""
    with RawBackend(answers(OK, OK[:-1])) as backend:
        await fetch(ours, backend.url())
        response = await ours.handle_async_request(httpcore.Request("GET", backend.url(), headers=[HOST]))
        await ours.aclose()
        with pytest.raises(BrokenResponseError):
            await response.aread()
        await until(lambda: all(served.gone_at for served in backend.served))


@pytest.mark.parametrize(("trusted", "name"), [(True, b"127.0.0.1"), (False, b"127.0.0.1"), (True, b"localhost")])
async def test_a_backend_reached_by_tls_is_verified(certificate: Path, *, trusted: bool, name: bytes) -> None:
    """By its certificate and its name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    ours = pool(ssl_context=ssl.create_default_context(cafile=certificate) if trusted else None)
    with RawBackend(answers(OK, OK), context=context) as backend:
        url = httpcore.URL(scheme=b"https", host=name, port=backend.port, target=b"/")
        if trusted and name == b"127.0.0.1":
            assert await fetch(ours, url) == (200, b"hello")
            assert await fetch(ours, url) == (200, b"hello")
            assert len(backend.served) == 1
        else:
            with pytest.raises(httpcore.ConnectError):
                await fetch(ours, url)
        await ours.aclose()


def test_the_pool_is_for_one_event_loop_at_a_time() -> None:
    """It can be made anywhere; connections belong to the loop that runs when they are opened."""
    ours = pool()
    with RawBackend(always) as backend:

        async def main() -> None:
            assert await fetch(ours, backend.url()) == (200, b"hello")
            await ours.aclose()

        asyncio.run(main())
        asyncio.run(main())


def test_pools_of_two_threads_do_not_mix_what_they_read() -> None:
    """Each reads into memory of its own: while one is in the kernel, the other goes on."""
    size = 8 << 20
    fetched: dict[bytes, set[int]] = {}

    def read(letter: bytes) -> None:
        async def main() -> None:
            ours = pool()
            with RawBackend(
                answers(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + letter * size)
            ) as backend:
                fetched[letter] = set((await fetch(ours, backend.url()))[1])
            await ours.aclose()

        asyncio.run(main())

    threads = [threading.Thread(target=read, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == {b"a": {ord("a")}, b"b": {ord("b")}}


async def test_another_event_loops_transports_are_taken_as_they_are() -> None:
    """Those of uvloop, which servers use where it is installed, are not of asyncio's classes."""

    class Transport:
        def is_closing(self) -> bool:
            return False

        def abort(self) -> None:
            closed.append(self)

        def get_extra_info(self, name: str) -> socket.socket | None:
            return ours if name == "socket" else None

    closed: list[Transport] = []
    connection = Connection(memoryview(bytearray(16)), lambda _: None, lambda _: None)
    transport = Transport()
    with socket.socket() as ours:
        connection.connection_made(cast(asyncio.BaseTransport, transport))
    assert not connection.is_closed
    connection.abort()
    assert closed == [transport]
