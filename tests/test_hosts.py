"""Servers that would make half an answer look like a whole one are refused at start."""

from __future__ import annotations

import sys

import granian
import pytest
from servers import settings_for

from teesign.testing import fixed_pair
from teesign_asgi import App, StartError

pytestmark = pytest.mark.anyio


def app() -> App:
    """Return an app that has all it needs but a server."""
    return App(settings_for("http://127.0.0.1:9"), pair=fixed_pair())


@pytest.mark.parametrize("version", ["2.8.5", "2.7.9", "1.10.11", "2.8.5rc1"])
async def test_a_server_that_ends_what_broke_off_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """By a message that names it, the harm, and the version to install."""
    monkeypatch.setattr(granian, "__version__", version)
    with pytest.raises(StartError, match=rf"granian {version} ends .* as if they were whole. Install granian 2.8.6 or"):
        await app().start()


@pytest.mark.parametrize("version", ["2.8.6", "2.10.0", "3.0"])
async def test_newer_versions_are_relied_upon(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Whether they break responses off is for the tests of responses that break off, under each server."""
    monkeypatch.setattr(granian, "__version__", version)
    started = app()
    await started.start()
    await started.aclose()


async def test_a_server_that_does_not_run_here_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be installed for something else."""
    monkeypatch.setattr(granian, "__version__", "1.0")
    monkeypatch.delitem(sys.modules, "granian")
    started = app()
    await started.start()
    await started.aclose()
