"""Work that one caller does for all who come meanwhile.

The first who comes does it, in its own task; the others wait for it, and share its failure: to try again for each of
them would make the last one wait for all. Somebody who leads and is cancelled has failed nobody: one of those who wait
leads anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import anyio

__all__ = ["Shared"]


class Shared:
    """Work that is done once at a time.

    Args:
        work: what to do. It is called again for those who come after its end.
    """

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work: Final = work
        self._under_way: _Run | None = None

    async def __call__(self) -> None:
        """Do the work, or wait for whoever does it.

        Raises:
            Exception: what the work raised, to all who waited for it.
        """
        while self._under_way is not None:
            run = self._under_way
            await run.over.wait()
            if run.error is not None:
                raise run.error
            if run.done:
                return
        await self._lead()

    async def _lead(self) -> None:
        run = self._under_way = _Run()
        try:
            await self._work()
            run.done = True
        except Exception as error:
            run.error = error
            raise
        finally:
            self._under_way = None
            run.over.set()


@dataclass
class _Run:
    over: anyio.Event = field(default_factory=anyio.Event)
    done: bool = False
    error: Exception | None = None
