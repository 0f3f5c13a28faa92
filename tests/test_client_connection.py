"""Responses that break off look broken, under every server and behind a host's middleware, to old clients as well."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast

import anyio
import anyio.to_thread
import fastapi
import pytest
from backend import Backend, Call, chunked, event_stream, head, in_pieces, open_stream
from raw_client import RawResponse, connect, request_bytes
from servers import ALL_KINDS, MAIN_KINDS, TOKEN, Kind, serve, settings_for
from wire import Client

from teesign.testing import fixed_pair
from teesign_asgi import App
from teesign_asgi.client_connection import hang_up_in_thread
from teesign_asgi.types import ASGIApp, Message, Receive, Scope, Send

PATIENCE = 10
CHAT, JSON = "/v1/chat/completions", b"content-type: application/json"
EVENT = b'data: {"id":"an-id"}\n\n'
DECLARED = head(200, b"content-type: audio/mpeg", b"content-length: 9") + b"half"

Host = Literal["alone", "middleware"]


def _hosted(app: ASGIApp, host: Host) -> ASGIApp:
    if host == "alone":
        return app
    outer = fastapi.FastAPI()

    @outer.middleware("http")
    async def passing_on(request: fastapi.Request, call_next: Any) -> Any:
        return await call_next(request)

    outer.mount("/", cast(Any, app))
    return cast(ASGIApp, outer)


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    """A backend whose answers break off."""
    with Backend() as running:
        yield running


@pytest.fixture(scope="module", params=[f"{kind} {host}" for kind in ALL_KINDS for host in ("alone", "middleware")])
def port(request: pytest.FixtureRequest, backend: Backend) -> Iterator[int]:
    """A proxy under each server, by itself and behind middleware of Starlette's base class."""
    kind, host = cast(tuple[Kind, Host], request.param.split())
    with serve(_hosted(App(settings_for(backend.url), pair=fixed_pair()), host), kind) as running:
        yield running


class Cancellable:
    """A host that can cancel what its app does.

    Args:
        app: the app.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._cancelled = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._cancel, tasks.cancel_scope)
            await self._app(scope, receive, send)
            tasks.cancel_scope.cancel()

    async def _cancel(self, cancellation: anyio.CancelScope) -> None:
        while not self._cancelled:  # noqa: ASYNC110 - it is set by another thread, whichever loop this is
            await anyio.sleep(0.01)
        cancellation.cancel()

    def cancel(self) -> None:
        """Cancel all that is open, from another thread."""
        self._cancelled = True


def question(version: bytes) -> bytes:
    """Return a request for a stream in this version of HTTP."""
    asked = request_bytes("POST", CHAT, b'{"stream":true}', JSON, token=TOKEN)
    return asked.replace(b" HTTP/1.1", b" HTTP/" + version, 1)


def ask(port: int, version: bytes) -> tuple[RawResponse, str]:
    """Return the response to a client of this version, and how the connection ended."""
    with connect(port) as wire:
        wire.send(question(version))
        response = wire.response()
        wire.wait_for_end()
        return response, wire.ended_by


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_stream_that_breaks_off_does_not_look_whole(port: int, backend: Backend, version: bytes) -> None:
    """There is no last chunk; and where the end of the connection ends a response, the connection is reset."""
    backend.play(event_stream(EVENT, end=False))
    response, ended_by = ask(port, version)
    assert (response.status, response.whole) == (200, False)
    assert response.framing != "close" or ended_by == "reset"


def test_what_came_before_is_delivered(port: int, backend: Backend) -> None:
    """A client of HTTP/1.1 gets all that there was."""
    backend.play(event_stream(EVENT, EVENT, end=False))
    response, _ = ask(port, b"1.1")
    assert (response.whole, response.body) == (False, EVENT * 2)


def test_a_body_of_declared_length_that_breaks_off_does_not_look_whole(port: int, backend: Backend) -> None:
    """It is shorter than declared."""

    def script(call: Call) -> None:
        call.read_body()
        call.send(DECLARED)
        call.close()

    backend.play(script)
    response, _ = ask(port, b"1.1")
    assert (response.whole, response.body) == (False, b"half")


def test_many_break_off_at_once(port: int, backend: Backend) -> None:
    """As where a backend dies; and the next client is served."""
    backend.play(event_stream(EVENT, end=False))
    with ThreadPoolExecutor(20) as clients:
        assert not any(response.whole for response, _ in clients.map(lambda _: ask(port, b"1.1"), range(40)))
    assert Client(port, TOKEN).get("/version").status == 200


@pytest.mark.parametrize("kind", ["hypercorn", "hypercorn-trio"])
def test_a_client_that_sends_no_more_sees_that_its_answer_is_not_whole(backend: Backend, kind: Kind) -> None:
    """Servers take it to have left; these two leave the end of its connection to the app. The others end it at once."""
    backend.play(open_stream(EVENT))
    with serve(App(settings_for(backend.url), pair=fixed_pair()), kind) as port, connect(port) as wire:
        wire.send(question(b"1.0"))
        wire.read_until(EVENT)
        time.sleep(0.2)  # so that the server waits for its going
        wire.socket.shutdown(socket.SHUT_WR)
        wire.wait_for_end()
        assert wire.ended_by == "reset"


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("host", ["alone", "middleware"])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_stream_that_the_host_cancels_does_not_look_whole(
    backend: Backend, kind: Kind, host: Host, version: bytes
) -> None:
    """As a host with a time limit does, and servers with what is open when they stop."""
    backend.play(open_stream(EVENT))
    app = Cancellable(App(settings_for(backend.url), pair=fixed_pair()))
    with serve(_hosted(app, host), kind) as port, connect(port) as wire, ThreadPoolExecutor(1) as beside:
        wire.send(question(version))
        answered = beside.submit(wire.response)
        backend.next_call()
        while not wire.arrivals:
            time.sleep(0.01)
        app.cancel()
        response = answered.result()
        wire.wait_for_end()
    assert (response.status, response.whole) == (200, False)
    assert response.framing != "close" or wire.ended_by == "reset"


class WaitingAtTheEnd:
    """A host whose `send` waits before the last piece, as servers do whose client takes nothing of the ones before.

    Args:
        app: the app.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.waits = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on everything else."""

        async def passing_on(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self.waits.set()
                await anyio.sleep_forever()
            await send(message)

        await self._app(scope, receive, passing_on if scope["type"] == "http" else send)


@pytest.mark.parametrize("kind", MAIN_KINDS)
def test_a_stream_whose_last_piece_the_server_has_not_taken_does_not_look_whole(backend: Backend, kind: Kind) -> None:
    """Where the host cancels it then, the client gets no `[DONE]`, and no end in order."""
    go_on = threading.Event()

    def script(call: Call) -> None:
        in_pieces([EVENT], b"content-type: text/event-stream", end=None)(call)
        go_on.wait(PATIENCE)
        call.send(chunked(b"data: [DONE]\n\n"))

    backend.play(script)
    waiting = WaitingAtTheEnd(App(settings_for(backend.url), pair=fixed_pair()))
    host = Cancellable(waiting)
    with serve(host, kind) as port, connect(port) as wire:
        wire.send(question(b"1.0"))
        wire.read_until(EVENT)
        go_on.set()
        assert waiting.waits.wait(PATIENCE)
        host.cancel()
        wire.wait_for_end()
        assert wire.ended_by == "reset"


@pytest.mark.parametrize("kind", MAIN_KINDS)
def test_a_stream_that_the_host_cancels_once_it_has_broken_off(
    backend: Backend, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment that the server still gets to write what came is over then."""
    monkeypatch.setattr("teesign_asgi.client_connection.FLUSH", 3600)
    backend.play(event_stream(EVENT, end=False))
    app = Cancellable(App(settings_for(backend.url), pair=fixed_pair()))
    with serve(app, kind) as port, connect(port) as wire:
        wire.send(question(b"1.0"))
        wire.read_until(EVENT)
        time.sleep(0.3)  # so that the proxy has seen the end
        app.cancel()
        wire.wait_for_end()
        assert wire.ended_by == "reset"


@pytest.mark.parametrize(
    "kind",
    [
        "uvicorn-h11",
        pytest.param(
            "hypercorn",
            marks=pytest.mark.skipif(
                sys.version_info >= (3, 12), reason="waits for connections before its time limit begins"
            ),
        ),
        "hypercorn-trio",
    ],
)
def test_a_stream_that_is_open_when_a_server_stops_does_not_look_whole(backend: Backend, kind: Kind) -> None:
    """Those that wait only for a time for what is open cancel it then."""
    backend.play(open_stream(EVENT))
    with contextlib.ExitStack() as client:
        with serve(App(settings_for(backend.url), pair=fixed_pair()), kind) as port:
            wire = client.enter_context(connect(port))
            wire.send(question(b"1.0"))
            wire.read_until(EVENT)
        wire.wait_for_end()
        assert wire.ended_by == "reset"


@pytest.mark.anyio
async def test_a_host_whose_threads_are_all_busy_holds_nothing_up() -> None:
    """Its own work may take all threads that there are by default, for as long as it likes."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    borrowers = [object() for _ in range(int(limiter.total_tokens))]
    for borrower in borrowers:
        limiter.acquire_on_behalf_of_nowait(borrower)
    try:
        with anyio.fail_after(PATIENCE):
            await hang_up_in_thread([], reset=True)
    finally:
        for borrower in borrowers:
            limiter.release_on_behalf_of(borrower)
