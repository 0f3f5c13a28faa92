"""The hash of a certificate's public key: of the bytes that stand in it, whatever kind of key they are."""

from __future__ import annotations

import contextlib
import re
import shutil
import ssl
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
from authorities import Authority, der
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from teesign import MalformedError
from teesign.spki import spki_sha256

SEQUENCE, INTEGER, BIT_STRING = 0x30, 0x02, 0x03
OF_A_SERVER = Authority("server", ca=False)

UNUSUAL_KEYS = {
    "a compressed point": ["ecparam", "-genkey", "-name", "prime256v1", "-conv_form", "compressed"],
    "explicit parameters": ["ecparam", "-genkey", "-name", "prime256v1", "-param_enc", "explicit"],
    "a curve that few know": ["ecparam", "-genkey", "-name", "secp112r1"],
    "RSA-PSS": ["genpkey", "-algorithm", "rsa-pss", "-pkeyopt", "rsa_pss_keygen_md:sha256"],
    "RSA": ["genpkey", "-algorithm", "rsa"],
    "Ed25519": ["genpkey", "-algorithm", "ed25519"],
}


def openssl(*arguments: str) -> str:
    """Return what openssl prints."""
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True).stdout


def fields_of(certificate: Path) -> list[bytes]:
    """Return the fields of a certificate's signed part, where openssl finds them."""
    encoded = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    signed = openssl("asn1parse", "-in", str(certificate)).split(":d=1 ")[1]
    places = re.findall(r"^ *(\d+):d=2 +hl=(\d+) +l= *(\d+) ", signed, re.MULTILINE)
    return [encoded[int(start) : int(start) + int(head) + int(length)] for start, head, length in places]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
@pytest.mark.parametrize("key", UNUSUAL_KEYS.values(), ids=list(UNUSUAL_KEYS))
def test_the_bytes_of_the_certificate_count(tmp_path: Path, key: list[str]) -> None:
    """Not those that a library would write for the same key."""
    file, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    openssl(*key, "-out", str(file))
    if key[-1] == "compressed":
        openssl("ec", "-in", str(file), "-conv_form", "compressed", "-out", str(file))
    openssl("req", "-x509", "-new", "-key", str(file), "-subj", "/CN=test", "-days", "1", "-out", str(certificate))
    version, _serial, _algorithm, _issuer, _validity, _subject, info, *_ = fields_of(certificate)
    assert version == bytes.fromhex("a003020102")
    assert spki_sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())) == sha256(info).digest()


def test_it_is_what_cryptography_says_of_a_usual_key() -> None:
    """As of the certificate of nearly every server."""
    info = OF_A_SERVER.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert spki_sha256(OF_A_SERVER.der) == sha256(info).digest()


def tbs(info: bytes, *, version: bytes = b"", extra: bytes = b"", text: bytes = b"") -> bytes:
    """Return a certificate's signed part: this key among fields that hold `text`."""
    name = der(SEQUENCE, der(0x0C, text))
    return der(SEQUENCE, version + der(INTEGER, b"\1") + name * 4 + info + extra)


def certificate(signed: bytes) -> bytes:
    """Return a certificate with this signed part and no good signature."""
    return der(SEQUENCE, signed + der(SEQUENCE, b"") + der(BIT_STRING, b"\0"))


INFO = der(SEQUENCE, der(SEQUENCE, b"algorithm") + der(BIT_STRING, b"\0key"))


@settings(max_examples=examples(200))
@given(
    algorithm=st.binary(max_size=300),
    key=st.binary(max_size=300),
    text=st.binary(max_size=300),
    version=st.sampled_from([b"", der(0xA0, der(INTEGER, b"\2"))]),
    extra=st.sampled_from([b"", der(0x81, b"\0i"), der(0x82, b"\0s") + der(0xA3, INFO), der(0xA3, b"")]),
)
def test_whatever_stands_where_the_key_stands_is_hashed(
    algorithm: bytes, key: bytes, text: bytes, version: bytes, extra: bytes
) -> None:
    """With and without the optional fields around it, and of any length."""
    info = der(SEQUENCE, der(SEQUENCE, algorithm) + der(BIT_STRING, key))
    encoded = certificate(tbs(info, version=version, extra=extra, text=text))
    assert spki_sha256(encoded) == sha256(info).digest()


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\x30",
        certificate(tbs(INFO))[:-1],
        certificate(tbs(INFO)) + b"\0",
        der(SEQUENCE, tbs(INFO)),
        der(SEQUENCE, tbs(INFO) + der(SEQUENCE, b"") + der(INTEGER, b"\0")),
        certificate(INFO),
        certificate(tbs(b"")),
        certificate(tbs(der(BIT_STRING, b"\0key"))),
        certificate(tbs(der(SEQUENCE, der(SEQUENCE, b"")))),
        certificate(tbs(der(SEQUENCE, der(SEQUENCE, b"") + der(BIT_STRING, b"\0") + der(BIT_STRING, b"\0")))),
        certificate(tbs(INFO, extra=INFO)),
        certificate(tbs(INFO, extra=der(0xA3, b"") + der(0x81, b""))),
        certificate(tbs(INFO, extra=der(0xA3, b"") * 2)),
        certificate(tbs(INFO, version=der(0xA1, b""))),
        b"\x30\x80" + tbs(INFO) + der(SEQUENCE, b"") + der(BIT_STRING, b"\0") + b"\0\0",
        certificate(tbs(b"\x30\x81\x04" + der(SEQUENCE, b"") + der(BIT_STRING, b""))),
        certificate(tbs(b"\x30\x82\0\x04" + der(SEQUENCE, b"") + der(BIT_STRING, b""))),
        certificate(tbs(INFO, extra=b"\xbf\x83\0")),
        b"\x30\xff" + bytes(127),
    ],
)
def test_what_has_not_the_layout_of_a_certificate_is_refused(encoded: bytes) -> None:
    """What is cut off, has more behind it, or other fields; and lengths that can be written in more than one way."""
    with pytest.raises(MalformedError) as caught:
        spki_sha256(encoded)
    assert caught.value.code == "bad_certificate"


@settings(max_examples=examples(300))
@given(position=st.integers(0, len(OF_A_SERVER.der) - 1), byte=st.integers(0, 255), end=st.integers(0, 2000))
def test_damaged_certificates_raise_nothing_else(position: int, byte: int, end: int) -> None:
    """For any byte of a certificate that is another one, and any end that is missing."""
    damaged = bytearray(OF_A_SERVER.der)
    damaged[position] = byte
    with contextlib.suppress(MalformedError):
        assert len(spki_sha256(bytes(damaged[:end]))) == 32
