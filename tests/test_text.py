"""The text that is signed: how it is made, what cannot be part of it, and how it is taken apart."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teesign import UsageError, VerificationError, signed_text
from teesign.text import TextVersion, parse_signed_text

DIGEST, OTHER = "ab" * 32, "cd" * 32
NO_MODEL = 'Text version "v2" names the model: pass its name as `model`.'
NO_UTF8 = "The model's name cannot be encoded as UTF-8."


@pytest.mark.parametrize(
    ("version", "model", "expected"),
    [
        ("v1", "", "aa:bb"),
        ("v1", "some/model", "aa:bb"),
        ("v2", "some/model", "some/model:aa:bb"),
        ("v2", "with:colon", "with:colon:aa:bb"),
    ],
)
def test_the_signed_text(version: TextVersion, model: str, expected: str) -> None:
    """The model's name is part of version 2 only."""
    assert signed_text("aa", "bb", version=version, model=model) == expected


def test_the_signed_text_is_the_first_form_by_default() -> None:
    """Which needs no name."""
    assert signed_text("a", "b") == "a:b"


@pytest.mark.parametrize(
    ("version", "model", "code", "message"),
    [
        ("v2", "", "bad_model", NO_MODEL),
        ("v2", "\ud800", "bad_model", NO_UTF8),
        ("v3", "m", "bad_text_version", 'There is no signed text of version "v3"; there are v1 and v2.'),
        ("", "", "bad_text_version", 'There is no signed text of version ""; there are v1 and v2.'),
    ],
    ids=["no name", "half a character", "version 3", "no version"],
)
def test_a_text_that_an_exchange_would_refuse_is_not_made(version: Any, model: str, code: str, message: str) -> None:
    """A form that does not exist, or a name that none is: with the codes that an exchange has for them."""
    with pytest.raises(UsageError) as caught:
        signed_text("a", "b", version=version, model=model)
    assert (caught.value.code, str(caught.value)) == (code, message)


@given(model=st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_text_comes_apart_into_what_it_was_made_of(model: str) -> None:
    """Whatever the model is called, colons included."""
    assert parse_signed_text(signed_text(DIGEST, OTHER)) == (None, DIGEST, OTHER)
    assert parse_signed_text(signed_text(DIGEST, OTHER, version="v2", model=model)) == (model, DIGEST, OTHER)


def test_an_empty_name_is_none() -> None:
    """No server could have been without one."""
    assert parse_signed_text(f":{DIGEST}:{OTHER}") == (None, DIGEST, OTHER)


@pytest.mark.parametrize(
    "text",
    ["", "x", DIGEST, f"{DIGEST}:", f":{DIGEST}", f"{DIGEST}:{OTHER}0", f"{DIGEST[1:]}:{OTHER}", f"{DIGEST}:{OTHER}:x"],
)
def test_what_does_not_end_in_two_digests_is_no_signed_text(text: str) -> None:
    """Their length tells; whether they are the right ones is for others to say."""
    with pytest.raises(VerificationError) as caught:
        parse_signed_text(text)
    assert (caught.value.code, str(caught.value)) == (
        "bad_text",
        "The signed text does not end in two SHA-256 digests.",
    )
