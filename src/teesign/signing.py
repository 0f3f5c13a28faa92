"""Keys and signatures.

Theory of operation: a `SigningPair` holds one secp256k1 and one Ed25519 key. It signs one thing only, the text that
binds a request's digest to a response's (`signed_text`), with both keys at once, and the result is a `SignedChat`.
Both algorithms are deterministic (RFC 6979 and RFC 8032): the same key and text always give the same signature.
Signatures are made and kept as bytes, which take half the room; they become hex when somebody asks for them.

ECDSA signs on libsecp256k1 directly: going through eth-keys costs three times as much, and importing it more than the
rest of the package together, so it is loaded where something is recovered or verified and nowhere else. Keccak, which
parses C declarations when it is imported, is loaded with the first key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NoReturn

import msgspec
from coincurve import PrivateKey
from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

from .errors import MalformedError, UsageError, VerificationError
from .hexadecimal import unhex

__all__ = [
    "EcdsaSigner",
    "Ed25519Signer",
    "Identity",
    "SignedChat",
    "SigningAlgorithm",
    "SigningPair",
    "recover_ecdsa_address",
    "verify_ecdsa",
    "verify_ed25519",
]

SigningAlgorithm = Literal["ecdsa", "ed25519"]
"""The two kinds of signature that every signed response has."""

SECRET_LENGTH: Final = 32
_EIP191_PREFIX: Final = b"\x19Ethereum Signed Message:\n"
_SIGNATURE_LENGTH: Final = {"ecdsa": 65, "ed25519": 64}


class Identity(msgspec.Struct, frozen=True):
    """The public half of a signing key, in every form that the wire format needs.

    Attributes:
        algorithm: "ecdsa" or "ed25519".
        address: the signing address as text: EIP-55 checksummed `0x…` for ECDSA, 64 hex digits for Ed25519.
        address_bytes: the same as bytes: 20 for ECDSA, 32 for Ed25519. These go into report data.
        public_key: 64 bytes `x || y` for ECDSA (no 04 in front), 32 bytes for Ed25519.
    """

    algorithm: SigningAlgorithm
    address: str
    address_bytes: bytes
    public_key: bytes

    @classmethod
    def from_public_key(cls, algorithm: SigningAlgorithm, public_key: bytes) -> Identity:
        """Derive the address from a public key: 64 bytes `x || y` for ECDSA, 32 bytes for Ed25519.

        What it does NOT establish: that anyone has the private key, or that the bytes are a point of the curve.

        Raises:
            UsageError: `bad_algorithm` if it is neither of the two; `bad_key` if the key has another length.
        """
        algorithm = _known(algorithm)
        if len(public_key) != (64 if algorithm == "ecdsa" else 32):
            raise UsageError(f"A public key for {algorithm} cannot have {len(public_key)} bytes.", code="bad_key")
        if algorithm == "ed25519":
            return cls(algorithm, public_key.hex(), public_key, public_key)
        address = keccak256(public_key)[12:]
        return cls(algorithm, checksum_address(address), address, public_key)

    def matches(self, address: str) -> bool:
        """Tell whether `address` names this key. Case does not matter, nor does a leading `0x`."""
        return address.lower().removeprefix("0x") == self.address_bytes.hex()


class _Unpicklable:
    """What holds a private key: a pickle or a copy would take the key out of sight."""

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds a private key and cannot be pickled or copied: pass it itself.")


class EcdsaSigner(_Unpicklable):
    """Sign texts as Ethereum's `personal_sign` does (EIP-191 version 0x45, secp256k1, RFC 6979 nonce, low s).

    Args:
        secret: the private key, 32 bytes, between 1 and the order of the curve less 1.

    Raises:
        UsageError: `bad_key` if the secret is not such a key.
    """

    __slots__ = ("_key", "identity")

    def __init__(self, secret: bytes) -> None:
        _check_secret(secret, "ECDSA")
        try:
            self._key = PrivateKey(secret)
        except ValueError:
            # Not chained: the library's message may come with the value it was given.
            raise UsageError(
                "The ECDSA key is not a secp256k1 private key: it must lie between 1 and the curve's order.",
                code="bad_key",
            ) from None
        public_key = self._key.public_key.format(compressed=False)[1:]
        self.identity: Final = Identity.from_public_key("ecdsa", public_key)

    def __repr__(self) -> str:
        return f"EcdsaSigner(address={self.identity.address})"

    def sign(self, text: str) -> bytes:
        """Return `r || s || v`, 65 bytes, with v 27 or 28."""
        signature = self._key.sign_recoverable(_personal_message_digest(text), hasher=None)
        return signature[:64] + bytes((signature[64] + 27,))


class Ed25519Signer(_Unpicklable):
    """Sign texts with Ed25519 (RFC 8032, the plain variant, over the text's UTF-8 bytes).

    Args:
        seed: the private key as RFC 8032 defines it, 32 bytes.

    Raises:
        UsageError: `bad_key` if it is not bytes of that length.
    """

    __slots__ = ("_secret_key", "identity")

    def __init__(self, seed: bytes) -> None:
        _check_secret(seed, "Ed25519")
        public_key, self._secret_key = crypto_sign_seed_keypair(seed)
        self.identity: Final = Identity.from_public_key("ed25519", public_key)

    def __repr__(self) -> str:
        return f"Ed25519Signer(address={self.identity.address})"

    def sign(self, text: str) -> bytes:
        """Return the signature, `R || S`, 64 bytes."""
        return crypto_sign(text.encode(), self._secret_key)[: _SIGNATURE_LENGTH["ed25519"]]


class SignedChat(msgspec.Struct, frozen=True, gc=False):
    """What is stored for one signed response: the text, and both signatures with their addresses.

    Attributes:
        text: what was signed.
        ecdsa: the ECDSA signature, `r || s || v`, 65 bytes.
        signing_address_ecdsa: the EIP-55 address of its key.
        ed25519: the Ed25519 signature, 64 bytes.
        signing_address_ed25519: the hex of its public key.
    """

    text: str
    ecdsa: bytes
    signing_address_ecdsa: str
    ed25519: bytes
    signing_address_ed25519: str

    @property
    def signature_ecdsa(self) -> str:
        """The ECDSA signature as it is told: `0x` and 130 hex digits."""
        return f"0x{self.ecdsa.hex()}"

    @property
    def signature_ed25519(self) -> str:
        """The Ed25519 signature as it is told: 128 hex digits."""
        return self.ed25519.hex()

    def answer(self, algorithm: SigningAlgorithm = "ecdsa") -> dict[str, str]:
        """Return what the signature endpoint answers, ready to be encoded as JSON.

        Args:
            algorithm: whose signature and address stand under the names without an algorithm.

        Raises:
            UsageError: `bad_algorithm` if it is neither of the two.
        """
        algorithm = _known(algorithm)
        signatures = {
            "signature_ecdsa": self.signature_ecdsa,
            "signing_address_ecdsa": self.signing_address_ecdsa,
            "signature_ed25519": self.signature_ed25519,
            "signing_address_ed25519": self.signing_address_ed25519,
        }
        return {
            "text": self.text,
            "signature": signatures[f"signature_{algorithm}"],
            "signing_address": signatures[f"signing_address_{algorithm}"],
            "signing_algo": algorithm,
            **signatures,
        }


class SigningPair(_Unpicklable):
    """The two keys that sign every response of a server.

    Args:
        ecdsa: the secp256k1 signer.
        ed25519: the Ed25519 signer.
    """

    __slots__ = ("ecdsa", "ed25519")

    def __init__(self, ecdsa: EcdsaSigner, ed25519: Ed25519Signer) -> None:
        self.ecdsa: Final = ecdsa
        self.ed25519: Final = ed25519

    def __repr__(self) -> str:
        return f"SigningPair({self.ecdsa!r}, {self.ed25519!r})"

    @classmethod
    def from_secrets(cls, ecdsa: bytes, ed25519: bytes) -> SigningPair:
        """Build the pair from two private keys of 32 bytes each, as the dstack KMS hands them out.

        Raises:
            UsageError: `bad_key` if one of them is not a private key.
        """
        return cls(EcdsaSigner(ecdsa), Ed25519Signer(ed25519))

    @classmethod
    def generate(cls, random: Callable[[int], bytes]) -> SigningPair:
        """Build a pair of fresh keys, for development: no attestation stands behind them after a restart.

        Args:
            random: returns that many unpredictable bytes, as `secrets.token_bytes` does.
        """
        return cls.from_secrets(random(SECRET_LENGTH), random(SECRET_LENGTH))

    def identity(self, algorithm: SigningAlgorithm) -> Identity:
        """Return the public half of the key for `algorithm`.

        Raises:
            UsageError: `bad_algorithm` if it is neither of the two.
        """
        return self.ecdsa.identity if _known(algorithm) == "ecdsa" else self.ed25519.identity

    def sign(self, text: str) -> SignedChat:
        """Sign `text` with both keys."""
        return SignedChat(
            text,
            self.ecdsa.sign(text),
            self.ecdsa.identity.address,
            self.ed25519.sign(text),
            self.ed25519.identity.address,
        )


def recover_ecdsa_address(text: str, signature: str) -> str:
    """Return the EIP-55 address whose key made this `personal_sign` signature of `text`.

    What it does NOT establish: that the address belongs to anyone in particular. Almost any 65 bytes recover to some
    address; only comparing it with an attested one proves anything.

    Args:
        text: the signed text.
        signature: `0x` and 130 hex digits, or the digits alone; v may be 27, 28, 0 or 1.

    Raises:
        MalformedError: `bad_signature` if it is not 65 bytes of hex with such a v.
        VerificationError: `ecdsa_unrecoverable` if no key can have made it, or if s is not in the lower half (EIP-2).
    """
    # Importing eth-keys costs more than the rest of the package together, and signing does not need it.
    from eth_keys.backends.coincurve import CoinCurveECCBackend
    from eth_keys.constants import SECPK1_N
    from eth_keys.datatypes import Signature
    from eth_keys.exceptions import BadSignature
    from eth_utils.exceptions import ValidationError

    raw = _signature_bytes(signature, "ecdsa")
    v = raw[64] - 27 if raw[64] >= 27 else raw[64]
    if v not in (0, 1):
        raise MalformedError("The ECDSA signature's last byte, v, must be 27 or 28.", code="bad_signature")
    if int.from_bytes(raw[32:64], "big") > SECPK1_N // 2:
        raise VerificationError("The ECDSA signature's s is not in the lower half.", code="ecdsa_unrecoverable")
    try:
        parsed = Signature(raw[:64] + bytes([v]), backend=CoinCurveECCBackend())
        public_key = parsed.recover_public_key_from_msg_hash(_personal_message_digest(text))
    except (BadSignature, ValidationError, ValueError) as error:
        raise VerificationError(
            "No key can have made this ECDSA signature of this text.", code="ecdsa_unrecoverable"
        ) from error
    return checksum_address(public_key.to_canonical_address())


def verify_ecdsa(text: str, signature: str, address: str) -> str:
    """Check a `personal_sign` signature of `text` against an address.

    What it does NOT establish: that the address is the attested one.

    Args:
        text: the signed text.
        signature: as for `recover_ecdsa_address`.
        address: the Ethereum address; neither case nor a leading `0x` matters.

    Returns:
        The address in its EIP-55 form.

    Raises:
        MalformedError: `bad_signature` if the signature is not even well-formed.
        VerificationError: `ecdsa_unrecoverable` or `ecdsa_mismatch` if it is not this address's over this text.
    """
    recovered = recover_ecdsa_address(text, signature)
    if recovered.lower().removeprefix("0x") != address.lower().removeprefix("0x"):
        raise VerificationError(
            f"The ECDSA signature was made by {recovered}, not by the address beside it.", code="ecdsa_mismatch"
        )
    return recovered


def verify_ed25519(text: str, signature: str, address: str) -> None:
    """Check an Ed25519 signature of `text`.

    What it does NOT establish: that the address is the attested one.

    Args:
        text: the signed text.
        signature: 128 hex digits; a leading `0x` is accepted.
        address: the public key, 64 hex digits; a leading `0x` is accepted.

    Raises:
        MalformedError: `bad_signature` or `bad_address` if one of them is not hex of that length.
        VerificationError: `ed25519_mismatch` if the signature is not this key's over this text.
    """
    raw = _signature_bytes(signature, "ed25519")
    public_key = unhex(address, 32)
    if public_key is None:
        raise MalformedError("An Ed25519 signing address is 64 hex digits.", code="bad_address")
    try:
        crypto_sign_open(raw + text.encode(), public_key)
    except (BadSignatureError, UnicodeEncodeError) as error:
        raise VerificationError(
            "The Ed25519 signature is not this address's over this text.", code="ed25519_mismatch"
        ) from error


def checksum_address(address: bytes) -> str:
    """Return the EIP-55 form of an Ethereum address of 20 bytes: `0x` and 40 hex digits whose case is a checksum."""
    digits = address.hex()
    checksum = keccak256(digits.encode()).hex()
    return "0x" + "".join(
        digit.upper() if nibble >= "8" else digit for digit, nibble in zip(digits, checksum, strict=False)
    )


def keccak256(data: bytes) -> bytes:
    """Return the Keccak-256 digest that Ethereum uses: SHA-3 before NIST changed its padding."""
    # Importing it costs as much as everything else here together, and programs that only hash need none of it.
    from Crypto.Hash import keccak

    return keccak.new(data=data, digest_bits=256).digest()


def _personal_message_digest(text: str) -> bytes:
    message = text.encode()
    return keccak256(_EIP191_PREFIX + str(len(message)).encode() + message)


def _signature_bytes(signature: str, algorithm: SigningAlgorithm) -> bytes:
    length = _SIGNATURE_LENGTH[algorithm]
    raw = unhex(signature, length)
    if raw is None:
        raise MalformedError(f"An {algorithm} signature is {length} bytes in hex.", code="bad_signature")
    return raw


def _known(algorithm: object) -> SigningAlgorithm:
    """Return the algorithm as plain text, or refuse what is none: it may come out of a query."""
    if isinstance(algorithm, str):
        if algorithm == "ecdsa":
            return "ecdsa"
        if algorithm == "ed25519":
            return "ed25519"
    raise UsageError("A signing algorithm is ecdsa or ed25519.", code="bad_algorithm")


def _check_secret(secret: object, name: str) -> None:
    if not isinstance(secret, bytes):
        raise UsageError(
            f"The {name} key must be bytes, {SECRET_LENGTH} of them; of hex, what `bytes.fromhex` returns.",
            code="bad_key",
        )
    if len(secret) != SECRET_LENGTH:
        raise UsageError(
            f"The {name} key has {len(secret)} bytes; it must have {SECRET_LENGTH}.",
            code="bad_key",
        )
