"""How a server comes to its end: until when it waits, and for what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teesign.testing import ManualClock
from teesign_asgi.drain import Drain


def new_drain(clock: ManualClock, delay: float = 0.0, timeout: float = 30.0, linger: float = 5.0) -> Drain:
    """Return a drain that has not begun."""
    return Drain(delay=delay, timeout=timeout, linger=linger, clock=clock)


def begun(clock: ManualClock, **limits: float) -> Drain:
    """Return a drain that has begun just now."""
    drain = new_drain(clock, **limits)
    drain.begin()
    return drain


def test_a_server_that_serves_is_not_over() -> None:
    """However little it has to do."""
    drain = new_drain(ManualClock())
    assert drain.is_ready
    assert drain.takes_work
    assert not drain.is_over


def test_an_idle_server_is_over_at_once() -> None:
    """Nothing is open, and no signature is new."""
    clock = ManualClock()
    drain = new_drain(clock)
    drain.last_signed = clock()
    clock.advance(5)
    drain.begin()
    assert drain.is_over


def test_the_delay_is_kept_by_an_idle_server_too() -> None:
    """Load balancers do not know that it is idle."""
    clock = ManualClock()
    drain = begun(clock, delay=10)
    assert not drain.is_ready
    clock.advance(9.9)
    assert drain.takes_work
    assert not drain.is_over
    clock.advance(0.1)
    assert not drain.takes_work
    assert drain.is_over


def test_open_responses_are_waited_for() -> None:
    """Until the last one is finished, and its signature could be fetched."""
    clock = ManualClock()
    drain = begun(clock)
    drain.open_responses = 1
    clock.advance(20)
    assert not drain.is_over
    drain.open_responses, drain.last_signed = 0, clock()
    clock.advance(4.9)
    assert not drain.is_over
    clock.advance(0.1)
    assert drain.is_over


def test_the_deadline_holds_whatever_is_open() -> None:
    """A response that never ends holds nobody up for longer."""
    clock = ManualClock()
    drain = begun(clock, delay=10, timeout=30)
    drain.open_responses = 1
    clock.advance(39.9)
    assert not drain.is_over
    assert drain.remaining == pytest.approx(0.1)
    clock.advance(0.1)
    assert drain.remaining == 0
    assert drain.is_over


def test_a_signature_before_the_deadline_can_be_fetched_after_it() -> None:
    """For as long as any other; what is signed later does not prolong the end again."""
    clock = ManualClock()
    drain = begun(clock)
    drain.open_responses = 2
    clock.advance(29)
    drain.last_signed = clock()
    clock.advance(4)
    assert not drain.is_over
    drain.last_signed = clock()
    clock.advance(2)
    assert drain.is_over


def test_beginning_twice_is_beginning_once() -> None:
    """A second signal does not prolong the end."""
    clock = ManualClock()
    drain = begun(clock, delay=10)
    clock.advance(9)
    drain.begin()
    clock.advance(1)
    assert drain.is_over


SECONDS = st.floats(0, 100)


@given(delay=SECONDS, timeout=SECONDS, linger=SECONDS, steps=st.lists(st.tuples(SECONDS, st.booleans()), max_size=20))
def test_every_drain_comes_to_an_end(
    delay: float, timeout: float, linger: float, steps: list[tuple[float, bool]]
) -> None:
    """Whatever opens and is signed meanwhile, the three times together are the longest it can take."""
    clock = ManualClock()
    drain = begun(clock, delay=delay, timeout=timeout, linger=linger)
    drain.open_responses = 1
    begun_at = clock()
    for seconds, signed in steps:
        clock.advance(seconds)
        if signed:
            drain.last_signed = clock()
        if clock() - begun_at > (delay + timeout + linger) * 1.000001:
            assert drain.is_over
