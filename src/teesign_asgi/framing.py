"""One HTTP/1.1 response, from bytes to head and body, strictly (RFC 9112).

Theory of operation. A `ResponseParser` takes the bytes of one response as they arrive, in any pieces, and does no I/O:

    interim heads (1xx) --> head --> body, in pieces --> complete
                                          (or: until the connection ends)

llhttp, through `httptools`, reads the syntax; what it leaves open is decided here, always for the narrower reading,
since a response that two programs could read in two ways is how one client gets to see another's answer:

    - a head, an interim head and whatever else carries no body are bounded together, by `MAX_HEAD`
    - interim responses are skipped, at most `MAX_INTERIM` of them; 101 is refused, since nobody asked to switch
    - the body is framed by one length, or by the chunked coding alone, or by the end of the connection; but not by the
      end of a TLS connection, which anybody on the way can bring about (RFC 9112 section 9.8)
    - what comes after the end makes the connection unusable, but the response stays what it is; where it could not
      be seen, which is behind the answer to HEAD that declares chunks, the connection is not used again either

Whatever the pieces are in which a response arrives, status, headers, body, completeness and errors are the same.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import httpcore
import httptools

from .types import Headers

__all__ = ["MAX_HEAD", "MAX_INTERIM", "BrokenResponseError", "ResponseParser"]

MAX_HEAD: Final = 64 * 1024
"""How many bytes may come without any body among them: the head, interim ones before it, trailers."""

MAX_INTERIM: Final = 16
"""How many interim responses may come before the real one."""

_LINE_ENDS: Final = b"\r\n"
_END_OF_CHUNKS: Final = re.compile(rb"[^\r\n]\r\n\r\n")
_VERSIONS: Final = ("1.0", "1.1")


class BrokenResponseError(httpcore.RemoteProtocolError):
    """What came is no whole response. A connection that the backend ends without a byte raises its base class instead.

    Args:
        message: what is wrong. Quotes nothing of it.
        kind: whether it is no response, or the beginning of one, after which the connection was closed or reset. It is
            "closed" from this side without any beginning, too.

    Attributes:
        kind: the same.
    """

    def __init__(self, message: str, kind: Literal["malformed", "closed", "reset"] = "malformed") -> None:
        super().__init__(message)
        self.kind: Final = kind


class ResponseParser:
    """Read one response.

    Args:
        is_head: whether the request was HEAD, whose response has no body whatever its head says.
        is_tls: whether the connection is encrypted.

    Attributes:
        status: the status code once the head has come whole, 0 before.
        headers: names and values as they came, from that moment on.
        version: the protocol version of the response, "1.1" or "1.0".
        begun: whether anything has come.
        buffered: how many bytes of the body wait to be taken.
        complete: whether the response has come to its end.
        reusable: whether the connection may carry another request, once `complete`.
    """

    __slots__ = (
        "_barren",
        "_ends_with_connection",
        "_head_size",
        "_interim",
        "_is_chunked",
        "_is_head",
        "_is_tls",
        "_parser",
        "_pieces",
        "begun",
        "buffered",
        "complete",
        "headers",
        "reusable",
        "status",
        "version",
    )

    def __init__(self, *, is_head: bool = False, is_tls: bool = False) -> None:
        self._is_head = is_head
        self._is_tls = is_tls
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._barren = 0
        self._head_size = 0
        self._interim = 0
        self._ends_with_connection = False
        self._is_chunked = False
        self._pieces: list[bytes] = []
        self.status = 0
        self.headers: Headers = []
        self.version = ""
        self.begun = False
        self.buffered = 0
        self.complete = False
        self.reusable = False

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            BrokenResponseError: if they do not continue a response. Quotes none of them.
        """
        # llhttp skips line ends between two responses without a word. So a line end that comes last is read by itself:
        # by then it is known whether the response had ended before it. Every chunk ends in one, and reading twice costs
        # more than the rest of this: there it is the end of the last chunk that is looked at.
        end = len(data) - 1
        if end > 0 and data[end] in _LINE_ENDS:
            if self._is_chunked and end >= 4:
                self._read(data)
                if self.complete and not _END_OF_CHUNKS.fullmatch(data, end - 4):
                    self.reusable = False
                return
            self._read(data[:end])
            data = data[end:]
        self._read(data)

    def _read(self, data: bytes | memoryview) -> None:
        if self._parser is None:
            self.reusable = False
            return
        self.begun = True
        self._barren += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.reusable = False
            if not self.complete:
                raise BrokenResponseError("The backend's response is not valid HTTP/1.1.") from None
        if self.complete:
            self._parser = None  # it refers to this object, as this does to it
        elif self._barren > MAX_HEAD:
            raise BrokenResponseError("The backend's response has no end of headers.")

    def end(self) -> None:
        """Take note that the connection has ended.

        Raises:
            BrokenResponseError: if the response was not whole.
            httpcore.RemoteProtocolError: if nothing of it has come.
        """
        self.reusable = False
        self._parser = None
        if not self.begun:
            raise httpcore.RemoteProtocolError("The backend ended the connection without a response.")
        if not self.complete and not self._ends_with_connection:
            raise BrokenResponseError("The backend ended the connection within its response.", "closed")
        self.complete = True

    def abandon(self) -> None:
        """Let go of what has come and of httptools' parser, which refers to this object; nothing more is to be fed."""
        self._parser = None
        self._pieces = []

    def take(self) -> bytes:
        """Return what has come of the body since the last call, in one piece."""
        pieces, self._pieces = self._pieces, []
        self.buffered = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # What follows is called by httptools. It turns exceptions into errors of its own, which `feed` catches.

    def on_message_begin(self) -> None:
        """Refuse a second response behind the first."""
        if self.complete:
            raise _RefusedError

    def on_status(self, reason: bytes) -> None:
        """Count the reason phrase, which means nothing."""
        self._count(len(reason))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer, which is dropped."""
        self._count(len(name) + len(value))
        if not self.status:
            self.headers.append((name, value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        """Decide how the body is framed."""
        assert self._parser is not None
        status = self._parser.get_status_code()
        self.version = self._parser.get_http_version()
        if status < 100 or status == 101 or self.version not in _VERSIONS:
            raise _RefusedError
        if 100 <= status <= 199:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise _RefusedError
            self.headers = []
            return
        lengths, codings = 0, []
        for name, value in self.headers:
            lower = name.lower()
            if lower == b"content-length":
                lengths += 1
            elif lower == b"transfer-encoding":
                codings.append(value.lower())
        if lengths + len(codings) > 1 or codings not in ([], [b"chunked"]):
            raise _RefusedError
        has_body = not self._is_head and status not in (204, 304)
        self._ends_with_connection = has_body and not lengths and not codings
        if self._ends_with_connection and self._is_tls:
            raise _RefusedError
        self.status = status
        self._barren = 0
        self._head_size = 0
        self._is_chunked = has_body and bool(codings)
        if self._is_head:
            self._complete()
            # llhttp goes on to look for chunks, and does not tell of the beginning of one: bytes that belong to nobody.
            self.reusable = self.reusable and not codings

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        if self.complete:
            raise _RefusedError
        self._barren = 0
        self.buffered += len(data)
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        """Note the end; of interim responses there is nothing to note."""
        if self.status and not self.complete:
            self._complete()

    def _count(self, size: int) -> None:
        # What comes in one read is counted here, before `feed` can look at it as a whole.
        self._head_size += size
        if self._head_size > MAX_HEAD:
            raise _RefusedError

    def _complete(self) -> None:
        assert self._parser is not None
        self.complete = True
        self.reusable = self._parser.should_keep_alive()


class _RefusedError(Exception):
    """Ends the parsing; never leaves this module."""
