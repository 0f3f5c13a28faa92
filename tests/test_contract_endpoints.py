"""Who may ask for what, and what reaches the backend.

README.md, "Endpoints", has the table; docs/wire-contract.md, "Requests", "Errors" and "The catch-all", the rules.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from backend import Backend, Call, answer, event_stream, head, in_pieces, json_answer
from servers import SECOND_TOKEN, TOKEN, Kind, Stack, stack
from wire import FRAMINGS, Answer, Client, chunks_of, multipart, sha256

REQUEST_LIMIT, IMAGE_LIMIT, AUDIO_LIMIT = 2_000, 3_000, 4_000


@dataclass(frozen=True)
class Row:
    """One row of the contract's table of endpoints.

    Attributes:
        method: the method.
        path: a path that fits the row.
        backend_path: the path at the backend; "" if it is not asked.
        auth: whether a token is needed.
        prefix: of the id that is inserted; "" if answers are not signed.
        limit: of the body; 0 where there is none.
        multipart: whether it takes multipart bodies.
    """

    method: str
    path: str
    backend_path: str = ""
    auth: bool = True
    prefix: str = ""
    limit: int = 0
    multipart: bool = False

    def body(self) -> bytes | None:
        """Return a good body."""
        if self.method == "GET":
            return None
        return multipart(b"content")[0] if self.multipart else b'{"input": "x"}'

    def content_type(self) -> tuple[str, str]:
        """Return the header that goes with it."""
        return multipart(b"")[1] if self.multipart else ("Content-Type", "application/json")

    def ask(self, client: Client, query: str = "", body: bytes | None = None, pieces: int = 0) -> Answer:
        """Send a good request, or one with another body."""
        sent = body if body is not None else self.body()
        headers = [self.content_type()] if sent is not None else []
        return client.request(self.method, self.path + query, sent, headers, pieces=pieces)


def _post(
    path: str, prefix: str, limit: int = REQUEST_LIMIT, backend_path: str = "", *, multipart: bool = False
) -> Row:
    return Row("POST", path, backend_path or path, prefix=prefix, limit=limit, multipart=multipart)


LOCAL = [
    Row("GET", "/", auth=False),
    Row("GET", "/version", auth=False),
    Row("GET", "/metrics", auth=False),
    Row("GET", "/healthz", auth=False),
    Row("GET", "/readyz", auth=False),
    Row("GET", "/v1/signature/an-id"),
    Row("GET", "/v1/attestation/report"),
]
UNLIMITED = ("/", "/version", "/metrics", "/healthz", "/readyz")
RELAYED = [
    Row("GET", "/v1/metrics", "/metrics", auth=False),
    Row("GET", "/v1/models", "/v1/models", auth=False),
    _post("/v1/chat/completions", "chatcmpl"),
    _post("/v1/completions", "cmpl"),
    _post("/v1/embeddings", "emb"),
    _post("/v1/tokenize", "", backend_path="/tokenize"),
    _post("/v1/rerank", "rerank"),
    _post("/v1/score", "score"),
    _post("/v1/images/generations", "img", IMAGE_LIMIT),
    _post("/v1/images/edits", "img", IMAGE_LIMIT, multipart=True),
    _post("/v1/audio/transcriptions", "trans", AUDIO_LIMIT, multipart=True),
    _post("/anything/else", "pt", AUDIO_LIMIT, multipart=True),
    Row("GET", "/v1/responses/r-1", "/v1/responses/r-1", prefix="pt"),
]
TABLE = LOCAL + RELAYED
SIGNED = [row for row in RELAYED if row.prefix]
WITH_BODY = [row for row in RELAYED if row.limit]
CHAT = next(row for row in TABLE if row.path == "/v1/chat/completions")
KNOWN_PATHS = [row for row in TABLE if row.path not in ("/anything/else", "/v1/responses/r-1")]


def name_of(row: Row) -> str:
    """Return what a row is called in the report of a test run."""
    return f"{row.method} {row.path}"


def padded(size: int) -> bytes:
    """Return a JSON object of exactly this many bytes."""
    return b'{"p":"' + b"x" * (size - 8) + b'"}'


# --- the proxy's own answers


def test_the_root_says_hello(proxy: Stack) -> None:
    """An empty object tells a probe that the proxy is there."""
    answered = proxy.client.as_anyone().get("/")
    assert (answered.status, answered.body) == (200, b"{}")


def test_the_version_names_the_type(proxy: Stack) -> None:
    """The version endpoint says which version of what this is."""
    answered = proxy.client.as_anyone().get("/version").json()
    assert answered["type"] == "proxy"
    assert set(answered) == {"version", "type"}


def test_the_metrics_are_the_proxys_own(proxy: Stack) -> None:
    """Prometheus finds the proxy's metrics; the backend is not asked."""
    proxy.client.get("/version")  # one request at least has been counted then, whichever test comes first
    answered = proxy.client.as_anyone().get("/metrics")
    assert b"teesign_requests_total{" in answered.body
    assert (answered.header("content-type") or "").startswith("text/plain; version=0.0.4")
    assert proxy.backend.connections == 0


def test_probes_are_answered(server: Kind) -> None:
    """One asks whether the process is alive, the other whether clients should be sent to it."""
    with stack(server) as proxy:
        anyone = proxy.client.as_anyone()
        assert (anyone.get("/healthz").status, anyone.get("/readyz").status) == (200, 200)
        proxy.app.drain.begin()
        assert anyone.get("/healthz").status == 200
        anyone.get("/readyz").assert_error(503, "unavailable", "The server is shutting down")


@pytest.mark.parametrize("row", LOCAL, ids=name_of)
def test_local_endpoints_do_not_touch_the_backend(proxy: Stack, row: Row) -> None:
    """What the proxy knows itself it answers itself, unsigned."""
    answered = row.ask(proxy.client)
    assert proxy.backend.connections == 0
    assert answered.header("x-signature-id") is None


# --- what reaches the backend


@pytest.mark.parametrize("row", RELAYED, ids=name_of)
def test_the_backend_gets_path_query_and_body(proxy: Stack, row: Row) -> None:
    """Each row has its path at the backend; the query and the body arrive as they were sent."""
    query = "?b=%2F%20&a=1&&a=2&c="
    answered = row.ask(proxy.client, query)
    assert answered.status == 200
    call = proxy.backend.call
    assert (call.method, call.target.decode()) == (row.method, row.backend_path + query)
    assert call.body == (row.body() or b"")


@pytest.mark.parametrize(
    "path", ["/v1/some%20thing", "/%7Euser/a:b@c!$&'()*+,;=d", "//double//slash/", "/v1/caf%C3%A9"]
)
def test_the_path_reaches_the_backend_as_it_is_spelled(proxy: Stack, path: str) -> None:
    """Other paths cross byte for byte, not decoded and encoded again."""
    proxy.client.get(path)
    assert proxy.backend.call.target.decode() == path


OVERRIDES = {
    "/v1/rerank": "rerank_url",
    "/v1/score": "score_url",
    "/v1/images/generations": "images_url",
    "/v1/images/edits": "images_edits_url",
    "/v1/audio/transcriptions": "transcriptions_url",
}


@pytest.fixture(scope="module")
def overridden() -> Iterator[Stack]:
    """A proxy with another backend, and a path of its own there, for each endpoint that can have one."""
    with Backend() as other:
        urls: dict[str, Any] = {field: f"{other.url}/over/{field}/" for field in OVERRIDES.values()}
        with stack(**urls) as running:
            yield replace(running, backend=other)


@pytest.mark.parametrize("row", [row for row in RELAYED if row.path in OVERRIDES], ids=name_of)
def test_endpoints_can_have_another_backend(overridden: Stack, row: Row) -> None:
    """The whole URL is the operator's, with its last slash, and the client's query goes with it."""
    overridden.backend.play(json_answer(b"{}"))
    answered = row.ask(overridden.client, "?q=1")
    call = overridden.backend.call
    assert call.target.decode() == f"/over/{OVERRIDES[row.path]}/?q=1"
    assert call.header(b"host") == f"127.0.0.1:{overridden.backend.port}".encode()
    overridden.client.assert_answer_signed(answered, row.body() or b"")


# --- authentication


@pytest.mark.parametrize("row", TABLE, ids=name_of)
def test_authentication(proxy: Stack, row: Row) -> None:
    """Without a token, rows that need one are refused with a challenge, and the backend hears nothing of it."""
    answered = row.ask(proxy.client.as_anyone())
    if row.auth:
        answered.assert_error(401, "unauthorized", "Invalid or missing Authorization header")
        assert answered.header("www-authenticate") == "Bearer"
        assert proxy.backend.connections == 0
    else:
        assert answered.status == 200


@pytest.mark.parametrize(
    ("values", "accepted"),
    [
        ([f"Bearer {TOKEN}"], True),
        ([f"bearer {TOKEN}"], True),
        ([f"BEARER {TOKEN}"], True),
        ([f"bEaReR  {TOKEN}"], True),
        ([f"Bearer {SECOND_TOKEN}"], True),
        ([f"Bearer {TOKEN},{SECOND_TOKEN}"], False),
        ([f"Bearer {TOKEN}x"], False),
        ([f"Bearer {TOKEN[:-1]}"], False),
        ([f"Bearer {TOKEN.upper()}"], False),
        ([f"Bearer{TOKEN}"], False),
        ([f"Basic {TOKEN}"], False),
        ([TOKEN], False),
        (["Bearer"], False),
        (["Bearer "], False),
        ([""], False),
        ([b"Bearer g\xc3\xb6\xc3\xb6d-token"], False),
        ([b"Bearer \xff\xfe"], False),
        ([f"Bearer {TOKEN}", f"Bearer {TOKEN}"], False),
        ([f"Bearer {TOKEN}", "Bearer wrong"], False),
        (["Bearer wrong", f"Bearer {TOKEN}"], False),
    ],
)
def test_authorization_headers(proxy: Stack, values: list[str | bytes], *, accepted: bool) -> None:
    """One bearer token of those that are configured opens the door, whatever the scheme's case; nothing else does."""
    headers = [("Authorization", value) for value in values]
    answered = proxy.client.as_anyone().request("POST", "/v1/tokenize", b"{}", headers)
    assert answered.status == (200 if accepted else 401)


# --- signatures


@pytest.mark.parametrize("row", SIGNED, ids=name_of)
def test_an_id_is_inserted_and_signed(proxy: Stack, row: Row) -> None:
    """A JSON answer without an id gets one with the row's prefix, and both ids lead to valid signatures."""
    proxy.backend.play(json_answer(b' {"object": "thing", "n": 1.50}\n'))
    answered = row.ask(proxy.client)
    chat_id = answered.json()["id"]
    prefix, _, digits = chat_id.rpartition("-")
    assert (prefix, len(digits), len(bytes.fromhex(digits))) == (row.prefix, 24, 12)
    assert answered.body == b' {"id":"%b","object": "thing", "n": 1.50}\n' % chat_id.encode()
    proxy.client.assert_answer_signed(answered, row.body() or row.path.encode(), chat_id)


@pytest.mark.parametrize("row", SIGNED, ids=name_of)
def test_the_backends_id_is_kept(proxy: Stack, row: Row) -> None:
    """A JSON answer with an id is delivered byte for byte, and signed under it."""
    body = b'{ "choices": [ ], "id" : "%b" }' % f"{row.prefix}-{proxy.kind}-{row.method}{len(row.path)}".encode()
    proxy.backend.play(json_answer(body))
    answered = row.ask(proxy.client)
    assert answered.body == body
    proxy.client.assert_answer_signed(answered, row.body() or row.path.encode(), answered.json()["id"])


@pytest.mark.parametrize("row", [row for row in RELAYED if not row.prefix], ids=name_of)
def test_some_answers_are_not_signed(proxy: Stack, row: Row) -> None:
    """Rows that are not signed deliver the backend's bytes without any id."""
    proxy.backend.play(json_answer(b'{"count": 3}'))
    answered = row.ask(proxy.client)
    assert answered.body == b'{"count": 3}'
    assert answered.header("x-signature-id") is None


def test_a_request_without_a_body_is_signed_by_its_target(proxy: Stack) -> None:
    """Where there is no body, the raw target with its query stands for it."""
    target = "/v1/responses/r%2D1?include=a&include=b"
    answered = proxy.client.get(target)
    proxy.client.assert_answer_signed(answered, target.encode())


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "PUT", "PATCH", "POST", "PROPFIND"])
def test_the_catch_all_takes_any_method(proxy: Stack, method: str) -> None:
    """Methods reach the backend as they are; what comes back is signed, also when it has no body."""
    answered = proxy.client.request(method, "/v1/things")
    assert proxy.backend.call.method == method
    assert answered.status == 200
    assert answered.body == (b"" if method == "HEAD" else b'{"id":"an-id"}')
    assert answered.header("content-length") == "14"
    proxy.client.assert_answer_signed(answered, b"/v1/things")


# --- limits


@pytest.mark.parametrize("pieces", [0, 700], ids=["length", "chunked"])
@pytest.mark.parametrize("row", WITH_BODY, ids=name_of)
def test_a_body_of_the_limit_passes(proxy: Stack, row: Row, pieces: int) -> None:
    """A body of exactly the limit is relayed, however it is framed."""
    answered = row.ask(proxy.client, body=padded(row.limit), pieces=pieces)
    assert answered.status == 200
    assert proxy.backend.call.body == padded(row.limit)


@pytest.mark.parametrize("row", WITH_BODY, ids=name_of)
def test_a_declared_length_over_the_limit_is_refused_at_once(proxy: Stack, row: Row) -> None:
    """One byte too many in Content-Length is enough: the answer does not wait for the body."""
    headers = [row.content_type(), ("Content-Length", str(row.limit + 1))]
    with proxy.client.open(row.method, row.path, headers) as conversation:
        answered = conversation.answer()
    answered.assert_error(413, "payload_too_large", f"Request body too large. Maximum: {row.limit} bytes")
    assert proxy.backend.connections == 0


@pytest.mark.parametrize("row", WITH_BODY, ids=name_of)
def test_a_chunked_body_over_the_limit_is_refused(proxy: Stack, row: Row) -> None:
    """A body without a declared length is refused when it passes the limit; the backend never gets a whole request."""
    headers = [row.content_type(), ("Transfer-Encoding", "chunked")]
    body = chunks_of(padded(row.limit), 500).removesuffix(b"0\r\n\r\n")
    with proxy.client.open(row.method, row.path, headers, body) as conversation:
        conversation.send(b"1\r\nx\r\n")
        answered = conversation.answer()
    answered.assert_error(413, "payload_too_large", f"Request body too large. Maximum: {row.limit} bytes")
    for call in proxy.backend.calls:
        call.wait_until_gone()
        assert not call.whole.is_set()


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    ("path", "status"), [("/v1/chat/completions", 413), ("/v1/audio/transcriptions", 413), ("/whatever", 413)]
)
def test_who_sends_before_reading_learns_why_it_was_refused(
    proxy: Stack, server: Kind, path: str, status: int, *, kept: bool
) -> None:
    """A server that closes a connection with something unread in it resets it, and the answer with it.

    Without a good token that is so: of a body that nobody may send, none is read.
    """
    if server == "hypercorn-trio" or (server == "uvicorn" and not kept):
        pytest.skip("it closes the connection before anybody can take what is left")
    client = http.client.HTTPConnection("127.0.0.1", proxy.client.port, timeout=60)
    headers = {"Authorization": f"Bearer {TOKEN}", "Connection": "keep-alive" if kept else "close"}
    with contextlib.closing(client):
        client.request("POST", path, bytes(12_000_000), headers)
        assert client.getresponse().status == status


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("row", [row for row in RELAYED if not row.auth], ids=name_of)
def test_a_body_where_none_belongs_is_not_waited_for(proxy: Stack, row: Row, framing: str) -> None:
    """Without a token nobody holds a connection to the backend by a body that does not end; it gets none of it."""
    with proxy.client.as_anyone().open(row.method, row.path, [FRAMINGS[framing]], b"1\r\nx\r\n") as conversation:
        assert conversation.answer().status == 200
    # An upload that was cut off before may come late.
    (call,) = [call for call in proxy.backend.calls if call.method == row.method]
    assert call.body == b""
    assert not {b"content-length", b"transfer-encoding"} & call.header_names


# --- methods


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("row", KNOWN_PATHS, ids=name_of)
def test_other_methods_are_refused(proxy: Stack, row: Row, method: str) -> None:
    """A path of the table has one method; another gets 405 and is told which one there is."""
    if method == row.method:
        return
    answered = proxy.client.request(method, row.path)
    assert answered.status == 405
    assert answered.header("allow") == row.method
    if method != "HEAD":
        answered.assert_error(405, "method_not_allowed")
    assert proxy.backend.connections == 0


# --- the order of checks


@pytest.mark.parametrize(
    ("token", "size", "expected"),
    [(None, REQUEST_LIMIT + 1, 401), (TOKEN, REQUEST_LIMIT + 1, 413), (TOKEN, REQUEST_LIMIT, 400)],
)
def test_the_order_of_checks(proxy: Stack, token: str | None, size: int, expected: int) -> None:
    """Who is asking comes before how much, and that before what."""
    client = Client(proxy.client.port, token)
    assert client.post("/v1/chat/completions", b"!" * size).status == expected
    assert proxy.backend.connections == 0


def test_the_rate_limit_comes_first() -> None:
    """A client that asks too often is told so before its token is looked at; what probes ask for is left out."""
    with stack(rate_limit_per_second=1, rate_limit_burst=2) as proxy:
        anyone = proxy.client.as_anyone()
        for path in UNLIMITED * 3:
            assert anyone.get(path).status == 200
        assert [anyone.post("/v1/chat/completions", b"!" * 3_000).status for _ in range(2)] == [401, 401]
        for row in TABLE:
            answered = row.ask(anyone)
            if row.path in UNLIMITED:
                assert answered.status == 200
            else:
                answered.assert_error(429, "rate_limited")
                assert answered.header("retry-after") == "1"
        assert proxy.backend.connections == 0


# --- request ids


@pytest.mark.parametrize("good", ["a", "x" * 128, "Az09._:-", "00000000-0000-4000-8000-000000000000"])
def test_a_good_request_id_is_kept(proxy: Stack, good: str) -> None:
    """A client finds its request again by the id it chose."""
    answered = proxy.client.post("/v1/tokenize", b"{}", [("X-Request-ID", good)])
    assert answered.header("x-request-id") == good


@pytest.mark.parametrize("bad", [["x" * 129], ["a b"], ["a/b"], [""], ["a%20"], ["é"], ["a,b"], ["a", "b"], ["{}"]])
def test_a_bad_request_id_is_replaced(proxy: Stack, bad: list[str]) -> None:
    """What could forge a log line or grow without bound is replaced by a fresh id."""
    answered = proxy.client.post("/v1/tokenize", b"{}", [("X-Request-ID", each) for each in bad])
    fresh = answered.header("x-request-id")
    assert fresh is not None
    assert fresh not in bad
    assert len(bytes.fromhex(fresh)) == 16


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", None, 200),
        ("POST", "/v1/tokenize", b"{}", 200),
        ("POST", "/v1/tokenize", b"", 400),
        ("GET", "/v1/signature/none", None, 404),
        ("GET", "/v1/tokenize", None, 405),
        ("POST", "/v1/tokenize", b"x" * 2_001, 413),
        ("GET", "/sleep", None, 404),
    ],
)
def test_every_answer_carries_the_request_id(
    proxy: Stack, method: str, path: str, body: bytes | None, status: int
) -> None:
    """Errors have it too."""
    answered = proxy.client.request(method, path, body, [("X-Request-ID", "mine")])
    assert (answered.status, answered.header("x-request-id")) == (status, "mine")


def test_the_backends_request_id_is_not_the_answers(proxy: Stack) -> None:
    """The proxy's id is the one that its log lines carry."""
    proxy.backend.play(answer(200, b"{}", b"content-type: application/json", b"x-request-id: backend"))
    for path in ("/v1/chat/completions", "/other"):
        answered = proxy.client.post(path, b"{}", [("X-Request-ID", "mine")])
        assert answered.header("x-request-id") == "mine"


# --- headers of requests

CLIENT_HEADERS: list[tuple[str, str | bytes]] = [
    ("Accept", "application/json"),
    ("Accept-Encoding", "gzip, br"),
    ("Cookie", "session=secret"),
    ("Connection", "close, X-Hop"),
    ("X-Hop", "one"),
    ("Keep-Alive", "timeout=5"),
    ("TE", "trailers"),
    ("Trailer", "X-Check"),
    ("Proxy-Authorization", "Basic abc"),
    ("Proxy-Connection", "keep-alive"),
    ("X-Request-ID", "mine"),
    ("X-Request-Hash", "0" * 64),
    ("X-Forwarded-For", "192.0.2.1"),
    ("X-Custom", "custom"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("tracestate", "vendor=value"),
    ("OpenAI-Organization", "org"),
    ("User-Agent", "tests"),
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/tokenize", "/v1/audio/transcriptions"])
def test_headers_on_named_routes(proxy: Stack, path: str) -> None:
    """Of the client's headers only the content's type, what is accepted, and the trace go on."""
    proxy.client.post(path, b"{}", CLIENT_HEADERS)
    call = proxy.backend.call
    assert call.header_names == {
        b"host",
        b"content-type",
        b"accept",
        b"accept-encoding",
        b"content-length",
        b"traceparent",
        b"tracestate",
        b"via",
    }
    assert call.header(b"accept") == b"application/json"
    assert call.header(b"content-type") == b"application/json"
    assert call.header(b"accept-encoding") == b"identity"
    assert call.header(b"traceparent") == b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert call.header(b"tracestate") == b"vendor=value"
    assert call.header(b"host") == f"127.0.0.1:{proxy.backend.port}".encode()


def test_lists_in_several_lines_on_named_routes(proxy: Stack) -> None:
    """They cross as the one line that means the same; of what is no list, two lines mean nothing."""
    lists = [("Accept", "a/b"), ("tracestate", "one=1"), ("accept", "c/d;q=0.5"), ("TraceState", "two=2,three=3")]
    proxy.client.post("/v1/chat/completions", b"{}", [*lists, ("traceparent", "one"), ("traceparent", "two")])
    call = proxy.backend.call
    assert call.values(b"accept") == [b"a/b, c/d;q=0.5"]
    assert call.values(b"tracestate") == [b"one=1, two=2,three=3"]
    assert call.values(b"traceparent") == []


def test_headers_on_the_catch_all(proxy: Stack) -> None:
    """End-to-end headers go on; what belongs to one connection, to the proxy or to the client's session does not."""
    proxy.client.post("/v1/other", b"{}", CLIENT_HEADERS)
    call = proxy.backend.call
    assert call.header_names == {
        b"host",
        b"content-type",
        b"accept",
        b"accept-encoding",
        b"content-length",
        b"traceparent",
        b"tracestate",
        b"via",
        b"x-custom",
        b"x-forwarded-for",
        b"openai-organization",
        b"user-agent",
    }
    assert call.values(b"accept-encoding") == [b"identity"]
    assert call.values(b"content-length") == [b"2"]
    assert call.values(b"host") == [f"127.0.0.1:{proxy.backend.port}".encode()]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/other"])
@pytest.mark.parametrize("spelling", ["x_request_id", "X_Request-Id", "AUTHORIZATION_", "x-request_id"])
def test_spellings_with_underscores_do_not_slip_through(proxy: Stack, path: str, spelling: str) -> None:
    """Some backends read underscores as dashes, so a header that must not cross does not cross in that form either."""
    proxy.client.post(path, b"{}", [(spelling, "forged")])
    forbidden = {b"x-request-id", b"authorization"}
    assert not {name.replace(b"_", b"-") for name in proxy.backend.call.header_names} & forbidden


def test_response_headers_on_named_routes(proxy: Stack) -> None:
    """Of the backend's headers only those that say what the content is come back."""
    proxy.backend.play(
        answer(
            200,
            b"{}",
            b"content-type: application/json; charset=utf-8",
            b"cache-control: no-store",
            b"set-cookie: a=b",
            b"x-internal: yes",
            b"server: engine",
            b"x-signature-id: sig-forged",
        )
    )
    answered = proxy.client.post("/v1/chat/completions", b"{}")
    assert answered.header("content-type") == "application/json; charset=utf-8"
    assert not answered.values("set-cookie") + answered.values("x-internal")
    assert answered.header("x-signature-id") != "sig-forged"
    assert "engine" not in answered.values("server")


def test_response_headers_on_the_catch_all(proxy: Stack) -> None:
    """End-to-end headers come back; cookies, the connection's own headers and forged ids do not."""
    proxy.backend.play(
        answer(
            200,
            b"plain",
            b"Content-Type: text/plain",
            b"Set-Cookie: a=b",
            b"X-Custom: one",
            b"X-Custom: two",
            b"ETag: abc",
            b"Connection: X-Hop",
            b"X-Hop: one",
            b"Keep-Alive: timeout=5",
            b"X-Signature-Id: sig-forged",
        )
    )
    answered = proxy.client.get("/v1/other")
    assert answered.values("x-custom") == ["one", "two"]
    assert answered.header("etag") == "abc"
    assert not answered.values("set-cookie") + answered.values("x-hop") + answered.values("keep-alive")
    assert answered.header("x-signature-id") != "sig-forged"


@pytest.mark.parametrize("body", [b'{"a":1}', b'{"id":"own"}'], ids=["without an id", "with an id"])
def test_headers_about_the_very_bytes(proxy: Stack, body: bytes) -> None:
    """They come back with those bytes, and not with a document that an id was inserted into."""
    names = ("content-digest", "repr-digest", "digest", "content-md5", "etag")
    lines = [b"%b: x" % name.title().encode() for name in names]
    proxy.backend.play(answer(200, body, b"content-type: application/json", b"x-custom: kept", *lines))
    answered = proxy.client.get("/v1/other")
    assert [name for name in names if answered.header(name)] == ([] if answered.body != body else list(names))
    assert (answered.body == body) is (b'"id"' in body)
    assert answered.header("x-custom") == "kept"


# --- JSON bodies

EMPTY_TOOL_CALLS = [
    (
        b'{"messages": [{"role": "assistant", "tool_calls": [ ], "content": "a"}], "n": 1}',
        b'{"messages": [{"role": "assistant",  "content": "a"}], "n": 1}',
    ),
    (b'{"messages":[{"tool_calls":[]}]}', b'{"messages":[{}]}'),
    (b'{"messages":[{"content":"a","tool_calls":[]}]}', b'{"messages":[{"content":"a"}]}'),
]
KEPT_TOOL_CALLS = [
    b'{"messages":[{"tool_calls":[{"id":"1"}]}]}',
    b'{"tool_calls":[]}',
    b'{"messages":[{"content":"\\"tool_calls\\":[]"}]}',
    b'{"messages":[{"x":{"tool_calls":[]}}]}',
    b'{"messages":[{"tool_calls":null}]}',
    b'{"messages":"\\"tool_calls\\":[]"}',
]


@pytest.mark.parametrize(("sent", "arrives"), [*EMPTY_TOOL_CALLS, *((body, body) for body in KEPT_TOOL_CALLS)])
def test_empty_tool_calls(proxy: Stack, sent: bytes, arrives: bytes) -> None:
    """A message's empty list of tool calls does not reach the backend; what is signed are the client's bytes."""
    answered = proxy.client.post("/v1/chat/completions", sent)
    call = proxy.backend.call
    assert json.loads(call.body) == json.loads(arrives)
    assert call.header(b"content-length") == str(len(call.body)).encode()
    proxy.client.assert_answer_signed(answered, sent)


BYTES_AS_THEY_ARE = [
    b'\n{ "a" :1e2,\t"b":[ ]}\r\n',
    b'{"a":1,"a":2}',
    '{"é":"\\u00e9😀"}'.encode(),
    b'{"big":123456789012345678901234567890.10}',
]


@pytest.mark.parametrize("body", BYTES_AS_THEY_ARE)
def test_json_reaches_the_backend_unchanged(proxy: Stack, body: bytes) -> None:
    """Nothing is parsed and written again: spaces, duplicates, escapes and numbers stay."""
    answered = proxy.client.post("/v1/chat/completions", body)
    assert proxy.backend.call.body == body
    proxy.client.assert_answer_signed(answered, body)


INVALID_JSON = {
    "empty": b"",
    "space": b" \n",
    "array": b'["CANARY"]',
    "string": b'"CANARY"',
    "number": b"1",
    "null": b"null",
    "cut": b'{"CANARY": 1',
    "cut string": b'{"a": "CANARY',
    "trailing": b'{"a": 1} CANARY',
    "trailing comma": b'{"CANARY": 1,}',
    "single quotes": b"{'CANARY': 1}",
    "comment": b'{"a": 1 /* CANARY */}',
    "no quotes": b"{CANARY: 1}",
    "nan": b'{"CANARY": NaN}',
    "control character": b'{"CANARY": "\n"}',
    "bad escape": b'{"CANARY": "\\x"}',
    "leading zero": b'{"CANARY": 01}',
    "latin-1": b'{"CANARY": "\xe9"}',
    "utf-16": '{"CANARY": 1}'.encode("utf-16"),
    "bom": b'\xef\xbb\xbf{"CANARY": 1}',
    "surrogate": b'{"CANARY": "\xed\xa0\x80"}',
    "form": b"prompt=CANARY",
    "deep": b'{"CANARY":' + b"[" * 1_900,
}


@pytest.mark.parametrize("row", [row for row in WITH_BODY if not row.multipart], ids=name_of)
def test_json_endpoints_want_json(proxy: Stack, row: Row) -> None:
    """Each of them refuses what is not a JSON object, and the backend hears nothing of it."""
    row.ask(proxy.client, body=b"[]").assert_error(400, "bad_request")
    assert proxy.backend.connections == 0


@pytest.mark.parametrize("body", INVALID_JSON.values(), ids=INVALID_JSON)
def test_invalid_json(proxy: Stack, body: bytes) -> None:
    """Whatever is wrong with it, the message says so, and quotes nothing of the body."""
    answered = proxy.client.post("/v1/chat/completions", body)
    answered.assert_error(400, "bad_request")
    assert b"CANARY" not in answered.body
    assert answered.json()["error"]["message"].startswith("The request body ")
    assert proxy.backend.connections == 0


# --- uploads


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/images/edits", "/other"])
def test_uploads_are_streamed_through(proxy: Stack, path: str, framing: str) -> None:
    """The backend has the first bytes before the client has sent the last, framed as the client framed them."""
    body, content_type = multipart(b"audio " * 100)
    first_arrived = threading.Event()

    def script(call: Call) -> None:
        assert call.read_some()
        first_arrived.set()
        json_answer(b'{"text":"x"}')(call)

    proxy.backend.play(script)
    pieces = [body[:100], body[100:]]
    if framing == "length":
        header = ("Content-Length", str(len(body)))
    else:
        header = ("Transfer-Encoding", "chunked")
        pieces = [chunks_of(pieces[0], 100).removesuffix(b"0\r\n\r\n"), chunks_of(pieces[1], 100)]
    with proxy.client.open("POST", path, [content_type, header], pieces[0]) as conversation:
        assert first_arrived.wait(60)
        conversation.send(pieces[1])
        answered = conversation.answer()
    call = proxy.backend.call
    assert call.body == body
    assert call.header(b"content-type") == content_type[1].encode()
    assert (call.header(b"transfer-encoding") == b"chunked") == (framing == "chunked")
    proxy.client.assert_answer_signed(answered, body, answered.json()["id"])


# --- the request's hash

A_HASH = "0123456789abcdef" * 4


@pytest.mark.parametrize("value", [A_HASH, "not a hash", ""])
def test_the_request_hash_header_is_ignored(proxy: Stack, value: str) -> None:
    """A client does not choose what is signed."""
    answered = proxy.client.post("/v1/chat/completions", b"{}", [("X-Request-Hash", value)])
    proxy.client.assert_answer_signed(answered, b"{}")


def test_the_request_hash_header_can_be_trusted() -> None:
    """Behind a gateway that serialises anew, its hash of the original is signed; what is no hash is refused."""
    with stack(trust_request_hash=True) as proxy:
        for value in (A_HASH, A_HASH.upper()):
            answered = proxy.client.post("/v1/chat/completions", b"{}", [("X-Request-Hash", value)])
            own = answered.header("x-signature-id") or ""
            proxy.client.assert_signed(own, f"{A_HASH}:{sha256(answered.body)}")
        without = proxy.client.post("/v1/chat/completions", b"{}")
        proxy.client.assert_answer_signed(without, b"{}")
        proxy.backend.play(json_answer(b"{}"))
        for bad in ("", "0" * 63, "0" * 65, "g" * 64, f"0x{'0' * 62}"):
            refused = proxy.client.post("/v1/chat/completions", b"{}", [("X-Request-Hash", bad)])
            refused.assert_error(400, "bad_request")
        twice = proxy.client.post("/v1/chat/completions", b"{}", [("X-Request-Hash", A_HASH)] * 2)
        twice.assert_error(400, "bad_request")
        assert proxy.backend.connections == 0


def test_the_second_form_of_the_signed_text() -> None:
    """SIGNED_TEXT=v2 puts the model's name in front."""
    with stack(signed_text="v2") as proxy:
        answered = proxy.client.post("/v1/chat/completions", b"{}")
        own = answered.header("x-signature-id") or ""
        proxy.client.assert_signed(own, f"test/model:{sha256(b'{}')}:{sha256(answered.body)}")


# --- unsafe and administrative paths

UNSAFE = [
    "/..",
    "/v1/../metrics",
    "/v1/%2e%2e/metrics",
    "/v1/%2E./metrics",
    "/v1/%252e%252e/metrics",
    "/v1/%25252e%25252e/metrics",
    "/v1/%2525252e%2525252e/metrics",
    "/v1/%252525252e%252525252e/metrics",
    "/v1/..;x=1/metrics",
    "/v1/a%2fb",
    "/v1/a%2Fb",
    "/v1%252fmetrics",
    "/v1%5cmetrics",
    "/v1%255Cmetrics",
    "/v1\\metrics",
    "/v1/a%00b",
    "/v1/a%2500b",
]


@pytest.mark.parametrize("path", UNSAFE)
def test_unsafe_paths_are_refused(proxy: Stack, path: str) -> None:
    """A path that could mean something else to the backend than here does not reach it."""
    proxy.client.get(path).assert_error(400, "bad_request")
    assert proxy.backend.connections == 0


@pytest.mark.parametrize("path", ["/v1/..a", "/v1/a..", "/v1/...", "/v1/.well-known", "/v1/a%20b%3Fc", "/v1/50%25"])
def test_safe_paths_pass(proxy: Stack, path: str) -> None:
    """Dots and percent signs that are part of a name are no danger."""
    assert proxy.client.get(path).status == 200
    assert proxy.backend.call.target.decode() == path


ADMINISTRATIVE = """
    /sleep /wake_up /is_sleeping /collective_rpc /reset_prefix_cache /reset_mm_cache /start_profile /stop_profile
    /server_info /scale_elastic_ep /v1/load_lora_adapter /v1/unload_lora_adapter /update_weights /pause /resume
    /flush_cache /abort_request /update_weights_from_disk /update_weights_from_tensor
    /update_weights_from_distributed /init_weights_update_group /release_memory_occupation /resume_memory_occupation
    /get_weights_by_name /get_internal_state /set_internal_state /start_expert_distribution_record
    /load_lora_adapter /unload_lora_adapter /docs /redoc /openapi.json /shutdown
""".split()  # noqa: SIM905 - as the contract writes them


def spellings(path: str) -> list[str]:
    """Return ways to write a path that a lenient backend may take for the same."""
    once = "".join(f"%{ord(char):02x}" if char != "/" else char for char in path)
    return [
        path,
        f"{path}/",
        f"{path}//",
        f"/{path}",
        path.upper(),
        once,
        once.replace("%", "%25"),
        f"{path}?query=1",
        f"/.{path}",
        f"{path}/.",
        f"{path};x=1",
    ]


@pytest.mark.parametrize("path", ADMINISTRATIVE)
def test_administrative_paths_are_not_there(proxy: Stack, path: str) -> None:
    """A client's token is not the operator's, in whatever way the path is spelled and whatever the method."""
    for spelling in spellings(path):
        answered = proxy.client.post(spelling, b"{}")
        assert answered.status == 404, spelling
        answered.assert_error(404, "not_found")
    assert proxy.client.request("DELETE", path).status == 404
    assert proxy.backend.connections == 0


def test_what_an_engine_says_of_its_model_is_not_changed(proxy: Stack) -> None:
    """Clients may read where operators change something for all of them."""
    assert proxy.client.get("/props").status == 200
    proxy.client.post("/props", b"{}").assert_error(404, "not_found")
    assert proxy.backend.call.method == "GET"


@pytest.mark.parametrize("path", ["/sleeping", "/v1/sleep", "/v1/docs", "/sleep/now", "/v1/shutdown"])
def test_other_paths_are_not_administrative(proxy: Stack, path: str) -> None:
    """Paths that only look similar pass."""
    assert proxy.client.get(path).status == 200


def test_administrative_paths_can_be_allowed() -> None:
    """An operator who trusts all clients can let them pass; unsafe paths still do not."""
    with stack(allow_backend_admin=True) as proxy:
        for path in ADMINISTRATIVE:
            assert proxy.client.post(path, b"{}").status == 200
        assert [call.target.decode() for call in proxy.backend.calls] == ADMINISTRATIVE
        assert proxy.client.get("/v1/../sleep").status == 400


def test_administrative_paths_need_a_token_to_be_told_apart(proxy: Stack) -> None:
    """Without a token nobody learns which paths there are."""
    assert proxy.client.as_anyone().get("/sleep").status == 401
    assert proxy.client.as_anyone().get("/v1/../sleep").status == 401


# --- answers that are not 2xx


@pytest.mark.parametrize("path", ["/v1/models", "/v1/other", "/v1/chat/completions"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 300])
def test_redirects_are_relayed_and_not_followed(proxy: Stack, path: str, status: int) -> None:
    """Where a redirect leads is for the client to decide; the proxy does not go there."""
    location = f"{proxy.backend.url}/elsewhere"
    proxy.backend.play(answer(status, b"moved", b"content-type: text/plain", b"location: " + location.encode()))
    answered = proxy.client.get(path) if path == "/v1/models" else proxy.client.post(path, b"{}")
    assert (answered.status, answered.header("location"), answered.body) == (status, location, b"moved")
    assert answered.header("x-signature-id") is None
    assert len(proxy.backend.calls) == 1


@pytest.mark.parametrize("path", ["/v1/models", "/v1/other"])
def test_not_modified_is_relayed(proxy: Stack, path: str) -> None:
    """A 304 has no body and keeps its validators."""

    def script(call: Call) -> None:
        call.send(head(304, b'etag: "abc"', b"cache-control: max-age=5"))

    proxy.backend.play(script)
    answered = proxy.client.get(path, [("If-None-Match", '"abc"')])
    assert (answered.status, answered.body) == (304, b"")
    assert (answered.header("etag"), answered.header("cache-control")) == ('"abc"', "max-age=5")
    assert answered.header("x-signature-id") is None


REWRAPPED = [
    # what the backend says, the message, the type
    (b'{"error": {"message": "m", "type": "t", "param": "p", "code": 7}}', "m", "t"),
    (b'{"object": "error", "message": "m", "type": "t", "code": 404}', "m", "t"),
    (b'{"error": {"message": "m"}}', "m", "upstream_error"),
    (b'{"message": "m"}', "m", "upstream_error"),
    (b'{"error": {"message": "m", "type": 7}}', "m", "upstream_error"),
    (b'{"detail": [{"input": "CANARY"}]}', None, "upstream_error"),
    (b'{"error": "CANARY"}', None, "upstream_error"),
    (b'{"error": {"message": {"CANARY": 1}}}', None, "upstream_error"),
    (b'["CANARY"]', None, "upstream_error"),
    (b"<html>CANARY</html>", None, "upstream_error"),
    (b'{"error": {"message": "CANARY', None, "upstream_error"),
    (b"", None, "upstream_error"),
    (b"\xff\xfeCANARY", None, "upstream_error"),
]


@pytest.mark.parametrize("status", [400, 404, 422, 500, 503])
@pytest.mark.parametrize(("body", "message", "kind"), REWRAPPED)
def test_errors_of_the_catch_all_are_rewrapped(
    proxy: Stack, status: int, body: bytes, message: str | None, kind: str
) -> None:
    """Message and type are read from the known forms of errors; of anything else only the status comes through."""
    proxy.backend.play(
        answer(status, body, b"content-type: application/json", b"retry-after: 7", b"x-internal: CANARY")
    )
    answered = proxy.client.post("/v1/other", b"{}")
    answered.assert_error(status, kind, message or f"Upstream request failed with status {status}")
    assert "CANARY" not in f"{answered.headers}{answered.body!r}"
    assert answered.header("retry-after") == "7"
    assert answered.header("x-signature-id") is None


@pytest.mark.parametrize("row", [row for row in RELAYED if row in KNOWN_PATHS], ids=name_of)
def test_errors_of_named_routes_come_as_they_are(proxy: Stack, row: Row) -> None:
    """Clients of an engine know its errors: status, content type, retry-after and body stay."""
    body = b' {"object":"error","message":"no"} '
    proxy.backend.play(
        answer(429, body, b"content-type: application/problem+json", b"retry-after: 9", b"x-internal: a")
    )
    answered = row.ask(proxy.client)
    assert (answered.status, answered.body) == (429, body)
    assert answered.header("content-type") == "application/problem+json"
    assert answered.header("retry-after") == "9"
    assert not answered.values("x-internal") + answered.values("x-signature-id")


def test_an_error_without_an_end_is_rewrapped(proxy: Stack) -> None:
    """A backend that goes on and on in an error is cut off, and its status still comes through."""
    proxy.backend.play(in_pieces([b"x" * 1000] * 100, b"content-type: text/plain"))

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(500, b"content-type: text/plain", b"transfer-encoding: chunked"))
        while True:
            call.send(b"3e8\r\n" + b"x" * 1000 + b"\r\n")

    proxy.backend.play(script)
    proxy.client.post("/v1/other", b"{}").assert_error(500, "upstream_error")
    proxy.backend.call.wait_until_gone()


def test_an_event_stream_on_the_catch_all_is_signed(proxy: Stack) -> None:
    """Other paths stream too, whatever the method."""
    proxy.backend.play(event_stream(b'data: {"id":"resp-1"}\n\n', b"data: [DONE]\n\n"))
    answered = proxy.client.post("/v1/responses", b'{"stream":true}')
    proxy.client.assert_answer_signed(answered, b'{"stream":true}')
