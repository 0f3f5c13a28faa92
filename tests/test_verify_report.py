"""Attestation reports: genuine ones verify, and each defect fails with a code of its own."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from authorities import END, INTEL, NOW, NVIDIA, ROOTS, SEPT_VE_DISABLE, START, Authority, Intel, Nvidia, der, oid
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from teesign import (
    Challenge,
    Quote,
    SigningAlgorithm,
    TeesignError,
    UsageError,
    VerificationError,
    parse_quote,
    signed_text,
)
from teesign.testing import fixed_evidence, fixed_pair, fixed_quote
from teesign.verify.gpu import parse_spdm_report, verify_gpu_evidence
from teesign.verify.policy import Policy, UnsafeSimulatedPolicy, parse_policy
from teesign.verify.report import STEPS, VerifiedReport, verify_report
from teesign.verify.tdx import verify_quote

NONCE, SPKI = b"\7" * 32, b"\x0b" * 32
COLLATERAL = INTEL.collateral()


def genuine(
    algorithm: SigningAlgorithm = "ecdsa", *, spki_sha256: bytes | None = None, attributes: int = SEPT_VE_DISABLE
) -> dict[str, Any]:
    """Return a report that the test's authorities stand behind."""
    challenge = Challenge.new(fixed_pair().identity(algorithm), nonce=NONCE, spki_sha256=spki_sha256)
    quote = INTEL.quote(challenge.report_data, attributes=attributes)
    return challenge.answer(model="m", quote=quote, gpu_evidence=NVIDIA.evidence(NONCE), info={})


def simulated() -> dict[str, Any]:
    """Return a report as `DEV=1` makes it."""
    challenge = Challenge.new(fixed_pair().identity("ecdsa"), nonce=NONCE)
    quote = fixed_quote(challenge.report_data)
    return challenge.answer(model="m", quote=quote, gpu_evidence=fixed_evidence(NONCE), info={})


REPORT = genuine()


def check(report: dict[str, Any], policy: Policy | None = None, **options: Any) -> VerifiedReport:
    """Verify a report with the test's roots and collateral, at a time when all is valid."""
    given = {"collateral": COLLATERAL, "now": NOW, "roots": ROOTS, **options}
    return verify_report(report, NONCE, policy or Policy(), **given)


def pinning(pins: dict[str, str]) -> Policy:
    """Return a policy with these pins."""
    return parse_policy(json.dumps({name: [pin] for name, pin in pins.items()}))


def failure(report: dict[str, Any], policy: Policy | None = None, **options: Any) -> tuple[str, str | None]:
    """Return the code and the step that a report fails with."""
    with pytest.raises(VerificationError) as caught:
        check(report, policy, **options)
    return caught.value.code, caught.value.step


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_a_genuine_report_verifies(algorithm: SigningAlgorithm) -> None:
    """From nonce to verdict, every step passes in order, and the key that comes back is the server's."""
    verified = check(genuine(algorithm))
    assert verified.signing_address == fixed_pair().identity(algorithm).address
    assert [step.name for step in verified.steps] == [step.name for step in STEPS]
    assert [step.number for step in verified.steps] == list(range(1, len(STEPS) + 1))
    assert verified.tcb is not None
    assert (verified.tcb.status, len(verified.gpus), verified.simulated) == ("UpToDate", 1, False)


def test_a_bound_tls_key_verifies() -> None:
    """A report that binds the connection's key is checked against that key."""
    report = genuine(spki_sha256=SPKI)
    assert check(report, spki_sha256=SPKI).signing_address == report["signing_address"]
    assert failure(REPORT, spki_sha256=SPKI) == ("report_data_mismatch", "report data")


@pytest.mark.parametrize("connection", [pytest.param(b"\x0c" * 32, id="another"), pytest.param(None, id="none")])
def test_a_tls_key_that_is_bound_and_is_not_the_connections_does_not_verify(connection: bytes | None) -> None:
    """Something between ends TLS, or the certificate was renewed: nobody passes off another machine's quote."""
    report = genuine(spki_sha256=SPKI)
    assert failure(report, spki_sha256=connection) == ("tls_key_mismatch", "report data")
    for stated in ({}, {"tls_cert_fingerprint": "11" * 32}, {"tls_cert_fingerprint": "nothing"}):
        unexplained = {name: value for name, value in report.items() if name != "tls_cert_fingerprint"} | stated
        assert failure(unexplained, spki_sha256=connection) == ("report_data_mismatch", "report data")


def test_a_tls_key_that_is_only_named_does_not_verify() -> None:
    """Whoever reads that a key is bound must be able to rely on it."""
    claim = {"tls_cert_fingerprint": SPKI.hex()}
    assert failure(edited(**claim)) == ("tls_key_mismatch", "report data")
    assert failure(edited(tls_cert_fingerprint="somebody's")) == ("tls_key_mismatch", "report data")
    other = genuine(spki_sha256=SPKI) | {"tls_cert_fingerprint": "11" * 32}
    assert failure(other, spki_sha256=SPKI) == ("tls_key_mismatch", "report data")


def test_a_policy_can_insist_on_the_tls_key() -> None:
    """Then a report is refused where nobody knows the connection's key, and one that does not bind it."""
    policy = Policy(require_tls_key=True)
    assert check(genuine(spki_sha256=SPKI), policy, spki_sha256=SPKI).tcb is not None
    assert failure(genuine(spki_sha256=SPKI), policy) == ("tls_key_missing", "report data")
    assert failure(REPORT, policy, spki_sha256=SPKI) == ("report_data_mismatch", "report data")


def test_lower_case_addresses_and_absent_extras_verify() -> None:
    """Servers of this family may leave out the key, and write addresses and the event log in other ways."""
    report = {key: REPORT[key] for key in ("signing_address", "request_nonce", "intel_quote", "nvidia_payload")}
    report |= {"signing_address": report["signing_address"].lower(), "event_log": json.dumps(REPORT["event_log"])}
    assert check(report).signing_address == REPORT["signing_address"]


def test_what_is_not_established_is_listed() -> None:
    """The verdict has limits, and names them; a policy that pins nothing says so."""
    missing = check(REPORT).not_established
    words = ("revoked", "reference measurements", "weights", "pins nothing", "else holds the signing key", "can read")
    for word in words:
        assert any(word in item for item in missing), word
    assert not any("can read" in item for item in check(genuine(spki_sha256=SPKI), spki_sha256=SPKI).not_established)


def test_a_policy_that_pins_in_part_says_what_it_leaves_open() -> None:
    """Whoever may choose the guest image chooses what it logs, so that a compose hash alone pins next to nothing."""
    quote, image = parse_quote(bytes.fromhex(REPORT["intel_quote"])), "does not pin mr_td, rtmr0, rtmr1, rtmr2"
    compose = check(REPORT).compose_hash
    assert compose is not None
    for pins, words in [
        ({"compose_hash": compose}, [image]),
        ({"rtmr3": quote.rtmrs[3]}, [image]),
        ({"mr_td": quote.mr_td}, ["does not pin rtmr0, rtmr1, rtmr2", "what application"]),
        ({"mr_td": quote.mr_td, **{f"rtmr{n}": quote.rtmrs[n] for n in range(3)}}, ["what application"]),
    ]:
        verified = check(REPORT, pinning({name: value.hex() for name, value in pins.items()}))
        found = [item for item in verified.not_established if "runs in the machine" in item]
        assert len(found) == len(words)
        assert all(word in item for word, item in zip(words, found, strict=True))


def test_a_policy_that_pins_is_obeyed() -> None:
    """Each pin accepts its values, in either case, and refuses others."""
    quote = parse_quote(bytes.fromhex(REPORT["intel_quote"]))
    compose = check(REPORT).compose_hash
    assert compose is not None
    values = {"mr_td": quote.mr_td, "compose_hash": compose} | {
        f"rtmr{n}": value for n, value in enumerate(quote.rtmrs)
    }
    verified = check(REPORT, pinning({name: value.hex().upper() for name, value in values.items()}))
    assert not any("runs in the machine" in item for item in verified.not_established)
    for name, value in values.items():
        other = pinning({name: "ff" * len(value)})
        assert failure(REPORT, other) == (f"{name}_mismatch", "software")


def edited(**changes: Any) -> dict[str, Any]:
    """Return the genuine report with other members."""
    return REPORT | changes


def with_gpu(item: dict[str, str] | None = None, /, **changes: str) -> dict[str, Any]:
    """Return the genuine report with other evidence."""
    payload = {"nonce": NONCE.hex(), "evidence_list": [(item or NVIDIA.item(NONCE)) | changes]}
    return edited(nvidia_payload=json.dumps(payload))


def flipped(text: str, place: int) -> str:
    """Return base64 of the same bytes with one bit changed."""
    data = bytearray(base64.b64decode(text))
    data[place] ^= 1
    return base64.b64encode(data).decode()


def changed_event(**changes: str) -> dict[str, Any]:
    """Return the genuine report with another compose-hash event."""
    log = [event | changes if event["event"] == "compose-hash" else event for event in REPORT["event_log"]]
    return edited(event_log=log)


def quote_with(place: int) -> dict[str, Any]:
    """Return the genuine report with one bit of its quote changed."""
    quote = bytearray.fromhex(REPORT["intel_quote"])
    quote[place] ^= 2
    return edited(intel_quote=quote.hex())


ITEM = NVIDIA.item(NONCE)
STRANGER = Nvidia()
NOT_AN_AUTHORITY = Authority("GH100", NVIDIA.gpu, ca=False, curve=ec.SECP384R1())
EXPIRED = Authority("GH100", NVIDIA.model, ca=False, curve=ec.SECP384R1(), not_after=datetime(2029, 6, 1, tzinfo=UTC))
TO_COME = Authority("GH100", NVIDIA.model, ca=False, curve=ec.SECP384R1(), not_before=datetime(2031, 6, 1, tzinfo=UTC))
P256 = Authority("GH100", NVIDIA.model, ca=False)
UNDER_P256 = Authority("GH100", Authority("NVIDIA GH100 Identity", NVIDIA.root), ca=False, curve=ec.SECP384R1())
X400_NAME = der(0x30, der(0xA3, b""))
ODD_NAME = Authority("X", NVIDIA.root, curve=ec.SECP384R1(), extra=[("2.5.29.17", X400_NAME)])
ECDSA_WITH_SHA384, UNKNOWN_ALGORITHM = oid("1.2.840.10045.4.3.3"), oid("1.2.840.10045.4.3.9")


def edited_certificate(old: bytes, new: bytes) -> bytes:
    """Return the GPU's chain with other bytes in its first certificate."""
    certificate = NVIDIA.gpu.der.replace(old, new)
    assert certificate != NVIDIA.gpu.der
    return as_pem(certificate) + NVIDIA.model.pem


def as_pem(certificate: bytes) -> bytes:
    """Return a certificate in PEM."""
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(certificate) + b"-----END CERTIFICATE-----\n"


def mirrored(certificate: x509.Certificate) -> bytes:
    """Return the certificate with the other signature that ECDSA has for the same data and key."""
    order = 2**384 - 1388124618062372383947042015309946732620727252194336364173
    r, s = decode_dss_signature(certificate.signature)
    signature = der(3, b"\0" + encode_dss_signature(r, order - s))
    return der(0x30, certificate.tbs_certificate_bytes + der(0x30, ECDSA_WITH_SHA384) + signature)


TWIN = NVIDIA.item(NONCE, NVIDIA.gpu, as_pem(mirrored(NVIDIA.gpu.certificate)) + NVIDIA.model.pem)
DEFECTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no-address": ({key: REPORT[key] for key in REPORT if key != "signing_address"}, "bad_report", "report"),
    "address-is-a-number": (edited(signing_address=1), "bad_report", "report"),
    "half-a-character-for-a-name": ({**REPORT, "\ud800": ""}, "bad_report", "report"),
    "half-a-character-for-an-algorithm": (edited(signing_algo="\ud800"), "bad_report", "report"),
    "simulated": (simulated(), "simulated", "report"),
    "address-too-short": (edited(signing_address="0x12"), "bad_address", "key"),
    "another-key": (edited(signing_public_key="11" * 64), "public_key_mismatch", "key"),
    "another-address-without-key": (
        edited(signing_address="0x" + "11" * 20, signing_public_key=None),
        "report_data_mismatch",
        "report data",
    ),
    "another-nonce": (edited(request_nonce="11" * 32), "nonce_mismatch", "key"),
    "quote-not-hex": (edited(intel_quote="xyz"), "bad_quote", "quote"),
    "quote-truncated": (edited(intel_quote=REPORT["intel_quote"][:900]), "bad_quote", "quote"),
    "debug-mode": (genuine(attributes=SEPT_VE_DISABLE | 1), "debug_mode", "quote"),
    "simulated-in-disguise": (simulated() | {"simulated": False}, "debug_mode", "quote"),
    "bit-of-mr-td": (quote_with(48 + 140), "quote_not_verified", "signature"),
    "bit-of-report-data": (quote_with(48 + 530), "quote_not_verified", "signature"),
    "bit-of-quote-signature": (quote_with(640), "quote_not_verified", "signature"),
    "event-digest": (changed_event(digest="ff" * 48), "event_log_mismatch", "event log"),
    "event-payload": (changed_event(event_payload="ff" * 32), "event_payload_mismatch", "event log"),
    "event-name": (changed_event(event="compose-hush"), "event_payload_mismatch", "event log"),
    "event-left-out": (edited(event_log=REPORT["event_log"][1:]), "event_log_mismatch", "event log"),
    "event-log-no-list": (edited(event_log="{}"), "bad_event_log", "event log"),
    "no-gpus": (edited(nvidia_payload=None), "gpu_missing", "gpus"),
    "gpu-payload-no-json": (edited(nvidia_payload="{"), "gpu_bad_evidence", "gpus"),
    "gpu-payload-nonce": (
        edited(nvidia_payload=json.dumps({"nonce": "00" * 32, "evidence_list": [NVIDIA.item(NONCE)]})),
        "gpu_nonce_mismatch",
        "gpus",
    ),
    "gpu-report-nonce": (with_gpu(evidence=NVIDIA.item(bytes(32))["evidence"]), "gpu_nonce_mismatch", "gpus"),
    "gpu-report-truncated": (with_gpu(evidence=ITEM["evidence"][:40]), "gpu_bad_report", "gpus"),
    "gpu-measurement-bit": (with_gpu(evidence=flipped(ITEM["evidence"], 46)), "gpu_signature_mismatch", "gpus"),
    "gpu-signature-bit": (with_gpu(evidence=flipped(ITEM["evidence"], -1)), "gpu_signature_mismatch", "gpus"),
    "gpu-no-certificate": (with_gpu(certificate=""), "gpu_bad_evidence", "gpus"),
    "gpu-another-root": (with_gpu(STRANGER.item(NONCE)), "gpu_untrusted_root", "gpus"),
    "gpu-chain-with-a-gap": (
        with_gpu(NVIDIA.item(NONCE, NVIDIA.gpu, STRANGER.gpu.pem + NVIDIA.root.pem)),
        "gpu_chain_invalid",
        "gpus",
    ),
    "gpu-issued-by-a-gpu": (with_gpu(NVIDIA.item(NONCE, NOT_AN_AUTHORITY)), "gpu_chain_invalid", "gpus"),
    "gpu-issued-on-another-curve": (with_gpu(NVIDIA.item(NONCE, UNDER_P256)), "gpu_chain_invalid", "gpus"),
    "gpu-certificate-expired": (with_gpu(NVIDIA.item(NONCE, EXPIRED)), "gpu_certificate_expired", "gpus"),
    "gpu-certificate-to-come": (with_gpu(NVIDIA.item(NONCE, TO_COME)), "gpu_certificate_expired", "gpus"),
    "gpu-expired-with-a-gap": (
        with_gpu(NVIDIA.item(NONCE, EXPIRED, EXPIRED.certificate.public_bytes(Encoding.PEM) + NVIDIA.root.pem)),
        "gpu_chain_invalid",
        "gpus",
    ),
    "gpu-on-another-curve": (with_gpu(NVIDIA.item(NONCE, NVIDIA.gpu, P256.pem)), "gpu_signature_mismatch", "gpus"),
    "gpu-twice": (
        edited(nvidia_payload=json.dumps({"nonce": NONCE.hex(), "evidence_list": [ITEM, ITEM]})),
        "gpu_duplicate",
        "gpus",
    ),
    "gpu-twice-by-another-certificate": (
        edited(nvidia_payload=json.dumps({"nonce": NONCE.hex(), "evidence_list": [ITEM, TWIN]})),
        "gpu_duplicate",
        "gpus",
    ),
    "gpu-certificate-of-another-version": (
        with_gpu(NVIDIA.item(NONCE, chain=edited_certificate(b"\xa0\3\2\1\2", b"\xa0\3\2\1\7"))),
        "gpu_bad_evidence",
        "gpus",
    ),
    "gpu-certificate-of-an-unknown-algorithm": (
        with_gpu(NVIDIA.item(NONCE, chain=edited_certificate(ECDSA_WITH_SHA384, UNKNOWN_ALGORITHM))),
        "gpu_chain_invalid",
        "gpus",
    ),
    "gpu-issuer-with-an-odd-name": (
        with_gpu(NVIDIA.item(NONCE, Authority("GH100", ODD_NAME, ca=False, curve=ec.SECP384R1()))),
        "gpu_chain_invalid",
        "gpus",
    ),
}


@pytest.mark.parametrize(
    ("part", "changes", "code"),
    [
        pytest.param("tcb_info", {"id": "SGX"}, "quote_not_verified", id="for-enclaves"),
        pytest.param("tcb_info", {"fmspc": "00906ED50001"}, "quote_not_verified", id="for-another-machine"),
        pytest.param("tcb_info", {"tcbLevels": []}, "tcb_unknown", id="without-levels"),
        pytest.param("qe_identity", {"id": "QE"}, "quote_not_verified", id="for-another-enclave"),
        pytest.param("qe_identity", {"mrsigner": "11" * 32}, "quote_not_verified", id="for-another-signer"),
    ],
)
def test_collateral_for_something_else_is_refused(part: str, changes: dict[str, Any], code: str) -> None:
    """Though Intel has signed it: it signs such for every machine, and for enclaves too."""
    collateral = INTEL.collateral_with(part, **changes)
    assert failure(REPORT, collateral=collateral) == (code, "signature")


@pytest.mark.parametrize("whose", ["machine", "platform", "signer", "root"])
def test_a_revoked_certificate_has_a_code_of_its_own(whose: str) -> None:
    """Wherever in Intel's chains it is."""
    assert failure(REPORT, collateral=INTEL.collateral_revoking(whose)) == ("certificate_revoked", "signature")


LEVEL = json.loads(COLLATERAL["qe_identity"])["tcbLevels"][0]
NEWER = {"tcbLevels": [LEVEL | {"tcb": {"isvsvn": 5}}]}
MODULE = {"id": "TDX_01", "mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}


@pytest.mark.parametrize(
    ("part", "changes"),
    [("tcb_info", {"tdxModuleIdentities": [MODULE | NEWER]}), ("qe_identity", NEWER)],
    ids=["module", "enclave"],
)
def test_a_machine_older_than_all_that_intel_lists_has_a_code_of_its_own(part: str, changes: dict[str, Any]) -> None:
    """Its TDX module or its quoting enclave has to be updated: the quote is as genuine as any."""
    quote = INTEL.quote(bytes(64), module=b"\4\1").quote
    with pytest.raises(VerificationError) as caught:
        verify_quote(quote, INTEL.collateral_with(part, **changes), Policy(), now=NOW, root=INTEL.root.der)
    assert caught.value.code == "tcb_unknown"


@pytest.mark.parametrize(
    ("part", "changes", "code"),
    [
        pytest.param("tcb_info", {"nextUpdate": "2030-01-01T00:00:00Z"}, "collateral_expired", id="expired list"),
        pytest.param("qe_identity", {"nextUpdate": "2030-01-01T00:00:00Z"}, "collateral_expired", id="expired enclave"),
        pytest.param("tcb_info", {"issueDate": "2030-01-03T00:00:00Z"}, "collateral_expired", id="list to come"),
        pytest.param("qe_identity", {"issueDate": "2030-01-03T00:00:00Z"}, "collateral_expired", id="enclave to come"),
        pytest.param("qe_identity", {"tcbLevels": [LEVEL | {"tcbStatus": "Revoked"}]}, "tcb_not_accepted", id="state"),
        pytest.param("qe_identity", {"tcbLevels": [LEVEL | {"tcbStatus": "?"}]}, "quote_not_verified", id="unknown"),
        pytest.param(
            "qe_identity",
            {"tcbLevels": [LEVEL | {"tcbStatus": "\nCertRevoked\nNo matching TCB level found\n"}]},
            "quote_not_verified",
            id="unknown state of several lines",
        ),
        pytest.param("qe_identity", {"id": "revoked"}, "quote_not_verified", id="name with a word for a code"),
        pytest.param("qe_identity", {"id": "expired"}, "quote_not_verified", id="name with another word"),
    ],
)
def test_words_of_the_collateral_choose_no_code(part: str, changes: dict[str, Any], code: str) -> None:
    """The library's messages quote what it could not read, and list states: only what it says itself counts."""
    assert failure(REPORT, collateral=INTEL.collateral_with(part, **changes)) == (code, "signature")


@pytest.mark.parametrize(
    ("intel", "now"),
    [
        pytest.param(Intel(signer_until=END - timedelta(days=1)), END.timestamp() - 1, id="certificate has expired"),
        pytest.param(Intel(signer_from=END - timedelta(days=1)), NOW, id="certificate is not valid yet"),
        pytest.param(INTEL, START.timestamp() - 1, id="collateral is not valid yet"),
        pytest.param(INTEL, 0, id="clock that was never set"),
    ],
)
def test_a_wrong_time_has_a_code_of_its_own(intel: Intel, now: float) -> None:
    """Long after the issue or before it, as by a clock that is behind: the machine is as genuine as it was."""
    with pytest.raises(VerificationError) as caught:
        verify_quote(intel.quote(bytes(64)).quote, intel.collateral(), Policy(), now=now, root=intel.root.der)
    assert caught.value.code == "collateral_expired"


PCK = Authority("Intel SGX PCK Certificate", INTEL.root, ca=False)
FOO = PCK.certificate.public_bytes(Encoding.PEM).replace(b"CERTIFICATE", b"FOO")
GENUINE_CHAIN = COLLATERAL["tcb_info_issuer_chain"].encode()


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity"])
@pytest.mark.parametrize(
    "chain",
    [
        pytest.param(PCK.pem, id="of a machine"),
        pytest.param(FOO + GENUINE_CHAIN, id="of a machine, before the right one, under a name that not all read"),
        pytest.param(PCK.pem + GENUINE_CHAIN, id="of a machine, before the right one"),
    ],
)
def test_collateral_that_another_key_of_intels_has_signed_is_refused(part: str, chain: bytes) -> None:
    """Each machine has a key with a certificate under Intel's root: with it, one could call itself up to date."""
    forged = {f"{part}_issuer_chain": chain.decode(), f"{part}_signature": PCK.sign(COLLATERAL[part].encode()).hex()}
    code, step = failure(REPORT, collateral=COLLATERAL | forged)
    assert (code in {"collateral_signer", "quote_not_verified"}, step) == (True, "signature")


def test_who_signed_the_collateral_is_said() -> None:
    """An outdated machine that vouches for itself has a code of its own."""
    chain = {"tcb_info_issuer_chain": PCK.pem.decode()}
    assert failure(REPORT, collateral=COLLATERAL | chain) == ("collateral_signer", "signature")


@pytest.mark.parametrize("chain", ["", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_chain_that_cannot_be_read_proves_nothing(chain: str) -> None:
    """Whoever sent it."""
    collateral = COLLATERAL | {"qe_identity_issuer_chain": chain}
    assert failure(REPORT, collateral=collateral) == ("quote_not_verified", "signature")


@pytest.mark.parametrize("bit", [1, 4, 5, 29])
def test_a_machine_that_its_host_can_look_into_is_refused(bit: int) -> None:
    """Debugged otherwise than by bit 0, profiled, or moved to wherever the host has its keys handed out."""
    report = genuine(attributes=SEPT_VE_DISABLE | 1 << bit)
    assert failure(report) == ("quote_not_verified", "signature")


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found_by_its_step(defect: str) -> None:
    """Each fails in the step that is there for it, with its code."""
    report, code, step = DEFECTS[defect]
    assert failure(report) == (code, step)


class CountedCertificate:
    """A certificate that counts how often the signature of any is checked."""

    checked = 0

    def __init__(self, certificate: x509.Certificate) -> None:
        self._certificate = certificate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._certificate, name)

    def verify_directly_issued_by(self, issuer: CountedCertificate) -> None:
        """Check it, and count."""
        CountedCertificate.checked += 1
        self._certificate.verify_directly_issued_by(issuer._certificate)


SELF_SIGNED = Authority("X", curve=ec.SECP384R1()).pem
FLOODS: dict[str, tuple[list[dict[str, str]], str, int]] = {
    # what is sent, its code, and how many certificates' signatures it may take to tell
    "long-chain": ([NVIDIA.item(NONCE, chain=SELF_SIGNED * 2000 + NVIDIA.root.pem)], "gpu_chain_invalid", 0),
    "chain-of-eleven": (
        [NVIDIA.item(NONCE, chain=SELF_SIGNED * 10 + NVIDIA.root.pem)],
        "gpu_chain_invalid",
        0,
    ),
    "chain-of-ten": ([NVIDIA.item(NONCE, chain=SELF_SIGNED * 9 + NVIDIA.root.pem)], "gpu_chain_invalid", 9),
    "much-between-certificates": (
        [NVIDIA.item(NONCE, chain=NVIDIA.gpu.pem + b"\n" * 100_000 + NVIDIA.model.pem)],
        "gpu_chain_invalid",
        0,
    ),
    "many-gpus": ([ITEM] * 500, "gpu_duplicate", 4),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_certificates_costs_little_time(flood: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing vouches for the GPU evidence before it is verified: anybody on the way can put in what takes long."""
    items, code, most = FLOODS[flood]
    load = x509.load_pem_x509_certificates
    monkeypatch.setattr(CountedCertificate, "checked", 0)
    monkeypatch.setattr(x509, "load_pem_x509_certificates", lambda pem: [CountedCertificate(one) for one in load(pem)])
    report = edited(nvidia_payload=json.dumps({"nonce": NONCE.hex(), "evidence_list": items}))
    assert failure(report) == (code, "gpus")
    assert CountedCertificate.checked <= most


def test_steps_before_the_failure_are_reported() -> None:
    """Whoever shows the steps hears of those that passed, up to the one that did not."""
    seen: list[str] = []
    failure(changed_event(digest="ff" * 48), passed=lambda step: seen.append(step.name))
    assert seen == [step.name for step in STEPS[:5]]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        pytest.param({"now": END.timestamp() + 1}, "collateral_expired", id="after its collateral"),
        pytest.param({"collateral": None}, "no_collateral", id="without collateral"),
        pytest.param({"roots": None}, "quote_not_verified", id="under Intel's own root"),
        pytest.param({"collateral": Intel().collateral()}, "quote_not_verified", id="collateral of another authority"),
    ],
)
def test_the_quote_needs_its_collateral(options: dict[str, Any], code: str) -> None:
    """At another time, or with other collateral or roots, the quote proves nothing."""
    assert failure(REPORT, **options) == (code, "signature")


def test_the_state_of_the_machine_must_be_accepted() -> None:
    """A machine that Intel calls out of date is refused, unless the policy takes it."""
    intel = Intel("OutOfDate")
    quote = intel.quote(bytes(64)).quote
    with pytest.raises(VerificationError) as caught:
        verify_quote(quote, intel.collateral(), Policy(), now=NOW, root=intel.root.der)
    assert caught.value.code == "tcb_not_accepted"
    tolerant = Policy(tcb_statuses=("UpToDate", "OutOfDate"))
    verified = verify_quote(quote, intel.collateral(), tolerant, now=NOW, root=intel.root.der)
    assert verified.status == "OutOfDate"


def test_a_revoked_state_is_accepted_by_no_policy() -> None:
    """Whatever it lists; no certificate was revoked, so that is not what the code says."""
    intel = Intel("Revoked")
    quote = intel.quote(bytes(64)).quote
    with pytest.raises(VerificationError, match="Revoked") as caught:
        verify_quote(quote, intel.collateral(), Policy(tcb_statuses=("Revoked",)), now=NOW, root=intel.root.der)
    assert caught.value.code == "tcb_not_accepted"


def test_collateral_without_its_members_is_a_mistake_of_the_caller() -> None:
    """Not the server's fault."""
    with pytest.raises(UsageError, match="collateral"):
        check(REPORT, collateral={})


def test_an_unsafe_policy_accepts_a_simulated_report() -> None:
    """Signature and GPU evidence are skipped, which the result says; everything else is checked."""
    verified = check(simulated(), UnsafeSimulatedPolicy(), collateral=None)
    assert verified.simulated
    assert verified.tcb is None
    assert any("simulated" in item for item in verified.not_established)
    other = simulated() | {"request_nonce": "11" * 32}
    assert failure(other, UnsafeSimulatedPolicy()) == ("nonce_mismatch", "key")


@pytest.mark.parametrize("require_gpus", [True, False])
def test_nothing_is_said_of_gpus_that_are_simulated(*, require_gpus: bool) -> None:
    """The report has evidence, which was not looked at: that nothing of it is hardware says it all."""
    verified = check(simulated(), UnsafeSimulatedPolicy(require_gpus=require_gpus), collateral=None)
    assert not any("GPU" in item for item in verified.not_established)


def test_an_unsafe_policy_checks_a_report_that_is_not_simulated() -> None:
    """It is lenient with what says that it is simulated, and with nothing else."""
    assert check(REPORT, UnsafeSimulatedPolicy()).tcb is not None
    assert failure(quote_with(640), UnsafeSimulatedPolicy())[0] == "quote_not_verified"


def test_gpus_can_be_left_out_by_policy() -> None:
    """A machine without GPUs is fine for who says so."""
    verified = check(edited(nvidia_payload=None), Policy(require_gpus=False))
    assert verified.gpus == ()
    assert verified.steps[-1].skipped
    assert any("the report has none" in item for item in verified.not_established)
    assert not any("revoked" in item for item in verified.not_established)


def test_a_log_without_compose_file_verifies_unless_it_is_pinned() -> None:
    """Not every machine is started by dstack; but a pin can not be met by nothing."""
    challenge = Challenge.new(fixed_pair().identity("ecdsa"), nonce=NONCE)
    raw = bytearray(INTEL.quote(challenge.report_data).quote)
    raw[48 + 472 : 48 + 520] = bytes(48)
    report = simulated() | {"intel_quote": raw.hex(), "event_log": []}
    assert check(report, UnsafeSimulatedPolicy()).compose_hash is None
    assert failure(report, UnsafeSimulatedPolicy(compose_hash=("11" * 32,)))[0] == "bad_event_log"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"tcb_statuses": ["UpToDate", "SWHardeningNeeded"], "require_gpus": false}', Policy),
        ('{"policy": "Policy"}', Policy),
        ('{"policy": "UnsafeSimulatedPolicy"}', UnsafeSimulatedPolicy),
    ],
)
def test_policies_are_read_from_json(text: str, kind: type[Policy]) -> None:
    """A file says which policy it is; the strict one is the default."""
    assert type(parse_policy(text)) is kind


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"policy": "Lenient"}',
        '{"policy": 1}',
        '{"mrtd": []}',
        '{"mr_td": ["11"]}',
        '{"mr_td": "11"}',
        '{"compose_hash": ["%s"], "compose_hash": []}' % ("11" * 32),
        '{"policy": "Policy", "policy": "UnsafeSimulatedPolicy"}',
        '{"tcb_statuses": "UpToDate"}',
        "\xff",
    ],
)
def test_other_files_are_no_policies(text: str) -> None:
    """A misspelt pin must not be a policy that pins nothing."""
    with pytest.raises(UsageError) as caught:
        parse_policy(text)
    assert caught.value.code == "bad_policy"


def test_every_byte_of_a_gpus_report_counts() -> None:
    """No single byte can be changed, whichever it is."""
    report = base64.b64decode(ITEM["evidence"])
    for place in range(len(report)):
        item = ITEM | {"evidence": flipped(ITEM["evidence"], place)}
        with pytest.raises(TeesignError):
            verify_gpu_evidence([item], NONCE, now=NOW, root_sha256=NVIDIA.root_sha256)


@pytest.mark.parametrize("length", range(0, 186, 7))
def test_truncated_reports_are_refused(length: int) -> None:
    """Cut anywhere, it is no report."""
    with pytest.raises(VerificationError, match="SPDM"):
        parse_spdm_report(base64.b64decode(ITEM["evidence"])[:length])


def test_a_quote_of_the_test_authority_is_not_simulated() -> None:
    """The whole path runs on evidence that verifies, not on the simulation's."""
    assert isinstance(INTEL.quote(bytes(64)), Quote)
    assert "simulated" not in REPORT


def test_the_example_of_the_page_works() -> None:
    """The script of docs/verifying.md goes from a nonce to a verified answer."""
    page = (Path(__file__).parents[1] / "docs" / "verifying.md").read_text()
    script = page.split("```python\n")[2].partition("```")[0].replace("now=now", "now=now, roots=roots")
    chat = fixed_pair().sign(signed_text(sha256(b"in").hexdigest(), sha256(b"out").hexdigest()))
    names: dict[str, Any] = {"report": REPORT, "nonce": NONCE, "collateral": COLLATERAL, "now": NOW, "roots": ROOTS}
    names |= {"policy_json": "{}", "request_body": b"in", "response_body": b"out"}
    names |= {"signature": chat.answer()}
    exec(compile(script, "verifying.md", "exec"), names)
    assert names["answer"].signing_address == REPORT["signing_address"]
