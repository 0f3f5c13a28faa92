"""Evidence from NVIDIA GPUs, collected by a worker process.

Theory of operation. NVIDIA's library blocks, prints, and pins other people's packages, so it never runs in this
process: a worker does the collecting, and is spoken to in JSON lines (docs/attestation.md describes the protocol). It
is started by the first call, serves all later ones, and is replaced after any failure, with growing pauses.

One call at a time has the worker; the others wait in line. A call that is cancelled leaves the worker at work. The next
one first waits for that late answer and drops it, so the worker never has two requests, and every answer is checked to
carry the id and the nonce of the request: nobody gets evidence for another's nonce. Evidence that claims to come from
hardware must hold the nonce itself, too.

No task lives longer than a call. What is kept between calls is the process, whether it has greeted us, and the
request whose answer nobody waited for.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import msgspec

from ..attestation import NONCE_LENGTH, GpuEvidence
from ..errors import MalformedError, SourceError, UsageError
from .evidence_protocol import PROTOCOL, Answer, Greeting, class_names, decoded, decoded_base64, request
from .process import LineProcess

__all__ = ["MAX_LINE", "NvidiaWorker", "bundled_command"]

MAX_LINE: Final = 16 * 1024 * 1024
"""Longest answer that is accepted, in bytes: some fifty GPUs' worth."""

_GRACE: Final = 1.0  # seconds, at least, for an answer that nobody waited for to be read from the pipe

_Result = TypeVar("_Result")


def bundled_command(python: str | None = None) -> list[str]:
    """Return the command that runs the bundled worker.

    Args:
        python: path of an interpreter that has `nv-attestation-sdk`; the running one when None.
    """
    return [python or sys.executable, str(Path(__file__).with_name("nvidia_worker.py"))]


class NvidiaWorker:
    """An `EvidenceSource` that draws on a worker process, on asyncio and trio.

    Nothing is started before the first call; from then on the object belongs to that call's event loop. `aclose` ends
    the worker; without it, the worker ends by itself when this process does.

    Args:
        command: the worker's program and arguments: `bundled_command()`, or any program that speaks the protocol.
        no_hardware: ask for canned evidence instead of the GPUs'; all of it is marked as simulated.
        start_timeout: how long the worker may take to greet, in seconds.
        call_timeout: how long one collection may take, in seconds.
        backoff: the pause after a first failure, in seconds; it doubles with each further one.
        max_backoff: the longest pause, in seconds.
        max_line: longest answer, in bytes.
        environment: the worker's environment variables; this process's own when None. Leave secrets out of it.
        show_stderr: whether what the worker prints goes to our standard error instead of nowhere.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        no_hardware: bool = False,
        start_timeout: float = 30.0,
        call_timeout: float = 60.0,
        backoff: float = 0.1,
        max_backoff: float = 10.0,
        max_line: int = MAX_LINE,
        environment: Mapping[str, str] | None = None,
        show_stderr: bool = False,
    ) -> None:
        self._command: Final = tuple(command)
        self._no_hardware: Final = no_hardware
        self._start_timeout: Final = start_timeout
        self._call_timeout: Final = call_timeout
        self._backoff: Final = backoff
        self._max_backoff: Final = max_backoff
        self._max_line: Final = max_line
        self._environment: Final = environment
        self._show_stderr: Final = show_stderr
        self._lock: Final = anyio.Lock()
        self._scope: anyio.CancelScope | None = None
        self._closed = False
        self._process: LineProcess | None = None
        self._greeting_due: float | None = None  # when, if the worker has not greeted yet
        self._late: tuple[int, float] | None = None  # a request whose answer nobody waited for, and when it is due
        self._undead: list[LineProcess] = []  # killed, and still held by the kernel
        self._last_id = 0
        self._failures = 0
        self._not_before = 0.0

    def __repr__(self) -> str:
        state = "closed" if self._closed else "idle" if self._process is None else f"pid {self._process.pid}"
        return f"NvidiaWorker({self._command!r}, no_hardware={self._no_hardware}, {state})"

    @property
    def pid(self) -> int | None:
        """The worker's process id, or None while there is none; for monitoring."""
        return None if self._process is None else self._process.pid

    async def collect(self, nonce: bytes) -> GpuEvidence:
        """Return evidence made over these bytes, one item for each GPU.

        Calls that overlap are served one after the other, in their order. A call can be cancelled at any moment. It
        takes the pause after a failure, a late answer's rest of time, and the two time limits at most, from when its
        turn comes.

        What it does NOT establish: that the evidence is genuine. Its certificate chains and signatures are for whoever
        verifies the report to check.

        Args:
            nonce: exactly 32 bytes.

        Raises:
            UsageError: `bad_nonce` if it has another length.
            SourceError: `gpu_not_started` if the worker cannot be run, `gpu_import_failed` if it greets with an error,
                `gpu_exited` if it ends, `gpu_timeout` if it is too slow, `gpu_failed` if it reports that the collection
                failed, `gpu_wrong_nonce` if the answer is for another nonce, `gpu_bad_answer` if it is not one, and
                `gpu_closed` after `aclose`. The worker is replaced by the next call then.
        """
        if len(nonce) != NONCE_LENGTH:
            raise UsageError(f"A nonce has {NONCE_LENGTH} bytes.", code="bad_nonce")
        async with self._lock:
            if not self._closed:
                with anyio.CancelScope() as self._scope:
                    return await self._collect(nonce)
        raise SourceError("The source of GPU evidence has been closed.", code="gpu_closed")

    async def aclose(self) -> None:
        """Kill the worker and give back everything; calls that wait or come later fail with `gpu_closed`."""
        self._closed = True
        if self._scope is not None:
            self._scope.cancel()
        with anyio.CancelScope(shield=True):
            async with self._lock:
                await self._discard()

    async def _collect(self, nonce: bytes) -> GpuEvidence:
        try:
            process = await self._ready()
            answer = await self._ask(process, nonce)
            evidence = self._checked(answer, nonce)
        except SourceError:
            pause = min(self._backoff * 2 ** min(self._failures, 32), self._max_backoff)
            self._failures += 1
            self._not_before = anyio.current_time() + pause
            await self._discard()
            raise
        self._failures = 0
        return evidence

    async def _ready(self) -> LineProcess:
        """Return a worker that has greeted and has nothing to do: the one there is, or a new one."""
        if self._process is not None and self._process.exited:
            await self._discard()
        if self._process is not None and self._late is not None:
            request_id, due = self._late
            try:
                await self._within(due, lambda: self._answer(request_id))
            except SourceError:
                await self._discard()  # that was a failure of the call that went away, not of this one
            self._late = None
        if self._process is None:
            await anyio.sleep(max(0.0, self._not_before - anyio.current_time()) if self._failures else 0)
            self._process = self._started()
            self._greeting_due = anyio.current_time() + self._start_timeout
        process = self._process
        if self._greeting_due is not None:
            await self._within(self._greeting_due, self._greeting)
            self._greeting_due = None
        return process

    def _started(self) -> LineProcess:
        try:
            return LineProcess(
                self._command,
                max_line=self._max_line,
                environment=self._environment,
                show_stderr=self._show_stderr,
            )
        except (OSError, ValueError) as error:
            raise self._error("gpu_not_started", f"cannot be started ({type(error).__name__})") from error

    async def _greeting(self) -> None:
        greeting = decoded(await self._line(), Greeting)
        if greeting is None or greeting.protocol != PROTOCOL:
            raise self._error("gpu_bad_answer", f"does not greet with protocol {PROTOCOL}")
        if greeting.error is not None:
            raise self._error(
                "gpu_import_failed",
                f"cannot load its library ({class_names(greeting.error)}); NVIDIA's is in nv-attestation-sdk",
            )

    async def _ask(self, process: LineProcess, nonce: bytes) -> Answer:
        self._last_id += 1
        request_id, due = self._last_id, anyio.current_time() + self._call_timeout
        process.send(request(request_id, nonce, no_hardware=self._no_hardware))
        self._late = (request_id, due)  # until the answer is here; being cancelled leaves it so
        answer = await self._within(due, lambda: self._answer(request_id))
        self._late = None
        return answer

    async def _answer(self, request_id: int) -> Answer:
        """Return the answer to this request, dropping those to others."""
        while True:
            answer = decoded(await self._line(), Answer)
            if answer is None:
                raise self._error("gpu_bad_answer", "sent a line that is not an answer")
            if answer.id == request_id:
                return answer

    async def _line(self) -> bytes:
        process = self._process
        assert process is not None
        try:
            line = await process.receive()
        except MalformedError as error:
            raise self._error("gpu_bad_answer", f"sent a line of more than {self._max_line} bytes") from error
        if line is None:
            await self._discard()
            raise self._error("gpu_exited", f"closed its output (exit status {process.status})")
        return line

    def _checked(self, answer: Answer, nonce: bytes) -> GpuEvidence:
        if answer.nonce.lower() != nonce.hex():
            raise self._error("gpu_wrong_nonce", "answered for another nonce")
        if answer.error is not None:
            raise self._error("gpu_failed", f"could not collect evidence ({class_names(answer.error)})")
        if not answer.evidence:
            raise self._error("gpu_bad_answer", "answered without evidence")
        simulated = answer.simulated or self._no_hardware
        for item in answer.evidence:
            report = decoded_base64(item.evidence)
            if report is None:
                raise self._error("gpu_bad_answer", "sent evidence that is not base64")
            if not simulated and nonce not in report:
                raise self._error("gpu_wrong_nonce", "sent evidence that does not hold the nonce")
        items: list[dict[str, Any]] = [msgspec.to_builtins(item) for item in answer.evidence]
        return GpuEvidence(items, simulated=simulated)

    async def _within(self, due: float, step: Callable[[], Awaitable[_Result]]) -> _Result:
        """Await one step of a call, and fail if it is not done by then."""
        try:
            with anyio.fail_after(max(due - anyio.current_time(), _GRACE)):
                return await step()
        except TimeoutError:
            what = "greet" if self._greeting_due is not None else "answer"
            raise self._error("gpu_timeout", f"did not {what} in time") from None

    async def _discard(self) -> None:
        """Kill the worker if there is one, and look after those that would not die.

        asyncio's own cancellation ends even this: whatever is to be known of the worker afterwards is noted before.
        """
        process, self._process = self._process, None
        self._greeting_due = self._late = None
        if process is not None:
            self._undead.append(process)
            await process.close()
        self._undead = [process for process in self._undead if not process.reaped]

    def _error(self, code: str, problem: str) -> SourceError:
        program = self._command[0] if self._command else "none"
        return SourceError(f"The GPU evidence worker ({program}) {problem}.", code=code)
