"""What load, backend and the null app send each other, made once, so that none of them spends time on it.

Bodies have the sizes that the rows name. Each event holds one tilde, and nothing else does: counting tildes counts
events, whatever the framing around them and wherever a read ends.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, urlencode

__all__ = [
    "ANSWER",
    "CHAT_PATH",
    "DONE",
    "EVENT",
    "MARK",
    "MODEL",
    "QUESTION",
    "TOKEN",
    "UPLOAD_PATH",
    "Wish",
    "request_head",
]

TOKEN: Final = "benchmark-token"  # noqa: S105 - it guards nothing
MODEL: Final = "benchmark/model"
CHAT_PATH: Final = "/v1/chat/completions"
UPLOAD_PATH: Final = "/v1/audio/transcriptions"
CHAT_ID: Final = "chatcmpl-0123456789abcdef01234567"

MARK: Final = b"~"
"""The byte that each event holds once."""


def _padded(template: str, size: int) -> bytes:
    """Return the template with as many letters in the place of `…` as give it this size."""
    return template.replace("…", "a" * (size - len(template) + 1)).encode()


QUESTION: Final = _padded(
    json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "…"}]}, ensure_ascii=False), 1024
)
"""A chat request of 1 KB."""

STREAM_QUESTION: Final = _padded(
    json.dumps({"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "…"}]}, ensure_ascii=False),
    1024,
)
"""The same, for a stream."""

ANSWER: Final = _padded(
    json.dumps(
        {
            "id": CHAT_ID,
            "object": "chat.completion",
            "created": 1700000000,
            "model": MODEL,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "…"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 200, "completion_tokens": 40, "total_tokens": 240},
        },
        ensure_ascii=False,
    ),
    400,
)
"""A chat response of 400 B."""

EVENT: Final = _padded(
    "data: "
    + json.dumps(
        {
            "id": CHAT_ID,
            "object": "chat.completion.chunk",
            "model": MODEL,
            "choices": [{"index": 0, "delta": {"content": "~…"}}],
        },
        ensure_ascii=False,
    )
    + "\n\n",
    200,
)
"""One event of 200 B."""

DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Wish:
    """What a request asks of the backend or of the null app, by its query, which every proxy passes on.

    Attributes:
        events: how many events to stream; 0 for one JSON object.
        rate: how many of them in a second.
        hold: whether the JSON object is to wait until `GET /release`.
    """

    events: int = 0
    rate: float = 1.0
    hold: int = 0

    def query(self) -> str:
        """Return it as a query, with its question mark."""
        return f"?{urlencode(vars(self))}"

    @classmethod
    def from_query(cls, query: bytes) -> Wish:
        """Read it from a query; nothing is a plain JSON object."""
        values = {name: values[0] for name, values in parse_qs(query.decode()).items()}
        return cls(int(values.get("events", 0)), float(values.get("rate", 1)), int(values.get("hold", 0)))


def request_head(
    target: str, length: int, *, content_type: str = "application/json", accept: str = "application/json"
) -> bytes:
    """Return the head of a POST as clients send it."""
    return (
        f"POST {target} HTTP/1.1\r\n"
        "host: 127.0.0.1\r\n"
        f"authorization: Bearer {TOKEN}\r\n"
        f"accept: {accept}\r\n"
        "user-agent: benchmark\r\n"
        f"content-type: {content_type}\r\n"
        f"content-length: {length}\r\n"
        "\r\n"
    ).encode()
