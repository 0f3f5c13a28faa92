"""Test-only certificate authorities in the places of Intel and NVIDIA: quotes and GPU reports that verify.

Nothing here is secret or real: whoever trusts these roots trusts the tests.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from teesign.attestation import GpuEvidence, Quote
from teesign.quote import BODY_FIELDS, parse_quote
from teesign.testing import fixed_quote
from teesign.verify.report import TrustedRoots

START = datetime(2030, 1, 1, tzinfo=UTC)
NOW = (START + timedelta(days=1)).timestamp()
END = START + timedelta(days=30)
FMSPC = "00906ED50000"
SEPT_VE_DISABLE = 1 << 28
_SGX = "1.2.840.113741.1.13.1"


def der(tag: int, content: bytes) -> bytes:
    """Return a DER value of less than 64 KiB."""
    length = len(content)
    size = 0 if length < 128 else 1 if length < 256 else 2
    head = bytes([128 + size]) + length.to_bytes(size, "big") if size else bytes([length])
    return bytes([tag]) + head + content


def oid(dotted: str) -> bytes:
    """Return an object identifier in DER."""
    first, second, *rest = (int(part) for part in dotted.split("."))
    content = bytes([first * 40 + second])
    for part in rest:
        groups = [part & 127]
        while part := part >> 7:
            groups.insert(0, part & 127 | 128)
        content += bytes(groups)
    return der(6, content)


def pair(dotted: str, value: bytes) -> bytes:
    """Return one entry of Intel's certificate extension."""
    return der(0x30, oid(dotted) + value)


def sgx_extension() -> bytes:
    """Return the extension by which a PCK certificate names its machine (Intel, PCK Certificate Profile)."""
    components = b"".join(pair(f"{_SGX}.2.{n}", der(2, b"\1")) for n in range(1, 17))
    tcb = components + pair(f"{_SGX}.2.17", der(2, b"\1")) + pair(f"{_SGX}.2.18", der(4, b"\1" * 16))
    return der(
        0x30,
        pair(f"{_SGX}.1", der(4, bytes(16)))
        + pair(f"{_SGX}.2", der(0x30, tcb))
        + pair(f"{_SGX}.3", der(4, bytes(2)))
        + pair(f"{_SGX}.4", der(4, bytes.fromhex(FMSPC)))
        + pair(f"{_SGX}.5", der(10, b"\0")),
    )


class Authority:
    """A key with a certificate, that can issue others."""

    def __init__(
        self,
        name: str,
        issuer: Authority | None = None,
        *,
        ca: bool = True,
        extra: Sequence[tuple[str, bytes]] = (),
        curve: ec.EllipticCurve | None = None,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> None:
        self.key = ec.generate_private_key(curve or ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._issuer = issuer or self
        self._hash = hashes.SHA384() if isinstance(curve, ec.SECP384R1) else hashes.SHA256()
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self._issuer.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before or START - timedelta(days=365))
            .not_valid_after(not_after or START + timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(key_usage(ca=ca), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._issuer.key.public_key()), critical=False
            )
        )
        for dotted, value in extra:
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(dotted), value), critical=False
            )
        self.certificate = builder.sign(self._issuer.key, self._hash)

    @property
    def pem(self) -> bytes:
        """The certificates up to the root, this one first."""
        own = self.certificate.public_bytes(Encoding.PEM)
        return own if self._issuer is self else own + self._issuer.pem

    @property
    def der(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.DER)

    def sign(self, data: bytes) -> bytes:
        """Return r and s, in as many bytes each as the curve has."""
        return raw_signature(self.key, data, self._hash)

    def revocations(self, *revoked: Authority) -> bytes:
        """Return a revocation list, with the certificates of these."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(START)
            .next_update(END)
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        for other in revoked:
            serial = x509.RevokedCertificateBuilder().serial_number(other.certificate.serial_number)
            builder = builder.add_revoked_certificate(serial.revocation_date(START).build())
        return builder.sign(self.key, self._hash).public_bytes(Encoding.DER)


def key_usage(*, ca: bool) -> x509.KeyUsage:
    """Return what an authority's key, or another's, is for."""
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def raw_signature(key: ec.EllipticCurvePrivateKey, data: bytes, algorithm: hashes.HashAlgorithm) -> bytes:
    """Return r and s, big-endian."""
    length = key.curve.key_size // 8
    return b"".join(part.to_bytes(length, "big") for part in decode_dss_signature(key.sign(data, ec.ECDSA(algorithm))))


def sized(length: int, data: bytes) -> bytes:
    """Return data behind its length, little-endian."""
    return len(data).to_bytes(length, "little") + data


class Intel:
    """An authority like Intel's: it makes quotes, and the collateral that they verify with."""

    def __init__(
        self, status: str = "UpToDate", *, signer_from: datetime | None = None, signer_until: datetime | None = None
    ) -> None:
        self.root = Authority("Intel SGX Root CA")
        self._platform = Authority("Intel SGX PCK Platform CA", self.root)
        self._pck = Authority("Intel SGX PCK Certificate", self._platform, ca=False, extra=[(_SGX, sgx_extension())])
        self._tcb = Authority(
            "Intel SGX TCB Signing", self.root, ca=False, not_before=signer_from, not_after=signer_until
        )
        self._attestation = ec.generate_private_key(ec.SECP256R1())
        self._status = status

    def quote(self, report_data: bytes, *, attributes: int = SEPT_VE_DISABLE, module: bytes = b"\0\0") -> Quote:
        """Return a quote of version 4 over these 64 bytes, with the event log of the simulated one.

        Args:
            report_data: what it is over.
            attributes: of the machine.
            module: security version and version of the TDX module; identities in collateral are for versions from 1 on.
        """
        template = fixed_quote(report_data)
        body = bytearray(parse_quote(template.quote).signed_part[48:])
        start, length = BODY_FIELDS["td_attributes"]
        body[start : start + length] = attributes.to_bytes(length, "little")
        start, _ = BODY_FIELDS["tee_tcb_svn"]
        body[start : start + len(module)] = module
        header = bytearray(template.quote[:48])
        header[12:28] = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
        signed = bytes(header + body)
        public = self._attestation.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        enclave = bytearray(384)
        enclave[0:16] = b"\1" * 16
        enclave[320:352] = sha256(public + bytes(32)).digest()
        certification = (
            bytes(enclave)
            + raw_signature(self._pck.key, bytes(enclave), hashes.SHA256())
            + sized(2, bytes(32))
            + b"\5\0"
            + sized(4, self._pck.pem)
        )
        signature = raw_signature(self._attestation, signed, hashes.SHA256()) + public
        data = signed + sized(4, signature + b"\6\0" + sized(4, certification))
        return Quote(data, template.event_log)

    def collateral(self) -> dict[str, Any]:
        """Return what this authority has published about its only machine, valid for thirty days from START."""
        times = {"issueDate": f"{START:%Y-%m-%dT%H:%M:%SZ}", "nextUpdate": f"{END:%Y-%m-%dT%H:%M:%SZ}"}
        level = {"tcbDate": times["issueDate"], "tcbStatus": self._status}
        components = [{"svn": 0}] * 16
        tcb_info = json.dumps(
            {"id": "TDX", "version": 3, **times, "fmspc": FMSPC, "pceId": "0000", "tcbType": 0}
            | {
                "tcbEvaluationDataNumber": 1,
                "tdxModule": {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8},
                "tdxModuleIdentities": [],
                "tcbLevels": [
                    {"tcb": {"sgxtcbcomponents": components, "pcesvn": 0, "tdxtcbcomponents": components}, **level}
                ],
            }
        )
        qe_identity = json.dumps(
            {"id": "TD_QE", "version": 2, **times, "tcbEvaluationDataNumber": 1, "miscselect": "00" * 4}
            | {"miscselectMask": "FF" * 4, "attributes": "00" * 16, "attributesMask": "00" * 16, "mrsigner": "00" * 32}
            | {"isvprodid": 0, "tcbLevels": [{"tcb": {"isvsvn": 0}, **level, "tcbStatus": "UpToDate"}]}
        )
        return {
            "pck_crl_issuer_chain": self._platform.pem.decode(),
            "root_ca_crl": self.root.revocations().hex(),
            "pck_crl": self._platform.revocations().hex(),
            "tcb_info_issuer_chain": self._tcb.pem.decode(),
            "tcb_info": tcb_info,
            "tcb_info_signature": self._tcb.sign(tcb_info.encode()).hex(),
            "qe_identity_issuer_chain": self._tcb.pem.decode(),
            "qe_identity": qe_identity,
            "qe_identity_signature": self._tcb.sign(qe_identity.encode()).hex(),
        }

    def collateral_with(self, part: str, **changes: Any) -> dict[str, Any]:
        """Return the same collateral, but for other members of `tcb_info` or `qe_identity`, also signed."""
        collateral = self.collateral()
        text = json.dumps(json.loads(collateral[part]) | changes)
        return collateral | {part: text, f"{part}_signature": self._tcb.sign(text.encode()).hex()}

    def collateral_revoking(self, whose: str) -> dict[str, Any]:
        """Return the same collateral, but for a certificate that is revoked: the machine's, or that of another."""
        lists = {
            "machine": {"pck_crl": self._platform.revocations(self._pck)},
            "platform": {"root_ca_crl": self.root.revocations(self._platform)},
            "signer": {"root_ca_crl": self.root.revocations(self._tcb)},
            "root": {"root_ca_crl": self.root.revocations(self.root)},
        }
        return self.collateral() | {name: content.hex() for name, content in lists[whose].items()}


class Nvidia:
    """An authority like NVIDIA's: it makes GPUs, which report over any nonce."""

    def __init__(self) -> None:
        self.root = Authority("NVIDIA Device Identity CA", curve=ec.SECP384R1())
        self.model = Authority("NVIDIA GH100 Identity", self.root, curve=ec.SECP384R1())
        self.gpu = Authority("GH100", self.model, ca=False, curve=ec.SECP384R1())

    @property
    def root_sha256(self) -> str:
        """What identifies the root."""
        return sha256(self.root.der).hexdigest()

    def item(self, nonce: bytes, signer: Authority | None = None, chain: bytes | None = None) -> dict[str, str]:
        """Return the evidence of one GPU."""
        signer = signer or self.gpu
        request = b"\x11\xe0\1\xff" + nonce + b"\0"
        answer = b"\x11\x60\0\0\1" + b"\3\0\0" + b"abc" + bytes(32) + sized(2, b"opaque")
        report = request + answer + signer.sign(request + answer)
        return {
            "certificate": base64.b64encode(chain or signer.pem).decode(),
            "evidence": base64.b64encode(report).decode(),
            "arch": "HOPPER",
        }

    def evidence(self, nonce: bytes) -> GpuEvidence:
        """Return the evidence of the only GPU."""
        return GpuEvidence([self.item(nonce)])


INTEL, NVIDIA = Intel(), Nvidia()
ROOTS = TrustedRoots(INTEL.root.der, NVIDIA.root_sha256)
