"""Figures about streams: many at once, signatures at the very end, and clients that leave."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Final

from .backend import Wish
from .client import CHAT, connect, get, post, wished
from .curves import sampled
from .ledger import Ledger, Signatures, percentile
from .stack import Stack, running_stack

__all__ = ["run_gone", "run_instant_signatures", "run_streams"]

STREAMS: Final = 400
EVENTS, RATE = 100, 50.0
"""What a stream of two seconds is."""

SETTLE: Final = 5.0
"""Seconds after which everything must be given back."""


async def run_streams(folder: Path, minutes: float) -> Ledger:
    """400 streams of 50 events a second: each of two seconds, one after the other, every one of them verified."""
    ledger = Ledger()
    seconds: list[float] = []
    with running_stack(folder, CHAT_CACHE_EXPIRATION="20", VLLM_PROXY_MAX_KEEPALIVE="1000") as stack:
        signatures = Signatures(stack, ledger)
        await signatures.attest()

        async def stream(number: int) -> None:
            body = wished(Wish(number, "stream", events=EVENTS, rate=RATE))
            async with connect(stack.port) as connection:
                answer = await connection.ask(post(CHAT, body))
            seconds.append(answer.seconds)
            ledger.check(answer.whole and answer.status == 200, f"a stream was not whole ({answer.status})")
            await signatures.check(answer, body)

        await stream(0)  # to verify for the first time takes this process 0.15 s, in which it reads no other stream
        until = time.monotonic() + minutes * 60

        async def slot(index: int) -> None:
            await asyncio.sleep(index * (EVENTS / RATE) / STREAMS)
            number = index
            while time.monotonic() < until:
                number += STREAMS
                await stream(number)

        async with sampled(stack) as curves:
            await asyncio.gather(*map(slot, range(STREAMS)))
        _note_log(ledger, stack)
    whole = EVENTS / RATE
    ledger.seen("streams", len(seconds))
    ledger.exactly("of them verified", ledger.counts["signatures verified"], len(seconds))
    ledger.seen("a 2 s stream takes, median", percentile(seconds, 50) / whole, " x")
    ledger.seen("a 2 s stream takes, p99", percentile(seconds, 99) / whole, " x")
    ledger.at_most("a 2 s stream takes, at most", max(seconds) / whole, 1.2, " x")
    ledger.at_most("memory grew by", curves.growth(), 16, " MiB")
    curves.write(folder / "streams")
    return ledger


async def run_instant_signatures(folder: Path, count: int) -> Ledger:
    """A signature asked for the instant `[DONE]` has been read, over a connection that is open already."""
    ledger = Ledger()
    numbers = iter(range(1, count + 1))
    with running_stack(folder) as stack:
        signatures = Signatures(stack, ledger)
        await signatures.attest()

        async def client() -> None:
            async with connect(stack.port) as asking, connect(stack.port) as fetching:
                for number in numbers:
                    body = wished(Wish(number, "stream", events=number % 7))
                    answer = asking.begin(post(CHAT, body))
                    async with asyncio.timeout(60):
                        await answer.done
                    found = await fetching.ask(get(f"/v1/signature/{answer.headers['x-signature-id']}"))
                    ledger.counts["found"] += found.status == 200
                    async with asyncio.timeout(60):
                        await answer.ended
                    signatures.verify(found, answer, body)

        await asyncio.gather(*(client() for _ in range(32)))
        _note_log(ledger, stack)
    ledger.exactly("signatures found at [DONE]", ledger.counts["found"], count)
    ledger.exactly("of them verified", ledger.counts["signatures verified"], count)
    return ledger


async def run_gone(folder: Path, count: int) -> Ledger:
    """Clients that leave at any moment: the backend is told within a second, and nothing stays behind."""
    ledger = Ledger()
    numbers = iter(range(1, count + 1))
    left: dict[int, float] = {}
    chance = random.Random(1)  # noqa: S311 - load, not secrets
    with running_stack(folder) as stack:
        async with connect(stack.port) as connection:
            await connection.ask(post(CHAT, wished(Wish(0))))
        await asyncio.sleep(0.5)
        descriptors = stack.descriptors()

        async def client() -> None:
            for number in numbers:
                kind = chance.choice(["silent", "stream", "raw"])
                events, size = (5_000, 100) if kind == "stream" else (0, 256 << 20)
                body = wished(Wish(number, kind, events=events, rate=chance.choice([5, 50, 500]), size=size))
                async with connect(stack.port) as connection:
                    connection.begin(post(CHAT, body), keeps=False)
                    await asyncio.sleep(0.1 + chance.random() / 2)
                left[number] = time.monotonic()

        await asyncio.gather(*(client() for _ in range(16)))
        told: dict[str, float] = {}
        async with asyncio.timeout(10):
            while len(told) < len(left) and time.monotonic() < max(left.values()) + 3:
                told = (await stack.backend_stats())["left"]
        delays = [told[str(number)] - when for number, when in left.items() if str(number) in told]
        ledger.exactly("backends told within a second", sum(delay <= 1 for delay in delays), count)
        ledger.seen("told after, median", percentile(delays, 50) * 1000, " ms")
        ledger.seen("told after, at most", max(delays, default=float("nan")) * 1000, " ms")
        ledger.exactly("responses still open", await stack.metric("teesign_open_streams"), 0)
        until = time.monotonic() + SETTLE
        while stack.descriptors() > descriptors and time.monotonic() < until:  # noqa: ASYNC110 - they are another process's
            await asyncio.sleep(0.1)
        ledger.at_most("descriptors that did not come back", max(0, stack.descriptors() - descriptors), 0)
        _note_log(ledger, stack)
    return ledger


def _note_log(ledger: Ledger, stack: Stack) -> None:
    for complaint in stack.complaints():
        ledger.check(right=False, what=complaint)
