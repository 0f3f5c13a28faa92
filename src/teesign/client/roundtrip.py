"""One question and its answer, verified step by step, and the evidence of it in a bundle."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..errors import UsageError, VerificationError
from ..identifiers import read_id
from ..verify.answer import verify_answer
from ..verify.bundle import EvidenceBundle
from ..verify.steps import Passed
from .flow import Answer, Flow, Question, decode_object
from .server import Attestation, Server, Trust, attest, fetch_signature, has_utf8

__all__ = ["bundle_of", "round_trip"]

_MAX_TOKENS = 64
_WORD_LENGTH = 16


def bundle_of(attestation: Attestation, request: bytes, response: bytes, signature: bytes) -> EvidenceBundle:
    """Return all that it takes to verify an answer again.

    What it does NOT do: verify. `verify_bundle` does.

    Args:
        attestation: of the server that answered.
        request: the request's exact bytes; of a request without a body, its raw target, see `verify_answer`.
        response: the response's exact bytes.
        signature: the signature endpoint's answer, as it came; that of a `VerifiedResponse`, for example.

    Raises:
        FetchError: `bad_answer` if report or signature is no JSON object.
    """
    return EvidenceBundle(
        verified_at=attestation.verified_at,
        policy=attestation.policy,
        nonce=attestation.nonce,
        spki_sha256=attestation.spki_sha256,
        report=decode_object("the attestation report", attestation.report),
        collateral=attestation.collateral,
        request=request,
        response=response,
        signature=decode_object("the signature", signature),
    )


def round_trip(
    server: Server,
    trust: Trust,
    prompt: str,
    *,
    random: Callable[[int], bytes],
    clock: Callable[[], float],
    passed: Callable[[Passed], None] = lambda _: None,
) -> Flow[EvidenceBundle]:
    """Attest a server, ask its model something, and verify the answer; nothing is asked of a server that fails.

    The answer is a new one: a random word is asked with, which no older request has.

    Args:
        server: whom to ask. The model is its `model`, or else the one that its report names.
        trust: what to check it against.
        prompt: what to ask; the random word is put behind it.
        random: returns that many unpredictable bytes.
        clock: seconds since 1970, UTC.
        passed: called after each step that has passed, of `verify_report` and then of `verify_answer`.

    Raises:
        VerificationError: as from `attest` and `verify_answer`; `signature_missing`; `tls_key_mismatch` if a
            connection ends at another key than the attested one.
        FetchError: what cannot be had.
        UsageError: `model_unknown` if nobody says which model to ask; `bad_prompt` if the prompt cannot be sent.
    """
    if not has_utf8(prompt):
        raise UsageError("The prompt cannot be encoded as UTF-8.", code="bad_prompt")
    attestation = yield from attest(server, trust, random=random, clock=clock, passed=passed)
    verified = attestation.verified
    request = _chat(server.model or _named_model(attestation), f"{prompt} ({random(_WORD_LENGTH).hex()})")
    url = f"{server.base}/v1/chat/completions"
    question = Question("an answer", url, server.authorization, request, attestation.spki_sha256)
    answer = question.expect((yield question))
    signature = yield from fetch_signature(server.bound_to(attestation), _signature_id(answer))
    bundle = bundle_of(attestation, request, answer.body, signature)
    verify_answer(
        request,
        answer.body,
        bundle.signature,
        algorithm=verified.signing_algo,
        address=verified.signing_address,
        passed=lambda step: passed(msgspec.structs.replace(step, number=step.number + len(verified.steps))),
    )
    return bundle


def _chat(model: str, prompt: str) -> bytes:
    messages = [{"role": "user", "content": prompt}]
    return msgspec.json.encode({"model": model, "messages": messages, "max_tokens": _MAX_TOKENS})


def _named_model(attestation: Attestation) -> str:
    named = decode_object("the attestation report", attestation.report).get("model_name")
    if not isinstance(named, str) or not named:
        raise UsageError("The report names no model: say which one to ask.", code="model_unknown")
    return named


def _signature_id(answer: Answer) -> str:
    own = read_id(answer.body)
    found = answer.headers.get("x-signature-id") or (own and own.value)
    if not found:
        raise VerificationError("The answer has no id to ask for its signature by.", code="signature_missing")
    return found
