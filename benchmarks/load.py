"""The load: chats, streams and uploads from clients in this process.

Theory of operation. A `Window` is the time in which only the work of interest is done, on connections that are open and
have had a response: whoever opens one gets the CPU times of the processes under test from its beginning to its end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from .client import TIMEOUT, BenchmarkError, Client, opened
from .payloads import CHAT_PATH, QUESTION, STREAM_QUESTION, UPLOAD_PATH, Wish, request_head
from .procfs import CpuTimes, cpu_seconds, cpu_times

__all__ = ["Window", "first_events", "json_load", "stream_load", "upload"]

_SHORT, _SHORT_RATE = 10, 20.0  # events, and events a second, of a stream whose first event is waited for


class Window:
    """A stretch of time, and what CPU the watched processes used in it.

    Args:
        pids: the first process of each tree that is watched.

    Attributes:
        done: how many requests or events there were in it.
        seconds: how long it was.
        cpu: CPU seconds of each tree.
        own_cpu: CPU seconds of this process.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids: Final = pids
        self.done = 0
        self.seconds = self.own_cpu = 0.0
        self.cpu: list[float] = []
        self._before: list[CpuTimes] = []

    def open(self) -> None:
        """Begin."""
        self._before = [cpu_times(pid) for pid in self._pids]
        self.seconds, self.own_cpu = -time.perf_counter(), -time.process_time()

    def close(self, done: int) -> None:
        """End, with so much done."""
        self.seconds += time.perf_counter()
        self.own_cpu += time.process_time()
        self.cpu = [cpu_seconds(*times) for times in zip(self._before, map(cpu_times, self._pids), strict=True)]
        self.done = done


async def json_load(port: int, pids: Sequence[int], *, connections: int, requests: int, warm_up: int) -> Window:
    """Send chats one after the other on each of some connections, as fast as they are answered.

    Args:
        port: where to.
        pids: what is watched.
        connections: how many at once.
        requests: how many in all, in the window.
        warm_up: how many before it.

    Raises:
        BenchmarkError: if one is not answered with 200.
    """
    request = request_head(CHAT_PATH, len(QUESTION)) + QUESTION
    clients = await opened(port, connections)
    window = Window(pids)
    try:
        await _closed_loop(clients, request, max(warm_up, connections))
        window.open()
        await _closed_loop(clients, request, requests)
        window.close(requests)
    finally:
        for client in clients:
            client.close()
    return window


async def _closed_loop(clients: Sequence[Client], request: bytes, requests: int) -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    started = answered = 0

    def fail(error: Exception) -> None:
        if not done.done():
            done.set_exception(error)

    def start(client: Client) -> None:
        nonlocal started
        if started < requests:
            started += 1
            client.send(request, lambda: finish(client), fail)

    def finish(client: Client) -> None:
        nonlocal answered
        answered += 1
        if answered == requests and not done.done():
            done.set_result(None)
        start(client)

    for client in clients:
        start(client)
    await asyncio.wait_for(done, TIMEOUT)


async def first_events(port: int, *, streams: int, seconds: float) -> list[float]:
    """Keep streams open, each followed by another, and return how many seconds each took until its first event.

    They start at different moments, so that none waits for another's start.
    """
    target = CHAT_PATH + Wish(events=_SHORT, rate=_SHORT_RATE).query()
    request = request_head(target, len(STREAM_QUESTION), accept="text/event-stream") + STREAM_QUESTION
    clients = await opened(port, streams)
    end = time.perf_counter() + seconds
    taken: list[float] = []

    async def one_after_another(client: Client, delay: float) -> None:
        await asyncio.sleep(delay)
        while time.perf_counter() < end:
            begun = time.perf_counter()
            await client.ask(request)
            taken.append(client.first_event - begun)

    try:
        spread = _SHORT / _SHORT_RATE / streams
        await asyncio.gather(*(one_after_another(client, index * spread) for index, client in enumerate(clients)))
    finally:
        for client in clients:
            client.close()
    return taken


async def upload(port: int, size: int) -> None:
    """Send one file of this many bytes as multipart, as fast as it is taken.

    Raises:
        BenchmarkError: if the answer is not 200.
    """
    opening = b'--limit\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    closing = b"\r\n--limit--\r\n"
    piece = bytes(64 * 1024)
    head = request_head(
        UPLOAD_PATH, len(opening) + size + len(closing), content_type="multipart/form-data; boundary=limit"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head + opening)
    for start in range(0, size, len(piece)):
        writer.write(piece[: size - start])
        await writer.drain()
    writer.write(closing)
    answer = await asyncio.wait_for(reader.read(65536), TIMEOUT)
    writer.close()
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise BenchmarkError(f"The upload's answer was {answer[:200]!r}.")


async def stream_load(
    port: int,
    pids: Sequence[int],
    *,
    streams: int,
    rate: float,
    seconds: float,
    settle: float,
    look: Callable[[], None] = lambda: None,
) -> Window:
    """Hold streams open, and count the events of all of them in a window in which all of them are open.

    Args:
        port: where to.
        pids: what is watched.
        streams: how many at once.
        rate: events per second on each.
        seconds: how long the window is.
        settle: over how many seconds the streams start, so that their events are spread evenly; how long they are then
            left alone before the window, and how long they go on after it.
        look: called at the end of the window, while all are open.

    Raises:
        BenchmarkError: if a stream lacks an event.
    """
    events = int(rate * (seconds + 3 * settle))
    target = CHAT_PATH + Wish(events=events, rate=rate).query()
    request = request_head(target, len(STREAM_QUESTION), accept="text/event-stream") + STREAM_QUESTION
    clients = await opened(port, streams)
    window = Window(pids)
    try:
        asking = []
        for client in clients:
            asking.append(asyncio.create_task(client.ask(request)))
            await asyncio.sleep(settle / streams)
        await asyncio.sleep(settle)
        before = sum(client.events for client in clients)
        window.open()
        await asyncio.sleep(seconds)
        window.close(sum(client.events for client in clients) - before)
        look()
        await asyncio.gather(*asking)
    finally:
        for client in clients:
            client.close()
    if any(client.events != events for client in clients):
        raise BenchmarkError("A stream has lost events.")
    return window
