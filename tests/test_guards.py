"""The bearer check and the rate limiter, the latter against a model that is too simple to be wrong."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from teesign.testing import ManualClock
from teesign_asgi.guards import BearerCheck, RateLimiter


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        (b"Bearer first", True),
        (b"Bearer second", True),
        (b"bearer first", True),
        (b"BEARER first", True),
        (b"Bearer  first ", True),
        (None, False),
        (b"", False),
        (b"first", False),
        (b"Bearer", False),
        (b"Bearer ", False),
        (b"Bearer firs", False),
        (b"Bearer first,second", False),
        (b"Bearer First", False),
        (b"Bearer first second", False),
        (b"Basic first", False),
        (b"Bearer\tfirst", False),
        (b"Bearerfirst", False),
        (b"Bearer \xff\xfe", False),
        (b" Bearer first", False),
    ],
)
def test_only_good_bearer_tokens_are_accepted(header: bytes | None, *, accepted: bool) -> None:
    """Any of the tokens, exactly; the scheme in any case."""
    assert BearerCheck(("first", "second")).accepts(header) is accepted


@given(st.binary(max_size=40))
def test_no_other_token_is_accepted(token: bytes) -> None:
    """For any bytes: only the token itself passes."""
    assert BearerCheck(("secret",)).accepts(b"Bearer " + token) is (token.strip() == b"secret")


def test_nothing_is_accepted_where_there_are_no_tokens() -> None:
    """An empty list of tokens opens nothing."""
    assert not BearerCheck(()).accepts(b"Bearer ")


def test_tokens_are_not_shown_or_kept() -> None:
    """Only their digests are."""
    check = BearerCheck(("kanarienvogel",))
    assert repr(check) == "BearerCheck(1 tokens)"
    assert "kanarienvogel" not in repr(vars(check))


def limiter(clock: ManualClock, *, per_second: float = 1, burst: int = 2, max_clients: int = 100) -> RateLimiter:
    """Return a limiter on this clock."""
    return RateLimiter(per_second=per_second, burst=burst, clock=clock, max_clients=max_clients)


def test_a_burst_passes_and_the_next_request_waits() -> None:
    """Then one request passes for every token that has come back."""
    clock = ManualClock()
    limit = limiter(clock)
    assert [limit.take("a") for _ in range(4)] == [0, 0, 1, 1]
    clock.advance(1)
    assert [limit.take("a") for _ in range(2)] == [0, 1]


@pytest.mark.parametrize(
    ("per_second", "waited", "retry_after"), [(100, 0, 1), (1, 0, 1), (0.5, 0, 2), (0.5, 1.5, 1), (0.01, 0, 100)]
)
def test_retry_after_is_when_the_next_token_is_there(per_second: float, waited: float, retry_after: int) -> None:
    """In whole seconds, rounded up, and never 0."""
    clock = ManualClock()
    limit = limiter(clock, per_second=per_second, burst=1)
    limit.take("a")
    clock.advance(waited)
    assert limit.take("a") == retry_after
    clock.advance(retry_after)
    assert limit.take("a") == 0


def test_an_idle_client_does_not_save_up_more_than_a_burst() -> None:
    """However long it was away."""
    clock = ManualClock()
    limit = limiter(clock)
    limit.take("a")
    clock.advance(1e6)
    assert [limit.take("a") for _ in range(3)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:0DB8:0:0:ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("", "10.0.0.1", False),
        ("not:an:address", "not:another:one", False),
        ("not:an:address", "not:an:address", True),
    ],
)
def test_what_counts_as_one_client(one: str, other: str, *, same: bool) -> None:
    """An IPv4 address, however it is written, or the IPv6 addresses of one /64: one client has them all."""
    limit = limiter(ManualClock(), burst=1)
    limit.take(one)
    assert (limit.take(other) != 0) is same


def test_memory_is_bounded_and_the_longest_idle_client_is_forgotten_first() -> None:
    """A client that was just refused is remembered longer than one that has been quiet."""
    clock = ManualClock()
    limit = limiter(clock, burst=1, max_clients=2)
    limit.take("a")
    limit.take("b")
    assert limit.take("a") == 1
    limit.take("c")
    assert len(limit) == 2
    assert limit.take("a") == 1
    assert limit.take("b") == 0


class LimiterMachine(RuleBasedStateMachine):
    """Drive the limiter and the rule in exact arithmetic through the same requests.

    The model's buckets stand in the order of their last use, each with its tokens at that time. Times are in eighths of
    seconds, which floats hold exactly.
    """

    clients: ClassVar[dict[str, str]] = {
        "10.0.0.1": "10.0.0.1",
        "::ffff:10.0.0.1": "10.0.0.1",
        "10.0.0.2": "10.0.0.2",
        "2001:db8::1": "2001:db8::/64",
        "2001:db8::ffff:1": "2001:db8::/64",
        "2001:db8:0:1::1": "2001:db8:0:1::/64",
        "no:address": "no:address",
    }

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.buckets: dict[str, tuple[Fraction, Fraction]] = {}

    @initialize(
        per_second=st.sampled_from([0.25, 0.5, 1, 2, 8]), burst=st.integers(1, 5), max_clients=st.integers(1, 5)
    )
    def start(self, per_second: float, burst: int, max_clients: int) -> None:
        """Choose the rule."""
        self.per_second, self.burst, self.max_clients = Fraction(per_second), Fraction(burst), max_clients
        self.limiter = limiter(self.clock, per_second=per_second, burst=burst, max_clients=max_clients)

    @rule(eighths=st.integers(1, 64))
    def advance(self, eighths: int) -> None:
        """Let time pass."""
        self.clock.advance(eighths / 8)

    @rule(address=st.sampled_from(list(clients)), times=st.integers(1, 4))
    def take(self, address: str, times: int) -> None:
        """Send requests."""
        now = Fraction(self.clock.now)
        for _ in range(times):
            tokens, since = self.buckets.pop(self.clients[address], (self.burst, now))
            tokens = min(self.burst, tokens + (now - since) * self.per_second)
            wait = 0 if tokens >= 1 else max(1, math.ceil((1 - tokens) / self.per_second))
            self.buckets[self.clients[address]] = (tokens if wait else tokens - 1, now)
            if len(self.buckets) > self.max_clients:
                del self.buckets[next(iter(self.buckets))]
            assert self.limiter.take(address) == wait

    @invariant()
    def as_many_clients_are_remembered(self) -> None:
        """No more than allowed."""
        if self.buckets:
            assert len(self.limiter) == len(self.buckets) <= self.max_clients


TestLimiterMachine = LimiterMachine.TestCase
TestLimiterMachine.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


@given(st.lists(st.ip_addresses().map(str), max_size=50), st.integers(1, 5))
def test_no_more_clients_are_remembered_than_allowed(addresses: list[str], max_clients: int) -> None:
    """For any addresses."""
    limit = limiter(ManualClock(), max_clients=max_clients)
    for address in addresses:
        limit.take(address)
        assert 1 <= len(limit) <= max_clients
