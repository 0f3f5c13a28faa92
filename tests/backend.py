"""A backend that does what a test tells it to, byte for byte: no HTTP library, one script for each request.

A script is a function that is called with a `Call`: the request as it came over the socket, and the connection to
answer on. It runs in a thread of its own, may wait for events, and may end the connection in any way. The same
connection serves the next request if the script leaves it open.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Self

__all__ = [
    "Backend",
    "Call",
    "Connection",
    "Script",
    "answer",
    "bytewise",
    "chunked",
    "event_stream",
    "head",
    "in_pieces",
    "json_answer",
    "open_stream",
]

PATIENCE = float(os.environ.get("TEESIGN_TEST_PATIENCE", "60"))
"""Seconds after which a test that waits for something has failed."""

ROOM = 1 << 20
"""How many unread bytes of a connection are taken in; the rest stays in the socket, as with a slow backend."""


class ConnectionGoneError(Exception):
    """The proxy closed the connection, so that the script cannot go on."""


class Connection:
    """One accepted connection.

    Attributes:
        gone: set when the other side has closed it.
        gone_at: the time of that, on the clock `time.monotonic`.
        sent: how many bytes the socket has taken from us.
    """

    def __init__(self, accepted: socket.socket) -> None:
        self.gone = threading.Event()
        self.gone_at = 0.0
        self.sent = 0
        self._socket = accepted
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._waker, self._woken = socket.socketpair()
        self._arrived = threading.Condition()
        self._unread = bytearray()
        self._closed = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._closed or len(self._unread) < ROOM)
            if self._closed or self._woken in select.select([self._socket, self._woken], [], [])[0]:
                self._look_for_the_end()
                return
            try:
                data = self._socket.recv(65_536)
            except OSError:
                data = b""
            with self._arrived:
                self._unread += data
                self._arrived.notify_all()
            if not data:
                self._note_gone()
                return

    def _look_for_the_end(self) -> None:
        """Note an end that came before this side closed, however late this thread gets to look."""
        try:
            if not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                self._note_gone()
        except BlockingIOError:
            pass
        except OSError:
            self._note_gone()

    def _note_gone(self) -> None:
        with self._arrived:
            if not self.gone.is_set():
                self.gone_at = time.monotonic()
                self.gone.set()
            self._arrived.notify_all()

    @property
    def closed_here(self) -> bool:
        """Whether this side has closed it, before the other side did."""
        return self._closed and not self.gone.is_set()

    def take(self, enough: Callable[[bytearray], int]) -> bytes:
        """Wait until `enough` returns a positive number of bytes for what has come, and take that many."""
        with self._arrived:
            arrived = self._arrived.wait_for(
                lambda: self._closed or self.gone.is_set() or enough(self._unread) > 0, PATIENCE
            )
            count = enough(self._unread)
            if not arrived or count <= 0:
                raise ConnectionGoneError
            taken = bytes(self._unread[:count])
            del self._unread[:count]
            self._arrived.notify_all()
            return taken

    def take_through(self, separator: bytes) -> bytes:
        """Take everything up to a separator, and the separator."""
        return self.take(lambda unread: unread.find(separator) + len(separator) if separator in unread else 0)

    def send(self, data: bytes) -> None:
        """Send bytes, all of them in as few packets as they fit."""
        view = memoryview(data)
        while view:
            try:
                count = self._socket.send(view[: 1 << 18])
            except OSError:
                self._note_gone()
                raise ConnectionGoneError from None
            self.sent += count
            view = view[count:]

    def close(self, *, reset: bool = False) -> None:
        """Close the connection; with `reset`, so that the other side sees it torn down instead of ended."""
        with self._arrived:
            if self._closed:
                return
            self._closed = True
            self._arrived.notify_all()
        self._waker.send(b"!")
        if threading.current_thread() is not self._reader:
            self._reader.join()
        if reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            with contextlib.suppress(OSError):  # the other side was faster
                self._socket.shutdown(socket.SHUT_RDWR)
        for each in (self._socket, self._waker, self._woken):
            each.close()


class Call:
    """One request, and the way to answer it.

    Attributes:
        raw_head: everything before the body, as it came.
        method: the request line's method.
        target: the request line's target.
        headers: names and values, in order, as they came.
        connection: the connection it came over.
        read_at: when its head had come, on the clock `time.monotonic`.
        whole: set when its body has been read to the end.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.raw_head = connection.take_through(b"\r\n\r\n")
        self.read_at = time.monotonic()
        request_line, *lines = self.raw_head[:-4].split(b"\r\n")
        method, self.target, _ = request_line.split(b" ")
        self.method = method.decode()
        self.headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        self._body = bytearray()
        self._raw_body = bytearray()
        self.whole = threading.Event()
        self._remaining = int(self.header(b"content-length") or 0)
        self._is_chunked = self.header(b"transfer-encoding") == b"chunked"

    @property
    def body(self) -> bytes:
        """The body without framing, as far as it was read."""
        return bytes(self._body)

    @property
    def raw_body(self) -> bytes:
        """The body with framing, as far as it was read."""
        return bytes(self._raw_body)

    def header(self, name: bytes) -> bytes | None:
        """Return the value of a header, or None; several are joined by commas."""
        values = self.values(name)
        return b", ".join(values) if values else None

    def values(self, name: bytes) -> list[bytes]:
        """Return every value of a header."""
        return [value for candidate, value in self.headers if candidate.lower() == name]

    @property
    def header_names(self) -> set[bytes]:
        """The names of the headers, in lower case."""
        return {name.lower() for name, _ in self.headers}

    def read_some(self) -> bytes:
        """Return the next bytes of the body, however few; nothing at its end."""
        if self._is_chunked and not self._remaining and not self.whole.is_set():
            size = self._take_raw(self.connection.take_through(b"\r\n"))
            self._remaining = int(size, 16)
            if not self._remaining:
                self._take_raw(self.connection.take_through(b"\r\n"))
                self._is_chunked = False
        if not self._remaining:
            self.whole.set()
            return b""
        piece = self._take_raw(self.connection.take(lambda unread: min(len(unread), self._remaining)))
        self._remaining -= len(piece)
        self._body += piece
        if self._is_chunked and not self._remaining:
            self._take_raw(self.connection.take_through(b"\r\n"))
        return piece

    def read_body(self) -> None:
        """Read the body to its end."""
        while self.read_some():
            pass

    def send(self, *data: bytes) -> None:
        """Send these bytes, one after the other."""
        for each in data:
            self.connection.send(each)

    def close(self) -> None:
        """End the connection."""
        self.connection.close()

    def reset(self) -> None:
        """Tear the connection down."""
        self.connection.close(reset=True)

    def wait_until_gone(self) -> None:
        """Wait until the proxy closes the connection."""
        assert self.connection.gone.wait(PATIENCE), "the proxy keeps its connection to the backend"

    def _take_raw(self, data: bytes) -> bytes:
        self._raw_body += data
        return data


Script = Callable[[Call], None]


class Backend:
    """A listening backend. Use it as a context manager.

    Attributes:
        port: where it listens, on 127.0.0.1.
        calls: the requests since the last `play`, in the order in which their heads had come.
        connections: how many connections were accepted since then.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.calls: list[Call] = []
        self._coming: SimpleQueue[Call] = SimpleQueue()
        self._script: Script = json_answer(b'{"id":"x"}')
        self._threads: list[threading.Thread] = []
        self._open: list[Connection] = []
        self._ending = False

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    def play(self, script: Script) -> None:
        """Answer requests with this from now on, and forget those before."""
        while select.select([self._listener], [], [], 0)[0]:
            time.sleep(0.001)  # a connection of those before, not accepted yet, would count among those to come
        self._script = script
        self.calls = []
        self.connections = 0
        while not self._coming.empty():
            self._coming.get()

    def next_call(self) -> Call:
        """Wait for the next request and return it."""
        try:
            return self._coming.get(timeout=PATIENCE)
        except Empty:
            raise AssertionError("the backend got no request") from None

    @property
    def call(self) -> Call:
        """The only request since the last `play`."""
        assert len(self.calls) == 1, f"{len(self.calls)} requests reached the backend"
        return self.calls[0]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        socket.create_connection(("127.0.0.1", self.port)).close()  # wakes the thread that accepts
        self._threads[0].join()
        self._listener.close()
        for connection in self._open:
            connection.close()
        for thread in self._threads:
            thread.join()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            accepted, _ = self._listener.accept()
            if self._ending:
                accepted.close()
                return
            self.connections += 1
            connection = Connection(accepted)
            self._open.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: Connection) -> None:
        try:
            while True:
                call = Call(connection)
                self.calls.append(call)
                self._coming.put(call)
                self._script(call)
                call.read_body()
        except ConnectionGoneError:
            pass
        finally:
            connection.close()


def head(status: int, *headers: bytes, reason: bytes = b"Whatever") -> bytes:
    """Return the head of a response, given its header lines."""
    return b"\r\n".join((b"HTTP/1.1 %d %b" % (status, reason), *headers, b"", b""))


def chunked(*pieces: bytes, end: bool = True) -> bytes:
    """Return pieces in the chunked transfer coding, one chunk each; with `end`, the last chunk too."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return body + b"0\r\n\r\n" if end else body


def answer(status: int, body: bytes, *headers: bytes) -> Script:
    """Return a script that reads the request and answers with these bytes and header lines, with their length."""

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(status, *headers, b"content-length: %d" % len(body)) + (b"" if call.method == "HEAD" else body))

    return script


def json_answer(body: bytes, status: int = 200) -> Script:
    """Return a script that answers with a JSON text."""
    return answer(status, body, b"content-type: application/json")


def in_pieces(pieces: Iterable[bytes], *headers: bytes, end: bool | None = True) -> Script:
    """Return a script that sends each of these as a chunk and a packet of its own.

    With `end` the last chunk follows; without, the end of the connection; with None nothing.
    """
    listed = list(pieces)

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, *headers, b"transfer-encoding: chunked"))
        if call.method == "HEAD":
            return
        call.send(*(chunked(piece, end=False) for piece in listed))
        if end:
            call.send(chunked())
        elif end is False:
            call.close()

    return script


def event_stream(*pieces: bytes, end: bool = True) -> Script:
    """Return a script that sends an event stream, one chunk for each of these."""
    return in_pieces(pieces, b"content-type: text/event-stream", end=end)


def open_stream(*pieces: bytes) -> Script:
    """Return a script that sends an event stream, and then neither ends it nor breaks it off."""
    begin = in_pieces(pieces, b"content-type: text/event-stream", end=None)

    def script(call: Call) -> None:
        begin(call)
        call.wait_until_gone()

    return script


def bytewise(data: bytes) -> Iterator[bytes]:
    """Yield data byte by byte."""
    yield from (data[position : position + 1] for position in range(len(data)))
