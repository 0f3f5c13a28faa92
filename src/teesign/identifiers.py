"""The chat id inside a JSON document, read without decoding the rest of it.

msgspec checks the whole document's syntax and materialises one member; nothing else is allocated, whatever the
document holds. Bytes that are not UTF-8 inside other strings do not matter here: engines do send them.
"""

from __future__ import annotations

from typing import Final

import msgspec

from .documents import UNDECODABLE, may_overflow

__all__ = ["MAX_STORED_ID", "read_id"]

MAX_STORED_ID: Final = 256
"""Longer ids, in characters, are never stored: a cache key must not be a place to put megabytes."""


class _WithId(msgspec.Struct):
    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_documents: Final = msgspec.json.Decoder(_WithId)
_strings: Final = msgspec.json.Decoder(str)


class DocumentId(msgspec.Struct, frozen=True):
    """What a JSON object says about its own id.

    Attributes:
        present: whether there is a top-level member `id`, of whatever type.
        value: its value if that is a string with at least one character, else None.
    """

    present: bool
    value: str | None


def read_id(document: bytes | bytearray) -> DocumentId | None:
    """Return what the object's top-level member `id` holds, or None if the document is not a JSON object.

    A member that is given twice counts with its last value, as in every common decoder. An object that is nested too
    deeply counts as none: at most the interpreter's recursion limit, and 800 levels where somebody has raised it. So
    does one with half of a surrogate pair in any of its strings, which has no form in UTF-8.
    """
    if may_overflow(document):
        return None
    try:
        raw = _documents.decode(document).id
    except UNDECODABLE:
        return None
    if raw is msgspec.UNSET:
        return DocumentId(present=False, value=None)
    try:
        value = _strings.decode(raw)
    except UNDECODABLE:
        return DocumentId(present=True, value=None)
    return DocumentId(present=True, value=value or None)
