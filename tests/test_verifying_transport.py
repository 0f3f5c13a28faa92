"""The verifying transports on real sockets: who is attested when, what passes, what waits, what never looks whole."""

from __future__ import annotations

import gc
import math
import secrets
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import httpx
import httpx2
import pytest
from authorities import INTEL, NVIDIA
from backend import Backend, Call, Script, answer, chunked, event_stream, head, json_answer
from far_end import GenuineGpus, GenuineQuotes, clock, genuine_stack, pccs, trust
from mitm import ConnectProxy, Message, MiddleMan, connect_proxy, middle_man, tls_front
from servers import SECOND_TOKEN, TOKEN, Stack, serve, settings_for
from starlette.applications import Starlette
from starlette.routing import Mount

from teesign import FetchError, Quote, SigningPair, TeesignError, UsageError, VerificationError
from teesign.client import (
    AsyncVerifyingTransport,
    Server,
    Trust,
    VerifiedResponse,
    VerifyingTransport,
    ask_with,
    ask_with_async,
    fetch_report,
    round_trip,
    run,
    run_async,
)
from teesign.sources import Sources
from teesign.testing import ManualClock, fixed_pair
from teesign.verify.policy import Policy
from teesign_asgi import App
from teesign_asgi.types import ASGIApp

CHAT, REPORT = "/v1/chat/completions", "/v1/attestation/report"
WHOLE = b'{"id":"chatcmpl-1"}'
FORGED = b'{"id":"chatcmpl-forged"}'
EVENTS = [b'data: {"id":"chatcmpl-s","n":%d}\n\n' % number for number in range(3)]
DONE = b"data: [DONE]\n\n"
HEADERS = {"authorization": f"Bearer {TOKEN}"}
BINDING = trust(Policy(require_tls_key=True))
OTHER_PAIR = SigningPair.from_secrets(b"\1" * 32, b"\2" * 32)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Stack]:
    """A proxy whose reports verify."""
    with genuine_stack() as running:
        yield running


@pytest.fixture
def server(shared_server: Stack) -> Stack:
    """The same, before a backend that answers with a small JSON object until a test has it do something else."""
    shared_server.backend.play(json_answer(WHOLE))
    return shared_server


@pytest.fixture
def middle(server: Stack) -> Iterator[MiddleMan]:
    """Somebody who sees what is asked of the server."""
    with middle_man(server.client.port) as running:
        yield running


def url_of(server: Stack, path: str = CHAT) -> str:
    """Return a URL at a proxy."""
    return f"http://127.0.0.1:{server.client.port}{path}"


def transport(**options: Any) -> VerifyingTransport:
    """Return a transport that trusts the test's authorities."""
    # Reading the certificate authorities takes longer than all else, and nothing here needs them.
    return VerifyingTransport(
        **{"trust": trust(), "transport": httpx.HTTPTransport(verify=False), "clock": clock, **options}
    )


def client(family: Any = httpx, **options: Any) -> Any:
    """Return a client over such a transport."""
    inner = options.pop("inner", None) or family.HTTPTransport(verify=False)
    return family.Client(transport=transport(transport=inner, **options), headers=HEADERS)


def async_client(family: Any = httpx, **options: Any) -> Any:
    """Return an asynchronous client over such a transport."""
    inner = options.pop("inner", None) or family.AsyncHTTPTransport(verify=False)
    given = {"trust": trust(), "transport": inner, "clock": clock, **options}
    return family.AsyncClient(transport=AsyncVerifyingTransport(**given), headers=HEADERS)


@pytest.mark.parametrize("family", [httpx, httpx2])
def test_an_answer_says_that_it_was_verified(server: Stack, family: Any) -> None:
    """The callback gets what was established, and the response has it among its extensions."""
    results: list[VerifiedResponse] = []
    with client(family, verified=results.append) as ask:
        response = ask.post(url_of(server), json={})
    assert response.content == WHOLE
    assert response.extensions["teesign"] is results[0]
    assert (results[0].method, results[0].url, results[0].status) == ("POST", url_of(server), 200)
    assert results[0].answer.signing_address == fixed_pair().identity("ecdsa").address
    assert results[0].attestation.verified.nonce == results[0].attestation.nonce
    assert repr(results[0]) == f"VerifiedResponse('POST', '127.0.0.1:{server.client.port}', 200)"


@pytest.mark.parametrize("family", [httpx, httpx2])
def test_the_librarys_own_transport_does_the_io_by_default(server: Stack, family: Any) -> None:
    """Which library that is, is known from the first request."""
    with family.Client(transport=VerifyingTransport(trust(), clock=clock), headers=HEADERS) as ask:
        assert "teesign" in ask.post(url_of(server), json={}).extensions


@pytest.mark.parametrize("family", [httpx, httpx2])
@pytest.mark.anyio
async def test_it_does_so_asynchronously_too(server: Stack, family: Any) -> None:
    """On both event loops."""
    async with family.AsyncClient(transport=AsyncVerifyingTransport(trust(), clock=clock), headers=HEADERS) as ask:
        assert "teesign" in (await ask.post(url_of(server), json={})).extensions


def test_one_transport_serves_both_libraries(server: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each does its own I/O, trusting the authorities that it trusts by itself, and relies on the same attestation."""
    results: list[VerifiedResponse] = []
    contexts: list[Any] = []

    def note(make: Any) -> Any:
        contexts.append(make)
        return make()

    monkeypatch.setattr(httpx, "create_ssl_context", partial(note, httpx.create_ssl_context))
    monkeypatch.setattr(httpx2, "create_ssl_context", partial(note, httpx2.create_ssl_context))
    with VerifyingTransport(trust(), clock=clock, verified=results.append) as shared:
        for family in (httpx, httpx2, httpx):
            with_shared: Any = family.Client(transport=shared, headers=HEADERS)
            with_shared.post(url_of(server), json={})
    assert (len(results), len(contexts), len(set(contexts))) == (3, 2, 2)
    assert results[0].attestation is results[1].attestation is results[2].attestation


@pytest.mark.anyio
async def test_one_transport_serves_both_libraries_asynchronously(server: Stack) -> None:
    """On both event loops."""
    results: list[VerifiedResponse] = []
    async with AsyncVerifyingTransport(trust(), clock=clock, verified=results.append) as shared:
        for family in (httpx, httpx2, httpx):
            with_shared: Any = family.AsyncClient(transport=shared, headers=HEADERS)
            await with_shared.post(url_of(server), json={})
    assert len(results) == 3


@pytest.mark.parametrize("family", [httpx, httpx2])
def test_a_proxy_that_is_given_to_the_transport_can_forge_nothing(
    server: Stack, middle: MiddleMan, family: Any
) -> None:
    """All goes through it, report and signature too, and is verified as without it."""
    with family.Client(transport=VerifyingTransport(trust(), clock=clock, proxy=middle.url), headers=HEADERS) as ask:
        assert "teesign" in ask.post(url_of(server), json={}).extensions
        assert middle.seen[:2] == [REPORT, CHAT]
        middle.on_response = lambda message: message.with_body(FORGED) if message.path == CHAT else message
        with pytest.raises(VerificationError):
            ask.post(url_of(server), json={})


@pytest.mark.anyio
async def test_nor_can_it_asynchronously(server: Stack, middle: MiddleMan) -> None:
    """On both event loops."""
    given = AsyncVerifyingTransport(trust(), clock=clock, proxy=middle.url)
    async with httpx2.AsyncClient(transport=given, headers=HEADERS) as ask:
        assert "teesign" in (await ask.post(url_of(server), json={})).extensions
        assert middle.seen[:2] == [REPORT, CHAT]
        middle.on_response = lambda message: message.with_body(FORGED) if message.path == CHAT else message
        with pytest.raises(VerificationError):
            await ask.post(url_of(server), json={})


@pytest.mark.parametrize("family", [httpx, httpx2])
@pytest.mark.parametrize("way", ["proxy", "mounts"])
def test_whoever_insists_notices_that_a_client_goes_around_the_transport(
    server: Stack, middle: MiddleMan, family: Any, way: str
) -> None:
    """A client with a proxy or mounts of its own sends requests elsewhere, and no transport can tell."""

    def insist(response: Any) -> None:
        response.read()
        response.extensions["teesign"]

    middle.on_response = lambda message: message.with_body(FORGED)
    around = middle.url if way == "proxy" else {"all://": family.HTTPTransport(proxy=middle.url, verify=False)}
    hooks = {"response": [insist]}
    with (
        family.Client(transport=transport(), verify=False, event_hooks=hooks, headers=HEADERS, **{way: around}) as ask,
        pytest.raises(KeyError, match="teesign"),
    ):
        ask.post(url_of(server), json={})


def test_the_environments_proxies_are_not_used(server: Stack, middle: MiddleMan, monkeypatch: Any) -> None:
    """Neither by the client, which has a transport, nor by the transport."""
    monkeypatch.setenv("HTTP_PROXY", middle.url)
    with httpx.Client(transport=VerifyingTransport(trust(), clock=clock), headers=HEADERS) as ask:
        assert "teesign" in ask.post(url_of(server), json={}).extensions
    assert not middle.seen


@pytest.mark.parametrize("made", [VerifyingTransport, AsyncVerifyingTransport])
def test_a_transport_of_ones_own_has_its_own_proxy(made: Any) -> None:
    """It cannot be given another one from outside."""
    with pytest.raises(UsageError, match=rf"transport={made._own}\(proxy=") as caught:
        made(Policy(), transport=httpx.HTTPTransport(verify=False), proxy="http://user:canary@127.0.0.1:1")
    assert caught.value.code == "two_ways"
    assert "canary" not in repr(made(Policy(), proxy="http://user:canary@127.0.0.1:1"))


@pytest.mark.parametrize(("family", "other"), [(httpx, httpx2), (httpx2, httpx)])
@pytest.mark.parametrize("kind", ["HTTPTransport", "MockTransport"])
def test_a_transport_of_the_other_library_is_refused(family: Any, other: Any, kind: str) -> None:
    """It does not take this one's requests, and would say so in an AssertionError without a word."""
    given = getattr(other, kind)(**({"verify": False} if kind == "HTTPTransport" else {"handler": None}))
    with client(family, inner=given) as ask, pytest.raises(UsageError) as caught:
        ask.post(f"http://127.0.0.1:1{CHAT}", json={})
    assert caught.value.code == "bad_transport"
    assert f"{other.__name__}.{kind}" in str(caught.value)
    assert f"transport={family.__name__}.HTTPTransport(" in str(caught.value)


@pytest.mark.anyio
async def test_so_it_is_asynchronously() -> None:
    """On both event loops."""
    async with async_client(httpx2, inner=httpx.AsyncHTTPTransport(verify=False)) as ask:
        with pytest.raises(UsageError, match=r"transport=httpx2\.AsyncHTTPTransport\(") as caught:
            await ask.post(f"http://127.0.0.1:1{CHAT}", json={})
    assert caught.value.code == "bad_transport"


@pytest.mark.parametrize(
    ("made", "given", "own"),
    [
        (VerifyingTransport, httpx.AsyncHTTPTransport, "HTTPTransport"),
        (AsyncVerifyingTransport, httpx2.HTTPTransport, "AsyncHTTPTransport"),
    ],
)
def test_a_transport_of_the_other_kind_is_refused_at_once(made: Any, given: Any, own: str) -> None:
    """A synchronous one cannot do the I/O of an asynchronous one, nor the other way round."""
    with pytest.raises(UsageError, match=f"{given.__name__}.*transport={own}") as caught:
        made(Policy(), transport=given(verify=False))
    assert caught.value.code == "bad_transport"


@pytest.mark.parametrize("base", [object, httpx.BaseTransport, httpx2.BaseTransport])
@pytest.mark.parametrize("family", [httpx, httpx2])
def test_a_transport_of_neither_library_serves_both(server: Stack, family: Any, base: type) -> None:
    """Neither asks for its own base class, so that one may be written for both."""

    class Either(base):  # type: ignore[misc]  # one class or another
        def handle_request(self, request: Any) -> Any:
            return inner.handle_request(request)

        def close(self) -> None:
            inner.close()

    inner = family.HTTPTransport(verify=False)
    with client(family, inner=Either()) as ask:
        assert "teesign" in ask.post(url_of(server), json={}).extensions


@pytest.mark.parametrize("made", [VerifyingTransport, AsyncVerifyingTransport])
@pytest.mark.parametrize(
    "proxy",
    [
        "",
        "127.0.0.1:3128",
        "ftp://canary",
        "http://user:can/ary@127.0.0.1",
        "http://",
        "http://user:canary\1@127.0.0.1",
        "http://user:canary@127.0.0.1\n",
        "http://user:canary@127.0. 0.1",
        httpx.URL("http://user:canary@127.0.0.1/way"),
    ],
)
def test_what_can_be_no_proxy_is_refused_at_once(made: Any, proxy: str) -> None:
    """Nothing of it is shown: it may hold a password."""
    with pytest.raises(UsageError, match="proxy must be") as caught:
        made(Policy(), proxy=proxy)
    assert (caught.value.code, "can" in str(caught.value).replace("can be", "")) == ("bad_proxy", False)


@pytest.mark.parametrize("host", [pytest.param("xn--\u2603", id="no-name"), pytest.param("a" * 65536, id="too-long")])
@pytest.mark.parametrize("family", [httpx, httpx2])
def test_what_the_library_takes_for_no_proxy_is_refused_without_its_words(family: Any, host: str) -> None:
    """It quotes the address, in an exception of its own."""
    given = VerifyingTransport(trust(), clock=clock, proxy=f"http://user:canary@{host}")
    with family.Client(transport=given) as ask, pytest.raises(UsageError, match="proxy must be") as caught:
        ask.post(f"http://127.0.0.1:1{CHAT}", json={})
    assert caught.value.code == "bad_proxy"
    assert "canary" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("made", [VerifyingTransport, AsyncVerifyingTransport])
@pytest.mark.parametrize("kind", [str, httpx.Proxy, httpx2.Proxy])
def test_a_socks_proxy_is_refused_at_once_where_its_package_is_missing(
    made: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both libraries go through one with a package that does not come with them."""
    proxy = kind("socks5://user:canary@127.0.0.1:1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "socksio" else object())
    with pytest.raises(UsageError, match="pip install socksio") as caught:
        made(Policy(), proxy=proxy)
    assert (caught.value.code, "canary" in str(caught.value)) == ("bad_proxy", False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    made(Policy(), proxy=proxy)


def test_ed25519_serves_as_well(server: Stack) -> None:
    """The chosen key is the one that is attested."""
    with client(algorithm="ed25519") as ask:
        result = ask.post(url_of(server), json={}).extensions["teesign"]
    assert result.answer.signing_address == fixed_pair().identity("ed25519").address


def test_a_policy_alone_is_enough() -> None:
    """It has collateral fetched from Intel, unless told otherwise; nothing is fetched before the first request."""
    with VerifyingTransport(Policy()) as made:
        assert "VerifyingTransport" in repr(made)


@pytest.mark.parametrize("made", [VerifyingTransport, AsyncVerifyingTransport, Trust])
@pytest.mark.parametrize("given", ["policy.json", {"require_gpus": False}, None, Policy], ids=repr)
def test_what_is_no_policy_is_refused_at_once(made: Any, given: Any) -> None:
    """Not at the first request."""
    with pytest.raises(UsageError, match="parse_policy") as caught:
        made(given)
    assert caught.value.code == "bad_policy"


def test_a_server_is_attested_once(middle: MiddleMan) -> None:
    """By the first request; the others rely on it."""
    with client() as ask:
        for _ in range(3):
            ask.post(f"{middle.url}{CHAT}", json={})
    assert middle.seen.count(REPORT) == 1


def test_threads_share_one_attestation(middle: MiddleMan) -> None:
    """Those that come meanwhile wait for it."""
    with client() as ask, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: ask.post(f"{middle.url}{CHAT}", json={}), range(16)))
    assert all("teesign" in each.extensions for each in answers)
    assert middle.seen.count(REPORT) == 1


@pytest.mark.anyio
async def test_tasks_share_one_attestation(middle: MiddleMan) -> None:
    """On both event loops."""
    answers: list[Any] = []

    async with async_client() as ask:

        async def one() -> None:
            answers.append(await ask.post(f"{middle.url}{CHAT}", json={}))

        async with anyio.create_task_group() as tasks:
            for _ in range(16):
                tasks.start_soon(one)
    assert all("teesign" in each.extensions for each in answers)
    assert (len(answers), middle.seen.count(REPORT)) == (16, 1)


@pytest.mark.anyio
async def test_a_cancelled_attestation_is_taken_over(middle: MiddleMan) -> None:
    """Who waits for it does not depend on who began it."""
    begun, go_on = threading.Event(), threading.Event()

    def hold_first_report(message: Message) -> Message:
        if message.path == REPORT and not begun.is_set():
            begun.set()
            go_on.wait(60)
        return message

    middle.on_response = hold_first_report
    async with async_client() as ask, anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def first() -> None:
            with scope:
                await ask.post(f"{middle.url}{CHAT}", json={})

        tasks.start_soon(first)
        await anyio.to_thread.run_sync(begun.wait, 60)
        scope.cancel()
        response = await ask.post(f"{middle.url}{CHAT}", json={})
        go_on.set()
    assert "teesign" in response.extensions


def test_an_attestation_gets_old(middle: MiddleMan) -> None:
    """After `max_age` the next request has the server attested anew."""
    now = ManualClock(100.0)
    with client(max_age=60.0, monotonic=now) as ask:
        for step, reports in ((0.0, 1), (59.0, 1), (1.0, 2), (59.9, 2)):
            now.advance(step)
            ask.post(f"{middle.url}{CHAT}", json={})
            assert middle.seen.count(REPORT) == reports


def test_a_failed_attestation_is_tried_again(middle: MiddleMan) -> None:
    """Nothing is kept of it."""
    middle.on_response = lambda message: message.with_body(b"{}")
    with client() as ask:
        with pytest.raises(VerificationError):
            ask.post(f"{middle.url}{CHAT}", json={})
        middle.behave()
        assert "teesign" in ask.post(f"{middle.url}{CHAT}", json={}).extensions


def test_a_server_with_new_keys_is_attested_anew(middle: MiddleMan) -> None:
    """Its first answer is not verified; the next one is, by a new report."""
    with genuine_stack(pair=OTHER_PAIR) as other, client() as ask:
        ask.post(f"{middle.url}{CHAT}", json={})
        middle.upstream = other.client.port
        other.backend.play(json_answer(WHOLE))
        with pytest.raises(VerificationError) as caught:
            ask.post(f"{middle.url}{CHAT}", json={})
        assert caught.value.code == "identity_mismatch"
        result = ask.post(f"{middle.url}{CHAT}", json={}).extensions["teesign"]
    assert result.answer.signing_address == OTHER_PAIR.identity("ecdsa").address


def test_each_origin_is_attested(server: Stack) -> None:
    """One server's report says nothing about another."""
    with middle_man(server.client.port) as first, middle_man(server.client.port) as second, client() as ask:
        for middle in (first, second, first):
            ask.post(f"{middle.url}{CHAT}", json={})
        assert (first.seen.count(REPORT), second.seen.count(REPORT)) == (1, 1)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/version"),
        ("GET", "/metrics"),
        ("GET", "/v1/models"),
        ("GET", "/v1/metrics"),
        ("POST", "/v1/tokenize"),
        ("GET", "/v1/signature/x"),
        ("GET", REPORT),
    ],
)
def test_what_is_not_signed_passes(middle: MiddleMan, method: str, path: str) -> None:
    """It does not look verified; but tokens, and texts to be counted, go to an attested server only."""
    with client() as ask:
        response = ask.request(method, f"{middle.url}{path}", json={} if method == "POST" else None)
    assert "teesign" not in response.extensions
    assert middle.seen == [REPORT, path]


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/tokenize"), ("GET", "/v1/models")])
def test_nothing_is_sent_to_a_server_that_is_not_attested(middle: MiddleMan, method: str, path: str) -> None:
    """Be the answer signed or not."""
    with client(trust=trust(Policy(compose_hash=("00" * 32,)))) as ask, pytest.raises(VerificationError):
        ask.request(method, f"{middle.url}{path}")
    assert middle.seen == [REPORT]


@pytest.mark.anyio
async def test_what_is_not_signed_passes_asynchronously(middle: MiddleMan) -> None:
    """On both event loops; errors too."""
    async with async_client() as ask:
        assert (await ask.get(f"{middle.url}/v1/models")).status_code == 200
        assert middle.seen == [REPORT, "/v1/models"]
        response = await ask.post(f"{middle.url}{CHAT}", content=b"no JSON")
    assert (response.status_code, "teesign" in response.extensions) == (400, False)


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 429, 500, 503])
def test_errors_and_redirects_pass(server: Stack, status: int) -> None:
    """They are no answers, and never signed; redirects are not followed."""
    server.backend.play(answer(status, b"{}", b"location: /elsewhere"))
    with client() as ask:
        response = ask.post(url_of(server), json={})
    assert (response.status_code, "teesign" in response.extensions) == (status, False)
    assert server.backend.call.target == b"/v1/chat/completions"


def switch_protocols(call: Call) -> None:
    """Answer as to a websocket, with a message behind it."""
    call.send(head(101, b"connection: upgrade", b"upgrade: websocket"), b"\x81\x06forged")


WEBSOCKET = {"connection": "upgrade", "upgrade": "websocket"}


@pytest.mark.parametrize("path", ["/v1/realtime", "/v1/models"])
def test_no_other_protocol_is_handed_out(server: Stack, path: str) -> None:
    """Nobody signs what goes over a websocket, so that anybody in between could answer in it."""
    inner = TwoEnds()
    with Backend() as impostor, client(inner=inner) as ask:
        impostor.play(switch_protocols)
        inner.port = urlsplit(impostor.url).port
        with (
            pytest.raises(VerificationError) as caught,
            ask.stream("GET", url_of(server, path), headers=WEBSOCKET) as response,
        ):
            pytest.fail(f"the program was given {response.extensions['network_stream'].read(100)!r}")
        assert caught.value.code == "protocol_switched"
        impostor.call.wait_until_gone()


@pytest.mark.anyio
async def test_no_other_protocol_is_handed_out_asynchronously(server: Stack) -> None:
    """On both event loops."""
    inner = AsyncTwoEnds()
    with Backend() as impostor:
        impostor.play(switch_protocols)
        inner.port = urlsplit(impostor.url).port
        async with async_client(httpx2, inner=inner) as ask:
            with pytest.raises(VerificationError) as caught:
                async with ask.stream("GET", url_of(server, "/v1/realtime"), headers=WEBSOCKET):
                    pytest.fail("the program was given a stream")
            assert caught.value.code == "protocol_switched"
            await anyio.to_thread.run_sync(impostor.call.wait_until_gone)


def test_who_follows_a_redirect_ends_at_a_verified_answer(server: Stack) -> None:
    """Each step goes through the transport, and the last is verified as any other."""

    def once(call: Call) -> None:
        redirected = call.target == b"/elsewhere"
        script = json_answer(WHOLE) if redirected else answer(307, b"", b"location: /elsewhere")
        script(call)

    server.backend.play(once)
    with client() as ask:
        response = ask.post(url_of(server), json={"a": 1}, follow_redirects=True)
    assert ("teesign" in response.extensions, len(response.history)) == (True, 1)


@pytest.mark.parametrize("family", [httpx, httpx2])
@pytest.mark.parametrize(
    ("method", "status", "target", "code"),
    [
        ("POST", 303, "/v1/models", "request_changed"),
        ("POST", 303, "/v1/responses/another", "request_changed"),
        ("POST", 302, "/v1/responses/another", "request_changed"),
        ("POST", 307, "/v1/tokenize", "signature_missing"),
        ("GET", 301, "/v1/responses/another", "request_changed"),
        ("GET", 302, "/v1/responses/another", "request_changed"),
        ("GET", 307, "/v1/responses/another", "request_changed"),
        ("GET", 308, "/v1/chat/completions?a=1", "request_changed"),
        ("DELETE", 307, "/v1/responses/another", "request_changed"),
    ],
)
def test_a_redirect_does_not_lead_around_the_check(
    server: Stack, family: Any, method: str, status: int, target: str, code: str
) -> None:
    """Nobody signs redirects: one to what is not signed would have any answer pass for the one that was asked for.

    And one that drops the body, or changes the target that stands for it, would have the answer to another question
    pass, if the server signs that.
    """
    path = "/v1/responses/mine"

    def redirect(call: Call) -> None:
        script = answer(status, b"", b"location: " + target.encode())
        (script if call.target == path.encode() else json_answer(b'{"id":"chatcmpl-unsigned"}'))(call)

    server.backend.play(redirect)
    question = {"json": {"a": 1}} if method == "POST" else {}
    with client(family) as ask, pytest.raises(VerificationError) as caught:
        ask.request(method, url_of(server, path), follow_redirects=True, **question)
    assert caught.value.code == code


def test_a_wrong_token_is_the_servers_answer(server: Stack) -> None:
    """The report needs the token as well: without it nothing is attested, and nothing sent."""
    with client() as ask, pytest.raises(FetchError) as caught:
        ask.post(url_of(server), json={}, headers={"authorization": "Bearer canary"})
    assert caught.value.code == "bad_status"
    assert "canary" not in str(caught.value)
    assert not server.backend.calls


@pytest.mark.parametrize("family", [httpx, httpx2])
@pytest.mark.parametrize(
    ("value", "encoding"),
    [
        pytest.param(b"Bearer caf\xc3\xa9", None, id="UTF-8"),
        pytest.param(b"Bearer caf\xe9", None, id="Latin-1"),
        pytest.param("Bearer café", "utf-8", id="text"),
        pytest.param("Basic Og==", None, id="another scheme"),
    ],
)
def test_any_authorization_that_can_be_sent_is_repeated(
    middle: MiddleMan, family: Any, value: bytes | str, encoding: str | None
) -> None:
    """Byte for byte, for the report and the signature too."""
    seen = []

    def note(message: Message) -> Message:
        seen.append(message.headers["authorization"].encode("latin-1"))
        return replace(message, headers=message.headers | HEADERS)

    middle.behave()
    middle.on_request = note
    headers = family.Headers({"authorization": value}, encoding=encoding)
    with client(family) as ask:
        assert "teesign" in ask.post(middle.url + CHAT, json={}, headers=headers).extensions
    assert seen == [value if isinstance(value, bytes) else value.encode()] * 3


@pytest.mark.parametrize("value", [b"Bearer canary\r\nx: y", b"Bearer canary\0", b"Bearer canary "])
def test_an_authorization_that_cannot_be_sent_is_said_to_be_one(server: Stack, value: bytes) -> None:
    """Instead of a server that cannot be reached; and nothing shows it, not even what the libraries raise."""
    with client() as ask, pytest.raises(UsageError) as caught:
        ask.post(url_of(server), json={}, headers={"authorization": value})
    assert caught.value.code == "bad_authorization"
    assert "canary" not in "".join(traceback.format_exception(caught.value))
    assert not server.backend.calls


def test_the_token_goes_to_the_server_only(server: Stack) -> None:
    """The service with the collateral does not get it."""
    with pccs() as service, client(trust=trust(collateral=None, pccs=service.url)) as ask:
        assert "teesign" in ask.post(url_of(server), json={}).extensions
        assert len(service.calls) == 4
        assert not any(b"authorization" in call.header_names for call in service.calls)


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        pytest.param("GET", "/v1/models/some?x=%20y", {}, id="no-body"),
        pytest.param("GET", "/v1/models/some?", {}, id="empty-query"),
        pytest.param("GET", "/v1/models/some??", {}, id="query-of-a-question-mark"),
        pytest.param("DELETE", "/files/a%2Bb", {}, id="delete"),
        pytest.param("POST", "/anything", {"content": b""}, id="empty-body"),
        pytest.param("POST", "/v1/embeddings", {"content": b'{"input": "x"}'}, id="bytes"),
        pytest.param("POST", "/anything", {"content": iter([b"a", b"", b"b" * 3000])}, id="iterator"),
        pytest.param("POST", "/v1/audio/transcriptions", {"files": {"file": b"sound"}}, id="multipart"),
    ],
)
def test_every_kind_of_request_verifies(server: Stack, method: str, path: str, options: dict[str, Any]) -> None:
    """Whatever its body is made of, and without one its target stands for it."""
    with client() as ask:
        response = ask.request(method, url_of(server, path), **options)
    assert response.status_code == 200
    assert "teesign" in response.extensions


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(json_answer(b'{"no":"id"}'), id="id-inserted"),
        pytest.param(json_answer(b"[1]"), id="array"),
        pytest.param(answer(200, b"\x00\xff" * 1000, b"content-type: audio/wav"), id="audio"),
        pytest.param(answer(200, b""), id="empty"),
        pytest.param(answer(201, b"text", b"content-type: text/plain"), id="created"),
        pytest.param(answer(204, b""), id="no-content"),
        pytest.param(event_stream(DONE), id="only-the-end"),
        pytest.param(event_stream(*EVENTS, b"data: [DONE]"), id="ended-by-the-body"),
        pytest.param(event_stream(b"data: {}\r\n\r\ndata: [DONE]\r\n\r\n"), id="crlf"),
    ],
)
@pytest.mark.parametrize("family", [httpx, httpx2])
def test_every_kind_of_response_verifies(server: Stack, script: Script, family: Any) -> None:
    """It is what the client would have got without verification."""
    server.backend.play(script)
    with client(family) as ask:
        response = ask.post(url_of(server), json={})
        assert "teesign" in response.extensions
        server.backend.play(script)
        assert "teesign" in ask.get(url_of(server, "/whatever")).extensions


@pytest.mark.parametrize("content_type", [b"application/json", b"text/event-stream"])
@pytest.mark.parametrize("body", [b'{"no":"id"}', b"".join(EVENTS), EVENTS[0] + DONE + EVENTS[1]])
def test_a_part_of_a_document_verifies(server: Stack, content_type: bytes, body: bytes) -> None:
    """It need not have an end of its own, and what looks like one is none."""
    server.backend.play(answer(206, body, b"content-type: " + content_type, b"content-range: bytes 5-9/1000"))
    with client() as ask:
        response = ask.get(url_of(server, "/whatever"))
    assert "teesign" in response.extensions
    assert response.content == body


@pytest.fixture(scope="module")
def mounted() -> Iterator[str]:
    """The address of a proxy below a path of another application."""
    with Backend() as backend:
        backend.play(answer(200, WHOLE, b"content-type: application/json", b"connection: close"))
        sources = Sources(quotes=GenuineQuotes(), gpus=GenuineGpus())
        app = App(settings_for(backend.url, dev=False), pair=fixed_pair(), sources=sources)
        host = cast(ASGIApp, Starlette(routes=[Mount("/llm", app=cast(Any, app))]))
        with serve(host, "uvicorn") as port:
            yield f"http://127.0.0.1:{port}/llm"


@pytest.mark.parametrize("prefix", ["/llm", "/llm/", "/llm/v1", "/llm/v1/"])
def test_a_mounted_server_is_found_below_its_prefix(mounted: str, prefix: str) -> None:
    """Report and signature are asked for below it, and so is what is not signed; with /v1 it is as good as without."""
    with client(prefix=prefix) as ask:
        assert "teesign" in ask.post(f"{mounted}{CHAT}", json={}).extensions
        assert "teesign" in ask.get(f"{mounted}/other?x").extensions
        assert "teesign" not in ask.get(f"{mounted}/v1/models").extensions


def test_whoever_forgets_the_prefix_is_told(mounted: str) -> None:
    """Where the report was looked for, and what to write."""
    with client() as ask, pytest.raises(FetchError) as caught:
        ask.post(f"{mounted}{CHAT}", json={})
    assert (caught.value.code, caught.value.status) == ("bad_status", 404)
    assert f" {REPORT}." in str(caught.value)
    assert "prefix=" in str(caught.value)


def test_a_front_that_strips_the_prefix_leaves_answers_to_bodies_only(server: Stack) -> None:
    """Without a body the target is what was signed, and the server saw another one than the client sent."""
    server.backend.play(json_answer(WHOLE))
    inner = httpx.HTTPTransport()

    class Stripping(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            url = request.url.copy_with(raw_path=request.url.raw_path.removeprefix(b"/llm"))
            return inner.handle_request(
                httpx.Request(request.method, url, headers=request.headers, stream=request.stream)
            )

        def close(self) -> None:
            inner.close()

    with client(prefix="/llm", inner=Stripping()) as ask:
        assert "teesign" in ask.post(url_of(server, f"/llm{CHAT}"), json={}).extensions
        with pytest.raises(VerificationError) as caught:
            ask.get(url_of(server, "/llm/v1/responses/1"))
    assert caught.value.code == "request_hash_mismatch"


@pytest.mark.parametrize("prefix", ["/", "/v1", "/v1/"])
def test_a_server_that_is_not_mounted_needs_no_prefix(server: Stack, prefix: str) -> None:
    """What clients write behind every address is none."""
    with client(prefix=prefix) as ask:
        assert "teesign" in ask.post(url_of(server), json={}).extensions


@pytest.mark.parametrize("made", [VerifyingTransport, AsyncVerifyingTransport])
@pytest.mark.parametrize(
    "prefix", ["llm", "v1", "https://example.org/llm", "//example.org", "/llm?x", "/llm#x", "/l lm", "/llm\n", "/é"]
)
def test_what_can_be_no_prefix_is_refused_at_once(made: Any, prefix: str) -> None:
    """It would lead to no server, or to another one."""
    with pytest.raises(UsageError, match='like "/llm"') as caught:
        made(Policy(), prefix=prefix)
    assert caught.value.code == "bad_prefix"


@pytest.mark.parametrize("made", [VerifyingTransport, AsyncVerifyingTransport])
def test_a_model_that_cannot_be_asked_for_is_refused_at_once(made: Any) -> None:
    """Not by every request, in words of a codec's."""
    with pytest.raises(UsageError) as caught:
        made(Policy(), model="\udcff")
    assert caught.value.code == "bad_model"


def test_events_come_as_they_are_made(server: Stack) -> None:
    """Nothing but the end is held back: the second event is only made when the first has been read."""
    go_on = threading.Event()

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, b"content-type: text/event-stream", b"transfer-encoding: chunked"))
        call.send(chunked(EVENTS[0], end=False))
        assert go_on.wait(60)
        call.send(chunked(EVENTS[1], DONE))

    server.backend.play(script)
    results: list[VerifiedResponse] = []
    with client(verified=results.append) as ask, ask.stream("POST", url_of(server), json={}) as response:
        chunks = response.iter_bytes()
        assert next(chunks) == EVENTS[0]
        assert not results
        assert "teesign" not in response.extensions
        go_on.set()
        rest = next(chunks)
        while b"[DONE]" not in rest:
            assert not results
            rest += next(chunks)
        assert len(results) == 1
        assert "teesign" in response.extensions
        assert rest + b"".join(chunks) == EVENTS[1] + DONE


def test_who_closes_at_the_terminator_has_a_verified_answer(server: Stack) -> None:
    """As the OpenAI client does; nothing fails for it, and the connection is given up."""
    server.backend.play(event_stream(*EVENTS, DONE))
    with client() as ask, ask.stream("POST", url_of(server), json={}) as response:
        for line in response.iter_lines():
            if line == "data: [DONE]":
                break
        assert "teesign" in response.extensions


def streams_on(call: Call) -> None:
    """Send events until the client is gone."""
    call.read_body()
    call.send(head(200, b"content-type: text/event-stream", b"transfer-encoding: chunked"))
    while not call.connection.gone.wait(0.01):
        call.send(chunked(EVENTS[0], end=False))


def test_a_stream_that_is_closed_early_is_neither_verified_nor_an_error(server: Stack) -> None:
    """Generation stops, and nothing says that what was read is genuine."""
    server.backend.play(streams_on)
    results: list[VerifiedResponse] = []
    with client(verified=results.append) as ask:
        with ask.stream("POST", url_of(server), json={}) as response:
            assert next(response.iter_bytes())
        assert "teesign" not in response.extensions
        server.backend.call.wait_until_gone()
    assert not results


@pytest.mark.anyio
async def test_a_stream_that_is_cancelled_is_neither(server: Stack) -> None:
    """On both event loops, and without a warning from anywhere."""
    server.backend.play(streams_on)
    results: list[VerifiedResponse] = []
    async with async_client(verified=results.append) as ask:
        with anyio.CancelScope() as scope:
            async with ask.stream("POST", url_of(server), json={}) as response:
                async for _ in response.aiter_bytes():
                    scope.cancel()
        assert scope.cancelled_caught
        await anyio.to_thread.run_sync(server.backend.call.wait_until_gone)
    gc.collect()
    assert not results


@pytest.mark.parametrize(
    ("script", "code"),
    [
        pytest.param(event_stream(*EVENTS), "answer_incomplete", id="no-terminator"),
        pytest.param(event_stream(), "answer_incomplete", id="empty"),
    ],
)
def test_a_stream_without_terminator_is_never_verified(server: Stack, script: Script, code: str) -> None:
    """The server does not sign it; its events were handed out, its end is a failure."""
    server.backend.play(script)
    with client() as ask, ask.stream("POST", url_of(server), json={}) as response:
        with pytest.raises(VerificationError) as caught:
            list(response.iter_bytes())
        assert caught.value.code == code
        assert "teesign" not in response.extensions


@pytest.mark.parametrize("family", [httpx, httpx2])
@pytest.mark.parametrize("content_type", [b"application/json", b"text/event-stream", b"audio/wav"])
def test_an_answer_that_breaks_off_is_the_librarys_error(server: Stack, family: Any, content_type: bytes) -> None:
    """As without verification; it is not verified."""

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, b"content-type: " + content_type, b"transfer-encoding: chunked"))
        call.send(chunked(EVENTS[0], end=False))
        call.close()

    server.backend.play(script)
    results: list[VerifiedResponse] = []
    with client(family, verified=results.append) as ask, pytest.raises((family.TransportError, family.HTTPStatusError)):
        ask.post(url_of(server), json={}).raise_for_status()
    assert not results


@pytest.mark.parametrize("streamed", [False, True])
def test_a_signature_that_does_not_come_is_an_error_in_limited_time(middle: MiddleMan, streamed: bool) -> None:  # noqa: FBT001 - a column
    """The answer is not handed out, though it came."""
    over = threading.Event()

    def hold(message: Message) -> Message:
        if message.path.startswith("/v1/signature/"):
            over.wait(20)
        elif streamed and message.path == CHAT:
            return Message(message.path, 200, {"content-type": "text/event-stream"}, b"".join(EVENTS) + DONE)
        return message

    middle.on_response = hold
    out: list[bytes] = []
    with (
        client(limit=0.5) as ask,
        pytest.raises(FetchError) as caught,
        ask.stream("POST", f"{middle.url}{CHAT}", json={}) as response,
    ):
        out.extend(response.iter_bytes())
    over.set()
    assert caught.value.code == "timeout"
    assert b"[DONE]" not in b"".join(out)


@pytest.mark.parametrize("status", [429, 503])
def test_an_answer_is_not_lost_to_a_rate_limit(middle: MiddleMan, status: int) -> None:
    """Report and signature are asked for again where the server asks for patience; the request itself is not."""
    refused: set[str] = set()

    def once(message: Message) -> Message:
        if message.path == CHAT or message.path in refused:
            return message
        refused.add(message.path)
        return Message(message.path, status, {"retry-after": "0"}, b"{}")

    middle.on_response = once
    with client() as ask:
        assert "teesign" in ask.post(f"{middle.url}{CHAT}", json={}).extensions
    assert (len(refused), middle.seen.count(CHAT)) == (2, 1)


def test_the_limit_may_be_none_at_all(server: Stack) -> None:
    """A program that wants to wait as long as it takes says so with an infinite one."""
    with client(limit=math.inf) as ask:
        assert "teesign" in ask.post(url_of(server), json={}).extensions


@pytest.mark.anyio
async def test_so_it_may_asynchronously(server: Stack) -> None:
    """On both event loops."""
    async with async_client(limit=math.inf) as ask:
        assert "teesign" in (await ask.post(url_of(server), json={})).extensions


def test_a_server_cannot_keep_those_who_wait_for_its_attestation() -> None:
    """Whoever waits for another's attestation to end gets a turn, and an error, in limited time."""

    def hint(call: Call) -> None:
        for _ in range(200):
            if call.connection.gone.wait(0.05):
                return
            call.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        call.close()

    def code(_: int) -> str:
        with pytest.raises(FetchError) as caught:
            ask.post(f"{backend.url}{CHAT}", json={})
        return caught.value.code

    with Backend() as backend, client(limit=0.3) as ask, ThreadPoolExecutor(2) as pool:
        backend.play(hint)
        assert list(pool.map(code, range(2))) == ["timeout"] * 2


def make_other_transports(monkeypatch: pytest.MonkeyPatch, family: Any, **changes: Any) -> None:
    """Have a library's own transports made otherwise, and believe any certificate."""
    for name in ("HTTPTransport", "AsyncHTTPTransport"):
        made = getattr(family, name)
        monkeypatch.setattr(family, name, lambda made=made, **options: made(**{**options, "verify": False, **changes}))


@pytest.mark.parametrize("family", [httpx, httpx2])
def test_streams_can_take_all_connections(server: Stack, family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for its signature, so that comes over a connection that no stream can take."""
    make_other_transports(monkeypatch, family, limits=family.Limits(max_connections=1))
    server.backend.play(event_stream(*EVENTS, DONE))
    with family.Client(transport=VerifyingTransport(trust(), clock=clock, limit=3.0), headers=HEADERS) as ask:
        for _ in range(2):
            assert "teesign" in ask.post(url_of(server), json={}).extensions


@pytest.mark.anyio
async def test_streams_can_take_all_connections_asynchronously(server: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """On both event loops."""
    make_other_transports(monkeypatch, httpx2, limits=httpx2.Limits(max_connections=1))
    server.backend.play(event_stream(*EVENTS, DONE))
    given = AsyncVerifyingTransport(trust(), clock=clock, limit=3.0)
    async with httpx2.AsyncClient(transport=given, headers=HEADERS) as ask:
        for _ in range(2):
            assert "teesign" in (await ask.post(url_of(server), json={})).extensions


@pytest.mark.parametrize("family", [httpx, httpx2])
def test_a_pool_that_is_too_small_is_named_as_such(server: Stack, family: Any) -> None:
    """A program whose own transport has no connection left for the signature is told what to change."""
    server.backend.play(event_stream(*EVENTS, DONE))
    inner = family.HTTPTransport(verify=False, limits=family.Limits(max_connections=1))
    with client(family, inner=inner, limit=1.0) as ask, pytest.raises(FetchError, match="max_connections") as caught:
        ask.post(url_of(server), json={})
    assert caught.value.code == "no_connection"


@pytest.mark.anyio
async def test_a_pool_that_is_too_small_is_named_as_such_asynchronously(server: Stack) -> None:
    """On both event loops."""
    server.backend.play(event_stream(*EVENTS, DONE))
    inner = httpx2.AsyncHTTPTransport(verify=False, limits=httpx2.Limits(max_connections=1))
    async with async_client(httpx2, inner=inner, limit=1.0) as ask:
        with pytest.raises(FetchError) as caught:
            await ask.post(url_of(server), json={})
    assert caught.value.code == "no_connection"


def is_silent(call: Call) -> None:
    """Answer nothing; who gives up may leave the connection to end by itself."""
    call.connection.gone.wait(5)


def let_eight_in_at_once(ask: Any) -> None:
    """Have the requests of eight threads come to the transport together, however late a thread gets its turn."""
    together = threading.Barrier(8)
    ask.event_hooks = {"request": [lambda _: together.wait(60)]}


def test_those_who_wait_for_an_attestation_share_its_failure() -> None:
    """Were each to try again, the last would wait for all."""

    def fail(_: int) -> str:
        with pytest.raises(FetchError) as caught:
            ask.post(f"{backend.url}{CHAT}", json={})
        return caught.value.code

    with Backend() as backend, client(limit=1.0) as ask, ThreadPoolExecutor(8) as threads:
        backend.play(is_silent)
        let_eight_in_at_once(ask)
        started = time.monotonic()
        assert list(threads.map(fail, range(8))) == ["timeout"] * 8
        assert time.monotonic() - started < 5
        assert len(backend.calls) <= 2


@pytest.mark.anyio
async def test_tasks_share_its_failure_too() -> None:
    """On both event loops."""
    codes: list[str] = []

    async def fail() -> None:
        with pytest.raises(FetchError) as caught:
            await ask.post(f"{backend.url}{CHAT}", json={})
        codes.append(caught.value.code)

    with Backend() as backend:
        backend.play(is_silent)
        async with async_client(limit=1.0) as ask:
            with anyio.fail_after(5):
                async with anyio.create_task_group() as tasks:
                    for _ in range(8):
                        tasks.start_soon(fail)
    assert (codes, len(backend.calls) <= 2) == (["timeout"] * 8, True)


def questions_in(error: BaseException | None) -> list[bytes]:
    """Return the bodies of the requests that a report about an error, with all local variables, would name."""
    found: set[bytes] = set()
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            requests = [value for value in frame.f_locals.values() if isinstance(value, httpx.Request)]
            found.update(request.content for request in requests if request.method == "POST")
        error = error.__cause__ or error.__context__
    return sorted(found)


def are_eight_alike(errors: list[TeesignError], code: str) -> bool:
    """Tell whether these are eight errors, which say the same."""
    said = {
        (type(each), str(each), each.code, str(sorted(vars(each).items())), type(each.__cause__)) for each in errors
    }
    return len(set(map(id, errors))) == 8 and len(said) == 1 and errors[0].code == code


def says_nothing_late(call: Call) -> None:
    """Answer with an empty report, when all wait for it."""
    time.sleep(0.6)
    json_answer(b"{}")(call)


def has_gone_late(call: Call) -> None:
    """End the connection, when all wait for what comes over it, or over a second one."""
    time.sleep(0.3)
    call.close()


SHARED_FAILURES = [
    (is_silent, 1.0, "timeout"),
    (has_gone_late, 20.0, "unreachable"),
    (says_nothing_late, 20.0, "bad_report"),
]
"""What the backend does, the seconds that it has for it, and what all who wait for it are told."""


@pytest.mark.parametrize(("script", "limit", "code"), SHARED_FAILURES)
def test_each_who_shares_a_failure_has_an_error_of_its_own(script: Script, limit: float, code: str) -> None:
    """Whoever reports one shows nothing of the others' requests; it says what the first one's says."""
    errors: list[TeesignError] = []

    def fail(number: int) -> None:
        with pytest.raises(TeesignError) as caught:
            ask.post(f"{backend.url}{CHAT}", content=b"secret %d" % number)
        assert questions_in(caught.value) == [b"secret %d" % number]
        errors.append(caught.value)

    with Backend() as backend, client(limit=limit) as ask, ThreadPoolExecutor(8) as threads:
        backend.play(script)
        let_eight_in_at_once(ask)
        list(threads.map(fail, range(8)))
        assert len(backend.calls) <= 2
    assert are_eight_alike(errors, code)


@pytest.mark.anyio
@pytest.mark.parametrize(("script", "limit", "code"), SHARED_FAILURES)
async def test_so_has_each_task(script: Script, limit: float, code: str) -> None:
    """On both event loops."""
    errors: list[TeesignError] = []

    async def fail(number: int) -> None:
        with pytest.raises(TeesignError) as caught:
            await ask.post(f"{backend.url}{CHAT}", content=b"secret %d" % number)
        assert questions_in(caught.value) == [b"secret %d" % number]
        errors.append(caught.value)

    with Backend() as backend:
        backend.play(script)
        async with async_client(limit=limit) as ask, anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(fail, number)
        assert len(backend.calls) <= 2
    assert are_eight_alike(errors, code)


def test_nobody_fails_for_anothers_token(middle: MiddleMan) -> None:
    """What the server answered to one token says nothing about the next."""
    waits, begun = threading.Event(), threading.Event()

    def hold_refusal(message: Message) -> Message:
        if message.status == 401:
            begun.set()
            waits.wait(20)
        return message

    def refused() -> None:
        with pytest.raises(FetchError, match="401"):
            ask.post(f"{middle.url}{CHAT}", json={}, headers={"authorization": "Bearer another"})

    middle.on_response = hold_refusal
    with client() as ask, ThreadPoolExecutor(2) as threads:
        first = threads.submit(refused)
        assert begun.wait(20)
        second = threads.submit(ask.post, f"{middle.url}{CHAT}", json={})
        time.sleep(0.2)  # until it waits; there is nothing to see of that
        waits.set()
        first.result(20)
        assert "teesign" in second.result(20).extensions


def test_what_the_collateral_service_refuses_goes_for_every_token(middle: MiddleMan) -> None:
    """It gets none, so that whoever waits would ask in vain with another."""
    waits, begun, comes = threading.Event(), threading.Event(), threading.Event()

    def refuse(call: Call) -> None:
        begun.set()
        waits.wait(20)
        answer(403, b"")(call)

    def refused(token: str) -> None:
        with pytest.raises(FetchError, match="403"):
            ask.post(f"{middle.url}{CHAT}", json={}, headers={"authorization": f"Bearer {token}"})

    with (
        Backend() as service,
        client(trust=trust(collateral=None, pccs=service.url)) as ask,
        ThreadPoolExecutor(2) as threads,
    ):
        service.play(refuse)
        first = threads.submit(refused, TOKEN)
        assert begun.wait(20)
        ask.event_hooks = {"request": [lambda _: comes.set()]}
        second = threads.submit(refused, SECOND_TOKEN)
        assert comes.wait(20)
        time.sleep(0.5)  # until it waits; there is nothing more to see of that
        waits.set()
        first.result(20)
        second.result(20)
        assert len(service.calls) == 1


def test_an_interrupted_attestation_is_taken_over(middle: MiddleMan) -> None:
    """Who waits for it does not depend on who began it."""
    begun, interrupt = threading.Event(), threading.Event()

    class Interrupted(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if not begun.is_set():
                begun.set()
                interrupt.wait(20)
                raise KeyboardInterrupt
            return super().handle_request(request)

    with client(inner=Interrupted(verify=False)) as ask, ThreadPoolExecutor(2) as threads:
        first = threads.submit(ask.post, f"{middle.url}{CHAT}", json={})
        assert begun.wait(20)
        second = threads.submit(ask.post, f"{middle.url}{CHAT}", json={})
        time.sleep(0.2)
        interrupt.set()
        assert isinstance(first.exception(20), KeyboardInterrupt)
        assert "teesign" in second.result(20).extensions


@pytest.mark.parametrize("script", [json_answer(WHOLE), event_stream(*EVENTS, DONE)])
def test_what_the_callback_raises_takes_the_answers_place(server: Stack, script: Script) -> None:
    """A program that keeps records can refuse an answer it could not record."""
    server.backend.play(script)

    def refuse(_: VerifiedResponse) -> None:
        raise KeyError("full")

    with client(verified=refuse) as ask, pytest.raises(KeyError):
        ask.post(url_of(server), json={})


def test_connections_are_used_again(server: Stack) -> None:
    """Answers that were read to their end leave their connection in the pool."""
    inner = httpx.HTTPTransport(verify=False, limits=httpx.Limits(max_connections=1))
    with client(inner=inner) as ask:
        for _ in range(3):
            assert "teesign" in ask.post(url_of(server), json={}).extensions


@pytest.mark.anyio
async def test_streams_verify_beside_each_other(server: Stack) -> None:
    """Many at once on one transport, each with its own signature."""
    server.backend.play(event_stream(*EVENTS, DONE))
    results: list[VerifiedResponse] = []
    async with async_client(httpx2, verified=results.append) as ask, anyio.create_task_group() as tasks:

        async def one(number: int) -> None:
            async with ask.stream("POST", url_of(server), json={"n": number}) as response:
                assert b"".join([chunk async for chunk in response.aiter_bytes()]).endswith(DONE)

        for number in range(10):
            tasks.start_soon(one, number)
    assert len({result.answer.request_sha256 for result in results}) == 10


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("ending", "added"),
    [
        pytest.param(b"data: [DONE]", b"", id="ended-by-the-body"),
        pytest.param(DONE, b"data: {}\n\n", id="more-after-it"),
    ],
)
async def test_a_streams_end_is_found_asynchronously(
    server: Stack, middle: MiddleMan, ending: bytes, added: bytes
) -> None:
    """It is the terminator, after which nothing is handed out, or, where that has no blank line, the body's end."""
    server.backend.play(event_stream(*EVENTS, ending))
    middle.on_response = lambda message: message.with_body(message.body + (added if message.path == CHAT else b""))
    async with async_client(httpx2) as ask:
        response = await ask.post(f"{middle.url}{CHAT}", json={})
    assert response.content == b"".join(EVENTS) + ending
    assert "teesign" in response.extensions


SPEAKS_OF_THE_END = b'data: {"text":"[DONE]"}\n\n'


def goes_on(content_type: bytes) -> Script:
    """Return a script that sends more and more, behind `[DONE]` in the text of an event, until the client is gone."""

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, b"content-type: " + content_type, b"transfer-encoding: chunked"))
        call.send(chunked(SPEAKS_OF_THE_END, end=False))
        for _ in range(1000):
            if call.connection.gone.wait(0.001):
                return
            call.send(chunked(EVENTS[0] * 10, end=False))
        call.send(chunked())

    return script


@pytest.mark.parametrize("content_type", [b"text/event-stream", b"audio/wav"])
def test_no_answer_fills_the_memory(server: Stack, content_type: bytes) -> None:
    """What would have to be held back beyond the limit is an error, and the connection is closed."""
    inner = TwoEnds()
    with Backend() as endless, client(inner=inner, max_held=10_000) as ask:
        endless.play(goes_on(content_type))
        inner.port = urlsplit(endless.url).port
        with pytest.raises(FetchError, match="max_held") as caught:
            ask.post(url_of(server), json={})
        assert caught.value.code == "too_large"
        endless.call.wait_until_gone()


@pytest.mark.parametrize("content_type", [b"text/event-stream", b"audio/wav"])
@pytest.mark.anyio
async def test_no_answer_fills_the_memory_asynchronously(server: Stack, content_type: bytes) -> None:
    """On both event loops."""
    inner = AsyncTwoEnds()
    with Backend() as endless:
        endless.play(goes_on(content_type))
        inner.port = urlsplit(endless.url).port
        async with async_client(httpx2, inner=inner, max_held=10_000) as ask:
            with pytest.raises(FetchError, match="max_held") as caught:
                await ask.post(url_of(server), json={})
            assert caught.value.code == "too_large"
            await anyio.to_thread.run_sync(endless.call.wait_until_gone)


class Pieces(httpx.AsyncByteStream):
    """A body that is no generator: it has nothing but the two methods that the library asks for."""

    def __init__(self, body: bytes) -> None:
        self._pieces = iter([body[:5], body[5:]])

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return next(self._pieces)
        except StopIteration:
            raise StopAsyncIteration from None


class Whole(httpx.AsyncBaseTransport):
    """Somebody's own transport."""

    def __init__(self) -> None:
        self._inner = httpx.AsyncHTTPTransport(verify=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Read each response whole, and hand it out in two pieces."""
        response = await self._inner.handle_async_request(request)
        body = await response.aread()
        return httpx.Response(response.status_code, headers=response.headers, stream=Pieces(body))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("script", [json_answer(WHOLE), event_stream(*EVENTS, DONE)])
async def test_any_transport_will_do_for_the_io(server: Stack, script: Script) -> None:
    """It need not be the library's own."""
    server.backend.play(script)
    async with async_client(inner=Whole()) as ask:
        assert "teesign" in (await ask.post(url_of(server), json={})).extensions


def test_the_answer_to_a_request_that_was_not_sent_does_not_verify(server: Stack) -> None:
    """`httpcore` reads the answer that is there already when it cannot write the request's head any more."""
    url = url_of(server, "/v1/anything")
    forged = httpx.request("DELETE", url, headers=HEADERS)
    inner = httpx.HTTPTransport(verify=False)

    class Early(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.method == "GET":
                return inner.handle_request(request)
            return httpx.Response(200, headers=forged.headers, content=forged.content)

    with client(inner=Early()) as ask, pytest.raises(VerificationError) as caught:
        ask.post(url, json={"messages": []})
    assert caught.value.code == "request_incomplete"
    inner.close()


@pytest.mark.parametrize("family", [httpx, httpx2])
@pytest.mark.parametrize("charset", ["utf-16-le", "cp037", '"utf-16-le"'])
def test_no_charset_hides_an_end(server: Stack, family: Any, charset: str) -> None:
    """A library would decode an end out of bytes that hold none: nobody signs the head that says how."""
    encoded = (EVENTS[0] + DONE).decode().encode(charset.strip('"'))
    server.backend.play(answer(200, encoded, b"content-type: text/event-stream; charset=" + charset.encode()))
    seen: list[str] = []
    with (
        client(family) as ask,
        pytest.raises(VerificationError) as caught,
        ask.stream("POST", url_of(server), json={}) as response,
    ):
        seen.extend(response.iter_lines())
    assert caught.value.code == "answer_incomplete"
    assert not any("[DONE]" in line for line in seen)


@pytest.mark.anyio
async def test_asynchronous_bodies_verify(server: Stack) -> None:
    """A request's body may be an asynchronous iterator."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"a":'
        await anyio.lowlevel.checkpoint()
        yield b"1}"

    async with async_client() as ask:
        assert "teesign" in (await ask.post(url_of(server), content=pieces())).extensions


def test_nothing_is_sent_without_tls_where_its_key_has_to_be_bound() -> None:
    """Not even the token: no report could bind a key that the connection does not have."""
    with Backend() as listening, client(trust=BINDING) as ask, pytest.raises(VerificationError) as caught:
        ask.post(f"{listening.url}{CHAT}", json={})
    assert (caught.value.code, listening.connections) == ("tls_key_missing", 0)


def test_a_server_that_binds_no_tls_key_is_named_as_such(server: Stack, tmp_path: Path) -> None:
    """It runs behind TLS, and was not told of the certificate: nothing is sent to it, however often one tries."""
    with tls_front(server.client.port, tmp_path, "own") as port, client(trust=BINDING) as ask:
        for _ in range(2):
            with pytest.raises(VerificationError) as caught:
                ask.post(f"https://127.0.0.1:{port}{CHAT}", json={})
            assert caught.value.code == "tls_key_not_bound"
    assert not server.backend.calls


class TwoEnds(httpx.BaseTransport):
    """Somebody who has the report come from where it is genuine, and takes the prompts himself.

    Attributes:
        port: where everything else goes, if it is set.
        report: is called with the path of each report that is asked for.
    """

    def __init__(self) -> None:
        self.port: int | None = None
        self.report: Callable[[str], None] = lambda _: None
        self._inner = httpx.HTTPTransport(verify=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send all but reports to the other port."""
        if request.url.path == REPORT:
            self.report(REPORT)
        elif self.port is not None:
            request.url = request.url.copy_with(port=self.port)
        return self._inner.handle_request(request)

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()


class AsyncTwoEnds(httpx2.AsyncBaseTransport):
    """The same, asynchronously, and over the other library."""

    def __init__(self) -> None:
        self.port: int | None = None
        self.report: Callable[[str], None] = lambda _: None
        self._inner = httpx2.AsyncHTTPTransport(verify=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send all but reports to the other port."""
        if request.url.path == REPORT:
            self.report(REPORT)
        elif self.port is not None:
            request.url = request.url.copy_with(port=self.port)
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


@dataclass(frozen=True)
class Fronts:
    """A server behind TLS, and somebody else's TLS before the same server."""

    backend: Backend
    port: int
    other: int
    directory: Path

    def url(self, path: str = CHAT, *, other: bool = False) -> str:
        """Return a URL at one of the two."""
        return f"https://127.0.0.1:{self.other if other else self.port}{path}"

    @contextmanager
    def renewed(self, proxy: ConnectProxy) -> Iterator[None]:
        """Have the server renew its key: new connections, which go through a proxy, end at the other one."""
        certificate = self.directory / "own.pem"
        kept = certificate.read_bytes()
        certificate.write_bytes((self.directory / "other.pem").read_bytes())
        proxy.port = self.other
        try:
            yield
        finally:
            certificate.write_bytes(kept)


@pytest.fixture(scope="module")
def fronts(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Fronts]:
    """A server that binds its TLS key into reports."""
    directory = tmp_path_factory.mktemp("tls")
    (directory / "own.pem").write_bytes(certificate.read_bytes())  # until the one in front has a key of its own
    with (
        genuine_stack(tls_cert_path=directory / "own.pem") as running,
        tls_front(running.client.port, directory, "own") as own,
        tls_front(running.client.port, directory, "other") as other,
    ):
        yield Fronts(running.backend, own, other, directory)


def test_the_tls_key_is_bound(fronts: Fronts) -> None:
    """With a policy that asks for it, the report's connection must end at the key that the report binds."""
    fronts.backend.play(json_answer(WHOLE))
    with client(trust=BINDING) as ask:
        assert ask.post(fronts.url(), json={}).extensions["teesign"].attestation.spki_sha256 is not None
        with pytest.raises(VerificationError) as caught:
            ask.post(fronts.url(other=True), json={})
    assert caught.value.code == "tls_key_mismatch"


def test_no_prompt_goes_to_another_tls_key(fronts: Fronts) -> None:
    """A new connection that ends elsewhere is closed before anything is sent over it."""
    fronts.backend.play(json_answer(WHOLE))
    traced: list[str] = []

    def trace(event: str, _: Any) -> None:
        traced.append(event)

    inner = TwoEnds()
    with client(trust=BINDING, inner=inner) as ask:
        ask.post(fronts.url(), json={}, extensions={"trace": trace})
        assert "http11.receive_response_body.complete" in traced
        inner.port = fronts.other
        with pytest.raises(VerificationError) as caught:
            ask.post(fronts.url(), json={})
    assert caught.value.code == "tls_key_mismatch"
    assert fronts.backend.call.target == CHAT.encode()


@pytest.mark.parametrize("name", [None, "example.org"])
@pytest.mark.parametrize("family", [httpx, httpx2])
def test_no_prompt_goes_through_a_tunnel_to_another_tls_key(fronts: Fronts, family: Any, name: str | None) -> None:
    """Nor where a program names the server in another way to TLS: not every release of the libraries does so then."""
    fronts.backend.play(json_answer(WHOLE))
    extensions = {} if name is None else {"sni_hostname": name}
    with connect_proxy(fronts.port) as proxy:
        every_time_anew = family.Limits(max_keepalive_connections=0)
        inner = family.HTTPTransport(proxy=proxy.url, verify=False, limits=every_time_anew)
        with client(family, trust=BINDING, inner=inner) as ask:
            ask.post(fronts.url(), json={}, extensions=extensions)
            proxy.port = fronts.other
            with pytest.raises(VerificationError) as caught:
                ask.post(fronts.url(), json={}, extensions=extensions)
    assert caught.value.code == "tls_key_mismatch"
    assert len(fronts.backend.calls) == 1


def test_a_round_trip_sends_no_prompt_to_another_tls_key(fronts: Fronts) -> None:
    """Nor do single questions: what `teesign verify` asks goes to the attested key as well."""
    fronts.backend.play(json_answer(WHOLE))
    inner = TwoEnds()
    server = Server(f"https://127.0.0.1:{fronts.port}", f"Bearer {TOKEN}")
    flow = partial(round_trip, server, BINDING, "noise", random=secrets.token_bytes, clock=clock)
    with httpx.Client(transport=inner) as ask:
        assert run(flow(), ask_with(ask)).response == WHOLE
        inner.port = fronts.other
        with pytest.raises(VerificationError) as caught:
            run(flow(), ask_with(ask))
    assert caught.value.code == "tls_key_mismatch"
    assert len(fronts.backend.calls) == 1


def test_no_answer_from_another_tls_key_counts(fronts: Fronts) -> None:
    """Over a connection that was there already it is found by the answer."""
    fronts.backend.play(json_answer(WHOLE))
    inner = TwoEnds()
    inner.port = fronts.other
    with client(trust=BINDING, inner=inner) as ask:
        inner.handle_request(httpx.Request("GET", fronts.url("/version"))).read()
        for method, path in [("POST", CHAT), ("POST", "/bad/../path"), ("GET", "/version")]:
            with pytest.raises(VerificationError) as caught:
                ask.request(method, fronts.url(path), json={})
            assert caught.value.code == "tls_key_mismatch"


@pytest.mark.parametrize("pooled", [True, False])
def test_a_server_with_a_new_tls_key_is_attested_anew(fronts: Fronts, pooled: bool) -> None:  # noqa: FBT001 - a column
    """By the next request, whether a new connection shows the key or an answer over one that was there already."""
    fronts.backend.play(json_answer(WHOLE))
    reports: list[str] = []
    inner = TwoEnds()
    with client(trust=BINDING, inner=inner) as ask:
        ask.post(fronts.url(), json={})
        inner.port = fronts.other
        if pooled:
            inner.handle_request(httpx.Request("GET", fronts.url("/version"))).read()
        with pytest.raises(VerificationError) as caught:
            ask.post(fronts.url(), json={})
        inner.port, inner.report = None, reports.append
        ask.post(fronts.url(), json={})
    assert (caught.value.code, len(reports)) == ("tls_key_mismatch", 1)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.anyio
async def test_a_server_with_a_new_tls_key_is_attested_anew_asynchronously(fronts: Fronts, pooled: bool) -> None:  # noqa: FBT001 - a column
    """On both event loops."""
    fronts.backend.play(json_answer(WHOLE))
    reports: list[str] = []
    inner = AsyncTwoEnds()
    async with async_client(httpx2, trust=BINDING, inner=inner) as ask:
        await ask.post(fronts.url(), json={})
        inner.port = fronts.other
        if pooled:
            await (await inner.handle_async_request(httpx2.Request("GET", fronts.url("/version")))).aread()
        with pytest.raises(VerificationError) as caught:
            await ask.post(fronts.url(), json={})
        inner.port, inner.report = None, reports.append
        await ask.post(fronts.url(), json={})
    assert (caught.value.code, len(reports)) == ("tls_key_mismatch", 1)


@pytest.mark.parametrize("family", [httpx, httpx2])
def test_no_request_fails_for_a_renewed_tls_key(fronts: Fronts, family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that were there before it end at the old key: nothing goes over them once the new one is attested."""
    make_other_transports(monkeypatch, family)
    together = threading.Barrier(4)

    def answer_together(call: Call) -> None:
        together.wait(20)
        json_answer(WHOLE)(call)

    fronts.backend.play(answer_together)
    now = ManualClock(0.0)
    with connect_proxy(fronts.port) as proxy, ThreadPoolExecutor(4) as threads:
        given = VerifyingTransport(BINDING, proxy=proxy.url, clock=clock, monotonic=now, max_age=60.0)
        with family.Client(transport=given, headers=HEADERS) as ask:
            assert [each.status_code for each in threads.map(lambda _: ask.post(fronts.url(), json={}), range(4))]
            fronts.backend.play(json_answer(WHOLE))
            with fronts.renewed(proxy):
                assert "teesign" in ask.post(fronts.url(), json={}).extensions
                now.advance(60.0)
                for _ in range(6):
                    assert "teesign" in ask.post(fronts.url(), json={}).extensions


@pytest.mark.anyio
async def test_no_request_fails_for_a_renewed_tls_key_asynchronously(
    fronts: Fronts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both event loops."""
    make_other_transports(monkeypatch, httpx2)
    fronts.backend.play(json_answer(WHOLE))
    now = ManualClock(0.0)
    with connect_proxy(fronts.port) as proxy:
        given = AsyncVerifyingTransport(BINDING, proxy=proxy.url, clock=clock, monotonic=now, max_age=60.0)
        async with httpx2.AsyncClient(transport=given, headers=HEADERS) as ask:
            await ask.post(fronts.url(), json={})
            with fronts.renewed(proxy):
                now.advance(60.0)
                for _ in range(2):
                    assert "teesign" in (await ask.post(fronts.url(), json={})).extensions


def note_closed(monkeypatch: pytest.MonkeyPatch, family: Any) -> list[Any]:
    """Return a list that the library's own transports are put into when they are closed."""
    closed: list[Any] = []

    class Noted(family.HTTPTransport):  # type: ignore[misc]  # of either library
        def close(self) -> None:
            closed.append(self)
            super().close()

    class AsyncNoted(family.AsyncHTTPTransport):  # type: ignore[misc]  # of either library
        async def aclose(self) -> None:
            closed.append(self)
            await super().aclose()

    monkeypatch.setattr(family, "HTTPTransport", Noted)
    monkeypatch.setattr(family, "AsyncHTTPTransport", AsyncNoted)
    make_other_transports(monkeypatch, family)
    return closed


@pytest.mark.parametrize("family", [httpx, httpx2])
def test_connections_to_a_renewed_tls_key_are_closed(
    fronts: Fronts, family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can go over them any more; but what is open over them is read to its end, and verified, first."""
    closed = note_closed(monkeypatch, family)
    now = ManualClock(0.0)
    with connect_proxy(fronts.port) as proxy:
        given = VerifyingTransport(BINDING, proxy=proxy.url, clock=clock, monotonic=now, max_age=60.0)
        with family.Client(transport=given, headers=HEADERS) as ask:
            fronts.backend.play(json_answer(WHOLE))
            ask.post(fronts.url(), json={})
            fronts.backend.play(event_stream(*EVENTS, DONE))
            with ask.stream("POST", fronts.url(), json={}) as stream, fronts.renewed(proxy):
                now.advance(60.0)
                for _ in range(2):
                    assert "teesign" in ask.post(fronts.url(), json={}).extensions
                assert not closed
                stream.read()
                assert "teesign" in stream.extensions
                for _ in range(2):
                    assert "teesign" in ask.post(fronts.url(), json={}).extensions
                assert len(closed) == 2
        assert len(set(closed)) == 4


@pytest.mark.anyio
async def test_connections_to_a_renewed_tls_key_are_closed_asynchronously(
    fronts: Fronts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both event loops."""
    closed = note_closed(monkeypatch, httpx2)
    now = ManualClock(0.0)
    with connect_proxy(fronts.port) as proxy:
        given = AsyncVerifyingTransport(BINDING, proxy=proxy.url, clock=clock, monotonic=now, max_age=60.0)
        async with httpx2.AsyncClient(transport=given, headers=HEADERS) as ask:
            fronts.backend.play(json_answer(WHOLE))
            await ask.post(fronts.url(), json={})
            fronts.backend.play(event_stream(*EVENTS, DONE))
            async with ask.stream("POST", fronts.url(), json={}) as stream:
                with fronts.renewed(proxy):
                    now.advance(60.0)
                    assert "teesign" in (await ask.post(fronts.url(), json={})).extensions
                    assert not closed
                    await stream.aread()
                    assert "teesign" in stream.extensions
                    assert "teesign" in (await ask.post(fronts.url(), json={})).extensions
                    assert len(closed) == 2


def test_what_is_not_signed_goes_to_the_attested_key_as_well(fronts: Fronts) -> None:
    """Its connection is used again for prompts."""
    inner = TwoEnds()
    inner.port = fronts.other
    fronts.backend.play(json_answer(WHOLE))
    with client(trust=BINDING, inner=inner) as ask:
        for method, path in [("GET", "/v1/models"), ("POST", "/v1/tokenize")]:
            with pytest.raises(VerificationError) as caught:
                ask.request(method, fronts.url(path))
            assert caught.value.code == "tls_key_mismatch"
    assert not fronts.backend.calls


@pytest.mark.anyio
async def test_the_tls_key_is_bound_asynchronously(fronts: Fronts) -> None:
    """On both event loops: it verifies where the key is the attested one, and no prompt goes elsewhere."""
    fronts.backend.play(json_answer(WHOLE))
    traced: list[str] = []

    async def trace(event: str, _: Any) -> None:
        traced.append(event)

    inner = AsyncTwoEnds()
    async with async_client(httpx2, trust=BINDING, inner=inner) as ask:
        response = await ask.post(fronts.url(), json={}, extensions={"trace": trace})
        assert response.extensions["teesign"].attestation.spki_sha256 is not None
        assert "http11.receive_response_body.complete" in traced
        inner.port = fronts.other
        with pytest.raises(VerificationError) as caught:
            await ask.post(fronts.url(), json={})
    assert caught.value.code == "tls_key_mismatch"
    assert len(fronts.backend.calls) == 1


@pytest.mark.parametrize("family", [httpx, httpx2])
def test_no_prompt_follows_a_report_that_failed(fronts: Fronts, family: Any) -> None:
    """Nobody knows at which key the connection of a report ends before that was verified: nothing else goes over it."""
    fronts.backend.play(answer(404, b"{}"))  # not signed: it keeps its connection for as long as it is not read
    now = ManualClock(0.0)
    with connect_proxy(fronts.port) as proxy:
        inner = family.HTTPTransport(proxy=proxy.url, verify=False)
        with client(family, trust=BINDING, inner=inner, monotonic=now, max_age=60.0) as ask:
            with ask.stream("POST", fronts.url(), json={}) as error:
                now.advance(60.0)
                proxy.port = fronts.other
                with pytest.raises(VerificationError) as caught:
                    ask.post(fronts.url(), json={})
                proxy.port = fronts.port
                error.read()
            ask.post(fronts.url(), json={})
            with ask.stream("POST", fronts.url(), json={}):
                assert ask.post(fronts.url(), json={"a": "prompt"}).status_code == 404
    assert caught.value.code == "tls_key_mismatch"


class Http2(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers as over HTTP/2, where no header ends a connection.

    Attributes:
        closed: whether the connection was closed.
    """

    closed = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:  # noqa: ARG002 - the overridden method's name
        """Say over what the answer came."""
        return httpx.Response(200, content=b"{}", extensions={"http_version": b"HTTP/2", "network_stream": self})

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Likewise."""
        return self.handle_request(request)

    def get_extra_info(self, name: str) -> None:
        """Have no TLS."""

    def close(self) -> None:
        """Close the connection."""
        self.closed = True

    async def aclose(self) -> None:
        """Likewise."""
        self.close()


@pytest.mark.parametrize("bind_tls", [True, False])
@pytest.mark.anyio
async def test_the_connection_of_a_report_is_closed_over_http_2_too(bind_tls: bool) -> None:  # noqa: FBT001 - a column
    """Where the report binds its key."""
    server = Server("https://localhost")
    inner, async_inner = Http2(), Http2()
    with httpx.Client(transport=inner) as ask:
        run(fetch_report(server, bytes(32), bind_tls=bind_tls), ask_with(ask))
        assert inner.closed is bind_tls
    async with httpx.AsyncClient(transport=async_inner) as ask_async:
        await run_async(fetch_report(server, bytes(32), bind_tls=bind_tls), ask_with_async(ask_async))
        assert async_inner.closed is bind_tls


@pytest.mark.anyio
async def test_no_prompt_follows_a_report_that_failed_asynchronously(fronts: Fronts) -> None:
    """On both event loops."""
    fronts.backend.play(answer(404, b"{}"))
    now = ManualClock(0.0)
    with connect_proxy(fronts.port) as proxy:
        inner = httpx2.AsyncHTTPTransport(proxy=proxy.url, verify=False)
        async with async_client(httpx2, trust=BINDING, inner=inner, monotonic=now, max_age=60.0) as ask:
            async with ask.stream("POST", fronts.url(), json={}) as error:
                now.advance(60.0)
                proxy.port = fronts.other
                with pytest.raises(VerificationError) as caught:
                    await ask.post(fronts.url(), json={})
                proxy.port = fronts.port
                await error.aread()
            await ask.post(fronts.url(), json={})
            async with ask.stream("POST", fronts.url(), json={}):
                assert (await ask.post(fronts.url(), json={"a": "prompt"})).status_code == 404
    assert caught.value.code == "tls_key_mismatch"


@pytest.mark.parametrize("absent", ["httpx", "httpx2"])
def test_one_of_the_libraries_is_enough(server: Stack, absent: str) -> None:
    """The other need not be installed, and `import teesign` loads neither."""
    present = "httpx2" if absent == "httpx" else "httpx"
    program = f"""
import sys
sys.modules[{absent!r}] = None
import teesign.client
assert {present!r} not in sys.modules and "anyio" not in sys.modules
import {present} as family
transport = teesign.client.VerifyingTransport(teesign.verify.policy.Policy())
with family.Client(transport=transport) as client:
    try:
        client.get({url_of(server, "/version")!r})
    except teesign.FetchError as error:
        print(error.status)
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert process.stdout.strip() == "401", process.stderr


def test_the_genuine_evidence_is_not_simulated() -> None:
    """These tests rest on evidence that verifies up to roots of their own."""
    assert isinstance(INTEL.quote(bytes(64)), Quote)
    assert not NVIDIA.evidence(bytes(32)).simulated
