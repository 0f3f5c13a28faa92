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
        streams: how many streams there are where there are many.
    """

    alternations: int
    requests: int
    slow_requests: int
    seconds: float
    streams: int


FULL = Plan(alternations=5, requests=6000, slow_requests=1000, seconds=4.0, streams=1000)
QUICK = Plan(alternations=1, requests=64, slow_requests=64, seconds=0.5, streams=50)
