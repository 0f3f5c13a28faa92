"""What must not grow, whatever is sent: memory for expensive JSON, tables and metrics; and hostile tokens."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from fault_bench import CANARY, CHAT
from servers import TOKEN, settings_for
from support import peak_below

from teesign import Exchange
from teesign.testing import fixed_pair
from teesign_asgi import App
from teesign_asgi.bodies import check_json_object, without_empty_tool_calls
from teesign_asgi.errors import HttpError
from teesign_asgi.guards import MAX_CLIENTS, RateLimiter
from teesign_asgi.types import Message

MIB = 1 << 20


# --- JSON made to be expensive


def _object_of(value: bytes) -> bytes:
    return b'{"a":' + value + b"}"


GOOD_BOMBS: dict[str, bytes] = {
    "empty lists": _object_of(b"[" + b"[]," * (MIB // 3) + b"[]]"),
    "empty objects": _object_of(b"[" + b"{}," * (MIB // 3) + b"{}]"),
    "many keys": b"{" + b",".join(b'"%d":0' % number for number in range(100_000)) + b"}",
    "one key again and again": b"{" + b'"a":0,' * (MIB // 6) + b'"a":0}',
    "small numbers": _object_of(b"[" + b"1," * (MIB // 2) + b"1]"),
    "a number of a megabyte": _object_of(b"1" * MIB),
    "a fraction of a megabyte": _object_of(b"0." + b"1" * MIB),
    "a long exponent": _object_of(b"1e" + b"9" * 1_000),
    "escapes": _object_of(b'"' + b"\\u0041" * (MIB // 6) + b'"'),
    "tool calls": b'{"messages":[' + b'{"tool_calls":[]},' * 60_000 + b"{}]}",
    "tool calls elsewhere": b'{"x":[' + b'{"tool_calls":[]},' * 60_000 + b"{}]}",
    "messages, and one with tool calls": b'{"messages":[' + b"{}," * (MIB // 3) + b'{"tool_calls":[]}]}',
}
BAD_BOMBS: dict[str, bytes] = {
    "deep lists": _object_of(b"[" * MIB),
    "deep objects": b'{"a":' * (MIB // 5),
    "deep and closed": _object_of(b"[" * 100_000 + b"]" * 100_000),
    "two documents": b"{}" * (MIB // 2),
    "two documents, the second broken": b'{"a":1}{',
    "lone surrogates": b'{"a":"\xed\xa0\x80"}' + b" " * MIB,
    "NaN": b'{"a":[' + b"NaN," * (MIB // 4) + b"NaN]}",
    "no end": b'{"a":[' + b"1," * (MIB // 2),
}


@pytest.mark.parametrize("name", GOOD_BOMBS)
def test_a_request_that_is_expensive_to_decode(name: str) -> None:
    """It is not decoded: checking it holds next to nothing, and it passes."""
    body = GOOD_BOMBS[name]
    with peak_below(MIB):
        check_json_object(body)
        without_empty_tool_calls(body)


def test_a_request_of_halves_of_pairs() -> None:
    """To replace them, for a parser that wants whole pairs, takes copies of the body, and nothing for each half."""
    body = b'{"a":"' + rb"\ud800" * (MIB // 6) + b'"}'
    with peak_below(3 * MIB):
        check_json_object(body)


@pytest.mark.parametrize("name", BAD_BOMBS)
def test_a_request_that_is_expensive_to_refuse(name: str) -> None:
    """It is refused with 400 and a short message; what that holds depends on its size alone."""
    with peak_below(4 * MIB), pytest.raises(HttpError) as caught:
        check_json_object(BAD_BOMBS[name])
    assert caught.value.status == 400
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("name", [*GOOD_BOMBS, *BAD_BOMBS])
def test_a_response_that_is_expensive_to_decode(name: str) -> None:
    """Its id is looked for without decoding the rest; whatever it is, it is delivered and signed."""
    body = {**GOOD_BOMBS, **BAD_BOMBS}[name]
    exchange = Exchange(fixed_pair(), id_prefix="x", random=bytes, target=b"/")
    exchange.start_response(200, "application/json")
    with peak_below(3 * len(body) + MIB):
        out = exchange.receive_response(body) + exchange.end_response()
    assert out in {body, body.replace(b"{", b'{"id":"x-' + b"0" * 24 + b'",', 1)}
    assert exchange.signed is not None


# --- an app without a server, so that many requests cost little


class Caller:
    """Asks an app, and keeps the status of each answer."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.body = b""

    async def ask(self, method: str, target: str, *headers: tuple[bytes, bytes], token: str | None = TOKEN) -> int:
        """Return the status of the answer to a request without a body."""
        path, _, query = target.partition("?")
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        authorization = [(b"authorization", f"Bearer {token}".encode())] if token else []
        scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [*authorization, *headers],
            "client": ("10.0.0.1", 1),
        }
        await self.app(scope, receive, send)
        self.body = b"".join(message["body"] for message in sent[1:])
        return int(sent[0]["status"])


def run_with_app(work: Callable[[Caller], Any], loop: str, **changes: Any) -> None:
    """Run a coroutine function with a caller of an app whose backend is not there."""

    async def main() -> None:
        app = App(settings_for("http://127.0.0.1:9", **changes), pair=fixed_pair())
        await app.start()
        await work(Caller(app))
        await app.aclose()

    anyio.run(main, backend=loop)


LOOPS = pytest.mark.parametrize("loop", ["asyncio", "trio"])


@LOOPS
def test_signatures_that_are_not_there(loop: str) -> None:
    """However many are asked for, each is 404 at once, and nothing is kept of any."""
    strange = ["%00", "%ff%fe", "..", "%2e%2e", "x" * 4_000, "sig-" + "0" * 32, "%F0%9F%98%80", "a%20b", "'\"<>"]

    async def work(caller: Caller) -> None:
        async def miss(number: int) -> None:
            for name in (f"chatcmpl-{number:x}", strange[number % len(strange)]):
                assert await caller.ask("GET", f"/v1/signature/{name}") == 404

        tracemalloc.start()
        try:
            held = []
            for thousand in range(2):  # what libraries keep once and for all is there after the first
                for number in range(thousand * 1_000, (thousand + 1) * 1_000):
                    await miss(number)
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        grown = held[1] - held[0]
        assert grown < 20_000

    run_with_app(work, loop)


@LOOPS
def test_metrics_do_not_grow_with_what_clients_choose(loop: str) -> None:
    """Paths, ids, methods, tokens and addresses of all kinds leave the same lines as a few of them."""

    async def work(caller: Caller) -> None:
        async def everything(number: int) -> None:
            forwarded = (b"x-forwarded-for", b"2001:db8:%x::1" % number)
            await caller.ask("GET", f"/v1/signature/{number}", forwarded)
            await caller.ask(f"M{number}", f"/v1/chat/completions?x={number}", forwarded)
            await caller.ask("GET", f"/v1/{number}/..", forwarded)
            await caller.ask("GET", f"/v1/x{number}", forwarded, token=f"wrong{number}")
            await caller.ask("GET", "/version", (b"x-request-id", b"%d" % number))

        async def lines() -> list[str]:
            await caller.ask("GET", "/metrics")
            return [line.rpartition(" ")[0] for line in caller.body.decode().splitlines()]

        for number in range(3):
            await everything(number)
            await lines()
        before = await lines()
        for number in range(3, 300):
            await everything(number)
        assert await lines() == before
        assert len(caller.app._limiter) <= MAX_CLIENTS

    run_with_app(work, loop, trusted_proxy_hops=1)


def test_a_million_addresses() -> None:
    """No more clients are remembered than the bound, however many there are."""
    limiter = RateLimiter(per_second=1, burst=1, clock=lambda: 0.0)
    for number in range(1_000_000):
        limiter.take(f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1" if number % 100 == 0 else f"a{number}")
    assert len(limiter) == MAX_CLIENTS


TOKENS: dict[str, bytes] = {
    "empty": b"",
    "a megabyte": CANARY.encode() * 80_000,
    "not ASCII": b"\xc3\xb6\xff\xfe",
    "NULs": b"\0" * 100,
    "the good one twice": f"{TOKEN} {TOKEN}".encode(),
    "the good one's beginning": TOKEN[:-1].encode(),
}


@LOOPS
@pytest.mark.parametrize("name", TOKENS)
def test_a_token_that_is_none(loop: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is 401, never an error, and never in a log."""

    async def work(caller: Caller) -> None:
        authorization = (b"authorization", b"Bearer " + TOKENS[name])
        assert await caller.ask("POST", CHAT, authorization, token=None) == 401
        assert await caller.ask("POST", CHAT, authorization, authorization, token=None) == 401
        assert await caller.ask("POST", CHAT, authorization, token=TOKEN) == 401

    run_with_app(work, loop)
    assert CANARY not in caplog.text
