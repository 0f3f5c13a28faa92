"""The signing proxy: an ASGI app that stands in front of an OpenAI-compatible backend.

Mount `App(Settings.from_mapping(os.environ))` under any ASGI server or framework, or run `teesign serve`.
"""

from __future__ import annotations

from .app import App
from .errors import ProxyError, SettingsError, StartError
from .settings import Settings

__all__ = ["App", "ProxyError", "Settings", "SettingsError", "StartError"]
