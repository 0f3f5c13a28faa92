"""The server's listening socket, and what the kernel is told about the connections that come through it.

Theory of operation. An answer that the app has handed over whole is the server's; while the client does not take it,
nobody looks at the connection again. The kernel can: it gives a connection up when what is sent on it has not been
taken for a time. It can also be told to accept only so much ahead of what has been sent, so that bytes wait at the
backend and not in its own memory, up to 4 MiB for each connection. Connections inherit both from the socket that they
were accepted through. Granian opens that in the worker, once the app has its keys, and has no option for either; so it
is looked for among the descriptors of the process until it is there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..observe import log_event

__all__ = ["bound_connections"]

NOT_SENT: Final = 128 * 1024
"""How many bytes the kernel takes ahead of what has been sent."""

_LONGEST: Final = 2**31 - 1
"""The longest time that the kernel can count, milliseconds."""

_STEP: Final = 0.02


def bound_connections(loop: asyncio.AbstractEventLoop, port: int, taking: float) -> None:
    """Bound what connections hold, and for how long, as soon as the server listens. Linux only; elsewhere nothing.

    Args:
        loop: the event loop of the process that listens, or will soon.
        port: where.
        taking: after how many seconds without a byte taken a connection is given up.
    """
    if sys.platform != "linux":
        return
    listener = _listener(port)
    if listener is None:
        loop.call_later(_STEP, bound_connections, loop, port, taking)
        return
    milliseconds = round(min(max(taking * 1000, 1), _LONGEST))
    with listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT)
    log_event(logging.DEBUG, "the kernel bounds what connections hold", not_sent=NOT_SENT, taking_s=taking)


def _listener(port: int) -> socket.socket | None:
    """Return a duplicate of this process's socket that listens on a port, if there is one."""
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if not entry.readlink().name.startswith("socket:"):
                continue
            duplicate = socket.socket(fileno=os.dup(int(entry.name)))
            if (
                duplicate.family in (socket.AF_INET, socket.AF_INET6)
                and duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                and duplicate.getsockname()[1] == port
            ):
                return duplicate
            duplicate.close()
    return None
