"""A real engine, `teesign serve` before it, and what to ask: for the tests that need the engine's packages."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from openai.types.chat import ChatCompletionMessageParam
from servers import free_port

__all__ = ["CHAT", "TOKEN", "running_engine", "running_server"]

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


@contextmanager
def running_server(engine: str, **settings: str) -> Iterator[str]:
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
    with subprocess.Popen([sys.executable, "-m", "teesign_asgi", "serve"], env=environment) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_for(f"{url}/version", process)
            yield url
            process.terminate()
            assert process.wait(10) == 0
        finally:
            process.kill()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            if httpx2.get(url).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        assert process.poll() is None, "the process ended before it was ready"
        assert time.monotonic() < deadline, "the process is not ready"
        time.sleep(0.02)
