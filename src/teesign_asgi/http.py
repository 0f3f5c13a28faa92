"""One request as the handlers see it, the reply to it, and which headers cross the proxy.

Theory of operation. A `Request` is read from the ASGI scope once: the few headers that mean something here are picked
out in one pass, and everything else stays as it came. Its body is taken from `receive` at most once, either whole
(`read`) or as a stream (`chunks`). A `Reply` is the only thing that calls `send`: it adds the request id to every
response and remembers what has been sent, so that an error is answered if nothing has gone out yet, and breaks the
response off if something has.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote

import anyio
import msgspec

from .errors import ClientDisconnectedError, HttpError, bad_request, payload_too_large
from .types import Headers, Receive, Scope, Send

__all__ = ["HOP_BY_HOP", "Reply", "Request", "end_to_end"]

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_DIGEST: Final = re.compile(rb"[0-9a-fA-F]{64}")
_CONTENT_LENGTH: Final = re.compile(rb"[0-9]{1,18}")

HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Headers that belong to one connection (RFC 9110 section 7.6.1) and never cross a proxy."""

_READ_ONCE: Final = frozenset(
    (
        b"accept",
        b"authorization",
        b"content-length",
        b"content-type",
        b"expect",
        b"traceparent",
        b"tracestate",
        b"transfer-encoding",
        b"via",
        b"x-forwarded-for",
        b"x-request-hash",
        b"x-request-id",
    )
)

_LISTS: Final = frozenset((b"accept", b"tracestate"))
"""Headers that are lists: several lines of one mean the same as one line (RFC 9110 section 5.3)."""

PIECE: Final = 64 * 1024
"""How many bytes of a body that is there already are handed over at once: whether they are taken is seen by each."""

LINGER: Final = 2.0
"""Seconds in which what a client still sends is dropped after its answer."""

JSON_CONTENT_TYPE: Final = (b"content-type", b"application/json")


class Request:
    """An incoming request.

    Args:
        scope: the ASGI scope, of type "http".
        receive: the ASGI receive callable.
        random: returns that many unpredictable bytes, for a request id where the client gave none.
        trusted_hops: how many proxies in front of this one add to X-Forwarded-For.

    Attributes:
        method: the method, upper case.
        path: the decoded path below the point where the app is mounted.
        raw_path: the same as it came, percent-encoded, without the query.
        query: the query string as it came, without the question mark.
        target: the whole raw target that the client sent, `path` or `path?query`.
        headers: every header as it came.
        content_length: the body's declared length in bytes; None where it is not declared.
        request_id: the client's, if it is a good one, or a fresh one.
        client_ip: the address that rate limits count, as text; empty where there is none.
        body_size: how many bytes of the body have been received so far.
        body_taken: whether the body has been received to its end.
        body_left: whether what is still to come of it will not be taken.
        is_receiving: whether a piece of it is waited for.
    """

    __slots__ = (
        "_picked",
        "_receive",
        "_when_done",
        "body_left",
        "body_size",
        "body_taken",
        "client_ip",
        "content_length",
        "headers",
        "is_receiving",
        "method",
        "path",
        "query",
        "raw_path",
        "request_id",
        "target",
    )

    def __init__(self, scope: Scope, receive: Receive, random: Callable[[int], bytes], trusted_hops: int) -> None:
        self._receive = receive
        self.method: str = scope["method"]
        root = scope.get("root_path", "")
        raw_path: bytes = scope.get("raw_path") or quote(scope["path"], safe="/:@!$&'()*+,;=~").encode()
        self.query: bytes = scope.get("query_string", b"")
        self.target = b"%b?%b" % (raw_path, self.query) if self.query else raw_path
        self.path = _below(root, scope["path"])
        self.raw_path = _raw_below(root, raw_path) if root else raw_path
        self.headers: Headers = list(scope["headers"])
        picked: dict[bytes, list[bytes]] = {}
        for name, value in self.headers:
            lower = name.lower()
            if lower in _READ_ONCE:
                picked.setdefault(lower, []).append(value)
        self._picked = picked
        # Some servers let both through; then the coding frames the body (RFC 9112 section 6.3).
        length = None if b"transfer-encoding" in picked else self.header(b"content-length")
        self.content_length = int(length) if length is not None and _CONTENT_LENGTH.fullmatch(length) else None
        offered = self.header(b"x-request-id")
        good = offered is not None and _REQUEST_ID.fullmatch(offered)
        self.request_id: bytes = offered if offered is not None and good else random(16).hex().encode()
        self.client_ip = _client_ip(scope, self.header_values(b"x-forwarded-for"), trusted_hops)
        self.body_size = 0
        self.body_taken = False
        self.body_left = False
        self.is_receiving = False
        self._when_done: anyio.Event | None = None  # few requests need it, and it costs more than the rest of this

    def header(self, name: bytes) -> bytes | None:
        """Return the value of a header that came once; None if it did not come, or came several times."""
        values = self._picked.get(name, ())
        return values[0] if len(values) == 1 else None

    def headers_named(self, names: Iterable[bytes]) -> Headers:
        """Return those of some headers that came once, or are lists, each in one line and in the order of `names`."""
        picked = self._picked
        return [
            (name, b", ".join(picked[name]))
            for name in names
            if name in picked and (len(picked[name]) == 1 or name in _LISTS)
        ]

    def header_values(self, name: bytes) -> Iterable[bytes]:
        """Return every value of a header, in the order in which they came."""
        return self._picked.get(name, ())

    def parameters(self) -> dict[str, str]:
        """Return the query's parameters, decoded.

        Raises:
            HttpError: 400 if one is given more than once: which of the two was meant would be a guess.
        """
        pairs = parse_qsl(self.query.decode("latin-1"), keep_blank_values=True, max_num_fields=None)
        parameters = dict(pairs)
        if len(parameters) != len(pairs):
            raise bad_request("A query parameter is given more than once")
        return parameters

    def check_size(self, limit: int) -> None:
        """Refuse a body that is declared to have more than `limit` bytes, before any of it is read.

        Raises:
            HttpError: 413.
        """
        if self.content_length is not None and self.content_length > limit:
            raise payload_too_large(limit)

    async def chunks(self, limit: int) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives; no piece is empty.

        Raises:
            HttpError: 413 as soon as more than `limit` bytes have come.
            ClientDisconnectedError: if the client goes away before the end.
        """
        while not self.body_taken:
            chunk = await self._receive_body(limit)
            if chunk:
                yield chunk

    async def read(self, limit: int) -> bytes:
        """Return the whole body; see `chunks` for what is raised."""
        first = await self._receive_body(limit)
        if self.body_taken:
            return first
        body = bytearray(first)  # to keep each piece would take many times the size of a body in tiny ones
        while not self.body_taken:
            body += await self._receive_body(limit)
        return bytes(body)

    async def _receive_body(self, limit: int) -> bytes:
        self.is_receiving = True
        try:
            message = await self._receive()
        finally:
            self.is_receiving = False
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError
        chunk: bytes = message.get("body", b"")
        self.body_size += len(chunk)
        if self.body_size > limit:
            raise payload_too_large(limit)
        if not message.get("more_body", False):
            self.body_taken = True
            self._is_done_with_body()
        return chunk

    @property
    def has_rest(self) -> bool:
        """Whether a body was declared that has not been taken to its end, and is not held back (`Expect`)."""
        if self.body_taken:
            return False
        if b"expect" in self._picked:
            return False
        return bool(self.content_length) or b"transfer-encoding" in self._picked

    async def drop_rest(self) -> None:
        """Take what the client still sends, for a moment, and forget it.

        A connection that is closed with something unread is reset (RFC 9112, section 9.6), and clients that send before
        they read never learn what the answer was.
        """
        with anyio.move_on_after(LINGER):
            while not self.body_taken:
                message = await self._receive()
                self.body_taken = message["type"] == "http.disconnect" or not message.get("more_body", False)

    def leave_body(self) -> None:
        """Say that nobody takes what is still to come of the body; `wait_for_disconnect` drops it from now on."""
        self.body_left = True
        self._is_done_with_body()

    def _is_done_with_body(self) -> None:
        if self._when_done is not None:
            self._when_done.set()

    def trusted_digest(self) -> str | None:
        """Return the digest in `X-Request-Hash`, or None if there is none.

        Raises:
            HttpError: 400 if it is not one digest of 64 hex digits.
        """
        offered = self._picked.get(b"x-request-hash")
        if offered is None:
            return None
        if len(offered) != 1 or not _DIGEST.fullmatch(offered[0]):
            raise bad_request("X-Request-Hash must be 64 hex digits")
        return offered[0].decode()

    async def wait_for_disconnect(self) -> None:
        """Return when the client has gone. Until the body has been taken or left, whoever takes it is told instead."""
        if not self.body_taken and not self.body_left:
            self._when_done = anyio.Event()
            await self._when_done.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


class Reply:
    """The response to one request.

    Args:
        send: the ASGI send callable.
        request_id: goes out as `x-request-id` on every response.
        method: the request's; the response to HEAD has a head like that to GET, and no body (RFC 9110 section 9.3.2).

    Attributes:
        status: the status code that was sent, or 0 before.
        body_size: how many bytes of body were handed to the server.
        finished: whether the last of them was.
        is_sending: whether the server has not taken the head, or the last piece of the body, yet.
    """

    __slots__ = ("_is_head", "_request_id", "_send", "body_size", "finished", "is_sending", "status")

    def __init__(self, send: Send, request_id: bytes, method: str) -> None:
        self._send = send
        self._request_id = request_id
        self._is_head = method == "HEAD"
        self.status = 0
        self.body_size = 0
        self.finished = False
        self.is_sending = False

    @property
    def is_whole(self) -> bool:
        """Whether the server has taken the last bytes; those that wait for what came before may not get to them."""
        return self.finished and not self.is_sending

    def is_bodiless(self, status: int) -> bool:
        """Tell whether a response of this status has no body, whatever its headers say."""
        return self._is_head or status in (204, 304)

    async def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Send the status and the headers; `headers` must not hold the request id."""
        self.status = status
        # Some servers keep it until the client has taken the response before this one.
        self.is_sending = True
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, (b"x-request-id", self._request_id)],
            }
        )
        self.is_sending = False

    async def body(self, chunk: bytes, *, more: bool) -> None:
        """Send the next bytes of the body; the last ones with `more` false."""
        if self._is_head:
            chunk = b""
        self.body_size += len(chunk)
        # Set first: some servers report the client as gone while they take the last bytes.
        self.finished = not more
        self.is_sending = True
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})
        self.is_sending = False

    async def whole(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a response whose body is there already."""
        await self.start(status, [*headers, (b"content-length", str(len(body)).encode())])
        if len(body) > PIECE:
            last = (len(body) - 1) // PIECE * PIECE
            for start in range(0, last, PIECE):
                await self.body(body[start : start + PIECE], more=True)
            body = body[last:]
        await self.body(body, more=False)

    async def json(self, value: Any, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Send a value as JSON."""
        await self.whole(status, [JSON_CONTENT_TYPE, *headers], msgspec.json.encode(value))

    async def error(self, error: HttpError) -> None:
        """Send an error in the format of docs/wire-contract.md, "Errors"."""
        content = {"message": error.message, "type": error.type, "param": None, "code": None}
        await self.json({"error": content}, error.status, error.headers)


def end_to_end(headers: Iterable[tuple[bytes, bytes]], leave_out: frozenset[bytes]) -> Headers:
    """Return the headers that may cross a proxy, with their names in lower case, as ASGI has them.

    Left out are those of one connection, those that `Connection` names, and `leave_out` (lower-case names). A name
    with underscores counts as the name with dashes, since some backends read it as that.

    Args:
        headers: names in any case, and values.
        leave_out: more names that do not cross.
    """
    listed = list(headers)
    named = {
        option.strip().lower().replace(b"_", b"-")
        for name, value in listed
        if name.lower() == b"connection"
        for option in value.split(b",")
    }
    dropped = HOP_BY_HOP | leave_out | named
    lowered = [(name.lower(), value) for name, value in listed]
    return [(name, value) for name, value in lowered if name.replace(b"_", b"-") not in dropped]


def decode_path_segment(raw: bytes) -> str:
    """Return the text of a percent-encoded path segment, or several; bytes that are not UTF-8 become U+FFFD."""
    return unquote(raw.decode("latin-1"), errors="replace")


def _below(root: str, path: str) -> str:
    """Return `path` without the prefix under which the app is mounted.

    Servers and frameworks disagree about whether the scope's path includes `root_path`; ASGI says that it does.
    """
    rest = path.removeprefix(root)
    return rest if root and rest.startswith("/") else path


def _raw_below(root: str, raw_path: bytes) -> bytes:
    """Return a path as it came without the prefix, however that is encoded: what must be equal is what it means."""
    longest = 3 * len(root.encode(errors="replace"))  # with every byte encoded
    end = raw_path.find(b"/", 1)
    while 0 < end <= longest:
        if decode_path_segment(raw_path[:end]) == root:
            return raw_path[end:]
        end = raw_path.find(b"/", end + 1)
    return raw_path


def _client_ip(scope: Scope, forwarded: Iterable[bytes], trusted_hops: int) -> str:
    peer = scope.get("client")
    address = str(peer[0]) if peer else ""
    if trusted_hops:
        hops = [hop.strip() for value in forwarded for hop in value.decode("latin-1").split(",")]
        if len(hops) >= trusted_hops:
            return _normalized_ip(hops[-trusted_hops]) or address
    return address


def _normalized_ip(text: str) -> str | None:
    """Return an address without port and brackets, or None if it is none."""
    bracketed = re.fullmatch(r"\[(?P<host>[^\]]+)\](?::\d+)?", text)
    with_port = re.fullmatch(r"(?P<host>[0-9.]+):\d+", text)
    match = bracketed or with_port
    try:
        return str(ipaddress.ip_address(match["host"] if match else text))
    except ValueError:
        return None
