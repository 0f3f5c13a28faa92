"""The endpoint table as one app serves it: each row with what the settings say about it, looked up once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

import httpcore

from .handlers import Handler
from .metrics import EndpointMetrics, Metrics
from .observe import loggable_url
from .routes import CATCH_ALL, ENDPOINTS, Endpoint, Handling, body_limit
from .settings import Settings

__all__ = ["Served", "served_endpoints"]


@dataclass(frozen=True, slots=True)
class Served:
    """A row of the endpoint table, and what the settings say about it.

    Attributes:
        endpoint: the row.
        label: what it is called in metrics and logs.
        auth: whether a bearer token is needed.
        limit: how many bytes a request's body may have.
        url: where the backend has it; None where the request's own path decides.
        backend: that URL in logs; the base's where the request's own path decides.
        handler: who answers; None for the relay.
        metrics: the endpoint's.
    """

    endpoint: Endpoint
    label: str
    _: KW_ONLY
    auth: bool
    limit: int
    url: httpcore.URL | None
    backend: str
    handler: Handler | None
    metrics: EndpointMetrics


def served_endpoints(settings: Settings, handlers: Mapping[Handling, Handler], metrics: Metrics) -> dict[str, Served]:
    """Return all rows by their paths, the catch-all's among them.

    Args:
        settings: what the operator chose.
        handlers: who answers what is not relayed.
        metrics: the proxy's own; each row gets its part of them.
    """
    return {endpoint.path: _served(endpoint, settings, handlers, metrics) for endpoint in (*ENDPOINTS, CATCH_ALL)}


def _served(endpoint: Endpoint, settings: Settings, handlers: Mapping[Handling, Handler], metrics: Metrics) -> Served:
    url = None if endpoint.handling is Handling.RELAY_ANYTHING else _backend_url(endpoint, settings)
    public = endpoint.handling is Handling.ATTESTATION and settings.public_attestation
    return Served(
        endpoint,
        endpoint.label,
        auth=endpoint.auth and not public,
        limit=body_limit(endpoint, settings),
        url=url,
        backend=loggable_url(url or httpcore.URL(settings.backend_url)),
        handler=handlers.get(endpoint.handling),
        metrics=metrics.endpoint(endpoint.label),
    )


def _backend_url(endpoint: Endpoint, settings: Settings) -> httpcore.URL:
    whole: str | None = getattr(settings, endpoint.backend_url) if endpoint.backend_url else None
    return httpcore.URL(whole or settings.backend_url + (endpoint.backend_path or endpoint.path))
