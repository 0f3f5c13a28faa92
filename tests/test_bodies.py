"""JSON request bodies: what is refused and how, and the one change that is made, against Python's own json."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import weakref
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import without_collector

from teesign_asgi.bodies import (
    LARGE,
    MAX_EMPTY_TOOL_CALLS,
    MAX_OBJECTS,
    check_json_object,
    prepare_json,
    without_empty_tool_calls,
)
from teesign_asgi.errors import HttpError

CANARY = "kanarienvogel"

REFUSED: list[tuple[bytes, str]] = [
    (b"", "The request body is empty; it must be a JSON object"),
    (b" \r\n\t", "The request body is empty; it must be a JSON object"),
    (b"[]", "must be a JSON object: Expected `object`, got `array`"),
    (b'"text"', "must be a JSON object: Expected `object`, got `str`"),
    (b"null", "must be a JSON object: Expected `object`, got `null`"),
    (b'{"a":1', "is not valid JSON: Input data was truncated (byte 6)"),
    (b'{"a":1}{', "trailing characters"),
    (b"{'a':1}", "(byte 1)"),
    (b'{"a":1,}', "(byte 7)"),
    (b'{"a":01}', "is not valid JSON"),
    (b'{"a":"\n"}', "(byte 6)"),
    (b'{"a":/**/1}', "(byte 5)"),
    # Python's json takes these two; RFC 8259 does not have them, or lets a parser refuse them.
    (b'{"a":NaN}', "(byte 5)"),
    (b'\xef\xbb\xbf{"a":1}', "(byte 0)"),
    (b'{"a":"\\ud800\n"}', "(byte 12)"),
    (b'{"a":"\\ud800"', "(byte 13)"),
    (b'["\\ud800"]', "must be a JSON object"),
    (b'{"a":"\xff"}', "is not valid UTF-8 (byte 6)"),
    (b'{"a":"\xed\xa0\x80"}', "is not valid UTF-8 (byte 6)"),
    (b'{"a":"\xe2\x82"}', "is not valid UTF-8 (byte 6)"),
    (b'{"a":"' + b" " * (1 << 20) + b'\xff"}', f"is not valid UTF-8 (byte {(1 << 20) + 6})"),
    (b'{"a":"' + b" " * ((1 << 20) - 7) + b'\xe2\x82\xe2"}', f"is not valid UTF-8 (byte {(1 << 20) - 1})"),
    (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested too deeply"),
]


def refusal(body: bytes) -> HttpError | None:
    """Return how a body is refused, or None if it is good."""
    try:
        check_json_object(body)
    except HttpError as error:
        return error
    return None


def test_brackets_do_not_end_the_process() -> None:
    """Where a library has raised the interpreter's recursion limit, a request must not overflow the stack."""
    program = """
import sys
from teesign_asgi.bodies import check_json_object
from teesign_asgi.errors import HttpError

sys.setrecursionlimit(1_000_000)
check_json_object(b'{"deep":' + b"[" * 799 + b"]" * 799 + b"}")
try:
    check_json_object(b'{"deep":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}")
except HttpError as error:
    print(error.message)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "nested too deeply" in run.stdout


@pytest.mark.parametrize(("body", "complaint"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_json_object_is_refused(body: bytes, complaint: str) -> None:
    """With what is wrong, and where."""
    error = refusal(body)
    assert error is not None
    assert (error.status, error.type) == (400, "bad_request")
    assert complaint in error.message


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b' \r\n\t{"a" : [1, -0.5e+10, true, false, null, {"b":"\\u00e9\\n\\/"}]}\n',
        b'{"a":"\\ud83d\\ude00"}',
        '{"é":"\u2028😀"}'.encode(),
        b'{"a":1e999}',
        b'{"a":1,"a":2}',
        b'{"a":' + b"1" * 10_000 + b"}",
        ('{"a":"' + "€" * 400_000 + '"}').encode(),
        ('{"ab":"' + "€" * 400_000 + '"}').encode(),
        b'{"a":' + b"[" * 500 + b"]" * 500 + b"}",
    ],
)
def test_json_objects_pass(body: bytes) -> None:
    """Of any content, also where a character lies across the steps in which UTF-8 is checked."""
    check_json_object(body)


def refuse(_: str) -> object:
    """Refuse what Python's json takes beyond RFC 8259: NaN and Infinity."""
    raise ValueError


TOKENS = st.sampled_from(
    [
        *'{}[],:"1- ',
        '"a"',
        '"é"',
        "0",
        ".5",
        "e1",
        "true",
        "null",
        "\n",
        "\\",
        "\\n",
        "\\u00e9",
        "\\ud83d",
        "\\uDC00",
        "\\u12",
        "\x00",
        "NaN",
        "'",
    ]
)


@given(st.one_of(st.lists(TOKENS, max_size=12).map("".join), st.text(max_size=12)).map(lambda text: '{"a":' + text))
@example("{}")
@example('{"a":1}')
@example('{"a":[{"b":"\\u00e9"}]}')
@example('{"a":"\\ud83d"}')
@example('{"a":"\\ud83d\\ude00\\ude00"}')
@example('{"a":"\\\\ud83d"}')
def test_it_agrees_with_pythons_json(text: str) -> None:
    """For any text: what one takes as an object, the other does."""
    is_object = False
    with contextlib.suppress(ValueError):
        is_object = isinstance(json.loads(text, parse_constant=refuse), dict)
    assert (refusal(text.encode()) is None) is is_object


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), VALUES), st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_whatever_json_writes_passes(value: dict[str, Any], ensure_ascii: bool, indent: int | None) -> None:  # noqa: FBT001 - hypothesis passes it
    """For any object, however it is written."""
    check_json_object(json.dumps(value, ensure_ascii=ensure_ascii, indent=indent).encode())


@given(st.lists(st.one_of(TOKENS, st.just(CANARY), st.just(f'"{CANARY}"')), max_size=10), st.binary(max_size=3))
def test_messages_quote_nothing_of_the_body(tokens: list[str], tail: bytes) -> None:
    """For any body: what is said about it does not hold it, and neither does the exception's chain."""
    error = refusal("".join(tokens).encode() + tail)
    if error is not None:
        assert CANARY not in error.message
        assert error.__cause__ is None
        assert error.__suppress_context__ or error.__context__ is None


MESSAGES: list[tuple[str, str]] = [
    # alone, first, in the middle and last in its message
    ('{"messages":[{"tool_calls":[]}]}', '{"messages":[{}]}'),
    ('{"messages":[{"tool_calls":[],"a":1}]}', '{"messages":[{"a":1}]}'),
    ('{"messages":[{"a":1,"tool_calls":[],"b":2}]}', '{"messages":[{"a":1,"b":2}]}'),
    ('{"messages":[{"a":1,"tool_calls":[]}]}', '{"messages":[{"a":1}]}'),
    # with white space, of which what stands around the member and its comma stays
    ('{"messages":[{ "tool_calls" :\t[ \r\n] }]}', '{"messages":[{  }]}'),
    ('{"messages":[{"a":1 , "tool_calls": [ ] }]}', '{"messages":[{"a":1  }]}'),
    ('{"messages":[{ "tool_calls":[] , "a":1}]}', '{"messages":[{  "a":1}]}'),
    # also where it takes several looks to find the comma
    *(
        (f'{{"messages":[{{"a":1,{" " * blanks}"tool_calls":[]}}]}}', '{"messages":[{"a":1}]}')
        for blanks in (62, 63, 64, 65, 191, 192, 193, 100_000)
    ),
    (f'{{"messages":[{{{" " * 500}"tool_calls":[]}}]}}', f'{{"messages":[{{{" " * 500}}}]}}'),
    # in several messages
    (
        '{"messages":[{"tool_calls":[]},{"a":1,"tool_calls":[]},{"tool_calls":[1]}]}',
        '{"messages":[{},{"a":1},{"tool_calls":[1]}]}',
    ),
]

UNTOUCHED: list[str] = [
    "{}",
    '{"messages":[]}',
    '{"messages":[{"tool_calls":[1]},{"tool_calls":null},{"tool_calls":{}},{"tool_calls":""}]}',
    # elsewhere
    '{"tool_calls":[],"messages":[{}]}',
    '{"other":[{"tool_calls":[]}],"messages":[{"a":{"tool_calls":[]}},{"b":[{"tool_calls":[]}]}]}',
    '{"messages":[{"a":"b","c":[{"tool_calls":[]}],"tool_calls":[{"tool_calls":[]}]}]}',
    # inside of strings
    '{"messages":[{"content":"\\"tool_calls\\":[]"}]}',
    '{"messages":[{"x\\"tool_calls":[]}]}',
    # where the messages are not a list of objects, the backend has to say so
    '{"messages":{"tool_calls":[]}}',
    '{"messages":[1,{"tool_calls":[]}]}',
]


@pytest.mark.parametrize(("before", "after"), MESSAGES, ids=range(len(MESSAGES)))
def test_empty_tool_calls_of_messages_are_removed(before: str, after: str) -> None:
    """With one comma, and with nothing else."""
    assert without_empty_tool_calls(before.encode()).decode() == after


@pytest.mark.parametrize("body", UNTOUCHED)
def test_everything_else_stays(body: str) -> None:
    """Members of that name elsewhere, and text that looks like them."""
    assert without_empty_tool_calls(body.encode()).decode() == body


@pytest.mark.anyio
@pytest.mark.parametrize("padding", [0, LARGE])
async def test_nothing_of_a_body_that_is_refused_is_kept(padding: int) -> None:
    """Not until the garbage collector runs, either: a few errors of ten megabytes each are too few for it to notice."""

    async def refused() -> weakref.ref[HttpError]:
        try:
            await prepare_json(b'{"a":"' + b"y" * padding, len)
        except HttpError as error:
            return weakref.ref(error)
        raise AssertionError("it passed")

    with without_collector():
        error = await refused()
        assert error() is None


@pytest.mark.anyio
@pytest.mark.parametrize("padding", [0, LARGE])
async def test_a_body_of_any_depth_passes_or_is_refused(padding: int) -> None:
    """Also where it passes the check and is too deep for what comes after: that is no reason to answer 500."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000)  # the interpreter's own; a library of other tests has raised it
    try:
        fared = [await is_prepared(nested_beside_empty_tool_calls(levels, padding)) for levels in range(800, 1_000)]
    finally:
        sys.setrecursionlimit(limit)
    assert any(fared)


async def is_prepared(body: bytes) -> bool:
    """Tell whether a body passes, with all of it or without the list; if not, it is refused."""
    try:
        prepared = await prepare_json(body, len)
    except HttpError:
        return False
    assert prepared in (body, body.replace(b'"tool_calls":[],', b""))
    return True


def nested_beside_empty_tool_calls(levels: int, padding: int) -> bytes:
    """Return a chat whose only message has an empty list of tool calls, and something as deep as this."""
    nested = b"[" * levels + b"]" * levels
    return b'{"messages":[{"tool_calls":[],"x":%b}],"y":"%b"}' % (nested, b"y" * padding)


SPACE = st.text(" \t\r\n", max_size=2)
NAMES = st.sampled_from(["tool_calls", "content", "role", 'x"tool_calls', "é"])
LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.just([]), st.just('"tool_calls":[]'), st.just(4_611_686_018_427_387_904), st.none(), st.text(max_size=3)
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)
CHATS = st.fixed_dictionaries(
    {"messages": st.lists(st.dictionaries(NAMES, TREES, max_size=4), max_size=4)}, optional={"tool_calls": TREES}
)


def spelled(value: Any, spaces: st.DataObject) -> str:
    """Write a value as JSON, with white space wherever it may be."""

    def gap() -> str:
        return spaces.draw(SPACE)

    if isinstance(value, dict):
        members = (f"{gap()}{json.dumps(name)}{gap()}:{gap()}{spelled(value[name], spaces)}{gap()}" for name in value)
        return "{" + (",".join(members) or gap()) + "}"
    if isinstance(value, list):
        return "[" + (",".join(f"{gap()}{spelled(item, spaces)}{gap()}" for item in value) or gap()) + "]"
    return json.dumps(value, ensure_ascii=spaces.draw(st.booleans()))


def naively_without(chat: dict[str, Any]) -> dict[str, Any]:
    """Do the same on the decoded body."""
    messages = [
        {name: value for name, value in message.items() if (name, value) != ("tool_calls", [])}
        for message in chat["messages"]
    ]
    return {**chat, "messages": messages}


@pytest.mark.parametrize(
    ("messages", "others", "changed"),
    [
        (MAX_EMPTY_TOOL_CALLS, 0, True),
        (MAX_EMPTY_TOOL_CALLS + 1, 0, False),
        (1, MAX_OBJECTS - 2, True),
        (1, MAX_OBJECTS - 1, False),
    ],
)
def test_a_body_with_more_objects_than_a_conversation_stays(messages: int, others: int, *, changed: bool) -> None:
    """To look at each of them would cost many times the body's size; the backend refuses it anyway."""
    body = b'{"messages":[' + b",".join([b'{"tool_calls":[]}'] * messages + [b"{}"] * others) + b"]}"
    expected = body.replace(b'"tool_calls":[]', b"") if changed else body
    assert without_empty_tool_calls(body) == expected


@given(CHATS, st.data())
def test_it_removes_what_the_naive_way_removes(chat: dict[str, Any], spaces: st.DataObject) -> None:
    """For any chat, however it is written: the same members are left, and the bytes left stand in their old order."""
    body = spelled(chat, spaces).encode()
    result = without_empty_tool_calls(body)
    expected = naively_without(chat)
    assert json.loads(result) == expected
    if expected == chat:
        assert result == body
    remaining = iter(body)
    assert all(byte in remaining for byte in result)
    shorter = [len(old) for old, new in zip(chat["messages"], expected["messages"], strict=True) if old != new]
    expected_length = len(compact(body)) - sum(len('"tool_calls":[]') + (members > 1) for members in shorter)
    assert len(compact(result)) == expected_length


def compact(text: bytes) -> bytes:
    """Leave out white space."""
    return re.sub(rb"\s", b"", text)


@pytest.mark.anyio
@pytest.mark.parametrize(("size", "taken_turns"), [(LARGE - 1, False), (LARGE, True)])
async def test_others_get_a_turn_between_the_steps_over_a_large_body(size: int, *, taken_turns: bool) -> None:
    """No two of them hold the event loop in a row; for an ordinary body that would cost more than it helps."""
    body = b'{"a":"' + b"x" * (size - 8) + b'"}'
    shown: list[bytes] = []
    taken = 0

    async def take_turns() -> None:
        nonlocal taken
        while True:
            await anyio.lowlevel.checkpoint()
            taken += 1

    async with anyio.create_task_group() as group:
        group.start_soon(take_turns)
        await anyio.sleep(0.01)
        before = taken
        assert await prepare_json(body, shown.append) == body
        assert (taken > before) is taken_turns
        group.cancel_scope.cancel()
    assert shown == [body]
