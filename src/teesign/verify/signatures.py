"""What a signature endpoint answers, in every form of this family of servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..documents import UNDECODABLE
from ..errors import MalformedError
from ..signing import SigningAlgorithm, verify_ecdsa, verify_ed25519

__all__ = ["Signature", "Signatures", "read_signatures", "verify_signature"]


class Signature(msgspec.Struct, frozen=True):
    """One signature, as it was told: nothing of it has been checked.

    Attributes:
        algorithm: of the key.
        value: the signature.
        address: the signing address beside it.
    """

    algorithm: SigningAlgorithm
    value: str
    address: str


class Signatures(msgspec.Struct, frozen=True):
    """What an answer holds.

    Attributes:
        text: what was signed.
        signatures: all that are named; may be none.
    """

    text: str
    signatures: tuple[Signature, ...]


class _Answer(msgspec.Struct, frozen=True):
    """The members that every server of this family answers with, and those that newer ones add.

    One that is null is left out. One that is empty is there, and wrong.
    """

    text: str
    signature: str | None = None
    signing_address: str | None = None
    signing_algo: SigningAlgorithm | None = None
    signature_ecdsa: str | None = None
    signing_address_ecdsa: str | None = None
    signature_ed25519: str | None = None
    signing_address_ed25519: str | None = None


def read_signatures(answer: Mapping[str, Any]) -> Signatures:
    """Read a signature endpoint's answer.

    Args:
        answer: decoded JSON.

    Raises:
        MalformedError: `bad_signature_answer` if it lacks a text, or another member is neither text nor null.
    """
    try:
        read = msgspec.convert(answer, _Answer)
    except UNDECODABLE as error:
        raise MalformedError(
            "The signature endpoint's answer lacks a text, or its members are not text.", code="bad_signature_answer"
        ) from error
    members: tuple[tuple[SigningAlgorithm, str | None, str | None], ...] = (
        (read.signing_algo or "ecdsa", read.signature, read.signing_address),
        ("ecdsa", read.signature_ecdsa, read.signing_address_ecdsa),
        ("ed25519", read.signature_ed25519, read.signing_address_ed25519),
    )
    signatures = (
        Signature(algorithm, value or "", address or "")
        for algorithm, value, address in members
        if value is not None or address is not None
    )
    return Signatures(read.text, tuple(signatures))


def verify_signature(text: str, signature: Signature) -> str:
    """Check that the key beside a signature made it, and return that key's address.

    Raises:
        MalformedError: as from `verify_ecdsa` and `verify_ed25519`.
        VerificationError: likewise.
    """
    if signature.algorithm == "ecdsa":
        return verify_ecdsa(text, signature.value, signature.address)
    verify_ed25519(text, signature.value, signature.address)
    return signature.address
