"""Fakes for the tests of programs that embed teesign: fixed keys, a clock that is moved by hand, canned evidence.

Nothing here is secret, random or real. Never use these keys outside tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .attestation import GpuEvidence, Quote
from .signing import SigningPair
from .sources.simulated import simulated_evidence, simulated_quote

__all__ = [
    "ECDSA_SECRET",
    "ED25519_SEED",
    "ManualClock",
    "counting_random",
    "fixed_evidence",
    "fixed_pair",
    "fixed_quote",
]

ECDSA_SECRET: Final = bytes(range(1, 33))
"""The secp256k1 key of `fixed_pair`."""

ED25519_SEED: Final = bytes(range(33, 65))
"""The Ed25519 key of `fixed_pair`."""


def fixed_pair() -> SigningPair:
    """Return a pair of keys that is the same in every process."""
    return SigningPair.from_secrets(ECDSA_SECRET, ED25519_SEED)


def counting_random() -> Callable[[int], bytes]:
    """Return a stand-in for a random source: its n-th answer is the number n, in as many bytes as asked for."""
    calls = 0

    def random(length: int) -> bytes:
        nonlocal calls
        calls += 1
        return calls.to_bytes(length, "big")

    return random


class ManualClock:
    """A clock that stands still until it is moved.

    Args:
        now: the time it starts at, in seconds.
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time, in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self.now += seconds


def fixed_quote(report_data: bytes) -> Quote:
    """Return a quote with the right layout over this report data, marked as simulated."""
    return simulated_quote(report_data)


def fixed_evidence(nonce: bytes) -> GpuEvidence:
    """Return the evidence of one GPU around this nonce, marked as simulated."""
    return simulated_evidence(nonce)
