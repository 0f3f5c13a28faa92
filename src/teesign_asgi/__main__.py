"""The `teesign` command: says what to install where even the command line's own package is missing."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        import click  # noqa: F401 - it alone may be missing: what commands need is their own affair
    except ModuleNotFoundError:
        sys.stderr.write("teesign: This needs the package click. Install it: pip install 'teesign[server]', ")
        sys.stderr.write("or 'teesign[client]' to verify only\n")
        sys.exit(2)
    from .cli import teesign

    teesign()


if __name__ == "__main__":
    main()
