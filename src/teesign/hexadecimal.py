"""Strict hex: `bytes.fromhex` alone skips white space, which would let two spellings name one value."""

from __future__ import annotations

from typing import Final

__all__ = ["unhex"]

_DIGITS: Final = frozenset("0123456789abcdefABCDEF")


def unhex(text: str, length: int | None = None) -> bytes | None:
    """Return the bytes that `text` spells in hex, or None where it does not.

    Args:
        text: hex digits of either case, with or without a leading `0x`, and nothing else.
        length: how many bytes it must be; any number when None.
    """
    digits = text.removeprefix("0x")
    if not _DIGITS.issuperset(digits) or len(digits) % 2 or (length is not None and len(digits) != 2 * length):
        return None
    return bytes.fromhex(digits)
