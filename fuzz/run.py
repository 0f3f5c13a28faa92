"""Fuzz one target: `python run.py NAME [libFuzzer options]`. Ends at the first input that breaks its invariant.

What libFuzzer has found worth keeping stays in `.fuzz/NAME`, below the current folder, and the next run goes on from
there: an hour in parts is worth an hour.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import atheris


def main() -> None:
    """Run the target that the first argument names, from its seeds and from what earlier runs kept."""
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["teesign", "teesign_asgi"]):
        target = importlib.import_module(name)
    corpus = Path(".fuzz", name)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.SEEDS):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([*sys.argv, str(corpus)], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
