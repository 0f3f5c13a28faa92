r"""One request, its response, and the signature over both.

Theory of operation. An `Exchange` is a state machine without I/O that a gateway feeds with the bytes of one request
and one response. It returns the bytes that may go to the client and, at the moment the response is whole, sets
`signed`. The states follow each other in one direction:

    REQUEST --start_response--> JSON or EVENT_STREAM or RAW --the response is whole--> SIGNED
                           \--> UNSIGNED (not 2xx)          \--ended too early------> UNSIGNED

How the response is handled follows from its head alone:

    JSON          collected until it is whole, since its id may be its last member. An object without `id` gets one,
                  spliced in as its first member; no other byte changes. A body that turns out not to be an object is
                  handled as RAW from its first byte on.
    EVENT_STREAM  passes through `EventStreamScanner`, which finds the id and holds back the terminator.
    RAW           passes through; whole when its declared length has been reached or its framing has ended. A part of
                  a document is such, whatever it looks like: its head says which bytes it is.
    UNSIGNED      passes through.

Where a length was declared, the body is that many bytes: what is beyond belongs to nobody and is dropped, and with
fewer there was no end, so `end_response` refuses it. Only an event stream may be over earlier, at its terminator.

The rule for callers: when `signed` has become set, store it BEFORE forwarding the bytes that the same call returned.
Then whoever has read the response to its end finds its signature. And: bytes that were not returned by an exchange
must never reach the client. Dropping an exchange half-way leaves no trace, and that is what to do when the client goes
away or the response breaks off; `end_response` is only for a body that ended where its framing said it would. Not every
HTTP client tells the two apart, so pass `content_length`.

For any way of cutting a response into chunks, the bytes out and what is signed are the same, and the SHA-256 of the
bytes out is the response digest in the signed text.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from hashlib import sha256
from typing import Final

import msgspec

from .errors import MalformedError, UsageError
from .identifiers import MAX_STORED_ID, read_id
from .pieces import MANY, join_many
from .signing import SignedChat, SigningPair
from .sse import EventStreamScanner
from .text import TextVersion, check_text_version, is_target, signed_target, signed_text

__all__ = ["Exchange", "SignedExchange"]

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_JSON_SPACE: Final = b" \t\n\r"
_ID_BYTES: Final = 12
_ID_PREFIX: Final = re.compile(rf"[A-Za-z0-9._-]{{0,{MAX_STORED_ID - 1 - 2 * _ID_BYTES}}}")
"""What needs no escape in JSON nor in a path, and leaves room for the dash and the digits."""

_CLOSING: Final = re.compile(rb"[ \t\n\r]*+\}")

_BODILESS: Final = (204, 304)
"""Statuses without a body, whatever the headers say: the length with 304 is another response's (RFC 9110, 15.4.5)."""


class SignedExchange(msgspec.Struct, frozen=True):
    """The outcome of a whole exchange.

    Attributes:
        chat: the text and its signatures.
        ids: what the chat answers to: the fresh random id first, then the id inside the body, if it has one that may
            be stored. A store must never let a later exchange take over the second.
    """

    chat: SignedChat
    ids: tuple[str, ...]


class _State(enum.Enum):
    REQUEST = enum.auto()
    JSON = enum.auto()
    EVENT_STREAM = enum.auto()
    RAW = enum.auto()
    SIGNED = enum.auto()
    UNSIGNED = enum.auto()


class Exchange:
    """Hash one request and one response byte for byte, and sign the pair when the response is whole.

    Args:
        pair: the keys to sign with.
        id_prefix: what an inserted id starts with, without the dash: "chatcmpl". At most 231 letters, digits and
            characters of "._-", all of ASCII.
        random: returns that many unpredictable bytes, as `secrets.token_bytes` does; called twice at most.
        target: the raw request target, `path` or `path?query`, which stands for the body of a request without one
            and is needed for no other. A `?` with nothing behind it does not count. It starts with "/" and has only
            bytes from 0x21 to 0x7e: some servers let others through, whose text would be that of a body.
        text_version: the form of the signed text, see `teesign.text.signed_text`.
        model: the model's name, for text version "v2".

    Raises:
        UsageError: `bad_id_prefix` if the prefix is something else; `bad_random` if `random` returns anything but as
            many bytes as it was asked for; `bad_target` if the target is not bytes, or not such ones;
            `bad_text_version` if there is no such form; `bad_model` if version "v2" is to name a model, and the name is
            empty or cannot be encoded as UTF-8.

    Attributes:
        signature_id: the random id the signature will answer to: `sig-` and 32 hex digits.
        keeps_length: whether the body is delivered in the length that the backend declared for it; never said of an
            event stream, which may go on behind its terminator. Known from the head on, or from the first byte handed
            out where the body is collected.
        id_inserted: whether an id was spliced into the body, so that the digests and entity tags that the backend gives
            for it hold no more. Known with the first byte handed out.
        signed: the outcome, from the moment the response is whole; None before, and for ever if it is not signed,
            as where the request's body could be a target.
    """

    __slots__ = (
        "_collected",
        "_id_prefix",
        "_is_object",
        "_model",
        "_pair",
        "_random",
        "_remaining",
        "_request",
        "_request_digest",
        "_request_is_empty",
        "_request_may_be_target",
        "_response",
        "_scanner",
        "_state",
        "_target",
        "_text_version",
        "id_inserted",
        "keeps_length",
        "signature_id",
        "signed",
    )

    def __init__(
        self,
        pair: SigningPair,
        *,
        id_prefix: str,
        random: Callable[[int], bytes],
        target: bytes = b"",
        text_version: TextVersion = "v1",
        model: str = "",
    ) -> None:
        if not isinstance(id_prefix, str) or not _ID_PREFIX.fullmatch(id_prefix):
            raise UsageError(
                'An id\'s prefix is at most 231 ASCII letters, digits and characters of "._-".', code="bad_id_prefix"
            )
        if not isinstance(target, bytes) or (target and not is_target(target)):
            raise UsageError(
                'A target is bytes: "/", and behind it only those from 0x21 to 0x7e. What asks for another has to be '
                "refused.",
                code="bad_target",
            )
        check_text_version(text_version, model)  # now, and not when all has been said
        self._pair = pair
        self._id_prefix = id_prefix
        self._random = random
        self._target = signed_target(target)
        self._text_version: TextVersion = text_version
        self._model = model
        self._state = _State.REQUEST
        self._request = sha256()
        self._request_is_empty = True
        self._request_may_be_target = False
        self._request_digest: str | None = None
        self._response = sha256()
        self._remaining: int | None = None  # how much is still to come of a body of declared length
        self._collected: list[bytes] = []
        self._is_object = False  # the JSON body's first character is {
        self._scanner: EventStreamScanner | None = None
        self.signature_id: Final = f"sig-{self._random_hex(16)}"
        self.keeps_length = False
        self.id_inserted = False
        self.signed: SignedExchange | None = None

    def __repr__(self) -> str:
        return f"Exchange({self.signature_id}, {self._state.name})"

    def receive_request(self, chunk: bytes | bytearray | memoryview) -> None:
        """Hash the next bytes of the request's body, as the client sent them.

        Args:
            chunk: any number of bytes, cut anywhere; a buffer may be filled again afterwards.

        Raises:
            UsageError: `bad_chunk` if it is not bytes; `out_of_order` after the response's head. Nothing is changed
                then.
        """
        if type(chunk) is not bytes:
            chunk = _bytes_of(chunk)
        self._expect(_State.REQUEST)
        if chunk:
            if self._request_is_empty:
                self._request_may_be_target = is_target(chunk)
            elif self._request_may_be_target:
                self._request_may_be_target = is_target(b"/" + chunk)
            self._request_is_empty = False
            self._request.update(chunk)

    def replace_request_digest(self, digest: str) -> None:
        """Sign this digest instead of the computed one, for gateways behind one that re-serialises requests.

        Never pass on what an untrusted client says: it would choose what is signed.

        Args:
            digest: 64 hex digits of either case.

        Raises:
            UsageError: `bad_digest` if it is something else; `out_of_order` once the exchange is signed.
        """
        if self._state is _State.SIGNED:
            raise UsageError(
                "The exchange is signed; its request's digest cannot change any more.", code="out_of_order"
            )
        if not _DIGEST.fullmatch(digest.lower()):
            raise UsageError("A request digest is 64 hex digits.", code="bad_digest")
        self._request_digest = digest.lower()

    def start_response(
        self,
        status: int,
        content_type: str | None = None,
        *,
        content_encoding: str | None = None,
        content_length: int | None = None,
        is_part: bool = False,
    ) -> None:
        """Take the head of the response, and decide how its body is handled.

        Args:
            status: the status code; only 200 to 299 are signed.
            content_type: the header's value, or None without one.
            content_encoding: likewise. An encoded body is not looked into: it is signed as the bytes it is.
            content_length: how many bytes the body will have, where its framing says so; 0 for the answer to HEAD.
                Bytes beyond are dropped, and `end_response` refuses a shorter body. What passes through is then signed
                with its last byte instead of after it.
            is_part: whether the body is a part of a document (a 206 with Content-Range, RFC 9110, 15.3.7). It is not
                looked into either.

        Raises:
            UsageError: `out_of_order` if called twice; `bad_length` if the length is negative; `target_missing` if
                there is nothing to tell the request from others: no byte of a body, no target and no digest in place
                of them.
        """
        self._expect(_State.REQUEST)
        if self._request_is_empty and not self._target and self._request_digest is None:
            raise UsageError(
                "A request without a body is signed as its target: pass that as `target`, or the body before this.",
                code="target_missing",
            )
        if content_length is not None and content_length < 0:
            raise UsageError("A body has no negative length; None stands for an unknown one.", code="bad_length")
        if status not in _BODILESS:
            self._remaining = content_length
        if not 200 <= status <= 299:
            self._state = _State.UNSIGNED
            self.keeps_length = True
            return
        media_type = (content_type or "").partition(";")[0].strip().lower()
        if is_part or (content_encoding or "identity").strip().lower() != "identity":
            self._start_raw()
        elif media_type == "text/event-stream":
            self._state = _State.EVENT_STREAM
            self._scanner = EventStreamScanner()
        elif media_type == "application/json" or media_type.endswith("+json"):
            self._state = _State.JSON
        else:
            self._start_raw()

    @property
    def collects(self) -> bool:
        """Whether the body is collected until it is whole; if not, the head can go to the client at once.

        A body that turns out to be no JSON object stops being collected with its first bytes.
        """
        return self._state is _State.JSON

    def receive_response(self, chunk: bytes | bytearray | memoryview) -> bytes:
        """Take the next bytes of the response's body and return those that may go to the client now.

        When this sets `signed`, store that before forwarding what was returned.

        Args:
            chunk: any number of bytes, cut anywhere; a buffer may be filled again afterwards.

        Raises:
            UsageError: `bad_chunk` if it is not bytes; `out_of_order` before the response's head. Nothing is changed
                then.
        """
        if type(chunk) is not bytes:
            chunk = _bytes_of(chunk)
        if self._remaining is not None:
            chunk = chunk[: self._remaining]
            self._remaining -= len(chunk)
        match self._state:
            case _State.EVENT_STREAM:
                assert self._scanner is not None
                out = self._scanner.feed(chunk)
                self._response.update(out)
                if self._scanner.complete:
                    self._sign(self._scanner.event_id)
                return out
            case _State.RAW:
                return self._receive_raw(chunk)
            case _State.JSON:
                return self._collect(chunk)
            case _State.UNSIGNED:
                return chunk
            case _State.SIGNED:
                return b""
        raise UsageError("The response's head must come before its body.", code="out_of_order")

    def end_response(self) -> bytes:
        """Say that the body ended as its framing declared, and return the rest of what may go to the client.

        When this sets `signed`, store that before forwarding what was returned. Do not call it for a response that
        broke off.

        Raises:
            UsageError: `out_of_order` before the response's head; `bad_random` as from the beginning.
            MalformedError: `response_incomplete` if fewer bytes came than were declared. Nothing is signed then, and
                the client's response must be broken off, or be an error if nothing of it has gone out.
        """
        if self._remaining and self._state is not _State.SIGNED:
            self._state = _State.UNSIGNED
            self._collected.clear()
            raise MalformedError(
                f"{self._remaining} bytes of the response are missing: break the client's off as well.",
                code="response_incomplete",
            )
        out = b""
        match self._state:
            case _State.REQUEST:
                raise UsageError("The response's head must come before its end.", code="out_of_order")
            case _State.EVENT_STREAM:
                assert self._scanner is not None
                out = self._scanner.close()
                self._response.update(out)
                if self._scanner.complete:
                    self._sign(self._scanner.event_id)
                else:
                    self._state = _State.UNSIGNED
            case _State.RAW:
                self._sign(None)
            case _State.JSON:
                document = b"".join(self._collected)
                self._collected[:] = [document]  # until it has its id: the random source may fail
                out, chat_id = self._with_id(document)
                self.keeps_length = not self.id_inserted
                self._collected.clear()
                self._response.update(out)
                self._sign(chat_id)
        return out

    def _start_raw(self) -> None:
        self._state = _State.RAW
        self.keeps_length = True

    def _collect(self, chunk: bytes) -> bytes:
        """Keep a piece of a JSON body; or, when it turns out to open with something else than `{`, hand it all out."""
        self._collected.append(chunk)
        if len(self._collected) > MANY:
            join_many(self._collected)
        if not self._is_object:
            first = chunk.lstrip(_JSON_SPACE)[:1]  # what came before is white space
            self._is_object = first == b"{"
            if first and not self._is_object:
                start = b"".join(self._collected)
                self._collected.clear()
                self._start_raw()
                return self._receive_raw(start)
        return b""

    def _receive_raw(self, chunk: bytes) -> bytes:
        self._response.update(chunk)
        if self._remaining == 0:
            self._sign(None)
        return chunk

    def _with_id(self, document: bytes) -> tuple[bytes, str | None]:
        """Return the document, with an id spliced in if it is an object without one, and the id."""
        found = read_id(document)
        if found is None or found.present:
            return document, None if found is None else found.value
        chat_id = f"{self._id_prefix}-{self._random_hex(_ID_BYTES)}"
        opening = document.index(b"{") + 1
        separator = b"" if _CLOSING.match(document, opening) else b","
        member = f'"id":"{chat_id}"'.encode() + separator
        self.id_inserted = True
        return b"".join((document[:opening], member, memoryview(document)[opening:])), chat_id

    def _random_hex(self, count: int) -> str:
        drawn = self._random(count)
        if not isinstance(drawn, bytes) or len(drawn) != count:
            raise UsageError(
                "`random` must return as many bytes as it is asked for, as `secrets.token_bytes` does.",
                code="bad_random",
            )
        return drawn.hex()

    def _sign(self, chat_id: str | None) -> None:
        self._state = _State.SIGNED
        digest = self._request_digest
        if digest is None and self._request_may_be_target:
            return  # the text would be that of a request for that target, which has no body
        if digest is None:
            digest = (sha256(self._target) if self._request_is_empty else self._request).hexdigest()
        text = signed_text(digest, self._response.hexdigest(), version=self._text_version, model=self._model)
        storable = chat_id is not None and len(chat_id) <= MAX_STORED_ID
        ids = (self.signature_id, chat_id) if chat_id is not None and storable else (self.signature_id,)
        self.signed = SignedExchange(self._pair.sign(text), ids)

    def _expect(self, state: _State) -> None:
        if self._state is not state:
            raise UsageError(
                f"This call belongs to the state {state.name}; the exchange is in {self._state.name}.",
                code="out_of_order",
            )


def _bytes_of(chunk: object) -> bytes:
    """Return a copy of a buffer, whose owner may fill it again while the exchange still holds what was in it."""
    try:
        return memoryview(chunk).tobytes()  # type: ignore[arg-type]  # raises for what has none
    except (TypeError, ValueError) as error:
        raise UsageError(
            "A piece of a body is bytes, or a buffer of them; where none came, leave out the call.", code="bad_chunk"
        ) from error
