"""Checks for the far end: each raises a `TeesignError`, or returns what it has verified.

There is no check that returns a bool: a result that can be ignored will be.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Literal

import msgspec

from ..attestation import report_data
from ..errors import MalformedError, VerificationError
from ..quote import TdxQuote
from ..signing import Identity
from ..text import parse_signed_text
from .signatures import read_signatures, verify_signature

__all__ = ["VerifiedExchange", "compare_digests", "verify_digest", "verify_exchange", "verify_report_data"]


class VerifiedExchange(msgspec.Struct, frozen=True):
    """What `verify_exchange` has established: these bytes in, those bytes out, signed by both of these keys.

    Attributes:
        request_sha256: digest of the request, hex.
        response_sha256: digest of the response, hex.
        signing_address_ecdsa: the address that the ECDSA signature recovers to.
        signing_address_ed25519: the key that made the Ed25519 signature.
        model: the model's name, where the signed text has one.
    """

    request_sha256: str
    response_sha256: str
    signing_address_ecdsa: str
    signing_address_ed25519: str
    model: str | None


def verify_digest(name: Literal["request", "response"], body: bytes, digest: str) -> str:
    """Check that a body is the one that was signed, and return its SHA-256 in hex.

    Raises:
        VerificationError: `request_hash_mismatch` or `response_hash_mismatch`.
    """
    return compare_digests(name, sha256(body).hexdigest(), digest)


def compare_digests(name: Literal["request", "response"], computed: str, digest: str) -> str:
    """Check that a digest is the one that was signed, as `verify_digest` does for who has the bytes, and return it."""
    if computed != digest:
        raise VerificationError(
            f"The SHA-256 of the {name} is not the one that was signed.", code=f"{name}_hash_mismatch"
        )
    return digest


def verify_exchange(request: bytes, response: bytes, signature: Mapping[str, Any]) -> VerifiedExchange:
    """Check both signatures of an exchange against the exact bytes that were sent and received.

    1. The request's SHA-256 is the text's.
    2. The response's SHA-256 is the text's.
    3. Each signature of the text is that of the address beside it, and there is one by ECDSA and one by Ed25519.

    What it does NOT establish: whose keys these are. For that, attest the server, and compare the addresses returned
    here with the attested ones, or use `verify_answer`, which does. Nor when the answer was given, with which method
    and headers and to which path the request went, or with which status and headers the answer came: nothing of that is
    signed.

    Args:
        request: the body as it was sent; of a request without a body, its raw target (`path` or `path?query`,
            and never `path?`).
        response: the body as it was received, after HTTP framing is removed.
        signature: the signature endpoint's answer, decoded JSON; what `SignedChat.answer` returns.

    Raises:
        VerificationError: `bad_text`, `request_hash_mismatch`, `response_hash_mismatch`, `ecdsa_unrecoverable`,
            `ecdsa_mismatch` or `ed25519_mismatch`.
        MalformedError: `bad_signature` or `bad_address` if a value is not even well-formed; `bad_signature_answer` if
            the text or one of the two signatures is missing, or a value is no text.
    """
    answer = read_signatures(signature)
    model, request_sha256, response_sha256 = parse_signed_text(answer.text)
    verify_digest("request", request, request_sha256)
    verify_digest("response", response, response_sha256)
    signers = {each.algorithm: verify_signature(answer.text, each) for each in answer.signatures}
    if len(signers) < 2:
        raise MalformedError("The signature endpoint's answer lacks a signature.", code="bad_signature_answer")
    return VerifiedExchange(request_sha256, response_sha256, signers["ecdsa"], signers["ed25519"], model)


def verify_report_data(quote: TdxQuote, identity: Identity, nonce: bytes, spki_sha256: bytes | None = None) -> bytes:
    """Check that a quote's report data binds this key, this nonce and, where given, this TLS key.

    What it does NOT establish: that the quote is genuine. Verify its signature for that.

    Returns:
        The report data, 64 bytes.

    Raises:
        VerificationError: `report_data_mismatch`.
    """
    expected = report_data(identity.address_bytes, nonce, spki_sha256)
    if not hmac.compare_digest(quote.report_data, expected):
        raise VerificationError(
            "The quote's report data is not that of this signing address, nonce and TLS key.",
            code="report_data_mismatch",
        )
    return expected
