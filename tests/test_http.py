"""A request as it is read from the ASGI scope, the reply to it, and which headers cross the proxy."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import peak_below

from teesign.testing import counting_random
from teesign_asgi.errors import ClientDisconnectedError, HttpError, bad_request, method_not_allowed
from teesign_asgi.http import HOP_BY_HOP, PIECE, Reply, Request, decode_path_segment, end_to_end
from teesign_asgi.types import Headers, Message

pytestmark = pytest.mark.anyio

FRESH_ID = b"%032x" % 1


def request(
    *headers: tuple[bytes, bytes], messages: list[Message] | None = None, hops: int = 0, **scope: Any
) -> Request:
    """Return a request with these headers, whose client sends these messages and then nothing more."""
    waiting = iter(messages or [])

    async def receive() -> Message:
        message = next(waiting, None)
        if message is None:
            await anyio.sleep_forever()
            raise AssertionError
        return message

    whole = {"type": "http", "method": "POST", "path": "/", "headers": headers, "client": ("10.0.0.1", 1), **scope}
    return Request(whole, receive, counting_random(), hops)


def piece(body: bytes, *, more: bool = True) -> Message:
    """Return a piece of a request's body as servers send it."""
    return {"type": "http.request", "body": body, "more_body": more}


GONE: Message = {"type": "http.disconnect"}


@pytest.mark.parametrize(
    ("scope", "path", "raw_path", "target"),
    [
        ({"path": "/a"}, "/a", b"/a", b"/a"),
        ({"path": "/a b", "raw_path": b"/a%20b"}, "/a b", b"/a%20b", b"/a%20b"),
        ({"path": "/a/b", "raw_path": b"/a%2Fb", "query_string": b"x=%20"}, "/a/b", b"/a%2Fb", b"/a%2Fb?x=%20"),
        ({"path": "/é b;c=d", "raw_path": None}, "/é b;c=d", b"/%C3%A9%20b;c=d", b"/%C3%A9%20b;c=d"),
        # below a mount point, with paths that include it and paths that do not
        ({"path": "/api/a", "root_path": "/api", "raw_path": b"/api/a"}, "/a", b"/a", b"/api/a"),
        ({"path": "/a", "root_path": "/api", "raw_path": b"/api/a"}, "/a", b"/a", b"/api/a"),
        ({"path": "/a", "root_path": "/api", "raw_path": b"/a"}, "/a", b"/a", b"/a"),
        ({"path": "/apis", "root_path": "/api", "raw_path": b"/apis"}, "/apis", b"/apis", b"/apis"),
        ({"path": "/é/a", "root_path": "/é", "raw_path": b"/%C3%A9/a"}, "/a", b"/a", b"/%C3%A9/a"),
        ({"path": "/a", "root_path": ""}, "/a", b"/a", b"/a"),
        # however the prefix is encoded
        ({"path": "/é/a", "root_path": "/é", "raw_path": b"/%c3%a9/a"}, "/a", b"/a", b"/%c3%a9/a"),
        ({"path": "/@:(+)/a", "root_path": "/@:(+)", "raw_path": b"/@:(+)/a"}, "/a", b"/a", b"/@:(+)/a"),
        ({"path": "/@b/a", "root_path": "/@b", "raw_path": b"/%40%62/a"}, "/a", b"/a", b"/%40%62/a"),
        ({"path": "/a/b/c", "root_path": "/a/b", "raw_path": b"/a%2Fb/c%2F"}, "/c", b"/c%2F", b"/a%2Fb/c%2F"),
        ({"path": "/x/é/a", "root_path": "/é", "raw_path": b"/x/%C3%A9/a"}, "/x/é/a", b"/x/%C3%A9/a", b"/x/%C3%A9/a"),
    ],
)
def test_paths_are_read_below_the_mount_point(scope: dict[str, Any], path: str, raw_path: bytes, target: bytes) -> None:
    """What is signed for a request without a body is the whole target; what is routed is what lies below."""
    read = request(**scope)
    assert (read.path, read.raw_path, read.target) == (path, raw_path, target)


@pytest.mark.parametrize(
    ("offered", "kept"),
    [
        (b"a", True),
        (b"A-Za-z0-9._:-" * 2, True),
        (b"a" * 128, True),
        (b"a" * 129, False),
        (b"", False),
        (b"a b", False),
        (b"a\n", False),
        (b"a/b", False),
        (b"\xc3\xa9", False),
    ],
)
def test_good_request_ids_are_kept(offered: bytes, *, kept: bool) -> None:
    """Any other is replaced by a fresh one: it goes into logs and headers."""
    assert request((b"X-Request-ID", offered)).request_id == (offered if kept else FRESH_ID)


def test_a_request_without_an_id_or_with_two_gets_a_fresh_one() -> None:
    """Nobody could say which of two was meant."""
    assert request().request_id == FRESH_ID
    assert request((b"x-request-id", b"a"), (b"x-request-id", b"b")).request_id == FRESH_ID


IPS: list[tuple[int, list[bytes], str]] = [
    # nobody in front is trusted: the socket's peer counts, whatever is claimed
    (0, [], "10.0.0.1"),
    (0, [b"1.1.1.1"], "10.0.0.1"),
    # the n-th from the right
    (1, [b"1.1.1.1"], "1.1.1.1"),
    (1, [b"2.2.2.2, 1.1.1.1"], "1.1.1.1"),
    (2, [b"2.2.2.2,1.1.1.1"], "2.2.2.2"),
    (2, [b"3.3.3.3, 2.2.2.2 ,  1.1.1.1"], "2.2.2.2"),
    # several headers are one list
    (1, [b"2.2.2.2", b"1.1.1.1"], "1.1.1.1"),
    (2, [b"2.2.2.2", b"1.1.1.1"], "2.2.2.2"),
    # too few entries: something that is not the trusted proxy has sent this
    (1, [], "10.0.0.1"),
    (2, [b"1.1.1.1"], "10.0.0.1"),
    # ports and brackets
    (1, [b"1.1.1.1:1234"], "1.1.1.1"),
    (1, [b"[2001:db8::1]"], "2001:db8::1"),
    (1, [b"[2001:DB8::1]:1234"], "2001:db8::1"),
    (1, [b"2001:0db8:0::1"], "2001:db8::1"),
    # junk
    (1, [b""], "10.0.0.1"),
    (1, [b"1.1.1.1,"], "10.0.0.1"),
    (1, [b"unknown"], "10.0.0.1"),
    (1, [b"_hidden:80"], "10.0.0.1"),
    (1, [b"1.1.1.256"], "10.0.0.1"),
    (1, [b"[1.1.1.1"], "10.0.0.1"),
    (1, [b"\xff\xfe"], "10.0.0.1"),
    (1, [b"junk, 1.1.1.1"], "1.1.1.1"),
]


@pytest.mark.parametrize(("hops", "forwarded", "ip"), IPS)
def test_the_client_ip_is_the_peers_or_what_a_trusted_proxy_says(hops: int, forwarded: list[bytes], ip: str) -> None:
    """As many entries of X-Forwarded-For count as there are trusted proxies, from the right."""
    assert request(*((b"X-Forwarded-For", value) for value in forwarded), hops=hops).client_ip == ip


@pytest.mark.parametrize("client", [None, ()])
def test_a_request_without_a_peer_has_no_ip(client: object) -> None:
    """As over a Unix socket."""
    assert request(client=client).client_ip == ""


@given(st.binary(max_size=40), st.integers(1, 3))
def test_a_forwarded_address_is_an_address_or_the_peers(value: bytes, hops: int) -> None:
    """For any bytes in the header."""
    ip = request((b"x-forwarded-for", value), hops=hops).client_ip
    assert ip == "10.0.0.1" or set(ip) & set(".:")


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        (b"", {}),
        (b"a=1&b=", {"a": "1", "b": ""}),
        (b"a=%C3%A9+x&b=%3D%26", {"a": "é x", "b": "=&"}),
        (b"a=%FF", {"a": "\ufffd"}),
        (b"a", {"a": ""}),
    ],
)
def test_parameters_are_decoded(query: bytes, parameters: dict[str, str]) -> None:
    """As every form is."""
    assert request(query_string=query).parameters() == parameters


@pytest.mark.parametrize("query", [b"a=1&a=2", b"a=1&a=1", b"a&a", b"a=1&%61=2"])
def test_a_parameter_given_twice_is_refused(query: bytes) -> None:
    """Which of the two was meant would be a guess."""
    with pytest.raises(HttpError) as caught:
        request(query_string=query).parameters()
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("declared", "length"),
    [
        ([], None),
        ([b"0"], 0),
        ([b"10"], 10),
        ([b"9" * 18], 10**18 - 1),
        ([b"9" * 19], None),
        ([b"-1"], None),
        ([b"+1"], None),
        ([b"1 "], None),
        ([b"1_0"], None),
        ([b"1", b"1"], None),
    ],
)
def test_the_declared_length_is_read(declared: list[bytes], length: int | None) -> None:
    """Where it is not one plain number, the body is counted as it comes."""
    assert request(*((b"content-length", value) for value in declared)).content_length == length


@pytest.mark.parametrize(("declared", "refused"), [(None, False), (b"10", False), (b"11", True)])
def test_a_body_declared_too_large_is_refused_before_it_is_read(declared: bytes | None, *, refused: bool) -> None:
    """One of exactly the limit passes."""
    read = request(*([(b"content-length", declared)] if declared else []))
    if not refused:
        read.check_size(10)
        return
    with pytest.raises(HttpError) as caught:
        read.check_size(10)
    assert (caught.value.status, caught.value.type) == (413, "payload_too_large")
    assert caught.value.message == "Request body too large. Maximum: 10 bytes"


@pytest.mark.parametrize(
    "messages",
    [
        [piece(b"body", more=False)],
        [piece(b"bo"), piece(b"dy", more=False)],
        [piece(b""), piece(b"body"), piece(b"", more=False)],
        [{"type": "http.request", "body": b"body"}],
        [piece(b"body"), {"type": "http.request"}],
    ],
)
async def test_a_body_is_read_whole_or_in_pieces(messages: list[Message]) -> None:
    """However it is cut; empty pieces are left out, and exactly the limit passes."""
    read = request(messages=list(messages))
    assert not read.body_taken
    assert await read.read(4) == b"body"
    assert read.body_taken
    chunks = [chunk async for chunk in request(messages=list(messages)).chunks(4)]
    assert b"".join(chunks) == b"body"
    assert all(chunks)


async def test_no_body_is_an_empty_one() -> None:
    """Servers send one empty message for it."""
    assert await request(messages=[piece(b"", more=False)]).read(0) == b""


@pytest.mark.parametrize("messages", [[piece(b"12345", more=False)], [piece(b"1234"), piece(b"5")]])
async def test_a_body_is_refused_as_soon_as_it_is_over_the_limit(messages: list[Message]) -> None:
    """Without waiting for its end."""
    read = request(messages=messages)
    with pytest.raises(HttpError) as caught:
        await read.read(4)
    assert caught.value.status == 413
    assert read.body_size == 5
    assert not read.body_taken


async def test_a_client_that_leaves_while_sending_is_noticed() -> None:
    """Whoever takes the body is told."""
    with pytest.raises(ClientDisconnectedError):
        await request(messages=[piece(b"a"), GONE]).read(10)


async def test_disconnects_are_waited_for_once_the_body_has_been_taken() -> None:
    """Before that, the pieces of the body are not swallowed; afterwards, further empty ones are."""
    read = request(messages=[piece(b"a"), piece(b"b", more=False), piece(b"", more=False), GONE])
    seen: list[str] = []

    async def watch() -> None:
        await read.wait_for_disconnect()
        seen.append("gone")

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        assert seen == []
        assert await read.read(10) == b"ab"
        seen.append("read")
    assert seen == ["read", "gone"]


async def test_disconnects_are_waited_for_once_the_body_has_been_left() -> None:
    """What still comes of it is dropped, and is not counted as what anybody waits for."""
    read = request(messages=[piece(b"a"), piece(b"b"), piece(b"c"), GONE])
    async with aclosing(read.chunks(10)) as chunks:
        assert await anext(chunks) == b"a"
        read.leave_body()
        await read.wait_for_disconnect()
        assert (read.body_size, read.body_taken, read.is_receiving) == (1, False, False)


async def test_whoever_stops_waiting_for_a_body_does_not_wait_for_it() -> None:
    """Or a client would be cut for what nobody asks of it any more."""
    read = request(messages=[])
    with anyio.move_on_after(0.01):
        await read.read(10)
    assert not read.is_receiving


@pytest.mark.parametrize("digest", [b"ab" * 32, b"AB" * 32])
def test_a_digest_of_the_gateway_in_front_is_read(digest: bytes) -> None:
    """64 hex digits of either case."""
    assert request((b"x-request-hash", digest)).trusted_digest() == digest.decode()
    assert request().trusted_digest() is None


@pytest.mark.parametrize("values", [[b""], [b"ab"], [b"gg" * 32], [b"ab" * 33], [b"ab" * 32 + b"\n"], [b"ab" * 32] * 2])
def test_a_digest_that_is_none_is_refused(values: list[bytes]) -> None:
    """Two as well: signing the wrong one would be worse."""
    with pytest.raises(HttpError) as caught:
        request(*((b"x-request-hash", value) for value in values)).trusted_digest()
    assert (caught.value.status, caught.value.message) == (400, "X-Request-Hash must be 64 hex digits")


def test_headers_are_kept_as_they_came() -> None:
    """Names in their case, repetitions and all; those that mean something are found in any case."""
    headers = ((b"VIA", b"1.1 a"), (b"Accept", b"x"), (b"via", b"1.1 b"), (b"Unknown", b"y"))
    read = request(*headers)
    assert read.headers == list(headers)
    assert read.header(b"accept") == b"x"
    assert list(read.header_values(b"via")) == [b"1.1 a", b"1.1 b"]
    assert read.header(b"via") is None
    assert list(read.header_values(b"content-type")) == []


CROSSING: list[tuple[Headers, Headers]] = [
    ([], []),
    ([(b"X-One", b"1"), (b"x-one", b"2")], [(b"x-one", b"1"), (b"x-one", b"2")]),
    # those of one connection, in any case
    *(([(name, b"x"), (name.title(), b"x"), (b"a", b"b")], [(b"a", b"b")]) for name in sorted(HOP_BY_HOP)),
    # those that Connection names
    (
        [(b"Connection", b"close, X-One ,x-TWO"), (b"x-one", b"1"), (b"X-Two", b"2"), (b"x-three", b"3")],
        [(b"x-three", b"3")],
    ),
    ([(b"connection", b"x-one"), (b"connection", b"x-two"), (b"x-one", b"1"), (b"x-two", b"2")], []),
    ([(b"connection", b""), (b"x", b"1")], [(b"x", b"1")]),
    # those that are asked to be left out, and what some backends take for them
    ([(b"Secret-Name", b"1"), (b"secret_name", b"2"), (b"SECRET_NAME", b"3"), (b"secret", b"4")], [(b"secret", b"4")]),
    ([(b"transfer_encoding", b"chunked"), (b"x_one", b"1")], [(b"x_one", b"1")]),
    # look-alikes of names in Connection, either way
    ([(b"connection", b"x-one"), (b"x_one", b"1")], []),
    ([(b"connection", b"x_one"), (b"x_one", b"1"), (b"x-one", b"2")], []),
]


@pytest.mark.parametrize(("headers", "crossing"), CROSSING)
def test_end_to_end_headers_cross(headers: Headers, crossing: Headers) -> None:
    """All others do not: hop-by-hop ones, those that Connection names, and those that are asked to be left out."""
    assert end_to_end(headers, frozenset((b"secret-name",))) == crossing


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"chatcmpl-1", "chatcmpl-1"),
        (b"a%2Fb%20%C3%A9", "a/b é"),
        (b"%FF", "\ufffd"),
        (b"100%", "100%"),
        (b"a+b", "a+b"),
    ],
)
def test_path_segments_are_percent_decoded(raw: bytes, text: str) -> None:
    """And nothing else: a plus is a plus."""
    assert decode_path_segment(raw) == text


class Client:
    """Takes what is sent."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def send(self, message: Message) -> None:
        """Take a message."""
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        """The body, as far as it came."""
        return b"".join(message.get("body", b"") for message in self.messages)


async def test_a_reply_carries_the_request_id_and_is_counted() -> None:
    """Whatever else it carries."""
    client = Client()
    reply = Reply(client.send, b"id", "GET")
    assert (reply.status, reply.finished) == (0, False)
    await reply.start(201, [(b"a", b"b")])
    await reply.body(b"12", more=True)
    assert not reply.finished
    await reply.body(b"3", more=False)
    assert (reply.status, reply.body_size, reply.finished) == (201, 3, True)
    assert client.messages == [
        {"type": "http.response.start", "status": 201, "headers": [(b"a", b"b"), (b"x-request-id", b"id")]},
        {"type": "http.response.body", "body": b"12", "more_body": True},
        {"type": "http.response.body", "body": b"3", "more_body": False},
    ]


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE - 1])
async def test_a_large_body_is_handed_over_in_pieces(size: int) -> None:
    """So that a client that takes it slowly is told from one that takes nothing; a small one is handed over at once."""
    client = Client()
    reply = Reply(client.send, b"id", "GET")
    await reply.whole(200, [], bytes(size))
    assert (b"content-length", str(size).encode()) in client.messages[0]["headers"]
    assert len(client.body) == reply.body_size == size
    assert max(len(message["body"]) for message in client.messages[1:]) <= PIECE
    assert [message["more_body"] for message in client.messages[1:]] == [True] * ((size - 1) // PIECE) + [False]


async def test_the_reply_to_head_has_a_head_like_that_to_get_and_no_body() -> None:
    """The length is that of the body that GET would give."""
    client = Client()
    reply = Reply(client.send, b"id", "HEAD")
    await reply.json({"a": 1})
    assert (b"content-length", b"7") in client.messages[0]["headers"]
    assert (client.body, reply.body_size) == (b"", 0)


@pytest.mark.parametrize(
    ("method", "status", "bodiless"),
    [("GET", 200, False), ("HEAD", 200, True), ("GET", 204, True), ("GET", 304, True), ("POST", 404, False)],
)
def test_some_responses_have_no_body(method: str, status: int, *, bodiless: bool) -> None:
    """Those to HEAD, and those whose status says so."""
    assert Reply(Client().send, b"id", method).is_bodiless(status) is bodiless


async def test_errors_have_the_format_of_the_contract() -> None:
    """With the headers that belong to them."""
    client = Client()
    await Reply(client.send, b"id", "GET").error(bad_request('a "bad" one'))
    content = {"message": 'a "bad" one', "type": "bad_request", "param": None, "code": None}
    assert json.loads(client.body) == {"error": content}
    assert client.messages[0]["status"] == 400
    assert (b"content-type", b"application/json") in client.messages[0]["headers"]
    await Reply(client.send, b"id", "GET").error(method_not_allowed("POST"))
    assert (b"allow", b"POST") in client.messages[2]["headers"]


def test_a_body_in_tiny_pieces_takes_its_size() -> None:
    """And not that of as many objects."""
    read = request(messages=[piece(b"ab")] * 200_000 + [piece(b"", more=False)])
    with peak_below(2_000_000):
        assert anyio.run(read.read, 1_000_000) == b"ab" * 200_000


@given(st.lists(st.binary(max_size=5), max_size=6))
def test_a_body_is_the_same_however_it_is_cut(pieces: list[bytes]) -> None:
    """For any pieces: what is read is all of them, and is counted."""
    read = request(messages=[*map(piece, pieces), piece(b"", more=False)])
    assert anyio.run(read.read, 100) == b"".join(pieces)
    assert read.body_size == sum(map(len, pieces))
