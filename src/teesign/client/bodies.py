"""Bodies on their way through a verifying transport: hashed as they are sent, and verified at the end of a stream.

A client wants bodies of its own library's base class. Which library that is turns out with the first request, so these
classes are completed then, by `body_type`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from types import ModuleType
from typing import Any, Final, Self

from .observed import ObservedExchange
from .tls import KeyCheck

__all__ = [
    "AsyncReceivedBody",
    "AsyncSentBody",
    "ReceivedBody",
    "SentBody",
    "body_type",
    "has_body",
    "observed_request",
]


class SentBody:
    """A request's body, hashed as it is sent.

    Args:
        body: the body as the client made it.
        exchange: is shown the bytes.
    """

    base: Final = "SyncByteStream"

    def __init__(self, body: Any, exchange: ObservedExchange) -> None:
        self._body = body
        self._exchange = exchange

    def __iter__(self) -> Iterator[bytes]:
        self._exchange.start_request()
        for chunk in self._body:
            self._exchange.send(chunk)
            yield chunk
        # Not reached where the other side stops to read: httpcore goes on to its answer then.
        self._exchange.end_request()


class AsyncSentBody:
    """The same, asynchronously.

    No generator, which would have to be closed where a client stops reading: trio warns of those that were not.
    """

    base: Final = "AsyncByteStream"

    def __init__(self, body: Any, exchange: ObservedExchange) -> None:
        self._body = body
        self._exchange = exchange

    def __aiter__(self) -> Self:
        """Start from the first byte."""
        self._exchange.start_request()
        self._chunks = aiter(self._body)
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk: bytes = await anext(self._chunks)
        except StopAsyncIteration:
            self._exchange.end_request()
            raise
        self._exchange.send(chunk)
        return chunk


class ReceivedBody:
    """An event stream, whose end is released when all of it has been verified.

    Args:
        body: the body as it comes.
        exchange: says what may go on.
        finish: verifies the whole exchange, or raises.
    """

    base: Final = "SyncByteStream"

    def __init__(self, body: Any, exchange: ObservedExchange, finish: Callable[[], None]) -> None:
        self._body = body
        self._exchange = exchange
        self._finish = finish

    def __iter__(self) -> Iterator[bytes]:
        exchange = self._exchange
        try:
            for chunk in self._body:
                if exchange.whole:
                    continue  # the client reads on to where the framing ends
                out = exchange.receive(chunk)
                if exchange.whole:
                    self._finish()
                if out:
                    yield out
            if not exchange.whole:
                out = exchange.end()
                self._finish()
                yield out
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Close the body; nothing is verified by that."""
        self._body.close()


class AsyncReceivedBody:
    """The same, asynchronously."""

    base: Final = "AsyncByteStream"

    def __init__(self, body: Any, exchange: ObservedExchange, finish: Callable[[], Awaitable[None]]) -> None:
        self._body = body
        self._exchange = exchange
        self._finish = finish

    def __aiter__(self) -> Self:
        """Start to read."""
        self._chunks = aiter(self._body)
        return self

    async def __anext__(self) -> bytes:
        exchange = self._exchange
        try:
            async for chunk in self._chunks:
                if exchange.whole:
                    continue  # the client reads on to where the framing ends
                out = exchange.receive(chunk)
                if exchange.whole:
                    await self._finish()
                if out:
                    return out
            if not exchange.whole:
                out = exchange.end()
                await self._finish()
                return out
        except Exception:
            await self.aclose()
            raise
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the body; nothing is verified by that."""
        await self._body.aclose()


def has_body(request: Any) -> bool:
    """Tell whether a request has a body, by its headers (RFC 9112, section 6): libraries send none without them."""
    return "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"


@cache
def body_type(family: ModuleType, kind: Any) -> Any:
    """Return one of these classes as a body of httpx or httpx2."""
    return type(kind.__name__, (kind, getattr(family, kind.base)), {})


def observed_request(
    family: ModuleType, request: Any, kind: Any, exchange: ObservedExchange, spki_sha256: bytes | None
) -> Any:
    """Return the same request with a body that is hashed as it is sent, and without content encodings.

    Args:
        family: httpx or httpx2.
        request: the client's.
        kind: `SentBody` or `AsyncSentBody`.
        exchange: is shown the body.
        spki_sha256: the TLS key at which a connection made for this must end; None for any.
    """
    headers, extensions = request.headers.copy(), dict(request.extensions)
    headers["accept-encoding"] = "identity"
    if spki_sha256 is not None:
        check = KeyCheck(request, spki_sha256)
        extensions["trace"] = check.trace if kind is SentBody else check.trace_async
    body = body_type(family, kind)(request.stream, exchange)
    return family.Request(request.method, request.url, headers=headers, stream=body, extensions=extensions)
