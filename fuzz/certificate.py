"""For any bytes, a certificate's key is a sequence among them, or MalformedError `bad_certificate` is raised."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

from teesign import MalformedError
from teesign.spki import spki_sha256


def sequence(content: bytes) -> bytes:
    """Return the DER of a sequence, of up to 64 KB."""
    length = len(content)
    size = (
        b"%c" % length if length < 0x80 else b"\x81%c" % length if length < 0x100 else b"\x82%c%c" % divmod(length, 256)
    )
    return b"\x30" + size + content


def certificate(fields: bytes) -> bytes:
    """Return a certificate whose signed part consists of these fields."""
    return sequence(sequence(fields) + sequence(b"") + b"\3\1\0")


SERIAL = b"\2\1\1"
VERSION = b"\xa0\3\2\1\2"
NAME = sequence(b"\x0c\2CN")
INFO = sequence(sequence(b"\6\1\1") + b"\3\3\0\1\2")
LONG_INFO = sequence(sequence(b"\5\0") + b"\3\x81\x83" + bytes(range(131)))
SEEDS = [
    certificate(SERIAL + NAME * 4 + INFO),
    certificate(VERSION + SERIAL + NAME * 4 + INFO + b"\xa3\2" + sequence(b"")),
    certificate(VERSION + SERIAL + NAME * 4 + LONG_INFO + b"\x81\1a" + b"\x82\1b"),
    certificate(SERIAL + sequence(NAME * 60) * 4 + LONG_INFO),
]


def sequences(data: bytes) -> Iterator[bytes]:
    """Yield every piece of these bytes that begins as a sequence does, as long as it says that it is."""
    for start in range(len(data) - 1):
        if data[start] == 0x30:
            size = max(0, data[start + 1] - 0x80)
            content = start + 2 + size
            length = int.from_bytes(data[start + 2 : content], "big") if size else data[start + 1]
            yield data[start : content + length]


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for these bytes."""
    try:
        digest = spki_sha256(data)
    except MalformedError as error:
        assert error.code == "bad_certificate"
        return
    assert digest in {sha256(piece).digest() for piece in sequences(data)}
