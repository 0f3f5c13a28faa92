"""The public key that a certificate is for, as the bytes that stand in it.

A key can be written in more than one way: a point compressed or not, a curve by its name or by its parameters, RSA with
or without what it is for. Libraries that read a key and write it again choose one of them, and some keys they cannot
read at all. A fingerprint is of what stands in the certificate, so that is cut out here, and the key is never read.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final, NamedTuple

from .errors import MalformedError

__all__ = ["spki_sha256"]

_INTEGER: Final = 0x02
_BIT_STRING: Final = 0x03
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_OPTIONAL_AT_THE_END: Final = (0x81, 0x82, 0xA3)  # issuerUniqueID, subjectUniqueID, extensions

_LONG_FORM: Final = 0x80
_TAG_CONTINUES: Final = 0x1F
_LONGEST_LENGTH: Final = 4
"""Bytes that a length may have; certificates of four gigabytes do not exist."""


class _Element(NamedTuple):
    """One element of DER.

    Attributes:
        tag: its first byte.
        content: what is in it.
        encoded: all of it.
    """

    tag: int
    content: bytes
    encoded: bytes


def spki_sha256(certificate: bytes) -> bytes:
    """Return SHA-256 of a certificate's subject public key info (RFC 5280, 4.1.2.7), 32 bytes.

    What it does NOT establish: that the certificate is valid, that its key can be used, or that anybody holds it.

    Args:
        certificate: one X.509 certificate in DER.

    Raises:
        MalformedError: `bad_certificate` if it has not the layout of one.
    """
    (whole,) = _fields(certificate, _SEQUENCE)
    signed, _, _ = _fields(whole.content, _SEQUENCE, _SEQUENCE, _BIT_STRING)
    fields = _elements(signed.content)
    if fields and fields[0].tag == _VERSION:
        del fields[0]
    # Serial number, signature algorithm, issuer, validity, subject, subject public key info.
    _check([field.tag for field in fields[:6]] == [_INTEGER, *[_SEQUENCE] * 5])
    rest = [field.tag for field in fields[6:]]
    _check(rest == [tag for tag in _OPTIONAL_AT_THE_END if tag in rest])
    info = fields[5]
    _fields(info.content, _SEQUENCE, _BIT_STRING)
    return sha256(info.encoded).digest()


def _fields(content: bytes, *tags: int) -> list[_Element]:
    """Return the elements of which this consists, which must have these tags."""
    elements = _elements(content)
    _check(tuple(element.tag for element in elements) == tags)
    return elements


def _elements(content: bytes) -> list[_Element]:
    """Return the elements of which this consists."""
    elements = []
    start = 0
    while start < len(content):
        _check(start + 2 <= len(content) and content[start] & _TAG_CONTINUES != _TAG_CONTINUES)
        begin, length = start + 2, content[start + 1]
        if length >= _LONG_FORM:
            size = length - _LONG_FORM
            _check(1 <= size <= _LONGEST_LENGTH)
            begin, length = begin + size, int.from_bytes(content[begin : begin + size], "big")
            _check(length >= (_LONG_FORM if size == 1 else 1 << 8 * (size - 1)))  # DER: no longer than needed
        end = begin + length
        _check(end <= len(content))
        elements.append(_Element(content[start], content[begin:end], content[start:end]))
        start = end
    return elements


def _check(holds: bool) -> None:  # noqa: FBT001 - it has no other argument
    if not holds:
        raise MalformedError("These bytes are not an X.509 certificate in DER.", code="bad_certificate")
