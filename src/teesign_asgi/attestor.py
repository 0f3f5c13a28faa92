"""Attestation reports: collected for each nonce, or served from a cache where the nonce does not matter.

Theory of operation. A report is a quote and GPU evidence, collected at the same time for one challenge. The GPU can
serve one collection at a time, so collections queue for it, and only `MAX_WAITING` may wait: one more is turned away at
once, because nobody is helped by a queue that takes minutes.

A report with a nonce is always collected afresh. One without may be served as the ready bytes of an earlier one, for as
long as the cache allows, and while the certificate has the TLS key that it binds, if it does. It is collected by a
background task that all requests which need it wait for, so there is one collection however many wait, and it goes on
when the one that started it leaves. Once such a report is half as old as it may get, the next request for it starts
that task ahead of time and is still answered at once from the cache. A collection that failed leaves nothing behind:
those who waited for it are told, and the next request tries again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import msgspec

from teesign import Challenge, GpuEvidence, Identity, Quote, SigningAlgorithm, SigningPair
from teesign.sources import Sources

from .certificate import BoundCertificate
from .errors import HttpError, overloaded, server_error
from .tasks import run_in_background

__all__ = ["MAX_WAITING", "Attestor"]

MAX_WAITING: Final = 16
"""How many requests may wait for the GPU while one collection runs."""

RETRY_AFTER: Final = 5
"""Seconds after which a request that was turned away may try again."""

_NONCE_LENGTH: Final = 32

_CacheKey = tuple[SigningAlgorithm, bytes | None]
"""Which key a report is about, and the hash of the TLS key that it binds."""


@dataclass(frozen=True)
class _Ready:
    report: bytes
    collected_at: float


@dataclass
class _Collection:
    """A collection under way, for whoever waits for it."""

    over: anyio.Event = field(default_factory=anyio.Event)
    report: bytes | None = None
    error: HttpError | None = None


class Attestor:
    """Answer requests for attestation reports.

    Args:
        pair: the keys that reports are about.
        sources: where quotes and GPU evidence come from.
        model: the model's name.
        development: whether the keys are a developer's: every report about them is marked as simulated then.
        certificate: the TLS certificate that can be bound, or None.
        cache_ttl: how long a report without a nonce may be served, in seconds; 0 for never.
        clock: returns seconds that never go backwards.
        random: returns that many unpredictable bytes.
        on_failure: told of every collection that failed, with its cause and the id of the request that began it.
    """

    def __init__(
        self,
        pair: SigningPair,
        sources: Sources,
        *,
        model: str,
        development: bool,
        certificate: BoundCertificate | None,
        cache_ttl: float,
        clock: Callable[[], float],
        random: Callable[[int], bytes],
        on_failure: Callable[[Exception, str], None],
    ) -> None:
        self._pair: Final = pair
        self._sources: Final = sources
        self._model: Final = model
        self._development: Final = development
        self._certificate: Final = certificate
        self._cache_ttl: Final = cache_ttl
        self._clock: Final = clock
        self._random: Final = random
        self._on_failure: Final = on_failure
        self._gpu: Final = anyio.Lock()
        self._at_gpu = 0  # how many collect or wait
        self._ready: dict[_CacheKey, _Ready] = {}
        self._collections: dict[_CacheKey, _Collection] = {}

    def identity(self, algorithm: SigningAlgorithm) -> Identity:
        """Return the public half of the key that reports for `algorithm` attest."""
        return self._pair.identity(algorithm)

    @property
    def can_bind_certificate(self) -> bool:
        """Whether a TLS certificate is configured."""
        return self._certificate is not None

    async def report(
        self, algorithm: SigningAlgorithm, nonce: bytes | None, *, bind_certificate: bool, request_id: str
    ) -> bytes:
        """Return a report as JSON.

        Args:
            algorithm: which key it is about.
            nonce: 32 bytes, or None for any.
            bind_certificate: whether it binds the TLS certificate, which must be configured then.
            request_id: of the request that asks.

        Raises:
            HttpError: 500 if the collection failed, 503 if too many wait for the GPU.
        """
        try:
            spki = await self._spki_sha256() if bind_certificate else None
            if nonce is not None or not self._cache_ttl:
                return await self._collect(algorithm, nonce or self._random(_NONCE_LENGTH), spki)
        except HttpError:
            raise
        except Exception as error:
            self._on_failure(error, request_id)
            raise server_error() from error
        key = (algorithm, spki)
        ready = self._ready.get(key)
        age = self._clock() - ready.collected_at if ready is not None else self._cache_ttl
        collection = None
        if age >= self._cache_ttl / 2:
            collection = self._collections.get(key) or self._start_collection(key, request_id)
        if ready is not None and age < self._cache_ttl:
            return ready.report
        assert collection is not None
        await collection.over.wait()
        if collection.error is not None:
            raise collection.error
        assert collection.report is not None
        return collection.report

    def _start_collection(self, key: _CacheKey, request_id: str) -> _Collection:
        collection = self._collections[key] = _Collection()

        async def collect() -> None:
            algorithm, spki = key
            collection.error = server_error()  # what those who wait see if this is cancelled
            try:
                begun = self._clock()
                collection.report = await self._collect(algorithm, self._random(_NONCE_LENGTH), spki)
                # Those of certificates that have been renewed are asked for no more.
                self._ready = {
                    kept: it for kept, it in self._ready.items() if begun - it.collected_at < self._cache_ttl
                }
                self._ready[key] = _Ready(collection.report, begun)
                collection.error = None
            except HttpError as error:
                collection.error = error
            except Exception as error:  # noqa: BLE001 - nobody is above this task; those who wait are told
                self._on_failure(error, request_id)
            finally:
                del self._collections[key]
                collection.over.set()

        run_in_background(collect)
        return collection

    async def _spki_sha256(self) -> bytes:
        assert self._certificate is not None
        return await self._certificate.spki_sha256()

    async def _collect(self, algorithm: SigningAlgorithm, nonce: bytes, spki: bytes | None) -> bytes:
        challenge = Challenge.new(self._pair.identity(algorithm), nonce=nonce, spki_sha256=spki)
        quote: Quote
        info: Mapping[str, Any]
        evidence: GpuEvidence
        async with self._turn_at_gpu():
            quote, info, evidence = await _together(
                lambda: self._sources.quotes.quote(challenge.report_data),
                self._sources.quotes.info,
                lambda: self._sources.gpus.collect(challenge.nonce),
            )
        if self._development:
            # A machine's quote over a key that anybody may have proves no more than one that was made up.
            quote = msgspec.structs.replace(quote, simulated=True)
        report = challenge.answer(model=self._model, quote=quote, gpu_evidence=evidence, info=info)
        return msgspec.json.encode(report)

    @asynccontextmanager
    async def _turn_at_gpu(self) -> AsyncIterator[None]:
        if self._at_gpu > MAX_WAITING:
            raise overloaded(RETRY_AFTER)
        self._at_gpu += 1
        try:
            async with self._gpu:
                yield
        finally:
            self._at_gpu -= 1


async def _together(*calls: Callable[[], Any]) -> list[Any]:
    """Await all of these at the same time and return what they return, in order; the first error ends the others."""
    results: list[Any] = [None] * len(calls)
    failures: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def run(index: int) -> None:
            try:
                results[index] = await calls[index]()
            except Exception as error:  # noqa: BLE001 - carried out of the group, which would wrap it
                failures.append(error)
                group.cancel_scope.cancel()

        for index in range(len(calls)):
            group.start_soon(run, index)
    if failures:
        # The error refers to this frame, and this frame to the error: what is in it stays until the collector runs, and
        # evidence has megabytes.
        results.clear()
        raise failures[0]
    return results
