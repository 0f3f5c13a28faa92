"""The table of faults and threats refers to tests that exist, and to protections that were taken away."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from rows import ROWS
from sabotage import SABOTAGES

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
def test_every_row_was_seen_to_fail_or_says_why_not(name: str) -> None:
    """A sabotage for each; one of those tests that a sabotage must fail is among the row's own."""
    sabotages = [sabotage for sabotage in SABOTAGES if name in sabotage.rows]
    assert bool(sabotages) != bool(ROWS[name].unsabotaged)
    for sabotage in sabotages:
        assert any(test.partition("[")[0] in ROWS[name].tests for test in sabotage.tests), sabotage


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda sabotage: sabotage.what)
def test_sabotages_are_of_rows_that_exist(sabotage: object) -> None:
    """And they change something."""
    from sabotage import Sabotage

    assert isinstance(sabotage, Sabotage)
    assert set(sabotage.rows) <= set(ROWS)
    assert sabotage.old != sabotage.new
