"""The GPU evidence worker, and what stands between it and its callers, against faults of every kind."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from fake_worker import ARCH
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_backend import until

from teesign import GpuEvidence, SourceError, UsageError
from teesign.sources import nvidia_worker
from teesign.sources.evidence_protocol import PROTOCOL, Answer, Greeting, class_names, decoded, decoded_base64, request
from teesign.sources.nvidia import NvidiaWorker, bundled_command

pytestmark = pytest.mark.anyio

NONCE = bytes(range(32))
SLACK = 5.0
"""Seconds that a busy machine may add to a time limit."""

FAKE_WORKER = [sys.executable, "-I", "-S", str(Path(__file__).with_name("fake_worker.py"))]
LINUX = sys.platform == "linux"

DOCUMENTATION = (Path(__file__).parents[1] / "docs" / "attestation.md").read_text()
EXAMPLE = DOCUMENTATION.split("```python\n")[1].split("```")[0]

CANNED_LIBRARY = """
import base64, logging, os, sys
print("printed by the library while it is imported")
if os.path.exists("verifier.log"):
    os.remove("verifier.log")
logging.getLogger("library").addHandler(logging.FileHandler("/nonexistent/verifier.log"))
logging.getLogger("library").error("logged by the library")

def collect_gpu_evidence_remote(nonce, no_gpu_mode=False, ppcie_mode=True):
    print("printed by the library while it collects")
    sys.stdout.flush()
    if nonce.startswith("ee"):
        raise Exception("kanarienvogel") from KeyError("kanarienvogel")
    report = base64.b64encode(bytes.fromhex("00" * 32 if no_gpu_mode else nonce)).decode()
    return [{"certificate": "Y2hhaW4=", "evidence": report, "arch": "HOPPER", "more": 1}] * 2
"""


def worker(mode: str, argument: object = "", **choices: object) -> NvidiaWorker:
    """Return a source that draws on the fake worker."""
    return NvidiaWorker([*FAKE_WORKER, mode, str(argument)], **choices)  # type: ignore[arg-type]  # the tests' own choices


@contextlib.asynccontextmanager
async def closing(source: NvidiaWorker) -> AsyncIterator[NvidiaWorker]:
    """Close the source when the block is left, and see that its worker is gone."""
    try:
        yield source
    finally:
        pid = source.pid
        await source.aclose()
        with anyio.fail_after(30):
            while pid is not None and exists(pid):  # a busy machine takes its time; closing again collects it
                await anyio.sleep(0.05)
                await source.aclose()


def exists(pid: int) -> bool:
    """Tell whether there is such a process; a zombie is one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def running(pid: int) -> bool:
    """Tell whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children() -> list[str]:
    """Return the processes that this one has started and not reaped."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


async def gone(pid: int) -> bool:
    """Wait for a process to end; whose child it is may have it reaped."""
    for _ in range(500):
        if not running(pid):
            return True
        await anyio.sleep(0.01)
    return False


def is_for(evidence: GpuEvidence, nonce: bytes) -> bool:
    """Tell whether the evidence was made over this nonce."""
    return nonce in base64.b64decode(evidence.evidence[0]["evidence"])


async def test_evidence_is_what_the_worker_collected() -> None:
    """Certificate, evidence and architecture come out as the worker gave them; nothing is marked as simulated."""
    async with closing(worker("good")) as source:
        evidence = await source.collect(NONCE)
    assert set(evidence.evidence[0]) == {"certificate", "evidence", "arch"}
    assert is_for(evidence, NONCE)
    assert evidence.arch == ARCH
    assert not evidence.simulated


async def test_evidence_without_hardware_is_marked() -> None:
    """Canned evidence is marked as simulated, and need not hold the nonce."""
    async with closing(worker("evidence-for-other-nonce", no_hardware=True)) as source:
        assert (await source.collect(NONCE)).simulated


async def test_one_worker_serves_all_calls() -> None:
    """The worker is started by the first call, and is still the same after more."""
    async with closing(worker("good")) as source:
        assert source.pid is None
        await source.collect(NONCE)
        pid = source.pid
        for _ in range(5):
            await source.collect(NONCE)
        assert source.pid == pid


@pytest.mark.parametrize("length", [0, 31, 33])
async def test_nonce_has_32_bytes(length: int) -> None:
    """A nonce of another length is the caller's mistake."""
    with pytest.raises(UsageError) as caught:
        await worker("good").collect(bytes(length))
    assert caught.value.code == "bad_nonce"


async def test_worker_that_floods_stderr_never_stalls() -> None:
    """200 collections, each with 64 KiB on standard error, all succeed."""
    async with closing(worker("stderr")) as source:
        with anyio.fail_after(60):
            for number in range(200):
                nonce = number.to_bytes(32, "big")
                assert is_for(await source.collect(nonce), nonce)


@pytest.mark.parametrize("size", [300_000, 1_000_000, 6_000_000])
async def test_long_answers_arrive_whole(size: int) -> None:
    """Evidence is longer than a pipe and than most readers' limits."""
    async with closing(worker("large", size)) as source:
        for _ in range(3):
            assert len((await source.collect(NONCE)).evidence[0]["evidence"]) > size


async def test_cancelled_calls_never_give_evidence_to_the_next_caller() -> None:
    """100 calls cancelled at random moments, then 100 more: every answer carries its own nonce."""
    chance = random.Random(1)
    async with closing(worker("slow")) as source:
        cancelled = 0
        for number in range(100):
            nonce = number.to_bytes(32, "big")
            with anyio.move_on_after(chance.random() * 0.02) as scope:
                assert is_for(await source.collect(nonce), nonce)
            cancelled += scope.cancelled_caught
        assert cancelled > 10
        for number in range(100, 200):
            nonce = number.to_bytes(32, "big")
            assert is_for(await source.collect(nonce), nonce)


async def test_cancelled_calls_among_others_disturb_none() -> None:
    """Callers that wait in line and leave, in any order, cost the others nothing and get no evidence of theirs."""
    chance = random.Random(2)
    served = []

    async def call(source: NvidiaWorker, number: int) -> None:
        nonce = number.to_bytes(32, "big")
        with anyio.move_on_after(chance.random() * 0.3 if number % 2 else 60):
            assert is_for(await source.collect(nonce), nonce)
            served.append(number)

    async with closing(worker("slow")) as source, anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(call, source, number)
    assert set(range(0, 100, 2)) <= set(served)


async def test_cancelled_start_is_taken_up_by_the_next_call() -> None:
    """Callers that give up while the worker starts do not make it start over and over."""
    async with closing(worker("good")) as source:
        async with anyio.create_task_group() as group:
            group.start_soon(source.collect, NONCE)
            while source.pid is None:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        pid = source.pid
        assert pid is not None
        await source.collect(NONCE)
        assert source.pid == pid


async def test_late_answer_is_waited_for_and_dropped() -> None:
    """The call after a cancelled one gets its own evidence, from the same worker, which never had two requests."""
    async with closing(worker("alone")) as source:
        await source.collect(bytes(32))
        pid = source.pid
        with anyio.move_on_after(0.05):
            await source.collect(bytes([1]) * 32)
        assert is_for(await source.collect(NONCE), NONCE)
        assert source.pid == pid


async def test_worker_never_has_two_requests() -> None:
    """However many callers give up, requests do not pile up in front of the GPU."""
    async with closing(worker("alone")) as source:
        await source.collect(NONCE)
        for _ in range(10):
            with anyio.move_on_after(0.02):
                await source.collect(bytes(32))
        assert is_for(await source.collect(NONCE), NONCE)


async def test_answers_with_other_ids_are_dropped() -> None:
    """An answer counts for the request with its id only."""
    async with closing(worker("others-first")) as source:
        for _ in range(3):
            assert is_for(await source.collect(NONCE), NONCE)


FAILURES = [
    # mode, code, a word of the message
    ("killed", "gpu_exited", "-9"),
    ("exits", "gpu_exited", "3"),
    ("half-line", "gpu_exited", "0"),
    ("stopped", "gpu_timeout", "in time"),
    ("endless-others", "gpu_timeout", "in time"),
    ("endless-line", "gpu_bad_answer", "bytes"),
    ("garbage", "gpu_bad_answer", "not an answer"),
    ("prints", "gpu_bad_answer", "not an answer"),
    ("no-arch", "gpu_bad_answer", "not an answer"),
    ("no-evidence", "gpu_bad_answer", "without evidence"),
    ("not-base64", "gpu_bad_answer", "base64"),
    ("other-nonce", "gpu_wrong_nonce", "another nonce"),
    ("evidence-for-other-nonce", "gpu_wrong_nonce", "does not hold the nonce"),
    ("error", "gpu_failed", "Exception from NVMLError_GpuIsLost"),
    ("talkative-error", "gpu_failed", "no class name given"),
]


@pytest.mark.parametrize(("mode", "code", "word"), FAILURES, ids=[mode for mode, _, _ in FAILURES])
async def test_failure_is_typed_and_the_next_call_works(tmp_path: Path, mode: str, code: str, word: str) -> None:
    """A worker that fails in the middle of a call: an error with its code, and the next call has a new worker."""
    async with closing(worker(mode, tmp_path / "marker", call_timeout=1.0, max_line=1_000_000)) as source:
        began = time.monotonic()
        with pytest.raises(SourceError, match=word) as caught:
            await source.collect(NONCE)
        assert time.monotonic() - began < 1.0 + SLACK
        assert caught.value.code == code
        assert "kanarienvogel" not in str(caught.value)
        assert source.pid is None
        assert is_for(await source.collect(NONCE), NONCE)


START_FAILURES = [
    # command, code, a word of the message
    ([], "gpu_not_started", "ValueError"),
    (["/nonexistent/worker"], "gpu_not_started", "FileNotFoundError"),
    (["/dev/null"], "gpu_not_started", "PermissionError"),
    (["nul\0"], "gpu_not_started", "ValueError"),
    ([*FAKE_WORKER, "exits-at-once"], "gpu_exited", "7"),
    ([*FAKE_WORKER, "silent"], "gpu_timeout", "did not greet"),
    ([*FAKE_WORKER, "other-protocol"], "gpu_bad_answer", "protocol 1"),
    ([*FAKE_WORKER, "import-error"], "gpu_import_failed", "ModuleNotFoundError"),
]


@pytest.mark.parametrize(
    ("command", "code", "word"), START_FAILURES, ids=[case[1] + case[2] for case in START_FAILURES]
)
async def test_worker_that_does_not_start_is_told_each_time(command: list[str], code: str, word: str) -> None:
    """Each way of not coming up has its code, within the time limit, the first time and the second."""
    async with closing(NvidiaWorker(command, start_timeout=2.5)) as source:
        for _ in range(2):
            with pytest.raises(SourceError, match=word) as caught:
                await source.collect(NONCE)
            assert caught.value.code == code
        assert source.pid is None


async def test_worker_killed_from_outside_fails_its_call_only() -> None:
    """SIGKILL in the middle of a call: that call fails at once, the one that waits behind it succeeds."""
    outcomes: list[bool | str] = []

    async def call(source: NvidiaWorker) -> None:
        try:
            outcomes.append(is_for(await source.collect(NONCE), NONCE))
        except SourceError as error:
            outcomes.append(error.code)

    async with closing(worker("sleeps", 1)) as source, anyio.create_task_group() as group:
        group.start_soon(call, source)
        await anyio.sleep(0.2)
        group.start_soon(call, source)
        await anyio.sleep(0.2)
        assert source.pid is not None
        os.kill(source.pid, signal.SIGKILL)
    assert outcomes == ["gpu_exited", True]


async def test_worker_that_died_between_calls_is_replaced_without_an_error() -> None:
    """A worker killed while it has nothing to do costs no caller anything."""
    async with closing(worker("good")) as source:
        await source.collect(NONCE)
        pid = source.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert await gone(pid)
        assert is_for(await source.collect(NONCE), NONCE)
        assert source.pid != pid
        assert not exists(pid)


async def test_worker_stopped_under_a_cancelled_call_is_replaced() -> None:
    """The call after one that was cancelled waits for the rest of its time, then has a new worker, without an error."""
    async with closing(worker("good", call_timeout=1.5)) as source:
        await source.collect(NONCE)
        pid = source.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with anyio.move_on_after(0.1):
            await source.collect(NONCE)
        assert is_for(await source.collect(NONCE), NONCE)
        assert source.pid != pid
        assert not exists(pid)


async def test_pause_grows_with_each_failure_and_ends_with_success(tmp_path: Path) -> None:
    """Restarts keep a distance that doubles up to its bound; after a success it begins anew, and none is kept."""
    pauses = []

    async def fail(source: NvidiaWorker) -> None:
        with pytest.raises(SourceError):
            await source.collect(NONCE)
        pauses.append(source._not_before - anyio.current_time())  # some of it may be over

    began = time.monotonic()
    async with closing(worker("exits-at-once", backoff=0.5, max_backoff=1.0)) as source:
        for _ in range(4):
            await fail(source)
    assert time.monotonic() - began >= 0.5 + 1.0 + 1.0
    assert pauses[0] <= 0.5
    assert all(0.5 < pause <= 1.0 for pause in pauses[1:])
    marker = tmp_path / "marker"
    async with closing(worker("exits", marker, backoff=0.5, max_backoff=100)) as source:
        await fail(source)
        await source.collect(NONCE)
        assert source.pid is not None
        os.kill(source.pid, signal.SIGKILL)
        assert await gone(source.pid)
        began = time.monotonic()
        await source.collect(NONCE)
        assert time.monotonic() - began < SLACK
        marker.unlink()
        await fail(source)
    assert pauses[-1] <= 0.5


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio has no such cancellation
async def test_call_cancelled_by_asyncio_leaves_no_dead_worker_to_the_next() -> None:
    """Its scopes do not shield from that: not even the end of a worker that has closed its output is waited for."""
    closes_output = "import os, time; os.write(1, b'{\"protocol\": 1}\\n'); input(); os.close(1); time.sleep(60)"
    source = NvidiaWorker([sys.executable, "-I", "-S", "-c", closes_output], backoff=0.001, max_backoff=0.001)
    async with closing(source):
        for _ in range(10):
            call = asyncio.create_task(source.collect(NONCE))
            while source.pid is None:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0)
            process = source._process
            assert process is not None
            while not process._stdout.closed and not call.done():  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError, SourceError):
                await call
            with pytest.raises(SourceError) as caught:
                await source.collect(NONCE)
            assert caught.value.code == "gpu_exited"
    assert not children()


async def test_collections_never_overlap_and_keep_their_order() -> None:
    """Ten callers at once are served one after the other, first come first served."""
    order = []

    async def call(source: NvidiaWorker, number: int) -> None:
        await source.collect(bytes([number]) * 32)
        order.append(number)

    async with closing(worker("slow")) as source, anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(call, source, number)
            await anyio.lowlevel.checkpoint()
    assert sorted(order) == list(range(10))
    assert order == list(range(10))


async def test_event_loop_is_never_blocked() -> None:
    """While a collection sleeps for two seconds, and while large answers arrive, other tasks keep running."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await anyio.sleep(0.005)
            longest = max(longest, time.monotonic() - before)

    async with closing(worker("sleeps", 2)) as slow, closing(worker("large", 300_000)) as large:
        await slow.collect(NONCE)
        await large.collect(NONCE)
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            await slow.collect(NONCE)
            for _ in range(10):
                await large.collect(NONCE)
            group.cancel_scope.cancel()
    assert longest < 1.2  # on a busy machine, where each task waits for its turn


async def test_closing_ends_calls_under_way_and_refuses_later_ones() -> None:
    """`aclose` does not wait for the GPU: callers are told at once, the worker is gone, closing again is harmless."""
    codes = []
    source = worker("sleeps", 60)

    async def call() -> None:
        with pytest.raises(SourceError) as caught:
            await source.collect(NONCE)
        codes.append(caught.value.code)

    began = time.monotonic()
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(call)
        await anyio.sleep(0.3)
        pid = source.pid
        assert pid is not None
        await source.aclose()
        assert not exists(pid)
    await call()
    await source.aclose()
    assert codes == ["gpu_closed"] * 4
    assert time.monotonic() - began < SLACK


@pytest.mark.skipif(not LINUX, reason="looks into /proc")
async def test_processes_that_the_worker_started_are_killed_with_it(tmp_path: Path) -> None:
    """A command may be a script around the real worker: nothing of it is left behind."""
    noted = tmp_path / "pid"
    script = f"sleep 3600 & echo $! > {shlex.quote(str(noted))}; exec {shlex.join(FAKE_WORKER)} good"
    async with closing(NvidiaWorker(["/bin/sh", "-c", script])) as source:
        await source.collect(NONCE)
        pid = int(noted.read_text())
        assert exists(pid)
    assert await gone(pid)


async def test_worker_gets_the_environment_it_is_given() -> None:
    """With an environment of its own, the worker sees nothing of this process's."""
    async with closing(worker("environment", environment={"GPU_ARCH": "RUBIN"})) as source:
        assert (await source.collect(NONCE)).arch == "RUBIN"


@pytest.mark.skipif(not LINUX, reason="looks into /proc")
async def test_descriptors_and_processes_are_given_back() -> None:
    """After fifty failures and cancelled calls as many descriptors are open as before, and no child is left."""
    async with closing(worker("good")) as source:
        await source.collect(NONCE)
    await anyio.lowlevel.checkpoint()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - no path is made of it
    for _ in range(10):
        async with closing(worker("exits", backoff=0.001)) as source:
            for _ in range(4):
                with pytest.raises(SourceError):
                    await source.collect(NONCE)
            with anyio.move_on_after(0.005):
                await source.collect(NONCE)
    # The event loop closes the pipes of what has ended in turns of its own.
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)  # noqa: PTH208 - likewise
    assert not children()


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Return a directory with a `verifier` package that prints, logs to disk, and has canned evidence."""
    package = tmp_path / "library" / "verifier"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "cc_admin.py").write_text(CANNED_LIBRARY)
    return package.parent


def bundled(library: Path, file: Path | None = None, **choices: object) -> NvidiaWorker:
    """Return a source that draws on the bundled worker with this library; by the path of its file, if one is given."""
    environment = {"PYTHONPATH": str(library), "PATH": os.environ["PATH"]}
    python, own_file = bundled_command()
    return NvidiaWorker([python, str(file or own_file)], environment=environment, **choices)  # type: ignore[arg-type]  # as above


async def test_bundled_worker_keeps_its_protocol_apart_from_prints(library: Path) -> None:
    """The library prints while it is imported and while it collects; the answers are untouched."""
    async with closing(bundled(library)) as source:
        for number in range(20):
            evidence = await source.collect(bytes([number]) * 32)
            assert is_for(evidence, bytes([number]) * 32)
            assert [item["arch"] for item in evidence.evidence] == ["HOPPER", "HOPPER"]
            assert set(evidence.evidence[0]) == {"certificate", "evidence", "arch"}


async def test_bundled_worker_asks_for_canned_evidence(library: Path) -> None:
    """Without hardware the library's no-GPU mode is used, and the answer marked."""
    async with closing(bundled(library, no_hardware=True)) as source:
        evidence = await source.collect(NONCE)
    assert is_for(evidence, bytes(32))
    assert evidence.simulated


async def test_bundled_worker_writes_nothing_to_disk(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would write a log to the working directory, and remove one that is there."""
    monkeypatch.chdir(library)
    log = library / "verifier.log"
    log.write_text("somebody's")
    async with closing(bundled(library)) as source:
        await source.collect(NONCE)
    assert log.read_text() == "somebody's"


async def test_bundled_worker_reports_classes_and_no_messages(library: Path) -> None:
    """When the library raises, the names of the exceptions in the chain come through, and nothing of their text."""
    async with closing(bundled(library)) as source:
        with pytest.raises(SourceError, match="Exception from KeyError") as caught:
            await source.collect(bytes([0xEE]) * 32)
        assert caught.value.code == "gpu_failed"
        assert "kanarienvogel" not in str(caught.value)
        assert is_for(await source.collect(NONCE), NONCE)


@pytest.mark.parametrize(
    ("source_text", "word"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("raise OSError('kanarienvogel')", "OSError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("this is bad Python", "SyntaxError"),
    ],
)
async def test_bundled_worker_tells_why_the_library_does_not_load(library: Path, source_text: str, word: str) -> None:
    """Whatever the library does when it is imported, the reason's class is told."""
    (library / "verifier" / "cc_admin.py").write_text(source_text)
    async with closing(bundled(library)) as source:
        with pytest.raises(SourceError, match=word) as caught:
            await source.collect(NONCE)
        assert caught.value.code == "gpu_import_failed"


@pytest.mark.parametrize("linked", ["nothing", "file", "directory"])
async def test_bundled_worker_does_not_mistake_its_neighbours_for_modules(
    library: Path, tmp_path: Path, linked: str
) -> None:
    """The worker's own directory holds modules with names like `nvidia`, which the library must not be given.

    However the worker is reached: a tool that installs by symbolic links may have put it elsewhere.
    """
    (library / "verifier" / "cc_admin.py").write_text("import simulated")
    file = Path(nvidia_worker.__file__)
    if linked == "file":
        (tmp_path / "linked.py").symlink_to(file)
        file = tmp_path / "linked.py"
    elif linked == "directory":
        (tmp_path / "linked").symlink_to(file.parent)
        file = tmp_path / "linked" / file.name
    async with closing(bundled(library, file)) as source:
        with pytest.raises(SourceError, match="ModuleNotFoundError"):
            await source.collect(NONCE)


PARENT = """
import sys, anyio
from teesign.sources.nvidia import NvidiaWorker
async def main():
    source = NvidiaWorker(sys.argv[2:])
    await source.collect(bytes(32))
    print(source.pid, flush=True)
    await anyio.sleep(3600)
anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.skipif(not LINUX, reason="looks into /proc")
@pytest.mark.parametrize("state", ["idle", "stopped"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_bundled_worker_ends_with_the_process_that_started_it(
    anyio_backend_name: str, library: Path, how: signal.Signals, state: str
) -> None:
    """However the parent ends, its worker does not stay, not even one that cannot run."""
    command = [sys.executable, "-c", PARENT, anyio_backend_name, *bundled_command()]
    environment = {**os.environ, "PYTHONPATH": str(library)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:  # noqa: ASYNC220 - waits for a line at once
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert exists(pid)
        if state == "stopped":
            os.kill(pid, signal.SIGSTOP)
        parent.send_signal(how)
    assert await gone(pid)


@pytest.mark.skipif(not LINUX, reason="dying with the parent is Linux's")
@pytest.mark.parametrize("anyio_backend", ["trio"])  # asyncio's threads stay for the loop's lifetime
async def test_bundled_worker_outlives_idle_threads(library: Path) -> None:
    """The worker is tied to the event loop's thread, not to a pooled one that ends while the server is idle."""
    async with closing(bundled(library)) as source:
        await source.collect(NONCE)
        pid = source.pid
        await anyio.sleep(11)  # trio ends a pooled thread after ten idle seconds
        assert pid is not None
        assert exists(pid)
        await source.collect(NONCE)
        assert source.pid == pid


def test_bundled_worker_exits_when_its_input_ends() -> None:
    """The end of the requests is the end of the worker."""
    done = subprocess.run(bundled_command(), input=b"", capture_output=True, timeout=30, check=False)
    assert done.returncode in (0, 1)  # 1 if it greeted with an error before it saw the end


def test_bundled_worker_needs_nothing_but_the_standard_library() -> None:
    """It runs under an interpreter that has no packages at all, up to the import of NVIDIA's."""
    command = [sys.executable, "-I", "-S", bundled_command()[1]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"protocol": 1, "error": "ModuleNotFoundError"}


def test_bundled_command_takes_another_interpreter() -> None:
    """The interpreter is the caller's choice, the script ours."""
    assert bundled_command("/opt/gpu/bin/python") == ["/opt/gpu/bin/python", nvidia_worker.__file__]
    assert bundled_command()[0] == sys.executable


async def test_worker_in_the_documentation_works(tmp_path: Path) -> None:
    """The example of docs/attestation.md can be used as it stands, and ends by itself when its input does."""
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 18
    program = tmp_path / "worker.py"
    program.write_text(EXAMPLE)
    async with closing(NvidiaWorker([sys.executable, str(program)])) as source:
        for number in range(3):
            evidence = await source.collect(bytes([number]) * 32)
            assert is_for(evidence, bytes([number]) * 32)
            assert evidence.simulated


def test_worker_in_the_documentation_ends_in_the_middle_of_a_collection(tmp_path: Path) -> None:
    """It keeps the rule that stands above it."""
    program = tmp_path / "worker.py"
    collecting = 'print("collecting", file=sys.stderr, flush=True); __import__("time").sleep(60)'
    program.write_text(EXAMPLE.replace("return [", f"{collecting}; return ["))
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, str(program)], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            assert process.stdin is not None
            assert process.stderr is not None
            process.stdin.write(request(1, NONCE, no_hardware=False) + b"\n")
            process.stdin.flush()
            assert process.stderr.readline() == b"collecting\n"
            process.stdin.close()
            process.wait(30)
        finally:
            process.kill()


def test_session_in_the_documentation_holds_messages() -> None:
    """Each line of the example session is a message of its kind."""
    session = [
        line.split(maxsplit=1) for line in DOCUMENTATION.splitlines() if line.startswith(("    worker ", "    proxy "))
    ]
    greeting, *others = [text for speaker, text in session if speaker == "worker"]
    requests = [json.loads(text) for speaker, text in session if speaker == "proxy"]
    assert decoded(greeting.encode(), Greeting) == Greeting(PROTOCOL)
    answers = [decoded(text.encode(), Answer) for text in others]
    assert [(answer.id, answer.nonce) for answer in answers if answer] == [
        (one["id"], one["nonce"]) for one in requests
    ]
    assert [set(one) for one in requests] == [set(json.loads(request(1, NONCE, no_hardware=False)))] * 2


@pytest.mark.parametrize("module", ["nvidia", "dstack"])
def test_documentation_lists_every_code(module: str) -> None:
    """Operators find each error code of the sources explained, and none that does not exist."""
    text = Path(nvidia_worker.__file__).with_name(f"{module}.py").read_text()
    prefix = "gpu_" if module == "nvidia" else "dstack_"
    raised = set(re.findall(rf'"({prefix}[a-z_]+)"', text))
    assert raised == set(re.findall(rf"^\| `({prefix}[a-z_]+)`", DOCUMENTATION, re.MULTILINE))


async def test_repr_tells_the_state() -> None:
    """For whoever looks at it in a debugger: not started, at work, closed."""
    source = worker("good")
    assert "idle" in repr(source)
    await source.collect(NONCE)
    assert f"pid {source.pid}" in repr(source)
    await source.aclose()
    assert "closed" in repr(source)


def test_chain_of_classes_is_bounded() -> None:
    """However long a chain of exceptions is, and even if it is a ring, eight names are told."""
    error = ValueError()
    error.__context__ = other = KeyError()
    other.__context__ = error
    assert nvidia_worker.class_names(error).split(" from ") == ["ValueError", "KeyError"] * 4


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: (
        st.lists(children) | st.dictionaries(st.text() | st.sampled_from(["id", "nonce", "error"]), children)
    ),
    max_leaves=10,
)
lines = st.binary() | json_values.map(lambda value: json.dumps(value).encode())


class ScriptedProcess:
    """Stands for a worker process: says the lines it is given, then ends."""

    exited = False
    reaped = True
    pid = 1
    status = 0

    def __init__(self, lines: list[bytes]) -> None:
        self._lines = iter(lines)

    def send(self, line: bytes) -> None:
        """Take a request, which must be of the length that goes through a pipe in one piece."""
        assert len(line) < 512

    async def receive(self) -> bytes | None:
        """Return the next line."""
        await anyio.lowlevel.checkpoint()
        return next(self._lines, None)

    async def close(self) -> None:
        """End."""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(deadline=None)
@given(said=st.lists(lines, max_size=3))
def test_garbage_from_a_worker_only_ever_raises_source_errors(backend: str, said: list[bytes]) -> None:
    """For any lines in the place of an answer, and of a greeting, the call fails with a `SourceError`."""

    async def collect(answers: list[bytes]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("teesign.sources.nvidia.LineProcess", lambda *_, **__: ScriptedProcess(answers))
            with pytest.raises(SourceError):
                await NvidiaWorker(["scripted"]).collect(NONCE)

    anyio.run(collect, said, backend=backend)
    anyio.run(collect, [b'{"protocol":1}', *said], backend=backend)


@given(line=lines | st.integers(1, 5000).map(lambda depth: b"[" * depth))
def test_no_line_is_read_as_anything_but_a_message_or_nothing(line: bytes) -> None:
    """For any bytes, reading gives a message or None, and raises nothing."""
    assert isinstance(decoded(line, Greeting), Greeting | None)
    assert isinstance(decoded(line, Answer), Answer | None)


@given(text=st.text())
def test_no_text_of_a_worker_gets_into_a_message_unless_it_is_names(text: str) -> None:
    """For any text, what is told is the text if it consists of class names, or a fixed phrase."""
    told = class_names(text)
    assert told == "no class name given" or (
        told == text and text.replace(" from ", "").replace(".", "").isidentifier()
    )


@given(text=st.text() | st.from_regex(r"[A-Za-z0-9+/=]*"))
def test_no_text_breaks_base64(text: str) -> None:
    """For any text, decoding gives bytes or None."""
    assert isinstance(decoded_base64(text), bytes | None)
