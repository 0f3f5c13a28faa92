"""The connections that requests came over: found among this process's sockets, looked at, and ended.

ASGI has no message that ends a connection. An app that leaves a response unfinished relies on the server to break the
connection off, and not every server can be seen from here: middleware of the host (Starlette's `BaseHTTPMiddleware`)
ends such a response as if it were whole, and to a client of HTTP/1.0 the end of the connection is the end of the
response. So the socket is looked for by the addresses of its two ends, and ended:

    in order     everything that was sent is delivered, and then the end, without the last chunk of HTTP/1.1
    by a reset   everything is forgotten, and the client told that the connection has broken

A server does not say either what a client takes of a piece before there is room for the next one, and the kernel makes
room in steps of hundreds of kilobytes; but it counts what clients acknowledge, on each socket.

Nothing is found where there is no `/proc`, on Unix sockets, and where a server puts a forwarded address into the scope;
and nothing is looked for on HTTP/2, whose connections carry other responses too. There it is up to the server alone.
A server that believes a forwarded address with a port (uvicorn without `--no-proxy-headers`) lets whoever chooses that
header name another client's connection, which is ended then: README.md says so where it tells how to mount the app.
"""

from __future__ import annotations

import ctypes
import logging
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple

import anyio
import anyio.lowlevel
import anyio.to_thread

from .observe import describe_exception, log_event
from .sockets import own_tcp_sockets
from .tasks import run_in_background
from .types import Scope

__all__ = ["BreakOff", "bytes_taken_in_thread", "hang_up", "hang_up_at_exit", "hang_up_in_thread"]

FLUSH: Final = 0.05
"""Seconds that a server and a host get to write what they were given, until a response is broken off."""

_UNSPECIFIED: Final = bytes(16)  # struct sockaddr, of family AF_UNSPEC
_BYTES_ACKED: Final = slice(120, 128)  # tcpi_bytes_acked in struct tcp_info (linux/tcp.h), which only grows at its end


class BreakOff:
    """Break off responses that have begun: many at once where a backend has failed, with one look for all of them."""

    def __init__(self) -> None:
        self._waiting: list[Scope] = []
        self._cancelled: list[Scope] = []
        self._done: anyio.Event | None = None  # for those who wait

    async def __call__(self, scope: Scope, *, client_gone: bool = False) -> None:
        """End the connection of a request whose response has begun and must not look whole; wait until it has ended.

        Args:
            scope: the request's.
            client_gone: the server says that the client has gone, and ends its connection. One that only sends no more
                still reads; to it, too, a response that ends with its connection must not look whole.
        """
        if client_gone and not _ends_with_connection(scope):
            return
        self._waiting.append(scope)
        if self._done is None:
            self._done = anyio.Event()
            run_in_background(partial(self._end_all, self._done))
        try:
            await self._done.wait()
        except anyio.get_cancelled_exc_class():
            await self.cancelled(scope)
            raise

    async def _end_all(self, done: anyio.Event) -> None:
        await anyio.sleep(FLUSH)
        scopes, self._waiting, self._done = self._waiting, [], None
        try:
            for some, reset in _by_how_they_end(scopes):
                await hang_up_in_thread(some, reset=reset)
        finally:
            done.set()

    async def cancelled(self, scope: Scope) -> None:
        """Do the same for a request that the host has cancelled, before it hears of that and ends the response itself.

        Args:
            scope: the request's.
        """
        self._cancelled.append(scope)
        try:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()  # one look for all that are cancelled together
        finally:  # the host may cancel again
            scopes, self._cancelled = self._cancelled, []
            for some, reset in _by_how_they_end(scopes):
                hang_up(some, reset=reset)


def _by_how_they_end(scopes: Iterable[Scope]) -> Iterator[tuple[list[Scope], bool]]:
    """Yield those of requests whose connections must be reset, and those whose connections end in order, if any."""
    for reset in (True, False):
        some = [scope for scope in scopes if _ends_with_connection(scope) is reset]
        if some:
            yield some, reset


def _ends_with_connection(scope: Scope) -> bool:
    """Tell whether the end of the connection is the end of the response: before HTTP/1.1, which granian calls "1"."""
    return scope.get("http_version", "1.1") in ("0.9", "1.0", "1")


async def hang_up_in_thread(scopes: Iterable[Scope], *, reset: bool) -> None:
    """Do what `hang_up` does, without waiting for one of the threads that the host has for its work.

    Where that cannot be done, it is logged: whoever calls this has others to look after.
    """
    try:
        await anyio.to_thread.run_sync(partial(hang_up, scopes, reset=reset), limiter=anyio.CapacityLimiter(1))
    except Exception as error:  # noqa: BLE001 - such as that no thread can be started
        log_event(logging.ERROR, "clients' connections could not be ended", **describe_exception(error))


def hang_up(scopes: Iterable[Scope], *, reset: bool) -> None:
    """End the connections that requests came over.

    To be called from a thread, where there is time for that: it looks at every descriptor of the process.

    Args:
        scopes: the requests'. Their `client` must be the socket's own peer.
        reset: forget whatever the kernel still holds for the clients; else they get that first, and then the end.
    """
    for connection, _ in _connections_of(scopes):
        _end(connection, reset=reset)


async def bytes_taken_in_thread(scopes: Sequence[Scope]) -> list[int]:
    """Count what has been taken on the connections that requests came over: by the clients' kernels, that is.

    Args:
        scopes: the requests'. Nothing is done where there are none.

    Returns:
        The bytes that have been acknowledged on each connection since it was made; 0 where that cannot be seen.
    """
    if not scopes:
        return []
    try:
        return await anyio.to_thread.run_sync(_bytes_taken, scopes, limiter=anyio.CapacityLimiter(1))
    except Exception:  # noqa: BLE001 - whoever fails to look will fail to hang up, and that is logged
        return [0] * len(scopes)


def _bytes_taken(scopes: Sequence[Scope]) -> list[int]:
    taken: dict[_Ends | None, int] = {ends: _bytes_acked(connection) for connection, ends in _connections_of(scopes)}
    return [taken.get(_ends_of(scope), 0) for scope in scopes]


def _bytes_acked(connection: socket.socket) -> int:
    with suppress(OSError):
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.stop)
        if len(info) == _BYTES_ACKED.stop:  # older kernels return less
            return int.from_bytes(info[_BYTES_ACKED], sys.byteorder)
    return 0


def hang_up_at_exit(scopes: Iterable[Scope], own_port: int) -> None:
    """Reset what would look whole if this process ended now: the kernel ends what a process leaves in order.

    That is every connection, but for those on which a response is open that tells by itself where it ends. An answer
    that a server has been given whole need not have reached the kernel: nothing here says which those are.

    Args:
        scopes: those of the requests that are being answered.
        own_port: where the server listens.
    """
    spared = {_ends_of(scope) for scope in scopes if not _ends_with_connection(scope)}
    for connection, ends in _client_connections():
        if ends.own_port == own_port and ends not in spared:
            _end(connection, reset=True)


class _Ends(NamedTuple):
    """What a connection is known by: the client's address and port, and ours."""

    client: str
    client_port: int
    own_port: int


def _ends_of(scope: Scope) -> _Ends | None:
    client, server = scope.get("client"), scope.get("server")
    try:
        return _Ends(str(client[0]), int(client[1] or 0), int(server[1] or 0)) if client and server else None
    except (LookupError, TypeError, ValueError):  # of a host that puts something else there
        return None


def _connections_of(scopes: Iterable[Scope]) -> Iterator[tuple[socket.socket, _Ends]]:
    sought = {_ends_of(scope) for scope in scopes if not scope.get("http_version", "1.1").startswith("2")}
    for connection, ends in _client_connections():
        if ends in sought:
            yield connection, ends


def _client_connections() -> Iterator[tuple[socket.socket, _Ends]]:
    for connection in own_tcp_sockets():
        with suppress(OSError):  # it may have ended by itself
            client, client_port, *_ = connection.getpeername()
            yield connection, _Ends(client, client_port, connection.getsockname()[1])


def _end(connection: socket.socket, *, reset: bool) -> None:
    if reset:
        # Whatever the server does to end a connection in order comes too late after this; `shutdown` would send the
        # end first, and SO_LINGER has no effect before the server closes its own descriptor.
        ctypes.CDLL(None).connect(connection.fileno(), _UNSPECIFIED, len(_UNSPECIFIED))
    else:
        with suppress(OSError):  # it may have ended by itself
            connection.shutdown(socket.SHUT_RDWR)
