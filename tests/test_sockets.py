"""The sockets of this process, found among its descriptors without touching anything else."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from teesign_asgi.sockets import keep_a_place, own_tcp_sockets

TRY_TO_LOCK = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number counts


def test_tcp_sockets_are_found() -> None:
    """As duplicates, which are closed afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM):
        keep_a_place()
        before = _descriptors()
        assert listener.getsockname() in [found.getsockname() for found in own_tcp_sockets()]
        assert all(found.type == socket.SOCK_STREAM for found in own_tcp_sockets())
        assert _descriptors() == before


def test_locks_on_files_stay(tmp_path: Path) -> None:
    """To close any descriptor of a file gives up the locks on it, so none of a file may be duplicated."""
    with (tmp_path / "file").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert list(own_tcp_sockets()) is not None
        other = subprocess.run([sys.executable, "-c", TRY_TO_LOCK, file.name], check=False, capture_output=True)
        assert b"BlockingIOError" in other.stderr


def test_sockets_are_found_where_no_descriptors_are_left() -> None:
    """It is then that connections must be ended; and none stays open for having been looked at."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as taken, socket.create_server(("127.0.0.1", 0)) as listener:
        client = taken.enter_context(socket.create_connection(listener.getsockname()))
        connection, _ = listener.accept()
        keep_a_place()
        resource.setrlimit(resource.RLIMIT_NOFILE, (connection.fileno() + 50, limits[1]))
        taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        with contextlib.suppress(OSError):
            while True:
                taken.callback(os.close, os.dup(client.fileno()))
        found = {each.getsockname() for each in own_tcp_sockets()}
        assert {listener.getsockname(), client.getsockname()} <= found
        connection.close()
        assert client.recv(1) == b""


CLOSED_BY_A_DAEMON = """
import os, socket
from teesign_asgi.sockets import keep_a_place, own_tcp_sockets
keep_a_place()
os.closerange(3, 100)
files = [os.memfd_create("a file") for _ in range(20)]
listener = socket.create_server(("127.0.0.1", 0))
before = [os.fstat(file).st_ino for file in files]
assert listener.getsockname() in [found.getsockname() for found in own_tcp_sockets()]
assert before == [os.fstat(file).st_ino for file in files]
"""


def test_a_descriptor_that_is_not_ours_any_more_is_left_alone() -> None:
    """What becomes a daemon closes every descriptor that it finds, and its files get their numbers."""
    subprocess.run([sys.executable, "-c", CLOSED_BY_A_DAEMON], check=True)


def test_a_socket_of_an_unknown_kind_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it stays open, and the others are found."""

    class Odd(socket.socket):
        def __init__(self, fileno: int) -> None:
            if os.fstat(fileno).st_ino == odd:
                raise OSError
            super().__init__(fileno=fileno)

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as other:
        keep_a_place()
        before, odd = _descriptors(), os.fstat(other.fileno()).st_ino
        monkeypatch.setattr("teesign_asgi.sockets.socket.socket", Odd)
        found = [found.getsockname() for found in own_tcp_sockets()]
        assert listener.getsockname() in found
        assert other.getsockname() not in found
        assert _descriptors() == before
