"""What a far end needs to verify in tests: sources of evidence that verifies, and a service with the collateral."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

from authorities import INTEL, NOW, NVIDIA, ROOTS
from backend import Backend, Call, answer
from fake_agent import FakeAgent
from servers import TOKEN, Kind, Stack, stack

from teesign import GpuEvidence, Quote, SigningPair
from teesign.client import Server, Trust
from teesign.sources import Sources
from teesign.testing import fixed_pair
from teesign.verify.policy import Policy

__all__ = [
    "COLLATERAL",
    "GenuineAgent",
    "GenuineGpus",
    "GenuineQuotes",
    "clock",
    "genuine_stack",
    "pccs",
    "server_of",
    "trust",
]

COLLATERAL = INTEL.collateral()


class GenuineQuotes:
    """A guest agent whose quotes the test's Intel stands behind."""

    async def quote(self, report_data: bytes) -> Quote:
        """Return a quote over these 64 bytes."""
        return INTEL.quote(report_data)

    async def info(self) -> Mapping[str, Any]:
        """Return nothing of interest."""
        return {}


class GenuineGpus:
    """GPUs that the test's NVIDIA stands behind."""

    async def collect(self, nonce: bytes) -> GpuEvidence:
        """Return evidence made over these 32 bytes."""
        return NVIDIA.evidence(nonce)

    async def aclose(self) -> None:
        """Hold nothing."""


class GenuineAgent(FakeAgent):
    """A guest agent on a socket that both authorities stand behind; `fake_worker.py` asks it for evidence."""

    def answer(self, call: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one call."""
        if call == "/GetQuote":
            quote = INTEL.quote(bytes.fromhex(body["report_data"]))
            fields = {"quote": quote.quote.hex(), "event_log": json.dumps(quote.event_log)}
            return {**fields, "report_data": body["report_data"], "vm_config": ""}
        if call == "/Evidence":
            return NVIDIA.item(bytes.fromhex(body["nonce"]))
        return super().answer(call, body)


@contextmanager
def genuine_stack(kind: Kind = "uvicorn", *, pair: SigningPair | None = None, **changes: Any) -> Iterator[Stack]:
    """Run a proxy whose reports verify, before a scripted backend."""
    parts = {"sources": Sources(quotes=GenuineQuotes(), gpus=GenuineGpus()), "pair": pair or fixed_pair()}
    with stack(kind, parts=parts, **{"dev": False, **changes}) as running:
        yield running


def clock() -> float:
    """Return a time at which all that the test's authorities have issued is valid."""
    return NOW


def trust(policy: Policy | None = None, **options: Any) -> Trust:
    """Return what the test's evidence is checked against; its collateral too, unless that is to be fetched."""
    return Trust(policy or Policy(), **{"collateral": COLLATERAL, "roots": ROOTS, **options})


def server_of(running: Stack, **options: Any) -> Server:
    """Return where a proxy is, and the token for it."""
    return Server(f"http://127.0.0.1:{running.client.port}", **{"authorization": f"Bearer {TOKEN}", **options})


@contextmanager
def pccs(parts: Mapping[str, Any] = COLLATERAL, *, as_hex: bool = False) -> Iterator[Backend]:
    """Run a service that answers as Intel's does, with this collateral.

    Args:
        parts: the collateral.
        as_hex: whether revocation lists come in hex, as old caches send them.
    """

    def script(call: Call) -> None:
        path = urlsplit(call.target.decode()).path

        def send(body: str | bytes, chain_name: str, chain: str = "") -> None:
            data = body.encode() if isinstance(body, str) else body
            answer(200, data, f"{chain_name}: {quote(parts[chain]) if chain else ''}".encode())(call)

        def revocation_list(name: str) -> str | bytes:
            return str(parts[name]) if as_hex else bytes.fromhex(parts[name])

        if path == "/sgx/certification/v4/pckcrl":
            send(revocation_list("pck_crl"), "SGX-PCK-CRL-Issuer-Chain", "pck_crl_issuer_chain")
        elif path == "/tdx/certification/v4/tcb":
            signed = f'{{"tcbInfo":{parts["tcb_info"]},"signature":"{parts["tcb_info_signature"]}"}}'
            send(signed, "TCB-Info-Issuer-Chain", "tcb_info_issuer_chain")
        elif path == "/tdx/certification/v4/qe/identity":
            signed = f'{{"enclaveIdentity":{parts["qe_identity"]},"signature":"{parts["qe_identity_signature"]}"}}'
            send(signed, "SGX-Enclave-Identity-Issuer-Chain", "qe_identity_issuer_chain")
        elif path == "/sgx/certification/v4/rootcacrl":
            send(revocation_list("root_ca_crl"), "x-nothing")
        else:
            answer(404, b"")(call)

    with Backend() as service:
        service.play(script)
        yield service
