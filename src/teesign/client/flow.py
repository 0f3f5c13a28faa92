"""Questions to servers and their answers, apart from the asking.

A flow is a generator: it yields what it wants to know as a `Question`, is sent an `Answer`, and returns its result. It
does no I/O, so `run` and `run_async` drive one and the same flow, over whatever can ask: see `teesign.client.http`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import urlsplit

import msgspec

from ..documents import UNDECODABLE, decode
from ..errors import FetchError, VerificationError

__all__ = ["MAX_ANSWER", "Answer", "Flow", "Question", "decode_object", "host_of", "other_tls_key", "run", "run_async"]

MAX_ANSWER: Final = 16 * 1024 * 1024
"""Longest answer that is read, in bytes: some fifty GPUs' worth of evidence."""

Result = TypeVar("Result")


class Question(msgspec.Struct, frozen=True):
    """A request to make.

    Attributes:
        what: what is asked for, for messages: "the attestation report".
        url: where.
        authorization: value of the header of that name, or None. It goes to this URL and nowhere else, so redirects
            must not be followed.
        body: JSON to POST; None to GET.
        spki_sha256: SHA-256 of the TLS key at which the connection must end: nothing is sent over a new one that does
            not, and no answer counts that came over another. None for any.
        alone: whether nothing else may go over this question's connection after it.
    """

    what: str
    url: str
    authorization: str | bytes | None = None
    body: bytes | None = None
    spki_sha256: bytes | None = None
    alone: bool = False

    def __repr__(self) -> str:
        return f"Question({self.what!r}, {self.host!r})"

    @property
    def host(self) -> str:
        """Whom this asks, for messages: host and port, without what else the URL may hold."""
        return host_of(self.url)

    def expect(self, answer: Answer, status: int = 200) -> Answer:
        """Return the answer if it has this status, and came from whom it must.

        Raises:
            FetchError: `bad_status` if it has another.
            VerificationError: `tls_key_mismatch` if it came over a connection that ends at another TLS key.
        """
        if self.spki_sha256 is not None and answer.spki_sha256 != self.spki_sha256:
            raise other_tls_key()
        if answer.status != status:
            raise FetchError(
                f"Asked for {self.what}, {self.host} answered {answer.status}.", code="bad_status", status=answer.status
            )
        return answer


class Answer(msgspec.Struct, frozen=True):
    """What came back.

    Attributes:
        status: the status code.
        headers: by their names in lower case.
        body: without framing and content encoding.
        spki_sha256: SHA-256 of the TLS key that the other side has proved to hold; None where there was no TLS.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    spki_sha256: bytes | None = None

    def __repr__(self) -> str:
        return f"Answer({self.status}, {len(self.body)} bytes)"


Flow: TypeAlias = Generator[Question, Answer, Result]
"""Yields questions, is sent their answers, returns a result."""


def run(flow: Flow[Result], ask: Callable[[Question], Answer]) -> Result:
    """Drive a flow to its end and return its result.

    Raises:
        FetchError: what `ask` raises, and what the flow makes of an answer.
        VerificationError: what the flow raises.
    """
    try:
        question = next(flow)
        while True:
            question = flow.send(ask(question))
    except StopIteration as stop:
        result: Result = stop.value
        return result
    finally:
        flow.close()


async def run_async(flow: Flow[Result], ask: Callable[[Question], Awaitable[Answer]]) -> Result:
    """Drive a flow to its end and return its result, as `run` does."""
    try:
        question = next(flow)
        while True:
            question = flow.send(await ask(question))
    except StopIteration as stop:
        result: Result = stop.value
        return result
    finally:
        flow.close()


def other_tls_key() -> VerificationError:
    """Return what is raised where a connection ends at another TLS key than it must."""
    return VerificationError("The connection ends at another TLS key than the attested one.", code="tls_key_mismatch")


def host_of(url: str) -> str:
    """Return a URL's host and port, for messages, or nothing where it has none."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2]
    except ValueError:
        return ""


def decode_object(what: str, body: bytes) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        FetchError: `bad_answer` if it is something else.
    """
    try:
        return decode(body, dict[str, Any])
    except UNDECODABLE:
        # Not chained: the decoder's message may quote the answer.
        raise FetchError(
            f"Asked for {what}, the server sent no JSON object, or one with too many levels.", code="bad_answer"
        ) from None
