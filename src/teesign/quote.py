"""Fields of a TDX quote, and replay of the event log that comes with one.

Parsed is not verified. Everything here reads bytes at fixed offsets; anyone can write such bytes. Only a check of the
quote's signature chain up to Intel's root makes a field mean something. The same holds for an event log: it proves what
ran only when it replays to an RTMR of a quote that was verified.

Layout: Intel TDX DCAP Quoting Library API, "TD Quote Format" for versions 4 (TDX 1.0) and 5 (which adds a body type and
a longer body for TDX 1.5). All integers are little-endian.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha384
from typing import Any, Final

import msgspec

from .documents import UNDECODABLE, decode
from .errors import MalformedError
from .hexadecimal import unhex

__all__ = [
    "DEBUG_ATTRIBUTE",
    "Event",
    "TdxQuote",
    "compose_hash",
    "parse_event_log",
    "parse_quote",
    "replay_event_log",
]

HEADER_LENGTH: Final = 48
TDX_TEE_TYPE: Final = 0x81
DEBUG_ATTRIBUTE: Final = 1
"""Bit 0 of the TD attributes: the host can read the domain's memory, so nothing in it is confidential."""

BODY_LENGTHS: Final = {2: 584, 3: 648}
"""Length of the TD report body by the body type of version 5: TDX 1.0 and TDX 1.5. Version 4 has the first alone."""

DSTACK_EVENT_TYPE: Final = 0x08000001
RTMR_COUNT: Final = 4
_DIGEST_LENGTH: Final = 48

# Where each field of the TD report body starts, and its length in bytes.
BODY_FIELDS: Final = {
    "tee_tcb_svn": (0, 16),
    "mr_seam": (16, 48),
    "mr_signer_seam": (64, 48),
    "seam_attributes": (112, 8),
    "td_attributes": (120, 8),
    "xfam": (128, 8),
    "mr_td": (136, 48),
    "mr_config_id": (184, 48),
    "mr_owner": (232, 48),
    "mr_owner_config": (280, 48),
    "rtmr0": (328, 48),
    "rtmr1": (376, 48),
    "rtmr2": (424, 48),
    "rtmr3": (472, 48),
    "report_data": (520, 64),
}


class TdxQuote(msgspec.Struct, frozen=True):
    """What a TDX quote says. Nothing of it has been verified.

    Attributes:
        version: 4 or 5.
        attestation_key_type: 2 for ECDSA P-256, 3 for ECDSA P-384.
        qe_vendor_id: 16 bytes, who made the quoting enclave.
        tee_tcb_svn: 16 bytes, security versions of the TDX module and its parts.
        mr_seam: 48 bytes, measurement of the TDX module.
        mr_signer_seam: 48 bytes, its signer; zeros for Intel's.
        seam_attributes: 8 bytes.
        td_attributes: 8 bytes; see `is_debug`.
        xfam: 8 bytes, extended features the domain may use.
        mr_td: 48 bytes, measurement of the domain's initial contents.
        mr_config_id: 48 bytes, set by the host at creation.
        mr_owner: 48 bytes, likewise.
        mr_owner_config: 48 bytes, likewise.
        rtmrs: the four run-time measurement registers, 48 bytes each.
        report_data: 64 bytes, chosen by whoever asked for the quote.
        signed_part: the bytes that the quote's signature covers.
        signature_data: everything after them: signature, attestation key, certification data.
        certification_data_type: what kind of certification data comes inside the quoting enclave's part; 5 is a PCK
            certificate chain in PEM.
        certification_data: those bytes; for type 5 a PEM chain.
    """

    version: int
    attestation_key_type: int
    qe_vendor_id: bytes
    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    signed_part: bytes
    signature_data: bytes
    certification_data_type: int
    certification_data: bytes

    @property
    def is_debug(self) -> bool:
        """Whether the domain runs in debug mode, in which the host can read and change its memory."""
        return bool(self.td_attributes[0] & DEBUG_ATTRIBUTE)


class Event(msgspec.Struct, frozen=True):
    """One entry of a dstack event log.

    Attributes:
        imr: the register that was extended, 0 to 3.
        event_type: the kind of event, a TCG or dstack number.
        digest: 48 bytes in hex: what the register was extended with. Stripped logs leave it empty for dstack's own
            events, where it follows from the name and the payload.
        event: its name, such as "compose-hash"; often empty for events of the firmware.
        event_payload: its payload in hex; may be left out of stripped logs.
    """

    imr: int
    event_type: int
    digest: str
    event: str = ""
    event_payload: str = ""


_events: Final = list[Event]


def parse_quote(quote: bytes) -> TdxQuote:
    """Read the fields of a TDX quote of version 4 or 5.

    What it does NOT establish: anything. A quote can be parsed whoever wrote it.

    Args:
        quote: the quote, binary. Bytes after its signature data (zero padding, as some hosts add) are ignored.

    Raises:
        MalformedError: `bad_quote` if it is truncated, or not such a quote.
    """
    reader = _Reader(quote)
    header = reader.take(HEADER_LENGTH)
    version, key_type = _integer(header[0:2]), _integer(header[2:4])
    if version not in (4, 5):
        raise _bad_quote(f"its version is {version}, not 4 or 5")
    if _integer(header[4:8]) != TDX_TEE_TYPE:
        raise _bad_quote(f"its TEE type is {_integer(header[4:8]):#x}, not {TDX_TEE_TYPE:#x} (TDX)")
    body_type = 2
    if version == 5:
        body_type, stated = _integer(reader.take(2)), _integer(reader.take(4))
        if BODY_LENGTHS.get(body_type) != stated:
            raise _bad_quote(f"its body of type {body_type} and {stated} bytes is not a TD report")
    body = reader.take(BODY_LENGTHS[body_type])
    signed_part = quote[: reader.position]
    signature_data = reader.take(_integer(reader.take(4)))
    certification_type, certification = _certification_data(signature_data)
    fields = {name: body[start : start + length] for name, (start, length) in BODY_FIELDS.items()}
    return TdxQuote(
        version=version,
        attestation_key_type=key_type,
        qe_vendor_id=header[12:28],
        rtmrs=(fields.pop("rtmr0"), fields.pop("rtmr1"), fields.pop("rtmr2"), fields.pop("rtmr3")),
        signed_part=signed_part,
        signature_data=signature_data,
        certification_data_type=certification_type,
        certification_data=certification,
        **fields,
    )


def parse_event_log(event_log: str | bytes | Sequence[Any]) -> list[Event]:
    """Read a dstack event log.

    Args:
        event_log: its JSON text, or the list that text decodes to.

    Raises:
        MalformedError: `bad_event_log` if it is not a list of such events.
    """
    try:
        if not isinstance(event_log, str | bytes):
            return msgspec.convert(event_log, type=_events)
        return decode(event_log, _events)
    except UNDECODABLE as error:
        raise MalformedError(
            "The event log is not a JSON list of events with imr, event_type and digest, or has too many levels.",
            code="bad_event_log",
        ) from error


def replay_event_log(events: Iterable[Event]) -> tuple[bytes, bytes, bytes, bytes]:
    """Return the four RTMRs, 48 bytes each, that the events extend from zero.

    What it does NOT establish: that the machine is in that state. Compare with the RTMRs of a verified quote. Nor does
    it relate an event's name and payload to its digest; see `has_own_digest`.

    Raises:
        MalformedError: `bad_event_log` if an event names no RTMR, or its digest is not at most 48 bytes of hex.
    """
    registers = [bytes(_DIGEST_LENGTH)] * RTMR_COUNT
    for event in events:
        digest = unhex(_extended_digest(event))
        if not digest or len(digest) > _DIGEST_LENGTH or not 0 <= event.imr < RTMR_COUNT:
            raise MalformedError(
                "An event of the log has no digest of at most 48 bytes, or no register from 0 to 3.",
                code="bad_event_log",
            )
        registers[event.imr] = sha384(registers[event.imr] + digest.ljust(_DIGEST_LENGTH, b"\0")).digest()
    return (registers[0], registers[1], registers[2], registers[3])


def compose_hash(events: Iterable[Event]) -> bytes:
    """Return the SHA-256 of the docker-compose file that the log says was started, 32 bytes.

    The digest of every event in RTMR3 is checked against its name and payload, so that no payload can be swapped under
    a digest that replays, nor a compose-hash be hidden under another name to make room for one that a container logged.
    What it does NOT establish: that the log belongs to a machine; replay it against a verified quote for that.

    Raises:
        MalformedError: `bad_event_log` if the log has no compose-hash event in RTMR3, more than one, or an event there
            whose digest is not that of its name and payload.
    """
    events = [event for event in events if event.imr == 3]
    if not all(map(has_own_digest, events)):
        raise MalformedError("An event's digest in RTMR3 is not that of its name and payload.", code="bad_event_log")
    # A digest does not tell where the name ends, if there is a colon in name or payload: this event, with a payload
    # that starts with one, is an event "compose-hash:" as well. Hidden so, it would make room for one that a container
    # logged. No other event has a name that starts like this.
    found = [event for event in events if event.event.partition(":")[0] == "compose-hash"]
    if len(found) != 1:
        raise MalformedError(
            f"The event log has {len(found)} compose-hash events in RTMR3; it must have one.", code="bad_event_log"
        )
    payload = unhex(found[0].event_payload, 32)
    if payload is None:
        raise MalformedError("The compose-hash event's payload is not 32 bytes in hex.", code="bad_event_log")
    return payload


def has_own_digest(event: Event) -> bool:
    """Tell whether the digest that the log gives an event is that of its name and payload, as one left out is."""
    return _extended_digest(event) == event_digest(event)


def event_digest(event: Event) -> str | None:
    """Return the digest in hex that dstack gives an event of its own, or None if its payload is not hex.

    It is the SHA-384 of the event type (4 bytes, little-endian), the name and the payload, with colons between.
    """
    payload = unhex(event.event_payload)
    if payload is None or not 0 <= event.event_type < 2**32:
        return None
    name = event.event.encode("utf-8", "surrogatepass")
    return sha384(b":".join((event.event_type.to_bytes(4, "little"), name, payload))).hexdigest()


def _extended_digest(event: Event) -> str:
    """Return the digest that the log gives the event; one that was stripped follows from the name and the payload."""
    stripped = not event.digest and event.event_type == DSTACK_EVENT_TYPE
    return event_digest(event) or "" if stripped else event.digest.lower()


def _certification_data(signature_data: bytes) -> tuple[int, bytes]:
    """Return the type and bytes of the certification data inside the quoting enclave's (type 6)."""
    reader = _Reader(signature_data)
    reader.take(64 + 64)  # signature and attestation key
    outer_type = _integer(reader.take(2))
    outer = _Reader(reader.take(_integer(reader.take(4))))
    if outer_type != 6:
        return outer_type, outer.data
    outer.take(384 + 64)  # the quoting enclave's report and its signature
    outer.take(_integer(outer.take(2)))  # authentication data
    inner_type = _integer(outer.take(2))
    return inner_type, outer.take(_integer(outer.take(4)))


class _Reader:
    """Take consecutive slices of bytes, and refuse where they run out."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, length: int) -> bytes:
        taken = self.data[self.position : self.position + length]
        if len(taken) != length:
            raise _bad_quote(f"it ends at byte {len(self.data)}, inside a field that starts at {self.position}")
        self.position += length
        return taken


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _bad_quote(problem: str) -> MalformedError:
    return MalformedError(f"This is not a TDX quote: {problem}.", code="bad_quote")
