"""What may be known about a request afterwards: nothing that a body, a query or a header has brought."""

from __future__ import annotations

import json
import logging
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teesign_asgi.observe import (
    _VOCABULARY,
    backend_error_fields,
    describe_exception,
    log_event,
    loggable_path,
    read_error,
    redact,
)

CANARY = "kanarienvogel"

MESSAGES: list[tuple[str, str]] = [
    ("", ""),
    ("This model does not exist", "this model does not exist"),
    ("The model `some/model` does not exist.", "the model … model … does not exist …"),
    ("maximum context length is 4096 tokens", "maximum context length is … tokens"),
    ("Error: 'kanarienvogel' is kanarienvogel", "error … is …"),
    ("one two three four", "one …"),
    ("user" * 10, "…"),
    ("is " * 100, " ".join(["is"] * 40)),
    ("x" * 5000 + " is", "…"),
    (" " * 4094 + "is", "is"),
    (" " * 4095 + "is", "…"),  # no more than 4096 characters are looked at
]


@pytest.mark.parametrize(("message", "kept"), MESSAGES)
def test_messages_are_reduced_to_known_words(message: str, kept: str) -> None:
    """What is left out leaves one ellipsis; forty words are enough."""
    assert redact(message) == kept


WORDS = st.lists(
    st.sampled_from([*sorted(_VOCABULARY), CANARY, "1234", "sk-secret", "'model'", "é", "\n"]), max_size=60
)


@given(st.one_of(st.text(), WORDS.map(" ".join), WORDS.map("".join)))
def test_nothing_but_known_words_is_left(message: str) -> None:
    """For any message: every word is of the vocabulary, or an ellipsis."""
    words = redact(message).split(" ") if redact(message) else []
    assert len(words) <= 40
    assert set(words) <= _VOCABULARY | {"…"}


def test_the_vocabulary_is_one_of_plain_words() -> None:
    """Lower case, no digits, nothing that could be a token or a key."""
    assert all(set(word) <= {*string.ascii_lowercase, "'"} and len(word) <= 14 for word in _VOCABULARY)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"error": {"message": "m", "type": "t"}}, ("m", "t")),
        ({"error": {"message": "m"}}, ("m", None)),
        ({"error": {"message": "m", "type": 4, "code": []}}, ("m", None)),
        ({"message": "m", "type": "t", "object": "error"}, ("m", "t")),
        ({"message": "m"}, ("m", None)),
        ({"error": {"message": ["m"]}, "message": "flat"}, ("flat", None)),
        ({"error": "text", "message": "flat"}, ("flat", None)),
        ({"error": "text"}, None),
        ({"error": 1.5}, None),
        ({"error": None}, None),
        ({"error": [{"message": "m"}]}, None),
        ({"error": {}}, None),
        ({"detail": "m"}, None),
        ({"message": 1}, None),
        ({}, None),
        ([], None),
        ("text", None),
    ],
)
def test_both_forms_of_error_are_read(body: Any, found: tuple[str, str | None] | None) -> None:
    """And nothing else is taken for one."""
    assert read_error(json.dumps(body).encode()) == found


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"Internal Server Error",
        b'{"error":',
        b'{"message":"\xff"}',
        b'{"error":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"message":' + b"[" * 100_000,
    ],
)
def test_what_is_no_error_body_gives_nothing(body: bytes) -> None:
    """Whatever it is, and however deep it is nested: a program that embeds the app may allow any depth of recursion."""
    assert read_error(body) is None
    assert backend_error_fields(body) == {}


@given(st.binary(max_size=40))
def test_reading_an_error_never_fails(body: bytes) -> None:
    """For any bytes."""
    read_error(body)
    read_error(b'{"error":' + body + b"}")


@pytest.mark.parametrize(
    ("kind", "logged"),
    [
        ("BadRequestError", True),
        ("invalid_request_error", True),
        ("a" * 64, True),
        ("a" * 65, False),
        ("", False),
        ("two words", False),
        ("sk-123", False),
        ("é", False),
        ("_a", False),
    ],
)
def test_an_errors_type_is_logged_if_it_is_one_word(kind: str, *, logged: bool) -> None:
    """Backends do not put anything else there; what is longer or has digits is not one."""
    fields = backend_error_fields(json.dumps({"message": "model", "type": kind}).encode())
    assert fields == {"backend_message": "model", **({"backend_type": kind} if logged else {})}


def test_validation_details_are_not_logged() -> None:
    """Where they quote the input, also in the middle of the message."""
    message = f"1 validation error: input_value='{CANARY}', ctx={{'error': '{CANARY}'}}"
    assert CANARY not in str(backend_error_fields(json.dumps({"error": {"message": message}}).encode()))


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"/v1/models", "/v1/models"),
        (b"/%20;~!", "/%20;~!"),
        (b"/a b\n\x00\x7f", "/a%20b%0A%00%7F"),
        (b"/\xc3\xa9\xff", "/%C3%A9%FF"),
        (b"/" + b"a" * 300, "/" + "a" * 199),
        (b"\n" * 300, "%0A" * 66 + "%0"),
    ],
)
def test_paths_are_made_fit_for_logs(raw: bytes, text: str) -> None:
    """No spaces, no control characters, nothing else than ASCII, and not longer than a line."""
    assert loggable_path(raw) == text


@given(st.binary(max_size=400))
def test_a_logged_path_is_printable_ascii(raw: bytes) -> None:
    """For any bytes."""
    text = loggable_path(raw)
    assert len(text) <= 200
    assert all("!" <= char <= "~" for char in text)


def raise_one() -> None:
    """Raise an exception that quotes something, for another reason that does."""
    try:
        raise KeyError(CANARY)
    except KeyError as error:
        raise ValueError(CANARY) from error


def test_an_exception_is_described_without_its_message() -> None:
    """Its type, and the functions and lines that it came through."""
    with pytest.raises(ValueError, match=CANARY) as caught:
        raise_one()
    described = describe_exception(caught.value)
    assert described["exception"] == "ValueError"
    assert described["where"].startswith("raise_one:")
    assert "test_an_exception_is_described_without_its_message:" in described["where"]
    assert CANARY not in str(described)
    assert describe_exception(ValueError()) == {"exception": "ValueError", "where": ""}


def test_events_are_for_people_and_for_machines(caplog: pytest.LogCaptureFixture) -> None:
    """A message that names its fields, and the fields as attributes of the record."""
    caplog.set_level(logging.INFO, "teesign_asgi")
    log_event(logging.INFO, "it happened", status=200, path="/a")
    log_event(logging.DEBUG, "not shown", status=200)
    (record,) = caplog.records
    assert record.getMessage() == "it happened status=200 path=/a"
    assert vars(record)["event_name"] == "it happened"
    assert vars(record)["fields"] == {"status": 200, "path": "/a"}
