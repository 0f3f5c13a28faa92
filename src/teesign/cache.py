"""Signed chats by id, for a limited time and in limited number.

Theory of operation. Every entry lives equally long, so entries expire in the order in which they came: the dictionary
that holds them, which keeps insertion order, is also the queue of what expires next. Each call drops what has expired
from its front, so each entry is visited once when it leaves, and no call scans. The cache never starts a timer and
never reads a clock of its own.

An entry answers to several ids. The first is its own and must be fresh and random; the others come from response
bodies, where clients of some backends can choose them. So the first entry to use such an id keeps it until it expires:
a later response that repeats the id of an earlier one cannot take its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from .errors import UsageError
from .signing import SignedChat

__all__ = ["SignatureCache", "SignatureStore"]


class SignatureStore(Protocol):
    """Where a gateway keeps its signed chats: two coroutines, so that several processes can share one store."""

    async def put(self, ids: Sequence[str], chat: SignedChat) -> None:
        """Keep `chat` under `ids`. The first is unique; any other is left to whoever used it first.

        Must not return before `get` can find it, and must raise where it cannot be kept.
        """

    async def get(self, chat_id: str) -> SignedChat | None:
        """Return what is kept under `chat_id`, or None if nothing is, or not any more."""


class SignatureCache:
    """An in-memory map from id to `SignedChat`, bounded in time and in number. Not thread-safe.

    Args:
        ttl: how long an entry answers, in the clock's unit (seconds); positive.
        max_entries: how many entries are kept, however many ids each has; the oldest go first.
        clock: returns the time; must never go backwards (`time.monotonic`).

    Raises:
        UsageError: `bad_cache_bounds` if `ttl` or `max_entries` is not positive.
    """

    __slots__ = ("_aliases", "_clock", "_entries", "_max_entries", "_ttl")

    def __init__(self, *, ttl: float, max_entries: int, clock: Callable[[], float]) -> None:
        if ttl <= 0 or max_entries < 1:
            raise UsageError("A cache needs a positive ttl and room for one entry.", code="bad_cache_bounds")
        self._ttl: Final = ttl
        self._max_entries: Final = max_entries
        self._clock: Final = clock
        self._entries: dict[str, tuple[float, SignedChat, tuple[str, ...]]] = {}
        self._aliases: dict[str, str] = {}

    def __len__(self) -> int:
        """Count the entries, without those that have expired."""
        self._expire(self._clock())
        return len(self._entries)

    def __repr__(self) -> str:
        return f"SignatureCache(ttl={self._ttl}, max_entries={self._max_entries}, entries={len(self._entries)})"

    def put(self, ids: Sequence[str], chat: SignedChat) -> None:
        """Keep `chat` for one ttl from now.

        Args:
            ids: what it answers to. The first is its own and must be new; each of the others is taken unless a living
                entry has it.
            chat: what to keep.

        Raises:
            UsageError: `duplicate_id` if there is no id, or the first one is in use. Nothing is changed then.
        """
        now = self._clock()
        self._expire(now)
        own, *others = dict.fromkeys(ids) or [""]
        if not own or own in self._entries or own in self._aliases:
            raise UsageError("An entry needs an id of its own that no other entry has.", code="duplicate_id")
        aliases = tuple(other for other in others if other not in self._aliases and other not in self._entries)
        self._entries[own] = (now + self._ttl, chat, aliases)
        for alias in aliases:
            self._aliases[alias] = own
        if len(self._entries) > self._max_entries:
            self._drop(next(iter(self._entries)))

    def get(self, chat_id: str) -> SignedChat | None:
        """Return the chat that answers to `chat_id`, or None if there is none or its time is over."""
        self._expire(self._clock())
        entry = self._entries.get(self._aliases.get(chat_id, chat_id))
        return None if entry is None else entry[1]

    def _expire(self, now: float) -> None:
        while self._entries:
            oldest = next(iter(self._entries))
            if self._entries[oldest][0] > now:
                return
            self._drop(oldest)

    def _drop(self, own: str) -> None:
        for alias in self._entries.pop(own)[2]:
            del self._aliases[alias]
