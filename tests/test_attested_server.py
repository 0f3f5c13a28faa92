"""The whole way with real sources: a server with keys and quotes from a guest agent, and evidence from a worker.

The agent is a fake on a real Unix socket that answers with recorded quotes; the worker is a real process. Both can
misbehave in every known way, and the server has to answer as the wire contract says, and to recover by itself.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from backend import Backend
from fake_agent import KEY, Fault, running_agent
from servers import MAIN_KINDS, TOKEN, Kind, free_port, serve, settings_for
from support import wait_until
from test_contract_attestation import certificate
from wire import Answer, Client

from teesign import SigningPair, parse_quote, report_data
from teesign.sources import Sources
from teesign.sources.dstack import DstackAgent
from teesign.sources.nvidia import NvidiaWorker
from teesign_asgi import App
from teesign_asgi.types import Message, Receive, Scope, Send

WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
NONCE = bytes(range(32))
REPORT = "/v1/attestation/report"
PAIR = SigningPair.from_secrets(KEY, KEY)
TIMEOUT = 2.0
"""Seconds for a call of the agent; the first one also loads the SDK."""


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """A path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="tee", dir="/tmp") as directory:
        yield Path(directory) / "dstack.sock"


@contextmanager
def attested(kind: Kind, socket_path: Path, *worker: str, **changes: Any) -> Iterator[Client]:
    """Run a server with production keys, the agent at this path and this worker."""
    agent = DstackAgent(str(socket_path), timeout=TIMEOUT)
    gpus = NvidiaWorker([*WORKER, *(worker or ("good",))], backoff=0.01)
    sources = Sources(quotes=agent, gpus=gpus, keys=agent)
    with Backend() as backend:
        app = App(settings_for(backend.url, **{"dev": False, **changes}), sources=sources)

        async def closing(scope: Scope, receive: Receive, send: Send) -> None:
            async def receive_and_close() -> Message:
                message = await receive()
                if message["type"] == "lifespan.shutdown":
                    await gpus.aclose()  # the app leaves alone what it was given
                return message

            await app(scope, receive_and_close, send)

        with serve(closing, kind) as port:
            yield Client(port, TOKEN)


@pytest.fixture(params=MAIN_KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """A server on asyncio, and one on trio."""
    chosen: Kind = request.param
    return chosen


def quoted(answer: Answer) -> bytes:
    """Return the report data in the quote of a report."""
    assert answer.status == 200, answer.body
    return parse_quote(bytes.fromhex(answer.json()["intel_quote"])).report_data


def test_the_keys_come_from_the_agent(kind: Kind, socket_path: Path) -> None:
    """At start the agent is asked for both keys by the contract's paths, and they sign."""
    with running_agent(socket_path) as agent, attested(kind, socket_path) as client:
        report = client.get(f"{REPORT}?signing_algo=ed25519").json()
        assert report["signing_address"] == PAIR.ed25519.identity.address
        assert [(body["path"], body["purpose"]) for body in agent.bodies[:2]] == [
            ("test/model/ecdsa-signing-key", "signing"),
            ("test/model/ed25519-signing-key", "signing"),
        ]


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_a_report_binds_key_and_nonce(kind: Kind, socket_path: Path, algorithm: Any) -> None:
    """The quote is over the signing address and the nonce, the evidence over the nonce, and nothing is simulated."""
    with running_agent(socket_path), attested(kind, socket_path) as client:
        answer = client.get(f"{REPORT}?signing_algo={algorithm}&nonce={NONCE.hex()}")
    assert quoted(answer) == report_data(PAIR.identity(algorithm).address_bytes, NONCE)
    report = answer.json()
    assert json.loads(report["nvidia_payload"])["nonce"] == NONCE.hex()
    assert report["info"]["app_name"] == "teesign"
    assert report["event_log"]
    assert "simulated" not in report


def test_a_report_about_a_random_key_is_marked(kind: Kind, socket_path: Path) -> None:
    """In development nothing vouches for the key, though quote and evidence come from hardware."""
    with running_agent(socket_path), attested(kind, socket_path, dev=True) as client:
        for query in ("", f"?nonce={NONCE.hex()}"):
            report = client.get(f"{REPORT}{query}").json()
            assert report["signing_address"] != PAIR.ecdsa.identity.address
            assert report["simulated"] is True


def test_a_report_without_a_nonce_has_a_random_one(kind: Kind, socket_path: Path) -> None:
    """The nonce is in the report, and the quote is over it."""
    with running_agent(socket_path), attested(kind, socket_path) as client:
        answer = client.get(REPORT)
    nonce = bytes.fromhex(answer.json()["request_nonce"])
    assert quoted(answer) == report_data(PAIR.ecdsa.identity.address_bytes, nonce)


def test_a_report_can_bind_the_tls_key(kind: Kind, socket_path: Path, tmp_path: Path) -> None:
    """The quote is over the hash of the signing address and the certificate's key."""
    pem = tmp_path / "cert.pem"
    fingerprint = certificate(pem)
    with running_agent(socket_path), attested(kind, socket_path, tls_cert_path=pem) as client:
        answer = client.get(f"{REPORT}?nonce={NONCE.hex()}&include_tls_fingerprint=true")
    assert answer.json()["tls_cert_fingerprint"] == fingerprint.hex()
    assert quoted(answer) == sha256(PAIR.ecdsa.identity.address_bytes + fingerprint).digest() + NONCE


@pytest.mark.parametrize(
    "fault", [Fault.HANGS, Fault.TRICKLES, Fault.ANSWERS_500, Fault.BAD_HEX, Fault.NOT_JSON, Fault.DIES_MID_ANSWER]
)
def test_a_failing_agent_fails_one_report(
    kind: Kind, socket_path: Path, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets 500 in bounded time, the log names the call and the socket, and the next request works."""
    with running_agent(socket_path) as agent, attested(kind, socket_path) as client:
        assert client.get("/version").status == 200  # it has started, and has its keys
        agent.fault = fault
        client.get(f"{REPORT}?nonce={NONCE.hex()}").assert_error(500, "server_error", "Internal server error")
        ours = [record for record in caplog.records if record.name == "teesign_asgi"]
        (line,) = [record.getMessage() for record in ours if record.levelname == "ERROR"]
        assert "GetQuote" in line or "Info" in line
        assert str(socket_path) in line
        agent.fault = Fault.NONE
        assert client.get(f"{REPORT}?nonce={NONCE.hex()}").status == 200


@pytest.mark.parametrize("left_behind", [False, True], ids=["no socket", "refuses"])
def test_an_agent_that_goes_and_comes_back(
    kind: Kind,
    socket_path: Path,
    left_behind: bool,  # noqa: FBT001 - a row
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without a socket, or a listener on it, reports are 500, the log says where, and reports come back with it."""
    with ExitStack() as stack:
        with running_agent(socket_path):
            client = stack.enter_context(attested(kind, socket_path))
            assert client.get(f"{REPORT}?nonce={NONCE.hex()}").status == 200
        if left_behind:
            with socket.socket(socket.AF_UNIX) as nobody:
                nobody.bind(str(socket_path))
        client.get(f"{REPORT}?nonce={NONCE.hex()}").assert_error(500, "server_error")
        assert any(str(socket_path) in record.getMessage() for record in caplog.records if record.levelname == "ERROR")
        assert client.get("/v1/signature/unknown").status == 404
        with running_agent(socket_path):
            assert client.get(f"{REPORT}?nonce={NONCE.hex()}").status == 200


@pytest.mark.parametrize("fault", [None, Fault.HANGS, Fault.ANSWERS_500, Fault.WRONG_KEY_LENGTH, Fault.DIES_AT_ONCE])
def test_without_keys_the_server_does_not_start(socket_path: Path, fault: Fault | None) -> None:
    """No agent, or one that gives no key: the start fails with a message that names it, and no keys are made up."""
    port = free_port()
    environment = {
        **os.environ,
        "MODEL_NAME": "m",
        "TOKEN": "t",
        "DSTACK_SIMULATOR_ENDPOINT": str(socket_path),
        "LISTEN_PORT": str(port),
    }
    command = [sys.executable, "-m", "teesign_asgi", "serve"]
    if fault is None:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    else:
        with running_agent(socket_path) as agent:
            agent.fault = fault
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "The signing keys cannot be had from the key service" in ended.stderr
    assert str(socket_path) in ended.stderr
    assert "teesign is ready" not in ended.stderr


def test_clients_that_have_left_are_not_waited_for(kind: Kind, socket_path: Path) -> None:
    """Seventeen fill every place at the GPU, for a second each, and close; who comes then is served as if alone."""
    with running_agent(socket_path), attested(kind, socket_path, "sleeps", "1") as client:
        assert client.get(f"{REPORT}?nonce={NONCE.hex()}").status == 200
        with ExitStack() as leaving:
            for number in range(17):
                leaving.enter_context(client.open("GET", f"{REPORT}?nonce={number:064x}"))
            time.sleep(0.5)
        left_at = time.monotonic()
        wait_until(lambda: client.get(f"{REPORT}?nonce={NONCE.hex()}").status == 200)
        assert time.monotonic() - left_at < 10


def test_a_worker_killed_in_a_call_fails_that_call_only(kind: Kind, socket_path: Path, tmp_path: Path) -> None:
    """The request that was being served gets 500, the next one a report from a new worker."""
    worker = ("killed", str(tmp_path / "once"))
    with running_agent(socket_path), attested(kind, socket_path, *worker) as client:
        client.get(f"{REPORT}?nonce={NONCE.hex()}").assert_error(500, "server_error")
        assert client.get(f"{REPORT}?nonce={NONCE.hex()}").status == 200


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_server_that_ended(socket_path: Path, ending: signal.Signals) -> None:
    """Neither the server's worker process nor the evidence worker outlives the server, however it went."""
    port = free_port()
    environment = {
        **os.environ,
        "MODEL_NAME": "m",
        "TOKEN": TOKEN,
        "DSTACK_SIMULATOR_ENDPOINT": str(socket_path),
        "GPU_EVIDENCE_COMMAND": " ".join([*WORKER, "good"]),
        "LISTEN_HOST": "127.0.0.1",
        "LISTEN_PORT": str(port),
    }
    with (
        running_agent(socket_path),
        subprocess.Popen([sys.executable, "-m", "teesign_asgi", "serve"], env=environment) as process,
    ):
        wait_until(lambda: report_is_served(port))
        family = descendants(process.pid)
        assert len(family) == 2
        process.send_signal(ending)
        process.wait(30)
        wait_until(lambda: not any(map(is_running, family)))


def report_is_served(port: int) -> bool:
    """Tell whether the server gives a report."""
    try:
        return Client(port, TOKEN).get(REPORT).status == 200
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """Return the processes that this one started, and those that they did."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(grandchild for child in children for grandchild in descendants(child))]


def is_running(pid: int) -> bool:
    """Tell whether there is such a process, other than one that has ended and waits to be noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may go while one looks
        return False
