"""What several test files share: ways of cutting bytes, of waiting, of looking at memory; and the recorded evidence."""

from __future__ import annotations

import gc
import os
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from hypothesis import strategies as st

RECORDINGS = Path(__file__).parents[2] / "shared" / "data"
"""Evidence captured on real hardware. It is not part of the repository."""

PLACES = st.lists(st.integers(min_value=0, max_value=10_000), max_size=8)
"""Where to cut, for `cut`."""


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut `data` at these places, each taken modulo its length; equal places give empty pieces."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def ways_to_cut(data: bytes) -> Iterator[list[bytes]]:
    """Yield `data` whole, byte by byte, and, if it is short, cut in two at every position."""
    yield [data]
    if len(data) <= 1000:
        yield [data[position : position + 1] for position in range(len(data))]
        for position in range(1, len(data)):
            yield [data[:position], data[position:]]
    else:
        yield [data[position : position + 4093] for position in range(0, len(data), 4093)]


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for a condition that has no event."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this did not happen in time"
        time.sleep(0.01)


@contextmanager
def peak_below(limit: int) -> Iterator[None]:
    """Check that the block never holds more than this many bytes beyond what there was."""
    gc.collect()
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak} bytes"


@contextmanager
def without_collector() -> Iterator[None]:
    """Have what refers to itself in a circle stay, so that the block sees whether there is any."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def examples(many: int) -> int:
    """Return how many examples a property is tried with: so many, or a tenth where each mutant is tried with them."""
    return many // 10 if os.environ.get("TEESIGN_TEST_FEW_EXAMPLES") else many
