"""A guest agent of dstack that is not one: the real calls and their JSON, over HTTP on a real Unix socket.

It answers with a recorded quote whose report data is replaced by what was asked for, or breaks in one of the ways that
`Fault` names.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

from support import RECORDINGS

from teesign.quote import BODY_FIELDS, HEADER_LENGTH
from teesign.sources.simulated import simulated_quote

CANARY = "kanarienvogel"
"""Stands for whatever must not leave the agent's answers by way of an error message."""

KEY = bytes(range(100, 132))


class Fault(Enum):
    """Ways in which the agent misbehaves. Those that name a field do so in all calls that have it."""

    NONE = auto()
    HANGS = auto()
    TRICKLES = auto()
    ANSWERS_500 = auto()
    BAD_HEX = auto()
    WRONG_KEY_LENGTH = auto()
    WRONG_REPORT_DATA = auto()
    NOT_A_QUOTE = auto()
    BAD_EVENT_LOG = auto()
    NOT_JSON = auto()
    NOT_AN_OBJECT = auto()
    FIELDS_MISSING = auto()
    DIES_MID_ANSWER = auto()
    DIES_AT_ONCE = auto()
    NOT_HTTP = auto()


def recorded_answer(name: str = "dstack-getquote.json") -> dict[str, Any]:
    """Return the recorded answer of a real agent to GetQuote, or a simulated one where the recordings are missing."""
    path = RECORDINGS / "tdx" / name
    if path.exists():
        answer: dict[str, Any] = json.loads(path.read_text())
        return answer
    quote = simulated_quote(bytes(64))
    return {"quote": quote.quote.hex(), "event_log": json.dumps(quote.event_log), "report_data": "", "vm_config": ""}


def with_report_data(quote: str, report_data: bytes) -> str:
    """Return the quote, in hex, with other report data; its signature does not fit it any more."""
    start, length = BODY_FIELDS["report_data"]
    data = bytearray.fromhex(quote)
    data[HEADER_LENGTH + start : HEADER_LENGTH + start + length] = report_data
    return data.hex()


def info_answer() -> dict[str, Any]:
    """Return an answer to Info with the members that dstack 0.5 gives it; `tcb_info` is a string of JSON there."""
    tcb_info = dict.fromkeys(("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_aggregated"), "00" * 48)
    tcb_info |= {"os_image_hash": "11" * 32, "compose_hash": "22" * 32, "device_id": "33" * 32}
    return {
        "app_id": "44" * 20,
        "instance_id": "55" * 20,
        "app_cert": "-----BEGIN CERTIFICATE-----",
        "tcb_info": json.dumps({**tcb_info, "app_compose": '{"runner":"docker-compose"}', "event_log": []}),
        "app_name": "teesign",
        "device_id": "33" * 32,
        "mr_aggregated": "00" * 32,
        "os_image_hash": "11" * 32,
        "key_provider_info": "{}",
        "compose_hash": "22" * 32,
        "vm_config": "{}",
    }


class FakeAgent(ThreadingUnixStreamServer):
    """The agent: listens from the start, answers on threads.

    Attributes:
        fault: how it misbehaves from the next request on.
        calls: how often each call was made.
        bodies: what was sent with them.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fault = Fault.NONE
        self.calls: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.over = threading.Event()
        super().__init__(str(path), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away."""

    def answer(self, call: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one call."""
        bad_hex = f"{CANARY} is not hex"
        if call == "/GetKey":
            key = {Fault.BAD_HEX: bad_hex, Fault.WRONG_KEY_LENGTH: KEY[:31].hex()}.get(self.fault, KEY.hex())
            return {"key": key, "signature_chain": []}
        if call == "/GetQuote":
            recorded = recorded_answer()
            asked_for = bytes.fromhex(body["report_data"])
            carried = bytes(64) if self.fault is Fault.WRONG_REPORT_DATA else asked_for
            quote = with_report_data(recorded["quote"], carried)
            quote = {Fault.BAD_HEX: bad_hex, Fault.NOT_A_QUOTE: quote[:600]}.get(self.fault, quote)
            event_log = CANARY if self.fault is Fault.BAD_EVENT_LOG else recorded["event_log"]
            return {**recorded, "quote": quote, "event_log": event_log, "report_data": body["report_data"]}
        return info_answer()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeAgent

    def do_POST(self) -> None:
        self.server.calls[self.path] += 1
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        fault = self.server.fault
        if fault is Fault.HANGS:
            self.server.over.wait()
        elif fault is Fault.DIES_AT_ONCE:
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault is Fault.NOT_HTTP:
            self.wfile.write(f"{CANARY}\r\n\r\n".encode())
            self.close_connection = True
        elif fault is Fault.ANSWERS_500:
            self._send(json.dumps({"error": CANARY}).encode(), status=500)
        else:
            self._send(self._answer_body(fault, body))

    def _answer_body(self, fault: Fault, body: dict[str, Any]) -> bytes:
        if fault is Fault.NOT_JSON:
            return f'{{"key": "{CANARY}'.encode()
        if fault is Fault.NOT_AN_OBJECT:
            return json.dumps([CANARY]).encode()
        if fault is Fault.FIELDS_MISSING:
            return json.dumps({"instead": CANARY}).encode()
        return json.dumps(self.server.answer(self.path, body)).encode()

    def _send(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.server.fault is Fault.TRICKLES:
            for position in range(len(body)):
                self.wfile.write(body[position : position + 1])
                time.sleep(0.05)
        elif self.server.fault is Fault.DIES_MID_ANSWER:
            self.wfile.write(body[: len(body) // 2])
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the overridden method's name for it
        """Log nothing."""


@contextlib.contextmanager
def running_agent(path: Path, kind: type[FakeAgent] = FakeAgent) -> Iterator[FakeAgent]:
    """Run an agent on this socket path until the block is left."""
    path.unlink(missing_ok=True)
    with kind(path) as agent:
        thread = threading.Thread(target=agent.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield agent
        finally:
            agent.over.set()
            agent.shutdown()
            thread.join()
            path.unlink(missing_ok=True)
