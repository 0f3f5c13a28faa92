"""A bundle that was made once, over the test's authorities of that day: it has to verify for ever.

This file needs nothing but `teesign[verify]` and pytest. `nox -s javascript` runs it where nothing else is installed,
and says so in TEESIGN_TEST_ALONE.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from teesign import Challenge, MalformedError, VerificationError, signed_text
from teesign.testing import fixed_evidence, fixed_pair, fixed_quote
from teesign.verify.bundle import EvidenceBundle, decode_bundle, encode_bundle, verify_bundle
from teesign.verify.policy import UnsafeSimulatedPolicy
from teesign.verify.report import TrustedRoots

HERE = Path(__file__).parent
RECORDED = (HERE / "recorded_bundle.json").read_bytes()
ROOTS_OF_THAT_DAY = json.loads((HERE / "recorded_roots.json").read_bytes())
ROOTS = TrustedRoots(base64.b64decode(ROOTS_OF_THAT_DAY["intel"]), ROOTS_OF_THAT_DAY["nvidia_sha256"])


def test_it_verifies() -> None:
    """From the machine to the answer, at its time and under its policy; whatever has changed in teesign since."""
    verified = verify_bundle(decode_bundle(RECORDED), roots=ROOTS)
    assert verified.report.tcb is not None
    assert (verified.report.tcb.status, len(verified.report.gpus)) == ("UpToDate", 1)
    assert verified.answer.request_sha256 == sha256(b'{"model": "m"}').hexdigest()
    assert verified.answer.signing_address == fixed_pair().identity("ecdsa").address


@pytest.mark.parametrize("place", [place for place in range(1, len(RECORDED), 97) if not RECORDED[place:].isspace()])
def test_no_character_of_it_can_be_changed(place: int) -> None:
    """Wherever it is; a blank between members that becomes a letter included."""
    changed = RECORDED[:place] + bytes([RECORDED[place] ^ 1]) + RECORDED[place + 1 :]
    with pytest.raises((MalformedError, VerificationError)):
        verify_bundle(decode_bundle(changed), roots=ROOTS)


def simulated() -> bytes:
    """Return a bundle as a visit to a server in development mode leaves it."""
    nonce, pair = b"\7" * 32, fixed_pair()
    challenge = Challenge.new(pair.identity("ecdsa"), nonce=nonce)
    quote, evidence = fixed_quote(challenge.report_data), fixed_evidence(nonce)
    report = challenge.answer(model="m", quote=quote, gpu_evidence=evidence, info={})
    chat = pair.sign(signed_text(sha256(b"in").hexdigest(), sha256(b"out").hexdigest()))
    policy = UnsafeSimulatedPolicy()
    return encode_bundle(EvidenceBundle(1, policy, nonce, None, report, None, b"in", b"out", chat.answer()))


@pytest.mark.parametrize(
    ("written", "policy", "code", "shown"),
    [
        pytest.param(RECORDED, None, 1, "(quote_not_verified)", id="of another authority than Intel"),
        pytest.param(simulated(), None, 1, "(unsafe_policy)", id="simulated"),
        pytest.param(simulated(), '{"policy": "UnsafeSimulatedPolicy"}', 0, "PROVES NOTHING", id="simulated, accepted"),
    ],
)
def test_the_command_judges_files(tmp_path: Path, written: bytes, policy: str | None, code: int, shown: str) -> None:
    """By Intel's and NVIDIA's roots alone, and by the policy that is given."""
    (tmp_path / "bundle.json").write_bytes(written)
    command = [sys.executable, "-m", "teesign_asgi", "verify", "--offline", "bundle.json"]
    if policy is not None:
        (tmp_path / "policy.json").write_text(policy)
        command += ["--policy", "policy.json"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (run.returncode, run.stderr) == (code, "")
    assert shown in run.stdout


@pytest.mark.skipif(
    "TEESIGN_TEST_ALONE" not in os.environ, reason="other packages are installed; run `nox -s javascript`"
)
@pytest.mark.parametrize("package", ["granian", "structlog", "anyio", "httpx", "httpx2", "httpcore", "starlette"])
def test_nothing_else_is_installed(package: str) -> None:
    """Neither a server nor a client."""
    assert importlib.util.find_spec(package) is None
