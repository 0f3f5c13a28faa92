"""Attestation while its sources fail, beside inference: reports are refused in bounded time, chats go on as ever.

The agent is a fake on a real Unix socket, the worker a real process; each misbehaves in one way a row.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from backend import Backend, event_stream
from fake_agent import KEY, Fault, running_agent
from fault_bench import CHAT
from servers import MAIN_KINDS, TOKEN, Kind, serve, settings_for
from support import wait_until
from test_attested_server import WORKER, is_running, quoted, socket_path
from wire import Answer, Client

from teesign import SigningPair, report_data
from teesign.sources import Sources
from teesign.sources.dstack import DstackAgent
from teesign.sources.nvidia import NvidiaWorker
from teesign_asgi import App
from teesign_asgi.types import Message, Receive, Scope, Send

__all__ = ["socket_path"]

REPORT = "/v1/attestation/report"
NONCE = bytes(range(32)).hex()
PAIR = SigningPair.from_secrets(KEY, KEY)
SHORT, LONG = 2.5, 60.0
"""Seconds that agent and worker may take for a call, in tests that run into that limit and in those that must not."""

BOUNDED = 12.0
"""Seconds in which a report must be there or refused, with the short limit, on a busy machine."""


@contextmanager
def attesting(
    kind: Kind, path: Path, *worker: str, limit: float = SHORT
) -> Iterator[tuple[Client, NvidiaWorker, Backend]]:
    """Run a proxy that draws on an agent at this path and on this worker, with this time limit for both."""
    patient = DstackAgent(str(path), timeout=20)  # its first call loads the SDK
    agent = DstackAgent(str(path), timeout=limit)
    gpus = NvidiaWorker([*WORKER, *(worker or ("good",))], call_timeout=limit, backoff=0.01)
    with Backend() as backend:
        app = App(settings_for(backend.url, dev=False), sources=Sources(quotes=agent, gpus=gpus, keys=patient))

        async def closing(scope: Scope, receive: Receive, send: Send) -> None:
            async def receive_and_close() -> Message:
                message = await receive()
                if message["type"] == "lifespan.shutdown":
                    await gpus.aclose()
                return message

            await app(scope, receive_and_close, send)

        with serve(closing, kind) as port:
            yield Client(port, TOKEN), gpus, backend


def assert_chats_go_on(client: Client, backend: Backend, *, meanwhile: Future[Answer] | None = None) -> None:
    """Check that a stream is answered and signed, and has not waited for the report that is asked for meanwhile."""
    backend.play(event_stream(b'data: {"a":1}\n\n', b"data: [DONE]\n\n"))
    begun = time.monotonic()
    answered = client.post(CHAT, b'{"stream":true}')
    client.assert_answer_signed(answered, b'{"stream":true}')
    # One that fails at once is over before; for one that hangs a stream would have waited almost as long as it may.
    seconds = time.monotonic() - begun
    assert seconds < (BOUNDED if meanwhile is None or not meanwhile.done() else 2)


AGENT_FAULTS = [fault for fault in Fault if fault is not Fault.NONE and fault is not Fault.WRONG_KEY_LENGTH]
SLOW_FAULTS = {Fault.HANGS, Fault.TRICKLES}


@pytest.mark.parametrize("kind", MAIN_KINDS)
def test_an_agent_that_fails_in_every_way(kind: Kind, socket_path: Path) -> None:
    """One after the other: each report is refused in time, chats go on meanwhile, and the next report is there."""
    with running_agent(socket_path) as agent, attesting(kind, socket_path) as (client, _, backend):
        assert client.get(f"{REPORT}?nonce={NONCE}").status == 200
        for fault in AGENT_FAULTS:
            agent.fault = fault
            with ThreadPoolExecutor(1) as pool:
                begun = time.monotonic()
                asked = pool.submit(client.get, f"{REPORT}?nonce={NONCE}")
                if fault in SLOW_FAULTS:
                    assert_chats_go_on(client, backend, meanwhile=asked)
                answered = asked.result()
            answered.assert_error(500, "server_error", "Internal server error")
            assert time.monotonic() - begun < BOUNDED, fault
            assert_chats_go_on(client, backend)
            agent.fault = Fault.NONE
            assert client.get(f"{REPORT}?nonce={NONCE}").status == 200, fault


WORKER_FAULTS = """
    killed stopped exits half-line garbage endless-line endless-others other-nonce evidence-for-other-nonce
    no-evidence not-base64 talkative-error
""".split()  # noqa: SIM905 - names, one after the other


@pytest.mark.parametrize("fault", WORKER_FAULTS)
@pytest.mark.parametrize("kind", MAIN_KINDS)
def test_a_worker_that_fails(kind: Kind, socket_path: Path, tmp_path: Path, fault: str) -> None:
    """The report is refused in time, chats go on meanwhile, and the next report comes from a worker that is well."""
    once = str(tmp_path / "once")
    with running_agent(socket_path), attesting(kind, socket_path, fault, once) as (client, _, backend):
        with ThreadPoolExecutor(1) as pool:
            begun = time.monotonic()
            asked = pool.submit(client.get, f"{REPORT}?nonce={NONCE}")
            assert_chats_go_on(client, backend, meanwhile=asked)
            asked.result().assert_error(500, "server_error", "Internal server error")
        assert time.monotonic() - begun < BOUNDED
        assert client.get(f"{REPORT}?nonce={NONCE}").status == 200


@pytest.mark.parametrize("kind", MAIN_KINDS)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_is_gone_between_reports(kind: Kind, socket_path: Path, end: signal.Signals) -> None:
    """A dead one is replaced without anybody noticing; a stopped one costs one report, and no chat."""
    with running_agent(socket_path), attesting(kind, socket_path) as (client, gpus, backend):
        assert client.get(f"{REPORT}?nonce={NONCE}").status == 200
        pid = gpus.pid
        assert pid is not None
        os.kill(pid, end)
        wait_until(lambda: end is signal.SIGSTOP or not is_running(pid))
        begun = time.monotonic()
        status = client.get(f"{REPORT}?nonce={NONCE}").status
        assert status == 200 or end is signal.SIGSTOP
        assert time.monotonic() - begun < BOUNDED
        assert_chats_go_on(client, backend)
        assert client.get(f"{REPORT}?nonce={NONCE}").status == 200


@pytest.mark.parametrize("kind", MAIN_KINDS)
def test_a_worker_that_floods_its_standard_error(
    kind: Kind, socket_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Megabytes of it stall nothing, and none of it gets anywhere."""
    with running_agent(socket_path), attesting(kind, socket_path, "stderr", limit=LONG) as (client, _, backend):
        for _ in range(30):
            assert client.get(f"{REPORT}?nonce={NONCE}").status == 200
        assert_chats_go_on(client, backend)
    assert "eeee" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", MAIN_KINDS)
def test_a_worker_that_is_late(kind: Kind, socket_path: Path) -> None:
    """Chats do not wait for a report that takes its time."""
    with (
        running_agent(socket_path),
        attesting(kind, socket_path, "sleeps", "3", limit=LONG) as (client, gpus, backend),
        ThreadPoolExecutor(1) as pool,
    ):
        asked = pool.submit(client.get, f"{REPORT}?nonce={NONCE}")
        wait_until(lambda: gpus._late is not None)  # the worker has been asked, and not yet answered
        assert_chats_go_on(client, backend, meanwhile=asked)
        assert not asked.done()
        assert asked.result().status == 200


# --- nonces


@pytest.mark.parametrize("kind", MAIN_KINDS)
def test_a_hundred_callers_get_their_own_nonces(kind: Kind, socket_path: Path) -> None:
    """Quote and evidence of one report carry the nonce that was asked for, also while others leave."""
    with running_agent(socket_path), attesting(kind, socket_path, "slow", limit=LONG) as (client, _, __):

        def ask(number: int) -> None:
            nonce = number.to_bytes(32, "big")
            while True:
                if number % 10 == 9:  # these leave at once
                    with client.open("GET", f"{REPORT}?nonce={nonce.hex()}"):
                        return
                answered = client.get(f"{REPORT}?nonce={nonce.hex()}")
                if answered.status != 503:
                    break
                time.sleep(0.5)  # so that those who wait do not keep the others from being served
            assert quoted(answered) == report_data(PAIR.ecdsa.identity.address_bytes, nonce)
            report = answered.json()
            payload = json.loads(report["nvidia_payload"])
            assert report["request_nonce"] == payload["nonce"] == nonce.hex()
            assert nonce in base64.b64decode(payload["evidence_list"][0]["evidence"])

        with ThreadPoolExecutor(100) as pool:
            list(pool.map(ask, range(100)))


BAD_NONCES: list[tuple[str, str]] = [
    ("short", "00" * 31),
    ("long", "00" * 33),
    ("odd", "0" * 63),
    ("not hex", "g" * 64),
    ("0x", "0x" + "0" * 62),
    ("spaces", "%20" * 64),
    ("full-width digits", "%EF%BC%90" * 64),
    ("NUL", "%00" * 64),
    ("twice", "00" * 32 + "&nonce=" + "11" * 32),
    ("50 kB", "0" * 50_000),
]


@pytest.mark.parametrize("kind", MAIN_KINDS)
def test_bad_nonces(kind: Kind, socket_path: Path) -> None:
    """Each is refused before anything is collected, and none is quoted."""
    with running_agent(socket_path) as agent, attesting(kind, socket_path, limit=LONG) as (client, gpus, _):
        assert client.get("/version").status == 200
        before = agent.calls["/GetQuote"]
        for name, nonce in BAD_NONCES:
            answered = client.get(f"{REPORT}?nonce={nonce}")
            assert answered.status in (400, 414, 431), name
            assert not re.search(r"0000|g{4}|1111", answered.body.decode()), name
        assert agent.calls["/GetQuote"] == before
        assert gpus.pid is None


@pytest.mark.parametrize("kind", MAIN_KINDS)
def test_repeated_nonces(kind: Kind, socket_path: Path) -> None:
    """The same nonce again is answered afresh, not from a cache."""
    with running_agent(socket_path) as agent, attesting(kind, socket_path, limit=LONG) as (client, _, __):
        for _ in range(3):
            assert client.get(f"{REPORT}?nonce={NONCE}").status == 200
        assert agent.calls["/GetQuote"] == 3
