"""The soak tool: each kind of run still works, for seconds instead of minutes, and what it checks can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest

from soak.backend import CANARY
from soak.client import Answer
from soak.curves import Curves
from soak.ledger import Ledger, Signatures, percentile
from soak.nonces import is_over
from soak.stack import Stack
from teesign import Challenge, signed_text
from teesign.testing import fixed_evidence, fixed_pair, fixed_quote

ROOT = Path(__file__).parents[1]
PAIR = fixed_pair()
REQUEST, RESPONSE = b"request", b"response"

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The event loop that the tool runs on."""
    return "asyncio"


def soak(folder: Path, *arguments: str) -> str:
    """Run the tool as `nox -s soak` does, and return what it printed, if nothing was wrong or missed."""
    command = [sys.executable, "-m", "soak", "--folder", str(folder), *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_mixed_load(tmp_path: Path) -> None:
    """Every act passes, and the curves are written."""
    printed = soak(tmp_path, "--minutes", "0.07")
    assert "clients that leave" in printed
    header, *rows = (tmp_path / "mixed" / "mixed.csv").read_text().splitlines()
    assert header.startswith("seconds,memory MiB,descriptors")
    assert len(rows) >= 2


def test_figures(tmp_path: Path) -> None:
    """Those that do not need minutes, with a few calls each."""
    figures = ("instant-signatures", "gone", "nonces")
    printed = soak(tmp_path, "--scale", "0.01", *(word for name in figures for word in ("--figure", name)))
    assert printed.count(" met") == 7


def found(status: int = 200, **changes: str) -> Answer:
    """Return what a signature endpoint answers, with members replaced."""
    chat = PAIR.sign(signed_text(sha256(REQUEST).hexdigest(), sha256(RESPONSE).hexdigest())).answer()
    return Answer(keeps=True, status=status, body=bytearray(json.dumps({**chat, **changes}).encode()))


@pytest.mark.parametrize(
    ("answer", "response", "wrong"),
    [
        ({}, RESPONSE, 0),
        ({}, RESPONSE + b"!", 1),
        ({"status": 404}, RESPONSE, 1),
        ({"signature_ed25519": "00" * 64}, RESPONSE, 1),
        ({"signing_address_ecdsa": "0x" + "11" * 20}, RESPONSE, 1),
    ],
)
async def test_a_wrong_signature_is_found(answer: dict[str, Any], response: bytes, wrong: int) -> None:
    """Whatever is wrong about it is counted and described."""
    ledger = Ledger()
    signatures = Signatures(cast(Stack, None), ledger, PAIR.ecdsa.identity.address)
    signatures.verify(found(**answer), Answer(keeps=True, body=bytearray(response)), REQUEST)
    assert (ledger.counts["wrong"], len(ledger.wrong), ledger.counts["signatures verified"]) == (
        wrong,
        wrong,
        1 - wrong,
    )


async def test_a_report_over_another_nonce_is_found() -> None:
    """In whichever of its parts it is."""
    nonce, other = b"\1" * 32, b"\2" * 32
    challenge = Challenge.new(PAIR.ecdsa.identity, nonce=nonce)

    def report(quote: bytes, evidence: bytes) -> dict[str, Any]:
        data = Challenge.new(PAIR.ecdsa.identity, nonce=quote).report_data
        return challenge.answer(model="m", quote=fixed_quote(data), gpu_evidence=fixed_evidence(evidence), info={})

    assert is_over(report(nonce, nonce), nonce)
    assert not is_over(report(other, nonce), nonce)
    assert not is_over(report(nonce, nonce), other)


@pytest.mark.parametrize(
    "line", [f"prompt {CANARY}", "Traceback (most recent call last):", "Task exception was never retrieved"]
)
def test_what_must_not_be_in_a_log_is_found(tmp_path: Path, line: str) -> None:
    """Prompts, and failures that nobody had thought of."""
    log = tmp_path / "log"
    log.write_text(f"a line\n{line}\n")
    assert len(Stack(0, 0, 0, log).complaints()) == 1
    log.write_text("a line\n")
    assert Stack(0, 0, 0, log).complaints() == []


def test_growth_is_that_of_the_later_part() -> None:
    """What is filled up at the beginning does not count, a slope does."""
    assert Curves([(float(second), min(second, 20) * 5.0, 0, 0, 0, 0) for second in range(100)]).growth() < 5
    assert Curves([(float(second), float(second), 0, 0, 0, 0) for second in range(100)]).growth() == 50


def test_percentiles() -> None:
    """The value that so many of them do not exceed."""
    values = [float(value) for value in range(100)]
    assert (percentile(values, 50), percentile(values, 99), percentile([1.0], 99)) == (50, 99, 1)


def test_a_missed_figure_is_missed() -> None:
    """Each kind of target, met and missed."""
    ledger = Ledger()
    ledger.at_most("a", 1, 1)
    ledger.at_most("b", 1.1, 1)
    ledger.at_least("c", 1, 1)
    ledger.at_least("d", 0.9, 1)
    ledger.exactly("e", 1, 1)
    ledger.exactly("f", 0, 1)
    assert [row.met for row in ledger.figures] == [True, False] * 3
