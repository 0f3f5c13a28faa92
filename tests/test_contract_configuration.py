"""README.md, "Settings": what each variable does, seen from outside, and `teesign serve` as a process.

Most variables have their tests with the behaviour that they change. The table below says where, and a test holds it
against the settings, so that no variable is without one.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import pytest
from authorities import INTEL
from backend import Backend, json_answer
from processes import REQUIRED, Process, environment, teesign_serve, waiting_for_keys
from servers import TOKEN, Kind, Stack, free_port, stack

from teesign_asgi import Settings
from teesign_asgi.settings import VARIABLES

CHAT = "/v1/chat/completions"
HERE = "test_contract_configuration"
ENDPOINTS, RESPONSES = "test_contract_endpoints", "test_contract_responses"
SIGNATURE, ATTESTATION = "test_contract_signature", "test_contract_attestation"
SHUTDOWN, STALLS = "test_shutdown", "test_stalls"

TESTED = {
    "MODEL_NAME": (SIGNATURE, "test_ids_are_namespaced_by_the_model"),
    "TOKEN": (ENDPOINTS, "test_authorization_headers"),
    "VLLM_BASE_URL": (RESPONSES, "test_a_proxy_that_points_at_itself"),
    "DEV": (HERE, "test_development_mode_is_said_aloud"),
    "GPU_NO_HW_MODE": (HERE, "test_canned_evidence_is_said_aloud"),
    "CHAT_CACHE_EXPIRATION": (SIGNATURE, "test_signatures_expire"),
    "VLLM_PROXY_MAX_REQUEST_SIZE": (ENDPOINTS, "test_a_body_of_the_limit_passes"),
    "VLLM_PROXY_MAX_IMAGE_REQUEST_SIZE": (ENDPOINTS, "test_a_body_of_the_limit_passes"),
    "VLLM_PROXY_MAX_AUDIO_REQUEST_SIZE": (ENDPOINTS, "test_a_body_of_the_limit_passes"),
    "VLLM_PROXY_MAX_KEEPALIVE": (HERE, "test_idle_connections_are_counted_for_each_host"),
    "LISTEN_PORT": (HERE, "test_where_it_listens"),
    "LISTEN_HOST": (HERE, "test_where_it_listens"),
    "VLLM_IMAGES_URL": (ENDPOINTS, "test_endpoints_can_have_another_backend"),
    "VLLM_IMAGES_EDITS_URL": (ENDPOINTS, "test_endpoints_can_have_another_backend"),
    "VLLM_TRANSCRIPTIONS_URL": (ENDPOINTS, "test_endpoints_can_have_another_backend"),
    "VLLM_RERANK_URL": (ENDPOINTS, "test_endpoints_can_have_another_backend"),
    "VLLM_SCORE_URL": (ENDPOINTS, "test_endpoints_can_have_another_backend"),
    "VLLM_PROXY_TIMEOUT_SECS": (RESPONSES, "test_a_backend_that_is_silent"),
    "CLIENT_BODY_TIMEOUT": (STALLS, "test_an_upload_that_stops"),
    "CLIENT_WRITE_TIMEOUT": (STALLS, "test_a_client_that_stops_reading"),
    "RATE_LIMIT_PER_SECOND": (HERE, "test_the_rate_limit_refills"),
    "RATE_LIMIT_BURST_SIZE": (HERE, "test_the_rate_limit_refills"),
    "TRUSTED_PROXY_HOPS": (HERE, "test_trusted_proxies"),
    "SIGNATURE_CACHE_MAX_ENTRIES": (SIGNATURE, "test_the_oldest_signatures_go_first"),
    "ATTESTATION_CACHE_TTL": (ATTESTATION, "test_the_cache_can_be_turned_off"),
    "PUBLIC_ATTESTATION": (ATTESTATION, "test_reports_can_be_public"),
    "TRUST_REQUEST_HASH": (ENDPOINTS, "test_the_request_hash_header_can_be_trusted"),
    "ALLOW_BACKEND_ADMIN": (ENDPOINTS, "test_administrative_paths_can_be_allowed"),
    "SIGNED_TEXT": (ENDPOINTS, "test_the_second_form_of_the_signed_text"),
    "TLS_CERT_PATH": (ATTESTATION, "test_a_certificate_can_be_bound"),
    "GPU_EVIDENCE_PYTHON": (HERE, "test_every_flag_is_accepted"),
    "GPU_EVIDENCE_COMMAND": (HERE, "test_every_flag_is_accepted"),
    "DSTACK_SIMULATOR_ENDPOINT": (HERE, "test_a_simulator_is_said_aloud"),
    "DRAIN_DELAY": (SHUTDOWN, "test_everything_is_served_during_the_delay"),
    "DRAIN_TIMEOUT": (SHUTDOWN, "test_a_stream_that_does_not_finish_is_cut"),
    "DRAIN_LINGER": (SHUTDOWN, "test_the_signature_of_the_last_stream_can_be_fetched"),
    "LOG_FORMAT": (HERE, "test_log_lines_for_machines"),
    "LOG_LEVEL": (HERE, "test_the_log_level"),
}


def test_every_variable_has_its_test() -> None:
    """The table names every variable of the settings, and each test in it exists."""
    assert list(TESTED) == [variable.name for variable in VARIABLES.values()]
    for module, name in TESTED.values():
        assert callable(getattr(import_module(module), name))


# --- effects that have no other home


class _Clock:
    """A clock that runs only when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_limit_refills(server: Kind) -> None:
    """RATE_LIMIT_BURST_SIZE requests at once, and then RATE_LIMIT_PER_SECOND more each second."""
    clock = _Clock()
    with stack(server, rate_limit_per_second=2, rate_limit_burst=5, parts={"clock": clock}) as proxy:

        def statuses(count: int) -> list[int]:
            return [proxy.client.get("/v1/models").status for _ in range(count)]

        assert statuses(7) == [200] * 5 + [429] * 2
        clock.now += 1
        assert statuses(3) == [200, 200, 429]
        clock.now += 60
        assert statuses(6) == [200] * 5 + [429]


FORWARDED = [
    # hops, the header's values, whether each of them is one client
    (0, [["192.0.2.1"], ["192.0.2.2"]], True),
    (1, [["192.0.2.1"], ["192.0.2.2"]], False),
    (1, [["192.0.2.1, 198.51.100.7"], ["192.0.2.2, 198.51.100.7"]], True),
    (1, [["192.0.2.1", "198.51.100.7"], ["192.0.2.2", "198.51.100.7"]], True),
    (2, [["192.0.2.1, 198.51.100.7"], ["192.0.2.2, 198.51.100.7"]], False),
    (2, [["192.0.2.1"], ["192.0.2.2"]], True),
    (1, [["192.0.2.1:1234"], ["192.0.2.1:5678"]], True),
    (1, [["[2001:db8::1]:1234"], ["2001:db8::2"]], True),
    (1, [["2001:db8:0:1::1"], ["2001:db8:0:2::1"]], False),
    (1, [["::ffff:192.0.2.1"], ["192.0.2.1"]], True),
    (1, [["not an address"], ["unknown"]], True),
    (1, [[""], []], True),
]


@pytest.mark.parametrize(("hops", "values", "same"), FORWARDED)
def test_trusted_proxies(server: Kind, hops: int, values: list[list[str]], *, same: bool) -> None:
    """The client's address is the socket's, or the n-th from the right of X-Forwarded-For, and nothing else counts."""
    clock = _Clock()
    limits = {"rate_limit_per_second": 1, "rate_limit_burst": 1, "trusted_proxy_hops": hops}
    with stack(server, parts={"clock": clock}, **limits) as proxy:
        first, second = (
            proxy.client.get("/v1/models", [("X-Forwarded-For", each) for each in value]).status for value in values
        )
        assert (first, second) == (200, 429 if same else 200)


def test_idle_connections_are_bounded(server: Kind) -> None:
    """With VLLM_PROXY_MAX_KEEPALIVE=0 a connection to the backend serves one request."""
    with stack(server, max_keepalive=0) as proxy:
        for _ in range(3):
            assert proxy.client.post(CHAT, b"{}").status == 200
        assert proxy.backend.connections == 3
        for call in proxy.backend.calls:
            call.wait_until_gone()


def test_idle_connections_are_counted_for_each_host(server: Kind) -> None:
    """Two backends in turn, with VLLM_PROXY_MAX_KEEPALIVE=1, do not take each other's connections away."""
    with Backend() as other, stack(server, max_keepalive=1, score_url=f"{other.url}/v1/score") as proxy:
        for _ in range(3):
            assert proxy.client.post(CHAT, b"{}").status == 200
            assert proxy.client.post("/v1/score", b"{}").status == 200
            proxy.client.wait_until_idle()
        assert (proxy.backend.connections, other.connections) == (1, 1)


# --- the process


def run(variables: Mapping[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a `teesign serve` that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "teesign_asgi", "serve", *flags],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


BAD_VALUES = {
    "MODEL_NAME": "  ",
    "TOKEN": "to ken,CANARY-é",
    "VLLM_BASE_URL": "ftp://CANARY",
    "DEV": "CANARY",
    "GPU_NO_HW_MODE": "2",
    "CHAT_CACHE_EXPIRATION": "0",
    "VLLM_PROXY_MAX_REQUEST_SIZE": "1e6",
    "VLLM_PROXY_MAX_IMAGE_REQUEST_SIZE": "-1",
    "VLLM_PROXY_MAX_AUDIO_REQUEST_SIZE": "1.5",
    "VLLM_PROXY_MAX_KEEPALIVE": "many",
    "LISTEN_PORT": "65536",
    "LISTEN_HOST": " ",
    "VLLM_IMAGES_URL": "localhost:9000",
    "VLLM_IMAGES_EDITS_URL": "http://",
    "VLLM_TRANSCRIPTIONS_URL": "http://user:CANARY@host/",
    "VLLM_RERANK_URL": "http://host/?CANARY",
    "VLLM_SCORE_URL": "http://host/#CANARY",
    "VLLM_PROXY_TIMEOUT_SECS": "inf",
    "CLIENT_BODY_TIMEOUT": "0",
    "CLIENT_WRITE_TIMEOUT": "forever",
    "RATE_LIMIT_PER_SECOND": "0",
    "RATE_LIMIT_BURST_SIZE": "0",
    "TRUSTED_PROXY_HOPS": "-1",
    "SIGNATURE_CACHE_MAX_ENTRIES": "0",
    "ATTESTATION_CACHE_TTL": "-1",
    "PUBLIC_ATTESTATION": "maybe",
    "TRUST_REQUEST_HASH": "y",
    "ALLOW_BACKEND_ADMIN": "enabled",
    "SIGNED_TEXT": "v3",
    "TLS_CERT_PATH": "/nonexistent/CANARY.pem",
    "GPU_EVIDENCE_PYTHON": " ",
    "GPU_EVIDENCE_COMMAND": " ",
    "DSTACK_SIMULATOR_ENDPOINT": " ",
    "DRAIN_DELAY": "-1",
    "DRAIN_TIMEOUT": "CANARY",
    "DRAIN_LINGER": "nan",
    "LOG_FORMAT": "xml",
    "LOG_LEVEL": "verbose",
}


def test_all_problems_are_reported_at_once() -> None:
    """Every variable with a bad value is named, with an example of a good one; no value is shown."""
    assert BAD_VALUES.keys() == TESTED.keys()
    ended = run(BAD_VALUES)
    assert ended.returncode == 2
    for variable in VARIABLES.values():
        assert ended.stderr.count(f"- {variable.name} ") == 1
        assert f"Example: {variable.name}={variable.example}" in ended.stderr
    assert "CANARY" not in ended.stdout + ended.stderr


def test_what_is_required_is_asked_for() -> None:
    """A start without anything says what is missing, in a message and not in a traceback."""
    ended = run({})
    assert ended.returncode == 2
    assert "MODEL_NAME is not set" in ended.stderr
    assert "TOKEN is not set" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_problems_are_reported_before_the_port_is_opened() -> None:
    """A bad configuration is said even where the port could not have been had."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run({**REQUIRED, "LISTEN_HOST": "127.0.0.1", "LISTEN_PORT": port, "LOG_FORMAT": "xml"})
    assert ended.returncode == 2
    assert "LOG_FORMAT" in ended.stderr
    assert "Cannot listen" not in ended.stderr


def test_a_port_in_use_by_another_teesign(log: Path) -> None:
    """Two of them do not share a port: each has keys and signatures of its own."""
    with teesign_serve(log) as process:
        process.wait_until_ready()
        ended = run({**REQUIRED, "LISTEN_HOST": "127.0.0.1", "LISTEN_PORT": str(process.port)})
    assert ended.returncode == 1
    assert "Address already in use" in ended.stderr


def test_a_port_that_another_teesign_will_use(log: Path) -> None:
    """Nor do they before the first one listens: it may wait for its keys."""
    with waiting_for_keys(log) as process:
        ended = run({**REQUIRED, "LISTEN_HOST": "127.0.0.1", "LISTEN_PORT": str(process.port)})
    assert ended.returncode == 1
    assert "Address already in use" in ended.stderr


def test_a_port_that_another_teesign_will_use_on_another_address(log: Path, tmp_path: Path) -> None:
    """That is another port."""
    with (
        waiting_for_keys(log) as process,
        teesign_serve(tmp_path / "other", LISTEN_HOST="127.0.0.2", LISTEN_PORT=str(process.port)) as other,
    ):
        other.wait_until_it_says("teesign is ready")


def test_a_host_that_is_not_there() -> None:
    """An address of some other machine is refused with a message."""
    ended = run({**REQUIRED, "LISTEN_HOST": "192.0.2.1"})
    assert ended.returncode == 1
    assert "Cannot listen on 192.0.2.1 port 8000: Cannot assign requested address" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("host", ["a..b", ".", "a" * 64, "a" * 64 + ".example"])
def test_a_host_that_cannot_be_a_name(host: str) -> None:
    """A label that is empty or too long is refused with the same message."""
    ended = run({**REQUIRED, "LISTEN_HOST": host})
    assert ended.returncode == 1
    assert f"Cannot listen on {host} port 8000: not a host name" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_in_use() -> None:
    """The message names the address, the reason and the way out."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run({**REQUIRED, "LISTEN_HOST": "127.0.0.1", "LISTEN_PORT": port})
    assert ended.returncode == 1
    assert f"Cannot listen on 127.0.0.1 port {port}: Address already in use" in ended.stderr
    assert "LISTEN_PORT" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_every_flag_is_accepted(tmp_path: Path) -> None:
    """There is a flag for each variable, it wins over the variable, and it takes the example that messages give."""
    certificate = tmp_path / "cert.pem"
    certificate.write_bytes(INTEL.root.pem)
    flags = []
    for variable in VARIABLES.values():
        value = str(certificate) if variable.name == "TLS_CERT_PATH" else variable.example
        flags += ["--" + variable.name.lower().replace("_", "-"), value]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run(BAD_VALUES, *flags, "--listen-host", "127.0.0.1", "--listen-port", port)
    assert ended.returncode == 1, ended.stderr
    assert f"Cannot listen on 127.0.0.1 port {port}" in ended.stderr


def test_a_working_directory_that_is_gone(log: Path, tmp_path: Path) -> None:
    """Nothing is wanted of it."""
    port, gone = free_port(), tmp_path / "gone"
    gone.mkdir()
    leave = f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})"
    program = f"{leave}; from teesign_asgi.cli.serve import serve; serve()"
    everything = environment(**REQUIRED, LISTEN_HOST="127.0.0.1", LISTEN_PORT=str(port))
    # To measure the coverage of a process takes a working directory.
    variables = {name: value for name, value in everything.items() if not name.startswith("COVERAGE")}
    with (
        log.open("wb") as file,
        subprocess.Popen([sys.executable, "-c", program], env=variables, stderr=file) as popen,
    ):
        process = Process(popen, port, log)
        try:
            process.wait_until_ready()
        finally:
            popen.terminate()


def test_where_it_listens(log: Path) -> None:
    """LISTEN_HOST and LISTEN_PORT say so; a flag wins over the variable."""
    port = free_port()
    with teesign_serve(
        log, "--listen-port", str(port), LISTEN_HOST="127.0.0.2", LISTEN_PORT=str(free_port())
    ) as process:
        deadline = time.monotonic() + 60
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.2", port, timeout=5)
                connection.request("GET", "/version")
                assert connection.getresponse().status == 200
                connection.close()
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, process.output()
                time.sleep(0.02)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_log_lines_for_machines(log: Path) -> None:
    """With LOG_FORMAT=json every line is a JSON object, from the start to the end; the token is in none of them."""
    with Backend() as backend, teesign_serve(log, LOG_FORMAT="json", VLLM_BASE_URL=backend.url) as process:
        process.wait_until_ready()
        backend.play(json_answer(b'{"id":"a"}'))
        answered = process.client.post(CHAT, b"{}", [("X-Request-ID", "find-me")])
        process.client.assert_answer_signed(answered, b"{}", "a")
        process.terminate()
        assert process.wait() == 0
        lines = [json.loads(line) for line in process.lines()]
        (line,) = [line for line in lines if line.get("request_id") == "find-me"]
        assert line["event"] == "request"
        assert (line["method"], line["path"], line["status"], line["backend_status"]) == ("POST", CHAT, 200, 200)
        assert (line["received"], line["sent"], line["signed"]) == (2, 10, True)
        assert line["level"] == "info"
        assert "timestamp" in line
        assert TOKEN not in process.output()


def test_the_start_is_summed_up(log: Path) -> None:
    """The log tells the address, the backend, the limits and the keys' addresses, and no secret."""
    with teesign_serve(log, LOG_FORMAT="json", VLLM_BASE_URL="http://127.0.0.1:9") as process:
        process.wait_until_ready()
        process.wait_until_it_says("teesign is ready")
        lines = {line["event"]: line for line in map(json.loads, process.lines())}
        summary, ready = lines["teesign serves"], lines["teesign is ready"]
        assert summary["listen"] == f"127.0.0.1:{process.client.port}"
        assert summary["backend"] == "http://127.0.0.1:9"
        assert (summary["max_request"], summary["rate_per_s"], summary["drain_s"]) == (10_485_760, 100, 30)
        assert ready["ecdsa"].startswith("0x")
        assert len(ready["ed25519"]) == 64
        assert TOKEN not in process.output()


def test_the_log_level(log: Path) -> None:
    """With LOG_LEVEL=error, requests leave no line; the warnings of every start are written all the same."""
    with teesign_serve(log, LOG_LEVEL="error", GPU_NO_HW_MODE="1") as process:
        process.wait_until_ready()
        process.client.get("/v1/unknown")
        process.terminate()
        assert process.wait() == 0
        development, canned, *_ = process.lines()  # granian may add a line of its own at its end, on a busy machine
        assert "[warning  ] DEV is on" in development
        assert "[warning  ] GPU_NO_HW_MODE is on" in canned
        assert "/v1/unknown" not in process.output()
        assert "[info" not in process.output()


def test_development_mode_is_said_aloud(log: Path) -> None:
    """A server whose keys prove nothing says so at its start, and shows its addresses and its backend."""
    with teesign_serve(log, VLLM_BASE_URL="http://127.0.0.1:9") as process:
        process.wait_until_ready()
        process.wait_until_it_says("teesign is ready")
        report = process.client.get("/v1/attestation/report").json()
        assert report["simulated"] is True
        assert "DEV is on" in process.output()
        assert report["signing_address"] in process.output()
        assert "http://127.0.0.1:9" in process.output()
        assert TOKEN not in process.output()


def test_canned_evidence_is_said_aloud() -> None:
    """GPU_NO_HW_MODE is a thing to be warned about."""
    settings = Settings(model_name="m", tokens=("t",), gpu_no_hw_mode=True)
    assert any("GPU_NO_HW_MODE is on" in warning for warning in settings.warnings())
    with stack(gpu_no_hw_mode=True) as proxy:
        assert proxy.client.get("/v1/attestation/report").json()["simulated"] is True


def test_a_simulator_is_said_aloud() -> None:
    """DSTACK_SIMULATOR_ENDPOINT is a thing to be warned about, too."""
    settings = Settings(model_name="m", tokens=("t",), dstack_simulator_endpoint="http://localhost:8090")
    assert any("DSTACK_SIMULATOR_ENDPOINT is set" in warning for warning in settings.warnings())


def test_a_backend_that_may_be_the_proxy_itself(log: Path) -> None:
    """Both default to one port: the start goes on with a warning, and a request that comes back is cut."""
    port = str(free_port())
    with teesign_serve(
        log, LISTEN_HOST="localhost", LISTEN_PORT=port, VLLM_BASE_URL=f"http://localhost:{port}"
    ) as process:
        process.wait_until_ready()
        process.wait_until_it_says("teesign is ready")
        assert "VLLM_BASE_URL may point at this proxy itself" in process.output()
        process.client.get("/v1/models").assert_error(500, "server_error", "Internal server error")
        process.client.post(CHAT, b"{}").assert_error(500, "server_error", "Internal server error")


def test_the_shared_proxy_is_configured_as_the_tables_say(proxy: Stack) -> None:
    """The limits that the tables of the other files use are those of the proxy that they run against."""
    settings = proxy.app.settings
    assert settings.max_request_bytes == 2_000
    assert settings.max_image_request_bytes == 3_000
    assert settings.max_audio_request_bytes == 4_000
