"""Keys, quotes and facts from a guest agent, on asyncio and trio, against an agent that breaks in every way."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import anyio
import dstack_sdk.dstack_client
import httpx
import pytest
from fake_agent import CANARY, KEY, FakeAgent, Fault, recorded_answer, running_agent

from teesign import SourceError, UsageError, parse_event_log, parse_quote, replay_event_log
from teesign.sources.dstack import SIMULATOR_VARIABLE, SOCKET_PATHS, DstackAgent, find_endpoint

pytestmark = pytest.mark.anyio

REPORT_DATA = bytes(range(64))
SLACK = 5.0
"""Seconds that a busy machine may add to a time limit."""


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """Yield a path that is short enough for a Unix socket, whatever the temporary directory is called."""
    with tempfile.TemporaryDirectory(prefix="tee", dir="/tmp") as directory:
        yield Path(directory) / "dstack.sock"


@pytest.fixture
def agent(socket_path: Path) -> Iterator[FakeAgent]:
    """Yield an agent that runs."""
    with running_agent(socket_path) as agent:
        yield agent


async def call(source: DstackAgent, name: str) -> object:
    """Make one of the three calls."""
    if name == "GetKey":
        return await source.key("model/ecdsa-signing-key", "signing")
    if name == "GetQuote":
        return await source.quote(REPORT_DATA)
    return await source.info()


async def test_key_is_what_the_service_derives_for_the_path_and_purpose(agent: FakeAgent) -> None:
    """The path and the purpose reach the agent as they are, and its 32 bytes come back."""
    assert await DstackAgent(str(agent.path)).key("some/model/ecdsa-signing-key", "signing") == KEY
    assert agent.bodies[-1]["path"] == "some/model/ecdsa-signing-key"
    assert agent.bodies[-1]["purpose"] == "signing"


async def test_quote_carries_the_report_data_that_was_asked_for(agent: FakeAgent) -> None:
    """The report data goes out in hex and comes back inside the quote."""
    quote = await DstackAgent(str(agent.path)).quote(REPORT_DATA)
    assert parse_quote(quote.quote).report_data == REPORT_DATA
    assert agent.bodies[-1] == {"report_data": REPORT_DATA.hex()}
    assert not quote.simulated


async def test_event_log_is_decoded_and_replays_to_the_quote(agent: FakeAgent) -> None:
    """The agent sends the log as a string of JSON; what comes out is a list, complete enough to replay."""
    quote = await DstackAgent(str(agent.path)).quote(REPORT_DATA)
    assert isinstance(quote.event_log, list)
    assert replay_event_log(parse_event_log(quote.event_log))[3] == parse_quote(quote.quote).rtmrs[3]


async def test_stripped_event_log_is_accepted(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents may leave payloads out of the log; such a log is handed on like any other."""
    monkeypatch.setattr("fake_agent.recorded_answer", lambda: recorded_answer("dstack-getquote-lite.json"))
    assert (await DstackAgent(str(agent.path)).quote(REPORT_DATA)).event_log


async def test_quote_of_a_simulator_is_marked(agent: FakeAgent) -> None:
    """Whoever knows that a simulator answers says so, and every quote carries the mark."""
    assert (await DstackAgent(str(agent.path), simulated=True).quote(REPORT_DATA)).simulated


@pytest.mark.parametrize("length", [0, 32, 63, 65])
async def test_report_data_has_64_bytes(agent: FakeAgent, length: int) -> None:
    """Report data of another length is the caller's mistake, and is not sent."""
    with pytest.raises(UsageError) as caught:
        await DstackAgent(str(agent.path)).quote(bytes(length))
    assert caught.value.code == "bad_report_data"
    assert not agent.calls


async def test_info_is_decoded_json(agent: FakeAgent) -> None:
    """What the agent says comes out as plain values, with the TCB's part decoded as well."""
    info = await DstackAgent(str(agent.path)).info()
    assert info["app_name"] == "teesign"
    assert info["tcb_info"]["compose_hash"] == "22" * 32


async def test_info_is_fetched_once(agent: FakeAgent) -> None:
    """Twenty callers at once and one later make a single call."""
    source = DstackAgent(str(agent.path))
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(source.info)
    await source.info()
    assert agent.calls["/Info"] == 1


async def test_calls_may_overlap(agent: FakeAgent) -> None:
    """Many quotes at once: each caller gets the one over its own report data."""
    source = DstackAgent(str(agent.path))

    async def check(number: int) -> None:
        report_data = number.to_bytes(64, "big")
        assert parse_quote((await source.quote(report_data)).quote).report_data == report_data

    async with anyio.create_task_group() as group:
        for number in range(32):
            group.start_soon(check, number)


ALL_CALLS = ("GetKey", "GetQuote", "Info")

FAILURES = [
    # fault, the calls that it concerns, the code
    (Fault.HANGS, ALL_CALLS, "dstack_timeout"),
    (Fault.TRICKLES, ALL_CALLS, "dstack_timeout"),
    (Fault.ANSWERS_500, ALL_CALLS, "dstack_failed"),
    (Fault.DIES_MID_ANSWER, ALL_CALLS, "dstack_failed"),
    (Fault.DIES_AT_ONCE, ALL_CALLS, "dstack_failed"),
    (Fault.NOT_HTTP, ALL_CALLS, "dstack_failed"),
    (Fault.NOT_JSON, ALL_CALLS, "dstack_bad_answer"),
    (Fault.NOT_AN_OBJECT, ALL_CALLS, "dstack_bad_answer"),
    (Fault.FIELDS_MISSING, ALL_CALLS, "dstack_bad_answer"),
    (Fault.BAD_HEX, ("GetKey", "GetQuote"), "dstack_bad_answer"),
    (Fault.WRONG_KEY_LENGTH, ("GetKey",), "dstack_bad_answer"),
    (Fault.WRONG_REPORT_DATA, ("GetQuote",), "dstack_bad_answer"),
    (Fault.NOT_A_QUOTE, ("GetQuote",), "dstack_bad_answer"),
    (Fault.BAD_EVENT_LOG, ("GetQuote",), "dstack_bad_answer"),
]


@pytest.mark.parametrize(
    ("fault", "name", "code"),
    [
        pytest.param(fault, name, code, id=f"{fault.name.lower()}-{name}")
        for fault, names, code in FAILURES
        for name in names
    ],
)
async def test_failure_is_typed_and_the_next_call_works(agent: FakeAgent, fault: Fault, name: str, code: str) -> None:
    """Each way of failing has its code, takes bounded time, names socket and call, and leaves nothing broken behind.

    Nothing of what the agent sent is in the error, nor in an exception that a traceback would show with it.
    """
    limit = 2.5 if code == "dstack_timeout" else 60.0  # in which the next call has to be answered
    source = DstackAgent(str(agent.path), timeout=limit)
    agent.fault = fault
    began = time.monotonic()
    with pytest.raises(SourceError) as caught:
        await call(source, name)
    assert time.monotonic() - began < limit + SLACK
    assert caught.value.code == code
    assert str(agent.path) in str(caught.value)
    assert name in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert CANARY not in shown
    assert KEY[:8].hex() not in shown
    assert caught.value.__context__ is None

    agent.fault = Fault.NONE
    assert await call(source, name)


@pytest.mark.parametrize("name", ALL_CALLS)
async def test_missing_socket_is_unreachable_until_it_is_there(socket_path: Path, name: str) -> None:
    """No agent yet is an error of its own; when the agent has come up, the same object works."""
    source = DstackAgent(str(socket_path))
    with pytest.raises(SourceError) as caught:
        await call(source, name)
    assert caught.value.code == "dstack_unreachable"
    assert str(socket_path) in str(caught.value)
    with running_agent(socket_path):
        assert await call(source, name)


async def test_socket_without_a_listener_refuses_until_the_agent_is_back(socket_path: Path) -> None:
    """A socket file that a dead agent left behind is the same error, and its successor is found."""
    source = DstackAgent(str(socket_path))
    with running_agent(socket_path):
        await source.info()
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(socket_path))
    with pytest.raises(SourceError) as caught:
        await source.quote(REPORT_DATA)
    assert caught.value.code == "dstack_unreachable"
    with running_agent(socket_path):
        assert await source.quote(REPORT_DATA)


async def test_cancelled_calls_leave_the_source_usable(agent: FakeAgent) -> None:
    """Calls that are cancelled at any moment, the closing of the connection included, break no later one."""
    source = DstackAgent(str(agent.path))
    await source.info()
    for step in range(40):
        with anyio.move_on_after(step * 0.0005):
            await source.quote(REPORT_DATA)
    assert (await source.quote(REPORT_DATA)).quote


async def test_waiting_for_another_callers_info_counts_towards_the_limit(agent: FakeAgent) -> None:
    """When the agent hangs, forty callers of info are all told after one time limit, not one after the other."""
    source = DstackAgent(str(agent.path), timeout=0.5)
    agent.fault = Fault.HANGS
    codes = []

    async def ask() -> None:
        with pytest.raises(SourceError) as caught:
            await source.info()
        codes.append(caught.value.code)

    began = time.monotonic()
    async with anyio.create_task_group() as group:
        for _ in range(40):
            group.start_soon(ask)
    assert codes == ["dstack_timeout"] * 40
    assert time.monotonic() - began < 0.5 + SLACK


async def test_call_that_begins_while_the_last_one_closes_is_served(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK closes its connections when nobody uses it, and must not be asked meanwhile."""
    source, closing, close = DstackAgent(str(agent.path)), anyio.Event(), httpx.AsyncClient.aclose

    async def close_slowly(client: httpx.AsyncClient) -> None:
        await close(client)
        closing.set()
        await anyio.sleep(0.2)

    monkeypatch.setattr(httpx.AsyncClient, "aclose", close_slowly)
    async with anyio.create_task_group() as group:
        group.start_soon(source.quote, REPORT_DATA)
        await closing.wait()
        group.start_soon(source.quote, REPORT_DATA)
        assert await source.key("a", "b") == KEY
    assert await source.key("a", "b") == KEY


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Be a user who owns nothing, if this one may do everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_socket_without_permission_is_told(agent: FakeAgent) -> None:
    """The message names the error of the system, not what a library makes of it."""
    source = DstackAgent(str(agent.path))
    await source.info()  # and the SDK is loaded
    agent.path.parent.chmod(0o755)
    agent.path.chmod(0)
    with as_nobody(), pytest.raises(SourceError, match="PermissionError") as caught:
        await source.quote(REPORT_DATA)
    assert caught.value.code == "dstack_unreachable"


async def test_socket_that_may_not_be_seen_does_not_hide_another(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that is closed to this user counts as one without a socket."""
    locked, path = socket_path.with_name("locked") / "dstack.sock", socket_path.with_name("open.sock")
    locked.parent.mkdir()
    path.touch()
    socket_path.parent.chmod(0o755)
    locked.parent.chmod(0)
    monkeypatch.setattr("teesign.sources.dstack.SOCKET_PATHS", (str(locked), str(path)))
    with as_nobody():
        assert find_endpoint({}) == str(path)


async def test_http_endpoint_is_possible() -> None:
    """A simulator can listen on TCP; where nothing does, the error names its URL."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(SourceError, match=endpoint) as caught:
            await DstackAgent(endpoint).info()
    assert caught.value.code == "dstack_unreachable"


def test_simulator_goes_before_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable wins over a socket that exists, and one that is empty counts as not set."""
    monkeypatch.setattr("os.path.exists", lambda path: path == SOCKET_PATHS[0])
    assert find_endpoint({SIMULATOR_VARIABLE: "http://localhost:8090"}) == "http://localhost:8090"
    assert find_endpoint({SIMULATOR_VARIABLE: ""}) == SOCKET_PATHS[0]


@pytest.mark.parametrize("path", SOCKET_PATHS)
def test_sockets_are_found_where_the_sdk_finds_them(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Each path of our list is one that the SDK would choose as well."""
    monkeypatch.delenv(SIMULATOR_VARIABLE, raising=False)
    monkeypatch.setattr("os.path.exists", lambda candidate: candidate == path)
    assert find_endpoint({}) == path
    assert dstack_sdk.dstack_client.get_endpoint() == path


def test_machine_without_dstack_has_no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither variable nor socket means None."""
    monkeypatch.setattr("os.path.exists", lambda _: False)
    assert find_endpoint({"PATH": "/bin"}) is None


async def test_missing_sdk_is_told(monkeypatch: pytest.MonkeyPatch, agent: FakeAgent) -> None:
    """Without the extra the error says what to install."""
    monkeypatch.setitem(sys.modules, "dstack_sdk", None)
    with pytest.raises(SourceError, match=r"teesign\[dstack\]") as caught:
        await DstackAgent(str(agent.path)).info()
    assert caught.value.code == "dstack_missing"


def test_looking_for_an_endpoint_does_not_load_the_sdk() -> None:
    """Machines without dstack pay nothing for it: the SDK is first imported by a call."""
    code = "import sys, teesign.sources.dstack as d; d.find_endpoint({}); print('dstack_sdk' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "False"


def test_repr_tells_the_endpoint() -> None:
    """For whoever looks at it in a debugger."""
    assert repr(DstackAgent("/run/dstack.sock")) == "DstackAgent('/run/dstack.sock', timeout=10.0, simulated=False)"
