"""What is soaked: `teesign serve` before the backend, each a process, and what can be known of it from outside.

The proxy runs as an operator would run it: granian, one worker, log lines at level debug into a file.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.contenders import free_port, running_process
from benchmarks.procfs import memory, processes

from .backend import CANARY
from .client import TOKEN, connect, get

__all__ = ["Stack", "running_stack"]

_SETTINGS: Final = {
    "MODEL_NAME": "soak",
    "TOKEN": TOKEN,
    "DEV": "1",
    "LISTEN_HOST": "127.0.0.1",
    "LOG_LEVEL": "debug",
    "RATE_LIMIT_PER_SECOND": "1000000",
    "RATE_LIMIT_BURST_SIZE": "1000000",
    "VLLM_PROXY_MAX_KEEPALIVE": "500",
}
_OURS: Final = re.compile(rb"Traceback|never retrieved|unexpected error|never awaited|Task was destroyed")
"""What a log holds only if something went wrong that nobody had thought of."""


class Stack:
    """A proxy and its backend.

    Attributes:
        port: where the proxy listens.
        backend_port: where the backend does.
        pid: the proxy's first process.
        log: what the proxy has written.
    """

    def __init__(self, port: int, backend_port: int, pid: int, log: Path) -> None:
        self.port: Final = port
        self.backend_port: Final = backend_port
        self.pid: Final = pid
        self.log: Final = log

    def resident(self) -> int:
        """Return how much memory the proxy's processes have, bytes."""
        return memory(self.pid, "VmRSS")

    def descriptors(self) -> int:
        """Return how many files and sockets the proxy has open."""
        return sum(_descriptors(pid) for pid in processes(self.pid))

    def threads(self) -> int:
        """Return how many threads the proxy has."""
        return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in processes(self.pid))

    async def backend_stats(self) -> dict[str, Any]:
        """Return the backend's own account, which leaves out the connection that asks."""
        async with connect(self.backend_port) as connection:
            found: dict[str, Any] = (await connection.ask(get("/stats"))).json()
        return {**found, "connections": found["connections"] - 1}

    async def metric(self, name: str) -> float:
        """Return a metric of the proxy's that has no labels."""
        async with connect(self.port) as connection:
            text = bytes((await connection.ask(get("/metrics"))).body).decode()
        return sum(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))

    def complaints(self) -> list[str]:
        """Return what in the log must not be there."""
        text = self.log.read_bytes()
        found = [f"the log holds a canary {count} times"] if (count := text.count(CANARY.encode())) else []
        return [*found, *(f"the log holds {match.decode()!r}" for match in sorted(set(_OURS.findall(text))))]


def _descriptors(pid: int) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - the names alone, many times
    return 0


@contextmanager
def running_stack(folder: Path, *, backend: int = 0, **settings: str) -> Iterator[Stack]:
    """Run a proxy before a backend while the block runs.

    Args:
        folder: where the logs go.
        backend: the port of a backend that is running already; 0 for one that does as it is wished.
        settings: environment variables of the proxy besides `_SETTINGS`.
    """
    with ExitStack() as stack:
        backend_port = backend or free_port()
        if not backend:
            command = [sys.executable, "-m", "soak.backend", str(backend_port)]
            stack.enter_context(running_process(command, backend_port, os.environ, folder / "backend.log"))
        port, log = free_port(), folder / "proxy.log"
        environment: Mapping[str, str] = {
            **os.environ,
            **_SETTINGS,
            "VLLM_BASE_URL": f"http://127.0.0.1:{backend_port}",
            "LISTEN_PORT": str(port),
            **settings,
        }
        command = [sys.executable, "-m", "teesign_asgi", "serve"]
        process = stack.enter_context(running_process(command, port, environment, log))
        yield Stack(port, backend_port, process.pid, log)
