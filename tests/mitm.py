"""A man in the middle: between a client and a server on real sockets, changing what it is told to."""

from __future__ import annotations

import contextlib
import email.message
import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseServer, StreamRequestHandler, ThreadingTCPServer

from authorities import Authority
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

__all__ = ["Change", "ConnectProxy", "Message", "MiddleMan", "connect_proxy", "middle_man", "tls_front"]


@dataclass(frozen=True)
class Message:
    """A request, or a response and the path it answers.

    Attributes:
        path: of the request, without its query.
        status: the response's status; 0 in a request.
        headers: by their names in lower case.
        body: without framing.
    """

    path: str
    status: int
    headers: dict[str, str]
    body: bytes

    def with_body(self, body: bytes) -> Message:
        """Return the same with another body."""
        return replace(self, body=body)


Change = Callable[[Message], Message]


class MiddleMan(ThreadingHTTPServer):
    """Passes requests on to a port, and responses back; as a client's proxy as well.

    Attributes:
        on_request: changes each request.
        on_response: changes each response.
        seen: the paths asked for.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.seen: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behave()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def behave(self) -> None:
        """Change nothing from now on."""
        self.on_request: Change = lambda message: message
        self.on_response: Change = lambda message: message
        self.seen.clear()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away."""


_OWN = ("content-length", "transfer-encoding", "connection", "host")


def _end_to_end(headers: email.message.Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items() if name.lower() not in _OWN}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: MiddleMan

    def do_GET(self) -> None:
        # Whoever takes this for a proxy names the whole URL.
        target = self.path if self.path.startswith("/") else f"/{self.path.split('/', 3)[3]}"
        path = target.partition("?")[0]
        self.server.seen.append(path)
        request = self.server.on_request(Message(path, 0, _end_to_end(self.headers), self._read_body()))
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=30)
        try:
            connection.request(self.command, target, request.body or None, request.headers)
            answer = connection.getresponse()
            response = self.server.on_response(Message(path, answer.status, _end_to_end(answer.headers), answer.read()))
        finally:
            connection.close()
        self.send_response_only(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(response.body)))
        self.end_headers()
        self.wfile.write(response.body)

    def do_POST(self) -> None:
        self.do_GET()

    def _read_body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the overridden method's name for it
        """Log nothing."""


@contextmanager
def running(server: BaseServer) -> Iterator[None]:
    """Run a server until the block is left."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def middle_man(port: int) -> Iterator[MiddleMan]:
    """Run a man in the middle before a port until the block is left."""
    server = MiddleMan(port)
    with running(server):
        yield server


class _TlsFront(ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.upstream = port
        self.context = context
        super().__init__(("127.0.0.1", 0), _TlsHandler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away."""


class _TlsHandler(StreamRequestHandler):
    server: _TlsFront

    def handle(self) -> None:
        """Take the TLS off, and pass bytes both ways."""
        with (
            self.server.context.wrap_socket(self.request, server_side=True) as outside,
            socket.create_connection(("127.0.0.1", self.server.upstream)) as inside,
        ):
            threading.Thread(target=_pump, args=(inside, outside), daemon=True).start()
            _pump(outside, inside)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def tls_front(port: int, directory: Path, name: str) -> Iterator[int]:
    """Run a TLS server with a key of its own before a port, and give its port; the certificate is in `{name}.pem`."""
    authority = Authority(name, ca=False)
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    certificate.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    key.write_bytes(authority.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = _TlsFront(port, context)
    with running(server):
        yield server.server_address[1]


class ConnectProxy(ThreadingTCPServer):
    """Takes CONNECT, and makes a tunnel to a port of its own choice.

    Attributes:
        port: where the next tunnels end.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int) -> None:
        self.port = port
        super().__init__(("127.0.0.1", 0), _ConnectHandler)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _ConnectHandler(StreamRequestHandler):
    server: ConnectProxy

    def handle(self) -> None:
        """Read the head, and pass bytes both ways."""
        while self.rfile.readline().strip():
            pass
        with socket.create_connection(("127.0.0.1", self.server.port)) as inside:
            self.request.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            threading.Thread(target=_pump, args=(inside, self.request), daemon=True).start()
            _pump(self.request, inside)


@contextmanager
def connect_proxy(port: int) -> Iterator[ConnectProxy]:
    """Run a proxy whose tunnels end at a port until the block is left."""
    server = ConnectProxy(port)
    with running(server):
        yield server
