"""The endpoint table, row by row, and the paths that the catch-all does not relay."""

from __future__ import annotations

from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teesign_asgi import Settings
from teesign_asgi.errors import HttpError
from teesign_asgi.routes import (
    CATCH_ALL,
    ENDPOINTS,
    Endpoint,
    body_limit,
    check_backend_path,
    check_method,
    find_endpoint,
)

# The contract's table: method, path, auth, path at the backend (None where there is none), signed, id prefix, limit.
Row = tuple[str, str, bool, str | None, bool, str, str]
CONTRACT: list[Row] = [
    ("GET", "/", False, None, False, "", ""),
    ("GET", "/version", False, None, False, "", ""),
    ("GET", "/metrics", False, None, False, "", ""),
    ("GET", "/healthz", False, None, False, "", ""),
    ("GET", "/readyz", False, None, False, "", ""),
    ("GET", "/v1/metrics", False, "/metrics", False, "", ""),
    ("GET", "/v1/models", False, "/v1/models", False, "", ""),
    ("POST", "/v1/chat/completions", True, "/v1/chat/completions", True, "chatcmpl", "request"),
    ("POST", "/v1/completions", True, "/v1/completions", True, "cmpl", "request"),
    ("POST", "/v1/embeddings", True, "/v1/embeddings", True, "emb", "request"),
    ("POST", "/v1/tokenize", True, "/tokenize", False, "", "request"),
    ("POST", "/v1/rerank", True, "/v1/rerank", True, "rerank", "request"),
    ("POST", "/v1/score", True, "/v1/score", True, "score", "request"),
    ("POST", "/v1/images/generations", True, "/v1/images/generations", True, "img", "image"),
    ("POST", "/v1/images/edits", True, "/v1/images/edits", True, "img", "image"),
    ("POST", "/v1/audio/transcriptions", True, "/v1/audio/transcriptions", True, "trans", "audio"),
    ("GET", "/v1/signature/some-id", True, None, False, "", ""),
    ("GET", "/v1/attestation/report", True, None, False, "", ""),
    ("PROPFIND", "/any/other/path", True, "/any/other/path", True, "pt", "audio"),
]

ADMINISTRATIVE = """
    /sleep /wake_up /is_sleeping /collective_rpc /reset_prefix_cache /reset_mm_cache /start_profile /stop_profile
    /server_info /scale_elastic_ep /v1/load_lora_adapter /v1/unload_lora_adapter /update_weights /pause /resume
    /flush_cache /abort_request /update_weights_from_disk /update_weights_from_tensor /update_weights_from_distributed
    /init_weights_update_group /release_memory_occupation /resume_memory_occupation /get_weights_by_name
    /get_internal_state /set_internal_state /start_expert_distribution_record /load_lora_adapter /unload_lora_adapter
    /docs /redoc /openapi.json /shutdown
    /abort_requests /is_paused /is_scaling_elastic_ep /reset_encoder_cache /init_weight_transfer_engine
    /start_weight_update /start_draft_weight_update /finish_weight_update /update_weight_version /weight_info
    /weight_checker /get_world_size /fault_tolerance/apply /fault_tolerance/status
    /pause_generation /continue_generation /update_weights_from_ipc /destroy_weights_update_group
    /init_weights_send_group_for_remote_instance /send_weights_to_remote_instance /load_lora_adapter_from_tensors
    /configure_logging /set_trace_level /start_trace /stop_trace /slow_down /freeze_gc /get_server_info
    /stop_expert_distribution_record /dump_expert_distribution_record /clear_hicache_storage_backend
    /hicache/storage-backend /hicache/storage-backend/clear /dumper/configure
    /add_external_corpus /remove_external_corpus /list_external_corpora
    /slots /slots/0 /models/load /models/unload /cors-proxy /tools /v1/streams
"""


def find(method: str, raw_path: str) -> Endpoint:
    """Return the row for a request, as a server would describe it, if the row serves its method."""
    endpoint = find_endpoint(unquote_to_bytes(raw_path).decode(errors="replace"), raw_path.encode())
    check_method(endpoint, method)
    return endpoint


@pytest.mark.parametrize("row", CONTRACT, ids=lambda row: row[1])
def test_each_row_is_that_of_the_contract(row: Row) -> None:
    """Who may ask, where it goes, whether it is signed, under which prefix, and how large it may be."""
    method, path, auth, backend_path, signed, id_prefix, limit = row
    endpoint = find(method, path)
    assert (endpoint.auth, endpoint.signed, endpoint.id_prefix) == (auth, signed, id_prefix)
    assert endpoint.handling.name.startswith("RELAY_") is (backend_path is not None)
    if endpoint is not CATCH_ALL and backend_path is not None:
        assert (endpoint.backend_path or endpoint.path) == backend_path
    if limit:
        assert endpoint.limit == limit


def test_the_table_above_is_complete() -> None:
    """Every row of the endpoint table is in it."""
    assert {find(row[0], row[1]) for row in CONTRACT} == {*ENDPOINTS, CATCH_ALL}


def test_the_rate_limit_leaves_out_what_monitoring_asks_for() -> None:
    """Five paths that cost next to nothing."""
    unlimited = {endpoint.path for endpoint in ENDPOINTS if not endpoint.rate_limited}
    assert unlimited == {"/", "/version", "/metrics", "/healthz", "/readyz"}
    assert CATCH_ALL.rate_limited


@pytest.mark.parametrize(("method", "path"), [(row[0], row[1]) for row in CONTRACT[:-1]])
def test_another_method_is_refused(method: str, path: str) -> None:
    """With the one that is served."""
    for other in {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "get"} - {method}:
        with pytest.raises(HttpError) as caught:
            find(other, path)
        assert (caught.value.status, caught.value.type) == (405, "method_not_allowed")
        assert caught.value.headers == ((b"allow", method.encode()),)


def test_no_tunnel_is_asked_for() -> None:
    """CONNECT never reaches the backend, whatever the path."""
    with pytest.raises(HttpError) as caught:
        find("CONNECT", "/v1/other")
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/v1/signature/a%2Fb", "/v1/signature/{chat_id}"),
        ("/v1/signature/", "/v1/signature/{chat_id}"),
        ("/v1/sign%61ture/a", "/v1/signature/{chat_id}"),
        ("/v1/signature/a/b", "catch-all"),
        ("/v1/signature", "catch-all"),
        ("/v1/signature%2Fa", "catch-all"),
        ("/v1%2Fmodels", "catch-all"),
        ("/v1/models/", "catch-all"),
        ("/v1/models/some", "catch-all"),
        ("/V1/models", "catch-all"),
        ("//v1/models", "catch-all"),
        ("/v1/model%73", "/v1/models"),
    ],
)
def test_paths_are_compared_exactly_after_decoding(path: str, label: str) -> None:
    """An encoded slash does not separate segments; one in a chat id belongs to the id."""
    assert find("GET", path).label == label


def test_the_limits_are_those_of_the_settings() -> None:
    """Three of them, and each row has one."""
    settings = Settings(
        model_name="m", tokens=("t",), max_request_bytes=1, max_image_request_bytes=2, max_audio_request_bytes=3
    )
    limits = {(row[6], body_limit(find(row[0], row[1]), settings)) for row in CONTRACT if row[6]}
    assert limits == {("request", 1), ("image", 2), ("audio", 3)}


@pytest.mark.parametrize("endpoint", [endpoint for endpoint in ENDPOINTS if endpoint.backend_url], ids=lambda e: e.path)
def test_overrides_are_fields_of_the_settings(endpoint: Endpoint) -> None:
    """A row that may have a whole URL of its own names the setting that holds it."""
    assert getattr(Settings(model_name="m", tokens=("t",)), endpoint.backend_url) is None


def refusal(path: str | bytes, method: str = "POST", *, allow_administrative: bool = False) -> HttpError | None:
    """Return how the catch-all refuses a path, or None if it does not."""
    raw_path = path.encode("latin-1") if isinstance(path, str) else path
    try:
        check_backend_path(method, raw_path, allow_administrative=allow_administrative)
    except HttpError as error:
        return error
    return None


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/anything",
        "/a/./b",
        "/a//b",
        "/...",
        "/..a/b..",
        "/a%20b/%C3%A9",
        "/%FF",
        "/100%",
        "/%zz",
        "/a;b=c",
        "/a%3Fb%23c",
        "/sleeping",
        "/slots-of-time",
        "/hicache",
        "/v1/stream/own",
        "/open_session",
        "/v1/docs",
        "/a/sleep",
        "/%25252525252e%25252525252e",  # encoded more often than any server decodes
    ],
)
def test_safe_paths_pass(path: str) -> None:
    """Odd ones as well, as long as nobody can take them for another."""
    assert refusal(path) is None


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("", "must be a path"),
        ("*", "must be a path"),
        ("http://host/path", "must be a path"),
        ("/..", "'..' segment"),
        ("/a/../b", "'..' segment"),
        ("/a/..", "'..' segment"),
        ("/%2e%2E/b", "'..' segment"),
        ("/.%2e/b", "'..' segment"),
        ("/..;a=b/c", "'..' segment"),
        ("/..%3Ba", "'..' segment"),
        ("/a%2Fb", "encoded slash"),
        ("/a%252fb", "encoded slash"),
        ("/..%2fb", "encoded slash"),
        ("/%2e%2e%2fb", "encoded slash"),
        ("/a\\b", "backslash"),
        ("/a%5Cb", "backslash"),
        ("/a%255cb", "backslash"),
        ("/a\0b", "control character"),
        ("/a%00b", "control character"),
        ("/a%252500", "control character"),
    ],
)
def test_unsafe_paths_are_refused(path: str, complaint: str) -> None:
    """With 400, also where administrative paths may pass."""
    for allow in (False, True):
        error = refusal(path, allow_administrative=allow)
        assert error is not None
        assert (error.status, error.type) == (400, "bad_request")
        assert complaint in error.message


def encoded(text: str, times: int) -> str:
    """Percent-encode every character of a text so many times."""
    for _ in range(times):
        text = "".join(f"%{ord(char):02x}" for char in text) if "%" not in text else quote(text, safe="")
    return text


SEGMENTS = st.lists(st.text("ab.;~é", max_size=4).map(lambda text: quote(text, safe=";")), max_size=3)


@given(SEGMENTS, SEGMENTS, st.integers(0, 5), st.integers(0, 5))
def test_a_dot_dot_segment_is_refused_however_often_it_is_encoded(
    before: list[str], after: list[str], first: int, second: int
) -> None:
    """For any path with one, each dot encoded up to five times."""
    path = "/" + "/".join([*before, encoded(".", first) + encoded(".", second), *after])
    error = refusal(path, allow_administrative=True)
    assert error is not None
    assert error.status == 400


@given(st.text("abc%2fF5ce.", max_size=12), st.sampled_from("/\\\0"), st.integers(1, 5), st.text("abc", max_size=3))
def test_what_separates_segments_is_refused_however_often_it_is_encoded(
    before: str, char: str, times: int, after: str
) -> None:
    """For any path with an encoded slash, backslash or NUL."""
    error = refusal(f"/{before}/{encoded(char, times)}{after}")
    assert error is not None
    assert error.status == 400


@given(st.binary(max_size=30))
def test_a_path_passes_or_is_refused(path: bytes) -> None:
    """For any bytes: nothing else happens."""
    error = refusal(b"/" + path)
    assert error is None or error.status in {400, 404}


@pytest.mark.parametrize("path", ADMINISTRATIVE.split())
def test_administrative_paths_are_not_there(path: str) -> None:
    """However they are written; a client's token is not the operator's."""
    written = (path, path.upper(), path + "/", "/" + path, "/." + path, path + ";a=b", path.replace("e", "%65"))
    for spelling in (*written, "/" + encoded(path[1:].replace("/", "@"), 1).replace("%40", "/")):
        error = refusal(spelling)
        assert error is not None, spelling
        assert (error.status, error.type) == (404, "not_found")
        assert refusal(spelling, allow_administrative=True) is None


@pytest.mark.parametrize("path", ["/props", "/models", "/lora-adapters"])
def test_what_clients_may_read_only_operators_change(path: str) -> None:
    """llama.cpp says by GET what its clients need to know, and takes changes for all of them on the same path."""
    for method in ("GET", "HEAD", "OPTIONS"):
        assert refusal(path, method) is None
    for method in ("POST", "PUT", "DELETE", "PATCH", "post", "QUERY"):
        error = refusal(path.upper() + "/", method)
        assert error is not None, method
        assert (error.status, error.type) == (404, "not_found")
        assert refusal(path, method, allow_administrative=True) is None
