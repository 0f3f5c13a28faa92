"""`teesign serve`: the proxy under a server.

There is a flag for each environment variable of the settings table; a flag wins over the variable. Everything that is
wrong with the configuration is reported before the port is opened.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import resource
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Final

import click
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server

from ..app import App
from ..errors import SettingsError
from ..observe import log_event
from ..settings import VARIABLES, Settings
from ..upstream import AsyncRequestInterface
from .address import claimed_address
from .listener import bound_connections
from .logs import configure_logging
from .signals import drain_first, end_at_second_signal, end_with_parent, hear_of_ends

__all__ = ["load_app", "run_server", "serve"]

_MAX_CONNECTIONS: Final = 65_536

_COLLECT_AT: Final = 50_000
"""How many more objects there must be than at the last look for cycles until the next."""

_SPARE_SECONDS: Final = 10
"""How much longer than its drain a worker may take to end before it is killed."""

_HTTP1_BUFFER: Final = 32 * 1024
"""How much the server keeps of a response that a slow client does not take, and of a request's head, bytes.

By default that is twelve times as much: 200 readers that stop would cost as much memory as the rest of the proxy.
"""

_SERVER_LOGGING: Final = {"loggers": {"_granian": {"propagate": True}, "granian.access": {"propagate": True}}}
"""The server's own log records go the way of all others."""


def _settings_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one flag for each variable of the settings table."""
    for variable in reversed(list(VARIABLES.values())):
        advice = " Shows in process listings: prefer the variable." if variable.secret else ""
        flag = "--" + variable.name.lower().replace("_", "-")
        help_text = f"{variable.help}{advice} [{variable.name}]"
        command = click.option(flag, variable.name, metavar="VALUE", help=help_text)(command)
    return command


@click.command()
@_settings_flags
def serve(**flags: str | None) -> None:
    """Stand in front of a backend, and sign what it answers."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        settings = Settings.from_mapping({**os.environ, **given})
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    configure_logging(settings)
    host, port = settings.listen_host, settings.listen_port
    drain = settings.drain_delay + settings.drain_timeout + settings.drain_linger
    with claimed_address(host, port, chosen_with="LISTEN_HOST and LISTEN_PORT") as address:
        run_server(partial(load_app, settings), address=address, port=port, drain_timeout=math.ceil(drain))


def run_server(load: Callable[[], Any], *, address: str, port: int, drain_timeout: int = 30) -> None:
    """Run an app under the server, as `teesign serve` does, until SIGTERM or SIGINT.

    Args:
        load: builds the app, in the server's worker process.
        address: a numeric address to listen on.
        port: a free port there.
        drain_timeout: seconds that the app takes at most to come to its end after SIGTERM.
    """
    _leave_no_core()
    server = Server(
        "teesign",
        address=address,
        port=port,
        interface=Interfaces.ASGI,
        # By itself it would wait for ever for the first bytes, to see whether they are HTTP/2, and as long for what
        # follows them if they are. The time limit for heads is HTTP/1's alone.
        http=HTTPModes.http1,
        websockets=False,
        backpressure=_MAX_CONNECTIONS,
        http1_settings=HTTP1Settings(max_buffer_size=_HTTP1_BUFFER),
        log_dictconfig=_SERVER_LOGGING,
        log_level=LogLevels.warning,
        workers_kill_timeout=drain_timeout + _SPARE_SECONDS,
        reload_paths=[Path("/")],  # not used; by default it asks for the working directory, which may be gone
    )
    hear_of_ends(server)
    server.on_startup(partial(end_at_second_signal, server))
    try:
        server.serve(target_loader=partial(_load_in_worker, load, os.getpid()), wrap_loader=False)
    finally:
        # Granian has set up logging anew, after which the interpreter flushes none of the handlers that were there.
        for handler in logging.getLogger().handlers:
            handler.flush()


def _leave_no_core() -> None:
    """Have no crash of this process, nor of any that it starts, leave its memory behind: keys and tokens are in it.

    One byte is too little for a core file, and to Linux it says that no program which collects cores gets one either. A
    limit of zero would not say that.
    """
    with suppress(ValueError):  # zero is the highest that we may have
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def _log_summary(settings: Settings) -> None:
    """Log what an operator wants to see of the configuration; the keys' addresses follow when the app has them."""
    log_event(
        logging.INFO,
        "teesign serves",
        listen=f"{settings.listen_host}:{settings.listen_port}",
        model=settings.model_name,
        backend=settings.backend_url,
        backend_silence_s=settings.backend_timeout,
        max_request=settings.max_request_bytes,
        max_image_request=settings.max_image_request_bytes,
        max_audio_request=settings.max_audio_request_bytes,
        rate_per_s=settings.rate_limit_per_second,
        burst=settings.rate_limit_burst,
        signatures_s=settings.signature_ttl,
        signatures=settings.signature_cache_max_entries,
        drain_s=settings.drain_timeout,
    )
    if settings.backend_may_be_this_server:
        log_event(
            logging.WARNING,
            f"VLLM_BASE_URL may point at this proxy itself: both use port {settings.listen_port} of this machine. "
            "Set LISTEN_PORT or VLLM_BASE_URL to another port",
        )


def load_app(settings: Settings, make_upstream: Callable[[], AsyncRequestInterface] | None = None) -> App:
    """Build the app in the server's worker process, and make the process ready for it.

    Args:
        settings: what the operator chose.
        make_upstream: makes what carries requests to the backend; the default pool without it.
    """
    log = configure_logging(settings)
    _log_summary(settings)
    app = App(settings, upstream=make_upstream() if make_upstream else None)
    log.on_drop = app.metrics.dropped_log_lines.inc
    loop = asyncio.get_event_loop()  # granian has set it already
    drain_first(loop, app, settings.listen_port)
    bound_connections(loop, settings.listen_port, settings.client_write_timeout)
    # What a request leaves behind goes by reference counting. The collector, which looks for cycles at every 700 new
    # objects, finds next to nothing, and takes a tenth of the time.
    gc.freeze()
    gc.set_threshold(_COLLECT_AT)
    return app


def _load_in_worker(load: Callable[[], Any], parent: int) -> Any:
    end_with_parent(parent)
    Finalize(None, logging.shutdown, exitpriority=0)  # processes of multiprocessing do not get to atexit
    return load()
