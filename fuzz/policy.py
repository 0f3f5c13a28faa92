"""For any text, a policy is read that is written and read the same again, or UsageError `bad_policy` is raised."""

from __future__ import annotations

import json

from teesign import UsageError
from teesign.verify.policy import parse_policy, policy_members

SEEDS = [
    b'{"policy":"UnsafeSimulatedPolicy"}',
    b'{"compose_hash":["' + b"ab" * 32 + b'"],"require_tls_key":true}',
    b'{"policy":"Policy","mr_td":[]}',
]


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for this text."""
    try:
        policy = parse_policy(data)
    except UsageError as error:
        assert error.code == "bad_policy"
        return
    assert parse_policy(json.dumps(policy_members(policy))) == policy
