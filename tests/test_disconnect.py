"""Clients that leave, under every server: the backend is told within a second, nothing is signed, the proxy goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from backend import Call, chunked, head, json_answer
from servers import ALL_KINDS, Kind, Stack, stack
from wire import chunks_of, multipart

CHAT = "/v1/chat/completions"
REQUEST = b'{"stream":true}'
EVENTS = b"content-type: text/event-stream"
WITHIN = 1.0
"""Seconds in which the backend must learn that the client has gone."""


@pytest.fixture(scope="module", params=ALL_KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A proxy under each of the servers, with room for large uploads."""
    chosen: Kind = request.param
    with stack(chosen, max_audio_request_bytes=1 << 30) as proxy:
        yield proxy


def assert_backend_told(call: Call, left_at: float) -> None:
    """Check that the backend's connection was closed in time."""
    call.wait_until_gone()
    assert call.connection.gone_at - left_at < WITHIN


def assert_goes_on(proxy: Stack) -> None:
    """Check that nothing was signed meanwhile, and that the next request is served as if nothing had happened."""
    signed = proxy.client.metric("teesign_signatures_total")
    proxy.backend.play(json_answer(b'{"ok":true}'))
    answered = proxy.client.post(CHAT, REQUEST)
    proxy.client.assert_answer_signed(answered, REQUEST, answered.json()["id"])
    proxy.client.wait_until_idle()
    assert proxy.client.metric("teesign_signatures_total") == signed + 1


def wait_silently(call: Call) -> None:
    """Take the request, and never answer."""
    call.read_body()
    call.wait_until_gone()


@pytest.mark.parametrize("path", [CHAT, "/v1/other", "/v1/audio/transcriptions"])
def test_while_the_backend_is_silent(running: Stack, path: str) -> None:
    """The client leaves before the first byte of an answer."""
    running.backend.play(wait_silently)
    with running.client.stream(path, REQUEST):
        call = running.backend.next_call()
        assert call.whole.wait(60)
    assert_backend_told(call, time.monotonic())
    assert_goes_on(running)


def test_a_get_while_the_backend_is_silent(running: Stack) -> None:
    """A request without a body ends in the same way."""
    running.backend.play(wait_silently)
    with running.client.open("GET", "/v1/models"):
        call = running.backend.next_call()
    assert_backend_told(call, time.monotonic())
    assert_goes_on(running)


def test_within_a_body_that_nobody_waits_for(running: Stack) -> None:
    """A body where none belongs does not hide that the client leaves, however much of it comes."""
    running.backend.play(wait_silently)
    headers = [("Transfer-Encoding", "chunked")]
    with running.client.open("GET", "/v1/models", headers, b"f4240\r\n") as conversation:
        call = running.backend.next_call()
        conversation.send(b"x" * 900_000)
    assert_backend_told(call, time.monotonic())
    assert_goes_on(running)


@pytest.mark.parametrize("path", [CHAT, "/v1/other"])
def test_in_the_middle_of_a_silent_stream(running: Stack, path: str) -> None:
    """The client leaves between two events, while the backend says nothing."""

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, EVENTS, b"transfer-encoding: chunked"))
        call.send(chunked(b'data: {"id":"left"}\n\n', end=False))
        call.wait_until_gone()

    running.backend.play(script)
    with running.client.stream(path, REQUEST) as conversation:
        conversation.read_until(b"}\n\n")
        own = conversation.response.headers["x-signature-id"]
    assert_backend_told(running.backend.call, time.monotonic())
    for chat_id in (own, "left"):
        assert running.client.signature(chat_id).status == 404
    assert_goes_on(running)


def test_in_the_middle_of_a_busy_stream(running: Stack) -> None:
    """The client leaves while events keep coming."""

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, EVENTS, b"transfer-encoding: chunked"))
        while not call.connection.gone.wait(0.005):
            call.send(chunked(b"data: 1\n\n", end=False))

    running.backend.play(script)
    with running.client.stream(CHAT, REQUEST) as conversation:
        conversation.read_until(b"data: 1\n\ndata: 1\n\n")
    assert_backend_told(running.backend.call, time.monotonic())
    assert_goes_on(running)


def test_in_the_middle_of_a_json_answer(running: Stack) -> None:
    """The client leaves while a JSON answer, of which it has seen nothing, is collected."""

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, b"content-type: application/json", b"content-length: 100"), b'{"id":"left"')
        call.wait_until_gone()

    running.backend.play(script)
    with running.client.stream(CHAT, REQUEST):
        call = running.backend.next_call()
        assert call.whole.wait(60)
    assert_backend_told(call, time.monotonic())
    assert_goes_on(running)


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/other"])
def test_in_the_middle_of_an_upload(running: Stack, path: str, framing: str) -> None:
    """The client leaves before it has sent everything: the backend does not take what came for a whole request."""
    body, content_type = multipart(b"audio " * 1_000)
    arrived = threading.Event()

    def script(call: Call) -> None:
        while call.read_some():
            arrived.set()

    running.backend.play(script)
    if framing == "length":
        header, sent = ("Content-Length", str(len(body) + 1_000)), body
    else:
        header, sent = ("Transfer-Encoding", "chunked"), chunks_of(body, 500).removesuffix(b"0\r\n\r\n")
    with running.client.open("POST", path, [content_type, header], sent):
        assert arrived.wait(60)
    left_at = time.monotonic()
    call = running.backend.call
    assert_backend_told(call, left_at)
    assert not call.whole.is_set()
    assert_goes_on(running)


@pytest.mark.parametrize("more", [0, 16 << 20])
def test_in_the_middle_of_an_early_error(running: Stack, more: int) -> None:
    """The client leaves while the backend, which wants no more of its upload, still says why."""

    def script(call: Call) -> None:
        call.send(head(413, b"content-type: application/json", b"transfer-encoding: chunked"))
        call.send(chunked(b'{"message":', end=False))
        call.wait_until_gone()

    running.backend.play(script)
    with running.client.open("POST", "/v1/audio/transcriptions", [("Content-Length", str(1 << 26))]) as conversation:
        conversation.send(b"x" * 1_000)
        call = running.backend.next_call()
        if running.kind != "hypercorn-trio":  # on trio, httpcore looks for an answer when it has sent everything
            assert conversation.read_until(b":") == b'{"message":'
            conversation.send(b"x" * more)
    assert_backend_told(call, time.monotonic())
    assert_goes_on(running)


def test_in_the_middle_of_a_json_request(running: Stack) -> None:
    """Half a JSON body never reaches the backend."""
    running.backend.play(wait_silently)
    with running.client.open("POST", CHAT, [("Content-Length", "100")], b'{"half":'):
        pass
    assert_goes_on(running)


# --- backpressure

PIECE = b"x" * 65_536
ENOUGH = 64 << 20
"""Far more than sockets and servers buffer between them."""

BOUND = 24 << 20
"""What the sockets on the way may take in: their buffers grow by themselves, up to some megabytes each."""


def pour(call: Call) -> None:
    """Send a large body as fast as it is taken."""
    call.read_body()
    call.send(head(200, b"content-type: application/octet-stream", b"content-length: %d" % ENOUGH))
    for _ in range(ENOUGH // len(PIECE)):
        call.send(PIECE)


def test_a_client_that_does_not_read_slows_the_backend_down(running: Stack) -> None:
    """What the backend can get rid of stays bounded; when the client reads on, everything arrives."""
    running.backend.play(pour)
    with running.client.stream(CHAT, REQUEST) as conversation:
        assert conversation.response.status == 200
        sent = wait_until_stalled(running.backend.call)
        assert sent < BOUND
        remaining = ENOUGH
        while piece := conversation.response.read(1 << 20):
            remaining -= len(piece)
    assert remaining == 0
    running.client.wait_until_idle()


def test_a_backend_that_does_not_read_slows_the_client_down(running: Stack) -> None:
    """An upload is not collected in memory: what the client can get rid of stays bounded."""
    go_on = threading.Event()

    def script(call: Call) -> None:
        assert go_on.wait(60)
        json_answer(b"{}")(call)

    running.backend.play(script)
    headers = [("Content-Length", str(ENOUGH))]
    with running.client.open("POST", "/v1/other", headers) as conversation:
        conversation.socket.settimeout(0.5)
        sent = 0
        try:
            while sent < ENOUGH:
                sent += conversation.socket.send(PIECE[: ENOUGH - sent])
        except TimeoutError:
            pass
        assert sent < BOUND
        go_on.set()
        conversation.socket.settimeout(15)
        while sent < ENOUGH:
            sent += conversation.socket.send(PIECE[: ENOUGH - sent])
        assert conversation.answer().status == 200
    assert len(running.backend.call.body) == ENOUGH
    running.client.wait_until_idle()


def test_a_client_that_leaves_without_reading(running: Stack) -> None:
    """The backend is told although the proxy's own socket to the client is full."""
    running.backend.play(pour)
    with running.client.stream(CHAT, REQUEST) as conversation:
        assert conversation.response.status == 200
        wait_until_stalled(running.backend.call)
    assert_backend_told(running.backend.call, time.monotonic())
    assert_goes_on(running)


def wait_until_stalled(call: Call) -> int:
    """Wait until the backend could send nothing for a while, and return how many bytes it had sent."""
    sent = -1
    while sent != call.connection.sent:
        sent = call.connection.sent
        call.connection.gone.wait(0.3)
    return sent
