"""JSON from a stranger does not end the process that reads it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import peak_below

from teesign.documents import is_too_deep

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('[]{}"\\ab', max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{}"\\', max_size=5), inner, max_size=3),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_brackets_in_text_do_not_count(value: Any, as_text: bool) -> None:  # noqa: FBT001 - drawn, not chosen
    """For any document of some levels, whatever its strings hold."""
    document = json.dumps([value] * 60)
    assert not is_too_deep(document if as_text else document.encode())


@pytest.mark.parametrize("pair", ["[]", ('{"a":', "}")])
def test_a_hundred_levels_are_enough(pair: tuple[str, str]) -> None:
    """And one more is too much."""
    start, end = pair
    assert not is_too_deep(start * 100 + "1" + end * 100)
    assert is_too_deep(start * 101 + "1" + end * 101)
    assert not is_too_deep((start + "1" + end) * 500)


@pytest.mark.parametrize("unit", ['\\\\"', '"', "\\\\", "[", '["', 'x"'])
def test_no_text_takes_long(unit: str) -> None:
    """A megabyte of whatever it is takes some seconds at most, on a slow machine; it used to take weeks."""
    start = time.process_time()
    is_too_deep('"' + unit * 500_000 + "[" * 100)
    assert time.process_time() - start < 30


@pytest.mark.parametrize("text", [b"\\n", b'\\"', b"\\\\", b"ab"])
def test_no_text_takes_much_memory(text: bytes) -> None:
    """Two megabytes of it are read where they are; with escapes it used to take sixty times as much."""
    document = b"[]," * 201 + b'"' + text * 1_000_000 + b'"'
    with peak_below(3_000_000):
        is_too_deep(document)


CRASHING = """
import sys
sys.setrecursionlimit(1_000_000)  # as libraries for Ethereum do, somewhat

from teesign.client import Answer, parse_collateral
from teesign.client.collateral import _signed
from teesign.client.flow import decode_object
from teesign.identifiers import read_id
from teesign.quote import parse_event_log
from teesign.sources.dstack import _decoded_events
from teesign.sources.evidence_protocol import Answer as WorkerAnswer, decoded
from teesign.verify.bundle import decode_bundle
from teesign.verify.policy import parse_policy
from teesign.verify.report import verify_report
from teesign.testing import fixed_evidence, fixed_pair, fixed_quote
from teesign import Challenge, TeesignError
from teesign.verify.policy import UnsafeSimulatedPolicy

deep = "[" * 500_000 + "]" * 500_000
challenge = Challenge.new(fixed_pair().identity("ecdsa"), nonce=bytes(32))
quote, evidence = fixed_quote(challenge.report_data), fixed_evidence(bytes(32))
report = challenge.answer(model="m", quote=quote, gpu_evidence=evidence, info={})
report["nvidia_payload"] = '{"evidence_list": [{"x": ' + deep + "}]}"
some = ('{"a":' + deep + "}").encode()

assert read_id(some) is None
assert decoded(some, WorkerAnswer) is None
assert _decoded_events('[{"a":' + deep + "}]") is None
for attempt in (
    lambda: decode_object("x", ('{"a":' + deep + "}").encode()),
    lambda: decode_bundle(('{"a":' + deep + "}").encode()),
    lambda: verify_report(report, bytes(32), UnsafeSimulatedPolicy(), collateral=None, now=0),
    lambda: parse_event_log('[{"a":' + deep + "}]"),
    lambda: parse_collateral(some),
    lambda: parse_policy(some),
    lambda: _signed(Answer(200, {}, some), "tcbInfo"),
):
    try:
        attempt()
    except TeesignError as error:
        print(error.code)
"""


CODES = ["bad_answer", "bad_bundle", "gpu_bad_evidence", "bad_event_log", "bad_collateral", "bad_policy", "bad_answer"]


def test_a_raised_recursion_limit_does_no_harm() -> None:
    """What a server, a report's evidence or a file says is refused in time, though no decoder would."""
    run = subprocess.run([sys.executable, "-c", CRASHING], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.split()) == (0, CODES)
