"""JSON request bodies: the check that they are what they claim, and the one change the backend needs.

A body is never decoded as a whole: msgspec checks its syntax and skips over everything, so that a body made to be
expensive costs no more than one of its size. Where messages have to be told from other objects, for the change, only so
many are looked at as any conversation has.

A body of ten megabytes still takes up to 50 ms to check, with the event loop waiting: msgspec keeps the interpreter to
itself, on whichever thread. So each step over a large body gets a turn of the loop of its own. The check gets a thread
all the same, for programs that have raised the interpreter's recursion limit: there levels are counted first, which
takes seconds where there are millions of brackets, and lets others have their turns.
"""

from __future__ import annotations

import codecs
import re
import secrets
from collections.abc import Callable
from itertools import count, islice
from typing import Final

import anyio.lowlevel
import anyio.to_thread
import msgspec

from teesign.documents import UNDECODABLE, may_overflow

from .errors import bad_request

__all__ = ["LARGE", "check_json_object", "prepare_json", "without_empty_tool_calls"]

LARGE: Final = 1 << 20
"""From how many bytes on the steps over a body are taken one by one."""

MAX_EMPTY_TOOL_CALLS: Final = 4_096
"""How many empty lists of tool calls are looked at; each costs several times its size."""

MAX_OBJECTS: Final = 100_000
"""How many objects a body may have, by its opening braces, for its messages to be looked at."""

_TOO_DEEP: Final = "The request body is not acceptable JSON: it is nested too deeply"
_UTF8_STEP: Final = 1 << 20
_EMPTY_TOOL_CALLS: Final = re.compile(rb'"tool_calls"[ \t\r\n]*:[ \t\r\n]*\[[ \t\r\n]*\]')
_SURROGATES: Final = [b"\\u" + bytes((d, half)) for d in b"dD" for half in b"89abcdefABCDEF"]
"""How the escapes of halves of surrogate pairs begin. One search for all of them would hold the interpreter for half a
second in ten megabytes of them; a search for each takes a few milliseconds, and others get their turns in between."""

_SPACE: Final = b" \t\r\n"
_COMMA: Final = re.compile(rb"[ \t\r\n]*,")
_COMMA_BYTE: Final = 0x2C


class _AnyObject(msgspec.Struct):
    """No members are declared, so all are skipped."""


class _Message(msgspec.Struct, gc=False):
    tool_calls: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Chat(msgspec.Struct):
    messages: list[_Message] = []


_objects: Final = msgspec.json.Decoder(_AnyObject)
_chats: Final = msgspec.json.Decoder(_Chat)


async def prepare_json(body: bytes, show: Callable[[bytes], object]) -> bytes:
    """Return a JSON body as the backend gets it.

    Args:
        body: the client's.
        show: called with that body once it is known to be good.

    Raises:
        HttpError: 400; see `check_json_object`.
    """
    is_large = len(body) >= LARGE
    if is_large:
        # An error that a thread raises refers to itself, by the frame that waited for it, and would keep the body.
        complaint = await anyio.to_thread.run_sync(_complaint, body)
        if complaint:
            raise bad_request(complaint)
    else:
        check_json_object(body)
    show(body)
    if is_large:
        await anyio.lowlevel.checkpoint()
    return without_empty_tool_calls(body)


def check_json_object(body: bytes) -> None:
    """Refuse a body that is not a JSON object (RFC 8259) in UTF-8.

    Raises:
        HttpError: 400; the message says what is wrong and where, and quotes none of the body.
    """
    complaint = _complaint(body)
    if complaint:
        raise bad_request(complaint)


def _complaint(body: bytes) -> str:
    """Return what is wrong with a body, or nothing."""
    if not body.strip(_SPACE):
        return "The request body is empty; it must be a JSON object"
    if may_overflow(body):
        return _TOO_DEEP
    try:
        _check_syntax(body)
    except msgspec.ValidationError as error:
        return f"The request body must be a JSON object: {error}"
    except RecursionError:
        return _TOO_DEEP
    except msgspec.DecodeError as error:
        where = "" if "(byte" in str(error) else f" (byte {len(body)})"
        return f"The request body is not valid JSON: {error}{where}"
    position = _first_not_utf8(body)
    return "" if position is None else f"The request body is not valid UTF-8 (byte {position})"


def _check_syntax(body: bytes) -> None:
    try:
        _objects.decode(body)
    except msgspec.DecodeError:
        # msgspec refuses half of a surrogate pair, which the grammar allows: programs that cut text anywhere make them.
        whole = body
        for half in _SURROGATES:
            whole = whole.replace(half, rb"\u00")
        if whole == body:
            raise
        _objects.decode(whole)


def _first_not_utf8(body: bytes) -> int | None:
    """Return where a body stops being UTF-8; looked for in steps, so that no large one is held again as text."""
    if body.isascii():
        return None
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(body), _UTF8_STEP):
        carried = len(decoder.getstate()[0])
        try:
            decoder.decode(body[start : start + _UTF8_STEP], final=start + _UTF8_STEP >= len(body))
        except UnicodeDecodeError as error:
            return start - carried + error.start
    return None


def without_empty_tool_calls(body: bytes) -> bytes:
    """Return the body without the `tool_calls` of messages where that is an empty list, which vLLM rejects.

    Every other byte stays. Members of that name elsewhere, or inside of strings, are not touched. A body with more than
    `MAX_EMPTY_TOOL_CALLS` of them, or more opening braces than `MAX_OBJECTS`, those in strings included, stays as it
    is: hardly any conversation is like that, and the backend says what it thinks of it.

    Args:
        body: a JSON object that has passed `check_json_object`.
    """
    candidates = list(islice(_EMPTY_TOOL_CALLS.finditer(body), MAX_EMPTY_TOOL_CALLS + 1))
    if not candidates or len(candidates) > MAX_EMPTY_TOOL_CALLS or body.count(b"{") > MAX_OBJECTS:
        return body
    try:
        return _without_those_of_messages(body, candidates)
    except UNDECODABLE:
        # The messages are not a list of objects: the backend will say so. Or the body is nested to the last level that
        # could be checked: this is called from deeper in the stack, and there one level more is one too many.
        return body


def _without_those_of_messages(body: bytes, candidates: list[re.Match[bytes]]) -> bytes:
    """Return the body without those of the candidates that are members of messages.

    Raises:
        MsgspecError, RecursionError: if the messages cannot be told.
    """
    # Which candidates are members of messages is for a JSON parser to say: each empty list gets its number as an
    # element in a copy, and the numbers that turn up where messages have their tool calls are the ones meant.
    # They start at random, so that no list of numbers in the body can be taken for one of them.
    first = secrets.randbits(62)
    numbers = count(first)
    numbered = _EMPTY_TOOL_CALLS.sub(lambda _: b'"tool_calls":[%d]' % next(numbers), body)
    messages = _chats.decode(numbered).messages
    meant = {bytes(message.tool_calls) for message in messages if message.tool_calls is not msgspec.UNSET}
    had = _with_tool_calls(messages)
    pieces, position, removed = [], 0, 0
    for number, candidate in enumerate(candidates, first):
        if b"[%d]" % number in meant:
            start, end = _with_one_comma(body, candidate.start(), candidate.end())
            pieces.append(body[position:start])
            position = end
            removed += 1
    shortened = b"".join([*pieces, body[position:]])
    # A message that has the member twice would now show its other one, which the client may not have meant.
    return shortened if _with_tool_calls(_chats.decode(shortened).messages) + removed == had else body


def _with_tool_calls(messages: list[_Message]) -> int:
    """Count the messages that have the member."""
    return sum(message.tool_calls is not msgspec.UNSET for message in messages)


def _last_before(body: bytes, end: int) -> int:
    """Return where the last byte before `end` stands that is no white space; looked for in growing steps."""
    step = 64
    while True:
        start = max(0, end - step)
        found = len(body[start:end].rstrip(_SPACE))
        if found:
            return start + found - 1
        end, step = start, 2 * step


def _with_one_comma(body: bytes, start: int, end: int) -> tuple[int, int]:
    """Widen the span of an object's member by the comma that goes with it: the one after it, or else the one before."""
    comma = _COMMA.match(body, end)
    if comma:
        return start, comma.end()
    before = _last_before(body, start)
    return (before if body[before] == _COMMA_BYTE else start), end
