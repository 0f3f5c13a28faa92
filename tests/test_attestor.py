"""Attestation reports: when they are collected, by whom, and who gets which, on asyncio and trio."""

from __future__ import annotations

import json
import weakref
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support import without_collector

from teesign import GpuEvidence, Quote, SigningAlgorithm, SourceError, parse_quote, report_data
from teesign.sources import Sources
from teesign.testing import ManualClock, counting_random, fixed_evidence, fixed_pair, fixed_quote
from teesign_asgi.attestor import MAX_WAITING, Attestor
from teesign_asgi.certificate import BoundCertificate, CertificateError
from teesign_asgi.errors import HttpError

pytestmark = pytest.mark.anyio

TTL = 100.0
NONCE = bytes(range(32))


class Machine:
    """Quotes and GPUs that take until they are let go, and count what is asked of them."""

    def __init__(self) -> None:
        self.go: anyio.Event | None = None
        self.failure: Exception | None = None
        self.nonces: list[bytes] = []
        self.quoting = self.collecting = self.most_collecting = 0
        self.cancelled = 0

    async def quote(self, report_data: bytes) -> Quote:
        """Return a quote."""
        self.quoting += 1
        try:
            await self._wait()
        finally:
            self.quoting -= 1
        return fixed_quote(report_data)

    async def info(self) -> Mapping[str, Any]:
        """Return something."""
        return {"app": "some"}

    async def collect(self, nonce: bytes) -> GpuEvidence:
        """Return evidence, or fail."""
        self.nonces.append(nonce)
        self.collecting += 1
        self.most_collecting = max(self.collecting, self.most_collecting)
        try:
            await self._wait()
            if self.failure is not None:
                raise self.failure
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        finally:
            self.collecting -= 1
        return fixed_evidence(nonce)

    async def aclose(self) -> None:
        """Fail: the attestor does not own its sources."""
        raise AssertionError("the attestor does not own its sources")

    async def _wait(self) -> None:
        if self.go is not None:
            await self.go.wait()
        await anyio.lowlevel.checkpoint()


class Setup:
    """An attestor on such a machine."""

    def __init__(self, *, ttl: float = TTL, certificate: BoundCertificate | None = None) -> None:
        self.machine, self.clock = Machine(), ManualClock(now=1000)
        self.failures: list[tuple[Exception, str]] = []
        self.attestor = Attestor(
            fixed_pair(),
            Sources(quotes=self.machine, gpus=self.machine),
            model="some/model",
            development=False,
            certificate=certificate,
            cache_ttl=ttl,
            clock=self.clock,
            random=counting_random(),
            on_failure=lambda failure, request_id: self.failures.append((failure, request_id)),
        )

    async def report(
        self, nonce: bytes | None = None, algorithm: SigningAlgorithm = "ecdsa", *, bind: bool = False
    ) -> dict[str, Any]:
        """Return a report, decoded."""
        report: dict[str, Any] = json.loads(
            await self.attestor.report(algorithm, nonce, bind_certificate=bind, request_id="its-id")
        )
        return report

    async def status(self, nonce: bytes | None = None) -> int:
        """Return the status that a request for a report is answered with."""
        try:
            await self.attestor.report("ecdsa", nonce, bind_certificate=False, request_id="its-id")
        except HttpError as error:
            return error.status
        return 200


async def settle() -> None:
    """Let every other task go as far as it can."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


async def together(*calls: Callable[[], Awaitable[Any]], meanwhile: Callable[[], Awaitable[None]]) -> list[Any]:
    """Return what these calls return, started in this order, while something else happens."""
    results: list[Any] = [None] * len(calls)

    async def run(index: int) -> None:
        results[index] = await calls[index]()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for index in range(len(calls)):
                group.start_soon(run, index)
                await settle()
            await meanwhile()
    return results


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
async def test_a_report_answers_the_challenge(algorithm: SigningAlgorithm) -> None:
    """The quote binds the key and the nonce, and the GPU's evidence is for the same nonce."""
    setup = Setup()
    report = await setup.report(NONCE, algorithm)
    identity = fixed_pair().identity(algorithm)
    assert (report["model_name"], report["signing_address"]) == ("some/model", identity.address)
    assert report["request_nonce"] == NONCE.hex()
    quoted = parse_quote(bytes.fromhex(report["intel_quote"])).report_data
    assert quoted == report_data(identity.address_bytes, NONCE)
    assert setup.machine.nonces == [NONCE]
    assert "tls_cert_fingerprint" not in report


async def test_the_quote_and_the_evidence_are_collected_at_the_same_time() -> None:
    """Each takes seconds."""
    setup = Setup()
    machine = setup.machine
    go = machine.go = anyio.Event()

    async def meanwhile() -> None:
        assert (machine.quoting, machine.collecting) == (1, 1)
        go.set()

    await together(lambda: setup.report(NONCE), meanwhile=meanwhile)


async def test_collections_for_the_gpu_never_overlap() -> None:
    """However many requests there are, of whatever kind; all are answered."""
    setup = Setup()
    go = setup.machine.go = anyio.Event()

    async def meanwhile() -> None:
        assert len(setup.machine.nonces) == 1
        go.set()

    calls = [lambda nonce=bytes([n]) * 32: setup.report(nonce) for n in range(5)]
    reports = await together(*calls, setup.report, lambda: setup.report(algorithm="ed25519"), meanwhile=meanwhile)
    assert setup.machine.most_collecting == 1
    assert len({report["request_nonce"] for report in reports}) == 7


async def test_a_report_with_a_nonce_is_always_collected_afresh() -> None:
    """And leaves nothing for others."""
    setup = Setup()
    assert (await setup.report(NONCE))["request_nonce"] == (await setup.report(NONCE))["request_nonce"] == NONCE.hex()
    await setup.report()
    assert len(setup.machine.nonces) == 3


async def test_reports_without_a_nonce_are_served_from_the_cache() -> None:
    """One for each algorithm, over a random nonce."""
    setup = Setup()
    first = await setup.report()
    assert await setup.report() == first
    other = await setup.report(algorithm="ed25519")
    assert other["signing_algo"] == "ed25519"
    assert len(setup.machine.nonces) == len(set(setup.machine.nonces)) == 2


async def test_without_a_cache_every_report_is_fresh() -> None:
    """A time of 0 turns it off."""
    setup = Setup(ttl=0)
    assert (await setup.report())["request_nonce"] != (await setup.report())["request_nonce"]


@pytest.mark.parametrize("waiters", [1, 2, 100])
async def test_however_many_wait_there_is_one_collection(waiters: int) -> None:
    """All of them get its report."""
    setup = Setup()
    go = setup.machine.go = anyio.Event()

    async def meanwhile() -> None:
        go.set()

    reports = await together(*[setup.report] * waiters, meanwhile=meanwhile)
    assert all(report == reports[0] for report in reports)
    assert len(setup.machine.nonces) == 1


async def test_a_collection_goes_on_when_the_one_who_started_it_leaves() -> None:
    """The others are still answered, and so is the next."""
    setup = Setup()
    go = setup.machine.go = anyio.Event()
    leader = anyio.CancelScope()

    async def leave() -> None:
        with leader:
            await setup.report()

    async def meanwhile() -> None:
        leader.cancel()
        await settle()
        go.set()

    _, report = await together(leave, setup.report, meanwhile=meanwhile)
    assert report["request_nonce"] == setup.machine.nonces[0].hex()
    assert await setup.report() == report
    assert setup.machine.cancelled == 0


async def test_a_collection_for_a_nonce_ends_with_its_request() -> None:
    """Nobody else can use it; and the GPU is free again."""
    setup = Setup()
    go = setup.machine.go = anyio.Event()
    leader = anyio.CancelScope()

    async def leave() -> None:
        with leader:
            await setup.report(NONCE)

    async def meanwhile() -> None:
        leader.cancel()
        await settle()
        assert setup.machine.cancelled == 1
        go.set()

    await together(leave, meanwhile=meanwhile)
    assert await setup.status(NONCE) == 200


async def test_a_report_is_refreshed_at_half_its_age() -> None:
    """In the background: the one that starts it is answered at once with the old one, and later ones with the new."""
    setup = Setup()
    old = await setup.report()
    setup.clock.advance(TTL / 2 - 1)
    assert await setup.report() == old
    await settle()
    assert len(setup.machine.nonces) == 1
    setup.clock.advance(1)
    go = setup.machine.go = anyio.Event()
    assert await setup.report() == old
    assert await setup.report() == old
    go.set()
    await settle()
    new = await setup.report()
    assert len(setup.machine.nonces) == 2
    assert new["request_nonce"] == setup.machine.nonces[1].hex() != old["request_nonce"]


async def test_an_expired_report_is_not_served() -> None:
    """Its age counts from the beginning of its collection."""
    setup = Setup()
    go = setup.machine.go = anyio.Event()

    async def meanwhile() -> None:
        setup.clock.advance(10)
        go.set()

    (old,) = await together(setup.report, meanwhile=meanwhile)
    setup.clock.advance(TTL - 10)
    assert await setup.report() != old


@pytest.mark.parametrize("failure", [SourceError("no GPU"), ValueError("unexpected")])
async def test_a_failed_collection_leaves_nothing(failure: Exception) -> None:
    """Those who wait for it are told, its cause is reported once, and the next request tries again."""
    setup = Setup()
    setup.machine.failure = failure
    go = setup.machine.go = anyio.Event()

    async def meanwhile() -> None:
        go.set()

    assert await together(setup.status, setup.status, meanwhile=meanwhile) == [500, 500]
    assert setup.failures == [(failure, "its-id")]
    assert len(setup.machine.nonces) == 1
    setup.machine.failure = None
    assert await setup.status() == 200


async def test_a_failed_refresh_does_not_matter_while_the_report_is_good() -> None:
    """It is tried again by the next request."""
    setup = Setup()
    old = await setup.report()
    setup.machine.failure = SourceError("no GPU")
    setup.clock.advance(TTL / 2)
    for _ in range(2):
        assert await setup.report() == old
        await settle()
    assert len(setup.failures) == 2
    setup.clock.advance(TTL / 2)
    assert await setup.status() == 500


@pytest.mark.parametrize("failure", [SourceError("no GPU"), ValueError("unexpected")])
async def test_a_failed_collection_for_a_nonce_is_reported(failure: Exception) -> None:
    """To the client as a server error, and to the operator with its cause."""
    setup = Setup()
    setup.machine.failure = failure
    assert await setup.status(NONCE) == 500
    assert setup.failures == [(failure, "its-id")]
    setup.machine.failure = None
    assert await setup.status(NONCE) == 200


async def test_a_failed_quote_ends_the_collection_of_evidence() -> None:
    """Nobody has a use for the other half."""
    setup = Setup()
    setup.machine.go = anyio.Event()

    async def fail(_: bytes) -> Quote:
        raise SourceError("no agent")

    setup.machine.quote = fail  # type: ignore[method-assign,assignment]  # the agent has gone
    with anyio.fail_after(60):
        assert await setup.status(NONCE) == 500
    assert setup.machine.collecting == 0


@pytest.mark.parametrize("failing", [1, 2])
async def test_nothing_of_a_failed_collection_is_kept(failing: int) -> None:
    """Not until the garbage collector runs, either: evidence has megabytes, in too few objects for it to notice."""
    setup = Setup()
    collected: list[weakref.ref[Kept]] = []

    class Kept(list[dict[str, Any]]):
        """Evidence that can be referred to weakly."""

    async def collect(_: bytes) -> Kept:
        evidence = Kept()
        collected.append(weakref.ref(evidence))
        return evidence

    async def fail(*_: bytes) -> Any:
        for _turn in range(3):
            await anyio.lowlevel.checkpoint()
        raise SourceError("no agent")

    setup.machine.collect = collect  # type: ignore[method-assign,assignment]
    setup.machine.quote = fail  # type: ignore[method-assign,assignment]  # the agent has gone
    if failing > 1:
        setup.machine.info = fail  # type: ignore[method-assign]
    with without_collector():
        assert await setup.status(NONCE) == 500
        setup.failures.clear()
        assert [each() for each in collected] == [None]


async def test_one_more_than_may_wait_is_turned_away() -> None:
    """At once, with a time to come back; those who wait are answered, and then there is room again."""
    setup = Setup()
    go = setup.machine.go = anyio.Event()
    nonces = [bytes([n]) * 32 for n in range(1 + MAX_WAITING)]

    async def meanwhile() -> None:
        for nonce in (NONCE, None):
            with pytest.raises(HttpError) as caught:
                await setup.attestor.report("ecdsa", nonce, bind_certificate=False, request_id="another")
            assert (caught.value.status, caught.value.type) == (503, "overloaded")
            assert dict(caught.value.headers)[b"retry-after"].isdigit()
        go.set()

    calls = [lambda nonce=nonce: setup.status(nonce) for nonce in nonces]
    assert await together(*calls, meanwhile=meanwhile) == [200] * (1 + MAX_WAITING)
    assert await setup.status(NONCE) == 200
    assert setup.failures == []


class Certificate(BoundCertificate):
    """A certificate with a fixed key, or none."""

    def __init__(self, spki: bytes | None) -> None:
        super().__init__(Path("unused"))
        self.spki = spki

    async def spki_sha256(self) -> bytes:
        """Return the fixed hash, or fail."""
        if self.spki is None:
            raise CertificateError("no certificate")
        return self.spki


async def test_the_certificate_is_bound_where_it_is_asked_for() -> None:
    """Its key goes into the report data; reports with and without it do not stand in for each other."""
    setup = Setup(certificate=Certificate(b"k" * 32))
    assert setup.attestor.can_bind_certificate
    report = await setup.report(NONCE, bind=True)
    assert report["tls_cert_fingerprint"] == (b"k" * 32).hex()
    quoted = parse_quote(bytes.fromhex(report["intel_quote"])).report_data
    assert quoted == report_data(fixed_pair().ecdsa.identity.address_bytes, NONCE, b"k" * 32)
    assert "tls_cert_fingerprint" in await setup.report(bind=True)
    assert "tls_cert_fingerprint" not in await setup.report()


async def test_a_renewed_certificate_is_bound_at_once() -> None:
    """A report that binds the old one is of no use to a client of the new one."""
    certificate = Certificate(b"o" * 32)
    setup = Setup(certificate=certificate)
    assert (await setup.report(bind=True))["tls_cert_fingerprint"] == (b"o" * 32).hex()
    certificate.spki = b"n" * 32
    assert (await setup.report(bind=True))["tls_cert_fingerprint"] == (b"n" * 32).hex()


async def test_reports_that_bind_renewed_certificates_are_not_kept_for_ever() -> None:
    """Nor do they crowd out those that bind none."""
    certificate = Certificate(b"o" * 32)
    setup = Setup(certificate=certificate)
    unbound = await setup.report()
    for number in range(10):
        certificate.spki = bytes([number]) * 32
        await setup.report(bind=True)
        setup.clock.advance(TTL / 4)
        if number == 0:
            assert await setup.report() == unbound
    assert len(setup.attestor._ready) <= 4


async def test_there_is_no_report_where_the_certificate_cannot_be_read() -> None:
    """A client that wants the binding must not get one without it, nor one that was good before."""
    certificate = Certificate(b"k" * 32)
    setup = Setup(certificate=certificate)
    await setup.report(bind=True)
    certificate.spki = None
    for nonce in (NONCE, None):
        with pytest.raises(HttpError) as caught:
            await setup.report(nonce, bind=True)
        assert caught.value.status == 500
    assert [type(failure) for failure, _ in setup.failures] == [CertificateError] * 2
    assert not Setup().attestor.can_bind_certificate
