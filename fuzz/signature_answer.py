"""For any answer of a signature endpoint, VerificationError is raised, unless it holds what the key has signed."""

from __future__ import annotations

import json
from hashlib import sha256

from teesign import VerificationError, parse_signed_text, signed_text, verify_answer
from teesign.testing import fixed_pair

REQUEST, RESPONSE = b"request", b"response"
DIGESTS = [sha256(body).hexdigest() for body in (REQUEST, RESPONSE)]
PAIR = fixed_pair()
ADDRESS = PAIR.ecdsa.identity.address
TEXT = signed_text(*DIGESTS)
ANSWER = PAIR.sign(TEXT).answer()
SEEDS = [
    json.dumps({name: ANSWER[name] for name in ("text", "signature", "signing_address", "signing_algo")}).encode(),
    json.dumps(ANSWER).encode(),
    json.dumps(PAIR.sign("m:" + TEXT).answer()).encode(),
    b'{"text":"' + b"\\ud800" * 64 + b'"}',
    b'{"text":"a","\\ud800":1}',
]
SIGNED_TEXTS = {TEXT, "m:" + TEXT}


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for this answer."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        if isinstance(answer, dict) and isinstance(answer.get("text"), str):
            parse_signed_text(answer["text"])
        verified = verify_answer(REQUEST, RESPONSE, answer, algorithm="ecdsa", address=ADDRESS)
    except VerificationError:
        return
    assert answer["text"] in SIGNED_TEXTS
    assert [verified.request_sha256, verified.response_sha256] == DIGESTS
    assert verified.signing_address == ADDRESS
