"""The checks of the far end."""

from __future__ import annotations

from hashlib import sha256

import pytest

from teesign import (
    MalformedError,
    SigningAlgorithm,
    SigningPair,
    TeesignError,
    VerificationError,
    VerifiedExchange,
    parse_quote,
    report_data,
    signed_text,
    verify_exchange,
    verify_report_data,
)
from teesign.testing import fixed_pair, fixed_quote

REQUEST, RESPONSE = b"request", b"response"
DIGESTS = sha256(REQUEST).hexdigest(), sha256(RESPONSE).hexdigest()
TEXT = signed_text(*DIGESTS)
CHAT = fixed_pair().sign(TEXT)
ANSWER = CHAT.answer()
OTHER = SigningPair.from_secrets(b"\1" * 32, b"\2" * 32).sign(TEXT)
NONCE, SPKI = b"\7" * 32, b"\x0b" * 32


def test_a_genuine_exchange_verifies() -> None:
    """What comes back is what was established."""
    assert verify_exchange(REQUEST, RESPONSE, ANSWER) == VerifiedExchange(
        *DIGESTS, CHAT.signing_address_ecdsa, CHAT.signing_address_ed25519, model=None
    )


@pytest.mark.parametrize("model", ["m", "org/model", "with:colon", ":", "日本"])
def test_a_text_with_the_models_name_verifies(model: str) -> None:
    """The name is everything before the two digests, colons included."""
    answer = fixed_pair().sign(signed_text(*DIGESTS, version="v2", model=model)).answer()
    assert verify_exchange(REQUEST, RESPONSE, answer).model == model


def test_a_text_with_an_empty_name_names_no_model() -> None:
    """Its digests are as good as any, but who has not said a name has not said which model answered."""
    answer = fixed_pair().sign(f":{TEXT}").answer()
    assert verify_exchange(REQUEST, RESPONSE, answer).model is None


def test_addresses_are_compared_without_case() -> None:
    """Lower-case addresses are as good as checksummed ones; the checksummed one is returned."""
    answer = ANSWER | {"signing_address_ecdsa": CHAT.signing_address_ecdsa.lower()}
    assert verify_exchange(REQUEST, RESPONSE, answer).signing_address_ecdsa == CHAT.signing_address_ecdsa


@pytest.mark.parametrize(
    ("request_body", "response_body", "code"),
    [
        (b"another", RESPONSE, "request_hash_mismatch"),
        (REQUEST + b"\n", RESPONSE, "request_hash_mismatch"),
        (REQUEST, b"another", "response_hash_mismatch"),
        (REQUEST, RESPONSE[:-1], "response_hash_mismatch"),
        (RESPONSE, REQUEST, "request_hash_mismatch"),
    ],
)
def test_other_bytes_do_not_verify(request_body: bytes, response_body: bytes, code: str) -> None:
    """Not one byte more or less, and not the one for the other."""
    with pytest.raises(VerificationError) as caught:
        verify_exchange(request_body, response_body, ANSWER)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        pytest.param("text", "", "bad_text", id="empty text"),
        pytest.param("text", "no digests", "bad_text", id="text without digests"),
        pytest.param("text", DIGESTS[0], "bad_text", id="one digest"),
        pytest.param("text", f"{DIGESTS[0]}:", "bad_text", id="one digest and a colon"),
        pytest.param("text", f"{TEXT}:", "bad_text", id="trailing colon"),
        pytest.param("text", f"{TEXT}0", "bad_text", id="digest of 65 digits"),
        pytest.param("text", TEXT.upper(), "request_hash_mismatch", id="upper-case digests"),
        pytest.param("text", "\ud800" * 64 + TEXT[64:], "request_hash_mismatch", id="no digits at all"),
        pytest.param("text", f"m:{TEXT}", "ecdsa_mismatch", id="a model put in front"),
        pytest.param("text", f"\ud800:{TEXT}", "ecdsa_unrecoverable", id="a model that cannot be encoded"),
        pytest.param("signature_ecdsa", "", "bad_signature", id="no ECDSA signature"),
        pytest.param("signature_ecdsa", CHAT.signature_ed25519, "bad_signature", id="the other signature"),
        pytest.param("signature_ecdsa", "00" * 64 + "1b", "ecdsa_unrecoverable", id="ECDSA signature of zeros"),
        pytest.param("signature_ecdsa", OTHER.signature_ecdsa, "ecdsa_mismatch", id="another's ECDSA signature"),
        pytest.param(
            "signing_address_ecdsa", OTHER.signing_address_ecdsa, "ecdsa_mismatch", id="another's ECDSA address"
        ),
        pytest.param("signing_address_ecdsa", "", "ecdsa_mismatch", id="no ECDSA address"),
        pytest.param("signature_ed25519", "", "bad_signature", id="no Ed25519 signature"),
        pytest.param(
            "signature_ed25519", OTHER.signature_ed25519, "ed25519_mismatch", id="another's Ed25519 signature"
        ),
        pytest.param("signing_address_ed25519", OTHER.signing_address_ed25519, "ed25519_mismatch", id="another's key"),
        pytest.param("signing_address_ed25519", "", "bad_address", id="no Ed25519 address"),
    ],
)
def test_an_answer_with_one_value_changed_does_not_verify(field: str, value: str, code: str) -> None:
    """Each check fails with a code of its own, and nothing but teesign's own errors is raised."""
    with pytest.raises(TeesignError) as caught:
        verify_exchange(REQUEST, RESPONSE, ANSWER | {field: value})
    assert caught.value.code == code


@pytest.mark.parametrize("value", [7, b"00", ["00"]])
@pytest.mark.parametrize("field", list(ANSWER))
def test_an_answer_with_a_value_that_is_no_text_is_malformed(field: str, value: object) -> None:
    """As JSON may have it: nobody has checked yet what the signature endpoint answered."""
    with pytest.raises(MalformedError) as caught:
        verify_exchange(REQUEST, RESPONSE, ANSWER | {field: value})
    assert caught.value.code == "bad_signature_answer"


@pytest.mark.parametrize("absent", [{}, {"signature_ed25519": None, "signing_address_ed25519": None}])
def test_an_answer_needs_both_signatures(absent: dict[str, None]) -> None:
    """Of an answer with one only, `verify_answer` makes what can be made of it."""
    names = ("text", "signature", "signing_address", "signing_algo")
    with pytest.raises(MalformedError) as caught:
        verify_exchange(REQUEST, RESPONSE, {name: ANSWER[name] for name in names} | absent)
    assert caught.value.code == "bad_signature_answer"


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("text", None, "bad_signature_answer"),
        ("signature_ecdsa", None, "bad_signature"),
        ("signing_address_ecdsa", None, "ecdsa_mismatch"),
        ("signature_ed25519", None, "bad_signature"),
        ("signing_address_ed25519", None, "bad_address"),
        ("signature", OTHER.signature_ecdsa, "ecdsa_mismatch"),
        ("signing_address", OTHER.signing_address_ecdsa, "ecdsa_mismatch"),
        ("signing_algo", "ed25519", "bad_signature"),
    ],
)
def test_half_a_signature_or_another_beside_both_does_not_verify(field: str, value: str | None, code: str) -> None:
    """Whatever the answer names has to be right, also what is there twice."""
    with pytest.raises(TeesignError) as caught:
        verify_exchange(REQUEST, RESPONSE, ANSWER | {field: value})
    assert caught.value.code == code


@pytest.mark.parametrize("spki_sha256", [None, SPKI], ids=["without TLS", "with TLS"])
@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_report_data_of_the_challenge_verifies(algorithm: SigningAlgorithm, spki_sha256: bytes | None) -> None:
    """The quote binds the key, the nonce and the TLS key that it was asked for."""
    identity = fixed_pair().identity(algorithm)
    expected = report_data(identity.address_bytes, NONCE, spki_sha256)
    quote = parse_quote(fixed_quote(expected).quote)
    assert verify_report_data(quote, identity, NONCE, spki_sha256) == expected


@pytest.mark.parametrize(
    ("algorithm", "nonce", "spki_sha256"),
    [
        pytest.param("ed25519", NONCE, SPKI, id="another key"),
        pytest.param("ecdsa", bytes(32), SPKI, id="another nonce"),
        pytest.param("ecdsa", NONCE, bytes(32), id="another TLS key"),
        pytest.param("ecdsa", NONCE, None, id="no TLS key"),
    ],
)
def test_report_data_of_another_challenge_does_not_verify(
    algorithm: SigningAlgorithm, nonce: bytes, spki_sha256: bytes | None
) -> None:
    """A replayed report, or one of another server, is found out."""
    pair = fixed_pair()
    quote = parse_quote(fixed_quote(report_data(pair.identity("ecdsa").address_bytes, NONCE, SPKI)).quote)
    with pytest.raises(VerificationError) as caught:
        verify_report_data(quote, pair.identity(algorithm), nonce, spki_sha256)
    assert caught.value.code == "report_data_mismatch"
