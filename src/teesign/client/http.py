"""Asking questions over httpx, or over httpx2: the two have the same classes under other names.

Neither is imported here. Which one it is follows from the client or the request at hand.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, closing, contextmanager, nullcontext
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from types import ModuleType
from typing import Any, Final

from ..errors import FetchError, UsageError
from .flow import MAX_ANSWER, Answer, Question
from .tls import KeyCheck, tls_key

__all__ = ["TIME_LIMIT", "ask", "ask_async", "ask_with", "ask_with_async", "family_name", "family_of"]

TIME_LIMIT: Final = 60.0
"""Seconds that one question may take. A report waits for GPUs, which take some seconds each, one after the other."""

_LONGEST: Final = 2_000_000.0
"""Seconds that can be waited for, 23 days: sockets count milliseconds in a C int, in which more can be any less."""

_BUSY: Final = {429: True, 503: False}
"""What servers answer who want to be asked later, and whether they want that too if they do not say when."""

_PAUSES: Final = (0.1, 1.0)
"""The least seconds before a question is asked again, and those where a server names none, or a date."""

_POOL_SHARE: Final = 0.9
"""How much of a question's time it may wait for a connection of the pool: not all, to be told from a slow server."""

_FAMILIES: Final = ("httpx", "httpx2")


def family_of(value: object) -> ModuleType:
    """Return the module, httpx or httpx2, that this client, request or transport is of.

    Raises:
        UsageError: `unknown_client` if it is of neither.
    """
    for kind in type(value).__mro__:
        if (name := family_name(kind)) is not None:
            return sys.modules[name]
    raise UsageError(f"{type(value).__name__} is neither of httpx nor of httpx2.", code="unknown_client")


def family_name(kind: type) -> str | None:
    """Return "httpx" or "httpx2" if a class is one of theirs."""
    root = kind.__module__.partition(".")[0]
    return root if root in _FAMILIES else None


def ask_with(client: Any, *, limit: float = TIME_LIMIT) -> Callable[[Question], Answer]:
    """Return a function for `run` that asks through an `httpx.Client`, or one of httpx2.

    The client's proxies and certificates are used; its headers, cookies and authentication are not, since questions go
    to more than one host.

    Args:
        client: the client, which stays the caller's to close.
        limit: seconds that the whole answer may take; see `ask` for what a server that takes longer leaves behind.
    """
    family = family_of(client)
    send = partial(client.send, auth=None, follow_redirects=False, stream=True)
    return partial(ask, send, family, limit=limit)


def ask_with_async(client: Any, *, limit: float = TIME_LIMIT) -> Callable[[Question], Awaitable[Answer]]:
    """Return a function for `run_async` that asks through an `httpx.AsyncClient`, or one of httpx2.

    Args:
        client: as for `ask_with`.
        limit: seconds that the whole answer may take.
    """
    family = family_of(client)
    send = partial(client.send, auth=None, follow_redirects=False, stream=True)
    return partial(ask_async, send, family, limit=limit)


def ask(send: Callable[[Any], Any], family: ModuleType, question: Question, *, limit: float) -> Answer:
    """Ask one question; again if the connection was lost or the server is busy, but never POST twice (RFC 9110, 9.2.2).

    A lost connection is made once more. A server that answers 429 or 503 with `Retry-After` is asked again after that
    time for as long as it fits into `limit`; then, or where it does not fit, that is the answer.

    It is asked in a thread of its own, since the libraries limit only silence, and a server can send a head, trailers
    or informational answers for ever. A thread whose answer does not come in time is left behind, and so it is at an
    exception such as KeyboardInterrupt. With its connection, which counts among those of the client until then, it ends
    when the server hangs up, is silent for `limit`, or sends some of a body, or when the client is closed. It asks
    nothing more, and keeps no program from ending.

    Args:
        send: sends a request of this family and returns the response, whose stream has not been read.
        family: httpx or httpx2.
        question: what to ask.
        limit: seconds that the whole answer may take; infinite and other very long times are as long as can be waited.

    Raises:
        FetchError: `unreachable`, `timeout`, `no_connection`, `too_large`, or `bad_url`.
        VerificationError: `tls_key_mismatch`; then nothing was sent.
    """
    deadline = time.monotonic() + min(limit, _LONGEST)
    while True:
        answer = _ask_in_thread(send, family, question, deadline)
        pause = _pause(question, answer, deadline - time.monotonic())
        if pause is None:
            return answer
        time.sleep(pause)  # in the caller's thread, so that nothing is asked after an interrupt


def _ask_in_thread(send: Callable[[Any], Any], family: ModuleType, question: Question, deadline: float) -> Answer:
    limit = max(deadline - time.monotonic(), 0)
    outcome: SimpleQueue[Answer | BaseException] = SimpleQueue()

    def work() -> None:
        try:
            outcome.put(_ask(send, family, question, limit, deadline))
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer is waited for
            outcome.put(error)

    Thread(target=copy_context().run, args=(work,), name="teesign-question", daemon=True).start()
    try:
        answer = outcome.get(timeout=limit)
    except Empty:
        raise _late(question) from None
    if isinstance(answer, Answer):
        return answer
    try:
        raise answer
    finally:
        del answer  # its traceback holds this frame


async def ask_async(
    send: Callable[[Any], Awaitable[Any]], family: ModuleType, question: Question, *, limit: float
) -> Answer:
    """Ask one question, as `ask` does; `limit` is for the whole of it."""
    # Not at the top: the synchronous half needs no event loop.
    import anyio

    with anyio.move_on_after(limit) as scope:
        while True:
            answer = await _ask_async(send, family, question, limit)
            pause = _pause(question, answer, scope.deadline - anyio.current_time())
            if pause is None:
                return answer
            await anyio.sleep(pause)
    raise _late(question)


def _may_ask_again(question: Question, error: FetchError) -> bool:
    return error.code == "unreachable" and question.body is None


def _pause(question: Question, answer: Answer, left: float) -> float | None:
    """Return the seconds after which to ask a busy server again; None if the answer is to be taken as it is."""
    said = answer.headers.get("retry-after")
    if question.body is not None or answer.status not in _BUSY or (said is None and not _BUSY[answer.status]):
        return None
    least, usual = _PAUSES
    pause = max(least, float(said)) if said is not None and said.isascii() and said.isdecimal() else usual
    return pause if pause < left else None


def _ask(send: Callable[[Any], Any], family: ModuleType, question: Question, limit: float, deadline: float) -> Answer:
    try:
        return _ask_once(send, family, question, limit, deadline)
    except FetchError as error:
        if not _may_ask_again(question, error) or time.monotonic() > deadline:
            raise
    return _ask_once(send, family, question, limit, deadline)


async def _ask_async(
    send: Callable[[Any], Awaitable[Any]], family: ModuleType, question: Question, limit: float
) -> Answer:
    try:
        return await _ask_once_async(send, family, question, limit)
    except FetchError as error:
        if not _may_ask_again(question, error):
            raise
    return await _ask_once_async(send, family, question, limit)


def _ask_once(
    send: Callable[[Any], Any], family: ModuleType, question: Question, limit: float, deadline: float
) -> Answer:
    body = bytearray()
    with _failures(family, question):
        request = _request(family, question, limit)
        if question.spki_sha256 is not None:
            request.extensions["trace"] = KeyCheck(request, question.spki_sha256).trace
        response = send(request)
        with closing(response), _last_use(question, response, closing):
            key = tls_key(response)
            for chunk in response.stream:
                body += chunk
                _check(question, body, late=time.monotonic() > deadline)
    return _answer(response, body, key)


async def _ask_once_async(
    send: Callable[[Any], Awaitable[Any]], family: ModuleType, question: Question, limit: float
) -> Answer:
    body = bytearray()
    with _failures(family, question):
        request = _request(family, question, limit)
        if question.spki_sha256 is not None:
            request.extensions["trace"] = KeyCheck(request, question.spki_sha256).trace_async
        response = await send(request)
        async with aclosing(response), _last_use(question, response, aclosing):
            key = tls_key(response)
            async for chunk in response.stream:
                body += chunk
                _check(question, body)
    return _answer(response, body, key)


def _request(family: ModuleType, question: Question, limit: float) -> Any:
    headers: dict[str, str | bytes] = {"accept": "*/*", "accept-encoding": "identity"}
    if question.authorization is not None:
        headers["authorization"] = question.authorization
    if question.alone:
        headers["connection"] = "close"
    if question.body is not None:
        headers["content-type"] = "application/json"
    method = "GET" if question.body is None else "POST"
    limits = {**dict.fromkeys(("connect", "read", "write"), limit), "pool": _POOL_SHARE * limit}
    extensions = {"timeout": limits}
    try:
        return family.Request(method, question.url, headers=headers, content=question.body, extensions=extensions)
    except (family.InvalidURL, UnicodeError) as error:
        raise FetchError(f"The address for {question.what} is no URL.", code="bad_url") from error


def _last_use(question: Question, response: Any, close: Callable[[Any], Any]) -> Any:
    """Return what closes the connection, if it must be: HTTP/2 has no header for that (RFC 9113, section 8.2.2)."""
    if question.alone and response.extensions.get("http_version") == b"HTTP/2":
        return close(response.extensions["network_stream"])
    return nullcontext()


def _answer(response: Any, body: bytearray, key: bytes | None) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, bytes(body), key)


def _check(question: Question, body: bytearray, *, late: bool = False) -> None:
    if len(body) > MAX_ANSWER:
        raise FetchError(f"Asked for {question.what}, the server sent more than {MAX_ANSWER} bytes.", code="too_large")
    if late:
        raise _late(question)


def _late(question: Question) -> FetchError:
    return FetchError(f"The server took too long to send {question.what}.", code="timeout")


@contextmanager
def _failures(family: ModuleType, question: Question) -> Iterator[None]:
    """Turn the family's exceptions into ours."""
    try:
        yield
    except family.PoolTimeout as error:
        raise FetchError(
            f"All connections of the pool were in use, so that {question.what} could not be asked for. A stream keeps "
            "its own until it has been verified: have the pool hold more than are open at once (max_connections).",
            code="no_connection",
        ) from error
    except family.TimeoutException as error:
        raise _late(question) from error
    except (family.TransportError, family.InvalidURL, UnicodeError, OSError) as error:
        # httpx looks where a redirect leads, though nobody follows it: that is no URL, or has a name that is none.
        way = " through a proxy, which refused" if isinstance(error, family.ProxyError) else ""
        raise FetchError(f"Could not fetch {question.what} from {question.host}{way}.", code="unreachable") from error
