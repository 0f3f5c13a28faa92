"""One request and its response as they pass by: hashed, held back where they must be, and checked when whole.

Theory of operation. An `ObservedExchange` does no I/O. It is shown the bytes of the request as they are sent and those
of the response as they come, and hands back the ones that may go on to the program:

    an event stream    passes at once, up to its first `[DONE]`, be that the terminator or not: readers differ in what
                       they take for the end, and who sees an end takes the answer for whole, so all from there on waits
                       until the answer has been verified
    all else           waits until it is whole and has been verified; so does a part of a document, which need not have
                       an end of its own

When `whole` has become true, `check` has to pass before what the same call returned goes on. A response that ends
without becoming whole was never signed. Only answers with a status of 200 to 299 are; what is not signed, by the wire
contract, does not come here: see `is_signed`. What waits is limited, since anybody on the way can send without end.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Final

import msgspec

from ..errors import FetchError, VerificationError
from ..identifiers import read_id
from ..sse import EventStreamScanner
from ..text import signed_target
from ..verify.answer import VerifiedAnswer, verify_answer_digests
from .flow import decode_object, host_of
from .server import Attestation

__all__ = ["MAX_HELD", "ObservedExchange", "VerifiedResponse", "is_signed"]

MAX_HELD: Final = 256 * 1024 * 1024
"""Most bytes of one response that are held back until it has been verified."""

_UNSIGNED: Final = frozenset(
    (
        ("GET", "/"),
        ("GET", "/version"),
        ("GET", "/metrics"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/v1/metrics"),
        ("GET", "/v1/models"),
        ("POST", "/v1/tokenize"),
        ("GET", "/v1/attestation/report"),
    )
)
"""What servers answer without signing it: see README.md, "Endpoints"."""

_UNSIGNED_BELOW: Final = "/v1/signature/"

_DONE: Final = b"[DONE]"
_DONE_STARTS: Final = tuple(_DONE[:length] for length in range(len(_DONE) - 1, 0, -1))


def is_signed(method: str, path: str) -> bool:
    """Tell whether an answer to this request must be signed.

    Args:
        method: in capitals.
        path: percent-encoded, as it is sent, from the server's root on.
    """
    return (method, path) not in _UNSIGNED and not (method == "GET" and path.startswith(_UNSIGNED_BELOW))


class VerifiedResponse(msgspec.Struct, frozen=True):
    """An answer that was verified, byte for byte, and what with.

    Attributes:
        method: the request's.
        url: the request's.
        status: the response's.
        attestation: of the server whose key signed it.
        signature: the signature endpoint's answer, as it came.
        answer: what has been established.
    """

    method: str
    url: str
    status: int
    attestation: Attestation
    signature: bytes
    answer: VerifiedAnswer

    def __repr__(self) -> str:
        """Show nothing of the target, which may say what was asked."""
        return f"VerifiedResponse({self.method!r}, {host_of(self.url)!r}, {self.status})"


class ObservedExchange:
    """Watch one request and its response.

    Args:
        target: the request's raw target, which stands for the body of a request without one.
        has_body: whether the request has a body, by its headers. Until `end_request` is called it has not been sent
            then, also where nothing of it ever was.
        max_held: most bytes of the response that are held back until it is whole.

    Attributes:
        whole: whether the response is whole; then it has to be checked before the bytes just returned go on.
        streamed: whether the response is an event stream.
        signature_id: what the signature answers to: the head's random id, else the body's own; None without either.
    """

    __slots__ = (
        "_held",
        "_max_held",
        "_request",
        "_request_ended",
        "_request_is_empty",
        "_response",
        "_scanner",
        "_target",
        "signature_id",
        "whole",
    )

    def __init__(self, target: bytes, *, has_body: bool, max_held: int = MAX_HELD) -> None:
        self._target = signed_target(target)
        self._request = sha256()
        self._request_is_empty = True
        self._request_ended = not has_body
        self._response = sha256()
        self._scanner: EventStreamScanner | None = None
        self._max_held = max_held
        self._held = bytearray()  # what waits: an event stream from its first [DONE] on, all of anything else
        self.signature_id: str | None = None
        self.whole = False

    @property
    def streamed(self) -> bool:
        """Whether the response is an event stream, which passes before it is whole."""
        return self._scanner is not None

    def start_request(self) -> None:
        """Say that the request's body is sent, from its first byte on; once more if the request is tried again."""
        self._request = sha256()
        self._request_is_empty = True
        self._request_ended = False

    def send(self, chunk: bytes) -> None:
        """Hash the next bytes of the request's body."""
        if chunk:
            self._request_is_empty = False
            self._request.update(chunk)

    def end_request(self) -> None:
        """Say that all of the request's body has been sent."""
        self._request_ended = True

    def start_response(self, headers: Mapping[str, str]) -> None:
        """Take the head of the response.

        Args:
            headers: found by their names in lower case. Nothing signs them: they decide when bytes are handed out, and
                never whether they have to be verified.

        Raises:
            VerificationError: `encoded_answer` if the program would decode the body, and so see other bytes than those
                that are signed.
        """
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise VerificationError(
                "The answer has a content encoding that was not asked for: what is signed is not what would be read.",
                code="encoded_answer",
            )
        self.signature_id = headers.get("x-signature-id") or None
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type == "text/event-stream" and "content-range" not in headers:
            self._scanner = EventStreamScanner()

    def receive(self, chunk: bytes) -> bytes:
        """Take the next bytes of the response, as they came, and return those that may go on.

        Raises:
            FetchError: `too_large` if more would have to be held back than may be.
        """
        if self._scanner is None:
            self._held += chunk
            passed = b""
        else:
            passed = self._pass(self._scanner.feed(chunk))
        if len(self._held) > self._max_held:
            raise FetchError(
                f"More than {self._max_held} bytes of the answer would have to wait until it has been verified: give "
                "the transport a larger max_held=, if answers can be that long.",
                code="too_large",
            )
        return passed

    def end(self) -> bytes:
        """Say that the response ended as its framing declared, and return the rest of it.

        Raises:
            VerificationError: `answer_incomplete` if it is an event stream without its terminator.
        """
        if self._scanner is None:
            body = bytes(self._held)
            self._held.clear()
            self._response.update(body)
            self.whole = True
            if self.signature_id is None:
                found = read_id(body)
                self.signature_id = None if found is None else found.value
            return body
        rest = self._pass(self._scanner.close())
        if not self.whole:
            raise VerificationError("The stream ended without its last event.", code="answer_incomplete")
        return rest

    def check(self, signature: bytes, attestation: Attestation) -> VerifiedAnswer:
        """Check the whole answer against the attested key.

        Args:
            signature: the signature endpoint's answer, as it came.
            attestation: whose key must have signed.

        Raises:
            VerificationError: as `verify_answer` raises it; `stream_hash_mismatch` if it is the events, or their
                order, that are not as they were signed; `request_incomplete` if `end_request` was not called.
            FetchError: `bad_answer` if the signature is no JSON object.
        """
        if not self._request_ended:
            raise VerificationError(
                "The answer came before the whole request was sent: at best it is one to its beginning.",
                code="request_incomplete",
            )
        request = sha256(self._target) if self._request_is_empty else self._request
        try:
            return verify_answer_digests(
                request.hexdigest(),
                self._response.hexdigest(),
                decode_object("the signature", signature),
                algorithm=attestation.verified.signing_algo,
                address=attestation.verified.signing_address,
            )
        except VerificationError as error:
            if self.streamed and error.code == "response_hash_mismatch":
                raise VerificationError(
                    "The stream's events, or their order, are not those that were signed.",
                    code="stream_hash_mismatch",
                    step=error.step,
                ) from error
            raise

    def _pass(self, out: bytes) -> bytes:
        assert self._scanner is not None
        self._response.update(out)
        self._held += out
        end = len(self._held)
        if self._scanner.complete:
            self.whole = True
            self.signature_id = self.signature_id or self._scanner.event_id
        elif self._held.startswith(_DONE):
            end = 0
        elif _DONE in self._held:
            end = self._held.index(_DONE)
        else:
            end -= next((len(start) for start in _DONE_STARTS if self._held.endswith(start)), 0)
        passed = bytes(self._held[:end])
        del self._held[:end]
        return passed
