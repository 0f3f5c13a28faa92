"""Every error the core raises, under one root.

Three families tell the reader whose fault it is: `UsageError` (the embedding program called us out of order or with
values that cannot work), `MalformedError` (bytes from elsewhere are not what they claim to be) and
`VerificationError` (well-formed evidence that does not prove what it should). Where the outside world fails,
`teesign.sources` (guest agent, GPU) raises `SourceError` and `teesign.client` (servers) `FetchError`.

Each error has a `code`: a short snake_case word that stays the same between releases, for programs to branch on.
Messages are for people and may change. No message quotes a request, a response, a key or a token.
"""

from __future__ import annotations

__all__ = ["FetchError", "MalformedError", "SourceError", "TeesignError", "UsageError", "VerificationError"]


class TeesignError(Exception):
    """Root of every exception that teesign raises on purpose.

    Args:
        message: what is wrong and what to do about it, for people.
        code: the stable word for it; the class's own default when left out.
    """

    code: str = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class UsageError(TeesignError):
    """The embedding program made a mistake: a call out of order, a key of the wrong length."""

    code = "usage"


class MalformedError(TeesignError):
    """Bytes from outside do not have the layout they claim: a truncated quote, an event log that is not a list."""

    code = "malformed"


class VerificationError(TeesignError):
    """A check failed: the evidence does not prove what was asked of it.

    Args:
        message: as for the root.
        code: likewise.
        step: name of the numbered step that failed, where there are such.
    """

    code = "verification_failed"

    def __init__(self, message: str, *, code: str | None = None, step: str | None = None) -> None:
        super().__init__(message, code=code)
        self.step = step


class SourceError(TeesignError):
    """A source of keys, quotes or GPU evidence could not deliver. Nothing was produced; asking again is safe."""

    code = "source_failed"


class FetchError(TeesignError):
    """Something that a check needs could not be fetched. Nothing was established; asking again is safe.

    Codes: `unreachable`, `timeout`, `no_connection`, `too_large`, `bad_status`, `bad_answer` and `bad_url`.

    Args:
        message: as for the root.
        code: likewise.
        status: what the server answered, of a `bad_status`; None where that was a service for collateral.
    """

    code = "fetch_failed"

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None) -> None:
        super().__init__(message, code=code)
        self.status = status
