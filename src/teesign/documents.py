"""JSON from a server or a stranger: how deeply it is nested, and what decoding it may raise.

Decoders in C trust the interpreter's recursion limit to keep them from overflowing the stack. Some libraries raise that
limit far beyond what the stack can bear, those for Ethereum among them; then a few kilobytes of brackets end the
process, even where a decoder only skips them. So levels are counted before, without decoding.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any, Final, TypeVar

import msgspec

__all__ = ["MAX_DEPTH", "UNDECODABLE", "decode", "decode_unambiguous", "is_too_deep", "may_overflow"]

UNDECODABLE: Final = (msgspec.MsgspecError, RecursionError, UnicodeError)
"""What msgspec raises for JSON that it cannot decode: bad syntax or the wrong types; too many levels; bytes that are no
UTF-8, or half of a surrogate pair in text."""

MAX_DEPTH: Final = 100
"""Reports have some ten levels."""

_NO_OVERFLOW: Final = 800
"""So many levels no stack is too small for."""

_USUAL_LIMIT: Final = 1000
"""The recursion limit that the interpreter starts with; no stack overflows below it."""

_QUOTE: Final = 0x22

_PART: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]+', re.DOTALL)
"""A string, or brackets without anything between them. It also matches a string without its end: a search that began
anew inside of it would take time that grows with the square of its length. Nor does it ever go back, which would take
sixty bytes of memory for each escape."""


_Kind = TypeVar("_Kind")


def decode(document: bytes | bytearray | str, kind: type[_Kind]) -> _Kind:
    """Return what JSON says.

    Args:
        document: the JSON; what is nested more than 100 levels deep is not looked at.
        kind: the type that it must have, as msgspec knows types.

    Raises:
        msgspec.MsgspecError, RecursionError, UnicodeError: one of `UNDECODABLE`, whose message may quote the document.
    """
    _check_depth(document)
    return msgspec.json.decode(document, type=kind)


def decode_unambiguous(document: bytes | str, levels: int = MAX_DEPTH) -> Any:
    """Return what JSON says that every reader reads alike: no object names a member twice, and no number is NaN.

    Args:
        document: the JSON.
        levels: what is nested more deeply is not looked at.

    Raises:
        ValueError, RecursionError: if it is something else. They hold the document: do not chain them.
    """
    _check_depth(document, levels)
    text = document if isinstance(document, str) else document.decode()
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _check_depth(document: bytes | bytearray | str, levels: int = MAX_DEPTH) -> None:
    """Raise what a decoder would, with luck."""
    if is_too_deep(document, levels):
        raise RecursionError("The document has too many levels.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse objects that name a member twice: readers differ in which of the two they take."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("An object names a member twice.")
    return members


def _refuse_constant(_: str) -> None:
    """Refuse NaN and the infinities, which JSON does not have."""
    raise ValueError("JSON has no such number.")


def is_too_deep(document: bytes | bytearray | str, levels: int = MAX_DEPTH) -> bool:
    """Tell whether JSON has more levels of objects and lists than that; of other text, whatever comes out."""
    encoded = document.encode("utf-8", "replace") if isinstance(document, str) else document
    if encoded.count(b"[") + encoded.count(b"{") <= levels:
        return False
    depth = 0
    for part in _PART.finditer(encoded):  # one by one: to hold them all takes a hundred times the document's size
        if encoded[part.start()] != _QUOTE:
            for byte in part.group():
                depth += 1 if byte in b"[{" else -1
                if depth > levels:
                    return True
    return False


def may_overflow(document: bytes | bytearray) -> bool:
    """Tell whether a decoder may overflow the stack with this JSON.

    It stops by itself at the interpreter's own recursion limit, and to count levels costs many times what decoding
    does: so they are counted only where somebody has raised that limit.
    """
    return sys.getrecursionlimit() > _USUAL_LIMIT and is_too_deep(document, _NO_OVERFLOW)
