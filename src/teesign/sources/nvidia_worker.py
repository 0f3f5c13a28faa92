"""The program that collects evidence from NVIDIA's GPUs: `python nvidia_worker.py`, JSON lines on stdin and stdout.

It is not imported by anything. It runs under an interpreter of its own that has `nv-attestation-sdk` (whose pins nobody
else wants to share), needs nothing beside that and the standard library, and runs on Python 3.9 and newer. The protocol
is described in docs/attestation.md.

Theory of operation. Before anything of NVIDIA's is imported, the protocol's stream is moved to a descriptor that only
this file knows, and descriptor 1 is pointed at standard error, because the library prints. A thread of its own reads
the requests: when they end, whoever started this program is gone, and it exits at once, even in the middle of a
collection. On Linux the kernel is asked to kill it too in that case, for when it cannot run itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import logging
import os
import signal
import sys
import threading
from queue import SimpleQueue
from typing import Any, Callable, Dict, List, Optional  # noqa: UP035 - this file runs on older interpreters
from unittest import mock

PROTOCOL = 1
PR_SET_PDEATHSIG = 1

Answer = Dict[str, Any]  # noqa: UP006 - this file runs on older interpreters
Collect = Callable[[str, bool], List[Dict[str, Any]]]  # noqa: UP006 - likewise


def main() -> None:
    """Serve requests until there are no more; never returns."""
    output = separate_output()
    die_with_parent()
    requests: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=read_requests, args=(requests,), daemon=True).start()
    try:
        collect = load_library()
    except BaseException as error:  # noqa: BLE001 - libraries exit, too, when they do not like what they find
        send(output, {"protocol": PROTOCOL, "error": class_names(error)})
        os._exit(1)
    send(output, {"protocol": PROTOCOL})
    while True:
        send(output, answer(json.loads(requests.get()), collect))


def separate_output() -> int:
    """Point descriptor 1 at standard error, and return a new one for where it pointed before."""
    output = os.dup(1)
    os.dup2(2, 1)
    return output


def die_with_parent() -> None:
    """Ask Linux to kill this process when the thread that started it ends; do nothing elsewhere."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def read_requests(requests: SimpleQueue[bytes]) -> None:
    """Hand on the lines of standard input, and end the process where they end."""
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)


class NoFile(logging.NullHandler):
    """Takes the place of `logging.FileHandler`: nothing is written to disk."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()


def load_library() -> Collect:
    """Import NVIDIA's library and return its collecting function.

    On import the library removes `verifier.log` from the working directory and opens a new one there, which would also
    fail on a read-only file system; it is kept from doing either. This file's directory, which Python puts first where
    modules are looked for, is left out of the search: a module there must not stand in for one of the library's.
    """
    os.chdir("/")
    own = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 - Python follows symbolic links to it, too
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != own]
    with mock.patch.object(logging, "FileHandler", NoFile):
        library = importlib.import_module("verifier.cc_admin")

    def collect(nonce: str, no_hardware: bool) -> list[dict[str, Any]]:  # noqa: FBT001 - the protocol's two fields
        # ppcie_mode=True would only refuse machines with several GPUs in protected PCIe mode.
        items = library.collect_gpu_evidence_remote(nonce, no_gpu_mode=no_hardware, ppcie_mode=False)
        return [{name: item[name] for name in ("certificate", "evidence", "arch")} for item in items]

    return collect


def answer(request: Answer, collect: Collect) -> Answer:
    """Return the answer to one request."""
    nonce, no_hardware = str(request["nonce"]), bool(request.get("no_hardware"))
    echo = {"id": request["id"], "nonce": nonce}
    try:
        evidence = collect(nonce, no_hardware)
    except BaseException as error:  # noqa: BLE001 - the library raises bare Exceptions, and may exit
        return {**echo, "error": class_names(error)}
    return {**echo, "evidence": evidence, "simulated": no_hardware}


def class_names(error: BaseException) -> str:
    """Return the names of the exception's class and of those it came from; its message may hold anything."""
    names: List[str] = []  # noqa: UP006 - this file runs on older interpreters
    cause: Optional[BaseException] = error  # noqa: UP045 - likewise
    while cause is not None and len(names) < 8:
        names.append(type(cause).__name__)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return " from ".join(names)


def send(output: int, message: Answer) -> None:
    """Write one line."""
    rest = json.dumps(message, separators=(",", ":")).encode() + b"\n"
    while rest:
        rest = rest[os.write(output, rest) :]


if __name__ == "__main__":
    main()
