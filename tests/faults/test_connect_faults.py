"""Backends that no connection can be had to: each is an error within the time limit for connecting, unsigned."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fault_bench import CHAT
from servers import MAIN_KINDS, TOKEN, Kind, free_port, serve, settings_for
from wire import Client

from teesign.testing import fixed_pair
from teesign_asgi import App, upstream

LIMIT = 0.5
"""Seconds for connecting, in the place of ten."""

SLACK = 3.0
NOWHERE = "nowhere.invalid"


@pytest.fixture(autouse=True)
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have connections given up soon."""
    monkeypatch.setattr(upstream, "CONNECT_TIMEOUT", LIMIT)


Lookup = Callable[..., Any]
Set = Callable[[ExitStack, pytest.MonkeyPatch], str]


def _looked_up_by(lookup: Lookup, patch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        numeric = any(isinstance(each, socket.AddressInfo) and each & socket.AI_NUMERICHOST for each in arguments)
        return lookup() if name == NOWHERE and not numeric else real(host, *arguments, **options)

    patch.setattr(socket, "getaddrinfo", getaddrinfo)


def refused(_: ExitStack, __: pytest.MonkeyPatch) -> str:
    """Nobody listens."""
    return f"http://127.0.0.1:{free_port()}"


def no_such_name(_: ExitStack, patch: pytest.MonkeyPatch) -> str:
    """The name has no address."""

    def fail() -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    _looked_up_by(fail, patch)
    return f"http://{NOWHERE}:80"


def no_name_server(stack: ExitStack, patch: pytest.MonkeyPatch) -> str:
    """Looking the name up takes for ever."""
    over = threading.Event()
    stack.callback(over.set)

    def wait() -> None:
        over.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    _looked_up_by(wait, patch)
    return f"http://{NOWHERE}:80"


def backlog_full(stack: ExitStack, _: pytest.MonkeyPatch) -> str:
    """Connections are asked for and never answered: the kernel drops the packets, as a black hole would."""
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    for __ in range(3):
        client = stack.enter_context(socket.socket())
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect(listener.getsockname())
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is undone before the server stops."""
    with ExitStack() as made:
        yield made


@pytest.mark.parametrize(
    "fault", [refused, no_such_name, no_name_server, backlog_full], ids=lambda fault: fault.__name__
)
@pytest.mark.parametrize("kind", MAIN_KINDS)
def test_a_backend_that_cannot_be_reached(kind: Kind, fault: Set, stack: ExitStack, monkeypatch: Any) -> None:
    """The client is told within the limit, on every kind of route; nothing is signed, and the proxy lives."""
    with stack:
        url = fault(stack, monkeypatch)
        with serve(App(settings_for(url), pair=fixed_pair()), kind) as port, stack:
            client = Client(port, TOKEN)
            begun = time.monotonic()
            for answered in (client.post(CHAT, b"{}"), client.post("/v1/other", b"{}"), client.get("/v1/models")):
                answered.assert_error(500, "server_error", "Internal server error")
                assert answered.header("x-signature-id") is None
            assert time.monotonic() - begun < 3 * LIMIT + SLACK
            assert client.get("/version").status == 200
            assert 'teesign_backend_errors_total{kind="connect"} 3.0' in client.get("/metrics").body.decode()
