"""The burden beside which others are measured: a process that sends JSON bombs and large uploads.

`python -m soak.burden PORT SECONDS` prints how many of each were answered.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Final

from .client import UPLOAD, connect, head

__all__ = ["main"]

BOMB: Final = b'{"messages":[' + b"[]," * 3_400_000 + b"[]]}"
BOMBS_PER_SECOND: Final = 2.0
UPLOADS: Final = 8
UPLOAD_SIZE: Final = 100_000_000
_PIECE: Final = 262_144


async def _send(port: int, path: str, content_type: str, body: bytes) -> bool:
    """Send a body in pieces; return whether it was answered with 200."""
    request = head("POST", path, f"Content-Type: {content_type}", f"Content-Length: {len(body)}")
    async with connect(port) as connection:
        answer = connection.begin(request)
        for start in range(0, len(body), _PIECE):
            if not await connection.send(body[start : start + _PIECE]):
                break
        async with asyncio.timeout(120):
            await answer.ended
    return answer.status == 200


async def _burden(port: int, seconds: float) -> tuple[int, int]:
    until = time.monotonic() + seconds
    bombs: list[asyncio.Task[bool]] = []
    answered = 0

    async def upload() -> None:
        nonlocal answered
        while time.monotonic() < until:
            answered += await _send(port, UPLOAD, "multipart/form-data; boundary=b", bytes(UPLOAD_SIZE))

    uploads = [asyncio.create_task(upload()) for _ in range(UPLOADS)]
    while time.monotonic() < until:
        bombs.append(asyncio.create_task(_send(port, "/v1/embeddings", "application/json", BOMB)))
        await asyncio.sleep(1 / BOMBS_PER_SECOND)
    await asyncio.gather(*uploads)
    return sum(await asyncio.gather(*bombs)), answered


def main() -> None:
    """Burden the proxy at the port that the command line names."""
    bombs, uploads = asyncio.run(_burden(int(sys.argv[1]), float(sys.argv[2])))
    print(bombs, uploads)


if __name__ == "__main__":
    main()
