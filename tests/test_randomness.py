"""Unpredictable bytes for ids, fetched for many at once."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from teesign_asgi.randomness import RandomSupply


@given(st.lists(st.integers(min_value=0, max_value=9000), max_size=40))
def test_no_byte_is_handed_out_twice(counts: list[int]) -> None:
    """Whatever is asked for comes from the source in its order, in the size asked for, and never again."""
    fetched = b""

    def source(count: int) -> bytes:
        nonlocal fetched
        new = os.urandom(count)
        fetched += new
        return new

    supply = RandomSupply(source)
    position = 0
    for count in counts:
        piece = supply(count)
        assert len(piece) == count
        position = fetched.index(piece, position) + count


def supply_and_fetches() -> tuple[RandomSupply, list[int]]:
    """Return a supply, and how many bytes it has fetched at each time."""
    fetches: list[int] = []

    def source(count: int) -> bytes:
        fetches.append(count)
        return secrets.token_bytes(count)

    return RandomSupply(source), fetches


def test_many_ids_take_one_fetch() -> None:
    """That is what it is for."""
    supply, fetches = supply_and_fetches()
    ids = {supply(16) for _ in range(100)}
    assert len(ids) == 100
    assert len(fetches) == 1


def test_other_threads_take_nothing_of_what_was_fetched() -> None:
    """Two threads could be given the same bytes; a thread that works for a request gets its own from the source."""
    supply, fetches = supply_and_fetches()
    first = supply(16)
    with ThreadPoolExecutor(1) as other:
        assert len(other.submit(supply, 12).result()) == 12
    assert fetches[1:] == [12]
    assert supply(16) != first
    assert len(fetches) == 2


FORKED = r"""
import os, secrets
from teesign_asgi.randomness import RandomSupply

supply = RandomSupply(secrets.token_bytes)
supply(16)
child = os.fork()
os.write(1, supply(16).hex().encode() + b"\n")  # whole, whoever else writes
if child:
    os.waitpid(child, 0)
"""


def test_a_forked_process_hands_out_others() -> None:
    """Servers fork their workers, and the ids of all of them may meet in one store."""
    # In a process of its own: one with threads, as this has, is not to be forked.
    found = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, check=True, text=True).stdout.split()
    assert [len(each) for each in found] == [32, 32]
    assert found[0] != found[1]
