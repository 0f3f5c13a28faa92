"""httpcore's connections with our reading of responses: what the proxy uses on trio, where `Pool` does not run.

Theory of operation. httpcore parses with h11, which is content with more than `ResponseParser` is: it takes a length
beside chunks, longer heads, any number of interim ones, and, worst, it keeps what came behind a response for the
beginning of the next one, so that a second response of the backend would reach whoever asks next. Here every byte that
is read from a connection is also shown to a `ResponseParser`, one for each response. What that one refuses never gets
to httpcore; and where it says that a connection is not to be used again, or TLS holds more than that response (see
`has_unread_tls` for how much of that is seen), httpcore is told that the idle connection is readable, which is its own
sign for one to be closed. A reset is told apart by whether anything of a response had come, since only a request to
which nothing came may be sent again; and what is closed while a request waits, with its pool, is told apart from both.

An answer that comes before the request has been sent is read only afterwards, as httpcore does. That something can be
read would not do as a sign for it: it may be an interim response, after which the backend waits for the rest. httpcore
reads on where the rest of a request cannot be sent; a success that comes then is none.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any, Final

import httpcore

from .connection import has_unread_tls
from .framing import BrokenResponseError, ResponseParser

__all__ = ["StrictBackend"]


class StrictBackend(httpcore.AsyncNetworkBackend):
    """Open connections on which responses are read strictly. For httpcore's pools, as their `network_backend`.

    Args:
        network: opens the connections.
    """

    def __init__(self, network: httpcore.AsyncNetworkBackend) -> None:
        self._network: Final = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect; see httpcore."""
        return _Stream(await self._network.connect_tcp(host, port, timeout, local_address, socket_options))

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await self._network.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    """One connection, and the parser of the response that is on its way."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream: Final = stream
        self._tls: Final[ssl.SSLObject | None] = stream.get_extra_info("ssl_object")
        self._parser: ResponseParser | None = None
        self._is_spoilt = False
        self._is_cut = False
        self._is_closed = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's interface
        """Read some bytes; raises `BrokenResponseError` if they do not continue a response, or end before it does."""
        try:
            data = await self._stream.read(max_bytes, timeout)
        except httpcore.ReadError:
            if self._is_closed:
                raise BrokenResponseError("The connection was closed from this side.", "closed") from None
            if self._parser is not None and self._parser.begun:
                raise BrokenResponseError("The backend reset the connection within its response.", "reset") from None
            raise
        if not data and self._parser is not None:
            self._parser.end()
        elif self._parser is not None:
            self._parser.feed(data)
            self._parser.take()
            if self._is_cut and 200 <= self._parser.status < 300:
                raise BrokenResponseError("The backend has not taken all of the request.", "closed")
            if self._parser.complete:
                self._is_spoilt = not self._parser.reusable
                self._parser = None
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore's interface
        """Write bytes. Those after a whole response begin the next request."""
        if self._parser is None:
            self._parser = ResponseParser(is_head=buffer.startswith(b"HEAD "), is_tls=self._tls is not None)
        try:
            await self._stream.write(buffer, timeout)
        except httpcore.WriteError:
            self._is_cut = True
            raise

    async def aclose(self) -> None:
        """Close the connection. A request that waits for its response fails, and is not to be sent again."""
        self._is_closed = True
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
    ) -> httpcore.AsyncNetworkStream:
        """Go on by TLS."""
        return _Stream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """Answer as httpcore does, but for a connection that must not be used again."""
        if info == "is_readable" and (self._is_spoilt or (self._tls is not None and has_unread_tls(self._tls))):
            return True
        return self._stream.get_extra_info(info)
