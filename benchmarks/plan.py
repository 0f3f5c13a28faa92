"""How much is measured: in full, or so little that it only shows that everything still works."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "Plan"]


@dataclass(frozen=True)
class Plan:
    """Sizes that are the same for all rows.

    Attributes:
        alternations: how often each thing is measured, in turns with what it is compared to.
        requests: JSON requests in one measurement.
        slow_requests: the same for what costs ten times as much.
        seconds: length of one measurement of streams.
        settle: how long streams take to start, and again to come to rest, seconds.
        streams: how many streams, or idle connections, there are where there are many.
        upload: the size of the big upload in bytes.
        signatures: how many there are in a full cache.
        connection_counts: how many connections at once, for the plot.
        stream_counts: how many streams at once, for the plot.
    """

    alternations: int
    requests: int
    slow_requests: int
    seconds: float
    settle: float
    streams: int
    upload: int
    signatures: int
    connection_counts: tuple[int, ...]
    stream_counts: tuple[int, ...]


FULL = Plan(
    alternations=5,
    requests=6000,
    slow_requests=1000,
    seconds=4.0,
    settle=1.0,
    streams=1000,
    upload=100_000_000,
    signatures=1_000_000,
    connection_counts=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    stream_counts=(10, 30, 100, 300, 1000),
)
QUICK = Plan(
    alternations=1,
    requests=64,
    slow_requests=64,
    seconds=0.4,
    settle=0.3,
    streams=50,
    upload=2_000_000,
    signatures=2_000,
    connection_counts=(1, 2),
    stream_counts=(2,),
)
