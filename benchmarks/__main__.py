"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from . import cache_rows, core_rows, http_rows, use_rows
from .client import BenchmarkError
from .contenders import Lab, open_lab
from .curves import Curve, draw, measure
from .plan import FULL, QUICK, Plan
from .report import Comparison, table

__all__ = ["main"]

ROWS: Final[Mapping[str, Callable[[Lab, Plan], list[Comparison]]]] = {
    "json": http_rows.json_chat,
    "streams": http_rows.streams,
    "many-streams": http_rows.many_streams,
    "idle-connections": http_rows.idle_connections,
    "signatures": core_rows.signatures,
    "exchange": core_rows.exchange,
    "upload": use_rows.big_upload,
    "open-streams": use_rows.open_streams,
    "cache": cache_rows.cache,
    "first-token": use_rows.first_token,
    "start": use_rows.start,
}
"""What there is to measure, in the order in which it is done."""


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help="which, separated by commas: %(default)s")
    parser.add_argument("--alternations", type=int, help=f"how often each is measured; {FULL.alternations} by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot cost against concurrency, too (SVG, PNG, …)")
    parser.add_argument("--quick", action="store_true", help="measure next to nothing, to see that everything works")
    arguments = parser.parse_args(given)
    arguments.rows = [name for name in arguments.rows.split(",") if name]
    unknown = [name for name in arguments.rows if name not in ROWS]
    if unknown:
        parser.error(f"no such rows: {', '.join(unknown)}. There are {', '.join(ROWS)}")
    if arguments.alternations is not None and arguments.alternations < 1:
        parser.error("--alternations must be 1 or more")
    return arguments


def main(given: list[str] | None = None) -> int:
    """Measure, and show the results.

    Args:
        given: the arguments, instead of those of the command line.

    Returns:
        The exit code: 0 if everything could be measured and every target was met, else 1.
    """
    arguments = _arguments(given)
    plan = QUICK if arguments.quick else FULL
    if arguments.alternations:
        plan = replace(plan, alternations=arguments.alternations)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the processes that are started inherit it
    comparisons: list[Comparison] = []
    curves: list[Curve] = []
    failed: list[str] = []
    with open_lab() as lab:
        for name in arguments.rows:
            begun = time.monotonic()
            try:
                comparisons += ROWS[name](lab, plan)
            except (BenchmarkError, TimeoutError) as error:
                failed.append(name)
                print(f"{name} could not be measured: {error or 'it took too long'}", file=sys.stderr)
            print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
        if arguments.plot:
            curves = measure(lab, plan)
            draw(curves, arguments.plot)
    print(table(comparisons))
    if arguments.json:
        results = {
            "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
            "comparisons": [one.as_json() for one in comparisons],
            "curves": [one.as_json() for one in curves],
        }
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if not failed and all(one.met for one in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
