"""Requests and responses, good and malformed, from the source distributions of gunicorn and aiohttp.

The latter holds llhttp's. They are read where `nox -s corpora` has downloaded them; nothing of them is part of this
repository but the names of their files. `python tests/corpora.py FOLDER` prints the table that `tests/corpora.txt`
holds: what becomes of each case, as classes of status codes, under each server.

A case is sent as it is over a connection of its own, to a proxy that takes every request for one with a good token and
whose backend answers everything with 200. Then other requests are sent, until several of them have been answered
without a change in what became of the case: an event loop looks first at what came first.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpcore
from backend import Backend, Call, head
from servers import TOKEN, Kind, serve, settings_for
from wire import Client

from teesign.testing import fixed_pair
from teesign_asgi import App
from teesign_asgi.framing import ResponseParser
from teesign_asgi.types import ASGIApp, Receive, Scope, Send

__all__ = ["TABLE", "Case", "Outcome", "Row", "outcome_at", "read_cases", "read_table", "response_outcome", "running"]

TABLE = Path(__file__).with_suffix(".txt")
SERVERS: tuple[Kind, ...] = ("granian", "uvicorn", "uvicorn-h11")
PROBES = 3
"""How many other requests have to be answered while nothing changes for a case."""

LATE = 0.2
"""Seconds that a request which stays open is given."""

Verdict = Literal["valid", "invalid", "lenient"]


@dataclass(frozen=True)
class Case:
    """One request or response, or several in a row.

    Attributes:
        name: the distribution's file, and a number where it holds several.
        is_request: whether it is for a server.
        verdict: what its authors say of it; `lenient` if that depends on how strict a reader is asked to be.
        data: the bytes.
    """

    name: str
    is_request: bool
    verdict: Verdict
    data: bytes


@dataclass(frozen=True)
class Outcome:
    """What became of a request case: the answers, whether the server closed, how many whole requests got through."""

    answers: tuple[str, ...]
    is_closed: bool
    backend_requests: int

    def __str__(self) -> str:
        end = "closed" if self.is_closed else "open"
        return f"{'+'.join(self.answers) or '-'}/{end}/{self.backend_requests}"


@dataclass(frozen=True)
class Row:
    """One line of the table: a case, and its outcome under each server; a response has one, of our parser."""

    name: str
    verdict: str
    outcomes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name:60} {self.verdict:8} {' '.join(f'{outcome:20}' for outcome in self.outcomes)}".rstrip()


def read_table() -> dict[str, Row]:
    """Return the reviewed table, by name."""
    rows = (line.split() for line in TABLE.read_text().splitlines() if line and not line.startswith("#"))
    return {name: Row(name, verdict, tuple(outcomes)) for name, verdict, *outcomes in rows}


def read_cases(folder: Path) -> list[Case]:
    """Return every case of the source distributions in a folder."""
    cases: list[Case] = []
    for archive in sorted(folder.glob("*.tar.gz")):
        with tarfile.open(archive) as files:
            for member in files:
                _, _, path = member.name.partition("/")
                content = files.extractfile(member) if member.isfile() else None
                if content is not None:
                    cases += _cases_of(path, content.read())
    return sorted(cases, key=lambda case: case.name)


def _cases_of(path: str, content: bytes) -> Iterator[Case]:
    gunicorn = re.fullmatch(r"tests/requests/((valid|invalid)/.*)\.http", path)
    if gunicorn:
        verdict: Verdict = "valid" if gunicorn[2] == "valid" else "invalid"
        yield Case(f"gunicorn/{gunicorn[1]}", is_request=True, verdict=verdict, data=_from_gunicorn(content))
    llhttp = re.fullmatch(r"vendor/llhttp/test/((request|response)/.*)\.md", path)
    if llhttp:
        for number, block in enumerate(_LLHTTP.finditer(content.decode()), 1):
            yield Case(
                f"llhttp/{llhttp[1]}#{number}",
                is_request=llhttp[2] == "request",
                verdict=_llhttp_verdict(block["meta"], block["log"]),
                data=_from_llhttp(block["input"]),
            )


# An escape stands for one byte; line ends that are not escaped are for the eye alone.
_GUNICORN_ESCAPE = re.compile(rb"\\(r|n|t|0|x[0-9a-fA-F]{2})|\n")
_LLHTTP = re.compile(
    r"<!-- meta=(?P<meta>\{.*?\}) -->\s*```http\n(?P<input>.*?)\n```\s*```log\n(?P<log>.*?)```", re.DOTALL
)
# Here a line end stands for CR LF, unless a backslash stands before it.
_LLHTTP_ESCAPE = re.compile(r"\\\n|\n|\\(?:[rntf]|x[0-9a-fA-F]+|[0-7]{1,3})")
_NAMED = {"r": "\r", "n": "\n", "t": "\t", "f": "\f"}


def _from_gunicorn(content: bytes) -> bytes:
    def replaced(escape: re.Match[bytes]) -> bytes:
        name = (escape[1] or b"").decode()
        if name.startswith("x"):
            return bytes([int(name[1:], 16)])
        return {"": "", "0": "\0", **_NAMED}[name].encode()

    return _GUNICORN_ESCAPE.sub(replaced, content)


def _from_llhttp(text: str) -> bytes:
    def replaced(escape: re.Match[str]) -> str:
        written = escape[0]
        if written == "\n":
            return "\r\n"
        if written == "\\\n":
            return ""
        name = written[1:]
        if name.startswith("x"):
            return chr(int(name[1:], 16))
        return _NAMED[name] if name in _NAMED else chr(int(name, 8))

    return _LLHTTP_ESCAPE.sub(replaced, text).encode("latin-1", errors="replace")


def _llhttp_verdict(meta: str, log: str) -> Verdict:
    if "lenient" in meta:
        return "lenient"
    reasons = re.findall(r'error code=\d+ reason="([^"]*)', log)
    # It says "error" too where a test has it pause, and at the end of HTTP.
    refused = [reason for reason in reasons if not re.search(r"pause|Pause|[Uu]pgrade", reason)]
    return "invalid" if refused else "valid"


def response_outcome(case: Case) -> str:
    """Return what our parser of responses makes of a case."""
    parser = ResponseParser()
    try:
        parser.feed(case.data)
    except httpcore.RemoteProtocolError:
        return "refused"
    return f"{'whole' if parser.complete else 'open'}{'' if parser.reusable else '/once'}"


class Trusting:
    """An app that hands on every request as if its client had a good token.

    Attributes:
        open_requests: how many are being answered.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.open_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = [header for header in scope["headers"] if header[0].lower() != b"authorization"]
        scope = {**scope, "headers": [*headers, (b"authorization", f"Bearer {TOKEN}".encode())]}
        self.open_requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.open_requests -= 1


@dataclass(frozen=True)
class Running:
    """A proxy that trusts everyone, before a backend that answers everything."""

    backend: Backend
    app: Trusting
    client: Client


def _answer(call: Call) -> None:
    call.read_body()
    body = b'{"id":"x"}'
    content = b"" if call.method == "HEAD" else body
    call.send(head(200, b"content-type: application/json", b"content-length: %d" % len(body)) + content)


@contextlib.contextmanager
def running(kind: Kind) -> Iterator[Running]:
    """Run the proxy under a server."""
    with Backend() as backend:
        backend.play(_answer)
        app = Trusting(App(settings_for(backend.url), pair=fixed_pair()))
        with serve(app, kind) as port:
            yield Running(backend, app, Client(port, TOKEN))


def outcome_at(proxy: Running, case: Case) -> Outcome:
    """Send a case, and return what becomes of it."""
    proxy.backend.play(_answer)
    with socket.create_connection(("127.0.0.1", proxy.client.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before its end
            connection.sendall(case.data)
        connection.setblocking(False)
        received, is_closed, quiet, since, state = b"", False, 0, time.monotonic(), None
        # A request without its end stays open for ever, one that is being answered does not.
        while quiet < PROBES or (proxy.app.open_requests and time.monotonic() - since < LATE):
            assert proxy.client.get("/v1/models").status == 200, "the server does not answer any more"
            more, is_closed = _received(connection)
            received += more
            calls = [call for call in proxy.backend.calls if call.target != b"/v1/models" or call.method != "GET"]
            through = sum(call.whole.is_set() for call in calls)
            before, state = state, (len(received), is_closed, len(calls), through, proxy.app.open_requests)
            quiet = quiet + 1 if state == before else 0
    return Outcome(tuple(_classes(received)), is_closed, through)


def _received(connection: socket.socket) -> tuple[bytes, bool]:
    """Return what has come, and whether the server has closed the connection."""
    received = b""
    while True:
        try:
            data = connection.recv(65_536)
        except BlockingIOError:
            return received, False
        except ConnectionResetError:
            return received, True
        if not data:
            return received, True
        received += data


def _classes(received: bytes) -> Iterator[str]:
    """Yield the class of each response in what was received; interim ones are left out."""
    for match in re.finditer(rb"HTTP/1\.[01] ([2-5])\d\d", received):
        yield f"{match[1].decode()}xx"


def main() -> None:
    """Print the table for the distributions in a folder."""
    cases = read_cases(Path(sys.argv[1]))
    found: dict[str, list[str]] = {case.name: [] for case in cases}
    for kind in SERVERS:
        with running(kind) as proxy:
            for case in cases:
                if case.is_request:
                    found[case.name].append(str(outcome_at(proxy, case)))
    for case in cases:
        outcomes = found[case.name] if case.is_request else [response_outcome(case)]
        sys.stdout.write(f"{Row(case.name, case.verdict, tuple(outcomes))}\n")


if __name__ == "__main__":
    main()
