"""The endpoint table. Adding an endpoint is adding a row."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import unquote

from teesign import is_target

from .errors import bad_request, method_not_allowed, not_found
from .settings import Settings

__all__ = [
    "CATCH_ALL",
    "ENDPOINTS",
    "Endpoint",
    "Handling",
    "check_backend_path",
    "check_method",
    "check_target",
    "find_endpoint",
]

BodyLimit = Literal["request", "image", "audio"]


class Handling(enum.Enum):
    """Who answers a request."""

    HELLO = enum.auto()
    VERSION = enum.auto()
    METRICS = enum.auto()
    HEALTH = enum.auto()
    """Without the keys: a server that cannot have them is alive too."""
    READINESS = enum.auto()
    SIGNATURE = enum.auto()
    ATTESTATION = enum.auto()
    RELAY_BODILESS = enum.auto()
    """The backend; a body is neither waited for nor passed on."""
    RELAY_JSON = enum.auto()
    """The backend; the body is read whole, and must be a JSON object."""
    RELAY_STREAM = enum.auto()
    """The backend; the body is streamed through."""
    RELAY_ANYTHING = enum.auto()
    """The backend, as RELAY_STREAM; and all end-to-end headers pass both ways."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of the table.

    Attributes:
        method: the one that is served; "" for any.
        path: the path; one that ends in a slash stands for any single segment after it.
        handling: who answers.
        auth: whether a bearer token is needed.
        rate_limited: whether requests count for the rate limit.
        backend_path: the path at the backend; "" for the same.
        backend_url: the field of `Settings` that may hold a whole URL for it instead.
        signed: whether 2xx responses are signed.
        id_prefix: what an inserted id starts with.
        limit: which of the body limits holds.
    """

    method: str
    path: str
    handling: Handling
    auth: bool = True
    rate_limited: bool = True
    backend_path: str = ""
    backend_url: str = ""
    signed: bool = False
    id_prefix: str = ""
    limit: BodyLimit = "request"

    @property
    def label(self) -> str:
        """What it is called in metrics and logs."""
        return self.path if self.handling is not Handling.SIGNATURE else f"{self.path}{{chat_id}}"


def _open(path: str, handling: Handling, *, rate_limited: bool = True, backend_path: str = "") -> Endpoint:
    return Endpoint("GET", path, handling, auth=False, rate_limited=rate_limited, backend_path=backend_path)


def _signed(path: str, id_prefix: str, *, backend_url: str = "", limit: BodyLimit = "request") -> Endpoint:
    return Endpoint(
        "POST",
        path,
        Handling.RELAY_JSON,
        backend_url=backend_url,
        signed=True,
        id_prefix=id_prefix,
        limit=limit,
    )


def _multipart(path: str, id_prefix: str, backend_url: str, limit: BodyLimit) -> Endpoint:
    return Endpoint(
        "POST",
        path,
        Handling.RELAY_STREAM,
        backend_url=backend_url,
        signed=True,
        id_prefix=id_prefix,
        limit=limit,
    )


ENDPOINTS: Final = (
    _open("/", Handling.HELLO, rate_limited=False),
    _open("/version", Handling.VERSION, rate_limited=False),
    _open("/metrics", Handling.METRICS, rate_limited=False),
    _open("/healthz", Handling.HEALTH, rate_limited=False),
    _open("/readyz", Handling.READINESS, rate_limited=False),
    _open("/v1/metrics", Handling.RELAY_BODILESS, backend_path="/metrics"),
    _open("/v1/models", Handling.RELAY_BODILESS),
    _signed("/v1/chat/completions", "chatcmpl"),
    _signed("/v1/completions", "cmpl"),
    _signed("/v1/embeddings", "emb"),
    Endpoint("POST", "/v1/tokenize", Handling.RELAY_JSON, backend_path="/tokenize"),
    _signed("/v1/rerank", "rerank", backend_url="rerank_url"),
    _signed("/v1/score", "score", backend_url="score_url"),
    _signed("/v1/images/generations", "img", backend_url="images_url", limit="image"),
    _multipart("/v1/images/edits", "img", "images_edits_url", "image"),
    _multipart("/v1/audio/transcriptions", "trans", "transcriptions_url", "audio"),
    Endpoint("GET", "/v1/signature/", Handling.SIGNATURE),
    Endpoint("GET", "/v1/attestation/report", Handling.ATTESTATION),
)
"""The table of README.md, "Endpoints", but for its last row."""

CATCH_ALL: Final = Endpoint("", "catch-all", Handling.RELAY_ANYTHING, signed=True, id_prefix="pt", limit="audio")
"""That last row: any other path."""

_BY_PATH: Final[Mapping[str, Endpoint]] = {endpoint.path: endpoint for endpoint in ENDPOINTS}
_SIGNATURES: Final = _BY_PATH["/v1/signature/"]

_COMMON: Final = "/docs /redoc /openapi.json /shutdown"
_VLLM: Final = """
    /sleep /wake_up /is_sleeping /pause /resume /is_paused /abort_requests /collective_rpc /server_info
    /reset_prefix_cache /reset_mm_cache /reset_encoder_cache /start_profile /stop_profile
    /scale_elastic_ep /is_scaling_elastic_ep /fault_tolerance/ /v1/load_lora_adapter /v1/unload_lora_adapter
    /init_weight_transfer_engine /start_weight_update /start_draft_weight_update /update_weights /finish_weight_update
    /update_weight_version /weight_info /weight_checker /get_world_size /adapters/
"""
_SGLANG: Final = """
    /flush_cache /clear_hicache_storage_backend /hicache/storage-backend/ /abort_request
    /pause_generation /continue_generation /slow_down /freeze_gc
    /update_weights_from_disk /update_weights_from_tensor /update_weights_from_distributed /update_weights_from_ipc
    /init_weights_update_group /destroy_weights_update_group /get_weights_by_name
    /init_weights_send_group_for_remote_instance /send_weights_to_remote_instance
    /release_memory_occupation /resume_memory_occupation
    /get_internal_state /set_internal_state /get_server_info
    /configure_logging /set_trace_level /start_trace /stop_trace
    /start_expert_distribution_record /stop_expert_distribution_record /dump_expert_distribution_record /dumper/
    /load_lora_adapter /load_lora_adapter_from_tensors /unload_lora_adapter
    /add_external_corpus /remove_external_corpus /list_external_corpora
    /weights_checker /remote_instance_transfer_engine_info /get_remote_instance_transfer_engine_info
    /add_worker /remove_worker /list_workers /workers/
"""
_LLAMA_CPP: Final = "/slots/ /models/load /models/unload /cors-proxy /tools /v1/streams"
ADMINISTRATIVE_PATHS: Final = frozenset(f"{_COMMON} {_VLLM} {_SGLANG} {_LLAMA_CPP}".split())
"""What engines offer to their operators; a client's token is not the operator's.

One that ends in a slash stands for the path without it, too, and for everything below. Sglang's sessions are not among
them: clients open them for their own requests.
"""

READABLE_PATHS: Final = frozenset(("/props", "/models", "/lora-adapters"))
"""Where llama.cpp tells clients about its model, and takes changes of it for all of them."""

_BELOW: Final = tuple(path for path in ADMINISTRATIVE_PATHS if path.endswith("/"))
_SAFE_METHODS: Final = frozenset(("GET", "HEAD", "OPTIONS"))  # RFC 9110 section 9.2.1

_MAX_DECODINGS: Final = 5
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def find_endpoint(path: str, raw_path: bytes) -> Endpoint:
    """Return the row for a request; the catch-all where no path of the table fits.

    Args:
        path: its path, decoded.
        raw_path: its path as it came: an encoded slash does not separate segments.
    """
    endpoint = _BY_PATH.get(path) if path.count("/") == raw_path.count(b"/") else None
    if endpoint is None or endpoint is _SIGNATURES:
        directory = raw_path[: raw_path.rfind(b"/") + 1].decode("latin-1")
        return _SIGNATURES if unquote(directory) == _SIGNATURES.path else CATCH_ALL
    return endpoint


def check_method(endpoint: Endpoint, method: str) -> None:
    """Refuse a method that an endpoint does not serve.

    Args:
        endpoint: the row for the request.
        method: the request's method.

    Raises:
        HttpError: 405 for another method on a path of the table; 400 for CONNECT on any other, since a backend that
            agrees would open a tunnel (RFC 9110 section 9.3.6) where a response is expected.
    """
    if endpoint.method == method:
        return
    if endpoint.method:
        raise method_not_allowed(endpoint.method)
    if method == "CONNECT":
        raise bad_request("CONNECT asks for a tunnel, and there are none here")


def body_limit(endpoint: Endpoint, settings: Settings) -> int:
    """Return how many bytes a request's body may have."""
    return {
        "request": settings.max_request_bytes,
        "image": settings.max_image_request_bytes,
        "audio": settings.max_audio_request_bytes,
    }[endpoint.limit]


def check_target(target: bytes) -> None:
    """Refuse a target that could not be signed for what it is, or has a fragment: some servers let such through.

    A backend that takes what follows a `#` for a fragment sees another path than the one checked here.

    Args:
        target: `path` or `path?query` as it came.

    Raises:
        HttpError: 400.
    """
    if not is_target(target) or b"#" in target:
        raise bad_request("The request target must be a path and query, percent-encoded")


def check_backend_path(method: str, raw_path: bytes, *, allow_administrative: bool) -> None:
    """Refuse a catch-all path that could mean something else to the backend than it does here.

    Args:
        method: the request's method: some administrative paths may be read.
        raw_path: the path as it came, percent-encoded.
        allow_administrative: whether administrative paths of the engines may pass.

    Raises:
        HttpError: 400 for an unsafe path, 404 for an administrative one.
    """
    text = raw_path.decode("latin-1")
    if not text.startswith("/"):
        raise bad_request("The request target must be a path")
    for _ in range(_MAX_DECODINGS):
        _check_segments(text)
        decoded = unquote(text, encoding="latin-1")
        if decoded == text:
            break
        if decoded.count("/") != text.count("/"):
            raise bad_request("The path holds an encoded slash")
        text = decoded
    _check_segments(text)
    if not allow_administrative and _is_administrative(method, _canonical(text)):
        raise not_found("Not found")


def _is_administrative(method: str, path: str) -> bool:
    if path in READABLE_PATHS:
        return method not in _SAFE_METHODS
    return path in ADMINISTRATIVE_PATHS or f"{path}/".startswith(_BELOW)


def _check_segments(text: str) -> None:
    if "\\" in text:
        raise bad_request("The path holds a backslash")
    # Starlette takes a path with a line end behind it for the one without; nobody has a use for the others either.
    if _CONTROL.search(text):
        raise bad_request("The path holds a control character")
    # What follows a semicolon in a segment is a parameter (RFC 3986 section 3.3), which some servers cut off.
    if any(segment.partition(";")[0] == ".." for segment in text.split("/")):
        raise bad_request("The path holds a '..' segment")


def _canonical(text: str) -> str:
    """Return the path as the most lenient backend could read it: without case, parameters and empty segments."""
    segments = (segment.partition(";")[0] for segment in text.casefold().split("/"))
    return "/" + "/".join(segment for segment in segments if segment not in ("", "."))
