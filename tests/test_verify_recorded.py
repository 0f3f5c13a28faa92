"""Evidence that was recorded on real machines, through all the steps of `verify_report`.

A report's key and nonce follow from its quote's report data: whoever asked for the recorded quotes put 64 bytes of his
own there, which are read as an Ed25519 address and a nonce.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from support import RECORDINGS

from teesign import VerificationError, parse_quote
from teesign.verify.policy import Policy, UnsafeSimulatedPolicy, parse_policy
from teesign.verify.report import STEPS, VerifiedReport, verify_report

pytestmark = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recorded evidence is not part of the repository")

INSIDE, AFTER = (datetime(2025, 7, day, tzinfo=UTC).timestamp() for day in (1, 20))
OUTDATED = datetime(2026, 2, 18, 11, 58, 51, tzinfo=UTC).timestamp()
WITHOUT_GPUS = Policy(require_gpus=False)
ANSWERS = ("dstack-getquote.json", "dstack-getquote-lite.json")


def binary(name: str) -> bytes:
    """Return a recorded file."""
    return (RECORDINGS / "tdx" / name).read_bytes()


def report_around(quote: bytes, **more: Any) -> dict[str, Any]:
    """Return a report with a quote, for the key and the nonce that the quote is over."""
    data = parse_quote(quote).report_data
    fields = {"signing_algo": "ed25519", "signing_address": data[:32].hex(), "request_nonce": data[32:].hex()}
    return fields | {"intel_quote": quote.hex()} | more


def check(report: dict[str, Any], policy: Policy, **options: Any) -> VerifiedReport:
    """Verify a report over its own nonce."""
    return verify_report(report, bytes.fromhex(report["request_nonce"]), policy, **options)


def failure(report: dict[str, Any], policy: Policy, **options: Any) -> tuple[str, str | None]:
    """Return the code and the step that a report fails with."""
    with pytest.raises(VerificationError) as caught:
        check(report, policy, **options)
    return caught.value.code, caught.value.step


def intels_sample(name: str = "tdx_quote") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a report with a quote that Intel's key signed, and its collateral."""
    return report_around(binary(name)), json.loads(binary(f"{name}_collateral.json"))


def test_intels_sample_passes_every_step_in_its_time() -> None:
    """Up to Intel's own root, while its collateral is valid."""
    report, collateral = intels_sample()
    verified = check(report, WITHOUT_GPUS, collateral=collateral, now=INSIDE)
    assert [step.name for step in verified.steps] == [step.name for step in STEPS]
    assert verified.tcb is not None
    assert (verified.tcb.status, verified.simulated) == ("UpToDate", False)
    assert verified.signing_address == report["signing_address"]


def test_intels_sample_fails_after_its_time() -> None:
    """Its collateral has run out, and says nothing about today."""
    report, collateral = intels_sample()
    assert failure(report, WITHOUT_GPUS, collateral=collateral, now=AFTER) == ("collateral_expired", "signature")


def test_intels_sample_is_held_to_the_policy() -> None:
    """A pin that it does not meet, and a state that is not accepted."""
    report, collateral = intels_sample()
    given = {"collateral": collateral, "now": INSIDE}
    own = parse_quote(bytes.fromhex(report["intel_quote"])).mr_td.hex()
    assert check(report, parse_policy(json.dumps({"mr_td": [own], "require_gpus": False})), **given)
    other = Policy(mr_td=("11" * 48,), require_gpus=False)
    assert failure(report, other, **given) == ("mr_td_mismatch", "software")
    strict = Policy(tcb_statuses=(), require_gpus=False)
    assert failure(report, strict, **given) == ("tcb_not_accepted", "signature")
    assert failure(report, Policy(), **given) == ("gpu_missing", "gpus")


@pytest.mark.parametrize("place", range(48, 48 + 584, 29))
def test_no_byte_of_what_intel_signed_can_be_changed(place: int) -> None:
    """Whatever field it is in, if the report follows the change."""
    quote = bytearray(binary("tdx_quote"))
    quote[place] ^= 2
    report, (_, collateral) = report_around(bytes(quote)), intels_sample()
    assert failure(report, WITHOUT_GPUS, collateral=collateral, now=INSIDE) == ("quote_not_verified", "signature")


def test_an_outdated_machine_fails() -> None:
    """A genuine quote of a machine whose firmware Intel no longer knows."""
    report, collateral = intels_sample("tdx_quote_outdated")
    assert failure(report, WITHOUT_GPUS, collateral=collateral, now=OUTDATED) == ("tcb_unknown", "signature")


def dstacks_answer(name: str) -> dict[str, Any]:
    """Return a report around what a guest agent answered; marked as simulated, since nobody kept the collateral."""
    answer = json.loads(binary(name))
    return report_around(bytes.fromhex(answer["quote"]), event_log=json.loads(answer["event_log"]), simulated=True)


def log_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the events of RTMR3."""
    return [event for event in report["event_log"] if event["imr"] == 3]


def compose_hash_of(report: dict[str, Any]) -> str:
    """Return what the log says was started."""
    (payload,) = [event["event_payload"] for event in log_of(report) if event["event"] == "compose-hash"]
    return str(payload)


def check_recorded(report: dict[str, Any], compose_hash: str) -> VerifiedReport:
    """Run every step but those that need collateral and GPUs, under a pin."""
    policy = UnsafeSimulatedPolicy(compose_hash=(compose_hash,), require_gpus=False)
    return check(report, policy, collateral=None, now=INSIDE)


@pytest.mark.parametrize("name", ANSWERS)
def test_recorded_event_logs_replay_and_name_what_was_started(name: str) -> None:
    """RTMR3 and compose-hash, of whole logs and of stripped ones."""
    report = dstacks_answer(name)
    verified = check_recorded(report, compose_hash_of(report))
    assert verified.compose_hash == bytes.fromhex(compose_hash_of(report))
    assert f"{len(log_of(report))} events" in [step.value for step in verified.steps]


@pytest.mark.parametrize("name", ANSWERS)
def test_no_event_of_a_recorded_log_can_be_changed(name: str) -> None:
    """Each in turn: another payload, name, type or digest; left out, doubled, or in another place."""
    genuine = dstacks_answer(name)
    pinned, log = compose_hash_of(genuine), log_of(genuine)
    found = set()
    for place, event in enumerate(log):
        others = [
            event | {"event_payload": event["event_payload"] + "00"},
            event | {"event": event["event"] + "x"},
            event | {"event_type": event["event_type"] + 1},
            event | {"digest": "11" * 48},
        ]
        logs = [[*log[:place], other, *log[place + 1 :]] for other in others]
        logs += [[*log[:place], *log[place + 1 :]], [*log[:place], event, *log[place:]]]
        logs += [[*log[: place - 1], event, log[place - 1], *log[place + 1 :]]] if place else []
        for changed in logs:
            with pytest.raises(VerificationError) as caught:
                check_recorded(genuine | {"event_log": changed}, pinned)
            assert caught.value.step in ("event log", "software")
            found.add(caught.value.code)
    assert "event_log_mismatch" in found


@pytest.mark.parametrize("name", ANSWERS)
def test_another_compose_file_is_not_the_pinned_one(name: str) -> None:
    """The log is genuine, and says so itself."""
    with pytest.raises(VerificationError) as caught:
        check_recorded(dstacks_answer(name), "00" * 32)
    assert (caught.value.code, caught.value.step) == ("compose_hash_mismatch", "software")
