"""Which sources the settings lead to, and what they need to be installed."""

from __future__ import annotations

import re
import sys
import time
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest

from teesign.errors import SourceError
from teesign.sources.dstack import DstackAgent
from teesign.sources.nvidia import NvidiaWorker
from teesign.sources.simulated import SimulatedGpus, SimulatedQuotes
from teesign_asgi import Settings, StartError
from teesign_asgi.settings import worker_environment
from teesign_asgi.sources import GpusIfPresent, default_sources

NOWHERE = "/nowhere/dstack.sock"
NONCE = bytes(32)


def settings(**changes: object) -> Settings:
    """Return settings as an operator gives them."""
    return Settings.from_mapping({"MODEL_NAME": "m", "TOKEN": "t", **{k: str(v) for k, v in changes.items()}})


def test_development_without_dstack_is_simulated() -> None:
    """On a machine with nothing, everything is simulated."""
    sources = default_sources(settings(DEV=1))
    assert isinstance(sources.quotes, SimulatedQuotes)
    assert isinstance(sources.gpus, SimulatedGpus)
    assert sources.keys is None


def test_production_without_dstack_does_not_start() -> None:
    """There are no keys to fall back to; the message says what to mount."""
    with pytest.raises(StartError, match=r"/var/run/dstack\.sock.*DEV=1"):
        default_sources(settings())


def test_a_guest_agent_serves_keys_and_quotes() -> None:
    """Where there is an agent, it is asked for both."""
    sources = default_sources(settings(DSTACK_SIMULATOR_ENDPOINT=NOWHERE))
    assert isinstance(sources.quotes, DstackAgent)
    assert sources.keys is sources.quotes


def test_quotes_of_a_simulator_are_marked() -> None:
    """An agent that a variable puts in the real one's place is not hardware."""
    sources = default_sources(settings(DSTACK_SIMULATOR_ENDPOINT=NOWHERE))
    assert "simulated=True" in repr(sources.quotes)


def test_a_missing_sdk_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setattr("teesign_asgi.sources.find_spec", lambda _: None)
    with pytest.raises(StartError, match=re.escape("pip install 'teesign[dstack]'")):
        default_sources(settings(DSTACK_SIMULATOR_ENDPOINT=NOWHERE))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, [sys.executable, "nvidia_worker.py"]),
        ({"GPU_EVIDENCE_PYTHON": "/bin/sh"}, ["/bin/sh", "nvidia_worker.py"]),
        ({"GPU_EVIDENCE_COMMAND": "sh --name 'two words'"}, ["sh", "--name", "two words"]),
    ],
)
def test_the_worker_that_production_uses(variables: dict[str, str], expected: list[str]) -> None:
    """The bundled worker under this interpreter or another, or a program that takes its place."""
    gpus = default_sources(settings(DSTACK_SIMULATOR_ENDPOINT=NOWHERE, **variables)).gpus
    assert isinstance(gpus, NvidiaWorker)
    assert [Path(word).name if word.endswith(".py") else word for word in gpus._command] == expected


@pytest.mark.parametrize("mode", ["DEV", "GPU_NO_HW_MODE"])
def test_a_worker_that_is_named_is_used_in_development_too(mode: str) -> None:
    """What the machine has is used; what it has not is simulated."""
    gpus = default_sources(settings(DSTACK_SIMULATOR_ENDPOINT=NOWHERE, GPU_EVIDENCE_PYTHON="python3", **{mode: 1})).gpus
    assert isinstance(gpus, GpusIfPresent)


@pytest.mark.anyio
async def test_a_worker_that_cannot_be_started_is_simulated_in_development() -> None:
    """A named program that is not there does not keep a developer from a report."""
    gpus = default_sources(settings(DEV=1, GPU_EVIDENCE_COMMAND="/nowhere/worker")).gpus
    assert (await gpus.collect(NONCE)).simulated
    await gpus.aclose()


@pytest.mark.anyio
async def test_simulated_evidence_is_not_waited_for() -> None:
    """A worker that cannot be started is tried anew for each report, without pauses."""
    gpus = default_sources(settings(DEV=1, GPU_EVIDENCE_COMMAND="/nowhere/worker")).gpus
    begun = time.monotonic()
    for _ in range(8):  # with pauses that double: 12.7 seconds
        assert (await gpus.collect(NONCE)).simulated
    assert time.monotonic() - begun < 5
    await gpus.aclose()


@pytest.mark.anyio
async def test_why_evidence_is_simulated_is_logged_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """And again when the reason is another one."""
    program = tmp_path / "worker"
    gpus = default_sources(settings(DEV=1, GPU_EVIDENCE_COMMAND=str(program))).gpus
    for _ in range(3):
        await gpus.collect(NONCE)
    program.touch(mode=0o600)
    for _ in range(3):
        await gpus.collect(NONCE)
    first, second = (record.getMessage() for record in caplog.records if record.name == "teesign_asgi")
    assert f"the GPU evidence is simulated cause=The GPU evidence worker ({program}) cannot be started" in first
    assert "(FileNotFoundError)" in first
    assert "(PermissionError)" in second
    await gpus.aclose()


@pytest.mark.anyio
async def test_a_worker_that_breaks_down_is_not_hidden() -> None:
    """A worker that starts and then dies is a failure, in development as well."""
    program = f'{sys.executable} -c "print(\'{{\\"protocol\\": 1}}\', flush=True); input()"'
    gpus = default_sources(settings(DEV=1, GPU_EVIDENCE_COMMAND=program)).gpus
    with pytest.raises(SourceError) as caught:
        await gpus.collect(NONCE)
    assert caught.value.code == "gpu_exited"
    await gpus.aclose()


def test_the_worker_is_not_told_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment is ours but for the secrets."""
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/cuda")
    environment = worker_environment()
    assert "TOKEN" not in environment
    assert environment["LD_LIBRARY_PATH"] == "/opt/cuda"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("variable", "expected"), [("GPU_EVIDENCE_PYTHON", "none none"), ("GPU_EVIDENCE_COMMAND", "/proxy /home")]
)
async def test_another_interpreter_does_not_look_where_this_one_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, expected: str
) -> None:
    """Its packages are its own; a program of the operator's gets everything."""
    python, seen = tmp_path / "python", tmp_path / "seen"
    python.write_text(f'#!/bin/sh\necho "${{PYTHONPATH-none}} ${{PYTHONHOME-none}}" > {seen}\n')
    python.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", "/proxy")
    monkeypatch.setenv("PYTHONHOME", "/home")
    gpus = default_sources(settings(DSTACK_SIMULATOR_ENDPOINT=NOWHERE, **{variable: python})).gpus
    with pytest.raises(SourceError):
        await gpus.collect(NONCE)
    await gpus.aclose()
    assert seen.read_text().strip() == expected


def test_this_interpreter_looks_where_the_proxy_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another one, NVIDIA's library may be wherever the proxy would find it."""
    monkeypatch.setenv("PYTHONPATH", "/proxy")
    gpus = default_sources(settings(DSTACK_SIMULATOR_ENDPOINT=NOWHERE)).gpus
    assert isinstance(gpus, NvidiaWorker)
    assert gpus._environment is not None
    assert gpus._environment["PYTHONPATH"] == "/proxy"


def test_the_proxy_needs_none_of_nvidias_packages() -> None:
    """Whatever `teesign[all]` brings, directly or not, NVIDIA's SDK is not in it, nor are the versions that it pins."""
    installed, waiting = set[str](), ["teesign"]
    while waiting:
        name = waiting.pop()
        if name in installed:
            continue
        installed.add(name)
        extras = {"all", "server", "dstack", "asgi"} if name == "teesign" else set[str]()
        for requirement in requires(name) or []:
            wanted, _, marker = requirement.partition(";")
            extra = re.search(r"extra == ['\"](.+?)['\"]", marker)
            dependency = re.match(r"[\w.-]+", wanted)
            assert dependency is not None
            is_here = is_installed(dependency.group())
            if is_here and (extra is None or extra.group(1) in extras):
                waiting.append(dependency.group().lower().replace("_", "-"))
    assert {"granian", "dstack-sdk"} <= installed
    assert installed.isdisjoint({"nv-attestation-sdk", "nv-local-gpu-verifier", "pytest", "lxml", "nvidia-ml-py"})
    assert int(distribution("cryptography").version.partition(".")[0]) > 43


def is_installed(name: str) -> bool:
    """Tell whether a distribution is installed."""
    try:
        distribution(name)
    except ModuleNotFoundError:
        return False
    return True
