"""The two things that asyncio and trio do differently, behind one function each.

On asyncio a task group around each request costs more than the rest of the proxy's bookkeeping together, so plain tasks
are used there; trio has no plain tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import anyio

from .errors import ClientDisconnectedError

__all__ = ["on_asyncio", "run_in_background", "run_while_connected"]

_background: Final[set[asyncio.Task[None]]] = set()  # the event loop itself keeps only weak references


def on_asyncio() -> bool:
    """Tell whether this is called from asyncio's event loop, rather than trio's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def run_while_connected(
    wait_for_disconnect: Callable[[], Coroutine[Any, Any, None]], work: Callable[[], Awaitable[None]]
) -> None:
    """Run `work`, and cancel it when the client goes away.

    Args:
        wait_for_disconnect: returns when the client has gone.
        work: what is done for the client.

    Raises:
        ClientDisconnectedError: if `work` was cut off; it has been cancelled and has cleaned up by then. Work that is
            finished is finished, even if the client goes at the same moment.
    """
    if not on_asyncio():
        await _run_in_nursery(wait_for_disconnect, work)
        return
    finished = False
    with anyio.CancelScope() as scope:

        async def watch() -> None:
            await wait_for_disconnect()
            scope.cancel()

        watcher = asyncio.create_task(watch())
        try:
            await work()
            finished = True
        finally:
            watcher.cancel()
    if not finished:
        raise ClientDisconnectedError


async def _run_in_nursery(
    wait_for_disconnect: Callable[[], Coroutine[Any, Any, None]], work: Callable[[], Awaitable[None]]
) -> None:
    finished = False
    failure: Exception | None = None
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            await wait_for_disconnect()
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            await work()
            finished = True
        except Exception as error:  # noqa: BLE001 - carried out of the group, which would wrap it
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not finished:
        raise ClientDisconnectedError


def run_in_background(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `work` without waiting for it. It must not raise: nobody would see it.

    On asyncio it ends with the loop; on trio it is a system task, which is cancelled when the main task is over.
    """
    if on_asyncio():
        task = asyncio.create_task(work())
        _background.add(task)
        task.add_done_callback(_background.discard)
        return
    import trio

    trio.lowlevel.spawn_system_task(work)
