"""The messages that a GPU evidence worker sends, and reading them without trust.

One JSON object a line: first a greeting, then one answer for each request; docs/attestation.md describes them. Whatever
a line holds, reading it gives a message or None.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any, Final, TypeVar

import msgspec

from ..documents import UNDECODABLE, decode

__all__ = ["PROTOCOL", "Answer", "Greeting", "Item", "class_names", "decoded", "decoded_base64", "request"]

PROTOCOL: Final = 1
"""Version of the worker protocol."""

_CLASS_NAMES: Final = re.compile(r"[A-Za-z_][\w.]{0,79}(?: from [A-Za-z_][\w.]{0,79}){0,9}", re.ASCII)

_NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]


class Greeting(msgspec.Struct, frozen=True):
    """What a worker says first.

    Attributes:
        protocol: the version that it speaks.
        error: why it can do nothing: names of exception classes.
    """

    protocol: int
    error: str | None = None


class Item(msgspec.Struct, frozen=True):
    """The evidence of one GPU.

    Attributes:
        certificate: its certificate chain, PEM in base64.
        evidence: its SPDM report, base64.
        arch: its architecture, such as "HOPPER".
    """

    certificate: _NonEmpty
    evidence: _NonEmpty
    arch: _NonEmpty


class Answer(msgspec.Struct, frozen=True):
    """What a worker says to a request.

    Attributes:
        id: the request's.
        nonce: the request's, in hex.
        evidence: one item for each GPU.
        simulated: whether it does not come from hardware.
        error: why there is none: names of exception classes.
    """

    id: int
    nonce: str
    evidence: tuple[Item, ...] = ()
    simulated: bool = False
    error: str | None = None


_Message = TypeVar("_Message", Greeting, Answer)


def request(request_id: int, nonce: bytes, *, no_hardware: bool) -> bytes:
    """Return the line that asks for evidence over these 32 bytes; it is far shorter than 512 bytes."""
    message: dict[str, Any] = {"id": request_id, "nonce": nonce.hex(), "no_hardware": no_hardware}
    return msgspec.json.encode(message)


def decoded(line: bytes, kind: type[_Message]) -> _Message | None:
    """Return the message that the line holds, or None if it holds none of this kind."""
    try:
        return decode(line, kind)
    except UNDECODABLE:
        return None


def decoded_base64(text: str) -> bytes | None:
    """Return the bytes, or None if the text is not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def class_names(error: str) -> str:
    """Return the names of classes that a worker reports, and nothing else that it may say."""
    return error if _CLASS_NAMES.fullmatch(error) else "no class name given"
