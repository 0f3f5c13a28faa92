"""Clients of the proxy: connections that keep every byte they hear, and know when it came.

Responses are framed by llhttp, through httptools; nothing else is read into them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httptools
import msgspec

from .backend import CANARY, Wish

__all__ = ["CHAT", "TOKEN", "UPLOAD", "Answer", "Connection", "connect", "get", "post", "wished"]

TOKEN: Final = "a-token-for-soaking"  # noqa: S105 - of a proxy that lives as long as the run
CHAT: Final = "/v1/chat/completions"
UPLOAD: Final = "/v1/audio/transcriptions"
TIMEOUT: Final = 120.0
_DONE: Final = b"data: [DONE]\n\n"


@dataclass
class Answer:
    """One response, as far as it came.

    Attributes:
        status: the status code, 0 before it has come.
        headers: by name in lower case.
        body: the body without framing, unless it is not kept.
        received: how many bytes of it have come.
        whole: whether it came to its end.
        sent_at: when its request was sent, in `time.monotonic`'s seconds.
        arrivals: when pieces of the body came.
        done: resolved when a stream's terminator has been read.
        ended: resolved when the answer is whole, or its connection has ended.
    """

    keeps: bool
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    received: int = 0
    whole: bool = False
    sent_at: float = field(default_factory=time.monotonic)
    arrivals: list[float] = field(default_factory=list)
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    ended: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def seconds(self) -> float:
        """How long it took from the request to the last byte."""
        return (self.arrivals[-1] if self.arrivals else time.monotonic()) - self.sent_at

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(bytes(self.body))


class Connection(asyncio.Protocol):
    """One connection to the proxy, with one request at a time.

    Attributes:
        closed: resolved when it has ended.
    """

    def __init__(self) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._can_drain = asyncio.Event()
        self._can_drain.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def begin(self, request: bytes, *, keeps: bool = True) -> Answer:
        """Send a request, or its head, and return the answer that will come."""
        self._answer = Answer(keeps)
        self.transport.write(request)
        return self._answer

    async def ask(self, request: bytes) -> Answer:
        """Send a request and return its answer when it has ended.

        Raises:
            TimeoutError: if it does not.
        """
        answer = self.begin(request)
        async with asyncio.timeout(TIMEOUT):  # `wait_for` may lose a cancellation, until Python 3.12
            await answer.ended
        return answer

    async def send(self, data: bytes) -> bool:
        """Send more of a request, as fast as it is taken; return whether the connection still stands."""
        self.transport.write(data)
        async with asyncio.timeout(TIMEOUT):
            await self._can_drain.wait()
        return not self.closed.done()

    def data_received(self, data: bytes) -> None:
        """Take bytes of an answer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        """End what is under way."""
        self._can_drain.set()
        del self._parser  # it refers to this connection, and what the collector stops for would count as the proxy's
        self._resolve(self.closed)
        if self._answer is not None:
            self._resolve(self._answer.ended)
            self._resolve(self._answer.done)

    def pause_writing(self) -> None:
        """Have the sender wait."""
        self._can_drain.clear()

    def resume_writing(self) -> None:
        """Let the sender go on."""
        self._can_drain.set()

    # What follows is called by httptools.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        if self._answer is not None:
            self._answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Take the status."""
        if self._answer is not None:
            self._answer.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        answer = self._answer
        if answer is None:
            return
        answer.received += len(data)
        answer.arrivals.append(time.monotonic())
        if answer.keeps:
            answer.body += data
            if data.endswith(b"\n\n") and answer.body.endswith(_DONE):
                self._resolve(answer.done)

    def on_message_complete(self) -> None:
        """Note the end."""
        if self._answer is not None:
            self._answer.whole = True
            self._resolve(self._answer.ended)
            self._resolve(self._answer.done)

    @staticmethod
    def _resolve(future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[Connection]:
    """Open a connection, and tear it down at the end of the block."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    try:
        yield connection
    finally:
        connection.transport.abort()


def head(method: str, target: str, *headers: str, token: str = TOKEN) -> bytes:
    """Return the head of a request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: proxy", f"Authorization: Bearer {token}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def get(target: str) -> bytes:
    """Return a request without a body."""
    return head("GET", target)


def post(target: str, body: bytes, content_type: str = "application/json") -> bytes:
    """Return a request with a body."""
    return head("POST", target, f"Content-Type: {content_type}", f"Content-Length: {len(body)}") + body


def wished(wish: Wish) -> bytes:
    """Return the body of a chat that holds a wish, and a prompt that no log may show."""
    prompt = {"role": "user", "content": CANARY}
    return msgspec.json.encode({"model": "soak", "messages": [prompt], "stream": wish.events > 0, "wish": wish})
