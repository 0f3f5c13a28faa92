"""The figure about a real engine: llama.cpp behind the proxy, mixed load, and clients that leave at random."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from benchmarks.contenders import free_port

from .client import CHAT, connect, get, post
from .curves import sampled
from .ledger import Ledger, Signatures
from .stack import running_stack

__all__ = ["run_engine"]

CLIENTS: Final = 8
SLOTS: Final = 4
ENGINE: Final = Path(__file__).parents[1] / "tests" / "tiny_engine.py"
START, SETTLE = 60.0, 10.0
PATIENCE: Final = 300.0
"""Seconds after which an answer that has not come counts as lost."""


async def run_engine(folder: Path, minutes: float) -> Ledger:
    """Chats and completions, streamed or not, of which a third is left: every whole one must verify."""
    ledger = Ledger()
    chance = random.Random(1)  # noqa: S311 - load, not secrets
    port = free_port()
    command = [sys.executable, str(ENGINE), str(port), str(folder / "tiny.gguf"), str(SLOTS)]
    with (
        # It ends with its standard input.
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL),  # noqa: S603, ASYNC220 - our own
        running_stack(folder, backend=port, CHAT_CACHE_EXPIRATION="30") as stack,
    ):
        signatures = Signatures(stack, ledger)
        await signatures.attest()
        await _until_ready(port)
        until = time.monotonic() + minutes * 60

        async def client() -> None:
            while time.monotonic() < until:
                path, body = _request(chance)
                async with connect(stack.port) as connection:
                    answer = connection.begin(post(path, body))
                    leaves = chance.random() < 1 / 3
                    await asyncio.wait([answer.ended], timeout=chance.random() * 0.5 if leaves else PATIENCE)
                if answer.whole:
                    ledger.counts["whole answers"] += 1
                    ledger.check(answer.status == 200, f"an answer has the status {answer.status}")
                    await signatures.check(answer, body)
                else:
                    # One that is left when its last bytes are on their way may be signed or not: nobody could tell.
                    ledger.counts["left" if leaves else "lost"] += 1

        async with sampled(stack) as curves:
            await asyncio.gather(*(client() for _ in range(CLIENTS)))
        busy = await _busy_slots(port)
        for complaint in stack.complaints():
            ledger.check(right=False, what=complaint)
    ledger.seen("whole answers", ledger.counts["whole answers"])
    ledger.exactly("of them verified", ledger.counts["signatures verified"], ledger.counts["whole answers"])
    ledger.exactly("answers lost", ledger.counts["lost"], 0)
    ledger.seen("clients that left", ledger.counts["left"])
    ledger.exactly("slots of the engine still busy at the end", busy, 0)
    ledger.at_most("memory grew by", curves.growth(), 16, " MiB")
    curves.write(folder / "engine")
    return ledger


def _request(chance: random.Random) -> tuple[str, bytes]:
    """Return a path and a body, whose answer is short or long, and streamed or not."""
    body: dict[str, Any] = {
        "model": "tiny",
        "max_tokens": chance.choice([1, 8, 64, 200]),
        "stream": chance.random() < 0.6,
    }
    if chance.random() < 0.5:
        return CHAT, json.dumps({**body, "messages": [{"role": "user", "content": "say something noisy"}]}).encode()
    return "/v1/completions", json.dumps({**body, "prompt": "once upon a time"}).encode()


async def _until_ready(port: int) -> None:
    deadline = time.monotonic() + START
    while True:
        with suppress(ConnectionRefusedError):
            async with connect(port) as connection:
                if (await connection.ask(get("/health"))).status == 200:
                    return
        assert time.monotonic() < deadline, "the engine does not start"
        await asyncio.sleep(0.1)


async def _busy_slots(port: int) -> int:
    """Return how many slots still generate, once they have had time to notice that nobody listens."""
    deadline = time.monotonic() + SETTLE
    while True:
        async with connect(port) as connection:
            slots = (await connection.ask(get("/slots"))).json()
        busy = sum(bool(slot["is_processing"]) for slot in slots)
        if not busy or time.monotonic() > deadline:
            return busy
        await asyncio.sleep(0.2)
