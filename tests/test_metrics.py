"""The proxy's own metrics: what they are called, and that they count what was."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Histogram
from prometheus_client.parser import text_string_to_metric_families

from teesign_asgi.metrics import _DURATIONS, Metrics

ENDPOINT = "/v1/models"


def new_metrics(entries: int | None = None) -> Metrics:
    """Return the metrics of a proxy with so many signed chats, or whose store does not say."""
    return Metrics(open_streams=lambda: 0, cache_entries=None if entries is None else lambda: entries)


def samples(metrics: Metrics) -> dict[tuple[str, str | None], float]:
    """Return what is shown for the endpoint, by name and by the label that is not the endpoint's."""
    return {
        (sample.name, sample.labels.get("le") or sample.labels.get("status")): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if sample.labels.get("endpoint") == ENDPOINT
    }


def test_metrics_are_in_a_registry_of_their_own() -> None:
    """Two proxies in one process do not count for each other."""
    one, other = new_metrics(3), new_metrics(None)
    one.endpoint(ENDPOINT).note(status=200, duration=0.1, received=1, sent=2, signed=True, client_gone=False)
    assert b'teesign_requests_total{endpoint="/v1/models",status="200"} 1.0' in one.render()
    assert b"/v1/models" not in other.render()


def test_the_number_of_entries_is_shown_where_it_is_known() -> None:
    """Only a store of its own can be counted."""
    assert b"teesign_signature_cache_entries 3.0" in new_metrics(3).render()
    assert b"cache_entries" not in new_metrics(None).render()


def test_requests_are_counted_by_what_came_of_them() -> None:
    """Each number under its name; a request that was not answered has the status 0."""
    metrics = new_metrics()
    endpoint = metrics.endpoint(ENDPOINT)
    endpoint.note(status=200, duration=0.1, received=1, sent=20, signed=True, client_gone=False)
    endpoint.note(status=200, duration=0.2, received=2, sent=30, signed=False, client_gone=True)
    endpoint.note(status=0, duration=0.4, received=3, sent=0, signed=False, client_gone=True)
    shown = samples(metrics)
    assert shown["teesign_requests_total", "200"] == 2
    assert shown["teesign_requests_total", "0"] == 1
    assert shown["teesign_request_bytes_total", None] == 6
    assert shown["teesign_response_bytes_total", None] == 50
    assert shown["teesign_signatures_total", None] == 1
    assert shown["teesign_client_disconnects_total", None] == 2


def test_an_endpoint_that_nobody_used_is_shown_too() -> None:
    """With zeros, so that the first request is an increase."""
    metrics = new_metrics()
    metrics.endpoint(ENDPOINT)
    shown = samples(metrics)
    assert shown["teesign_signatures_total", None] == 0
    assert shown["teesign_request_duration_seconds_count", None] == 0


@given(st.lists(st.one_of(st.sampled_from(_DURATIONS), st.floats(0, 1000))))
def test_durations_are_shown_as_by_a_histogram_of_prometheus(durations: list[float]) -> None:
    """For any durations: the same buckets, the same sum, as the client's own histogram."""
    metrics, twin = new_metrics(), new_metrics()
    endpoint = metrics.endpoint(ENDPOINT)
    histogram = Histogram(
        "request_duration_seconds", "", ["endpoint"], namespace="teesign", registry=twin._registry, buckets=_DURATIONS
    ).labels(ENDPOINT)
    for duration in durations:
        endpoint.note(status=200, duration=duration, received=0, sent=0, signed=False, client_gone=False)
        histogram.observe(duration)
    shown = {key: value for key, value in samples(metrics).items() if key[0].startswith("teesign_request_duration")}
    expected = samples(twin)
    assert shown == {key: expected[key] for key in shown}
    assert len(shown) == len(_DURATIONS) + 3
