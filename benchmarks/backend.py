"""The backend: a process that answers with precomputed bytes, and costs as little as Python allows.

Theory of operation. One `asyncio.Protocol` for each connection finds where a request ends, drops its body, and answers
as the query asks (`payloads.Wish`): with one JSON object, at once or when it is told to; or with a stream whose events
are written by one timer for each stream, on a schedule that does not drift. A stream that is late catches up event by
event, each in a write of its own. `GET /stats` tells how many connections there are and how many wait for an answer;
`GET /release` has those answered.
"""

from __future__ import annotations

import asyncio
import functools
import re
import sys
from collections.abc import Callable, Mapping
from typing import ClassVar, Final

from .payloads import ANSWER, DONE, EVENT, Wish

__all__ = ["main"]

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def _json_response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def _framed(chunk: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(chunk), chunk)


_ANSWER: Final = _json_response(ANSWER)
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_EVENT: Final = _framed(EVENT)
_END: Final = _framed(DONE) + b"0\r\n\r\n"

_wish: Final = functools.lru_cache(Wish.from_query)


class _Connection(asyncio.Protocol):
    open: ClassVar[int] = 0
    held: ClassVar[list[_Connection]] = []

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._head = b""
        self._rest = 0  # bytes of the request's body that are still to come
        self._target = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        _Connection.open += 1

    def connection_lost(self, _: Exception | None) -> None:
        _Connection.open -= 1
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._rest:
            self._rest -= len(data)
        else:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(self._head, 0, end)
            self._rest = (int(length[1]) if length else 0) - (len(self._head) - end - 4)
            self._target = self._head[: self._head.index(b" HTTP/")].partition(b" ")[2]
            self._head = b""
        if self._rest == 0:
            self._answer()

    def _answer(self) -> None:
        path, _, query = self._target.partition(b"?")
        if not query:
            control = _CONTROLS.get(path)
            self._transport.write(control() if control else _ANSWER)
            return
        wish = _wish(query)
        if wish.events:
            self._transport.write(_STREAM_HEAD)
            self._interval, self._left = 1 / wish.rate, wish.events
            self._due = self._loop.time()
            self._tick()
        elif wish.hold:
            _Connection.held.append(self)
        else:
            self._transport.write(_ANSWER)

    def release(self) -> None:
        """Send the answer that waits."""
        self._transport.write(_ANSWER)

    def _tick(self) -> None:
        if not self._left:
            self._transport.write(_END)
            return
        self._left -= 1
        self._transport.write(_EVENT)
        self._due += self._interval
        self._timer = self._loop.call_at(self._due, self._tick)


def _stats() -> bytes:
    return _json_response(b'{"connections": %d, "held": %d}' % (_Connection.open, len(_Connection.held)))


def _release() -> bytes:
    for connection in _Connection.held:
        connection.release()
    _Connection.held.clear()
    return _stats()


_CONTROLS: Final[Mapping[bytes, Callable[[], bytes]]] = {b"/stats": _stats, b"/release": _release}


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def main() -> None:
    """Listen on the port that the command line names."""
    asyncio.run(_serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
