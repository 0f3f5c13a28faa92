"""Event streams: find the chat id and the end, without changing a byte.

Theory of operation. The scanner is fed chunks as they come off the wire, cut anywhere, and hands back the bytes that
may go on. It reads lines as section 9.2 of the HTML standard does (LF, CRLF or CR; `data` lines of one event joined
with LF; one leading byte order mark ignored) and looks for two things:

- the id: the first non-empty string `id` of an event's JSON object. Once it is known no event is decoded any more;
- the terminator: the blank line that ends an event whose data is exactly `[DONE]`, or the end of the body after that
  event's line.

Whoever sees `[DONE]` must be able to fetch the signature, and the signature covers the terminator. So bytes that may
be the start of a `[DONE]` line are held back until they turn out to be one, and then until the event is over; `feed`
returns them together with `complete` set, so that the caller can sign and store before it forwards them. Everything
else passes at once. What is held is never more than `MAX_HELD` bytes.

A blank line that ends in CR may still be followed by its LF. The scanner waits for that byte, unless the line before
ended in a lone CR, which shows the stream's style: then the CR ends the stream and a later LF is not part of it.

For any way of cutting a stream, the bytes handed out, the id and `complete` are the same.
"""

from __future__ import annotations

import re
from typing import Final

from .identifiers import read_id
from .pieces import MANY, join_many

__all__ = ["MAX_EVENT", "MAX_HELD", "EventStreamScanner"]

MAX_EVENT: Final = 32 * 1024 * 1024
"""An event whose data lines are longer than this, in bytes, is delivered and not searched for an id."""

MAX_HELD: Final = 64 * 1024
"""An event whose `[DONE]` line and what follows it in the same event exceed this, in bytes, ends no stream."""

_DONE: Final = b"[DONE]"
_LETTERS: Final = (b"D", b"O", b"N", b"E")
_DONE_LINES: Final = (b"data: [DONE]", b"data:[DONE]")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_BEGINNINGS: Final = frozenset(line[:size] for line in _DONE_LINES for size in range(len(line) + 1))
_FIRST_BEGINNINGS: Final = _BEGINNINGS.union((b"\xef", b"\xef\xbb"), (_BYTE_ORDER_MARK + text for text in _BEGINNINGS))
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_LF: Final = 0x0A
_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n")


class EventStreamScanner:
    """Watch one event stream from its first byte to its terminator.

    Attributes:
        event_id: the id found so far, or None.
        complete: whether the terminator has been handed out. From then on every byte fed is dropped.
    """

    __slots__ = (
        "_after_cr",
        "_data",
        "_data_size",
        "_done_pending",
        "_ending",
        "_first_line",
        "_has_data",
        "_in_data_line",
        "_in_line",
        "_lone_cr",
        "_rare",
        "_scanned",
        "_searched_to",
        "_tail",
        "complete",
        "event_id",
    )

    def __init__(self) -> None:
        self.event_id: str | None = None
        self.complete = False
        self._tail = b""  # bytes held back; they start at a line's start
        self._scanned = 0  # how many of them have been looked at
        self._searched_to = 0  # up to here in what is scanned now, there is no event to skip any more
        self._done_pending = False  # the event's data is [DONE] so far, and the tail starts at that line
        self._ending = False  # that event's blank line has ended in CR, and its LF may follow
        self._after_cr = False  # the last byte scanned was a CR
        self._lone_cr = False  # the last line ended in CR alone
        self._first_line = True
        self._in_line = False  # inside a line whose start has been handed out
        self._in_data_line = False
        self._has_data = False  # the event has a data line
        self._data: list[bytes] = []  # its data, as long as the id is being looked for; empty once it is too long
        self._data_size = 0
        self._rare = _LETTERS[0]  # a letter of [DONE] that this stream's events are not full of

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of the body and return those that may be forwarded now.

        Args:
            chunk: any number of bytes, cut anywhere.

        Returns:
            Bytes to forward, possibly none, possibly more than were fed (bytes held back before). When `complete` has
            become true they end with the terminator, and must not be forwarded before the signature is stored.
        """
        if self.complete:
            return b""
        if self._is_unremarkable(chunk):
            self._start_event()
            self._in_line = self._after_cr = self._lone_cr = False
            return chunk
        # Neither this sum nor the slices below copy anything where they are the whole chunk.
        buffer = self._tail + chunk
        safe = self._scan(buffer)
        self._tail = buffer[safe:]
        return buffer[:safe]

    def close(self) -> bytes:
        """Say that the body has ended where its framing declared, and return what was still held back.

        `complete` is true afterwards if the stream had its terminator, the end of the body counting as the blank line.
        """
        if self.complete:
            return b""
        rest, unfinished_line = self._tail, self._tail[self._scanned :]
        if self._done_pending:
            self.complete = not unfinished_line.startswith(b"data")
        else:
            self.complete = not self._has_data and self._without_mark(unfinished_line) in _DONE_LINES
        self._tail = b""
        return rest

    def _is_unremarkable(self, chunk: bytes) -> bool:
        """Tell whether a chunk that ends an event can be forwarded without looking at its lines."""
        if self.event_id is None or self._tail or not chunk.endswith(_EVENT_ENDS):
            return False
        # Mostly it is nowhere. One byte is looked for ten times as fast as six, and six backwards in half the time.
        return chunk.find(self._rare) < 0 or chunk.rfind(_DONE) < 0

    def _skip(self, buffer: bytes, position: int) -> int:
        """Return up to where nothing can happen: the id is known, and whole events follow that do not hold `[DONE]`."""
        if self.event_id is None or self._done_pending or position < self._searched_to:
            return position
        end = len(buffer)
        # One byte first, and six backwards, as above.
        if buffer.find(self._rare, position) >= 0 and buffer.rfind(_DONE, position) >= 0:
            end = buffer.index(_DONE, position)
        self._searched_to = end
        while (end := buffer.rfind(b"\n", position, end)) != -1:
            if buffer.endswith(_EVENT_ENDS, position, end + 1):
                self._start_event()
                self._in_line = self._after_cr = self._lone_cr = False
                return end + 1
        return position

    def _scan(self, buffer: bytes) -> int:  # noqa: C901, PLR0912 - cut up, the states would be harder to follow
        """Read the lines of `buffer` that are not scanned yet; return how many of its bytes may be handed out."""
        self._searched_to = 0
        position = self._skip(buffer, self._scanned)
        done_at = 0 if self._done_pending else None
        while position < len(buffer):
            if self._after_cr:
                self._after_cr = False
                if buffer[position] == _LF:
                    self._lone_cr = False
                    position += 1
            else:
                line_end = _LINE_END.search(buffer, position)
                if line_end is None:
                    position = self._take_partial_line(buffer, position)
                    break
                start, text, position = position, buffer[position : line_end.start()], line_end.end()
                after_lone_cr, self._lone_cr = self._lone_cr, line_end.group() == b"\r"
                self._after_cr = self._lone_cr and position == len(buffer)
                if text or self._in_line:
                    self._take_line(text)
                    if done_at is None and self._done_pending:
                        done_at = start
                elif not self._done_pending:
                    self._end_event()
                    position = self._skip(buffer, position)
                else:
                    self._ending = True
                    if after_lone_cr:
                        # This stream ends its lines in CR: the blank line is over with its own.
                        self._after_cr = False
                        position = line_end.start() + 1
            if self._ending and not self._after_cr:
                assert done_at is not None
                if position - done_at <= MAX_HELD:
                    self.complete = True
                    return position
                self._end_event()
            if not self._done_pending:
                done_at = None
        if not self._done_pending:
            done_at = None
        elif done_at is not None and len(buffer) - done_at > MAX_HELD:
            self._done_pending = self._ending = False
            done_at = None
        safe = position if done_at is None else done_at
        self._scanned = position - safe
        return safe

    def _take_partial_line(self, buffer: bytes, start: int) -> int:
        """Take a line whose end has not arrived; return up to where `buffer` is scanned."""
        text = buffer[start:]
        if self._in_line:
            if self._in_data_line:
                self._collect(text)
            return len(buffer)
        if text in (_FIRST_BEGINNINGS if self._first_line else _BEGINNINGS):
            return start
        text = self._without_mark(text)
        self._first_line = False
        self._in_line = True
        self._in_data_line = text.startswith(b"data:")
        if self._in_data_line:
            self._done_pending = False
            self._collect_new_line(text)
        return len(buffer)

    def _take_line(self, text: bytes) -> None:
        """Take a line, or the rest of one whose start was taken before; the line end is not part of `text`."""
        if self._in_line:
            self._in_line = False
            if self._in_data_line:
                self._collect(text)
            return
        text = self._without_mark(text)
        self._first_line = False
        if text.startswith(b"data:") or text == b"data":
            self._done_pending = not self._has_data and text in _DONE_LINES
            self._collect_new_line(text)

    def _collect_new_line(self, text: bytes) -> None:
        separator = b"\n" if self._has_data else b""
        self._has_data = True
        if self.event_id is None:
            self._collect(separator + text[5:].removeprefix(b" "))

    def _collect(self, piece: bytes) -> None:
        if self.event_id is None:
            self._data_size += len(piece)
            if self._data_size > MAX_EVENT:
                self._data.clear()
            else:
                self._data.append(piece)
                if len(self._data) > MANY:
                    join_many(self._data)

    def _end_event(self) -> None:
        if self._data:
            data = b"".join(self._data)
            document = read_id(data)
            if document is not None:
                self.event_id = document.value
                # The next events have the same names and ids around their contents.
                self._rare = next((letter for letter in _LETTERS if letter not in data), self._rare)
        self._start_event()

    def _start_event(self) -> None:
        self._first_line = self._has_data = self._done_pending = self._ending = False
        self._data.clear()
        self._data_size = 0

    def _without_mark(self, text: bytes) -> bytes:
        return text.removeprefix(_BYTE_ORDER_MARK) if self._first_line else text
