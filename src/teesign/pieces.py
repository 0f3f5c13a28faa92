"""Bytes that wait in pieces until all of them are there: joined once at the end, and before where they are tiny.

A list of large pieces is the fastest place to wait: nothing is copied. But each piece takes some forty bytes beside its
own, and the other side chooses how small they are.
"""

from __future__ import annotations

from typing import Final

__all__ = ["MANY", "join_many"]

MANY: Final = 4096
"""So many pieces take no memory that matters, however small they are."""


def join_many(pieces: list[bytes]) -> None:
    """Make one of more than `MANY` pieces, where they take much memory for what they hold.

    What has been joined before is copied only if there are new pieces for each 256 bytes of it, so that the time for
    all of them grows with their number, and not with its square.
    """
    if len(pieces) > len(pieces[0]) // 256:
        pieces[:] = [b"".join(pieces)]
