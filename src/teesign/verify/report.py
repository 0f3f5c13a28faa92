"""Attestation reports: numbered steps from a nonce to "this key lives in that machine".

Each step relies on those before it. `STEPS` is the table; `verify_report` runs it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from ..attestation import report_data
from ..documents import UNDECODABLE, decode
from ..errors import MalformedError, VerificationError
from ..hexadecimal import unhex
from ..quote import Event, TdxQuote, compose_hash, has_own_digest, parse_event_log, parse_quote, replay_event_log
from ..signing import Identity, SigningAlgorithm, checksum_address
from .gpu import NVIDIA_DEVICE_ROOT_SHA256, VerifiedGpu, verify_gpu_evidence
from .policy import Policy
from .steps import SKIPPED, Passed, Step, run_steps
from .tdx import VerifiedTcb, verify_quote

__all__ = ["STEPS", "TrustedRoots", "VerifiedReport", "verify_report"]

_NEVER_ESTABLISHED: Final = (
    "that nobody else holds the signing key: who runs the service that derives it does, and only rtmr3 pins which one",
    "that the model has the weights its name suggests",
)
_GPUS_NEVER_ESTABLISHED: Final = (
    "that the GPUs' certificates have not been revoked",
    "that the GPUs' measurements are NVIDIA's reference measurements",
    "that these are GPUs of the kind that the report names, sit in the machine of the quote, and are all that it uses",
)
_NO_GPUS: Final = "that any GPU is in confidential mode: the report has none, and the policy asks for none"
_CONNECTION_NOT_BOUND: Final = (
    "that the connection ends in the machine: whoever ends it before that can read what is asked and answered "
    "(require_tls_key)"
)
_SIMULATED: Final = "that any hardware stands behind this report: it is simulated"
_UNPINNED: Final = "what software runs in the machine: the policy pins nothing"
_IMAGE_PINS: Final = ("mr_td", "rtmr0", "rtmr1", "rtmr2")
_IMAGE_UNPINNED: Final = (
    "what guest image runs in the machine: the policy does not pin {}, and an image of somebody's own can log any "
    "application as started"
)
_APPLICATION_UNPINNED: Final = "what application runs in the machine: the policy pins neither compose_hash nor rtmr3"


class TrustedRoots(msgspec.Struct, frozen=True):
    """Where trust ends: Intel's and NVIDIA's roots, unless a test brings its own.

    Attributes:
        intel: certificate (DER) in the place of Intel's root, or None for Intel's.
        nvidia_sha256: SHA-256 of the root certificate (DER) of GPUs, hex.
    """

    intel: bytes | None = None
    nvidia_sha256: str = NVIDIA_DEVICE_ROOT_SHA256


class VerifiedReport(msgspec.Struct, frozen=True):
    """What `verify_report` has established.

    Attributes:
        signing_algo: the algorithm of the attested key.
        signing_address: the attested key's address: the machine of the quote holds the key, or did when it was asked.
        nonce: the nonce that all evidence is over.
        quote: the quote's fields.
        tcb: what Intel says about the machine; None for a simulated quote.
        compose_hash: of the compose file that was started; None if the event log names none.
        gpus: the GPUs whose reports were verified.
        simulated: whether no hardware stands behind any of this.
        steps: each step that has passed.
        not_established: what nobody has checked, in words.
    """

    signing_algo: SigningAlgorithm
    signing_address: str
    nonce: bytes
    quote: TdxQuote
    tcb: VerifiedTcb | None
    compose_hash: bytes | None
    gpus: tuple[VerifiedGpu, ...]
    simulated: bool
    steps: tuple[Passed, ...]
    not_established: tuple[str, ...]


class _Report(msgspec.Struct, frozen=True):
    """The members of a report that are looked at."""

    signing_address: str
    request_nonce: str
    intel_quote: str
    signing_algo: Literal["ecdsa", "ed25519"] = "ecdsa"
    signing_public_key: str | None = None
    nvidia_payload: str | None = None
    tls_cert_fingerprint: str | None = None
    event_log: str | list[Any] = ()  # type: ignore[assignment] # a report without one has no events
    simulated: bool = False


class _GpuPayload(msgspec.Struct, frozen=True):
    nonce: str = ""
    evidence_list: list[dict[str, Any]] = []


class _Evidence(msgspec.Struct):
    """What the steps are given, and what they add."""

    raw: Mapping[str, Any]
    nonce: bytes
    policy: Policy
    collateral: Mapping[str, Any] | None
    now: float
    spki_sha256: bytes | None
    roots: TrustedRoots
    report: _Report | None = None
    address: bytes = b""
    parsed: TdxQuote | None = None
    events: Sequence[Event] = ()
    tcb: VerifiedTcb | None = None
    compose_hash: bytes | None = None
    gpus: tuple[VerifiedGpu, ...] = ()

    @property
    def claims(self) -> _Report:
        assert self.report is not None, "the first step reads the report"
        return self.report

    @property
    def quote(self) -> TdxQuote:
        assert self.parsed is not None, "the step before reads the quote"
        return self.parsed


def _read_report(evidence: _Evidence) -> str:
    try:
        evidence.report = msgspec.convert(evidence.raw, _Report)
    except UNDECODABLE as error:
        raise VerificationError(
            "The report lacks a signing address, a nonce or a quote, or they are not text.", code="bad_report"
        ) from error
    if evidence.claims.simulated and not evidence.policy.accepts_simulated:
        raise VerificationError("The report says that it is simulated: it proves nothing.", code="simulated")
    return "simulated" if evidence.claims.simulated else "not marked as simulated"


def _read_key(evidence: _Evidence) -> str:
    claims = evidence.claims
    address = unhex(claims.signing_address, 20 if claims.signing_algo == "ecdsa" else 32)
    if address is None:
        raise VerificationError("The report's signing address is not one of its algorithm.", code="bad_address")
    if claims.signing_public_key is not None:
        key = unhex(claims.signing_public_key, 64 if claims.signing_algo == "ecdsa" else 32)
        if key is None or Identity.from_public_key(claims.signing_algo, key).address_bytes != address:
            raise VerificationError(
                "The report's public key is not that of its signing address.", code="public_key_mismatch"
            )
    if unhex(claims.request_nonce, 32) != evidence.nonce:
        raise VerificationError("The report is for another nonce than the one that was sent.", code="nonce_mismatch")
    evidence.address = address
    return f"{claims.signing_algo} {claims.signing_address}"


def _read_quote(evidence: _Evidence) -> str:
    raw = unhex(evidence.claims.intel_quote)
    if raw is None:
        raise VerificationError("The report's quote is not hex.", code="bad_quote")
    evidence.parsed = parse_quote(raw)
    if evidence.quote.is_debug and not evidence.claims.simulated:
        raise VerificationError("The machine is in debug mode: its host can read all memory.", code="debug_mode")
    return f"TDX quote, version {evidence.quote.version}"


def _check_quote(evidence: _Evidence) -> str:
    if evidence.claims.simulated:
        return f"{SKIPPED}simulated"
    if evidence.collateral is None:
        raise VerificationError("The quote cannot be verified without collateral.", code="no_collateral")
    raw = unhex(evidence.claims.intel_quote) or b""
    evidence.tcb = verify_quote(raw, evidence.collateral, evidence.policy, now=evidence.now, root=evidence.roots.intel)
    return ", ".join((evidence.tcb.status, *evidence.tcb.advisory_ids))


def _check_report_data(evidence: _Evidence) -> str:
    if evidence.policy.require_tls_key and evidence.spki_sha256 is None:
        raise VerificationError(
            "The policy asks for the connection's TLS key in the report, and there is no such key.",
            code="tls_key_missing",
        )
    named, connection = evidence.claims.tls_cert_fingerprint, evidence.spki_sha256
    stated = None if named is None else unhex(named, 32)
    if not _binds(evidence, connection):
        # The report fails in any case: this tells a proxy that ends TLS from another machine's quote.
        if stated is not None and _binds(evidence, stated):
            other = "no key of the connection is known" if connection is None else "the connection ends at another one"
            raise VerificationError(f"The report binds a TLS key, and {other}.", code="tls_key_mismatch")
        raise VerificationError(
            "The quote's report data is not that of this signing address, nonce and TLS key.",
            code="report_data_mismatch",
        )
    if named is not None and (connection is None or stated != connection):
        raise VerificationError("The report names a TLS key that it does not bind.", code="tls_key_mismatch")
    return evidence.quote.report_data.hex()


def _binds(evidence: _Evidence, spki_sha256: bytes | None) -> bool:
    """Tell whether the quote is over the report's key, the nonce and this TLS key."""
    expected = report_data(evidence.address, evidence.nonce, spki_sha256)
    return hmac.compare_digest(evidence.quote.report_data, expected)


def _check_event_log(evidence: _Evidence) -> str:
    events = [event for event in parse_event_log(evidence.claims.event_log) if event.imr == 3]
    if not hmac.compare_digest(replay_event_log(events)[3], evidence.quote.rtmrs[3]):
        raise VerificationError("The event log does not replay to the quote's RTMR3.", code="event_log_mismatch")
    if not all(map(has_own_digest, events)):
        raise VerificationError(
            "An event's name and payload are not those of its digest.", code="event_payload_mismatch"
        )
    evidence.events = events
    return f"{len(events)} events"


def _check_software(evidence: _Evidence) -> str:
    policy, quote = evidence.policy, evidence.quote
    if policy.compose_hash or any(event.event == "compose-hash" for event in evidence.events):
        evidence.compose_hash = compose_hash(evidence.events)
    measured = {"mr_td": quote.mr_td, **{f"rtmr{place}": value for place, value in enumerate(quote.rtmrs)}}
    measured["compose_hash"] = evidence.compose_hash or b""
    for name, value in measured.items():
        if not policy.check_pin(name, value):
            raise VerificationError(f"The machine's {name} is none of those that are pinned.", code=f"{name}_mismatch")
    found = f"compose-hash {evidence.compose_hash.hex()}" if evidence.compose_hash else "no compose-hash"
    return f"{found}; pinned: {', '.join(policy.pinned) or 'nothing'}"


def _check_gpus(evidence: _Evidence) -> str:
    try:
        payload = decode(evidence.claims.nvidia_payload or "{}", _GpuPayload)
    except UNDECODABLE as error:
        raise MalformedError(
            "The GPU evidence is not the JSON that it should be, or has too many levels.", code="gpu_bad_evidence"
        ) from error
    if not payload.evidence_list:
        if evidence.policy.require_gpus:
            raise VerificationError("The report has no GPU evidence, and the policy asks for it.", code="gpu_missing")
        return f"{SKIPPED}there are none, and the policy asks for none"
    if unhex(payload.nonce, 32) != evidence.nonce:
        raise VerificationError("The GPU evidence is for another nonce.", code="gpu_nonce_mismatch")
    if evidence.claims.simulated:
        return f"{SKIPPED}simulated"
    evidence.gpus = verify_gpu_evidence(
        payload.evidence_list, evidence.nonce, now=evidence.now, root_sha256=evidence.roots.nvidia_sha256
    )
    return f"{len(evidence.gpus)}: " + "; ".join(gpu.name for gpu in evidence.gpus)


def _unpinned(policy: Policy) -> list[str]:
    """Return what of the software a policy leaves open, in words."""
    if not policy.pinned:
        return [_UNPINNED]
    missing = [name for name in _IMAGE_PINS if name not in policy.pinned]
    image = [_IMAGE_UNPINNED.format(", ".join(missing))] if missing else []
    return image if policy.compose_hash or policy.rtmr3 else [*image, _APPLICATION_UNPINNED]


STEPS: Final[tuple[Step[Any], ...]] = (
    Step("report", "the report can be read, and is of a kind the policy accepts", "the report", _read_report),
    Step("key", "address, key and nonce of the report fit each other", "the nonce that was sent", _read_key),
    Step("quote", "the quote can be read, and is not from debug mode", "the quote", _read_quote),
    Step("signature", "Intel vouches for the machine behind the quote", "collateral, and the time", _check_quote),
    Step(
        "report data", "the machine was asked to vouch for this key, now", "address, nonce, TLS key", _check_report_data
    ),
    Step("event log", "what was measured into RTMR3, in order", "the event log", _check_event_log),
    Step("software", "the measured software is what the policy pins", "the policy's pins", _check_software),
    Step("gpus", "NVIDIA vouches for the keys that signed the GPUs' reports", "GPU evidence, the time", _check_gpus),
)
"""The steps of `verify_report`, in order."""


def verify_report(
    report: Mapping[str, Any],
    nonce: bytes,
    policy: Policy,
    *,
    collateral: Mapping[str, Any] | None,
    now: float,
    spki_sha256: bytes | None = None,
    roots: TrustedRoots | None = None,
    passed: Callable[[Passed], None] = lambda _: None,
) -> VerifiedReport:
    """Check an attestation report in the steps of `STEPS`.

    What it does NOT establish is listed in the result.

    Args:
        report: as the server answered, decoded JSON.
        nonce: the 32 bytes that were sent; fresh random ones, or the report proves nothing about today.
        policy: what is accepted.
        collateral: what Intel has published for this machine, as for `verify_quote`; None for simulated reports only.
        now: seconds since 1970, UTC: the time at which collateral and certificates must be valid.
        spki_sha256: 32 bytes, SHA-256 of the TLS key of the connection, if it was asked to be bound.
        roots: other roots than Intel's and NVIDIA's; for tests.
        passed: called after each step that has passed.

    Raises:
        VerificationError: with the code of what is wrong, and the step's name in `step`.
        UsageError: `bad_report_data` if the key hash has another length; `bad_collateral`.
    """
    evidence = _Evidence(report, nonce, policy, collateral, now, spki_sha256, roots or TrustedRoots())
    steps = run_steps(STEPS, evidence, passed)
    claims = evidence.claims
    ecdsa = claims.signing_algo == "ecdsa"
    # Those of a simulated report are not looked at, whatever it has and the policy asks for.
    no_gpus = () if claims.simulated else (_NO_GPUS,)
    return VerifiedReport(
        signing_algo=claims.signing_algo,
        signing_address=checksum_address(evidence.address) if ecdsa else evidence.address.hex(),
        nonce=nonce,
        quote=evidence.quote,
        tcb=evidence.tcb,
        compose_hash=evidence.compose_hash,
        gpus=evidence.gpus,
        simulated=claims.simulated,
        steps=steps,
        not_established=(
            *((_SIMULATED,) if claims.simulated else ()),
            *_unpinned(policy),
            *((_CONNECTION_NOT_BOUND,) if spki_sha256 is None else ()),
            *_NEVER_ESTABLISHED,
            *(_GPUS_NEVER_ESTABLISHED if evidence.gpus else no_gpus),
        ),
    )
