"""A stretch of wire that goes wrong: between any client and any server, it does to the bytes what a `Fault` says.

Positions count the bytes of one direction of one connection. Whatever is not named in the fault passes as it came. When
one side ends the connection or tears it down, the other side sees the same, also while nothing passes.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Self

__all__ = ["CLEAN", "Fault", "FaultProxy"]


@dataclass(frozen=True)
class Fault:
    """What is done to one direction of each connection.

    Attributes:
        flip: the position of a bit that is turned over, counted in bits.
        end_at: after this many bytes the connection ends in good order.
        reset_at: after this many bytes it is torn down.
        stall_at: after this many bytes nothing passes any more, while the connection stays.
        pieces: each packet has this many bytes.
        rate: this many bytes pass in a second.
    """

    flip: int | None = None
    end_at: int | None = None
    reset_at: int | None = None
    stall_at: int | None = None
    pieces: int = 65_536
    rate: float = float("inf")

    def stops_at(self) -> int | None:
        """Return the position after which nothing passes, or None."""
        return min((at for at in (self.end_at, self.reset_at, self.stall_at) if at is not None), default=None)


CLEAN = Fault()


class FaultProxy:
    """Listens, and connects each connection through to a port. Use it as a context manager.

    Attributes:
        port: where it listens on 127.0.0.1.
        requests: the fault of what goes to the server, for connections from now on.
        answers: the fault of what comes back.
        connections: how many were made so far.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self.requests = self.answers = CLEAN
        self.connections = 0
        self._links: list[_Link] = []
        self._ending = False
        self._accepter = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._accepter.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        for link in self._links:
            link.cut()
        for link in self._links:
            link.join()

    def refuse(self) -> None:
        """Stop listening: connections are refused from now on."""
        if not self._ending:
            self._ending = True
            socket.create_connection(("127.0.0.1", self.port)).close()  # wakes the thread that accepts
            self._accepter.join()
            self._listener.close()

    def reset_all(self) -> None:
        """Tear down every connection there is."""
        for link in self._links:
            link.cut(reset=True)

    def _accept(self) -> None:
        while True:
            accepted, _ = self._listener.accept()
            if self._ending:
                accepted.close()
                return
            self.connections += 1
            self._links = [link for link in self._links if not link.over]
            self._links.append(_Link(accepted, self._target_port, self.requests, self.answers))


class _Link:
    """One connection: two sockets, and a thread for each direction."""

    def __init__(self, accepted: socket.socket, target_port: int, requests: Fault, answers: Fault) -> None:
        self._near = accepted
        self._far = socket.create_connection(("127.0.0.1", target_port))
        for each in (self._near, self._far):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lock = threading.Lock()
        self.over = False
        self._cut = threading.Event()
        directions = ((self._near, self._far, requests), (self._far, self._near, answers))
        self._threads = [threading.Thread(target=self._pump, args=direction, daemon=True) for direction in directions]
        for thread in self._threads:
            thread.start()

    def cut(self, *, reset: bool = False) -> None:
        """End both sides."""
        with self._lock:
            if self.over:
                return
            self.over = True
            self._cut.set()
            for each in (self._near, self._far):
                if reset:
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                with contextlib.suppress(OSError):
                    # Wakes the thread that reads; without it a reset would wait for that one.
                    each.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
                each.close()

    def join(self) -> None:
        """Wait for its threads."""
        for thread in self._threads:
            thread.join()

    def _pump(self, source: socket.socket, sink: socket.socket, fault: Fault) -> None:
        position = 0
        stop = fault.stops_at()
        try:
            while stop is None or position < stop:
                data = source.recv(65_536)
                if not data:
                    break
                data = data if stop is None else data[: stop - position]
                self._pass(data, position, sink, fault)
                position += len(data)
            else:
                if stop == fault.stall_at:
                    self._wait_for_end_of(source)
                self.cut(reset=stop == fault.reset_at)
                return
        except ConnectionResetError:
            self.cut(reset=True)
        except OSError:
            self.cut()
        else:
            self.cut()

    def _wait_for_end_of(self, source: socket.socket) -> None:
        poller = select.poll()
        poller.register(source, select.POLLRDHUP)
        while not self._cut.is_set() and not poller.poll(50):
            pass

    def _pass(self, data: bytes, position: int, sink: socket.socket, fault: Fault) -> None:
        if fault.flip is not None and position <= fault.flip // 8 < position + len(data):
            changed = bytearray(data)
            changed[fault.flip // 8 - position] ^= 1 << fault.flip % 8
            data = bytes(changed)
        for start in range(0, len(data), fault.pieces):
            piece = data[start : start + fault.pieces]
            sink.sendall(piece)
            if fault.rate != float("inf"):
                time.sleep(len(piece) / fault.rate)
