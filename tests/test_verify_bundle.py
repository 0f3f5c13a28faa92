"""Evidence bundles: they verify again, and no member of them can be edited without that being found.

The bundles are made over the test's authorities, so that every step runs, from the nonce to the signatures.
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from authorities import END, INTEL, NOW, NVIDIA, ROOTS
from hypothesis import given
from hypothesis import strategies as st

from teesign import (
    Challenge,
    MalformedError,
    SigningAlgorithm,
    TeesignError,
    UsageError,
    VerificationError,
    signed_text,
)
from teesign.client.flow import decode_object
from teesign.testing import fixed_evidence, fixed_pair, fixed_quote
from teesign.verify.answer import ANSWER_STEPS
from teesign.verify.bundle import EvidenceBundle, decode_bundle, encode_bundle, verify_bundle
from teesign.verify.policy import Policy, UnsafeSimulatedPolicy
from teesign.verify.report import STEPS

NONCE, SPKI = b"\7" * 32, b"\x0b" * 32
REQUEST, RESPONSE = b'{"model": "m"}', b'{"id": "an-id", "choices": []}'
TEXT = signed_text(sha256(REQUEST).hexdigest(), sha256(RESPONSE).hexdigest())
PIN = sha256(b"simulated").hexdigest()

Path = tuple[str | int, ...]


def signature_of(algorithm: SigningAlgorithm) -> dict[str, Any]:
    """Return what the signature endpoint answers for the exchange."""
    return {**fixed_pair().sign(TEXT).answer(algorithm)}


def genuine(algorithm: SigningAlgorithm = "ecdsa", spki_sha256: bytes | None = SPKI, **changes: Any) -> EvidenceBundle:
    """Return a bundle that the test's authorities stand behind, of a report that binds a TLS key."""
    challenge = Challenge.new(fixed_pair().identity(algorithm), nonce=NONCE, spki_sha256=spki_sha256)
    quote = INTEL.quote(challenge.report_data)
    info = {"app_name": "app", "tcb_info": {"version": 1.5, "tags": ["a", None, True]}}
    report = challenge.answer(model="m", quote=quote, gpu_evidence=NVIDIA.evidence(NONCE), info=info)
    bundle = EvidenceBundle(
        verified_at=int(NOW),
        policy=Policy(compose_hash=(PIN,)),
        nonce=NONCE,
        spki_sha256=spki_sha256,
        report=report,
        collateral=INTEL.collateral(),
        request=REQUEST,
        response=RESPONSE,
        signature=signature_of(algorithm),
    )
    return msgspec.structs.replace(bundle, **changes)


def simulated() -> EvidenceBundle:
    """Return a bundle as a visit to a server with `DEV=1` makes it."""
    challenge = Challenge.new(fixed_pair().identity("ecdsa"), nonce=NONCE)
    quote = fixed_quote(challenge.report_data)
    report = challenge.answer(model="m", quote=quote, gpu_evidence=fixed_evidence(NONCE), info={})
    return genuine(policy=UnsafeSimulatedPolicy(), report=report, collateral=None, spki_sha256=None)


BUNDLE = genuine()
WRITTEN = encode_bundle(BUNDLE)
MEMBERS: dict[str, Any] = json.loads(WRITTEN)


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield each value of decoded JSON that is neither an object nor a list with something in it, with its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items or not value:
        yield path, value
    for name, item in items:
        yield from leaves(item, (*path, name))


LEAVES = dict(leaves(MEMBERS))


def edited(path: Path, value: Any, *, digest: bool) -> bytes:
    """Return the genuine bundle with another value at a path; with the digest of the edit, as a forger writes it."""
    members = copy.deepcopy(MEMBERS)
    place: Any = members
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return sealed(members) if digest else json.dumps(members).encode()


def sealed(members: dict[str, Any]) -> bytes:
    """Return a file with these members and the digest that belongs to them."""
    rest = {name: value for name, value in members.items() if name != "sha256"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps(rest | {"sha256": sha256(canonical).hexdigest()}).encode()


def verify(written: bytes) -> None:
    """Read and verify a file as `teesign verify --offline` does, with the test's roots."""
    verify_bundle(decode_bundle(written), roots=ROOTS)


def failure(written: bytes) -> str:
    """Return the code that a file fails with."""
    with pytest.raises((VerificationError, MalformedError)) as caught:
        verify(written)
    return caught.value.code


def name_of(path: Path) -> str:
    """Return a path as one word."""
    return ".".join(map(str, path))


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
@pytest.mark.parametrize("spki_sha256", [None, SPKI], ids=["without TLS key", "with TLS key"])
def test_a_bundle_verifies_again(algorithm: SigningAlgorithm, spki_sha256: bytes | None) -> None:
    """What was written is read back, and every step passes, numbered through."""
    bundle = genuine(algorithm, spki_sha256)
    seen: list[tuple[int, str]] = []
    read = decode_bundle(encode_bundle(bundle))
    assert read == bundle
    verified = verify_bundle(read, roots=ROOTS, passed=lambda step: seen.append((step.number, step.name)))
    assert seen == list(enumerate((step.name for step in (*STEPS, *ANSWER_STEPS)), 1))
    assert verified.report.signing_address == verified.answer.signing_address == bundle.signature["signing_address"]
    assert verified.policy == bundle.policy


def test_white_space_does_not_matter() -> None:
    """A file that somebody's tool has laid out anew is the same bundle."""
    assert decode_bundle(json.dumps(MEMBERS, indent=4).encode() + b"\n") == BUNDLE


def other_leaf(value: Any) -> Any:
    """Return another value of the same type; of text, one with another letter in its first half."""
    match value:
        case str():
            place = len(value) // 4
            return value[:place] + ("1" if value[place : place + 1] == "0" else "0") + value[place + 1 :]
        case bool():
            return not value
        case int() | float():
            return value + 1
        case None:
            return 0
        case _:
            return [0]


@pytest.mark.parametrize("path", LEAVES, ids=name_of)
def test_no_field_can_be_edited(path: Path) -> None:
    """Not one, whatever it is; nor taken away."""
    expected = "unknown_bundle_format" if path == ("format",) else "bundle_changed"
    assert failure(edited(path, other_leaf(LEAVES[path]), digest=False)) == expected
    assert failure(edited(path, {"another": "type"}, digest=False)) == expected


@given(st.data())
def test_no_character_of_a_field_can_be_edited(data: st.DataObject) -> None:
    """For any text in the bundle, at any place, by any other character."""
    path = data.draw(st.sampled_from([path for path, value in LEAVES.items() if isinstance(value, str) and value]))
    value = LEAVES[path]
    place = data.draw(st.integers(0, len(value) - 1))
    other = data.draw(st.characters().filter(lambda character: character != value[place]))
    assert failure(edited(path, value[:place] + other + value[place + 1 :], digest=False))


@pytest.mark.parametrize("name", MEMBERS)
def test_no_member_can_be_left_out(name: str) -> None:
    """Whether or not the digest is made to fit."""
    rest = {key: value for key, value in MEMBERS.items() if key != name}
    expected = "unknown_bundle_format" if name == "format" else "bundle_changed"
    assert failure(json.dumps(rest).encode()) == expected
    if name != "sha256":
        assert failure(sealed(rest)) in (expected, "bad_bundle", "no_collateral", "report_data_mismatch")


def test_no_member_can_be_added() -> None:
    """At the top, or in the policy; in what a server answered, unless the digest is made to fit."""
    for path in ((), ("policy",), ("report",), ("signature",), ("collateral",)):
        assert failure(edited((*path, "note"), "trust me", digest=False)) == "bundle_changed"
    assert failure(edited(("note",), "trust me", digest=True)) == "bad_bundle"
    assert failure(edited(("policy", "note"), "trust me", digest=True)) == "bad_bundle"


def test_no_member_can_be_named_twice() -> None:
    """One reader would take the first and another the last."""
    policy = json.dumps({"policy": "Policy"}).encode()
    assert failure(b'{"policy": ' + policy + b"," + WRITTEN[1:]) == "bad_bundle"
    assert failure(WRITTEN.replace(b'"text":', b'"text": "", "text":', 1)) == "bad_bundle"


# What a forger who computes the digest anew can still edit: nothing signs it, or it is the maker's to choose.
FORGEABLE = {
    "verified_at": "the time, as long as the collateral is valid at it",
    "policy.require_gpus": "the policy is its maker's",
    "policy.require_tls_key": "the policy is its maker's",
    "collateral.pck_crl_issuer_chain": "dcap-qvl takes the chain that the quote brings",
    "report.model_name": "nothing signs it",
    "report.info.app_name": "nothing signs it",
    "report.info.tcb_info.version": "nothing signs it",
    "report.info.tcb_info.tags.0": "nothing signs it",
    "report.info.tcb_info.tags.1": "nothing signs it",
    "report.info.tcb_info.tags.2": "nothing signs it",
}


def resealed(path: Path, value: Any) -> bytes:
    """Return the genuine bundle with an edit that is repeated where the report repeats itself, and a fitting digest."""
    members = copy.deepcopy(MEMBERS)
    for root in ((), ("report", "all_attestations", 0)) if path[0] == "report" else ((),):
        place: Any = members
        for name in (*root, *path[1 if root else 0 : -1]):
            place = place[name]
        place[path[-1]] = value
    return sealed(members)


@pytest.mark.parametrize("path", [path for path in LEAVES if path not in (("sha256",), ("format",))], ids=name_of)
def test_a_forger_can_edit_only_what_nobody_signs(path: Path) -> None:
    """With the digest made to fit, everything else is found by its own step."""
    forged = other_leaf(LEAVES[path])
    if path[:2] == ("report", "all_attestations"):
        assert failure(edited(path, forged, digest=True)) == "attestations_differ"
    elif name_of(path) in FORGEABLE:
        verify(resealed(path, forged))
    else:
        assert failure(resealed(path, forged)) not in ("bundle_changed", "attestations_differ")


def test_the_forgeable_members_are_there() -> None:
    """The table above does not name what no bundle has."""
    assert set(FORGEABLE) <= {name_of(path) for path in LEAVES}


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        pytest.param(("verified_at",), int(END.timestamp()) + 1, "collateral_expired", id="after the collateral"),
        pytest.param(("verified_at",), True, "bad_bundle", id="a time that is none"),
        pytest.param(("verified_at",), -1, "bad_bundle", id="a time before 1970"),
        pytest.param(("verified_at",), 1.5, "bad_bundle", id="a broken second"),
        pytest.param(("policy",), {}, "bad_bundle", id="a policy by default"),
        pytest.param(("policy", "policy"), "UnsafeSimulatedPolicy", "unsafe_policy", id="an unsafe policy"),
        pytest.param(("policy", "policy"), "Lenient", "bad_bundle", id="an unknown policy"),
        pytest.param(("policy", "compose_hash"), ["11" * 32], "compose_hash_mismatch", id="another pin"),
        pytest.param(("nonce",), "0x" + NONCE.hex(), "bad_bundle", id="another spelling of the nonce"),
        pytest.param(("nonce",), "11" * 32, "nonce_mismatch", id="another nonce"),
        pytest.param(("nonce",), "11" * 31, "bad_bundle", id="a short nonce"),
        pytest.param(("spki_sha256",), None, "tls_key_mismatch", id="no TLS key"),
        pytest.param(("spki_sha256",), "11" * 32, "tls_key_mismatch", id="another TLS key"),
        pytest.param(("report",), [], "bad_bundle", id="no report"),
        pytest.param(("report", "all_attestations"), {}, "attestations_differ", id="attestations that are no list"),
        pytest.param(("report", "all_attestations"), [], "attestations_differ", id="a report that denies itself"),
        pytest.param(("collateral",), None, "no_collateral", id="no collateral"),
        pytest.param(("request",), base64.b64encode(b"x").decode(), "request_hash_mismatch", id="another request"),
        pytest.param(("request",), "=", "bad_bundle", id="no base64"),
        pytest.param(("request",), "eC==", "bad_bundle", id="another spelling of base64"),
        pytest.param(("response",), "", "response_hash_mismatch", id="no response"),
        pytest.param(("response",), None, "bad_bundle", id="a response of another type"),
        pytest.param(("signature",), {}, "bad_signature_answer", id="no signature"),
        pytest.param(("signature",), None, "bad_bundle", id="a signature of another type"),
    ],
)
def test_a_forgery_is_found_with_its_own_code(path: Path, value: Any, code: str) -> None:
    """Though its digest fits."""
    assert failure(edited(path, value, digest=True)) == code


@pytest.mark.parametrize(
    ("written", "code"),
    [
        (b"", "not_a_bundle"),
        (b"\xff", "not_a_bundle"),
        (b"\xff" + b"[" * 102, "not_a_bundle"),
        (b"null", "not_a_bundle"),
        (b"[]", "not_a_bundle"),
        (b'"text"', "not_a_bundle"),
        (WRITTEN[:-2], "not_a_bundle"),
        (b"[" * 100_000, "bad_bundle"),
        (b'{"a":' * 102, "bad_bundle"),
        (b'{"format": NaN}', "bad_bundle"),
        (b'{"format": 1e400}', "bad_bundle"),
        (b'{"format": ' + b"9" * 5000 + b"}", "bad_bundle"),
    ],
    ids=range(12),
)
def test_other_files_are_no_bundles(written: bytes, code: str) -> None:
    """They are refused as such, and nothing of them is shown."""
    with pytest.raises(MalformedError) as caught:
        decode_bundle(written)
    assert caught.value.code == code
    assert caught.value.__cause__ is None


@given(st.binary())
def test_any_bytes_are_read_or_refused(written: bytes) -> None:
    """For any file there is an error of ours."""
    with pytest.raises(TeesignError):
        decode_bundle(written)


def test_another_format_is_said_to_be_one() -> None:
    """So that whoever holds a bundle of a later version looks for a later teesign."""
    assert failure(sealed(MEMBERS | {"format": "teesign-bundle-2"})) == "unknown_bundle_format"
    assert failure(sealed({})) == "unknown_bundle_format"


def test_a_simulated_bundle_needs_an_unsafe_policy_of_ones_own() -> None:
    """The bundle's own word is not enough: a forger would write it too."""
    bundle = decode_bundle(encode_bundle(simulated()))
    for policy, code in ((None, "unsafe_policy"), (Policy(), "simulated")):
        with pytest.raises(VerificationError) as caught:
            verify_bundle(bundle, policy)
        assert caught.value.code == code
    verified = verify_bundle(bundle, UnsafeSimulatedPolicy())
    assert verified.report.simulated


def test_a_policy_of_ones_own_is_obeyed() -> None:
    """It takes the place of the bundle's, which may have been laxer, or stricter."""
    with pytest.raises(VerificationError) as caught:
        verify_bundle(BUNDLE, Policy(compose_hash=("11" * 32,)), roots=ROOTS)
    assert caught.value.code == "compose_hash_mismatch"
    verified = verify_bundle(msgspec.structs.replace(BUNDLE, policy=Policy(tcb_statuses=())), Policy(), roots=ROOTS)
    assert verified.policy == Policy()


def test_what_is_not_established_is_listed() -> None:
    """What the maker of a bundle could have made up is named, beside what no report proves."""
    own, given_policy = (verify_bundle(BUNDLE, policy, roots=ROOTS).not_established for policy in (None, Policy()))
    for word in ("nonce was fresh", "`info`", "weights", "older one", "connection ended"):
        assert any(word in item for item in own), word
        assert any(word in item for item in given_policy), word
    assert any("bundle's own" in item for item in own)
    assert not any("bundle's own" in item for item in given_policy)
    assert any("pins nothing" in item for item in given_policy)


def test_steps_before_the_failure_are_reported() -> None:
    """A report that verifies is shown to, though the answer does not."""
    seen: list[str] = []
    with pytest.raises(VerificationError) as caught:
        verify_bundle(
            msgspec.structs.replace(BUNDLE, response=b"x"), roots=ROOTS, passed=lambda step: seen.append(step.name)
        )
    assert caught.value.step == "response hash"
    assert seen == [step.name for step in (*STEPS, *ANSWER_STEPS[:2])]


@pytest.mark.parametrize("member", ["report", "signature", "collateral"])
def test_all_that_was_read_can_be_kept(member: str) -> None:
    """A document as deep as any that is read is one level deeper in a bundle."""
    deepest = decode_object("x", b'{"x": ' + b"[" * 99 + b"]" * 99 + b"}")
    bundle = msgspec.structs.replace(BUNDLE, **{member: deepest})
    assert decode_bundle(encode_bundle(bundle)) == bundle


@pytest.mark.parametrize(
    "change",
    [
        lambda: {"report": {"x": float("nan")}},
        lambda: {"report": {"x": b"bytes"}},
        lambda: {"report": {"x": json.loads("[" * 100 + "]" * 100)}},
        lambda: {"nonce": b"short"},
        lambda: {"verified_at": 1.5},
        lambda: {"policy": type("Mine", (Policy,), {}, frozen=True)()},
    ],
    ids=["no number", "bytes", "depth", "nonce", "time", "policy"],
)
def test_what_cannot_be_read_again_is_not_written(change: Callable[[], dict[str, Any]]) -> None:
    """Better no bundle than one that is refused years later."""
    with pytest.raises(UsageError):
        encode_bundle(genuine(**change()))


@pytest.mark.parametrize("attestations", [{}, [], [{}]], ids=["no list", "empty", "another's"])
def test_a_report_that_denies_itself_is_not_written(attestations: Any) -> None:
    """That is not the program's mistake: the server has answered so, or somebody on the way has changed it."""
    report = {**BUNDLE.report, "all_attestations": attestations}
    with pytest.raises(VerificationError) as caught:
        encode_bundle(genuine(report=report))
    assert (caught.value.code, caught.value.step) == ("attestations_differ", "bundle")


def test_a_report_among_those_of_other_machines_is_written() -> None:
    """Servers of this family may list all of theirs, or none."""
    itself = {name: value for name, value in BUNDLE.report.items() if name != "all_attestations"}
    for report in (itself, {**itself, "all_attestations": [{"signing_address": "another"}, itself]}):
        verify(encode_bundle(genuine(report=report)))


def test_odd_text_survives() -> None:
    """A server may answer with any JSON, even with halves of characters."""
    bundle = genuine(
        signature=signature_of("ecdsa") | {"note": "\ud800 日本 \x00\\" + '"[{' * 200, "big": 2**70, "real": 1e-7}
    )
    assert decode_bundle(encode_bundle(bundle)) == bundle


def test_a_bundle_does_not_show_what_it_holds() -> None:
    """Prompts and answers do not reach logs by way of a repr."""
    assert repr(BUNDLE) == f"EvidenceBundle(verified_at={int(NOW)})"
