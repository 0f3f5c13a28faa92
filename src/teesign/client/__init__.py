"""The far end: attest a server, fetch what its answers are checked with, and have every answer checked.

`VerifyingTransport` does all of it under a client of httpx or httpx2, and so under the OpenAI client:

    client = OpenAI(base_url="https://…/v1", http_client=httpx.Client(transport=VerifyingTransport(policy)))

Step by step: what to ask, and what to make of the answers, is described by flows, which do no I/O (`flow`, `server`,
`collateral`). They run over httpx or httpx2, whichever the program has, synchronously or not (`http`):

    with httpx.Client() as client:
        ask = ask_with(client)
        attestation = run(attest(server, Trust(policy), random=secrets.token_bytes, clock=time.time), ask)

Needs the extra `client`; with the extra `verify` alone, httpx or httpx2 and anyio must be there for another reason.
"""

from __future__ import annotations

from .collateral import INTEL_PCS, fetch_collateral, parse_collateral
from .flow import Answer, Flow, Question, run, run_async
from .http import ask_with, ask_with_async
from .observed import VerifiedResponse
from .roundtrip import bundle_of, round_trip
from .server import Attestation, Server, Trust, attest, fetch_report, fetch_signature
from .transport import AsyncVerifyingTransport, VerifyingTransport

__all__ = [
    "INTEL_PCS",
    "Answer",
    "AsyncVerifyingTransport",
    "Attestation",
    "Flow",
    "Question",
    "Server",
    "Trust",
    "VerifiedResponse",
    "VerifyingTransport",
    "ask_with",
    "ask_with_async",
    "attest",
    "bundle_of",
    "fetch_collateral",
    "fetch_report",
    "fetch_signature",
    "parse_collateral",
    "round_trip",
    "run",
    "run_async",
]
