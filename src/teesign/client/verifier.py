"""What a verifying transport knows and decides, apart from its I/O: whom to attest, what to check, what is known."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from ..errors import UsageError, VerificationError
from ..signing import SigningAlgorithm
from ..text import signed_target
from .bodies import has_body
from .flow import Flow
from .observed import ObservedExchange, VerifiedResponse, is_signed
from .server import Attestation, Server, Trust, attest, before_v1, fetch_signature
from .tls import check_tls_key

__all__ = ["EXTENSION", "Verifier"]

EXTENSION: Final = "teesign"
"""Under this name a response's `extensions` have its `VerifiedResponse`, from when it was verified on, and those of a
request what was asked if its answer has to be verified."""

_OTHER_KEYS: Final = frozenset(("identity_mismatch", "tls_key_mismatch"))
"""What a server fails with that was started anew with other keys."""

_SWITCHING_PROTOCOLS: Final = 101

_EVENTS: Final = "text/event-stream; charset=utf-8"
"""Event streams have no other charset (HTML standard, section 9.2.5)."""

_PATH: Final = re.compile(r"(?:/[\w.~!$&'()*+,;=:@%-]+)*", re.ASCII)
"""A path as it stands in a URL (RFC 3986, section 3.3), or none."""


class Verifier:
    """The servers that were attested, and the flows for attesting them and for checking their answers.

    The arguments are those of `VerifyingTransport`.

    Raises:
        UsageError: `bad_model` or `bad_prefix`.
    """

    def __init__(
        self,
        trust: Trust,
        *,
        algorithm: SigningAlgorithm,
        model: str | None,
        prefix: str,
        verified: Callable[[VerifiedResponse], None],
        max_age: float,
        random: Callable[[int], bytes],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._trust: Final = trust
        self._anywhere: Final = Server("", algorithm=algorithm, model=model)
        self._prefix: Final = _usable(prefix)
        self._verified: Final = verified
        self._max_age: Final = max_age
        self._random: Final = random
        self._clock: Final = clock
        self._monotonic: Final = monotonic
        self._attested: Final[dict[str, tuple[Attestation, float]]] = {}

    def server_of(self, request: Any) -> Server:
        """Return the server that a request goes to, and mark the request if its answer has to be verified.

        A client that follows a redirect hands the mark on to the next request, whose answer has to be verified then,
        wherever it goes: nobody signs redirects, so that one must not lead to what nobody signs either. Nor may it lead
        to the answer to another question.

        Raises:
            VerificationError: `request_changed` if a redirect has taken the body from a request, or led one without to
                another target.
            UsageError: `bad_authorization` if that header cannot be sent.
        """
        url = request.url
        path = url.raw_path.partition(b"?")[0].decode("ascii", "replace")
        if not path.startswith(f"{self._prefix}/") or is_signed(request.method, path.removeprefix(self._prefix)):
            request.extensions.setdefault(EXTENSION, _question(request))
        if request.extensions.get(EXTENSION, _question(request)) != _question(request):
            raise VerificationError(
                "A redirect turned the request into another one, which does not say what was asked.",
                code="request_changed",
            )
        # A prefix may end in another /v1, which must not be taken for this one.
        base = f"{url.scheme}://{url.netloc.decode('ascii')}{self._prefix}/v1"
        return msgspec.structs.replace(self._anywhere, url=base, authorization=_authorization(request))

    def known(self, server: Server) -> Attestation | None:
        """Return the server's attestation, if it still serves."""
        attestation, until = self._attested.get(server.url, (None, 0.0))
        return attestation if self._monotonic() < until else None

    @property
    def tls_keys(self) -> set[bytes | None]:
        """The TLS keys that servers have, as far as is known."""
        return {attestation.spki_sha256 for attestation, _ in list(self._attested.values())}

    def attest(self, server: Server) -> Flow[Attestation]:
        """Attest a server, unless that has been done meanwhile."""
        attestation = self.known(server)
        if attestation is None:
            started = self._monotonic()
            attestation = yield from attest(server, self._trust, random=self._random, clock=self._clock)
            self._attested[server.url] = (attestation, started + self._max_age)
        return attestation

    @contextmanager
    def relying_on(self, server: Server) -> Iterator[None]:
        """Have the server attested anew by the next request if it turns out to have other keys than the attested."""
        try:
            yield
        except VerificationError as error:
            if error.code in _OTHER_KEYS:
                self._attested.pop(server.url, None)
            raise

    def start(
        self, exchange: ObservedExchange, request: Any, response: Any, server: Server, attestation: Attestation
    ) -> bool:
        """Look at the head of a response, and tell whether the response has to be verified.

        Raises:
            VerificationError: `tls_key_mismatch`; `encoded_answer`; `protocol_switched` if a raw stream follows, of
                which nothing could be checked.
        """
        if attestation.spki_sha256 is not None:
            with self.relying_on(server):
                check_tls_key(response, attestation.spki_sha256)
        if response.status_code == _SWITCHING_PROTOCOLS:
            raise VerificationError(
                "The answer switches to another protocol, as for a websocket, in which nothing is signed: use a client "
                "without this transport for that.",
                code="protocol_switched",
            )
        if EXTENSION not in request.extensions or not response.is_success:
            return False
        exchange.start_response(response.headers)
        if exchange.streamed:
            # The library decodes lines as the head says, which nobody signs: in another charset it would find an end
            # where the bytes have none.
            response.headers["content-type"] = _EVENTS
        return True

    def finish(
        self, exchange: ObservedExchange, request: Any, response: Any, server: Server, attestation: Attestation
    ) -> Flow[None]:
        """Fetch the signature of a whole response and check it."""
        if exchange.signature_id is None:
            raise VerificationError("The answer has no id to ask for its signature by.", code="signature_missing")
        with self.relying_on(server):
            signature = yield from fetch_signature(server.bound_to(attestation), exchange.signature_id)
            answer = exchange.check(signature, attestation)
        result = VerifiedResponse(
            request.method, str(request.url), response.status_code, attestation, signature, answer
        )
        response.extensions[EXTENSION] = result
        self._verified(result)


def _usable(prefix: str) -> str:
    """Return a prefix without /v1."""
    path = before_v1(prefix)
    if not _PATH.fullmatch(path):
        raise UsageError(
            'The prefix must be the path between the host and /v1, as it stands in the URL, like "/llm".',
            code="bad_prefix",
        )
    return path


def _authorization(request: Any) -> bytes | None:
    """Return the value of that header, byte for byte: as text it would be read in one way and written in another."""
    values = [value for name, value in request.headers.raw if name.lower() == b"authorization"]
    return b", ".join(values) if values else None


def _question(request: Any) -> tuple[str, bytes | None]:
    """Return what a redirect must leave as it is: the method and, where that is what is hashed, the target."""
    return request.method, None if has_body(request) else signed_target(request.url.raw_path)
