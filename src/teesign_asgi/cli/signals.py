"""What SIGTERM and SIGINT do to `teesign serve`: to the worker that serves, and to its parent that waits for it.

Theory of operation. Granian's parent passes a signal on to its worker, waits for the worker's end, and kills it when
that takes too long. Process managers and terminals send the signal to both at once. So the worker takes any number of
signals for one: the first begins the drain, and the server is told to stop when that is over. Only the parent counts:
its second signal kills the worker.

    parent   SIGTERM ------> terminate the worker, wait ------------------------------------------> end
                 |                                                                            ^
    worker       +--> drain begins ... drain is over --> server stops --> connections end --> end, or is cut off

A worker that has not started yet serves nobody, and ends at once. Until its event loop listens for signals, it notes
them with the handler that it was forked with, and then takes them up.

SIGHUP does nothing. Granian would start a second worker beside the first one, with other keys and no signatures.

A worker whose parent has been killed is killed too: nobody would be left to stop it, and it would hold the port.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from granian.server.common import AbstractServer

from ..app import App
from ..observe import log_event
from .listener import end_unused_connections

__all__ = ["drain_first", "end_at_second_signal", "end_with_parent", "hear_of_ends"]

_PR_SET_PDEATHSIG: Final = 1

_STEP: Final = 0.05
"""Seconds between two looks at whether the drain is over."""

_LAST_BYTES: Final = 1.0
"""Seconds that connections get at least to take what the server holds for them, after the drain."""

_HEARSAY: Final = 1.0
"""Seconds that one thread of the parent gets at most to tell the others of the worker's end."""

_ONE_SIGNAL: Final = 0.25
"""Seconds within which two signals are one: some programs, such as timeout(1), signal a process and then its group."""


def drain_first(loop: asyncio.AbstractEventLoop, app: App, port: int) -> None:
    """Put a drain before what the server will do at a signal.

    Args:
        loop: the worker's event loop; the server has not set its handlers yet.
        app: its drain is begun by the first signal. When that is over, the handler that the server has set is called;
            when connections stay open after that, the process ends without them. An app that has not started can have
            served nobody: then the process ends at once.
        port: where the server listens.
    """
    drain = app.drain
    set_handler = loop.add_signal_handler

    def set_handler_after_drain(number: int, stop: Callable[..., object], *arguments: Any) -> None:
        inherited = signal.getsignal(number)
        set_handler(number, begin, partial(stop, *arguments))
        # In this order: a signal that comes in between is found by one of the two.
        if isinstance(inherited, _Parent) and inherited.was_signalled:
            begin(partial(stop, *arguments))

    def begin(stop: Callable[[], object]) -> None:
        if drain.is_ready:
            drain.begin()
            if app.is_started:
                stop_when_over(stop)
            else:
                # The parent may have got the same signal, and takes an end that it did not ask for to be a crash.
                loop.call_later(_STEP, _leave)

    def stop_when_over(stop: Callable[[], object]) -> None:
        if not drain.is_over:
            loop.call_later(_STEP, stop_when_over, stop)
            return
        stop()
        loop.call_later(_LAST_BYTES, end_unused)
        loop.call_later(max(_LAST_BYTES, drain.remaining), _cut_off, app, port)

    def end_unused() -> None:
        # The server waits for the rest of a head that has begun, which is asked for nothing any more.
        if app.is_idle:
            end_unused_connections(port)
        loop.call_later(_LAST_BYTES, end_unused)

    loop.add_signal_handler = set_handler_after_drain  # type: ignore[method-assign,assignment] # granian has no hook for this


def _cut_off(app: App, port: int) -> None:
    """End the process with whatever is still open; none of it looks whole."""
    log_event(logging.WARNING, "the time to drain is up: open connections are cut off", open=app.drain.open_responses)
    try:
        app.hang_up_at_exit(port)
        logging.shutdown()
        _kill_children(os.getpid())
    finally:
        os._exit(1)


def _kill_children(pid: int) -> None:
    """Kill what a worker has started, each with its group: a program that collects evidence may not notice its end."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread may have ended meanwhile
            for child in children.read_text().split():
                with suppress(ProcessLookupError):  # so may the child; or it leads no group, as those programs do
                    os.killpg(int(child), signal.SIGKILL)


def _leave() -> None:
    """End the process before it has served anybody."""
    log_event(logging.INFO, "stopped before the start was over")
    logging.shutdown()
    os._exit(0)


def end_at_second_signal(server: AbstractServer[Any]) -> None:
    """Have the parent kill its worker at the second signal; to be called when granian has set its own handlers."""
    handler = _Parent(server)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


class _Parent:
    """What the parent does at a signal, and how it notes one; a worker that it forks has a copy of both.

    Args:
        server: what it runs.
    """

    def __init__(self, server: AbstractServer[Any]) -> None:
        self._server: Final = server
        self._first = 0.0

    @property
    def was_signalled(self) -> bool:
        """Whether a signal has come, to this process or before it was forked."""
        return bool(self._server.interrupt_signal)

    def __call__(self, *_: object) -> None:
        if not self.was_signalled:
            self._first = time.monotonic()
            self._server.signal_handler_interrupt()  # type: ignore[no-untyped-call] # granian has no annotations there
        elif time.monotonic() - self._first >= _ONE_SIGNAL:
            for worker in self._server.wrks:
                _kill_children(worker.inner.pid)
                worker.kill()


def hear_of_ends(server: AbstractServer[Any]) -> None:
    """Have the parent not take a worker that has just ended for one that refuses to.

    Two threads of the parent wait for the worker, and the kernel tells one of them. To the other the worker is alive
    until the first has noted what it heard, and on a busy machine that takes longer than the millisecond that granian
    allows.

    Args:
        server: what runs the worker; it has not begun.
    """
    stop = server._stop_workers  # noqa: SLF001 - granian has no hook for this

    def stop_workers() -> None:
        for worker in server.wrks:
            worker.join = partial(_join, worker, worker.join)
        stop()  # type: ignore[no-untyped-call] # granian has no annotations there

    server._stop_workers = stop_workers  # type: ignore[method-assign] # noqa: SLF001 - likewise


def _join(worker: Any, join: Callable[[float | None], None], timeout: float | None = None) -> None:
    join(timeout)
    deadline = time.monotonic() + _HEARSAY
    while worker.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)


def end_with_parent(parent: int) -> None:
    """Have this process killed when the one that started it is gone, however it went.

    Args:
        parent: the process id of the one that started it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            signal.raise_signal(signal.SIGKILL)
