"""What every test can use: both event loops, and the proxy before a scripted backend on real sockets."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from backend import json_answer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from servers import MAIN_KINDS, Kind, Stack, stack

from teesign_asgi import upstream

# How long an example takes, or the making of one, says something about the machine, not about the code.
TIMELESS: dict[str, Any] = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("teesign", **TIMELESS)
# For `nox -s mutation`: that a mutant fails is enough, and whether it does must not depend on chance.
hypothesis.settings.register_profile(
    "mutation", derandomize=True, phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate], **TIMELESS
)
hypothesis.settings.load_profile("teesign")


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """Collect garbage after each test, so that the warning of a socket left open fails the test that left it."""
    yield
    gc.collect()
    gc.freeze()  # what is still in use is not looked at again after each of the next tests


@pytest.fixture(autouse=True, scope="module")
def nothing_kept() -> Iterator[None]:
    """Collect after each module what was in use at the end of some test of it, and is no more."""
    yield
    gc.unfreeze()
    gc.collect()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop that an asynchronous test runs on."""
    loop: str = request.param
    return loop


@pytest.fixture(scope="module", params=MAIN_KINDS)
def server(request: pytest.FixtureRequest) -> Kind:
    """Each of the servers that long tables are run under."""
    chosen: Kind = request.param
    return chosen


@pytest.fixture(scope="module")
def shared_proxy(server: Kind) -> Iterator[Stack]:
    """A proxy with the settings of `servers.settings_for`, for all tests of a module."""
    with stack(server) as running:
        yield running


@pytest.fixture
def proxy(shared_proxy: Stack) -> Stack:
    """The same proxy, whose backend answers with a small JSON object until a test has it do something else."""
    shared_proxy.backend.play(json_answer(b'{"id":"an-id"}'))
    return shared_proxy


@pytest.fixture
def slow_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late the end of an idle connection shows, it counts as one; a busy machine may take its time."""
    monkeypatch.setattr(upstream, "STALE_WINDOW", 30)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a process writes to."""
    return tmp_path / "log"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    made = builder.add_extension(address, critical=True).sign(key, hashes.SHA256())
    path = tmp_path_factory.mktemp("tls") / "backend.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path
