"""The benchmarks still work: each row, with next to nothing to do. What they measure means nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ROWS = {
    "Both signatures",
    "Cached signatures",
    "Event streams",
    "Exchange over 1 MB",
    "First token",
    "Idle pooled connections",
    "Import",
    "JSON chat",
    "Many streams",
    "Open streams",
    "Start",
    "Upload",
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmarks as `nox -s bench` does."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the dependency groups bench and plot")
def test_every_row_is_measured(tmp_path: Path) -> None:
    """Chats, streams and uploads pass through everything; the results come as a table, as JSON and as a plot."""
    results, plot = tmp_path / "results.json", tmp_path / "plot.svg"
    ran = run("--quick", "--json", str(results), "--plot", str(plot))
    assert "teesign / reference, CPU" in ran.stdout, ran.stderr
    comparisons: list[dict[str, Any]] = json.loads(results.read_text())["comparisons"]
    assert {one["row"] for one in comparisons} == ROWS, ran.stderr
    assert all(len(one["samples"]) == 1 for one in comparisons)
    assert "</svg>" in plot.read_text()
    # A single difference may be negative on a busy machine; it is 0 if nothing was measured.
    assert all(one["median"] != 0 for one in comparisons if "peak RSS" not in one["what"])


def test_an_unknown_row_is_named() -> None:
    """Together with those that there are."""
    ran = run("--rows", "json,nonsense")
    assert ran.returncode == 2
    assert "no such rows: nonsense. There are json" in ran.stderr
