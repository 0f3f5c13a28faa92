"""What does the I/O under a verifying transport: one that was given, or the library's own, made when they are needed.

Theory of operation. Of the library's own there is one for requests and one for questions, since streams hold their
connections until their signatures have come: of one pool they could take all. And there are two for each TLS key that
is attested, since connections that are older than a renewed key end at the old one, which a pool does not know. Each
library has its own.

Those for a key that no server has any more are given up as soon as nothing is open over them. A stream that was begun
before its server renewed the key is read over the old one, and its signature fetched.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterable
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from ..errors import UsageError
from .flow import Question
from .http import family_name

if TYPE_CHECKING:
    import ssl

__all__ = ["Underlying"]

_SENDS: Final = {"HTTPTransport": "handle_request", "AsyncHTTPTransport": "handle_async_request"}
"""What a transport sends a request with, by the library's own that does so too."""

_BASES: Final = ("BaseTransport", "AsyncBaseTransport")
"""The libraries' classes that do no I/O themselves: what is derived from one of them may serve both libraries."""

_PROXY_SCHEMES: Final = ("http", "https", "socks5", "socks5h")


class Underlying:
    """The transports of one verifying transport. Threads may share it.

    Args:
        given: does all I/O; the library's own transports do when None.
        own: the name of the library's own transport.
        proxy: what those go through: its address, or the library's `Proxy`.

    Raises:
        UsageError: `two_ways` if there is a transport and a proxy; `bad_transport` if the transport is a synchronous
            one where it must be asynchronous, or the other way round; `bad_proxy` if the proxy's address is none, or
            takes a package that is missing.

    Attributes:
        given: the transport that was given.
    """

    def __init__(self, given: Any, own: str, *, proxy: Any) -> None:
        if given is not None and proxy is not None:
            raise UsageError(
                f"A transport of your own goes through a proxy of its own: transport={own}(proxy=…), and no proxy= "
                "beside it.",
                code="two_ways",
            )
        if given is not None and not hasattr(given, _SENDS[own]):
            raise UsageError(
                f"{type(given).__name__} has no {_SENDS[own]}: give one that has, such as transport={own}(…).",
                code="bad_transport",
            )
        self.given: Final = given
        self._own: Final = own
        if proxy is not None:
            _check_proxy(proxy)
        self._proxy: Final = proxy
        self._made: Final[dict[tuple[ModuleType, bytes | None, bool], Any]] = {}
        # What is open over connections that end at a TLS key: requests under way, then their responses.
        self._uses: Final[WeakKeyDictionary[Any, bytes]] = WeakKeyDictionary()
        self._contexts: Final[dict[ModuleType, ssl.SSLContext]] = {}  # the libraries do not trust the same authorities
        self._lock: Final = threading.Lock()

    def of(self, family: ModuleType, spki_sha256: bytes | None, question: Question | None = None) -> Any:
        """Return the transport to use.

        A report that binds the TLS key is asked for over a connection made for it; its transport is not kept, and need
        not be closed, since that connection ends with the answer.

        Args:
            family: httpx or httpx2.
            spki_sha256: the TLS key at which connections have to end; None for any.
            question: what is to be asked; None for a request of the program.

        Raises:
            UsageError: `bad_transport` if the transport that was given is of the other library; `bad_proxy` if the
                library takes the proxy's address for none.
        """
        if self.given is not None:
            _check_family(self.given, family.__name__, self._own)
            return self.given
        with self._lock:
            if family not in self._contexts:
                self._contexts[family] = family.create_ssl_context()  # once, since it reads all their certificates
            make = partial(getattr(family, self._own), verify=self._contexts[family], proxy=self._proxy)
            use = (family, spki_sha256, question is None)
            try:
                if question is not None and question.alone:
                    return make()
                if use not in self._made:
                    self._made[use] = make()
            except family.InvalidURL:
                raise _bad_proxy() from None  # not chained: its words quote the address
            return self._made[use]

    def keep(self, spki_sha256: bytes | None, user: Any, *, instead_of: Any = None) -> None:
        """Keep the transports for a TLS key while a request is under way, and then while its response is open.

        Args:
            spki_sha256: the key; nothing is to be kept for None.
            user: the request or the response.
            instead_of: the response's request: a program may keep both, and the request does not say that it is over.
        """
        if spki_sha256 is None or self.given is not None:
            return
        with self._lock:
            if instead_of is not None:
                self._uses.pop(instead_of, None)
            self._uses[user] = spki_sha256

    def take_outdated(self, tls_keys: Iterable[bytes | None]) -> list[Any]:
        """Give up the transports for other TLS keys than these, unless something is open over them.

        Returns:
            Those transports, to be closed.
        """
        kept = {None, *tls_keys}
        with self._lock:
            if all(key in kept for _, key, _ in self._made):
                return []
            kept.update(key for user, key in self._uses.items() if not getattr(user, "is_closed", False))
            return [self._made.pop(use) for use in list(self._made) if use[1] not in kept]

    def all(self) -> list[Any]:
        """Return every transport that there is, to be closed."""
        return list(self._made.values()) if self.given is None else [self.given]


def _check_family(given: Any, family: str, own: str) -> None:
    """Refuse the other library's transports, which take its own requests only."""
    kinds = [kind for kind in type(given).__mro__ if kind.__name__ not in _BASES]
    other = next((kind for kind in kinds if family_name(kind) not in (None, family)), None)
    if other is not None:
        raise UsageError(
            f"{family_name(other)}.{other.__name__} cannot send what a client of {family} asks: give that "
            f"transport={family}.{own}(…).",
            code="bad_transport",
        )


def _check_proxy(proxy: Any) -> None:
    """Refuse what can be no proxy's address, or the address that a library's object has."""
    address = str(getattr(proxy, "url", proxy))
    try:
        parts = urlsplit(address)
        usable = (
            address.isprintable()
            and parts.scheme in _PROXY_SCHEMES
            and parts.hostname
            and " " not in parts.hostname
            and parts.port != 0  # asking for it checks it
            and parts.path in ("", "/")
            and not (parts.query or parts.fragment)
        )
    except ValueError:
        usable = False
    if not usable:
        raise _bad_proxy()
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise UsageError(
            "For a SOCKS proxy both libraries need a package more: pip install socksio.",
            code="bad_proxy",
        )


def _bad_proxy() -> UsageError:
    return UsageError(
        'The proxy must be an address like "http://proxy.example:3128"; in a user or password write / as %2F, @ as '
        "%40, and so on.",
        code="bad_proxy",
    )
