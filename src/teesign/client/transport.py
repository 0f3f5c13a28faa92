"""Transports for httpx and httpx2 that verify every answer before a program can take it for verified.

    client = OpenAI(base_url="https://…/v1", http_client=httpx.Client(transport=VerifyingTransport(policy)))

Theory of operation. A transport sits between a client and the transport that does the I/O, and takes each request
through these steps:

    1. attest the server, if that has not been done within `max_age`; nothing is sent to one that is not attested
    2. send the request, and hash it as it goes; ask for identity encoding, so that what is signed is what is read
    3. let pass what is not signed by contract, and what is not 2xx; but no switch to another protocol
    4. hash the response as it comes, and hold back what `ObservedExchange` says
    5. when it is whole, fetch its signature, and check it against the attested key
    6. release what was held back

What fails raises `VerificationError` or `FetchError`, and nothing more is handed out: before the response is returned,
or, of an event stream, in the place of its last event. The events before that were handed out unverified: do not act on
a stream that has not ended. A stream that is closed early is neither verified nor an error; that it was not verified
shows in its response, whose `extensions` have no "teesign", and in `verified` not being called.

One attestation is made for all requests to a server, by the first of them. The others wait, and share its failure: were
each to try again, the last would wait for all. The next request tries again. A mismatch of the signing key or of the
TLS key ends the attestation, so that a server with new keys is attested anew by the next request. The request's
`Authorization` is used for report and signature too, which are asked of the same server, and goes nowhere else.
Redirects are not followed here; a client that follows them comes back with the next URL, and the answer that it ends at
has to be verified, even at a URL that is not signed by contract.

Everything but the I/O is in flows and in `ObservedExchange`, so the two transports differ in `await` and their locks.
"""

from __future__ import annotations

import copy
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from ..errors import FetchError
from ..signing import SigningAlgorithm
from ..verify.policy import Policy
from .bodies import AsyncReceivedBody, AsyncSentBody, ReceivedBody, SentBody, body_type, has_body, observed_request
from .flow import Answer, Question, run, run_async
from .http import TIME_LIMIT, ask, ask_async, family_of
from .observed import MAX_HELD, ObservedExchange, VerifiedResponse
from .server import Attestation, Server, Trust
from .underlying import Underlying
from .verifier import Verifier

if TYPE_CHECKING:
    import httpx
    import httpx2

    class _Transport(httpx.BaseTransport, httpx2.BaseTransport):
        """What either library's client takes."""

        def handle_request(self, request: Any) -> Any: ...

    class _AsyncTransport(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):
        """What either library's asynchronous client takes."""

        async def handle_async_request(self, request: Any) -> Any: ...

else:
    # Neither library asks for its own base class, and neither has to be installed for the other.
    _Transport = _AsyncTransport = object

__all__ = ["MAX_AGE", "AsyncVerifyingTransport", "VerifyingTransport"]

MAX_AGE: Final = 3600.0
"""Seconds that an attestation serves."""


@dataclass(eq=False, repr=False)  # no repr, which would show the token
class _Attempt:
    """An attempt to attest a server, for whose end others may wait.

    Attributes:
        over: is set at the end.
        token: whose it is: what a server answers to one says nothing about others.
        error: what it failed with, as `_without_frames` returns it.
    """

    over: Any
    token: str | bytes | None
    error: Exception | None = None

    def failed(self, token: str | bytes | None) -> Exception | None:
        """Return an error of one's own about what it failed with, if that goes for whoever has this token."""
        answered = isinstance(self.error, FetchError) and self.error.status is not None
        return None if self.error is None or (answered and token != self.token) else _without_frames(self.error)


def _without_frames(error: Exception) -> Exception | None:
    """Return the same error for somebody else, with its cause; None if there is no way to make one.

    What is raised gathers the frames that it comes through, and these hold requests: an error that several raise would
    show each of them the prompts of all others. A cause may hold a request itself, beside what it says.
    """
    try:
        other = copy.copy(error)
    except Exception:  # noqa: BLE001 - a transport of the program's own may raise what cannot be copied
        return None
    cause = error.__cause__
    with suppress(Exception):
        other.__cause__ = cause and type(cause)(*cause.args)
    return other


class _Configured:
    """What both transports are made with."""

    _own: ClassVar[str]
    """Name of the library's own transport."""

    def __init__(
        self,
        trust: Policy | Trust,
        *,
        transport: Any = None,
        proxy: Any = None,
        algorithm: SigningAlgorithm = "ecdsa",
        model: str | None = None,
        prefix: str = "",
        verified: Callable[[VerifiedResponse], None] = lambda _: None,
        max_age: float = MAX_AGE,
        limit: float = TIME_LIMIT,
        max_held: int = MAX_HELD,
        random: Callable[[int], bytes] = secrets.token_bytes,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._underlying: Final = Underlying(transport, self._own, proxy=proxy)
        self._verifier: Final = Verifier(
            trust if isinstance(trust, Trust) else Trust(trust),
            algorithm=algorithm,
            model=model,
            prefix=prefix,
            verified=verified,
            max_age=max_age,
            random=random,
            clock=clock,
            monotonic=monotonic,
        )
        self._limit: Final = limit
        self._max_held: Final = max_held
        self._attempts: Final[dict[str, _Attempt]] = {}  # to attest a server, by its URL, while it is under way
        self._lock: Final = threading.Lock()  # for the attempts, which threads share

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._underlying.given!r})"

    @contextmanager
    def _attempt(self, server: Server, own: _Attempt) -> Iterator[_Attempt]:
        """Give the attempt that is under way to attest a server, or make it the caller's own.

        The own one is over when the block is left, and has failed if by an ordinary exception: whoever is interrupted
        or cancelled has failed nobody, and one of those who wait tries anew.
        """
        try:
            with self._lock:
                under_way = self._attempts.setdefault(server.url, own)
            yield under_way
        except Exception as error:
            own.error = _without_frames(error)
            raise
        finally:
            with self._lock:
                if self._attempts.get(server.url) is own:
                    del self._attempts[server.url]
            own.over.set()


class VerifyingTransport(_Configured, _Transport):
    """A transport for `httpx.Client`, or for httpx2's, that verifies every answer.

    Threads may share it. A transport of your own must hold more connections than event streams are open at once: each
    needs a second one to be verified. The library's own is made twice for that.

    A client uses it for what it has no other way for: `proxy=` and `mounts=` of the client take requests away from it,
    and then nothing is verified. The environment's proxies are not used. Give the proxy here. Websockets of the OpenAI
    client do not come here either: make it with `websocket_base_url="no://websockets"`, which has them fail.

    Args:
        trust: the policy; or a `Trust`, where collateral does not come from Intel.
        transport: does the I/O, and is closed with this one; the library's own `HTTPTransport` when None, made for the
            first request.
        proxy: the proxy that the library's own transport goes through: its address, or the library's `Proxy`.
        algorithm: which of the server's keys to attest, and whose signatures to check.
        model: the model's name, for servers that want it in the query of report and signature.
        prefix: the path below which the server is mounted: "/llm" for "https://example.org/llm/v1/chat/completions";
            "/llm/v1" will do as well.
        verified: called with each answer that was verified, before its last bytes are released. What it raises takes
            the place of the answer.
        max_age: seconds that an attestation serves.
        limit: seconds that it may take to fetch a report, a signature, or one part of the collateral, asking a busy
            server again included. One that takes longer keeps a thread and a connection, see `teesign.client.http.ask`.
        max_held: most bytes of one answer that are held back until it has been verified: of an event stream from its
            first `[DONE]` on, of anything else all.
        random: returns that many unpredictable bytes, for nonces.
        clock: seconds since 1970, UTC, at which collateral and certificates must be valid.
        monotonic: seconds on a clock that is never set, for `max_age`.

    Raises:
        UsageError: `bad_policy` if `trust` is neither; `bad_model`, `bad_prefix` or `bad_proxy` if `model`, `prefix` or
            `proxy` can be none; `two_ways` if both a transport and a proxy are given; `bad_transport` if the transport
            is of the other kind, synchronous or not.

    Raises, from requests and from reading event streams:
        VerificationError: the server or the answer failed a check, and the code says which. Beside those of
            `verify_report` and `verify_answer`: `signature_missing`, `answer_incomplete`, `request_incomplete`,
            `request_changed`, `encoded_answer`, `protocol_switched`, `stream_hash_mismatch`, `tls_key_missing`,
            `tls_key_not_bound`, `tls_key_mismatch` and `quote_without_certificate`.
        FetchError: what the check needs could not be fetched; `too_large` also if more than `max_held` bytes of the
            answer would have to be held back.
        UsageError: `bad_authorization` if the request's `Authorization` cannot be sent; `bad_transport` if the client
            is of httpx2 and the transport that it was given of httpx, or the other way round.
    """

    _own = "HTTPTransport"

    def __enter__(self) -> Self:
        """Nothing is opened before the first request."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what does the I/O."""
        for transport in self._underlying.all():
            transport.close()

    def handle_request(self, request: Any) -> Any:
        """Send a request, and return its response when it was verified, or an event stream that will be."""
        family = family_of(request)
        server, ask_server = self._verifier.server_of(request), partial(self._ask, family)
        attestation = self._attest(server, ask_server)
        self._underlying.keep(attestation.spki_sha256, request)
        for transport in self._underlying.take_outdated(self._verifier.tls_keys):
            transport.close()
        send = self._underlying.of(family, attestation.spki_sha256).handle_request
        exchange = ObservedExchange(request.url.raw_path, has_body=has_body(request), max_held=self._max_held)
        with self._verifier.relying_on(server):
            response = send(observed_request(family, request, SentBody, exchange, attestation.spki_sha256))
        self._underlying.keep(attestation.spki_sha256, response, instead_of=request)

        def finish() -> None:
            run(self._verifier.finish(exchange, request, response, server, attestation), ask_server)

        stream = response.stream
        try:
            if not self._verifier.start(exchange, request, response, server, attestation):
                return response
            if exchange.streamed:
                response.stream = body_type(family, ReceivedBody)(stream, exchange, finish)
                return response
            for chunk in stream:
                exchange.receive(chunk)
        except BaseException:
            stream.close()
            raise
        stream.close()
        response.stream = family.ByteStream(exchange.end())
        finish()
        return response

    def _ask(self, family: ModuleType, question: Question) -> Answer:
        send = self._underlying.of(family, question.spki_sha256, question).handle_request
        return ask(send, family, question, limit=self._limit)

    def _attest(self, server: Server, ask_server: Any) -> Attestation:
        while (attestation := self._verifier.known(server)) is None:
            own = _Attempt(threading.Event(), server.authorization)
            with self._attempt(server, own) as attempt:
                if attempt is own:
                    return run(self._verifier.attest(server), ask_server)
                attempt.over.wait()
            if (error := attempt.failed(own.token)) is not None:
                raise error
        return attestation


class AsyncVerifyingTransport(_Configured, _AsyncTransport):
    """A transport for `httpx.AsyncClient`, or for httpx2's, that verifies every answer, on asyncio and trio.

    Arguments and exceptions are those of `VerifyingTransport`; `transport` is an asynchronous one, and `verified` an
    ordinary function. What takes too long is cancelled, and leaves nothing behind.
    """

    _own = "AsyncHTTPTransport"

    async def __aenter__(self) -> Self:
        """Nothing is opened before the first request."""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close what does the I/O."""
        for transport in self._underlying.all():
            await transport.aclose()

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request, and return its response when it was verified, or an event stream that will be."""
        family = family_of(request)
        server, ask_server = self._verifier.server_of(request), partial(self._ask, family)
        attestation = await self._attest(server, ask_server)
        self._underlying.keep(attestation.spki_sha256, request)
        for transport in self._underlying.take_outdated(self._verifier.tls_keys):
            await transport.aclose()
        send = self._underlying.of(family, attestation.spki_sha256).handle_async_request
        exchange = ObservedExchange(request.url.raw_path, has_body=has_body(request), max_held=self._max_held)
        with self._verifier.relying_on(server):
            response = await send(observed_request(family, request, AsyncSentBody, exchange, attestation.spki_sha256))
        self._underlying.keep(attestation.spki_sha256, response, instead_of=request)

        async def finish() -> None:
            await run_async(self._verifier.finish(exchange, request, response, server, attestation), ask_server)

        stream = response.stream
        try:
            if not self._verifier.start(exchange, request, response, server, attestation):
                return response
            if exchange.streamed:
                response.stream = body_type(family, AsyncReceivedBody)(stream, exchange, finish)
                return response
            async for chunk in stream:
                exchange.receive(chunk)
        except BaseException:
            await stream.aclose()
            raise
        await stream.aclose()
        response.stream = family.ByteStream(exchange.end())
        await finish()
        return response

    async def _ask(self, family: ModuleType, question: Question) -> Answer:
        send = self._underlying.of(family, question.spki_sha256, question).handle_async_request
        return await ask_async(send, family, question, limit=self._limit)

    async def _attest(self, server: Server, ask_server: Any) -> Attestation:
        # Not at the top: whoever verifies without an event loop needs no library for it.
        import anyio

        while (attestation := self._verifier.known(server)) is None:
            own = _Attempt(anyio.Event(), server.authorization)
            with self._attempt(server, own) as attempt:
                if attempt is own:
                    return await run_async(self._verifier.attest(server), ask_server)
                await attempt.over.wait()
            if (error := attempt.failed(own.token)) is not None:
                raise error
        return attestation
