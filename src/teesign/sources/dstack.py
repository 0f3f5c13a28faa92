"""Keys, quotes and facts about the application from dstack's guest agent.

Theory of operation. The agent listens on a Unix socket inside the machine; `dstack-sdk` speaks to it over HTTP. Each
call here has one time limit for all of it, since the SDK's own limit starts anew with every byte that arrives. The
connection is closed after each call, so that no call meets one that the agent has closed meanwhile. The SDK's client is
made on a worker thread (it loads certificates, which takes tens of milliseconds) and kept, until a call fails or is
cancelled: then it is thrown away, because a client that is cancelled while it closes stays closed for ever. Calls that
overlap share it. While the last of them closes it, it is out of reach: the SDK would hand out what is being closed.

What the SDK raises is never chained to our errors, save for failures to connect: its exceptions quote what the agent
sent, and the agent sends keys.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import anyio.to_thread

from ..attestation import Quote
from ..documents import UNDECODABLE, decode
from ..errors import MalformedError, SourceError, UsageError
from ..hexadecimal import unhex
from ..quote import parse_quote

if TYPE_CHECKING:
    from dstack_sdk import AsyncDstackClient

__all__ = ["SIMULATOR_VARIABLE", "SOCKET_PATHS", "DstackAgent", "find_endpoint"]

SIMULATOR_VARIABLE: Final = "DSTACK_SIMULATOR_ENDPOINT"
"""The environment variable that names a simulator of the agent, for development."""

SOCKET_PATHS: Final = (
    "/var/run/dstack.sock",
    "/run/dstack.sock",
    "/var/run/dstack/dstack.sock",
    "/run/dstack/dstack.sock",
)
"""Where the agent's socket can be, in the order in which `dstack-sdk` looks for it."""

_KEY_LENGTH: Final = 32
_REPORT_DATA_LENGTH: Final = 64
_Answer = TypeVar("_Answer")


def find_endpoint(environment: Mapping[str, str]) -> str | None:
    """Return where a guest agent is to be found on this machine, or None if there is none.

    What it does NOT establish: that anything answers there, or that what answers is a TDX machine's agent.

    Args:
        environment: variable names and values, such as `os.environ`. A simulator that `SIMULATOR_VARIABLE` names goes
            first, whether it exists or not; quotes from one must be marked (`DstackAgent`'s `simulated`).
    """
    if simulator := environment.get(SIMULATOR_VARIABLE):
        return simulator
    # Path.exists raises where this user may not look.
    return next((path for path in SOCKET_PATHS if os.path.exists(path)), None)  # noqa: PTH110 - see above


@dataclass
class _Shared:
    """A client of the SDK, and how many calls have it; the last one that leaves closes its connections."""

    client: AsyncDstackClient
    calls: int = 0


class DstackAgent:
    """dstack's guest agent as a `KeySource` and a `QuoteSource`, on asyncio and trio.

    Nothing is connected before the first call, and nothing has to be closed. Any number of calls may overlap, on one
    event loop.

    Args:
        endpoint: path of the agent's Unix socket, or an http or https URL; see `find_endpoint`.
        timeout: how long one call may take in all, in seconds.
        simulated: whether a simulator answers there; every quote is marked with it.
    """

    def __init__(self, endpoint: str, *, timeout: float = 10.0, simulated: bool = False) -> None:
        self._endpoint: Final = endpoint
        self._timeout: Final = timeout
        self._simulated: Final = simulated
        self._shared: _Shared | None = None
        self._opening: Final = anyio.Lock()
        self._info: Mapping[str, Any] | None = None
        self._info_lock: Final = anyio.Lock()

    def __repr__(self) -> str:
        return f"DstackAgent({self._endpoint!r}, timeout={self._timeout}, simulated={self._simulated})"

    async def key(self, path: str, purpose: str) -> bytes:
        """Return the private key that the key management service derives for this application, 32 bytes.

        What it does NOT establish: that the key is bound to this machine. The agent's word is taken for it.

        Args:
            path: the key's name, such as "model/ecdsa-signing-key"; the same name gives the same key.
            purpose: what it is for; goes into the service's statement about the key, not into the key.

        Raises:
            SourceError: with one of the codes of `quote`. Nothing is kept of a failed call.
        """
        answer = await self._call("GetKey", lambda client: client.get_key(path, purpose))
        key = unhex(answer.key)
        if key is None or len(key) != _KEY_LENGTH:
            raise self._bad_answer("GetKey", f"the key is not {_KEY_LENGTH} bytes of hex")
        return key

    async def quote(self, report_data: bytes) -> Quote:
        """Return a quote over these bytes, with its event log.

        The quote is checked to carry the report data. What that does NOT establish: that it is genuine; only a check of
        its signature chain does. Nor is the event log replayed.

        Args:
            report_data: exactly 64 bytes.

        Raises:
            UsageError: `bad_report_data` if it has another length.
            SourceError: `dstack_missing` if `dstack-sdk` is not installed, `dstack_unreachable` if nothing listens,
                `dstack_timeout` if there is no whole answer in time, `dstack_failed` if the agent reports an error or
                breaks off, `dstack_bad_answer` if the answer is not what the call returns. Nothing is kept of a
                failed call.
        """
        if len(report_data) != _REPORT_DATA_LENGTH:
            raise UsageError(f"Report data has {_REPORT_DATA_LENGTH} bytes.", code="bad_report_data")
        answer = await self._call("GetQuote", lambda client: client.get_quote(report_data))
        quote = unhex(answer.quote)
        if quote is None:
            raise self._bad_answer("GetQuote", "the quote is not hex")
        problem = _report_data_problem(quote, report_data)
        if problem:
            raise self._bad_answer("GetQuote", problem)
        events = _decoded_events(answer.event_log)
        if events is None:
            raise self._bad_answer("GetQuote", "the event log is not a JSON list of objects")
        return Quote(quote, event_log=events, simulated=self._simulated)

    async def info(self) -> Mapping[str, Any]:
        """Return what the agent says about the application, as decoded JSON; treat it as read-only.

        It is asked for once and kept, since it does not change while the application runs. What it does NOT establish:
        anything. It is the agent's word, and only what also follows from a verified quote is proven.

        Raises:
            SourceError: with one of the codes of `quote`. A failed call is not kept, so the next one asks again.
        """
        failure: SourceError
        try:
            # The lock makes callers that come at once share one call; the limit covers the wait for it as well.
            with anyio.fail_after(self._timeout):
                async with self._info_lock:
                    if self._info is None:
                        answer = await self._call("Info", lambda client: client.info())
                        self._info = answer.model_dump(mode="json")
                    return self._info
        except TimeoutError as error:
            failure = self._translated("Info", error)
        raise failure

    async def _call(self, name: str, ask: Callable[[AsyncDstackClient], Awaitable[_Answer]]) -> _Answer:
        """Run one call of the SDK, within the time limit and with its errors translated."""
        failure: SourceError
        cause: BaseException | None = None
        try:
            with anyio.fail_after(self._timeout):
                return await self._asked(ask)
        except Exception as error:  # noqa: BLE001 - whatever the SDK and the libraries under it raise; the table decides
            failure = self._translated(name, error)
            if failure.code in ("dstack_missing", "dstack_unreachable"):
                cause = error
        # Outside the handler, so that the exception does not even hang on as the context.
        raise failure from cause

    async def _asked(self, ask: Callable[[AsyncDstackClient], Awaitable[_Answer]]) -> _Answer:
        async with self._opening:
            if self._shared is None:
                self._shared = _Shared(await anyio.to_thread.run_sync(_open, self._endpoint, self._timeout))
            shared = self._shared
            shared.calls += 1
        try:
            async with shared.client as client:
                try:
                    answer = await ask(client)
                finally:
                    shared.calls -= 1
                    if not shared.calls:
                        self._withdraw(shared)
        except BaseException:  # cancelled too; calls that overlap with this one keep the client until they are done
            self._withdraw(shared)
            raise
        self._shared = self._shared or shared
        return answer

    def _withdraw(self, shared: _Shared) -> None:
        if self._shared is shared:
            self._shared = None

    def _translated(self, name: str, error: Exception) -> SourceError:
        """Return our error for the SDK's, with no word of what the agent sent."""
        if isinstance(error, ImportError):
            return SourceError("dstack-sdk is not installed; install teesign[dstack].", code="dstack_missing")
        import httpx  # comes with the extra

        kind = type(error).__name__
        if isinstance(error, TimeoutError | httpx.TimeoutException):
            return self._error("dstack_timeout", name, f"gave no whole answer in {self._timeout:g} seconds")
        if isinstance(error, httpx.HTTPStatusError):
            return self._error("dstack_failed", name, f"answered with status {error.response.status_code}")
        if isinstance(error, OSError | httpx.ConnectError | httpx.UnsupportedProtocol | httpx.InvalidURL):
            return self._error("dstack_unreachable", name, f"cannot be reached ({type(_system_error(error)).__name__})")
        if isinstance(error, httpx.TransportError):
            return self._error("dstack_failed", name, f"broke off its answer ({kind})")
        return self._bad_answer(name, f"it cannot be read ({kind})")

    def _bad_answer(self, name: str, problem: str) -> SourceError:
        return self._error("dstack_bad_answer", name, f"sent an answer that does not do: {problem}")

    def _error(self, code: str, name: str, problem: str) -> SourceError:
        return SourceError(f"The dstack guest agent at {self._endpoint} {problem} (call {name}).", code=code)


def _open(endpoint: str, timeout: float) -> AsyncDstackClient:
    """Load the SDK and make a client; takes tens of milliseconds, hence not on the event loop.

    Raises:
        ImportError: if the SDK is not installed.
        FileNotFoundError: if there is no such socket.
    """
    from dstack_sdk import AsyncDstackClient  # an extra, and slow to load: `find_endpoint` goes without it

    return AsyncDstackClient(endpoint, timeout=timeout)


def _system_error(error: BaseException) -> BaseException:
    """Return the system's error that a library's stands for, or the same one where there is none."""
    found, behind = error, error.__cause__ or error.__context__
    while behind is not None:
        if isinstance(behind, OSError):
            found = behind
        behind = behind.__cause__ or behind.__context__
    return found


def _report_data_problem(quote: bytes, report_data: bytes) -> str:
    """Return what is wrong with the quote, or nothing."""
    try:
        carried = parse_quote(quote).report_data
    except MalformedError:
        return "the quote is not a TDX quote"
    return "" if carried == report_data else "the quote carries other report data than was asked for"


def _decoded_events(event_log: str) -> list[dict[str, Any]] | None:
    """Return the decoded event log, or None if it is not a list of objects. No log at all is an empty one."""
    try:
        return decode(event_log or "[]", list[dict[str, Any]])
    except UNDECODABLE:
        return None
