"""Intel's collateral for a quote, from Intel's own service or a cache of it.

Source: "Intel SGX and TDX Provisioning Certification Service", API version 4. A cache (PCCS) has the same paths, and
one more, for the root's revocation list, which Intel itself publishes at the address that the root certificate names.
Nothing fetched here is trusted: `verify_quote` checks every signature up to Intel's root, and who signed.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote

import dcap_qvl
import msgspec

from ..documents import UNDECODABLE, decode
from ..errors import FetchError, UsageError, VerificationError
from ..hexadecimal import unhex
from .flow import Answer, Flow, Question

__all__ = ["INTEL_PCS", "fetch_collateral", "parse_collateral"]

INTEL_PCS: Final = "https://api.trustedservices.intel.com"
"""Intel's Provisioning Certification Service."""

_ROOT_REVOCATIONS: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
_WHAT: Final = "Intel's collateral"
_DER_SEQUENCE: Final = b"\x30"
_SIGNATURE_LENGTH: Final = 64


class _Collateral(msgspec.Struct, frozen=True):
    """The members that `dcap-qvl` needs."""

    pck_crl_issuer_chain: str
    root_ca_crl: str
    pck_crl: str
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: str
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: str


def parse_collateral(text: str | bytes) -> dict[str, Any]:
    """Read collateral from JSON, as `dcap-qvl` writes it and `fetch_collateral` returns it.

    Raises:
        UsageError: `bad_collateral` if it is something else.
    """
    try:
        decoded = decode(text, dict[str, Any])
        msgspec.convert(decoded, _Collateral)
    except UNDECODABLE as error:
        raise UsageError("The collateral is not what dcap-qvl writes as JSON.", code="bad_collateral") from error
    return decoded


def fetch_collateral(quote: bytes, pccs: str = INTEL_PCS) -> Flow[dict[str, Any]]:
    """Fetch what Intel has published for the machine of a quote.

    What it does NOT establish: that any of it is Intel's. `verify_quote` does.

    Args:
        quote: binary, with the machine's certificates in it.
        pccs: base URL of the service.

    Returns:
        The collateral as `dcap-qvl` names its parts, for `verify_report`.

    Raises:
        VerificationError: `quote_without_certificate` if the quote does not say which machine made it.
        FetchError: `bad_status` or `bad_answer`.
    """
    try:
        parsed = dcap_qvl.parse_quote(quote)
        fmspc, authority = parsed.fmspc(), parsed.ca()
    except ValueError as error:
        raise VerificationError(
            "The quote holds no certificate of its machine, so that there is no collateral to fetch.",
            code="quote_without_certificate",
            step="signature",
        ) from error
    base = pccs.rstrip("/")
    revocations = yield from _fetch(f"{base}/sgx/certification/v4/pckcrl?ca={authority}&encoding=der")
    tcb_answer = yield from _fetch(f"{base}/tdx/certification/v4/tcb?fmspc={fmspc}")
    identity_answer = yield from _fetch(f"{base}/tdx/certification/v4/qe/identity?update=standard")
    tcb_info, tcb_info_signature = _signed(tcb_answer, "tcbInfo")
    qe_identity, qe_identity_signature = _signed(identity_answer, "enclaveIdentity")
    return {
        "pck_crl_issuer_chain": _chain(revocations, "sgx-pck-crl-issuer-chain"),
        "root_ca_crl": (yield from _fetch_root_revocations(base)),
        "pck_crl": _revocation_list(revocations),
        "tcb_info_issuer_chain": _chain(tcb_answer, "tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"),
        "tcb_info": tcb_info,
        "tcb_info_signature": tcb_info_signature,
        "qe_identity_issuer_chain": _chain(identity_answer, "sgx-enclave-identity-issuer-chain"),
        "qe_identity": qe_identity,
        "qe_identity_signature": qe_identity_signature,
    }


def _fetch(url: str) -> Flow[Answer]:
    question = Question(_WHAT, url)
    answer = yield question
    if answer.status != 200:
        # Without `status`, which would be what the server that is attested has answered to the token.
        raise FetchError(f"Asked for {_WHAT}, {question.host} answered {answer.status}.", code="bad_status")
    return answer


def _fetch_root_revocations(base: str) -> Flow[str]:
    """Fetch the root's revocation list: from the cache, or, where that does not have the path, from Intel."""
    answer = yield Question(_WHAT, f"{base}/sgx/certification/v4/rootcacrl")
    if answer.status != 200:
        answer = yield from _fetch(_ROOT_REVOCATIONS)
    return _revocation_list(answer)


def _revocation_list(answer: Answer) -> str:
    """Return a revocation list (DER) in hex; caches answer with either."""
    if answer.body.startswith(_DER_SEQUENCE):
        return answer.body.hex()
    decoded = unhex(answer.body.decode("latin-1").strip())
    if decoded is None or not decoded.startswith(_DER_SEQUENCE):
        raise FetchError(f"{_WHAT} lacks a revocation list.", code="bad_answer")
    return decoded.hex()


def _signed(answer: Answer, name: str) -> tuple[str, str]:
    """Return a member of a JSON object as it was written, since that is what was signed, and its signature in hex."""
    try:
        members = decode(answer.body, dict[str, msgspec.Raw])
        member, written = bytes(members[name]).decode(), msgspec.json.decode(members["signature"], type=str)
    except (*UNDECODABLE, KeyError) as error:
        raise FetchError(f"{_WHAT} is not the JSON that it should be.", code="bad_answer") from error
    signature = unhex(written, _SIGNATURE_LENGTH)
    if signature is None:
        # `verify_quote` would take it for a mistake of the caller's, or for a forged quote.
        raise FetchError(f"{_WHAT} lacks a signature.", code="bad_answer")
    return member, signature.hex()


def _chain(answer: Answer, *names: str) -> str:
    """Return a certificate chain (PEM) from the first of these headers that is there."""
    found = next((answer.headers[name] for name in names if name in answer.headers), None)
    if found is None:
        raise FetchError(f"{_WHAT} lacks a certificate chain.", code="bad_answer")
    return unquote(found)
