"""Which sources of keys, quotes and GPU evidence a server uses: the choice that its settings make."""

from __future__ import annotations

from collections.abc import Callable

from teesign import SigningPair
from teesign.sources import Sources
from teesign.sources.simulated import SimulatedGpus, SimulatedQuotes

from .errors import StartError
from .settings import Settings

__all__ = ["default_sources", "load_keys"]


def default_sources(settings: Settings) -> Sources:
    """Return the sources that the settings ask for.

    Raises:
        StartError: if this machine or installation does not have them.
    """
    if not settings.dev:
        raise StartError(
            "There is no source of keys and quotes. Pass sources= to App, or set DEV=1 to try teesign with random "
            "keys and simulated evidence."
        )
    return Sources(quotes=SimulatedQuotes(), gpus=SimulatedGpus())


async def load_keys(settings: Settings, sources: Sources, random: Callable[[int], bytes]) -> SigningPair:
    """Return the keys to sign with: random ones in development, the key service's otherwise.

    Raises:
        StartError: if there is no key service.
    """
    if settings.dev:
        return SigningPair.generate(random)
    if sources.keys is None:
        raise StartError("There is no source of keys. Pass pair= to App, or sources= with one that has keys.")
    return SigningPair.from_secrets(
        await sources.keys.key(f"{settings.model_name}/ecdsa-signing-key", "signing"),
        await sources.keys.key(f"{settings.model_name}/ed25519-signing-key", "signing"),
    )
