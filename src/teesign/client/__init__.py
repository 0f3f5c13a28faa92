"""The far end: attest a server, and fetch what its answers are checked with.

What to ask, and what to make of the answers, is described by flows, which do no I/O (`flow`, `server`, `collateral`).
They run over httpx or httpx2, whichever the program has, synchronously or not (`http`):

    with httpx.Client() as client:
        ask = ask_with(client)
        attestation = run(attest(server, Trust(policy), random=secrets.token_bytes, clock=time.time), ask)

Needs the extra `verify`, and for asking `client`.
"""

from __future__ import annotations

from .collateral import INTEL_PCS, fetch_collateral, parse_collateral
from .flow import Answer, Flow, Question, run, run_async
from .http import ask_with, ask_with_async
from .server import Attestation, Server, Trust, attest, fetch_report, fetch_signature

__all__ = [
    "INTEL_PCS",
    "Answer",
    "Attestation",
    "Flow",
    "Question",
    "Server",
    "Trust",
    "ask_with",
    "ask_with_async",
    "attest",
    "fetch_collateral",
    "fetch_report",
    "fetch_signature",
    "parse_collateral",
    "run",
    "run_async",
]
