"""The backend: a process that answers each request with what its body wishes for, good or bad, byte for byte.

Theory of operation. A chat's JSON holds a member `wish`; `Wish` says what can be wished for, and `_KINDS` how each
kind is answered. A body without one, such as an upload, is counted and answered with a small JSON object. `GET /stats`
tells how many connections there are, the numbers of the requests that are being answered, and for each request that was
left before its answer was whole, by its number, when that was noticed (`time.monotonic`, which all processes of a
machine share).
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Callable
from typing import ClassVar, Final

import httptools
import msgspec

__all__ = ["CANARY", "Wish", "events_of", "json_of", "main"]

CANARY: Final = "kanarienvogel"
"""Stands in prompts, completions and error messages, and must not be found in any log."""

_HEAD_OF_STREAM: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_BLOCK: Final = b"x" * 65_536

_SEND_BUFFER: Final = 256 * 1024
"""Bytes that the kernel takes ahead on each connection. It would take megabytes, of hundreds of connections at once,
and whoever asked for something else meanwhile would wait for this process."""


class Wish(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a request wants of the backend.

    Attributes:
        number: the request's own; comes back in the id and in every event.
        kind: a row of `_KINDS`.
        events: how many events a stream has.
        rate: how many a second; 0: all at once.
        size: how many bytes an answer is padded to, or a body of raw bytes has.
    """

    number: int
    kind: str = "json"
    events: int = 0
    rate: float = 0.0
    size: int = 0


def json_of(wish: Wish) -> bytes:
    """Return the JSON object that answers a wish."""
    return b'{"id":"answer-%d","text":"%b %b"}' % (wish.number, CANARY.encode(), b"x" * wish.size)


def events_of(wish: Wish) -> list[bytes]:
    """Return the events of a stream that answers a wish, the terminator included."""
    event = b'data: {"id":"stream-%d","text":"%b %%d %b"}\n\n' % (wish.number, CANARY.encode(), b"x" * wish.size)
    return [*(event % index for index in range(wish.events)), b"data: [DONE]\n\n"]


def framed(piece: bytes) -> bytes:
    """Return a chunk of the chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def with_length(body: bytes, status: bytes = b"200 OK", length: int | None = None) -> bytes:
    """Return a JSON response."""
    declared = len(body) if length is None else length
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, declared, body)


class Connection(asyncio.Protocol):
    """One connection of the proxy's.

    Attributes:
        answering: the number of the request whose answer is not whole; None if there is none.
    """

    open: ClassVar[set[Connection]] = set()
    left: ClassVar[dict[int, float]] = {}

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._body: list[bytes] = []
        self._size = 0
        self._is_json = False
        self._timer: asyncio.TimerHandle | None = None
        self._may_write = True
        self._pending: Callable[[], None] | None = None
        self.answering: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note it."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.open.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        """Note that it has gone, and whether that was early."""
        self.open.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self.answering is not None:
            self.left[self.answering] = time.monotonic()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def pause_writing(self) -> None:
        """Stop pouring."""
        self._may_write = False

    def resume_writing(self) -> None:
        """Go on pouring."""
        self._may_write = True
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending()

    # What follows is called by httptools.

    def on_url(self, url: bytes) -> None:
        """Take the target."""
        self._target, self._body, self._size, self._is_json = url, [], 0, False

    def on_header(self, name: bytes, value: bytes) -> None:
        """See whether there is a wish. What comes to other paths is never parsed: it may be made for that."""
        if name.lower() == b"content-type" and self._target == b"/v1/chat/completions":
            self._is_json = value == b"application/json"

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body; an upload is only counted."""
        self._size += len(data)
        if self._is_json:
            self._body.append(data)

    def on_message_complete(self) -> None:
        """Answer."""
        if self._target == b"/stats":
            left = {str(number): when for number, when in self.left.items()}
            answering = [each.answering for each in self.open if each.answering is not None]
            stats = {"connections": len(self.open), "left": left, "answering": answering}
            self.transport.write(with_length(json.dumps(stats).encode()))
            return
        try:
            wish = msgspec.json.decode(b"".join(self._body), type=_Request).wish
        except msgspec.MsgspecError:
            wish = None
        if wish is None:
            self.transport.write(with_length(b'{"id":"received-%d"}' % self._size))
            return
        self.answering = wish.number
        _KINDS[wish.kind](self, wish)

    # What follows is for the kinds of answers.

    def finish(self, data: bytes) -> None:
        """Send the last bytes of an answer."""
        self.answering = None
        self.transport.write(data)

    def break_off(self, data: bytes, *, reset: bool) -> None:
        """Send bytes, and end the connection as if that were all."""
        self.answering = None
        self.transport.write(data)
        self._timer = self._loop.call_later(0.05, self.transport.abort if reset else self.transport.close)

    def stream(self, wish: Wish, then: Callable[[Connection], None]) -> None:
        """Send the events of a stream on a schedule that does not drift, without the terminator, and go on."""
        events, due = events_of(wish)[:-1], self._loop.time()
        interval = 1 / wish.rate if wish.rate else 0.0
        self.transport.write(_HEAD_OF_STREAM)

        def tick(index: int) -> None:
            if index == len(events):
                then(self)
                return
            self.transport.write(framed(events[index]))
            self._timer = self._loop.call_at(due + (index + 1) * interval, tick, index + 1)

        if interval:
            tick(0)
        else:
            self.transport.write(b"".join(map(framed, events)))
            then(self)

    def pour(self, rest: int) -> None:
        """Send this many bytes of nothing in particular as they are taken: a block in each turn of the loop."""
        self.transport.write(_BLOCK[:rest])
        rest -= len(_BLOCK)
        if rest <= 0:
            self.answering = None
        elif self._may_write and not self.transport.is_closing():
            self._loop.call_soon(self.pour, rest)
        else:
            self._pending = lambda: self.pour(rest)


class _Request(msgspec.Struct):
    wish: Wish | None = None


def _raw(connection: Connection, wish: Wish) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: %d\r\n\r\n" % wish.size
    connection.transport.write(head)
    connection.pour(wish.size)


def _silent(_: Connection, __: Wish) -> None:
    """Say nothing; the connection stays."""


_END: Final = framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
_ERROR: Final = b'{"error":{"message":"the prompt %b is too long","type":"BadRequestError"}}' % CANARY.encode()

_KINDS: Final[dict[str, Callable[[Connection, Wish], None]]] = {
    "json": lambda connection, wish: connection.finish(with_length(json_of(wish))),
    "stream": lambda connection, wish: connection.stream(wish, lambda it: it.finish(_END)),
    "raw": _raw,
    "silent": _silent,
    "no-terminator": lambda connection, wish: connection.stream(wish, lambda it: it.finish(b"0\r\n\r\n")),
    "reset": lambda connection, wish: connection.stream(wish, lambda it: it.break_off(b"", reset=True)),
    "ended": lambda connection, wish: connection.stream(wish, lambda it: it.break_off(b"", reset=False)),
    "short": lambda it, wish: it.break_off(with_length(json_of(wish), length=1_000_000), reset=False),
    "garbage": lambda it, _: it.break_off(b"220 %b ready\r\n" % CANARY.encode(), reset=False),
    "extra": lambda it, wish: it.finish(with_length(json_of(wish)) + with_length(b'{"id":"smuggled"}')),
    "error": lambda it, _: it.finish(with_length(_ERROR, b"400 Bad Request")),
}


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def main() -> None:
    """Listen on the port that the command line names."""
    asyncio.run(_serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
