"""What the kernel is told about connections as soon as the server listens, however late that is."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from teesign_asgi import Settings
from teesign_asgi.cli.listener import NOT_SENT, bound_connections

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is done on Linux only")


class Loop:
    """An event loop of which nothing is wanted but what is called later.

    Attributes:
        later: what that is.
    """

    def __init__(self) -> None:
        self.later: list[Callable[[], object]] = []

    def call_later(self, _: float, call: Callable[..., object], *arguments: Any) -> None:
        """Note a call."""
        self.later.append(lambda: call(*arguments))

    def run_once(self) -> None:
        """Make the calls that are due by now."""
        due, self.later = self.later, []
        for call in due:
            call()


@pytest.fixture
def bound() -> Iterator[socket.socket]:
    """A socket that has a port and does not listen."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        yield made


def bound_by(loop: Loop, listener: socket.socket, taking: float) -> None:
    """Begin to look for a listener."""
    bound_connections(cast(asyncio.AbstractEventLoop, loop), listener.getsockname()[1], taking)


def test_a_server_that_listens_late(bound: socket.socket) -> None:
    """Its keys may take long; it is looked for until it is there, and then no more."""
    loop = Loop()
    bound_by(loop, bound, 2.5)
    for _ in range(2_000):
        loop.run_once()
    bound.listen()
    loop.run_once()
    assert bound.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 2_500
    assert bound.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == NOT_SENT
    assert not loop.later


@pytest.mark.parametrize("taking", ["0.1", "86400"])
def test_the_kernel_can_count_the_times_that_the_setting_takes(bound: socket.socket, taking: str) -> None:
    """The shortest and the longest, in milliseconds: neither is too much for it, or too little."""
    bound.listen()
    settings = Settings.from_mapping({"MODEL_NAME": "m", "TOKEN": "t", "CLIENT_WRITE_TIMEOUT": taking})
    bound_by(Loop(), bound, settings.client_write_timeout)
    assert bound.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == float(taking) * 1000
