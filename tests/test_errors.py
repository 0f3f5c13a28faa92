"""The errors of the core."""

from __future__ import annotations

import pytest

from teesign import FetchError, MalformedError, SourceError, TeesignError, UsageError, VerificationError


@pytest.mark.parametrize(
    ("family", "code"),
    [
        (TeesignError, "error"),
        (UsageError, "usage"),
        (MalformedError, "malformed"),
        (VerificationError, "verification_failed"),
        (SourceError, "source_failed"),
        (FetchError, "fetch_failed"),
    ],
)
def test_every_error_has_a_code(family: type[TeesignError], code: str) -> None:
    """Programs branch on the code: the family's own, or the one that was given, which stays with that one error."""
    assert family("what is wrong", code="special").code == "special"
    assert family("what is wrong").code == code
    assert str(family("what is wrong", code="special")) == "what is wrong"
