"""Take the proxy's protections away, one at a time, and see that the tests which show them fail: `nox -s sabotage`.

Each row of `sabotage.toml` replaces one piece of source text in a copy of the tree, where its tests are then run. Every
one of them must fail by an assertion or an exception, not for want of being found; and before anything is replaced, all
of them must pass. A piece of text that is not in its file exactly once is an error too: the source has changed, and the
table has to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SABOTAGES", "Sabotage"]

TREE = Path(__file__).parents[2]
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
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(TREE, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "node_modules"))
        if _run(tree, sorted({test for each in chosen for test in each.tests})):
            _say("The tests fail as it is: there is nothing to be seen.")
            return 1
        unmissed = sum(not _is_missed(tree, each) for each in chosen)
    _say(f"{len(chosen)} protections taken away: {len(chosen) - unmissed} missed by their tests, {unmissed} not")
    return unmissed


def _is_missed(tree: Path, sabotage: Sabotage) -> bool:
    """Take a protection away, and tell whether each of its tests fails."""
    file = tree / "src" / sabotage.file
    source = file.read_text(encoding="utf-8") if file.exists() else ""
    begun = time.monotonic()
    if source.count(sabotage.old) != 1:
        fine = [f"the text is {source.count(sabotage.old)} times in {sabotage.file}"]
    else:
        file.write_text(source.replace(sabotage.old, sabotage.new), encoding="utf-8")
        try:
            ends = {test: _run(tree, [test]) for test in sabotage.tests}
        finally:
            file.write_text(source, encoding="utf-8")
        fine = [f"{test} ended with {end}" for test, end in ends.items() if end != FAILED]
    outcome = f"NOT MISSED: {fine}" if fine else f"{len(sabotage.tests)} failed"
    _say(f"{sabotage.what:62} | {', '.join(sabotage.rows):40} | {outcome} ({time.monotonic() - begun:.0f} s)")
    return not fine


def _run(tree: Path, tests: list[str]) -> int:
    """Run tests until one fails, and return what pytest ends with; one that hangs ends with -1."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        *(f"tests/{test}" for test in tests),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TEESIGN_TEST_PATIENCE": PATIENCE,
    }
    limit = TIME_LIMIT * len(tests)
    try:
        ended = subprocess.run(command, cwd=tree, env=environment, capture_output=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return -1
    if len(tests) > 1 and ended.returncode:
        _say(ended.stdout.decode()[-4_000:])
    return ended.returncode


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) and 1)
