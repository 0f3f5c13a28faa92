"""A man in the middle changes one thing, and the client finds it: one row for each, over real sockets.

The server is the real one, with keys and evidence that verify; the man in the middle sits on a socket before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import httpx2
import pytest
from backend import Call, event_stream, json_answer
from changes import CHANGES, CHAT, MAIN_CHANGES, REPORT, SIGNATURE, Row, at, body, flip_hex, member, without
from far_end import clock, genuine_stack, trust
from mitm import MiddleMan, middle_man
from servers import TOKEN, Stack

from teesign import TeesignError, VerificationError
from teesign.client import AsyncVerifyingTransport, VerifiedResponse, VerifyingTransport

EVENTS = [b'data: {"id":"chatcmpl-s","created":1700000000,"n":%d}\n\n' % number for number in range(4)]
STREAM = b"".join(EVENTS) + b"data: [DONE]\n\n"
WHOLE = b'{"id":"chatcmpl-w","created":1700000000,"choices":[]}'
BY_ROW = pytest.mark.parametrize("row", CHANGES, ids=[row.name for row in CHANGES])


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
        for streamed in (False, True):
            # An id keeps the signature of the first answer that has it: let that be one which nobody has changed.
            ask(httpx, f"http://127.0.0.1:{running.client.port}", [], [], streamed)
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


def chat(streamed: bool) -> dict[str, Any]:  # noqa: FBT001 - a column
    """Return what to ask."""
    return {"model": "m", "messages": [{"role": "user", "content": "say something noisy"}], "stream": streamed}


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


def assert_caught(error: TeesignError, row: Row, verified: list[VerifiedResponse], out: list[bytes]) -> None:
    """Check that a change was caught with its code, and that nothing looked whole or verified."""
    assert isinstance(error, VerificationError)
    assert error.code == row.code
    assert not verified
    assert b"[DONE]" not in b"".join(out)
    assert row.streamed or not out


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


@BY_ROW
def test_a_change_is_caught(middle: MiddleMan, row: Row) -> None:
    """Each has its code, and is raised before the answer could be taken for a verified one."""
    setattr(middle, row.place, row.change)
    verified: list[VerifiedResponse] = []
    out: list[bytes] = []
    with pytest.raises(TeesignError) as caught:
        ask(httpx, middle.url, verified, out, row.streamed)
    assert_caught(caught.value, row, verified, out)


@pytest.mark.anyio
@BY_ROW
async def test_a_change_is_caught_asynchronously(middle: MiddleMan, row: Row) -> None:
    """The same, on both event loops."""
    setattr(middle, row.place, row.change)
    verified: list[VerifiedResponse] = []
    out: list[bytes] = []
    with pytest.raises(TeesignError) as caught:
        await ask_async(httpx2, middle.url, verified, out, row.streamed)
    assert_caught(caught.value, row, verified, out)


def test_what_can_be_changed_is_told_apart() -> None:
    """Each part of an answer and of what stands behind it has a code of its own."""
    codes = {row.code for row in MAIN_CHANGES}
    assert len(codes) == len(MAIN_CHANGES) == 11


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
