"""A real engine, `teesign serve` before it, and what to ask: for the tests that need the engine's packages."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
from fake_agent import running_agent
from far_end import GenuineAgent
from openai.types.chat import ChatCompletionMessageParam
from servers import free_port

__all__ = ["CHAT", "TOKEN", "attested_server", "running_engine", "running_server"]

TOKEN = "engine-test-token"
CHAT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "say something noisy"}]


@contextmanager
def running_engine(directory: Path) -> Iterator[str]:
    """Run a llama.cpp server, with its model in a directory, and give its address."""
    port = free_port()
    program = Path(__file__).with_name("tiny_engine.py")
    with subprocess.Popen(
        [sys.executable, str(program), str(port), str(directory / "tiny.gguf")],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_for(f"{url}/health", process)
            yield url
        finally:
            process.kill()


COMMAND = ("-m", "teesign_asgi", "serve")
AGENT_ELSEWHERE = """
import sys
from teesign.sources import dstack
from teesign_asgi.__main__ import main
dstack.SOCKET_PATHS = (sys.argv.pop(1),)
main()
"""
"""The same command, once it is told where the guest agent's socket is: where it looks is for root to write to."""


@contextmanager
def running_server(engine: str, command: Sequence[str] = COMMAND, **settings: str) -> Iterator[str]:
    """Run `teesign serve` in front of an engine, with these settings besides, and give its address."""
    port = free_port()
    environment = {
        **os.environ,
        "MODEL_NAME": "tiny",
        "TOKEN": TOKEN,
        "DEV": "1",
        "VLLM_BASE_URL": engine,
        "LISTEN_HOST": "127.0.0.1",
        "LISTEN_PORT": str(port),
        **settings,
    }
    with subprocess.Popen([sys.executable, *command], env=environment) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_for(f"{url}/version", process)
            yield url
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


@contextmanager
def attested_server(engine: str) -> Iterator[str]:
    """Run `teesign serve` as in production, and give its address.

    Keys and quotes come from the guest agent's socket, and evidence from a worker. What they give verifies with
    `far_end.trust`.
    """
    with TemporaryDirectory(prefix="tee", dir="/tmp") as directory:
        path = Path(directory) / "dstack.sock"
        worker = (sys.executable, str(Path(__file__).with_name("fake_worker.py")), "asks-agent", str(path))
        settings = {"DEV": "0", "GPU_EVIDENCE_COMMAND": shlex.join(worker)}
        command = ("-c", AGENT_ELSEWHERE, str(path), "serve")
        with running_agent(path, GenuineAgent), running_server(engine, command, **settings) as url:
            yield url


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            if httpx2.get(url).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        assert process.poll() is None, "the process ended before it was ready"
        assert time.monotonic() < deadline, "the process is not ready"
        time.sleep(0.02)
