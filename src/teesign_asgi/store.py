"""Where the proxy keeps signatures: any store, under the model's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from teesign import SignatureCache, SignatureStore, SignedChat

__all__ = ["Store"]


class Store:
    """A signature store whose ids are namespaced by the model, so that processes can share one.

    Args:
        cache: the in-memory cache, or a shared store.
        model: the model's name.
    """

    def __init__(self, cache: SignatureCache | SignatureStore, model: str) -> None:
        self._cache: Final = cache
        # With its length: "a" and "b:c" would be the same namespace and id as "a:b" and "c".
        self._prefix: Final = f"{len(model)}:{model}:"

    async def put(self, ids: Sequence[str], chat: SignedChat) -> None:
        """Keep a signed chat under its ids; it can be found when this returns."""
        keys = [self._prefix + chat_id for chat_id in ids]
        if isinstance(self._cache, SignatureCache):
            self._cache.put(keys, chat)
        else:
            await self._cache.put(keys, chat)

    async def get(self, chat_id: str) -> SignedChat | None:
        """Return what is kept under an id, or None."""
        key = self._prefix + chat_id
        if isinstance(self._cache, SignatureCache):
            return self._cache.get(key)
        return await self._cache.get(key)

    def entries(self) -> int | None:
        """Return how many signed chats are kept, or None where only the store knows."""
        return len(self._cache) if isinstance(self._cache, SignatureCache) else None
