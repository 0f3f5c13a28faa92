"""The `teesign` command: says what to install where the command line's own packages are missing."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        from .cli import teesign
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("teesign"):
            raise
        sys.exit(f"The teesign command needs the package {error.name}. Install it: pip install 'teesign[server]'")
    teesign()


if __name__ == "__main__":
    main()
