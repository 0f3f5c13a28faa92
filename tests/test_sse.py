"""Event streams: the id, the terminator, and that no byte changes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import PLACES, cut, examples, peak_below, ways_to_cut

from teesign import EventStreamScanner, sse

BLANK_LINE, END_OF_BODY, NEVER = "at the blank line", "at the end of the body", "never"


class Reading(NamedTuple):
    """What came of scanning a whole stream."""

    out: bytes
    event_id: str | None
    complete: str


def read(chunks: Iterable[bytes]) -> Reading:
    """Feed a scanner with these chunks and close it."""
    scanner = EventStreamScanner()
    out = b"".join(map(scanner.feed, chunks))
    complete = BLANK_LINE if scanner.complete else NEVER
    out += scanner.close()
    if scanner.complete and complete is NEVER:
        complete = END_OF_BODY
    return Reading(out, scanner.event_id, complete)


EVENT = b'data: {"id":"a"}\n\n'
DONE = b"data: [DONE]\n\n"
LARGE = b'data: {"id":"a","text":"' + b"x" * 1_100_000 + b'"}\n\n'

STREAMS = [
    pytest.param(EVENT + DONE, "a", BLANK_LINE, id="LF"),
    pytest.param((EVENT + DONE).replace(b"\n", b"\r\n"), "a", BLANK_LINE, id="CRLF"),
    pytest.param((EVENT + DONE).replace(b"\n", b"\r"), "a", BLANK_LINE, id="CR"),
    pytest.param(b'data: {"id":"a"}\r\n\ndata: [DONE]\r\n\n', "a", BLANK_LINE, id="CRLF, then LF"),
    pytest.param(b'data: {"id":"a"}\r\rdata: [DONE]\n\r\n', "a", BLANK_LINE, id="CR, then LF, then CRLF"),
    pytest.param(EVENT + b"data: [DONE]\n\r", "a", END_OF_BODY, id="a last CR that LF could follow"),
    pytest.param(EVENT + b"data: [DONE]\r\n\r", "a", END_OF_BODY, id="a last CR that LF should follow"),
    pytest.param(b"\xef\xbb\xbf" + EVENT + DONE, "a", BLANK_LINE, id="byte order mark"),
    pytest.param(b"\xef\xbb\xbf" + DONE, None, BLANK_LINE, id="byte order mark before the terminator"),
    pytest.param(b"\xef\xbb\xbf\xef\xbb\xbf" + DONE, None, NEVER, id="two byte order marks"),
    pytest.param(b"\n\xef\xbb\xbf" + DONE, None, NEVER, id="byte order mark in the second line"),
    pytest.param(b"x\n\xef\xbb\xbf" + DONE, None, NEVER, id="byte order mark behind a line of no meaning"),
    pytest.param(b": ping\n\n" + EVENT + b": ping\n\n" + DONE, "a", BLANK_LINE, id="comments"),
    *(
        pytest.param(
            b'data: {"id":"%b"}\n\n' % name * 2 + DONE, name.decode(), BLANK_LINE, id=f"{name.decode()} in events"
        )
        for name in (b"D", b"DO", b"DON", b"NOE", b"DONE", b"[DONE]")
    ),
    pytest.param(b'event: x\nid: 1\nretry: 5\ndata: {"id":"a"}\n\n' + DONE, "a", BLANK_LINE, id="other fields"),
    pytest.param(b"event: end\ndata: [DONE]\nid: 9\n: bye\n\n", None, BLANK_LINE, id="other fields around [DONE]"),
    pytest.param(b'data: {"id":\ndata:"a"}\n\n' + DONE, "a", BLANK_LINE, id="data in two lines"),
    pytest.param(b'data: {"id":"a\ndata: b"}\n\n' + DONE, None, BLANK_LINE, id="a string cut by a line end"),
    pytest.param(b"data\n\ndata:\n\n" + EVENT + DONE, "a", BLANK_LINE, id="empty data"),
    pytest.param(b'data: {"id":\ndata\ndata: "a"}\n\n' + DONE, "a", BLANK_LINE, id="data without a colon"),
    pytest.param(EVENT + b"data:[DONE]\n\n", "a", BLANK_LINE, id="no space"),
    pytest.param(EVENT + b"data:  [DONE]\n\n", "a", NEVER, id="two spaces"),
    pytest.param(EVENT + b"data: [DONE] \n\n", "a", NEVER, id="trailing space"),
    pytest.param(EVENT + b"data: [done]\n\n", "a", NEVER, id="lower case"),
    pytest.param(EVENT + b" data: [DONE]\n\n", "a", NEVER, id="leading space"),
    pytest.param(EVENT + b"Data: [DONE]\n\n", "a", NEVER, id="another field name"),
    pytest.param(EVENT + b"data : [DONE]\n\n", "a", NEVER, id="space before the colon"),
    pytest.param(EVENT + b"[DONE]\n\n", "a", NEVER, id="no field name"),
    pytest.param(EVENT + b"data: [DONE]\ndata: x\n\n", "a", NEVER, id="[DONE], then another data line"),
    pytest.param(EVENT + b"data: [DONE]\ndata\n\n", "a", NEVER, id="[DONE], then an empty data line"),
    pytest.param(EVENT + b"data: x\ndata: [DONE]\n\n", "a", NEVER, id="another data line, then [DONE]"),
    pytest.param(EVENT + b"data: [DONE]\ndatum: x\n\n", "a", BLANK_LINE, id="[DONE], then a field like data"),
    pytest.param(EVENT + b"data: [DONE]\ndata: x\n\n" + DONE, "a", BLANK_LINE, id="a false [DONE], then a true one"),
    pytest.param(b'data: {"text":"[DONE]"}\n\n' + EVENT + DONE, "a", BLANK_LINE, id="[DONE] inside a string"),
    pytest.param(b'data: {"text":"data: [DONE]\\n\\n"}\n\n', None, NEVER, id="a whole terminator inside a string"),
    pytest.param(EVENT + b"data: [DONE]\n", "a", END_OF_BODY, id="no blank line"),
    pytest.param(EVENT + b"data: [DONE]", "a", END_OF_BODY, id="no line end"),
    pytest.param(b"\xef\xbb\xbfdata: [DONE]", None, END_OF_BODY, id="byte order mark and no line end"),
    pytest.param(EVENT + b"data: [DONE]\ndat", "a", END_OF_BODY, id="[DONE] and a cut-off field"),
    pytest.param(EVENT + b"data: [DONE]\ndata", "a", NEVER, id="[DONE] and a cut-off data line"),
    pytest.param(EVENT + b"data: [DONE", "a", NEVER, id="a cut-off [DONE]"),
    pytest.param(EVENT + b"data: x\ndata: [DONE]", "a", NEVER, id="[DONE] as the second line and no line end"),
    pytest.param(EVENT, "a", NEVER, id="no terminator"),
    pytest.param(b"", None, NEVER, id="nothing"),
    pytest.param(b"data: {}\n\n" + EVENT + DONE, "a", BLANK_LINE, id="id in the second event"),
    pytest.param(EVENT + b'data: {"id":"b"}\n\n' + DONE, "a", BLANK_LINE, id="two ids"),
    pytest.param(b'data: {"id":""}\n\n' + EVENT + DONE, "a", BLANK_LINE, id="empty id"),
    pytest.param(b'data: {"id":7}\n\n' + EVENT + DONE, "a", BLANK_LINE, id="numeric id"),
    pytest.param(b'data: {"x":{"id":"b"}}\n\n' + DONE, None, BLANK_LINE, id="nested id only"),
    pytest.param(b': {"id":"b"}\n\n' + DONE, None, BLANK_LINE, id="id in a comment"),
    pytest.param(b"id: b\ndata: {}\n\n" + DONE, None, BLANK_LINE, id="id in a field"),
    pytest.param(b'data: {"text":"{\\"id\\":\\"b\\"}"}\n\n' + DONE, None, BLANK_LINE, id="id in the model's text"),
    pytest.param(b'data: [{"id":"b"}]\n\n' + DONE, None, BLANK_LINE, id="id in an array"),
    pytest.param(b'data: {"id":"b"\n\n' + DONE, None, BLANK_LINE, id="broken JSON"),
    pytest.param(b'data: {"id":"b"}', None, NEVER, id="an event without its blank line"),
    pytest.param(b'data: {"text":"\xff\xfe"}\n\xff\n\n' + EVENT + DONE, "a", BLANK_LINE, id="invalid UTF-8"),
    pytest.param(b'data: {"text":"\xff","id":"a"}\n\n' + DONE, "a", BLANK_LINE, id="invalid UTF-8 beside the id"),
    pytest.param(LARGE + DONE, "a", BLANK_LINE, id="an event of more than a megabyte"),
]


@pytest.mark.parametrize(("stream", "event_id", "complete"), STREAMS)
def test_a_stream_reads_the_same_however_it_is_cut(stream: bytes, event_id: str | None, complete: str) -> None:
    """Whole, byte by byte and cut in two anywhere: all bytes come out, with the same id and the same end."""
    for chunks in ways_to_cut(stream):
        assert read(chunks) == Reading(stream, event_id, complete)


@pytest.mark.parametrize(("stream", "event_id", "complete"), [row for row in STREAMS if BLANK_LINE in row.values])
def test_what_follows_the_terminator_is_dropped(stream: bytes, event_id: str | None, complete: str) -> None:
    """The stream that is signed ends with its terminator, even if the backend goes on in the same chunk."""
    for chunks in ways_to_cut(stream + b'data: {"id":"late"}\n\n' + DONE):
        assert read(chunks) == Reading(stream, event_id, complete)


def test_a_closed_stream_gives_nothing_more() -> None:
    """Once the terminator is out, neither another chunk nor the end of the body adds a byte."""
    scanner = EventStreamScanner()
    assert scanner.complete is False
    assert scanner.feed(DONE) == DONE
    assert scanner.complete is True
    assert (scanner.feed(EVENT), scanner.close(), scanner.event_id) == (b"", b"", None)


def test_a_stream_closed_early_gives_its_rest_once() -> None:
    """What was held back comes out with the end of the body, and not a second time."""
    scanner = EventStreamScanner()
    assert scanner.feed(b"data: [DO") == b""
    assert (scanner.close(), scanner.close(), scanner.complete) == (b"data: [DO", b"", False)


def test_events_pass_at_once() -> None:
    """A token that has arrived is shown: nothing but a possible terminator is held back, not even half a line."""
    scanner = EventStreamScanner()
    for chunk in (b"data: {", b'"id":"a"}', b"\n\n", b": ping\n", b"data: x\n\n", b"event: y\n"):
        assert scanner.feed(chunk) == chunk


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([EVENT, EVENT, DONE], id="whole events"),
        pytest.param([EVENT, b"data: x", b"y\n\n", DONE], id="the rest of a line, and the end of its event"),
        pytest.param([EVENT, b": x\r", b"data: y\n\n", DONE], id="a line end that LF could have followed"),
        pytest.param([EVENT, b": x\r", b"data: [DONE\n\n", DONE], id="what is almost the terminator"),
    ],
)
def test_a_chunk_that_ends_an_event_leaves_nothing_open(chunks: list[bytes]) -> None:
    """Once the id is known, whole events pass without a look at their lines; the next chunk starts an event."""
    assert read(chunks) == Reading(b"".join(chunks), "a", BLANK_LINE)


def test_events_do_not_wait_for_the_terminator_behind_them() -> None:
    """Of a chunk that holds events and then `[DONE]`, only that is held back."""
    scanner = EventStreamScanner()
    assert [scanner.feed(chunk) for chunk in (EVENT, EVENT + DONE[:-1], b"\n")] == [EVENT, EVENT, DONE]


CRLF_EVENT = EVENT.replace(b"\n", b"\r\n")


@pytest.mark.parametrize(
    ("chunks", "searches"),
    [
        pytest.param([EVENT * 500], 2, id="the id, and events behind it"),
        pytest.param([EVENT, EVENT * 500], 2, id="events"),
        pytest.param([EVENT, CRLF_EVENT * 500], 2, id="events with CRLF"),
        pytest.param([EVENT, EVENT * 500 + b"data: y"], 3, id="events, and the start of a line"),
        pytest.param([EVENT, EVENT * 500 + b"data: y\ndata: z"], 4, id="events, a line, and the start of another"),
        pytest.param([EVENT, CRLF_EVENT * 500 + b"data: y"], 3, id="events with CRLF, and the start of a line"),
        pytest.param([EVENT, EVENT * 500 + b"data: x[DONE]"], 3, id="events, and the word in the line that follows"),
        pytest.param(
            [EVENT, b"data: x[DONE]\n\n" + EVENT * 500 + b"data: x[DONE]"], 5, id="the word, events, and the word again"
        ),
    ],
)
def test_whole_events_are_not_read_line_by_line(
    monkeypatch: pytest.MonkeyPatch, chunks: list[bytes], searches: int
) -> None:
    """Once the id is known, only lines beside something that looks like a terminator, or at the edges, are split."""
    searched = []

    class Recording:
        def search(self, buffer: bytes, position: int) -> re.Match[bytes] | None:
            searched.append(position)
            return re.compile(rb"\r\n|\n|\r").search(buffer, position)

    monkeypatch.setattr(sse, "_LINE_END", Recording())
    scanner = EventStreamScanner()
    assert b"".join(map(scanner.feed, chunks)) == b"".join(chunks)
    assert (scanner.event_id, len(searched)) == ("a", searches)


def test_a_chunk_that_passes_is_not_copied() -> None:
    """What is handed on is the chunk itself, before and after the id is known, in the middle of an event or not."""
    scanner = EventStreamScanner()
    for chunk in (b": ping ping\n", b"data: {", b'"id":"a"}\n\n', EVENT, b"data: x", EVENT * 100 + b"data: x"):
        assert scanner.feed(chunk) is chunk


def test_a_line_is_held_only_as_long_as_it_may_become_the_terminator() -> None:
    """The first byte that no terminator has at its place sets the line free."""
    scanner = EventStreamScanner()
    assert [scanner.feed(bytes([byte])) for byte in b"data: [DOT"] == [b""] * 9 + [b"data: [DOT"]


def test_a_byte_order_mark_is_waited_for_at_the_beginning_only() -> None:
    """Later its first byte is one like any other, and passes."""
    scanner = EventStreamScanner()
    assert [scanner.feed(chunk) for chunk in (b"\xef", b"\xbb\xbf: x\n", b"\xef")] == [
        b"",
        b"\xef\xbb\xbf: x\n",
        b"\xef",
    ]


def test_a_cr_after_a_line_that_ended_in_cr_needs_no_lf() -> None:
    """A stream whose lines end in CR is complete with its last byte, without waiting for an LF that never comes."""
    scanner = EventStreamScanner()
    assert scanner.feed(b"data: [DONE]\r\r") == b"data: [DONE]\r\r"
    assert scanner.complete


class Line(NamedTuple):
    """One line of a stream, and where it starts and ends."""

    text: bytes
    start: int
    end: int
    end_mark: bytes


def lines(stream: bytes) -> Iterator[Line]:
    """Split a stream as section 9.2 of the HTML standard says; a last line without an end counts as one."""
    mark = 3 if stream.startswith(b"\xef\xbb\xbf") else 0
    for match in re.finditer(rb"([^\r\n]*)(\r\n|\n|\r|\Z)", stream[mark:]):
        if match[0]:
            start = match.start() + mark if match.start() else 0
            yield Line(match[1], start, match.end() + mark, match[2])


class Interpretation(NamedTuple):
    """What a reader of events finds: the id, and from where to where the terminating event's data line goes."""

    event_id: str | None
    done_at: int | None
    end: int
    complete: str


def interpret(stream: bytes) -> Interpretation:
    """Build events as section 9.2 of the HTML standard says, under the caps of the scanner.

    On top of the standard: the end of the body counts as the blank line of a `[DONE]` event, a blank line's CR that
    LF may still follow waits for it, and one after a line that ended in a lone CR does not take an LF with it.
    """
    event_id, data, done_at, previous = None, list[bytes](), 0, b""
    for line in lines(stream):
        field, _, value = line.text.partition(b":")
        if line.text:
            if field == b"data":
                done_at = done_at if data else line.start
                data.append(value.removeprefix(b" "))
        elif line.end_mark:
            end = line.end - (previous == b"\r" and line.end_mark == b"\r\n")
            if data == [b"[DONE]"] and end - done_at <= sse.MAX_HELD:
                waits = line.end_mark == b"\r" and previous != b"\r" and line.end == len(stream)
                return Interpretation(event_id, done_at, end, END_OF_BODY if waits else BLANK_LINE)
            event_id, data = event_id or id_of(b"\n".join(data)), []
        previous = line.end_mark
    if data == [b"[DONE]"] and len(stream) - done_at <= sse.MAX_HELD:
        return Interpretation(event_id, done_at, len(stream), END_OF_BODY)
    return Interpretation(event_id, None, len(stream), NEVER)


def id_of(data: bytes) -> str | None:
    """Return the string `id` of a JSON object, found by the standard library."""
    try:
        document = json.loads(data.decode(errors="surrogateescape")) if len(data) <= sse.MAX_EVENT else None
    except ValueError:
        return None
    value = document.get("id") if isinstance(document, dict) else None
    return value if isinstance(value, str) and value.isprintable() and value else None


LINE_ENDS = (b"\n", b"\r", b"\r\n")
WHOLE_LINES = (b"data: [DONE]", b"data:[DONE]", b'data: {"id":"a"}', b"data: x", b"data", b": c", b"event: y")
PARTS = (
    b"\xef\xbb\xbf",
    b"data: ",
    b"data:",
    b'{"id":',
    b'"b"}',
    b'{"id":""}',
    b"[DONE]",
    b"[DO",
    b"id: 1",
    b" ",
    b"\xff",
)
STREAM = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(WHOLE_LINES), st.sampled_from(LINE_ENDS)).map(b"".join),
        st.sampled_from(LINE_ENDS),
        st.sampled_from(PARTS),
    ),
    max_size=14,
).map(b"".join)


@given(STREAM, PLACES)
@settings(max_examples=examples(2000), deadline=None)
def test_any_stream_reads_as_the_html_standard_says(stream: bytes, places: list[int]) -> None:
    """For any stream and any way of cutting it: the id, the end and the bytes that a reader of events finds."""
    expected = interpret(stream)
    assert read(cut(stream, places)) == Reading(stream[: expected.end], expected.event_id, expected.complete)


@given(STREAM, PLACES, st.integers(min_value=16, max_value=40), st.integers(min_value=0, max_value=30))
@settings(max_examples=examples(1000), deadline=None)
def test_the_caps_do_not_depend_on_the_cutting(stream: bytes, places: list[int], held: int, event: int) -> None:
    """An event that is too long to be held or searched is so however its bytes arrive."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "MAX_HELD", held)
        patch.setattr(sse, "MAX_EVENT", event)
        expected = interpret(stream)
        assert read(cut(stream, places)) == Reading(stream[: expected.end], expected.event_id, expected.complete)


@given(STREAM, PLACES)
@settings(max_examples=examples(1000), deadline=None)
def test_no_byte_of_the_terminator_is_out_before_it_is_complete(stream: bytes, places: list[int]) -> None:
    """Until the scanner says `complete`, the caller has nothing of the `[DONE]` line in hand that it could forward."""
    done_at = interpret(stream).done_at
    scanner, out = EventStreamScanner(), b""
    for chunk in cut(stream, places):
        out += scanner.feed(chunk)
        assert scanner.complete or done_at is None or len(out) <= done_at


@given(STREAM, PLACES, st.integers(min_value=16, max_value=40))
@settings(max_examples=examples(500), deadline=None)
def test_what_is_held_is_bounded(stream: bytes, places: list[int], held: int) -> None:
    """Between two chunks, no more than MAX_HELD bytes have been taken and not handed out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "MAX_HELD", held)
        scanner, taken, out = EventStreamScanner(), 0, 0
        for chunk in cut(stream, places):
            taken, out = taken + len(chunk), out + len(scanner.feed(chunk))
            assert scanner.complete or taken - out <= held


@pytest.mark.parametrize(("beyond", "complete"), [(0, BLANK_LINE), (1, NEVER)])
def test_an_event_too_long_to_be_held_ends_no_stream(beyond: int, complete: str) -> None:
    """A backend cannot make the proxy hoard: past MAX_HELD the bytes are let go, and the stream stays open."""
    stream = b"data: [DONE]\n:" + b"x" * (sse.MAX_HELD - 16 + beyond) + b"\n\n"
    for chunks in ways_to_cut(stream):
        assert read(chunks) == Reading(stream, None, complete)


@pytest.mark.parametrize(("beyond", "complete"), [(0, END_OF_BODY), (1, NEVER)])
def test_an_event_too_long_to_be_held_is_not_the_last_one(beyond: int, complete: str) -> None:
    """The bound is the same where the body ends in the middle of that event."""
    stream = b"data: [DONE]\n:" + b"x" * (sse.MAX_HELD - 14 + beyond)
    for chunks in ways_to_cut(stream):
        assert read(chunks) == Reading(stream, None, complete)


def test_what_has_passed_does_not_count_as_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminator is one however much stands before it in the same chunk."""
    monkeypatch.setattr(sse, "MAX_HELD", 40)
    chunks = [b": c\n" * 10 + DONE[:-1], b"\n"]
    assert read(chunks) == Reading(b"".join(chunks), None, BLANK_LINE)


@pytest.mark.parametrize("before", [b"", b"data: {}\n\n"], ids=["the first event", "the second event"])
@pytest.mark.parametrize(("beyond", "event_id"), [(0, "a"), (1, "b")])
def test_an_event_too_long_to_be_searched_has_no_id(
    monkeypatch: pytest.MonkeyPatch, before: bytes, beyond: int, event_id: str
) -> None:
    """What the search for an id keeps is bounded; a later, shorter event may still have one."""
    monkeypatch.setattr(sse, "MAX_EVENT", 100)
    stream = before + b'data: {"id":"a"}'.ljust(len(b"data: ") + 100 + beyond) + b'\n\ndata: {"id":"b"}\n\n'
    for chunks in ways_to_cut(stream):
        assert read(chunks) == Reading(stream, event_id, NEVER)


@pytest.mark.parametrize("size", [2, 7])
def test_an_event_in_tiny_pieces_takes_little_memory(size: int) -> None:
    """Whoever is on the way may cut it so; a few times what its bytes take, and not forty bytes more for each piece."""
    scanner = EventStreamScanner()
    with peak_below(3 * 100_000 * size + 600_000):
        scanner.feed(b"data: {")
        for _ in range(100_000):
            scanner.feed(b"x" * size)


@pytest.mark.parametrize("rest", [b"", b"data: [DONE]"])
@pytest.mark.parametrize(
    "line",
    [
        b"a\n\r\n",
        b"a\n\r",
        b"a\r\n",
        b"\r",
        b"\n",
        b"\r\n",
        b"\n\r",
        b"D\n\r\n",
        b"[DONE]\n\r\n",
        b"data: [DONE]\n\r\n:\n",
    ],
)
def test_no_stream_takes_long(line: bytes, rest: bytes) -> None:
    """A hundred kilobytes in one chunk take a fraction of a second, whatever their lines; some took minutes."""
    scanner = EventStreamScanner()
    scanner.feed(EVENT)
    start = time.process_time()
    scanner.feed(line * (100_000 // len(line)) + rest)
    assert time.process_time() - start < 10
