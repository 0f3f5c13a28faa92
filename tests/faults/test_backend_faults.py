"""What a backend can do wrong, or only strangely, from the head of its response to the end: a row for each.

The rows are run under each server with one bench for all of them, and the invariants are checked after each.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from backend import Call, Script, answer, bytewise, chunked, event_stream, head, json_answer
from fault_bench import CANARY, CHAT, Bench, Ending, bench, chat_request
from fault_proxy import CLEAN, Fault
from raw_client import PATIENCE, request_bytes
from servers import MAIN_KINDS, TOKEN, Kind

JSON = b"content-type: application/json"
EVENTS = b"content-type: text/event-stream"
SPOKEN = b'data: {"id":"%b"}\n\n' % CANARY.encode()
DONE = b"data: [DONE]\n\n"
SILENCE = 1.0
"""The longest silence that impatient benches stand."""


@pytest.fixture(scope="module", params=MAIN_KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A bench under each server."""
    kind: Kind = request.param
    with bench(kind) as made:
        yield made


@pytest.fixture(scope="module", params=MAIN_KINDS)
def impatient(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A bench that does not wait long for its backend, whose connections each carry one request."""
    kind: Kind = request.param
    with bench(kind, backend_timeout=SILENCE, max_keepalive=0, max_audio_request_bytes=64 << 20) as made:
        yield made


@pytest.fixture(scope="module", params=MAIN_KINDS)
def fresh(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A bench whose backend connections each carry one request, so that a fault of the wire hits the next one."""
    kind: Kind = request.param
    with bench(kind, max_keepalive=0) as made:
        yield made


@dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        name: what goes wrong.
        script: the backend that does it, once it has the request.
        ending: how the response must end for the client.
        body: what the client must read; not looked at if None.
        given_up: whether the proxy must close the backend's connection and never use it again.
        target: where the request goes.
        status: the status that the client must see.
        chat_id: the id in the body by which the signature must be found as well, if any.
    """

    name: str
    script: Callable[[Call], object]
    ending: Ending
    body: bytes | None = None
    given_up: bool = True
    target: str = CHAT
    status: int = 200
    chat_id: str | None = None


def says(*data: bytes, then: Callable[[Call], object] = Call.wait_until_gone) -> Script:
    """Return a script that sends these bytes, and then does something; it waits for the proxy by default."""

    def script(call: Call) -> None:
        call.send(*data)
        then(call)

    return script


def later(*data: bytes) -> Callable[[Call], object]:
    """Return what sends these bytes in a packet of their own, and waits for the proxy."""

    def step(call: Call) -> None:
        call.connection.gone.wait(0.05)
        says(*data)(call)

    return step


def _error(name: str, *data: bytes, then: Callable[[Call], object] = Call.close) -> Row:
    return Row(name, says(*data, then=then), "error", status=500)


def _broken(name: str, *data: bytes, body: bytes, then: Callable[[Call], object] = Call.close) -> Row:
    return Row(name, says(*data, then=then), "broken", body)


CHUNKED = b"transfer-encoding: chunked"
OK = b"HTTP/1.1 200 OK\r\n"
SECRET = f"x-secret: {CANARY}".encode()
INTERIM = b"HTTP/1.1 103 Early Hints\r\n%b\r\n\r\n" % SECRET

HEADS = [
    _error("reset", then=Call.reset),
    _error("empty"),
    _error("cut within the head", OK + SECRET),
    _error("reset within the head", OK + SECRET, then=Call.reset),
    _error("garbage", f"{CANARY}\r\n\r\n".encode()),
    _error("binary garbage", bytes(range(256)) * 4, then=Call.wait_until_gone),
    _error("a flood of interim responses", INTERIM * 2_000, then=Call.wait_until_gone),
    _error("101", head(101, b"upgrade: x", b"connection: upgrade", SECRET), then=Call.wait_until_gone),
    _error(
        "17 interim responses, and then an answer",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 17 + head(200, JSON, b"content-length: 2"),
        b"[]",
    ),
    _error("101, and then an answer", head(101), head(200, JSON, b"content-length: 2") + b"[]"),
    _error("too many headers", head(200, *[SECRET] * 8_000), then=Call.wait_until_gone),
    _error("one header of a megabyte", OK, b"x-a: " + CANARY.encode() * 80_000, then=Call.wait_until_gone),
    _error("status 099", b"HTTP/1.1 099 No\r\n" + SECRET + b"\r\n\r\n", then=Call.wait_until_gone),
    _error("status 600", head(600, b"content-length: 1", SECRET), then=Call.wait_until_gone),
    _error("status 99999", b"HTTP/1.1 99999 No\r\n" + SECRET + b"\r\n\r\n", then=Call.wait_until_gone),
    _error("a status that is no number", b"HTTP/1.1 abc " + CANARY.encode() + b"\r\n\r\n", then=Call.wait_until_gone),
    _error("a length that is no number", head(200, JSON, b"content-length: " + CANARY.encode())),
    _error("two lengths", head(200, JSON, b"content-length: 2", b"content-length: 3"), b"{}"),
    _error("a length and chunks", head(200, JSON, b"content-length: 2", CHUNKED), chunked(b"{}")),
    _error("a NUL in a header", head(200, JSON, b"x-a: b\0c", b"content-length: 2"), b"{}"),
]

JSON_BODIES = [
    _error("a short content-length", head(200, JSON, b"content-length: 100"), b'{"id":"%b"' % CANARY.encode()),
    _error("no last chunk", head(200, JSON, CHUNKED), chunked(b'{"id":"%b"}' % CANARY.encode(), end=False)),
    _error("reset within JSON", head(200, JSON, CHUNKED), chunked(b'{"a":', end=False), then=Call.reset),
    Row("not JSON", json_answer(CANARY.encode()), "signed", CANARY.encode(), given_up=False),
    Row("half of JSON", json_answer(b'{"id":"a"'), "signed", b'{"id":"a"', given_up=False),
    Row("not UTF-8", json_answer(b'{"id":"\xff"}'), "signed", b'{"id":"\xff"}', given_up=False),
    Row("an id that is a number", json_answer(b'{"id":7}'), "signed", b'{"id":7}', given_up=False),
    Row(
        "an id of a megabyte",
        json_answer(b'{"id":"%b"}' % (b"i" * 1_000_000)),
        "signed",
        b'{"id":"%b"}' % (b"i" * 1_000_000),
        given_up=False,
    ),
    Row("an array", json_answer(b'[{"id":"x"}]'), "signed", b'[{"id":"x"}]', given_up=False),
    Row("no id", json_answer(b'{"a":1}'), "signed", given_up=False),
    Row(
        "bytes behind the end",
        says(head(200, JSON, b"content-length: 10") + b'{"id":"z"}' + CANARY.encode()),
        "signed",
        b'{"id":"z"}',
    ),
    Row(
        "a second response behind the first",
        says((head(200, JSON, b"content-length: 10") + b'{"id":"y"}') * 2),
        "signed",
        b'{"id":"y"}',
    ),
    Row(
        "a second response behind the last chunk",
        says(head(200, JSON, CHUNKED) + chunked(b"[]") + head(200, JSON, b"content-length: 2") + b"[]"),
        "signed",
        b"[]",
    ),
]

ERROR_EVENT = b'data: {"error":{"message":"out of memory"}}\n\n' + DONE
LARGE_EVENT = b'data: {"id":"large","text":"' + b"x" * (16 << 20) + b'"}\n\n' + DONE

STREAMS = [
    _broken("resets", head(200, EVENTS, CHUNKED), chunked(SPOKEN, end=False), body=SPOKEN, then=Call.reset),
    _broken("is cut", head(200, EVENTS, CHUNKED), chunked(SPOKEN, end=False), body=SPOKEN),
    _broken("is cut after the head", head(200, EVENTS, CHUNKED), body=b""),
    _broken("is cut within the terminator", head(200, EVENTS, CHUNKED), chunked(DONE[:9], end=False), body=b""),
    _broken(
        "a chunk of nonsense",
        head(200, EVENTS, CHUNKED),
        chunked(SPOKEN, end=False),
        body=SPOKEN,
        then=later(b"zz\r\n"),
    ),
    _broken(
        "a chunk longer than its size",
        head(200, EVENTS, CHUNKED),
        body=b"dat",
        then=later(b"3\r\ndata: 1\n\n\r\n"),
    ),
    Row("ends without [DONE]", event_stream(SPOKEN), "unsigned", SPOKEN, given_up=False),
    Row("ends with an empty stream", event_stream(), "unsigned", b"", given_up=False),
    Row("an error event, then [DONE]", event_stream(ERROR_EVENT), "signed", ERROR_EVENT, given_up=False),
    Row("does not end after [DONE]", says(head(200, EVENTS, CHUNKED), chunked(DONE, end=False)), "signed", DONE),
    Row("one byte per chunk", event_stream(*bytewise(SPOKEN + DONE)), "signed", SPOKEN + DONE, given_up=False),
    Row("64 events in a read", event_stream(SPOKEN * 64 + DONE), "signed", SPOKEN * 64 + DONE, given_up=False),
    Row(
        "an event of 16 MiB",
        event_stream(*(LARGE_EVENT[at : at + 65_536] for at in range(0, len(LARGE_EVENT), 65_536))),
        "signed",
        LARGE_EVENT,
        given_up=False,
        chat_id="large",
    ),
    Row(
        "a second response behind [DONE]",
        says(head(200, EVENTS, CHUNKED) + chunked(DONE) + head(200, JSON, b"content-length: 2") + b"[]"),
        "signed",
        DONE,
    ),
]

ZIPPED = gzip.compress(b"\0" * 10_000_000)
OTHERS = [
    Row(
        "a redirect",
        answer(307, b"moved", f"location: http://{CANARY}/".encode()),
        "unsigned",
        b"moved",
        given_up=False,
        status=307,
    ),
    Row(
        "compressed although not asked",
        answer(200, ZIPPED, JSON, b"content-encoding: gzip"),
        "signed",
        ZIPPED,
        given_up=False,
    ),
    _broken("a short file", head(200, b"content-type: audio/wav", b"content-length: 9"), b"half", body=b"half"),
    Row(
        "an error of its own",
        json_answer(b'{"error":"x"}', 400),
        "unsigned",
        b'{"error":"x"}',
        given_up=False,
        status=400,
    ),
    Row(
        "an error that quotes the prompt",
        json_answer(json.dumps({"detail": [{"input": CANARY}]}).encode(), 422),
        "error",
        given_up=False,
        target="/v1/other",
        status=422,
    ),
    Row(
        "an error page",
        answer(502, f"<html>{CANARY}</html>".encode(), b"content-type: text/html"),
        "error",
        given_up=False,
        target="/v1/other",
        status=502,
    ),
    Row(
        "an error without an end",
        says(head(500, JSON, CHUNKED), chunked(f'{{"message":"{CANARY}'.encode(), b"x" * 100_000, end=False)),
        "error",
        target="/v1/other",
        status=500,
    ),
]

SILENT = [
    _error("before the head", then=Call.wait_until_gone),
    _error("within the head", OK + SECRET, then=Call.wait_until_gone),
    _error("within JSON", head(200, JSON, b"content-length: 9"), b"{", then=Call.wait_until_gone),
    _broken(
        "within a stream",
        head(200, EVENTS, CHUNKED),
        chunked(SPOKEN, end=False),
        body=SPOKEN,
        then=Call.wait_until_gone,
    ),
]

ROWS = [*HEADS, *JSON_BODIES, *STREAMS, *OTHERS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_backend_that(running: Bench, row: Row) -> None:
    """Whatever it does, the client gets what the row says, and the invariants hold."""

    def script(call: Call) -> None:
        call.read_body()
        row.script(call)

    with running.case(script) as case:
        request = chat_request(target=row.target)
        response = case.exchange(request, row.ending, body=row.body)
        assert response.status == row.status
        if row.chat_id is not None:
            running.assert_covers(running.signature_text(row.chat_id), request, response)
        if row.given_up:
            case.gave_up()


@pytest.mark.parametrize("row", SILENT, ids=lambda row: row.name)
def test_a_backend_that_falls_silent(impatient: Bench, row: Row) -> None:
    """After the limit the client is told, or its response broken off, and the connection is closed."""
    test_a_backend_that(impatient, row)


def test_a_second_response_later(running: Bench) -> None:
    """What comes over an idle connection is nobody's answer: that goes at once, and the next request takes another."""
    if running.kind == "hypercorn-trio":
        pytest.skip("httpcore looks at an idle connection when it is asked to use it; see test_pools")
    read = threading.Event()

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, JSON, b"content-length: 2"), b"[]")
        assert read.wait(PATIENCE)
        call.send(head(200, JSON, b"content-length: 2") + b"[]")
        call.wait_until_gone()

    with running.case(script) as case:
        case.exchange(chat_request(), "signed", body=b"[]")
        read.set()
        case.gave_up()


def test_every_row_has_a_name_of_its_own() -> None:
    """Reports name them."""
    assert len({row.name for row in ROWS}) == len(ROWS)


# --- the wire between the proxy and the backend

ANSWERS: dict[str, tuple[bytes, bytes]] = {
    "JSON": (head(200, JSON, b"content-length: 19"), b'{"id":"an-id","a":1}'[:19]),
    "stream": (head(200, EVENTS, CHUNKED), b'data: {"id":"an-id"}\n\ndata: [DONE]\n\n'),
    "file": (head(200, b"content-type: audio/wav", b"content-length: 10"), b"0123456789"),
}


def on_the_wire(name: str) -> tuple[bytes, bytes]:
    """Return the body of an answer, and all of its bytes as the backend sends them."""
    start, body = ANSWERS[name]
    return body, start + (chunked(body[:22], body[22:]) if name == "stream" else body)


def assert_true_to(fresh: Bench, request: bytes, body: bytes, *, may_differ: bool) -> None:
    """Ask once, and check that what was read is signed if and only if it is a whole answer, and over those bytes."""
    with fresh.connect() as wire:
        wire.send(request)
        response = wire.response()
    own = response.header(b"x-signature-id")
    text = fresh.signature_text(own.decode()) if own is not None else None
    if not 200 <= response.status <= 299 or not response.whole:
        assert text is None
    elif not may_differ:
        assert response.body == body
    if text is not None:
        fresh.assert_covers(text, request, response)


@pytest.mark.parametrize("how", ["end", "reset"])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_cut_at_any_byte(fresh: Bench, name: str, how: str) -> None:
    """Nothing that is not whole is signed, or looks whole; and the next request is served each time."""
    body, raw = on_the_wire(name)
    request = chat_request()
    with fresh.case(says(raw)) as case:
        for position in range(0, len(raw), 3):
            fresh.line.answers = Fault(**{f"{how}_at": position})
            assert_true_to(fresh, request, body, may_differ=False)
        fresh.line.answers = CLEAN
        case.gave_up()


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_with_any_bit_turned_over(fresh: Bench, name: str) -> None:
    """It is refused, broken off, or delivered; and what is signed is what the client read."""
    body, raw = on_the_wire(name)
    request = chat_request()
    with fresh.case(says(raw, then=Call.close)):
        for bit in range(0, len(raw) * 8, 11):
            fresh.line.answers = Fault(flip=bit)
            assert_true_to(fresh, request, body, may_differ=True)
        fresh.line.answers = CLEAN


SLOW = [
    ("one byte a packet", Fault(pieces=1)),
    ("three bytes a packet", Fault(pieces=3)),
    ("slow", Fault(pieces=8, rate=500)),
]


@pytest.mark.parametrize("fault", [row[1] for row in SLOW], ids=[row[0] for row in SLOW])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_in_small_packets(fresh: Bench, name: str, fault: Fault) -> None:
    """Whatever the packets, bytes, id and signature are the same; a slow line is no silent one."""
    body, raw = on_the_wire(name)
    with fresh.case(says(raw, then=lambda _: None)) as case:
        fresh.line.answers = fresh.line.requests = fault
        case.exchange(chat_request(), "signed", body=body)
        fresh.line.answers = fresh.line.requests = CLEAN


def test_an_upload_whose_line_stalls(impatient: Bench) -> None:
    """A backend that takes nothing is given up after the silence limit, and the client is told."""
    is_on_trio = impatient.kind == "hypercorn-trio"
    before = impatient.metric('teesign_backend_errors_total{kind="timeout"}')
    with impatient.case(Call.wait_until_gone) as case:
        impatient.line.requests = Fault(stall_at=100)
        # More than sockets hold.
        upload = request_bytes("POST", "/v1/other", bytes(48 << 20), token=TOKEN)
        with impatient.connect() as wire:
            if is_on_trio:
                # Hypercorn does not end a request that is answered while ten pieces of it wait to be taken.
                wire.send_until_answered(upload, pause=0.4 * SILENCE)
            else:
                wire.send_all_that_is_taken(upload, patience=10 * SILENCE)
            response = wire.response()
            if response.status or is_on_trio:  # a server that closes with something unread may tear its answer down
                case.report(upload, response, "error")
                assert response.status == 500
        impatient.line.requests = CLEAN
        impatient.line.reset_all()  # the kernel goes on offering what the proxy has given it
    assert impatient.metric('teesign_backend_errors_total{kind="timeout"}') == before + 1
