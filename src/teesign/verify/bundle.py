"""Evidence bundles: one JSON file with everything that is needed to verify one answer again, offline, years later.

A bundle holds what was checked and nothing else: no name of a server, no comment, no version of the program that wrote
it. What its members say is established by the same steps as when it was made. What nothing signs is held by `sha256`,
the digest of all other members: it finds whatever was changed after the bundle was written.

It does not find a bundle that was made up as a whole: who can compute a SHA-256 can write another one. Such a forger
cannot change what the evidence is over, but tells the time, chooses the nonce and the policy, and words those members
of the report that nothing signs. So a bundle is proof for those who made it, and for those who trust them with these; a
digest that was kept elsewhere proves that it is still the same. `VerifiedBundle.not_established` says so.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final, TypeVar

import msgspec

from ..documents import MAX_DEPTH, decode_unambiguous
from ..errors import MalformedError, UsageError, VerificationError
from ..hexadecimal import unhex
from .answer import VerifiedAnswer, verify_answer
from .policy import Policy, parse_policy, policy_members
from .report import TrustedRoots, VerifiedReport, verify_report
from .steps import Passed

__all__ = ["BUNDLE_FORMAT", "EvidenceBundle", "VerifiedBundle", "decode_bundle", "encode_bundle", "verify_bundle"]

BUNDLE_FORMAT: Final = "teesign-bundle-1"
"""The member `format`; another way of writing bundles would get another number."""

_LATEST: Final = 253_402_300_799
"""The end of the year 9999: a later time is a mistake."""

_TIME_IS_A_CLAIM: Final = (
    "when this was, and that the nonce was fresh: for both the bundle's maker must be trusted",
    "the report's members that nothing signs, such as `info` and `model_name`: they are the server's words",
)
_CONNECTION_IS_A_CLAIM: Final = "that the connection ended at the TLS key that the report binds"
_POLICY_IS_A_CLAIM: Final = "that the policy is one you would choose: it is the bundle's own"

Value = TypeVar("Value")


class EvidenceBundle(msgspec.Struct, frozen=True):
    """What one verification was made of.

    Attributes:
        verified_at: when it was, whole seconds since 1970, UTC: collateral and certificates are judged at that time.
        policy: what was accepted.
        nonce: the 32 bytes that were sent.
        spki_sha256: 32 bytes, SHA-256 of the connection's TLS key, if the report binds it; else None.
        report: the attestation report as it was answered, decoded JSON.
        collateral: what Intel had published, as for `verify_quote`; None for a simulated report.
        request: the request's exact bytes; of a request without a body, its raw target, see `verify_answer`.
        response: the response's exact bytes.
        signature: the signature endpoint's answer, decoded JSON.
    """

    verified_at: int
    policy: Policy
    nonce: bytes
    spki_sha256: bytes | None
    report: Mapping[str, Any]
    collateral: Mapping[str, Any] | None
    request: bytes
    response: bytes
    signature: Mapping[str, Any]

    def __repr__(self) -> str:
        """Show nothing of what was asked and answered."""
        return f"EvidenceBundle(verified_at={self.verified_at})"


class VerifiedBundle(msgspec.Struct, frozen=True):
    """What `verify_bundle` has established, at the bundle's time.

    Attributes:
        report: where the key lives.
        answer: what it signed.
        policy: what was accepted.
        not_established: what nobody has checked, in words.
    """

    report: VerifiedReport
    answer: VerifiedAnswer
    policy: Policy
    not_established: tuple[str, ...]


def encode_bundle(bundle: EvidenceBundle) -> bytes:
    """Write a bundle.

    What it does NOT do: verify anything, but what `verify_bundle` demands beyond `verify_report` and `verify_answer`:
    what these have verified, and is written, verifies again.

    Raises:
        UsageError: `bad_bundle` if the bundle has members that JSON cannot express, or that `decode_bundle` refuses.
        VerificationError: `attestations_differ` as from `verify_bundle`.
    """
    try:
        members = _members(bundle)
        written = json.dumps({**members, "sha256": _digest(members)}, indent=1).encode()
        decode_bundle(written)
    except (ValueError, TypeError, RecursionError, MalformedError) as error:
        raise UsageError("The bundle holds a value that cannot be written.", code="bad_bundle") from error
    _check_attestations(bundle.report)
    return written


def decode_bundle(written: bytes) -> EvidenceBundle:
    """Read a bundle, if it is exactly as `encode_bundle` wrote it, white space apart.

    What it does NOT establish: anything, but that nobody changed the file who left `sha256` as it was. Parsed is not
    verified.

    Raises:
        VerificationError: `bundle_changed` if `sha256` is not the digest of the other members.
        MalformedError: `not_a_bundle` if it is no JSON object, `unknown_bundle_format` if it is one of another format:
            most likely another file; `bad_bundle` if it is a bundle that nobody has written like that.
    """
    members, digest = _decode_object(written)
    if members.get("format") != BUNDLE_FORMAT:
        raise MalformedError(f"The bundle's format is not {BUNDLE_FORMAT}.", code="unknown_bundle_format")
    if members.pop("sha256", None) != digest:
        raise VerificationError("The bundle was changed after it was written.", code="bundle_changed", step="bundle")
    bundle = _bundle(members)
    # One value has one spelling, and there are no members beside those that are looked at.
    if _digest(_members(bundle)) != digest:
        raise MalformedError("The bundle has unknown members, or spells one in another way.", code="bad_bundle")
    return bundle


def verify_bundle(
    bundle: EvidenceBundle,
    policy: Policy | None = None,
    *,
    roots: TrustedRoots | None = None,
    passed: Callable[[Passed], None] = lambda _: None,
) -> VerifiedBundle:
    """Check a bundle's report at its time, and then that the attested key signed its answer.

    What it does NOT establish is listed in the result.

    Args:
        bundle: from `decode_bundle`.
        policy: what is accepted; the bundle's own when None, unless that is an `UnsafeSimulatedPolicy`: a forger could
            write it, so whoever wants it must say so.
        roots: other roots than Intel's and NVIDIA's; for tests.
        passed: called after each step that has passed, of `verify_report` and then of `verify_answer`.

    Raises:
        VerificationError: as from `verify_report` and `verify_answer`; `unsafe_policy`, or `attestations_differ` if
            the report's `all_attestations` do not hold the report itself.
        UsageError: `bad_collateral` if the collateral lacks members.
    """
    if policy is None and bundle.policy.accepts_simulated:
        raise VerificationError(
            "The bundle was made under an UnsafeSimulatedPolicy: it proves nothing about any machine.",
            code="unsafe_policy",
            step="bundle",
        )
    _check_attestations(bundle.report)
    accepted = policy or bundle.policy
    report = verify_report(
        bundle.report,
        bundle.nonce,
        accepted,
        collateral=bundle.collateral,
        now=bundle.verified_at,
        spki_sha256=bundle.spki_sha256,
        roots=roots,
        passed=passed,
    )
    answer = verify_answer(
        bundle.request,
        bundle.response,
        bundle.signature,
        algorithm=report.signing_algo,
        address=report.signing_address,
        passed=lambda step: passed(msgspec.structs.replace(step, number=step.number + len(report.steps))),
    )
    own = (_POLICY_IS_A_CLAIM,) if policy is None else ()
    connection = () if bundle.spki_sha256 is None else (_CONNECTION_IS_A_CLAIM,)
    open_ = (*report.not_established, *answer.not_established, *own, *connection, *_TIME_IS_A_CLAIM)
    return VerifiedBundle(report, answer, accepted, open_)


def _check_attestations(report: Mapping[str, Any]) -> None:
    """Check that where a report repeats itself in `all_attestations`, it says the same."""
    everything = report.get("all_attestations")
    itself = {name: value for name, value in report.items() if name != "all_attestations"}
    if everything is not None and (not isinstance(everything, list) or itself not in everything):
        raise VerificationError(
            "The report is not among its own attestations.", code="attestations_differ", step="bundle"
        )


def _members(bundle: EvidenceBundle) -> dict[str, Any]:
    return {
        "format": BUNDLE_FORMAT,
        "verified_at": bundle.verified_at,
        "policy": policy_members(bundle.policy),
        "nonce": bundle.nonce.hex(),
        "spki_sha256": None if bundle.spki_sha256 is None else bundle.spki_sha256.hex(),
        "report": dict(bundle.report),
        "collateral": None if bundle.collateral is None else dict(bundle.collateral),
        "request": base64.b64encode(bundle.request).decode(),
        "response": base64.b64encode(bundle.response).decode(),
        "signature": dict(bundle.signature),
    }


def _bundle(members: Mapping[str, Any]) -> EvidenceBundle:
    spki, collateral = members.get("spki_sha256"), members.get("collateral")
    moment = _typed("verified_at", members, int)
    if isinstance(moment, bool) or not 0 <= moment <= _LATEST:
        raise _wrong("verified_at")
    try:
        policy = parse_policy(json.dumps(_typed("policy", members, dict)))
    except UsageError as error:
        raise _wrong("policy") from error
    return EvidenceBundle(
        verified_at=moment,
        policy=policy,
        nonce=_digest_bytes("nonce", members),
        spki_sha256=None if spki is None else _digest_bytes("spki_sha256", members),
        report=_typed("report", members, dict),
        collateral=None if collateral is None else _typed("collateral", members, dict),
        request=_body("request", members),
        response=_body("response", members),
        signature=_typed("signature", members, dict),
    )


def _typed(name: str, members: Mapping[str, Any], kind: type[Value]) -> Value:
    value = members.get(name)
    if not isinstance(value, kind):
        raise _wrong(name)
    return value


def _digest_bytes(name: str, members: Mapping[str, Any]) -> bytes:
    value = unhex(_typed(name, members, str), 32)
    if value is None:
        raise _wrong(name)
    return value


def _body(name: str, members: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(_typed(name, members, str), validate=True)
    except ValueError as error:
        raise _wrong(name) from error


def _wrong(name: str) -> MalformedError:
    return MalformedError(f"The bundle's member {name} is missing, or not of its type.", code="bad_bundle")


def _decode_object(written: bytes) -> tuple[dict[str, Any], str]:
    """Return the object in a file, and the digest of its members without `sha256`."""
    # Nothing is chained: the decoder's exceptions hold the whole text.
    try:
        # Whatever was read as a document of its own is one level deeper here.
        members = decode_unambiguous(written.decode(), MAX_DEPTH + 1)
        if isinstance(members, dict):
            return members, _digest({name: value for name, value in members.items() if name != "sha256"})
    except (UnicodeDecodeError, json.JSONDecodeError):
        pass  # it is no more of a bundle than JSON that is no object
    except (ValueError, RecursionError):
        raise MalformedError(
            "The bundle has too many levels, names a member of an object twice, or holds a number that is none.",
            code="bad_bundle",
        ) from None
    raise MalformedError("The file is not a JSON object.", code="not_a_bundle")


def _digest(members: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON in ASCII without spaces, the members of each object in the order of their names."""
    return sha256(json.dumps(members, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()
