"""Unpredictable bytes for ids, fetched for many at once.

Each fetch is a system call, and while it lasts another thread may take the interpreter: under a server with threads
that costs more than the bytes. They are for ids, which are public once used; keys and nonces are drawn one by one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import get_ident
from typing import Final

__all__ = ["RandomSupply"]

_FETCHED: Final = 4096
"""Bytes at once: two ids for each of 128 requests."""


class RandomSupply:
    """Hand out unpredictable bytes, each once. What is fetched is for the thread that asks first: the event loop's.

    Args:
        source: returns that many unpredictable bytes, to any thread. Other threads get theirs straight from it.

    A process that was forked begins anew, or it would hand out the same bytes as its parent.
    """

    __slots__ = ("_bytes", "_forks", "_position", "_source", "_thread")

    def __init__(self, source: Callable[[int], bytes]) -> None:
        self._source: Final = source
        self._bytes = b""
        self._position = 0
        self._forks = 0
        self._thread: int | None = None

    def __call__(self, count: int) -> bytes:
        """Return so many bytes."""
        thread = get_ident()
        if self._thread is None:
            self._thread = thread
        if thread != self._thread:
            return self._source(count)
        start, end = self._position, self._position + count
        if end > len(self._bytes) or self._forks != _forks:
            self._forks = _forks
            self._bytes = self._source(max(count, _FETCHED))
            start, end = 0, count
        self._position = end
        return self._bytes[start:end]


_forks = 0


def _count_fork() -> None:
    global _forks  # noqa: PLW0603 - of the process, as forks are
    _forks += 1


if hasattr(os, "register_at_fork"):  # where processes fork
    os.register_at_fork(after_in_child=_count_fork)
