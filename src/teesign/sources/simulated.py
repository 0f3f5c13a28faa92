"""Quotes and GPU evidence with the right layout and no hardware behind them, for development.

A simulated quote carries the report data where a real one does, has the DEBUG attribute set, and a signature of zeros,
which no verifier accepts. Its event log replays to its RTMR3, so that programs that read reports can be tried on it.
Everything that comes from here is marked as simulated, and the mark ends up in the report.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec

from ..attestation import GpuEvidence, Quote
from ..errors import UsageError
from ..quote import (
    BODY_FIELDS,
    BODY_LENGTHS,
    DEBUG_ATTRIBUTE,
    DSTACK_EVENT_TYPE,
    TDX_TEE_TYPE,
    Event,
    event_digest,
    replay_event_log,
)

__all__ = ["SimulatedGpus", "SimulatedQuotes", "simulated_evidence", "simulated_quote"]

_COMPOSE_HASH: Final = sha256(b"simulated").hexdigest()
_QE_VENDOR_ID: Final = bytes(16)
_ECDSA_P256: Final = 2
_QE_REPORT_CERTIFICATION, _PCK_CHAIN = 6, 5

# SPDM 1.1 (DMTF DSP0274): the request GET_MEASUREMENTS holds the nonce, and its answer MEASUREMENTS follows it.
_GET_MEASUREMENTS: Final = bytes((0x11, 0xE0, 0x01, 0xFF))
_MEASUREMENTS: Final = bytes((0x11, 0x60, 0x00, 0x00))
_SLOT: Final = b"\0"


def simulated_quote(report_data: bytes) -> Quote:
    """Return a TDX quote of version 4 over these 64 bytes that can be parsed and will never verify.

    Raises:
        UsageError: `bad_report_data` if they are not 64.
    """
    if len(report_data) != BODY_FIELDS["report_data"][1]:
        raise UsageError(f"Report data has 64 bytes, not {len(report_data)}.", code="bad_report_data")
    events = [_event("app-id", "00" * 20), _event("compose-hash", _COMPOSE_HASH), _event("system-ready", "")]
    fields = {
        "td_attributes": DEBUG_ATTRIBUTE.to_bytes(8, "little"),
        "rtmr3": replay_event_log(events)[3],
        "report_data": report_data,
    }
    body = bytearray(BODY_LENGTHS[2])
    for name, value in fields.items():
        start, length = BODY_FIELDS[name]
        body[start : start + length] = value.ljust(length, b"\0")
    header = b"".join(
        (_number(4, 2), _number(_ECDSA_P256, 2), _number(TDX_TEE_TYPE, 4), bytes(4), _QE_VENDOR_ID, bytes(20))
    )
    certification = bytes(384 + 64) + _sized(2, b"") + _number(_PCK_CHAIN, 2) + _sized(4, b"")
    signature_data = bytes(64 + 64) + _number(_QE_REPORT_CERTIFICATION, 2) + _sized(4, certification)
    return Quote(
        header + bytes(body) + _sized(4, signature_data),
        event_log=[msgspec.to_builtins(event) for event in events],
        simulated=True,
    )


def simulated_evidence(nonce: bytes) -> GpuEvidence:
    """Return the evidence of one GPU that holds these 32 bytes where an SPDM report does, signed by nobody."""
    certificate = b"-----BEGIN CERTIFICATE-----\nc2ltdWxhdGVk\n-----END CERTIFICATE-----\n"
    report = _GET_MEASUREMENTS + nonce + _SLOT + _MEASUREMENTS + bytes(4) + bytes(32) + bytes(2) + bytes(96)
    item = {
        "certificate": base64.b64encode(certificate).decode(),
        "evidence": base64.b64encode(report).decode(),
        "arch": "HOPPER",
    }
    return GpuEvidence([item], simulated=True)


class SimulatedQuotes:
    """A guest agent that is not there."""

    async def quote(self, report_data: bytes) -> Quote:
        """Return a simulated quote over these 64 bytes."""
        return simulated_quote(report_data)

    async def info(self) -> Mapping[str, Any]:
        """Return what a guest agent would say about the application, as far as it can be made up."""
        return {"app_name": "simulated", "compose_hash": _COMPOSE_HASH, "tcb_info": {"compose_hash": _COMPOSE_HASH}}


class SimulatedGpus:
    """One GPU that is not there."""

    async def collect(self, nonce: bytes) -> GpuEvidence:
        """Return simulated evidence around these 32 bytes."""
        return simulated_evidence(nonce)

    async def aclose(self) -> None:
        """Do nothing: there is nothing to give back."""


def _event(name: str, payload: str) -> Event:
    event = Event(imr=3, event_type=DSTACK_EVENT_TYPE, digest="", event=name, event_payload=payload)
    return msgspec.structs.replace(event, digest=event_digest(event) or "")


def _number(value: int, length: int) -> bytes:
    return value.to_bytes(length, "little")


def _sized(length: int, data: bytes) -> bytes:
    return _number(len(data), length) + data
