"""Client <-> Exchange <-> backend: one request relayed, its response hashed, signed and delivered.

Theory of operation. A relay runs through these steps, and only forward:

    1. take the body: whole for JSON (it must be checked) and where it comes at once, as a stream otherwise, and not at
       all where none belongs
    2. send it to the backend, and wait for the head of the response
    3. decide from the head: relay as it is, re-wrap an error, or run the body through an `Exchange`
    4. pass the body on, chunk by chunk; when the exchange is signed, store that BEFORE the bytes it returned go out
    5. when the client has everything, let the backend finish

From the end of the client's body until the last byte has been handed over, a watcher waits for the client to go away;
when it does, everything is cancelled, the backend's connection is closed, and nothing is signed. What breaks before the
response has started becomes an error for the client. What breaks afterwards ends the ASGI call without the last body
message, which servers turn into a broken connection (`hosts` refuses those that do not): a response that is not whole
must never look whole.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import anyio.to_thread
import httpcore

from teesign import Exchange, MalformedError, SigningPair, TextVersion

from .bodies import LARGE, prepare_json
from .errors import BackendError, HttpError
from .http import Reply, Request, end_to_end
from .observe import backend_error_fields, read_error
from .routes import Endpoint, Handling
from .store import Store
from .tasks import run_while_connected
from .types import Headers
from .upstream import Backend, BackendResponse

__all__ = ["Outcome", "Relay"]

MAX_ERROR_BODY: Final = 64 * 1024
"""How many bytes of a backend's error are looked at. Some echo the request, of whatever size."""

LINGER: Final = 0.25
"""Seconds that the backend gets to finish a response that the client has whole, so that its connection stays usable."""

_NEVER_SENT: Final = frozenset(
    (b"authorization", b"content-length", b"cookie", b"expect", b"host", b"x-request-hash", b"x-request-id")
)
"""Headers of a client that never reach the backend. Content-Length and Host are the relay's own to set."""

_NEVER_RETURNED: Final = frozenset(
    (b"content-length", b"date", b"server", b"set-cookie", b"set-cookie2", b"x-request-id", b"x-signature-id")
)
"""Headers of the backend that never reach a client. Date and Server come from the server in front of this app."""

_OF_THE_BYTES: Final = frozenset((b"content-digest", b"content-md5", b"digest", b"etag", b"repr-digest"))
"""Headers that are about the very bytes of a body, and do not hold for one with an id inserted."""

_OWN_KIND: Final = re.compile(rb"1\.1 teesign-[0-9a-f]{16}")
"""An entry in Via of a proxy like this one; see `App`."""

_ERROR_HEADERS: Final = frozenset((b"allow", b"retry-after"))
_NAMED_REQUEST_HEADERS: Final = (b"content-type", b"accept", b"traceparent", b"tracestate")
_NAMED_RESPONSE_HEADERS: Final = frozenset(
    (b"cache-control", b"content-encoding", b"content-type", b"retry-after", b"x-accel-buffering")
)


@dataclass(slots=True)
class Outcome:
    """What is known of a request afterwards, for metrics and the log.

    Attributes:
        asked: whether the backend was asked.
        backend_status: the backend's status code, or 0 if there was none.
        backend_error: what may be logged of the backend's error.
        signed: whether the response was signed.
        broken: the kind of backend error that ended it; "" if none did.
        client_gone: whether the client left before the last byte.
        stalled: within which part, request or response, the client stopped; "" if it did not.
    """

    asked: bool = False
    backend_status: int = 0
    backend_error: dict[str, str] = field(default_factory=dict)
    signed: bool = False
    broken: str = ""
    client_gone: bool = False
    stalled: str = ""

    def fields(self) -> dict[str, Any]:
        """Return what there is to log, without what did not happen."""
        known = {
            "backend_status": self.backend_status,
            "signed": self.signed,
            "broken": self.broken,
            "client_gone": self.client_gone,
            "stalled": self.stalled,
            **self.backend_error,
        }
        return {name: value for name, value in known.items() if value}


class Relay:
    """Relays requests to one backend.

    Args:
        backend: where to.
        pair: the keys to sign with.
        store: where signatures are kept.
        random: returns that many unpredictable bytes.
        text_version: the form of the signed text.
        model: the model's name.
        trust_request_hash: whether `X-Request-Hash` replaces the computed hash.
        via: this proxy's entry in the Via header of what it sends, by which it knows its own requests again.
    """

    def __init__(
        self,
        backend: Backend,
        pair: SigningPair,
        store: Store,
        *,
        random: Callable[[int], bytes],
        text_version: TextVersion,
        model: str,
        trust_request_hash: bool,
        via: bytes,
    ) -> None:
        self._backend: Final = backend
        self._pair: Final = pair
        self._store: Final = store
        self._random: Final = random
        self._text_version: Final[TextVersion] = text_version
        self._model: Final = model
        self._trust_request_hash: Final = trust_request_hash
        self._via: Final = via

    async def run(
        self, request: Request, reply: Reply, endpoint: Endpoint, url: httpcore.URL, limit: int, outcome: Outcome
    ) -> None:
        """Relay one request.

        Args:
            request: what the client sent; its body has not been taken.
            reply: where the response goes.
            endpoint: the row of the table.
            url: where to.
            limit: how many bytes the body may have.
            outcome: filled in as things become known, also when this raises.

        Raises:
            HttpError: 400 or 413, before the backend has been asked for a response.
            BackendError: if the backend gave no response. None has been started then.
            ClientDisconnectedError: if the client has gone.
        """
        exchange = self._exchange(request, endpoint)
        headers = self._request_headers(request, endpoint)

        async def ask_backend(content: bytes | AsyncIterator[bytes]) -> None:
            async def work() -> None:
                outcome.asked = True
                async with self._backend.respond(request.method, url, headers, content) as response:
                    outcome.backend_status = response.status
                    # Nothing vouches for a request of which only a part has been seen.
                    signable = endpoint.signed and request.body_taken
                    await self._deliver(response, reply, endpoint, exchange if signable else None, outcome)

            async def client_gone() -> None:
                await request.wait_for_disconnect()
                if reply.finished:
                    # Servers say so too when they have the whole response; what is left to do must not be cut short.
                    await anyio.sleep_forever()

            await run_while_connected(client_gone, work)

        if endpoint.handling is Handling.RELAY_JSON:
            await ask_backend(await prepare_json(await request.read(limit), exchange.receive_request))
            return
        if endpoint.handling is Handling.RELAY_BODILESS:
            request.leave_body()
            await ask_backend(b"")
            return
        async with aclosing(request.chunks(limit)) as chunks:
            first = await anext(chunks, b"")
            if not request.body_taken and request.body_size == request.content_length:
                first += await anext(chunks, b"")  # that was all, and the server has yet to say so
            if request.body_taken:  # it can be sent again
                exchange.receive_request(first)
                await ask_backend(first)
                return
            headers.append(_framing(request))
            async with aclosing(_hashed(request, first, chunks, exchange)) as content:
                await ask_backend(content)

    def _exchange(self, request: Request, endpoint: Endpoint) -> Exchange:
        exchange = Exchange(
            self._pair,
            id_prefix=endpoint.id_prefix,
            random=self._random,
            target=request.target,
            text_version=self._text_version,
            model=self._model,
        )
        if self._trust_request_hash:
            digest = request.trusted_digest()
            if digest is not None:
                exchange.replace_request_digest(digest)
        return exchange

    def _request_headers(self, request: Request, endpoint: Endpoint) -> Headers:
        if endpoint.handling is Handling.RELAY_ANYTHING:
            headers = end_to_end(request.headers, _NEVER_SENT | {b"accept-encoding", b"via"})
            via = b", ".join([*request.header_values(b"via"), self._via])
        else:
            headers = request.headers_named(_NAMED_REQUEST_HEADERS)
            # Who else has seen the request is the client's affair; but two proxies may be each other's backends.
            via = b", ".join([*_own_kind(request.header_values(b"via")), self._via])
        headers += ((b"accept-encoding", b"identity"), (b"via", via))
        return headers

    async def _deliver(
        self, response: BackendResponse, reply: Reply, endpoint: Endpoint, exchange: Exchange | None, outcome: Outcome
    ) -> None:
        if response.status >= 400 and endpoint.handling is Handling.RELAY_ANYTHING:
            await _deliver_rewrapped_error(response, reply, outcome)
        elif exchange is not None and response.status < 300:
            await self._deliver_signed(response, reply, endpoint, exchange, outcome)
        else:
            await _deliver_as_it_is(response, reply, endpoint, outcome)

    async def _deliver_signed(
        self, response: BackendResponse, reply: Reply, endpoint: Endpoint, exchange: Exchange, outcome: Outcome
    ) -> None:
        bodiless = reply.is_bodiless(response.status)
        exchange.start_response(
            response.status,
            response.header(b"content-type"),
            content_encoding=response.header(b"content-encoding"),
            content_length=None if bodiless else response.content_length(),
            is_part=_is_part(response, endpoint),
        )
        headers = [*_response_headers(response, endpoint), (b"x-signature-id", exchange.signature_id.encode())]
        if not exchange.collects and not bodiless:
            await reply.start(response.status, headers + (_declared_length(response) if exchange.keeps_length else []))
            await reply.body(b"", more=True)  # some servers keep the head until there is a body
        size = 0
        while chunk := await response.next_chunk():
            size += len(chunk)
            out = exchange.receive_response(chunk)
            if exchange.signed is not None:
                await self._finish(response, reply, headers, exchange, out, outcome)
                await _let_finish(response)
                return
            if out:
                if not reply.status:
                    await reply.start(response.status, headers + _declared_length(response))
                await reply.body(out, more=True)
        if exchange.collects and size >= LARGE:  # others get their turns while it is hashed and copied
            rest = await anyio.to_thread.run_sync(_end, exchange)
        else:
            rest = _end(exchange)
        if rest is None:
            raise BackendError("closed")
        await self._finish(response, reply, headers, exchange, rest, outcome)

    async def _finish(
        self,
        response: BackendResponse,
        reply: Reply,
        headers: Headers,
        exchange: Exchange,
        out: bytes,
        outcome: Outcome,
    ) -> None:
        """Store the signature, if there is one, and only then send the last bytes."""
        if exchange.signed is not None:
            await self._store.put(exchange.signed.ids, exchange.signed.chat)
            outcome.signed = True
        if reply.status:
            await reply.body(out, more=False)
        elif reply.is_bodiless(response.status):
            await reply.start(response.status, headers + _declared_length(response))
            await reply.body(b"", more=False)
        else:
            if exchange.id_inserted:
                headers = [(name, value) for name, value in headers if name not in _OF_THE_BYTES]
            await reply.whole(response.status, headers, out)


async def _deliver_as_it_is(response: BackendResponse, reply: Reply, endpoint: Endpoint, outcome: Outcome) -> None:
    headers = _response_headers(response, endpoint)
    await reply.start(response.status, headers + _declared_length(response))
    seen = b""
    while chunk := await response.next_chunk():
        if response.status >= 400 and len(seen) < MAX_ERROR_BODY:
            seen += chunk
        await reply.body(chunk, more=True)
    await reply.body(b"", more=False)
    outcome.backend_error = backend_error_fields(seen) if seen else {}


async def _deliver_rewrapped_error(response: BackendResponse, reply: Reply, outcome: Outcome) -> None:
    try:
        body = await response.read(MAX_ERROR_BODY)
    except BackendError:
        body = b""
    outcome.backend_error = backend_error_fields(body)
    message, kind = read_error(body) or (f"Upstream request failed with status {response.status}", None)
    headers = tuple((name.lower(), value) for name, value in response.headers if name.lower() in _ERROR_HEADERS)
    await reply.error(HttpError(response.status, kind or "upstream_error", message, headers))


async def _hashed(
    request: Request, first: bytes, rest: AsyncIterator[bytes], exchange: Exchange
) -> AsyncGenerator[bytes, None]:
    """Yield the pieces of a request's body, and let the exchange see each."""
    try:
        exchange.receive_request(first)
        yield first
        async for chunk in rest:
            exchange.receive_request(chunk)
            yield chunk
    finally:
        request.leave_body()  # a backend that has answered early is sent no more


def _end(exchange: Exchange) -> bytes | None:
    """Return the rest of what may go to the client, or None if something of the response is missing."""
    try:
        return exchange.end_response()
    except MalformedError:  # as the pools of this package say themselves; one that was passed in may not
        return None


async def _let_finish(response: BackendResponse) -> None:
    """Read what the backend sends after the end, for a moment, so that its connection can be used again."""
    with anyio.move_on_after(LINGER):
        try:
            while await response.next_chunk():
                pass
        except BackendError:
            pass  # the client has everything; the connection goes, and nothing else


def _response_headers(response: BackendResponse, endpoint: Endpoint) -> Headers:
    if endpoint.handling is Handling.RELAY_ANYTHING or 300 <= response.status <= 399:
        return end_to_end(response.headers, _NEVER_RETURNED)
    return [(name.lower(), value) for name, value in response.headers if name.lower() in _NAMED_RESPONSE_HEADERS]


def _is_part(response: BackendResponse, endpoint: Endpoint) -> bool:
    """Tell whether a body is a part of a document, and the client will know: named routes relay no ranges."""
    relays_ranges = endpoint.handling is Handling.RELAY_ANYTHING
    return relays_ranges and response.status == 206 and response.header(b"content-range") is not None


def _own_kind(via: Iterable[bytes]) -> list[bytes]:
    """Return the entries of proxies like this one among those in the lines of Via."""
    entries = (entry.strip() for line in via for entry in line.split(b","))
    return [entry for entry in entries if _OWN_KIND.fullmatch(entry)]


def _framing(request: Request) -> tuple[bytes, bytes]:
    """Return the header that frames the request's streamed body: as the client framed it."""
    if request.content_length is None:
        return (b"transfer-encoding", b"chunked")
    return (b"content-length", str(request.content_length).encode())


def _declared_length(response: BackendResponse) -> Headers:
    length = response.content_length()
    # That of 304 is another response's (RFC 9110 section 15.4.5): some servers wait for so many bytes.
    if length is None or response.status in (204, 304):
        return []
    return [(b"content-length", str(length).encode())]
