"""A GPU evidence worker without GPUs: `python fake_worker.py MODE [ARGUMENT]`, standard library only.

In mode `good` it answers every request; every other mode breaks in one way, or has one peculiarity. A fault in
answering is shown for the first request only if a marker file is given as ARGUMENT: the worker that creates it
misbehaves, and its successors, which find it there, do not.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

REQUESTS = FileIO(0)  # reads no further than to the end of a line
OUTPUT = sys.stdout.buffer
ARCH = "BLACKWELL"

Message = dict[str, Any]


def write(data: bytes) -> None:
    """Write bytes as they are."""
    OUTPUT.write(data)
    OUTPUT.flush()


def say(message: object) -> None:
    """Write one line of JSON."""
    write(json.dumps(message).encode() + b"\n")


def answer(request: Message, *, size: int = 64, **item: str) -> Message:
    """Return the right answer, with a report of at least `size` bytes, and with members of its item replaced."""
    report = b"\x11\xe0\x01\xff" + bytes.fromhex(request["nonce"]) + bytes(size)
    right = {"certificate": "Y2hhaW4=", "evidence": base64.b64encode(report).decode(), "arch": ARCH}
    return {
        "id": request["id"],
        "nonce": request["nonce"],
        "evidence": [{**right, **item}],
        "simulated": request["no_hardware"],
    }


def forever(step: Callable[[], None]) -> None:
    """Do it again and again."""
    while True:
        step()


def late(request: Message, seconds: float) -> None:
    """Answer after a while."""
    time.sleep(seconds)
    say(answer(request))


def alone(request: Message) -> None:
    """Answer after a while, or exit if there is another request by then."""
    time.sleep(0.1)
    if select.select([REQUESTS], [], [], 0)[0]:
        sys.exit(9)
    say(answer(request))


def flood(request: Message) -> None:
    """Answer, and print 64 KiB on standard error."""
    os.write(2, b"e" * 65536)
    say(answer(request))


def ask_agent(request: Message, path: str) -> None:
    """Answer with the evidence that a process has which listens on this Unix socket."""
    connection = http.client.HTTPConnection("agent")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    connection.request("POST", "/Evidence", json.dumps({"nonce": request["nonce"]}))
    item = json.load(connection.getresponse())
    connection.close()
    say(answer(request, **item))


def others_first(request: Message) -> None:
    """Answer three requests that nobody made before the one that somebody did."""
    for wrong in (request["id"] - 1, request["id"] + 1, 0):
        say({**answer(request), "id": wrong, "nonce": "00" * 32})
    say(answer(request))


def half_line(request: Message) -> None:
    """Begin an answer, and end."""
    write(json.dumps(answer(request)).encode()[:50])
    sys.exit(0)


def failed(request: Message, error: str) -> Message:
    """Return the answer that there is no evidence."""
    return {"id": request["id"], "nonce": request["nonce"], "error": error}


FAULTS: dict[str, Callable[[Message], object]] = {
    "killed": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "stopped": lambda _: os.kill(os.getpid(), signal.SIGSTOP),
    "exits": lambda _: sys.exit(3),
    "half-line": half_line,
    "garbage": lambda _: write(b"\xff\xfe not json\n"),
    "prints": lambda _: say("Fetching GPU 0 information from GPU driver."),
    "endless-line": lambda _: forever(lambda: write(b"x" * 65536)),
    "endless-others": lambda request: forever(lambda: say({**answer(request), "id": -1})),
    "other-nonce": lambda request: say({**answer(request), "nonce": "00" * 32}),
    "evidence-for-other-nonce": lambda request: say(
        {**answer({**request, "nonce": "00" * 32}), "nonce": request["nonce"]}
    ),
    "no-evidence": lambda request: say({**answer(request), "evidence": []}),
    "not-base64": lambda request: say(answer(request, evidence="*")),
    "no-arch": lambda request: say(answer(request, arch="")),
    "error": lambda request: say(failed(request, "Exception from NVMLError_GpuIsLost")),
    "talkative-error": lambda request: say(failed(request, "kanarienvogel: at /secret/path")),
}
"""What is done instead of answering."""

PECULIARITIES: dict[str, Callable[[Message, str], object]] = {
    "good": lambda request, _: say(answer(request)),
    "stderr": lambda request, _: flood(request),
    "slow": lambda request, _: late(request, random.random() * 0.01),
    "sleeps": lambda request, seconds: late(request, float(seconds)),
    "alone": lambda request, _: alone(request),
    "asks-agent": ask_agent,
    "large": lambda request, size: say(answer(request, size=int(size))),
    "others-first": lambda request, _: others_first(request),
    "environment": lambda request, _: say(answer(request, arch=os.environ["GPU_ARCH"])),
}
"""Ways of answering, with the argument that is given."""


def greet(mode: str) -> None:
    """Greet, or fail to."""
    if mode == "exits-at-once":
        sys.exit(7)
    if mode == "silent":
        time.sleep(3600)
    if mode == "import-error":
        say({"protocol": 1, "error": "ModuleNotFoundError"})
        sys.exit(1)
    say({"protocol": 2 if mode == "other-protocol" else 1})


def main() -> None:
    """Greet, then serve."""
    mode, argument, *_ = [*sys.argv[1:], ""]
    greet(mode)
    marker = Path(argument)
    for line in REQUESTS:
        request = json.loads(line)
        if mode in FAULTS and not (argument and marker.exists()):
            if argument:
                marker.touch()
            FAULTS[mode](request)
        else:
            PECULIARITIES.get(mode, PECULIARITIES["good"])(request, argument)


if __name__ == "__main__":
    main()
