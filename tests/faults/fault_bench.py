"""The fault bench: a proxy between a raw client and a scripted backend, and the invariants that hold after each fault.

A test opens a `case`, does what it does to either side inside of it, and reports what the client got. At its end the
invariants are checked:

    I1  signed if and only if the answer was whole
    I2  the SHA-256 of the bytes that the client read is what was signed
    I3  errors have the contract's form and hold no host, no stack and none of the backend's bytes
    I4  a backend connection that was given up is closed within a second, and none that is dirty is used again
    I5  descriptors, tasks, locks and the objects of requests are back at their baseline within five seconds
    I6  no canary in any log
    I7  the next request works

Everything runs in this process, so descriptors and objects can be counted from outside, and tasks by asking the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import trio
from backend import Backend, Call, Connection, Script, json_answer
from fault_proxy import FaultProxy
from raw_client import PATIENCE, RawResponse, Wire, connect, request_bytes
from servers import TOKEN, Kind, serve, settings_for
from support import wait_until
from wire import Client, assert_signatures, sha256, sum_of_metric

from teesign import Exchange
from teesign.testing import fixed_pair
from teesign_asgi import App
from teesign_asgi.framing import ResponseParser
from teesign_asgi.http import Reply, Request
from teesign_asgi.stalls import StallWatch
from teesign_asgi.types import Message, Receive, Scope, Send
from teesign_asgi.upstream import BackendResponse

__all__ = ["CANARY", "CHAT", "Bench", "Case", "bench", "chat_request"]


CHAT = "/v1/chat/completions"
CANARY = "canarybird4e7"
"""A word that stands for everything that must not get anywhere else."""

WITHIN = 1.0
"""Seconds in which a backend connection that was given up must be closed."""

BACK_TO_BASELINE = 5.0
"""Seconds in which everything must be as it was."""

OBJECTS = {Exchange, Request, Reply, BackendResponse, ResponseParser}
"""What lives as long as its request and not longer."""

LOGGERS_OF_THEIR_OWN = ("httpcore", "h11", "uvicorn.access")
"""What they quote at debug is silenced by `teesign serve`; test_leaks reads the output of that."""

Ending = Literal["signed", "unsigned", "broken", "error", "nothing"]
"""How a response ended for the client: whole and signed, whole but not, broken off, an error of ours, or none."""


def chat_request(*headers: bytes, body: bytes | None = None, target: str = CHAT, kept: bool = False) -> bytes:
    """Return a chat with a canary in its prompt; after it the connection may be kept, or else must not."""
    content = body if body is not None else json.dumps({"stream": True, "prompt": CANARY}).encode()
    more = headers if kept else (*headers, b"Connection: close")
    return request_bytes("POST", target, content, *more, token=TOKEN)


class _Observed:
    """The app, with the number of its loop's tasks and of the bytes it was given for whoever asks."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.received = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted() -> Message:
            message = await receive()
            self.received += len(message.get("body", b""))
            return message

        if scope["type"] == "http" and scope["path"] == "/-/tasks":
            body = str(_count_tasks()).encode()
            headers = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        else:
            await self.app(scope, counted, send)


def _count_tasks() -> int:
    """Count the event loop's tasks, but for the sweep: one for all requests, it ends a while after the last of them."""
    try:
        coroutines: list[object] = [task.get_coro() for task in asyncio.all_tasks()]
    except RuntimeError:
        coroutines, waiting = [], [trio.lowlevel.current_root_task()]
        while waiting:
            task = waiting.pop()
            if task is not None:
                coroutines.append(task.coro)
                waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return sum(getattr(coroutine, "__qualname__", "") != StallWatch._sweep.__qualname__ for coroutine in coroutines)


class _Recorder(logging.Handler):
    """Keeps what is logged, whatever its level."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def text(self) -> str:
        return "\n".join(
            f"{record.name} {record.getMessage()} {record.exc_text} {getattr(record, 'fields', '')}"
            for record in self.records
            if not record.name.startswith(LOGGERS_OF_THEIR_OWN)
        )


@dataclass
class _Baseline:
    descriptors: int
    tasks: int
    objects: Counter[str]


@dataclass
class Bench:
    """A running proxy, with everything around it.

    Attributes:
        app: the proxy's app.
        backend: answers by script.
        line: the wire between the proxy and the backend.
        port: where the proxy listens.
        kind: the server.
        client: for what needs no care.
        received: returns how many bytes of bodies the app was given so far.
    """

    app: App
    backend: Backend
    line: FaultProxy
    port: int
    kind: Kind
    client: Client
    received: Callable[[], int]
    recorder: _Recorder = field(default_factory=_Recorder)
    _kept: Wire | None = None

    def ask(self, request: bytes) -> RawResponse:
        """Return the answer to a request over a connection that is kept, so that asking changes nothing."""
        method = request.partition(b" ")[0].decode()
        for _ in range(2):
            if self._kept is not None:
                with contextlib.suppress(OSError):  # the server has closed what was idle for too long
                    self._kept.send(request)
                    response = self._kept.response(method)
                    if response.status:
                        return response
                self._kept.leave()
            self._kept = Wire(socket.create_connection(("127.0.0.1", self.port), PATIENCE))
        raise AssertionError("there is no answer")

    def close(self) -> None:
        """Leave the connection that is kept."""
        if self._kept is not None:
            self._kept.leave()

    @contextmanager
    def case(self, script: Script | None = None, *, calm: bool = True) -> Iterator[Case]:
        """Give a case whose backend does this; at its end the invariants are checked.

        Args:
            script: what the backend does; the usual answer if it is left out.
            calm: whether the proxy can be asked for a signature in the end.
        """
        self._assert_works()
        self.wait_until_idle()
        baseline = self._settled()
        self.recorder.records.clear()
        self.backend.play(script or json_answer(b'{"ok":true}'))
        case = Case(self, baseline)
        yield case
        if calm:
            case.assert_invariants()

    def signature_text(self, chat_id: str) -> str | None:
        """Return what was signed under an id, whose signatures are checked; None if nothing was."""
        answer = self.ask(request_bytes("GET", f"/v1/signature/{quote(chat_id, safe='')}", token=TOKEN))
        if answer.status == 404:
            return None
        assert answer.status == 200, answer.body
        fields = json.loads(answer.body)
        assert_signatures(fields, fields["text"])
        return str(fields["text"])

    @contextmanager
    def connect(self, **options: Any) -> Iterator[Wire]:
        """Give a connection to the proxy."""
        with connect(self.port, **options) as wire:
            yield wire

    def assert_covers(self, text: str | None, request: bytes, response: RawResponse) -> None:
        """Check that a signed text is about the bytes of this request and of this response (I2)."""
        head, _, content = request.partition(b"\r\n\r\n")
        covered = content or head.split(b" ")[1]
        assert text == f"{sha256(covered)}:{sha256(response.body)}"

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        return sum_of_metric(self.ask(request_bytes("GET", "/metrics")).body, name)

    def wait_until_idle(self) -> None:
        """Wait until the proxy is done with every response, as `Client.wait_until_idle`."""
        wait_until(lambda: self.metric("teesign_open_streams") == 0)

    def _assert_works(self, dirty: tuple[Connection, ...] = ()) -> None:
        """Check that a good request is answered and signed, over a connection that is not one of these (I7, I4)."""
        self.backend.play(json_answer(b'{"works":true}'))
        response = self.ask(chat_request(kept=True))
        assert (response.status, response.whole) == (200, True), response
        assert json.loads(response.body)["works"] is True
        own = (response.header(b"x-signature-id") or b"").decode()
        assert (self.signature_text(own) or "").endswith(f":{sha256(response.body)}")
        assert self.backend.calls[-1].connection not in dirty, "a dirty connection was used again"

    def _measure(self) -> _Baseline:
        return _Baseline(
            sum(1 for _ in Path("/proc/self/fd").iterdir()),
            int(self.ask(request_bytes("GET", "/-/tasks")).body),
            _census(),
        )

    def _settled(self) -> _Baseline:
        """Return what is there once it does not change any more."""
        before, now = None, self._measure()
        while before != now:
            time.sleep(0.01)
            before, now = now, self._measure()
        return now

    def assert_back_at(self, baseline: _Baseline) -> None:
        """Wait until everything is as it was (I5)."""
        deadline = time.monotonic() + BACK_TO_BASELINE
        pause = 0.02
        while True:
            now = self._measure()
            objects = now.objects - baseline.objects
            open_responses, at_gpu = self.metric("teesign_open_streams"), self._is_at_gpu()
            is_back = now.descriptors <= baseline.descriptors and now.tasks <= baseline.tasks and not objects
            if is_back and not open_responses and not at_gpu:
                break
            held = f"{objects}, {open_responses:.0f} open responses, at the GPU: {at_gpu}"
            assert time.monotonic() < deadline, f"{now} is not back at {baseline}: {held}"
            self._assert_works()
            gc.collect()  # what an exception refers to in a circle is no leak
            # The threads of the line and of the backend have to come to their end too, each after the other.
            time.sleep(pause)
            pause = min(2 * pause, 0.3)

    def _is_at_gpu(self) -> bool:
        attestor = self.app._attestor
        return attestor is not None and (attestor._at_gpu > 0 or attestor._gpu.locked())


def _census() -> Counter[str]:
    return Counter(type(each).__name__ for each in gc.get_objects() if type(each) in OBJECTS)


class Case:
    """One fault, and what became of it.

    Attributes:
        bench: where it happens.
        responses: what the client got, with the request that it is for and how it is meant to end.
        given_up: when the proxy had every reason to close its backend connections, on the clock `time.monotonic`.
    """

    def __init__(self, bench: Bench, baseline: _Baseline) -> None:
        self.bench = bench
        self.responses: list[tuple[bytes, RawResponse, Ending]] = []
        self.given_up: float | None = None
        self._baseline = baseline

    def exchange(self, request: bytes, ending: Ending, *, body: bytes | None = None) -> RawResponse:
        """Send a request on a connection of its own, read what comes, and say how that is meant to end.

        Args:
            request: all of it.
            ending: how the response must end.
            body: what the client must have read; of a response that breaks off, a beginning of it.
        """
        with self.bench.connect() as wire:
            wire.send(request)
            response = wire.response(request.partition(b" ")[0].decode())
        return self.report(request, response, ending, body=body)

    def report(
        self, request: bytes, response: RawResponse, ending: Ending, *, body: bytes | None = None
    ) -> RawResponse:
        """Take note of a response that the test has read, and check it as `exchange` does."""
        self.responses.append((request, response, ending))
        if body is not None:
            assert body.startswith(response.body) if ending == "broken" else response.body == body, response
        return response

    def gave_up(self) -> None:
        """Say that from now on the proxy has no use for the backend connections of this case."""
        self.given_up = time.monotonic()

    def assert_invariants(self) -> None:
        """Check I1 to I7."""
        for request, response, ending in self.responses:
            self._assert_signed_as_it_ended(request, response, ending)
        dirty = self._assert_backend_told()
        self.bench._assert_works(dirty)
        self.bench.assert_back_at(self._baseline)
        text = self.bench.recorder.text()
        assert CANARY not in text, text

    def _assert_signed_as_it_ended(self, request: bytes, response: RawResponse, ending: Ending) -> None:
        own = response.header(b"x-signature-id")
        text = None if own is None else self.bench.signature_text(own.decode())
        if ending == "signed":
            assert response.whole, response
            assert 200 <= response.status <= 299, response
            self.bench.assert_covers(text, request, response)
            return
        assert text is None, f"a response was signed that ended as {ending}"
        if ending == "nothing":
            assert (response.status, response.body) == (0, b"")
        elif ending == "error":
            self._assert_error(response)
        else:
            assert response.whole == (ending == "unsigned"), response

    def _assert_error(self, response: RawResponse) -> None:
        assert response.whole, response
        assert response.status >= 400, response
        assert response.header(b"content-type") == b"application/json"
        assert set(json.loads(response.body)) == {"error"}
        assert set(json.loads(response.body)["error"]) == {"message", "type", "param", "code"}
        shown = f"{response.headers}{response.body!r}"
        ports = (f":{self.bench.backend.port}", f":{self.bench.line.port}")
        for each in (CANARY, "Traceback", 'File "', "127.0.0.1", "localhost", *ports):
            assert each not in shown, shown

    def _assert_backend_told(self) -> tuple[Connection, ...]:
        if self.given_up is None:
            return ()
        calls: list[Call] = list(self.bench.backend.calls)
        for call in calls:
            gone = call.connection.gone
            while not call.connection.closed_here and not gone.wait(0.02):
                assert time.monotonic() - self.given_up < PATIENCE, "the proxy keeps its connection to the backend"
            assert not gone.is_set() or call.connection.gone_at - self.given_up < WITHIN
        return tuple(call.connection for call in calls)


@contextmanager
def bench(kind: Kind, **changes: Any) -> Iterator[Bench]:
    """Run a bench with these settings under this server."""
    # One idle connection to the backend at most, so that descriptors can be counted.
    changes = {"max_keepalive": 1, **changes}
    with Backend() as backend, FaultProxy(backend.port) as line:
        app = App(settings_for(line.url, **changes), pair=fixed_pair())
        observed = _Observed(app)
        with serve(observed, kind) as port:
            running = Bench(app, backend, line, port, kind, Client(port, TOKEN), lambda: observed.received)
            root, level = logging.getLogger(), logging.getLogger().level
            root.addHandler(running.recorder)
            root.setLevel(logging.DEBUG)
            gc.collect()
            gc.freeze()  # what is there now is not counted, which saves looking at it
            try:
                yield running
            finally:
                gc.unfreeze()
                running.close()
                root.removeHandler(running.recorder)
                root.setLevel(level)
