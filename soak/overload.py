"""The figure about overload: four times as many clients as the proxy does its best with."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Final

from .backend import Wish
from .client import CHAT, connect, post, wished
from .ledger import Ledger, percentile
from .stack import Stack, running_stack

__all__ = ["run_overload"]

CLIENTS: Final = (8, 16, 32, 64)
PATIENCE: Final = 5.0
"""Seconds after which an answer is of no use to a client any more."""


async def run_overload(folder: Path, seconds: float) -> Ledger:
    """Find how many clients give the most answers a second, and then ask with four times as many."""
    ledger = Ledger()
    with running_stack(folder) as stack:
        peak, best = 0.0, 0
        for clients in CLIENTS:
            goodput = await _goodput(stack, clients, 5)
            ledger.seen(f"answers a second, {clients} clients", goodput)
            if goodput > peak:
                peak, best = goodput, clients
        before = await _times(stack, 2)
        overloaded = await _goodput(stack, 4 * best, seconds)
        after = await _recovery(stack, percentile(before, 99))
    ledger.at_least(f"answers a second, {4 * best} clients, of the peak", overloaded / peak, 0.9, " x")
    ledger.at_most("recovered after", after, 5, " s")
    return ledger


async def _goodput(stack: Stack, clients: int, seconds: float) -> float:
    """Return how many answers a second come in time to clients that each ask again at once."""
    numbers, good, began = itertools.count(1), 0, time.monotonic()

    async def client() -> None:
        nonlocal good
        async with connect(stack.port) as connection:
            while time.monotonic() < began + seconds:
                answer = await connection.ask(post(CHAT, wished(Wish(next(numbers)))))
                good += answer.status == 200 and answer.seconds <= PATIENCE

    await asyncio.gather(*(client() for _ in range(clients)))
    return good / (time.monotonic() - began)


async def _times(stack: Stack, seconds: float) -> list[float]:
    """Return what answers take for one client alone."""
    found, began = [], time.monotonic()
    async with connect(stack.port) as connection:
        while time.monotonic() < began + seconds:
            found.append((await connection.ask(post(CHAT, wished(Wish(1))))).seconds)
            await asyncio.sleep(0.01)
    return found


async def _recovery(stack: Stack, usual: float) -> float:
    """Return after how many seconds most answers take no longer again than they usually do."""
    began = time.monotonic()
    while time.monotonic() < began + 30:
        if percentile(await _times(stack, 0.5), 50) <= usual:
            break
    return time.monotonic() - began
