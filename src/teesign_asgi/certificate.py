"""The TLS certificate that reports can bind, by the SHA-256 of its subject public key info (RFC 5280, 4.1.2.7).

The file is read again when it has changed, because certificates are renewed under running servers.
"""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path
from typing import Final

import anyio.to_thread

from teesign import MalformedError
from teesign.spki import spki_sha256

from .errors import ProxyError

__all__ = ["BoundCertificate", "CertificateError", "fingerprint"]

_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"
_END: Final = b"-----END CERTIFICATE-----"
_MAX_BYTES: Final = 2**20


class CertificateError(ProxyError):
    """The certificate file cannot be read, or holds no certificate.

    Args:
        reason: the rest of a sentence that begins with the file; quotes nothing of it.

    Attributes:
        reason: the same.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"The file at TLS_CERT_PATH {reason}")
        self.reason: Final = reason


class BoundCertificate:
    """The certificate in a PEM file; of several the first, which is the server's own.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._known: tuple[tuple[int, int, int], bytes] | None = None

    async def spki_sha256(self) -> bytes:
        """Return the hash of the current certificate's public key, 32 bytes.

        Raises:
            CertificateError: if there is none in the file.
        """
        return await anyio.to_thread.run_sync(self.read)

    def read(self) -> bytes:
        """Return the same hash, while whoever asks waits for the disk; never for what may come out of a pipe.

        Raises:
            CertificateError: if there is none in the file, if it is no regular file, or larger than 1 MiB.
            ValueError: if the path cannot be one.
        """
        try:
            with open(self._path, "rb", opener=_open_at_once) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise CertificateError("is no regular file")
                if status.st_size > _MAX_BYTES:
                    raise CertificateError("is larger than 1 MiB")
                version = (status.st_mtime_ns, status.st_size, status.st_ino)
                if self._known is None or self._known[0] != version:
                    self._known = (version, fingerprint(file.read(_MAX_BYTES)))
        except OSError as error:
            raise CertificateError(f"cannot be read ({type(error).__name__})") from error
        return self._known[1]


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # to open a pipe would wait for whoever writes


def fingerprint(pem: bytes) -> bytes:
    """Return SHA-256 of the subject public key info of the first certificate in a PEM text, 32 bytes.

    What it does NOT establish: that the certificate is valid, or that anything serves it.

    Raises:
        CertificateError: if there is no readable one.
    """
    text, end, _ = pem.partition(_BEGIN)[2].partition(_END)
    try:
        if not end:
            raise ValueError("It has no end.")
        return spki_sha256(base64.b64decode(b"".join(text.split()), validate=True))
    except (ValueError, MalformedError) as error:
        raise CertificateError("holds no readable PEM certificate") from error
