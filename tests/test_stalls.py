"""Clients that stop sending or reading, and do not go away: they are cut, everybody else goes on."""

from __future__ import annotations

import asyncio
import select
import socket
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from backend import Backend, Call, chunked, head, json_answer
from processes import teesign_serve
from raw_client import connect, connections, request_bytes
from servers import ALL_KINDS, MAIN_KINDS, TOKEN, Kind, Stack, settings_for, stack
from support import without_collector
from wire import Conversation, chunks_of, multipart

from teesign.testing import fixed_pair
from teesign_asgi import App
from teesign_asgi.errors import ClientStalledError
from teesign_asgi.http import Reply, Request
from teesign_asgi.stalls import PAUSE, StallWatch
from teesign_asgi.tasks import run_while_connected
from teesign_asgi.types import Message

CHAT = "/v1/chat/completions"
SPEECH = "/v1/audio/transcriptions"
REQUEST = b'{"stream":true}'
PIECE = b"data: " + b"x" * 16_000 + b"\n\n"
SHORT, LONG = 1.0, 2.0
"""Seconds in which a client may stop, in tests of those that stop and of those that do not."""


@pytest.fixture(scope="module", params=ALL_KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A proxy under each of the servers, with little patience."""
    with proxy_with_patience(request.param, SHORT) as proxy:
        yield proxy


@pytest.fixture(scope="module", params=["granian", "hypercorn-trio"])
def patient(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A proxy on each event loop, with somewhat more of it."""
    with proxy_with_patience(request.param, LONG) as proxy:
        yield proxy


def proxy_with_patience(kind: Kind, seconds: float) -> AbstractContextManager[Stack]:
    """Run a proxy with these time limits, and room for large uploads."""
    return stack(kind, client_body_timeout=seconds, client_write_timeout=seconds, max_audio_request_bytes=1 << 30)


def pour(call: Call) -> None:
    """Send an event stream for as long as somebody takes it."""
    call.read_body()
    call.send(head(200, b"content-type: text/event-stream", b"transfer-encoding: chunked"))
    call.send(chunked(b'data: {"id":"poured"}\n\n', end=False))
    while not call.connection.gone.is_set():
        call.send(chunked(PIECE, end=False))


def wait_until_reset(connection: socket.socket, seconds: float) -> bool:
    """Wait until the other side has torn the connection down, without reading what waits before that."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(seconds * 1000))


def metric(proxy: Stack, part: str) -> float:
    """Return how many clients have stopped within a part."""
    return proxy.client.metric(f'teesign_client_stalls_total{{part="{part}"}} ')


def wait_for_metric(proxy: Stack, part: str, value: float) -> None:
    """Wait until so many clients have been counted, and no more."""
    deadline = time.monotonic() + 10
    while metric(proxy, part) < value:
        assert time.monotonic() < deadline, "the client was not counted"
        time.sleep(0.01)
    assert metric(proxy, part) == value


def assert_goes_on(proxy: Stack) -> None:
    """Check that the next request is served as if nothing had happened, and that nothing stays open."""
    proxy.backend.play(json_answer(b'{"ok":true}'))
    answered = proxy.client.post(CHAT, REQUEST)
    proxy.client.assert_answer_signed(answered, REQUEST, answered.json()["id"])
    proxy.client.wait_until_idle()


def test_a_client_that_stops_reading(running: Stack) -> None:
    """Both of its connections are closed, although all buffers on the way are full; nothing is signed."""
    before = metric(running, "response")
    running.backend.play(pour)
    with running.client.stream(CHAT, REQUEST) as conversation:
        own = conversation.response.headers["x-signature-id"]
        assert wait_until_reset(conversation.socket, SHORT + 10)
        running.backend.call.wait_until_gone()
    wait_for_metric(running, "response", before + 1)
    for chat_id in (own, "poured"):
        assert running.client.signature(chat_id).status == 404
    assert_goes_on(running)


def test_a_client_that_reads_slowly(patient: Stack) -> None:
    """It may take as long as it likes, so long as it takes something now and then; it slows the backend down."""
    body = PIECE * 600

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, b"content-type: audio/wav", b"content-length: %d" % len(body)), body)

    patient.backend.play(script)
    with patient.client.stream(CHAT, REQUEST) as conversation:
        assert conversation.response.status == 200
        pieces = []
        begun = time.monotonic()
        while time.monotonic() - begun < 2 * LONG:
            time.sleep(LONG / 10)
            pieces.append(conversation.response.read(200_000))
        assert not patient.backend.call.connection.gone.is_set()
        pieces.append(conversation.response.read())
    assert b"".join(pieces) == body


def test_a_client_that_reads_a_large_document_slowly(patient: Stack) -> None:
    """It is collected here, but how much of it the client has taken is seen all the same."""
    body = b'{"id":"large","a":"' + b"x" * (24 << 20) + b'"}'
    patient.backend.play(json_answer(body))
    with patient.client.stream(CHAT, REQUEST) as conversation:
        pieces = []
        begun = time.monotonic()
        while time.monotonic() - begun < 2 * LONG:
            pieces.append(conversation.response.read(100_000))
            time.sleep(0.03)
        pieces.append(conversation.response.read())
    assert b"".join(pieces) == body


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only what the server passes on is seen")
@pytest.mark.parametrize("kind", MAIN_KINDS)
def test_a_client_that_takes_less_than_the_kernel_makes_room_for(kind: Kind) -> None:
    """It may take as long as it likes too, although nothing is asked of the server meanwhile; until it stops."""
    with proxy_with_patience(kind, LONG) as proxy, connect(proxy.client.port, receive_buffer=16_384) as wire:
        proxy.backend.play(pour)
        wire.send(request_bytes("POST", CHAT, REQUEST, token=TOKEN))
        begun = time.monotonic()
        while time.monotonic() - begun < 2 * LONG:
            assert wire.socket.recv(4_096)
            time.sleep(LONG / 20)
        assert not wait_until_reset(wire.socket, 0)
        assert wait_until_reset(wire.socket, LONG + 10)


# Not under hypercorn on trio: while a request waits behind another one, it does not see that its connection is no more.
@pytest.mark.parametrize("kind", ["granian", "uvicorn", "uvicorn-h11", "hypercorn"])
def test_a_client_that_takes_nothing_and_asks_for_more(kind: Kind) -> None:
    """Its next request, which is on the same connection, keeps neither that nor a connection to the backend open."""
    large = json_answer(b'{"id":"large","a":"' + b"x" * (16 << 20) + b'"}')
    with proxy_with_patience(kind, SHORT) as proxy:
        proxy.backend.play(lambda call: (pour if call.target == b"/v1/other" else large)(call))
        with proxy.client.open("POST", CHAT, [("Content-Length", "2"), ("Connection", "keep-alive")], b"{}") as asking:
            proxy.backend.next_call()
            time.sleep(SHORT / 2)
            asking.send(proxy.client.head("POST", "/v1/other", [("Content-Length", "2")]), b"{}")
            assert wait_until_reset(asking.socket, SHORT + 10)
            for call in proxy.backend.calls:
                if call.target == b"/v1/other":
                    call.wait_until_gone()
        assert_goes_on(proxy)


@pytest.mark.parametrize(("path", "framing"), [(CHAT, "length"), (SPEECH, "chunked"), (SPEECH, "length")])
def test_an_upload_that_stops(running: Stack, path: str, framing: str) -> None:
    """The client is told and its connection is closed; the backend never takes what came for a whole request."""
    before = metric(running, "request")
    running.backend.play(Call.wait_until_gone)
    body, content_type = multipart(b"speech " * 100)
    if framing == "length":
        headers, sent = [("Content-Length", str(len(body) + 100))], body
    else:
        headers, sent = [("Transfer-Encoding", "chunked")], chunks_of(body, 100).removesuffix(b"0\r\n\r\n")
    with running.client.open("POST", path, [content_type, *headers], sent[:-10]) as conversation:
        calls = [running.backend.next_call()] if path == SPEECH else []
        conversation.send(sent[-10:])
        conversation.answer().assert_error(408, "request_timeout", "The request body stopped coming")
        assert is_closed(conversation)
    for call in calls:
        call.wait_until_gone()
        assert not call.whole.is_set()
    assert len(running.backend.calls) == len(calls)
    wait_for_metric(running, "request", before + 1)
    assert_goes_on(running)


def test_an_upload_of_which_nothing_comes(running: Stack) -> None:
    """A head without a body is a request that stops, too."""
    with running.client.open("POST", CHAT, [("Content-Length", "100")]) as conversation:
        conversation.answer().assert_error(408, "request_timeout")
        assert is_closed(conversation)


def test_a_slow_but_steady_upload(patient: Stack) -> None:
    """It may take as long as it likes."""
    patient.backend.play(json_answer(b'{"id":"heard"}'))
    body, content_type = multipart(b"speech " * 1_000)
    with patient.client.open("POST", SPEECH, [content_type, ("Content-Length", str(len(body)))]) as conversation:
        step = len(body) // 9
        for start in range(0, len(body), step):
            conversation.send(body[start : start + step])
            time.sleep(LONG / 4)
        patient.client.assert_answer_signed(conversation.answer(), body, "heard")


def test_a_backend_that_takes_its_time(patient: Stack) -> None:
    """Neither a client whose upload the backend does not take, nor one that waits for an answer, has stopped."""

    def script(call: Call) -> None:
        time.sleep(2 * LONG)
        json_answer(b'{"id":"late"}')(call)

    patient.backend.play(script)
    body, content_type = multipart(b"speech " * 1_000_000)
    answered = patient.client.request("POST", SPEECH, body, [content_type])
    patient.client.assert_answer_signed(answered, body, "late")


@pytest.mark.parametrize("kind", ["granian", "uvicorn", "hypercorn"])
def test_a_client_that_waits_for_an_early_error(kind: Kind) -> None:
    """It need not send the rest of an upload that the backend has refused already, however long that says why."""

    def script(call: Call) -> None:
        call.send(head(413, b"content-type: application/json", b"transfer-encoding: chunked"))
        for _ in range(5):
            call.send(chunked(b" ", end=False))
            time.sleep(SHORT / 2)
        call.send(chunked(b"{}"))
        call.wait_until_gone()

    with proxy_with_patience(kind, SHORT) as proxy:
        proxy.backend.play(script)
        with proxy.client.open("POST", SPEECH, [("Content-Length", "100000")], b"x" * 1_000) as conversation:
            answered = conversation.answer()
    assert (answered.status, answered.body) == (413, b"     {}")


def is_closed(conversation: Conversation) -> bool:
    """Wait until the server has closed a connection."""
    return conversation.receive_all() == b""


@pytest.mark.anyio
async def test_a_pause_of_this_process_is_not_the_clients() -> None:
    """What came while nobody could look counts, although the time limit has passed by then."""

    async def receive() -> Message:
        await anyio.sleep(SHORT / 2)
        return {"type": "http.request", "body": b"late", "more_body": False}

    async def send(_: Message) -> None:
        raise AssertionError("nothing is sent")

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    request, reply = Request(scope, receive, bytes, 0), Reply(send, b"id", "POST")

    async def work() -> None:
        assert await request.read(10) == b"late"

    async def pause() -> None:
        await anyio.sleep(SHORT / 4)
        time.sleep(PAUSE + 2 * SHORT)  # noqa: ASYNC251 - the pause under test

    async with anyio.create_task_group() as group:
        group.start_soon(pause)
        await StallWatch(sending=SHORT, taking=SHORT).run(scope, request, reply, work())


async def _cancelled_with(prompt: bytearray) -> None:
    async def work() -> None:
        assert prompt
        await asyncio.sleep(1000)

    async def receive() -> Message:
        await asyncio.sleep(1000)
        raise AssertionError

    async def send(_: Message) -> None:
        raise AssertionError("nothing is sent")

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    request, reply = Request(scope, receive, bytes, 0), Reply(send, b"id", "POST")
    watched = run_while_connected(request.wait_for_disconnect, work)
    await StallWatch(sending=60, taking=60).run(scope, request, reply, watched)


def test_nothing_of_a_cancelled_request_is_kept() -> None:
    """A host that cancels a task need not ask it for its result, which refers to all that the task has held."""

    class Prompt(bytearray):
        """Bytes that can be referred to weakly."""

    async def cancel() -> weakref.ref[Prompt]:
        prompt = Prompt(b"secret")
        task = asyncio.create_task(_cancelled_with(prompt))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.wait([task])
        return weakref.ref(prompt)

    async def main() -> bool:
        prompt = await cancel()
        return prompt() is None

    with without_collector():
        assert asyncio.run(main())


@pytest.mark.anyio
async def test_a_client_that_does_not_take_the_head() -> None:
    """It has stopped as well: a server may keep the head until the response before it has been taken."""

    async def receive() -> Message:
        raise AssertionError("nothing is received")

    async def send(_: Message) -> None:
        await anyio.sleep_forever()

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    request, reply = Request(scope, receive, bytes, 0), Reply(send, b"id", "POST")
    with anyio.fail_after(10), pytest.raises(ClientStalledError) as caught:
        await StallWatch(sending=60, taking=0.1).run(scope, request, reply, reply.start(200, []))
    assert caught.value.part == "response"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "token", "status"),
    [
        ("POST", CHAT, "", 401),
        ("GET", CHAT, TOKEN, 405),
        ("POST", CHAT, TOKEN, 400),
        ("POST", "/shutdown", TOKEN, 404),
        ("GET", "/v1/models", TOKEN, 500),
    ],
)
async def test_a_client_that_does_not_take_an_error(method: str, path: str, token: str, status: int) -> None:
    """It has stopped as one that does not take an answer: who has no token either cannot stay for ever."""
    begun: list[int] = []
    messages: list[Message] = [{"type": "http.request", "body": b"no JSON", "more_body": False}]

    async def receive() -> Message:
        if not messages:
            await anyio.sleep_forever()
        return messages.pop()

    async def send(message: Message) -> None:
        begun.append(message["status"])
        await anyio.sleep_forever()

    app = App(settings_for("http://127.0.0.1:1", client_write_timeout=0.2), pair=fixed_pair())
    await app.start()
    scope = {"type": "http", "method": method, "path": path, "query_string": b""}
    with anyio.fail_after(20):
        await app({**scope, "headers": [(b"authorization", f"Bearer {token}".encode())]}, receive, send)
    assert begun == [status]
    assert app.is_idle
    await app.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["no thread", "odd address"])
async def test_clients_that_cannot_be_hung_up_on_are_cut_all_the_same(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """All that have stopped, and those that stop later: the backend's connections do not wait for them."""
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": []}
    if how == "no thread":

        async def fail(*_: object, **__: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr("anyio.to_thread.run_sync", fail)
    else:
        scope |= {"client": ("somewhere", "odd"), "server": ("here",)}

    async def receive() -> Message:
        raise AssertionError("nothing is received")

    async def send(_: Message) -> None:
        await anyio.sleep_forever()

    watch = StallWatch(sending=60, taking=0.1)

    async def stop() -> None:
        request, reply = Request(scope, receive, bytes, 0), Reply(send, b"id", "POST")
        with pytest.raises(ClientStalledError):
            await watch.run(scope, request, reply, reply.start(200, []))

    with anyio.fail_after(10):
        for _ in range(2):
            async with anyio.create_task_group() as group:
                group.start_soon(stop)
                group.start_soon(stop)


def test_a_client_that_does_not_take_a_whole_answer(log: Path) -> None:
    """What the server has been given whole is nobody's any more but the kernel's; it gives up in the same time."""
    with (
        Backend() as backend,
        teesign_serve(log, CLIENT_WRITE_TIMEOUT="1", LOG_LEVEL="debug", VLLM_BASE_URL=backend.url) as process,
    ):
        process.wait_until_ready()
        process.wait_until_it_says("the kernel bounds what connections hold")
        backend.play(json_answer(b'{"id":"large","a":"' + b"x" * (16 << 20) + b'"}'))
        with process.client.stream(CHAT, REQUEST) as conversation:
            assert conversation.response.status == 200
            wait_until_given_up(process.port, conversation.socket.getsockname()[1])
        assert process.client.get("/readyz").status == 200


def test_the_kernel_holds_little_for_a_client_that_stops_reading(log: Path) -> None:
    """Bytes wait at the backend, and not in this machine's memory."""
    with Backend() as backend, teesign_serve(log, LOG_LEVEL="debug", VLLM_BASE_URL=backend.url) as process:
        process.wait_until_ready()
        process.wait_until_it_says("the kernel bounds what connections hold")
        backend.play(pour)
        with process.client.stream(CHAT, REQUEST) as conversation:
            assert conversation.response.status == 200
            assert held_by_kernel(process.port) < 1 << 20


def wait_until_given_up(port: int, client_port: int) -> None:
    """Wait until a server's side of a connection is no more. The client may not be told: it takes nothing."""
    deadline = time.monotonic() + 15
    while any(ends == (port, client_port) for ends, _ in connections()):
        assert time.monotonic() < deadline, "the connection is still there"
        time.sleep(0.05)


def held_by_kernel(port: int) -> int:
    """Wait until a server's only connection stalls, and return how many bytes the kernel holds to be sent on it."""
    held = [-1, 0]
    while held[-1] != held[-2]:
        time.sleep(0.5)
        held.append(sum(queue for (own, _), queue in connections() if own == port))
    return held[-1]
