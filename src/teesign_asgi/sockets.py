"""The TCP sockets of this process, whoever has opened them.

A server keeps its sockets to itself, and some things can only be done with them. On Linux a process can look at all of
its descriptors; elsewhere none are found.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

__all__ = ["own_tcp_sockets"]


def own_tcp_sockets() -> Iterator[socket.socket]:
    """Yield a duplicate of each TCP socket of this process, which is closed when the next one is asked for.

    It looks at every descriptor of the process: where there may be thousands, call it from a thread.
    """
    try:
        descriptors = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError:
        return
    for descriptor in descriptors:
        found = _duplicate(descriptor)
        if found is not None:
            with found:
                if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                    yield found


def _duplicate(descriptor: int) -> socket.socket | None:
    """Return a duplicate of a socket, which cannot become another file while it is looked at; None if it is none.

    Nothing else is duplicated: to close any descriptor of a file gives up the locks that this process has on it (POSIX,
    `fcntl`), those of a host's database among them.
    """
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None
        duplicate = os.dup(descriptor)
    except OSError:  # closed since
        return None
    try:
        return socket.socket(fileno=duplicate)
    except OSError:  # a file since, or of a kind that has no addresses
        os.close(duplicate)
        return None
