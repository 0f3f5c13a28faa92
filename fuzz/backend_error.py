"""For any error body, what is kept for a log is words of the vocabulary, and a type of letters and underscores."""

from __future__ import annotations

import re

from teesign_asgi.observe import _VOCABULARY, backend_error_fields, read_error

SEEDS = [
    b'{"error":{"message":"the model `x` is not a model","type":"not_found_error","code":[{}]}}',
    b'{"object":"error","message":"token\\u0020limit \\ud83d\\ude00","type":null}',
    b'{"error":"prompt","message":"input_value=\'secret\', value is 12345 tokens"}',
]


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for this body."""
    found, fields = read_error(data), backend_error_fields(data)
    assert (found is None) is (fields == {})
    words = fields.pop("backend_message", "").split(" ")
    assert len(words) <= 40
    assert set(words) <= _VOCABULARY | {"…", ""}
    assert re.fullmatch(r"[A-Za-z_]{0,64}", fields.pop("backend_type", ""))
    assert fields == {}
