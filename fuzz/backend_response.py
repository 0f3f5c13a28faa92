"""For any bytes, cut anywhere, a response is read to the same head, body and end, or refused as no whole response."""

from __future__ import annotations

from collections.abc import Iterable

import httpcore

from teesign_asgi.framing import ResponseParser

OK = b"HTTP/1.1 200 OK\r\n"
SEEDS = [
    OK + b"Content-Length: 2\r\n\r\nhi",
    OK + b"Content-Length: 1\r\n\r\nh\n",
    OK + b"Transfer-Encoding: chunked\r\nA:\r\n\r\n2;x=y\r\nhi\r\n0\r\nB: c\r\n\r\n",
    b"HTTP/1.1 103 Hints\r\n\r\nHTTP/1.0 404 \r\nConnection: keep-alive\r\n\r\nhi",
    b"HTTP/1.1 304 X\r\nContent-Length: 2\r\nConnection: close\r\n\r\n" + OK,
]


def read(pieces: Iterable[bytes], *, is_head: bool) -> tuple[object, ...]:
    """Return all there is to know of a response and the end of its connection, or the kind of refusal."""
    parser, body = ResponseParser(is_head=is_head), b""
    try:
        for piece in pieces:
            parser.feed(piece)
            body += parser.take()
        was_complete, was_reusable = parser.complete, parser.reusable
        parser.end()
    except httpcore.RemoteProtocolError as error:
        return parser.status, type(error)
    assert parser.complete
    assert not parser.reusable
    assert was_complete or not was_reusable
    assert 100 <= parser.status <= 999
    assert all(name and not set(name + value) & set(b"\r\n\0") for name, value in parser.headers)
    return parser.status, parser.version, parser.headers, body, was_complete, was_reusable


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for these bytes."""
    for is_head in (False, True):
        whole = read([data] if data else [], is_head=is_head)
        assert read((data[i : i + 1] for i in range(len(data))), is_head=is_head) == whole
        middle = len(data) // 2
        assert read(filter(None, [data[:middle], data[middle:]]), is_head=is_head) == whole
