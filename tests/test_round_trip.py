"""One question to a server, its answer verified step by step, and the bundle that it leaves."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import cast
from urllib.parse import parse_qsl, urlsplit

import httpx
import msgspec
import pytest
from authorities import INTEL, NVIDIA, ROOTS
from backend import Backend, answer, json_answer
from far_end import clock, genuine_stack, server_of, trust
from servers import TOKEN, Stack, stack

from teesign import Challenge, FetchError, TeesignError, UsageError, VerificationError, signed_text
from teesign.client import Answer, Flow, Question, Server, Trust, ask_with, ask_with_async, round_trip, run, run_async
from teesign.testing import fixed_pair
from teesign.verify.answer import ANSWER_STEPS
from teesign.verify.bundle import EvidenceBundle, decode_bundle, encode_bundle, verify_bundle
from teesign.verify.policy import Policy, UnsafeSimulatedPolicy
from teesign.verify.report import STEPS
from teesign.verify.steps import Passed

RESPONSE = b'{"id":"chatcmpl-7","choices":[]}'


@pytest.fixture
def genuine() -> Iterator[Stack]:
    """A proxy whose reports verify."""
    with genuine_stack() as running:
        running.backend.play(json_answer(RESPONSE))
        yield running


def asking(server: Server, given: Trust | None = None, steps: list[Passed] | None = None) -> Flow[EvidenceBundle]:
    """Return the flow that asks a server to say hello."""
    passed = [] if steps is None else steps
    given = given or trust()
    return round_trip(server, given, "Say hello.", random=secrets.token_bytes, clock=clock, passed=passed.append)


def failure(server: Server, given: Trust | None = None) -> TeesignError:
    """Return what a round trip fails with."""
    with pytest.raises(TeesignError) as caught, httpx.Client() as client:
        run(asking(server, given), ask_with(client))
    return caught.value


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_a_round_trip_leaves_a_bundle(genuine: Stack, algorithm: str) -> None:
    """Each step is shown, numbered through, and what was asked and answered verifies again from the file."""
    steps: list[Passed] = []
    with httpx.Client() as client:
        bundle = run(asking(server_of(genuine, algorithm=algorithm), steps=steps), ask_with(client))
    names = [step.name for step in (*STEPS, *ANSWER_STEPS)]
    assert [(step.number, step.name) for step in steps] == list(enumerate(names, 1))
    asked = json.loads(bundle.request)
    assert asked["model"] == "test/model"
    assert asked["messages"][0]["content"].startswith("Say hello. ")
    assert (bundle.response, bundle.verified_at) == (RESPONSE, int(clock()))
    verified = verify_bundle(decode_bundle(encode_bundle(bundle)), roots=ROOTS)
    assert verified.answer.signing_algo == algorithm


def test_no_answer_from_before_is_one_to_this_request(genuine: Stack) -> None:
    """Each request has a random word of its own, so that what was answered and signed earlier is of another one."""
    with httpx.Client() as client:
        first, second = (run(asking(server_of(genuine)), ask_with(client)) for _ in range(2))
    assert first.request != second.request
    replayed = msgspec.structs.replace(second, response=first.response, signature=first.signature)
    with pytest.raises(VerificationError) as caught:
        verify_bundle(replayed, roots=ROOTS)
    assert caught.value.code == "request_hash_mismatch"


def test_the_example_of_the_page_works() -> None:
    """The script of docs/verifying.md goes from an address to a bundle."""
    page = (Path(__file__).parents[1] / "docs" / "verifying.md").read_text()
    script = page.split("```python\n")[1].partition("```")[0]
    with stack() as running:
        running.backend.play(json_answer(RESPONSE))
        names = {"url": server_of(running).url, "token": TOKEN, "policy_json": '{"policy": "UnsafeSimulatedPolicy"}'}
        exec(compile(script, "verifying.md", "exec"), names)
    verify_bundle(decode_bundle(cast(bytes, names["evidence"])), UnsafeSimulatedPolicy())


@pytest.mark.anyio
async def test_it_runs_on_an_event_loop(genuine: Stack) -> None:
    """On either of them."""
    async with httpx.AsyncClient() as client:
        bundle = await run_async(asking(server_of(genuine, model="another")), ask_with_async(client))
    assert json.loads(bundle.request)["model"] == "another"


def test_nothing_is_asked_of_a_server_that_fails(genuine: Stack) -> None:
    """A prompt goes to an attested machine, or nowhere."""
    error = failure(server_of(genuine), trust(Policy(mr_td=("11" * 48,))))
    assert (type(error), error.code) == (VerificationError, "mr_td_mismatch")
    assert genuine.backend.calls == []


class FarServer:
    """A server without sockets: it answers the questions of a flow, and changes one answer.

    Args:
        changes: what takes the place of an answer, by what was asked for.
        key: the TLS key of the connection over which answers come.
    """

    def __init__(self, changes: Mapping[str, Callable[[Answer], Answer]], key: bytes | None = None) -> None:
        self._changes = changes
        self._key = key
        self._signed = ""

    def __call__(self, question: Question) -> Answer:
        """Answer a question."""
        url = urlsplit(question.url)
        query = dict(parse_qsl(url.query))
        if url.path == "/v1/attestation/report":
            body = self._report(bytes.fromhex(query["nonce"]), bind_tls="include_tls_fingerprint" in query)
        elif url.path == "/v1/chat/completions":
            assert question.body is not None
            self._signed = signed_text(sha256(question.body).hexdigest(), sha256(RESPONSE).hexdigest())
            body = RESPONSE
        else:
            assert url.path == "/v1/signature/chatcmpl-7"
            body = msgspec.json.encode(fixed_pair().sign(self._signed).answer())
        answer = Answer(200, {}, body, self._key)
        change = self._changes.get(question.what)
        return answer if change is None else change(answer)

    def _report(self, nonce: bytes, *, bind_tls: bool) -> bytes:
        key = self._key if bind_tls else None
        challenge = Challenge.new(fixed_pair().identity("ecdsa"), nonce=nonce, spki_sha256=key)
        quote = INTEL.quote(challenge.report_data)
        report = challenge.answer(model="m", quote=quote, gpu_evidence=NVIDIA.evidence(nonce), info={})
        return msgspec.json.encode(report)


def with_body(body: bytes) -> Callable[[Answer], Answer]:
    """Return a change of an answer's body."""
    return lambda answer: msgspec.structs.replace(answer, body=body)


def without_model(answer: Answer) -> Answer:
    """Leave the model's name out of a report."""
    report = msgspec.json.decode(answer.body)
    return with_body(msgspec.json.encode({name: report[name] for name in report if name != "model_name"}))(answer)


def from_another_key(answer: Answer) -> Answer:
    """Let an answer come over another connection."""
    return msgspec.structs.replace(answer, spki_sha256=b"\x0c" * 32)


BINDING = trust(Policy(require_tls_key=True))


def test_a_server_is_asked_below_v1_whether_its_address_says_so_or_not() -> None:
    """The question, the report and the signature alike."""
    bundle = run(asking(Server("https://far/v1/"), BINDING), FarServer({}, b"\x0b" * 32))
    verify_bundle(bundle, roots=ROOTS)


def test_the_tls_key_is_bound_where_the_policy_asks_for_it() -> None:
    """It is in the bundle, which verifies with it."""
    bundle = run(asking(Server("https://far"), BINDING), FarServer({}, b"\x0b" * 32))
    assert bundle.spki_sha256 == b"\x0b" * 32
    verify_bundle(decode_bundle(encode_bundle(bundle)), roots=ROOTS)


@pytest.mark.parametrize(
    ("what", "change", "kind", "code"),
    [
        ("an answer", with_body(RESPONSE + b" "), VerificationError, "response_hash_mismatch"),
        ("an answer", with_body(b"[]"), VerificationError, "signature_missing"),
        ("an answer", with_body(b'{"id": 5}'), VerificationError, "signature_missing"),
        ("an answer", from_another_key, VerificationError, "tls_key_mismatch"),
        ("the signature", with_body(b"{}"), VerificationError, "bad_signature_answer"),
        ("the signature", with_body(b"[]"), FetchError, "bad_answer"),
        ("the attestation report", with_body(b"<html>"), FetchError, "bad_answer"),
        ("the attestation report", without_model, UsageError, "model_unknown"),
    ],
)
def test_what_is_wrong_has_a_code(
    what: str, change: Callable[[Answer], Answer], kind: type[TeesignError], code: str
) -> None:
    """Whichever answer is not as it should be."""
    with pytest.raises(kind) as caught:
        run(asking(Server("https://far"), BINDING), FarServer({what: change}, b"\x0b" * 32))
    assert caught.value.code == code


def test_a_prompt_that_cannot_be_sent_is_refused() -> None:
    """Before anybody is asked anything, and without quoting it."""
    flow = round_trip(Server("https://far"), trust(), "Hello \udcff", random=secrets.token_bytes, clock=clock)
    with pytest.raises(UsageError) as caught:
        next(flow)
    assert (caught.value.code, "Hello" in str(caught.value)) == ("bad_prompt", False)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def with_another_member(answer: Answer) -> Answer:
    """Add to a report what nobody signs, and not to its copy of itself."""
    return with_body(msgspec.json.encode(msgspec.json.decode(answer.body) | {"x": 1}))(answer)


def test_evidence_that_would_never_verify_is_not_handed_out() -> None:
    """Whoever keeps it learns that at once, while the server can still be asked again."""
    bundle = run(asking(Server("https://far")), FarServer({"the attestation report": with_another_member}))
    with pytest.raises(VerificationError) as caught:
        encode_bundle(bundle)
    assert caught.value.code == "attestations_differ"


@pytest.mark.parametrize("status", [401, 503])
def test_a_refusal_says_its_status(status: int) -> None:
    """So that whoever shows it can tell a wrong token from a server in trouble."""
    with Backend() as server:
        server.play(answer(status, b"{}"))
        error = failure(Server(server.url))
    assert isinstance(error, FetchError)
    assert (error.code, error.status) == ("bad_status", status)
