"""Curves over time: what the proxy's processes use, sampled every second, as a table and as a plot."""

from __future__ import annotations

import asyncio
import csv
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .stack import Stack

__all__ = ["Curves", "sampled"]

MIB: Final = 1 << 20
_NAMES: Final = ("seconds", "memory MiB", "descriptors", "threads", "open responses", "signatures kept")


@dataclass
class Curves:
    """Samples, one a second.

    Attributes:
        rows: a value for each of `_NAMES`.
    """

    rows: list[tuple[float, ...]] = field(default_factory=list)

    def column(self, name: str) -> list[float]:
        """Return the values of one curve."""
        index = _NAMES.index(name)
        return [row[index] for row in self.rows]

    def growth(self) -> float:
        """Return by how many MiB the last quarter of the memory curve lies above its second, on average."""
        values = self.column("memory MiB")
        quarter = len(values) // 4
        if not quarter:
            return 0.0
        return sum(values[-quarter:]) / quarter - sum(values[quarter : 2 * quarter]) / quarter

    def write(self, path: Path) -> list[Path]:
        """Write them as a table, and as a plot where matplotlib is installed; return the files."""
        table = path.with_suffix(".csv")
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_NAMES)
            writer.writerows([f"{value:.1f}" for value in row] for row in self.rows)
        try:
            # Only `nox -s soak` installs it; the tests run the rest.
            from matplotlib.figure import Figure
        except ImportError:
            return [table]
        figure = Figure(figsize=(9, 2 * (len(_NAMES) - 1)), layout="constrained")
        for axes, name in zip(figure.subplots(len(_NAMES) - 1, sharex=True), _NAMES[1:], strict=True):
            axes.plot(self.column("seconds"), self.column(name), linewidth=1)
            axes.set_ylabel(name)
            axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds")
        plot = path.with_suffix(".svg")
        figure.savefig(plot)
        return [table, plot]


@asynccontextmanager
async def sampled(stack: Stack, every: float = 1.0) -> AsyncIterator[Curves]:
    """Sample the proxy while the block runs."""
    curves, begun = Curves(), time.monotonic()

    async def sample() -> None:
        while True:
            row = (time.monotonic() - begun, stack.resident() / MIB, stack.descriptors(), stack.threads())
            open_responses = await stack.metric("teesign_open_streams")
            kept = await stack.metric("teesign_signature_cache_entries")
            curves.rows.append((*row, open_responses, kept))
            await asyncio.sleep(every)

    task = asyncio.create_task(sample())
    try:
        yield curves
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
