"""What a man in the middle may change, one thing at a time, and the code that each change is caught with.

The changes know the wire contract and nothing of what is asked, so they serve before any backend: it must answer
`/v1/chat/completions` with JSON or events that have a member `created`, a number, as every engine does.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from mitm import Change, Message

__all__ = [
    "CHANGES",
    "CHAT",
    "MAIN_CHANGES",
    "REPORT",
    "SIGNATURE",
    "Row",
    "at",
    "body",
    "flip_hex",
    "member",
    "without",
]

CHAT, REPORT, SIGNATURE = "/v1/chat/completions", "/v1/attestation/report", "/v1/signature/"


@dataclass(frozen=True)
class Row:
    """One change.

    Attributes:
        name: what is changed.
        code: what it is caught with.
        change: makes it.
        streamed: whether an event stream is asked for.
        place: whether requests are changed, or responses.
    """

    name: str
    code: str
    change: Change
    streamed: bool = False
    place: Literal["on_request", "on_response"] = "on_response"


def flip(data: bytes, place: int = -1) -> bytes:
    """Return data with the lowest bit of one byte changed."""
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


def flip_hex(text: str, place: int = -1) -> str:
    """Return hex of the same bytes with one bit changed."""
    prefix = "0x" if text.startswith("0x") else ""
    return prefix + flip(bytes.fromhex(text.removeprefix("0x")), place).hex()


def flip_number(data: bytes) -> bytes:
    """Return a JSON text with one bit changed, in the last digit of the last `created`."""
    *_, last = re.finditer(rb'"created": ?\d+', data)
    return flip(data, last.end() - 1)


def at(path: str, change: Change) -> Change:
    """Return a change for what begins with this path, and for nothing else."""
    return lambda message: change(message) if message.path.startswith(path) else message


def body(change: Callable[[bytes], bytes]) -> Change:
    """Return a change of a body."""
    return lambda message: message.with_body(change(message.body))


def events(change: Callable[[list[bytes]], list[bytes]]) -> Change:
    """Return a change of the events of an answer; the last is the terminator."""

    def changed(stream: bytes) -> bytes:
        listed = re.findall(rb".+?\n\n", stream, re.DOTALL)
        return b"".join(change(listed))

    return at(CHAT, body(changed))


def member(name: str, change: Callable[[Any], Any]) -> Change:
    """Return a change of one member of a JSON object."""

    def changed(message: Message) -> Message:
        fields = json.loads(message.body)
        fields[name] = change(fields[name])
        return message.with_body(json.dumps(fields).encode())

    return changed


def reported(name: str, change: Callable[[Any], Any]) -> Change:
    """Return a change of one member of the report."""
    return at(REPORT, member(name, change))


def quoted(place: int) -> Change:
    """Return a change of one bit of the quote."""
    return reported("intel_quote", lambda text: flip_hex(text, place))


def logged(name: str) -> Change:
    """Return a change of one bit in one member of the event that names the compose file."""

    def changed(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**each, name: flip_hex(each[name])} if each["event"] == "compose-hash" else each for each in log]

    return reported("event_log", changed)


def measured(place: int) -> Change:
    """Return a change of one bit of a GPU's evidence."""

    def changed(payload: str) -> str:
        decoded = json.loads(payload)
        item = decoded["evidence_list"][0]
        item["evidence"] = base64.b64encode(flip(base64.b64decode(item["evidence"]), place)).decode()
        return json.dumps(decoded)

    return reported("nvidia_payload", changed)


def signed(name: str, change: Callable[[str], str]) -> Change:
    """Return a change of one member of the signature endpoint's answer."""
    return at(SIGNATURE, member(name, change))


def without(*names: str) -> Change:
    """Return a change that drops headers."""
    return lambda message: replace(
        message, headers={name: value for name, value in message.headers.items() if name not in names}
    )


def with_header(name: str, value: str) -> Change:
    """Return a change that sets a header."""
    return lambda message: replace(message, headers={**message.headers, name: value})


def lost(message: Message) -> Message:
    """Return 404 in the place of an answer."""
    return replace(message, status=404)


def simulated(message: Message) -> Message:
    """Return a report that says that it is simulated."""
    return message.with_body(message.body.rstrip()[:-1] + b',"simulated":true}')


REQUEST = at(CHAT, body(lambda data: data.replace(b"noisy", b"noisx")))
LAST_OF_S = 63
MR_TD, REPORT_DATA, QUOTE_SIGNATURE = 48 + 140, 48 + 530, 640
GPU_NONCE, GPU_MEASUREMENT = 10, 46
STREAM = "stream_hash_mismatch"

CHANGES: tuple[Row, ...] = (
    Row("request", "request_hash_mismatch", REQUEST, place="on_request"),
    Row("request-of-a-stream", "request_hash_mismatch", REQUEST, place="on_request", streamed=True),
    Row("response", "response_hash_mismatch", at(CHAT, body(flip_number))),
    Row("response-with-a-space", "response_hash_mismatch", at(CHAT, body(lambda data: data + b" "))),
    Row("response-encoded", "encoded_answer", at(CHAT, with_header("content-encoding", "br"))),
    Row("stream", STREAM, at(CHAT, body(flip_number)), streamed=True),
    Row("stream-order", STREAM, events(lambda all_: [all_[0], all_[2], all_[1], *all_[3:]]), streamed=True),
    Row("stream-event-left-out", STREAM, events(lambda all_: [*all_[:-2], all_[-1]]), streamed=True),
    Row("stream-event-twice", STREAM, events(lambda all_: [all_[0], *all_]), streamed=True),
    Row("stream-cut", "answer_incomplete", events(lambda all_: all_[:-1]), streamed=True),
    Row("stream-ended-early", "answer_incomplete", events(lambda all_: [all_[0], b"data: [DONE].\n\n"]), streamed=True),
    Row("signature", "ecdsa_mismatch", signed("signature", lambda text: flip_hex(text, LAST_OF_S))),
    Row("signature-of-a-stream", "ecdsa_mismatch", signed("signature", lambda text: flip_hex(text, 63)), streamed=True),
    Row("other-signature", "ed25519_mismatch", signed("signature_ed25519", flip_hex)),
    Row("signed-text", "request_hash_mismatch", signed("text", lambda text: flip(text.encode(), 0).decode())),
    Row("signing-address", "identity_mismatch", signed("signing_address", flip_hex)),
    Row("no-signature", "signature_missing", at(SIGNATURE, lost)),
    Row("no-signature-of-a-stream", "signature_missing", at(SIGNATURE, lost), streamed=True),
    Row("signature-id", "signature_missing", at(CHAT, with_header("x-signature-id", "sig-another"))),
    Row("signature-id-too-long", "signature_missing", at(CHAT, with_header("x-signature-id", "a" * 66_000))),
    Row("nonce", "nonce_mismatch", reported("request_nonce", flip_hex)),
    Row("attested-address", "public_key_mismatch", reported("signing_address", flip_hex)),
    Row("attested-key", "public_key_mismatch", reported("signing_public_key", flip_hex)),
    Row("quote", "quote_not_verified", quoted(MR_TD)),
    Row("quotes-report-data", "quote_not_verified", quoted(REPORT_DATA)),
    Row("quotes-signature", "quote_not_verified", quoted(QUOTE_SIGNATURE)),
    Row("event-log", "event_payload_mismatch", logged("event_payload")),
    Row("event-logs-digest", "event_log_mismatch", logged("digest")),
    Row("event-logs-order", "event_log_mismatch", reported("event_log", lambda log: log[::-1])),
    Row("gpu-evidence", "gpu_signature_mismatch", measured(GPU_MEASUREMENT)),
    Row("gpu-evidences-nonce", "gpu_nonce_mismatch", measured(GPU_NONCE)),
    Row("no-gpu-evidence", "gpu_missing", reported("nvidia_payload", lambda _: None)),
    Row("said-to-be-simulated", "simulated", at(REPORT, simulated)),
)
"""Everything that is checked, changed once."""

_PARTS = ("request", "response", "stream-order", "stream-ended-early", "signature", "signing-address")
_PARTS_OF_REPORTS = ("nonce", "attested-address", "quote", "event-log", "gpu-evidence")
MAIN_CHANGES = tuple(row for row in CHANGES if row.name in (*_PARTS, *_PARTS_OF_REPORTS))
"""One change of each part of an answer and of what stands behind it."""
