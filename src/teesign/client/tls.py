"""The TLS key at the other end of a connection: read from a response, and compared before a request is sent.

httpcore and httpcore2, which do the I/O of the two libraries, tell a request's `trace` extension of each TLS connection
they have made for it before they send anything over it. One that ends at another key than the attested one is closed
there and then. A connection that was made for another request is not told of: by the response it shows all the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from ..errors import MalformedError
from ..spki import spki_sha256
from .flow import other_tls_key

__all__ = ["KeyCheck", "check_tls_key", "tls_key"]


def tls_key(response: Any) -> bytes | None:
    """Return the SHA-256 of the TLS key (SPKI, DER) that the other side of a response holds.

    Returns:
        32 bytes; None without TLS, or where the certificate cannot be read.
    """
    return _key_of(response.extensions.get("network_stream"))


def check_tls_key(response: Any, expected: bytes) -> None:
    """Check that a response came over a connection that ends at the attested key.

    Raises:
        VerificationError: `tls_key_mismatch`.
    """
    if tls_key(response) != expected:
        raise other_tls_key()


class KeyCheck:
    """Checks each TLS connection that is made for one request.

    Args:
        request: an httpx or httpx2 request; a `trace` extension that it has is called too.
        expected: SHA-256 of the attested key, 32 bytes.
    """

    def __init__(self, request: Any, expected: bytes) -> None:
        # Through a tunnel httpcore 1 names the server as the URL does, whatever the request says.
        self._hosts: Final = (request.url.raw_host.decode("ascii"), request.extensions.get("sni_hostname"))
        self._then: Final[Callable[[str, Mapping[str, Any]], Any] | None] = request.extensions.get("trace")
        self._expected: Final = expected
        self._connecting_to = ""

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Take an event of a synchronous transport.

        Raises:
            VerificationError: `tls_key_mismatch`; the connection is closed.
        """
        stream = self._stranger(event, info)
        if stream is not None:
            stream.close()
            raise other_tls_key()
        if self._then is not None:
            self._then(event, info)

    async def trace_async(self, event: str, info: Mapping[str, Any]) -> None:
        """Take an event of an asynchronous transport, likewise."""
        stream = self._stranger(event, info)
        if stream is not None:
            await stream.aclose()
            raise other_tls_key()
        if self._then is not None:
            then: Awaitable[None] = self._then(event, info)
            await then

    def _stranger(self, event: str, info: Mapping[str, Any]) -> Any:
        """Return the stream of a new TLS connection to the server that ends at another key; None for all else."""
        if event.endswith(".start_tls.started"):
            self._connecting_to = info["server_hostname"]  # the server, or an HTTPS proxy on the way to it
        elif event.endswith(".start_tls.complete") and self._connecting_to in self._hosts:
            stream = info["return_value"]
            return None if _key_of(stream) == self._expected else stream
        return None


def _key_of(stream: Any) -> bytes | None:
    ssl_object = None if stream is None else stream.get_extra_info("ssl_object")
    certificate = None if ssl_object is None else ssl_object.getpeercert(True)  # DER
    if certificate is None:
        return None
    try:
        return spki_sha256(certificate)
    except MalformedError:
        return None
