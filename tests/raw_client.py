"""A client made of a socket: it says exactly these bytes at exactly these times, and reads what comes strictly.

No HTTP library is between a test and the wire, so that nothing is forgiven and nothing is tidied up: a response that is
not framed by the letter of RFC 9112 fails the test, one that breaks off is told from one that is whole, and when each
piece came is known.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["RawResponse", "Wire", "connect", "connections", "request_bytes"]

PATIENCE = float(os.environ.get("TEESIGN_TEST_PATIENCE", "60"))
"""Seconds after which a test that waits for bytes has failed."""

Framing = Literal["none", "length", "chunked", "close"]


@dataclass
class RawResponse:
    """One response, as far as it came.

    Attributes:
        status: the status code; 0 if the connection ended before there was one.
        headers: names in lower case, and values, in order.
        body: the body without framing.
        framing: what tells where the body ends.
        whole: whether it came to that end. Nobody can tell for a body that ends with the connection.
        interim: the status codes of interim responses before it.
        head_at: when its head had come, on the clock `time.monotonic`.
    """

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    framing: Framing = "none"
    whole: bool = False
    interim: list[int] = field(default_factory=list)
    head_at: float = 0.0

    def header(self, name: bytes) -> bytes | None:
        """Return the value of a header that may come at most once."""
        values = [value for candidate, value in self.headers if candidate == name]
        assert len(values) <= 1, f"{name!r} came {len(values)} times"
        return values[0] if values else None


class _EndedError(Exception):
    """The other side has ended the connection, or torn it down."""


class Wire:
    """One connection to a server.

    Attributes:
        socket: the connection.
        unread: what has come and not been taken.
        arrivals: when what came did, and how many bytes; on the clock `time.monotonic`.
        ended_by: how the other side ended it, once that has been seen.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.unread = bytearray()
        self.arrivals: list[tuple[float, int]] = []
        self.ended_by: Literal["", "end", "reset"] = ""

    def send(self, *data: bytes, pause: float = 0.0) -> None:
        """Send these bytes, one after the other, with a pause between each two."""
        for number, each in enumerate(data):
            if pause and number:
                time.sleep(pause)
            self.socket.sendall(each)

    def send_all_that_is_taken(self, data: bytes, patience: float = 0.3) -> int:
        """Send until the other side takes nothing for a while, or has ended; return how many bytes it took."""
        self.socket.settimeout(patience)
        sent = 0
        try:
            while sent < len(data):
                sent += self.socket.send(data[sent : sent + 65_536])
        except OSError:
            pass
        self.socket.settimeout(PATIENCE)
        return sent

    def send_until_answered(self, data: bytes, pause: float) -> None:
        """Send a piece at a time, with a pause after each, until the other side says something or has all."""
        for at in range(0, len(data), 65_536):
            self.socket.sendall(data[at : at + 65_536])
            if select.select([self.socket], [], [], pause)[0]:
                return

    def leave(self, *, reset: bool = False) -> None:
        """Close the connection; with `reset`, tear it down."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def read_until(self, end: bytes) -> bytes:
        """Wait until these bytes have come, and return everything up to them and with them, framing and all."""
        while end not in self.unread:
            self._receive()
        return self._take(self.unread.find(end) + len(end))

    def wait_for_end(self, seconds: float = PATIENCE) -> bytes:
        """Wait until the other side ends the connection, and return what came before that.

        Raises:
            TimeoutError: if it does not in time.
        """
        deadline = time.monotonic() + seconds
        while not self.ended_by:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError(f"the connection is still there after {seconds} s")
            self.socket.settimeout(remaining)
            try:
                self._receive()
            except _EndedError:
                break
        return self._take(len(self.unread))

    def response(self, method: str = "POST") -> RawResponse:
        """Read one response, to its end or as far as it comes."""
        response = RawResponse()
        try:
            while not response.status:
                self._read_head(response)
            self._read_body(response, method)
            response.whole = True
        except _EndedError:
            response.whole = response.framing == "close" and self.ended_by == "end"
        return response

    def _read_head(self, response: RawResponse) -> None:
        lines = self.read_until(b"\r\n\r\n")[:-4].split(b"\r\n")
        version, _, rest = lines[0].partition(b" ")
        code, _, _ = rest.partition(b" ")
        assert version in (b"HTTP/1.1", b"HTTP/1.0"), lines[0]
        assert len(code) == 3, lines[0]
        headers = []
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            assert colon, line
            assert name == name.strip(), line
            assert not set(value) & set(b"\r\n\0"), line
            headers.append((name.lower(), value.strip(b" \t")))
        if 100 <= int(code) <= 199:
            response.interim.append(int(code))
            return
        response.status, response.headers, response.head_at = int(code), headers, time.monotonic()

    def _read_body(self, response: RawResponse, method: str) -> None:
        length, coding = response.header(b"content-length"), response.header(b"transfer-encoding")
        assert length is None or coding is None, "the body is framed twice"
        if method == "HEAD" or response.status in (204, 304):
            return
        if coding is not None:
            assert coding.lower() == b"chunked", coding
            response.framing = "chunked"
            self._read_chunks(response)
        elif length is not None:
            response.framing = "length"
            while len(response.body) < int(length):
                if not self.unread:
                    self._receive()
                response.body += self._take(int(length) - len(response.body))
        else:
            response.framing = "close"
            while True:
                response.body += self._take(len(self.unread))
                self._receive()

    def _read_chunks(self, response: RawResponse) -> None:
        pieces: list[bytes] = []
        try:
            while size := int(self.read_until(b"\r\n")[:-2], 16):
                while size:
                    if not self.unread:
                        self._receive()
                    pieces.append(self._take(size))
                    size -= len(pieces[-1])
                assert self.read_until(b"\r\n") == b"\r\n"
            assert self.read_until(b"\r\n") == b"\r\n", "there are trailers"
        finally:
            response.body = b"".join(pieces)

    def _take(self, count: int) -> bytes:
        taken = bytes(self.unread[:count])
        del self.unread[:count]
        return taken

    def _receive(self) -> None:
        if self.ended_by:
            raise _EndedError
        try:
            data = self.socket.recv(262_144)
        except (ConnectionResetError, BrokenPipeError):
            self.ended_by = "reset"
            raise _EndedError from None
        if not data:
            self.ended_by = "end"
            raise _EndedError
        self.arrivals.append((time.monotonic(), len(data)))
        self.unread += data


@contextmanager
def connect(port: int, *, host: str = "127.0.0.1", receive_buffer: int = 0) -> Iterator[Wire]:
    """Give a connection, and leave at the end of the block.

    Args:
        port: where to.
        host: an address of this machine.
        receive_buffer: how many bytes the kernel may take in for us; its own choice if 0.
    """
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(PATIENCE)
    connection.connect((host, port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire = Wire(connection)
    try:
        yield wire
    finally:
        wire.leave()


def request_bytes(
    method: str,
    target: str | bytes,
    body: bytes | None = None,
    *headers: bytes,
    token: str | None = None,
    host: bytes = b"proxy",
) -> bytes:
    """Return a request with these header lines; the body is framed by its length unless a line frames it."""
    target = target.encode("latin-1") if isinstance(target, str) else target
    lines = [method.encode() + b" " + target + b" HTTP/1.1", b"Host: " + host]
    if token is not None:
        lines.append(b"Authorization: Bearer " + token.encode())
    lines += headers
    names = {line.partition(b":")[0].lower() for line in headers}
    if body is not None and not names & {b"content-length", b"transfer-encoding"}:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join((*lines, b"", body or b""))


def connections() -> Iterator[tuple[tuple[int, int], int]]:
    """Yield this machine's IPv4 connections: their ports, ours first, and how many bytes wait to be sent."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, own, other, _, queues, *_ = line.split()
        yield (_port_of(own), _port_of(other)), int(queues.partition(":")[0], 16)


def _port_of(address: str) -> int:
    """Return the port in an address as the kernel writes it."""
    return int(address.partition(":")[2], 16)
