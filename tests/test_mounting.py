"""The app as a part of another application, which does not pass the server's lifespan on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast
from urllib.parse import quote

import anyio.to_thread
import fastapi
import pytest
from backend import Backend, answer, in_pieces
from servers import TOKEN, Kind, Stack, serve, settings_for
from starlette.applications import Starlette
from starlette.routing import Mount
from wire import Client

from teesign import SourceError
from teesign.sources import Sources
from teesign.sources.simulated import SimulatedGpus, SimulatedQuotes
from teesign.testing import ECDSA_SECRET, ED25519_SEED, fixed_pair
from teesign_asgi import App
from teesign_asgi.types import ASGIApp

PREFIX = "/inference/proxy"
# Without a lifespan nobody closes the pool, so the backend leaves nothing in it.
ANSWER = answer(200, b'{"ok":true}', b"content-type: application/json", b"connection: close")


def _starlette(app: App) -> ASGIApp:
    return cast(ASGIApp, Starlette(routes=[Mount(PREFIX, app=cast(Any, app))]))


def _fastapi(app: App) -> ASGIApp:
    host = fastapi.FastAPI()
    host.mount(PREFIX, cast(Any, app))
    return cast(ASGIApp, host)


def _nested(app: App) -> ASGIApp:
    first, second = PREFIX.rsplit("/", 1)
    inner = Starlette(routes=[Mount(f"/{second}", app=cast(Any, app))])
    return cast(ASGIApp, Starlette(routes=[Mount(first, app=inner)]))


def _root_path(app: App) -> ASGIApp:
    async def host(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope = {**scope, "root_path": PREFIX}
        await app(scope, receive, send)

    return host


HOSTS: dict[str, Callable[[App], ASGIApp]] = {
    "starlette": _starlette,
    "fastapi": _fastapi,
    "nested": _nested,
    "root path": _root_path,
}


@contextmanager
def mounted(host: str, kind: Kind, app: Callable[[str], App]) -> Iterator[Stack]:
    """Run an app inside of another application before a scripted backend; `app` makes it from the backend's URL."""
    with Backend() as backend:
        backend.play(ANSWER)
        made = app(backend.url)
        with serve(HOSTS[host](made), kind) as port:
            yield Stack(made, backend, Client(port, TOKEN), kind)


@pytest.fixture(params=HOSTS)
def hosted(request: pytest.FixtureRequest, server: Kind) -> Iterator[Stack]:
    """A proxy mounted at the prefix."""
    with mounted(request.param, server, lambda url: App(settings_for(url), pair=fixed_pair())) as running:
        yield running


class _Below(Client):
    """A client whose paths begin below the prefix."""

    def open(self, method: str, target: str, *arguments: Any, **named: Any) -> Any:
        return super().open(method, PREFIX + target, *arguments, **named)


def below(stack: Stack) -> Client:
    """Return a client for the mounted app."""
    return _Below(stack.client.port, TOKEN)


def test_every_kind_of_route(hosted: Stack) -> None:
    """Paths below the prefix mean what they mean without it; the target that is signed is what the client sent."""
    client = below(hosted)
    assert client.get("/version").json()["type"] == "proxy"
    answered = client.post("/v1/chat/completions?a=1", b"{}")
    assert hosted.backend.next_call().target == b"/v1/chat/completions?a=1"
    client.assert_answer_signed(answered, b"{}", answered.json()["id"])
    answered = client.get("/v1/a%20b/c%C3%A9?x=%2F&y")
    assert hosted.backend.next_call().target == b"/v1/a%20b/c%C3%A9?x=%2F&y"
    client.assert_answer_signed(answered, f"{PREFIX}/v1/a%20b/c%C3%A9?x=%2F&y".encode())
    assert client.get("/v1/attestation/report").status == 200
    client.get("/sleep").assert_error(404, "not_found")
    client.get("/v1/%2e%2e/x").assert_error(400, "bad_request")
    client.get("/v1/chat/completions").assert_error(405, "method_not_allowed")


def test_streams(hosted: Stack) -> None:
    """They pass through the host as they come, and are signed."""
    pieces = (b'data: {"id":"mounted"}\n\n', b"data: [DONE]\n\n")
    hosted.backend.play(in_pieces(pieces, b"content-type: text/event-stream", b"connection: close"))
    client = below(hosted)
    answered = client.post("/v1/chat/completions", b"{}")
    client.assert_answer_signed(answered, b"{}", "mounted")
    hosted.backend.call.wait_until_gone()  # the client has its answer before that


@pytest.mark.parametrize("written", ["/@a:(b)+é", "/@a:(b)+%c3%a9", "/%40a%3A%28b%29%2B%C3%A9"])
def test_prefixes_that_can_be_written_in_several_ways(server: Kind, written: str) -> None:
    """Whichever of them a client chooses, routes are those below, and administrative paths are not there."""
    with Backend() as backend:
        backend.play(ANSWER)
        app = App(settings_for(backend.url), pair=fixed_pair())
        host = Starlette(routes=[Mount("/@a:(b)+é", app=cast(Any, app))])
        with serve(cast(ASGIApp, host), server) as port:
            client, prefix = Client(port, TOKEN), quote(written, safe="/@:()+%")
            assert client.get(f"{prefix}/version").json()["type"] == "proxy"
            client.get(f"{prefix}/sleep").assert_error(404, "not_found")
            assert client.get(f"{prefix}/v1/%73ome").status == 200
            assert backend.call.target == b"/v1/%73ome"


def test_a_target_that_could_be_a_body_is_not_relayed(server: Kind) -> None:
    """Some servers take one without a slash in front; signed, its text would be that of a body of these bytes."""
    with mounted("starlette", server, lambda url: App(settings_for(url), pair=fixed_pair())) as running:
        assert running.client.get(f"%2F{PREFIX[1:]}/v1/models").status == 400
        assert running.backend.connections == 0


def test_paths_outside_are_the_hosts(server: Kind) -> None:
    """What is not below the prefix never reaches the app."""
    with mounted("starlette", server, lambda url: App(settings_for(url), pair=fixed_pair())) as running:
        assert running.client.get("/version").status == 404
        assert running.client.get("/inference/proxyx/version").status == 404
        assert running.backend.connections == 0


class _SlowKeys:
    """A key service that waits until several requests are there, and fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.asked: list[str] = []
        self.failures = failures
        self.go_on = threading.Event()
        self.begun = threading.Event()

    async def key(self, path: str, purpose: str) -> bytes:
        assert purpose == "signing"
        self.asked.append(path)
        self.begun.set()
        await anyio.to_thread.run_sync(self.go_on.wait, 10)
        if self.failures:
            self.failures -= 1
            raise SourceError("The key service is away.", code="kms_failed")
        return ECDSA_SECRET if "ecdsa" in path else ED25519_SEED


def with_keys(keys: _SlowKeys) -> Callable[[str], App]:
    """Return what makes an app that gets its keys from a service, as in production."""
    sources = Sources(quotes=SimulatedQuotes(), gpus=SimulatedGpus(), keys=keys)
    return lambda url: App(replace(settings_for(url), dev=False), sources=sources)


def test_the_first_requests_start_the_app_once(server: Kind) -> None:
    """However many come at once, the keys are fetched once, and all requests are signed with them."""
    keys = _SlowKeys()
    with mounted("starlette", server, with_keys(keys)) as running, ThreadPoolExecutor(20) as pool:
        client = below(running)
        asked = [pool.submit(client.post, "/v1/chat/completions", b"{}") for _ in range(20)]
        assert keys.begun.wait(60)
        keys.go_on.set()
        for each in asked:
            client.assert_answer_signed(each.result(), b"{}")
        assert keys.asked == ["test/model/ecdsa-signing-key", "test/model/ed25519-signing-key"]
        assert running.app.pair.ecdsa.identity == fixed_pair().ecdsa.identity


def test_a_start_that_failed_is_tried_again(server: Kind) -> None:
    """A key service that was away costs the requests of that time, and no more."""
    keys = _SlowKeys(failures=1)
    keys.go_on.set()
    with mounted("fastapi", server, with_keys(keys)) as running:
        client = below(running)
        client.post("/v1/chat/completions", b"{}").assert_error(500, "server_error", "Internal server error")
        assert running.backend.connections == 0
        client.assert_answer_signed(client.post("/v1/chat/completions", b"{}"), b"{}")
