"""A server at the far end: its attestation, and its signatures."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from ..attestation import NONCE_LENGTH
from ..errors import FetchError, UsageError, VerificationError
from ..identifiers import MAX_STORED_ID
from ..signing import SigningAlgorithm
from ..verify.policy import Policy
from ..verify.report import TrustedRoots, VerifiedReport, verify_report
from ..verify.steps import Passed
from .collateral import INTEL_PCS, fetch_collateral
from .flow import Answer, Flow, Question, decode_object, host_of

__all__ = ["Attestation", "Server", "Trust", "attest", "before_v1", "fetch_report", "fetch_signature", "has_utf8"]

_REPORT: Final = "the attestation report"
_SIGNATURE: Final = "the signature"
_V1: Final = re.compile(r"(?<!/)/v1\Z")  # a host may have this name
_FIELD_VALUE: Final = re.compile(rb"(?:[^\0\s]+(?:[ \t]+[^\0\s]+)*)?")
"""The value of a header, as h11 sends it: a little more than RFC 9110 has, section 5.5."""


class Server(msgspec.Struct, frozen=True):
    """Where a server is, and what its endpoints want to know.

    Attributes:
        url: what comes before `/v1/…`, such as "https://example.org" or "https://example.org/llm"; with `/v1` it will
            do as well.
        authorization: value of the header of that name, such as "Bearer …"; bytes where it is not ASCII; None for none.
        algorithm: which of its keys is to be attested, and its signatures checked.
        model: the model's name, for servers that want it in the query; left out when None.
        spki_sha256: the attested TLS key, see `bound_to`.

    Raises:
        UsageError: `bad_authorization` if the header cannot be sent, `bad_model` if the model's name cannot.
    """

    url: str
    authorization: str | bytes | None = None
    algorithm: SigningAlgorithm = "ecdsa"
    model: str | None = None
    spki_sha256: bytes | None = None

    def __post_init__(self) -> None:
        if self.authorization is not None and not _can_be_sent(self.authorization):
            # The libraries' own errors would show it.
            raise UsageError(
                "The value for the header Authorization cannot be sent: it must be text in ASCII, or bytes, on one "
                "line and without spaces around it.",
                code="bad_authorization",
            )
        if self.model is not None and not has_utf8(self.model):
            raise UsageError("The model's name cannot be encoded as UTF-8.", code="bad_model")

    def __repr__(self) -> str:
        return f"Server({host_of(self.url)!r}, algorithm={self.algorithm!r})"

    @property
    def base(self) -> str:
        """What comes before `/v1/…`, without a slash at its end."""
        return before_v1(self.url)

    def question(self, what: str, path: str, **query: str) -> Question:
        """Return what to ask, with the algorithm and the model in the query."""
        named = {"signing_algo": self.algorithm, **query, **({} if self.model is None else {"model": self.model})}
        url = f"{self.base}{path}?{urlencode(named)}"
        return Question(what, url, self.authorization, spki_sha256=self.spki_sha256)

    def bound_to(self, attestation: Attestation) -> Server:
        """Return the same server, of which nothing more is asked but at the TLS key that its report binds, if any."""
        return msgspec.structs.replace(self, spki_sha256=attestation.spki_sha256)


def before_v1(address: str) -> str:
    """Return a URL or path without a slash at its end, and without /v1: many write it too, since clients want it."""
    return _V1.sub("", address.rstrip("/"))


def has_utf8(text: str) -> bool:
    """Tell whether text can be encoded: what stands for a byte that was no UTF-8, or for half a character, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _can_be_sent(value: str | bytes) -> bool:
    if isinstance(value, str):
        return value.isascii() and _can_be_sent(value.encode())
    return _FIELD_VALUE.fullmatch(value) is not None


class Trust(msgspec.Struct, frozen=True):
    """What a report is checked against, and where collateral comes from.

    Attributes:
        policy: what is accepted.
        collateral: Intel's collateral for the machine, decoded; fetched when None.
        pccs: base URL of the service that collateral is fetched from: Intel's own, or a cache of it.
        roots: other roots than Intel's and NVIDIA's; for tests.

    Raises:
        UsageError: `bad_policy` if the policy is none.
    """

    policy: Policy
    collateral: Mapping[str, Any] | None = None
    pccs: str = INTEL_PCS
    roots: TrustedRoots | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy):
            raise UsageError(
                f"{type(self.policy).__name__} is no Policy: parse_policy makes one out of JSON.", code="bad_policy"
            )


class Attestation(msgspec.Struct, frozen=True):
    """A server that has been attested, with all that it takes to check that again.

    Attributes:
        report: the report's bytes, as they came.
        nonce: the nonce that was sent, 32 bytes.
        policy: what the report was checked against.
        collateral: what the quote was checked with; None for a simulated report.
        spki_sha256: the TLS key that the report binds, if the policy asks for that.
        verified: what has been established.
        verified_at: when, in whole seconds since 1970, UTC.
    """

    report: bytes
    nonce: bytes
    policy: Policy
    collateral: Mapping[str, Any] | None
    spki_sha256: bytes | None
    verified: VerifiedReport
    verified_at: int


def fetch_report(server: Server, nonce: bytes, *, bind_tls: bool = False) -> Flow[Answer]:
    """Ask for a report over a nonce.

    What it does NOT establish: anything. `attest` checks it too.

    Args:
        server: whom to ask.
        nonce: 32 bytes, fresh random ones.
        bind_tls: ask for a report that binds the server's TLS key.

    Returns:
        The answer, whose body is the report as it came.

    Raises:
        VerificationError: `tls_key_not_bound` if a report that binds the TLS key was asked for, and refused.
        FetchError: `bad_status`.
    """
    binding = {"include_tls_fingerprint": "true"} if bind_tls else {}
    question = server.question(_REPORT, "/v1/attestation/report", nonce=nonce.hex(), **binding)
    if bind_tls:
        # Nobody knows yet at which key this connection ends, and `KeyCheck` sees new ones only.
        question = msgspec.structs.replace(question, alone=True)
    answer = yield question
    if answer.status == 404:
        raise FetchError(
            f"Asked for {_REPORT}, {question.host} answered 404: it has none at {urlsplit(question.url).path}. If the "
            "server is mounted below a path, say so: in its address, or to a verifying transport with prefix=.",
            code="bad_status",
            status=404,
        )
    # All else in this question is as it must be; but what is in front of a server has errors 400 of its own.
    if bind_tls and _is_bad_request(answer):
        raise VerificationError(
            f"{question.host} refused (400) to bind its TLS key into a report, as servers without TLS_CERT_PATH do.",
            code="tls_key_not_bound",
        )
    return question.expect(answer)


def _is_bad_request(answer: Answer) -> bool:
    """Tell whether a server of this family refuses a question: docs/wire-contract.md, "Errors"."""
    if answer.status != 400:
        return False
    try:
        body = decode_object(_REPORT, answer.body)
    except FetchError:
        return False
    error = body.get("error")
    return isinstance(error, dict) and error.get("type") == "bad_request"


def fetch_signature(server: Server, signature_id: str) -> Flow[bytes]:
    """Ask for the signature of one answer, and return it as it came: a JSON object, for `verify_answer`.

    Args:
        server: whom to ask.
        signature_id: the answer's `X-Signature-Id`, or its own `id`.

    Raises:
        VerificationError: `signature_missing` if the server has none under this id, or the id has more than 256
            characters: servers store none under such.
        FetchError: `bad_status` if it answers with anything else but a signature.
    """
    if len(signature_id) > MAX_STORED_ID:
        raise VerificationError("The answer's id is longer than any that has a signature.", code="signature_missing")
    question = server.question(_SIGNATURE, f"/v1/signature/{quote(signature_id, safe='')}")
    answer = yield question
    if answer.status == 404:
        raise VerificationError("The server has no signature for this answer.", code="signature_missing")
    return question.expect(answer).body


def attest(
    server: Server,
    trust: Trust,
    *,
    random: Callable[[int], bytes],
    clock: Callable[[], float],
    passed: Callable[[Passed], None] = lambda _: None,
) -> Flow[Attestation]:
    """Fetch a report over a fresh nonce, and the collateral for its quote, and check the report.

    Args:
        server: whom to attest.
        trust: what to check it against.
        random: returns that many unpredictable bytes.
        clock: seconds since 1970, UTC, as `time.time` says: collateral and certificates must be valid then.
        passed: called after each step that has passed.

    Raises:
        VerificationError: as `verify_report` raises it; `tls_key_missing` before anything is sent, if the policy asks
            for the TLS key, and the address is none with https; `tls_key_not_bound` as from `fetch_report`.
        FetchError: `bad_status` or `bad_answer` where a report or collateral cannot be had.
    """
    policy = trust.policy
    if policy.require_tls_key and not server.url.lower().startswith("https:"):
        raise VerificationError(
            "The policy asks for the connection's TLS key in the report: give an address that begins with https.",
            code="tls_key_missing",
        )
    nonce = random(NONCE_LENGTH)
    answer = yield from fetch_report(server, nonce, bind_tls=policy.require_tls_key)
    report = decode_object(_REPORT, answer.body)
    spki_sha256 = answer.spki_sha256 if policy.require_tls_key else None
    announced: list[Passed] = []

    def announce(step: Passed) -> None:
        if step.number > len(announced):
            announced.append(step)
            passed(step)

    def check(collateral: Mapping[str, Any] | None) -> Attestation:
        now = int(clock())
        verified = verify_report(
            report,
            nonce,
            policy,
            collateral=collateral,
            now=now,
            spki_sha256=spki_sha256,
            roots=trust.roots,
            passed=announce,
        )
        if verified.signing_algo != server.algorithm:
            raise VerificationError(
                f"Asked for the {server.algorithm} key, the server reported its other one.", code="algorithm_mismatch"
            )
        return Attestation(answer.body, nonce, policy, collateral, spki_sha256, verified, now)

    try:
        return check(trust.collateral)
    except VerificationError as error:
        # The steps before the quote's signature need none: what fails there is told without fetching anything.
        if error.code != "no_collateral":
            raise
    return check((yield from fetch_collateral(bytes.fromhex(report["intel_quote"].removeprefix("0x")), trust.pccs)))
