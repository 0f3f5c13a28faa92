"""Figures about neighbours: what clients that misbehave, or ask for much, take away from the others."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from benchmarks.procfs import memory, reset_peak

from .backend import Wish
from .client import CHAT, Connection, connect, head, post, wished
from .curves import MIB
from .ledger import Ledger, percentile
from .stack import Stack, running_stack

__all__ = ["run_bombs", "run_slow_headers", "run_stopped_readers"]

NEIGHBOURS: Final = 20
RATE: Final = 20.0
"""Events a second of each neighbour's stream."""

ASKERS: Final = 4
"""Neighbours that ask for JSON: so many that a percentile of half a minute is more than a few answers."""

READERS: Final = 200
POURED: Final = 256 * MIB
CUT_BY: Final = 100.0
"""Seconds that are waited for the last of them to be cut off."""

SLOW: Final = 1_000


@dataclass
class Neighbours:
    """Good clients: some read streams, and others ask for JSON again and again.

    Attributes:
        gaps: seconds between events of a stream, beyond those of its schedule.
        times: seconds that JSON answers took.
        failures: how many answers were not as they should be.
    """

    stack: Stack
    gaps: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    failures: int = 0
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def _read_streams(self) -> None:
        while True:
            wish = Wish(next(self.numbers), "stream", events=int(RATE * 5), rate=RATE)
            async with connect(self.stack.port) as connection:
                answer = await connection.ask(post(CHAT, wished(wish)))
            self.failures += not answer.whole
            self.gaps += [later - earlier - 1 / RATE for earlier, later in pairwise(answer.arrivals)]

    async def _ask(self) -> None:
        while True:
            async with connect(self.stack.port) as connection:
                answer = await connection.ask(post(CHAT, wished(Wish(next(self.numbers)))))
            self.failures += answer.status != 200
            self.times.append(answer.seconds)
            await asyncio.sleep(0.02)

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Have them work while the block runs, and begin their figures anew."""
        self.gaps, self.times = [], []
        tasks = [asyncio.create_task(self._read_streams()) for _ in range(NEIGHBOURS)]
        tasks += [asyncio.create_task(self._ask()) for _ in range(ASKERS)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def run_bombs(folder: Path, seconds: float) -> Ledger:
    """JSON of ten megabytes made to be expensive, twice a second, and eight uploads of 100 MB: all by one process."""
    ledger = Ledger()
    with running_stack(folder) as stack:
        neighbours = Neighbours(stack)
        async with neighbours.busy():
            await asyncio.sleep(seconds)
        quiet, quiet_times = percentile(neighbours.gaps, 99), percentile(neighbours.times, 99)
        command = [sys.executable, "-m", "soak.burden", str(stack.port), str(seconds)]
        async with neighbours.busy():
            with subprocess.Popen(command, stdout=subprocess.PIPE) as burden:  # noqa: S603, ASYNC220 - our own, not waited for
                await asyncio.sleep(seconds)
                burdened, burdened_times = percentile(neighbours.gaps, 99), percentile(neighbours.times, 99)
                said, _ = await asyncio.to_thread(burden.communicate)
    ledger.seen("delay of an event, p99, quiet", quiet * 1000, " ms")
    ledger.seen("delay of an event, p99, beside bombs and uploads", burdened * 1000, " ms")
    ledger.at_most("added delay of an event, p99", (burdened - quiet) * 1000, 50, " ms")
    ledger.seen("JSON answer, p99, quiet", quiet_times * 1000, " ms")
    ledger.seen("JSON answer, p99, beside bombs and uploads", burdened_times * 1000, " ms")
    for name, count in zip(("bombs", "uploads"), said.split(), strict=True):
        ledger.seen(f"{name} answered", int(count))
    ledger.exactly("neighbours that were not served", neighbours.failures, 0)
    return ledger


async def run_stopped_readers(folder: Path, quiet_seconds: float, rounds: int) -> Ledger:
    """200 clients that ask for 256 MB each and stop reading: memory, when they are cut off, and the others.

    How fast a machine is changes more from one minute to the next than these clients change it. So they come several
    times, each time is compared with the quiet ones right before and after it, and the median is what counts.
    """
    ledger = Ledger()
    ratios: list[float] = []
    cut: list[float] = []
    grown = asked = 0
    with running_stack(folder) as stack:
        neighbours = Neighbours(stack)
        quiet = await _quiet_times(neighbours, quiet_seconds)
        for number in range(rounds):
            before = stack.resident()  # which grows: the signatures of all these answers are kept
            reset_peak(stack.pid)
            async with neighbours.busy():
                cut += await _stop_readers(stack, _FIRST_READER + number * READERS)
                beside = neighbours.times
            grown = max(grown, memory(stack.pid, "VmHWM") - before)
            after = await _quiet_times(neighbours, quiet_seconds)
            quiet_p99, beside_p99 = percentile(quiet + after, 99), percentile(beside, 99)
            ledger.seen(f"JSON answer, p99, quiet, round {number + 1}", quiet_p99 * 1000, " ms")
            ledger.seen(f"JSON answer, p99, beside them, round {number + 1}", beside_p99 * 1000, " ms")
            ratios.append(beside_p99 / quiet_p99)
            asked += len(beside)
            quiet = after
    ledger.at_most("memory at its peak, above that before", grown / MIB, 64, " MiB")
    ledger.exactly("readers cut off", len(cut), READERS * rounds)
    ledger.seen("first of them cut off after", min(cut, default=float("nan")), " s")
    ledger.seen("last of them cut off after", max(cut, default=float("nan")), " s")
    ledger.seen("JSON answers beside them", asked)
    ledger.seen("of the quiet p99, least of all rounds", min(ratios), " x")
    ledger.seen("of the quiet p99, greatest of all rounds", max(ratios), " x")
    ledger.at_most("of the quiet p99, median of all rounds", statistics.median(ratios), 1.1, " x")
    ledger.exactly("neighbours that were not served", neighbours.failures, 0)
    return ledger


async def _quiet_times(neighbours: Neighbours, seconds: float) -> list[float]:
    """Return how long answers take while nobody disturbs."""
    async with neighbours.busy():
        await asyncio.sleep(seconds)
        return neighbours.times


async def _stop_readers(stack: Stack, first: int) -> list[float]:
    """Have readers ask and stop; return after how many seconds each of them was cut off."""
    began = time.monotonic()
    readers = [await _stopped_reader(stack.port, first + number) for number in range(READERS)]
    cut: list[float] = []
    while len(cut) < READERS and time.monotonic() < began + CUT_BY:
        await asyncio.sleep(1)
        left = (await stack.backend_stats())["left"]
        cut = [when - began for number, when in left.items() if int(number) >= first]
    for reader in readers:
        reader.close()
    return cut


_FIRST_READER: Final = 1_000_000


async def _stopped_reader(port: int, number: int) -> socket.socket:
    """Return a connection over which much was asked for and nothing is read; its buffer is small."""
    loop = asyncio.get_running_loop()
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    reader.setblocking(False)
    await loop.sock_connect(reader, ("127.0.0.1", port))
    await loop.sock_sendall(reader, post(CHAT, wished(Wish(number, "raw", size=POURED))))
    return reader


async def run_slow_headers(folder: Path, seconds: float) -> Ledger:
    """1,000 connections that send a byte of their header every second, and a good client beside them."""
    ledger = Ledger()
    with running_stack(folder) as stack:
        neighbours = Neighbours(stack)
        async with contextlib.AsyncExitStack() as connections, neighbours.busy():
            began = time.monotonic()
            slow = [await connections.enter_async_context(connect(stack.port)) for _ in range(SLOW)]
            for connection in slow:
                connection.transport.write(head("GET", "/version")[:-2])
            closed = await _trickle(slow, began, seconds)
    ledger.exactly("closed within 35 s", sum(when <= 35 for when in closed), SLOW)
    ledger.seen("closed after, at most", max(closed, default=float("nan")), " s")
    ledger.seen("JSON answer beside them, p99", percentile(neighbours.times, 99) * 1000, " ms")
    ledger.seen("JSON answers beside them", len(neighbours.times))
    ledger.exactly("neighbours that were not served", neighbours.failures, 0)
    return ledger


async def _trickle(slow: list[Connection], began: float, seconds: float) -> list[float]:
    """Send a byte over each connection every second; return after how many seconds each was closed."""
    closed: list[float] = []
    for connection in slow:
        connection.closed.add_done_callback(lambda _: closed.append(time.monotonic() - began))
    while len(closed) < len(slow) and time.monotonic() < began + seconds:
        for connection in slow:
            if not connection.closed.done():
                connection.transport.write(b"a")
        await asyncio.sleep(1)
    return closed


def raise_descriptor_limit() -> None:
    """Have enough descriptors for all these connections, here and in the processes that are started."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert hard >= 2 * SLOW + 200, f"only {hard} files may be open in {os.getpid()}"
