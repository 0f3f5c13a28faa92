"""The table of faults and threats refers to tests that exist, to protections that are taken away, and to servers."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rows import ROWS
from sabotage import SABOTAGES, Sabotage
from servers import MAIN_KINDS

TESTS = Path(__file__).parents[1]
THREATS = 20


def functions(path: Path) -> set[str]:
    """Return the names of a file's tests."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {node.name for node in found if node.name.startswith("test_")}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_shown_by_tests_that_exist(name: str) -> None:
    """At least one each."""
    assert ROWS[name].tests
    for test in ROWS[name].tests:
        file, _, function = test.partition("::")
        assert function in functions(TESTS / file), test


def test_every_threat_has_a_row() -> None:
    """They are numbered."""
    numbers = [int(name.split()[0]) for name in ROWS if name.split()[0].isdecimal()]
    assert numbers == list(range(1, THREATS + 1))


@pytest.mark.parametrize("name", ROWS)
def test_a_protection_of_every_row_is_taken_away(name: str) -> None:
    """By at least one sabotage; one of those tests that a sabotage must fail is among the row's own."""
    sabotages = [sabotage for sabotage in SABOTAGES if name in sabotage.rows]
    assert sabotages
    for sabotage in sabotages:
        assert any(test.partition("[")[0] in ROWS[name].tests for test in sabotage.tests), sabotage


def test_the_page_says_how_many_protections_are_taken_away() -> None:
    """It gives the number."""
    page = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert f"`nox -s sabotage` takes {len(SABOTAGES)} protections away" in page


def test_every_row_is_shown_under_each_server_or_says_why_not() -> None:
    """As pytest finds its tests, whose parameters name the servers."""
    files = sorted({test.partition("::")[0] for row in ROWS.values() for test in row.tests})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    found = subprocess.run(command, cwd=TESTS, capture_output=True, check=True, text=True).stdout.split("\n")
    for name, row in ROWS.items():
        collected = [line for line in found for test in row.tests if line.startswith(f"tests/{test}[")]
        shown = {kind for kind in MAIN_KINDS if any(kind in re.split(r"[\[\]]|-(?!trio)", line) for line in collected)}
        assert (shown == set(MAIN_KINDS)) != bool(row.servers), (name, shown)


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda sabotage: sabotage.what)
def test_sabotages_are_of_rows_that_exist(sabotage: Sabotage) -> None:
    """And they change something."""
    assert set(sabotage.rows) <= set(ROWS)
    assert sabotage.old != sabotage.new


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda sabotage: sabotage.what)
def test_a_protection_stands_where_it_is_taken_away(sabotage: Sabotage) -> None:
    """Once, or taking it away would do nothing, or more than it says."""
    source = TESTS.parent / "src" / sabotage.file
    assert source.read_text(encoding="utf-8").count(sabotage.old) == 1
