"""GPU evidence: an SPDM report of each GPU, signed by a key that leads to NVIDIA's device root.

Layout: DMTF DSP0274 version 1.1, GET_MEASUREMENTS (37 bytes, the nonce at 4) followed by MEASUREMENTS. Algorithms are
those of NVIDIA's GPUs: ECDSA P-384 over SHA-384 of both messages without the signature. Integers are little-endian.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Any, Final, TypeGuard

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ..errors import VerificationError

__all__ = ["NVIDIA_DEVICE_ROOT_SHA256", "SpdmReport", "VerifiedGpu", "parse_spdm_report", "verify_gpu_evidence"]

NVIDIA_DEVICE_ROOT_SHA256: Final = "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48"
"""SHA-256 of the certificate (DER) "NVIDIA Device Identity CA", serial 2d3670b1ca100411c1fec0e82a065b54."""

_REQUEST_LENGTH: Final = 37
_GET_MEASUREMENTS: Final = b"\x11\xe0"
_MEASUREMENTS: Final = b"\x11\x60"
_SIGNATURE_LENGTH: Final = 96
_MAX_CHAIN: Final = 10
"""Most certificates in a GPU's chain; NVIDIA's have five, of less than 1.5 KiB each."""

_MAX_PEM: Final = 32 * 1024
"""Longest chain that is read, in bytes."""

_UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What cryptography raises for certificates that are not as they should be."""


class SpdmReport(msgspec.Struct, frozen=True):
    """What a GPU's report says. Nothing of it has been verified.

    Attributes:
        nonce: 32 bytes, chosen by whoever asked.
        measurements: the measurement record, as it is.
        signed_part: the bytes that the signature covers.
        signature: r and s, 48 bytes each, big-endian.
    """

    nonce: bytes
    measurements: bytes
    signed_part: bytes
    signature: bytes


class VerifiedGpu(msgspec.Struct, frozen=True):
    """One GPU whose report was verified.

    Attributes:
        name: the subject of its certificate.
        key_sha256: of its certificate's key (SPKI, DER), hex: which GPU it is.
        measurements_sha256: of its measurement record, hex. Nobody has said whether these are good.
    """

    name: str
    key_sha256: str
    measurements_sha256: str


def parse_spdm_report(report: bytes) -> SpdmReport:
    """Read a request GET_MEASUREMENTS and its answer.

    What it does NOT establish: anything. Its signature is not looked at.

    Raises:
        VerificationError: `gpu_bad_report` if these bytes are not exactly one such pair.
    """
    answer = report[_REQUEST_LENGTH:]
    record_end = 8 + int.from_bytes(answer[5:8], "little")
    opaque_start = record_end + 32 + 2
    end = opaque_start + int.from_bytes(answer[record_end + 32 : opaque_start], "little")
    genuine = report.startswith(_GET_MEASUREMENTS) and answer.startswith(_MEASUREMENTS)
    if not genuine or len(answer) != end + _SIGNATURE_LENGTH or len(answer) < opaque_start:
        raise VerificationError(
            "The GPU's evidence is not an SPDM 1.1 request for measurements and its answer.", code="gpu_bad_report"
        )
    signed_part = report[:-_SIGNATURE_LENGTH]
    return SpdmReport(report[4:36], answer[8:record_end], signed_part, report[-_SIGNATURE_LENGTH:])


def verify_gpu_evidence(
    evidence: Sequence[Mapping[str, Any]],
    nonce: bytes,
    *,
    now: float,
    root_sha256: str = NVIDIA_DEVICE_ROOT_SHA256,
) -> tuple[VerifiedGpu, ...]:
    """Check the evidence of each GPU: nonce, certificate chain up to the root, and signature.

    What it does NOT establish: that the certificates have not been revoked, that the measurements are good, or that
    these GPUs sit in the machine of the quote. An item's `arch` is not looked at: nothing signs it.

    Args:
        evidence: one item a GPU, with `certificate` (chain in PEM, leaf first, root last) and `evidence`, in base64.
        nonce: the 32 bytes that each report must hold.
        now: seconds since 1970, UTC, at which the certificates must be valid.
        root_sha256: the root that is trusted: SHA-256 of its certificate (DER), in hex.

    Raises:
        VerificationError: `gpu_bad_evidence`, `gpu_bad_report`, `gpu_nonce_mismatch`, `gpu_chain_invalid`,
            `gpu_certificate_expired`, `gpu_untrusted_root`, `gpu_signature_mismatch`, or `gpu_duplicate` where one GPU
            appears twice.
    """
    # By their keys: of a certificate that is signed with ECDSA anybody can make a second one, with n - s for s.
    gpus: dict[str, VerifiedGpu] = {}
    for item in evidence:
        gpu = _verify_gpu(item, nonce, now, root_sha256)
        if gpu.key_sha256 in gpus:  # at once, so that who repeats one a thousand times costs no more time than for two
            raise VerificationError("The same GPU appears twice in the evidence.", code="gpu_duplicate")
        gpus[gpu.key_sha256] = gpu
    return tuple(gpus.values())


def _verify_gpu(item: Mapping[str, Any], nonce: bytes, now: float, root_sha256: str) -> VerifiedGpu:
    try:
        pem = base64.b64decode(item["certificate"], validate=True)
        report = parse_spdm_report(base64.b64decode(item["evidence"], validate=True))
        chain = _read_chain(pem)
    except (KeyError, *_UNREADABLE) as error:
        raise VerificationError(
            "The GPU evidence lacks a certificate chain (PEM) or a report, in base64.", code="gpu_bad_evidence"
        ) from error
    if not hmac.compare_digest(report.nonce, nonce):
        raise VerificationError("A GPU's report is over another nonce.", code="gpu_nonce_mismatch")
    _verify_chain(chain, now, root_sha256)
    _verify_signature(chain[0], report)
    return VerifiedGpu(
        chain[0].subject.rfc4514_string(),
        sha256(chain[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest(),
        sha256(report.measurements).hexdigest(),
    )


def _read_chain(pem: bytes) -> list[x509.Certificate]:
    if len(pem) > _MAX_PEM or len(chain := x509.load_pem_x509_certificates(pem)) > _MAX_CHAIN:
        raise VerificationError("A GPU's certificate chain is longer than any of NVIDIA's.", code="gpu_chain_invalid")
    return chain


def _verify_chain(chain: Sequence[x509.Certificate], now: float, root_sha256: str) -> None:
    """Check a chain from the leaf to the pinned root (RFC 5280 section 6, as far as these certificates use it).

    Anybody can have made them, in such a way that they take long: each is looked at before its key is used.
    """
    if not hmac.compare_digest(sha256(chain[-1].public_bytes(Encoding.DER)).hexdigest(), root_sha256.lower()):
        raise VerificationError(
            "A GPU's certificate chain does not end in the trusted root.", code="gpu_untrusted_root"
        )
    try:
        for depth, (certificate, issuer) in enumerate(pairwise(chain)):
            if not _may_issue(issuer, depth):
                raise VerificationError(
                    "A GPU's certificate was issued by one that must not issue.", code="gpu_chain_invalid"
                )
            certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *_UNREADABLE) as error:
        raise VerificationError(
            "A GPU's certificate chain does not hold together.", code="gpu_chain_invalid"
        ) from error
    if not all(
        certificate.not_valid_before_utc.timestamp() <= now <= certificate.not_valid_after_utc.timestamp()
        for certificate in chain
    ):
        raise VerificationError("A GPU's certificate is out of its time.", code="gpu_certificate_expired")


def _may_issue(issuer: x509.Certificate, below: int) -> bool:
    """Tell whether a certificate is an authority's, with this many authorities between it and the leaf.

    And with a key like NVIDIA's: an RSA key could be such that one signature takes a second.
    """
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return (
        constraints.ca
        and usage.key_cert_sign
        and (constraints.path_length is None or below <= constraints.path_length)
        and _is_p384(issuer.public_key())
    )


def _is_p384(key: Any) -> TypeGuard[ec.EllipticCurvePublicKey]:
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)


def _verify_signature(leaf: x509.Certificate, report: SpdmReport) -> None:
    key = leaf.public_key()
    half = _SIGNATURE_LENGTH // 2
    r, s = (int.from_bytes(part, "big") for part in (report.signature[:half], report.signature[half:]))
    try:
        if not _is_p384(key):
            raise InvalidSignature
        key.verify(encode_dss_signature(r, s), report.signed_part, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise VerificationError(
            "A GPU's report is not signed by the key of its certificate.", code="gpu_signature_mismatch"
        ) from error
