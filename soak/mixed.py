"""Mixed load and faults: some tens of clients that each do one thing of `ACTS` after the other, and check what came.

After each act holds what must hold after every fault: an answer is signed if and only if it was whole, the signature is
over the bytes that the client read, an error holds nothing of the backend's, and the next request works. At the end,
descriptors and the backend's connections are back where they were, memory has not grown, and the log is clean.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .backend import CANARY, Wish, events_of, json_of
from .client import CHAT, UPLOAD, Answer, connect, get, head, post, wished
from .curves import sampled
from .ledger import Ledger, Signatures
from .stack import Stack, running_stack

__all__ = ["run_mixed"]

CLIENTS: Final = 24
SETTLE: Final = 5.0
GROWTH: Final = 24.0
"""How many MiB the memory curve may rise from its second quarter to its last: the caches fill up in the first."""

BODY_LIMIT: Final = 1_000_000

TOLD_BY: Final = 5.0
"""Seconds after which the backend must know that a client has left, on a machine that these clients keep busy."""


@dataclass
class Run:
    """What the acts share."""

    stack: Stack
    ledger: Ledger
    signatures: Signatures
    random: random.Random
    left: dict[int, float] = field(default_factory=dict)  # when each client that left did so, by the number of its wish
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def ask(self, wish: Wish) -> tuple[Answer, bytes]:
        """Send a chat that wishes for an answer; return the answer, and the request's body."""
        body = wished(wish)
        async with connect(self.stack.port) as connection:
            return await connection.ask(post(CHAT, body)), body

    def wish(self, kind: str, *, events: int = 0) -> Wish:
        """Return a wish with a number of its own; its answer's size and pace are random."""
        rate = self.random.choice([0, 50, 200]) if events else 0
        return Wish(next(self.numbers), kind, events=events, rate=rate, size=self.random.choice([0, 10, 1_000, 50_000]))


async def _json(run: Run) -> None:
    wish = run.wish("json")
    answer, request = await run.ask(wish)
    run.ledger.check(bytes(answer.body) == json_of(wish), f"a JSON answer differs ({answer.status})")
    await run.signatures.check(answer, request, f"answer-{wish.number}")


async def _stream(run: Run) -> None:
    wish = run.wish("stream", events=run.random.choice([1, 20, 100]))
    answer, request = await run.ask(wish)
    run.ledger.check(bytes(answer.body) == b"".join(events_of(wish)), f"a stream differs ({answer.status})")
    await run.signatures.check(answer, request, f"stream-{wish.number}")


async def _upload(run: Run) -> None:
    content = run.random.randbytes(run.random.choice([10, 100_000, 3_000_000]))
    body = b"--b\r\ncontent-disposition: form-data; name=file; filename=x\r\n\r\n" + content + b"\r\n--b--\r\n"
    async with connect(run.stack.port) as connection:
        answer = await connection.ask(post(UPLOAD, body, "multipart/form-data; boundary=b"))
    run.ledger.check(answer.json()["id"] == f"received-{len(body)}", "an upload did not arrive whole")
    await run.signatures.check(answer, body)


async def _extra(run: Run) -> None:
    wish = run.wish("extra")
    answer, request = await run.ask(wish)
    run.ledger.check(bytes(answer.body) == json_of(wish), "an answer with bytes behind it differs")
    await run.signatures.check(answer, request)


async def _no_terminator(run: Run) -> None:
    wish = run.wish("no-terminator", events=20)
    answer, _ = await run.ask(wish)
    run.ledger.check(answer.whole, "a stream without a terminator was broken off")
    run.ledger.check(bytes(answer.body) == b"".join(events_of(wish)[:-1]), "a stream without a terminator differs")
    await run.signatures.check_unsigned(answer)


async def _broken_stream(run: Run) -> None:
    wish = run.wish(run.random.choice(["reset", "ended"]), events=20)
    answer, _ = await run.ask(wish)
    run.ledger.check(not answer.whole, "a stream that broke off was ended as if whole")
    run.ledger.check(b"".join(events_of(wish)).startswith(bytes(answer.body)), "a broken stream differs")
    await run.signatures.check_unsigned(answer)


async def _broken_json(run: Run) -> None:
    answer, _ = await run.ask(run.wish(run.random.choice(["short", "garbage"])))
    _check_error(run, answer, 500)


async def _backend_error(run: Run) -> None:
    answer, _ = await run.ask(run.wish("error"))
    run.ledger.check(answer.status == 400 and b"BadRequestError" in answer.body, "an error was not relayed")
    await run.signatures.check_unsigned(answer)


async def _leave(run: Run) -> None:
    wish = Wish(next(run.numbers), "stream", events=2_000, rate=50)
    if run.random.random() < 0.5:
        wish = Wish(wish.number, "silent")
    async with connect(run.stack.port) as connection:
        answer = connection.begin(post(CHAT, wished(wish)))
        await asyncio.sleep(0.2 + run.random.random())
    run.left[wish.number] = time.monotonic()
    await run.signatures.check_unsigned(answer)


async def _bad_request(run: Run) -> None:
    body, status = run.random.choice(
        [(b'{"a":', 400), (b"[" * 100_000, 400), (CANARY.encode(), 400), (b"{}" + b" " * BODY_LIMIT, 413)]
    )
    async with connect(run.stack.port) as connection:
        _check_error(run, await connection.ask(post(CHAT, body)), status)


async def _stranger(run: Run) -> None:
    async with connect(run.stack.port) as connection:
        _check_error(run, await connection.ask(head("POST", CHAT, "Content-Length: 0", token=CANARY)), 401)


async def _unknown(run: Run) -> None:
    async with connect(run.stack.port) as connection:
        for _ in range(20):
            answer = await connection.ask(get(f"/v1/signature/sig-{run.random.randbytes(16).hex()}"))
            _check_error(run, answer, 404)


async def _attestation(run: Run) -> None:
    nonce = run.random.randbytes(32).hex()
    async with connect(run.stack.port) as connection:
        answer = await connection.ask(get(f"/v1/attestation/report?nonce={nonce}"))
    if answer.status != 503:  # too many wait for the GPU
        run.ledger.check(answer.json()["request_nonce"] == nonce, "a report is over another nonce")


def _check_error(run: Run, answer: Answer, status: int) -> None:
    run.ledger.check(answer.status == status, f"{answer.status} instead of {status}")
    run.ledger.check(set(answer.json()) == {"error"}, "an error has another form")
    run.ledger.check(CANARY.encode() not in answer.body, "an error quotes")


ACTS: Final[dict[str, tuple[int, Callable[[Run], Awaitable[None]]]]] = {
    "JSON answers": (20, _json),
    "streams": (20, _stream),
    "uploads": (6, _upload),
    "bytes behind an answer": (4, _extra),
    "streams without a terminator": (4, _no_terminator),
    "streams that break off": (6, _broken_stream),
    "answers that are none": (6, _broken_json),
    "errors of the backend": (4, _backend_error),
    "clients that leave": (10, _leave),
    "bad requests": (6, _bad_request),
    "strangers": (3, _stranger),
    "unknown signatures": (3, _unknown),
    "attestation": (3, _attestation),
}
"""What clients do: how often, in parts of their sum, and how."""


async def run_mixed(folder: Path, minutes: float) -> Ledger:
    """Run mixed load and faults for some minutes; curves and logs go to the folder."""
    ledger = Ledger()
    settings: dict[str, Any] = {
        "CHAT_CACHE_EXPIRATION": "30",
        "SIGNATURE_CACHE_MAX_ENTRIES": "2000",
        "VLLM_PROXY_MAX_REQUEST_SIZE": str(BODY_LIMIT),
    }
    with running_stack(folder, **settings) as stack:
        run = Run(stack, ledger, Signatures(stack, ledger), random.Random(1))  # noqa: S311 - load, not secrets
        await run.signatures.attest()
        await _json(run)
        descriptors = stack.descriptors()
        async with sampled(stack) as curves:
            until = time.monotonic() + minutes * 60
            await asyncio.gather(*(_client(run, until) for _ in range(CLIENTS)))
        await _check_the_end(run, descriptors)
    ledger.at_most("memory grew by", curves.growth(), GROWTH, " MiB")
    ledger.exactly(
        "signatures that did not verify",
        ledger.counts["signatures asked for"] - ledger.counts["signatures verified"],
        0,
    )
    curves.write(folder / "mixed")
    for complaint in stack.complaints():
        ledger.check(right=False, what=complaint)
    return ledger


async def _client(run: Run, until: float) -> None:
    names = list(ACTS)
    weights = [weight for weight, _ in ACTS.values()]
    while time.monotonic() < until:
        (name,) = run.random.choices(names, weights)
        run.ledger.counts[name] += 1
        try:
            await ACTS[name][1](run)
        except (OSError, ValueError, KeyError, TypeError) as error:
            run.ledger.check(right=False, what=f"{name}: {type(error).__name__}: {error}")


async def _check_the_end(run: Run, descriptors: int) -> None:
    """Check that everything is given back, and that the backend was told of each client that left."""
    deadline = time.monotonic() + SETTLE
    while time.monotonic() < deadline:
        stats = await run.stack.backend_stats()
        if stats["connections"] == 0 and run.stack.descriptors() <= descriptors:
            break
        await asyncio.sleep(0.2)
    run.ledger.check(run.stack.descriptors() <= descriptors, "descriptors have not come back")
    run.ledger.check(stats["connections"] == 0, f"{stats['connections']} connections to the backend are still open")
    run.ledger.check(await run.stack.metric("teesign_open_streams") == 0, "responses are still open")
    run.ledger.check(not stats["answering"], "the backend still answers clients that have left")
    # A request that had not come through when its client left has no entry: there was nothing to tell.
    delays = [stats["left"][str(number)] - when for number, when in run.left.items() if str(number) in stats["left"]]
    run.ledger.seen("backends told of a client that left", len(delays))
    run.ledger.seen("of them within a second", sum(delay <= 1 for delay in delays))
    run.ledger.at_most("the last of them after", max(delays, default=0.0), TOLD_BY, " s")
