"""The results of the rows: ratios with their spread, as a table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Comparison", "table"]


@dataclass
class Comparison:
    """One ratio (or one figure) that a row has a target for, measured several times.

    Attributes:
        row: the row's name.
        what: what is compared with what.
        target: the bound.
        unit: of the figure; "x" for a ratio.
        samples: one figure for each alternation.
        details: what the figures were made of, for each alternation: name to value.
    """

    row: str
    what: str
    target: float
    unit: str = "x"
    samples: list[float] = field(default_factory=list)
    details: list[dict[str, float]] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The result."""
        return statistics.median(self.samples)

    @property
    def met(self) -> bool:
        """Whether the result is within the target."""
        return self.median <= self.target

    def as_json(self) -> dict[str, Any]:
        """Return everything that is known of it."""
        return {
            "row": self.row,
            "what": self.what,
            "target": self.target,
            "unit": self.unit,
            "median": self.median,
            "min": min(self.samples),
            "max": max(self.samples),
            "met": self.met,
            "samples": self.samples,
            "details": self.details,
            "detail_medians": self.detail_medians(),
        }

    def detail_medians(self) -> dict[str, float]:
        """Return the median of each of the figures that the ratios were made of."""
        names = self.details[0] if self.details else {}
        return {name: statistics.median(detail[name] for detail in self.details) for name in names}


def table(comparisons: Sequence[Comparison]) -> str:
    """Return a table in Markdown, in columns, and under it what the figures were made of."""
    rows = [("Row", "Compared", "Target", "Median", "Spread", "n", "Met"), *map(_cells, comparisons)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]
    made_of = [
        f"{one.row}, {one.what}: " + ", ".join(f"{name} {value:.4g}" for name, value in one.detail_medians().items())
        for one in comparisons
        if one.details
    ]
    return "\n".join([*lines, "", "Made of (medians):", *made_of])


def _cells(one: Comparison) -> tuple[str, ...]:
    return (
        one.row,
        one.what,
        f"≤ {one.target:.3g} {one.unit}",
        f"{one.median:.3g} {one.unit}",
        f"{min(one.samples):.3g} to {max(one.samples):.3g}",
        str(len(one.samples)),
        "yes" if one.met else "**no**",
    )
