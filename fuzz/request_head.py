"""For any head of a request, it is read or refused with 400; nothing of it can end a line, and no address is made up.

Its first line is the target, the others are headers.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from teesign_asgi.errors import HttpError
from teesign_asgi.http import Request, decode_path_segment, end_to_end

SEEDS = [
    b"/v1/x?a=1&b=%20&a=2\nX-Forwarded-For: 10.0.0.1, [2001:db8::1]:80\nConnection: X-A, close\nX_A: 1",
    b"/\nContent-Length: 12\nX-Request-ID: abc.1:2-3\nX-Request-Hash: " + b"aB" * 32,
    b"/?%=%zz&&\nContent-Length: -1\nContent-Length: 2\nConnection:\nKeep-Alive: 5",
]
PEER = "192.0.2.1"


async def nothing() -> Any:
    """Stand for a connection of which only the head is looked at."""


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for this head."""
    target, *lines = data.split(b"\n")
    path, _, query = target.partition(b"?")
    headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    scope = {
        "type": "http",
        "method": "GET",
        "path": decode_path_segment(path),
        "raw_path": path or b"/",
        "query_string": query,
        "headers": headers,
        "client": (PEER, 1),
    }
    for hops in (0, 1, 2):
        request = Request(scope, nothing, bytes, hops)
        assert re.fullmatch(rb"[A-Za-z0-9._:-]{1,128}", request.request_id)
        assert request.content_length is None or request.content_length >= 0
        assert hops or request.client_ip == PEER
        ipaddress.ip_address(request.client_ip)
        for read in (request.parameters, request.trusted_digest, lambda r=request: r.check_size(10)):
            try:
                read()
            except HttpError as error:
                assert error.status in (400, 413)
                assert "\n" not in error.message
    passed = end_to_end(headers, frozenset({b"cookie"}))
    names = {name.replace(b"_", b"-") for name, _ in passed}
    assert not names & {b"connection", b"cookie", b"transfer-encoding", b"keep-alive", b"upgrade", b"te"}
    came = [(name.lower(), value) for name, value in headers]
    assert all(header in came for header in passed)
