"""The processes that are measured, and the backend behind them: started, waited for, and stopped.

Everything is on: token, rate limit (with a limit that is never reached), metrics, both signatures, and a log line for
each request, at level info into a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

from . import procfs
from .payloads import MODEL, TOKEN

__all__ = ["Backend", "Contender", "Kind", "Lab", "free_port", "open_lab", "running_process"]

Kind = Literal["teesign", "null", "httpcore", "reference"]

START_TIMEOUT: Final = 60.0
STOP_TIMEOUT: Final = 10.0
_NEVER_GIVEN_AWAY: Final = range(10_000, 32_768)
"""Ports below those that Linux gives to whoever asks for any (`net.ipv4.ip_local_port_range`)."""
_SERVE: Final = [sys.executable, "-m", "benchmarks.serve"]
_COMMANDS: Final[Mapping[Kind, list[str]]] = {
    "teesign": [sys.executable, "-m", "teesign_asgi", "serve"],
    "null": [*_SERVE, "null"],
    "httpcore": [*_SERVE, "httpcore"],
    "reference": [*_SERVE, "reference"],
}


@dataclass(frozen=True)
class Contender:
    """A server that is being measured.

    Attributes:
        kind: which one.
        port: where it listens on 127.0.0.1.
        pid: its first process.
    """

    kind: str
    port: int
    pid: int

    def cpu_times(self) -> procfs.CpuTimes:
        """Return the CPU time of its threads so far."""
        return procfs.cpu_times(self.pid)

    def memory(self, field: str) -> int:
        """Return `VmRSS` or `VmHWM` of its processes, bytes."""
        return procfs.memory(self.pid, field)

    def reset_peak(self) -> None:
        """Have the peak start again."""
        procfs.reset_peak(self.pid)


class Backend(Contender):
    """The backend, which says how many connections it has and how many of them wait for an answer."""

    def connections(self) -> int:
        """Return how many connections it has, without the one that asks."""
        return self._control("/stats")["connections"] - 1

    def held(self) -> int:
        """Return how many requests wait to be answered."""
        return self._control("/stats")["held"]

    def release(self) -> None:
        """Have them answered."""
        self._control("/release")

    def _control(self, path: str) -> dict[str, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=STOP_TIMEOUT) as answer:
            found: dict[str, int] = json.load(answer)
        return found


class Lab:
    """A backend, and whatever is started before it; `open_lab` makes one and clears it away."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack: Final = stack
        self._folder: Final = folder
        self._contenders: Final[dict[Kind, Contender]] = {}
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.backend", str(port)]
        process = self._stack.enter_context(running_process(command, port, os.environ, self._folder / "backend.log"))
        self.backend: Final = Backend("backend", port, process.pid)

    def contender(self, kind: Kind) -> Contender:
        """Return a contender that runs until the lab is cleared away."""
        if kind not in self._contenders:
            self._contenders[kind] = self._stack.enter_context(self.running(kind))
        return self._contenders[kind]

    @contextmanager
    def running(self, kind: Kind) -> Iterator[Contender]:
        """Run a contender of its own while the block runs."""
        port = free_port()
        command = [*_COMMANDS[kind], *([] if kind == "teesign" else [str(port)])]
        environment = {**os.environ, **self.environment(port)}
        with running_process(command, port, environment, self._folder / f"{kind}-{port}.log") as process:
            yield Contender(kind, port, process.pid)

    def environment(self, port: int) -> dict[str, str]:
        """Return the settings that all contenders run with."""
        return {
            "MODEL_NAME": MODEL,
            "TOKEN": TOKEN,
            "DEV": "1",
            "VLLM_BASE_URL": f"http://127.0.0.1:{self.backend.port}",
            "VLLM_PROXY_MAX_KEEPALIVE": "2000",
            "RATE_LIMIT_PER_SECOND": "1000000",
            "RATE_LIMIT_BURST_SIZE": "1000000",
            "LISTEN_HOST": "127.0.0.1",
            "LISTEN_PORT": str(port),
            "LOG_LEVEL": "info",
            "DRAIN_LINGER": "0",  # nobody will ask for the last signature
        }


@contextmanager
def open_lab() -> Iterator[Lab]:
    """Run a backend, and stop it and all that were started when the block ends."""
    with TemporaryDirectory(prefix="benchmark-") as folder, ExitStack() as stack:
        yield Lab(stack, Path(folder))


@contextmanager
def running_process(
    command: list[str], port: int, environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server while the block runs: started, waited for until it listens, and stopped."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)  # noqa: S603 - our own
    try:
        _wait_for_port(process, port, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            for pid in reversed(procfs.processes(process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            process.wait(STOP_TIMEOUT)


def _wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!r} does not listen:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.005)
        else:
            return


def free_port() -> int:
    """Return a port on which nothing listens, for whoever opens it later.

    The kernel's choice would be given to the next who asks for any port, perhaps another process of tests, before the
    server that is meant to have it is up. So it is drawn from below those that the kernel gives away.
    """
    while True:
        port = secrets.choice(_NEVER_GIVEN_AWAY)  # not by `random`, which hypothesis seeds
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
