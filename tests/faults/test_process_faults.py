"""What befalls the whole process: clocks that jump, pauses, no more descriptors, and no disk to write to."""

from __future__ import annotations

import ast
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from backend import Backend, Call, chunked, event_stream, head, json_answer
from fault_bench import CHAT, Bench, bench, chat_request
from processes import Process, teesign_serve
from raw_client import connect, request_bytes
from servers import MAIN_KINDS, TOKEN, Kind
from wire import multipart

EVENTS = b"content-type: text/event-stream"
CHUNKED = b"transfer-encoding: chunked"
REPORT = "/v1/attestation/report"
DAY = 86_400.0


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a process writes to."""
    return tmp_path / "log"


def worker_of(process: Process) -> int:
    """Return the process id of the one that serves."""
    (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(worker)


# --- clocks


@pytest.fixture(scope="module", params=MAIN_KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A bench under each server."""
    kind: Kind = request.param
    with bench(kind) as made:
        yield made


@pytest.mark.parametrize("jump", [DAY, -DAY, 3_650 * DAY, -3_650 * DAY])
def test_a_wall_clock_that_jumps(running: Bench, jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signatures, reports, connections and limits neither die early nor live on; only certificates go by that clock."""
    real = time.time
    with running.case() as case:
        before = case.exchange(chat_request(), "signed")
        report = running.client.get(REPORT).body
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        case.exchange(chat_request(), "signed")
        assert running.signature_text((before.header(b"x-signature-id") or b"").decode()) is not None
        assert running.client.get(REPORT).body == report
        monkeypatch.undo()
        case.exchange(chat_request(), "signed")


ASKING_FOR_THE_TIME_OF_DAY = {
    "teesign/client/transport.py": "the far end's: collateral and certificates of a machine have to be valid now",
    "teesign_asgi/cli/verify.py": "the same for the command, whose verdict says that moment",
}
"""The only modules that do, each with the reason."""

OF_DAY = {"time": {"time", "time_ns"}, "datetime": {"now", "utcnow", "today"}, "date": {"today"}}


def asks_for_the_time_of_day(node: ast.AST) -> bool:
    """Tell whether a piece of a program names what reads the wall clock, or takes its name from its module."""
    if isinstance(node, ast.ImportFrom) and node.module == "time":
        return any(each.name in OF_DAY["time"] for each in node.names)
    if not isinstance(node, ast.Attribute):
        return False
    owner = getattr(node.value, "attr", getattr(node.value, "id", ""))
    return node.attr in OF_DAY.get(owner, ())


def test_no_lifetime_goes_by_the_wall_clock() -> None:
    """No module asks for the time of day but those of the far end that have to; records of a log have theirs."""
    source = Path(__file__).parents[2] / "src"
    asking = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if any(asks_for_the_time_of_day(node) for node in ast.walk(ast.parse(path.read_text())))
    }
    assert asking == set(ASKING_FOR_THE_TIME_OF_DAY)


def test_a_process_that_is_paused(log: Path) -> None:
    """What came while it was stopped was not silence: streams and uploads go on, are whole and signed."""
    paused = threading.Event()

    def script(call: Call) -> None:
        if call.target != CHAT.encode():
            json_answer(b'{"id":"uploaded"}')(call)
            return
        call.read_body()
        call.send(head(200, EVENTS, CHUNKED), chunked(b'data: {"id":"paused"}\n\n', end=False))
        assert paused.wait(60)
        for _ in range(6):
            call.connection.gone.wait(0.3)
            call.send(chunked(b"data: 1\n\n", end=False))
        call.send(chunked(b"data: [DONE]\n\n"))

    upload = request_bytes("POST", "/v1/other", b"x" * 2_000, token=TOKEN)
    with (
        Backend() as backend,
        teesign_serve(
            log,
            VLLM_BASE_URL=backend.url,
            VLLM_PROXY_TIMEOUT_SECS="2",
            CLIENT_BODY_TIMEOUT="2",
            CLIENT_WRITE_TIMEOUT="2",
        ) as process,
    ):
        process.wait_until_ready()
        backend.play(script)
        with connect(process.port) as wire, connect(process.port) as uploading:
            wire.send(chat_request())
            assert b"paused" in wire.read_until(b"}\n\n")
            uploading.send(upload[:-1_000])
            while len(backend.calls) < 2:
                time.sleep(0.01)
            worker = worker_of(process)
            os.kill(worker, signal.SIGSTOP)
            try:
                paused.set()
                uploading.send(upload[-1_000:])
                time.sleep(3.3)
            finally:
                os.kill(worker, signal.SIGCONT)
            wire.read_until(b"data: [DONE]\n\n")
            assert uploading.response().status == 200
        for chat_id in ("paused", "uploaded"):
            assert process.client.signature(chat_id).status == 200


# --- descriptors


def test_a_process_without_descriptors(log: Path) -> None:
    """It takes no more connections for a while, answers those it has, and goes on when there are descriptors again."""
    go_on = threading.Event()

    def script(call: Call) -> None:
        call.read_body()
        assert go_on.wait(10)
        event_stream(b"data: [DONE]\n\n")(call)

    with Backend() as backend, teesign_serve(log, VLLM_BASE_URL=backend.url) as process, ExitStack() as crowd:
        process.wait_until_ready()
        backend.play(json_answer(b'{"id":"x"}'))
        assert process.client.post(CHAT, b"{}").status == 200
        descriptors = Path(f"/proc/{worker_of(process)}/fd")
        limit = max(int(each.name) for each in descriptors.iterdir()) + 7
        resource.prlimit(worker_of(process), resource.RLIMIT_NOFILE, (limit, limit))
        open_ones = [crowd.enter_context(connect(process.port)) for _ in range(40)]
        deadline = time.monotonic() + 10
        while len(list(descriptors.iterdir())) < limit:
            assert time.monotonic() < deadline, "there are descriptors"
            time.sleep(0.01)
        backend.play(script)
        open_ones[0].send(chat_request(kept=True))
        backend.next_call()  # over the connection that there was
        open_ones[1].send(chat_request(kept=True))
        assert open_ones[1].response().status == 500
        go_on.set()
        finished = open_ones[0].response()
        assert (finished.status, finished.whole) == (200, True)
        crowd.close()
        backend.play(json_answer(b'{"id":"x"}'))
        deadline = time.monotonic() + 10
        while True:
            try:
                status = process.client.post(CHAT, b"{}").status
            except OSError:
                status = 0
            if status == 200:
                break
            assert time.monotonic() < deadline, status
        assert process.client.get("/healthz").status == 200
        metrics = process.client.get("/metrics").body.decode()
    assert 'teesign_backend_errors_total{kind="connect"} 1.0' in metrics
    assert "unexpected error" not in log.read_text()


# --- disk

HOOK = """
import os, sys

_record = os.open(os.environ["TEST_RECORD"], os.O_WRONLY | os.O_APPEND)
_writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def _note(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if str(path).startswith(("/dev/", "/proc/")) or ".coverage" in str(path) or isinstance(path, int):
            return
        if (flags or 0) & _writing or set(mode or "") & set("wax+"):
            os.write(_record, f"{event} {path}\\n".encode())
    elif event in ("os.mkdir", "os.rename", "os.link", "os.truncate", "tempfile.mkstemp", "tempfile.mkdtemp"):
        if ".coverage" not in str(arguments):
            os.write(_record, f"{event} {arguments}\\n".encode())

sys.addaudithook(_note)
"""


def files_open_for_writing(pid: int) -> list[str]:
    """Return the regular files that a process could write to."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
            flags = int(Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text().split("flags:")[1].split()[0], 8)
        except FileNotFoundError:
            continue
        is_file = target.startswith("/") and not target.startswith(("/dev/", "/proc/"))
        if is_file and flags & (os.O_WRONLY | os.O_RDWR):
            found.append(target)
    return found


def test_nothing_is_written_to_disk(log: Path, tmp_path: Path) -> None:
    """Chats, streams, large uploads and bodies, reports and errors leave no file, nor need one for a moment."""
    places = [tmp_path / name for name in ("tmp", "cwd", "hook")]
    for place in places:
        place.mkdir()
    temporary, home, hook = places
    record = tmp_path / "record"
    record.touch()
    (hook / "sitecustomize.py").write_text(HOOK)
    for place in (temporary, home):
        place.chmod(0o555)
    body, content_type = multipart(b"speech " * 500_000)
    with (
        Backend() as backend,
        teesign_serve(
            log,
            VLLM_BASE_URL=backend.url,
            TMPDIR=str(temporary),
            HOME=str(home),
            TEST_RECORD=str(record),
            PYTHONDONTWRITEBYTECODE="1",
            PYTHONPATH=os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])]),
        ) as process,
    ):
        process.wait_until_ready()
        client = process.client
        backend.play(json_answer(b'{"id":"x","text":"' + b"y" * 3_000_000 + b'"}'))
        assert client.post(CHAT, b'{"p":"' + b"x" * 3_000_000 + b'"}').status == 200
        with client.open(
            "POST", "/v1/audio/transcriptions", [content_type, ("Content-Length", str(len(body)))], body[:2_000_000]
        ) as conversation:
            backend.next_call()
            backend.next_call()
            within = files_open_for_writing(worker_of(process))
            conversation.send(body[2_000_000:])
            assert conversation.answer().status == 200
        backend.play(event_stream(b"data: " + b"z" * 3_000_000 + b"\n\n", b"data: [DONE]\n\n"))
        assert client.post(CHAT, b"{}").status == 200
        backend.play(json_answer(b'{"error":"' + b"e" * 1_000_000 + b'"}', 500))
        assert client.post("/v1/other", b"{}").status == 500
        assert client.get(REPORT).status == 200
        process.terminate()
        assert process.wait() == 0
    assert [path for path in within if path not in (str(log), str(record)) and ".coverage" not in path] == []
    assert record.read_text() == ""
    assert list(temporary.iterdir()) == list(home.iterdir()) == []


def test_a_crash_leaves_no_core(log: Path) -> None:
    """Keys and tokens would be in it: neither process may write one, nor have one collected."""
    with teesign_serve(log) as process:
        process.wait_until_ready()
        for pid in (process.pid, worker_of(process)):
            assert resource.prlimit(pid, resource.RLIMIT_CORE) == (1, 1)


def test_the_record_of_what_is_written_is_not_deaf(tmp_path: Path) -> None:
    """A program that does write files is found out by the same hook."""
    record = tmp_path / "record"
    record.touch()
    program = "import tempfile; tempfile.TemporaryFile().close(); open('a','w').close()"
    environment = {**os.environ, "TEST_RECORD": str(record)}
    subprocess.run([sys.executable, "-c", HOOK + program], env=environment, cwd=tmp_path, check=True)
    assert "open a" in record.read_text()
    assert "tempfile" in record.read_text() or "/tmp" in record.read_text()
