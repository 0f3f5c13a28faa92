"""The signing proxy: an ASGI app that stands in front of an OpenAI-compatible backend.

Mount `App(Settings.from_mapping(os.environ))` under any ASGI server or framework, or run `teesign serve`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .app import App
    from .errors import ProxyError, SettingsError, StartError
    from .settings import Settings

__all__ = ["App", "ProxyError", "Settings", "SettingsError", "StartError"]

_HOMES: Final = {
    "App": "app",
    "ProxyError": "errors",
    "Settings": "settings",
    "SettingsError": "errors",
    "StartError": "errors",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is used: the `teesign` command also runs where the proxy's packages are missing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
