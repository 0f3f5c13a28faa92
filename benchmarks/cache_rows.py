"""Rows about the signature cache, against a plain dict.

Each is measured in a process of its own: memory that was freed is not always given back.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import time
from itertools import pairwise
from typing import Final

from teesign import SignatureCache, SignedChat

from . import procfs
from .contenders import Lab
from .plan import Plan
from .report import Comparison

__all__ = ["cache"]

_CALLS: Final = 20_000
_NAMES: Final = "benchmark/model"


def cache(_lab: Lab, plan: Plan) -> list[Comparison]:
    """Signatures in the cache: bytes for each, and get and put against a plain dict's, with few and with many."""
    memory = Comparison("Cached signatures", f"RSS, {plan.signatures:,} signatures", 900, "B each")
    gets, puts = (
        {
            entries: Comparison("Cached signatures", f"{name} / dict's, {entries:,} signatures, CPU", 1.5)
            for entries in (min(10_000, plan.signatures), plan.signatures)
        }
        for name in ("get", "put")
    )
    context = multiprocessing.get_context("spawn")
    for _ in range(plan.alternations):
        with context.Pool(1) as process:
            memory.samples.append(process.apply(bytes_each, (plan.signatures,)))
        for entries in gets:
            with context.Pool(1) as process:
                costs = process.apply(nanoseconds, (entries,))
            for comparison, name in ((gets[entries], "get"), (puts[entries], "put")):
                comparison.samples.append(costs[f"{name} ns"] / costs[f"dict {name} ns"])
                comparison.details.append({key: value for key, value in costs.items() if name in key})
    return [memory, *gets.values(), *puts.values()]


def bytes_each(entries: int) -> float:
    """Return by how many bytes a process grows for each signature that is kept."""
    kept = _cache(entries)
    numbers = random.Random(1)  # noqa: S311 - they only have to differ
    gc.collect()
    before = procfs.memory(os.getpid(), "VmRSS")
    for _ in range(entries):
        kept.put(_ids(numbers), _chat(numbers))
    gc.collect()
    assert len(kept) == entries
    return (procfs.memory(os.getpid(), "VmRSS") - before) / entries


def nanoseconds(entries: int) -> dict[str, float]:
    """Return CPU nanoseconds of a call, for the cache and for a dict that holds the same under the same ids."""
    numbers = random.Random(1)  # noqa: S311 - they only have to differ
    chat = _chat(numbers)
    kept, plain = _cache(entries), dict[str, SignedChat]()
    all_ids = [_ids(numbers) for _ in range(entries)]
    for ids in all_ids:
        kept.put(ids, chat)
        plain.update(dict.fromkeys(ids, chat))
    # Ids of their own for each, in strings of their own: hashes and memory that one has touched would serve the other.
    asked, asked_plain = (
        ["".join(list(numbers.choice(all_ids)[number % 2])) for number in range(_CALLS)] for _ in range(2)
    )
    fresh, fresh_plain = ([_ids(numbers) for _ in range(_CALLS)] for _ in range(2))
    times = [time.thread_time_ns()]
    for chat_id in asked:
        kept.get(chat_id)
    times.append(time.thread_time_ns())
    for chat_id in asked_plain:
        plain.get(chat_id)
    times.append(time.thread_time_ns())
    for ids in fresh:
        kept.put(ids, chat)
    times.append(time.thread_time_ns())
    for own, other in fresh_plain:
        plain[own] = chat
        plain[other] = chat
    times.append(time.thread_time_ns())
    names = ("get ns", "dict get ns", "put ns", "dict put ns")
    return {name: (end - begun) / _CALLS for name, (begun, end) in zip(names, pairwise(times), strict=True)}


def _cache(entries: int) -> SignatureCache:
    return SignatureCache(ttl=1200.0, max_entries=entries + _CALLS, clock=time.monotonic)


def _ids(numbers: random.Random) -> tuple[str, str]:
    """Return the ids as the proxy keeps them: the random one and the one in the body, both with the model's name."""
    return f"{_NAMES}:sig-{numbers.randbytes(16).hex()}", f"{_NAMES}:chatcmpl-{numbers.randbytes(12).hex()}"


def _chat(numbers: random.Random) -> SignedChat:
    """Return what looks like a signed chat; the addresses are the same in all, as they are in the proxy."""
    return SignedChat(
        f"{numbers.randbytes(32).hex()}:{numbers.randbytes(32).hex()}",
        numbers.randbytes(65),
        _ECDSA,
        numbers.randbytes(64),
        _ED25519,
    )


_ECDSA: Final = "0x" + "ab" * 20
_ED25519: Final = "cd" * 32
