"""For any bytes, `parse_quote` returns a quote or raises MalformedError with the code `bad_quote`, and nothing else."""

from __future__ import annotations

from teesign import MalformedError, parse_quote
from teesign.sources.simulated import simulated_quote

QUOTE = simulated_quote(bytes(range(64))).quote
SEEDS = [QUOTE, QUOTE[:-1], QUOTE + b"\0", b"\5\0" + QUOTE[2:]]


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for these bytes."""
    try:
        quote = parse_quote(data)
    except MalformedError as error:
        assert error.code == "bad_quote"
        return
    assert data.startswith(quote.signed_part)
    assert len(quote.report_data) == 64
    assert quote.report_data in quote.signed_part
