"""Any life of any connections in the pool, against a model of which one must be used next and which must be closed.

The event loop is a real one whose clock stands still and whose connections lead nowhere: the machine is the backend at
their other ends. So each step is exact, and thousands of them take no time.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Coroutine
from typing import Any, cast

import httpcore
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from teesign_asgi.connection import Connection
from teesign_asgi.pauses import LATE
from teesign_asgi.pool import Pool

IDLE_TIMEOUT = 4.0

SILENCE = 1000.0
"""Longer than all steps of a machine that only let time pass: callers time out in `be_silent`, and nowhere else."""

HOST = (b"Host", b"backend")


class Wire(asyncio.Transport):
    """Our end of a connection, as the event loop gives it to a protocol; and what the machine does at the other.

    Attributes:
        written: what was sent over it, and not yet looked at.
        is_open: until either side has closed it.
    """

    def __init__(self, loop: ManualLoop, protocol: Connection) -> None:
        super().__init__({"socket": loop.silent})
        self._loop = loop
        self._protocol = protocol
        self.written = b""
        self.is_open = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes."""
        assert self.is_open, "bytes were sent over a closed connection"
        self.written += data

    def is_closing(self) -> bool:
        """Tell whether it has been closed."""
        return not self.is_open

    def close(self) -> None:
        """Close it; everything has been sent."""
        self.lose(None)

    def abort(self) -> None:
        """Close it at once."""
        self.lose(None)

    def get_write_buffer_size(self) -> int:
        """Everything has been sent."""
        return 0

    def pause_reading(self) -> None:
        """Never asked for: no response here is that long."""
        raise NotImplementedError

    def deliver(self, data: bytes) -> None:
        """Send bytes from the backend."""
        if self.is_open and data:
            self._protocol.get_buffer(len(data))[: len(data)] = data
            self._protocol.buffer_updated(len(data))

    def end(self) -> None:
        """End the connection at the backend, in good order."""
        if self.is_open:
            self._protocol.eof_received()
            self.lose(None)

    def lose(self, error: Exception | None) -> None:
        """Lose the connection; with an error, because the backend has torn it down."""
        if self.is_open:
            self.is_open = False
            self._loop.call_soon(self._protocol.connection_lost, error)


class ManualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is moved by hand, and whose connections are wires."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.wires: list[Wire] = []
        self.silent = socket.socket(type=socket.SOCK_DGRAM)
        """What all wires pass for: nothing ever waits there, since what is sent is read at once."""

    def time(self) -> float:
        """Return the time that was set."""
        return self.now

    async def create_connection(self, *args: Any, **_: Any) -> Any:
        """Connect to the machine."""
        protocol = args[0]()
        wire = Wire(self, protocol)
        self.wires.append(wire)
        protocol.connection_made(wire)
        return wire, protocol

    def close(self) -> None:
        """Be done with it."""
        super().close()
        self.silent.close()

    def settle(self) -> None:
        """Let everything happen that can happen without more bytes or time."""

        async def turns() -> None:
            for _ in range(12):
                await asyncio.sleep(0)

        self.run_until_complete(turns())


class Request:
    """A request on its way, and the wire that it went over."""

    def __init__(self, number: int, wire: Wire, task: asyncio.Task[bytes]) -> None:
        self.text = b"answer to %d" % number
        self.wire = wire
        self.task = task
        self.rest: bytes | None = None  # of a response that has begun

    @property
    def head(self) -> bytes:
        """A head that declares the text's length."""
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.text)

    @property
    def chunks(self) -> bytes:
        """The whole response in the chunked coding."""
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
            len(self.text),
            self.text,
        )


CLEAN: dict[str, Callable[[Request], bytes]] = {
    "a length": lambda request: request.head + request.text,
    "chunks": lambda request: request.chunks,
    "an interim response": lambda request: b"HTTP/1.1 103 Hints\r\nA: b\r\n\r\n" + request.head + request.text,
}
"""Whole responses, after which the connection is kept."""

DIRTY: dict[str, Callable[[Request], bytes]] = {
    "a connection to be closed": lambda request: request.head[:-2] + b"Connection: close\r\n\r\n" + request.text,
    "a byte too many": lambda request: request.head + request.text + b"!",
    "a second response": lambda request: (request.head + request.text) * 2,
    "a byte behind the chunks": lambda request: request.chunks + b"!",
    "HTTP/1.0": lambda request: request.head.replace(b"1.1", b"1.0") + request.text,
}
"""Whole responses, after which the connection must not be used again."""

FOLLOWED = ("a byte too many", "a second response", "a byte behind the chunks")
"""Those of them that are clean until another byte comes."""

BROKEN: dict[str, Callable[[Request], bytes]] = {
    "no HTTP": lambda request: b"220 ready " + request.text + b"\r\n",
    "two lengths": lambda request: request.head[:-2] + b"Content-Length: 1\r\n\r\n" + request.text,
    "another protocol": lambda _: b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "a chunk that is longer than its size": lambda request: request.chunks.replace(b"\r\n0\r\n", b"!\r\n0\r\n"),
}
"""What is no response."""


class PoolMachine(RuleBasedStateMachine):
    """The callers of a pool and the backend behind it, and what the pool must be holding."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = ManualLoop()
        self.numbers = itertools.count(1)
        self.requests: list[Request] = []  # without an answer yet
        self.idle: list[tuple[float, Wire]] = []  # in the order in which they became so

    @initialize(max_idle=st.integers(1, 3))
    def start(self, max_idle: int) -> None:
        """Make the pool."""
        self.max_idle = max_idle
        self.pool = Pool(max_idle=max_idle, idle_timeout=IDLE_TIMEOUT)

    @rule()
    def ask(self) -> None:
        """Send a request: over the connection that became idle last, else over a new one."""
        self.expire()
        number, known = next(self.numbers), len(self.loop.wires)
        expected = self.idle.pop()[1] if self.idle else None
        task = self.loop.create_task(fetch(self.pool, number))
        self.loop.settle()
        assert len(self.loop.wires) == known + (expected is None)
        wire = expected or self.loop.wires[-1]
        assert wire.written == b"GET /%d HTTP/1.1\r\nHost: backend\r\n\r\n" % number
        wire.written = b""
        self.requests.append(Request(number, wire, task))

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), cut=st.integers(0, 200))
    def begin_an_answer(self, data: st.DataObject, cut: int) -> None:
        """Send the beginning of a good answer."""
        request = self.draw_request(data)
        if request.rest is None:
            whole = CLEAN[data.draw(st.sampled_from(sorted(CLEAN)))](request)
            cut %= len(whole)
            request.wire.deliver(whole[:cut])
            request.rest = whole[cut:]
            self.loop.settle()
            assert not request.task.done()

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), how=st.sampled_from([*CLEAN, *DIRTY]), bytewise=st.booleans())
    def answer(self, data: st.DataObject, how: str, *, bytewise: bool) -> None:
        """Send an answer, or the rest of one: its reader has it, and the connection is kept if that is safe."""
        request = self.draw_request(data)
        keeps = request.rest is not None or how in CLEAN
        answer = request.rest if request.rest is not None else {**CLEAN, **DIRTY}[how](request)
        for piece in [answer[i : i + 1] for i in range(len(answer))] if bytewise else [answer]:
            request.wire.deliver(piece)
            if bytewise:
                self.loop.settle()
        self.loop.settle()
        assert self.over(request).result() == request.text
        if keeps or (bytewise and how in FOLLOWED):
            self.idle.append((self.loop.now, request.wire))
            del self.idle[: -self.max_idle]
        if keeps:
            assert request.wire.is_open
        elif self.idle and self.idle[-1][1] is request.wire:
            self.idle.pop()  # it took the oldest one's place for as long as nothing had followed

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), how=st.sampled_from([*BROKEN]))
    def break_an_answer(self, data: st.DataObject, how: str) -> None:
        """Send something else, or end the connection within an answer: its reader learns of it, the connection goes."""
        request = self.draw_request(data)
        if request.rest is None:
            request.wire.deliver(BROKEN[how](request))
        else:
            request.wire.end()
        self.loop.settle()
        assert isinstance(self.over(request).exception(), httpcore.RemoteProtocolError)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        """Tear a connection down within a request."""
        request = self.draw_request(data)
        request.wire.lose(ConnectionResetError())
        self.loop.settle()
        assert isinstance(self.over(request).exception(), httpcore.NetworkError | httpcore.RemoteProtocolError)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """Cancel a request: what is still to come of its answer must not meet the next one."""
        request = self.draw_request(data)
        request.task.cancel()
        self.loop.settle()
        assert self.over(request).cancelled()

    @precondition(lambda self: self.idle)
    @rule(data=st.data(), how=st.sampled_from(["bytes", "end", "reset"]))
    def disturb_an_idle_connection(self, data: st.DataObject, how: str) -> None:
        """Send what nobody asked for, or end it."""
        place = data.draw(st.integers(0, len(self.idle) - 1))
        _, wire = self.idle.pop(place)
        if how == "bytes":
            wire.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nfor")
        elif how == "end":
            wire.end()
        else:
            wire.lose(ConnectionResetError())
        self.loop.settle()
        assert not wire.is_open

    @rule(seconds=st.sampled_from([0.5, 2.0, IDLE_TIMEOUT]), runs=st.booleans())
    def advance(self, seconds: float, *, runs: bool) -> None:
        """Let time pass; or let it have passed while this process did not run."""
        self.loop.now += seconds
        if runs:
            self.loop.settle()
            self.expire()

    @precondition(lambda self: self.requests)
    @rule()
    def be_silent(self) -> None:
        """Say nothing for as long as callers wait for a byte, and for as long as a late timer is waited for."""
        for seconds in (SILENCE, LATE):
            self.loop.now += seconds
            self.loop.settle()
        self.expire()
        for request in list(self.requests):
            assert isinstance(self.over(request).exception(), httpcore.ReadTimeout)

    @invariant()
    def exactly_the_right_connections_are_open(self) -> None:
        """Those in use and those kept; no byte has gone over one that nobody asked to use."""
        kept = [wire for since, wire in self.idle if since + IDLE_TIMEOUT > self.loop.now]
        in_use = [request.wire for request in self.requests]
        is_open = {wire for wire in self.loop.wires if wire.is_open}
        assert {*kept, *in_use} <= is_open <= {*(wire for _, wire in self.idle), *in_use}
        assert len(set(in_use)) == len(in_use)
        assert not any(wire.written for wire in self.loop.wires)
        assert len(self.idle) <= getattr(self, "max_idle", 0)
        if self.loop.wires:
            idle = len(is_open) - len(in_use)
            assert repr(self.pool) == f"Pool({len(is_open)} connections, {idle} of them idle)"

    def teardown(self) -> None:
        """Close the pool: every connection goes, every caller is told, no task is left."""

        async def close() -> set[asyncio.Task[Any]]:
            await self.pool.aclose()
            await asyncio.gather(*(request.task for request in self.requests), return_exceptions=True)
            return asyncio.all_tasks() - {cast(asyncio.Task[Any], asyncio.current_task())}

        try:
            if hasattr(self, "pool"):
                assert self.loop.run_until_complete(close()) == set()
            assert not any(wire.is_open for wire in self.loop.wires)
            assert all(request.task.exception() is not None for request in self.requests)
        finally:
            self.loop.close()

    def draw_request(self, data: st.DataObject) -> Request:
        """Choose one that waits for its answer."""
        return data.draw(st.sampled_from(self.requests))

    def over(self, request: Request) -> asyncio.Task[bytes]:
        """Check that a request is over, and forget it; its connection has been closed unless it is kept."""
        self.requests.remove(request)
        assert request.task.done()
        return request.task

    def expire(self) -> None:
        """Forget the connections that have been idle too long."""
        self.idle = [(since, wire) for since, wire in self.idle if since + IDLE_TIMEOUT > self.loop.now]


def fetch(pool: Pool, number: int) -> Coroutine[Any, Any, bytes]:
    """Return the coroutine that sends a request and reads its answer."""
    url = httpcore.URL(scheme=b"http", host=b"backend", port=80, target=b"/%d" % number)
    request = httpcore.Request("GET", url, headers=[HOST], extensions={"timeout": {"read": SILENCE}})

    async def work() -> bytes:
        response = await pool.handle_async_request(request)
        try:
            return b"".join([chunk async for chunk in response.aiter_stream()])
        finally:
            await response.aclose()

    return work()


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
