"""Log lines as the command line writes them: text for people, JSON for machines."""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from teesign_asgi import Settings
from teesign_asgi.cli.log_writer import LogWriter
from teesign_asgi.cli.logs import _QUIET, configure_logging
from teesign_asgi.observe import log_event

CANARY = "kanarienvogel"

Written = Callable[[], str]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Give the process its own logging back."""
    root = logging.getLogger()
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in (None, *_QUIET)}
    recorded = logging.logThreads, logging.logProcesses, logging.logMultiprocessing
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logging.logThreads, logging.logProcesses, logging.logMultiprocessing = recorded
    logging.captureWarnings(False)


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., Written]:
    """Set up logging with these settings, and return what returns what was written since."""

    def configure(**settings: Any) -> Written:
        path = tmp_path / "log"
        writer = configure_logging(settings_with(**settings), os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC))
        return lambda: flushed(writer, path)

    return configure


def settings_with(**changes: Any) -> Settings:
    """Return settings that differ from the defaults in these."""
    return Settings(model_name="m", tokens=("t",), **changes)


def flushed(writer: LogWriter, path: Path) -> str:
    """Return everything that has been logged."""
    writer.flush()
    return path.read_text()


def test_json_lines_have_the_fields_of_the_event(configured: Callable[..., Written]) -> None:
    """One object a line, with the message, the level and the time."""
    written = configured(log_format="json")
    log_event(logging.WARNING, "request", status=500, path='/a"b', ms=1.5, signed=True, what=Path("x"))
    line = json.loads(written())
    time = line.pop("timestamp")
    assert line == {
        "event": "request",
        "level": "warning",
        "status": 500,
        "path": '/a"b',
        "ms": 1.5,
        "signed": True,
        "what": "x",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time)


def test_text_lines_have_no_colour_where_nobody_sees_it(configured: Callable[..., Written]) -> None:
    """One line an event, with its fields; what would run together with its neighbours is quoted."""
    written = configured()
    log_event(logging.INFO, "request", status=200, where="a < b", none="")
    (line,) = written().splitlines()
    assert re.fullmatch(r"[0-9T:.Z-]{27} \[info     \] request status=200 where='a < b' none=''", line)


def test_text_lines_have_colour_on_a_terminal() -> None:
    """Where somebody sees it."""
    shown, terminal = os.openpty()
    writer = configure_logging(settings_with(), terminal)
    log_event(logging.INFO, "request", status=200)
    writer.flush()
    assert b"\x1b[32m" in os.read(shown, 1_000)
    os.close(shown)
    os.close(terminal)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_records_of_the_server_are_written_too(configured: Callable[..., Written], log_format: str) -> None:
    """With their arguments filled in: among others they say why the app cannot start."""
    written = configured(log_format=log_format)
    logging.getLogger("_granian").error("port %d is taken", 80)
    assert "port 80 is taken" in written()


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_records_of_others_are_written_in_known_words(configured: Callable[..., Written], log_format: str) -> None:
    """Libraries quote what they choke on, in messages and in exceptions; the logger's name and the place remain."""
    written = configured(log_format=log_format, log_level="debug")
    try:
        raise ValueError(CANARY)
    except ValueError:
        logging.getLogger("somebody.else").exception("the %s connection failed", CANARY)
    warnings.warn(CANARY, stacklevel=1)
    text = written()
    assert CANARY not in text
    for part in ("the … connection failed", "somebody.else", "ValueError", "test_records_of_others", "py.warnings"):
        assert part in text
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize(("level", "written"), [("debug", "diwe"), ("info", "iwe"), ("warning", "we"), ("error", "e")])
def test_what_is_less_severe_is_left_out(configured: Callable[..., Written], level: str, written: str) -> None:
    """The level of the settings is the least that is logged."""
    text = configured(log_format="json", log_level=level)
    for each in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log_event(each, logging.getLevelName(each).lower()[0])
    assert "".join(json.loads(line)["event"] for line in text().splitlines()) == written


@pytest.mark.parametrize("name", _QUIET)
def test_talkative_libraries_are_kept_quiet(configured: Callable[..., Written], name: str) -> None:
    """Even at the level debug: they quote headers."""
    written = configured(log_level="debug")
    logging.getLogger(name).info("Authorization: Bearer kanarienvogel")
    assert written() == ""
    logging.getLogger(name).warning("request failed")
    assert "request failed" in written()


def test_setting_it_up_again_does_not_double_lines(configured: Callable[..., Written]) -> None:
    """The server's worker does so."""
    configured()
    written = configured()
    log_event(logging.INFO, "request")
    assert len(written().splitlines()) == 1
