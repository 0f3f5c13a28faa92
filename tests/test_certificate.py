"""The certificate that reports bind: its public key's hash, also after it has been renewed."""

from __future__ import annotations

import datetime as dt
import os
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from teesign_asgi.certificate import BoundCertificate, CertificateError, fingerprint

pytestmark = pytest.mark.anyio

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

KEYS: list[Key] = [
    ec.generate_private_key(ec.SECP256R1()),
    ed25519.Ed25519PrivateKey.generate(),
    rsa.generate_private_key(65537, 2048),
]


def certificate(key: Key) -> bytes:
    """Return a certificate for this key, PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    begin = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + dt.timedelta(days=1))
    )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM)


def hash_of(key: Key) -> bytes:
    """Return the hash of the key itself, without a certificate around it."""
    info = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return sha256(info).digest()


@pytest.mark.parametrize("key", KEYS, ids=["ec", "ed25519", "rsa"])
def test_the_hash_is_that_of_the_public_key(key: Key) -> None:
    """It stays the same when the certificate is renewed for the same key."""
    assert fingerprint(certificate(key)) == hash_of(key)


def test_of_several_certificates_the_first_counts() -> None:
    """It is the server's own; the others are its chain. Text around them does not matter."""
    chain = b"some text\n" + certificate(KEYS[0]) + b"more text\n" + certificate(KEYS[1])
    assert fingerprint(chain) == hash_of(KEYS[0])


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"no certificate",
        b"-----BEGIN CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nkanarienvogel\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        certificate(KEYS[0]).replace(b"\n", b"!\n", 2),
        certificate(KEYS[0])[:200],
        certificate(KEYS[0])[:200] + certificate(KEYS[1]),
    ],
)
def test_what_is_no_certificate_is_refused(pem: bytes) -> None:
    """With the variable to look at, and nothing of the file."""
    with pytest.raises(CertificateError) as caught:
        fingerprint(pem)
    assert "TLS_CERT_PATH" in str(caught.value)
    assert "kanarienvogel" not in str(caught.value)


async def test_a_renewed_certificate_is_noticed(tmp_path: Path) -> None:
    """Renewed in place or replaced, under a running server."""
    path, new = tmp_path / "cert.pem", tmp_path / "new.pem"
    path.write_bytes(certificate(KEYS[0]))
    bound = BoundCertificate(path)
    assert await bound.spki_sha256() == hash_of(KEYS[0])
    new.write_bytes(certificate(KEYS[1]))
    new.replace(path)
    assert await bound.spki_sha256() == hash_of(KEYS[1])
    path.write_bytes(certificate(KEYS[2]))
    assert await bound.spki_sha256() == hash_of(KEYS[2])


async def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    """A file of the same size, time and inode counts as the same."""
    path = tmp_path / "cert.pem"
    path.write_bytes(certificate(KEYS[0]))
    bound = BoundCertificate(path)
    before = path.stat()
    first = await bound.spki_sha256()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert await bound.spki_sha256() == first


async def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """Until it is back: what was read before is not used without it."""
    path = tmp_path / "cert.pem"
    path.write_bytes(certificate(KEYS[0]))
    bound = BoundCertificate(path)
    await bound.spki_sha256()
    path.unlink()
    with pytest.raises(CertificateError, match="FileNotFoundError"):
        await bound.spki_sha256()
    path.write_bytes(certificate(KEYS[0]))
    assert await bound.spki_sha256() == hash_of(KEYS[0])


async def test_a_file_that_has_become_a_pipe_is_an_error(tmp_path: Path) -> None:
    """Nobody waits for what may be written to it."""
    path = tmp_path / "cert.pem"
    path.write_bytes(certificate(KEYS[0]))
    bound = BoundCertificate(path)
    await bound.spki_sha256()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CertificateError, match="TLS_CERT_PATH is no regular file"):
        await bound.spki_sha256()
