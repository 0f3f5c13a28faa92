"""Time limits that do not count a pause of this process, on asyncio.

A timer that fires long after it was due says that nothing here had a turn meanwhile. What has come or was taken since
then has not been looked at yet, and is not late: such a limit ends a moment from now.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

__all__ = ["LATE", "end_of_limit", "time_limit"]

LATE: Final = 0.1
"""Seconds by which a timer may be late without meaning that this process was paused."""


def end_of_limit(due: float, now: float) -> float:
    """Return when a limit ends whose timer has fired: when it is due, or a moment from now if that was long ago."""
    return now + LATE if now - due > LATE else due


@asynccontextmanager
async def time_limit(seconds: float | None) -> AsyncGenerator[None, None]:
    """Limit how long the block takes, as `asyncio.timeout` does, and not counting a pause of this process.

    Args:
        seconds: how long; None for as long as it likes.

    Raises:
        TimeoutError: if it takes longer; the block has been cancelled then.
    """
    async with asyncio.timeout(None) as limit:
        if seconds is None:
            yield
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        timer: list[asyncio.TimerHandle] = []
        timer.append(loop.call_at(due, _end, limit, due, timer))
        try:
            yield
        finally:
            timer.pop().cancel()


def _end(limit: asyncio.Timeout, due: float, timer: list[asyncio.TimerHandle]) -> None:
    """End the limit whose timer has fired, or set another timer in its place."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    end = end_of_limit(due, now)
    if end > now:
        timer[0] = loop.call_at(end, _end, limit, end, timer)
    else:
        limit.reschedule(now)
