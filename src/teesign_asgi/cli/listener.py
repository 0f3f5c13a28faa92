"""The server's listening socket, and what the kernel is told about the connections that come through it.

Theory of operation. An answer that the app has handed over whole is the server's; while the client does not take it,
nobody looks at the connection again. The kernel can: it gives a connection up when what is sent on it has not been
taken for a time. It can also be told to accept only so much ahead of what has been sent, so that bytes wait at the
backend and not in its own memory, up to 4 MiB for each connection. Connections inherit both from the socket that they
were accepted through. Granian opens that in the worker, and has no option for either; so it is looked for among the
descriptors of the process, for a moment after the start.
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

_STEP: Final = 0.02
_TRIES: Final = 500


def bound_connections(loop: asyncio.AbstractEventLoop, port: int, taking: float, *, tries: int = _TRIES) -> None:
    """Bound what connections hold, and for how long, as soon as the server listens. Linux only; elsewhere nothing.

    Args:
        loop: the event loop of the process that listens, or will soon.
        port: where.
        taking: after how many seconds without a byte taken a connection is given up.
        tries: how often to look.
    """
    if sys.platform != "linux" or not tries:
        return
    for listener in _listeners(port):
        with listener:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(taking * 1000)))
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT)
        log_event(logging.DEBUG, "the kernel bounds what connections hold", not_sent=NOT_SENT, taking_s=taking)
        return
    loop.call_later(_STEP, lambda: bound_connections(loop, port, taking, tries=tries - 1))


def _listeners(port: int) -> list[socket.socket]:
    """Return duplicates of this process's sockets that listen on a port."""
    found = []
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
                found.append(duplicate)
            else:
                duplicate.close()
    return found
