"""Soak the proxy: `python -m soak [--minutes N]`, or reach a figure: `python -m soak --figure NAME`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from .engine import run_engine
from .ledger import Ledger
from .mixed import run_mixed
from .neighbours import raise_descriptor_limit, run_bombs, run_slow_headers, run_stopped_readers
from .nonces import run_nonces
from .overload import run_overload
from .streams import run_gone, run_instant_signatures, run_streams

Figure = Callable[[Path, float], Coroutine[Any, Any, Ledger]]

FIGURES: Final[dict[str, tuple[str, Figure]]] = {
    "mixed": (
        "30 minutes of mixed load and faults",
        lambda folder, scale: run_mixed(folder, 30 * scale),
    ),
    "streams": (
        "400 streams of 50 events a second for 10 minutes",
        lambda folder, scale: run_streams(folder, 10 * scale),
    ),
    "bombs": (
        "others beside JSON bombs and uploads, for a minute",
        lambda folder, scale: run_bombs(folder, 60 * scale),
    ),
    "stopped-readers": (
        "200 readers that stop, five times",
        lambda folder, scale: run_stopped_readers(folder, 30 * scale, max(1, round(5 * scale))),
    ),
    "slow-headers": (
        "1,000 connections that send a byte of their header a second",
        lambda folder, scale: run_slow_headers(folder, 60 * scale),
    ),
    "instant-signatures": (
        "10,000 signatures asked for when [DONE] is read",
        lambda folder, scale: run_instant_signatures(folder, round(10_000 * scale)),
    ),
    "gone": (
        "500 clients that leave",
        lambda folder, scale: run_gone(folder, round(500 * scale)),
    ),
    "overload": (
        "four times as many clients as are served best, for a minute",
        lambda folder, scale: run_overload(folder, 60 * scale),
    ),
    "nonces": (
        "10,000 attestation calls, some of them cancelled",
        lambda folder, scale: run_nonces(folder, round(10_000 * scale)),
    ),
    "engine": (
        "llama.cpp under mixed load for 10 minutes",
        lambda folder, scale: run_engine(folder, 10 * scale),
    ),
}
"""What can be run, and how at a scale of 1."""


def main() -> None:
    """Run what the command line asks for, print what was seen, and end with 1 if anything was wrong or missed."""
    listing = "; ".join(f"{name}: {title}" for name, (title, _) in FIGURES.items())
    parser = argparse.ArgumentParser(prog="soak", description="Long runs of the proxy under load and faults.")
    parser.add_argument("--figure", action="append", choices=FIGURES, help=f"{listing} (default: mixed)")
    parser.add_argument("--minutes", type=float, help="how long the mixed load lasts (default: 30)")
    parser.add_argument("--scale", type=float, default=1.0, help="times, and numbers of calls, relative to those above")
    parser.add_argument("--folder", type=Path, default=Path("soak-results"), help="where curves and logs go")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # proxy and backend are stopped on the way
    raise_descriptor_limit()
    good = True
    for name in options.figure or ["mixed"]:
        title, figure = FIGURES[name]
        scale = options.minutes / 30 if name == "mixed" and options.minutes else options.scale
        folder: Path = options.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        print(
            f"{name}: {title}; scale {scale:.3g}; load of the machine at the start {os.getloadavg()[0]:.1f}", flush=True
        )
        ledger = asyncio.run(figure(folder, scale))
        _show(ledger, time.monotonic() - began)
        good &= not ledger.counts["wrong"] and all(row.met for row in ledger.figures)
    sys.exit(not good)


def _show(ledger: Ledger, seconds: float) -> None:
    """Print counts, figures, and what was wrong."""
    for name, count in ledger.counts.items():
        print(f"  {name:52} {count:>14}")
    for row in ledger.figures:
        verdict = "" if not row.asked else "met" if row.met else "MISSED"
        print(f"  {row.what:52} {row.found:>14}  {row.asked:20} {verdict}")
    print(f"  {'wrong':52} {ledger.counts['wrong']:>14}")
    for what in ledger.wrong:
        print(f"    {what}")
    print(f"  {'seconds':52} {seconds:>14.0f}", flush=True)


if __name__ == "__main__":
    main()
