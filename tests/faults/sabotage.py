"""Take the proxy's protections away, one at a time, and see that the tests which show them fail: `nox -s sabotage`.

Each row of `sabotage.toml` replaces one piece of source text in a copy of the tree, where its tests are then run. Every
one of them must fail by an assertion or an exception, not for want of being found or set up, and what it said is shown;
and before anything is replaced, all of them must pass. A piece of text that is not in its file exactly once is an error
too: the source has changed, and the table has to.

They wait most of the time, so some run at once, each in a copy of its own: a module is found there before anywhere
else, also by the processes that a test starts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

__all__ = ["SABOTAGES", "Sabotage"]

TREE = Path(__file__).parents[2]
AT_ONCE = 3
"""How many run at a time; more would wait for the processor, and fail for that."""

TIME_LIMIT = 180.0
"""Seconds for one test; one that hangs does not count as one that fails."""

PATIENCE = "8"
"""Seconds for which tests wait for what is not going to happen."""

FAILED = 1
"""What pytest ends with when tests have failed, and nothing else was wrong."""


@dataclass(frozen=True)
class Sabotage:
    """One protection taken away.

    Attributes:
        what: what is not done any more.
        rows: the faults and threats that it protects from.
        file: where, below `src`.
        old: the text that is replaced.
        new: what it is replaced by.
        tests: those that must fail, as pytest names them.
    """

    what: str
    rows: tuple[str, ...]
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _read() -> list[Sabotage]:
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return [Sabotage(**{**row, "rows": tuple(row["rows"]), "tests": tuple(row["tests"])}) for row in table["sabotage"]]


SABOTAGES = _read()


def main(names: list[str]) -> int:
    """Run the sabotages whose name or rows hold one of these, or all; return how many protections were not missed."""
    chosen = [each for each in SABOTAGES if not names or any(name in f"{each.what} {each.rows}" for name in names)]
    tests = sorted({test for each in chosen for test in each.tests})
    with _copy(TREE) as tree, ThreadPoolExecutor(AT_ONCE) as pool:
        shares = [share for start in range(AT_ONCE) if (share := tests[start::AT_ONCE])]
        failures = [output for end, output in pool.map(partial(_run_as_it_is, tree), shares) if end]
        if failures:
            _say("\n".join([*failures, "The tests fail as it is: there is nothing to be seen."]))
            return 1
        begun = time.monotonic()
        unmissed = 0
        for sabotage, (report, is_missed) in zip(chosen, pool.map(partial(_try, tree), chosen), strict=True):
            unmissed += not is_missed
            _say(f"{sabotage.what} | {', '.join(sabotage.rows)} | {report}")
    minutes = (time.monotonic() - begun) / 60
    _say(f"{len(chosen)} protections taken away in {minutes:.0f} minutes: {unmissed} not missed by their tests")
    return unmissed


def _run_as_it_is(original: Path, tests: list[str]) -> tuple[int, str]:
    """Run tests before anything is taken away."""
    with _copy(original) as tree:
        return _run(tree, tests)


def _try(original: Path, sabotage: Sabotage) -> tuple[str, bool]:
    """Take a protection away; return what its tests say, and whether each of them fails."""
    with _copy(original) as tree:
        file = tree / "src" / sabotage.file
        source = file.read_text(encoding="utf-8") if file.exists() else ""
        if source.count(sabotage.old) != 1:
            return f"NOT MISSED: the text is {source.count(sabotage.old)} times in {sabotage.file}", False
        file.write_text(source.replace(sabotage.old, sabotage.new), encoding="utf-8")
        lines, is_missed = [], True
        for test in sabotage.tests:
            begun = time.monotonic()
            end, output = _run(tree, [test])
            failed = [line for line in output.splitlines() if line.startswith("FAILED ")]
            if end != FAILED or not failed:
                failed, is_missed = [f"NOT MISSED: {test} ended with {end}"], False
            lines += [f"{line[:200]} ({time.monotonic() - begun:.0f} s)" for line in failed]
    return "".join(f"\n    {line}" for line in lines), is_missed


@contextmanager
def _copy(original: Path) -> Iterator[Path]:
    """Give a copy of a tree."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(original, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "node_modules", "mutants"))
        yield tree


def _run(tree: Path, tests: list[str]) -> tuple[int, str]:
    """Run tests until one fails; return what pytest ends with, -1 if it hangs, and what it says."""
    paths = [f"tests/{test}" for test in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *paths]
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TEESIGN_TEST_PATIENCE": PATIENCE,
        "COLUMNS": "400",  # so that the summary says why
    }
    limit = TIME_LIMIT * len(tests)
    try:
        ended = subprocess.run(command, cwd=tree, env=environment, capture_output=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return -1, ""
    return ended.returncode, ended.stdout.decode()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) and 1)
