"""Who may come in, and how often: the bearer check and the rate limit.

Theory of operation of the limiter: each client has a bucket of tokens that fills at a steady rate up to the burst size,
and each request takes one. A bucket is two numbers, brought up to date when it is used. A full bucket is the same as
none, so clients that have been idle long enough need no memory; what is kept is bounded, and the clients that have been
idle longest are forgotten first.
"""

from __future__ import annotations

import hmac
import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Final

__all__ = ["BearerCheck", "RateLimiter"]

MAX_CLIENTS: Final = 65_536
"""How many clients' buckets are kept at once."""


class BearerCheck:
    """Compare bearer tokens, taking the same time for any wrong one.

    Args:
        tokens: those that are good.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests: Final = tuple(sha256(token.encode()).digest() for token in tokens)

    def __repr__(self) -> str:
        return f"BearerCheck({len(self._digests)} tokens)"

    def accepts(self, authorization: bytes | None) -> bool:
        """Tell whether an Authorization header's value holds a good bearer token (RFC 6750; the scheme in any case)."""
        scheme, _, token = (authorization or b"").partition(b" ")
        digest = sha256(token.strip()).digest()
        # Every digest is compared, so that the time does not tell which one was close; and digests instead of tokens,
        # so that it does not tell the length.
        matches = [hmac.compare_digest(digest, good) for good in self._digests]
        return scheme.lower() == b"bearer" and any(matches)


class RateLimiter:
    """A token bucket for each client address.

    Args:
        per_second: how many requests a second a client may send on average.
        burst: how many at once.
        clock: returns seconds that never go backwards.
        max_clients: how many clients are remembered.
    """

    def __init__(
        self, *, per_second: float, burst: int, clock: Callable[[], float], max_clients: int = MAX_CLIENTS
    ) -> None:
        self._per_second: Final = per_second
        self._burst: Final = burst
        self._clock: Final = clock
        self._max_clients: Final = max_clients
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, client_ip: str) -> int:
        """Count a request.

        Args:
            client_ip: the address; IPv6 addresses of one /64 count as one client, since one client has them all.

        Returns:
            0 if the request may pass, else after how many whole seconds, at least 1, the next one may.
        """
        now = self._clock()
        client = _client_key(client_ip)
        tokens, since = self._buckets.pop(client, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - since) * self._per_second)
        passes = tokens >= 1
        if passes:
            tokens -= 1
        self._buckets[client] = (tokens, now)
        if len(self._buckets) > self._max_clients:
            self._buckets.popitem(last=False)
        return 0 if passes else max(1, math.ceil((1 - tokens) / self._per_second))


def _client_key(client_ip: str) -> str:
    if ":" not in client_ip:
        return client_ip
    try:
        address = ipaddress.IPv6Address(client_ip)
    except ValueError:
        return client_ip
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
