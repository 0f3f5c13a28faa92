"""Fuzz one target: `python run.py NAME [libFuzzer options]`. Ends at the first input that breaks its invariant."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

import atheris


def main() -> None:
    """Run the target that the first argument names, from its seeds."""
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["teesign", "teesign_asgi"]):
        target = importlib.import_module(name)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.SEEDS):
            Path(corpus, str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, corpus], target.check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
