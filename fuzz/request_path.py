"""For any path, the catch-all refuses it with 400 or 404, or decoding it up to five times gives it no other meaning.

And which endpoint answers does not depend on how the path's harmless characters are written.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from teesign_asgi.errors import HttpError
from teesign_asgi.routes import (
    ADMINISTRATIVE_PATHS,
    CATCH_ALL,
    ENDPOINTS,
    READABLE_PATHS,
    check_backend_path,
    find_endpoint,
)

SEEDS = [
    b"/v1/chat/completions",
    b"/v1/signature/sig%2Da%2fb",
    b"/a/%2e%2E/b;..;/c",
    b"/%2573leep/",
    b"//evil/%5c%00",
    b"/.//Sleep;x=y",
    b"/%2525252573leEp",
    b"/slots/0/;a",
]
DECODINGS = 5


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for this path."""
    assert find_endpoint(unquote_to_bytes(data).decode(errors="replace"), data) in (*ENDPOINTS, CATCH_ALL)
    try:
        check_backend_path("POST", data, allow_administrative=False)
    except HttpError as error:
        assert error.status in (400, 404)
        return
    text = data
    for _ in range(1 + DECODINGS):
        segments = [segment.partition(b";")[0] for segment in text.split(b"/")]
        assert text.startswith(b"/")
        assert b".." not in segments
        assert not {b"\\", b"\0"} & {text[i : i + 1] for i in range(len(text))}
        assert text.count(b"/") == data.count(b"/")
        meaning = b"/" + b"/".join(segment for segment in segments if segment not in (b"", b"."))
        assert meaning.lower().decode("latin-1") not in ADMINISTRATIVE_PATHS | READABLE_PATHS
        text = unquote_to_bytes(text)
