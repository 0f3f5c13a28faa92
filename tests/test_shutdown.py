"""How `teesign serve` ends: what signals do to it, what it still serves meanwhile, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from backend import Backend, Call, Script, chunked, head, json_answer, open_stream
from processes import REQUIRED, Process, environment, teesign_serve, waiting_for_keys
from raw_client import Wire, connect, connections, request_bytes
from servers import TOKEN, free_port
from wire import Conversation, multipart

CHAT = "/v1/chat/completions"
REQUEST = b'{"stream":true}'
FIRST, LAST = b'data: {"id":"a"}\n\n', b"data: [DONE]\n\n"
SOON = 2.5
"""Seconds that an end at once may take; it takes an eighth of a second on an idle machine."""


class Stream:
    """A response on its way.

    Attributes:
        finish: to be set when the backend shall end it.
        conversation: the client's side.
    """

    def __init__(self, conversation: Conversation, finish: threading.Event) -> None:
        self.conversation = conversation
        self.finish = finish

    def is_whole(self) -> bool:
        """Let the backend end it, and tell whether the client gets all of it."""
        self.finish.set()
        return self.conversation.response.read() == LAST

    def is_broken(self) -> bool:
        """Wait for the connection's end, and tell whether the client can see that the response is not whole."""
        try:
            self.conversation.response.read()
        except (http.client.IncompleteRead, ConnectionResetError):
            return True
        return False


HEEDLESS = """
import os, sys, time
print('{"protocol": 1}', flush=True)
sys.stdin.readline()
with open(sys.argv[1], "w") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(600)
"""
"""A program that collects evidence for ever, and does not notice the end of whoever asked for it."""


@contextmanager
def collecting(process: Process, started: Path) -> Iterator[int]:
    """Ask for a report that does not come, and give the process id of the program that collects for it."""
    process.wait_until_ready()
    with process.client.open("GET", "/v1/attestation/report"):
        deadline = time.monotonic() + 30
        while not (started.exists() and started.read_text().endswith("\n")):
            assert time.monotonic() < deadline, process.output()
            time.sleep(0.01)
        pid = int(started.read_text())
        try:
            yield pid
        finally:
            with contextlib.suppress(ProcessLookupError):  # should this test fail, it is not left either
                os.kill(pid, signal.SIGKILL)


def heedless(directory: Path) -> str:
    """Return the command of that program."""
    program = directory / "worker.py"
    program.write_text(HEEDLESS)
    return shlex.join([sys.executable, "-I", "-S", str(program), str(directory / "started")])


def wait_until_ended(pid: int) -> None:
    """Wait until a process is no more, or waits only for somebody to hear of its end."""
    deadline = time.monotonic() + 10
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline, "it is still running"
            time.sleep(0.02)


@contextmanager
def streaming(process: Process, backend: Backend) -> Iterator[Stream]:
    """Open a stream, and wait for its first event."""
    finish = threading.Event()

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, b"content-type: text/event-stream", b"transfer-encoding: chunked"))
        call.send(chunked(FIRST, end=False))
        while not finish.wait(0.01):
            if call.connection.gone.is_set():
                return
        call.send(chunked(LAST))

    process.wait_until_ready()
    backend.play(script)
    with process.client.stream(CHAT, REQUEST) as conversation:
        conversation.read_until(FIRST)
        try:
            yield Stream(conversation, finish)
        finally:
            finish.set()


def ask_as_old_client(wire: Wire) -> None:
    """Ask for a stream in HTTP/1.0, where the end of the connection is the end of the answer."""
    wire.send(request_bytes("POST", CHAT, REQUEST, token=TOKEN).replace(b" HTTP/1.1", b" HTTP/1.0", 1))


def more_than_the_kernel_takes(port: int) -> Script:
    """Return a script whose last piece stays with the server on this port, as its client takes nothing."""

    def script(call: Call) -> None:
        call.read_body()
        call.send(head(200, b"content-type: text/event-stream", b"transfer-encoding: chunked"))
        held = -1
        while held != (now := sum(waiting for (own, _), waiting in connections() if own == port)):
            held = now
            call.send(chunked(b"data: " + b"x" * 16_000 + b"\n\n", end=False))
            time.sleep(0.1)
        call.send(chunked(LAST))

    return script


def wait_until_not_ready(process: Process) -> None:
    """Wait until the process says that it is coming to its end."""
    deadline = time.monotonic() + 10
    while process.client.get("/readyz").status == 200:
        assert time.monotonic() < deadline, "it is still ready"
        time.sleep(0.01)


def wait_until_refused(port: int) -> None:
    """Wait until nothing listens on a port any more."""
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return
        assert time.monotonic() < deadline, "the port is still open"
        time.sleep(0.02)


def soon(process: Process) -> float:
    """Return how long an end at once may take: on a very busy machine as long as the start, which is far more work."""
    return max(SOON, process.start_time)


def worker_of(process: Process) -> int:
    """Return the process id of the one that serves."""
    (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(worker)


def stops_within_a_second(log: Path) -> bool:
    """Tell whether SIGTERM ends a server so soon, with exit code 0, while a client keeps its connection.

    On a busy machine it may take as long as the start, which takes half a second on an idle one.
    """
    with teesign_serve(log, DRAIN_LINGER="60") as process:
        process.wait_until_ready()
        with process.client.open("GET", "/version", [("Connection", "keep-alive")]) as conversation:
            assert conversation.response.status == 200
            begun = time.monotonic()
            process.terminate()
            assert process.wait() == 0
        return time.monotonic() - begun < max(1.0, process.start_time)


def test_an_idle_server_stops_at_once(log: Path) -> None:
    """SIGTERM ends it within a second, although a client is connected; in one of three tries, should others be busy."""
    assert any(stops_within_a_second(log) for _ in range(3))


@pytest.mark.parametrize(
    "begun", [b"", b"GET / HTT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], ids=["nothing", "head", "h2"]
)
def test_a_client_that_asks_for_nothing_holds_up_no_end(log: Path, begun: bytes) -> None:
    """Not even one that has begun with a head, for which the server would wait half a minute."""
    with teesign_serve(log, DRAIN_LINGER="60") as process:
        process.wait_until_ready()
        with socket.create_connection(("127.0.0.1", process.port)) as connection:
            connection.sendall(begun)
            time.sleep(0.2)  # so that the server has it
            started = time.monotonic()
            process.terminate()
            assert process.wait() == 0
        assert time.monotonic() - started < soon(process)


def test_a_report_that_is_being_made_is_waited_for(log: Path) -> None:
    """A client whose request is being answered says nothing, either, and is not cut off."""
    command = shlex.join([sys.executable, str(Path(__file__).with_name("fake_worker.py")), "sleeps", "4"])
    with teesign_serve(log, GPU_EVIDENCE_COMMAND=command) as process:
        process.wait_until_ready()
        begun = time.monotonic()
        with process.client.open("GET", f"/v1/attestation/report?nonce={'ab' * 32}") as conversation:
            time.sleep(0.5)  # so that the server has it
            process.terminate()
            assert conversation.answer().status == 200
            assert time.monotonic() - begun > 4
        assert process.wait() == 0


def test_the_signature_of_the_last_stream_can_be_fetched(log: Path) -> None:
    """SIGTERM lets a response come to its end; whoever has it gets its signature over a new connection."""
    with Backend() as backend, teesign_serve(log, DRAIN_LINGER="3", VLLM_BASE_URL=backend.url) as process:
        with streaming(process, backend) as stream:
            process.terminate()
            wait_until_not_ready(process)
            assert process.client.get("/healthz").status == 200
            process.client.post(CHAT, REQUEST).assert_error(503, "unavailable", "The server is shutting down")
            assert stream.is_whole()
            own = stream.conversation.response.headers["x-signature-id"]
        for chat_id in (own, "a"):
            assert process.client.signature(chat_id).status == 200
        assert process.wait() == 0


def test_everything_is_served_during_the_delay(log: Path) -> None:
    """After SIGTERM a server is not ready, but goes on for DRAIN_DELAY, so that others stop sending clients to it."""
    with Backend() as backend, teesign_serve(log, DRAIN_DELAY="3", VLLM_BASE_URL=backend.url) as process:
        process.wait_until_ready()
        begun = time.monotonic()
        process.terminate()
        wait_until_not_ready(process)
        backend.play(json_answer(b'{"id":"late"}'))
        answered = process.client.post(CHAT, REQUEST)
        process.client.assert_answer_signed(answered, REQUEST, "late")
        assert process.wait() == 0
        assert time.monotonic() - begun >= 3


def test_a_stream_that_does_not_finish_is_cut(log: Path) -> None:
    """After DRAIN_TIMEOUT the server ends all the same, and says what it did; nothing looks whole."""
    with Backend() as backend, teesign_serve(log, DRAIN_TIMEOUT="1", VLLM_BASE_URL=backend.url) as process:
        with streaming(process, backend) as stream:
            begun = time.monotonic()
            process.terminate()
            process.wait()
            assert 1 <= time.monotonic() - begun < 2 + soon(process)
            assert stream.is_broken()
        backend.call.wait_until_gone()
        assert "open connections are cut off" in process.output()


def test_a_stream_that_is_cut_does_not_look_whole_to_an_old_client(log: Path) -> None:
    """The end of the connection would be the end of the answer, so there is none: the connection is reset."""
    with Backend() as backend, teesign_serve(log, DRAIN_TIMEOUT="1", VLLM_BASE_URL=backend.url) as process:
        process.wait_until_ready()
        backend.play(open_stream(FIRST))
        with connect(process.port) as wire:
            ask_as_old_client(wire)
            wire.read_until(FIRST)
            process.terminate()
            wire.wait_for_end()
            assert wire.ended_by == "reset"


def test_an_answer_that_is_not_taken_does_not_look_whole_to_an_old_client(log: Path) -> None:
    """The server has been given all of it, and the process ends before it has passed all of it on."""
    with (
        Backend() as backend,
        teesign_serve(log, DRAIN_TIMEOUT="1", LOG_LEVEL="debug", VLLM_BASE_URL=backend.url) as process,
    ):
        process.wait_until_ready()
        process.wait_until_it_says("the kernel bounds what connections hold")
        backend.play(more_than_the_kernel_takes(process.port))
        with connect(process.port, receive_buffer=4096) as wire:
            ask_as_old_client(wire)
            process.wait_until_it_says("signed=True")
            process.terminate()
            process.wait()
            assert LAST not in wire.wait_for_end()
            assert wire.ended_by == "reset"


def test_an_upload_finishes(log: Path) -> None:
    """A request that was on its way at SIGTERM is answered like any other, and its signature can be fetched."""
    body, content_type = multipart(b"speech " * 1_000)
    headers = [content_type, ("Content-Length", str(len(body)))]
    with Backend() as backend, teesign_serve(log, DRAIN_LINGER="3", VLLM_BASE_URL=backend.url) as process:
        process.wait_until_ready()
        backend.play(json_answer(b'{"id":"heard"}'))
        with process.client.open("POST", "/v1/audio/transcriptions", headers, body[:1_000]) as conversation:
            backend.next_call()
            process.terminate()
            wait_until_not_ready(process)
            conversation.send(body[1_000:])
            assert conversation.answer().body == b'{"id":"heard"}'
        assert backend.call.body == body
        assert process.client.signature("heard").status == 200
        assert process.wait() == 0


def test_a_second_signal_ends_at_once(log: Path) -> None:
    """Whoever does not want to wait for the streams says so."""
    with Backend() as backend, teesign_serve(log, VLLM_BASE_URL=backend.url) as process:
        with streaming(process, backend) as stream:
            process.terminate()
            wait_until_not_ready(process)
            time.sleep(0.3)  # so long, two signals are one
            begun = time.monotonic()
            process.terminate()
            process.wait()
            assert time.monotonic() - begun < soon(process)
            assert stream.is_broken()
        backend.call.wait_until_gone()
        wait_until_refused(process.port)


def test_signals_to_the_whole_group_are_one(log: Path) -> None:
    """A terminal or a process manager signals the worker too, and perhaps the parent twice; the stream finishes."""
    with Backend() as backend, teesign_serve(log, VLLM_BASE_URL=backend.url) as process:
        with streaming(process, backend) as stream:
            for pid in (process.pid, worker_of(process), process.pid):
                os.kill(pid, signal.SIGINT)
            wait_until_not_ready(process)
            assert stream.is_whole()
        assert process.wait() == 0


def test_nobody_is_left_when_the_parent_is_killed(log: Path) -> None:
    """The worker goes with it, streams and all, and the port is free for another."""
    with Backend() as backend, teesign_serve(log, VLLM_BASE_URL=backend.url) as process:
        with streaming(process, backend):
            worker = worker_of(process)
            process.send_signal(signal.SIGKILL)
            process.wait()
            try:
                wait_until_refused(process.port)
            finally:
                with contextlib.suppress(ProcessLookupError):  # should this test fail, nobody is left either
                    os.kill(worker, signal.SIGKILL)
        backend.call.wait_until_gone()


SIGNALLED_EARLY = """
import os, signal
from teesign_asgi import Settings
from teesign_asgi.cli.serve import load_app, run_server

def load():
    os.kill(os.getpid(), signal.SIGTERM)
    return load_app(Settings.from_mapping(os.environ))

run_server(load, address="127.0.0.1", port=int(os.environ["LISTEN_PORT"]))
"""


def test_a_signal_before_the_worker_listens_for_signals_is_not_lost() -> None:
    """It is taken up as soon as that can be done."""
    variables = environment(**REQUIRED, LISTEN_PORT=str(free_port()))
    with subprocess.Popen([sys.executable, "-c", SIGNALLED_EARLY], env=variables) as process:
        try:
            process.wait(30)
        finally:
            process.kill()


HEARD_LATE = """
import os, threading, time
from functools import partial
from teesign_asgi import Settings
from teesign_asgi.cli.serve import load_app, run_server

waitpid = os.waitpid

def waitpid_on_a_busy_machine(*arguments):
    if threading.current_thread() is threading.main_thread():
        time.sleep(0.01)
        return waitpid(*arguments)
    heard = waitpid(*arguments)
    time.sleep(0.2)
    return heard

os.waitpid = waitpid_on_a_busy_machine
settings = Settings.from_mapping(os.environ)
run_server(partial(load_app, settings), address="127.0.0.1", port=settings.listen_port)
"""
"""A server of which one thread hears of the worker's end, and the other threads a moment later."""


def test_a_worker_that_has_just_ended_is_not_said_to_refuse_it(log: Path) -> None:
    """The kernel tells one thread of a worker's end, and on a busy machine another one asks before it can say so."""
    port = free_port()
    command = [sys.executable, "-c", HEARD_LATE]
    variables = environment(**REQUIRED, LISTEN_PORT=str(port), DRAIN_LINGER="0")
    with log.open("wb") as file, subprocess.Popen(command, env=variables, stderr=file) as running:
        process = Process(running, port, log)
        try:
            process.wait_until_ready()
            process.terminate()
            assert process.wait() == 0
        finally:
            running.kill()
    assert "Killing" not in process.output()


def test_a_certificate_that_has_become_a_pipe_holds_up_no_end(log: Path, tmp_path: Path, certificate: Path) -> None:
    """Reports that shall bind it fail at once, and nothing of them is waited for."""
    path = tmp_path / "cert.pem"
    shutil.copy(certificate, path)
    with teesign_serve(log, TLS_CERT_PATH=str(path)) as process:
        process.wait_until_ready()
        path.unlink()
        os.mkfifo(path)
        assert process.client.get("/v1/attestation/report?include_tls_fingerprint=1").status == 500
        begun = time.monotonic()
        process.terminate()
        assert process.wait() == 0
        assert time.monotonic() - begun < soon(process)
        assert "The file at TLS_CERT_PATH is no regular file" in process.output()


def test_a_server_that_waits_for_its_keys_stops_at_once(log: Path) -> None:
    """It has served nobody, so there is nothing to wait for."""
    with waiting_for_keys(log, drain_delay="60") as process:
        begun = time.monotonic()
        process.terminate()
        assert process.wait() == 0
        assert time.monotonic() - begun < 2 * SOON
        assert "stopped before the start was over" in process.output()


def test_a_signal_to_the_group_of_a_server_that_waits_for_its_keys(log: Path) -> None:
    """As from a terminal: the parent does not take the worker's end for a crash."""
    with waiting_for_keys(log) as process:
        for pid in (process.pid, worker_of(process)):
            os.kill(pid, signal.SIGINT)
        assert process.wait() == 0
        assert "Unexpected exit" not in process.output()


def test_a_hangup_changes_nothing(log: Path) -> None:
    """The server goes on with its keys and its signatures, and can be ended, whether parent or worker is told."""
    with Backend() as backend, teesign_serve(log, VLLM_BASE_URL=backend.url) as process:
        process.wait_until_ready()
        backend.play(json_answer(b'{"id":"kept"}'))
        assert process.client.post(CHAT, REQUEST).status == 200
        worker = worker_of(process)
        for pid in (process.pid, worker):
            os.kill(pid, signal.SIGHUP)
        assert process.client.signature("kept").status == 200
        begun = time.monotonic()
        process.terminate()
        assert process.wait() == 0
        assert time.monotonic() - begun < soon(process)


def test_a_worker_that_was_killed_is_told_of(log: Path) -> None:
    """The last line of a server whose memory ran out says why it has ended."""
    with teesign_serve(log) as process:
        process.wait_until_ready()
        os.kill(worker_of(process), signal.SIGKILL)
        assert process.wait() == 1
        assert "Unexpected exit from worker-1" in process.output()


def test_a_collection_that_does_not_finish_is_cut(log: Path, tmp_path: Path) -> None:
    """The program that collects goes with the server, although it does not notice that."""
    with (
        Backend() as backend,
        teesign_serve(
            log, DRAIN_TIMEOUT="1", GPU_EVIDENCE_COMMAND=heedless(tmp_path), VLLM_BASE_URL=backend.url
        ) as process,
        streaming(process, backend),
        collecting(process, tmp_path / "started") as pid,
    ):
        process.terminate()
        process.wait()
        wait_until_ended(pid)


def test_a_second_signal_ends_a_collection_too(log: Path, tmp_path: Path) -> None:
    """Whoever does not want to wait leaves nothing behind either."""
    with (
        teesign_serve(log, GPU_EVIDENCE_COMMAND=heedless(tmp_path), DRAIN_DELAY="60") as process,
        collecting(process, tmp_path / "started") as pid,
    ):
        process.terminate()
        wait_until_not_ready(process)
        time.sleep(0.3)  # so long, two signals are one
        process.terminate()
        process.wait()
        wait_until_ended(pid)
