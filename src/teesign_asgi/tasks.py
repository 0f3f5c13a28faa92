"""The two things that asyncio and trio do differently, behind one function each.

On asyncio a task group around each request costs more than the rest of the proxy's bookkeeping together, so plain tasks
are used there, and only for requests that take a while; trio has no plain tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import anyio

from .errors import ClientDisconnectedError

__all__ = ["on_asyncio", "run_in_background", "run_while_connected"]

GRACE: Final = 0.05
"""Seconds until the client of some work is watched, on asyncio. Most errors and many answers take less, and to have a
server wait for the client's going costs as much as the rest of such a request."""

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

    On asyncio the task is cancelled as `asyncio.Task.cancel` does it, once: scopes of anyio do not shield from that,
    and work that waits while it cleans up is not cancelled again.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        await _run_in_nursery(wait_for_disconnect, work)
        return
    task: asyncio.Task[Any] | None = asyncio.current_task()
    assert task is not None
    watcher: asyncio.Task[None] | None = None
    gone = False
    cancelled_before = task.cancelling()

    async def watch() -> None:
        nonlocal gone
        await wait_for_disconnect()
        gone = True
        if task is not None:
            task.cancel()

    def start_watching() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch())

    timer = loop.call_later(GRACE, start_watching)
    try:
        await work()
    except asyncio.CancelledError:
        if not gone or task.cancelling() > cancelled_before + 1:
            raise  # somebody else cancels the task, and means more than this work
        raise ClientDisconnectedError from None
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()
        if gone:
            task.uncancel()
        task = None  # it keeps the error that it ends with, and that leads back here


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
        try:
            raise failure
        finally:
            del failure  # it leads back here: a circle in which the prompt would be kept
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
