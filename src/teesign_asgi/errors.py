"""Errors of the proxy, under one root, and the answers they become."""

from __future__ import annotations

from typing import Final, Literal

__all__ = [
    "BackendError",
    "ClientDisconnectedError",
    "ClientStalledError",
    "HttpError",
    "ProxyError",
    "SettingsError",
    "StartError",
]


class ProxyError(Exception):
    """Root of every exception that teesign_asgi raises on purpose."""


class SettingsError(ProxyError):
    """The configuration cannot be used.

    Args:
        problems: one sentence each: the variable, or the field of `Settings`, what is wrong with its value, and for a
            variable an example of a good one.

    Attributes:
        problems: the same.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(("The configuration cannot be used:", *(f"  - {problem}" for problem in problems))))
        self.problems: Final = problems


class StartError(ProxyError):
    """The proxy cannot start, for a reason that the message names together with the way out."""


class ClientDisconnectedError(ProxyError):
    """The client has gone. Nobody is left to answer."""


class ClientStalledError(ProxyError):
    """The client is there, and neither sends nor takes anything.

    Args:
        part: what there is no more of: the request or the response.
    """

    def __init__(self, part: Literal["request", "response"]) -> None:
        super().__init__(f"The client has stopped within the {part}.")
        self.part: Final = part


class BackendError(ProxyError):
    """The backend gave no usable response.

    Args:
        kind: a short snake_case word for logs and metrics, one of a fixed set. "connect": there was no connection;
            "timeout": it was silent; "reset" and "closed": it ended before the response did; "malformed": what came is
            no response. Never text from the backend, which may hold anything.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(f"The backend gave no usable response ({kind}).")
        self.kind: Final = kind


class HttpError(ProxyError):
    """A request is answered with an error in the format of docs/wire-contract.md, "Errors".

    Args:
        status: the status code.
        type: the error's type, such as "bad_request".
        message: what is wrong, for the client. Quotes nothing of a body.
        headers: more headers for the answer.
    """

    def __init__(
        self,
        status: int,
        type: str,  # noqa: A002 - the wire format's own word
        message: str,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status: Final = status
        self.type: Final = type
        self.message: Final = message
        self.headers: Final = headers


def bad_request(message: str) -> HttpError:
    """Return the answer to a request that is wrong in itself."""
    return HttpError(400, "bad_request", message)


def unauthorized() -> HttpError:
    """Return the answer to a request without a good bearer token."""
    return HttpError(
        401, "unauthorized", "Invalid or missing Authorization header", ((b"www-authenticate", b"Bearer"),)
    )


def not_found(message: str) -> HttpError:
    """Return the answer to a request for something that is not there."""
    return HttpError(404, "not_found", message)


def method_not_allowed(allowed: str) -> HttpError:
    """Return the answer to a known path with another method than the one given here."""
    return HttpError(405, "method_not_allowed", f"Method not allowed. Use {allowed}", ((b"allow", allowed.encode()),))


def request_timeout() -> HttpError:
    """Return the answer to a request whose body has stopped coming. The connection is of no more use."""
    return HttpError(408, "request_timeout", "The request body stopped coming", ((b"connection", b"close"),))


def payload_too_large(limit: int) -> HttpError:
    """Return the answer to a body of more than `limit` bytes."""
    return HttpError(413, "payload_too_large", f"Request body too large. Maximum: {limit} bytes")


def rate_limited(retry_after: int) -> HttpError:
    """Return the answer to a client that has used up its requests for the next `retry_after` seconds."""
    return HttpError(429, "rate_limited", "Too many requests", ((b"retry-after", str(retry_after).encode()),))


def server_error() -> HttpError:
    """Return the answer to whatever went wrong on this side. Details belong into the log."""
    return HttpError(500, "server_error", "Internal server error")


def shutting_down() -> HttpError:
    """Return the answer of a server that is coming to its end; another one may take the request."""
    return HttpError(503, "unavailable", "The server is shutting down", ((b"retry-after", b"1"),))


def overloaded(retry_after: int) -> HttpError:
    """Return the answer when too many requests are waiting for the GPU."""
    return HttpError(
        503,
        "overloaded",
        "Too many attestation requests are waiting for the GPU",
        ((b"retry-after", str(retry_after).encode()),),
    )
