"""The sockets of this process, found among its descriptors without touching anything else."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from teesign_asgi.sockets import own_tcp_sockets

TRY_TO_LOCK = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only their number counts


def test_tcp_sockets_are_found() -> None:
    """As duplicates, which are closed afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM):
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


def test_a_socket_of_an_unknown_kind_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it stays open, and the others are found."""

    class Odd(socket.socket):
        def __init__(self, fileno: int) -> None:
            if fileno == odd:
                raise OSError
            super().__init__(fileno=fileno)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        before, odd = _descriptors(), os.dup(listener.fileno())
        os.close(odd)  # the number that the first duplicate gets
        monkeypatch.setattr("teesign_asgi.sockets.socket.socket", Odd)
        list(own_tcp_sockets())
        assert _descriptors() == before
