"""What an attestation report binds together, and its assembly.

A report is the answer to a challenge: "prove that the key with this address lives in a trusted machine, now". The
challenge is a signing address and a nonce of 32 bytes; both go into the 64 bytes of report data that the TDX quote
signs, and the GPU's evidence is made over the same nonce. This module computes the report data and puts the answers
together; fetching them is the caller's I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import msgspec

from .errors import UsageError
from .signing import Identity

__all__ = ["NONCE_LENGTH", "Challenge", "GpuEvidence", "Quote", "report_data"]

NONCE_LENGTH: Final = 32
"""A challenge's nonce, in bytes: it fills the second half of the report data."""


class Quote(msgspec.Struct, frozen=True):
    """A TDX quote as a guest agent hands it out.

    Attributes:
        quote: the quote, binary.
        event_log: the events behind its RTMRs, decoded JSON.
        simulated: whether it does not come from hardware.

    Raises:
        UsageError: `bad_event_log` if the event log is no list, such as the JSON text that it comes in.
    """

    quote: bytes
    event_log: Sequence[Any] = ()
    simulated: bool = False

    def __post_init__(self) -> None:
        """Refuse an event log that a report would list by its characters."""
        if not isinstance(self.event_log, Sequence) or isinstance(self.event_log, str | bytes | bytearray):
            raise UsageError(
                "A quote's event log is a list: of its JSON text, what `json.loads` returns.", code="bad_event_log"
            )


class GpuEvidence(msgspec.Struct, frozen=True):
    """What the GPUs say about themselves, for one nonce.

    Attributes:
        evidence: one item a GPU, each with `certificate` (its chain), `evidence` (its SPDM report) and `arch`.
        simulated: whether it does not come from hardware.
    """

    evidence: Sequence[Mapping[str, Any]]
    simulated: bool = False

    @property
    def arch(self) -> str:
        """The architecture that the evidence names, such as "HOPPER"; of several GPUs, the first one's."""
        return str(self.evidence[0].get("arch", "")) if self.evidence else ""


def report_data(address: bytes, nonce: bytes, spki_sha256: bytes | None = None) -> bytes:
    """Return the 64 bytes that bind a signing address, a nonce and, where given, a TLS key into a quote.

    The first half is the address, right-padded with zeros; or, with a TLS key, SHA-256(address || spki_sha256). The
    second half is the nonce.

    Args:
        address: the signing address, 20 bytes (ECDSA) or 32 (Ed25519).
        nonce: 32 bytes.
        spki_sha256: SHA-256 of the TLS certificate's subject public key info, 32 bytes.

    Raises:
        UsageError: `bad_report_data` if one of them has another length.
    """
    key_hash = bytes(32) if spki_sha256 is None else spki_sha256
    if len(address) not in (20, 32) or len(nonce) != NONCE_LENGTH or len(key_hash) != 32:
        raise UsageError(
            "Report data takes an address of 20 or 32 bytes, a nonce of 32 and a key hash of 32.",
            code="bad_report_data",
        )
    first = address.ljust(32, b"\0") if spki_sha256 is None else sha256(address + spki_sha256).digest()
    return first + nonce


class Challenge(msgspec.Struct, frozen=True):
    """What one report has to prove.

    Attributes:
        identity: the key whose home is to be attested.
        nonce: 32 bytes.
        spki_sha256: 32 bytes if the TLS key is to be bound too, else None.
        report_data: the 64 bytes to ask a quote for.
    """

    identity: Identity
    nonce: bytes
    spki_sha256: bytes | None
    report_data: bytes

    @classmethod
    def new(cls, identity: Identity, *, nonce: bytes, spki_sha256: bytes | None = None) -> Challenge:
        """Pose a challenge.

        Args:
            identity: the key, from `SigningPair.identity`.
            nonce: 32 bytes: the asker's, or fresh random ones.
            spki_sha256: 32 bytes, to bind a TLS key as well.

        Raises:
            UsageError: `bad_report_data` if a length is wrong.
        """
        return cls(identity, nonce, spki_sha256, report_data(identity.address_bytes, nonce, spki_sha256))

    def answer(self, *, model: str, quote: Quote, gpu_evidence: GpuEvidence, info: Mapping[str, Any]) -> dict[str, Any]:
        """Assemble the report, ready to be encoded as JSON.

        What it does NOT do: check that the quote carries this challenge's report data, or that the evidence is for
        its nonce. A server that assembles mismatched parts is caught by whoever verifies the report.

        Args:
            model: the model's name.
            quote: the quote over `report_data`.
            gpu_evidence: the GPU evidence for `nonce`.
            info: what the guest agent says about the application, decoded JSON.
        """
        payload = {
            "nonce": self.nonce.hex(),
            "evidence_list": list(gpu_evidence.evidence),
            "arch": gpu_evidence.arch,
        }
        report: dict[str, Any] = {
            "model_name": model,
            "signing_address": self.identity.address,
            "signing_algo": self.identity.algorithm,
            "signing_public_key": self.identity.public_key.hex(),
            "request_nonce": self.nonce.hex(),
            "intel_quote": quote.quote.hex(),
            "nvidia_payload": msgspec.json.encode(payload).decode(),
            "event_log": list(quote.event_log),
            "info": dict(info),
        }
        if self.spki_sha256 is not None:
            report["tls_cert_fingerprint"] = self.spki_sha256.hex()
        if quote.simulated or gpu_evidence.simulated:
            report["simulated"] = True
        return {**report, "all_attestations": [report]}
