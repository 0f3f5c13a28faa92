"""Log lines as the command line writes them: for people, or as JSON for machines.

Only the command line sets up logging. An app that is mounted elsewhere writes to the standard `logging` loggers and
leaves the rest to its host.

This package's own records hold nothing from outside; see `observe`. Those of libraries do as they please: they quote
what they choke on, and tracebacks end with it. Of theirs only known words are written, and of any exception only its
type and where it was raised.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any, Final

import msgspec

from ..observe import describe_exception, redact, start_logger
from ..settings import Settings
from .log_writer import LogWriter

__all__ = ["configure_logging"]

_QUIET: Final = ("_granian", "granian", "httpcore", "h11", "hpack", "asyncio", "httpx", "dstack_sdk")
"""Loggers of libraries: at their more talkative levels they quote headers and addresses of clients."""

_OWN: Final = ("teesign_asgi", start_logger.name, "_granian")
"""Loggers whose messages hold nothing from outside. Granian's are about itself, or say why the app cannot start."""

_STANDARD_ERROR: Final = 2
_COLOURS: Final = {"debug": "\x1b[2m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"}
_PLAIN: Final = "\x1b[0m"


def configure_logging(settings: Settings, descriptor: int = _STANDARD_ERROR) -> LogWriter:
    """Send every log record to a file descriptor, in the format and from the level that the settings ask for.

    What an operator is warned of at the start is written at every level.

    Returns:
        The handler that writes them.
    """
    writer = LogWriter(descriptor)
    writer.setFormatter(_Json() if settings.log_format == "json" else _Text(coloured=os.isatty(descriptor)))
    root = logging.getLogger()
    root.handlers[:] = [writer]
    root.setLevel(settings.log_level.upper())
    start_logger.setLevel(logging.WARNING)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)  # they would be written to standard error at once
    # What no line shows need not be found out for each of them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    return writer


def _described(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """Return what a record says, and its fields."""
    fields: dict[str, Any] | None = getattr(record, "fields", None)
    if fields is not None:
        return vars(record)["event_name"], fields
    message = record.getMessage()
    fields = {}
    if record.name not in _OWN:
        message = redact(message)
        fields["logger"] = record.name
    if record.exc_info and record.exc_info[1] is not None:
        fields |= describe_exception(record.exc_info[1])
    return message, fields


class _Clock:
    """The time of records in ISO 8601; what is the same within a second is made once."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def show(self, created: float) -> str:
        second = int(created)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{int((created - second) * 1e6):06}Z"


class _Json(logging.Formatter):
    """One JSON object a line."""

    def __init__(self) -> None:
        super().__init__()
        self._clock: Final = _Clock()
        self._encoder: Final = msgspec.json.Encoder(enc_hook=str)

    def format(self, record: logging.LogRecord) -> str:
        event, fields = _described(record)
        line = {
            "timestamp": self._clock.show(record.created),
            "level": record.levelname.lower(),
            "event": event,
            **fields,
        }
        return self._encoder.encode(line).decode()


class _Text(logging.Formatter):
    """One line for people, with its fields behind it."""

    def __init__(self, *, coloured: bool) -> None:
        super().__init__()
        self._clock: Final = _Clock()
        self._colours: Final = _COLOURS if coloured else {}

    def format(self, record: logging.LogRecord) -> str:
        event, fields = _described(record)
        level = record.levelname.lower()
        shown = f"{level:9}"
        if level in self._colours:
            shown = f"{self._colours[level]}{shown}{_PLAIN}"
        parts = [self._clock.show(record.created), f"[{shown}]", event]
        parts += [f"{name}={value if _is_plain(value) else repr(value)}" for name, value in fields.items()]
        return " ".join(parts)


def _is_plain(value: object) -> bool:
    """Tell whether a value can be told from what stands next to it."""
    return not isinstance(value, str) or (value.isprintable() and bool(value) and " " not in value)
