"""The signature cache, against a model that is too simple to be wrong."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from teesign import SignatureCache, SignedChat, UsageError
from teesign.testing import ManualClock

TTL = 10.0
ROOM = 3


def chat(text: str = "text") -> SignedChat:
    """Return something to keep."""
    return SignedChat(text, b"", "", b"", "")


def new_cache(clock: ManualClock | None = None) -> SignatureCache:
    """Return an empty cache for a few entries."""
    return SignatureCache(ttl=TTL, max_entries=ROOM, clock=clock or ManualClock())


def test_an_entry_answers_to_all_its_ids() -> None:
    """The same chat is found under the random id and under the one in the body."""
    cache = new_cache()
    cache.put(["own", "body"], chat())
    assert cache.get("own") == cache.get("body") == chat()
    assert cache.get("other") is None


@pytest.mark.parametrize(("age", "found"), [(0, True), (TTL - 0.001, True), (TTL, False), (TTL * 2, False)])
def test_an_entry_answers_for_one_ttl(age: float, *, found: bool) -> None:
    """From the moment it was kept, until just before its ttl is over; reading does not prolong it."""
    clock = ManualClock(now=1000)
    cache = new_cache(clock)
    cache.put(["own", "body"], chat())
    clock.advance(age / 2)
    cache.get("own")
    clock.advance(age / 2)
    assert (cache.get("own") is not None, cache.get("body") is not None, len(cache)) == (found, found, found)


def test_the_oldest_entry_goes_first_and_takes_its_ids_with_it() -> None:
    """Room is counted in entries, however many ids each has; what was read last stays no longer for it."""
    cache = new_cache()
    for number in range(ROOM):
        cache.put([f"own{number}", f"body{number}", f"other{number}"], chat())
    cache.get("own0")
    cache.put(["new"], chat())
    assert [cache.get(name) for name in ("own0", "body0", "other0")] == [None] * 3
    assert cache.get("body1") is not None
    assert len(cache) == ROOM


def test_the_first_to_use_an_id_keeps_it() -> None:
    """A later response that repeats the id of an earlier one cannot take its place, and is found by its own id."""
    cache = new_cache()
    cache.put(["first", "body"], chat("first"))
    cache.put(["second", "body", "first"], chat("second"))
    assert cache.get("body") == cache.get("first") == chat("first")
    assert cache.get("second") == chat("second")


def test_an_id_is_free_again_when_its_entry_has_expired() -> None:
    """It belongs to the first user for one ttl, not for ever."""
    clock = ManualClock()
    cache = new_cache(clock)
    cache.put(["first", "body"], chat("first"))
    clock.advance(TTL)
    cache.put(["second", "body"], chat("second"))
    assert cache.get("body") == chat("second")


def test_an_id_may_be_given_twice() -> None:
    """A list that repeats an id is that id once, also when the entry expires."""
    clock = ManualClock()
    cache = new_cache(clock)
    cache.put(["own", "body", "body", "own"], chat())
    assert cache.get("own") == cache.get("body") == chat()
    clock.advance(TTL)
    assert (cache.get("own"), cache.get("body")) == (None, None)


@pytest.mark.parametrize("ids", [[], [""], ["", "body"], ["own", "new"], ["body", "new"], "new"], ids=str)
def test_an_entry_needs_an_id_of_its_own(ids: Sequence[str]) -> None:
    """Without one, or with one that another entry answers to, it is refused and nothing is changed."""
    cache = new_cache()
    cache.put(["own", "body"], chat("first"))
    with pytest.raises(UsageError) as caught:
        cache.put(ids, chat("second"))
    assert caught.value.code == "duplicate_id"
    assert cache.get("own") == cache.get("body") == chat("first")
    assert cache.get("new") is None
    assert len(cache) == 1


class Text(str):
    """A text of a framework's own."""

    __slots__ = ()


@pytest.mark.parametrize(
    "ids",
    [Text("new"), b"new", [None], [b"new"], [["new"]], ["new", None], ["new", b"x"], ["new", ["x"]], ["new", 7], None],
    ids=repr,
)
def test_ids_are_several_texts(ids: Any) -> None:
    """None, as where a body has no id, would answer to whoever asks without one; the refused call changes nothing."""
    cache = new_cache()
    with pytest.raises(UsageError) as caught:
        cache.put(ids, chat())
    assert caught.value.code == "duplicate_id"
    assert [cache.get(name) for name in ("new", "n", "x")] == [None] * 3
    assert len(cache) == 0
    cache.put((Text("new"), "x"), chat())
    assert cache.get("new") == cache.get("x") == chat()


@pytest.mark.parametrize(("ttl", "max_entries"), [(0, 1), (-1, 1), (math.nan, 1), (1, 0), (1, -1)])
def test_a_cache_that_can_hold_nothing_is_refused(ttl: float, max_entries: int) -> None:
    """Both bounds are positive."""
    with pytest.raises(UsageError) as caught:
        SignatureCache(ttl=ttl, max_entries=max_entries, clock=ManualClock())
    assert caught.value.code == "bad_cache_bounds"


def test_the_repr_shows_no_entry() -> None:
    """It may be logged: the bounds and how many entries there are."""
    cache = new_cache()
    cache.put(["own"], chat())
    assert repr(cache) == "SignatureCache(ttl=10.0, max_entries=3, entries=1)"


class Entry(NamedTuple):
    """An entry of the model: until when it lives, what it holds, what it answers to."""

    expires: float
    chat: SignedChat
    ids: set[str]


class CacheMachine(RuleBasedStateMachine):
    """Drive the cache and a list of entries through the same calls."""

    ids = st.sampled_from(["", "a", "b", "c", "d", "e", "f"])

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.cache = new_cache(self.clock)
        self.entries: list[Entry] = []
        self.puts = 0

    @rule(ids=st.lists(ids, max_size=4))
    def put(self, ids: list[str]) -> None:
        """Keep another chat, or see it refused."""
        self.puts += 1
        new = chat(str(self.puts))
        taken = {name for entry in self.living() for name in entry.ids}
        try:
            self.cache.put(ids, new)
        except UsageError:
            assert not ids or not ids[0] or ids[0] in taken
        else:
            assert ids[0]
            assert ids[0] not in taken
            self.entries = [*self.living(), Entry(self.clock.now + TTL, new, set(ids) - taken)][-ROOM:]

    @rule(seconds=st.sampled_from([0.5, 3, TTL]))
    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)

    @invariant()
    def every_id_finds_what_the_model_holds(self) -> None:
        """No expired entry is found, none is missing, and there are never too many."""
        for name in ("a", "b", "c", "d", "e", "f", "unknown"):
            expected = next((entry.chat for entry in self.living() if name in entry.ids), None)
            assert self.cache.get(name) == expected
        assert len(self.cache) == len(self.living()) <= ROOM

    def living(self) -> list[Entry]:
        """Return the model's entries that have not expired."""
        return [entry for entry in self.entries if entry.expires > self.clock.now]


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_a_full_cache_takes_no_longer_the_more_entries_it_has_dropped() -> None:
    """Each new entry pushes the oldest out, and finding that one must not be a walk over all that went before it."""
    room, some = 120_000, 6_000
    cache = SignatureCache(ttl=TTL, max_entries=room, clock=ManualClock())
    kept = chat()

    def fill(number: int) -> float:
        begun = time.thread_time()
        for index in range(some):
            cache.put([f"own{number}-{index}", f"body{number}-{index}"], kept)
        return time.thread_time() - begun

    for number in range(room // some):
        fill(number)
    times = [fill(number) for number in range(room // some, room // some + 10)]
    assert max(times) < 8 * min(times)


def test_numbers_of_any_kind_measure_time() -> None:
    """A clock that counts in whole seconds is one too."""
    now = 0
    cache = SignatureCache(ttl=2, max_entries=ROOM, clock=lambda: now)
    cache.put(["first", "body"], chat())
    now = 1
    cache.put(["second"], chat())
    now = 2
    assert (cache.get("first"), cache.get("body"), cache.get("second")) == (None, None, chat())
