"""What stands in for hardware in development, and for the outside world in tests."""

from __future__ import annotations

import asyncio
import base64

import pytest

from teesign import UsageError, compose_hash, parse_event_log, parse_quote, replay_event_log
from teesign.sources.simulated import SimulatedGpus, SimulatedQuotes, simulated_quote
from teesign.testing import ManualClock, counting_random, fixed_evidence, fixed_pair, fixed_quote

REPORT_DATA = bytes(range(64))
NONCE = b"\7" * 32


def test_a_simulated_quote_holds_the_report_data_and_says_that_it_is_no_proof() -> None:
    """It parses as a real one does, runs in debug mode, and is marked; its signature is zeros."""
    simulated = asyncio.run(SimulatedQuotes().quote(REPORT_DATA))
    quote = parse_quote(simulated.quote)
    assert (quote.version, quote.report_data) == (4, REPORT_DATA)
    assert quote.is_debug
    assert simulated.simulated
    assert not any(quote.signature_data[:128])


def test_a_simulated_event_log_replays_to_its_quote() -> None:
    """Programs that read reports can be tried on it: RTMR3 and the compose-hash agree with what the agent says."""
    quotes = SimulatedQuotes()
    simulated, info = asyncio.run(quotes.quote(REPORT_DATA)), asyncio.run(quotes.info())
    events = parse_event_log(simulated.event_log)
    assert replay_event_log(events) == parse_quote(simulated.quote).rtmrs
    assert compose_hash(events).hex() == info["compose_hash"] == info["tcb_info"]["compose_hash"]


def test_simulated_evidence_holds_the_nonce_where_an_spdm_report_does() -> None:
    """The request, whose nonce starts at its fifth byte, is the start of the evidence."""
    gpus = SimulatedGpus()
    evidence = asyncio.run(gpus.collect(NONCE))
    asyncio.run(gpus.aclose())
    (item,) = evidence.evidence
    report = base64.b64decode(item["evidence"])
    assert (report[:2], report[4:36], report[37:39]) == (b"\x11\xe0", NONCE, b"\x11\x60")
    assert base64.b64decode(item["certificate"]).startswith(b"-----BEGIN CERTIFICATE-----")
    assert (evidence.arch, evidence.simulated) == ("HOPPER", True)


@pytest.mark.parametrize("length", [0, 63, 65])
def test_report_data_of_another_length_is_refused(length: int) -> None:
    """A quote has room for 64 bytes, and for no others."""
    with pytest.raises(UsageError) as caught:
        simulated_quote(bytes(length))
    assert caught.value.code == "bad_report_data"


def test_the_fakes_for_tests_are_the_simulated_sources() -> None:
    """Whoever embeds teesign can test without an event loop."""
    assert fixed_quote(REPORT_DATA) == asyncio.run(SimulatedQuotes().quote(REPORT_DATA))
    assert fixed_evidence(NONCE) == asyncio.run(SimulatedGpus().collect(NONCE))


def test_the_fixed_pair_is_the_same_every_time() -> None:
    """Expected values can be written down in a test."""
    assert repr(fixed_pair()) == repr(fixed_pair())
    assert fixed_pair().identity("ecdsa").address == "0x6370eF2f4Db3611D657b90667De398a2Cc2a370C"


def test_a_manual_clock_stands_still_until_it_is_moved() -> None:
    """Time in tests is a number."""
    clock = ManualClock(now=5)
    assert (clock(), clock()) == (5, 5)
    clock.advance(0.5)
    assert clock() == pytest.approx(5.5)


def test_counting_random_counts() -> None:
    """Each source starts at one, and gives as many bytes as it is asked for."""
    random = counting_random()
    assert (random(2), random(4), counting_random()(1)) == (b"\0\1", b"\0\0\0\2", b"\1")
