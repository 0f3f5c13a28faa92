"""For any bytes, `read_id` finds the id that the standard library's decoder finds, or says that there is no object."""

from __future__ import annotations

import json

from teesign.identifiers import read_id

SEEDS = [
    b'{"id":"a","x":{"id":"b"}}',
    b' {"x":["\\"id\\":"],"\\u0069d" : "\\u00e9" }\n',
    b'{"id":7,"id":""}',
    b'[{"id":"a"}]',
]


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for this document."""
    found = read_id(data)
    try:
        document = json.loads(data.decode())
    except (ValueError, RecursionError):
        return  # the standard library is stricter about UTF-8, and about how deep a document may be
    if found is None:
        # It takes NaN, lone surrogates and numbers beyond all measure for JSON, which RFC 8259 does not.
        assert not isinstance(document, dict) or any(mark in data for mark in (b"NaN", b"Infinity", b"\\u", b"e", b"E"))
        return
    assert isinstance(document, dict)
    value = document.get("id")
    assert found.present is ("id" in document)
    assert found.value == (value if isinstance(value, str) and value else None)
