"""Which sources of keys, quotes and GPU evidence a server uses: the choice that its settings make.

In production there is no choice: keys and quotes come from the dstack guest agent, evidence from the GPU worker, and
what is missing stops the start or fails the report. In development, and with `GPU_NO_HW_MODE`, what the machine does
not have is simulated, and marked as such in every report.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Final

from teesign import GpuEvidence, SigningPair, TeesignError
from teesign.errors import SourceError
from teesign.sources import EvidenceSource, Sources
from teesign.sources.dstack import SIMULATOR_VARIABLE, SOCKET_PATHS, DstackAgent, find_endpoint
from teesign.sources.nvidia import NvidiaWorker, bundled_command
from teesign.sources.simulated import SimulatedGpus, SimulatedQuotes

from .errors import StartError
from .observe import log_event
from .settings import Settings, worker_environment

__all__ = ["GpusIfPresent", "default_sources", "load_keys"]

NO_HARDWARE_CODES: Final = frozenset(("gpu_failed", "gpu_import_failed", "gpu_not_started"))
"""How a worker fails where there is no GPU, no library, or no worker."""


class GpusIfPresent:
    """The GPUs of a development machine: real evidence where there is some, simulated evidence where there is none.

    Why there is none is logged when it happens first, and when the reason changes.

    Args:
        gpus: the real source.
    """

    def __init__(self, gpus: EvidenceSource) -> None:
        self._gpus: Final = gpus
        self._simulated: Final = SimulatedGpus()
        self._reason = ""

    async def collect(self, nonce: bytes) -> GpuEvidence:
        """Return evidence made over these 32 bytes, simulated if this machine has no GPU, library or worker.

        Raises:
            SourceError: if it has, and the collection broke down all the same.
        """
        try:
            return await self._gpus.collect(nonce)
        except SourceError as error:
            if error.code not in NO_HARDWARE_CODES:
                raise
            if str(error) != self._reason:
                self._reason = str(error)
                log_event(logging.WARNING, "the GPU evidence is simulated", cause=self._reason)
            return await self._simulated.collect(nonce)

    async def aclose(self) -> None:
        """Give back what the real source holds."""
        await self._gpus.aclose()


def default_sources(settings: Settings) -> Sources:
    """Return the sources that the settings ask for. Nothing is started or connected yet.

    Raises:
        StartError: if there is no guest agent and this is not a development server, or its SDK is not installed.
    """
    gpus = _gpus(settings)
    simulator = settings.dstack_simulator_endpoint
    endpoint = find_endpoint({SIMULATOR_VARIABLE: simulator or ""})
    if endpoint is None:
        if settings.dev:
            return Sources(quotes=SimulatedQuotes(), gpus=gpus)
        raise StartError(
            f"There is no dstack guest agent: none of the sockets {', '.join(SOCKET_PATHS)} is there, or this "
            "user may not see it. Mount the host's into this container, or set DEV=1 to try teesign with random keys "
            "and simulated quotes."
        )
    if find_spec("dstack_sdk") is None:
        raise StartError("The package for the dstack guest agent is missing. Install it: pip install 'teesign[dstack]'")
    agent = DstackAgent(endpoint, simulated=simulator is not None)
    return Sources(quotes=agent, gpus=gpus, keys=agent)


def _gpus(settings: Settings) -> EvidenceSource:
    if settings.gpu_evidence_command is not None:
        command = shlex.split(settings.gpu_evidence_command)
    elif settings.may_simulate_gpus and settings.gpu_evidence_python is None and find_spec("verifier") is None:
        return SimulatedGpus()
    else:
        command = bundled_command(settings.gpu_evidence_python)
    environment = worker_environment(
        other_interpreter=settings.gpu_evidence_command is None and settings.gpu_evidence_python is not None
    )
    worker = partial(NvidiaWorker, command, no_hardware=settings.gpu_no_hw_mode, environment=environment)
    # Where simulated evidence follows anyway, nobody has to wait for it.
    return GpusIfPresent(worker(max_backoff=0)) if settings.may_simulate_gpus else worker()


async def load_keys(settings: Settings, sources: Sources, random: Callable[[int], bytes]) -> SigningPair:
    """Return the keys to sign with: random ones in development, the key service's otherwise.

    Raises:
        StartError: if there is no key service, or it does not hand out two keys. Never falls back to random keys.
    """
    if settings.dev:
        return SigningPair.generate(random)
    if sources.keys is None:
        raise StartError("There is no source of keys. Pass pair= to App, or sources= with one that has keys.")
    try:
        return SigningPair.from_secrets(
            await sources.keys.key(f"{settings.model_name}/ecdsa-signing-key", "signing"),
            await sources.keys.key(f"{settings.model_name}/ed25519-signing-key", "signing"),
        )
    except TeesignError as error:
        message = f"The signing keys cannot be had from the key service: {error} ({error.code})"
        raise StartError(message) from error
