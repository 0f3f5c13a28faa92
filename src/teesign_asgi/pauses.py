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
        timer: asyncio.TimerHandle

        def ends(due: float) -> None:
            nonlocal timer
            now = loop.time()
            end = end_of_limit(due, now)
            if end > now:
                timer = loop.call_at(end, ends, end)
            else:
                limit.reschedule(now)

        due = loop.time() + seconds
        timer = loop.call_at(due, ends, due)
        try:
            yield
        finally:
            timer.cancel()
