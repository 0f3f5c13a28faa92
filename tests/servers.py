"""Real servers on real sockets, each in a thread of this process, and the proxy behind them.

The servers get a socket that listens already, so a client can connect at once and waits in its backlog until the server
accepts: nothing has to be polled. Granian opens its own socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, cast

import hypercorn.asyncio
import hypercorn.config
import hypercorn.trio
import trio
import uvicorn
from backend import Backend
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.embed import Server as Granian
from wire import Client

from benchmarks.contenders import free_port
from teesign.testing import fixed_pair
from teesign_asgi import App, Settings
from teesign_asgi.types import ASGIApp

__all__ = ["ALL_KINDS", "MAIN_KINDS", "SECOND_TOKEN", "TOKEN", "Kind", "Stack", "free_port", "serve", "stack"]

Kind = Literal["granian", "uvicorn", "uvicorn-h11", "hypercorn", "hypercorn-trio"]

ALL_KINDS: tuple[Kind, ...] = ("granian", "uvicorn", "uvicorn-h11", "hypercorn", "hypercorn-trio")
MAIN_KINDS: tuple[Kind, ...] = (
    ALL_KINDS if os.environ.get("TEESIGN_TEST_SERVERS") == "all" else ("granian", "uvicorn", "hypercorn-trio")
)
"""Both servers that are meant for asyncio, and trio; all of them where that is asked for."""

TOKEN, SECOND_TOKEN = "good-token", "second-token"
STOP_TIMEOUT = 30.0
_NO_HANDLERS: dict[str, Any] = {"loggers": {"_granian": {"handlers": []}, "granian.access": {"handlers": []}}}

Run = Callable[[ASGIApp, socket.socket, "Control"], None]


class Control:
    """How the main thread tells a server to stop."""

    def __init__(self) -> None:
        self.stop: Callable[[], None] | None = None
        self.ready = threading.Event()
        self.failure: BaseException | None = None

    def can_stop(self, stop: Callable[[], None]) -> None:
        """Say how, from the server's thread."""
        self.stop = stop
        self.ready.set()


def _run_uvicorn(
    app: ASGIApp, listener: socket.socket, control: Control, parser: Literal["httptools", "h11"] = "httptools"
) -> None:
    config = uvicorn.Config(
        cast(Any, app),
        log_config=None,
        http=parser,  # it chooses httptools where that is installed, and teesign brings it
        ws="none",
        loop="auto",  # uvloop where it is installed, as in `nox -s uvloop`
        proxy_headers=False,  # it would put X-Forwarded-For in the place of the peer's address
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    control.can_stop(lambda: setattr(server, "should_exit", True))
    server.run(sockets=[listener])


def _hypercorn_config(listener: socket.socket) -> hypercorn.config.Config:
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listener.detach()}"]  # it closes what it is given
    config.errorlog = config.accesslog = None
    config.graceful_timeout = 1.0
    return config


def _run_hypercorn(app: ASGIApp, listener: socket.socket, control: Control) -> None:
    async def main() -> None:
        stopped, loop = asyncio.Event(), asyncio.get_running_loop()
        control.can_stop(lambda: cast(None, loop.call_soon_threadsafe(stopped.set)))
        await hypercorn.asyncio.serve(
            cast(Any, app), _hypercorn_config(listener), shutdown_trigger=stopped.wait, mode="asgi"
        )

    asyncio.run(main())


def _run_hypercorn_on_trio(app: ASGIApp, listener: socket.socket, control: Control) -> None:
    async def main() -> None:
        stopped, token = trio.Event(), trio.lowlevel.current_trio_token()
        control.can_stop(lambda: token.run_sync_soon(stopped.set))
        await hypercorn.trio.serve(
            cast(Any, app), _hypercorn_config(listener), shutdown_trigger=stopped.wait, mode="asgi"
        )

    trio.run(main)


def _run_granian(app: ASGIApp, listener: socket.socket, control: Control) -> None:
    port = listener.getsockname()[1]
    listener.close()

    async def main() -> None:
        server = Granian(
            app,
            port=port,
            interface=Interfaces.ASGI,
            websockets=False,
            log_level=LogLevels.critical,
            log_dictconfig=_NO_HANDLERS,
        )
        loop = asyncio.get_running_loop()
        control.can_stop(lambda: cast(None, loop.call_soon_threadsafe(server.stop)))
        await server.serve()

    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        runner.run(main())


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that granian chooses when it runs by itself: uvloop where it is installed."""
    module = import_module("uvloop") if find_spec("uvloop") else asyncio
    return cast(asyncio.AbstractEventLoop, module.new_event_loop())


_RUN: Mapping[Kind, Run] = {
    "granian": _run_granian,
    "uvicorn": _run_uvicorn,
    "uvicorn-h11": partial(_run_uvicorn, parser="h11"),
    "hypercorn": _run_hypercorn,
    "hypercorn-trio": _run_hypercorn_on_trio,
}


@contextmanager
def serve(app: ASGIApp, kind: Kind, *, port: int = 0) -> Iterator[int]:
    """Run an app under a server while the block runs, and give its port on 127.0.0.1: any free one by default."""
    # With its protocol named, since asyncio turns off the delay of small packets only where it is.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port or (free_port() if kind == "granian" else 0)))
    listener.listen(512)
    port = listener.getsockname()[1]
    control = Control()

    def run() -> None:
        try:
            _RUN[kind](app, listener, control)
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            control.failure = error
        finally:
            control.ready.set()

    thread = threading.Thread(target=run, name=kind, daemon=True)
    thread.start()
    try:
        control.ready.wait(STOP_TIMEOUT)
        if kind == "granian":
            _wait_for_port(port)
        yield port
    finally:
        if control.stop is not None:
            with contextlib.suppress(RuntimeError, trio.RunFinishedError):  # it has ended already
                control.stop()
        thread.join(STOP_TIMEOUT)
        listener.close()
    assert not thread.is_alive(), f"{kind} does not stop"
    if control.failure is not None:
        raise control.failure


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionError:  # refused, or reset within its start
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.005)
        else:
            return


@dataclass(frozen=True)
class Stack:
    """A client, the proxy under a server, and a scripted backend.

    Attributes:
        app: the proxy's app.
        backend: what it stands before.
        client: talks to it with a good token.
        kind: the server.
    """

    app: App
    backend: Backend
    client: Client
    kind: Kind


def settings_for(backend_url: str, **changes: Any) -> Settings:
    """Return settings for tests: development mode, small limits on bodies, none on the rate."""
    values: dict[str, Any] = {
        "model_name": "test/model",
        "tokens": (TOKEN, SECOND_TOKEN),
        "dev": True,
        "backend_url": backend_url,
        "max_request_bytes": 2_000,
        "max_image_request_bytes": 3_000,
        "max_audio_request_bytes": 4_000,
        "rate_limit_per_second": 1_000_000,
        "rate_limit_burst": 1_000_000,
        **changes,
    }
    return Settings(**values)


@contextmanager
def stack(kind: Kind = "uvicorn", *, parts: Mapping[str, Any] | None = None, **changes: Any) -> Iterator[Stack]:
    """Run a proxy before a scripted backend.

    Args:
        kind: the server.
        parts: what is passed to `App` besides the settings.
        changes: settings that differ from those of `settings_for`.
    """
    with Backend() as backend:
        app = App(settings_for(backend.url, **changes), **{"pair": fixed_pair(), **(parts or {})})
        with serve(app, kind) as port:
            yield Stack(app, backend, Client(port, TOKEN), kind)
