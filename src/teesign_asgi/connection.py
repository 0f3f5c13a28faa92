r"""One connection to the backend, on asyncio: one request at a time, and its response as it arrives.

Theory of operation. The connection is an `asyncio.BufferedProtocol`: the event loop reads into a buffer that all
connections of a pool share, and what it has read is handed to a `ResponseParser` before that loop reads anything else.
At any moment the connection is in one of three states:

    IDLE --exchange--> BUSY --response read to its end, and reusable--> IDLE
       \                  \--error, silence, cancellation, left early--> CLOSED
        \--bytes that nobody asked for, or the end---------------------> CLOSED

Nothing is scheduled for each chunk: whoever waits is woken through one future, and takes all that has come since in one
piece, so that what arrived in one read leaves in one write. If nobody takes it, reading from the socket stops at
`HIGH_WATER` bytes, which slows the backend down. One timer watches for silence; it is set once, and when it fires it
looks whether it was too early, so that chunks do not touch it.

Over TLS the event loop decrypts what it has read from the socket, and asks for a buffer to do so. When the backend ends
the connection it asks once, and drops what does not fit (CPython's `SSLProtocol._do_flush`): the rest, perhaps, of an
answer that came whole. So each read has a buffer of its own there, with room for all that can come of it: what the loop
says it holds, and a record of which OpenSSL has the beginning already. That is always a little more than comes, so
nothing decrypted is left behind. It is bounded by what the loop holds: one read of its own, 256 KiB, and while nobody
takes anything at most 512 KiB. And since the loop may be ending the connection whenever it calls, and cannot go on with
one that has been aborted meanwhile, what it calls aborts on its next turn.

A request's body that is there already, and small, goes out with its head. Any other is sent by a task of its own, so
that a response which comes early is seen: an error stops the sending, anything else waits until all is sent, since
whoever reads an answer may rely on the question having been asked. If that cannot be, there is no response.
"""

from __future__ import annotations

import asyncio
import math
import select
import ssl
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Final, cast

import anyio
import httpcore

from .framing import BrokenResponseError, ResponseParser
from .pauses import end_of_limit, time_limit

__all__ = ["WRITE_SIZE", "Body", "Connection", "has_unread_tls"]

HIGH_WATER: Final = 16 * 1024
"""How many bytes of a response wait to be taken before reading stops; one read may go beyond it."""

WRITE_SIZE: Final = 64 * 1024
"""How many bytes of a request the transport is given at once."""

MAX_RECORD: Final = 16 * 1024
"""How many bytes one record of TLS holds at most (RFC 8446 section 5.1)."""

_NOTHING: Final = memoryview(b"")


class Connection(asyncio.BufferedProtocol):
    """A connection to one origin; `loop.create_connection` makes them.

    Args:
        buffer: where what comes without TLS is read to, which connections of one event loop may share. Never those of
            two: while one thread is in the kernel, another may read there too.
        on_idle: called when a response has been read and the connection may carry another request.
        on_closed: called once, when the connection is lost or closed.
    """

    def __init__(
        self, buffer: memoryview, on_idle: Callable[[Connection], None], on_closed: Callable[[Connection], None]
    ) -> None:
        self._buffer = buffer
        self._on_idle: Final = on_idle
        self._on_closed: Final = on_closed
        self._loop: Final = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None  # None: not yet, or not any more
        self._tls: ssl.SSLObject | None = None
        self._parser: ResponseParser | None = None  # None: idle
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_paused = False
        self._silence = self._silent_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf
        self._sender: asyncio.Task[None] | None = None
        self._is_sent = True
        self._poll: Final = select.poll()  # `select.select` knows the first 1024 descriptors only
        self._may_write = asyncio.Event()
        self._may_write.set()

    @property
    def is_closed(self) -> bool:
        """Whether it can carry nothing any more."""
        return self._transport is None or self._transport.is_closing()

    @property
    def has_unread(self) -> bool:
        """Whether something waits that the event loop has not read yet: while idle, nobody's answer, or the end.

        Over TLS not all that waits is seen; see `has_unread_tls`.
        """
        return bool(self._poll.poll(0)) or (self._tls is not None and has_unread_tls(self._tls))

    async def exchange(
        self,
        head: bytes,
        body: bytes | AsyncGenerator[bytes, None],
        *,
        is_head: bool,
        read_timeout: float | None,
        write_timeout: float | None,
    ) -> tuple[ResponseParser, Body]:
        """Send a request and wait for the head of its response.

        Args:
            head: the request's head, or with it the body.
            body: what follows the head; framed. It is closed when no more of it is wanted.
            is_head: whether the method is HEAD.
            read_timeout: the longest silence of the backend in seconds, once everything is sent.
            write_timeout: the longest time in seconds in which the backend takes nothing.

        Returns:
            The parser, whose head has come, and the body, which must be closed.

        Raises:
            httpcore.NetworkError, httpcore.TimeoutException, httpcore.RemoteProtocolError: if there is no response;
                and whatever `body` raises. The connection is closed then.
        """
        if self._transport is None:  # it was ended in the moment in which it stood
            raise httpcore.RemoteProtocolError("The backend ended the connection without a response.")
        self._parser = parser = ResponseParser(is_head=is_head, is_tls=self._tls is not None)
        self._silence = math.inf if read_timeout is None else read_timeout
        self._transport.write(head)
        self._is_sent = not body
        if body:
            self._sender = self._loop.create_task(self._send(body, write_timeout))
            self._sender.add_done_callback(lambda _: self._wake())
        try:
            while not parser.status or (parser.status < 300 and self._is_sending()):
                await self._wait()
            if parser.status < 300 and not self._is_sent:
                raise self._error or BrokenResponseError("The backend has not taken all of the request.", "closed")
            await self._stop_sending()
        except BaseException:
            await self._close()
            raise
        return parser, Body(self, parser)

    async def next_chunk(self, parser: ResponseParser) -> bytes:
        """Return what has come of the response's body, waiting for more if that is nothing; b"" at its end."""
        try:
            while not parser.buffered:
                if parser.complete:
                    await self.leave(parser)
                    return b""
                await self._wait()
        except BaseException:
            await self._close()
            raise
        chunk = parser.take()
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        return chunk

    async def leave(self, parser: ResponseParser) -> None:
        """Be done with a response: keep the connection if that is possible, else close it. Safe to call again."""
        if self._parser is not parser:
            return
        if not self._is_sent or self._error is not None or not parser.reusable or self.is_closed:
            await self._close()
            return
        self._parser = self._sender = None
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        self._on_idle(self)

    def abort(self) -> None:
        """Close the connection at once. A response that is not whole yet never will be, and is not asked for again."""
        if self._parser is not None and not self._parser.complete:
            self._fail(BrokenResponseError("The connection to the backend was closed from this side.", "closed"))
        if self._transport is not None:
            self._transport.abort()

    def _abort_soon(self) -> None:
        """Close the connection from within a call of the event loop, which may be ending it and goes on after that."""
        transport, self._transport = self._transport, None
        if transport is not None:
            self._loop.call_soon(transport.abort)

    async def _close(self) -> None:
        parser, self._parser = self._parser, None
        if parser is not None:
            parser.abandon()
        self.abort()
        await self._stop_sending()
        # Their tracebacks lead back here: circles in which the prompt and the client's connection would be kept.
        self._error = self._sender = None

    def _is_sending(self) -> bool:
        return self._sender is not None and not self._sender.done()

    async def _stop_sending(self) -> None:
        """Stop sending, and wait until whoever gives the body has been left."""
        if self._sender is not None and self._is_sending():
            with anyio.CancelScope(shield=True):
                self._sender.cancel()
                await asyncio.wait([self._sender])

    async def _send(self, body: bytes | AsyncGenerator[bytes, None], write_timeout: float | None) -> None:
        try:
            async with aclosing(_pieces(body) if isinstance(body, bytes) else body) as pieces:
                async for piece in pieces:
                    if self._transport is None:
                        return  # the one who waits for the response is told why
                    self._transport.write(piece)
                    if not self._may_write.is_set():
                        async with time_limit(write_timeout):
                            while not self._may_write.is_set():
                                await self._may_write.wait()
            self._is_sent = self._transport is not None
        except TimeoutError:
            self._fail(httpcore.WriteTimeout("The backend takes nothing."))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the response
            self._fail(error)

    async def _wait(self) -> None:
        """Wait until something has come or happened; raise what has ended the response before."""
        if self._error is not None:
            raise self._error
        if self._parser is None:
            raise httpcore.ReadError("The connection to the backend was closed.")
        self._silent_since = now = self._loop.time()
        if self._timer_due > now + self._silence:
            self._set_timer(now + self._silence)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._wake()

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_due = self._loop.call_at(when, self._look_at_the_time), when

    def _look_at_the_time(self) -> None:
        self._timer, self._timer_due = None, math.inf
        if self._waiter is None:
            return  # nobody waits for the backend now; who does so next sets the timer
        if self._is_sending():
            self._silent_since = self._loop.time()  # the body has a time limit of its own
        now = self._loop.time()
        due = end_of_limit(self._silent_since + self._silence, now)
        self._silent_since = due - self._silence
        if due > now:
            self._set_timer(due)
        else:
            self._fail(httpcore.ReadTimeout("The backend is silent."))

    # What follows is called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without being of the class
        self._tls = transport.get_extra_info("ssl_object")
        self._poll.register(transport.get_extra_info("socket"), select.POLLIN)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where to read to; `sizehint` is how much there is to decrypt, and says nothing without TLS."""
        if self._tls is not None:
            self._buffer = memoryview(bytearray(sizehint + MAX_RECORD))
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes of the response. While idle there is none, and what comes belongs to nobody."""
        data = self._buffer[:nbytes]
        if self._tls is not None:
            self._buffer = _NOTHING  # it may be a large one, and the connection idle for long
        parser = self._parser
        if parser is None:
            self._abort_soon()
            return
        try:
            parser.feed(data)
        except BrokenResponseError as error:
            self._fail(error)
            self._abort_soon()
            return
        if parser.buffered >= HIGH_WATER and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        """Take the end of what the backend sends for the end of the connection; nothing more is sent to it."""
        self._end(None)
        self._abort_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits, and the pool. The end of the connection may be the end of the response."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._may_write.set()
        self._end(exc)
        self._on_closed(self)

    def _end(self, error: Exception | None) -> None:
        parser = self._parser
        if parser is not None and not parser.complete and self._error is None:
            try:
                if error is None:
                    parser.end()
                elif parser.begun:
                    raise BrokenResponseError("The backend reset the connection within its response.", "reset")
                else:
                    raise httpcore.ReadError("The backend reset the connection.")
            except (httpcore.NetworkError, httpcore.RemoteProtocolError) as failure:
                self._fail(failure)
        self._wake()

    def pause_writing(self) -> None:
        """Have the sender wait: the backend takes bytes more slowly than they come."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """Let the sender go on."""
        self._may_write.set()


class Body:
    """The body of a response, as httpcore wants it."""

    __slots__ = ("_connection", "_parser")

    def __init__(self, connection: Connection, parser: ResponseParser) -> None:
        self._connection = connection
        self._parser = parser

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self.next_chunk()
        if not chunk:
            raise StopAsyncIteration
        return chunk

    def next_chunk(self) -> Coroutine[Any, Any, bytes]:
        """Return the next bytes, b"" at the end, for less than it takes to iterate."""
        return self._connection.next_chunk(self._parser)

    def aclose(self) -> Coroutine[Any, Any, None]:
        """Leave the response; the connection goes unless it has been read to its end. It waits for nobody."""
        return self._connection.leave(self._parser)


async def _pieces(body: bytes) -> AsyncGenerator[bytes, None]:
    """Yield a body that is there in pieces, since what a transport is given at once it copies at once."""
    for start in range(0, len(body), WRITE_SIZE):
        yield body[start : start + WRITE_SIZE]


def has_unread_tls(tls: ssl.SSLObject) -> bool:
    """Whether something has been read from a connection's socket that TLS has not handed out: bytes, or the end.

    A byte is lost by looking, so what holds any is not to be used again. A record of which only a part has come is not
    seen: OpenSSL has taken it from the socket, and Python has no way to ask it (`SSL_has_pending`). What it brings when
    the rest comes is taken for the answer to the request that was sent meanwhile, as anything is that comes after it.
    """
    try:
        tls.read(1)
    except ssl.SSLWantReadError:
        return False
    except ssl.SSLError:
        pass  # the end, or what is no TLS
    return True
