"""Challenges, report data and reports."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest

from teesign import Challenge, GpuEvidence, Quote, SigningAlgorithm, UsageError, report_data
from teesign.testing import fixed_evidence, fixed_pair, fixed_quote

NONCE = bytes(range(100, 132))
SPKI = sha256(b"a certificate's key").digest()
ECDSA_ADDRESS, ED25519_ADDRESS = b"\xec" * 20, b"\xed" * 32


@pytest.mark.parametrize(
    ("address", "spki_sha256", "expected"),
    [
        pytest.param(ECDSA_ADDRESS, None, "ec" * 20 + "00" * 12, id="ecdsa"),
        pytest.param(ED25519_ADDRESS, None, "ed" * 32, id="ed25519"),
        pytest.param(ECDSA_ADDRESS, SPKI, sha256(ECDSA_ADDRESS + SPKI).hexdigest(), id="ecdsa with TLS"),
        pytest.param(ED25519_ADDRESS, SPKI, sha256(ED25519_ADDRESS + SPKI).hexdigest(), id="ed25519 with TLS"),
    ],
)
def test_the_report_data(address: bytes, spki_sha256: bytes | None, expected: str) -> None:
    """The first half binds the address and, where given, the TLS key; the second half is the nonce."""
    assert report_data(address, NONCE, spki_sha256).hex() == expected + NONCE.hex()


@pytest.mark.parametrize(
    ("address", "nonce", "spki_sha256"),
    [
        pytest.param(b"", NONCE, None, id="no address"),
        pytest.param(bytes(21), NONCE, None, id="address of 21 bytes"),
        pytest.param(bytes(33), NONCE, None, id="address of 33 bytes"),
        pytest.param(ECDSA_ADDRESS, b"", None, id="no nonce"),
        pytest.param(ECDSA_ADDRESS, bytes(31), None, id="nonce of 31 bytes"),
        pytest.param(ECDSA_ADDRESS, bytes(33), None, id="nonce of 33 bytes"),
        pytest.param(ECDSA_ADDRESS, NONCE, b"", id="empty key hash"),
        pytest.param(ECDSA_ADDRESS, NONCE, bytes(20), id="key hash of 20 bytes"),
    ],
)
def test_report_data_of_wrong_parts_is_refused(address: bytes, nonce: bytes, spki_sha256: bytes | None) -> None:
    """A part of another length would shift the others, or bind nothing."""
    with pytest.raises(UsageError) as caught:
        report_data(address, nonce, spki_sha256)
    assert caught.value.code == "bad_report_data"


@pytest.mark.parametrize("spki_sha256", [None, SPKI], ids=["without TLS", "with TLS"])
@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_the_report(algorithm: SigningAlgorithm, spki_sha256: bytes | None) -> None:
    """The members, their order and their forms are those of the wire format."""
    identity = fixed_pair().identity(algorithm)
    challenge = Challenge.new(identity, nonce=NONCE, spki_sha256=spki_sha256)
    evidence = {"certificate": "Y2VydA==", "evidence": "c3BkbQ==", "arch": "BLACKWELL"}
    report = challenge.answer(
        model="org/model",
        quote=Quote(b"\x04\x00quote", [{"imr": 3}]),
        gpu_evidence=GpuEvidence([evidence, evidence]),
        info={"app_id": "1"},
    )
    expected = {
        "model_name": "org/model",
        "signing_address": identity.address,
        "signing_algo": algorithm,
        "signing_public_key": identity.public_key.hex(),
        "request_nonce": NONCE.hex(),
        "intel_quote": b"\x04\x00quote".hex(),
        "nvidia_payload": report["nvidia_payload"],
        "event_log": [{"imr": 3}],
        "info": {"app_id": "1"},
        **({"tls_cert_fingerprint": SPKI.hex()} if spki_sha256 else {}),
    }
    assert challenge.report_data == report_data(identity.address_bytes, NONCE, spki_sha256)
    assert list(report.items()) == [*expected.items(), ("all_attestations", [expected])]
    assert json.loads(report["nvidia_payload"]) == {
        "nonce": NONCE.hex(),
        "evidence_list": [evidence, evidence],
        "arch": "BLACKWELL",
    }


@pytest.mark.parametrize(
    "event_log",
    ['[{"imr":3}]', b'[{"imr":3}]', bytearray(b"[]"), "", {"imr": 3}, None],
    ids=lambda log: type(log).__name__,
)
def test_an_event_log_that_is_not_decoded_is_refused(event_log: Any) -> None:
    """As text it is what guest agents hand out; a list of its characters would go into the report."""
    with pytest.raises(UsageError, match=r"json\.loads") as caught:
        Quote(b"quote", event_log)
    assert caught.value.code == "bad_event_log"


@pytest.mark.parametrize(("algorithm", "length"), [("ecdsa", 64), ("ed25519", 32)])
def test_the_public_key_of_the_report(algorithm: SigningAlgorithm, length: int) -> None:
    """64 bytes x || y without the 04 in front for ECDSA, 32 bytes for Ed25519."""
    assert len(fixed_pair().identity(algorithm).public_key) == length


@pytest.mark.parametrize("quote_is", [False, True])
@pytest.mark.parametrize("evidence_is", [False, True])
def test_a_report_says_if_any_part_is_simulated(*, quote_is: bool, evidence_is: bool) -> None:
    """The mark comes from either part, stands in both copies, and is not there at all where all is real."""
    report = Challenge.new(fixed_pair().identity("ecdsa"), nonce=NONCE).answer(
        model="m", quote=Quote(b"", simulated=quote_is), gpu_evidence=GpuEvidence([], simulated=evidence_is), info={}
    )
    expected = True if quote_is or evidence_is else None
    assert (report.get("simulated"), report["all_attestations"][0].get("simulated")) == (expected, expected)


def test_a_report_from_fakes_can_be_encoded() -> None:
    """What the sources of this package deliver goes into JSON and comes back the same."""
    challenge = Challenge.new(fixed_pair().identity("ecdsa"), nonce=NONCE)
    report = challenge.answer(
        model="m", quote=fixed_quote(challenge.report_data), gpu_evidence=fixed_evidence(NONCE), info={"a": [1]}
    )
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize(
    ("evidence", "arch"),
    [
        ([{"arch": "HOPPER"}], "HOPPER"),
        ([{"arch": "BLACKWELL"}, {"arch": "HOPPER"}], "BLACKWELL"),
        ([{}], ""),
        ([], ""),
    ],
)
def test_the_architecture_is_what_the_evidence_says(evidence: list[dict[str, str]], arch: str) -> None:
    """Nothing is assumed where the evidence says nothing."""
    assert GpuEvidence(evidence).arch == arch


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_challenge_of_wrong_parts_is_refused(length: int) -> None:
    """It is refused when it is posed, before anything has been collected for it."""
    with pytest.raises(UsageError) as caught:
        Challenge.new(fixed_pair().identity("ecdsa"), nonce=bytes(length))
    assert caught.value.code == "bad_report_data"
