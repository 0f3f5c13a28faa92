"""The signature of a TDX quote, its certificates and the state of the machine, by `dcap-qvl`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import dcap_qvl
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ..errors import UsageError, VerificationError
from .policy import Policy

__all__ = ["VerifiedTcb", "verify_quote"]

_REASONS: Final = (
    (
        r"No matching TCB level found|(TDX module|QE) ISVSVN \d+ is below minimum required( \d+)? from [\w ]+",
        "tcb_unknown",
        "Intel knows no state of this machine: its firmware, TDX module or quoting enclave is too old.",
    ),
    (
        r"(TCBInfo|QE Identity) (expired|issue date is in the future)|(C(rl|ert)Expired|CertNotValidYet) \{.*\}",
        "collateral_expired",
        "The collateral, or a certificate, is not valid at this time.",
    ),
    (r"CertRevoked", "certificate_revoked", "A certificate of the quote, or of the collateral, was revoked."),
    (
        r"TCB status is invalid: Revoked",
        "tcb_not_accepted",
        "The machine's state is Revoked: Intel has withdrawn its word for it, and no policy can accept that.",
    ),
)
"""What the last line of a message of `dcap-qvl` is as a whole. Others quote the collateral, and list all states."""

_PREFIX: Final = "Verification failed: "
_SIGNED: Final = ("tcb_info_issuer_chain", "qe_identity_issuer_chain")
_SIGNER: Final = "Intel SGX TCB Signing"
"""Common name of the certificate with which Intel signs collateral (Intel, PCS API version 4)."""
_UNVERIFIED: Final = "The quote's signature, or its chain up to Intel's root, does not verify with this collateral."


class VerifiedTcb(msgspec.Struct, frozen=True):
    """What Intel says about the machine that made a quote.

    Attributes:
        status: "UpToDate", or another word that the policy accepts.
        advisory_ids: Intel's security advisories that apply.
    """

    status: str
    advisory_ids: tuple[str, ...]


def verify_quote(
    quote: bytes, collateral: Mapping[str, Any], policy: Policy, *, now: float, root: bytes | None = None
) -> VerifiedTcb:
    """Check a quote's signature up to Intel's root, and the state of its machine against the policy.

    What it does NOT establish: what the quote says. In debug mode, or over other report data, it verifies as well.

    Args:
        quote: binary.
        collateral: Intel's certificates, revocation lists and lists of good states, as `dcap-qvl` names them, decoded.
        policy: which states are good enough.
        now: seconds since 1970, UTC, at which all must be valid.
        root: another root than Intel's that is trusted instead, a certificate in DER; for tests.

    Raises:
        VerificationError: `quote_not_verified`, `collateral_expired`, `tcb_unknown`, `certificate_revoked`,
            `collateral_signer` if the collateral was signed with a key that Intel has certified for something else, or
            `tcb_not_accepted` if the policy does not list the state, or it is Revoked, which no policy can accept.
        UsageError: `bad_collateral` if the collateral lacks members.
    """
    try:
        parsed = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(dict(collateral)))
    except ValueError as error:
        raise UsageError("The collateral is not what dcap-qvl writes as JSON.", code="bad_collateral") from error
    chains = {name: _signing_chain(getattr(parsed, name)) for name in _SIGNED}
    parsed = dcap_qvl.QuoteCollateralV3.from_json(json.dumps({**collateral, **chains}))
    try:
        if root is None:
            verified = dcap_qvl.verify(quote, parsed, int(now))
        else:
            verified = dcap_qvl.verify_with_root_ca(quote, parsed, root, int(now))
    except (ValueError, OverflowError) as error:
        last = str(error).rpartition("\n")[2].strip().removeprefix(_PREFIX)
        code, message = next(
            ((code, message) for words, code, message in _REASONS if re.fullmatch(words, last)),
            ("quote_not_verified", _UNVERIFIED),
        )
        raise VerificationError(message, code=code) from error
    if verified.status not in policy.tcb_statuses:
        raise VerificationError(
            f"The machine's state is {verified.status}, which the policy does not accept.", code="tcb_not_accepted"
        )
    return VerifiedTcb(verified.status, tuple(verified.advisory_ids))


def _signing_chain(pem: str) -> str:
    """Return a chain written anew, if its first certificate is the one that Intel signs collateral with.

    `dcap-qvl` checks that the chain leads to Intel's root, and not what for. Every machine has a key with such a chain.
    Readers differ in which blocks of PEM they take for certificates: written anew, all find those that were looked at.
    """
    try:
        chain = x509.load_pem_x509_certificates(pem.encode())
        names = [name.value for name in chain[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except (ValueError, x509.InvalidVersion) as error:
        raise VerificationError(_UNVERIFIED, code="quote_not_verified") from error
    if names != [_SIGNER]:
        raise VerificationError("The collateral was signed with another key of Intel's.", code="collateral_signer")
    return "".join(certificate.public_bytes(Encoding.PEM).decode("ascii") for certificate in chain)
