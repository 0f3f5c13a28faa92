"""The endpoints that the proxy answers by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from teesign import __version__

from .attestor import Attestor
from .drain import Drain
from .errors import bad_request, not_found, shutting_down
from .http import Reply, Request, decode_path_segment
from .metrics import METRICS_CONTENT_TYPE, Metrics
from .parameters import flag_parameter, nonce_parameter, signing_algorithm
from .routes import Handling
from .store import Store
from .tasks import run_while_connected

__all__ = ["Handler", "Handlers"]

Handler = Callable[[Request, Reply], Awaitable[None]]
"""Answers a request; what it raises becomes the answer."""


class Handlers:
    """Those who answer, for each kind of handling but the relays.

    Args:
        store: where signatures are kept.
        metrics: the proxy's own.
        drain: whether the proxy is about to stop.
        attestor: returns what makes reports; None before the app has started, when nobody may ask for one.
    """

    def __init__(
        self,
        *,
        store: Store,
        metrics: Metrics,
        drain: Drain,
        attestor: Callable[[], Attestor | None],
    ) -> None:
        self._store: Final = store
        self._metrics: Final = metrics
        self._drain: Final = drain
        self._attestor: Final = attestor
        self.table: Final[Mapping[Handling, Handler]] = {
            Handling.HELLO: self._hello,
            Handling.VERSION: self._version,
            Handling.METRICS: self._show_metrics,
            Handling.HEALTH: self._health,
            Handling.READINESS: self._readiness,
            Handling.SIGNATURE: self._signature,
            Handling.ATTESTATION: self._attestation,
        }

    async def _hello(self, _: Request, reply: Reply) -> None:
        await reply.json({})

    async def _version(self, _: Request, reply: Reply) -> None:
        await reply.json({"version": __version__, "type": "proxy"})

    async def _show_metrics(self, _: Request, reply: Reply) -> None:
        await reply.whole(200, [(b"content-type", METRICS_CONTENT_TYPE)], self._metrics.render())

    async def _health(self, _: Request, reply: Reply) -> None:
        await reply.json({"status": "alive"})

    async def _readiness(self, _: Request, reply: Reply) -> None:
        if not self._drain.is_ready:
            raise shutting_down()
        await reply.json({"status": "ready"})

    async def _signature(self, request: Request, reply: Reply) -> None:
        algorithm = signing_algorithm(request.parameters())
        chat = await self._store.get(decode_path_segment(request.raw_path.rpartition(b"/")[2]))
        self._metrics.lookups.labels("hit" if chat is not None else "miss").inc()
        if chat is None:
            raise not_found("Chat id not found or expired")
        await reply.json(chat.answer(algorithm))

    async def _attestation(self, request: Request, reply: Reply) -> None:
        reports = self._attestor()
        assert reports is not None
        parameters = request.parameters()
        algorithm = signing_algorithm(parameters)
        nonce = nonce_parameter(parameters)
        bind_certificate = flag_parameter(parameters, "include_tls_fingerprint")
        if bind_certificate and not reports.can_bind_certificate:
            raise bad_request("include_tls_fingerprint needs TLS_CERT_PATH, which this server does not have")
        address = parameters.get("signing_address")
        if address is not None and not reports.identity(algorithm).matches(address):
            raise not_found("Signing address not found on this server")
        request.leave_body()  # there is none; and only behind its end can a server say that the client has gone
        report = b""

        async def collect() -> None:
            nonlocal report
            report = await reports.report(
                algorithm, nonce, bind_certificate=bind_certificate, request_id=request.request_id.decode()
            )

        # Who has left does not keep a place at the GPU.
        await run_while_connected(request.wait_for_disconnect, collect)
        await reply.whole(200, [(b"content-type", b"application/json")], report)
