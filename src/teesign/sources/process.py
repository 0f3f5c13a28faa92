"""A child process that is spoken to in lines.

Theory of operation. The pipes are non-blocking descriptors, read and written by whoever makes a call, while it makes
it: there is no background task that would have to belong to somebody's nursery, so the process can outlive the request
that started it. Between calls nobody reads; a child that has more to say than a pipe holds waits. Being cancelled in
`receive` loses nothing: what was read so far stays in the buffer.

The child gets a session and a process group of its own, and the group is killed together, so that what it may have
started itself does not stay behind. What it has put into another group does: finding that by its session would mean
looking through all processes, and killing by a number that may be another's by then. It is started from the thread that
runs the event loop, because Linux ties a child that asked to die with its parent to the thread that started it, and a
pooled thread ends after some idle seconds. Reaping is left to `close`: until then the process id cannot be given to
another process, and killing cannot hit a stranger.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO, Final, cast

import anyio
import anyio.lowlevel

from ..errors import MalformedError

__all__ = ["LineProcess"]

_READ_SIZE: Final = 256 * 1024
_REAP_SECONDS: Final = 1.0
_REAP_STEP: Final = 0.005


class LineProcess:
    """A running child process and its two pipes. One caller at a time.

    Args:
        command: program and arguments; no shell is involved.
        max_line: longest line that is accepted from it, in bytes.
        environment: its environment variables; this process's own when None.
        show_stderr: whether its standard error goes where ours goes, instead of nowhere. Either way it is never a pipe
            that could fill up.

    Raises:
        OSError: if it cannot be started.
        ValueError: if the command is empty or holds a NUL.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        max_line: int,
        environment: Mapping[str, str] | None = None,
        show_stderr: bool = False,
    ) -> None:
        if not command:
            raise ValueError("The command is empty.")
        self._max_line: Final = max_line
        self._buffer: Final = bytearray()
        self._searched = 0
        self._popen: Final = subprocess.Popen(  # noqa: S603 - the operator's own command, as a list and without a shell
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if show_stderr else subprocess.DEVNULL,
            bufsize=0,
            env=None if environment is None else dict(environment),
            start_new_session=True,
        )
        self._stdin: Final = cast("IO[bytes]", self._popen.stdin)
        self._stdout: Final = cast("IO[bytes]", self._popen.stdout)
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal, once `close` has collected it; None before."""
        return self._popen.returncode

    @property
    def exited(self) -> bool:
        """Whether the process has ended. It is not reaped by this question."""
        if self._popen.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True  # somebody else has reaped it

    @property
    def reaped(self) -> bool:
        """Whether the process is gone for good. Asking reaps it if it has ended; only after `close`."""
        return self._popen.poll() is not None

    def send(self, line: bytes) -> None:
        """Write one line, in one piece or not at all; never waits.

        Args:
            line: at most 511 bytes, without the line feed: POSIX promises that so much is not torn apart.

        A child that is gone, or has left so many lines unread that this one finds no room, is told by `receive`: the
        answer does not come.
        """
        with contextlib.suppress(BrokenPipeError, BlockingIOError):
            os.write(self._stdin.fileno(), line + b"\n")

    async def receive(self) -> bytes | None:
        """Return the child's next line without its line feed, or None when it has closed its output.

        Raises:
            MalformedError: `line_too_long`; the stream is of no use any more.
        """
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if (len(self._buffer) if end < 0 else end) > self._max_line:
                raise MalformedError(f"A line is longer than {self._max_line} bytes.", code="line_too_long")
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._searched = 0
                return line
            self._searched = len(self._buffer)
            try:
                data = os.read(self._stdout.fileno(), _READ_SIZE)
            except BlockingIOError:
                await anyio.wait_readable(self._stdout.fileno())
                continue
            if not data:
                return None
            self._buffer.extend(data)
            await anyio.lowlevel.checkpoint()  # a child that never stops talking does not hold the event loop

    async def close(self) -> None:
        """Kill the process with its process group, close the pipes and collect its status. Does no harm twice.

        Takes a second at most, and cannot be cancelled, but by asyncio's own means: then the process is killed and the
        pipes are closed all the same, and the status is left for `reaped` to collect. A process that a driver holds
        inside the kernel may stay for longer: ask `reaped` now and then.
        """
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._stdin.close()
        self._stdout.close()
        with anyio.move_on_after(_REAP_SECONDS, shield=True):
            while self._popen.poll() is None:  # noqa: ASYNC110 - nothing portable tells of a child's end but asking
                await anyio.sleep(_REAP_STEP)
