"""One answer against an attested key: what a signature endpoint returns, in every form of this family of servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from ..errors import MalformedError, VerificationError
from ..signing import SigningAlgorithm, verify_ecdsa, verify_ed25519
from .exchange import parse_signed_text, verify_digest

__all__ = ["VerifiedAnswer", "verify_answer"]


class VerifiedAnswer(msgspec.Struct, frozen=True):
    """What `verify_answer` has established: these bytes in, those bytes out, signed by the expected key.

    Attributes:
        request_sha256: digest of the request, hex.
        response_sha256: digest of the response, hex.
        signing_algo: the algorithm of the key.
        signing_address: its address.
        model: the model's name, where the signed text has one: what the server calls it.
    """

    request_sha256: str
    response_sha256: str
    signing_algo: SigningAlgorithm
    signing_address: str
    model: str | None


class _Signature(msgspec.Struct, frozen=True):
    """The members that every server of this family answers with, and those that newer ones add."""

    text: str
    signature: str = ""
    signing_address: str = ""
    signing_algo: Literal["ecdsa", "ed25519"] = "ecdsa"
    signature_ecdsa: str | None = None
    signing_address_ecdsa: str | None = None
    signature_ed25519: str | None = None
    signing_address_ed25519: str | None = None


def verify_answer(
    request: bytes, response: bytes, signature: Mapping[str, Any], *, algorithm: SigningAlgorithm, address: str
) -> VerifiedAnswer:
    """Check one answer: digests, whose key it is, and each signature that was handed out.

    1. The signature can be read, and its text ends in two digests.
    2. The request's SHA-256 is the text's.
    3. The response's SHA-256 is the text's.
    4. The address beside the signature is the expected one (compared without case).
    5. The signature of the text is that key's; if there is another with it, that one verifies too.

    What it does NOT establish: where the key lives. Take the address from a `VerifiedReport`.

    Args:
        request: the body as it was sent; of a request without a body, its raw target (`path` or `path?query`).
        response: the body as it was received, after HTTP framing is removed.
        signature: the signature endpoint's answer, decoded JSON.
        algorithm: of the attested key.
        address: the attested key's address.

    Raises:
        VerificationError: `bad_signature_answer`, `bad_text`, `request_hash_mismatch`, `response_hash_mismatch`,
            `identity_mismatch`, `bad_signature`, `bad_address`, `ecdsa_unrecoverable`, `ecdsa_mismatch` or
            `ed25519_mismatch`.
    """
    try:
        read = msgspec.convert(signature, _Signature)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise VerificationError(
            "The signature endpoint's answer lacks a text, or its members are not text.", code="bad_signature_answer"
        ) from error
    model, request_sha256, response_sha256 = parse_signed_text(read.text)
    verify_digest("request", request, request_sha256)
    verify_digest("response", response, response_sha256)
    pairs = _pairs(read)
    found = [stated for kind, _, stated in pairs if kind == algorithm]
    if not found or any(_plain(stated) != _plain(address) for stated in found):
        raise VerificationError("The answer was not signed by the attested key.", code="identity_mismatch")
    try:
        for kind, value, stated in pairs:
            if kind == "ecdsa":
                # The 0x that addresses of this kind start with is a matter of taste to some servers.
                verify_ecdsa(read.text, value, f"0x{_plain(stated)}")
            else:
                verify_ed25519(read.text, value, stated)
    except MalformedError as error:
        raise VerificationError(str(error), code=error.code) from error
    return VerifiedAnswer(request_sha256, response_sha256, algorithm, address, model)


def _pairs(read: _Signature) -> list[tuple[SigningAlgorithm, str, str]]:
    """Return algorithm, signature and address of each signature in an answer."""
    pairs: list[tuple[SigningAlgorithm, str, str]] = []
    if read.signature or read.signing_address:
        pairs.append((read.signing_algo, read.signature, read.signing_address))
    if read.signature_ecdsa is not None or read.signing_address_ecdsa is not None:
        pairs.append(("ecdsa", read.signature_ecdsa or "", read.signing_address_ecdsa or ""))
    if read.signature_ed25519 is not None or read.signing_address_ed25519 is not None:
        pairs.append(("ed25519", read.signature_ed25519 or "", read.signing_address_ed25519 or ""))
    return pairs


def _plain(address: str) -> str:
    return address.lower().removeprefix("0x")
