"""The proxy's own Prometheus metrics.

Theory of operation. What is counted for every request is kept in plain numbers, one `EndpointMetrics` for each row of
the endpoint table, and becomes Prometheus' samples when somebody asks: that is once in some seconds, and requests are
many. What happens rarely is counted by Prometheus' own client. Labels come from the endpoint table and from status
codes, never from what a client sent, so that nothing leaks and nothing grows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["METRICS_CONTENT_TYPE", "EndpointMetrics", "Metrics"]

METRICS_CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
"""The content type of what `Metrics.render` returns."""

_DURATIONS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_BUCKETS: Final = (*map(str, _DURATIONS), "+Inf")


class Metrics:
    """All metrics of one proxy, in a registry of their own.

    Args:
        open_streams: returns how many responses are being relayed.
        cache_entries: returns how many signed chats are kept, or None where that is not known (a shared store).
    """

    def __init__(self, *, open_streams: Callable[[], int], cache_entries: Callable[[], int] | None) -> None:
        self._registry: Final = CollectorRegistry()
        counter, gauge = self._counter, self._gauge
        self.lookups: Final = counter("signature_lookups", "Signatures asked for.", "result")
        self.client_stalls: Final = counter("client_stalls", "Clients that stopped for too long.", "part")
        self.backend_errors: Final = counter("backend_errors", "Requests without a usable response.", "kind")
        self.attestation_failures: Final = counter("attestation_failures", "Collections of evidence that failed.")
        self.dropped_log_lines: Final = counter("dropped_log_lines", "Log lines that nobody read in time.")
        gauge("open_streams", "Responses being relayed, streamed or not.").set_function(open_streams)
        if cache_entries is not None:
            gauge("signature_cache_entries", "Signed chats kept.").set_function(cache_entries)
        self._endpoints: Final[list[EndpointMetrics]] = []
        self._registry.register(_EndpointCollector(self._endpoints))

    def endpoint(self, label: str) -> EndpointMetrics:
        """Return the metrics of one more endpoint, which are shown with the others under this label."""
        metrics = EndpointMetrics(label)
        self._endpoints.append(metrics)
        return metrics

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, namespace="teesign", registry=self._registry)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(name, help_text, namespace="teesign", registry=self._registry)


class EndpointMetrics:
    """What is counted of the requests to one endpoint.

    Args:
        label: what the endpoint is called.

    Attributes:
        label: the same.
        requests: how many were answered with each status; 0 stands for none.
        durations: how many took so long, for each bucket.
        seconds: how long all of them took together.
        received: bytes of their bodies.
        sent: bytes of their responses' bodies.
        signed: how many of their responses were signed.
        disconnects: how many clients left before their last byte.
    """

    __slots__ = ("disconnects", "durations", "label", "received", "requests", "seconds", "sent", "signed")

    def __init__(self, label: str) -> None:
        self.label: Final = label
        self.requests: Final[Tally[int]] = Tally()
        self.durations: Final = [0] * len(_BUCKETS)
        self.seconds = 0.0
        self.received = self.sent = self.signed = self.disconnects = 0

    def note(self, *, status: int, duration: float, received: int, sent: int, signed: bool, client_gone: bool) -> None:
        """Count a request that is over.

        Args:
            status: of the response; 0 if there was none.
            duration: in seconds.
            received: bytes of the request's body.
            sent: bytes of the response's body.
            signed: whether the response was signed.
            client_gone: whether the client left before its last byte.
        """
        self.requests[status] += 1
        self.durations[bisect_left(_DURATIONS, duration)] += 1
        self.seconds += duration
        self.received += received
        self.sent += sent
        self.signed += signed
        self.disconnects += client_gone


class _EndpointCollector(Collector):
    """Shows what was counted for the endpoints."""

    def __init__(self, endpoints: Iterable[EndpointMetrics]) -> None:
        self._endpoints: Final = endpoints

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics that are kept for each endpoint."""
        requests = CounterMetricFamily("teesign_requests", "Requests answered.", labels=("endpoint", "status"))
        durations = HistogramMetricFamily(
            "teesign_request_duration_seconds", "Time from request to last byte.", labels=("endpoint",)
        )
        received = _by_endpoint("request_bytes", "Bytes of request bodies received.")
        sent = _by_endpoint("response_bytes", "Bytes of response bodies sent.")
        signed = _by_endpoint("signatures", "Responses signed.")
        disconnects = _by_endpoint("client_disconnects", "Clients gone before the last byte.")
        for endpoint in self._endpoints:
            label = (endpoint.label,)
            for status, count in endpoint.requests.items():
                requests.add_metric((endpoint.label, str(status)), count)
            durations.add_metric(
                label, list(zip(_BUCKETS, accumulate(endpoint.durations), strict=True)), endpoint.seconds
            )
            received.add_metric(label, endpoint.received)
            sent.add_metric(label, endpoint.sent)
            signed.add_metric(label, endpoint.signed)
            disconnects.add_metric(label, endpoint.disconnects)
        yield from (requests, durations, received, sent, signed, disconnects)


def _by_endpoint(name: str, help_text: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"teesign_{name}", help_text, labels=("endpoint",))
