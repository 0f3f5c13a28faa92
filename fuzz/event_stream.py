"""For any event stream, cut anywhere, the bytes handed out, the id and the end are the same as for the whole of it."""

from __future__ import annotations

from collections.abc import Iterable

from teesign import EventStreamScanner

SEEDS = [
    b'data: {"id":"a"}\n\ndata: [DONE]\n\n',
    b": comment\r\ndata:[DONE]\r\n\r\nmore",
    b'\xef\xbb\xbfevent: x\rdata: {"a":\rdata: 1,"id":"b"}\r\rdata: [DONE]\r\r\n',
]


def scan(chunks: Iterable[bytes]) -> tuple[bytes, str | None, bool]:
    """Return what a scanner makes of these chunks."""
    scanner = EventStreamScanner()
    out = b"".join([scanner.feed(chunk) for chunk in chunks]) + scanner.close()
    return out, scanner.event_id, scanner.complete


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for this stream."""
    whole = scan([data])
    assert data.startswith(whole[0])
    assert whole[2] or whole[0] == data
    assert scan(data[position : position + 1] for position in range(len(data))) == whole
    middle = len(data) // 2
    assert scan([data[:middle], data[middle:]]) == whole
