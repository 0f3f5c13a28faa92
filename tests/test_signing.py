"""Keys, signatures and the signed text, against `eth-account`, `eth-keys` and `cryptography`."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from enum import Enum
from random import Random
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_keys.backends.coincurve import CoinCurveECCBackend
from eth_keys.backends.native.main import NativeECCBackend
from eth_keys.main import KeyAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from teesign import (
    EcdsaSigner,
    Ed25519Signer,
    Identity,
    MalformedError,
    SignedChat,
    SigningAlgorithm,
    SigningPair,
    TeesignError,
    UsageError,
    VerificationError,
    recover_ecdsa_address,
    signed_text,
    verify_ecdsa,
    verify_ed25519,
)
from teesign.testing import ECDSA_SECRET, ED25519_SEED, counting_random, fixed_pair

CURVE_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
ECDSA_SECRETS = st.integers(1, CURVE_ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
SEEDS = st.binary(min_size=32, max_size=32)
TEXT = signed_text("ab" * 32, "cd" * 32)
CHAT = fixed_pair().sign(TEXT)


def flip(data: bytes, bit: int) -> bytes:
    """Return `data` with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def recovered(text: str, signature: str) -> str | None:
    """Return the recovered address, or None where recovery is refused."""
    try:
        return recover_ecdsa_address(text, signature)
    except TeesignError:
        return None


@given(ECDSA_SECRETS, st.text())
@settings(max_examples=examples(60), deadline=None)
def test_ecdsa_signatures_recover_with_eth_account(secret: bytes, text: str) -> None:
    """Whatever is signed, eth-account recovers this key's EIP-55 address from the signature."""
    signer = EcdsaSigner(secret)
    address = Account.recover_message(encode_defunct(text=text), signature=signer.sign(text))
    assert address == Account.from_key(secret).address == signer.identity.address
    assert recover_ecdsa_address(text, signer.sign(text).hex()) == address


@given(ECDSA_SECRETS, st.text())
@settings(max_examples=examples(40), deadline=None)
def test_ecdsa_signatures_are_those_of_rfc_6979(secret: bytes, text: str) -> None:
    """The nonce is deterministic: the pure-Python implementation in eth-keys makes the same signature."""
    signature = EcdsaSigner(secret).sign(text)
    digest = bytes(Account.sign_message(encode_defunct(text=text), secret).message_hash)
    expected = KeyAPI(NativeECCBackend()).PrivateKey(secret).sign_msg_hash(digest)
    assert signature == expected.to_bytes()[:64] + bytes([expected.v + 27])


def test_ecdsa_signatures_are_bit_for_bit_those_of_eth_keys() -> None:
    """Going to libsecp256k1 directly changes nothing: 10,000 texts of any length, and a hundred keys."""
    random = Random(1)
    for _ in range(examples(100)):
        secret = random.randbytes(32)
        signer, key = EcdsaSigner(secret), KeyAPI(CoinCurveECCBackend()).PrivateKey(secret)
        for _ in range(100):
            text = random.randbytes(random.randrange(300)).hex()
            oracle = key.sign_msg(b"\x19Ethereum Signed Message:\n%d%b" % (len(text), text.encode())).to_bytes()
            assert signer.sign(text) == oracle[:64] + bytes([oracle[64] + 27])


@given(ECDSA_SECRETS, st.text())
@settings(max_examples=examples(100), deadline=None)
def test_ecdsa_signatures_have_a_low_s_and_a_v_of_27_or_28(secret: bytes, text: str) -> None:
    """Strict verifiers refuse the other half of s (EIP-2), and wallets expect the old form of v."""
    signature = EcdsaSigner(secret).sign(text)
    assert len(signature) == 65
    assert int.from_bytes(signature[32:64], "big") <= CURVE_ORDER // 2
    assert signature[64] in (27, 28)


@given(SEEDS, st.text())
@settings(max_examples=examples(100), deadline=None)
def test_ed25519_signatures_verify_with_cryptography(seed: bytes, text: str) -> None:
    """Whatever is signed, cryptography makes the same signature, accepts it, and derives the same public key."""
    signer, oracle = Ed25519Signer(seed), Ed25519PrivateKey.from_private_bytes(seed)
    signature = signer.sign(text)
    assert signature == oracle.sign(text.encode())
    assert signer.identity.public_key == oracle.public_key().public_bytes_raw()
    Ed25519PublicKey.from_public_bytes(signer.identity.address_bytes).verify(signature, text.encode())
    verify_ed25519(text, signature.hex(), signer.identity.address)


@pytest.mark.parametrize(
    ("seed", "public_key", "text", "signature"),
    [
        pytest.param(
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b",
            id="test 1",
        ),
        pytest.param(
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "r",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
            "387b2eaeb4302aeeb00d291612bb0c00",
            id="test 2",
        ),
    ],
)
def test_ed25519_vectors_of_rfc_8032(seed: str, public_key: str, text: str, signature: str) -> None:
    """The test vectors of RFC 8032, section 7.1, whose messages are text."""
    signer = Ed25519Signer(bytes.fromhex(seed))
    assert (signer.identity.address, signer.sign(text).hex()) == (public_key, signature)


@pytest.mark.parametrize("text", ["", "hello", "grüße 👋", TEXT, "x" * 1000])
def test_ecdsa_signatures_equal_those_of_eth_account(text: str) -> None:
    """The length in the EIP-191 prefix counts bytes, not characters, and has as many digits as it needs."""
    expected = Account.sign_message(encode_defunct(text=text), ECDSA_SECRET).signature
    assert EcdsaSigner(ECDSA_SECRET).sign(text) == bytes(expected)


@pytest.mark.parametrize(
    "secret",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x5a" * 31, id="31 bytes"),
        pytest.param(b"\x5a" * 33, id="33 bytes"),
        pytest.param(bytes(32), id="zero"),
        pytest.param(CURVE_ORDER.to_bytes(32, "big"), id="the curve's order"),
        pytest.param(b"\xff" * 32, id="above the curve's order"),
    ],
)
def test_what_is_no_ecdsa_key_is_refused(secret: bytes) -> None:
    """A key that cannot sign is refused when it is given, not when it is first used."""
    with pytest.raises(UsageError) as caught:
        EcdsaSigner(secret)
    assert caught.value.code == "bad_key"


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_what_is_no_ed25519_seed_is_refused(length: int) -> None:
    """A seed has 32 bytes; the 64 of an expanded key are not one."""
    with pytest.raises(UsageError) as caught:
        Ed25519Signer(bytes(length))
    assert caught.value.code == "bad_key"


@pytest.mark.parametrize("signer", [EcdsaSigner, Ed25519Signer])
@pytest.mark.parametrize(
    "secret",
    [bytearray(ECDSA_SECRET), memoryview(ECDSA_SECRET), list(ECDSA_SECRET), ECDSA_SECRET.hex(), "k" * 32, 32, None],
    ids=lambda secret: type(secret).__name__,
)
def test_a_key_is_bytes(signer: Callable[[Any], object], secret: object) -> None:
    """In hex it is decoded first; anything else works with one library and not with the other."""
    with pytest.raises(UsageError, match=r"bytes\.fromhex") as caught:
        signer(secret)
    assert caught.value.code == "bad_key"


@pytest.mark.parametrize("write", [pickle.dumps, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("member", ["ecdsa", "ed25519", None])
def test_a_key_cannot_be_pickled(write: Callable[[object], object], member: str | None) -> None:
    """It would be in whatever the pickle is written to."""
    pair = fixed_pair()
    with pytest.raises(TypeError, match="private key"):
        write(getattr(pair, member) if member else pair)


@pytest.mark.parametrize(
    "secret",
    [b"\x5a" * 31, b"\x5a" * 33, (CURVE_ORDER + 1).to_bytes(32, "big"), b"\xff" * 32],
    ids=["31 bytes", "33 bytes", "order + 1", "2^256 - 1"],
)
def test_refusals_do_not_show_the_key(secret: bytes) -> None:
    """Nothing in the chain of errors spells the key, in hex, as bytes or as a number."""
    with pytest.raises(UsageError) as caught:
        EcdsaSigner(secret)
    error: BaseException | None = caught.value
    while error is not None:
        shown = f"{error} {error!r}".lower()
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
        assert str(int.from_bytes(secret, "big")) not in shown
        error = error.__cause__ or error.__context__


def test_reprs_hold_no_secret() -> None:
    """Signers end up in logs and tracebacks; what they print is public."""
    pair = fixed_pair()
    shown = repr([pair, pair.ecdsa, pair.ed25519, pair.identity("ecdsa"), pair.identity("ed25519")])
    assert pair.ecdsa.identity.address in shown
    for secret in (ECDSA_SECRET, ED25519_SEED):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown


def test_a_pair_signs_with_both_keys_under_their_own_addresses() -> None:
    """A SignedChat holds the text, and each signature, as bytes and as hex, beside the address that made it."""
    assert CHAT.text == TEXT
    assert (CHAT.signature_ecdsa, CHAT.signature_ed25519) == (f"0x{CHAT.ecdsa.hex()}", CHAT.ed25519.hex())
    assert recover_ecdsa_address(TEXT, CHAT.signature_ecdsa) == CHAT.signing_address_ecdsa
    verify_ed25519(TEXT, CHAT.signature_ed25519, CHAT.signing_address_ed25519)


@pytest.mark.parametrize("form", [msgspec.msgpack, msgspec.json], ids=["MessagePack", "JSON"])
def test_a_store_of_others_can_keep_a_signed_chat(form: Any) -> None:
    """As bytes, as README says, and as whoever prefers text may."""
    assert form.decode(form.encode(CHAT), type=SignedChat) == CHAT


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_the_answer_to_who_asks_for_a_signature(algorithm: SigningAlgorithm) -> None:
    """Everything that was signed, and one of the two under the short names."""
    answer = CHAT.answer(algorithm)
    assert answer == {
        "text": TEXT,
        "signature": getattr(CHAT, f"signature_{algorithm}"),
        "signing_address": fixed_pair().identity(algorithm).address,
        "signing_algo": algorithm,
        "signature_ecdsa": CHAT.signature_ecdsa,
        "signing_address_ecdsa": CHAT.signing_address_ecdsa,
        "signature_ed25519": CHAT.signature_ed25519,
        "signing_address_ed25519": CHAT.signing_address_ed25519,
    }
    assert list(answer)[:4] == ["text", "signature", "signing_address", "signing_algo"]
    assert CHAT.answer() == CHAT.answer("ecdsa")


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(CHAT.answer, id="answer"),
        pytest.param(fixed_pair().identity, id="identity"),
        pytest.param(lambda algorithm: Identity.from_public_key(algorithm, bytes(32)), id="identity of a public key"),
    ],
)
@pytest.mark.parametrize("algorithm", ["rsa", "ECDSA", "", None, b"ecdsa", ["ecdsa"]], ids=str)
def test_there_is_no_other_algorithm(ask: Callable[[Any], object], algorithm: object) -> None:
    """Whatever a client has asked for out of a query, it does not get one of the two for another."""
    with pytest.raises(UsageError) as caught:
        ask(algorithm)
    assert (caught.value.code, str(caught.value)) == ("bad_algorithm", "A signing algorithm is ecdsa or ed25519.")


def test_an_algorithm_may_be_a_member_of_an_enumeration() -> None:
    """As frameworks hand out what they have checked; it stands in the answer as plain text."""

    class Algorithm(str, Enum):  # noqa: UP042 - StrEnum formats as its value, and hides the fault
        ECDSA = "ecdsa"

    algorithm: Any = Algorithm.ECDSA
    assert CHAT.answer(algorithm) == CHAT.answer("ecdsa")
    assert str(fixed_pair().identity(algorithm).algorithm) == "ecdsa"


def test_generated_pairs_take_two_different_keys_from_the_random_source() -> None:
    """The two keys are drawn one after the other: they must not share their bytes."""
    pair = SigningPair.generate(counting_random())
    expected = SigningPair.from_secrets((1).to_bytes(32, "big"), (2).to_bytes(32, "big"))
    assert pair.sign(TEXT) == expected.sign(TEXT)


@pytest.mark.parametrize("v", [0, 1])
def test_recovery_accepts_v_without_the_offset(v: int) -> None:
    """Some libraries write v as 0 or 1 instead of 27 or 28."""
    texts = (f"{TEXT}{n}" for n in range(100))
    text, signature = next((t, s) for t in texts if (s := fixed_pair().ecdsa.sign(t))[64] == 27 + v)
    assert recover_ecdsa_address(text, f"{signature[:64].hex()}{v:02x}") == CHAT.signing_address_ecdsa


@pytest.mark.parametrize(
    "signature",
    [
        pytest.param("", id="empty"),
        pytest.param("0x", id="prefix only"),
        pytest.param(CHAT.signature_ecdsa[:-2], id="64 bytes"),
        pytest.param(CHAT.signature_ecdsa + "00", id="66 bytes"),
        pytest.param(CHAT.signature_ecdsa[:-1], id="half a byte"),
        pytest.param("0x" + CHAT.signature_ecdsa, id="prefixed twice"),
        pytest.param(CHAT.signature_ecdsa[:-2] + "zz", id="not hex"),
        pytest.param(CHAT.signature_ecdsa[:64] + "  " + CHAT.signature_ecdsa[66:], id="spaces for digits"),
        pytest.param(CHAT.signature_ecdsa[:64] + " " + CHAT.signature_ecdsa[64:], id="an additional space"),
        pytest.param(CHAT.signature_ecdsa + "\n", id="trailing line end"),
        pytest.param(CHAT.signature_ecdsa[:-2] + "\uff11\uff12", id="digits of another script"),
        pytest.param(CHAT.signature_ecdsa[:-2] + "02", id="v is 2"),
        pytest.param(CHAT.signature_ecdsa[:-2] + "1a", id="v is 26"),
        pytest.param(CHAT.signature_ecdsa[:-2] + "1d", id="v is 29"),
        pytest.param(CHAT.signature_ecdsa[:-2] + "ff", id="v is 255"),
    ],
)
def test_what_is_no_ecdsa_signature_is_malformed(signature: str) -> None:
    """65 bytes of hex with a known v, and nothing else: a value must have one spelling."""
    with pytest.raises(MalformedError) as caught:
        recover_ecdsa_address(TEXT, signature)
    assert caught.value.code == "bad_signature"


@pytest.mark.parametrize(
    ("r", "s"),
    [
        pytest.param(0, 1, id="r is zero"),
        pytest.param(1, 0, id="s is zero"),
        pytest.param(CURVE_ORDER, 1, id="r is the order"),
        pytest.param(5, 1, id="r is no x coordinate"),
        pytest.param(1, CURVE_ORDER // 2 + 1, id="s is in the upper half"),
        pytest.param(1, 2**256 - 1, id="s is above the order"),
    ],
)
def test_what_no_key_can_have_made_is_unrecoverable(r: int, s: int) -> None:
    """Values that are well-formed and still no signature fail verification instead of recovering to something."""
    with pytest.raises(VerificationError) as caught:
        recover_ecdsa_address(TEXT, f"0x{r:064x}{s:064x}1b")
    assert caught.value.code == "ecdsa_unrecoverable"


def test_the_twin_with_a_high_s_is_refused() -> None:
    """Negating s gives a second signature that recovers to the same key; only the lower one counts."""
    raw = bytes.fromhex(CHAT.signature_ecdsa[2:])
    twin = raw[:32] + (CURVE_ORDER - int.from_bytes(raw[32:64], "big")).to_bytes(32, "big") + bytes([raw[64] ^ 7])
    assert Account.recover_message(encode_defunct(text=TEXT), signature=twin) == CHAT.signing_address_ecdsa
    with pytest.raises(VerificationError) as caught:
        recover_ecdsa_address(TEXT, twin.hex())
    assert caught.value.code == "ecdsa_unrecoverable"


def test_the_largest_low_s_is_low() -> None:
    """EIP-2 lets s be half the order, rounded down: some key has made such a signature."""
    assert recovered(TEXT, f"0x{1:064x}{CURVE_ORDER // 2:064x}1b") is not None


@pytest.mark.parametrize(
    ("refused", "code", "message"),
    [
        pytest.param(
            lambda: verify_ecdsa(TEXT, CHAT.signature_ecdsa[:-2] + "02", CHAT.signing_address_ecdsa),
            "bad_signature",
            "The ECDSA signature's last byte, v, must be 27 or 28.",
            id="v",
        ),
        pytest.param(
            lambda: verify_ecdsa(TEXT, f"0x{1:064x}{CURVE_ORDER // 2 + 1:064x}1b", CHAT.signing_address_ecdsa),
            "ecdsa_unrecoverable",
            "The ECDSA signature's s is not in the lower half.",
            id="high s",
        ),
        pytest.param(
            lambda: verify_ecdsa(TEXT, f"0x{5:064x}{1:064x}1b", CHAT.signing_address_ecdsa),
            "ecdsa_unrecoverable",
            "No key can have made this ECDSA signature of this text.",
            id="no key",
        ),
        pytest.param(
            lambda: verify_ecdsa(TEXT, CHAT.signature_ecdsa, "0x" + "11" * 20),
            "ecdsa_mismatch",
            f"The ECDSA signature was made by {CHAT.signing_address_ecdsa}, not by the address beside it.",
            id="another address",
        ),
        pytest.param(
            lambda: verify_ecdsa(TEXT, "0x00", CHAT.signing_address_ecdsa),
            "bad_signature",
            "An ecdsa signature is 65 bytes in hex.",
            id="a short signature",
        ),
        pytest.param(
            lambda: verify_ed25519(TEXT, CHAT.signature_ed25519, "00"),
            "bad_address",
            "An Ed25519 signing address is 64 hex digits.",
            id="a short address",
        ),
        pytest.param(
            lambda: verify_ed25519(TEXT, CHAT.signature_ed25519, "11" * 32),
            "ed25519_mismatch",
            "The Ed25519 signature is not this address's over this text.",
            id="another Ed25519 key",
        ),
        pytest.param(
            lambda: EcdsaSigner(bytes(32)),
            "bad_key",
            "The ECDSA key is not a secp256k1 private key: it must lie between 1 and the curve's order.",
            id="no ECDSA key",
        ),
        pytest.param(
            lambda: EcdsaSigner(bytes(31)),
            "bad_key",
            "The ECDSA key has 31 bytes; it must have 32.",
            id="a short ECDSA key",
        ),
        pytest.param(
            lambda: Ed25519Signer(bytes(33)),
            "bad_key",
            "The Ed25519 key has 33 bytes; it must have 32.",
            id="a long Ed25519 key",
        ),
        pytest.param(
            lambda: Identity.from_public_key("ecdsa", bytes(33)),
            "bad_key",
            "A public key for ecdsa cannot have 33 bytes.",
            id="a compressed public key",
        ),
    ],
)
def test_each_refusal_names_its_problem(refused: Callable[[], object], code: str, message: str) -> None:
    """A code for programs, and a sentence for people."""
    with pytest.raises(TeesignError) as caught:
        refused()
    assert (caught.value.code, str(caught.value)) == (code, message)


@pytest.mark.parametrize("prefix", ["0x", "0X", ""])
@pytest.mark.parametrize("case", [str, str.lower, str.upper])
def test_an_address_verifies_however_it_is_written(prefix: str, case: Callable[[str], str]) -> None:
    """As identities match it, and as Ed25519 takes its own."""
    address = prefix + case(CHAT.signing_address_ecdsa.removeprefix("0x"))
    assert verify_ecdsa(TEXT, CHAT.signature_ecdsa, address) == CHAT.signing_address_ecdsa


def test_no_bit_of_an_ecdsa_signature_can_be_changed() -> None:
    """Every one-bit change is refused, or recovers to somebody else."""
    raw = bytes.fromhex(CHAT.signature_ecdsa[2:])
    for bit in range(8 * len(raw)):
        assert recovered(TEXT, flip(raw, bit).hex()) != CHAT.signing_address_ecdsa


def test_no_bit_of_the_text_can_be_changed_under_an_ecdsa_signature() -> None:
    """The signature of one text never recovers to the same key for another."""
    for bit in (bit for bit in range(8 * len(TEXT)) if bit % 8 != 7):
        assert recovered(flip(TEXT.encode(), bit).decode(), CHAT.signature_ecdsa) != CHAT.signing_address_ecdsa


def test_no_bit_of_an_ed25519_signature_can_be_changed() -> None:
    """Every one-bit change is refused: s is checked to be reduced, so there is no second spelling."""
    raw = bytes.fromhex(CHAT.signature_ed25519)
    for bit in range(8 * len(raw)):
        with pytest.raises(VerificationError, match="not this address's"):
            verify_ed25519(TEXT, flip(raw, bit).hex(), CHAT.signing_address_ed25519)


def test_no_bit_of_the_text_can_be_changed_under_an_ed25519_signature() -> None:
    """The signature of one text is never accepted for another."""
    for bit in (bit for bit in range(8 * len(TEXT)) if bit % 8 != 7):
        with pytest.raises(VerificationError, match="not this address's"):
            verify_ed25519(flip(TEXT.encode(), bit).decode(), CHAT.signature_ed25519, CHAT.signing_address_ed25519)


@pytest.mark.parametrize(
    ("signature", "address", "code"),
    [
        pytest.param("", CHAT.signing_address_ed25519, "bad_signature", id="empty signature"),
        pytest.param(CHAT.signature_ed25519[2:], CHAT.signing_address_ed25519, "bad_signature", id="short signature"),
        pytest.param(CHAT.signature_ed25519 + "00", CHAT.signing_address_ed25519, "bad_signature", id="long signature"),
        pytest.param(CHAT.signature_ed25519 + " ", CHAT.signing_address_ed25519, "bad_signature", id="trailing space"),
        pytest.param("zz" * 64, CHAT.signing_address_ed25519, "bad_signature", id="signature is not hex"),
        pytest.param(CHAT.signature_ed25519, "", "bad_address", id="empty address"),
        pytest.param(CHAT.signature_ed25519, CHAT.signing_address_ed25519[2:], "bad_address", id="short address"),
        pytest.param(
            CHAT.signature_ed25519, CHAT.signing_address_ed25519[:-2] + " 0", "bad_address", id="with a space"
        ),
        pytest.param(CHAT.signature_ed25519, CHAT.signing_address_ecdsa, "bad_address", id="an ECDSA address"),
    ],
)
def test_what_is_no_ed25519_signature_or_address_is_malformed(signature: str, address: str, code: str) -> None:
    """Hex of exactly the right length, and nothing else."""
    with pytest.raises(MalformedError) as caught:
        verify_ed25519(TEXT, signature, address)
    assert caught.value.code == code


@pytest.mark.parametrize("point", ["00" * 32, "01" + "00" * 31, "ff" * 32], ids=["order 4", "identity", "no point"])
def test_ed25519_keys_that_sign_everything_are_refused(point: str) -> None:
    """For a key of small order, some signature fits every text; none may be accepted."""
    with pytest.raises(VerificationError) as caught:
        verify_ed25519(TEXT, "01" + "00" * 63, point)
    assert caught.value.code == "ed25519_mismatch"


def test_text_that_has_no_utf8_form_was_signed_by_nobody() -> None:
    """JSON can spell a lone surrogate; a text that holds one fails verification instead of crashing the verifier."""
    with pytest.raises(VerificationError) as ecdsa:
        recover_ecdsa_address("\ud800", CHAT.signature_ecdsa)
    with pytest.raises(VerificationError) as ed25519:
        verify_ed25519("\ud800", CHAT.signature_ed25519, CHAT.signing_address_ed25519)
    assert (ecdsa.value.code, ed25519.value.code) == ("ecdsa_unrecoverable", "ed25519_mismatch")


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_an_identity_follows_from_the_public_key(algorithm: SigningAlgorithm) -> None:
    """A verifier who has only the public key gets the same identity as the signer."""
    identity = fixed_pair().identity(algorithm)
    assert identity.algorithm == algorithm
    assert Identity.from_public_key(algorithm, identity.public_key) == identity


@pytest.mark.parametrize(
    ("algorithm", "length"),
    [("ecdsa", 0), ("ecdsa", 32), ("ecdsa", 33), ("ecdsa", 65), ("ed25519", 0), ("ed25519", 31), ("ed25519", 64)],
)
def test_a_public_key_of_another_length_is_refused(algorithm: SigningAlgorithm, length: int) -> None:
    """Compressed keys and keys with the 04 in front are not what the wire format carries."""
    with pytest.raises(UsageError) as caught:
        Identity.from_public_key(algorithm, bytes(length))
    assert caught.value.code == "bad_key"


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_an_identity_matches_its_address_in_any_case_and_with_or_without_prefix(algorithm: SigningAlgorithm) -> None:
    """Checksums are a help for people; two spellings of an address are the same address."""
    identity = fixed_pair().identity(algorithm)
    digits = identity.address_bytes.hex()
    for address in (identity.address, digits, digits.upper(), "0x" + digits, "0X" + digits.upper()):
        assert identity.matches(address)


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_an_identity_matches_nothing_else(algorithm: SigningAlgorithm) -> None:
    """Neither a part of the address, nor more than it, nor another one."""
    identity = fixed_pair().identity(algorithm)
    digits = identity.address_bytes.hex()
    for address in ("", "0x", digits[:-1], digits + "0", " " + digits, flip(identity.address_bytes, 0).hex()):
        assert not identity.matches(address)
