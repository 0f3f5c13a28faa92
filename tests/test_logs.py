"""Log lines as the command line writes them: text for people, JSON for machines."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from teesign_asgi import Settings
from teesign_asgi.logs import _QUIET, configure_logging
from teesign_asgi.observe import log_event


class Terminal(io.StringIO):
    """A stream that is one."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Give the process its own logging back."""
    root = logging.getLogger()
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in (None, *_QUIET)}
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def configured(stream: io.StringIO | None = None, **settings: Any) -> io.StringIO:
    """Set up logging with these settings, and return what it writes to."""
    stream = stream or io.StringIO()
    configure_logging(Settings(model_name="m", tokens=("t",), **settings), stream)
    return stream


def test_json_lines_have_the_fields_of_the_event() -> None:
    """One object a line, with the message, the level and the time."""
    stream = configured(log_format="json")
    log_event(logging.WARNING, "request", status=500, path='/a"b')
    line = json.loads(stream.getvalue())
    time = line.pop("timestamp")
    assert line == {"event": "request", "level": "warning", "status": 500, "path": '/a"b'}
    assert time.endswith("Z")


def test_text_lines_have_no_colour_where_nobody_sees_it() -> None:
    """One line an event, with its fields."""
    stream = configured()
    log_event(logging.INFO, "request", status=200)
    (line,) = stream.getvalue().splitlines()
    assert "\x1b" not in line
    assert "[info" in line
    assert "request" in line
    assert "status=200" in line


def test_text_lines_have_colour_on_a_terminal() -> None:
    """Where somebody sees it."""
    stream = configured(Terminal())
    log_event(logging.INFO, "request", status=200)
    assert "\x1b[" in stream.getvalue()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_records_of_others_are_written_too(log_format: str) -> None:
    """Such as those of the server, with their arguments filled in."""
    stream = configured(log_format=log_format)
    logging.getLogger("somebody").error("port %d is taken", 80)
    assert "port 80 is taken" in stream.getvalue()


@pytest.mark.parametrize(("level", "written"), [("debug", "diwe"), ("info", "iwe"), ("warning", "we"), ("error", "e")])
def test_what_is_less_severe_is_left_out(level: str, written: str) -> None:
    """The level of the settings is the least that is logged."""
    stream = configured(log_format="json", log_level=level)
    for each in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log_event(each, logging.getLevelName(each).lower()[0])
    assert "".join(json.loads(line)["event"] for line in stream.getvalue().splitlines()) == written


@pytest.mark.parametrize("name", _QUIET)
def test_talkative_libraries_are_kept_quiet(name: str) -> None:
    """Even at the level debug: they quote headers."""
    stream = configured(log_level="debug")
    logging.getLogger(name).info("Authorization: Bearer kanarienvogel")
    assert stream.getvalue() == ""
    logging.getLogger(name).warning("something is wrong")
    assert "something is wrong" in stream.getvalue()


def test_setting_it_up_again_does_not_double_lines() -> None:
    """The server's worker does so."""
    configured()
    stream = configured()
    log_event(logging.INFO, "request")
    assert len(stream.getvalue().splitlines()) == 1
