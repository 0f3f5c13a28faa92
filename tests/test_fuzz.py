"""The fuzz targets hold for seeds and for what hypothesis makes of them; `nox -s fuzz` looks further."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

FOLDER = Path(__file__).parents[1] / "fuzz"
TARGETS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "run")


def target(name: str) -> ModuleType:
    """Return a target's module."""
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_target_opens_with_its_invariant() -> None:
    """The folder has been found, and the first line of each target says what must hold for any input."""
    assert {"quote", "event_stream", "backend_response"} <= set(TARGETS)
    for name in TARGETS:
        assert (FOLDER / f"{name}.py").read_text().startswith('"""For any '), name


@pytest.mark.parametrize("name", TARGETS)
def test_the_invariant_holds_for_the_seeds(name: str) -> None:
    """What is known to be interesting, whole and cut short: everywhere, or in a hundred places where it is long."""
    module = target(name)
    for seed in module.SEEDS:
        for end in {*range(0, len(seed), max(1, len(seed) // 100)), len(seed)}:
            module.check(seed[:end])


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
def test_the_invariant_holds_for_mutations(name: str, data: st.DataObject) -> None:
    """Seeds with a piece replaced by anything."""
    module = target(name)
    seed: bytes = data.draw(st.sampled_from(module.SEEDS))
    start = data.draw(st.integers(0, len(seed)))
    end = data.draw(st.integers(start, len(seed)))
    module.check(seed[:start] + data.draw(st.binary(max_size=40)) + seed[end:])
