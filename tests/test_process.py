"""A child process that is spoken to in lines, on asyncio and trio."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator

import anyio
import pytest
from support import ways_to_cut

from teesign import MalformedError
from teesign.sources.process import LineProcess

pytestmark = pytest.mark.anyio

PYTHON = (sys.executable, "-I", "-S", "-c")
ECHO = (*PYTHON, "import sys\nfor line in sys.stdin: print(line, end='', flush=True)")


@contextlib.asynccontextmanager
async def running(*command: str, max_line: int = 1000) -> AsyncIterator[LineProcess]:
    """Run the command until the block is left."""
    process = LineProcess(command, max_line=max_line)
    try:
        yield process
    finally:
        await process.close()
        assert process.reaped


def says(*chunks: bytes) -> tuple[str, ...]:
    """Return a command that writes these chunks, one after the other."""
    return (*PYTHON, f"import os, time\nfor chunk in {chunks!r}: os.write(1, chunk); time.sleep(0.001)")


async def test_lines_go_out_and_come_back() -> None:
    """What is sent is one line, and so is what is received."""
    async with running(*ECHO) as process:
        for line in (b"one", b"", b"x" * 511):
            process.send(line)
            assert await process.receive() == line


@pytest.mark.parametrize("chunks", list(ways_to_cut(b"first\nsecond\n\nrest"))[:6])
async def test_lines_are_the_same_however_they_arrive(chunks: list[bytes]) -> None:
    """Whole, byte by byte or in two: three lines, then the end; what is not a whole line is not one."""
    async with running(*says(*chunks)) as process:
        assert [await process.receive() for _ in range(5)] == [b"first", b"second", b"", None, None]


@pytest.mark.parametrize("ending", [b"\n", b""])
async def test_longest_line_passes_and_a_longer_one_does_not(ending: bytes) -> None:
    """The limit is exact, and holds for lines that never end as well."""
    async with running(*says(b"x" * 1000 + b"\n")) as process:
        assert await process.receive() == b"x" * 1000
    async with running(*says(b"x" * 1001 + ending)) as process:
        with pytest.raises(MalformedError) as caught:
            await process.receive()
        assert caught.value.code == "line_too_long"


async def test_cancelled_reading_loses_nothing() -> None:
    """A line of which half was read before the cancellation is whole for the next reader."""
    slow = (*PYTHON, "import os, time\nos.write(1, b'first '); time.sleep(0.3); os.write(1, b'half\\n')")
    async with running(*slow) as process:
        with anyio.move_on_after(0.15):
            await process.receive()
        assert await process.receive() == b"first half"


async def test_sending_to_a_dead_process_is_told_by_receiving() -> None:
    """Sending never fails and never waits, neither when nobody is there nor when nobody reads."""
    async with running(*PYTHON, "pass") as process:
        assert await process.receive() is None
        for _ in range(1000):
            process.send(b"x" * 500)
    async with running(*PYTHON, "import time; time.sleep(60)") as process:
        for _ in range(1000):
            process.send(b"x" * 500)


async def test_status_is_known_after_closing() -> None:
    """A process that has ended keeps its status; one that has not is killed."""
    async with running(*PYTHON, "raise SystemExit(5)") as process:
        assert await process.receive() is None
        with anyio.fail_after(60):
            while not process.exited:  # noqa: ASYNC110 - nothing tells of it but asking
                await anyio.sleep(0.01)
        assert process.status is None
    assert process.status == 5
    assert process.exited
    async with running(*ECHO) as process:
        assert not process.exited
    assert process.status == -signal.SIGKILL
    await process.close()


async def test_process_reaped_by_somebody_else_counts_as_ended() -> None:
    """Programs that reap every child there is do not make a dead process look alive."""
    async with running(*PYTHON, "pass") as process:
        os.waitpid(process.pid, 0)  # noqa: ASYNC222 - it ends at once
        assert process.exited


async def test_closing_cannot_be_cancelled() -> None:
    """Whoever closes in a hurry leaves no process behind."""
    process = LineProcess(ECHO, max_line=1000)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await process.close()
    assert process.status == -signal.SIGKILL
