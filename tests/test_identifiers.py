"""The id of a JSON document."""

from __future__ import annotations

import subprocess
import sys

import pytest

from teesign.identifiers import read_id

ABSENT = (False, None)
UNUSABLE = (True, None)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (b'{"id":"a"}', (True, "a")),
        (b' \t\r\n{ "id" : "a" } \n', (True, "a")),
        (b'{"object":"chat.completion","choices":[{"id":"inner"}],"id":"last"}', (True, "last")),
        (b'{"\\u0069d":"escaped key"}', (True, "escaped key")),
        (b'{"id":"\\u0061\\n\\u00e9"}', (True, "a\né")),
        (b'{"id":"\xc3\xa9"}', (True, "é")),
        (b'{"id":"first","id":"second"}', (True, "second")),
        (b'{"id":"first","id":7}', UNUSABLE),
        (b'{"text":"\xff\xfe","id":"a"}', (True, "a")),
        (b'{"id":""}', UNUSABLE),
        (b'{"id":7}', UNUSABLE),
        (b'{"id":null}', UNUSABLE),
        (b'{"id":["a"]}', UNUSABLE),
        (b'{"id":{"id":"a"}}', UNUSABLE),
        (b'{"id":"\xff"}', UNUSABLE),
        (b"{}", ABSENT),
        (b"{ }", ABSENT),
        (b'{"ID":"a"}', ABSENT),
        (b'{"id ":"a"}', ABSENT),
        (b'{"data":{"id":"inner"}}', ABSENT),
        (b'{"text":"{\\"id\\":\\"quoted\\"}"}', ABSENT),
        (b"", None),
        (b" ", None),
        (b"null", None),
        (b'"id"', None),
        (b"7", None),
        (b'[{"id":"a"}]', None),
        (b'{"id":"a"', None),
        (b'{"id":"a"}}', None),
        (b'{"id":"a"}{"id":"b"}', None),
        (b'{"id":"a",}', None),
        (b"{'id':'a'}", None),
        (b'{"id":"a","n":NaN}', None),
        (b'{"id":"a","n":01}', None),
        (b'\xef\xbb\xbf{"id":"a"}', None),
        (b'{"id":"\\ud800"}', None),
        (b'{"text":"\\udc00","id":"a"}', None),
        (b'{"id":"a","deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_the_id_of_a_document(document: bytes, expected: tuple[bool, str | None] | None) -> None:
    """A top-level member counts, a string with something in it is an id, and what is no JSON object has none."""
    found = read_id(document)
    assert (found and (found.present, found.value)) == expected


@pytest.mark.parametrize("limit", [1000, 1_000_000])
def test_brackets_do_not_end_the_process(limit: int) -> None:
    """Neither under the interpreter's own recursion limit, nor where a library has raised it."""
    program = f"""
import sys
from teesign.identifiers import read_id

sys.setrecursionlimit({limit})
for opening, closing in (b"[]", b'{{}}'):
    document = b'{{"id":"a","deep":' + bytes((opening,)) * 1_000_000 + bytes((closing,)) * 1_000_000 + b"}}"
    print(read_id(document))
print(read_id(b'{{"id":"a","deep":' + b"[" * 799 + b"]" * 799 + b"}}").value)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["None", "None", "a"]
