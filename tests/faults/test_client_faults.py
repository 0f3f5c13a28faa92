"""What a client can do wrong, or only at an awkward moment: uploads, early answers, leaving, and reading slowly."""

from __future__ import annotations

import contextlib
import hashlib
import re
import select
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import servers
from backend import Call, answer, chunked, event_stream, head, json_answer
from fault_bench import CHAT, Bench, bench, chat_request
from fault_proxy import Fault, FaultProxy
from granian.http import HTTP1Settings
from granian.server.embed import Server as Granian
from raw_client import connect, request_bytes
from servers import MAIN_KINDS, TOKEN, Kind
from wire import sha256

from teesign_asgi.cli import serve

UPLOADS = "/v1/audio/transcriptions"
LIMIT = 1 << 20
EVENTS = b"content-type: text/event-stream"
CHUNKED = b"transfer-encoding: chunked"
SILENCE = 1.0


@pytest.fixture(scope="module", params=MAIN_KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A bench under each server."""
    kind: Kind = request.param
    with bench(kind, backend_timeout=SILENCE, max_audio_request_bytes=LIMIT) as made:
        yield made


def upload(*headers: bytes, body: bytes = b"", target: str = UPLOADS, token: str = TOKEN) -> bytes:
    """Return the beginning of an upload, whose framing is the caller's."""
    content_type = b"Content-Type: multipart/form-data; boundary=b"
    return request_bytes("POST", target, body, content_type, b"Connection: close", *headers, token=token)


# --- uploads that are too large, or not wanted


@pytest.mark.parametrize("expects", [False, True], ids=["at once", "Expect: 100-continue"])
def test_a_declared_length_over_the_limit(running: Bench, *, expects: bool) -> None:
    """The refusal comes before the body, in the place of the 100, and the backend hears nothing."""
    if expects and running.kind == "hypercorn-trio":
        pytest.skip("hypercorn says 100 by itself")
    headers = [b"Content-Length: %d" % (LIMIT + 1), *([b"Expect: 100-continue"] if expects else [])]
    with running.case() as case, running.connect() as wire:
        before = running.received()
        wire.send(upload(*headers))
        response = wire.response()
        assert (response.status, response.interim) == (413, [])
        case.report(upload(), response, "error")
        assert not running.backend.calls
        assert running.received() == before


def test_a_client_that_waits_for_100(running: Bench) -> None:
    """It is told to go on when its upload is wanted, and answered when it has come."""
    with running.case() as case, running.connect() as wire:
        beginning = upload(b"Content-Length: 5", b"Expect: 100-continue")
        wire.send(beginning)
        assert b" 100 " in wire.read_until(b"\r\n\r\n")
        wire.send(b"hello")
        case.report(beginning + b"hello", wire.response(), "signed")
        assert b"expect" not in running.backend.call.header_names


def test_an_upload_over_the_limit_by_count(running: Bench) -> None:
    """At one byte too many the client is told, and the backend's connection goes without a last chunk."""

    def script(call: Call) -> None:
        call.read_body()

    with running.case(script) as case, running.connect() as wire:
        wire.send(upload(CHUNKED), b"%x\r\n%b\r\n" % (1_000, b"x" * 1_000))
        running.backend.next_call()
        rest = b"x" * (LIMIT - 999)
        wire.send_all_that_is_taken(b"%x\r\n%b\r\n" % (len(rest), rest), patience=5)
        response = wire.response()
        assert response.status == 413
        case.report(upload(), response, "error")
        case.gave_up()
        call = running.backend.call
        call.wait_until_gone()
        assert not call.whole.is_set()


def test_an_upload_of_the_limit_by_count(running: Bench) -> None:
    """That byte less, and all of it arrives."""
    body = b"x" * LIMIT
    with running.case() as case:
        request = upload(CHUNKED, body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        with running.connect() as wire:
            wire.send(request)
            case.report(upload(body=body), wire.response(), "signed")
        assert running.backend.call.body == body


@pytest.mark.parametrize("status", [401, 413])
def test_a_backend_that_answers_while_the_client_is_sending(running: Bench, status: int) -> None:
    """That answer is relayed; on asyncio at once, and the rest of the upload is not asked for."""
    body = b'{"error":"enough"}'

    def script(call: Call) -> None:
        call.read_some()
        call.send(head(status, b"content-type: application/json", b"content-length: %d" % len(body)), body)
        call.read_body()

    pieces = [b"x" * 1_000] * 20
    with running.case(script) as case, running.connect() as wire:
        wire.send(upload(b"Content-Length: 20000"))
        sender = threading.Thread(target=lambda: wire.send_all_that_is_taken(b"".join(pieces[:10])))
        sender.start()
        sender.join()
        if running.kind == "hypercorn-trio":  # httpcore looks for an answer when it has sent everything
            wire.send(b"".join(pieces[10:]))
        else:
            case.gave_up()
        response = wire.response()
        assert response.status == status
        case.report(upload(), response, "unsigned", body=body)


def test_a_bad_token_with_an_endless_body(running: Bench) -> None:
    """The refusal does not wait for the body, of which at most 64 KiB are read."""
    with running.case() as case, running.connect() as wire:
        before = running.received()
        wire.send(upload(b"Content-Length: 100000000", target="/v1/other", token="wrong"))
        wire.send_all_that_is_taken(b"x" * 10_000_000, patience=0.1)
        response = wire.response()
        assert response.status in (401, 0)  # a server that closes at once may tear its own answer down
        assert running.received() - before <= 65_536
        assert not running.backend.calls
        if response.status:
            case.report(upload(), response, "error")


def test_a_bad_token_before_any_body(running: Bench) -> None:
    """A client that waits with its body reads the refusal."""
    with running.case() as case, running.connect() as wire:
        before = running.received()
        wire.send(upload(b"Content-Length: 100000000", target="/v1/other", token="wrong"))
        response = wire.response()
        assert response.status == 401
        case.report(upload(), response, "error")
        assert running.received() == before
        assert not running.backend.calls


# --- clients that are slow


def settings_of_the_server(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what `teesign serve` has its server do with connections."""
    server = Mock()
    monkeypatch.setattr(serve, "Server", server)
    serve.run_server(dict, address="127.0.0.1", port=0)
    return {name: value for name, value in server.call_args.kwargs.items() if name in {"http", "http1_settings"}}


@contextmanager
def commands_server(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Iterator[Bench]:
    """Run a server like that of `teesign serve`, but for these changes to what it does with connections."""
    settings = settings_of_the_server(monkeypatch)
    http1: HTTP1Settings = settings["http1_settings"]
    assert http1.header_read_timeout <= 30_000
    settings["http1_settings"] = replace(http1, **changes)
    monkeypatch.setattr(servers, "Granian", partial(Granian, **settings))
    with bench("granian") as made:
        yield made


def impatient_server(monkeypatch: pytest.MonkeyPatch) -> AbstractContextManager[Bench]:
    """Run such a server that gives a head half a second."""
    return commands_server(monkeypatch, header_read_timeout=500)


def test_a_head_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server that `teesign serve` runs gives a head 30 s, however it trickles in; others are served meanwhile."""
    with impatient_server(monkeypatch) as made, made.connect() as wire:
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            while not select.select([wire.socket], [], [], 0.05)[0]:
                wire.send(b"G" if time.monotonic() - begun < 0.05 else b"x")
                assert time.monotonic() - begun < 10, "the connection stays open"
        with made.case() as case:
            case.exchange(chat_request(), "signed")
        assert wire.response().status in (0, 408)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NO_SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    "begun", [b"", b"P", PREFACE[:-3], PREFACE, PREFACE + NO_SETTINGS], ids=["nothing", "P", "part", "h2", "settings"]
)
def test_a_connection_that_asks_for_nothing(monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    """The server that `teesign serve` runs does not keep it: silent from the start, or as HTTP/2 begins."""
    with impatient_server(monkeypatch) as made, made.connect() as wire:
        wire.send(begun)
        wire.wait_for_end(10)


def request_with_lines(count: int) -> bytes:
    """Return a request with so many header lines."""
    return request_bytes("GET", "/v1/x", None, b"Connection: close", *[b"X: 0"] * (count - 3), token=TOKEN)


def request_with_head_of(size: int) -> bytes:
    """Return a request of so many bytes, without a body."""
    shortest = request_bytes("GET", "/v1/x", None, b"Connection: close", b"X: ", token=TOKEN)
    return shortest.replace(b"X: ", b"X: " + b"0" * (size - len(shortest)))


@pytest.mark.parametrize(
    ("largest", "larger"),
    [
        (request_with_lines(100), request_with_lines(101)),
        (request_with_head_of(32 << 10), request_with_head_of((32 << 10) + 1)),
    ],
    ids=["lines", "bytes"],
)
def test_the_largest_head(monkeypatch: pytest.MonkeyPatch, largest: bytes, larger: bytes) -> None:
    """The server that `teesign serve` runs serves a head within these limits, and may refuse one beyond them by itself.

    How many bytes that is depends on how they come: a head is refused when so many are there and it is not over.
    """
    with commands_server(monkeypatch) as made, made.case() as case:
        with made.connect() as wire:
            wire.send(largest[:-2], largest[-2:], pause=0.05)
            case.report(largest, wire.response("GET"), "signed")
        with made.connect() as wire:
            wire.send(larger[: len(largest)])
            time.sleep(0.05)
            wire.send_all_that_is_taken(larger[len(largest) :])
            refused = wire.response("GET")
        assert (refused.status, refused.body, refused.header(b"x-request-id")) == (431, b"", None)
        assert len(made.backend.calls) == 1
        assert 'status="431"' not in made.client.get("/metrics").body.decode()


@pytest.mark.parametrize("kind", MAIN_KINDS)
def test_a_slow_but_steady_upload(kind: Kind) -> None:
    """However long it takes in all, four times as long as a client may be silent, nothing is silent for long."""
    body = bytes(range(256)) * 40
    with (
        bench(kind, client_body_timeout=0.75, max_audio_request_bytes=LIMIT) as made,
        made.case() as case,
        FaultProxy(made.port) as line,
    ):
        line.requests = Fault(pieces=256, rate=3_500)
        with connect(line.port) as wire:
            wire.send(upload(body=body))
            case.report(upload(body=body), wire.response(), "signed")
        assert made.backend.call.body == body


@pytest.mark.parametrize("kind", MAIN_KINDS)
def test_a_hundred_megabytes_that_come_slowly(kind: Kind) -> None:
    """An upload of the default limit is signed, although it takes twice as long as a client may be silent."""
    size, piece, silence = 100 << 20, b"speech.." * 128 * 1024, 0.75
    with (
        bench(kind, client_body_timeout=silence, max_audio_request_bytes=size) as made,
        made.case(),
        made.connect() as wire,
    ):
        begun = time.monotonic()
        wire.send(upload(b"Content-Length: %d" % size), *[piece] * (size // len(piece)), pause=2.1 * silence / 100)
        response = wire.response()
        assert response.status == 200
        assert time.monotonic() - begun > 2 * silence
        digest = hashlib.sha256()
        for _ in range(size // len(piece)):
            digest.update(piece)
        own = (response.header(b"x-signature-id") or b"").decode()
        assert made.signature_text(own) == f"{digest.hexdigest()}:{sha256(response.body)}"


def test_a_slow_reader(running: Bench) -> None:
    """A client behind a thin line gets everything, and what it gets is signed."""
    stream = b"".join(b'data: {"n":%d,"text":"%b"}\n\n' % (number, b"x" * 1_000) for number in range(300))
    stream += b"data: [DONE]\n\n"
    with running.case(event_stream(stream)) as case, FaultProxy(running.port) as line:
        line.answers = Fault(pieces=16_384, rate=600_000)
        with connect(line.port, receive_buffer=16_384) as wire:
            wire.send(chat_request())
            case.report(chat_request(), wire.response(), "signed", body=stream)


# --- clients that leave

EVENT = b'data: {"id":"left"}\n\n'
MOMENTS = {"first": 1, "middle": 3, "last": 5}


@pytest.mark.parametrize("how", ["end", "reset"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_client_that_leaves_a_stream(running: Bench, moment: str, how: str) -> None:
    """Whenever it goes, the backend is told within a second, and nothing is signed."""
    told = threading.Event()

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, EVENTS, CHUNKED))
        for _ in range(MOMENTS[moment]):
            call.send(chunked(EVENT, end=False))
        if call.connection.gone.wait(5):
            told.set()
        call.send(chunked(b"data: [DONE]\n\n"))

    with running.case(script) as case, running.connect() as wire:
        wire.send(chat_request())
        seen = b""
        while seen.count(EVENT) < MOMENTS[moment]:
            seen += wire.read_until(EVENT)
        wire.leave(reset=how == "reset")
        case.gave_up()
        assert told.wait(5)
        assert_no_signature(running, seen)


def assert_no_signature(running: Bench, seen: bytes) -> None:
    """Check that the response with this head, and its id, have none."""
    own = re.search(rb"x-signature-id: (sig-[0-9a-f]+)", seen, re.IGNORECASE)
    assert own is not None
    for chat_id in (own[1].decode(), "left"):
        assert running.signature_text(chat_id) is None


def test_a_client_that_leaves_while_the_backend_is_silent(running: Bench) -> None:
    """Before the first byte of an answer: generation stops."""
    with running.case(Call.wait_until_gone) as case, running.connect() as wire:
        wire.send(chat_request())
        running.backend.next_call()
        wire.leave()
        case.gave_up()


@pytest.mark.parametrize("framing", [b"Content-Length: 100000", CHUNKED], ids=["length", "chunked"])
def test_a_client_that_leaves_within_its_upload(running: Bench, framing: bytes) -> None:
    """The backend's connection goes without a last chunk, so that half an upload is not taken for a whole one."""

    def script(call: Call) -> None:
        call.read_body()

    with running.case(script) as case, running.connect() as wire:
        wire.send(upload(framing), b"3e8\r\n%b\r\n" % (b"x" * 1_000))
        call = running.backend.next_call()
        wire.leave()
        case.gave_up()
        call.wait_until_gone()
        assert not call.whole.is_set()


def test_a_client_that_closes_its_sending_side(running: Bench) -> None:
    """A request that is whole is answered and signed, or taken for one whose client has gone."""
    with running.case() as case, running.connect() as wire:
        wire.send(chat_request())
        wire.socket.shutdown(1)
        response = wire.response()
        is_cut = response.status and not response.whole
        # Hypercorn may take the client for gone between the head and the body that it was handed, and drops the body.
        if not (is_cut and running.kind == "hypercorn-trio"):
            case.report(chat_request(), response, "signed" if response.status else "nothing")


# --- several at once


@pytest.mark.parametrize("fault", ["resets", "stalls", "is cut", "loses its client"])
def test_other_streams_are_not_affected(running: Bench, fault: str) -> None:
    """While one stream goes wrong in each way, another comes to its end as if nothing had happened."""
    go_on = threading.Event()
    rest = b"data: [DONE]\n\n"

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, EVENTS, CHUNKED), chunked(EVENT, end=False))
        if b"good" in call.body:
            while not go_on.wait(SILENCE / 5):
                call.send(chunked(b": here\n\n", end=False))
            call.send(chunked(rest))
        elif fault == "resets":
            call.reset()
        elif fault == "is cut":
            call.close()
        else:
            call.wait_until_gone()

    good = chat_request(body=b'{"stream":true,"good":1}')
    with running.case(script) as case, running.connect() as steady:
        steady.send(good)
        running.backend.next_call()
        with running.connect() as other:
            other.send(chat_request())
            other.read_until(EVENT)
            if fault == "loses its client":
                other.leave()
            else:
                other.wait_for_end(5)
        go_on.set()
        response = steady.response()
        assert response.body.replace(b": here\n\n", b"") == EVENT + rest
        case.report(good, response, "signed")


# --- connections of the pool that have ended


@pytest.mark.usefixtures("slow_network")
@pytest.mark.parametrize("how", ["end", "reset"])
def test_an_idle_connection_that_ends_on_the_next_request(running: Bench, how: str) -> None:
    """A request over it is sent once more on a fresh one, silently, and answered once."""
    with running.case() as case:
        running.client.post(CHAT, b"{}")
        running.wait_until_idle()
        stale = running.backend.calls[-1].connection

        def script(call: Call) -> None:
            call.read_body()
            if call.connection is stale:
                call.connection.close(reset=how == "reset")
            else:
                json_answer(b'{"id":"fresh"}')(call)

        running.backend.play(script)
        case.exchange(chat_request(), "signed", body=b'{"id":"fresh"}')
        assert [call.connection is stale for call in running.backend.calls] == [True, False]


@pytest.mark.usefixtures("slow_network")
@pytest.mark.parametrize("how", ["end", "reset"])
def test_idle_connections_that_have_ended_before(running: Bench, how: str) -> None:
    """Neither is missed by the next request."""
    with running.case() as case:
        running.client.post(CHAT, b"{}")
        running.wait_until_idle()
        for link in [call.connection for call in running.backend.calls]:
            link.close(reset=how == "reset")
        case.exchange(chat_request(), "signed", body=None)


def test_a_generation_that_may_have_begun_is_not_run_twice(running: Bench) -> None:
    """A connection of the pool that fails later than an idle one could is not replaced."""
    with running.case() as case:
        running.client.post(CHAT, b"{}")
        running.wait_until_idle()

        def script(call: Call) -> None:
            call.read_body()
            call.connection.gone.wait(0.7)
            call.reset()

        running.backend.play(script)
        case.exchange(chat_request(), "error")
        assert len(running.backend.calls) == 1


def test_half_an_answer_is_not_asked_for_again(running: Bench) -> None:
    """Something was received, so the request is not sent again, pooled connection or not."""
    with running.case() as case:
        running.client.post(CHAT, b"{}")
        running.wait_until_idle()

        def script(call: Call) -> None:
            call.read_body()
            call.send(b"HTTP/1.1 200 OK\r\n")
            call.reset()

        running.backend.play(script)
        case.exchange(chat_request(), "error")
        assert len(running.backend.calls) == 1


# --- a connection to the proxy that is used again


def test_many_kinds_of_requests_over_one_connection(running: Bench) -> None:
    """Answers follow each other in order, however each one before ended, and each is its own request's."""
    with running.case(answer(200, b'{"id":"one"}', b"content-type: application/json")), running.connect() as wire:
        for _ in range(3):
            for request, status in (
                (chat_request(kept=True), 200),
                (chat_request(kept=True, body=b"no json"), 400),
                (request_bytes("GET", "/version"), 200),
                (request_bytes("GET", "/v1/signature/nothing", token=TOKEN), 404),
                (request_bytes("HEAD", "/v1/other", token=TOKEN), 200),
            ):
                wire.send(request)
                response = wire.response(request.partition(b" ")[0].decode())
                assert response.status == status
                assert response.whole
        wire.send(request_bytes("GET", "/version", None, b"Connection: close"))
        assert wire.response().status == 200


def test_requests_sent_ahead(running: Bench) -> None:
    """Pipelined requests are answered one after the other, each with its own body and signature."""
    requests = [chat_request(kept=number < 4, body=b'{"n":%d}' % number) for number in range(5)]

    def script(call: Call) -> None:
        call.read_body()
        json_answer(b'{"echo":%b}' % call.body)(call)

    with running.case(script) as case, running.connect() as wire:
        wire.send(b"".join(requests))
        for number, request in enumerate(requests):
            response = wire.response()
            assert b'"echo":{"n":%d}' % number in response.body
            case.report(request, response, "signed")


def test_a_slow_head(running: Bench) -> None:
    """A head that comes byte by byte is read like any other, as long as the server has patience."""
    request = chat_request()
    with running.case() as case, running.connect() as wire:
        wire.send(*(request[place : place + 1] for place in range(len(request))), pause=0.0005)
        case.report(request, wire.response(), "signed")
