"""One answer against the attested key, in every form that servers of this family answer with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from teesign import SigningAlgorithm, SigningPair, VerificationError, signed_text, verify_answer
from teesign.testing import fixed_pair
from teesign.verify.answer import ANSWER_STEPS
from teesign.verify.steps import Passed

REQUEST, RESPONSE = b"request", b"response"
DIGESTS = sha256(REQUEST).hexdigest(), sha256(RESPONSE).hexdigest()
PAIR, OTHER = fixed_pair(), SigningPair.from_secrets(b"\1" * 32, b"\2" * 32)
FULL = PAIR.sign(signed_text(*DIGESTS)).answer()
SHORT = ("signature", "signing_address", "signing_algo")
EXTRAS = {name: FULL[name] for name in FULL if name not in SHORT}
OTHER_CHAT = OTHER.sign(signed_text(*DIGESTS)).answer()


def basic(text: str, algorithm: SigningAlgorithm = "ecdsa") -> dict[str, str]:
    """Return an answer without the extra members."""
    answer = PAIR.sign(text).answer(algorithm)
    return {name: answer[name] for name in ("text", *SHORT)}


RECORDED: list[dict[str, Any]] = json.loads(Path(__file__).with_name("recorded_answers.json").read_text("utf-8"))
ADDRESS = PAIR.identity("ecdsa").address
FORMS: dict[str, Mapping[str, str | None]] = {
    "full": FULL,
    "without the extra members": basic(signed_text(*DIGESTS)),
    "three parts": basic(signed_text(*DIGESTS, version="v2", model="org/model:8b")),
    "lower-case address": FULL | {"signing_address": ADDRESS.lower()},
    "address without 0x": FULL | {"signing_address": ADDRESS[2:]},
    "signature without 0x": FULL | {"signature": FULL["signature"][2:]},
    "v of 0 or 1": FULL | {"signature": f"{FULL['signature'][:-2]}{int(FULL['signature'][-2:], 16) - 27:02x}"},
    "without its algorithm": {key: FULL[key] for key in ("text", "signature", "signing_address")},
    "the extra members alone": EXTRAS,
    "null beside the extra members": EXTRAS | dict.fromkeys(SHORT),
    "extra members of null": basic(signed_text(*DIGESTS)) | dict.fromkeys(EXTRAS.keys() - {"text"}),
    "without a name for its algorithm": FULL | {"signing_algo": None},
    "unknown members": FULL | {"version": "2"},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_verifies(form: str) -> None:
    """The attested address may be written in any case too."""
    for address in (ADDRESS, ADDRESS.lower()):
        verified = verify_answer(REQUEST, RESPONSE, FORMS[form], algorithm="ecdsa", address=address)
        assert (verified.request_sha256, verified.response_sha256) == DIGESTS
        assert verified.model == ("org/model:8b" if form == "three parts" else None)


def test_what_is_not_established_is_listed() -> None:
    """A recorded answer verifies as well, at any path; and most texts name no model."""
    named, unnamed = (
        verify_answer(REQUEST, RESPONSE, FORMS[form], algorithm="ecdsa", address=ADDRESS).not_established
        for form in ("three parts", "full")
    )
    for word in ("older one", "method, path and headers", "boundary", "range", "status and headers"):
        assert any(word in item for item in named), word
    assert [item for item in unnamed if item not in named] == ["which model answered: the signed text names none"]


def test_a_text_with_an_empty_name_leaves_open_which_model_answered() -> None:
    """It is shown and listed as a text that names none."""
    verified = verify_answer(REQUEST, RESPONSE, basic(f":{signed_text(*DIGESTS)}"), algorithm="ecdsa", address=ADDRESS)
    assert verified.model is None
    assert verified.steps[0].value == "two digests"
    assert "which model answered: the signed text names none" in verified.not_established


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["name"])
@pytest.mark.parametrize("write", [str, str.lower, str.upper])
def test_recorded_answers_verify(recorded: dict[str, Any], write: Callable[[str], str]) -> None:
    """Signed by eth-account and cryptography, not by us; the attested address may be written in any case."""
    address = write(recorded["address"]).replace("0X", "0x")
    bodies = recorded["request"].encode(), recorded["response"].encode()
    verified = verify_answer(*bodies, recorded["answer"], algorithm=recorded["algorithm"], address=address)
    assert (verified.signing_algo, verified.signing_address) == (recorded["algorithm"], address)
    assert (verified.model is not None) == ("three parts" in recorded["name"])


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["name"])
def test_no_member_of_a_recorded_answer_can_be_changed(recorded: dict[str, Any]) -> None:
    """Not the text, nor any signature, address or algorithm that is there; nor can the signature be left out."""
    bodies = recorded["request"].encode(), recorded["response"].encode()
    given = {"algorithm": recorded["algorithm"], "address": recorded["address"]}
    for name, value in recorded["answer"].items():
        place = len(value) // 2
        changed = value[:place] + ("1" if value[place] == "0" else "0") + value[place + 1 :]
        with pytest.raises(VerificationError):
            verify_answer(*bodies, recorded["answer"] | {name: changed}, **given)
    without = {name: value for name, value in recorded["answer"].items() if name != "signature"}
    with pytest.raises(VerificationError):
        verify_answer(*bodies, without, **given)


def test_each_step_is_shown() -> None:
    """Whoever shows the steps hears of those that passed, up to the one that did not."""
    seen: list[Passed] = []
    verified = verify_answer(REQUEST, RESPONSE, FULL, algorithm="ecdsa", address=ADDRESS, passed=seen.append)
    assert verified.steps == tuple(seen)
    assert [step.name for step in seen] == [step.name for step in ANSWER_STEPS]
    assert [step.value for step in seen][1:] == [*DIGESTS, f"ecdsa {ADDRESS}", "ecdsa and ed25519"]
    seen.clear()
    with pytest.raises(VerificationError) as caught:
        verify_answer(REQUEST, b"", FULL, algorithm="ecdsa", address=ADDRESS, passed=seen.append)
    assert (caught.value.step, len(seen)) == ("response hash", 2)


def test_ed25519_verifies() -> None:
    """Where the Ed25519 key is the attested one, its signature counts."""
    answer = basic(signed_text(*DIGESTS), "ed25519")
    address = PAIR.identity("ed25519").address
    assert verify_answer(REQUEST, RESPONSE, answer, algorithm="ed25519", address=address).signing_algo == "ed25519"
    assert verify_answer(REQUEST, RESPONSE, FULL, algorithm="ed25519", address=address).signing_address == address


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        pytest.param({}, "bad_signature_answer", id="nothing"),
        pytest.param({"text": 1}, "bad_signature_answer", id="text is a number"),
        pytest.param(FULL | {"signing_algo": "rsa"}, "bad_signature_answer", id="unknown algorithm"),
        pytest.param(FULL | {"signing_algo": "\ud800"}, "bad_signature_answer", id="half a character for an algorithm"),
        pytest.param(FULL | {"\ud800": ""}, "bad_signature_answer", id="half a character for a name"),
        pytest.param({"text": FULL["text"]}, "identity_mismatch", id="no signature"),
        pytest.param(FULL | {"text": "x"}, "bad_text", id="no digests"),
        pytest.param(FULL | {"text": signed_text(DIGESTS[1], DIGESTS[1])}, "request_hash_mismatch", id="request"),
        pytest.param(FULL | {"text": signed_text(DIGESTS[0], DIGESTS[0])}, "response_hash_mismatch", id="response"),
        pytest.param(FULL | {"text": f"m:{FULL['text']}"}, "ecdsa_mismatch", id="a model put in front"),
        pytest.param(FULL | {"signing_address": "0x" + "11" * 20}, "identity_mismatch", id="address"),
        pytest.param(FULL | OTHER_CHAT, "identity_mismatch", id="another's extra members"),
        pytest.param(OTHER_CHAT, "identity_mismatch", id="another's signatures"),
        pytest.param(basic(FULL["text"], "ed25519"), "identity_mismatch", id="only the other algorithm"),
        pytest.param(FULL | {"signature": OTHER_CHAT["signature_ecdsa"]}, "ecdsa_mismatch", id="another's signature"),
        pytest.param(FULL | {"signature": ""}, "bad_signature", id="empty signature"),
        pytest.param(EXTRAS | {"signature": ""}, "identity_mismatch", id="empty signature beside the extra ones"),
        pytest.param(EXTRAS | {"signing_address": ""}, "identity_mismatch", id="empty address beside the extra ones"),
        pytest.param(FULL | {"signature": None}, "bad_signature", id="signature is null, and its address is not"),
        pytest.param(
            FULL | {"signature_ed25519": OTHER_CHAT["signature_ed25519"]}, "ed25519_mismatch", id="extra signature"
        ),
    ],
)
def test_a_defect_is_found(answer: dict[str, Any], code: str) -> None:
    """Each fails with its code, and the address is compared before its signature is looked at."""
    with pytest.raises(VerificationError) as caught:
        verify_answer(REQUEST, RESPONSE, answer, algorithm="ecdsa", address=ADDRESS)
    assert caught.value.code == code


def test_other_bytes_do_not_verify() -> None:
    """Not one byte more or less."""
    for request, response in ((REQUEST + b"x", RESPONSE), (REQUEST, RESPONSE[:-1])):
        with pytest.raises(VerificationError):
            verify_answer(request, response, FULL, algorithm="ecdsa", address=ADDRESS)
