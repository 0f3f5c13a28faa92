"""How deeply JSON is nested, told without decoding it.

Decoders in C trust the interpreter's recursion limit to keep them from overflowing the stack. Some libraries raise that
limit far beyond what the stack can bear, those for Ethereum among them; then a few kilobytes of brackets end the
process, even where a decoder only skips them. So what comes from a server or a stranger is looked at first.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["is_too_deep"]

_MAX_DEPTH: Final = 100
"""Reports have some ten levels."""

_QUOTE: Final = 0x22

_PART: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]+', re.DOTALL)
"""A string, or brackets without anything between them. It also matches a string without its end: a search that began
anew inside of it would take time that grows with the square of its length."""


def is_too_deep(document: bytes | bytearray | str) -> bool:
    """Tell whether JSON has more than a hundred levels of objects and lists; of other text, whatever comes out."""
    encoded = document.encode("utf-8", "replace") if isinstance(document, str) else document
    if encoded.count(b"[") + encoded.count(b"{") <= _MAX_DEPTH:
        return False
    depth = 0
    for part in _PART.finditer(encoded):  # one by one: to hold them all takes a hundred times the document's size
        if encoded[part.start()] != _QUOTE:
            for byte in part.group():
                depth += 1 if byte in b"[{" else -1
                if depth > _MAX_DEPTH:
                    return True
    return False
