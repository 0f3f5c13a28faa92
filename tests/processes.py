"""`teesign serve` as a process, with an environment of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servers import TOKEN, free_port
from wire import Client

from teesign_asgi.settings import VARIABLES

__all__ = ["REQUIRED", "Process", "environment", "teesign_serve", "waiting_for_keys"]

REQUIRED = {"MODEL_NAME": "test/model", "TOKEN": TOKEN, "DEV": "1"}


def environment(**variables: str) -> dict[str, str]:
    """Return the variables for a process: this one's, without any of ours, and these."""
    ours = {variable.name for variable in VARIABLES.values()}
    return {**{name: value for name, value in os.environ.items() if name not in ours}, **variables}


class Process:
    """A running `teesign serve`.

    Attributes:
        pid: its process id.
        port: where it was told to listen.
        client: talks to it.
        start_time: how many seconds it took to answer, which says how busy the machine is.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._process = process
        self._log = log
        self.pid = process.pid
        self.port = port
        self.client = Client(port, TOKEN)
        self.start_time = 0.0
        self._started = time.monotonic()

    def wait_until_ready(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + 60
        while True:
            try:
                assert self.client.get("/version").status == 200
            except OSError:
                assert self._process.poll() is None, self.output()
                assert time.monotonic() < deadline, self.output()
                time.sleep(0.02)
            else:
                self.start_time = time.monotonic() - self._started
                return

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal; it alone, not its worker."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Ask it to stop."""
        self.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        return self._process.wait(30)

    def output(self) -> str:
        """Return everything it has written so far."""
        return self._log.read_text(encoding="utf-8")

    def wait_until_it_says(self, text: str) -> None:
        """Wait until it has written this: log lines come a moment after what they tell of."""
        deadline = time.monotonic() + 30
        while text not in self.output():
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.01)

    def lines(self) -> list[str]:
        """Return what it has written, line by line."""
        return self.output().splitlines()


@contextmanager
def teesign_serve(log: Path, *flags: str, output: int | None = None, **variables: str) -> Iterator[Process]:
    """Run `teesign serve` while the block runs, on a free port unless told otherwise.

    At its end nobody is waited for who might still want a signature.

    Args:
        log: the file that it writes to.
        flags: of the command line.
        output: a file descriptor that it writes to instead.
        variables: environment variables.
    """
    port = int(variables.get("LISTEN_PORT") or free_port())
    variables = {"LISTEN_PORT": str(port), "LISTEN_HOST": "127.0.0.1", "DRAIN_LINGER": "0", **REQUIRED, **variables}
    if "--listen-port" in flags:
        port = int(flags[flags.index("--listen-port") + 1])
    command = [sys.executable, "-m", "teesign_asgi", "serve", *flags]
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command,
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=file if output is None else output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            yield Process(process, port, log)
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(30)
            finally:
                process.kill()


@contextmanager
def waiting_for_keys(log: Path, *, drain_delay: str = "0") -> Iterator[Process]:
    """Run a server that asks for its keys and gets no answer."""
    with tempfile.TemporaryDirectory(prefix="tee", dir="/tmp") as directory, socket.socket(socket.AF_UNIX) as agent:
        path = f"{directory}/dstack.sock"  # short enough for a Unix socket, whatever the temporary directory is called
        agent.bind(path)
        agent.listen()
        agent.settimeout(60)
        with teesign_serve(log, DEV="0", DSTACK_SIMULATOR_ENDPOINT=path, DRAIN_DELAY=drain_delay) as process:
            asked, _ = agent.accept()
            with asked:
                yield process
