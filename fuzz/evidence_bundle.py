"""For any file, a bundle is read that is written the same again, or MalformedError or VerificationError is raised.

Of what is read, only a report that denies itself is not written again, and that does not verify either.

A file whose digest does not fit is tried with the right one too: whoever makes up a bundle can compute it.
"""

from __future__ import annotations

import json
from hashlib import sha256

import msgspec

from teesign import Challenge, MalformedError, TeesignError, VerificationError, signed_text
from teesign.testing import fixed_evidence, fixed_pair, fixed_quote
from teesign.verify.bundle import EvidenceBundle, decode_bundle, encode_bundle, verify_bundle
from teesign.verify.policy import Policy, UnsafeSimulatedPolicy

NONCE = b"\7" * 32
PAIR = fixed_pair()
CHALLENGE = Challenge.new(PAIR.ecdsa.identity, nonce=NONCE)
TEXT = signed_text(sha256(b"request").hexdigest(), sha256(b"response").hexdigest())
BUNDLE = EvidenceBundle(
    verified_at=1,
    policy=UnsafeSimulatedPolicy(),
    nonce=NONCE,
    spki_sha256=None,
    report=CHALLENGE.answer(
        model="m", quote=fixed_quote(CHALLENGE.report_data), gpu_evidence=fixed_evidence(NONCE), info={}
    ),
    collateral=None,
    request=b"request",
    response=b"response",
    signature=PAIR.sign(TEXT).answer(),
)
SMALL = msgspec.structs.replace(BUNDLE, policy=Policy(), report={"x": [1.5, {}]}, collateral={}, spki_sha256=NONCE)
SEEDS = [encode_bundle(SMALL), encode_bundle(BUNDLE)]


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for this file, as it is and with the right digest."""
    read(data)
    try:
        members = json.loads(data)
        members.pop("sha256", None)
        digest = sha256(json.dumps(members, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        read(json.dumps({**members, "sha256": digest}).encode())
    except (ValueError, AttributeError, TypeError, RecursionError):
        return


def read(data: bytes) -> None:
    """Read a bundle, write it, and verify it."""
    try:
        bundle = decode_bundle(data)
    except (MalformedError, VerificationError) as error:
        assert error.code in ("not_a_bundle", "bad_bundle", "unknown_bundle_format", "bundle_changed")
        return
    try:
        written = encode_bundle(bundle)
    except VerificationError as error:
        assert error.code == "attestations_differ"
        written = b""
    assert not written or decode_bundle(written) == bundle
    try:
        verified = verify_bundle(bundle, UnsafeSimulatedPolicy())
    except TeesignError:
        return
    assert written
    assert (bundle.request, bundle.response) == (BUNDLE.request, BUNDLE.response)
    assert verified.report.simulated
