"""The real worker with NVIDIA's real library, in an interpreter of its own, behind `teesign serve`.

TEESIGN_TEST_GPU_PYTHON names the interpreter; `nox -s gpu` sets it after installing `nv-attestation-sdk` there.
Without a GPU the library hands out its canned evidence: a real chain of certificates, and a real report that was once
made over a nonce of its own.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from cryptography import x509
from servers import free_port

from teesign import VerificationError
from teesign.verify.gpu import parse_spdm_report, verify_gpu_evidence

GPU_PYTHON = os.environ.get("TEESIGN_TEST_GPU_PYTHON", "")
pytestmark = pytest.mark.skipif(not GPU_PYTHON, reason="NVIDIA's library is not installed; run `nox -s gpu`")

TOKEN = "gpu-test-token"
NONCE = bytes(range(100, 132))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of `teesign serve` with the worker under the other interpreter."""
    port = free_port()
    environment = {
        **os.environ,
        "MODEL_NAME": "m",
        "TOKEN": TOKEN,
        "DEV": "1",
        "GPU_NO_HW_MODE": "1",
        "GPU_EVIDENCE_PYTHON": GPU_PYTHON,
        "LISTEN_HOST": "127.0.0.1",
        "LISTEN_PORT": str(port),
    }
    with subprocess.Popen([sys.executable, "-m", "teesign_asgi", "serve"], env=environment) as process:
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}/version", process)
        yield url
        process.terminate()
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def evidence(server: str) -> dict[str, Any]:
    """The GPU part of a report for the nonce."""
    report = _get(f"{server}/v1/attestation/report?nonce={NONCE.hex()}")
    assert report["simulated"] is True
    payload: dict[str, Any] = json.loads(report["nvidia_payload"])
    return payload


def test_the_evidence_holds_a_certificate_chain(evidence: dict[str, Any]) -> None:
    """Each GPU comes with its chain, from the leaf that signs its reports up to NVIDIA's root."""
    assert evidence["evidence_list"]
    for item in evidence["evidence_list"]:
        chain = x509.load_pem_x509_certificates(base64.b64decode(item["certificate"]))
        assert len(chain) > 2
        for certificate, issuer in pairwise(chain):
            certificate.verify_directly_issued_by(issuer)
        assert "NVIDIA" in chain[-1].subject.rfc4514_string()


def test_the_evidence_holds_a_report(evidence: dict[str, Any]) -> None:
    """Each GPU comes with the request GET_MEASUREMENTS of SPDM 1.1 (DMTF DSP0274) and its answer, MEASUREMENTS."""
    for item in evidence["evidence_list"]:
        report = base64.b64decode(item["evidence"])
        assert report[:2] == b"\x11\xe0"
        assert report[37:39] == b"\x11\x60"


def test_canned_evidence_is_not_over_the_nonce(evidence: dict[str, Any]) -> None:
    """The payload names the nonce that was asked for; the canned report has one of its own, and proves nothing."""
    assert evidence["nonce"] == NONCE.hex()
    for item in evidence["evidence_list"]:
        assert NONCE not in base64.b64decode(item["evidence"])


def test_the_architecture_is_what_the_evidence_says(evidence: dict[str, Any]) -> None:
    """The payload names the architecture of its GPUs."""
    assert {item["arch"] for item in evidence["evidence_list"]} == {evidence["arch"]}
    assert evidence["arch"] in ("HOPPER", "BLACKWELL")


def test_canned_evidence_verifies_over_its_own_nonce(evidence: dict[str, Any]) -> None:
    """A real GPU's chain and signature hold under our checks, up to NVIDIA's pinned root."""
    for item in evidence["evidence_list"]:
        nonce = parse_spdm_report(base64.b64decode(item["evidence"])).nonce
        (gpu,) = verify_gpu_evidence([item], nonce, now=time.time())
        assert "NVIDIA" in gpu.name


def test_canned_evidence_does_not_verify_over_ours(evidence: dict[str, Any]) -> None:
    """Which is why nobody can pass it off as an answer."""
    assert _failure(evidence["evidence_list"][0], NONCE) == "gpu_nonce_mismatch"


@pytest.mark.parametrize(
    ("member", "place", "code"),
    [
        ("evidence", 0, "gpu_bad_report"),
        ("evidence", 4, "gpu_nonce_mismatch"),
        ("evidence", 36, "gpu_signature_mismatch"),
        ("evidence", 60, "gpu_signature_mismatch"),
        ("evidence", 3700, "gpu_signature_mismatch"),
        ("evidence", -90, "gpu_signature_mismatch"),
        ("evidence", -1, "gpu_signature_mismatch"),
    ],
)
def test_a_changed_byte_of_the_report_is_found(evidence: dict[str, Any], member: str, place: int, code: str) -> None:
    """In the request, the measurements, the other data and the signature."""
    item = evidence["evidence_list"][0]
    nonce = parse_spdm_report(base64.b64decode(item["evidence"])).nonce
    changed = bytearray(base64.b64decode(item[member]))
    changed[place] ^= 1
    assert _failure(item | {member: base64.b64encode(changed).decode()}, nonce) == code


def test_a_changed_byte_of_each_certificate_is_found(evidence: dict[str, Any]) -> None:
    """Neither the leaf nor an authority nor the root can be another."""
    item = evidence["evidence_list"][0]
    nonce = parse_spdm_report(base64.b64decode(item["evidence"])).nonce
    begin = b"-----BEGIN CERTIFICATE-----"
    parts = base64.b64decode(item["certificate"]).split(begin)
    for place in range(1, len(parts)):
        lines = parts[place].split(b"\n")
        lines[-3] = lines[-3][:8] + (b"A" if lines[-3][8:9] != b"A" else b"B") + lines[-3][9:]
        changed = begin.join([*parts[:place], b"\n".join(lines), *parts[place + 1 :]])
        code = _failure(item | {"certificate": base64.b64encode(changed).decode()}, nonce)
        assert code in ("gpu_bad_evidence", "gpu_chain_invalid", "gpu_untrusted_root")


def _failure(item: dict[str, Any], nonce: bytes) -> str:
    with pytest.raises(VerificationError) as caught:
        verify_gpu_evidence([item], nonce, now=time.time())
    return caught.value.code


def _get(url: str) -> Any:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=90) as response:
        return json.load(response)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            _get(url)
        except urllib.error.URLError:
            assert process.poll() is None, "the process ended before it was ready"
            assert time.monotonic() < deadline, "the process is not ready"
            time.sleep(0.02)
        else:
            return
