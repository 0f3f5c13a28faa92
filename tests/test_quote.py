"""Quotes and event logs: recorded ones, built ones and broken ones."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import RECORDINGS

from teesign import MalformedError, compose_hash, parse_event_log, parse_quote, replay_event_log
from teesign.quote import DSTACK_EVENT_TYPE, Event, event_digest
from teesign.testing import fixed_quote

REPORT_DATA = bytes(range(64))
QUOTE = fixed_quote(REPORT_DATA).quote
HEADER, BODY, SIGNATURE = QUOTE[:48], QUOTE[48:632], QUOTE[632:]
EVENTS = parse_event_log(fixed_quote(REPORT_DATA).event_log)
COMPOSE_EVENT = next(event for event in EVENTS if event.event == "compose-hash")

recorded = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recorded evidence is not part of the repository")


def version_5(body_type: int, body: bytes) -> bytes:
    """Return a quote of version 5 with this body."""
    head = b"\5\0" + HEADER[2:] + body_type.to_bytes(2, "little") + len(body).to_bytes(4, "little")
    return head + body + SIGNATURE


def guest_agent_answer(name: str) -> dict[str, Any]:
    """Return a recorded answer of a dstack guest agent."""
    answer: dict[str, Any] = json.loads((RECORDINGS / "tdx" / name).read_bytes())
    return answer


@recorded
@pytest.mark.parametrize("name", ["dstack-getquote.json", "dstack-getquote-lite.json"])
def test_a_recorded_event_log_replays_to_the_registers_of_its_quote(name: str) -> None:
    """What dstack logged about the application is what RTMR3 was extended with."""
    answer = guest_agent_answer(name)
    quote = parse_quote(bytes.fromhex(answer["quote"]))
    assert replay_event_log(parse_event_log(answer["event_log"]))[3] == quote.rtmrs[3]
    assert quote.report_data.hex() == answer["report_data"]
    assert not quote.is_debug


@recorded
@pytest.mark.parametrize("name", ["dstack-getquote.json", "dstack-getquote-lite.json"])
def test_a_recorded_event_log_names_its_compose_file(name: str) -> None:
    """The application's id is by default the start of that hash, which shows that the right bytes were found."""
    events = parse_event_log(guest_agent_answer(name)["event_log"])
    app_id = next(event.event_payload for event in events if event.event == "app-id")
    assert compose_hash(events).hex().startswith(app_id)


@recorded
def test_one_changed_event_breaks_the_replay() -> None:
    """No event can be changed, left out or moved without the register showing it."""
    answer = guest_agent_answer("dstack-getquote.json")
    events = parse_event_log(answer["event_log"])
    rtmr3 = parse_quote(bytes.fromhex(answer["quote"])).rtmrs[3]
    places = [place for place, event in enumerate(events) if event.imr == 3]
    for place in places:
        changed = msgspec.structs.replace(events[place], digest="ff" + events[place].digest[2:])
        assert replay_event_log([*events[:place], changed, *events[place + 1 :]])[3] != rtmr3
        assert replay_event_log([*events[:place], *events[place + 1 :]])[3] != rtmr3
    first, second = places[:2]
    events[first], events[second] = events[second], events[first]
    assert replay_event_log(events)[3] != rtmr3


@recorded
def test_a_recorded_quote_of_intels_samples_parses() -> None:
    """Its certification data is the PCK certificate chain, and its parts make up the whole."""
    data = (RECORDINGS / "tdx" / "tdx_quote").read_bytes()
    quote = parse_quote(data)
    assert (quote.version, quote.attestation_key_type, quote.is_debug) == (4, 2, False)
    assert quote.qe_vendor_id.hex() == "939a7233f79c4ca9940a0db3957f0607"
    assert quote.certification_data_type == 5
    assert quote.certification_data.count(b"-----BEGIN CERTIFICATE-----") == 3
    length = len(quote.signature_data).to_bytes(4, "little")
    assert data.startswith(quote.signed_part + length + quote.signature_data)


@recorded
def test_a_truncated_recording_is_refused_or_lacks_padding_only() -> None:
    """Cut anywhere, a quote is refused unless only bytes after its signature data are gone."""
    data = (RECORDINGS / "tdx" / "tdx_quote").read_bytes()
    whole = parse_quote(data)
    end = len(whole.signed_part) + 4 + len(whole.signature_data)
    for length in range(end):
        with pytest.raises(MalformedError):
            parse_quote(data[:length])
    assert parse_quote(data[:end]) == whole


def test_fields_are_read_at_their_places() -> None:
    """The offsets of Intel's layout: each byte of a numbered body is found in the field that it belongs to."""
    body = bytes(n % 251 for n in range(584))
    quote = parse_quote(HEADER + body + SIGNATURE)
    assert quote.tee_tcb_svn == body[0:16]
    assert (quote.mr_seam, quote.mr_signer_seam, quote.seam_attributes) == (body[16:64], body[64:112], body[112:120])
    assert (quote.td_attributes, quote.xfam, quote.mr_td) == (body[120:128], body[128:136], body[136:184])
    assert (quote.mr_config_id, quote.mr_owner, quote.mr_owner_config) == (body[184:232], body[232:280], body[280:328])
    assert quote.rtmrs == (body[328:376], body[376:424], body[424:472], body[472:520])
    assert quote.report_data == body[520:584]
    assert quote.signed_part == HEADER + body


@pytest.mark.parametrize(
    ("body_type", "extra"), [pytest.param(2, b"", id="TDX 1.0"), pytest.param(3, b"\7" * 64, id="TDX 1.5")]
)
def test_version_5_quotes_parse(body_type: int, extra: bytes) -> None:
    """They state their body's type and length; the fields stay where they are, and the signature covers all of it."""
    data = version_5(body_type, BODY + extra)
    quote = parse_quote(data)
    assert (quote.version, quote.report_data, quote.is_debug) == (5, REPORT_DATA, True)
    assert quote.signed_part == data[: 48 + 6 + len(BODY + extra)]
    assert quote.signature_data == SIGNATURE[4:]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\3\0" + QUOTE[2:], id="version 3"),
        pytest.param(b"\6\0" + QUOTE[2:], id="version 6"),
        pytest.param(QUOTE[:4] + bytes(4) + QUOTE[8:], id="SGX"),
        pytest.param(version_5(1, bytes(384)), id="version 5, SGX body"),
        pytest.param(version_5(2, BODY + bytes(64)), id="version 5, type 2, length of 3"),
        pytest.param(version_5(3, BODY), id="version 5, type 3, length of 2"),
        pytest.param(version_5(4, BODY), id="version 5, unknown type"),
        pytest.param(HEADER + BODY + b"\xff\xff\xff\xff" + SIGNATURE[4:], id="signature data of 4 GiB"),
        pytest.param(HEADER + BODY + bytes(4), id="no signature data"),
        pytest.param(QUOTE.hex().encode(), id="in hex"),
    ],
)
def test_what_is_no_tdx_quote_is_refused(data: bytes) -> None:
    """The message says what is wrong; the code is always the same."""
    with pytest.raises(MalformedError, match="not a TDX quote") as caught:
        parse_quote(data)
    assert caught.value.code == "bad_quote"


@pytest.mark.parametrize("data", [QUOTE, version_5(3, BODY + bytes(64))], ids=["version 4", "version 5"])
def test_a_quote_truncated_anywhere_is_refused(data: bytes) -> None:
    """Every length is checked, down to the certification data inside the signature data."""
    for length in range(len(data)):
        with pytest.raises(MalformedError) as caught:
            parse_quote(data[:length])
        assert caught.value.code == "bad_quote"


def test_bytes_after_the_quote_are_ignored() -> None:
    """Some hosts hand out a buffer of fixed size, padded with zeros."""
    assert parse_quote(QUOTE + bytes(1000)) == parse_quote(QUOTE)


def test_certification_data_may_stand_alone() -> None:
    """Not every quote wraps it in the quoting enclave's part; then it is given as it is."""
    signature_data = bytes(128) + b"\5\0" + b"\3\0\0\0" + b"pem"
    quote = parse_quote(HEADER + BODY + len(signature_data).to_bytes(4, "little") + signature_data)
    assert (quote.certification_data_type, quote.certification_data) == (5, b"pem")


@given(st.binary(max_size=100) | st.binary(max_size=600).map(lambda tail: QUOTE[: 632 + len(tail) // 2] + tail))
@settings(max_examples=500, deadline=None)
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    """For any bytes, nothing but a MalformedError is raised."""
    with suppress(MalformedError):
        parse_quote(data)


def test_the_compose_hash_is_found() -> None:
    """In the log's text, in its bytes and in the decoded list."""
    log = fixed_quote(REPORT_DATA).event_log
    text = json.dumps(log)
    expected = bytes.fromhex(COMPOSE_EVENT.event_payload)
    for form in (log, text, text.encode()):
        assert compose_hash(parse_event_log(form)) == expected


def altered(**changes: Any) -> Event:
    """Return the compose-hash event with these values, and a digest that belongs to them unless it is given."""
    event = msgspec.structs.replace(COMPOSE_EVENT, **changes)
    return event if "digest" in changes else msgspec.structs.replace(event, digest=event_digest(event) or "")


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([], id="no events"),
        pytest.param([altered(event="app-id")], id="another event"),
        pytest.param([altered(imr=2)], id="another register"),
        pytest.param([COMPOSE_EVENT, COMPOSE_EVENT], id="two"),
        pytest.param([altered(digest=COMPOSE_EVENT.digest, event_payload="00" * 32)], id="swapped payload"),
        pytest.param([altered(digest=COMPOSE_EVENT.digest, event_type=1)], id="swapped type"),
        pytest.param([altered(digest="00" * 48)], id="swapped digest"),
        pytest.param([altered(event_payload="")], id="stripped payload"),
        pytest.param([altered(event_payload="00" * 31)], id="payload of 31 bytes"),
        pytest.param([altered(event_payload="zz" * 32, digest="")], id="payload that is not hex"),
        pytest.param([altered(event_type=-1)], id="negative type"),
        pytest.param([altered(event_type=2**32)], id="type of five bytes"),
    ],
)
def test_a_doubtful_compose_hash_is_refused(events: list[Event]) -> None:
    """There must be one such event, and its digest must belong to its payload."""
    with pytest.raises(MalformedError) as caught:
        compose_hash(events)
    assert caught.value.code == "bad_event_log"


def test_a_compose_hash_cannot_be_hidden_under_another_name() -> None:
    """Its digest stays what was extended, so the log replays; and a container may log an event of any name."""
    logged = altered(event_payload="00" * 32)
    with pytest.raises(MalformedError) as caught:
        compose_hash([msgspec.structs.replace(COMPOSE_EVENT, event="anything"), logged])
    assert caught.value.code == "bad_event_log"
    elsewhere = msgspec.structs.replace(COMPOSE_EVENT, event="anything", imr=2)
    assert compose_hash([elsewhere, logged]) == bytes(32)


@pytest.mark.parametrize(("start", "rest"), [("", "ab" * 31), ("ab:", "cd" * 28)])
def test_a_compose_hash_cannot_be_hidden_behind_a_colon(start: str, rest: str) -> None:
    """One digest has two readings where the payload holds a colon; the second must not make room for another event."""
    other_name = f"compose-hash:{start}"
    payload = (start + ":").encode().hex() + rest
    genuine = altered(event_payload=payload)
    hidden = altered(event=other_name, event_payload=rest)
    assert hidden.digest == genuine.digest
    with pytest.raises(MalformedError) as caught:
        compose_hash([hidden, altered(event_payload="00" * 32)])
    assert caught.value.code == "bad_event_log"
    with pytest.raises(MalformedError):
        compose_hash([hidden])


def test_a_name_that_is_no_text_is_an_event_all_the_same() -> None:
    """Some decoders of JSON let half a surrogate pair pass."""
    event = altered(event="\ud800")
    assert replay_event_log([event]) != replay_event_log([])


@pytest.mark.parametrize(
    "log",
    [
        pytest.param("", id="empty"),
        pytest.param("{}", id="object"),
        pytest.param("null", id="null"),
        pytest.param("[1]", id="list of numbers"),
        pytest.param('[{"imr":3,"event_type":1}]', id="no digest"),
        pytest.param('[{"imr":"3","event_type":1,"digest":""}]', id="register as text"),
        pytest.param('[{"imr":3,"event_type":1,"digest":"","event":null}]', id="name is null"),
        pytest.param(b'[{"imr":3,"event_type":1,"digest":"\xff"}]', id="invalid UTF-8"),
        pytest.param("\ud800", id="lone surrogate"),
        pytest.param("[" * 100_000, id="deep"),
        pytest.param([{"imr": 3}], id="decoded, no digest"),
        pytest.param([None], id="decoded, null"),
    ],
)
def test_what_is_no_event_log_is_refused(log: str | bytes | list[Any]) -> None:
    """Text, bytes and decoded lists are held to the same form."""
    with pytest.raises(MalformedError) as caught:
        parse_event_log(log)
    assert caught.value.code == "bad_event_log"


def test_an_empty_log_replays_to_zeros() -> None:
    """The registers start at zero."""
    assert replay_event_log([]) == (bytes(48),) * 4


def test_a_stripped_log_replays_like_the_whole_one() -> None:
    """Recent agents leave out the digests that follow from name and payload; these still prove the same."""
    stripped = [msgspec.structs.replace(event, digest="") for event in EVENTS]
    assert replay_event_log(stripped) == replay_event_log(EVENTS)
    assert compose_hash(stripped) == compose_hash(EVENTS)


def test_a_payload_changed_in_a_stripped_log_breaks_the_replay() -> None:
    """Without a digest of its own, an event is tied to the register by its payload."""
    stripped = [msgspec.structs.replace(event, digest="") for event in EVENTS]
    place = EVENTS.index(COMPOSE_EVENT)
    stripped[place] = msgspec.structs.replace(stripped[place], event_payload="00" * 32)
    assert replay_event_log(stripped)[3] != replay_event_log(EVENTS)[3]


def test_short_digests_are_padded() -> None:
    """Firmware logs digests of other hashes, which extend a register as 48 bytes with zeros at the end."""
    short, padded = Event(1, 0, "ab" * 20), Event(1, 0, "ab" * 20 + "00" * 28)
    assert replay_event_log([short]) == replay_event_log([padded])


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(Event(-1, 0, "00" * 48), id="register -1"),
        pytest.param(Event(4, 0, "00" * 48), id="register 4"),
        pytest.param(Event(0, 0, "00" * 49), id="49 bytes"),
        pytest.param(Event(0, 0, "zz"), id="not hex"),
        pytest.param(Event(0, 0, "0"), id="half a byte"),
        pytest.param(Event(0, 0, ""), id="no digest, and none that follows"),
        pytest.param(Event(3, DSTACK_EVENT_TYPE, "", "app-id", "zz"), id="no digest, and a payload that is not hex"),
    ],
)
def test_what_cannot_extend_a_register_is_refused(event: Event) -> None:
    """An event is never skipped: a log that holds one that means nothing replays to nothing."""
    with pytest.raises(MalformedError) as caught:
        replay_event_log([event])
    assert caught.value.code == "bad_event_log"
