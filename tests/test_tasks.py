"""Work that ends when the client leaves, and work that goes on without one, on asyncio and trio."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest
from support import without_collector

from teesign_asgi import tasks
from teesign_asgi.errors import ClientDisconnectedError
from teesign_asgi.tasks import on_asyncio, run_in_background, run_while_connected

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def watched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch clients from the beginning on, so that no test needs to wait for that."""
    monkeypatch.setattr(tasks, "GRACE", 0)


class Client:
    """A client that leaves when it is told to."""

    def __init__(self) -> None:
        self.leaves = anyio.Event()
        self.watching = False

    async def wait_for_disconnect(self) -> None:
        """Return when the client has left."""
        self.watching = True
        try:
            await self.leaves.wait()
        finally:
            self.watching = False


async def settle() -> None:
    """Let every other task go as far as it can."""
    for _ in range(10):
        await anyio.lowlevel.checkpoint()


async def test_nothing_of_work_that_failed_is_kept() -> None:
    """It goes with its error, and not when the collector finds it: a prompt may be in it."""

    class Prompt:
        """Something that can be referred to weakly."""

    async def fail() -> weakref.ref[Prompt]:
        prompt = Prompt()

        async def work() -> None:
            assert prompt is not None
            await anyio.lowlevel.checkpoint()
            raise ValueError

        with contextlib.suppress(ValueError):
            await run_while_connected(Client().wait_for_disconnect, work)
        return weakref.ref(prompt)

    with without_collector():
        prompt = await fail()
        assert prompt() is None


async def test_work_that_ends_is_done() -> None:
    """And nobody watches the client any more."""
    client, seen = Client(), list[bool]()

    async def work() -> None:
        await settle()
        seen.append(client.watching)

    await run_while_connected(client.wait_for_disconnect, work)
    await settle()
    assert seen == [True]
    assert not client.watching


async def test_work_is_cancelled_when_the_client_leaves() -> None:
    """It has cleaned up, with time to do so, before the caller is told."""
    client, seen = Client(), list[str]()

    async def work() -> None:
        try:
            client.leaves.set()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await settle()
            seen.append("cleaned up")

    with anyio.fail_after(60), pytest.raises(ClientDisconnectedError):
        await run_while_connected(client.wait_for_disconnect, work)
    assert seen == ["cleaned up"]
    await settle()  # the caller itself is not cancelled


async def test_work_that_is_finished_is_finished() -> None:
    """Also if the client leaves before it returns, and even if it was told to stop."""
    client, seen = Client(), list[str]()

    async def work() -> None:
        await settle()
        client.leaves.set()
        with contextlib.suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep_forever()
        seen.append("finished")

    await run_while_connected(client.wait_for_disconnect, work)
    await settle()
    assert seen == ["finished"]


@pytest.mark.parametrize("error", [ValueError("wrong"), ClientDisconnectedError(), OSError()])
async def test_what_the_work_raises_is_raised(error: Exception) -> None:
    """The very exception, in no group."""
    client = Client()

    async def work() -> None:
        await settle()
        raise error

    with pytest.raises(type(error)) as caught:
        await run_while_connected(client.wait_for_disconnect, work)
    assert caught.value is error
    await settle()
    assert not client.watching


async def test_what_the_work_raises_counts_more_than_a_client_that_left() -> None:
    """Work that fails while it is cancelled has failed."""
    client = Client()

    async def work() -> None:
        client.leaves.set()
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("while cleaning up")

    with pytest.raises(ValueError, match="while cleaning up"):
        await run_while_connected(client.wait_for_disconnect, work)


async def test_cancellation_from_outside_passes_through() -> None:
    """It is not taken for a client that left."""
    client, seen = Client(), list[str]()

    async def call(work: Callable[[], Awaitable[None]]) -> None:
        try:
            await run_while_connected(client.wait_for_disconnect, work)
        except ClientDisconnectedError:
            seen.append("disconnected")
        seen.append("returned")

    with anyio.fail_after(60), anyio.move_on_after(0.01) as scope:
        await call(anyio.sleep_forever)
    assert scope.cancelled_caught
    await settle()
    assert seen == []
    assert not client.watching


async def test_the_caller_goes_on_as_if_nothing_was_cancelled() -> None:
    """Whatever became of the work: what the caller does next can wait, and be given a time limit."""
    client = Client()
    client.leaves.set()

    async def fail() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("while cleaning up")

    for work, error in ((anyio.sleep_forever, ClientDisconnectedError), (fail, ValueError)):
        with pytest.raises(error):
            await run_while_connected(client.wait_for_disconnect, work)
        with anyio.move_on_after(0.01) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
    if on_asyncio():
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


async def test_somebody_else_who_cancels_counts_more_than_a_client_that_left() -> None:
    """Both at the same moment: the work is cancelled, and so is its caller."""
    client, seen = Client(), list[str]()

    async def call() -> None:
        async def work() -> None:
            try:
                client.leaves.set()
                await anyio.sleep_forever()
            finally:
                scope.cancel()

        try:
            await run_while_connected(client.wait_for_disconnect, work)
        except ClientDisconnectedError:
            seen.append("disconnected")
        await anyio.lowlevel.checkpoint()
        seen.append("went on")

    with anyio.fail_after(60), anyio.CancelScope() as scope:
        await call()
    assert "went on" not in seen


async def test_work_that_is_short_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """On asyncio, where watching costs as much as the work; what takes longer is watched from then on."""
    monkeypatch.setattr(tasks, "GRACE", 0.05)
    client, seen = Client(), list[bool]()

    async def work() -> None:
        await settle()
        seen.append(client.watching)

    await run_while_connected(client.wait_for_disconnect, work)
    assert seen == [not on_asyncio()]
    client.leaves.set()
    with anyio.fail_after(60), pytest.raises(ClientDisconnectedError):
        await run_while_connected(client.wait_for_disconnect, anyio.sleep_forever)


async def test_background_work_outlives_the_one_who_started_it() -> None:
    """Even one that is cancelled right away."""
    go, done = anyio.Event(), anyio.Event()

    async def work() -> None:
        await go.wait()
        done.set()

    async with anyio.create_task_group() as group:
        run_in_background(work)
        group.cancel_scope.cancel()
        await anyio.lowlevel.checkpoint()
    go.set()
    with anyio.fail_after(60):
        await done.wait()
