"""The ASGI callable without a server: start and stop, the order of checks, and what errors become."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpcore
import pytest

from teesign import GpuEvidence, SignatureStore, SignedChat, SourceError
from teesign.sources import Sources
from teesign.sources.simulated import SimulatedQuotes
from teesign.testing import ECDSA_SECRET, ED25519_SEED, ManualClock, fixed_evidence, fixed_pair
from teesign_asgi import App, Settings, StartError
from teesign_asgi.attestor import MAX_WAITING
from teesign_asgi.types import Message

pytestmark = pytest.mark.anyio

CANARY = "kanarienvogel"
CHAT = "/v1/chat/completions"
JSON = [(b"content-type", b"application/json")]
EVENTS = [(b"content-type", b"text/event-stream")]


def settings(**changes: Any) -> Settings:
    """Return settings for a test; the clock of a rate limiter that stands still lets as many pass as fit a burst."""
    chosen = {"model_name": "m", "tokens": ("token",), "backend_url": "http://backend:9000/base", **changes}
    return Settings(**chosen)


class Body:
    """A response's body: pieces, exceptions among them; an event is waited for. Knows whether it was closed."""

    def __init__(self, *pieces: bytes | Exception | anyio.Event) -> None:
        self.pieces = pieces
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, anyio.Event):
                await piece.wait()
            else:
                yield piece

    async def aclose(self) -> None:
        """Note it."""
        self.closed = True


class Backend:
    """Answers every request alike, once it has its body; an exception instead of a body is raised."""

    def __init__(
        self, content: bytes | Body | Exception = b'{"id":"an-id"}', status: int = 200, headers: Any = JSON
    ) -> None:
        self.content, self.status, self.headers = content, status, headers
        self.requests: list[httpcore.Request] = []
        self.bodies: list[bytes] = []

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Answer."""
        self.requests.append(request)
        self.bodies.append(b"".join([chunk async for chunk in request.stream]))  # type: ignore[union-attr]  # it is asynchronous
        if isinstance(self.content, Exception):
            raise self.content
        content = Body(self.content) if isinstance(self.content, bytes) else self.content
        return httpcore.Response(self.status, headers=self.headers, content=content)

    async def aclose(self) -> None:
        """Fail: whoever passes an upstream in closes it."""
        raise AssertionError("whoever passes an upstream in closes it")


@dataclass
class Client:
    """One request, and what comes back; `sees` is called with each message before the app goes on."""

    app: App
    pieces: list[bytes] = field(default_factory=list)
    sees: Callable[[Message], None] | None = None
    leaves: anyio.Event | None = None
    messages: list[Message] = field(default_factory=list)

    async def receive(self) -> Message:
        """Return what the client sends next."""
        if self.pieces:
            body = self.pieces.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(self.pieces)}
        await (self.leaves or anyio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take what the app sends."""
        await anyio.lowlevel.checkpoint()
        self.messages.append(message)
        if self.sees is not None:
            self.sees(message)

    async def ask(self, method: str, target: str, *headers: tuple[bytes, bytes], token: str | None = "token") -> Client:
        """Send the request and wait until it has been dealt with."""
        raw_path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": raw_path,
            "raw_path": raw_path.encode(),
            "query_string": query.encode(),
            "headers": [*headers, *([(b"authorization", f"Bearer {token}".encode())] if token else [])],
            "client": ("10.0.0.1", 1),
        }
        self.pieces = self.pieces or [b""]
        with anyio.fail_after(60):
            await self.app(scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        """The status of the response."""
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        """The headers of the response."""
        return dict(self.messages[0]["headers"])

    @property
    def body(self) -> bytes:
        """The body, as far as it came."""
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def whole(self) -> bool:
        """Whether there is one head, and a last message."""
        starts = [message["type"] for message in self.messages].count("http.response.start")
        return starts == 1 and not self.messages[-1].get("more_body", True)

    @property
    def error(self) -> tuple[int, str, str]:
        """The status, the type and the message of an error in the format of the contract."""
        content = json.loads(self.body)["error"]
        assert content["param"] is content["code"] is None
        return self.status, content["type"], content["message"]


def client(app: App, *pieces: bytes, **more: Any) -> Client:
    """Return a client that sends this body."""
    return Client(app, list(pieces), **more)


def app_with(backend: Backend | None = None, *, clock: Callable[[], float] = time.monotonic, **changes: Any) -> App:
    """Return an app with fixed keys before this backend."""
    return App(settings(**{"dev": True, **changes}), pair=fixed_pair(), upstream=backend or Backend(), clock=clock)


async def metric(app: App, name: str) -> float:
    """Return the value of a metric, as the endpoint gives it; 0 where it does not stand."""
    lines = (await client(app).ask("GET", "/metrics", token=None)).body.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


SERVER_ERROR = (500, "server_error", "Internal server error")


class Keys:
    """A key service that counts its calls; it fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.paths: list[str] = []

    async def key(self, path: str, purpose: str) -> bytes:
        """Return a key, or fail."""
        assert purpose == "signing"
        await anyio.sleep(0.001)
        if self.failures:
            self.failures -= 1
            raise SourceError("the agent is asleep.", code="kms_asleep")
        self.paths.append(path)
        return ECDSA_SECRET if path == "m/ecdsa-signing-key" else ED25519_SEED


class Gpus:
    """GPUs, or an exception in their place; knows whether they were given back."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.closed = False

    async def collect(self, nonce: bytes) -> GpuEvidence:
        """Return evidence, or fail."""
        if self.failure is not None:
            raise self.failure
        return fixed_evidence(nonce)

    async def aclose(self) -> None:
        """Note it."""
        self.closed = True


def app_with_keys(keys: Keys | None) -> App:
    """Return an app in production, with this key service."""
    return App(settings(), upstream=Backend(), sources=Sources(quotes=SimulatedQuotes(), gpus=Gpus(), keys=keys))


async def lifespan(app: App, *types: str) -> list[Message]:
    """Return what the app says to these lifespan messages."""
    waiting, sent = iter(types), list[Message]()

    async def receive() -> Message:
        return {"type": next(waiting)}

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "lifespan"}, receive, send)
    return sent


async def test_the_app_starts_and_stops_with_the_servers_lifespan() -> None:
    """The keys come from the key service, under paths that hold the model's name."""
    keys = Keys()
    app = app_with_keys(keys)
    with pytest.raises(StartError):
        app.pair  # noqa: B018 - reading it is what fails
    sent = await lifespan(app, "lifespan.startup", "lifespan.shutdown")
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert keys.paths == ["m/ecdsa-signing-key", "m/ed25519-signing-key"]
    assert app.pair.ecdsa.identity == fixed_pair().ecdsa.identity


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [(Keys(failures=9), "the agent is asleep. (kms_asleep)"), (None, "There is no source of keys")],
)
async def test_a_start_that_fails_says_why(keys: Keys | None, complaint: str) -> None:
    """To the server, which logs it and ends."""
    (message,) = await lifespan(app_with_keys(keys), "lifespan.startup")
    assert message["type"] == "lifespan.startup.failed"
    assert complaint in message["message"]


async def test_random_keys_are_for_development_only() -> None:
    """There they come without a key service, and are others each time."""
    one, other = App(settings(dev=True)), App(settings(dev=True))
    await one.start()
    await other.start()
    assert one.pair.ecdsa.identity != other.pair.ecdsa.identity
    await one.aclose()
    await other.aclose()


async def test_the_first_request_starts_the_app() -> None:
    """Frameworks that mount it do not always pass the lifespan on."""
    app = app_with_keys(Keys())
    assert (await client(app, b"{}").ask("POST", CHAT)).status == 200


async def test_a_request_before_a_failed_start_is_a_server_error(caplog: pytest.LogCaptureFixture) -> None:
    """With the reason in the log; and the next request tries again."""
    app = app_with_keys(Keys(failures=1))
    assert (await client(app, b"{}").ask("POST", CHAT)).error == SERVER_ERROR
    assert "the agent is asleep" in caplog.text
    assert (await client(app, b"{}").ask("POST", CHAT)).status == 200


async def test_many_requests_start_the_app_once() -> None:
    """And all of them are answered."""
    keys = Keys()
    app = app_with_keys(keys)
    clients = [client(app, b"{}") for _ in range(10)]
    async with anyio.create_task_group() as group:
        for each in clients:
            group.start_soon(each.ask, "POST", CHAT)
    assert [each.status for each in clients] == [200] * 10
    assert len(keys.paths) == 2


class SlowKeys(Keys):
    """A key service that answers when it is let go."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__(failures)
        self.asked, self.go = anyio.Event(), anyio.Event()

    async def key(self, path: str, purpose: str) -> bytes:
        """Return a key or fail, at last."""
        self.asked.set()
        await self.go.wait()
        return await super().key(path, purpose)


async def test_those_who_wait_for_a_start_share_its_failure() -> None:
    """Nobody waits for one failed start after the other; the next request tries again."""
    keys = SlowKeys(failures=1)
    app = app_with_keys(keys)
    clients = [client(app, b"{}") for _ in range(10)]
    async with anyio.create_task_group() as group:
        for each in clients:
            group.start_soon(each.ask, "POST", CHAT)
        await keys.asked.wait()
        await anyio.wait_all_tasks_blocked()
        keys.go.set()
    assert [each.error for each in clients] == [SERVER_ERROR] * 10
    assert keys.paths == []
    assert (await client(app, b"{}").ask("POST", CHAT)).status == 200


async def test_a_start_that_is_cancelled_is_taken_up_by_those_who_wait() -> None:
    """It has not failed."""
    keys = SlowKeys()
    app = app_with_keys(keys)
    first, second = anyio.CancelScope(), client(app, b"{}")

    async def start() -> None:
        with first:
            await app.start()

    async with anyio.create_task_group() as group:
        group.start_soon(start)
        await keys.asked.wait()
        group.start_soon(second.ask, "POST", CHAT)
        await anyio.wait_all_tasks_blocked()
        first.cancel()
        keys.go.set()
    assert second.status == 200


@pytest.mark.parametrize("path", ["/", "/version", "/metrics", "/healthz"])
async def test_what_needs_no_keys_is_answered_without_a_start(path: str) -> None:
    """Whatever the key service does."""
    keys = Keys(failures=1)
    assert (await client(app_with_keys(keys)).ask("GET", path, token=None)).status == 200
    assert keys.failures == 1


async def test_the_app_can_be_started_again() -> None:
    """With the same keys; starting it twice does nothing more."""
    keys = Keys()
    app = app_with_keys(keys)
    for _ in range(2):
        await app.start()
        await app.start()
        await app.aclose()
    assert len(keys.paths) == 2
    assert (await client(app, b"{}").ask("POST", CHAT)).status == 200


async def test_sources_that_were_passed_in_are_not_closed() -> None:
    """Whoever brought them may use them elsewhere."""
    gpus = Gpus()
    app = App(settings(), pair=fixed_pair(), sources=Sources(quotes=SimulatedQuotes(), gpus=gpus))
    await app.start()
    await app.aclose()
    assert not gpus.closed


async def test_warnings_are_logged_at_every_start(caplog: pytest.LogCaptureFixture) -> None:
    """And the addresses, which are public."""
    caplog.set_level(logging.INFO)
    await app_with().start()
    assert "DEV is on" in caplog.text
    assert f"ecdsa={fixed_pair().ecdsa.identity.address}" in caplog.text


async def test_websockets_are_refused() -> None:
    """Politely; other kinds of connection are not answered at all."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app_with()({"type": "websocket"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1003}]
    await app_with()({"type": "something.new"}, receive, send)
    assert len(sent) == 1


def test_the_app_does_not_show_its_tokens() -> None:
    """Nor its keys."""
    app = app_with(tokens=(CANARY,))
    assert CANARY not in repr(app)
    assert ECDSA_SECRET.hex() not in repr(app)


async def test_an_unexpected_exception_is_a_server_error(caplog: pytest.LogCaptureFixture) -> None:
    """Its type and place are logged, and its text is not: exceptions quote what they choke on."""
    app = app_with(Backend(RuntimeError(CANARY)))
    asked = await client(app, b"{}").ask("POST", CHAT, (b"x-request-id", b"some-id"))
    assert asked.error == SERVER_ERROR
    assert asked.headers[b"x-request-id"] == b"some-id"
    assert "exception=RuntimeError" in caplog.text
    assert "handle_async_request" in caplog.text
    assert "some-id" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize("failure", [RuntimeError(CANARY), httpcore.ReadError(CANARY)])
async def test_what_fails_within_a_response_breaks_it_off(failure: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """A response that is not whole must not look whole; nothing of it is signed."""
    body = Body(b'data: {"id":"an-id"}\n\n', failure)
    app = app_with(Backend(body, headers=EVENTS))
    asked = await client(app, b"{}").ask("POST", CHAT)
    assert (asked.status, asked.whole) == (200, False)
    assert asked.body == b'data: {"id":"an-id"}\n\n'
    assert body.closed
    assert CANARY not in caplog.text
    assert (await client(app).ask("GET", "/v1/signature/an-id")).status == 404


@pytest.mark.parametrize(
    ("kind", "content", "status", "begun"),
    [
        pytest.param("audio/mpeg", b"half", 200, b"half", id="raw"),
        pytest.param("text/event-stream", b"data: {}\n\n", 200, b"data: {}\n\n", id="event stream"),
        pytest.param("application/json", b'{"id":"an-id"}', 500, None, id="collected"),
    ],
)
async def test_a_response_that_fell_short_of_its_length_is_broken_off_whatever_the_pool_says(
    kind: str, content: bytes, status: int, begun: bytes | None
) -> None:
    """Pools raise before; one that was passed in may take the end of the connection for the end of the response."""
    headers = [(b"content-type", kind.encode()), (b"content-length", b"1000")]
    app = app_with(Backend(content, headers=headers))
    asked = await client(app, b"{}").ask("POST", CHAT)
    assert asked.status == status
    assert begun is None or (asked.body, asked.whole) == (begun, False)
    assert await metric(app, 'teesign_backend_errors_total{kind="closed"}') == 1
    assert await metric(app, "teesign_signature_cache_entries") == 0


class Duplex(Backend):
    """A backend that sends the request's body back while it still comes in."""

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Answer before the request has ended."""
        return httpcore.Response(200, headers=EVENTS, content=request.stream)


async def test_a_body_over_the_limit_breaks_off_a_response_that_has_begun() -> None:
    """It cannot become an error any more: one response has one head."""
    app = app_with(Duplex(), max_audio_request_bytes=10)
    asked = await client(app, b"12345", b"678901", b"").ask("PUT", "/v1/other")
    assert (asked.status, asked.body, asked.whole) == (200, b"12345", False)
    assert [message["type"] for message in asked.messages].count("http.response.start") == 1


async def test_a_response_that_begins_before_the_request_has_ended_is_not_signed() -> None:
    """There is nothing yet that its signature could be about; it is delivered as it is."""
    app, events = app_with(Duplex()), (b'data: {"id":"an-id"}\n\n', b"data: [DONE]\n\n")
    asked = await client(app, *events).ask("POST", "/echo")
    assert (asked.status, asked.body, asked.whole) == (200, b"".join(events), True)
    assert b"x-signature-id" not in dict(asked.messages[0]["headers"])
    assert cached(app, "an-id") is None


async def test_uploads_are_passed_on_as_they_are_framed() -> None:
    """In pieces, with the length that the client declares, or without one."""
    for declared, framing in (((), b"transfer-encoding"), (((b"content-length", b"6"),), b"content-length")):
        backend = Backend()
        app = app_with(backend)
        assert (await client(app, b"123", b"456").ask("POST", "/v1/audio/transcriptions", *declared)).status == 200
        assert backend.bodies == [b"123456"]
        assert framing in dict(backend.requests[0].headers)
        chat = cached(app, "an-id")
        assert chat is not None
        assert chat.text.startswith(sha256(b"123456").hexdigest())


async def test_a_json_response_is_signed_before_its_first_byte() -> None:
    """A client that has seen anything of it finds the signature, under both of its ids."""
    app = app_with(Backend(b'{"id":"an-id","x":1}'))
    kept: list[tuple[SignedChat | None, ...]] = []
    chats: list[Any] = []

    def look(message: Message) -> None:
        if message["type"] == "http.response.start":
            chats.append(dict(message["headers"])[b"x-signature-id"].decode())
        kept.append((cached(app, "an-id"), cached(app, chats[0])))

    request = b'{"messages":[{"tool_calls":[]}]}'
    asked = await client(app, request[:5], request[5:], sees=look).ask("POST", CHAT)
    assert asked.whole
    text = f"{sha256(request).hexdigest()}:{sha256(asked.body).hexdigest()}"
    assert all(chat is not None and chat.text == text for pair in kept for chat in pair)


def cached(app: App, chat_id: str) -> SignedChat | None:
    """Look into the app's own store, as only a test may."""
    cache: Any = app._store._cache
    found: SignedChat | None = cache.get(f"1:m:{chat_id}")
    return found


async def test_a_stream_is_signed_before_its_end_is_released() -> None:
    """Events are passed on as they come; whoever has seen the terminator finds the signature."""
    events = [b'data: {"id":"an-id"}\n\n', b"data: {}\n\n", b"data: [DONE]\n\n"]
    app = app_with(Backend(Body(*events, b"dropped"), headers=EVENTS))
    found: list[bool] = []
    asked = await client(app, b"{}", sees=lambda _: found.append(cached(app, "an-id") is not None)).ask("POST", CHAT)
    assert [message["body"] for message in asked.messages[1:]] == [b"", *events]  # the empty one pushes the head out
    assert found == [False, False, False, False, True]
    assert asked.whole
    assert await metric(app, "teesign_signatures_total") == 1
    assert await metric(app, "teesign_signature_cache_entries") == 1


@pytest.mark.parametrize("afterwards", ["failure", "silence"])
async def test_what_the_backend_does_after_the_end_does_not_matter(afterwards: str) -> None:
    """The client has everything: neither does it wait, nor is anything broken off."""
    rest = httpcore.ReadError() if afterwards == "failure" else anyio.Event()
    body = Body(b"data: [DONE]\n\n", rest)
    with anyio.fail_after(60):
        asked = await client(app_with(Backend(body, headers=EVENTS)), b"{}").ask("POST", CHAT)
    assert (asked.status, asked.body, asked.whole) == (200, b"data: [DONE]\n\n", True)
    assert body.closed


async def test_a_stream_without_its_terminator_is_delivered_and_not_signed() -> None:
    """Nobody can tell whether it was whole."""
    app = app_with(Backend(b'data: {"id":"an-id"}\n\n', headers=EVENTS))
    asked = await client(app, b"{}").ask("POST", CHAT)
    assert (asked.body, asked.whole) == (b'data: {"id":"an-id"}\n\n', True)
    assert cached(app, "an-id") is None


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
async def test_signatures_can_be_asked_for(algorithm: str) -> None:
    """With both of them, and the one that was chosen under a name of its own."""
    app = app_with()
    await client(app, b"{}").ask("POST", CHAT)
    asked = await client(app).ask("GET", f"/v1/signature/an%2Did?signing_algo={algorithm}")
    found = json.loads(asked.body)
    chat = cached(app, "an-id")
    assert chat is not None
    assert found["text"] == chat.text
    assert found["signing_algo"] == algorithm
    assert found["signature"] == found[f"signature_{algorithm}"] == getattr(chat, f"signature_{algorithm}")
    address = getattr(chat, f"signing_address_{algorithm}")
    assert found["signing_address"] == found[f"signing_address_{algorithm}"] == address


async def test_signatures_expire() -> None:
    """After the time that the operator chose, on the clock that was passed in."""
    clock = ManualClock()
    app = App(settings(dev=True, signature_ttl=10), pair=fixed_pair(), upstream=Backend(), clock=clock)
    await client(app, b"{}").ask("POST", CHAT)
    clock.advance(9.9)
    assert (await client(app).ask("GET", "/v1/signature/an-id")).status == 200
    clock.advance(0.1)
    asked = await client(app).ask("GET", "/v1/signature/an-id")
    assert asked.error == (404, "not_found", "Chat id not found or expired")


async def test_a_client_that_leaves_ends_the_generation() -> None:
    """The backend's response is closed, and nothing is signed."""
    leaves = anyio.Event()
    body = Body(b'data: {"id":"an-id"}\n\n', anyio.Event(), b"data: [DONE]\n\n")
    app = app_with(Backend(body, headers=EVENTS))
    asked = client(app, b"{}", leaves=leaves, sees=lambda message: leaves.set() if message.get("body") else None)
    await asked.ask("POST", CHAT)
    assert body.closed
    assert not asked.whole
    assert cached(app, "an-id") is None
    assert await metric(app, "teesign_client_disconnects_total") == 1
    assert await metric(app, "teesign_open_streams") == 0


async def test_a_client_that_leaves_while_sending_reaches_no_backend() -> None:
    """For a body that is read whole first. It is answered: a server may say the same of a body it cannot read."""
    backend = Backend()
    app, leaves = app_with(backend), anyio.Event()
    leaves.set()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    asked = client(app)
    asked.receive = receive  # type: ignore[method-assign]  # a client that sends nothing
    await asked.ask("POST", CHAT)
    assert (asked.status, backend.requests) == (400, [])
    assert b'"message":"The request body broke off"' in asked.body


@pytest.mark.parametrize(
    ("failure", "kind"), [(httpcore.ConnectError(CANARY), "connect"), (httpcore.ReadTimeout(CANARY), "timeout")]
)
async def test_a_backend_that_fails_is_a_server_error(
    failure: Exception, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The kind of failure is in the log and in the metrics, its text nowhere."""
    app = app_with(Backend(failure))
    assert (await client(app, b"{}").ask("POST", CHAT)).error == SERVER_ERROR
    assert f"broken={kind}" in caplog.text
    assert CANARY not in caplog.text
    assert await metric(app, f'teesign_backend_errors_total{{kind="{kind}"}}') == 1


@pytest.mark.parametrize("path", [CHAT, "/any/path"])
@pytest.mark.parametrize("status", [200, 302, 304, 429])
async def test_names_of_headers_are_lower_case(path: str, status: int) -> None:
    """However the backend spells them: middleware that compares them as ASGI has them would miss one."""
    headers = [(b"Content-Type", b"text/plain"), (b"Retry-After", b"1"), (b"ETag", b"a"), (b"Content-Length", b"2")]
    asked = await client(app_with(Backend(b"{}", status, headers)), b"{}").ask("POST", path)
    assert asked.status == status
    assert all(name == name.lower() for name, _ in asked.messages[0]["headers"])


async def test_a_request_that_comes_back_is_cut() -> None:
    """A proxy that points at itself must not loop; another's requests may come by."""
    backend = Backend()
    app = app_with(backend)
    await client(app).ask("GET", "/some/path", (b"via", b"1.1 other"))
    (via,) = (value for name, value in backend.requests[0].headers if name == b"via")
    assert via.startswith(b"1.1 other, 1.1 teesign-")
    assert (await client(app).ask("GET", "/some/path", (b"via", via))).error == SERVER_ERROR
    assert (await client(app_with(backend)).ask("GET", "/some/path", (b"via", via))).status == 200
    assert len(backend.requests) == 2


async def test_of_other_proxies_only_those_of_this_kind_are_told_on_named_routes() -> None:
    """The backend need not know by which way a client comes; but a request that goes round must be seen to do so."""
    backend = Backend()
    likeness = b"1.1 teesign-" + b"0a" * 8
    lines = [(b"via", b"1.1 other, " + likeness + b" ,1.0 teesign-" + b"0" * 16), (b"via", likeness + b" (a comment)")]
    await client(app_with(backend), b"{}").ask("POST", CHAT, *lines)
    ((_, via),) = (header for header in backend.requests[0].headers if header[0] == b"via")
    assert re.fullmatch(likeness + rb", 1\.1 teesign-[0-9a-f]{16}", via)
    assert not via.endswith(likeness)


async def test_checks_are_made_in_the_order_of_the_contract() -> None:
    """The rate limit, the token, the size, the JSON; none of them asks the backend."""
    backend = Backend()
    app = App(
        settings(dev=True, rate_limit_burst=3, max_request_bytes=10),
        pair=fixed_pair(),
        upstream=backend,
        clock=ManualClock(),
    )
    large = (b"content-length", b"11")
    requests: list[tuple[str | None, tuple[tuple[bytes, bytes], ...], int]] = [
        (None, (large,), 401),
        ("token", (large,), 413),
        ("token", (), 400),
        (None, (large,), 429),
    ]
    for token, headers, status in requests:
        assert (await client(app, b"no JSON").ask("POST", CHAT, *headers, token=token)).status == status
    for path in ("/", "/version", "/metrics"):
        assert (await client(app).ask("GET", path, token=None)).status == 200
    limited = await client(app).ask("GET", "/v1/models", token=None)
    assert limited.error == (429, "rate_limited", "Too many requests")
    assert limited.headers[b"retry-after"] == b"1"
    assert backend.requests == []


async def test_the_rate_limit_comes_before_the_method() -> None:
    """Otherwise a client may send as many requests as it likes, so long as they are wrong; the token comes last."""
    app = app_with(rate_limit_burst=2, clock=ManualClock())
    for status in (405, 405, 429):
        assert (await client(app).ask("DELETE", CHAT, token=None)).status == status


@pytest.mark.parametrize(
    ("target", "backend"),
    [
        ("/v1/score?kanarienvogel", "http://backend:9000/base/v1/score"),
        ("/v1/rerank", "http://[::1]/whole/url/"),
        ("/any/path?kanarienvogel", "http://backend:9000/base"),
    ],
)
async def test_the_log_says_which_backend_was_asked(
    target: str, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By its URL, as far as the operator chose that; it holds no query."""
    caplog.set_level(logging.INFO)
    app = app_with(backend_url="http://backend:9000/base", rerank_url="http://[::1]/whole/url/")
    await client(app, b"{}").ask("POST", target)
    assert f" backend={backend} " in caplog.records[-1].getMessage()
    assert CANARY not in caplog.text


async def test_the_log_names_no_backend_that_was_not_asked(caplog: pytest.LogCaptureFixture) -> None:
    """Where the request was refused, or is answered here."""
    caplog.set_level(logging.INFO)
    for path, body in ((CHAT, b"no JSON"), ("/v1/%2e%2e/x", b""), ("/version", b"")):
        await client(app_with(), body).ask("POST", path)
        assert " backend=" not in caplog.records[-1].getMessage()


async def test_another_method_is_noted_under_the_endpoints_own_name(caplog: pytest.LogCaptureFixture) -> None:
    """In metrics as in the log, which holds no ids of signatures."""
    caplog.set_level(logging.INFO)
    app = app_with()
    assert (await client(app).ask("DELETE", "/v1/signature/kanarienvogel")).status == 405
    assert await metric(app, 'teesign_requests_total{endpoint="/v1/signature/{chat_id}",status="405"}') == 1
    assert "path=/v1/signature/{chat_id} status=405" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize(("path", "body"), [("/", {}), ("/version", {"version": "0.1.0", "type": "proxy"})])
async def test_the_proxy_says_what_it_is(path: str, body: object) -> None:
    """To everyone."""
    asked = await client(app_with()).ask("GET", path, token=None)
    assert (asked.status, json.loads(asked.body)) == (200, body)


@pytest.mark.parametrize(
    ("method", "target", "url"),
    [
        ("GET", "/v1/models?a=%20b", b"/base/v1/models?a=%20b"),
        ("GET", "/v1/metrics", b"/base/metrics"),
        ("POST", "/v1/rerank", b"/whole/url"),
        ("POST", "/v1/score?a", b"/base/v1/score?a"),
        ("DELETE", "/any/p%20th?q=1", b"/base/any/p%20th?q=1"),
    ],
)
async def test_requests_go_where_the_settings_say(method: str, target: str, url: bytes) -> None:
    """Below the base, or to the whole URL that an endpoint may have of its own."""
    backend = Backend()
    app = app_with(backend, rerank_url="http://other/whole/url")
    await client(app, b"{}").ask(method, target)
    assert backend.requests[0].url.target == url
    assert backend.requests[0].url.host == (b"other" if url == b"/whole/url" else b"backend")


@pytest.mark.parametrize("trusted", [True, False])
async def test_the_hash_of_a_gateway_is_signed_only_where_it_is_trusted(*, trusted: bool) -> None:
    """A client must not choose what is signed."""
    app = app_with(trust_request_hash=trusted)
    await client(app, b"{}").ask("POST", CHAT, (b"x-request-hash", b"AB" * 32))
    chat = cached(app, "an-id")
    assert chat is not None
    assert chat.text.startswith("ab" * 32 if trusted else sha256(b"{}").hexdigest())


async def test_errors_of_the_catch_all_are_rewrapped() -> None:
    """Nothing of a body that is no error leaks; one that breaks off is none."""
    for content in (CANARY.encode(), Body(CANARY.encode(), httpcore.ReadError())):
        asked = await client(app_with(Backend(content, 418, [(b"Retry-After", b"3"), (b"x", b"y")]))).ask("GET", "/tea")
        assert asked.error == (418, "upstream_error", "Upstream request failed with status 418")
        assert asked.headers[b"retry-after"] == b"3"
        assert b"x" not in asked.headers


async def test_the_response_to_head_is_signed_without_a_body() -> None:
    """With the length that the backend declares."""
    app = app_with(Backend(b"", headers=[(b"content-length", b"5"), (b"content-type", b"text/plain")]))
    asked = await client(app).ask("HEAD", "/file")
    assert (asked.status, asked.body, asked.headers[b"content-length"]) == (200, b"", b"5")
    chat = cached(app, asked.headers[b"x-signature-id"].decode())
    assert chat is not None
    assert chat.text.endswith(sha256(b"").hexdigest())


QUERIES: list[tuple[str, tuple[int, str, str]]] = [
    ("signing_algo=rsa", (400, "bad_request", "Invalid signing algorithm. Must be 'ed25519' or 'ecdsa'")),
    ("signing_algo=", (400, "bad_request", "Invalid signing algorithm. Must be 'ed25519' or 'ecdsa'")),
    ("nonce=xyz", (400, "bad_request", "Nonce must be hex-encoded")),
    ("nonce=abc", (400, "bad_request", "Nonce must be hex-encoded")),
    ("nonce=" + "%20" * 64, (400, "bad_request", "Nonce must be hex-encoded")),
    ("nonce=0x" + "ab" * 31, (400, "bad_request", "Nonce must be hex-encoded")),
    ("nonce=", (400, "bad_request", "Nonce must be 32 bytes")),
    ("nonce=" + "ab" * 31, (400, "bad_request", "Nonce must be 32 bytes")),
    ("nonce=" + "ab" * 33, (400, "bad_request", "Nonce must be 32 bytes")),
    ("nonce=a&nonce=b", (400, "bad_request", "A query parameter is given more than once")),
    ("signing_address=0x00", (404, "not_found", "Signing address not found on this server")),
    ("include_tls_fingerprint=maybe", (400, "bad_request", "include_tls_fingerprint must be true or false")),
    ("include_tls_fingerprint", (400, "bad_request", "include_tls_fingerprint must be true or false")),
    (
        "include_tls_fingerprint=true",
        (400, "bad_request", "include_tls_fingerprint needs TLS_CERT_PATH, which this server does not have"),
    ),
]


@pytest.mark.parametrize(("query", "error"), QUERIES)
async def test_bad_questions_for_reports_are_refused(query: str, error: tuple[int, str, str]) -> None:
    """With what is wrong."""
    assert (await client(app_with()).ask("GET", f"/v1/attestation/report?{query}")).error == error


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
async def test_reports_can_be_asked_for_by_address(algorithm: Any) -> None:
    """In any case, with a nonce in any case."""
    address = fixed_pair().identity(algorithm).address
    query = f"signing_algo={algorithm}&signing_address={address.upper().replace('0X', '0x')}&nonce={'AB' * 32}"
    asked = await client(app_with()).ask("GET", f"/v1/attestation/report?{query}&include_tls_fingerprint=No")
    report = json.loads(asked.body)
    assert (report["signing_address"], report["request_nonce"]) == (address, "ab" * 32)
    assert report["simulated"] is True


async def test_reports_need_a_token_unless_they_are_public() -> None:
    """As the operator chose."""
    for public, status in ((False, 401), (True, 200)):
        asked = await client(app_with(public_attestation=public)).ask("GET", "/v1/attestation/report", token=None)
        assert asked.status == status


class BusyGpus(Gpus):
    """GPUs that collect until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.collecting, self.collected = 0, 0
        self.busy, self.go = anyio.Event(), anyio.Event()

    async def collect(self, nonce: bytes) -> GpuEvidence:
        """Return evidence, at last."""
        self.collecting += 1
        self.busy.set()
        try:
            await self.go.wait()
        finally:
            self.collecting -= 1
        self.collected += 1
        return fixed_evidence(nonce)


@pytest.mark.parametrize(("query", "going_on"), [("?nonce={:064x}", 0), ("", 1)], ids=["nonces", "no nonce"])
async def test_clients_that_leave_do_not_wait_for_the_gpu(query: str, going_on: int) -> None:
    """Their places are free again; a collection that others share goes on."""
    gpus, leaves = BusyGpus(), anyio.Event()
    app = App(settings(), pair=fixed_pair(), sources=Sources(quotes=SimulatedQuotes(), gpus=gpus))
    await app.start()
    gone = [client(app, leaves=leaves) for _ in range(1 + MAX_WAITING)]
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for number, each in enumerate(gone):
                group.start_soon(each.ask, "GET", "/v1/attestation/report" + query.format(number))
            await gpus.busy.wait()
            leaves.set()
    assert [each.messages for each in gone] == [[]] * len(gone)
    assert gpus.collecting == going_on
    gpus.go.set()
    assert (await client(app).ask("GET", "/v1/attestation/report?nonce=" + "ab" * 32)).status == 200
    assert gpus.collected == going_on + 1
    await app.aclose()


async def test_a_certificate_that_cannot_be_read_fails_the_report(
    tmp_path: Path, certificate: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a client that asked for the binding; with the cause in the log. It was there when the app was built."""
    path = tmp_path / "cert.pem"
    shutil.copy(certificate, path)
    app = app_with(tls_cert_path=path)
    path.unlink()
    asked = await client(app).ask("GET", "/v1/attestation/report?include_tls_fingerprint=1")
    assert asked.error == SERVER_ERROR
    assert "TLS_CERT_PATH cannot be read" in caplog.text
    assert (await client(app).ask("GET", "/v1/attestation/report")).status == 200


@pytest.mark.parametrize("query", ["", "?nonce=" + "ab" * 32])
@pytest.mark.parametrize(
    ("failure", "fields"),
    [
        (SourceError("no GPU is there", code="gpu_failed"), {"cause": "no GPU is there", "code": "gpu_failed"}),
        (ValueError(CANARY), {"exception": "ValueError"}),
    ],
)
async def test_a_report_that_fails_is_logged_with_its_cause(
    failure: Exception, fields: dict[str, str], query: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors of our own say what failed, with the code of the manual, and quote nothing; of others the type is told.

    The line has the id of the request that began it, as all lines about requests have.
    """
    sources = Sources(quotes=SimulatedQuotes(), gpus=Gpus(failure))
    app = App(settings(), pair=fixed_pair(), upstream=Backend(), sources=sources)
    answered = await client(app).ask("GET", f"/v1/attestation/report{query}")
    assert answered.error == SERVER_ERROR
    (line,) = (vars(record)["fields"] for record in caplog.records if record.levelname == "ERROR")
    assert {name: value for name, value in line.items() if name != "where"} == fields | {
        "request_id": answered.headers[b"x-request-id"].decode()
    }
    assert CANARY not in caplog.text
    assert await metric(app, "teesign_attestation_failures_total") == 1


class SharedStore:
    """A store elsewhere."""

    def __init__(self) -> None:
        self.chats: dict[str, SignedChat] = {}

    async def put(self, ids: Any, chat: SignedChat) -> None:
        """Keep a chat."""
        await anyio.lowlevel.checkpoint()
        self.chats.update((chat_id, chat) for chat_id in ids)

    async def get(self, chat_id: str) -> SignedChat | None:
        """Return a chat."""
        return self.chats.get(chat_id)


async def test_processes_can_share_a_store() -> None:
    """What one has signed, another finds; and none of them claims to know how much is kept."""
    store: SignatureStore = SharedStore()
    one, other = (App(settings(dev=True), pair=fixed_pair(), cache=store, upstream=Backend()) for _ in range(2))
    await client(one, b"{}").ask("POST", CHAT)
    assert (await client(other).ask("GET", "/v1/signature/an-id")).status == 200
    assert b"cache_entries" not in (await client(one).ask("GET", "/metrics")).body


async def test_a_store_that_fails_fails_the_request() -> None:
    """No byte goes out that could not be answered for."""

    class Broken(SharedStore):
        async def put(self, ids: Any, chat: SignedChat) -> None:  # noqa: ARG002 - a store has both
            raise OSError(CANARY)

    app = App(settings(dev=True), pair=fixed_pair(), cache=Broken(), upstream=Backend())
    assert (await client(app, b"{}").ask("POST", CHAT)).error == SERVER_ERROR


def logged(caplog: pytest.LogCaptureFixture) -> Mapping[str, Any]:
    """Return the fields of the last request's log line."""
    fields: Mapping[str, Any] = vars(caplog.records[-1])["fields"]
    return fields


async def test_each_request_is_logged_with_what_may_be_known(caplog: pytest.LogCaptureFixture) -> None:
    """Its method, path, status, sizes and id, and how it went at the backend."""
    caplog.set_level(logging.INFO)
    await client(app_with(), b"{}").ask("POST", CHAT, (b"x-request-id", b"some-id"))
    fields = dict(logged(caplog))
    assert fields.pop("ms") >= 0
    assert fields == {
        "request_id": "some-id",
        "method": "POST",
        "path": CHAT,
        "status": 200,
        "received": 2,
        "sent": 14,
        "backend": "http://backend:9000/base/v1/chat/completions",
        "backend_status": 200,
        "signed": True,
    }


@pytest.mark.parametrize(
    ("method", "target", "shown"),
    [
        ("GET", "/some/%20path?secret", ("GET", "/some/%20path")),
        ("GET", "/v1/signature/kanarienvogel", ("GET", "/v1/signature/{chat_id}")),
        ("G\nT", "/", ("?", "catch-all")),
        ("A" * 17, "/some", ("?", "/some")),
    ],
)
async def test_paths_are_logged_without_what_is_private(
    method: str, target: str, shown: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the query nor a chat's id; and a method only if it is a word."""
    caplog.set_level(logging.INFO)
    await client(app_with()).ask(method, target)
    fields = logged(caplog)
    assert (fields["method"], fields["path"]) in {shown, (shown[0], "/")}


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_nothing_private_is_logged_or_counted(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """At any level: no body, no query, no token, no key, nothing that the backend quotes of them."""
    caplog.set_level(logging.DEBUG)
    message = {"message": f"model {CANARY} is invalid", "type": "BadRequestError"}
    app = app_with(Backend(json.dumps({"id": CANARY, "error": message}).encode(), status), tokens=(CANARY,))
    await client(app, f'{{"a":"{CANARY}"}}'.encode()).ask("POST", f"{CHAT}?a={CANARY}", token=CANARY)
    await client(app, f'{{"a":"{CANARY}'.encode()).ask("POST", CHAT, (b"cookie", CANARY.encode()), token=CANARY)
    await client(app).ask("GET", f"/v1/signature/{CANARY}?a={CANARY}", token=CANARY + "x")
    everything = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert CANARY not in everything
    assert CANARY.encode() not in (await client(app).ask("GET", "/metrics")).body
    if status != 200:
        assert "backend_message=model … is invalid backend_type=BadRequestError" in caplog.text
