"""One answer against an attested key, in steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec

from ..errors import VerificationError
from ..signing import SigningAlgorithm
from ..text import parse_signed_text
from .exchange import compare_digests
from .signatures import Signatures, read_signatures, verify_signature
from .steps import Passed, Step, run_steps

__all__ = ["ANSWER_STEPS", "WHEN_ANSWERED", "VerifiedAnswer", "verify_answer", "verify_answer_digests"]

WHEN_ANSWERED: Final = "when the answer was given: an older one to the same request is signed as well"
"""What is not established, unless whoever asks has just put something random into the request."""

_NEVER_ESTABLISHED: Final = (
    WHEN_ANSWERED,
    "the request's method, path and headers: among these the boundary of a multipart body, and a range",
    "the answer's status and headers",
)
_NO_MODEL: Final = "which model answered: the signed text names none"


class VerifiedAnswer(msgspec.Struct, frozen=True):
    """What `verify_answer` has established: these bytes in, those bytes out, signed by the expected key.

    Attributes:
        request_sha256: digest of the request, hex.
        response_sha256: digest of the response, hex.
        signing_algo: the algorithm of the key.
        signing_address: its address.
        model: the model's name, where the signed text has one: what the server calls it.
        steps: each step that has passed.
    """

    request_sha256: str
    response_sha256: str
    signing_algo: SigningAlgorithm
    signing_address: str
    model: str | None
    steps: tuple[Passed, ...] = ()

    @property
    def not_established(self) -> tuple[str, ...]:
        """What nobody has checked, in words; what is open about the key, its `VerifiedReport` lists."""
        return _NEVER_ESTABLISHED if self.model is not None else (*_NEVER_ESTABLISHED, _NO_MODEL)


class _Evidence(msgspec.Struct):
    """What the steps are given, and what they add."""

    raw: Mapping[str, Any]
    request_sha256: str
    response_sha256: str
    algorithm: SigningAlgorithm
    address: str
    read: Signatures | None = None
    model: str | None = None
    digests: tuple[str, str] = ("", "")

    @property
    def answer(self) -> Signatures:
        assert self.read is not None, "the first step reads the signatures"
        return self.read


def _read_signatures(evidence: _Evidence) -> str:
    evidence.read = read_signatures(evidence.raw)
    evidence.model, *digests = parse_signed_text(evidence.read.text)
    evidence.digests = (digests[0], digests[1])
    return "two digests" if evidence.model is None else f"two digests behind the model's name, {evidence.model}"


def _check_request(evidence: _Evidence) -> str:
    return compare_digests("request", evidence.request_sha256, evidence.digests[0])


def _check_response(evidence: _Evidence) -> str:
    return compare_digests("response", evidence.response_sha256, evidence.digests[1])


def _check_identity(evidence: _Evidence) -> str:
    found = [each.address for each in evidence.answer.signatures if each.algorithm == evidence.algorithm]
    if not found or any(_plain(address) != _plain(evidence.address) for address in found):
        raise VerificationError("The answer was not signed by the attested key.", code="identity_mismatch")
    return f"{evidence.algorithm} {evidence.address}"


def _check_signatures(evidence: _Evidence) -> str:
    text, signatures = evidence.answer.text, evidence.answer.signatures
    for signature in signatures:
        verify_signature(text, signature)
    return " and ".join(sorted({signature.algorithm for signature in signatures}))


ANSWER_STEPS: Final[tuple[Step[Any], ...]] = (
    Step("signed text", "the signature can be read, and what it is about", "the signature", _read_signatures),
    Step("request hash", "the request is the one that was signed", "the request's bytes", _check_request),
    Step("response hash", "the response is the one that was signed", "the response's bytes", _check_response),
    Step("signing address", "the key is the attested one", "the attested address", _check_identity),
    Step("signatures", "that key signed, and so did any other that is named", "text and signatures", _check_signatures),
)
"""The steps of `verify_answer`, in order."""


def verify_answer(
    request: bytes,
    response: bytes,
    signature: Mapping[str, Any],
    *,
    algorithm: SigningAlgorithm,
    address: str,
    passed: Callable[[Passed], None] = lambda _: None,
) -> VerifiedAnswer:
    """Check one answer in the steps of `ANSWER_STEPS`: digests, whose key it is, and each signature handed out.

    1. The signature can be read, and its text ends in two digests.
    2. The request's SHA-256 is the text's.
    3. The response's SHA-256 is the text's.
    4. The address beside the signature is the expected one (compared without case).
    5. The signature of the text is that key's; if there is another with it, that one verifies too.

    What it does NOT establish: where the key lives, for which take the address from a `VerifiedReport`; and what the
    result lists, above all that the answer is a new one.

    Args:
        request: the body as it was sent; of a request without a body, its raw target (`path` or `path?query`,
            and never `path?`).
        response: the body as it was received, after HTTP framing is removed.
        signature: the signature endpoint's answer, decoded JSON.
        algorithm: of the attested key.
        address: the attested key's address.
        passed: called after each step that has passed.

    Raises:
        VerificationError: with the step's name in `step`, and the code `bad_signature_answer`, `bad_text`,
            `request_hash_mismatch`, `response_hash_mismatch`, `identity_mismatch`, `bad_signature`, `bad_address`,
            `ecdsa_unrecoverable`, `ecdsa_mismatch` or `ed25519_mismatch`.
    """
    return verify_answer_digests(
        sha256(request).hexdigest(),
        sha256(response).hexdigest(),
        signature,
        algorithm=algorithm,
        address=address,
        passed=passed,
    )


def verify_answer_digests(
    request_sha256: str,
    response_sha256: str,
    signature: Mapping[str, Any],
    *,
    algorithm: SigningAlgorithm,
    address: str,
    passed: Callable[[Passed], None] = lambda _: None,
) -> VerifiedAnswer:
    """Check one answer as `verify_answer` does, for who hashed the bytes as they passed and has not kept them.

    Args:
        request_sha256: what was computed over the request, lowercase hex.
        response_sha256: over the response, likewise.
        signature: as for `verify_answer`.
        algorithm: likewise.
        address: likewise.
        passed: likewise.

    Raises:
        VerificationError: likewise.
    """
    evidence = _Evidence(signature, request_sha256, response_sha256, algorithm, address)
    steps = run_steps(ANSWER_STEPS, evidence, passed)
    return VerifiedAnswer(*evidence.digests, algorithm, address, evidence.model, steps)


def _plain(address: str) -> str:
    return address.lower().removeprefix("0x")
