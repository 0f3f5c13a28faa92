"""Policies: what cannot be one is refused when it is made, whichever way that is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teesign import UsageError
from teesign.verify.policy import Policy, UnsafeSimulatedPolicy, parse_policy, policy_members

LENGTHS = {"mr_td": 48, "rtmr0": 48, "rtmr1": 48, "rtmr2": 48, "rtmr3": 48, "compose_hash": 32}
FLAGS = ("require_gpus", "require_tls_key")
NO_LISTS = (None, True, 1, "", "11", b"11" * 48, {"11": 1}, iter(()))
NO_PINS = (None, 1, "", "11", b"x", b"11" * 48, "1" * 95, "zz" * 48, ["11" * 48], "\ud800" * 96, "\u0661" * 96)
NO_TEXTS = (None, 1, b"UpToDate", ["UpToDate"], "\ud800")

REFUSED = [
    *((name, value) for name in LENGTHS for value in (*NO_LISTS, *((pin,) for pin in NO_PINS))),
    *(("tcb_statuses", value) for value in (*NO_LISTS, "UpToDate", *((text,) for text in NO_TEXTS))),
    *((name, value) for name in FLAGS for value in (None, 0, 1, "no", "", ())),
]


@pytest.mark.parametrize("kind", [Policy, UnsafeSimulatedPolicy])
@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_a_field_cannot_be_is_refused(kind: type[Policy], name: str, value: Any) -> None:
    """At once and by its name: not by a later check, and never taken for a policy that asks less."""
    with pytest.raises(UsageError, match=f"The policy's {name} must ") as caught:
        kind(**{name: value})
    assert caught.value.code == "bad_policy"


@pytest.mark.parametrize("container", [tuple, list, set, frozenset])
def test_any_list_of_good_values_will_do(container: type) -> None:
    """With or without a leading 0x, in either case, in whatever holds several."""
    pins = {name: container(("AB" * length, "0x" + "01" * length)) for name, length in LENGTHS.items()}
    policy = Policy(**pins, tcb_statuses=container(("UpToDate", "OutOfDate")))
    assert policy.pinned == tuple(LENGTHS)
    assert policy.check_pin("compose_hash", b"\xab" * 32)
    assert not policy.check_pin("compose_hash", b"\xac" * 32)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
PINS = st.lists(st.sampled_from(["11" * 48, "0xAB" + "22" * 47, "11" * 32]), max_size=2).map(tuple)


@given(st.dictionaries(st.sampled_from((*LENGTHS, *FLAGS, "tcb_statuses")), PINS | ANYTHING))
def test_a_policy_that_was_made_can_be_written_and_read(fields: dict[str, Any]) -> None:
    """For any values of its fields, it is refused with its own code, or is the same after a trip through JSON."""
    try:
        policy = Policy(**fields)
    except UsageError as error:
        assert error.code == "bad_policy"  # noqa: PT017 - not every value is refused
        return
    written = json.dumps(policy_members(policy))
    assert policy_members(parse_policy(written)) == json.loads(written)
