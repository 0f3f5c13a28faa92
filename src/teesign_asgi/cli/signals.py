"""What SIGTERM and SIGINT do to `teesign serve`: to the worker that serves, and to its parent that waits for it.

Theory of operation. Granian's parent passes a signal on to its worker, waits for the worker's end, and kills it when
that takes too long. Process managers and terminals send the signal to both at once. So the worker takes any number of
signals for one: the first begins the drain, and the server is told to stop when that is over. Only the parent counts:
its second signal kills the worker.

    parent   SIGTERM ------> terminate the worker, wait ------------------------------------------> end
                 |                                                                            ^
    worker       +--> drain begins ... drain is over --> server stops --> connections end --> end, or is cut off

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
from functools import partial
from typing import Any, Final

from granian.server.common import AbstractServer

from ..drain import Drain
from ..observe import log_event

__all__ = ["drain_first", "end_at_second_signal", "end_with_parent"]

_PR_SET_PDEATHSIG: Final = 1

_STEP: Final = 0.05
"""Seconds between two looks at whether the drain is over."""

_LAST_BYTES: Final = 1.0
"""Seconds that connections get at least to take what the server holds for them, after the drain."""

_ONE_SIGNAL: Final = 0.25
"""Seconds within which two signals are one: some programs, such as timeout(1), signal a process and then its group."""


def drain_first(loop: asyncio.AbstractEventLoop, drain: Drain) -> None:
    """Put a drain before what the server will do at a signal.

    Args:
        loop: the worker's event loop; the server has not set its handlers yet.
        drain: what is begun by the first signal. When it is over, the handler that the server has set is called; when
            connections stay open after that, the process ends without them.
    """
    set_handler = loop.add_signal_handler

    def set_handler_after_drain(number: int, stop: Callable[..., object], *arguments: Any) -> None:
        set_handler(number, begin, partial(stop, *arguments))

    def begin(stop: Callable[[], object]) -> None:
        if drain.is_ready:
            drain.begin()
            stop_when_over(stop)

    def stop_when_over(stop: Callable[[], object]) -> None:
        if not drain.is_over:
            loop.call_later(_STEP, stop_when_over, stop)
            return
        stop()
        loop.call_later(max(_LAST_BYTES, drain.remaining), _cut_off, drain)

    loop.add_signal_handler = set_handler_after_drain  # type: ignore[method-assign,assignment] # granian has no hook for this


def _cut_off(drain: Drain) -> None:
    """End the process with whatever is still open."""
    log_event(logging.WARNING, "the time to drain is up: open connections are cut off", open=drain.open_responses)
    logging.shutdown()
    os._exit(1)


def end_at_second_signal(server: AbstractServer[Any]) -> None:
    """Have the parent kill its worker at the second signal; to be called when granian has set its own handlers."""
    first = 0.0

    def handle(*_: object) -> None:
        nonlocal first
        if not server.interrupt_signal:
            first = time.monotonic()
            server.signal_handler_interrupt()  # type: ignore[no-untyped-call] # granian leaves it without annotations
        elif time.monotonic() - first >= _ONE_SIGNAL:
            for worker in server.wrks:
                worker.kill()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


def end_with_parent(parent: int) -> None:
    """Have this process killed when the one that started it is gone, however it went.

    Args:
        parent: the process id of the one that started it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            signal.raise_signal(signal.SIGKILL)
