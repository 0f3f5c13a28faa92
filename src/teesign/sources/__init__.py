"""Where keys, quotes and GPU evidence come from: the rim of the core, and the only place in it that does I/O.

Each source is a small protocol, so that a gateway can bring its own. All of them raise `teesign.errors.SourceError`
when the outside world fails; nothing is kept of a failed call, and the next one tries again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from ..attestation import GpuEvidence, Quote

__all__ = ["EvidenceSource", "KeySource", "QuoteSource", "Sources"]


class KeySource(Protocol):
    """A key management service that derives the same key for the same path every time."""

    async def key(self, path: str, purpose: str) -> bytes:
        """Return the private key for this path, 32 bytes.

        Raises:
            SourceError: if the service cannot be reached, or answers with something else.
        """


class QuoteSource(Protocol):
    """Something that can have report data signed by the machine: a guest agent."""

    async def quote(self, report_data: bytes) -> Quote:
        """Return a quote over these 64 bytes.

        Raises:
            SourceError: if there is no answer, or no quote in it.
        """

    async def info(self) -> Mapping[str, Any]:
        """Return what the agent says about the application, as decoded JSON.

        Raises:
            SourceError: if there is no answer.
        """


class EvidenceSource(Protocol):
    """Something that collects evidence from the machine's GPUs. Callers never let two collections overlap."""

    async def collect(self, nonce: bytes) -> GpuEvidence:
        """Return evidence made over these 32 bytes.

        Raises:
            SourceError: if the collection failed.
        """

    async def aclose(self) -> None:
        """Give back what the source holds (a worker process); further calls may fail."""


class Sources(msgspec.Struct, frozen=True):
    """What a server draws its attestation from.

    Attributes:
        quotes: the guest agent, or what stands for it.
        gpus: the GPUs, or what stands for them.
        keys: the key management service; None where the server is given its keys.
    """

    quotes: QuoteSource
    gpus: EvidenceSource
    keys: KeySource | None = None
