"""What hostile clients write on the wire, and hostile backends: other requests, other headers, other hosts.

The servers in front of the app read requests, so what is refused and how differs between them; what may never happen
does not.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator

import pytest
from backend import Call, answer, head, json_answer
from fault_bench import CANARY, CHAT, Bench, bench, chat_request
from raw_client import PATIENCE, RawResponse, Wire, request_bytes
from servers import MAIN_KINDS, TOKEN, Kind

AUTHORIZATION = b"Authorization: Bearer " + TOKEN.encode()
JSON = b"content-type: application/json"


@pytest.fixture(scope="module", params=MAIN_KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A bench under each server."""
    kind: Kind = request.param
    with bench(kind) as made:
        yield made


@pytest.fixture(scope="module", params=("granian", "uvicorn", "uvicorn-h11"))
def served(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A bench under each server that is meant for asyncio and each of its parsers, for what depends on the server."""
    kind: Kind = request.param
    with bench(kind) as made:
        yield made


# --- requests that could be read as two

SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nHost: x\r\n" + AUTHORIZATION + b"\r\n\r\n"


def framed(*lines: bytes, body: bytes, end: bytes = b"\r\n") -> bytes:
    """Return a request to the catch-all with these header lines, and this behind its head."""
    return end.join((b"POST /v1/outer HTTP/1.1", b"Host: x", AUTHORIZATION, *lines, b"", b"")) + body


TE = b"Transfer-Encoding: chunked"
ZERO = b"0\r\n\r\n"
DESYNCS: dict[str, bytes] = {
    "CL and TE, CL shorter": framed(b"Content-Length: 4", TE, body=ZERO + SMUGGLED),
    "CL and TE, CL longer": framed(b"Content-Length: %d" % (5 + len(SMUGGLED)), TE, body=ZERO + SMUGGLED),
    "TE and CL": framed(TE, b"Content-Length: %d" % (5 + len(SMUGGLED)), body=ZERO + SMUGGLED),
    "two lengths": framed(b"Content-Length: 0", b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED),
    "a list of lengths": framed(b"Content-Length: 0, %d" % len(SMUGGLED), body=SMUGGLED),
    "a signed length": framed(b"Content-Length: +%d" % len(SMUGGLED), body=SMUGGLED),
    "a length in hex": framed(b"Content-Length: 0x%x" % len(SMUGGLED), body=SMUGGLED),
    "a negative length": framed(b"Content-Length: -1", body=SMUGGLED),
    "a length with a space in it": framed(b"Content-Length: 1 0", body=SMUGGLED),
    "a length without end": framed(b"Content-Length: " + b"9" * 40, body=SMUGGLED),
    "a space before the colon": framed(b"Content-Length : %d" % len(SMUGGLED), body=SMUGGLED),
    "a space before the coding's colon": framed(b"Transfer-Encoding : chunked", body=ZERO + SMUGGLED),
    "another coding": framed(b"Transfer-Encoding: xchunked", body=ZERO + SMUGGLED),
    "chunked, and then another coding": framed(b"Transfer-Encoding: chunked, identity", body=ZERO + SMUGGLED),
    "two codings": framed(TE, b"Transfer-Encoding: identity", body=ZERO + SMUGGLED),
    "a coding behind a vertical tab": framed(b"Transfer-Encoding: \x0bchunked", body=ZERO + SMUGGLED),
    "an underscore": framed(b"Transfer_Encoding: chunked", body=ZERO + SMUGGLED),
    "a folded coding": framed(b"Transfer-Encoding:\r\n chunked", b"Content-Length: 5", body=ZERO + SMUGGLED),
    "a folded length": framed(b"X: a\r\n Content-Length: %d" % len(SMUGGLED), body=SMUGGLED),
    "lines that end in LF": framed(TE, body=ZERO + SMUGGLED, end=b"\n"),
    "one line that ends in LF": framed(b"X: a\nContent-Length: %d" % len(SMUGGLED), body=SMUGGLED),
    "one line that ends in CR": framed(b"X: a\rContent-Length: %d" % len(SMUGGLED), body=SMUGGLED),
    "a NUL in a header": framed(b"X: a\0b", b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED),
    "a chunk size in 0x": framed(TE, body=b"0x5\r\nhello\r\n" + ZERO + SMUGGLED),
    "a negative chunk size": framed(TE, body=b"-1\r\n" + ZERO + SMUGGLED),
    "a chunk size without digits": framed(TE, body=b"\r\n" + SMUGGLED),
    "a chunk size beyond 64 bits": framed(TE, body=b"1" + b"0" * 16 + b"\r\n" + SMUGGLED),
    "a chunk size behind a plus": framed(TE, body=b"+5\r\nhello\r\n" + ZERO + SMUGGLED),
    "a chunk size with an underscore": framed(TE, body=b"1_0\r\n" + b"x" * 16 + b"\r\n" + ZERO + SMUGGLED),
    "a chunk size that ends in LF": framed(TE, body=b"5\nhello\r\n" + ZERO + SMUGGLED),
    "a chunk that is longer than its size": framed(TE, body=b"2\r\nhello\r\n" + ZERO + SMUGGLED),
    "a chunk without its end": framed(TE, body=b"5\r\nhello" + ZERO + SMUGGLED),
    "an extension that ends in LF": framed(TE, body=b"5;a\nhello\r\n" + ZERO + SMUGGLED),
    "a last chunk without its end": framed(TE, body=b"0\r\n" + SMUGGLED),
    "HTTP/1.0 with chunks": framed(TE, body=ZERO + SMUGGLED).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "HTTP/0.9": b"GET /v1/outer\r\n\r\n" + SMUGGLED,
    "HTTP/3.7": framed(body=SMUGGLED).replace(b"HTTP/1.1", b"HTTP/3.7", 1),
    "a GET with a body": framed(b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED).replace(b"POST", b"GET", 1),
}


@pytest.mark.parametrize("kind", ["hypercorn", "hypercorn-trio"])
@pytest.mark.parametrize("length", [5, 10, 20])
def test_a_length_beside_a_coding_is_not_the_bodys(kind: Kind, length: int) -> None:
    """These servers let both through; the coding frames the body then, for the backend as well."""
    with bench(kind) as made, made.case(json_answer(b'{"id":"x"}')), made.connect() as wire:
        # Hypercorn on trio keeps an idle connection whose client has left for all of its 5 s.
        close = b"Connection: close"
        wire.send(framed(b"Content-Length: %d" % length, TE, close, body=b"a\r\n0123456789\r\n" + ZERO))
        assert wire.response().status == 200
        assert [call.body for call in made.backend.calls] == [b"0123456789"]


NOT_ANSWERED = {("uvicorn", "an underscore")}
"""Where the first request is whole and good, and may get through without its answer: uvicorn with httptools answers
what is malformed behind it, in the same read, and closes."""


def answers(wire: Wire) -> list[RawResponse]:
    """Return every answer that comes before the server ends the connection, or begins none for a while.

    One that has begun may take its time on a busy machine.
    """
    wire.socket.settimeout(PATIENCE)
    found: list[RawResponse] = []
    with contextlib.suppress(OSError):
        while not wire.ended_by and (wire.unread or select.select([wire.socket], [], [], 0.3)[0]):
            response = wire.response()
            if response.status:
                found.append(response)
    return found


def answered(served: Bench, wire: Wire) -> tuple[list[int], list[Call]]:
    """Return the status of every answer, and the whole requests that have reached the backend.

    An answer to one of those may take its time on a busy machine.
    """
    found: list[int] = []
    deadline = time.monotonic() + PATIENCE
    while True:
        found += [response.status for response in answers(wire)]
        whole = [call for call in served.backend.calls if call.whole.is_set()]
        missing = len(whole) - sum(200 <= status <= 299 for status in found)
        if missing <= 0 or wire.ended_by or time.monotonic() > deadline:
            return found, whole


@pytest.mark.parametrize("name", DESYNCS)
def test_a_request_that_could_be_read_as_two(served: Bench, name: str) -> None:
    """Not more requests reach the backend than are answered with 2xx, and nothing is answered behind a 400."""
    with served.case(json_answer(b'{"id":"x"}')), served.connect() as wire:
        with contextlib.suppress(OSError):
            wire.send(DESYNCS[name])
        found, whole = answered(served, wire)
        unanswered = (served.kind, name) in NOT_ANSWERED and found == [400]
        assert len(whole) <= sum(200 <= status <= 299 for status in found) + unanswered, found
        assert not any(status >= 500 for status in found), found
        if 400 in found:
            assert found.index(400) == len(found) - 1, found
            assert wire.wait_for_end() == b"", "the connection goes on after a 400"
        targets = [call.target for call in whole]
        # Where the second request is one of its own to the server, it came behind a whole first one.
        assert b"/v1/smuggled" not in targets or targets == [b"/v1/outer", b"/v1/smuggled"]


# --- headers with more than themselves in them

INJECTED = b"x-injected: yes"
ENDS = {"CRLF": b"\r\n", "LF": b"\n", "CR": b"\r", "NUL": b"\0", "LF NUL": b"\n\0", "fold": b"\r\n "}
FORWARDED = ("X-Request-ID", "traceparent", "Content-Type", "Accept", "X-Custom", "X-Forwarded-For", "Via")


def assert_no_injection(running: Bench) -> None:
    """Check that no request at the backend holds what a header was meant to add, as a header or a loose line end."""
    for call in running.backend.calls:
        assert b"x-injected" not in call.header_names
        for line in call.raw_head[:-4].split(b"\r\n"):
            assert not set(line) & set(b"\r\n\0"), line


@pytest.mark.parametrize("end", ENDS)
def test_headers_of_a_client_add_no_others(served: Bench, end: str) -> None:
    """In each that is forwarded or echoed, on a named route and on the catch-all."""
    with served.case(json_answer(b'{"id":"x"}')):
        for name in FORWARDED:
            for target in (CHAT, "/v1/other"):
                value = name.encode() + b": a" + ENDS[end] + INJECTED
                with served.connect() as wire:
                    wire.send(chat_request(value, target=target))
                    for response in answers(wire):
                        assert response.status < 500
                        assert response.header(b"x-injected") is None
        if end in ("CRLF", "LF"):  # it is a header of its own to everyone, and passes where headers do
            served.backend.calls = [call for call in served.backend.calls if b"x-injected" not in call.header_names]
        assert_no_injection(served)


@pytest.mark.parametrize("char", ["%0d%0a", "%0a", "%00", "\x01", "\x7f", "\xff", " "])
def test_targets_add_no_headers(served: Bench, char: str) -> None:
    """Whatever stands in a target, encoded or not, is at most a part of it at the backend."""
    with served.case(json_answer(b'{"id":"x"}')):
        for target in (f"/v1/a{char}x-injected:{char}b", f"/v1/a?b={char}x-injected:{char}c"):
            with served.connect() as wire:
                wire.send(request_bytes("GET", target, None, b"Connection: close", token=TOKEN))
                for response in answers(wire):
                    assert response.status < 500
                    assert response.header(b"x-injected") is None
        assert_no_injection(served)


def test_headers_that_connection_names_do_not_cross(running: Bench) -> None:
    """Nor do those that look like them to a backend that takes underscores for dashes."""
    lines = [b"Connection: close, X-Secret", b"X-Secret: a", b"X_Secret: b", b"Proxy_Authorization: c", b"Cookie_: d"]
    with running.case() as case:
        request = request_bytes("POST", "/v1/other", b"{}", *lines, b"X_Request_ID: chosen", token=TOKEN)
        with running.connect() as wire:
            wire.send(request)
            case.report(request, wire.response(), "signed")
        names = {name.replace(b"_", b"-") for name in running.backend.call.header_names}
        assert not names & {b"x-secret", b"proxy-authorization", b"x-request-id", b"authorization"}


@pytest.mark.parametrize("end", [name for name in ENDS if name != "CRLF"])
@pytest.mark.parametrize("name", ["content-type", "x-custom", "retry-after", "location"])
def test_headers_of_a_backend_add_no_others(running: Bench, name: str, end: str) -> None:
    """A response whose headers hold line ends is refused, or delivered without them."""

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, JSON, name.encode() + b": a" + ENDS[end] + INJECTED, b"content-length: 2"), b"[]")
        call.wait_until_gone()

    with running.case(script) as case:
        response = case.exchange(chat_request(target="/v1/other"), "error")
        assert response.header(b"x-injected") is None
        case.gave_up()


# --- paths and hosts


@pytest.fixture
def decoy() -> Iterator[socket.socket]:
    """A listener that nobody has any reason to connect to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


TARGETS = """
    //{host}/x @{host}/x /@{host}/x //user@{host}/x ///{host}/x http://{host}/x https://{host}/x HTTP://{host}/
    \\\\{host}/x /\\{host}/x /%2f{host}/x /%2f%2f{host}/x /%5c%5c{host}/x /..//{host}/x /v1/../../{host}/x
    /%2e%2e/{host}/x /%252e%252e/{host}/x /..;/{host}/x /.%00./{host}/x /;@{host}/x /?@{host}/x /#@{host}/x
    :{port}/x .{host}/x {host} {host}/x * /* //{host}\\@proxy/x http:///{host}/x http:/{host}/x /http://{host}/x
    /v1/models/../../@{host}/x ?//{host}/x file:///etc/passwd
"""


def test_no_target_chooses_the_host(running: Bench, decoy: socket.socket) -> None:
    """Whatever path, host, method or redirect comes, only the backend is asked; the decoy gets no connection."""
    port = decoy.getsockname()[1]
    host = f"127.0.0.1:{port}"
    targets = TARGETS.format(host=host, port=port).split()
    moved = f"location: http://{host}/x".encode()
    with running.case(answer(302, b"", moved)):
        for target in targets:
            for method in ("GET", "POST", "CONNECT", "OPTIONS"):
                with running.connect() as wire:
                    more = [f"X-Forwarded-Host: {host}".encode(), f"Forwarded: host={host}".encode()]
                    wire.send(
                        request_bytes(
                            method, target, None, b"Connection: close", *more, token=TOKEN, host=host.encode()
                        )
                    )
                    for response in answers(wire):
                        assert response.status < 500, (method, target)
        for call in running.backend.calls:
            assert call.target.startswith(b"/") or call.target == b"*", call.target
            assert call.header(b"host") == f"127.0.0.1:{running.line.port}".encode()
            assert call.method != "CONNECT"
        with pytest.raises(BlockingIOError):
            decoy.accept()


@pytest.mark.parametrize(
    "target",
    [
        *("/v1/%2e%2e/x", "/v1/%252e%252e/x", "/v1/a%2fb", "/v1/a%5cb", "/v1/..;/x", "/v1/..;a=b/x", "/v1/a%00b"),
        *("/..", "/sleep%0a", "/v1/load_lora_adapter%250A", "/a%0Db", "/a%7f"),
    ],
)
def test_paths_that_mean_something_else_elsewhere(running: Bench, target: str) -> None:
    """They are refused, and the backend hears nothing."""
    with running.case() as case:
        response = case.exchange(request_bytes("GET", target, None, b"Connection: close", token=TOKEN), "error")
        assert response.status == 400
        assert not running.backend.calls


@pytest.mark.parametrize("target", ["/sleep#x", "/v1/%73leep#", "/v1/load_lora_adapter?#x", "/v1/x#/../../sleep"])
def test_no_fragment_reaches_the_backend(running: Bench, target: str) -> None:
    """No request has one (RFC 9112, section 3.2): a backend that cuts it off reads another path than was looked at."""
    with running.case() as case:
        request = request_bytes("POST", target, b"{}", b"Connection: close", token=TOKEN)
        with running.connect() as wire:
            wire.send(request)
            response = wire.response()
        assert response.status in (200, 400, 404)  # some servers cut it off themselves
        case.report(request, response, "signed" if response.status == 200 else "error")
        assert all(b"#" not in call.target for call in running.backend.calls)


# --- tokens


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [b"Authorization:"],
        [b"Authorization: Bearer"],
        [b"Authorization: Bearer " + CANARY.encode()],
        [AUTHORIZATION, AUTHORIZATION],
        [AUTHORIZATION, b"Authorization: Bearer " + CANARY.encode()],
        [b"Authorization: Bearer \xc3\xb6\xff" + CANARY.encode()],
        [b"Authorization: Bearer " + CANARY.encode() * 4_000],
        [b"Authorization: Bearer " + TOKEN.encode() + b"\0"],
    ],
    ids=["none", "empty", "no token", "wrong", "twice", "one wrong", "not ASCII", "48 KiB", "with a NUL"],
)
def test_a_bad_token(served: Bench, lines: list[bytes]) -> None:
    """It is refused, by the app or by the server; it is in no log, and the backend is not asked."""
    with served.case() as case, served.connect() as wire:
        request = request_bytes("POST", CHAT, b"{}", *lines, b"Connection: close")
        wire.send(request)
        response = wire.response()
        assert response.status == 401 or (response.status in (400, 431) and lines[0][-1:] == b"\0"), response
        if response.status == 401:
            case.report(request, response, "error")
        assert not served.backend.calls


def test_a_token_of_a_megabyte(served: Bench) -> None:
    """The server refuses it, or the app does."""
    with served.case(), served.connect() as wire:
        wire.send_all_that_is_taken(
            request_bytes("GET", "/v1/x", None, b"Authorization: Bearer " + CANARY.encode() * 90_000)
        )
        assert all(response.status in (400, 401, 431) for response in answers(wire))
        assert not served.backend.calls


def test_a_nonce_of_a_megabyte(served: Bench) -> None:
    """The server refuses it, or the app does; the next request is answered."""
    target = f"/v1/attestation/report?nonce={'0' * (1 << 20)}"
    with served.case(), served.connect() as wire:
        wire.send_all_that_is_taken(request_bytes("GET", target, None, token=TOKEN))
        assert all(400 <= response.status <= 499 for response in answers(wire))
