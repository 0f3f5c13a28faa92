"""A man in the middle changes one thing, and the client finds it: one row for each, over real sockets.

The server is the real one, with keys and evidence that verify; the man in the middle sits on a socket before it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import httpx2
import pytest
from backend import Call, event_stream, json_answer
from far_end import clock, genuine_stack, trust
from mitm import Change, Message, MiddleMan, middle_man
from servers import TOKEN, Stack

from teesign import TeesignError, VerificationError
from teesign.client import AsyncVerifyingTransport, VerifiedResponse, VerifyingTransport

CHAT, REPORT, SIGNATURE = "/v1/chat/completions", "/v1/attestation/report", "/v1/signature/"
EVENTS = [b'data: {"id":"chatcmpl-s","n":%d}\n\n' % number for number in range(4)]
STREAM = b"".join(EVENTS) + b"data: [DONE]\n\n"
WHOLE = b'{"id":"chatcmpl-w","choices":[{"message":{"content":"yes"}}]}'


def play(call: Call) -> None:
    """Answer as an engine does: streamed where that is asked for."""
    call.read_body()
    streamed = json.loads(call.body).get("stream", False)
    script = event_stream(*EVENTS, b"data: [DONE]\n\n") if streamed else json_answer(WHOLE)
    script(call)


@pytest.fixture(scope="module")
def server() -> Iterator[Stack]:
    """A proxy whose reports verify."""
    with genuine_stack() as running:
        running.backend.play(play)
        yield running


@pytest.fixture(scope="module")
def shared_middle(server: Stack) -> Iterator[MiddleMan]:
    """A man in the middle, for all tests."""
    with middle_man(server.client.port) as running:
        yield running


@pytest.fixture
def middle(shared_middle: MiddleMan) -> MiddleMan:
    """The same, changing nothing until it is told to."""
    shared_middle.behave()
    return shared_middle


def flip(data: bytes, place: int = -1) -> bytes:
    """Return data with the lowest bit of one byte changed."""
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


def flip_hex(text: str, place: int = -1) -> str:
    """Return hex of the same bytes with one bit changed."""
    prefix = "0x" if text.startswith("0x") else ""
    return prefix + flip(bytes.fromhex(text.removeprefix("0x")), place).hex()


def flip_base64(text: str, place: int) -> str:
    """Return base64 of the same bytes with one bit changed."""
    return base64.b64encode(flip(base64.b64decode(text), place)).decode()


def at(path: str, change: Change) -> Change:
    """Return a change for what begins with this path, and for nothing else."""
    return lambda message: change(message) if message.path.startswith(path) else message


def body(change: Callable[[bytes], bytes]) -> Change:
    """Return a change of a body."""
    return lambda message: message.with_body(change(message.body))


def member(name: str, change: Callable[[Any], Any]) -> Change:
    """Return a change of one member of a JSON object, in a report of its repetition too."""

    def changed(message: Message) -> Message:
        fields = json.loads(message.body)
        fields[name] = change(fields[name])
        return message.with_body(json.dumps(fields).encode())

    return changed


def gpu(name: str, place: int) -> Change:
    """Return a change of one bit in one member of the GPU's evidence."""

    def changed(payload: str) -> str:
        decoded = json.loads(payload)
        decoded["evidence_list"][0][name] = flip_base64(decoded["evidence_list"][0][name], place)
        return json.dumps(decoded)

    return member("nvidia_payload", changed)


def event(name: str) -> Change:
    """Return a change of one bit in one member of the event that names the compose file."""

    def changed(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**each, name: flip_hex(each[name])} if each["event"] == "compose-hash" else each for each in log]

    return member("event_log", changed)


def quoted(place: int) -> Change:
    """Return a change of one bit of the quote."""
    return member("intel_quote", lambda text: flip_hex(text, place))


def swapped(stream: bytes) -> bytes:
    """Return a stream with its second and third event in the other order."""
    return stream.replace(EVENTS[1] + EVENTS[2], EVENTS[2] + EVENTS[1])


def without(*names: str) -> Change:
    """Return a change that drops headers."""
    return lambda message: replace(
        message, headers={name: value for name, value in message.headers.items() if name not in names}
    )


def with_header(name: str, value: str) -> Change:
    """Return a change that sets a header."""
    return lambda message: replace(message, headers={**message.headers, name: value})


def status(code: int) -> Change:
    """Return a change of the status."""
    return lambda message: replace(message, status=code)


def the_other_address(_: str) -> str:
    """Return an address that is somebody else's."""
    return "0x" + "11" * 20


MR_TD, REPORT_DATA, QUOTE_SIGNATURE = 48 + 140, 48 + 530, 640
REQUESTS: dict[str, tuple[bool, Change, str]] = {
    "request": (False, at(CHAT, body(lambda data: data.replace(b"hello", b"hellm"))), "request_hash_mismatch"),
    "request-of-a-stream": (
        True,
        at(CHAT, body(lambda data: data.replace(b"hello", b"hellm"))),
        "request_hash_mismatch",
    ),
}
RESPONSES: dict[str, tuple[bool, Change, str]] = {
    "response": (False, at(CHAT, body(lambda data: data.replace(b"yes", b"yer"))), "response_hash_mismatch"),
    "response-space": (False, at(CHAT, body(lambda data: data + b"\n")), "response_hash_mismatch"),
    "stream": (True, at(CHAT, body(lambda data: data.replace(b'"n":2', b'"n":3'))), "stream_hash_mismatch"),
    "stream-order": (True, at(CHAT, body(swapped)), "stream_hash_mismatch"),
    "stream-event-left-out": (True, at(CHAT, body(lambda data: data.replace(EVENTS[2], b""))), "stream_hash_mismatch"),
    "stream-event-twice": (True, at(CHAT, body(lambda data: EVENTS[0] + data)), "stream_hash_mismatch"),
    "stream-cut": (True, at(CHAT, body(lambda data: data[:-20])), "answer_incomplete"),
    "stream-ended-early": (
        True,
        at(CHAT, body(lambda data: data.replace(EVENTS[3], b""))),
        "stream_hash_mismatch",
    ),
    "encoded": (False, at(CHAT, with_header("content-encoding", "br")), "encoded_answer"),
    "signature": (False, at(SIGNATURE, member("signature", lambda text: flip_hex(text, 63))), "ecdsa_mismatch"),
    "signature-of-a-stream": (
        True,
        at(SIGNATURE, member("signature", lambda text: flip_hex(text, 63))),
        "ecdsa_mismatch",
    ),
    "other-signature": (False, at(SIGNATURE, member("signature_ed25519", flip_hex)), "ed25519_mismatch"),
    "signed-text": (
        False,
        at(SIGNATURE, member("text", lambda text: text.replace("a", "b", 1))),
        "request_hash_mismatch",
    ),
    "signing-address": (False, at(SIGNATURE, member("signing_address", flip_hex)), "identity_mismatch"),
    "somebody-elses-address": (False, at(SIGNATURE, member("signing_address", the_other_address)), "identity_mismatch"),
    "no-signature": (False, at(SIGNATURE, status(404)), "signature_missing"),
    "no-signature-of-a-stream": (True, at(SIGNATURE, status(404)), "signature_missing"),
    "another-answers-signature": (False, at(CHAT, with_header("x-signature-id", "sig-none")), "signature_missing"),
    "nonce": (False, at(REPORT, member("request_nonce", flip_hex)), "nonce_mismatch"),
    "address": (False, at(REPORT, member("signing_address", flip_hex)), "public_key_mismatch"),
    "public-key": (False, at(REPORT, member("signing_public_key", flip_hex)), "public_key_mismatch"),
    "quote": (False, at(REPORT, quoted(MR_TD)), "quote_not_verified"),
    "report-data": (
        False,
        at(REPORT, quoted(REPORT_DATA)),
        "quote_not_verified",
    ),
    "quote-signature": (
        False,
        at(REPORT, quoted(QUOTE_SIGNATURE)),
        "quote_not_verified",
    ),
    "event-payload": (False, at(REPORT, event("event_payload")), "event_payload_mismatch"),
    "event-digest": (False, at(REPORT, event("digest")), "event_log_mismatch"),
    "event-order": (False, at(REPORT, member("event_log", lambda log: log[::-1])), "event_log_mismatch"),
    "gpu-evidence": (False, at(REPORT, gpu("evidence", 46)), "gpu_signature_mismatch"),
    "gpu-nonce": (False, at(REPORT, gpu("evidence", 10)), "gpu_nonce_mismatch"),
    "no-gpus": (False, at(REPORT, member("nvidia_payload", lambda _: None)), "gpu_missing"),
    "said-to-be-simulated": (
        False,
        at(REPORT, lambda message: message.with_body(message.body[:-1] + b',"simulated":true}')),
        "simulated",
    ),
}
ROWS = [*((name, "on_request", *row) for name, row in REQUESTS.items())]
ROWS += [(name, "on_response", *row) for name, row in RESPONSES.items()]
by_row = pytest.mark.parametrize(
    ("place", "streamed", "change", "code"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)


def chat(streamed: bool) -> dict[str, Any]:  # noqa: FBT001 - a column
    """Return what to ask."""
    return {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": streamed}


def ask(family: Any, url: str, verified: list[VerifiedResponse], out: list[bytes], streamed: bool) -> None:  # noqa: FBT001 - a column
    """Ask through a verifying transport; what the program gets to see goes to `out`."""
    inner = family.HTTPTransport(verify=False)  # reading the authorities takes longer than all else, and none is needed
    transport = VerifyingTransport(trust(), transport=inner, clock=clock, verified=verified.append)
    headers = {"authorization": f"Bearer {TOKEN}"}
    with (
        family.Client(transport=transport, headers=headers) as client,
        client.stream("POST", f"{url}{CHAT}", json=chat(streamed)) as response,
    ):
        out.extend(response.iter_raw())


async def ask_async(family: Any, url: str, verified: list[VerifiedResponse], out: list[bytes], streamed: bool) -> None:  # noqa: FBT001 - a column
    """Do the same asynchronously."""
    inner = family.AsyncHTTPTransport(verify=False)
    transport = AsyncVerifyingTransport(trust(), transport=inner, clock=clock, verified=verified.append)
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with (
        family.AsyncClient(transport=transport, headers=headers) as client,
        client.stream("POST", f"{url}{CHAT}", json=chat(streamed)) as response,
    ):
        async for chunk in response.aiter_raw():
            out.append(chunk)  # noqa: PERF401 - what came before a failure counts


def assert_caught(error: TeesignError, code: str, verified: list[VerifiedResponse], out: list[bytes]) -> None:
    """Check that a change was caught with its code, and that nothing looked whole or verified."""
    assert isinstance(error, VerificationError)
    assert error.code == code
    assert not verified
    assert b"[DONE]" not in b"".join(out)
    assert b"choices" not in b"".join(out)


@pytest.mark.parametrize("family", [httpx, httpx2])
@pytest.mark.parametrize("streamed", [False, True])
def test_what_nobody_touches_verifies(middle: MiddleMan, family: Any, streamed: bool) -> None:  # noqa: FBT001 - a column
    """The man in the middle may look: nothing fails, byte for byte."""
    verified: list[VerifiedResponse] = []
    out: list[bytes] = []
    ask(family, middle.url, verified, out, streamed)
    assert b"".join(out) == (STREAM if streamed else WHOLE)
    assert len(verified) == 1
    assert [path for path in middle.seen if path in (CHAT, REPORT)] == [REPORT, CHAT]


@by_row
def test_a_change_is_caught(
    middle: MiddleMan,
    place: str,
    streamed: bool,  # noqa: FBT001 - a column
    change: Change,
    code: str,
) -> None:
    """Each has its code, and is raised before the answer could be taken for a verified one."""
    setattr(middle, place, change)
    verified: list[VerifiedResponse] = []
    out: list[bytes] = []
    with pytest.raises(TeesignError) as caught:
        ask(httpx, middle.url, verified, out, streamed)
    assert_caught(caught.value, code, verified, out)


@pytest.mark.anyio
@by_row
async def test_a_change_is_caught_asynchronously(
    middle: MiddleMan,
    place: str,
    streamed: bool,  # noqa: FBT001 - a column
    change: Change,
    code: str,
) -> None:
    """The same, on both event loops."""
    setattr(middle, place, change)
    verified: list[VerifiedResponse] = []
    out: list[bytes] = []
    with pytest.raises(TeesignError) as caught:
        await ask_async(httpx2, middle.url, verified, out, streamed)
    assert_caught(caught.value, code, verified, out)


def test_a_server_that_is_not_attested_gets_no_prompt(middle: MiddleMan) -> None:
    """Where the report fails, the request is never sent."""
    middle.on_response = at(REPORT, member("request_nonce", flip_hex))
    with pytest.raises(VerificationError):
        ask(httpx, middle.url, [], [], streamed=False)
    assert middle.seen == [REPORT]


def test_bytes_after_the_terminator_are_not_handed_out(middle: MiddleMan) -> None:
    """Nothing signs them; the stream before them verifies."""
    middle.on_response = at(CHAT, body(lambda data: data + b"data: more\n\n"))
    verified: list[VerifiedResponse] = []
    out: list[bytes] = []
    ask(httpx, middle.url, verified, out, streamed=True)
    assert (b"".join(out), len(verified)) == (STREAM, 1)


def test_the_id_in_the_body_serves_where_the_head_has_none(middle: MiddleMan) -> None:
    """Other servers of this family have no random id."""
    for streamed in (False, True):
        middle.on_response = without("x-signature-id")
        verified: list[VerifiedResponse] = []
        ask(httpx, middle.url, verified, [], streamed=streamed)
        assert len(verified) == 1
    assert {f"{SIGNATURE}chatcmpl-w", f"{SIGNATURE}chatcmpl-s"} <= set(middle.seen)


def test_an_answer_without_any_id_fails(middle: MiddleMan) -> None:
    """No id, no signature."""
    middle.on_response = at(CHAT, lambda message: without("x-signature-id")(message.with_body(b"[]")))
    with pytest.raises(VerificationError) as caught:
        ask(httpx, middle.url, [], [], streamed=False)
    assert caught.value.code == "signature_missing"
