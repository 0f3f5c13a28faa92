"""The ASGI callable: start and stop, the order of checks, dispatch, and what errors become.

Each request goes through the same steps, in the order that the wire contract gives: is it one of our own coming back,
which endpoint is it, has the client any requests left, is its method served, is its token good, is its body declared
too large. Then the endpoint's handler answers. Whatever it raises becomes an error response, or, if the response has
started already, the end of the connection.

The app starts with the server's lifespan. Frameworks that mount it do not always pass that on, so the first request
that needs the keys starts it too; `App.start` and `App.aclose` do the same by hand.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from typing import Final

import httpcore

from teesign import SignatureCache, SignatureStore, SigningPair, TeesignError, __version__
from teesign.sources import Sources

from .attestor import Attestor
from .certificate import BoundCertificate, CertificateError
from .client_connection import BreakOff, hang_up_at_exit
from .drain import Drain
from .errors import (
    ClientStalledError,
    StartError,
    rate_limited,
    server_error,
    shutting_down,
    unauthorized,
)
from .failures import answer_failure
from .guards import BearerCheck, RateLimiter
from .handlers import Handlers
from .hosts import check_server
from .http import Reply, Request
from .metrics import Metrics
from .observe import describe_exception, log_event, loggable_path, loggable_url, start_logger
from .pool import Pool
from .randomness import RandomSupply
from .relay import Outcome, Relay
from .routes import (
    CATCH_ALL,
    Handling,
    check_backend_path,
    check_method,
    check_target,
    find_endpoint,
)
from .served import Served, served_endpoints
from .settings import Settings
from .shared import Shared
from .sockets import keep_a_place
from .sources import default_sources, load_keys
from .stalls import StallWatch
from .store import Store
from .types import Receive, Scope, Send
from .upstream import AsyncRequestInterface, Backend, HttpcorePools, default_pool, join_url

__all__ = ["App"]

_NEED_NO_START: Final = frozenset((Handling.HELLO, Handling.VERSION, Handling.METRICS, Handling.HEALTH))
"""What is answered without keys and sources, however long those take."""


class App:
    """The signing proxy, as an ASGI 3 application.

    Args:
        settings: what the operator chose.
        pair: the keys to sign with; from the sources, or random ones in development, when left out.
        cache: where signatures are kept: a `SignatureCache`, or any store with `put` and `get` coroutines.
        upstream: what carries requests to the backend: anything with httpcore's asynchronous request interface.
            `Pool` when left out, or on trio httpcore's pools. One that is passed in is not closed by the app.
        sources: where keys, quotes and GPU evidence come from; chosen by the settings when left out.
        clock: returns seconds that never go backwards.
        random: returns that many unpredictable bytes.

    Attributes:
        drain: begin it when the server is to stop, and stop the server when it is over.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        pair: SigningPair | None = None,
        cache: SignatureCache | SignatureStore | None = None,
        upstream: AsyncRequestInterface | None = None,
        sources: Sources | None = None,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.settings: Final = settings
        self._pair = pair
        self._given_sources: Final = sources
        self._given_upstream: Final = upstream
        self._clock: Final = clock
        self._random: Final = random
        self._random_ids: Final = RandomSupply(random)
        self._instance: Final = f"teesign-{random(8).hex()}".encode()
        self.drain: Final = Drain(
            delay=settings.drain_delay, timeout=settings.drain_timeout, linger=settings.drain_linger, clock=clock
        )
        self._stalls: Final = StallWatch(sending=settings.client_body_timeout, taking=settings.client_write_timeout)
        self._break_off: Final = BreakOff()
        self._guard: Final = BearerCheck(settings.tokens)
        self._limiter: Final = RateLimiter(
            per_second=settings.rate_limit_per_second, burst=settings.rate_limit_burst, clock=clock
        )
        if cache is None:
            cache = SignatureCache(
                ttl=settings.signature_ttl, max_entries=settings.signature_cache_max_entries, clock=clock
            )
        self._store: Final = Store(cache, settings.model_name)
        self.metrics: Final = Metrics(
            open_streams=lambda: self.drain.open_responses,
            cache_entries=None if self._store.entries() is None else lambda: self._store.entries() or 0,
        )
        self._backend_url: Final = httpcore.URL(settings.backend_url)
        self._shared_start: Final = Shared(self._start)
        self._pool: Pool | HttpcorePools | None = None
        self._sources: Sources | None = None
        self._relay: Relay | None = None
        self._attestor: Attestor | None = None
        handlers = Handlers(
            store=self._store,
            metrics=self.metrics,
            drain=self.drain,
            attestor=lambda: self._attestor,
        ).table
        self._served: Final = served_endpoints(settings, handlers, self.metrics)

    def __repr__(self) -> str:
        return f"App({self.settings!r})"

    @property
    def pair(self) -> SigningPair:
        """The keys that responses are signed with.

        Raises:
            StartError: before the app has started, if they were not passed in.
        """
        if self._pair is None:
            raise StartError("The keys are not there before the app has started.")
        return self._pair

    @property
    def is_started(self) -> bool:
        """Whether the keys and the sources are ready: before, only what needs neither is answered."""
        return self._attestor is not None

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self._stalls.is_idle

    def hang_up_at_exit(self, port: int) -> None:
        """Break off what would look whole if this process ended now; to be called just before it does.

        Args:
            port: where its server listens.
        """
        hang_up_at_exit(self._stalls.open_scopes, port)

    async def start(self) -> None:
        """Get the keys and the sources ready. Does nothing the second time; waits if that is under way.

        Raises:
            StartError: if the keys cannot be had, or the server cannot be relied upon. The app can be started again.
        """
        if not self.is_started:
            await self._shared_start()

    async def _start(self) -> None:
        check_server()
        keep_a_place()
        settings = self.settings
        self._sources = self._given_sources or default_sources(settings)
        if self._pair is None:
            self._pair = await load_keys(settings, self._sources, self._random)
        upstream = self._given_upstream
        if upstream is None:
            upstream = self._pool = default_pool(settings.max_keepalive)
        self._relay = Relay(
            Backend(upstream, silence=settings.backend_timeout, clock=self._clock),
            self._pair,
            self._store,
            random=self._random_ids,
            text_version=settings.signed_text,
            model=settings.model_name,
            trust_request_hash=settings.trust_request_hash,
            via=b"1.1 " + self._instance,
        )
        self._attestor = Attestor(
            self._pair,
            self._sources,
            model=settings.model_name,
            development=settings.dev,
            certificate=BoundCertificate(settings.tls_cert_path) if settings.tls_cert_path else None,
            cache_ttl=settings.attestation_cache_ttl,
            clock=self._clock,
            random=self._random,
            on_failure=self._note_attestation_failure,
        )
        for warning in settings.warnings():
            start_logger.warning(warning)
        log_event(
            logging.INFO,
            "teesign is ready",
            version=__version__,
            ecdsa=self._pair.ecdsa.identity.address,
            ed25519=self._pair.ed25519.identity.address,
            backend=loggable_url(self._backend_url),
        )

    async def aclose(self) -> None:
        """Close the backend's connections and give the sources back. The app can be started again."""
        pool, self._pool = self._pool, None
        sources, self._sources = self._sources, None
        self._relay = self._attestor = None
        if pool is not None:
            await pool.aclose()
        if sources is not None and self._given_sources is None:
            await sources.gpus.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection, as ASGI 3 defines it. WebSockets are refused."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except StartError as error:
            # The server logs the message.
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        except Exception as error:  # noqa: BLE001 - servers go on without the lifespan if it raises
            log_event(logging.ERROR, "unexpected error at start", **describe_exception(error))
            await send({"type": "lifespan.startup.failed", "message": f"Unexpected error: {type(error).__name__}"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = self._clock()
        request = Request(scope, receive, self._random_ids, self.settings.trusted_proxy_hops)
        reply = Reply(send, request.request_id, request.method)
        outcome = Outcome()
        served = self._served[CATCH_ALL.path]
        is_trusted = False
        try:
            self._refuse_own_requests(request)
            served = self._served[find_endpoint(request.path, request.raw_path).path]
            self._check(request, served)
            is_trusted = served.auth
            request.check_size(served.limit)
            await self._stalls.run(scope, request, reply, self._answer(request, reply, served, outcome))
        except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, the client gets an answer
            await self._answer_failure(scope, error, request, reply, outcome)
            if reply.status and not (reply.is_whole or outcome.stalled):
                await self._break_off(scope, client_gone=outcome.client_gone)
        except BaseException as error:
            # The host has cancelled the task. One that is only dropped may wait for nothing any more.
            if reply.status and not reply.is_whole and not isinstance(error, GeneratorExit):
                await self._break_off.cancelled(scope)
            raise
        finally:
            self._note(request, reply, served, outcome, self._clock() - begun)
        # Of those who have shown no token nothing is read that need not be.
        if is_trusted and reply.finished and not outcome.stalled and request.has_rest:
            await request.drop_rest()

    async def _answer_failure(
        self, scope: Scope, error: Exception, request: Request, reply: Reply, outcome: Outcome
    ) -> None:
        answering = answer_failure(error, request, reply, outcome)
        if isinstance(error, ClientStalledError):  # its time is over, and its connection will be ended
            await answering
            return
        try:
            await self._stalls.run(scope, request, reply, answering)
        except ClientStalledError as stalled:
            outcome.stalled = stalled.part

    def _refuse_own_requests(self, request: Request) -> None:
        if any(self._instance in via for via in request.header_values(b"via")):
            log_event(
                logging.ERROR,
                "a request came back to the proxy that sent it: VLLM_BASE_URL points at this proxy",
                request_id=request.request_id.decode(),
            )
            raise server_error()

    def _check(self, request: Request, served: Served) -> None:
        """Apply the checks that need no body, in the contract's order."""
        if served.endpoint.rate_limited:
            retry_after = self._limiter.take(request.client_ip)
            if retry_after:
                raise rate_limited(retry_after)
        check_method(served.endpoint, request.method)
        if served.auth and not self._guard.accepts(request.header(b"authorization")):
            raise unauthorized()

    async def _answer(self, request: Request, reply: Reply, served: Served, outcome: Outcome) -> None:
        if self._attestor is None and served.endpoint.handling not in _NEED_NO_START:
            await self.start()
        if served.handler is not None:
            await served.handler(request, reply)
            return
        assert self._relay is not None
        if not self.drain.takes_work:
            raise shutting_down()
        check_target(request.target)
        url = served.url
        if url is None:
            allowed = self.settings.allow_backend_admin
            check_backend_path(request.method, request.raw_path, allow_administrative=allowed)
            url = join_url(self._backend_url, request.raw_path, request.query)
        elif request.query:
            url = join_url(url, query=request.query)
        self.drain.open_responses += 1
        try:
            await self._relay.run(request, reply, served.endpoint, url, served.limit, outcome)
        finally:
            self.drain.open_responses -= 1

    def _note_attestation_failure(self, error: Exception, request_id: str) -> None:
        self.metrics.attestation_failures.inc()
        # The message of an error of our own says which part failed and why, and quotes nothing; others might.
        if isinstance(error, TeesignError):
            cause = {"cause": str(error), "code": error.code}
        elif isinstance(error, CertificateError):
            cause = {"cause": str(error)}
        else:
            cause = describe_exception(error)
        log_event(logging.ERROR, "an attestation report could not be collected", request_id=request_id, **cause)

    def _note(self, request: Request, reply: Reply, served: Served, outcome: Outcome, duration: float) -> None:
        served.metrics.note(
            status=reply.status,
            duration=duration,
            received=request.body_size,
            sent=reply.body_size,
            signed=outcome.signed,
            client_gone=outcome.client_gone,
        )
        if outcome.signed:
            self.drain.last_signed = self._clock()
        if outcome.stalled:
            self.metrics.client_stalls.labels(outcome.stalled).inc()
        if outcome.broken:
            self.metrics.backend_errors.labels(outcome.broken).inc()
        log_event(
            logging.INFO if reply.status < 500 and not outcome.broken else logging.WARNING,
            "request",
            request_id=request.request_id.decode(),
            method=request.method if request.method.isalpha() and len(request.method) <= 16 else "?",
            path=loggable_path(request.raw_path) if served.endpoint is CATCH_ALL else served.label,
            status=reply.status,
            ms=round(duration * 1000, 1),
            received=request.body_size,
            sent=reply.body_size,
            **({"backend": served.backend} if outcome.asked else {}),
            **outcome.fields(),
        )
