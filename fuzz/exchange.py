"""For any response, cut anywhere, the bytes out and the signature are the same, and the signature is over those bytes.

The first byte chooses how the response is handled, and how long it was declared to be. One that is shorter is refused.
"""

from __future__ import annotations

from collections.abc import Iterable

from teesign import Exchange, MalformedError, SignedExchange, verify_exchange
from teesign.testing import counting_random, fixed_pair

KINDS = ("application/json", "text/event-stream", "audio/mpeg", "application/problem+json")
NEW_ID = "x-" + "2".zfill(24)
MEMBER = f'"id":"{NEW_ID}"'.encode()
SEEDS = [
    b'\0 {"x":1}',
    b'\0{"id":"a"}',
    b"\0[1]",
    b'\1data: {"id":"a"}\n\ndata: [DONE]\n\nmore',
    b"\2\0\1\2",
    b"\x13abcd",
]


def relay(chunks: Iterable[bytes], kind: str, length: int | None) -> tuple[bytes, SignedExchange | None, bool]:
    """Return what an exchange makes of these chunks, and whether it took their end for the response's."""
    exchange = Exchange(fixed_pair(), id_prefix="x", random=counting_random())
    exchange.receive_request(b"request")
    exchange.start_response(200, kind, content_length=length)
    out = b"".join(map(exchange.receive_response, chunks))
    try:
        out += exchange.end_response()
    except MalformedError:
        return out, exchange.signed, False
    return out, exchange.signed, True


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for this response."""
    choice, body = data[0] if data else 0, data[1:]
    kind, length = KINDS[choice & 3], (choice >> 2) - 1 if choice >> 2 else None
    whole = relay([body], kind, length)
    out, signed, is_whole = whole
    assert is_whole is (signed is not None or len(body) >= (length or 0))
    assert relay((body[i : i + 1] for i in range(len(body))), kind, length) == whole
    middle = len(body) // 2
    assert relay([body[:middle], body[middle:]], kind, length) == whole
    if signed is not None:
        verify_exchange(b"request", out, signed.chat.answer())
    if signed is not None and NEW_ID in signed.ids:
        assert body in (out.replace(MEMBER + b",", b"", 1), out.replace(MEMBER, b"", 1))
    else:
        assert body.startswith(out)
