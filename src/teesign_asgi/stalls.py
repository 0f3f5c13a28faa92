"""Clients that stop: they send no more of a request, or take no more of a response, and do not go away either.

Theory of operation. Servers wait for such clients for ever, and `send` and `receive` just do not return. To set a time
limit for each of these calls would cost as much as the calls. So nothing is done for a chunk but to note that the call
has begun and has ended, and a sweep looks every so often at all requests that are open:

    in `send` or `receive`, with as many bytes as last time --> has stopped since then, or before
    anything else                                           --> goes on, or waits for the backend

`send` may not return although the client takes something: a piece has up to 64 KiB, and the kernel makes room in even
larger steps. So while one does not, each sweep asks the kernel what the client has acknowledged; when that is more than
at the last sweep, it has not stopped. Where the kernel cannot be asked, only what `send` returns for counts.

A request that has stopped for its time is cut: its task is cancelled, which closes the backend's connection, and
`ClientStalledError` comes out in its place. The sweep runs only while requests are open.

That leaves the connection to the client. A server closes it in an orderly way, once everything that it and the kernel
hold for the client has been taken; which is never. So it is reset, by `hang_up`. That comes first, as one server
(hypercorn on trio) lets nobody cancel `send`. A client whose request has stopped is told so first; but some servers
(granian) may then wait for the rest of it all the same, so its connection is ended, in an orderly way, a second later.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Final, Literal

import anyio

from .client_connection import bytes_taken_in_thread, hang_up_in_thread
from .errors import ClientDisconnectedError, ClientStalledError
from .http import Reply, Request
from .tasks import on_asyncio, run_in_background
from .types import Scope

__all__ = ["StallWatch"]

_SWEEPS: Final = 10
"""How many sweeps there are in the shorter one of the two times: it is kept to so many parts."""

PAUSE: Final = 1.0
"""By how many seconds a sweep must be late to mean that this process was paused, not that its clients have stopped."""

FAREWELL: Final = 1.0
"""Seconds that a client whose request has stopped gets to read why, until its connection is ended."""


class _Open:
    """A request that is being answered."""

    __slots__ = ("cut", "reply", "request", "scope", "seen", "since", "stalled", "taken")

    def __init__(self, scope: Scope, request: Request, reply: Reply, cut: Callable[[], object]) -> None:
        self.scope: Final = scope
        self.request: Final = request
        self.reply: Final = reply
        self.cut: Final = cut
        self.seen = -1  # bytes at the last sweep, if it was in a call then
        self.since = 0.0  # when they were first seen, or the client was last seen to take some of them
        self.taken = 0  # what it had taken by then, if `send` had not returned since the sweep before
        self.stalled: Literal["request", "response"] | None = None


class StallWatch:
    """Cut requests whose clients have stopped.

    Args:
        sending: after how many seconds without a byte of the request's body.
        taking: after how many seconds without a byte of the response taken.
    """

    def __init__(self, *, sending: float, taking: float) -> None:
        self._sending: Final = sending
        self._taking: Final = taking
        self._period: Final = min(sending, taking) / _SWEEPS
        self._open: Final[set[_Open]] = set()
        self._told: Final[list[tuple[float, Scope]]] = []  # who was told that its request has stopped, and when
        self._is_sweeping = False

    @property
    def is_idle(self) -> bool:
        """Whether no request is open."""
        return not self._open

    @property
    def open_scopes(self) -> list[Scope]:
        """The scopes of the requests that are open."""
        return [entry.scope for entry in self._open]

    async def run(self, scope: Scope, request: Request, reply: Reply, work: Awaitable[None]) -> None:
        """Wait for the work on a request.

        Args:
            scope: the request's.
            request: what it reads the body of.
            reply: where its response goes.
            work: all that is done for it.

        Raises:
            ClientStalledError: if the client has stopped for too long; the work has been cancelled and has cleaned up.
        """
        if not on_asyncio():
            await self._run_in_scope(scope, request, reply, work)
            return
        task = asyncio.current_task()
        assert task is not None
        entry = _Open(scope, request, reply, task.cancel)
        self._add(entry)
        try:
            await work
        except (asyncio.CancelledError, ClientDisconnectedError) as error:
            if entry.stalled is None:
                raise
            if isinstance(error, asyncio.CancelledError):
                task.uncancel()
            raise ClientStalledError(entry.stalled) from None
        finally:
            self._open.discard(entry)
            del task, entry  # which keep the error that the task ends with, and that leads back here

    async def _run_in_scope(self, scope: Scope, request: Request, reply: Reply, work: Awaitable[None]) -> None:
        with anyio.CancelScope() as cancellation:
            entry = _Open(scope, request, reply, cancellation.cancel)
            self._add(entry)
            try:
                await work
            except ClientDisconnectedError:
                if entry.stalled is None:
                    raise
            finally:
                self._open.discard(entry)
        if entry.stalled is not None:
            raise ClientStalledError(entry.stalled)

    def _add(self, entry: _Open) -> None:
        self._open.add(entry)
        if not self._is_sweeping:
            self._is_sweeping = True
            run_in_background(self._sweep)

    async def _sweep(self) -> None:
        try:
            while self._open or self._told:
                begun = anyio.current_time()
                await anyio.sleep(self._period)
                now = anyio.current_time()
                if now - begun > self._period + PAUSE:
                    for entry in self._open:
                        entry.seen = -1  # what it sent or took meanwhile has not been looked at yet
                await self._look_closer(now)
                stalled = [entry for entry in self._open if self._has_stalled(entry, now)]
                if any(entry.stalled == "response" for entry in stalled):
                    scopes = [entry.scope for entry in stalled if entry.stalled == "response"]
                    await hang_up_in_thread(scopes, reset=True)
                for entry in stalled:
                    if entry in self._open:
                        entry.cut()
                        if entry.stalled == "request":
                            self._told.append((now, entry.scope))
                if self._told and now - self._told[0][0] >= FAREWELL:
                    scopes = [scope for told, scope in self._told if now - told >= FAREWELL]
                    del self._told[: len(scopes)]
                    await hang_up_in_thread(scopes, reset=False)
        finally:
            self._is_sweeping = False

    async def _look_closer(self, now: float) -> None:
        """Find who takes something of a response although `send` does not return."""
        suspects = [entry for entry in self._open if entry.reply.is_sending and entry.reply.body_size == entry.seen]
        counts = await bytes_taken_in_thread([entry.scope for entry in suspects])
        for entry, taken in zip(suspects, counts, strict=True):
            if taken > entry.taken > 0:
                entry.since = now
            entry.taken = taken

    def _has_stalled(self, entry: _Open, now: float) -> bool:
        """Tell whether a client has stopped for its time; that is told once."""
        if entry.stalled is not None:
            return False
        if entry.reply.is_sending:
            size, limit = entry.reply.body_size, self._taking
        elif entry.request.is_receiving:
            size, limit = entry.request.body_size, self._sending
        else:
            size, limit = -1, math.inf
        if size != entry.seen:
            entry.seen, entry.since, entry.taken = size, now, 0
        elif now - entry.since >= limit:
            entry.stalled = "response" if entry.reply.is_sending else "request"
        return entry.stalled is not None
