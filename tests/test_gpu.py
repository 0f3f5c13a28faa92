"""The real worker with NVIDIA's real library, in an interpreter of its own, behind `teesign serve`.

TEESIGN_TEST_GPU_PYTHON names the interpreter; `nox -s gpu` sets it after installing `nv-attestation-sdk` there.
Without a GPU the library hands out its canned evidence: a real chain of certificates, and a real report that was once
made over a nonce of its own.
"""

from __future__ import annotations

import base64
import json
import os
import socket
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

GPU_PYTHON = os.environ.get("TEESIGN_TEST_GPU_PYTHON", "")
pytestmark = pytest.mark.skipif(not GPU_PYTHON, reason="NVIDIA's library is not installed; run `nox -s gpu`")

TOKEN = "gpu-test-token"
NONCE = bytes(range(100, 132))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of `teesign serve` with the worker under the other interpreter."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
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
        assert process.wait(10) == 0


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


def _get(url: str) -> Any:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=90) as response:
        return json.load(response)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            _get(url)
        except urllib.error.URLError:
            assert process.poll() is None, "the process ended before it was ready"
            assert time.monotonic() < deadline, "the process is not ready"
            time.sleep(0.02)
        else:
            return
