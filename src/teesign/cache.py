"""Signed chats by id, for a limited time and in limited number.

Theory of operation. One dictionary has every id of every entry. Every entry lives equally long, so entries expire in
the order in which they came: a queue has, for each of them, the time at which it is over and then its ids. Each call
looks whether the time of the first is over, and drops what has expired from the queue's front; so each entry is visited
once when it leaves, and no call scans. After a lull, one call may drop many: a second for a million. (The dictionary
keeps that order too, but finding its first key is a walk over all that were removed before.) The cache never starts a
timer and never reads a clock of its own.

There may be a million entries, which is why the queue is a flat one: an object for each would take more room than what
is in it.

An entry answers to several ids. The first is its own and must be fresh and random; the others come from response
bodies, where clients of some backends can choose them. So the first entry to use such an id keeps it until it expires:
a later response that repeats the id of an earlier one cannot take its place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import inf
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
    """An in-memory map from id to `SignedChat`, bounded in time and in number. Not thread-safe: in threads, use a lock.

    Args:
        ttl: how long an entry answers, in the clock's unit (seconds); positive.
        max_entries: how many entries are kept, however many ids each has; the oldest go first.
        clock: returns the time; must never go backwards (`time.monotonic`).

    Raises:
        UsageError: `bad_cache_bounds` if `ttl` or `max_entries` is not positive.
    """

    __slots__ = ("_chats", "_clock", "_entries", "_first_over", "_max_entries", "_queue", "_ttl")

    def __init__(self, *, ttl: float, max_entries: int, clock: Callable[[], float]) -> None:
        if not ttl > 0 or max_entries < 1:
            raise UsageError("A cache needs a positive ttl and room for one entry.", code="bad_cache_bounds")
        self._ttl: Final = ttl
        self._max_entries: Final = max_entries
        self._clock: Final = clock
        self._chats: dict[str, SignedChat] = {}
        self._queue: deque[float | str] = deque()  # of each entry, when it is over, and its ids
        self._entries = 0
        self._first_over = inf

    def __len__(self) -> int:
        """Count the entries, without those that have expired."""
        self._expire(self._clock())
        return self._entries

    def __repr__(self) -> str:
        return f"SignatureCache(ttl={self._ttl}, max_entries={self._max_entries}, entries={self._entries})"

    def put(self, ids: Sequence[str], chat: SignedChat) -> None:
        """Keep `chat` for one ttl from now.

        Args:
            ids: what it answers to. The first is its own and must be new; each of the others is taken unless a living
                entry has it.
            chat: what to keep.

        Raises:
            UsageError: `duplicate_id` if there is no id, the first one is in use, one of them is no text, or `ids` is a
                text instead of several. Nothing is changed then.
        """
        now = self._clock()
        if now >= self._first_over:
            self._expire(now)
        chats, queue = self._chats, self._queue
        if not ids or isinstance(ids, str):
            raise UsageError("An entry needs a list or tuple of ids.", code="duplicate_id")
        try:
            "".join(ids)  # takes text only, and less time than to look at each of them
        except TypeError:
            raise UsageError("An id is text; leave out what is none.", code="duplicate_id") from None
        if not ids[0] or ids[0] in chats:
            raise UsageError("An entry needs an id of its own that no other entry has.", code="duplicate_id")
        over = now + self._ttl
        if not queue:
            self._first_over = over
        queue.append(over)
        for chat_id in ids:
            if chat_id not in chats:
                chats[chat_id] = chat
                queue.append(chat_id)
        self._entries += 1
        if self._entries > self._max_entries:
            self._drop_first()

    def get(self, chat_id: str) -> SignedChat | None:
        """Return the chat that answers to `chat_id`, or None if there is none or its time is over."""
        now = self._clock()
        if now >= self._first_over:
            self._expire(now)
        return self._chats.get(chat_id)

    def _expire(self, now: float) -> None:
        while now >= self._first_over:
            self._drop_first()

    def _drop_first(self) -> None:
        queue = self._queue
        queue.popleft()
        self._entries -= 1
        while queue:
            first = queue[0]
            if not isinstance(first, str):
                self._first_over = first
                return
            del self._chats[first]
            queue.popleft()
        self._first_over = inf
