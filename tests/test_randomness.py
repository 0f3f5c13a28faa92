"""Unpredictable bytes for ids, fetched for many at once."""

from __future__ import annotations

import multiprocessing
import os
import secrets
from multiprocessing.connection import Connection

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


def test_many_ids_take_one_fetch() -> None:
    """That is what it is for."""
    fetches: list[int] = []

    def source(count: int) -> bytes:
        fetches.append(count)
        return secrets.token_bytes(count)

    supply = RandomSupply(source)
    ids = {supply(16) for _ in range(100)}
    assert len(ids) == 100
    assert len(fetches) == 1


def test_a_forked_process_hands_out_others() -> None:
    """Servers fork their workers, and the ids of all of them may meet in one store."""
    supply = RandomSupply(secrets.token_bytes)
    supply(16)
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)

    def child(pipe: Connection) -> None:
        pipe.send_bytes(supply(16))

    process = context.Process(target=child, args=(sending,))
    process.start()
    theirs = receiving.recv_bytes()
    process.join()
    assert theirs != supply(16)
