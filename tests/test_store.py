"""The proxy's store: any store, under the model's name."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from teesign import SignatureCache, SignedChat
from teesign.testing import ManualClock
from teesign_asgi.store import Store

pytestmark = pytest.mark.anyio

CHAT = SignedChat("text", b"", "", b"", "")


class SharedStore:
    """A store elsewhere, as several processes would share one."""

    def __init__(self) -> None:
        self.chats: dict[str, SignedChat] = {}

    async def put(self, ids: Sequence[str], chat: SignedChat) -> None:
        """Keep a chat."""
        for chat_id in ids:
            self.chats.setdefault(chat_id, chat)

    async def get(self, chat_id: str) -> SignedChat | None:
        """Return a chat."""
        return self.chats.get(chat_id)


def cache() -> SignatureCache:
    """Return the cache that is used by default."""
    return SignatureCache(ttl=10, max_entries=10, clock=ManualClock())


@pytest.mark.parametrize("kind", [cache, SharedStore])
async def test_what_is_put_is_found_under_each_of_its_ids(kind: type[SharedStore]) -> None:
    """In the cache in memory and in any other store."""
    store = Store(kind(), "some/model")
    await store.put(["one", "other"], CHAT)
    assert await store.get("one") == await store.get("other") == CHAT
    assert await store.get("third") is None


@pytest.mark.parametrize("kind", [cache, SharedStore])
async def test_models_do_not_see_each_others_signatures(kind: type[SharedStore]) -> None:
    """Though they share a store, and the ids in bodies may be the same."""
    shared = kind()
    one, other = Store(shared, "one"), Store(shared, "other")
    await one.put(["id"], CHAT)
    assert await other.get("id") is None
    assert await one.get("id") == CHAT


@pytest.mark.parametrize("kind", [cache, SharedStore])
async def test_no_id_leads_into_another_models_namespace(kind: type[SharedStore]) -> None:
    """Wherever a name or an id has the mark that stands between the two, and whatever lengths they claim to have."""
    shared = kind()
    names = ("a", "a:b", "1:a", "3:a:b", ":", "")
    for name in names:
        await Store(shared, name).put(["b:id"], CHAT)
    for name in names:
        for chat_id in ("id", "a:b:id", "1:a:b:id", ":b:id", "3:a:b:b:id", "0::b:id"):
            assert await Store(shared, name).get(chat_id) is None


async def test_the_cache_can_be_counted_and_another_store_cannot() -> None:
    """By signed responses, not by ids."""
    store = Store(cache(), "m")
    await store.put(["one", "other"], CHAT)
    assert store.entries() == 1
    assert Store(SharedStore(), "m").entries() is None
