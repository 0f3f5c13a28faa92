"""Log lines out of the process: nobody waits for whoever reads them, and what is lost is counted."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from processes import teesign_serve

from teesign_asgi.cli.log_writer import LogWriter

PIPE_SIZE = 4096
"""The smallest that a pipe can be."""


class Pipe:
    """A pipe that holds little, and what has come out of it.

    Attributes:
        into: the descriptor to write to.
    """

    def __init__(self) -> None:
        self._out, self.into = os.pipe()
        fcntl.fcntl(self.into, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        os.set_blocking(self._out, False)
        self.text = ""

    def read_until(self, condition: Callable[[], bool]) -> None:
        """Read until a condition holds, which may look at the text."""
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, self.text[-1000:]
            try:
                data = os.read(self._out, 65_536)
            except BlockingIOError:
                time.sleep(0.005)
                continue
            self.text += data.decode()

    def lines(self) -> list[str]:
        """Return the lines so far."""
        return self.text.splitlines()

    def close(self) -> None:
        """Close the end that is read."""
        os.close(self._out)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Give a pipe. Its other end stays open for a thread that may still write; it is closed with the process."""
    made = Pipe()
    yield made
    made.close()


def log_to(writer: LogWriter) -> logging.Logger:
    """Return a logger whose records go to this handler alone."""
    logger = logging.getLogger("a-test")
    logger.handlers, logger.propagate = [writer], False
    logger.setLevel(logging.INFO)
    return logger


def test_lines_arrive_in_their_order(pipe: Pipe) -> None:
    """All of them, from several threads; those of one thread one after the other, and none in the middle of another."""
    logger = log_to(LogWriter(pipe.into))

    def log(name: str) -> None:
        for number in range(300):
            logger.info("%s %d %s", name, number, "x" * (number % 50))

    threads = [threading.Thread(target=log, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    pipe.read_until(lambda: pipe.text.count("\n") == 900)
    for thread in threads:
        thread.join()
    for name in "abc":
        of_one = [line for line in pipe.lines() if line.startswith(name)]
        assert of_one == [f"{name} {number} {'x' * (number % 50)}" for number in range(300)]


def test_nobody_waits_when_nobody_reads(pipe: Pipe) -> None:
    """Far more than a pipe holds is logged in no time; when somebody reads, all of it is there."""
    logger = log_to(LogWriter(pipe.into))
    begun = time.monotonic()
    for number in range(1_000):
        logger.info("%d %s", number, "x" * 100)
    assert time.monotonic() - begun < 5
    pipe.read_until(lambda: pipe.text.count("\n") == 1_000)
    assert [line.split()[0] for line in pipe.lines()] == [str(number) for number in range(1_000)]


def test_what_does_not_fit_is_dropped_and_counted(pipe: Pipe) -> None:
    """Memory is bounded; as soon as somebody reads again, the log itself says how much is missing."""
    counted: list[None] = []
    writer = LogWriter(pipe.into, max_waiting=2_000)
    writer.on_drop = lambda: counted.append(None)
    logger = log_to(writer)
    for number in range(500):
        logger.info("%d %s", number, "x" * 100)
        time.sleep(0.0005)
    assert writer._size <= 2_000
    pipe.read_until(lambda: len(counted) + pipe.text.count("xxx\n") == 500)
    said = re.compile(r"log lines were dropped, since nobody read them: (\d+)\n")
    pipe.read_until(lambda: sum(map(int, said.findall(pipe.text))) == len(counted) > 0)
    pipe.text = ""
    logger.info("as before")
    pipe.read_until(lambda: pipe.text == "as before\n")


def test_a_line_that_is_larger_than_what_may_wait_is_dropped(pipe: Pipe) -> None:
    """And those around it are not."""
    logger = log_to(LogWriter(pipe.into, max_waiting=1_000))
    logger.info("before")
    logger.info("x" * 1_000)
    logger.info("after")
    pipe.read_until(lambda: pipe.lines()[:2] == ["before", "after"])


def test_a_long_line_is_written_whole(pipe: Pipe) -> None:
    """It may be longer than the pipe."""
    logger = log_to(LogWriter(pipe.into))
    logger.info("x" * 50_000)
    pipe.read_until(lambda: pipe.text == "x" * 50_000 + "\n")


def test_a_reader_that_is_gone_stops_nothing() -> None:
    """Lines go nowhere, and are counted."""
    gone = Pipe()
    gone.close()
    counted: list[None] = []
    writer = LogWriter(gone.into)
    writer.on_drop = lambda: counted.append(None)
    logger = log_to(writer)
    for _ in range(3):
        logger.info("x")
        writer.flush()
    assert len(counted) == 3
    os.close(gone.into)


def test_a_descriptor_that_does_not_wait(pipe: Pipe) -> None:
    """Somebody who shares it may have made it so; nothing is lost."""
    os.set_blocking(pipe.into, False)
    logger = log_to(LogWriter(pipe.into))
    for number in range(500):
        logger.info("%d %s", number, "x" * 100)
    pipe.read_until(lambda: pipe.text.count("\n") == 500)
    assert [line.split()[0] for line in pipe.lines()] == [str(number) for number in range(500)]


def test_flushing_writes_what_waits(pipe: Pipe) -> None:
    """At once, and not a moment later."""
    writer = LogWriter(pipe.into)
    log_to(writer).info("the last words")
    writer.flush()
    assert os.read(pipe._out, 100) == b"the last words\n"


def test_flushing_does_not_wait_for_a_reader_that_has_stopped(pipe: Pipe) -> None:
    """A process must be able to end."""
    writer = LogWriter(pipe.into)
    for _ in range(100):
        log_to(writer).info("x" * 100)
    begun = time.monotonic()
    writer.flush()
    assert 0.9 < time.monotonic() - begun < 5


def test_a_thread_that_cannot_be_started(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever logs does not hear of it; the line is written with the next one for which there is a thread."""
    logger = log_to(LogWriter(pipe.into))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
        logger.info("first")
    logger.info("second")
    pipe.read_until(lambda: pipe.lines() == ["first", "second"])


@pytest.mark.filterwarnings("error")
def test_a_record_that_cannot_be_written_is_dropped(pipe: Pipe, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing of it is shown anywhere else: it may quote anything."""
    writer = LogWriter(pipe.into)
    logger = log_to(writer)
    logger.info("kanarienvogel %d", "kanarienvogel")
    logger.info("a\udc80b")
    pipe.read_until(lambda: pipe.text.endswith("log lines were dropped, since nobody read them: 1\n"))
    assert pipe.lines()[0] == "a\\udc80b"
    assert capfd.readouterr().err == ""


def test_a_server_whose_log_nobody_reads(pipe: Pipe, log: Path) -> None:
    """It answers as ever; nothing is lost when somebody reads after all, and when nobody does it can end."""
    with teesign_serve(log, output=pipe.into, LOG_FORMAT="json") as process:
        process.wait_until_ready()
        for number in range(200):
            assert process.client.get("/", [("X-Request-ID", f"request-{number}-")]).status == 200
        pipe.read_until(lambda: "request-199-" in pipe.text)
        assert all(f"request-{number}-" in pipe.text for number in range(200))
        for _ in range(50):
            assert process.client.get("/").status == 200
        assert "teesign_dropped_log_lines_total 0.0" in process.client.get("/metrics").body.decode()
        process.terminate()
        assert process.wait() == 0
