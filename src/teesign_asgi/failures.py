"""What becomes of a request that fails: the answer, the end of the connection, and what is known afterwards."""

from __future__ import annotations

import logging

from .errors import (
    BackendError,
    ClientDisconnectedError,
    ClientStalledError,
    HttpError,
    StartError,
    bad_request,
    request_timeout,
    server_error,
)
from .http import Reply, Request
from .observe import describe_exception, log_event
from .relay import Outcome

__all__ = ["answer_failure"]


async def answer_failure(error: Exception, request: Request, reply: Reply, outcome: Outcome) -> None:
    """Answer a request that has failed, if nothing has been answered yet.

    A response that has started stays without its last body message, and is the caller's to break off.

    Args:
        error: what was raised.
        request: what the client sent.
        reply: where the answer goes.
        outcome: filled in.
    """
    answer: HttpError | None = server_error()
    match error:
        case HttpError():
            answer = error  # a body can turn out too large while the response is on its way, too
        case ClientDisconnectedError():
            outcome.client_gone = True
            # Granian calls it that too if the body's framing is broken, and would answer 500 in our place.
            is_within_body = not request.body_taken and (request.has_rest or not request.body_left)
            answer = bad_request("The request body broke off") if is_within_body else None
        case ClientStalledError():
            outcome.stalled = error.part
            answer = request_timeout()
        case BackendError():
            outcome.broken = error.kind
        case StartError():
            log_event(logging.ERROR, str(error))
        case _:
            log_event(
                logging.ERROR,
                "unexpected error",
                request_id=request.request_id.decode(),
                **describe_exception(error),
            )
    if answer is not None and not reply.status:
        await reply.error(answer)
