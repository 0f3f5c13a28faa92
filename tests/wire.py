"""A client that says exactly what it is told to, and keeps exactly what it hears; and the oracles for signatures.

Signatures are checked with `hashlib`, `eth_account` and `cryptography`, so that nothing is tested against itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from eth_account import Account
from eth_account.messages import encode_defunct
from support import wait_until

__all__ = ["FRAMINGS", "Answer", "Client", "Conversation", "chunks_of", "multipart", "sum_of_metric"]

TIMEOUT = float(os.environ.get("TEESIGN_TEST_PATIENCE", "60"))

FRAMINGS = {"length": ("Content-Length", "1000"), "chunked": ("Transfer-Encoding", "chunked")}
"""How a body may be announced; of which `b"1\\r\\nx\\r\\n"` is a beginning."""

Headers = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Answer:
    """A whole response.

    Attributes:
        status: the status code.
        headers: names and values in the order in which they came.
        body: the body without framing.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the value of a header that may come at most once."""
        values = self.values(name)
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None

    def values(self, name: str) -> list[str]:
        """Return every value of a header."""
        return [value for candidate, value in self.headers if candidate.lower() == name]

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)

    def assert_error(self, status: int, kind: str, message: str | None = None) -> None:
        """Check that this is an error in the format of the wire contract."""
        assert self.status == status, (self.status, self.body)
        assert self.header("content-type") == "application/json"
        error = self.json()
        assert set(error) == {"error"}
        assert error["error"]["type"] == kind
        assert message is None or error["error"]["message"] == message
        assert {**error["error"], "message": "", "type": ""} == {
            "message": "",
            "type": "",
            "param": None,
            "code": None,
        }


class Conversation:
    """One request and its response on a connection of their own.

    Attributes:
        socket: the connection.
    """

    def __init__(self, connection: socket.socket, method: str) -> None:
        self.socket = connection
        self._method = method
        self._response: http.client.HTTPResponse | None = None

    def send(self, *data: bytes) -> None:
        """Send these bytes, one after the other."""
        for each in data:
            self.socket.sendall(each)

    @property
    def response(self) -> http.client.HTTPResponse:
        """The response, whose head has been read."""
        if self._response is None:
            self._response = http.client.HTTPResponse(self.socket, method=self._method)
            self._response.begin()
        return self._response

    def read_until(self, end: bytes) -> bytes:
        """Return the response's body up to and with `end`, as soon as that is there."""
        body = b""
        while not body.endswith(end):
            byte = self.response.read(1)
            assert byte, f"the response ended after {body!r}"
            body += byte
        return body

    def answer(self) -> Answer:
        """Read the response to its end and return it."""
        body = self.response.read()
        return Answer(self.response.status, self.response.getheaders(), body)

    def receive_all(self) -> bytes:
        """Return the raw bytes until the server closes the connection or resets it."""
        received = b""
        while True:
            try:
                data = self.socket.recv(65_536)
            except ConnectionResetError:
                return received
            if not data:
                return received
            received += data

    def leave(self) -> None:
        """Close the connection."""
        if self._response is not None:
            self._response.close()
        self.socket.close()


def sum_of_metric(exposition: bytes, name: str) -> float:
    """Return the sum of a metric over those of its labels that the name does not hold."""
    return sum(float(line.split()[-1]) for line in exposition.decode().splitlines() if line.startswith(name))


class Client:
    """Talks to the proxy, on a new connection for each request.

    Args:
        port: where it listens on 127.0.0.1.
        token: the bearer token that is sent unless a request says otherwise; None for none.
    """

    def __init__(self, port: int, token: str | None) -> None:
        self.port = port
        self.token = token

    def head(self, method: str, target: str, headers: Headers, *, close: bool = True) -> bytes:
        """Return the head of a request: host, token, and these headers in their order."""
        lines: list[tuple[str, str | bytes]] = [("Host", f"127.0.0.1:{self.port}")]
        if self.token is not None:
            lines.append(("Authorization", f"Bearer {self.token}"))
        lines += headers
        if close and not any(name.lower() == "connection" for name, _ in lines):
            lines.append(("Connection", "close"))
        encoded = [f"{method} {target} HTTP/1.1".encode("latin-1")]
        for name, value in lines:
            encoded.append(name.encode() + b": " + (value if isinstance(value, bytes) else value.encode()))
        return b"\r\n".join((*encoded, b"", b""))

    @contextmanager
    def open(self, method: str, target: str, headers: Headers = (), data: bytes = b"") -> Iterator[Conversation]:
        """Open a connection, send the head of a request and `data`, and leave at the end of the block.

        The body's framing is the caller's, in `headers` and `data`.
        """
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        conversation = Conversation(connection, method)
        try:
            conversation.send(self.head(method, target, headers) + data)
            yield conversation
        finally:
            conversation.leave()

    def request(
        self, method: str, target: str, body: bytes | None = None, headers: Headers = (), *, pieces: int = 0
    ) -> Answer:
        """Send a request and return its answer.

        Args:
            method: the method.
            target: the raw target.
            body: sent with its length.
            headers: more headers.
            pieces: send the body in the chunked transfer coding instead, in chunks of this many bytes.
        """
        framing: list[tuple[str, str | bytes]] = []
        data = body or b""
        if pieces:
            framing, data = [("Transfer-Encoding", "chunked")], chunks_of(data, pieces)
        elif body is not None:
            framing = [("Content-Length", str(len(body)))]
        with self.open(method, target, [*headers, *framing]) as conversation:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the answer came before the body's end
                conversation.send(data)
            return conversation.answer()

    def get(self, target: str, headers: Headers = ()) -> Answer:
        """Send a GET request and return its answer."""
        return self.request("GET", target, headers=headers)

    def post(self, target: str, body: bytes, headers: Headers = (), *, pieces: int = 0) -> Answer:
        """Send a POST request with a JSON body, and return its answer."""
        return self.request("POST", target, body, [("Content-Type", "application/json"), *headers], pieces=pieces)

    def stream(self, target: str, body: bytes) -> AbstractContextManager[Conversation]:
        """Send a POST request with a JSON body, and give its conversation."""
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        return self.open("POST", target, headers, body)

    def metric(self, name: str) -> float:
        """Return the sum of a metric over those of its labels that the name does not hold."""
        return sum_of_metric(self.get("/metrics").body, name)

    def wait_until_idle(self) -> None:
        """Wait until the proxy is done with every response, and their connections to the backend are idle.

        A client has the end of its answer somewhat earlier.
        """
        wait_until(lambda: self.metric("teesign_open_streams") == 0)

    def as_anyone(self) -> Client:
        """Return a client without a token."""
        return Client(self.port, None)

    def signature(self, chat_id: str, query: str = "") -> Answer:
        """Ask for a signature."""
        return self.get(f"/v1/signature/{quote(chat_id, safe='')}{query}")

    def assert_signed(self, chat_id: str, text: str) -> None:
        """Check that this id answers with valid signatures of this text, by both algorithms."""
        answer = self.signature(chat_id)
        assert answer.status == 200, answer.body
        assert_signatures(answer.json(), text)

    def assert_answer_signed(self, answer: Answer, request: bytes, chat_id: str | None = None) -> None:
        """Check that an answer to a request with this body, or this target if it had none, is signed under its ids.

        Args:
            answer: the whole answer.
            request: the bytes that stand for the request.
            chat_id: the id in the answer's body, where it must answer too.
        """
        own = answer.header("x-signature-id")
        assert own is not None
        assert own.startswith("sig-")
        assert len(bytes.fromhex(own.removeprefix("sig-"))) == 16
        text = f"{sha256(request)}:{sha256(answer.body)}"
        for each in (own, chat_id) if chat_id is not None else (own,):
            self.assert_signed(each, text)

    def assert_unsigned(self, answer: Answer) -> None:
        """Check that an answer has no signature, neither under an id in its head nor under one in its body."""
        own = answer.header("x-signature-id")
        if own is not None:
            assert self.signature(own).status == 404


def assert_signatures(fields: dict[str, str], text: str) -> None:
    """Check what the signature endpoint says: the text, and both signatures over it."""
    assert fields["text"] == text
    recovered = Account.recover_message(encode_defunct(text=text), signature=fields["signature_ecdsa"])
    assert recovered == fields["signing_address_ecdsa"]
    public_key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(fields["signing_address_ed25519"]))
    public_key.verify(bytes.fromhex(fields["signature_ed25519"]), text.encode())


def sha256(data: bytes) -> str:
    """Return the digest of some bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def chunks_of(data: bytes, size: int) -> bytes:
    """Return data in the chunked transfer coding, in chunks of `size` bytes."""
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def multipart(content: bytes, file_name: str = "speech.wav") -> tuple[bytes, tuple[str, str]]:
    """Return a multipart body with one file and one field, and its content type header."""
    boundary = "a-boundary"
    disposition = f'Content-Disposition: form-data; name="file"; filename="{file_name}"'
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
        f"--{boundary}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n"
    ).encode()
    return body + content + f"\r\n--{boundary}--\r\n".encode(), (
        "Content-Type",
        f"multipart/form-data; boundary={boundary}",
    )
