"""Other programs' malformed requests and responses, replayed raw: nothing is smuggled, and nothing is our fault.

`tests/corpora.txt` holds what becomes of each case, and was read line by line. What differs from it is for a person to
look at: a new version of a server reads something in another way.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from corpora import SERVERS, Case, outcome_at, read_cases, read_table, response_outcome, running
from servers import Kind

FOLDER = os.environ.get("TEESIGN_TEST_CORPORA", "")
downloaded = pytest.mark.skipif(not FOLDER, reason="the source distributions are not there; run `nox -s corpora`")

OUTCOME = re.compile(r"(?P<answers>-|[2-5]xx(?:\+[2-5]xx)*)/(?P<end>open|closed)/(?P<backend>\d)")

ACCEPTED = {
    "any token is a method (RFC 9110 section 9.1), and goes to the catch-all": """
        gunicorn/invalid/003c llhttp/request/invalid#4
    """,
    "the case is about lower limits than those of the servers": """
        gunicorn/invalid/006 gunicorn/invalid/007 gunicorn/invalid/008 gunicorn/invalid/009 gunicorn/invalid/010
        gunicorn/invalid/011 gunicorn/invalid/012 gunicorn/invalid/017
    """,
    "the header is not looked at: Host is not passed on, and no scheme is taken from a header": """
        gunicorn/invalid/019 gunicorn/invalid/042
    """,
    "underscores count as dashes where headers are passed on, so these are not": """
        gunicorn/invalid/040 gunicorn/invalid/chunked_07
    """,
    "the backend gets both values, in order, and nothing here depends on them": "gunicorn/invalid/041",
    "chunks in HTTP/1.0 are read, and the connection is closed after them (RFC 9112 section 6.1)": """
        gunicorn/invalid/chunked_05
    """,
    "white space and an empty extension behind a chunk's size are skipped; the backend gets other framing": """
        gunicorn/invalid/chunked_09 llhttp/request/transfer-encoding#9 llhttp/request/transfer-encoding#30
        llhttp/request/transfer-encoding#31
    """,
    "control characters in a value, which can end no line, are passed on": """
        gunicorn/invalid/rfc9110_field_value_ctl_bel_01 gunicorn/invalid/rfc9110_field_value_ctl_del_01
    """,
    "trailers are dropped": """
        gunicorn/invalid/rfc9110_trailer_forbidden_cl_01 gunicorn/invalid/rfc9110_trailer_forbidden_host_01
        gunicorn/invalid/rfc9110_trailer_forbidden_te_01
    """,
    "a list of equal lengths is that length (RFC 9110 section 8.6)": "gunicorn/invalid/rfc9112_smuggle_cl_list_form_01",
    "chunks override a length (RFC 9112 section 6.3), and the backend gets one framing": """
        gunicorn/invalid/rfc9112_smuggle_cl_te_chunked_01
    """,
    "uvicorn answers a version that it does not speak in its own": "gunicorn/invalid/version_02",
    "the first request is good, and the connection is closed after it": """
        llhttp/request/connection#3 llhttp/request/connection#4 llhttp/request/lenient-headers#2
    """,
    "a folded line is joined with the one before (RFC 9112 section 5.2): both requests are answered": """
        llhttp/request/connection#9 llhttp/request/invalid#23 llhttp/request/invalid#24
    """,
    "a bare LF ends a line (RFC 9112 section 2.2): both requests are answered": "llhttp/request/invalid#18",
}
"""Why requests of these cases may reach the backend although their authors call them malformed."""

NOT_ANSWERED = {("llhttp/request/lenient-headers#2", "uvicorn")}
"""Where a good request gets through whose answer the client does not get: what follows it, in the same read, is
malformed, and uvicorn with httptools answers that and closes."""


def test_the_table_holds_nothing_smuggled_and_nothing_that_is_our_fault() -> None:
    """For every row: no 5xx, and no more whole requests at the backend than were answered with 2xx."""
    for row in read_table().values():
        is_request = "/request/" in row.name or row.name.startswith("gunicorn/")
        for kind, outcome in zip(SERVERS, row.outcomes, strict=True) if is_request else ():
            found = OUTCOME.fullmatch(outcome)
            assert found, row
            answers = found["answers"].split("+")
            assert "5xx" not in answers, row
            unanswered = int(found["backend"]) > answers.count("2xx")
            assert unanswered == ((row.name, kind) in NOT_ANSWERED), row


def test_each_malformed_request_that_gets_through_has_a_reason() -> None:
    """The reasons are for exactly those."""
    reasons = [name for names in ACCEPTED.values() for name in names.split()]
    through = {
        row.name
        for row in read_table().values()
        if row.verdict != "valid" and any(re.search(r"/[1-9]$", outcome) for outcome in row.outcomes)
    }
    assert len(set(reasons)) == len(reasons)
    assert set(reasons) == through


def cases(*, requests: bool) -> list[Case]:
    """Return the cases of a kind."""
    found = [case for case in read_cases(Path(FOLDER)) if case.is_request is requests]
    assert len(found) > 50
    return found


@downloaded
def test_the_table_has_a_row_for_each_case() -> None:
    """With its authors' verdict."""
    rows = read_table().values()
    assert {(case.name, case.verdict) for case in read_cases(Path(FOLDER))} == {(row.name, row.verdict) for row in rows}


@downloaded
@pytest.mark.parametrize("kind", SERVERS)
def test_requests_fare_as_the_table_says(kind: Kind) -> None:
    """Under each server."""
    table, column = read_table(), SERVERS.index(kind)
    with running(kind) as proxy:
        found = {case.name: str(outcome_at(proxy, case)) for case in cases(requests=True)}
    assert found == {name: table[name].outcomes[column] for name in found}


@downloaded
def test_responses_fare_as_the_table_says() -> None:
    """With the parser that reads the backend's."""
    table = read_table()
    found = {case.name: response_outcome(case) for case in cases(requests=False)}
    assert found == {name: table[name].outcomes[0] for name in found}
