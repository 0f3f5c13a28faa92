"""Log lines as the command line writes them: for people, or as JSON for machines.

Only the command line sets up logging. An app that is mounted elsewhere writes to the standard `logging` loggers and
leaves the rest to its host.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor

from .settings import Settings

__all__ = ["configure_logging"]

_QUIET = ("_granian", "granian", "httpcore", "h11", "hpack", "asyncio", "httpx", "dstack_sdk")
"""Loggers of libraries: at their more talkative levels they quote headers and addresses of clients."""


def configure_logging(settings: Settings, stream: TextIO = sys.stderr) -> None:
    """Send every log record to `stream`, in the format and from the level that the settings ask for."""
    renderer: Processor
    if settings.log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=0)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[_unfold, structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _unfold(_: object, __: str, event: EventDict) -> EventDict:
    """Put the fields of this package's records where the renderers look for them."""
    record = event["_record"]
    if hasattr(record, "fields"):
        event["event"] = record.event_name
        event.update(record.fields)
    return event
