"""What servers could do differently, under each of them: framing, raw targets, and responses that are not whole."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator

import pytest
from backend import Call, answer, chunked, event_stream, head, json_answer
from servers import ALL_KINDS, Kind, Stack, stack
from wire import Answer

CHAT = "/v1/chat/completions"
REQUEST = b'{"stream":true}'


@pytest.fixture(scope="module", params=ALL_KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A proxy under each of the servers."""
    chosen: Kind = request.param
    with stack(chosen) as proxy:
        yield proxy


def test_json(running: Stack) -> None:
    """A JSON answer gets its id, its length and its signature."""
    running.backend.play(json_answer(b'{"a":1}'))
    answered = running.client.post(CHAT, REQUEST)
    assert answered.header("content-length") == str(len(answered.body))
    running.client.assert_answer_signed(answered, REQUEST, answered.json()["id"])


def test_a_stream(running: Stack) -> None:
    """Events pass as they are, and their id leads to the signature."""
    body = b'data: {"id":"%b"}\n\ndata: [DONE]\n\n' % running.kind.encode()
    running.backend.play(event_stream(*(body[start : start + 5] for start in range(0, len(body), 5))))
    answered = running.client.post(CHAT, REQUEST)
    assert answered.body == body
    running.client.assert_answer_signed(answered, REQUEST, running.kind)


def test_a_chunked_request(running: Stack) -> None:
    """Its framing is not part of what is hashed."""
    running.backend.play(json_answer(b"{}"))
    answered = running.client.post(CHAT, b'{"a": "%b"}' % (b"x" * 1_000), pieces=7)
    running.client.assert_answer_signed(answered, b'{"a": "%b"}' % (b"x" * 1_000))


@pytest.mark.parametrize("target", ["/v1/\xc3\xa9", "/v1/models?x=\xff"])
def test_a_target_that_is_not_encoded_is_the_clients_error(running: Stack, target: str) -> None:
    """Whether the server refuses it or leaves that to the proxy."""
    assert running.client.get(target).status == 400


@pytest.mark.parametrize("target", ["/v1/a%20b/%C3%A9?x=%2F&&y=+", "/v1/~!$&'()*+,;=:@", "/v1/x?", "/v1/%7e"])
def test_the_target_is_signed_as_it_came(running: Stack, target: str) -> None:
    """No server's decoding shows in the hash, nor at the backend."""
    running.backend.play(json_answer(b"{}"))
    answered = running.client.get(target)
    # An empty query is the same as none to every server.
    assert running.backend.call.target.decode().removesuffix("?") == target.removesuffix("?")
    running.client.assert_answer_signed(answered, target.removesuffix("?").encode())


@pytest.mark.parametrize("status", [200, 404])
def test_head(running: Stack, status: int) -> None:
    """It has no body, whatever the backend says, and the connection is not confused by it."""
    running.backend.play(answer(status, b"12345", b"content-type: text/plain"))
    answered = running.client.request("HEAD", "/v1/other")
    assert (answered.status, answered.body) == (status, b"")


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_a_response_that_breaks_off(running: Stack, framing: str, how: str) -> None:
    """What is not whole never looks whole: the client's connection breaks off too."""

    def script(call: Call) -> None:
        call.read_body()
        if framing == "chunked":
            call.send(head(200, b"content-type: text/event-stream", b"transfer-encoding: chunked"))
            call.send(chunked(b"data: 1\n\n", end=False))
        else:
            call.send(head(200, b"content-type: audio/wav", b"content-length: 100"), b"half")
        (call.close if how == "close" else call.reset)()

    running.backend.play(script)
    with running.client.stream(CHAT, REQUEST) as conversation:
        own = conversation.response.headers["x-signature-id"]
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            conversation.response.read()
    assert running.client.signature(own).status == 404


def test_an_error_before_the_body_was_sent(running: Stack) -> None:
    """A refusal reaches the client although it has not sent its body."""
    running.backend.play(json_answer(b"{}"))
    with running.client.open("POST", CHAT, [("Content-Length", "2001")]) as conversation:
        conversation.answer().assert_error(413, "payload_too_large")
    with running.client.as_anyone().open("POST", CHAT, [("Content-Length", "100")]) as conversation:
        conversation.answer().assert_error(401, "unauthorized")
    assert running.backend.connections == 0


def test_an_upload_over_the_limit_while_it_is_relayed(running: Stack) -> None:
    """The client is told, and the backend's connection is dropped before it has a whole request."""
    running.backend.play(Call.wait_until_gone)
    headers = [("Transfer-Encoding", "chunked")]
    with running.client.open("POST", "/v1/other", headers, b"a\r\n0123456789\r\n") as conversation:
        call = running.backend.next_call()
        conversation.send(b"fa0\r\n" + b"x" * 4_000 + b"\r\n")
        answered: Answer = conversation.answer()
    answered.assert_error(413, "payload_too_large", "Request body too large. Maximum: 4000 bytes")
    call.wait_until_gone()
    assert not call.whole.is_set()


def test_many_requests_on_one_connection(running: Stack) -> None:
    """Errors, streams and plain answers follow each other without getting mixed up."""
    headers = {"Authorization": f"Bearer {running.client.token}"}
    running.backend.play(event_stream(b"data: 1\n\n", b"data: [DONE]\n\n"))
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", running.client.port, timeout=10)) as connection:
        for _ in range(5):
            connection.request("POST", CHAT, REQUEST, headers)
            assert connection.getresponse().read() == b"data: 1\n\ndata: [DONE]\n\n"
            connection.request("POST", CHAT, b"no json", headers)
            refused = connection.getresponse()
            assert (refused.status, json.loads(refused.read())["error"]["type"]) == (400, "bad_request")
            connection.request("HEAD", "/v1/other", headers=headers)
            assert connection.getresponse().read() == b""
            connection.request("GET", "/version")
            assert json.loads(connection.getresponse().read())["type"] == "proxy"


NO_CHUNKS = [b"5\r\nhello\r\nxyz\r\n", b"-5\r\nhello\r\n0\r\n\r\n", b"5\r\nhelloworld\r\n0\r\n\r\n"]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_request_whose_chunks_are_none_is_the_clients_error(kind: Kind) -> None:
    """It is no fault of the server's, and nothing that could pass for a whole request reaches the backend."""
    with stack(kind) as proxy:
        proxy.backend.play(json_answer(b"{}"))
        for path in (CHAT, "/v1/other"):
            for chunks in NO_CHUNKS:
                with proxy.client.open("POST", path, [("Transfer-Encoding", "chunked")], chunks) as conversation:
                    assert conversation.response.status == 400
        assert not any(call.whole.is_set() for call in proxy.backend.calls)
