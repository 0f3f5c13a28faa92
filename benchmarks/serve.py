"""Start one of the things that are compared, on a port: `python -m benchmarks.serve null 8001`.

`teesign serve` is started as it is. The null app and the app over httpcore's own pool run under the same server with
the same options; the reference proxy runs under uvicorn, as such proxies do.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

import httpcore

from teesign_asgi import Settings
from teesign_asgi.cli.logs import configure_logging
from teesign_asgi.cli.serve import load_app, run_server
from teesign_asgi.upstream import IDLE_TIMEOUT

from .null import null_app

__all__ = ["main"]


def _load_null() -> Any:
    return null_app


def _httpcore_pool(settings: Settings) -> httpcore.AsyncConnectionPool:
    return httpcore.AsyncConnectionPool(
        max_connections=None, max_keepalive_connections=settings.max_keepalive, keepalive_expiry=IDLE_TIMEOUT
    )


def _run_reference(port: int) -> None:
    import uvicorn

    # Its access log is its request log. The loop is asyncio's own, as for the others; requests are parsed in C.
    uvicorn.run("benchmarks.reference:app", host="127.0.0.1", port=port, loop="asyncio", http="httptools")


def main() -> None:
    """Run the one that the command line names, on the port that it names."""
    name, port = sys.argv[1], int(sys.argv[2])
    if name == "reference":
        _run_reference(port)
    elif name == "null":
        run_server(_load_null, address="127.0.0.1", port=port)
    else:
        settings = Settings.from_mapping(os.environ)
        configure_logging(settings)
        load = partial(load_app, settings, partial(_httpcore_pool, settings))
        run_server(load, address="127.0.0.1", port=port)


if __name__ == "__main__":
    main()
