"""Checks for the far end: each raises a `TeesignError`, or returns what it has verified.

There is no check that returns a bool: a result that can be ignored will be.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Literal

import msgspec

from ..attestation import report_data
from ..errors import MalformedError, VerificationError
from ..quote import TdxQuote
from ..signing import Identity, SignedChat, verify_ecdsa, verify_ed25519

__all__ = [
    "VerifiedExchange",
    "compare_digests",
    "parse_signed_text",
    "verify_digest",
    "verify_exchange",
    "verify_report_data",
]


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


def parse_signed_text(text: str) -> tuple[str | None, str, str]:
    """Return the parts of a signed text: the model's name (None where it names none), and both digests in hex.

    Raises:
        VerificationError: `bad_text` if it does not end in two digests.
    """
    *model, request_sha256, response_sha256 = text.rsplit(":", 2) if ":" in text else ("", "")
    if len(request_sha256) != 64 or len(response_sha256) != 64:
        raise VerificationError("The signed text does not end in two SHA-256 digests.", code="bad_text")
    # An empty name is none: servers have to have one.
    return "".join(model) or None, request_sha256, response_sha256


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


def verify_exchange(request: bytes, response: bytes, chat: SignedChat) -> VerifiedExchange:
    """Check a signed chat against the exact bytes that were sent and received.

    1. The request's SHA-256 is the text's.
    2. The response's SHA-256 is the text's.
    3. The ECDSA signature of the text recovers to the address beside it (compared without case).
    4. The Ed25519 signature of the text is that of the key beside it.

    What it does NOT establish: whose keys these are. For that, attest the server, and compare the addresses returned
    here with the attested ones. Nor when the answer was given, to which path the request went, or with which status
    and headers the answer came: nothing of that is signed.

    Args:
        request: the body as it was sent; of a request without a body, its raw target (`path` or `path?query`,
            and never `path?`).
        response: the body as it was received, after HTTP framing is removed.
        chat: text, signatures and addresses as the signature endpoint returned them.

    Raises:
        VerificationError: `bad_text`, `request_hash_mismatch`, `response_hash_mismatch`, `ecdsa_unrecoverable`,
            `ecdsa_mismatch` or `ed25519_mismatch`.
        MalformedError: `bad_signature` or `bad_address` if a value is not even well-formed; `bad_signature_answer` if
            one is no text.
    """
    if not all(isinstance(value, str) for value in msgspec.structs.astuple(chat)):
        raise MalformedError(
            "A text, a signature or an address is not text: take them as the signature endpoint answered them.",
            code="bad_signature_answer",
        )
    model, request_sha256, response_sha256 = parse_signed_text(chat.text)
    verify_digest("request", request, request_sha256)
    verify_digest("response", response, response_sha256)
    address = verify_ecdsa(chat.text, chat.signature_ecdsa, chat.signing_address_ecdsa)
    verify_ed25519(chat.text, chat.signature_ed25519, chat.signing_address_ed25519)
    return VerifiedExchange(request_sha256, response_sha256, address, chat.signing_address_ed25519, model)


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
