"""One request, one response, one signature: whatever the bytes are and however they are cut."""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import PLACES, cut, examples, peak_below, ways_to_cut

from teesign import Exchange, MalformedError, SignedExchange, UsageError, sse, verify_exchange
from teesign.testing import counting_random, fixed_pair

JSON, EVENTS, AUDIO = "application/json", "text/event-stream", "audio/mpeg"
REQUEST = b'{"model":"m"}'
SIGNATURE_ID = "sig-" + "1".zfill(32)
NEW_ID = "chatcmpl-" + "2".zfill(24)
MEMBER = f'"id":"{NEW_ID}"'.encode()
EVENT, DONE = b'data: {"id":"a"}\n\n', b"data: [DONE]\n\n"


class Outcome(NamedTuple):
    """What a client gets, what is stored, and whether the end of the response was accepted as such."""

    out: bytes
    signed: SignedExchange | None
    is_whole: bool = True

    @property
    def ids(self) -> tuple[str, ...] | None:
        """What the signature answers to, or None where there is none."""
        return self.signed.ids if self.signed else None


def new_exchange() -> Exchange:
    """Return an exchange with fixed keys and predictable ids."""
    return Exchange(fixed_pair(), id_prefix="chatcmpl", random=counting_random(), target=b"/v1/x")


def relay(
    chunks: Iterable[bytes],
    content_type: str | None = JSON,
    *,
    status: int = 200,
    content_encoding: str | None = None,
    content_length: int | None = None,
    is_part: bool = False,
) -> Outcome:
    """Send the request and this response through an exchange, to its end."""
    exchange = new_exchange()
    exchange.receive_request(REQUEST)
    exchange.start_response(
        status, content_type, content_encoding=content_encoding, content_length=content_length, is_part=is_part
    )
    out = b"".join(map(exchange.receive_response, chunks))
    try:
        out += exchange.end_response()
    except MalformedError:
        return Outcome(out, exchange.signed, is_whole=False)
    return Outcome(out, exchange.signed)


def with_id(length: int) -> bytes:
    """Return a JSON object whose id has that many characters, of two bytes each."""
    return f'{{"id":"{"é" * length}"}}'.encode()


@pytest.mark.parametrize(
    ("body", "expected", "chat_id"),
    [
        pytest.param(b'{"id":"a","x":1}', b'{"id":"a","x":1}', "a", id="id"),
        pytest.param(b'{"x":{"id":"b"},"id":"a"}', b'{"x":{"id":"b"},"id":"a"}', "a", id="id as the last member"),
        pytest.param(b'{"id":"a","id":"b"}', b'{"id":"a","id":"b"}', "b", id="two ids"),
        pytest.param(b'{"\\u0069d":"a"}', b'{"\\u0069d":"a"}', "a", id="escaped key"),
        pytest.param(b'{"x":1}', b"{" + MEMBER + b',"x":1}', NEW_ID, id="no id"),
        pytest.param(b' \r\n\t{ "x":1}\n', b" \r\n\t{" + MEMBER + b', "x":1}\n', NEW_ID, id="white space around"),
        pytest.param(b"{}", b"{" + MEMBER + b"}", NEW_ID, id="empty object"),
        pytest.param(b"{ \n}", b"{" + MEMBER + b" \n}", NEW_ID, id="empty object with white space"),
        pytest.param(b'{"t":"\xff"}', b"{" + MEMBER + b',"t":"\xff"}', NEW_ID, id="invalid UTF-8, no id"),
        pytest.param(b'{"t":"\xff","id":"a"}', b'{"t":"\xff","id":"a"}', "a", id="invalid UTF-8 beside the id"),
        pytest.param(b'{"id":""}', b'{"id":""}', None, id="empty id"),
        pytest.param(b'{"id":7}', b'{"id":7}', None, id="numeric id"),
        pytest.param(b'{"id":null}', b'{"id":null}', None, id="null id"),
        pytest.param(b'{"id":"\xff"}', b'{"id":"\xff"}', None, id="id of invalid UTF-8"),
        pytest.param(with_id(256), with_id(256), "é" * 256, id="id of 256 characters"),
        pytest.param(with_id(257), with_id(257), None, id="id of 257 characters"),
        pytest.param(b'[{"x":1}]', b'[{"x":1}]', None, id="array"),
        pytest.param(b'"text"', b'"text"', None, id="string"),
        pytest.param(b"null", b"null", None, id="null"),
        pytest.param(b"  7 ", b"  7 ", None, id="number"),
        pytest.param(b'{"x":1', b'{"x":1', None, id="truncated"),
        pytest.param(b'{"x":1}}', b'{"x":1}}', None, id="too long"),
        pytest.param(b"{x}", b"{x}", None, id="not JSON, with a brace"),
        pytest.param(b"\x0b{}", b"\x0b{}", None, id="a vertical tab, which is no white space of JSON's"),
        pytest.param(b"Not Found", b"Not Found", None, id="not JSON"),
        pytest.param(b"\xef\xbb\xbf{}", b"\xef\xbb\xbf{}", None, id="byte order mark"),
        pytest.param(b" \n", b" \n", None, id="white space only"),
        pytest.param(b"", b"", None, id="nothing"),
    ],
)
def test_a_json_response(body: bytes, expected: bytes, chat_id: str | None) -> None:
    """An object without an id gets one; no other byte changes, and everything is signed."""
    for chunks in ways_to_cut(body):
        outcome = relay(chunks)
        assert (outcome.out, outcome.ids) == (expected, (SIGNATURE_ID, chat_id) if chat_id else (SIGNATURE_ID,))
        assert outcome.signed
        verify_exchange(REQUEST, expected, outcome.signed.chat.answer())


@pytest.mark.parametrize(
    ("content_type", "content_encoding", "inserts"),
    [
        ("application/json", None, True),
        ("Application/JSON", None, True),
        ("application/json; charset=utf-8", None, True),
        (" application/json ;charset=utf-8", None, True),
        ("application/problem+json", None, True),
        ("application/json", "identity", True),
        ("application/json", "Identity ", True),
        ("application/json", "", True),
        ("application/json", "gzip", False),
        ("application/jsonl", None, False),
        ("text/plain", None, False),
        ("", None, False),
        (None, None, False),
    ],
)
def test_what_counts_as_json(content_type: str | None, content_encoding: str | None, *, inserts: bool) -> None:
    """The media type decides, whatever its case and parameters; an encoded body is never looked into."""
    assert (relay([b"{}"], content_type, content_encoding=content_encoding).out != b"{}") is inserts


@pytest.mark.parametrize("content_type", ["text/event-stream", "Text/Event-Stream", "text/event-stream; charset=utf-8"])
def test_what_counts_as_an_event_stream(content_type: str) -> None:
    """The media type decides, whatever its case and parameters."""
    assert relay([EVENT + DONE], content_type).ids == (SIGNATURE_ID, "a")


def test_an_encoded_event_stream_is_signed_as_the_bytes_it_is() -> None:
    """Compressed bytes hold no events: they pass, and are whole where their framing ends."""
    outcome = relay([EVENT + DONE, b"more"], EVENTS, content_encoding="gzip")
    assert (outcome.out, outcome.ids) == (EVENT + DONE + b"more", (SIGNATURE_ID,))


@pytest.mark.parametrize(
    ("stream", "expected", "ids"),
    [
        pytest.param(EVENT + DONE, EVENT + DONE, (SIGNATURE_ID, "a"), id="whole"),
        pytest.param(EVENT + DONE + EVENT, EVENT + DONE, (SIGNATURE_ID, "a"), id="bytes after the terminator"),
        pytest.param(EVENT + DONE[:-1], EVENT + DONE[:-1], (SIGNATURE_ID, "a"), id="without the last line end"),
        pytest.param(DONE, DONE, (SIGNATURE_ID,), id="without an id"),
        pytest.param(EVENT, EVENT, None, id="without a terminator"),
        pytest.param(b"", b"", None, id="empty"),
    ],
)
def test_an_event_stream(stream: bytes, expected: bytes, ids: tuple[str, ...] | None) -> None:
    """A stream is delivered as it is up to its terminator, and signed if it has one."""
    for chunks in ways_to_cut(stream):
        outcome = relay(chunks, EVENTS)
        assert (outcome.out, outcome.ids) == (expected, ids)


STREAM = EVENT + DONE


@pytest.mark.parametrize(
    ("content_type", "body"),
    [(AUDIO, b"abcd"), (JSON, b'{"id":"a"}'), (JSON, b'["a"]'), (EVENTS, STREAM), (EVENTS, STREAM[:-1])],
)
@pytest.mark.parametrize("beyond", [b"", b"x", STREAM], ids=["alone", "a byte beyond", "a stream beyond"])
def test_a_response_of_declared_length_is_its_first_bytes(content_type: str, body: bytes, beyond: bytes) -> None:
    """Whatever its kind: what a backend sends beyond is nobody's, and dropped."""
    for chunks in ways_to_cut(body + beyond):
        outcome = relay(chunks, content_type, content_length=len(body))
        assert outcome == relay([body], content_type)
        assert outcome.signed


@pytest.mark.parametrize(
    ("content_type", "status", "body"),
    [
        pytest.param(AUDIO, 200, b"abcd", id="raw"),
        pytest.param(AUDIO, 200, b"", id="nothing of it"),
        pytest.param(JSON, 200, b'{"id":"a"}', id="JSON object"),
        pytest.param(JSON, 200, b'["a"]', id="JSON array"),
        pytest.param(JSON, 200, b" \n", id="JSON that has not begun"),
        pytest.param(EVENTS, 200, EVENT, id="event stream"),
        pytest.param(EVENTS, 200, STREAM[:-1], id="event stream, within its terminator's blank line"),
        pytest.param(JSON, 503, b'{"error":1}', id="an error"),
    ],
)
def test_a_response_shorter_than_declared_is_no_whole_one(content_type: str, status: int, body: bytes) -> None:
    """Whoever says that it has ended: a gateway that frames the body itself would end it as if it were whole."""
    for chunks in ways_to_cut(body):
        outcome = relay(chunks, content_type, status=status, content_length=len(body) + 1)
        assert (outcome.signed, outcome.is_whole) == (None, False)
        assert body.startswith(outcome.out)


def test_the_end_of_a_response_that_fell_short_is_refused_again() -> None:
    """Saying it twice makes no answer whole; and the error says what came, and what to do."""
    exchange = new_exchange()
    exchange.receive_request(REQUEST)
    exchange.start_response(200, JSON, content_length=1000)
    exchange.receive_response(b'{"secret')
    for _ in range(2):
        with pytest.raises(MalformedError, match=r"^992 bytes of the response are missing.*[Bb]reak") as caught:
            exchange.end_response()
        assert caught.value.code == "response_incomplete"
        assert repr(exchange) == f"Exchange({SIGNATURE_ID}, UNSIGNED)"


def test_a_stream_that_is_over_before_its_declared_length_is_whole() -> None:
    """Its terminator ends it, and what comes behind is dropped, whether it comes or not."""
    outcome = relay([STREAM, b"more"], EVENTS, content_length=1000)
    assert outcome == relay([STREAM], EVENTS)
    assert outcome.signed


@pytest.mark.parametrize("status", [204, 304])
def test_the_length_of_a_response_that_has_no_body_is_anothers(status: int) -> None:
    """Some backends declare it all the same: that of 304 is of what the client has already."""
    outcome = relay([], AUDIO, status=status, content_length=1000)
    assert (outcome.out, outcome.signed is not None, outcome.is_whole) == (b"", status == 204, True)


@pytest.mark.parametrize("content_type", [JSON, AUDIO, None])
def test_an_empty_response_is_signed(content_type: str | None) -> None:
    """No bytes are an answer too; only an event stream needs its terminator."""
    outcome = relay([], content_type)
    assert outcome.signed
    verify_exchange(REQUEST, b"", outcome.signed.chat.answer())


@pytest.mark.parametrize("status", [100, 199, 300, 304, 400, 404, 500, 503])
@pytest.mark.parametrize("content_type", [JSON, EVENTS, AUDIO])
def test_a_response_that_is_no_success_passes_unsigned(status: int, content_type: str) -> None:
    """Errors and redirects are relayed as they are."""
    assert relay([b'{"x":', b"1}"], content_type, status=status) == Outcome(b'{"x":1}', None)


@pytest.mark.parametrize("status", [200, 201, 204, 206, 299])
def test_every_success_is_signed(status: int) -> None:
    """The whole of 2xx is."""
    assert relay([b"x"], AUDIO, status=status).signed


@pytest.mark.parametrize("content_type", [JSON, EVENTS, AUDIO])
@pytest.mark.parametrize(
    "body", [b'{"x":1}', b"{}", b'{"id":"a"}', b'"x":1}', EVENT, EVENT + DONE, EVENT + DONE + EVENT, b""]
)
def test_a_part_is_delivered_and_signed_as_the_bytes_it_is(content_type: str, body: bytes) -> None:
    """What looks like a document is a part of another: its head counts its bytes, and an id in it is anything's."""
    for chunks in ways_to_cut(body):
        outcome = relay(chunks, content_type, status=206, is_part=True)
        assert (outcome.out, outcome.ids) == (body, (SIGNATURE_ID,))
        assert outcome.signed
        verify_exchange(REQUEST, body, outcome.signed.chat.answer())


def test_a_length_below_zero_is_refused() -> None:
    """Some clients say so where there is none; taken as it is, it would cut bytes off."""
    with pytest.raises(UsageError) as caught:
        new_exchange().start_response(200, AUDIO, content_length=-1)
    assert caught.value.code == "bad_length"


def test_a_request_without_a_body_is_its_target() -> None:
    """Where there are no bytes to hash, path and query say what was asked; empty chunks are no bytes."""
    exchange = Exchange(fixed_pair(), id_prefix="pt", random=counting_random(), target=b"/v1/x?y=%20")
    exchange.receive_request(b"")
    exchange.start_response(200, AUDIO)
    exchange.end_response()
    assert exchange.signed
    verify_exchange(b"/v1/x?y=%20", b"", exchange.signed.chat.answer())


@pytest.mark.parametrize(
    ("target", "signed"),
    [(b"/x?", b"/x"), (b"/?", b"/"), (b"/x??", b"/x??"), (b"/x?y?", b"/x?y?"), (b"/x%3F", b"/x%3F")],
)
def test_a_query_of_nothing_is_none(target: bytes, signed: bytes) -> None:
    """Few servers tell the two apart, so that no gateway has to."""
    exchange = Exchange(fixed_pair(), id_prefix="pt", random=counting_random(), target=target)
    exchange.start_response(200, AUDIO)
    exchange.end_response()
    assert exchange.signed
    verify_exchange(signed, b"", exchange.signed.chat.answer())


@pytest.mark.parametrize("status", [200, 404])
def test_a_request_without_a_body_or_a_target_is_refused(status: int) -> None:
    """Signed, it could be any: all of them have the digest of no bytes. The refused call changes nothing."""
    exchange = Exchange(fixed_pair(), id_prefix="pt", random=counting_random())
    exchange.receive_request(b"")
    with pytest.raises(UsageError, match="`target`") as caught:
        exchange.start_response(status, AUDIO)
    assert caught.value.code == "target_missing"
    exchange.receive_request(REQUEST)
    exchange.start_response(status, AUDIO)


def test_a_request_whose_digest_was_replaced_needs_no_target() -> None:
    """The gateway in front has said what it is."""
    exchange = Exchange(fixed_pair(), id_prefix="pt", random=counting_random())
    exchange.replace_request_digest("ab" * 32)
    exchange.start_response(200, AUDIO)
    exchange.end_response()
    assert exchange.signed


@pytest.mark.parametrize("target", ["/v1/x", None, bytearray(b"/v1/x")])
def test_a_target_that_is_not_bytes_is_refused(target: object) -> None:
    """At the beginning, and not by the first request without a body when it is to be signed."""
    with pytest.raises(UsageError, match="bytes") as caught:
        Exchange(fixed_pair(), id_prefix="pt", random=counting_random(), target=target)  # type: ignore[arg-type]  # the mistake in question
    assert caught.value.code == "bad_target"


@pytest.mark.parametrize(
    "target", [b"/v1/caf\xc3\xa9", b"/a b", b"/a\n", b"/\x7f", b"*", b"http://host/v1/x", b"v1/x", b"?a=b", b"{}"]
)
def test_a_target_that_could_be_a_body_is_refused(target: bytes) -> None:
    """Some servers let these through; whoever may send a body could have it signed as a request for that target."""
    with pytest.raises(UsageError) as caught:
        Exchange(fixed_pair(), id_prefix="pt", random=counting_random(), target=target)
    assert caught.value.code == "bad_target"


TARGETS = st.text("/x?!~ \x7fé\n", min_size=1).map(str.encode) | st.binary(min_size=1)


@given(TARGETS | TARGETS.map(b"/".__add__), PLACES)
@settings(max_examples=examples(500), deadline=None)
def test_what_is_signed_as_a_body_is_refused_as_a_target(data: bytes, places: list[int]) -> None:
    """For any bytes, however a body of them is cut; and the other way round. So no two requests have one text."""
    exchange = made(target=b"/v1/another")
    for piece in cut(data, places):
        exchange.receive_request(piece)
    exchange.start_response(200, AUDIO)
    exchange.end_response()
    if exchange.signed is None:
        made(target=data)
    else:
        with pytest.raises(UsageError):
            made(target=data)


PREFIXES_OF_NO_ID: dict[str, Any] = {
    "a quote": 'a"b',
    "white space": "a b",
    "a slash": "a/b",
    "a line end": "a\n",
    "another alphabet's letter": "é",
    "half a character": "\ud800",
    "too long": "a" * 232,
    "none": None,
    "bytes": b"chatcmpl",
    "a number": 7,
}


@pytest.mark.parametrize("prefix", PREFIXES_OF_NO_ID.values(), ids=PREFIXES_OF_NO_ID)
def test_an_id_prefix_that_could_not_stand_in_an_id_is_refused(prefix: Any) -> None:
    """At the beginning: it goes into JSON and into the path of the signature endpoint as it is."""
    with pytest.raises(UsageError, match="letters") as caught:
        Exchange(fixed_pair(), id_prefix=prefix, random=counting_random())
    assert caught.value.code == "bad_id_prefix"


@pytest.mark.parametrize("prefix", ["", "chatcmpl", "My_own.id-1", "a" * 231], ids=len)
def test_an_inserted_id_can_always_be_stored(prefix: str) -> None:
    """The longest prefix leaves room for the rest."""
    exchange = Exchange(fixed_pair(), id_prefix=prefix, random=counting_random(), target=b"/x")
    exchange.start_response(200, JSON)
    exchange.receive_response(b"{}")
    chat_id = json.loads(exchange.end_response())["id"]
    assert chat_id.startswith(f"{prefix}-")
    assert exchange.signed
    assert exchange.signed.ids == (SIGNATURE_ID, chat_id)


@pytest.mark.parametrize(
    "random", [lambda _: b"", lambda count: bytes(count - 1), lambda _: bytes(32), lambda _: "a" * 16]
)
def test_a_random_source_that_returns_something_else_is_refused(random: Any) -> None:
    """Ids from fewer bytes than were asked for could be those of another exchange, or be guessed."""
    with pytest.raises(UsageError, match="as many bytes") as caught:
        Exchange(fixed_pair(), id_prefix="chatcmpl", random=random)
    assert caught.value.code == "bad_random"


def test_a_random_source_that_fails_at_the_end_leaves_nothing_signed() -> None:
    """However often the end is said: the body is not lost in between, nor an empty one signed in its place."""
    exchange = Exchange(fixed_pair(), id_prefix="chatcmpl", random=lambda _: bytes(16), target=b"/x")
    exchange.start_response(200, JSON)
    exchange.receive_response(b"{}")
    for _ in range(2):
        with pytest.raises(UsageError) as caught:
            exchange.end_response()
        assert (caught.value.code, exchange.signed, exchange.id_inserted) == ("bad_random", None, False)


def test_the_target_does_not_count_beside_a_body() -> None:
    """A request with a body is its body, in however many pieces it came."""
    exchange = Exchange(fixed_pair(), id_prefix="pt", random=counting_random(), target=b"/v1/x")
    for byte in REQUEST:
        exchange.receive_request(bytes([byte]))
    exchange.start_response(200, AUDIO)
    exchange.end_response()
    assert exchange.signed
    verify_exchange(REQUEST, b"", exchange.signed.chat.answer())


@pytest.mark.parametrize("digest", ["ab" * 32, "AB" * 32])
def test_a_replaced_request_digest_is_signed_in_lower_case(digest: str) -> None:
    """The gateway in front may say what the client sent."""
    exchange = new_exchange()
    exchange.receive_request(REQUEST)
    exchange.replace_request_digest(digest)
    exchange.start_response(200, AUDIO)
    exchange.end_response()
    assert exchange.signed
    assert exchange.signed.chat.text == f"{'ab' * 32}:{sha256().hexdigest()}"


@pytest.mark.parametrize(
    "digest", ["", "ab" * 31, "ab" * 33, "zz" * 32, " " + "ab" * 32, "ab" * 32 + "\n", "0x" + "ab" * 31]
)
def test_what_is_no_digest_is_refused(digest: str) -> None:
    """What is signed is 64 hex digits, whoever says it; the computed digest stays in place."""
    exchange = new_exchange()
    exchange.receive_request(REQUEST)
    with pytest.raises(UsageError, match=r"^A request digest is 64 hex digits\.$") as caught:
        exchange.replace_request_digest(digest)
    assert caught.value.code == "bad_digest"
    exchange.start_response(200, AUDIO)
    exchange.end_response()
    assert exchange.signed
    verify_exchange(REQUEST, b"", exchange.signed.chat.answer())


def test_text_version_2_names_the_model() -> None:
    """The longer form of the text verifies like the shorter one."""
    exchange = Exchange(fixed_pair(), id_prefix="x", random=counting_random(), text_version="v2", model="org/m:1")
    exchange.receive_request(REQUEST)
    exchange.start_response(200, AUDIO)
    exchange.receive_response(b"x")
    exchange.end_response()
    assert exchange.signed
    assert verify_exchange(REQUEST, b"x", exchange.signed.chat.answer()).model == "org/m:1"


def test_an_unknown_text_version_is_refused() -> None:
    """Nobody could verify it."""
    with pytest.raises(UsageError) as caught:
        Exchange(fixed_pair(), id_prefix="chatcmpl", random=counting_random(), text_version="v3")  # type: ignore[arg-type]  # the mistake in question
    assert caught.value.code == "bad_text_version"


@pytest.mark.parametrize("model", ["", "\ud800"], ids=["left out", "no text"])
def test_a_model_that_cannot_be_named_is_refused(model: str) -> None:
    """At the beginning: an exchange must not fail when it signs, nor sign a text that is to name one and does not."""
    with pytest.raises(UsageError, match="name") as caught:
        Exchange(fixed_pair(), id_prefix="chatcmpl", random=counting_random(), text_version="v2", model=model)
    assert caught.value.code == "bad_model"


def test_a_digest_cannot_be_replaced_once_it_is_signed() -> None:
    """It would say something else than the signature."""
    exchange = new_exchange()
    exchange.start_response(200, JSON)
    exchange.end_response()
    with pytest.raises(UsageError) as caught:
        exchange.replace_request_digest("0" * 64)
    assert caught.value.code == "out_of_order"


def made(**changes: Any) -> Exchange:
    """Return an exchange without a target, or with what is given."""
    return Exchange(**{"pair": fixed_pair(), "id_prefix": "pt", "random": counting_random(), **changes})


def replace_the_digest_of_what_is_signed() -> None:
    """Think again when it is too late."""
    exchange = made(target=b"/v1/x")
    exchange.start_response(200, AUDIO)
    exchange.end_response()
    exchange.replace_request_digest("ab" * 32)


REFUSALS: dict[str, tuple[Callable[[], object], str]] = {
    "bad_id_prefix": (
        lambda: made(id_prefix="a b"),
        'An id\'s prefix is at most 231 ASCII letters, digits and characters of "._-".',
    ),
    "bad_target": (
        lambda: made(target="/v1/x"),
        'A target is bytes: "/", and behind it only those from 0x21 to 0x7e. What asks for another has to be refused.',
    ),
    "out_of_order": (
        replace_the_digest_of_what_is_signed,
        "The exchange is signed; its request's digest cannot change any more.",
    ),
    "target_missing": (
        lambda: made().start_response(200, AUDIO),
        "A request without a body is signed as its target: pass that as `target`, or the body before this.",
    ),
    "bad_length": (
        lambda: relay([], content_length=-1),
        "A body has no negative length; None stands for an unknown one.",
    ),
    "bad_random": (
        lambda: made(random=lambda _: b"x"),
        "`random` must return as many bytes as it is asked for, as `secrets.token_bytes` does.",
    ),
    "bad_chunk": (
        lambda: relay([cast(Any, 0)]),
        "A piece of a body is bytes, or a buffer of them; where none came, leave out the call.",
    ),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_each_refusal_names_its_problem(code: str) -> None:
    """And says what would be right."""
    refused, message = REFUSALS[code]
    with pytest.raises(UsageError) as caught:
        refused()
    assert (caught.value.code, str(caught.value)) == (code, message)


def test_a_response_before_its_head_is_out_of_order() -> None:
    """The refused calls change nothing: the exchange goes on as if they had not been made."""
    exchange = new_exchange()
    with pytest.raises(UsageError, match=r"^The response's head must come before its body\.$") as body:
        exchange.receive_response(b"x")
    with pytest.raises(UsageError, match=r"^The response's head must come before its end\.$") as end:
        exchange.end_response()
    assert (body.value.code, end.value.code) == ("out_of_order", "out_of_order")
    exchange.receive_request(REQUEST)
    exchange.start_response(200)
    assert exchange.receive_response(b"abc") + exchange.end_response() == b"abc"
    assert exchange.signed == relay([b"abc"], None).signed


@pytest.mark.parametrize(("status", "state"), [(200, "RAW"), (404, "UNSIGNED")])
def test_a_request_after_the_head_of_the_response_is_out_of_order(status: int, state: str) -> None:
    """Neither more of the request nor a second head can change what is being signed."""
    problem = rf"^This call belongs to the state REQUEST; the exchange is in {state}\.$"
    exchange = new_exchange()
    exchange.receive_request(REQUEST)
    exchange.start_response(status)
    with pytest.raises(UsageError, match=problem) as request:
        exchange.receive_request(b"more")
    with pytest.raises(UsageError, match=problem) as head:
        exchange.start_response(500)
    assert (request.value.code, head.value.code) == ("out_of_order", "out_of_order")
    exchange.receive_response(b"abc")
    exchange.end_response()
    assert exchange.signed == relay([b"abc"], None, status=status).signed


@pytest.mark.parametrize(
    ("content_type", "length", "chunks", "outs", "signed_at"),
    [
        pytest.param(JSON, None, [b"{", b'"id":"a"}'], [b"", b"", b'{"id":"a"}'], 2, id="JSON"),
        pytest.param(JSON, 3, [b"[", b"1]"], [b"[", b"1]", b""], 1, id="JSON array of known length"),
        pytest.param(EVENTS, None, [EVENT, DONE[:-1], b"\n"], [EVENT, b"", DONE, b""], 2, id="event stream"),
        pytest.param(EVENTS, None, [EVENT, DONE[:-1]], [EVENT, b"", DONE[:-1]], 2, id="event stream, no blank line"),
        pytest.param(EVENTS, None, [EVENT, DONE[:-3]], [EVENT, b"", DONE[:-3]], None, id="event stream, cut off"),
        pytest.param(AUDIO, None, [b"a", b"b"], [b"a", b"b", b""], 2, id="raw"),
        pytest.param(AUDIO, 2, [b"a", b"b"], [b"a", b"b", b""], 1, id="raw of known length"),
    ],
)
def test_the_signature_comes_with_the_last_bytes(
    content_type: str, length: int | None, chunks: list[bytes], outs: list[bytes], signed_at: int | None
) -> None:
    """Before the call that returns the last bytes there is none: dropping the exchange half-way leaves no trace."""
    exchange = new_exchange()
    exchange.receive_request(REQUEST)
    exchange.start_response(200, content_type, content_length=length)
    steps = [(exchange.receive_response(chunk), exchange.signed is not None) for chunk in chunks]
    steps.append((exchange.end_response(), exchange.signed is not None))
    assert steps == [(out, signed_at is not None and step >= signed_at) for step, out in enumerate(outs)]


def test_what_comes_after_the_end_is_dropped() -> None:
    """A signed response stays what it is."""
    exchange = new_exchange()
    exchange.start_response(200, AUDIO, content_length=1)
    exchange.receive_response(b"x")
    signed = exchange.signed
    assert signed
    assert (exchange.receive_response(b"y"), exchange.end_response(), exchange.signed) == (b"", b"", signed)


class Piece(bytes):
    """What some clients hand out."""


@pytest.mark.parametrize("kind", [bytes, Piece, bytearray, memoryview, lambda piece: array("B", piece)])
@pytest.mark.parametrize(
    ("content_type", "status", "body"),
    [
        (JSON, 200, b'{"id":"a"}'),
        (JSON, 200, b"[1, 2]"),
        (EVENTS, 200, STREAM),
        (AUDIO, 200, b"abcd"),
        (JSON, 404, b"{ }"),
    ],
)
@pytest.mark.parametrize("length", [None, 3], ids=["of no length", "of 3 bytes"])
def test_any_kind_of_bytes_is_taken(
    kind: Callable[[bytes], Any], content_type: str, status: int, body: bytes, length: int | None
) -> None:
    """Gateways read into buffers and cut views out of them; what comes out is bytes of its own."""
    exchange = new_exchange()
    for piece in (REQUEST[:3], REQUEST[3:]):
        exchange.receive_request(kind(piece))
    exchange.start_response(status, content_type, content_length=length)
    outs = [exchange.receive_response(kind(piece)) for piece in (body[:2], body[2:])]
    outs.append(exchange.end_response())
    expected = relay([body], content_type, status=status, content_length=length)
    assert {type(out) for out in outs} == {bytes}
    assert exchange.signed == expected.signed
    assert b"".join(outs) == expected.out


@pytest.mark.parametrize("content_type", [JSON, EVENTS, AUDIO])
def test_a_buffer_may_be_filled_again_after_each_call(content_type: str) -> None:
    """What was taken is what it held then."""
    body = EVENT + b"data: [DO" + b"NE]\n\n" if content_type == EVENTS else b'{"id":"a","x":[1,2,3]}'
    exchange, buffer, outs = new_exchange(), bytearray(4), []
    exchange.receive_request(REQUEST)
    exchange.start_response(200, content_type)
    for start in range(0, len(body), len(buffer)):
        piece = body[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        outs.append(exchange.receive_response(memoryview(buffer)[: len(piece)]))
        buffer[:] = b"####"
    outs.append(exchange.end_response())
    assert Outcome(b"".join(outs), exchange.signed) == relay([body], content_type)


@pytest.mark.parametrize("piece", [None, 0, 3, "", "{}", [], [123, 125], {}, False], ids=repr)
def test_a_piece_that_is_not_bytes_is_refused(piece: Any) -> None:
    """Also one that is empty; the refused calls change nothing."""
    exchange = new_exchange()
    with pytest.raises(UsageError, match="bytes") as request:
        exchange.receive_request(piece)
    exchange.receive_request(REQUEST)
    exchange.start_response(200, JSON, content_length=8)
    with pytest.raises(UsageError, match="bytes") as response:
        exchange.receive_response(piece)
    assert (request.value.code, response.value.code) == ("bad_chunk", "bad_chunk")
    assert exchange.receive_response(b'{"id":1}') + exchange.end_response() == b'{"id":1}'
    assert exchange.signed == relay([b'{"id":1}']).signed


def test_collecting_ends_where_the_body_turns_out_to_be_no_object() -> None:
    """A JSON array need not be held in memory: it has no id, so it goes out as it comes."""
    exchange = new_exchange()
    exchange.start_response(200, JSON)
    assert [exchange.receive_response(chunk) for chunk in (b" \n", b"[", b"1]")] == [b"", b" \n[", b"1]"]


def test_what_only_looks_like_white_space_before_an_object_is_not_collected() -> None:
    """JSON has four characters of white space; behind any other there is no JSON object to wait for."""
    exchange = new_exchange()
    exchange.start_response(200, JSON)
    assert [exchange.receive_response(chunk) for chunk in (b"\x0b{", b"}")] == [b"\x0b{", b"}"]


@pytest.mark.parametrize(
    ("content_type", "status", "body", "keeps"),
    [
        pytest.param(AUDIO, 200, b"x", True, id="raw"),
        pytest.param(JSON, 200, b" [1]", True, id="JSON array"),
        pytest.param(JSON, 404, b'{"x":1}', True, id="an error"),
        pytest.param(EVENTS, 200, EVENT, False, id="event stream"),
        pytest.param(JSON, 200, b'{"x":1}', False, id="JSON object without an id"),
        pytest.param(JSON, 200, b'{"id":"a"}', True, id="JSON object with an id"),
        pytest.param(JSON, 200, b'{"id":7}', True, id="JSON object with what is no id"),
        pytest.param(JSON, 200, b'{"x"', True, id="JSON that is cut off"),
        pytest.param(JSON, 200, b" ", True, id="JSON of nothing"),
    ],
)
def test_the_declared_length_holds_where_no_byte_is_added_or_dropped(
    content_type: str, status: int, body: bytes, *, keeps: bool
) -> None:
    """A gateway may announce the backend's length where `keeps_length` says so by the first byte handed out."""
    exchange = new_exchange()
    exchange.start_response(status, content_type)
    if not exchange.receive_response(body):
        assert exchange.keeps_length is False
        exchange.end_response()
    assert exchange.keeps_length is keeps


@pytest.mark.parametrize(
    ("content_type", "status", "body", "inserted"),
    [
        pytest.param(JSON, 200, b'{"x":1}', True, id="without an id"),
        pytest.param(JSON, 200, b'{"id":1}', False, id="with one"),
        pytest.param(JSON, 200, b"[1]", False, id="no object"),
        pytest.param(JSON, 404, b'{"x":1}', False, id="an error"),
        pytest.param(EVENTS, 200, EVENT, False, id="event stream"),
    ],
)
def test_it_says_whether_it_has_inserted_an_id(content_type: str, status: int, body: bytes, *, inserted: bool) -> None:
    """What is known of the backend's bytes, such as their digest, does not hold then."""
    exchange = new_exchange()
    exchange.start_response(status, content_type)
    out = exchange.receive_response(body) + exchange.end_response()
    assert exchange.id_inserted is (out != body) is inserted


def test_the_repr_shows_nothing_of_the_exchange() -> None:
    """It may be logged at any moment: its random id and its state, none of its bytes."""
    exchange = new_exchange()
    exchange.receive_request(b"secret")
    exchange.start_response(200, JSON)
    exchange.receive_response(b'{"secret')
    assert repr(exchange) == f"Exchange({SIGNATURE_ID}, JSON)"


@pytest.mark.parametrize(
    ("content_type", "length", "state"),
    [
        pytest.param(EVENTS, None, "UNSIGNED", id="event stream without a terminator"),
        pytest.param(AUDIO, 1, "SIGNED", id="raw"),
        pytest.param(JSON, None, "SIGNED", id="JSON"),
    ],
)
def test_the_repr_says_how_it_ended(content_type: str, length: int | None, state: str) -> None:
    """An exchange that is over is signed or unsigned, and nothing else."""
    exchange = new_exchange()
    exchange.start_response(200, content_type, content_length=length)
    exchange.receive_response(b"x")
    exchange.end_response()
    assert repr(exchange) == f"Exchange({SIGNATURE_ID}, {state})"


SPACE = st.text(alphabet=" \t\r\n", max_size=3).map(str.encode)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.sampled_from(["id", "object"]), inner, max_size=3)
    ),
    max_leaves=8,
)
DOCUMENTS = st.builds(
    lambda before, value, ascii_only, indent, after: (
        before + json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode() + after
    ),
    SPACE,
    VALUES,
    st.booleans(),
    st.none() | st.integers(0, 2),
    SPACE,
)
EVENT_STREAMS = st.lists(
    st.sampled_from([EVENT, DONE, b"data: {}\r\n\r\n", b": c\n\n", b"data: [DONE]", b"\r", b"\n", b"x"])
    | st.binary(max_size=4),
    max_size=8,
).map(b"".join)


@given(
    st.one_of(
        st.tuples(st.just(JSON), DOCUMENTS | st.binary() | st.binary().map(b"{".__add__)),
        st.tuples(st.just(EVENTS), EVENT_STREAMS),
        st.tuples(st.just(AUDIO), st.binary()),
    ),
    PLACES,
    st.none() | st.integers(0, 60),
)
@settings(max_examples=examples(2000), deadline=None)
def test_any_response_is_the_same_however_it_is_cut(
    response: tuple[str, bytes], places: list[int], length: int | None
) -> None:
    """For any body and any way of cutting it, the bytes out, the ids and the signatures are the same.

    And what is signed is the digest of the bytes out, which are the bytes in unless an id was inserted.
    """
    content_type, body = response
    whole = relay([body], content_type, content_length=length)
    assert relay(cut(body, places), content_type, content_length=length) == whole
    if whole.signed:
        verify_exchange(REQUEST, whole.out, whole.signed.chat.answer())
    if whole.ids and NEW_ID in whole.ids:
        assert json.loads(whole.out.decode(errors="surrogateescape"))["id"] == NEW_ID
        assert body[:length] in (whole.out.replace(MEMBER + b",", b"", 1), whole.out.replace(MEMBER, b"", 1))
    else:
        assert body.startswith(whole.out)
    if whole.is_whole and not whole.signed:
        assert content_type == EVENTS


@given(VALUES.filter(lambda value: isinstance(value, dict) and "id" not in value), SPACE, PLACES)
@settings(max_examples=examples(300), deadline=None)
def test_any_object_without_an_id_gets_one_and_keeps_the_rest(
    value: dict[str, object], space: bytes, places: list[int]
) -> None:
    """For any such object, what the client decodes is the object with the id in front."""
    outcome = relay(cut(space + json.dumps(value).encode(), places))
    assert outcome.ids == (SIGNATURE_ID, NEW_ID)
    assert list(json.loads(outcome.out).items()) == [("id", NEW_ID), *value.items()]


def test_a_terminator_too_long_to_hold_leaves_the_stream_unsigned() -> None:
    """What the scanner lets go has been seen by the client, so no signature could come before it."""
    stream = b"data: [DONE]\n:" + b"x" * sse.MAX_HELD + b"\n\n"
    assert relay([stream], EVENTS) == Outcome(stream, None)


@pytest.mark.parametrize("chunk", [b" " * 16_384, b"\n", b""])
def test_what_comes_before_a_json_object_takes_no_time(chunk: bytes) -> None:
    """Some backends send blank lines until they have an answer; 16 megabytes used to take 20 seconds."""
    exchange = new_exchange()
    exchange.start_response(200, JSON)
    start = time.process_time()
    for _ in range(min(100_000, 2**24 // max(len(chunk), 1))):
        exchange.receive_response(chunk)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("size", [0, 2, 7])
def test_a_json_object_in_tiny_pieces_takes_little_memory(size: int) -> None:
    """However a backend cuts it; a few times what its bytes take, and not forty bytes more for each piece."""
    exchange = new_exchange()
    exchange.start_response(200, JSON)
    with peak_below(3 * 100_000 * size + 600_000):
        exchange.receive_response(b"{")
        for _ in range(100_000):
            exchange.receive_response(b"x" * size)


@pytest.mark.parametrize("content_type", [None, "application/json", "text/event-stream"])
@pytest.mark.parametrize(
    ("pieces", "signed"),
    [
        ([b"/v1/responses/mine"], False),
        ([b"", b"/v1", b"/x?y=%20"], False),
        ([b"/"], False),
        ([b"/v1/x\n"], True),
        ([b"/v1", b" x"], True),
        ([b"v1/x"], True),
        ([b"{}", b"/v1/x"], True),
    ],
)
def test_a_body_that_could_be_a_target_is_not_signed(
    content_type: str | None,
    pieces: list[bytes],
    signed: bool,  # noqa: FBT001 - a column
) -> None:
    """Its digest would be that of another request, without a body: the answer passes, and never for one to that."""
    exchange = Exchange(fixed_pair(), id_prefix="pt", random=counting_random(), target=b"/v1/another")
    for piece in pieces:
        exchange.receive_request(piece)
    exchange.start_response(200, content_type)
    body = b"data: [DONE]\n\n" if content_type == "text/event-stream" else b'{"id":"1"}'
    assert exchange.receive_response(body) + exchange.end_response() == body
    assert (exchange.signed is not None) == signed


def test_a_trusted_digest_is_signed_whatever_the_body_is() -> None:
    """Whoever replaces it knows what was asked."""
    exchange = Exchange(fixed_pair(), id_prefix="pt", random=counting_random())
    exchange.receive_request(b"/v1/x")
    exchange.replace_request_digest("ab" * 32)
    exchange.start_response(200)
    exchange.end_response()
    assert exchange.signed
