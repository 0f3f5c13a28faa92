"""Fetching from the far end: reports, collateral and signatures, on both event loops and without one."""

from __future__ import annotations

import contextlib
import contextvars
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import anyio
import httpx
import httpx2
import msgspec
import pytest
from authorities import INTEL, NVIDIA
from backend import Backend, Call, Script, answer, chunked, head, json_answer
from far_end import COLLATERAL, clock, genuine_stack, pccs, server_of, trust
from hypothesis import given
from hypothesis import strategies as st
from servers import TOKEN, Stack, stack

from teesign import FetchError, TeesignError, UsageError, VerificationError, verify_answer
from teesign.client import (
    Answer,
    Attestation,
    Flow,
    Question,
    Server,
    Trust,
    ask_with,
    ask_with_async,
    attest,
    fetch_collateral,
    fetch_report,
    fetch_signature,
    parse_collateral,
    run,
    run_async,
)
from teesign.client.flow import MAX_ANSWER
from teesign.client.tls import tls_key
from teesign.testing import fixed_pair
from teesign.verify.policy import Policy, UnsafeSimulatedPolicy
from teesign.verify.report import STEPS, TrustedRoots
from teesign.verify.steps import Passed

Result = TypeVar("Result")
NONCE = b"\7" * 32
QUOTE = INTEL.quote(bytes(64)).quote
REFUSAL = b'{"error": {"message": "bad", "type": "bad_request", "param": null, "code": null}}'
REQUEST, RESPONSE = b'{"model":"m","messages":[]}', b'{"id":"chatcmpl-7","choices":[]}'


@pytest.fixture(scope="module")
def genuine() -> Iterator[Stack]:
    """A proxy whose reports verify."""
    with genuine_stack() as running:
        running.backend.play(json_answer(RESPONSE))
        yield running


@pytest.fixture
def server() -> Iterator[Backend]:
    """A server that does what a test tells it to."""
    with Backend() as running:
        yield running


def url_of(server: Backend) -> Server:
    """Return where a scripted server is."""
    return Server(server.url, "Bearer t")


def asked(flow: Flow[Result], *, limit: float = 20.0, family: Any = httpx) -> Result:
    """Run a flow over real sockets."""
    with family.Client() as client:
        return run(flow, ask_with(client, limit=limit))


def attesting(server: Server, given: Trust, passed: Callable[[Passed], None] = lambda _: None) -> Flow[Attestation]:
    """Return the flow that attests a server."""
    return attest(server, given, random=secrets.token_bytes, clock=clock, passed=passed)


def failure(flow: Flow[Any], **options: Any) -> TeesignError:
    """Return what a flow fails with."""
    with pytest.raises(TeesignError) as caught:
        asked(flow, **options)
    return caught.value


@pytest.mark.parametrize("family", [httpx, httpx2])
@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_a_server_is_attested(genuine: Stack, family: Any, algorithm: Any) -> None:
    """Report and collateral are fetched over either library, every step passes, and the key is the server's."""
    steps: list[Passed] = []
    with pccs() as service:
        given = trust(collateral=None, pccs=f"{service.url}/")
        attestation = asked(attesting(server_of(genuine, algorithm=algorithm), given, steps.append), family=family)
    assert attestation.verified.signing_address == fixed_pair().identity(algorithm).address
    assert [step.number for step in steps] == list(range(1, len(STEPS) + 1))
    assert (attestation.collateral, attestation.verified_at) == (COLLATERAL, clock())
    assert msgspec.json.decode(attestation.report)["request_nonce"] == attestation.nonce.hex()


@pytest.mark.parametrize("family", [httpx, httpx2])
@pytest.mark.anyio
async def test_a_server_is_attested_asynchronously(genuine: Stack, family: Any) -> None:
    """The same flow runs on asyncio and trio."""
    with pccs() as service:
        async with family.AsyncClient() as client:
            flow = attesting(server_of(genuine), trust(collateral=None, pccs=service.url))
            attestation = await run_async(flow, ask_with_async(client))
    assert attestation.verified.tcb is not None
    assert attestation.verified.tcb.status == "UpToDate"


def other_key(question: Question) -> Question:
    """Return the question for the other key, as somebody in between may make it."""
    return msgspec.structs.replace(question, url=question.url.replace("ed25519", "ecdsa"))


def test_a_server_that_reports_its_other_key_is_refused(genuine: Stack) -> None:
    """Both are attested; but whoever chose one of them gets that one."""
    flow = attesting(server_of(genuine, algorithm="ed25519"), trust())
    with httpx.Client() as client, pytest.raises(VerificationError) as caught:
        run(flow, lambda question: ask_with(client)(other_key(question)))
    assert caught.value.code == "algorithm_mismatch"


def test_a_signature_is_fetched(genuine: Stack) -> None:
    """Under either id of an answer, it is what `verify_answer` takes."""
    sent = genuine.client.post("/v1/chat/completions", REQUEST)
    for signature_id in (sent.header("x-signature-id"), "chatcmpl-7"):
        assert signature_id is not None
        signature = asked(fetch_signature(server_of(genuine), signature_id))
        address = fixed_pair().identity("ecdsa").address
        verify_answer(REQUEST, sent.body, msgspec.json.decode(signature), algorithm="ecdsa", address=address)


def test_an_unknown_signature_is_a_failed_check(genuine: Stack) -> None:
    """An answer without a signature is not verified; that is no trouble of the network."""
    error = failure(fetch_signature(server_of(genuine), "of/nothing?"))
    assert isinstance(error, VerificationError)
    assert error.code == "signature_missing"


@pytest.mark.parametrize(
    ("length", "code"), [(256, "bad_status"), (257, "signature_missing"), (66_000, "signature_missing")]
)
def test_an_id_that_no_server_stores_is_a_failed_check(server: Backend, length: int, code: str) -> None:
    """Whatever it is, it would only make an address that cannot be sent."""
    server.play(answer(500, b""))
    assert failure(fetch_signature(url_of(server), "a" * length)).code == code
    assert bool(server.calls) == (code == "bad_status")


def test_a_model_is_named_where_servers_want_that(server: Backend) -> None:
    """Some servers of this family host many models, and ask for the name in the query."""
    server.play(json_answer(b"{}"))
    asked(fetch_signature(Server(f"{server.url}/llm/", model="org/a&b"), "a/b"))
    assert server.call.target == b"/llm/v1/signature/a%2Fb?signing_algo=ecdsa&model=org%2Fa%26b"
    assert server.call.header(b"authorization") is None


def test_the_token_does_not_go_to_the_collateral_service(genuine: Stack) -> None:
    """Nor does what the client sends everywhere: headers, cookies and credentials of its own."""
    with (
        pccs() as service,
        httpx.Client(headers={"x-own": "1"}, cookies={"a": "b"}, auth=("user", "password")) as client,
    ):
        run(attesting(server_of(genuine), trust(collateral=None, pccs=service.url)), ask_with(client))
    assert len(service.calls) == 4
    for call in service.calls:
        assert call.header_names.isdisjoint({b"authorization", b"cookie", b"x-own"})


def test_collateral_is_left_alone_where_it_is_given(genuine: Stack) -> None:
    """With collateral from a file nobody but the server is asked."""
    given = trust(collateral=parse_collateral(msgspec.json.encode(COLLATERAL)), pccs="http://127.0.0.1:1")
    assert asked(attesting(server_of(genuine), given)).collateral == COLLATERAL


@pytest.mark.parametrize("as_hex", [False, True])
def test_collateral_is_fetched(as_hex: bool) -> None:  # noqa: FBT001 - a row
    """What comes is what was published, byte for byte where it is signed; revocation lists may come in hex."""
    with pccs(as_hex=as_hex) as service:
        fetched = asked(fetch_collateral(QUOTE, service.url))
        targets = {call.target for call in service.calls}
    assert fetched == COLLATERAL
    assert b"/sgx/certification/v4/pckcrl?ca=platform&encoding=der" in targets
    assert b"/tdx/certification/v4/tcb?fmspc=00906ED50000" in targets


def signed(member: bytes, signature: str = "00" * 64) -> bytes:
    """Return JSON with this member and a signature."""
    return b'{%b, "signature": "%b"}' % (member, signature.encode())


COLLATERAL_ANSWERS = {
    "/pckcrl": Answer(200, {"sgx-pck-crl-issuer-chain": "c%0A"}, b"\x30\x01"),
    "/tcb": Answer(200, {"sgx-tcb-info-issuer-chain": "c"}, signed(b'"tcbInfo": {"a" : 1}')),
    "/identity": Answer(200, {"sgx-enclave-identity-issuer-chain": "c"}, signed(b'"enclaveIdentity": {}')),
    "/rootcacrl": Answer(404, {}, b""),
    "/IntelSGXRootCA.der": Answer(200, {}, b"\x30\x02"),
}


def collateral_of(answers: dict[str, Answer]) -> dict[str, Any]:
    """Return the collateral that a service with these answers, by the ends of paths, gives."""

    def ask(question: Question) -> Answer:
        return next(given for path, given in answers.items() if path in question.url)

    return run(fetch_collateral(QUOTE, "http://pccs"), ask)


def test_the_roots_revocation_list_comes_from_intel_where_the_service_has_none() -> None:
    """Intel's own service lacks the path that caches have."""
    fetched = collateral_of(COLLATERAL_ANSWERS)
    assert (fetched["root_ca_crl"], fetched["pck_crl"]) == ("3002", "3001")
    assert (fetched["tcb_info"], fetched["pck_crl_issuer_chain"]) == ('{"a" : 1}', "c\n")


@pytest.mark.parametrize(
    ("path", "broken", "code"),
    [
        ("/pckcrl", Answer(200, {}, b"\x30\x01"), "bad_answer"),
        ("/pckcrl", Answer(200, {"sgx-pck-crl-issuer-chain": "c"}, b"xyz"), "bad_answer"),
        ("/pckcrl", Answer(200, {"sgx-pck-crl-issuer-chain": "c"}, b"ff00"), "bad_answer"),
        ("/tcb", Answer(200, {}, signed(b'"tcbInfo": {}')), "bad_answer"),
        ("/tcb", Answer(200, {"tcb-info-issuer-chain": "c"}, b'{"tcbInfo": {}}'), "bad_answer"),
        ("/identity", Answer(200, {"sgx-enclave-identity-issuer-chain": "c"}, b"<html>"), "bad_answer"),
        ("/identity", Answer(500, {}, b""), "bad_status"),
        ("/tcb", Answer(302, {"location": "http://elsewhere"}, b""), "bad_status"),
        ("/IntelSGXRootCA.der", Answer(404, {}, b""), "bad_status"),
    ],
)
def test_a_service_without_collateral_fails_the_fetch(path: str, broken: Answer, code: str) -> None:
    """Whatever is not what was asked for; a redirect is not followed."""
    with pytest.raises(FetchError) as caught:
        collateral_of(COLLATERAL_ANSWERS | {path: broken})
    assert caught.value.code == code


@pytest.mark.parametrize("status", [401, 403])
def test_what_a_service_refuses_is_no_answer_to_a_token(status: int) -> None:
    """An error's `status` is the server's own; the service was given no token to refuse."""
    with pytest.raises(FetchError, match=f"answered {status}") as caught:
        collateral_of(COLLATERAL_ANSWERS | {"/tcb": Answer(status, {}, b"")})
    assert (caught.value.code, caught.value.status) == ("bad_status", None)


@pytest.mark.parametrize("signature", ["", "zz", "zz" * 64, "00" * 63, "00" * 65, " " + "00" * 64])
@pytest.mark.parametrize(("path", "name"), [("/tcb", b"tcbInfo"), ("/identity", b"enclaveIdentity")])
def test_what_is_no_signature_fails_the_fetch(path: str, name: bytes, signature: str) -> None:
    """The service sent it: neither did whoever verifies make a mistake, nor is the machine's quote forged."""
    headers = COLLATERAL_ANSWERS[path].headers
    with pytest.raises(FetchError, match="signature") as caught:
        collateral_of(COLLATERAL_ANSWERS | {path: Answer(200, headers, signed(b'"%b": {}' % name, signature))})
    assert caught.value.code == "bad_answer"


@pytest.mark.parametrize("spelt", ["0x" + "ab" * 64, "AB" * 64])
def test_a_signature_in_any_hex_is_one(spelt: str) -> None:
    """The check of the quote takes one spelling only."""
    body = signed(b'"tcbInfo": {}', spelt)
    answers = COLLATERAL_ANSWERS | {"/tcb": Answer(200, COLLATERAL_ANSWERS["/tcb"].headers, body)}
    assert collateral_of(answers)["tcb_info_signature"] == "ab" * 64


@given(bodies=st.lists(st.binary(max_size=40) | st.just(b"\x30"), min_size=5, max_size=5), chain=st.text(max_size=5))
def test_whatever_a_service_answers_is_collateral_or_a_fetch_error(bodies: list[bytes], chain: str) -> None:
    """Nothing else is raised, for any bytes."""
    names = ("sgx-pck-crl-issuer-chain", "tcb-info-issuer-chain", "sgx-enclave-identity-issuer-chain")
    answers = iter([Answer(200, dict.fromkeys(names, chain), body) for body in bodies])
    with contextlib.suppress(FetchError):
        parse_collateral(msgspec.json.encode(run(fetch_collateral(QUOTE), lambda _: next(answers))))


def test_a_quote_without_certificate_has_no_collateral() -> None:
    """A simulated quote that claims to be none is a failed check."""
    with pytest.raises(VerificationError) as caught:
        run(fetch_collateral(b"\4\0" + bytes(900)), lambda _: Answer(500, {}, b""))
    assert (caught.value.code, caught.value.step) == ("quote_without_certificate", "signature")


def test_what_fails_before_the_quotes_signature_asks_nobody_for_collateral(server: Backend) -> None:
    """The steps passed so far are told, once each."""
    steps: list[Passed] = []
    with genuine_stack() as running:
        report = running.client.get("/v1/attestation/report").body
    server.play(json_answer(report))
    error = failure(attesting(url_of(server), trust(collateral=None, pccs="http://127.0.0.1:1"), steps.append))
    assert (error.code, [step.name for step in steps]) == ("nonce_mismatch", ["report"])


def test_simulated_reports_need_no_collateral() -> None:
    """A development server is attested under the policy whose name says what that is worth, and no other."""
    with stack() as running:
        flow = attesting(server_of(running), trust(UnsafeSimulatedPolicy(), collateral=None, pccs="http://127.0.0.1:1"))
        assert asked(flow).verified.simulated
        assert failure(attesting(server_of(running), trust(collateral=None))).code == "simulated"


def test_nothing_is_asked_without_tls_where_its_key_has_to_be_bound(server: Backend) -> None:
    """There is no such key, whatever a report says: the token stays here, too."""
    error = failure(attesting(url_of(server), trust(Policy(require_tls_key=True))))
    assert (type(error), error.code) == (VerificationError, "tls_key_missing")
    assert "https" in str(error)
    assert server.connections == 0


def test_a_server_that_binds_no_tls_key_is_told_from_one_in_trouble(genuine: Stack) -> None:
    """Asking again would not help: its operator has to give it the certificate."""
    error = failure(fetch_report(server_of(genuine), NONCE, bind_tls=True))
    assert (type(error), error.code) == (VerificationError, "tls_key_not_bound")
    assert "TLS_CERT_PATH" in str(error)


@pytest.mark.parametrize(
    ("status", "body", "bind_tls"),
    [
        pytest.param(400, REFUSAL, False, id="no-key-was-asked-for"),
        pytest.param(503, REFUSAL, True, id="another-status"),
        pytest.param(400, REFUSAL.replace(b"bad_request", b"invalid_request_error"), True, id="another-type"),
        pytest.param(400, b"<html>The plain HTTP request was sent to HTTPS port</html>", True, id="no-json"),
        pytest.param(400, b'{"error": "bad_request"}', True, id="another-form"),
        pytest.param(400, b'{"type": "bad_request"}', True, id="no-error-named"),
    ],
)
def test_no_other_refusal_is_taken_for_that(server: Backend, status: int, body: bytes, *, bind_tls: bool) -> None:
    """Whatever is in front of a server may answer 400 for reasons of its own."""
    server.play(answer(status, body))
    error = failure(fetch_report(url_of(server), NONCE, bind_tls=bind_tls))
    assert (error.code, cast(FetchError, error).status) == ("bad_status", status)


def test_other_roots_are_not_trusted(genuine: Stack) -> None:
    """Genuine evidence of somebody else's authority."""
    others = TrustedRoots(None, NVIDIA.root_sha256)
    assert failure(attesting(server_of(genuine), trust(roots=others))).code == "quote_not_verified"


def hangs(call: Call) -> None:
    """Take the request, and say nothing; who gives up may leave the connection to end by itself."""
    call.read_body()
    call.connection.gone.wait(5)


def trickles(call: Call) -> None:
    """Send a body without end, slowly."""
    call.read_body()
    call.send(head(200, b"transfer-encoding: chunked"))
    while not call.connection.gone.wait(0.02):
        call.send(chunked(b" ", end=False))


def drips(*start: bytes, drop: bytes = b"a") -> Script:
    """Return a script that starts an answer, and goes on a little at a time, for longer than anybody waits."""

    def script(call: Call) -> None:
        call.read_body()
        call.send(*start)
        for _ in range(100):
            if call.connection.gone.wait(0.05):
                return
            call.send(drop)
        call.close()

    return script


CHUNKED = head(200, b"transfer-encoding: chunked")


def floods(call: Call) -> None:
    """Send more than anybody wants."""
    call.read_body()
    call.send(head(200, b"transfer-encoding: chunked"))
    for _ in range(MAX_ANSWER // 2**20 + 1):
        call.send(chunked(bytes(2**20), end=False))
    call.wait_until_gone()


def breaks_off(call: Call) -> None:
    """End in the middle of the body."""
    call.read_body()
    call.send(head(200, b"content-length: 10"), b"{")
    call.close()


TROUBLES: dict[str, tuple[Script, str]] = {
    "hangs": (hangs, "timeout"),
    "trickles": (trickles, "timeout"),
    "hints-for-ever": (drips(drop=b"HTTP/1.1 103 Early Hints\r\n\r\n"), "timeout"),
    "drips-its-head": (drips(b"HTTP/1.1 200 OK\r\nx-a: "), "timeout"),
    "drips-a-chunks-extension": (drips(CHUNKED, b"1;a="), "timeout"),
    "drips-its-trailers": (drips(CHUNKED, b"0\r\nx-a: "), "timeout"),
    "floods": (floods, "too_large"),
    "breaks-off": (breaks_off, "unreachable"),
    "closes-at-once": (lambda call: call.close(), "unreachable"),
    "refuses": (json_answer(b"{}", 401), "bad_status"),
    "redirects": (answer(307, b"", b"location: http://127.0.0.1:1/"), "bad_status"),
    "no-json": (json_answer(b"[]"), "bad_answer"),
    "no-http": (lambda call: call.send(b"hello\r\n\r\n"), "unreachable"),
}
LIMITS = {"timeout": 0.3}


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("family", [httpx, httpx2])
def test_trouble_is_told_apart_from_failed_checks(server: Backend, trouble: str, family: Any) -> None:
    """A server that does not answer as it should raises a fetch error with its code, in limited time."""
    script, code = TROUBLES[trouble]
    server.play(script)
    error = failure(attesting(url_of(server), trust()), limit=LIMITS.get(code, 20.0), family=family)
    assert isinstance(error, FetchError)
    assert error.code == code


@pytest.mark.parametrize("location", [b"http://xn--a/", b"http://xn--canary-9/", b"mailto:canary", b"http://[::1"])
@pytest.mark.parametrize("family", [httpx, httpx2])
def test_a_redirect_to_no_address_is_the_servers_fault(server: Backend, family: Any, location: bytes) -> None:
    """Nobody follows it, but httpx looks where it leads: its errors, which quote that, look like a wrong address."""
    server.play(answer(307, b"", b"location: " + location))
    error = failure(attesting(url_of(server), trust()), family=family)
    assert isinstance(error, FetchError)
    assert (error.code in {"unreachable", "bad_status"}, "canary" in str(error)) == (True, False)


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.anyio
async def test_trouble_is_the_same_asynchronously(server: Backend, trouble: str) -> None:
    """The same codes, on both event loops."""
    script, code = TROUBLES[trouble]
    server.play(script)
    async with httpx.AsyncClient() as client:
        with pytest.raises(FetchError) as caught:
            await run_async(attesting(url_of(server), trust()), ask_with_async(client, limit=LIMITS.get(code, 20.0)))
    assert caught.value.code == code


@pytest.mark.parametrize("family", [httpx, httpx2])
def test_a_connection_that_is_used_again_is_limited_as_well(server: Backend, family: Any) -> None:
    """A server may wait with its tricks until the second question."""
    server.play(json_answer(b"{}"))
    question = Question("an answer", server.url)
    with family.Client() as client:
        ask_with(client)(question)
        kept = server.call.connection
        server.play(drips(drop=b"HTTP/1.1 103 Early Hints\r\n\r\n"))
        with pytest.raises(FetchError) as caught:
            ask_with(client, limit=0.3)(question)
    assert caught.value.code == "timeout"
    assert server.next_call().connection is kept
    assert len(server.calls) == 1


LONG = [math.inf, 1e12, pytest.param(2**32 / 1000 + 0.2, id="2^32-ms")]


@pytest.mark.parametrize("limit", LONG)
@pytest.mark.parametrize("family", [httpx, httpx2])
def test_a_limit_may_be_longer_than_threads_and_sockets_can_wait(server: Backend, family: Any, limit: float) -> None:
    """As for whoever wants none: threads refuse such times, and sockets count milliseconds in a C int."""

    def script(call: Call) -> None:
        time.sleep(0.5)
        json_answer(b"{}")(call)

    server.play(script)
    with family.Client() as client:
        assert ask_with(client, limit=limit)(Question("an answer", server.url)).body == b"{}"
    assert len(server.calls) == 1


@pytest.mark.parametrize("limit", LONG)
@pytest.mark.anyio
async def test_it_may_be_so_asynchronously(server: Backend, limit: float) -> None:
    """On both event loops."""
    server.play(json_answer(b"{}"))
    async with httpx.AsyncClient() as client:
        assert (await ask_with_async(client, limit=limit)(Question("an answer", server.url))).body == b"{}"


def test_what_was_given_up_is_not_asked_again(server: Backend) -> None:
    """A connection that is lost after its time is not made again behind the program's back."""
    lost = threading.Event()

    def script(call: Call) -> None:
        call.read_body()
        call.send(b"HTTP/1.1 200 OK\r\nx-a: ")
        lost.wait(20)
        call.close()

    server.play(script)
    with httpx.Client() as client:
        with pytest.raises(FetchError):
            ask_with(client, limit=0.3)(Question("an answer", server.url))
        lost.set()
        for thread in threading.enumerate():
            if thread.name == "teesign-question":
                thread.join(20)
    assert len(server.calls) == 1


def refusing(error: BaseException) -> httpx.Client:
    """Return a client that refuses everything in its own way."""

    def refuse(_: httpx.Request) -> httpx.Response:
        raise error

    return httpx.Client(transport=httpx.MockTransport(refuse))


@pytest.mark.parametrize("error", [RuntimeError("own"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_what_a_program_raises_itself_comes_through(error: BaseException) -> None:
    """Hooks and transports of a program's own end a question as they end any request."""
    with refusing(error) as client, pytest.raises(type(error)) as caught:
        ask_with(client)(Question("an answer", "http://localhost"))
    assert caught.value is error


def test_a_fetch_error_has_its_cause() -> None:
    """What the library said is there for whoever looks into it."""
    error = httpx.ConnectError("x")
    with refusing(error) as client, pytest.raises(FetchError) as caught:
        ask_with(client)(Question("an answer", "http://localhost"))
    assert caught.value.__cause__ is error


def test_a_proxy_that_refuses_is_named() -> None:
    """Else what it answered would look like the server's."""
    with refusing(httpx.ProxyError("403 Forbidden")) as client, pytest.raises(FetchError, match="a proxy") as caught:
        ask_with(client)(Question("an answer", "http://localhost"))
    assert caught.value.code == "unreachable"


def test_questions_are_asked_in_the_programs_context() -> None:
    """What a program has noted for its own, such as a trace, is there in its hooks."""
    note = contextvars.ContextVar("note", default="")
    note.set("own")
    seen = []
    transport = httpx.MockTransport(lambda _: seen.append(note.get()) or httpx.Response(200))  # type: ignore[func-returns-value]  # it is None
    with httpx.Client(transport=transport) as client:
        ask_with(client)(Question("an answer", "http://localhost"))
    assert seen == ["own"]


def lost_once() -> Script:
    """Return a script that closes the first connection, and answers on the next."""
    lost = iter([True])

    def script(call: Call) -> None:
        call.read_body()
        if next(lost, False):
            call.close()
        else:
            json_answer(b'{"a":1}')(call)

    return script


@pytest.mark.parametrize("family", [httpx, httpx2])
def test_a_lost_connection_is_made_again(server: Backend, family: Any) -> None:
    """An answer that came must not be given up because its signature was asked for over a dying connection."""
    server.play(lost_once())
    assert asked(fetch_signature(url_of(server), "x"), family=family) == b'{"a":1}'
    assert len(server.calls) == 2


@pytest.mark.anyio
async def test_a_lost_connection_is_made_again_asynchronously(server: Backend) -> None:
    """On both event loops."""
    server.play(lost_once())
    async with httpx.AsyncClient() as client:
        assert await run_async(fetch_signature(url_of(server), "x"), ask_with_async(client)) == b'{"a":1}'


def busy(times: int, status: int = 429, retry_after: bytes | None = b"0") -> Script:
    """Return a script that sends a client away so many times, and answers then."""
    headers = [] if retry_after is None else [b"retry-after: " + retry_after]
    scripts = chain(repeat(answer(status, b"{}", *headers), times), repeat(json_answer(b'{"a":1}')))

    def script(call: Call) -> None:
        next(scripts)(call)

    return script


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("family", [httpx, httpx2])
def test_a_busy_server_is_asked_again(server: Backend, status: int, family: Any) -> None:
    """An answer that came must not be given up because the server wants its signature asked for a little later."""
    server.play(busy(2, status))
    assert asked(fetch_signature(url_of(server), "x"), family=family) == b'{"a":1}'
    assert len(server.calls) == 3


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.anyio
async def test_a_busy_server_is_asked_again_asynchronously(server: Backend, status: int) -> None:
    """On both event loops."""
    server.play(busy(2, status))
    async with httpx.AsyncClient() as client:
        assert await run_async(fetch_signature(url_of(server), "x"), ask_with_async(client)) == b'{"a":1}'
    assert len(server.calls) == 3


@pytest.mark.parametrize(
    ("status", "retry_after", "calls"),
    [
        pytest.param(429, b"0", 5, id="rate-limit"),
        pytest.param(503, b"1", 4, id="overloaded"),
        pytest.param(503, b"Fri, 31 Dec 1999 23:59:59 GMT", 4, id="date"),
        pytest.param(429, None, 4, id="rate-limit-without-a-time"),
        pytest.param(429, b"60", 1, id="too-late"),
        pytest.param(429, b"9" * 400, 1, id="never"),
        pytest.param(503, None, 1, id="down"),
        pytest.param(500, b"0", 1, id="another-status"),
    ],
)
def test_a_server_that_stays_busy_is_an_error_in_time(
    server: Backend, monkeypatch: pytest.MonkeyPatch, status: int, retry_after: bytes | None, calls: int
) -> None:
    """It is asked for as long as its own word fits into the limit, and then not waited for at all."""
    # On a clock of its own, by which each answer takes three seconds: the last has as many real ones as are left then.
    passed = 0.0
    send_away = busy(1000, status, retry_after)

    def wait(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    def script(call: Call) -> None:
        wait(3.0)
        send_away(call)

    server.play(script)
    monkeypatch.setattr("teesign.client.http.time", SimpleNamespace(monotonic=lambda: passed, sleep=wait))
    error = failure(fetch_signature(url_of(server), "x"), limit=15.45)
    assert (error.code, cast(FetchError, error).status) == ("bad_status", status)
    assert len(server.calls) == calls
    assert passed <= 15.45


@pytest.mark.anyio
async def test_a_server_that_stays_busy_is_an_error_in_time_asynchronously(server: Backend) -> None:
    """On both event loops."""
    server.play(busy(1000, 429, b"1"))
    async with httpx.AsyncClient() as client:
        with anyio.fail_after(10), pytest.raises(FetchError) as caught:
            await run_async(fetch_signature(url_of(server), "x"), ask_with_async(client, limit=1.9))
    assert (caught.value.code, len(server.calls)) == ("bad_status", 2)


def test_an_interrupted_wait_asks_nothing_more(server: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever presses Ctrl-C while a busy server is waited for leaves nothing behind."""

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    server.play(busy(1000))
    monkeypatch.setattr("teesign.client.http.time", SimpleNamespace(monotonic=time.monotonic, sleep=interrupt))
    with httpx.Client() as client, pytest.raises(KeyboardInterrupt):
        run(fetch_signature(url_of(server), "x"), ask_with(client))
    assert not [thread for thread in threading.enumerate() if thread.name == "teesign-question"]
    assert len(server.calls) == 1


@pytest.mark.anyio
async def test_a_cancelled_wait_asks_nothing_more(server: Backend) -> None:
    """Nor does whoever cancels it."""
    server.play(busy(1000, 429, b"1"))
    async with httpx.AsyncClient() as client:
        with anyio.move_on_after(0.5) as scope:
            await run_async(fetch_signature(url_of(server), "x"), ask_with_async(client))
        await anyio.sleep(0.8)
    assert (scope.cancelled_caught, len(server.calls)) == (True, 1)


def test_a_busy_server_is_sent_no_prompt_again(server: Backend) -> None:
    """What becomes of it is the program's to decide."""
    server.play(busy(1))
    with httpx.Client() as client:
        question = Question("an answer", f"{server.url}/v1/chat/completions", body=b"{}")
        assert ask_with(client)(question).status == 429


def test_a_prompt_is_never_sent_twice(server: Backend) -> None:
    """Nobody knows what became of the first."""
    server.play(lost_once())
    with httpx.Client() as client, pytest.raises(FetchError):
        ask_with(client)(Question("an answer", f"{server.url}/v1/chat/completions", body=b"{}"))
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://example.org", "https://example.org"),
        ("https://example.org/v1", "https://example.org"),
        ("https://example.org/v1//", "https://example.org"),
        ("https://example.org/llm/v1/", "https://example.org/llm"),
        ("https://example.org/v1/v1", "https://example.org/v1"),
        ("https://example.org/llm-v1", "https://example.org/llm-v1"),
        ("https://v1", "https://v1"),
    ],
)
def test_an_address_with_the_version_is_as_good_as_one_without(url: str, base: str) -> None:
    """Clients are given it with `/v1`; the server is the same, also once its TLS key is known."""
    server = Server(url)
    for each in (server, msgspec.structs.replace(server, spki_sha256=bytes(32))):
        assert each.question("x", "/v1/x").url == f"{base}/v1/x?signing_algo=ecdsa"


def test_a_server_without_reports_is_told_where_they_were_looked_for(server: Backend) -> None:
    """Somebody may have left out the path below which it is mounted. Nonce and credentials are not shown."""
    server.play(answer(404, b"{}"))
    url = f"{server.url}/llm/".replace("://", "://user:canary@")
    error = failure(fetch_report(Server(url, "Bearer canary"), NONCE))
    assert (error.code, cast(FetchError, error).status) == ("bad_status", 404)
    assert " /llm/v1/attestation/report." in str(error)
    assert not any(secret in str(error) for secret in ("canary", NONCE.hex()))


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.1:1", "unreachable"),
        ("ftp://127.0.0.1", "unreachable"),
        ("http://a\0b", "bad_url"),
        ("http://xn--a", "bad_url"),
    ],
)
def test_addresses_that_lead_nowhere(url: str, code: str) -> None:
    """Nobody listens, or it is no address; no message has the token."""
    error = failure(fetch_report(Server(url, "Bearer canary"), NONCE))
    assert (error.code, "canary" in str(error)) == (code, False)


@pytest.mark.parametrize(
    "value", ["Bearer café", "Bearer a\nb", b"Bearer a\r\nb", "Bearer \0", " Bearer a", "Bearer a\n"]
)
def test_an_authorization_that_cannot_be_sent_is_refused(value: str | bytes) -> None:
    """When a server is named, and not by an error of a library's that shows it."""
    with pytest.raises(UsageError) as caught:
        Server("https://example.org", value)
    assert caught.value.code == "bad_authorization"


def test_a_model_that_cannot_be_asked_for_is_refused() -> None:
    """When a server is named, as text that no query can have."""
    with pytest.raises(UsageError) as caught:
        Server("https://example.org", model="\udcff")
    assert caught.value.code == "bad_model"


def test_neither_token_nor_credentials_are_shown() -> None:
    """What describes a question or a server can go to a log."""
    server = Server("https://user:canary@example.org/llm", "Bearer canary")
    question = next(fetch_report(server, NONCE))
    assert (question.host, "canary" in repr(question), "canary" in repr(server)) == ("example.org", False, False)
    assert repr(Answer(200, {}, b"canary")) == "Answer(200, 6 bytes)"
    assert TOKEN not in repr(server)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tcb_info": 1}', b"\xff"])
def test_other_files_are_no_collateral(text: str | bytes) -> None:
    """A mistake of whoever chose the file, told before anything is checked."""
    with pytest.raises(UsageError, match="collateral"):
        parse_collateral(text)


def test_another_client_is_refused() -> None:
    """It has to be httpx or httpx2; a subclass is as good."""

    class Own(httpx2.Client):
        """Somebody's own client."""

    with Own() as client:
        ask_with(client)
    with pytest.raises(UsageError, match="neither"):
        ask_with(object())


def test_a_certificate_that_cannot_be_read_has_no_key() -> None:
    """Where nobody else looks at it, a server can hold up any: it is another key than the attested one."""
    certificate = INTEL.root.der[:-1]
    socket = SimpleNamespace(getpeercert=lambda _: certificate)
    stream = SimpleNamespace(get_extra_info=lambda _: socket)
    assert tls_key(SimpleNamespace(extensions={"network_stream": stream})) is None
