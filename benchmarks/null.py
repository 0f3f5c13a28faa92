"""The null app: what any ASGI app costs on the same server. It reads the body, and answers with the backend's bytes."""

from __future__ import annotations

import asyncio
import functools
from typing import Any, Final

from teesign_asgi.types import Receive, Scope, Send

from .payloads import ANSWER, DONE, EVENT, Wish

__all__ = ["null_app"]

_JSON: Final = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())],
}
_STREAM: Final = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}
_wish: Final = functools.lru_cache(Wish.from_query)


async def null_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer as `payloads.Wish` asks, with nothing in between."""
    if scope["type"] != "http":
        await _lifespan(receive, send)
        return
    while (await receive()).get("more_body"):
        pass
    wish = _wish(scope["query_string"])
    if not wish.events:
        await send(_JSON)
        await send({"type": "http.response.body", "body": ANSWER})
        return
    await send(_STREAM)
    interval, loop = 1 / wish.rate, asyncio.get_running_loop()
    due = loop.time()
    for _ in range(wish.events):
        await send({"type": "http.response.body", "body": EVENT, "more_body": True})
        due += interval
        await asyncio.sleep(max(0.0, due - loop.time()))
    await send({"type": "http.response.body", "body": DONE})


async def _lifespan(receive: Receive, send: Send) -> None:
    message: Any = await receive()
    while message["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
        message = await receive()
    await send({"type": "lifespan.shutdown.complete"})
