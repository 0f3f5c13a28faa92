"""The shapes of ASGI 3, as far as they are used here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["ASGIApp", "Headers", "Message", "Receive", "Scope", "Send"]

Scope = MutableMapping[str, Any]
"""What is known of a connection when it starts."""

Message = MutableMapping[str, Any]
"""One event, in either direction."""

Receive = Callable[[], Awaitable[Message]]
"""Returns the next event from the client."""

Send = Callable[[Message], Awaitable[None]]
"""Takes an event to the client."""

ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An application."""

Headers = list[tuple[bytes, bytes]]
"""Names and values, in order."""
