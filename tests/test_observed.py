"""What a verifying transport lets through, and when: the part of it without I/O."""

from __future__ import annotations

import json
from hashlib import sha256

import msgspec
import pytest
from far_end import clock, trust
from hypothesis import given
from hypothesis import strategies as st
from support import PLACES, cut

from teesign import Challenge, FetchError, VerificationError, signed_text
from teesign.client import Answer, Attestation, Question, Server, attest, run
from teesign.client.bodies import SentBody
from teesign.client.observed import MAX_HELD, ObservedExchange, is_signed
from teesign.testing import fixed_evidence, fixed_pair, fixed_quote
from teesign.verify.policy import UnsafeSimulatedPolicy
from teesign_asgi.routes import ENDPOINTS

PAIR, NONCE = fixed_pair(), b"\7" * 32
EVENT = b'data: {"id":"chatcmpl-1","n":1}\n\n'
ENDINGS = [b"data: [DONE]\n\n", b"data:[DONE]\r\n\r\n", b"data: [DONE]\r\r", b"data: [DONE]\n"]


def attestation() -> Attestation:
    """Return the attestation of a server with the fixed keys."""

    def ask(_: Question) -> Answer:
        challenge = Challenge.new(PAIR.identity("ecdsa"), nonce=NONCE)
        report = challenge.answer(
            model="m", quote=fixed_quote(challenge.report_data), gpu_evidence=fixed_evidence(NONCE), info={}
        )
        return Answer(200, {}, json.dumps(report).encode())

    policy = trust(UnsafeSimulatedPolicy())
    return run(attest(Server("http://x"), policy, random=lambda _: NONCE, clock=clock), ask)


ATTESTATION = attestation()


def signature(request: bytes, response: bytes) -> bytes:
    """Return what the signature endpoint would say."""
    text = signed_text(sha256(request).hexdigest(), sha256(response).hexdigest())
    return msgspec.json.encode(PAIR.sign(text).answer())


def exchange(*, max_held: int = MAX_HELD, **headers: str) -> ObservedExchange:
    """Return an exchange whose request was sent, and whose response has this head."""
    observed = ObservedExchange(b"/v1/x?y", has_body=True, max_held=max_held)
    observed.start_request()
    observed.send(b"request")
    observed.end_request()
    observed.start_response({name.replace("_", "-"): value for name, value in headers.items()})
    return observed


@pytest.mark.parametrize("ending", ENDINGS)
@given(count=st.integers(0, 5), places=PLACES, more=st.booleans())
def test_a_streams_end_waits_for_the_check(ending: bytes, count: int, places: list[int], *, more: bool) -> None:
    """For any way of cutting a stream, everything before the terminator passes at once, and it verifies as a whole."""
    stream = EVENT * count + ending
    observed = exchange(content_type="text/event-stream; charset=utf-8")
    out = b""
    for chunk in cut(stream, places):
        passed = observed.receive(chunk)
        if observed.whole:
            observed.check(signature(b"request", stream), ATTESTATION)
        else:
            assert b"[DONE]" not in out + passed
        out += passed
    if observed.whole and more:
        assert observed.receive(b"data: more\n\n") == b""
    if not observed.whole:
        out += observed.end()
    assert (out, observed.whole) == (stream, True)
    assert observed.check(signature(b"request", stream), ATTESTATION).response_sha256 == sha256(stream).hexdigest()
    assert observed.signature_id == ("chatcmpl-1" if count else None)


LOOKALIKES = [
    b"data: [DONE]x\n\n",
    b"data: [DONE] \n\n",
    b"data:  [DONE]\n\n",
    b"data: [DONE]\ndata: x\n\n",
    b"event: x\ndata: x\ndata: [DONE]\n\n",
    b"[DONE]\n\n",
]


@pytest.mark.parametrize("end", LOOKALIKES)
@given(places=PLACES)
def test_what_a_reader_could_take_for_the_end_waits_too(end: bytes, places: list[int]) -> None:
    """OpenAI's client ends at whatever starts with `[DONE]`, others at lines: none may end before the check."""
    observed = exchange(content_type="text/event-stream")
    out = b"".join(observed.receive(chunk) for chunk in cut(EVENT + end + EVENT, places))
    assert out.startswith(EVENT)
    assert b"[DONE]" not in out
    with pytest.raises(VerificationError) as caught:
        observed.end()
    assert caught.value.code == "answer_incomplete"


@given(places=PLACES)
def test_an_answer_that_speaks_of_the_end_loses_nothing(places: list[int]) -> None:
    """For any way of cutting it; what follows the word waits for the check."""
    stream = EVENT + b'data: {"text":"[DONE] [DON"}\n\n' + EVENT + ENDINGS[0]
    observed = exchange(content_type="text/event-stream")
    out = b"".join(observed.receive(chunk) for chunk in cut(stream, places))
    observed.check(signature(b"request", stream), ATTESTATION)
    assert (out, observed.whole) == (stream, True)


@given(count=st.integers(0, 5), places=PLACES, lost=st.integers(1, 13))
def test_a_stream_without_its_end_is_not_whole(count: int, places: list[int], lost: int) -> None:
    """However it is cut short, no terminator was handed out, and its end is a failure."""
    whole = EVENT * count + ENDINGS[0]
    observed = exchange(content_type="text/event-stream")
    out = b"".join(observed.receive(chunk) for chunk in cut(whole[:-lost], places))
    assert not observed.whole
    assert b"[DONE]" not in out

    def finish() -> None:
        observed.end()
        observed.check(signature(b"request", whole), ATTESTATION)

    with pytest.raises(VerificationError) as caught:
        finish()
    # The end of the body counts as that of the line, and of the event.
    assert caught.value.code == ("answer_incomplete" if lost > 2 else "stream_hash_mismatch")


@given(body=st.binary(max_size=100), places=PLACES)
def test_anything_else_waits_until_it_is_whole(body: bytes, places: list[int]) -> None:
    """Not a byte passes before."""
    observed = exchange(x_signature_id="sig-1")
    assert not any(observed.receive(chunk) for chunk in cut(body, places))
    assert (observed.end(), observed.whole, observed.signature_id) == (body, True, "sig-1")
    observed.check(signature(b"request", body), ATTESTATION)


@pytest.mark.parametrize("content_type", ["text/event-stream", "audio/wav"])
@pytest.mark.parametrize("piece", [1, 7, 200])
def test_what_is_held_back_is_limited(content_type: str, piece: int) -> None:
    """To the byte, however it comes; the message says how to have more, and quotes nothing."""
    waiting = b"[DONE]" + b"canary" * 10
    observed = exchange(max_held=len(waiting), content_type=content_type)
    for start in range(0, len(waiting), piece):
        assert observed.receive(waiting[start : start + piece]) == b""
    with pytest.raises(FetchError, match=r"66 bytes.*max_held=") as caught:
        observed.receive(b"x")
    assert (caught.value.code, "canary" in str(caught.value)) == ("too_large", False)


def test_what_passes_is_not_limited() -> None:
    """A stream may have any length, and its last event any that a reader takes."""
    observed = exchange(max_held=10, content_type="text/event-stream")
    stream = EVENT * 10 + ENDINGS[0]
    assert observed.receive(stream) == stream


@pytest.mark.parametrize(
    ("body", "expected"),
    [(b'{"id":"a"}', "a"), (b'{"id":""}', None), (b'{"id":7}', None), (b"[]", None), (b"", None), (b'{"id":"a"', None)],
)
def test_the_bodys_id_serves_where_the_head_has_none(body: bytes, expected: str | None) -> None:
    """As the server reads it."""
    observed = exchange(content_type="application/json", x_signature_id="")
    observed.receive(body)
    observed.end()
    assert observed.signature_id == expected


def test_a_request_that_is_sent_again_counts_once() -> None:
    """A transport that retries starts the body again."""
    observed = ObservedExchange(b"/", has_body=True)
    for _ in range(2):
        observed.start_request()
        observed.send(b"req")
        observed.send(b"")
        observed.send(b"uest")
    observed.end_request()
    observed.start_response({})
    observed.end()
    observed.check(signature(b"request", b""), ATTESTATION)


def test_an_answer_to_the_start_of_a_request_is_refused() -> None:
    """Whoever forwards a part of it, and stops to read, gets a signature that fits what was sent until then."""
    observed = ObservedExchange(b"/", has_body=True)
    body = iter(SentBody([b"Say ", b"no secrets."], observed))
    assert next(body) == b"Say "
    observed.start_response({})
    observed.end()
    with pytest.raises(VerificationError) as caught:
        observed.check(signature(b"Say ", b""), ATTESTATION)
    assert caught.value.code == "request_incomplete"


def test_an_answer_to_nothing_of_a_request_is_refused() -> None:
    """Where the head cannot be written any more, libraries read the answer without having touched the body.

    The target stands for no body at all then: whoever had the server sign a request whose body is that target could
    answer any question with what came of it.
    """
    observed = ObservedExchange(b"/v1/x?y", has_body=True)
    observed.start_response({})
    observed.end()
    with pytest.raises(VerificationError) as caught:
        observed.check(signature(b"/v1/x?y", b""), ATTESTATION)
    assert caught.value.code == "request_incomplete"


@pytest.mark.parametrize("begun", [True, False])
def test_the_target_stands_for_a_body_that_is_not_there(begun: bool) -> None:  # noqa: FBT001 - a column
    """With its query. Some libraries ask for the bytes of such a body, and some do not."""
    observed = ObservedExchange(b"/v1/x?y", has_body=False)
    if begun:
        observed.start_request()
        observed.end_request()
    observed.start_response({})
    observed.end()
    observed.check(signature(b"/v1/x?y", b""), ATTESTATION)


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", ""])
def test_an_encoded_answer_is_refused(encoding: str) -> None:
    """The program would read other bytes than those that are signed, and nothing signs the header that says how."""
    with pytest.raises(VerificationError) as caught:
        exchange(content_encoding=encoding)
    assert caught.value.code == "encoded_answer"
    assert not exchange(content_encoding=" Identity ").streamed


@pytest.mark.parametrize("given_signature", [b"", b"[]", b"null", b"\xff", b'{"text":'])
def test_a_signature_that_is_no_object_fails(given_signature: bytes) -> None:
    """And quotes nothing."""
    observed = exchange()
    observed.end()
    with pytest.raises(FetchError) as caught:
        observed.check(given_signature, ATTESTATION)
    assert caught.value.code == "bad_answer"


def test_what_is_not_signed_by_contract_is_what_the_server_does_not_sign() -> None:
    """The endpoint table and this end agree, row by row; everything that is not in it is signed."""
    for endpoint in ENDPOINTS:
        path = f"{endpoint.path}x" if endpoint.path == "/v1/signature/" else endpoint.path
        assert is_signed(endpoint.method, path) is endpoint.signed, endpoint
    for method, path in [
        ("POST", "/v1/models"),
        ("GET", "/v1/models/"),
        ("GET", "/v1/models/a"),
        ("GET", "/v1/%6dodels"),
        ("GET", "//v1/models"),
        ("POST", "/v1/signature/x"),
        ("GET", "/tokenize"),
        ("GET", ""),
    ]:
        assert is_signed(method, path)
