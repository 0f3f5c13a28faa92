"""The parser of responses: what is accepted, what is refused, and that cuts do not matter."""

from __future__ import annotations

from collections.abc import Iterable

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PLACES, cut, ways_to_cut

from teesign_asgi.framing import MAX_HEAD, MAX_INTERIM, BrokenResponseError, ResponseParser
from teesign_asgi.types import Headers

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

Result = tuple[int, Headers, bytes, bool, type[Exception] | None]


def read(pieces: Iterable[bytes], *, is_head: bool = False, ends: bool = True) -> Result:
    """Return status, headers, body, whether the response was whole before the connection ended, and the error."""
    parser = ResponseParser(is_head=is_head)
    body, whole = b"", False
    try:
        for piece in pieces:
            parser.feed(piece)
            body += parser.take()
        whole = parser.complete
        if ends:
            parser.end()
    except httpcore.RemoteProtocolError as error:
        # On refusal, how much of the body had come before is the only thing that depends on the pieces.
        return parser.status, [], b"", False, type(error)
    return parser.status, parser.headers, body, whole, None


WHOLE: list[tuple[str, bytes, bytes, int]] = [
    ("a length", OK + b"Content-Length: 5\r\n\r\nhello", b"hello", 200),
    ("no bytes", OK + b"Content-Length: 0\r\n\r\n", b"", 200),
    ("chunks", CHUNKED + b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", b"hello!", 200),
    ("a chunk extension", CHUNKED + b"5;a=b\r\nhello\r\n0\r\n\r\n", b"hello", 200),
    ("trailers", CHUNKED + b"5\r\nhello\r\n0\r\nA: b\r\n\r\n", b"hello", 200),
    ("no content", b"HTTP/1.1 204 No Content\r\n\r\n", b"", 204),
    ("not modified, with a length", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"", 304),
    ("no reason phrase", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", b"", 200),
    ("HTTP/1.0", b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", 200),
    (
        "interim responses",
        b"HTTP/1.1 103 Hints\r\nA: b\r\n\r\n" * MAX_INTERIM + OK + b"Content-Length: 0\r\n\r\n",
        b"",
        200,
    ),
    ("an error", b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", b"busy", 503),
]

REFUSED: list[tuple[str, bytes]] = [
    ("something else", b"SSH-2.0-OpenSSH_9.6\r\n"),
    ("a length and chunks", OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("chunks and a length", OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    ("two lengths", OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
    ("a list of lengths", OK + b"Content-Length: 5, 5\r\n\r\nhello"),
    ("a signed length", OK + b"Content-Length: +5\r\n\r\nhello"),
    ("a length beyond all measure", OK + b"Content-Length: 99999999999999999999\r\n\r\nhello"),
    ("another transfer coding", OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("a transfer coding without chunks", OK + b"Transfer-Encoding: gzip\r\n\r\nhello"),
    ("lines without CR", b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello"),
    ("one line without CR", OK + b"Content-Length: 5\n\r\nhello"),
    ("a folded line", OK + b"A: b\r\n c\r\nContent-Length: 5\r\n\r\nhello"),
    ("a NUL", OK + b"A: b\0c\r\nContent-Length: 5\r\n\r\nhello"),
    ("a CR in a value", OK + b"A: b\rc\r\nContent-Length: 5\r\n\r\nhello"),
    ("a space before the colon", OK + b"Content-Length : 5\r\n\r\nhello"),
    ("HTTP/0.9", b"HTTP/0.9 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    ("HTTP/2.0", b"HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    ("a status of four digits", b"HTTP/1.1 2000 OK\r\nContent-Length: 5\r\n\r\nhello"),
    ("a status below 100", b"HTTP/1.1 099 No\r\nContent-Length: 5\r\n\r\nhello"),
    ("a switch of protocols", b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    ("a switch to nothing", b"HTTP/1.1 101 Switching\r\n\r\n"),
    ("a flood of interim responses", b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_INTERIM + 1)),
    ("a chunk size with a space", CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n"),
    ("a chunk that is longer than its size", CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n"),
    ("a chunk size without CR", CHUNKED + b"5\nhello\r\n0\r\n\r\n"),
    ("a chunk size beyond all measure", CHUNKED + b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    ("a chunk size that is none", CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n"),
    ("a long header", OK + b"A: " + b"a" * MAX_HEAD + b"\r\nContent-Length: 0\r\n\r\n"),
    ("many headers", OK + b"A: b\r\n" * (MAX_HEAD // 2) + b"Content-Length: 0\r\n\r\n"),
    ("a long reason", b"HTTP/1.1 200 " + b"a" * (MAX_HEAD + 1) + b"\r\nContent-Length: 0\r\n\r\n"),
    ("a long trailer", CHUNKED + b"0\r\nA: " + b"a" * MAX_HEAD + b"\r\n\r\n"),
    ("a length not reached", OK + b"Content-Length: 6\r\n\r\nhello"),
    ("no last chunk", CHUNKED + b"5\r\nhello\r\n"),
    ("half a head", OK + b"Content-Le"),
]


@pytest.mark.parametrize(("response", "body", "status"), [row[1:] for row in WHOLE], ids=[row[0] for row in WHOLE])
def test_a_good_response_is_read_however_it_is_cut(response: bytes, body: bytes, status: int) -> None:
    """Whole, byte by byte, and cut in two anywhere; it is whole without the end of the connection."""
    for pieces in ways_to_cut(response):
        found = read(pieces)
        assert (found[0], found[2], found[3], found[4]) == (status, body, True, None)


@pytest.mark.parametrize("response", [row[1] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_bad_response_is_refused_however_it_is_cut(response: bytes) -> None:
    """Whatever two programs could read in two ways, and whatever has no end."""
    for pieces in ways_to_cut(response):
        assert read(pieces)[4] is BrokenResponseError


def test_a_refusal_quotes_nothing() -> None:
    """Neither as text nor as context that a log would show."""
    with pytest.raises(BrokenResponseError) as caught:
        ResponseParser().feed(b"HTTP/1.1 kanarienvogel\r\n\r\n")
    assert "kanarienvogel" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_headers_come_as_they_are() -> None:
    """In order, with their case, without the space around their values; an empty one too."""
    headers = read([OK + b"A:  b c \t\r\nset-Cookie: 1\r\nset-Cookie: 2\r\nE:\r\nContent-Length: 0\r\n\r\n"])[1]
    assert headers == [
        (b"A", b"b c"),
        (b"set-Cookie", b"1"),
        (b"set-Cookie", b"2"),
        (b"E", b""),
        (b"Content-Length", b"0"),
    ]


def test_without_framing_the_body_ends_with_the_connection() -> None:
    """Not before; and such a connection carries no other response."""
    parser = ResponseParser()
    parser.feed(OK + b"\r\nhello")
    assert not parser.complete
    parser.end()
    assert (parser.complete, parser.reusable, parser.take()) == (True, False, b"hello")


@pytest.mark.parametrize("framing", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_the_response_to_head_has_no_body(framing: bytes) -> None:
    """Whatever its head says."""
    parser = ResponseParser(is_head=True)
    parser.feed(OK + framing + b"\r\n\r\n")
    assert parser.complete
    parser.feed(b"hello")
    assert (parser.take(), parser.reusable) == (b"", False)


@pytest.mark.parametrize("behind", [b"0", b"5\r", b"0\r\n\r\n", b"hello", b"\r\n", b"HTTP/1.1 200 OK\r\n"])
@pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b""])
def test_what_comes_behind_the_response_to_head_makes_the_connection_unusable(framing: bytes, behind: bytes) -> None:
    """However it is cut: the rest of it would be taken for the beginning of the next client's response."""
    for pieces in ways_to_cut(OK + framing + b"\r\n" + behind):
        parser = ResponseParser(is_head=True)
        for piece in pieces:
            parser.feed(piece)
        assert (parser.complete, parser.reusable, parser.take()) == (True, False, b"")


def test_the_response_to_head_leaves_the_connection_as_it_was() -> None:
    """Where it declares a length, whatever came behind it would have been seen."""
    parser = ResponseParser(is_head=True)
    parser.feed(OK + b"Content-Length: 5\r\n\r\n")
    assert parser.reusable


REUSABLE: list[tuple[str, bytes, bool]] = [
    ("by default", OK + b"Content-Length: 0\r\n\r\n", True),
    ("not when it will be closed", OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n", False),
    ("not in HTTP/1.0", b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
    ("in HTTP/1.0 when kept", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", True),
    ("not with bytes behind it", OK + b"Content-Length: 0\r\n\r\nx", False),
    ("not with a second response behind it", (OK + b"Content-Length: 0\r\n\r\n") * 2, False),
    ("behind a body that ends a line", OK + b"Content-Length: 2\r\n\r\nh\n", True),
    ("not with a line end behind it", OK + b"Content-Length: 1\r\n\r\nh\n", False),
    ("not with an empty line behind it", OK + b"Content-Length: 0\r\n\r\n\r\n", False),
    ("behind chunks", CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", True),
    ("behind a last chunk with an extension", CHUNKED + b"5\r\nhello\r\n0;a=b\r\n\r\n", True),
    ("behind trailers", CHUNKED + b"5\r\nhello\r\n0\r\nA: b\r\nC:\r\n\r\n", True),
    *(
        (f"not with {behind!r} behind the last chunk", CHUNKED + b"5\r\nhello\r\n0\r\n\r\n" + behind, False)
        for behind in (b"\r", b"\n", b"\r\n", b"\n\r\n", b"\r\r\n\r\n", b"\r\n\r\n", b"\n\r\n\r\n")
    ),
    ("not with bytes behind the last chunk", CHUNKED + b"0\r\n\r\nHTTP/1.1 200", False),
]


@pytest.mark.parametrize(("response", "reusable"), [row[1:] for row in REUSABLE], ids=[row[0] for row in REUSABLE])
def test_a_connection_is_reusable(response: bytes, *, reusable: bool) -> None:
    """Only when both sides agree on where the response ends; the response is whole in any case."""
    for pieces in ways_to_cut(response):
        parser = ResponseParser()
        for piece in pieces:
            parser.feed(piece)
        assert (parser.complete, parser.reusable) == (True, reusable)


def test_a_connection_without_a_response_is_told_apart() -> None:
    """It may have been closed before the request came; one that ends within a response was not."""
    with pytest.raises(httpcore.RemoteProtocolError) as caught:
        ResponseParser().end()
    assert not isinstance(caught.value, BrokenResponseError)


VALUES = st.binary(max_size=20).map(lambda value: bytes(byte for byte in value if byte >= 0x21 and byte != 0x7F))
NAMES = st.from_regex(rb"[A-Za-z]{1,8}", fullmatch=True).map(lambda name: b"X-" + name)


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, int, Headers, bytes]:
    """Draw a response, with its status, headers and body."""
    status = draw(st.sampled_from([200, 201, 299, 400, 404, 500, 599]))
    headers = draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))
    pieces = draw(st.lists(st.binary(min_size=1, max_size=50), max_size=4))
    body = b"".join(pieces)
    if draw(st.booleans()):
        headers = [*headers, (b"Content-Length", b"%d" % len(body))]
        framed = body
    else:
        headers = [*headers, (b"Transfer-Encoding", b"chunked")]
        framed = b"".join(b"%X\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"HTTP/1.1 %d Whatever\r\n%b\r\n%b" % (status, lines, framed), status, headers, body


@given(responses(), PLACES)
def test_for_any_response_and_any_cuts_the_result_is_the_same(
    response: tuple[bytes, int, Headers, bytes], places: list[int]
) -> None:
    """Status, headers and body are those that were drawn."""
    raw, status, headers, body = response
    assert read(piece for piece in cut(raw, places) if piece) == (status, headers, body, True, None)


@given(responses(), st.integers(0, 400), st.binary(max_size=3), PLACES)
def test_for_any_damage_and_any_cuts_the_result_is_the_same(
    response: tuple[bytes, int, Headers, bytes], position: int, damage: bytes, places: list[int]
) -> None:
    """A response with some bytes replaced is accepted or refused, whatever the pieces."""
    raw = bytearray(response[0])
    start = position % len(raw)
    raw[start : start + len(damage)] = damage
    damaged = bytes(raw)
    whole, in_pieces = read([damaged]), read(piece for piece in cut(damaged, places) if piece)
    assert (whole[0], whole[4]) == (in_pieces[0], in_pieces[4])
    assert whole[:3] == in_pieces[:3]
