"""What may be known about a request afterwards: log lines, and what is kept of a backend's error.

Nothing here ever holds a body, a query, a token or a key. Of a backend's error message only words of a fixed vocabulary
are kept: a message may quote what the user wrote in any form, so there is no pattern to search for; but a prompt made
of nothing but these words gives nothing away.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Mapping
from typing import Any, Final

import httpcore
import msgspec

from teesign.documents import UNDECODABLE

__all__ = ["backend_error_fields", "describe_exception", "log_event", "start_logger"]

logger: Final = logging.getLogger("teesign_asgi")

start_logger: Final = logger.getChild("start")
"""Where operators are told what they should know at every start: `teesign serve` writes that whatever its level."""

_MAX_LOGGED_WORDS: Final = 40
_ERROR_TYPE: Final = re.compile(r"[A-Za-z][A-Za-z_]{0,63}")
_WORD: Final = re.compile(r"[A-Za-z']+|[^A-Za-z'\s]+")

_WORDS: Final = """
    a above access already an and another api are argument as at authentication authorization available backend bad
    be because been before below body bytes call cannot capacity chat class client completion completions connection
    content context could currently does doesn't during empty encoder engine equal error exceed exceeded exceeds
    exist expected failed feature field file finish finished for format found from gateway greater had has have
    header however id image implemented in initialized input instead internal invalid is it its json key larger
    least length less limit list loaded longer longest lora many max maximum message messages method minimum missing
    model models more must no not number object of on one only or out output outside parameter parse parsing per
    permission please prefix processing prompt provided queue range rate reached reason received reduce refused
    request requested requests required response retry role sampling schema server service set should size smaller
    specified state stopped stream string such support supported template temperature terminated than that the their
    then there this time timeout to token tokenizer tokens too tool tools type unable unavailable unexpected unknown
    unprocessable unsupported usage use user validation value values was were when which while with within without
    you your
"""
_VOCABULARY: Final = frozenset(_WORDS.split())


class _Shown:
    """The fields of a log line as text, made when somebody writes the line."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self._fields.items())


def log_event(level: int, message: str, **fields: Any) -> None:
    """Write a log line: a message for people that names its fields, which machines find as attributes of the record.

    Args:
        level: as in `logging`.
        message: what happened, without any text from outside.
        fields: what is known about it. Text among them must come from this program or be a request's path.
    """
    if logger.isEnabledFor(level):
        # `Logger.log` would look for its caller through the frames of the stack, and find this line.
        args = (message, _Shown(fields))
        extra = {"event_name": message, "fields": fields}
        logger.handle(logger.makeRecord(logger.name, level, __file__, 0, "%s %s", args, None, "log_event", extra))


def loggable_path(raw_path: bytes) -> str:
    """Return a path as it may stand in a log: ASCII without control characters, and not longer than 200 characters."""
    text = raw_path[:200].decode("latin-1")
    return "".join(char if "!" <= char <= "~" else f"%{ord(char):02X}" for char in text)[:200]


def loggable_url(url: httpcore.URL) -> str:
    """Return a backend's URL as it may stand in a log: without a query, and without a user's name and password."""
    host = url.host.decode("latin-1")
    shown = f"[{host}]" if ":" in host else host
    port = "" if url.port is None else f":{url.port}"
    return f"{url.scheme.decode()}://{shown}{port}{loggable_path(url.target.partition(b'?')[0])}"


def describe_exception(error: BaseException) -> dict[str, str]:
    """Return what may be logged of an unexpected exception: its type and where it was raised.

    Its message stays out: exceptions quote what they choke on.
    """
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    return {"exception": type(error).__name__, "where": where}


def backend_error_fields(body: bytes) -> dict[str, str]:
    """Return what may be logged of a backend's error body: its type, and its message in words of the vocabulary.

    Args:
        body: the body, or its beginning; what is not one of the known forms of error gives nothing.
    """
    found = read_error(body)
    if found is None:
        return {}
    message, kind = found
    fields = {"backend_message": redact(message)}
    if kind is not None and _ERROR_TYPE.fullmatch(kind):
        fields["backend_type"] = kind
    return fields


def redact(message: str) -> str:
    """Return a message in which every word outside the vocabulary is replaced by an ellipsis; numbers too."""
    words: list[str] = []
    for word in _WORD.findall(message[:4096]):
        kept = word.lower() if word.lower() in _VOCABULARY else "…"
        if kept != "…" or words[-1:] != ["…"]:
            words.append(kept)
        if len(words) == _MAX_LOGGED_WORDS:
            break
    return " ".join(words)


def read_error(body: bytes) -> tuple[str, str | None] | None:
    """Return the message and the type in an error body of the forms `{"error": {…}}` and `{"message", "type"}`.

    Returns:
        None if it has neither form.
    """
    document = _members(body)
    if document is None:
        return None
    inner = None if document.error is msgspec.UNSET else _members(document.error)
    for candidate in (inner, document):
        message = None if candidate is None else _string(candidate.message)
        if candidate is not None and message is not None:
            return message, _string(candidate.type)
    return None


class _ErrorBody(msgspec.Struct):
    """The members as they are written: to decode values of any type takes as much stack as they are nested deep."""

    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    message: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    type: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_error_bodies: Final = msgspec.json.Decoder(_ErrorBody)
_strings: Final = msgspec.json.Decoder(str)


def _members(text: bytes | msgspec.Raw) -> _ErrorBody | None:
    try:
        return _error_bodies.decode(text)
    except UNDECODABLE:
        return None


def _string(text: msgspec.Raw | msgspec.UnsetType) -> str | None:
    try:
        return None if text is msgspec.UNSET else _strings.decode(text)
    except UNDECODABLE:
        return None
