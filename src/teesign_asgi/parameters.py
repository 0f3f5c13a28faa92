"""Query parameters of the proxy's own endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

from teesign import SigningAlgorithm

from .errors import bad_request

__all__ = ["flag_parameter", "nonce_parameter", "signing_algorithm"]

_ALGORITHMS: Final = ("ecdsa", "ed25519")
_HEX_DIGITS: Final = frozenset("0123456789abcdefABCDEF")
_TRUE: Final = ("1", "true", "yes", "on")
_FALSE: Final = ("0", "false", "no", "off")


def signing_algorithm(parameters: Mapping[str, str]) -> SigningAlgorithm:
    """Return the algorithm that `signing_algo` names, ECDSA by default.

    Raises:
        HttpError: 400 if there is no such algorithm.
    """
    algorithm = parameters.get("signing_algo", "ecdsa")
    if algorithm not in _ALGORITHMS:
        raise bad_request("Invalid signing algorithm. Must be 'ed25519' or 'ecdsa'")
    return cast(SigningAlgorithm, algorithm)


def nonce_parameter(parameters: Mapping[str, str]) -> bytes | None:
    """Return the 32 bytes of `nonce`, or None if it is not given.

    Raises:
        HttpError: 400 if it is not hex, or has another length.
    """
    text = parameters.get("nonce")
    if text is None:
        return None
    if not _HEX_DIGITS.issuperset(text) or len(text) % 2:
        raise bad_request("Nonce must be hex-encoded")
    if len(text) != 64:
        raise bad_request("Nonce must be 32 bytes")
    return bytes.fromhex(text)


def flag_parameter(parameters: Mapping[str, str], name: str) -> bool:
    """Return whether a parameter is on; it is off if it is not given.

    Raises:
        HttpError: 400 if it is neither on nor off. No value is neither: whoever names it may well want it on.
    """
    value = parameters.get(name, "no").lower()
    if value not in (*_TRUE, *_FALSE):
        raise bad_request(f"{name} must be true or false")
    return value in _TRUE
