"""For any bytes, `check_json_object` passes or raises a 400, and what passes is JSON with and without tool calls."""

from __future__ import annotations

import json

from teesign_asgi.bodies import check_json_object, without_empty_tool_calls
from teesign_asgi.errors import HttpError

SEEDS = [
    b'{"messages":[{"tool_calls":[]},{"tool_calls":[1],"tool_calls" : [ ]}]}',
    b'{"a":"\xff"}',
]


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for this body."""
    try:
        check_json_object(data)
    except HttpError as error:
        assert error.status == 400
        return
    assert isinstance(json.loads(data), dict)
    assert isinstance(json.loads(without_empty_tool_calls(data)), dict)
