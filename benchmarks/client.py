"""One connection of the load, on `asyncio.Protocol`: its request is bytes made once.

Of a response it looks at the status line and at where the framing ends, and it counts the events.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Final

from .payloads import MARK

__all__ = ["TIMEOUT", "BenchmarkError", "Client", "opened"]

TIMEOUT: Final = 120.0
"""Seconds until something has come to nothing."""

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LAST_CHUNK: Final = b"0\r\n\r\n"


class BenchmarkError(Exception):
    """What is measured does not do its work, so its cost means nothing."""


class Client(asyncio.Protocol):
    """One connection, with one request at a time.

    Attributes:
        events: how many events have come, over all requests.
        first_event: when the first event of the latest response came, in `time.perf_counter`'s seconds; 0 before.
        body: the body of the latest response, where it has a declared length.
    """

    def __init__(self) -> None:
        self.events = 0
        self.first_event = 0.0
        self.body = b""
        self._then: Callable[[], None] = lambda: None
        self._fail: Callable[[Exception], None] = lambda _: None
        self._received = b""
        self._streams = False  # the head of a chunked response has come
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        """Fail the request that is under way."""
        self.closed = True
        self._fail(BenchmarkError("The connection has ended before the response."))

    def send(self, request: bytes, then: Callable[[], None], fail: Callable[[Exception], None]) -> None:
        """Send a request, and call `then` when its response is whole, or `fail` if it comes to nothing."""
        self._then, self._fail, self.first_event = then, fail, 0.0
        self._transport.write(request)

    async def ask(self, request: bytes) -> bytes:
        """Send a request, and return the response's body where its length is declared."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def fail(error: Exception) -> None:
            if not done.done():
                done.set_exception(error)

        self.send(request, lambda: done.set_result(None), fail)
        await asyncio.wait_for(done, TIMEOUT)
        return self.body

    def data_received(self, data: bytes) -> None:
        """Count events, and see whether the response is whole."""
        if not self._streams:
            self._received += data
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            if not self._received.startswith(b"HTTP/1.1 200 "):
                self._fail(BenchmarkError(f"An answer was {self._received[:200]!r}."))
                return
            length = _LENGTH.search(self._received, 0, end)
            if length is not None:
                whole = end + 4 + int(length[1])
                if len(self._received) >= whole:
                    self.body, self._received = self._received[end + 4 : whole], b""
                    self._then()
                return
            data, self._received, self._streams = self._received[end + 4 :], b"", True
        marks = data.count(MARK)
        if marks:
            if not self.first_event:
                self.first_event = time.perf_counter()
            self.events += marks
        if data.endswith(_LAST_CHUNK):
            self._streams = False
            self._then()

    def close(self) -> None:
        """Close the connection."""
        self._fail = lambda _: None
        self._transport.abort()


async def opened(port: int, count: int) -> list[Client]:
    """Open connections to a port of this machine."""
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Client, "127.0.0.1", port))[1] for _ in range(count)]
