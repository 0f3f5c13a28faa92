"""docs/wire-contract.md, "Attestation reports", over real sockets, in development mode: what they say and bind."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from eth_account import Account
from eth_account.messages import encode_defunct
from servers import Kind, Stack, stack
from wire import FRAMINGS

from teesign import GpuEvidence, SourceError
from teesign.sources import Sources
from teesign.sources.simulated import SimulatedGpus, SimulatedQuotes
from teesign.testing import ECDSA_SECRET, fixed_evidence, fixed_pair

REPORT = "/v1/attestation/report"
NONCE = "0123456789abcdef" * 4
REPORT_DATA_OFFSET = 48 + 520
"""Where a TDX quote of version 4 has its report data: after the header, at its place in the body."""

ALGORITHMS = ["ecdsa", "ed25519"]


def report_data(report: dict[str, Any]) -> bytes:
    """Return the report data in a report's quote."""
    return bytes.fromhex(report["intel_quote"])[REPORT_DATA_OFFSET : REPORT_DATA_OFFSET + 64]


def address_bytes(report: dict[str, Any]) -> bytes:
    """Return the signing address as the bytes that are bound."""
    return bytes.fromhex(report["signing_address"].removeprefix("0x"))


def get(proxy: Stack, query: str = "") -> dict[str, Any]:
    """Fetch a report."""
    answered = proxy.client.get(REPORT + query)
    assert answered.status == 200, answered.body
    assert answered.header("content-type") == "application/json"
    report: dict[str, Any] = answered.json()
    return report


def certificate(path: Path) -> bytes:
    """Write a new self-signed certificate to a file, and return SHA-256 of its public key info."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(made.public_bytes(Encoding.PEM))
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_a_report_holds(proxy: Stack, algorithm: str) -> None:
    """Every member of the contract, decoded as the contract says, and the same report once more in the list."""
    report = get(proxy, f"?signing_algo={algorithm}&nonce={NONCE}")
    (inner,) = report.pop("all_attestations")
    assert inner == report
    assert set(report) == {
        "model_name",
        "signing_address",
        "signing_algo",
        "signing_public_key",
        "request_nonce",
        "intel_quote",
        "nvidia_payload",
        "event_log",
        "info",
        "simulated",
    }
    assert report["model_name"] == "test/model"
    assert report["signing_algo"] == algorithm
    assert report["request_nonce"] == NONCE
    assert isinstance(report["event_log"], list)
    assert isinstance(report["info"], dict)
    assert report["simulated"] is True
    payload = json.loads(report["nvidia_payload"])
    assert set(payload) == {"nonce", "evidence_list", "arch"}
    assert payload["nonce"] == NONCE
    assert set(payload["evidence_list"][0]) == {"certificate", "evidence", "arch"}
    assert payload["arch"] == payload["evidence_list"][0]["arch"]


def test_the_report_is_about_the_signing_keys(proxy: Stack) -> None:
    """Its addresses are those that signatures come from, and its public keys are theirs."""
    ecdsa, ed25519 = (get(proxy, f"?signing_algo={algorithm}") for algorithm in ALGORITHMS)
    account = Account.from_key(ECDSA_SECRET)
    assert ecdsa["signing_address"] == account.address
    assert bytes.fromhex(ecdsa["signing_public_key"]) == account._key_obj.public_key.to_bytes()
    assert len(bytes.fromhex(ecdsa["signing_public_key"])) == 64
    assert ed25519["signing_public_key"] == ed25519["signing_address"]
    own = proxy.client.post("/v1/chat/completions", b"{}").header("x-signature-id") or ""
    fields = proxy.client.signature(own).json()
    assert fields["signing_address_ecdsa"] == ecdsa["signing_address"]
    assert fields["signing_address_ed25519"] == ed25519["signing_address"]
    message = encode_defunct(text=fields["text"])
    assert Account.recover_message(message, signature=fields["signature_ecdsa"]) == ecdsa["signing_address"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_report_data(proxy: Stack, algorithm: str) -> None:
    """The address, padded with zeros to 32 bytes, and then the nonce."""
    report = get(proxy, f"?signing_algo={algorithm}&nonce={NONCE}")
    address = address_bytes(report)
    assert len(address) == (20 if algorithm == "ecdsa" else 32)
    assert report_data(report) == address + bytes(32 - len(address)) + bytes.fromhex(NONCE)


def test_the_gpu_evidence_is_for_the_same_nonce(proxy: Stack) -> None:
    """Without a nonce too: what the GPU was asked is what is in the quote."""
    report = get(proxy)
    nonce = bytes.fromhex(report["request_nonce"])
    assert report_data(report)[32:] == nonce
    assert json.loads(report["nvidia_payload"])["nonce"] == nonce.hex()


def test_a_nonce_may_be_upper_case(proxy: Stack) -> None:
    """Hex is hex."""
    assert report_data(get(proxy, f"?nonce={NONCE.upper()}"))[32:] == bytes.fromhex(NONCE)


BAD_PARAMETERS = [
    ("nonce=", 400, "Nonce must be 32 bytes"),
    ("nonce=00", 400, "Nonce must be 32 bytes"),
    (f"nonce={NONCE}00", 400, "Nonce must be 32 bytes"),
    (f"nonce={NONCE[:-2]}", 400, "Nonce must be 32 bytes"),
    (f"nonce={NONCE[:-1]}", 400, "Nonce must be hex-encoded"),
    (f"nonce=0x{NONCE[2:]}", 400, "Nonce must be hex-encoded"),
    (f"nonce={'g' * 64}", 400, "Nonce must be hex-encoded"),
    (f"nonce={NONCE[:-1]}%20", 400, "Nonce must be hex-encoded"),
    ("nonce=%D9%A0%D9%A1", 400, "Nonce must be hex-encoded"),
    ("signing_algo=rsa", 400, "Invalid signing algorithm. Must be 'ed25519' or 'ecdsa'"),
    ("signing_algo=", 400, "Invalid signing algorithm. Must be 'ed25519' or 'ecdsa'"),
    (f"nonce={NONCE}&nonce={NONCE}", 400, None),
    ("include_tls_fingerprint=maybe", 400, None),
    ("include_tls_fingerprint=true", 400, None),
    (f"signing_address=0x{'0' * 40}", 404, "Signing address not found on this server"),
    ("signing_address=", 404, "Signing address not found on this server"),
    ("signing_address=%C3%A9", 404, "Signing address not found on this server"),
]


@pytest.mark.parametrize(("query", "status", "message"), BAD_PARAMETERS)
def test_bad_parameters(proxy: Stack, query: str, status: int, message: str | None) -> None:
    """Each gets the contract's message; no report goes out that is not what was asked for."""
    kind = {400: "bad_request", 404: "not_found"}[status]
    proxy.client.get(f"{REPORT}?{query}").assert_error(status, kind, message)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_signing_address_parameter(proxy: Stack, algorithm: str) -> None:
    """This server's own address is found, in any case; the other algorithm's address is not."""
    pair = fixed_pair()
    own, other = pair.ecdsa.identity.address, pair.ed25519.identity.address
    if algorithm == "ed25519":
        own, other = other, own
    for spelling in (own, own.lower(), own.upper().replace("0X", "0x")):
        get(proxy, f"?signing_algo={algorithm}&signing_address={spelling}")
    answered = proxy.client.get(f"{REPORT}?signing_algo={algorithm}&signing_address={other}")
    answered.assert_error(404, "not_found", "Signing address not found on this server")


# --- the TLS certificate


@pytest.fixture(scope="module")
def cert_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the certificate is."""
    return tmp_path_factory.mktemp("tls") / "cert.pem"


@pytest.fixture(scope="module")
def with_certificate(server: Kind, cert_path: Path) -> Iterator[Stack]:
    """A proxy that can bind a certificate."""
    certificate(cert_path)
    with stack(server, tls_cert_path=cert_path) as running:
        yield running


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_certificate_can_be_bound(with_certificate: Stack, cert_path: Path, algorithm: str) -> None:
    """The first half of the report data is the hash of address and certificate key; a renewed file is seen at once."""
    for _ in range(2):
        fingerprint = certificate(cert_path)
        report = get(with_certificate, f"?signing_algo={algorithm}&nonce={NONCE}&include_tls_fingerprint=true")
        expected = hashlib.sha256(address_bytes(report) + fingerprint).digest()
        assert report["tls_cert_fingerprint"] == fingerprint.hex()
        assert report_data(report) == expected + bytes.fromhex(NONCE)


@pytest.mark.parametrize("query", ["", "&include_tls_fingerprint=false", "&include_tls_fingerprint=0"])
def test_a_certificate_is_bound_only_when_asked_for(with_certificate: Stack, query: str) -> None:
    """Without the parameter, the report data is that of the address alone."""
    report = get(with_certificate, f"?nonce={NONCE}{query}")
    assert "tls_cert_fingerprint" not in report
    assert report_data(report)[:20] == address_bytes(report)


def test_a_certificate_that_has_gone(with_certificate: Stack, cert_path: Path) -> None:
    """A report without the binding would be worse than none; when the file is back, so is the report."""
    cert_path.unlink()
    query = f"?nonce={NONCE}&include_tls_fingerprint=true"
    with_certificate.client.get(REPORT + query).assert_error(500, "server_error", "Internal server error")
    fingerprint = certificate(cert_path)
    assert get(with_certificate, query)["tls_cert_fingerprint"] == fingerprint.hex()


# --- the cache


def test_reports_without_a_nonce_are_cached(proxy: Stack) -> None:
    """The same bytes again, for each algorithm its own; one with a nonce is always fresh and leaves the cache alone."""
    first = {algorithm: proxy.client.get(f"{REPORT}?signing_algo={algorithm}").body for algorithm in ALGORITHMS}
    assert first["ecdsa"] != first["ed25519"]
    get(proxy, f"?nonce={NONCE}")
    for algorithm in ALGORITHMS:
        assert proxy.client.get(f"{REPORT}?signing_algo={algorithm}").body == first[algorithm]


def test_the_cache_can_be_turned_off() -> None:
    """With ATTESTATION_CACHE_TTL=0 every report has a nonce of its own."""
    with stack(attestation_cache_ttl=0.0) as proxy:
        assert get(proxy)["request_nonce"] != get(proxy)["request_nonce"]


# --- who may ask


def test_reports_need_a_token_by_default(proxy: Stack) -> None:
    """Collecting evidence is expensive."""
    proxy.client.as_anyone().get(REPORT).assert_error(401, "unauthorized")


def test_reports_can_be_public() -> None:
    """PUBLIC_ATTESTATION=1 opens the reports, and nothing else."""
    with stack(public_attestation=True) as proxy:
        anyone = proxy.client.as_anyone()
        assert anyone.get(REPORT).status == 200
        assert anyone.get("/v1/signature/x").status == 401
        assert anyone.get(REPORT + "/x").status == 401


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_public_report_waits_for_no_body(server: Kind, framing: str) -> None:
    """Without a token nobody holds up a report, and with it the end of a server, by a body that does not end."""
    with (
        stack(server, public_attestation=True) as proxy,
        proxy.client.as_anyone().open("GET", REPORT, [FRAMINGS[framing]], b"1\r\nx\r\n") as conversation,
    ):
        assert conversation.answer().status == 200


# --- slow and failing sources


class _SlowGpus(SimulatedGpus):
    """A GPU that answers when it is told to, and counts how often it is asked, and how often at once."""

    def __init__(self) -> None:
        self.asked = 0
        self.at_once = 0
        self.most_at_once = 0
        self.begun = threading.Event()
        self.go_on = threading.Event()

    async def collect(self, nonce: bytes) -> GpuEvidence:
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.begun.set()
        try:
            await anyio.to_thread.run_sync(self.go_on.wait, 10)
        finally:
            self.at_once -= 1
        return fixed_evidence(nonce)


def test_a_crowd_with_nonces(server: Kind) -> None:
    """One collects, sixteen wait, and the others are told to come back; collections never overlap."""
    gpus = _SlowGpus()
    with (
        stack(server, parts={"sources": Sources(quotes=SimulatedQuotes(), gpus=gpus)}) as proxy,
        ThreadPoolExecutor(64) as pool,
    ):
        turned_away = threading.Semaphore(0)

        def ask(number: int) -> int:
            answered = proxy.client.get(f"{REPORT}?nonce={number:064x}")
            if answered.status == 503:
                answered.assert_error(503, "overloaded")
                assert int(answered.header("retry-after") or "") >= 1
                turned_away.release()
            else:
                assert report_data(answered.json())[32:] == number.to_bytes(32, "big")
            return answered.status

        asked = [pool.submit(ask, number) for number in range(64)]
        try:
            for _ in range(64 - 17):
                assert turned_away.acquire(timeout=60)
        finally:
            gpus.go_on.set()
        statuses = sorted(each.result() for each in asked)
        assert statuses == [200] * 17 + [503] * 47
        assert (gpus.asked, gpus.most_at_once) == (17, 1)
        assert proxy.client.get(f"{REPORT}?nonce={NONCE}").status == 200


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Both ends of a thousand connections are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_a_crowd_without_nonces(server: Kind) -> None:
    """A thousand wait for the same collection, and all get its report."""
    gpus = _SlowGpus()
    with (
        stack(server, parts={"sources": Sources(quotes=SimulatedQuotes(), gpus=gpus)}) as proxy,
        ExitStack() as connections,
    ):
        asked = [connections.enter_context(proxy.client.open("GET", REPORT)) for _ in range(1000)]
        assert gpus.begun.wait(60)
        gpus.go_on.set()
        answers = [each.answer() for each in asked]
        assert {answered.status for answered in answers} == {200}
        assert len({answered.body for answered in answers}) == 1
        assert gpus.asked == 1


class _FailingGpus(SimulatedGpus):
    """A GPU that fails as often as it is told to."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    async def collect(self, nonce: bytes) -> GpuEvidence:
        if self.failures:
            self.failures -= 1
            raise SourceError("The worker said something about CANARY.", code="gpu_failed")
        return fixed_evidence(nonce)


@pytest.mark.parametrize("query", ["", f"?nonce={NONCE}"])
def test_a_failed_collection(server: Kind, query: str, caplog: pytest.LogCaptureFixture) -> None:
    """The client learns nothing of the cause, the log does, and the next request tries again."""
    sources = Sources(quotes=SimulatedQuotes(), gpus=_FailingGpus(1))
    with stack(server, parts={"sources": sources}) as proxy:
        proxy.client.get(REPORT + query).assert_error(500, "server_error", "Internal server error")
        assert "The worker said something" in caplog.text
        assert proxy.client.get(REPORT + query).status == 200
