"""The TCP sockets of this process, whoever has opened them.

A server keeps its sockets to itself, and some things can only be done with them. On Linux a process can look at all of
its descriptors; elsewhere none are found.

Each socket is looked at through a duplicate, which cannot become another one meanwhile. A descriptor is kept for these,
from the first look or `keep_a_place` on, since a process that has no more of them has the most need to end connections.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

__all__ = ["keep_a_place", "own_tcp_sockets"]


def own_tcp_sockets() -> Iterator[socket.socket]:
    """Yield a duplicate of each TCP socket of this process, which is closed when the next one is asked for.

    It looks at every descriptor of the process: where there may be thousands, call it from a thread. One caller at a
    time: come to the end, or close it.
    """
    if sys.platform != "linux":
        return
    with _one_at_a_time:
        if not _place.prepare():
            return
        for descriptor in _descriptors():
            found = _place.put(descriptor)
            if found is not None:
                try:
                    if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                        yield found
                finally:
                    found.detach()
                    _place.clear()


def keep_a_place() -> None:
    """Keep what `own_tcp_sockets` needs from now on, for when there are no more descriptors."""
    if sys.platform == "linux":
        with _one_at_a_time:
            _place.prepare()


def _descriptors() -> Iterable[int]:
    try:
        return [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError as error:
        # The directory cannot be read without a descriptor. But where none is left, every number is one.
        return range(os.sysconf("SC_OPEN_MAX")) if error.errno == errno.EMFILE else ()


class _Place:
    """The descriptor that duplicates are put at, one after the other; between them a pipe is there."""

    def __init__(self) -> None:
        self._nothing = self._place = -1
        self._pipe: tuple[int, int] | None = None  # what the pipe is known by

    def prepare(self) -> bool:
        """Make the place, or make it anew: daemons close all that they find, and what has its number then is not ours.

        Returns:
            False if it was not there, and there are no descriptors for it.
        """
        if self._pipe is None or not _identity(self._nothing) == _identity(self._place) == self._pipe:
            try:
                self._nothing, self._place = os.pipe()
            except OSError:
                return False
            self._pipe = _identity(self._place)
        return True

    def put(self, descriptor: int) -> socket.socket | None:
        """Return a duplicate of a socket, to be detached before the place is cleared; None if it is none.

        Nothing else is duplicated: to close any descriptor of a file gives up the locks that this process has on it
        (POSIX, `fcntl`), those of a host's database among them.
        """
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                return None
            os.dup2(descriptor, self._place, inheritable=False)
        except OSError:  # closed since
            return None
        try:
            return socket.socket(fileno=self._place)
        except OSError:  # a file since, or of a kind that has no addresses
            self.clear()
            return None

    def clear(self) -> None:
        """Let go of what is there."""
        os.dup2(self._nothing, self._place, inheritable=False)


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino


_place: Final = _Place()
_one_at_a_time: Final = threading.Lock()
