"""For any report, TeesignError is raised, unless what it says of itself holds together over the nonce that was sent."""

from __future__ import annotations

import json

from teesign import Challenge, TeesignError
from teesign.testing import fixed_evidence, fixed_pair, fixed_quote
from teesign.verify.policy import Policy, UnsafeSimulatedPolicy
from teesign.verify.report import verify_report

NONCE = b"\7" * 32
CHALLENGE = Challenge.new(fixed_pair().ecdsa.identity, nonce=NONCE)
REPORT = CHALLENGE.answer(
    model="m", quote=fixed_quote(CHALLENGE.report_data), gpu_evidence=fixed_evidence(NONCE), info={}
)
REPORT.pop("all_attestations")
SEEDS = [
    json.dumps(REPORT).encode(),
    json.dumps({**REPORT, "event_log": json.dumps(REPORT["event_log"]), "simulated": False}).encode(),
]


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for this report."""
    try:
        report = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        verify_report(report, NONCE, Policy(), collateral=None, now=0)
    except TeesignError:
        pass
    else:
        raise AssertionError("a report without a machine behind it was accepted")
    try:
        verified = verify_report(report, NONCE, UnsafeSimulatedPolicy(), collateral=None, now=0)
    except TeesignError:
        return
    assert verified.simulated
    assert NONCE in verified.quote.report_data
    assert report["signing_address"].lower() == verified.signing_address.lower()
