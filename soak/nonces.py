"""The figure about nonces: attestation calls of which many are cancelled, and no report over another one's nonce."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import shlex
import sys
from pathlib import Path
from typing import Any, Final

from teesign import parse_quote

from .client import connect, get
from .ledger import Ledger
from .stack import running_stack

__all__ = ["run_nonces"]

CALLERS: Final = 12
"""As many as the GPU's queue takes without refusing one."""

WORKER: Final = Path(__file__).parents[1] / "tests" / "fake_worker.py"


async def run_nonces(folder: Path, count: int) -> Ledger:
    """Ask for reports over nonces of our own, and cancel every fifth call at some moment."""
    ledger = Ledger()
    chance = random.Random(1)  # noqa: S311 - load, not secrets
    calls = iter(range(count))
    command = shlex.join([sys.executable, str(WORKER), "slow"])
    with running_stack(folder, GPU_EVIDENCE_COMMAND=command) as stack:

        async def caller() -> None:
            for call in calls:
                nonce = chance.randbytes(32)
                async with connect(stack.port) as connection:
                    answer = connection.begin(get(f"/v1/attestation/report?nonce={nonce.hex()}"))
                    if call % 5 == 0:
                        await asyncio.wait([answer.ended], timeout=chance.random() * 0.1)
                        ledger.counts["cancelled"] += not answer.whole
                    else:
                        async with asyncio.timeout(60):
                            await answer.ended
                if answer.whole:
                    ledger.counts[f"answered with {answer.status}"] += 1
                    ledger.counts["mixed up"] += answer.status == 200 and not is_over(answer.json(), nonce)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        for complaint in stack.complaints():
            ledger.check(right=False, what=complaint)
    ledger.seen("attestation calls", count)
    ledger.at_least("of them answered with 200", ledger.counts["answered with 200"], count * 0.75)
    ledger.exactly("reports that hold another nonce anywhere", ledger.counts["mixed up"], 0)
    return ledger


def is_over(report: dict[str, Any], nonce: bytes) -> bool:
    """Tell whether everything in a report is over this nonce: itself, the quote, and the evidence of the GPU."""
    payload = json.loads(report["nvidia_payload"])
    evidence = [base64.b64decode(item["evidence"]) for item in payload["evidence_list"]]
    return (
        report["request_nonce"] == payload["nonce"] == nonce.hex()
        and parse_quote(bytes.fromhex(report["intel_quote"])).report_data[32:] == nonce
        and bool(evidence)
        and all(nonce in each for each in evidence)
    )
