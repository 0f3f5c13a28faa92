"""A backend on a real socket that sends and sees bytes, and a client for pools; what the tests of pools share."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import anyio
import httpcore

from teesign_asgi.upstream import AsyncRequestInterface

__all__ = [
    "CHUNKED",
    "HOST",
    "OK",
    "PATIENCE",
    "RawBackend",
    "Script",
    "Served",
    "always",
    "answers",
    "fetch",
    "in_turn",
    "pause",
    "until",
]

PATIENCE = float(os.environ.get("TEESIGN_TEST_PATIENCE", "60"))
"""Seconds after which a test that waits for something has failed."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
HOST = (b"Host", b"backend")

Script = Callable[["Served"], None]


class Served:
    """One accepted connection, as a script sees it."""

    def __init__(self, accepted: socket.socket) -> None:
        self.socket = accepted
        self.received = b""
        self.gone_at = 0.0
        accepted.settimeout(PATIENCE)

    def read(self, end: bytes = b"\r\n\r\n") -> bytes:
        """Read until the bytes `end` have come."""
        while end not in self.received and (data := self.socket.recv(65_536)):
            self.received += data
        taken, _, self.received = self.received.partition(end)
        return taken + end

    def send(self, *data: bytes) -> None:
        """Send these bytes, each by itself."""
        for each in data:
            self.socket.sendall(each)

    def answer(self, response: bytes = OK) -> None:
        """Read the head of a request, and answer."""
        self.read()
        self.send(response)

    def close(self) -> None:
        """End the connection."""
        self.socket.close()

    def end_tls(self) -> None:
        """Send the end of TLS and of the connection, and go on reading."""
        connection = self.socket
        assert isinstance(connection, ssl.SSLSocket)
        connection.setblocking(False)
        with contextlib.suppress(ssl.SSLWantReadError):  # what TLS waits for then is the other side's end
            connection.unwrap()
        connection.settimeout(PATIENCE)
        connection.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Tear the connection down."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def wait_until_gone(self) -> None:
        """Read until the other side has closed the connection, and note when."""
        with contextlib.suppress(ConnectionResetError):
            while self.socket.recv(65_536):
                pass
        self.gone_at = time.monotonic()


class RawBackend:
    """Listens, and lets one script after the other have a connection; the last one has all that follow."""

    def __init__(self, *scripts: Script, context: ssl.SSLContext | None = None) -> None:
        self._scripts = list(scripts)
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self._accepted: list[socket.socket] = []
        self.served: list[Served] = []
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        socket.create_connection(("127.0.0.1", self.port)).close()  # wakes the thread that accepts
        self._threads[0].join(PATIENCE)
        self._listener.close()
        for accepted in [*self._accepted, *(served.socket for served in self.served)]:
            with contextlib.suppress(OSError):
                accepted.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        for accepted in [*self._accepted, *(served.socket for served in self.served)]:
            accepted.close()

    def url(self, target: bytes = b"/", scheme: bytes = b"http") -> httpcore.URL:
        """Return a URL of this backend."""
        return httpcore.URL(scheme=scheme, host=b"127.0.0.1", port=self.port, target=target)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            accepted, _ = self._listener.accept()
            if self._stopping:
                accepted.close()
                return
            self._accepted.append(accepted)
            script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
            self._start(self._serve, script, accepted)

    def _serve(self, script: Script, accepted: socket.socket) -> None:
        # Whatever the other side does to the connection ends the script; the test sees its own side of it.
        with contextlib.suppress(OSError):
            if self._context is not None:
                accepted = self._context.wrap_socket(accepted, server_side=True)
            served = Served(accepted)
            self.served.append(served)
            script(served)


def answers(*responses: bytes) -> Script:
    """Return a script that answers one request after the other, and then waits."""

    def script(served: Served) -> None:
        for response in responses:
            served.answer(response)
        served.wait_until_gone()

    return script


def in_turn(*steps: Callable[[Served], object]) -> Script:
    """Return a script of these steps."""

    def script(served: Served) -> None:
        for step in steps:
            step(served)

    return script


always = answers(*[OK] * 1000)
"""Answers as long as it is asked."""


async def fetch(
    upstream: AsyncRequestInterface, url: httpcore.URL, method: str = "GET", **options: Any
) -> tuple[int, bytes]:
    """Send a request and return the status and the whole body."""
    headers = [HOST, *options.pop("headers", ())]
    extensions = {"timeout": {"connect": PATIENCE, "read": PATIENCE, "write": PATIENCE, **options.pop("timeout", {})}}
    request = httpcore.Request(method, url, headers=headers, extensions=extensions, **options)
    response = await upstream.handle_async_request(request)
    try:
        return response.status, b"".join([chunk async for chunk in response.aiter_stream()])
    finally:
        await response.aclose()


async def pause(after: float, seconds: float) -> None:
    """Have this process pause, so many seconds from now and for so many: nobody else has a turn meanwhile."""
    await anyio.sleep(after)
    time.sleep(seconds)  # noqa: ASYNC251 - the pause under test


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in threads
            await anyio.sleep(0.005)
