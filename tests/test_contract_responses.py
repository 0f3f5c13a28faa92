"""docs/wire-contract.md, "Responses", over real sockets: what reaches the client, when, and what of it is signed."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from backend import (
    Call,
    Connection,
    Script,
    answer,
    bytewise,
    chunked,
    event_stream,
    head,
    in_pieces,
    json_answer,
)
from raw_client import connect, request_bytes
from servers import ALL_KINDS, TOKEN, Kind, Stack, free_port, serve, settings_for, stack
from wire import Answer, Client, chunks_of, multipart, sha256

from teesign.testing import fixed_pair
from teesign_asgi import App
from teesign_asgi.types import Receive, Scope, Send

CHAT = "/v1/chat/completions"
REQUEST = b'{"stream":true}'
JSON = b"content-type: application/json"
EVENTS = b"content-type: text/event-stream"
SERVER_ERROR = (500, "server_error", "Internal server error")

WAYS: dict[str, Callable[[bytes], list[bytes]]] = {
    "whole": lambda data: [data],
    "bytewise": lambda data: list(bytewise(data)),
    "halves": lambda data: [data[: len(data) // 2], data[len(data) // 2 :]],
    "sevens": lambda data: [data[start : start + 7] for start in range(0, len(data), 7)],
}


def broken(proxy: Stack, target: str = CHAT, *, started: threading.Event | None = None) -> bytes:
    """Send a chat, check that the response breaks off, and return what came of it; say when it has started."""
    with proxy.client.stream(target, REQUEST) as conversation:
        assert conversation.response.status == 200
        if started is not None:
            started.set()
        own = conversation.response.headers["x-signature-id"]
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)) as raised:
            conversation.response.read()
    assert proxy.client.signature(own).status == 404
    error = raised.value
    return error.partial if isinstance(error, http.client.IncompleteRead) else b""


def keep_a_connection(proxy: Stack) -> Connection:
    """Have a request answered, and return the connection to the backend that is idle then."""
    assert proxy.client.post(CHAT, REQUEST).status == 200
    proxy.client.wait_until_idle()
    return proxy.backend.call.connection


# --- JSON

JSON_WITH_IDS = [
    # the body, the id it answers to
    (b'{"id":"cmpl-1","a":[1.0, 2e3]}', "cmpl-1"),
    (b' {\n"a" : {"id":"inner"}, "id" : "outer-2" }\n', "outer-2"),
    (b'{"a":"\\"id\\":\\"no\\"","id":"\\u0063-3"}', "c-3"),
    ('{"é":"😀","id":"ü/4?%20 #"}'.encode(), "ü/4?%20 #"),
]
JSON_AS_IT_IS = [
    b'{"id":"","a":1}',
    b'{"id":null}',
    b'{"id":7}',
    b'{"id":{"id":"x"}}',
    b'[{"id":"in-a-list"}]',
    b'"text"',
    b"12",
    b"null",
    b" ",
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("body", "chat_id"), JSON_WITH_IDS)
def test_json_with_an_id(proxy: Stack, body: bytes, chat_id: str, way: str) -> None:
    """Whatever pieces it comes in, it is delivered byte for byte and answers to its id."""
    body = body.replace(b"-", b"-%b-%b-" % (proxy.kind.encode(), way.encode()))
    chat_id = chat_id.replace("-", f"-{proxy.kind}-{way}-")
    proxy.backend.play(in_pieces(WAYS[way](body), JSON))
    answered = proxy.client.post(CHAT, REQUEST)
    assert answered.body == body
    own = answered.header("x-signature-id") or ""
    proxy.client.assert_signed(own, f"{sha256(REQUEST)}:{sha256(body)}")
    if "/4" not in chat_id:  # the others have one that no other test uses
        proxy.client.assert_answer_signed(answered, REQUEST, chat_id)
    else:
        assert proxy.client.signature(chat_id).status == 200


@pytest.mark.parametrize("body", JSON_AS_IT_IS)
def test_json_without_a_usable_id(proxy: Stack, body: bytes) -> None:
    """An id that is empty or no string stays as it is, and what is no object gets none; the random id answers."""
    proxy.backend.play(json_answer(body))
    answered = proxy.client.post(CHAT, REQUEST)
    assert answered.body == body
    proxy.client.assert_answer_signed(answered, REQUEST)


@pytest.mark.parametrize("body", [b"{}", b' { "a": 1}', b'{"a":{"id":"inner"}}'])
def test_an_id_is_spliced_in(proxy: Stack, body: bytes) -> None:
    """It becomes the first member, and no other byte changes."""
    proxy.backend.play(in_pieces(bytewise(body), JSON))
    answered = proxy.client.post(CHAT, REQUEST)
    chat_id = answered.json()["id"]
    start = body.index(b"{") + 1
    assert answered.body.startswith(body[:start] + f'"id":"{chat_id}"'.encode())
    assert answered.body.endswith(body[start:])
    assert answered.header("content-length") == str(len(answered.body))
    proxy.client.assert_answer_signed(answered, REQUEST, chat_id)


@pytest.mark.parametrize(
    "content_type", [b"application/json; charset=utf-8", b"APPLICATION/JSON", b"application/vnd.x+json"]
)
def test_what_counts_as_json(proxy: Stack, content_type: bytes) -> None:
    """The media type decides, whatever its case and its parameters."""
    proxy.backend.play(answer(200, b"{}", b"content-type: " + content_type))
    assert b'"id":"chatcmpl-' in proxy.client.post(CHAT, REQUEST).body


@pytest.mark.parametrize("way", ["length", "chunked"])
def test_json_that_is_cut_short(proxy: Stack, way: str) -> None:
    """Half a JSON answer is no answer: the client gets an error in its place, unsigned."""

    def script(call: Call) -> None:
        call.read_body()
        if way == "length":
            call.send(head(200, JSON, b"content-length: 100"), b'{"id":"CANARY"')
        else:
            call.send(head(200, JSON, b"transfer-encoding: chunked"), chunked(b'{"id":"CANARY"', end=False))
        call.close()

    proxy.backend.play(script)
    answered = proxy.client.post(CHAT, REQUEST)
    answered.assert_error(*SERVER_ERROR)
    proxy.client.assert_unsigned(answered)
    assert proxy.client.signature("CANARY").status == 404


# --- event streams


def events(chat_id: str, ends: str = "\n", done: str = "data: [DONE]") -> bytes:
    """Return an event stream with text of several bytes a character, a comment, and a deceptive word."""
    lines = (
        f': comment {{"id":"wrong"}}||event: message|data: {{"id":"{chat_id}",|data: "text":"[DONE] é😀"}}||'
        f'data: {{"id":"second"}}||data:|data: not json||{done}||'
    )
    return lines.replace("|", ends).encode()


STREAMS = [("\n", "data: [DONE]"), ("\r\n", "data: [DONE]"), ("\r", "data: [DONE]"), ("\n", "data:[DONE]")]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("ends", "done"), STREAMS, ids=["LF", "CRLF", "CR", "no space"])
def test_event_streams(proxy: Stack, ends: str, done: str, way: str) -> None:
    """However lines end and wherever the backend cuts, bytes, id and signature are the same."""
    chat_id = f"stream-{proxy.kind}-{way}-{len(ends)}{ord(ends[0])}-{len(done)}"
    body = events(chat_id, ends, done)
    proxy.backend.play(event_stream(*WAYS[way](body)))
    answered = proxy.client.post(CHAT, REQUEST)
    assert answered.body == body
    assert answered.header("content-type") == "text/event-stream"
    proxy.client.assert_answer_signed(answered, REQUEST, chat_id)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("content_type", ["text/event-stream", "audio/wav"])
def test_the_head_of_a_stream_is_delivered_as_it_comes(kind: Kind, content_type: str) -> None:
    """The client has it before the backend has anything to say, however long that takes."""
    seen = threading.Event()

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, b"content-type: " + content_type.encode(), b"transfer-encoding: chunked"))
        assert seen.wait(60)
        call.send(chunked(b"data: [DONE]\n\n"))

    with stack(kind) as running:
        running.backend.play(script)
        with running.client.stream(CHAT, REQUEST) as conversation:
            assert conversation.response.getheader("content-type") == content_type
            seen.set()
            assert conversation.response.read() == b"data: [DONE]\n\n"


def test_events_are_delivered_as_they_come(proxy: Stack) -> None:
    """The client has an event before the backend sends the next."""
    seen = threading.Event()

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, EVENTS, b"transfer-encoding: chunked"), chunked(b'data: {"id":"a"}\n\n', end=False))
        assert seen.wait(60)
        call.send(chunked(b"data: [DONE]\n\n"))

    proxy.backend.play(script)
    with proxy.client.stream(CHAT, REQUEST) as conversation:
        assert conversation.read_until(b"}\n\n") == b'data: {"id":"a"}\n\n'
        seen.set()
        assert conversation.response.read() == b"data: [DONE]\n\n"


@pytest.mark.parametrize("cut", range(len(b"data: [DONE]\n\n")))
def test_the_terminator_waits_for_the_signature(proxy: Stack, cut: int) -> None:
    """Wherever the backend pauses in it, a client that has seen [DONE] finds the signature."""
    first, rest = b'data: {"id":"x"}\n\n', b"data: [DONE]\n\n"
    go_on = threading.Event()

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, EVENTS, b"transfer-encoding: chunked"), chunked(first + rest[:cut] or b"", end=False))
        assert go_on.wait(60)
        call.send(chunked(rest[cut:]))

    proxy.backend.play(script)
    with proxy.client.stream(CHAT, REQUEST) as conversation:
        own = conversation.response.headers["x-signature-id"]
        assert conversation.read_until(b"}\n\n") == first
        go_on.set()
        conversation.read_until(b"[DONE]")
        assert proxy.client.signature(own).status == 200


def test_what_comes_after_the_terminator_is_dropped(proxy: Stack) -> None:
    """The response ends there, whatever the backend still has to say."""
    body = b'data: {"id":"y"}\n\ndata: [DONE]\n\n'
    proxy.backend.play(event_stream(body + b"data: more\n\n", b"and more", b"data: [DONE]\n\n"))
    answered = proxy.client.post(CHAT, REQUEST)
    assert answered.body == body
    proxy.client.assert_answer_signed(answered, REQUEST)


def test_a_backend_that_does_not_end_after_the_terminator(proxy: Stack) -> None:
    """The client's response ends at the terminator, and the backend's connection does not linger."""
    body = b"data: [DONE]\n\n"

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, EVENTS, b"transfer-encoding: chunked"), chunked(body, end=False))
        call.wait_until_gone()

    proxy.backend.play(script)
    answered = proxy.client.post(CHAT, REQUEST)
    assert answered.body == body
    proxy.client.assert_answer_signed(answered, REQUEST)
    proxy.backend.call.wait_until_gone()


@pytest.mark.parametrize("tail", [b"data: [DONE]\n\n", b"data: [DONE]\n", b"data: [DONE]"])
def test_the_end_of_the_body_ends_the_last_event(proxy: Stack, tail: bytes) -> None:
    """A terminator without its blank line counts when the body ends there."""
    proxy.backend.play(event_stream(b'data: {"a":1}\n\n', tail))
    answered = proxy.client.post(CHAT, REQUEST)
    assert answered.body == b'data: {"a":1}\n\n' + tail
    proxy.client.assert_answer_signed(answered, REQUEST)


@pytest.mark.parametrize(
    "body",
    [
        b'data: {"id":"never"}\n\n',
        b"data: [DONE\n\n",
        b'data: {"text":"data: [DONE]"}\n\n',
        b"event: [DONE]\n\n",
        b": data: [DONE]\n\n",
        b"data: [DONE]x\n\n",
        b"data: [DONE]\ndata: x\n\n",
        b"",
    ],
)
def test_a_stream_without_a_terminator(proxy: Stack, body: bytes) -> None:
    """It is delivered as it is, and not signed: nobody knows whether it was whole."""
    proxy.backend.play(event_stream(body) if body else event_stream())
    answered = proxy.client.post(CHAT, REQUEST)
    assert (answered.status, answered.body) == (200, body)
    proxy.client.assert_unsigned(answered)
    assert proxy.client.signature("never").status == 404


@pytest.mark.parametrize("how", ["close", "reset", "garbage"])
def test_a_stream_that_breaks_off(proxy: Stack, how: str) -> None:
    """It is broken off for the client too: the last chunk never comes."""
    first = b'data: {"id":"broken"}\n\n'
    started = threading.Event()

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, EVENTS, b"transfer-encoding: chunked"), chunked(first, end=False))
        if how == "garbage":
            started.wait(10)  # what comes with the head is read with the head
            call.send(b"not a chunk\r\n")
            call.wait_until_gone()
        elif how == "reset":
            call.reset()
        else:
            call.close()

    proxy.backend.play(script)
    assert first.startswith(broken(proxy, started=started))
    assert proxy.client.signature("broken").status == 404


def test_a_broken_stream_has_no_last_chunk(proxy: Stack) -> None:
    """On the wire, the response ends without the chunk of length zero that a whole one ends with."""
    proxy.backend.play(event_stream(b"data: 1\n\n", end=False))
    with proxy.client.stream(CHAT, REQUEST) as conversation:
        raw = conversation.receive_all()
    assert b"transfer-encoding: chunked" in raw.lower()
    assert not raw.endswith(b"0\r\n\r\n")


def test_others_are_served_while_a_large_answer_is_finished(server: Kind) -> None:
    """To give it an id, to hash and to sign it takes a while, in which the event loop has turns."""
    finishing, go_on = threading.Event(), threading.Event()

    def random(count: int) -> bytes:
        if count == 12:  # for the id of a body that has none, and not on the event loop
            finishing.set()
            assert go_on.wait(10)
        return secrets.token_bytes(count)

    body = b'{"data":"' + b"x" * (1 << 20) + b'"}'
    with stack(server, parts={"random": random}) as proxy:
        proxy.backend.play(json_answer(body))
        with ThreadPoolExecutor(1) as other:
            answered = other.submit(proxy.client.post, CHAT, REQUEST)
            try:
                assert finishing.wait(10)
                assert proxy.client.get("/version").status == 200
            finally:
                go_on.set()
            answer = answered.result()
        assert answer.body.endswith(body[1:])
        proxy.client.assert_answer_signed(answer, REQUEST)


def test_a_large_stream(proxy: Stack) -> None:
    """An event of two megabytes, in many pieces, crosses unchanged."""
    body = b'data: {"text":"' + b"x" * 2_000_000 + b'","id":"at-the-end-' + proxy.kind.encode()
    body += b'"}\n\ndata: [DONE]\n\n'
    proxy.backend.play(event_stream(*(body[start : start + 65_000] for start in range(0, len(body), 65_000))))
    answered = proxy.client.post(CHAT, REQUEST)
    assert sha256(answered.body) == sha256(body)
    proxy.client.assert_answer_signed(answered, REQUEST)


def test_no_streamed_chat_is_without_signature(proxy: Stack) -> None:
    """Five hundred times, the signature is there at the instant at which [DONE] has been read."""
    ids = iter(range(500))

    def script(call: Call) -> None:
        call.read_body()
        first = b'data: {"id":"loop-%b-%d"}\n\n' % (proxy.kind.encode(), next(ids))
        call.send(head(200, EVENTS, b"transfer-encoding: chunked"), chunked(first, end=False))
        call.send(chunked(b"data: [DONE]\n\n"))

    proxy.backend.play(script)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with (
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", proxy.client.port, timeout=10)) as chats,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", proxy.client.port, timeout=10)) as lookups,
    ):
        lookups.connect()
        for number in range(500):
            chats.request("POST", CHAT, REQUEST, headers)
            response = chats.getresponse()
            body = b""
            while b"[DONE]" not in body:
                body += response.read1(65_536)
            lookups.request("GET", f"/v1/signature/loop-{proxy.kind}-{number}", headers=headers)
            found = lookups.getresponse()
            fields = json.loads(found.read())
            assert found.status == 200, number
            body += response.read()
            assert fields["text"] == f"{sha256(REQUEST)}:{sha256(body)}"


# --- other bodies

RAW_BODIES = [
    (b"audio/wav", bytes(range(256)) * 100),
    (b"text/plain", b'{"id":"not json"}'),
    (b"application/octet-stream", b""),
    (b"text/html", b"data: [DONE]\n\nmore"),
]


@pytest.mark.parametrize("framing", ["length", "chunked", "until close"])
@pytest.mark.parametrize(("content_type", "body"), RAW_BODIES)
def test_other_bodies(proxy: Stack, content_type: bytes, body: bytes, framing: str) -> None:
    """They are delivered unchanged, and signed under the random id when they are whole."""

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, b"content-type: " + content_type), body)
        call.close()

    header = b"content-type: " + content_type
    scripts: dict[str, Script] = {
        "length": answer(200, body, header),
        "chunked": in_pieces([body[:10], body[10:]] if body else [], header),
        "until close": script,
    }
    if framing == "chunked" and len(body) in range(1, 11):
        return
    proxy.backend.play(scripts[framing])
    answered = proxy.client.post(CHAT, REQUEST)
    assert answered.body == body
    assert answered.header("content-type") == content_type.decode()
    proxy.client.assert_answer_signed(answered, REQUEST)
    assert framing != "length" or answered.header("content-length") == str(len(body))


def test_a_body_without_content_type(proxy: Stack) -> None:
    """What does not say what it is passes as it is."""
    proxy.backend.play(answer(200, b'{"a":1}'))
    answered = proxy.client.post(CHAT, REQUEST)
    assert answered.body == b'{"a":1}'
    proxy.client.assert_answer_signed(answered, REQUEST)


@pytest.mark.parametrize("content_type", [b"audio/wav", b"application/json"])
def test_other_bodies_that_break_off(proxy: Stack, content_type: bytes) -> None:
    """Half an answer is broken off for the client too, and not signed."""

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, b"content-type: " + content_type, b"content-length: 100"), b"[1,2")
        call.close()

    proxy.backend.play(script)
    assert b"[1,2".startswith(broken(proxy))


@pytest.mark.parametrize("content_type", [b"application/json", b"text/event-stream", b"text/plain"])
def test_encoded_responses(proxy: Stack, content_type: bytes) -> None:
    """A backend that encodes although it was asked not to: the bytes pass as they are, and are signed as they are."""
    body = gzip.compress(b'{"id":"inside"}')
    proxy.backend.play(answer(200, body, b"content-type: " + content_type, b"content-encoding: gzip"))
    answered = proxy.client.post(CHAT, REQUEST)
    assert answered.body == body
    assert answered.header("content-encoding") == "gzip"
    proxy.client.assert_answer_signed(answered, REQUEST)
    assert proxy.client.signature("inside").status == 404


@pytest.mark.parametrize("status", [200, 201, 202, 206, 299])
def test_every_2xx_is_signed(proxy: Stack, status: int) -> None:
    """Success is signed, whatever its number."""
    proxy.backend.play(json_answer(b'{"ok":true}', status))
    answered = proxy.client.post(CHAT, REQUEST)
    assert answered.status == status
    proxy.client.assert_answer_signed(answered, REQUEST, answered.json()["id"])


@pytest.mark.parametrize("content_type", [JSON, EVENTS])
@pytest.mark.parametrize("body", [b'{"ok":true}', b'{"id":"of-a-part"}', b"data: [DONE]\n\ndata: more\n\n"])
def test_a_part_is_signed_as_the_bytes_it_is(proxy: Stack, content_type: bytes, body: bytes) -> None:
    """With its headers, which say which part of what it is, and under the random id only."""
    span = f"bytes 0-{len(body) - 1}/1000"
    proxy.backend.play(answer(206, body, content_type, b"content-range: " + span.encode()))
    answered = proxy.client.request("GET", "/v1/files/1")
    assert (answered.status, answered.body, answered.header("content-range")) == (206, body, span)
    assert answered.header("content-length") == str(len(body))
    proxy.client.assert_answer_signed(answered, b"/v1/files/1")
    assert proxy.client.signature("of-a-part").status == 404


def test_no_content_is_signed(proxy: Stack) -> None:
    """A 204 has no body, and its signature is over none."""

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(204))

    proxy.backend.play(script)
    answered = proxy.client.request("DELETE", "/v1/things/1")
    assert (answered.status, answered.body) == (204, b"")
    proxy.client.assert_answer_signed(answered, b"/v1/things/1")


@pytest.mark.parametrize("status", [300, 302, 400, 404, 429, 500, 503])
@pytest.mark.parametrize("path", [CHAT, "/v1/other"])
def test_only_2xx_is_signed(proxy: Stack, path: str, status: int) -> None:
    """Errors and redirects have no signature, whatever id they hold."""
    proxy.backend.play(json_answer(b'{"id":"of-an-error"}', status))
    answered = proxy.client.post(path, REQUEST)
    assert answered.status == status
    assert answered.header("x-signature-id") is None
    assert proxy.client.signature("of-an-error").status == 404


# --- ids


def test_an_id_is_kept_by_the_first_who_uses_it(proxy: Stack) -> None:
    """A later response with the same id does not take it over; its random id answers all the same."""
    chat_id = f"chosen-{proxy.kind}"
    answers = []
    for number in range(2):
        proxy.backend.play(json_answer(b'{"id":"%b","n":%d}' % (chat_id.encode(), number)))
        answers.append(proxy.client.post(CHAT, REQUEST))
    first, second = answers
    proxy.client.assert_answer_signed(first, REQUEST, chat_id)
    proxy.client.assert_answer_signed(second, REQUEST)


def test_a_chosen_id_does_not_shadow_a_random_one(proxy: Stack) -> None:
    """A body whose id is another response's random id does not answer to it."""
    first = proxy.client.post(CHAT, REQUEST)
    own = first.header("x-signature-id") or ""
    proxy.backend.play(json_answer(b'{"id":"%b","n":2}' % own.encode()))
    proxy.client.post(CHAT, REQUEST)
    proxy.client.assert_answer_signed(first, REQUEST)


@pytest.mark.parametrize(("length", "found"), [(256, True), (257, False)])
@pytest.mark.parametrize("is_stream", [False, True])
def test_long_ids(proxy: Stack, length: int, *, found: bool, is_stream: bool) -> None:
    """An id of more than 256 characters is delivered but not stored; the random one works."""
    letter = "ä" if is_stream else "b"
    chat_id = letter * (length - len(proxy.kind)) + proxy.kind
    body = json.dumps({"id": chat_id}, ensure_ascii=False).encode()
    if is_stream:
        body = b"data: " + body + b"\n\ndata: [DONE]\n\n"
    proxy.backend.play(event_stream(body) if is_stream else json_answer(body))
    answered = proxy.client.post(CHAT, REQUEST)
    assert answered.body == body
    proxy.client.assert_answer_signed(answered, REQUEST)
    assert proxy.client.signature(chat_id).status == (200 if found else 404)


# --- backends that fail


def _silent(call: Call) -> None:
    call.read_body()
    call.wait_until_gone()


def _closing(call: Call) -> None:
    call.read_body()
    call.close()


def _garbage(call: Call) -> None:
    call.send(b"CANARY this is no HTTP\r\n\r\n")
    call.close()


def _half_a_head(call: Call) -> None:
    call.send(b"HTTP/1.1 200 OK\r\nCANARY: ")
    call.close()


def _switching(call: Call) -> None:
    call.send(head(101, b"upgrade: CANARY", b"connection: upgrade"))
    call.wait_until_gone()


def _impossible_status(call: Call) -> None:
    call.send(head(600, b"content-length: 6"), b"CANARY")


def _bad_length(call: Call) -> None:
    call.send(head(200, JSON, b"content-length: CANARY"))
    call.close()


def _endless_head(call: Call) -> None:
    call.send(b"HTTP/1.1 200 OK\r\n", b"x: CANARY\r\n" * 100_000)
    call.close()


FAILURES: dict[str, Script] = {
    "close": Call.close,
    "reset": Call.reset,
    "half a head": _half_a_head,
    "garbage": _garbage,
    "101": _switching,
    "600": _impossible_status,
    "bad length": _bad_length,
    "endless head": _endless_head,
}


@pytest.mark.parametrize("path", [CHAT, "/v1/other", "/v1/audio/transcriptions"])
@pytest.mark.parametrize("failure", FAILURES)
def test_backends_that_give_no_response(proxy: Stack, failure: str, path: str) -> None:
    """The client gets the proxy's own error; nothing that the backend said leaks."""

    def script(call: Call) -> None:
        call.read_body()
        FAILURES[failure](call)

    proxy.backend.play(script)
    answered = proxy.client.post(path, REQUEST)
    answered.assert_error(*SERVER_ERROR)
    assert "CANARY" not in f"{answered.headers}{answered.body!r}"
    proxy.client.assert_unsigned(answered)


def test_a_backend_that_is_not_there() -> None:
    """Nobody listens: 500."""
    with serve(App(settings_for(f"http://127.0.0.1:{free_port()}"), pair=fixed_pair()), "uvicorn") as port:
        for path in (CHAT, "/v1/other"):
            Client(port, TOKEN).post(path, REQUEST).assert_error(*SERVER_ERROR)
        Client(port, TOKEN).get("/v1/models").assert_error(*SERVER_ERROR)


def test_a_backend_that_is_silent(server: Kind) -> None:
    """After VLLM_PROXY_TIMEOUT_SECS without a byte the client is told, and the backend's connection is closed."""
    with stack(server, backend_timeout=0.3) as proxy:
        proxy.backend.play(_silent)
        for path in (CHAT, "/v1/other"):
            proxy.client.post(path, REQUEST).assert_error(*SERVER_ERROR)


def test_a_stream_that_falls_silent(server: Kind) -> None:
    """Silence in the middle breaks the stream off; pauses that are shorter do not, however many there are."""
    with stack(server, backend_timeout=0.5) as proxy:

        def script(call: Call) -> None:
            call.read_body()
            call.send(head(200, EVENTS, b"transfer-encoding: chunked"))
            for _ in range(8):
                call.send(chunked(b"data: 1\n\n", end=False))
                call.connection.gone.wait(0.1)
            call.wait_until_gone()

        proxy.backend.play(script)
        assert (b"data: 1\n\n" * 8).startswith(broken(proxy))


@pytest.mark.usefixtures("slow_network")
@pytest.mark.parametrize(
    ("path", "body", "content_type"),
    [
        (CHAT, REQUEST, ("Content-Type", "application/json")),
        ("/v1/responses", *multipart(b"speech")),
        ("/v1/audio/transcriptions", *multipart(b"speech")),
    ],
    ids=["a chat", "the catch-all", "an upload"],
)
def test_a_connection_that_was_closed_while_idle(
    server: Kind, path: str, body: bytes, content_type: tuple[str, str]
) -> None:
    """A pooled connection that the backend has closed costs no error: a request that is there goes out once more."""
    with stack(server) as proxy:
        # It closes the kept connection as soon as the next request comes over it, without an answer.
        stale = keep_a_connection(proxy)

        def script(call: Call) -> None:
            call.read_body()
            if call.connection is stale:
                call.close()
            else:
                json_answer(b'{"id":"fresh"}')(call)

        proxy.backend.play(script)
        answered = proxy.client.request("POST", path, body, [content_type])
        assert (answered.status, answered.json()) == (200, {"id": "fresh"})
        assert [call.body for call in proxy.backend.calls] == [body, body]


@pytest.mark.parametrize("chunked_body", [False, True], ids=["of declared length", "in chunks"])
def test_a_stream_goes_over_a_connection_of_its_own(server: Kind, *, chunked_body: bool) -> None:
    """It cannot be sent again, so it must not meet one that has been closed while idle."""
    if server == "hypercorn-trio":
        pytest.skip("httpcore's pool opens no connection while it has an idle one")
    body, content_type = multipart(b"speech" * 500)
    framing = ("Transfer-Encoding", "chunked") if chunked_body else ("Content-Length", str(len(body)))
    data = chunks_of(body, 100) if chunked_body else body
    with stack(server) as proxy:
        kept = keep_a_connection(proxy)
        proxy.backend.play(json_answer(b'{"id":"fresh"}'))
        with proxy.client.open("POST", "/v1/audio/transcriptions", [content_type, framing], data[:500]) as upload:
            call = proxy.backend.next_call()
            upload.send(data[500:])
            assert upload.answer().status == 200
        assert call.body == body
        assert call.connection is not kept


def test_a_connection_that_has_been_closed_before(server: Kind) -> None:
    """A backend that ends each connection after one answer costs no errors either."""
    closed = threading.Semaphore(0)
    with stack(server) as proxy:

        def script(call: Call) -> None:
            json_answer(b'{"ok":true}')(call)
            call.close()
            closed.release()

        proxy.backend.play(script)
        for _ in range(5):
            assert proxy.client.post(CHAT, REQUEST).status == 200
            assert closed.acquire(timeout=60)  # a request that comes before that is sent again
        assert len(proxy.backend.calls) == 5


@pytest.mark.usefixtures("slow_network")
def test_a_request_is_sent_again_only_once(server: Kind) -> None:
    """A backend that closes fresh connections too is gone, and is not asked a third time."""
    with stack(server) as proxy:
        keep_a_connection(proxy)
        proxy.backend.play(_closing)
        proxy.client.post(CHAT, REQUEST).assert_error(*SERVER_ERROR)
        assert len(proxy.backend.calls) == 2
        proxy.client.post(CHAT, REQUEST).assert_error(*SERVER_ERROR)
        assert len(proxy.backend.calls) == 3


def test_a_generation_is_not_run_twice(server: Kind) -> None:
    """A backend that has taken a request over a pooled connection and fails later is not asked again."""
    with stack(server) as proxy:
        keep_a_connection(proxy)

        def script(call: Call) -> None:
            call.read_body()
            call.connection.gone.wait(0.8)
            call.close()

        proxy.backend.play(script)
        proxy.client.post(CHAT, REQUEST).assert_error(*SERVER_ERROR)
        assert len(proxy.backend.calls) == 1


@pytest.mark.parametrize("said", [b"no HTTP\r\n\r\n", head(101)])
def test_a_response_that_has_begun_is_not_asked_for_again(server: Kind, said: bytes) -> None:
    """Bytes of a response have been read: the request is not sent again, pooled connection or not."""
    with stack(server) as proxy:
        keep_a_connection(proxy)

        def script(call: Call) -> None:
            call.read_body()
            call.send(said)
            call.wait_until_gone()

        proxy.backend.play(script)
        proxy.client.post(CHAT, REQUEST).assert_error(*SERVER_ERROR)
        assert len(proxy.backend.calls) == 1


def test_connections_to_the_backend_are_kept(proxy: Stack) -> None:
    """Requests that follow each other share one connection, streams included."""

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, EVENTS, b"transfer-encoding: chunked") + chunked(b"data: [DONE]\n\n"))

    proxy.backend.play(script)
    for _ in range(3):
        proxy.client.post(CHAT, REQUEST)
        proxy.client.wait_until_idle()
    connections = {id(call.connection) for call in proxy.backend.calls}
    assert len(connections) <= 2


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_not_modified_with_a_length(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """The length is that of the response that there would be; no server takes it for this one's."""

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(304, b"Content-Length: 1234", b'ETag: "x"'))

    with stack(kind) as proxy, connect(proxy.client.port) as wire:
        proxy.backend.play(script)
        for method in ("GET", "HEAD", "POST", "GET"):
            for path in ("/v1/other", CHAT if method == "POST" else "/v1/other?a"):
                wire.send(request_bytes(method, path, b"{}" if method == "POST" else None, token=TOKEN))
                response = wire.response(method)
                assert (response.status, response.header(b"etag"), response.whole) == (304, b'"x"', True)
    assert "unexpected error" not in caplog.text


def test_two_proxies_that_point_at_each_other(server: Kind) -> None:
    """A request that comes back to the one that sent it first is cut, though another one has sent it since."""
    ports = free_port(), free_port()
    one, other = (
        App(settings_for(f"http://127.0.0.1:{port}", rate_limit_burst=20, rate_limit_per_second=1), pair=fixed_pair())
        for port in ports
    )
    with serve(one, server, port=ports[1]), serve(other, server, port=ports[0]):
        answered = Client(ports[1], TOKEN).get("/v1/models")
        answered.assert_error(500, "server_error", "Internal server error")  # and not 429, after going round 20 times


def test_a_proxy_that_points_at_itself(server: Kind) -> None:
    """A request that comes back is cut at once, instead of going round for ever."""
    port = free_port()
    app = App(settings_for(f"http://127.0.0.1:{port}"), pair=fixed_pair())
    targets: list[bytes] = []

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            targets.append(scope["raw_path"])
        await app(scope, receive, send)

    with serve(counted, server, port=port):
        client = Client(port, TOKEN)
        for path in ("/v1/other", CHAT, "/v1/audio/transcriptions"):
            answered: Answer = client.post(path, REQUEST)
            assert answered.status == 500
            assert answered.json()["error"]["message"] == "Internal server error"
            assert answered.header("x-signature-id") is None
        assert client.get("/v1/models").status == 500
    assert len(targets) == 2 * 4
