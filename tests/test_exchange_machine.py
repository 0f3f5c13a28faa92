"""Any calls of an exchange in any order, against a model that waits until it has everything and then decides."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support import examples
from test_sse import BLANK_LINE, NEVER, interpret

from teesign import Exchange, MalformedError, UsageError, verify_exchange
from teesign.testing import counting_random, fixed_pair

TARGET = b"/v1/x?y"
NEW_ID = "new-" + "2".zfill(24)
SPACE = b" \t\n\r"

JSON, EVENTS, RAW, ERROR = "application/json", "text/event-stream", "audio/mpeg", "an error"
PIECES: dict[str, list[bytes]] = {
    JSON: [b"{", b"}", b" ", b'"id":"a"', b'"id":7', b'"x":1', b",", b"[", b"]", b"\xff"],
    EVENTS: [
        b'data: {"id":"a"}\n\n',
        b"data: [DONE]\n\n",
        b"data: [DO",
        b"NE]",
        b"\n",
        b"\r",
        b"\r\n",
        b"data",
        b": c",
    ],
    RAW: [b"", b"a", b"bc", b"\0\0\0"],
    ERROR: [b"", b"x", b'{"id":"a"}'],
}


class Expected(NamedTuple):
    """What has to come of a whole response: the bytes, whether they are signed, and the id inside them."""

    out: bytes
    is_signed: bool
    chat_id: str | None = None


def expected_of(kind: str, body: bytes, length: int | None) -> Expected:
    """Decide with the whole body at hand, the standard library's JSON, and the HTML standard's reading of events."""
    body = body[:length]
    if kind == ERROR:
        return Expected(body, is_signed=False)
    if kind == EVENTS:
        found = interpret(body)
        return Expected(body[: found.end], found.complete is not NEVER, found.event_id)
    text = body.lstrip(SPACE)
    if kind == RAW or text[:1] not in (b"", b"{"):
        return Expected(body, is_signed=True)
    return expected_of_document(body)


def expected_of_document(body: bytes) -> Expected:
    """Decide about a whole JSON body."""
    text = body.lstrip(SPACE)
    try:
        document = json.loads(body.decode(errors="surrogateescape"))
    except ValueError:
        return Expected(body, is_signed=True)
    if "id" in document:
        return Expected(body, is_signed=True, chat_id=document["id"] if isinstance(document["id"], str) else None)
    start = len(body) - len(text) + 1
    comma = b"," if document else b""
    return Expected(body[:start] + f'"id":"{NEW_ID}"'.encode() + comma + body[start:], is_signed=True, chat_id=NEW_ID)


def is_whole_already(kind: str, body: bytes, length: int | None) -> bool:
    """Tell whether a body, of which a piece has come, is known to be whole before its end has been declared."""
    body = body[:length]
    if kind == EVENTS:
        return interpret(body).complete is BLANK_LINE
    is_raw = kind == RAW or (kind == JSON and body.lstrip(SPACE)[:1] not in (b"", b"{"))
    return is_raw and length is not None and len(body) >= length


class ExchangeMachine(RuleBasedStateMachine):
    """Drive an exchange and remember what went in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.exchange = Exchange(fixed_pair(), id_prefix="new", random=counting_random(), target=TARGET)
        self.kind = ""
        self.length: int | None = None
        self.request = self.body = self.out = b""
        self.digest: str | None = None
        self.has_begun = self.is_over = self.is_broken = False

    @rule(chunk=st.sampled_from([b"", b"a", b"bc"]))
    def receive_request(self, chunk: bytes) -> None:
        """More of the request; too late once there is a response."""
        if self.kind:
            self.refused(lambda: self.exchange.receive_request(chunk))
        else:
            self.exchange.receive_request(chunk)
            self.request += chunk

    @rule(digest=st.sampled_from(["ab" * 32, "AB" * 32, "ab" * 31, "xy" * 32]))
    def replace_request_digest(self, digest: str) -> None:
        """Another digest; what is none is refused, and any after the signature."""
        if self.exchange.signed is not None:
            self.refused(lambda: self.exchange.replace_request_digest(digest))
        elif digest.lower() == "ab" * 32:
            self.exchange.replace_request_digest(digest)
            self.digest = digest.lower()
        else:
            with pytest.raises(UsageError, match="64 hex digits"):
                self.exchange.replace_request_digest(digest)

    @rule(kind=st.sampled_from(list(PIECES)), length=st.none() | st.integers(0, 6) | st.sampled_from([14, 31]))
    def start_response(self, kind: str, length: int | None) -> None:
        """The head; a second one is refused."""
        status, content_type = (503, JSON) if kind == ERROR else (200, kind)
        if self.kind:
            self.refused(lambda: self.exchange.start_response(status, content_type, content_length=length))
        else:
            self.exchange.start_response(status, content_type, content_length=length)
            self.kind, self.length = kind, length

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data())
    def receive_response(self, data: st.DataObject) -> None:
        """More of the body. What comes behind the end of a whole response is dropped."""
        if not self.kind:
            self.refused(lambda: self.exchange.receive_response(b"x"))
            return
        chunk = b"".join(data.draw(st.lists(st.sampled_from(PIECES[self.kind]), max_size=3)))
        was_signed = self.exchange.signed is not None
        piece = self.exchange.receive_response(chunk)
        self.has_begun = True
        if was_signed:
            assert piece == b""
        else:
            self.body += chunk
            self.out += piece

    @rule()
    def end_response(self) -> None:
        """The end, which may be declared again: then it changes nothing. It is none before the declared length."""
        if not self.kind:
            self.refused(self.exchange.end_response)
            return
        before = self.exchange.signed
        if before is None and len(self.body) < (self.length or 0):
            with pytest.raises(MalformedError) as caught:
                self.exchange.end_response()
            assert caught.value.code == "response_incomplete"
            self.is_over = self.is_broken = True
            return
        piece = self.exchange.end_response()
        if self.is_over or before is not None:
            assert (piece, self.exchange.signed) == (b"", before)
        self.out += piece
        self.is_over = True

    @invariant()
    def bytes_out_and_signature_are_those_of_the_model(self) -> None:
        """Signed exactly when it is whole, under the right ids, and over the bytes that came out."""
        expected = expected_of(self.kind, self.body, self.length) if self.kind else Expected(b"", is_signed=False)
        at_its_end = self.is_over and not self.is_broken
        is_whole = at_its_end or (self.has_begun and is_whole_already(self.kind, self.body, self.length))
        signed = self.exchange.signed
        assert (signed is not None) is (is_whole and expected.is_signed)
        if is_whole:
            assert self.out == expected.out
        else:
            assert self.body.startswith(self.out)
        if signed is not None:
            own = (self.exchange.signature_id,)
            assert signed.ids == ((*own, expected.chat_id) if expected.chat_id else own)
            if self.digest is None:
                verify_exchange(self.request or TARGET, self.out, signed.chat.answer())
            else:
                assert signed.chat.text == f"{self.digest}:{sha256(self.out).hexdigest()}"

    def refused(self, call: object) -> None:
        """Check that a call is out of order and changes nothing that can be seen."""
        before = (repr(self.exchange), self.exchange.signed)
        assert callable(call)
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.code == "out_of_order"
        assert (repr(self.exchange), self.exchange.signed) == before


TestExchangeMachine = ExchangeMachine.TestCase
TestExchangeMachine.settings = settings(max_examples=examples(400), stateful_step_count=20, deadline=None)
