"""Log lines out of the process, without anybody ever waiting for whoever reads them.

Theory of operation. A pipe that nobody empties blocks whoever writes to it. So the event loop only puts lines into a
list, and a thread of its own writes them:

    log record --format--> waiting lines --(a moment later, together)--> descriptor
                               |
                               +-- too many: dropped and counted; said in the log when it moves again

The thread waits for a moment after the first line, so that lines which come together are written together: under load
that is one wake-up for many lines. Each write is at most as large as pipes keep in one piece (POSIX, PIPE_BUF), and
ends with a line, so that the lines of several processes on one pipe do not get mixed up.

Lines are formatted by whoever logs. The thread would need the interpreter for that just as long, and would have it at
a time when the event loop wants it.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

__all__ = ["LogWriter"]

MAX_WAITING: Final = 4 * 1024 * 1024
"""How many bytes of lines wait to be written; the same again may be on its way."""

GATHERING: Final = 0.02
"""Seconds from the first line that waits until all are written."""

FLUSH_TIMEOUT: Final = 1.0
"""Seconds that `flush` waits at most for whoever reads."""


class LogWriter(logging.Handler):
    """A handler that writes each record as a line, from a thread that it starts with the first one.

    A process that forks must not have logged before: the thread does not come along.

    Args:
        descriptor: the file descriptor to write to. It stays open.
        max_waiting: how many bytes of lines may wait.

    Attributes:
        on_drop: called for every line that is dropped, from any thread.
    """

    def __init__(self, descriptor: int, *, max_waiting: int = MAX_WAITING) -> None:
        super().__init__()
        self._descriptor: Final = descriptor
        self._max_waiting: Final = max_waiting
        self.on_drop: Callable[[], object] = lambda: None
        self._changed: Final = threading.Condition()
        self._lines: list[bytes] = []
        self._size = 0
        self._dropped = 0
        self._is_writing = False
        self._is_urgent = False
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Have a record written; never waits. One that cannot be formatted counts as dropped."""
        try:
            line = self._line(record)
        except Exception:  # noqa: BLE001 - what it says may quote anything, and would be written here and now
            self._drop(1)
            return
        with self._changed:
            if self._size + len(line) <= self._max_waiting:
                self._lines.append(line)
                self._size += len(line)
                if len(self._lines) == 1 or self._thread is None:
                    self._wake()
                return
        self._drop(1)

    def flush(self) -> None:
        """Wait until everything is written, but not for long: whoever reads may have stopped."""
        with self._changed:
            self._is_urgent = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._lines and not self._is_writing, FLUSH_TIMEOUT)
            self._is_urgent = False

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode(errors="backslashreplace") + b"\n"

    def _wake(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._write_for_ever, name="log-writer", daemon=True)
            with suppress(RuntimeError):  # there may be no more threads to be had; then the next line starts one
                thread.start()
                self._thread = thread
        self._changed.notify_all()

    def _drop(self, lines: int) -> None:
        with self._changed:
            self._dropped += lines
        for _ in range(lines):
            self.on_drop()

    def _write_for_ever(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                self._changed.wait_for(lambda: self._is_urgent, GATHERING)
                lines, self._lines, self._size = self._lines, [], 0
                self._is_writing = True
            lost = sum(piece.count(b"\n") for piece in _pieces(lines) if not self._write(piece))
            if lost:
                self._drop(lost)
            else:
                self._tell_of_dropped_lines()

    def _tell_of_dropped_lines(self) -> None:
        """Write how many lines are missing, past those that wait: this one must not be dropped too."""
        with self._changed:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            event = "log lines were dropped, since nobody read them"
            said = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": f"{event}: {dropped}"}
            self._write(self._line(logging.makeLogRecord({**said, "event_name": event, "fields": {"lines": dropped}})))

    def _write(self, piece: bytes) -> bool:
        """Write a piece, however long that takes; return whether there is anybody to read it."""
        left = memoryview(piece)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # somebody who shares the descriptor has made it so
                select.select([], [self._descriptor], [], FLUSH_TIMEOUT)
            except OSError:
                return False
        return True


def _pieces(lines: list[bytes]) -> Iterator[bytes]:
    """Yield lines joined, as many as fit into one write; a longer one by itself."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if size + len(line) > select.PIPE_BUF and piece:
            yield b"".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield b"".join(piece)
