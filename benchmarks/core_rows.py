"""Rows about the core alone: signing, hashing, and the cache. They need no server."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from coincurve import PrivateKey
from Crypto.Hash import keccak
from nacl.bindings import crypto_sign, crypto_sign_seed_keypair

from teesign import Exchange, SigningPair, signed_text
from teesign.testing import ECDSA_SECRET, ED25519_SEED

from .contenders import Lab
from .payloads import DONE, EVENT
from .plan import Plan
from .report import Comparison

__all__ = ["exchange", "signatures"]

_CHUNK: Final = 64 * 1024
_MEGABYTE: Final = 1_000_000


def signatures(_lab: Lab, plan: Plan) -> list[Comparison]:
    """Both signatures of one text, against the calls into C that make them."""
    pair = SigningPair.from_secrets(ECDSA_SECRET, ED25519_SEED)
    key, (_, secret_key) = PrivateKey(ECDSA_SECRET), crypto_sign_seed_keypair(ED25519_SEED)
    text = signed_text("ab" * 32, "cd" * 32)
    message = text.encode()
    prefixed = b"\x19Ethereum Signed Message:\n129" + message

    def raw() -> None:
        key.sign_recoverable(keccak.new(data=prefixed, digest_bits=256).digest(), hasher=None)
        crypto_sign(message, secret_key)

    comparison = Comparison("Both signatures", "SigningPair.sign / raw calls, CPU", 1.3)
    _compare(plan, comparison, ("sign", lambda: pair.sign(text)), ("raw", raw), plan.requests // 2)
    return [comparison]


def exchange(_lab: Lab, plan: Plan) -> list[Comparison]:
    """An exchange over 1 MB in chunks of 64 KB, against SHA-256 of the same chunks."""
    pair = SigningPair.from_secrets(ECDSA_SECRET, ED25519_SEED)
    bodies = {
        "text/event-stream": EVENT * (_MEGABYTE // len(EVENT)) + DONE,
        "application/json": b'{"id":"chatcmpl-1","data":"' + b"a" * (_MEGABYTE - 29) + b'"}',
        "audio/mpeg": bytes(_MEGABYTE),
    }
    return [_exchange(plan, pair, content_type, body) for content_type, body in bodies.items()]


def _exchange(plan: Plan, pair: SigningPair, content_type: str, body: bytes) -> Comparison:
    chunks = [body[start : start + _CHUNK] for start in range(0, len(body), _CHUNK)]

    def ours() -> None:
        running = Exchange(pair, id_prefix="chatcmpl", random=secrets.token_bytes)
        running.receive_request(b"{}")
        running.start_response(200, content_type)
        for chunk in chunks:
            running.receive_response(chunk)
        running.end_response()
        assert running.signed is not None

    def plain() -> None:
        digest = sha256()
        for chunk in chunks:
            digest.update(chunk)
        digest.digest()

    comparison = Comparison("Exchange over 1 MB", f"Exchange ({content_type}) / SHA-256, CPU", 1.2)
    _compare(plan, comparison, ("exchange", ours), ("sha256", plain), plan.requests // 20)
    return comparison


def _compare(
    plan: Plan,
    comparison: Comparison,
    ours: tuple[str, Callable[[], object]],
    theirs: tuple[str, Callable[[], object]],
    times: int,
) -> None:
    """Do the one and the other so many times, in turns."""
    for _ in range(plan.alternations):
        costs = {name: _microseconds(work, times) for name, work in (ours, theirs)}
        comparison.samples.append(costs[ours[0]] / costs[theirs[0]])
        comparison.details.append({f"{name} µs": cost for name, cost in costs.items()})


def _microseconds(work: Callable[[], object], times: int) -> float:
    """Return CPU microseconds for each time that the work is done."""
    begun = time.thread_time_ns()
    for _ in range(times):
        work()
    return (time.thread_time_ns() - begun) / times / 1000
