"""How deeply JSON is nested, told without decoding it.

Decoders in C trust the interpreter's recursion limit to keep them from overflowing the stack. Some libraries raise that
limit far beyond what the stack can bear, those for Ethereum among them; then a few kilobytes of brackets end the
process, even where a decoder only skips them. So what comes from a server or a stranger is looked at first.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Final

__all__ = ["is_too_deep"]

_MAX_DEPTH: Final = 100
"""Reports have some ten levels."""

_NO_BRACKETS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[^"\[\]{}]+', re.DOTALL)
"""A string, or what is between brackets and strings. It also matches a string without its end: a search that began anew
inside of it would take time that grows with the square of its length."""


def is_too_deep(document: bytes | bytearray | str) -> bool:
    """Tell whether JSON has more than a hundred levels of objects and lists; of other text, whatever comes out."""
    encoded = document.encode("utf-8", "replace") if isinstance(document, str) else document
    if encoded.count(b"[") + encoded.count(b"{") <= _MAX_DEPTH:
        return False
    steps = ((byte in b"[{") - (byte in b"]}") for byte in _NO_BRACKETS.sub(b"", encoded))
    return any(depth > _MAX_DEPTH for depth in accumulate(steps))
