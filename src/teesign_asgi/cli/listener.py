"""The server's listening socket, and what the kernel is told about the connections that come through it.

Theory of operation. An answer that the app has handed over whole is the server's; while the client does not take it,
nobody looks at the connection again. The kernel can: it gives a connection up when what is sent on it has not been
taken for a time; which to it means that the client's window had no room for the whole of its next buffer, of up to 64
KiB. It can also be told to accept only so much ahead of what has been sent, so that bytes wait at the backend and not
in its own memory, up to 4 MiB for each connection. Connections inherit both from the socket that they were accepted
through. Granian opens that in the worker, once the app has its keys, and has no option for either; so it is looked for
among the descriptors of the process until it is there.

At the end the server closes idle connections, but waits for the rest of a head that has begun, as long as it would
anyway. Connections on which nothing is on its way are therefore ended from here, too.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import socket
import sys
import termios
from contextlib import suppress
from typing import Final

from ..observe import log_event
from ..sockets import own_tcp_sockets

__all__ = ["bound_connections", "end_unused_connections"]

NOT_SENT: Final = 128 * 1024
"""How many bytes the kernel takes ahead of what has been sent."""

_STEP: Final = 0.02


def bound_connections(loop: asyncio.AbstractEventLoop, port: int, taking: float) -> None:
    """Bound what connections hold, and for how long, as soon as the server listens. Linux only; elsewhere nothing.

    Args:
        loop: the event loop of the process that listens, or will soon.
        port: where.
        taking: after how many seconds without a byte taken a connection is given up; what the settings take the kernel
            can count, in milliseconds.
    """
    if sys.platform != "linux":
        return
    for listener in own_tcp_sockets():
        if listener.getsockname()[1] == port and _listens(listener):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(taking * 1000))
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT)
            log_event(logging.DEBUG, "the kernel bounds what connections hold", not_sent=NOT_SENT, taking_s=taking)
            return
    loop.call_later(_STEP, bound_connections, loop, port, taking)


def end_unused_connections(port: int) -> None:
    """End the connections to a port of this process whose clients have taken all that was sent to them. Linux only.

    To be called when no request is being answered: what the server has for a client is on its way then.
    """
    if sys.platform != "linux":
        return
    for connection in own_tcp_sockets():
        with suppress(OSError):  # it may have ended by itself
            if connection.getsockname()[1] == port and not _listens(connection):
                not_taken = fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))
                if not int.from_bytes(not_taken, sys.byteorder):
                    connection.shutdown(socket.SHUT_RDWR)


def _listens(found: socket.socket) -> bool:
    return bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
