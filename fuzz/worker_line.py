"""For any line of a GPU worker, a message of the protocol is read or none; an error shows names of classes only."""

from __future__ import annotations

import re

from teesign import VerificationError
from teesign.sources.evidence_protocol import PROTOCOL, Answer, Greeting, class_names, decoded, decoded_base64
from teesign.verify.gpu import parse_spdm_report

SEEDS = [
    b'{"protocol":1}',
    b'{"protocol":1,"error":"ImportError"}',
    b'{"id":1,"nonce":"07","evidence":[{"certificate":"YQ==","evidence":"EeAB/w==","arch":"HOPPER"}]}',
    b'{"id":1,"nonce":"07","error":"Exception from a.NVMLError: secret","simulated":true}',
]


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for this line."""
    greeting, answer = decoded(data, Greeting), decoded(data, Answer)
    assert greeting is None or isinstance(greeting.protocol, int)
    assert PROTOCOL == 1
    for message in (greeting, answer):
        if message is not None and message.error is not None:
            assert re.fullmatch(r"[\w. ]{1,900}", class_names(message.error), re.ASCII)
    for item in () if answer is None else answer.evidence:
        assert item.arch
        assert item.certificate
        report = decoded_base64(item.evidence)
        if report is not None:
            try:
                assert len(parse_spdm_report(report).nonce) == 32
            except VerificationError as error:
                assert error.code == "gpu_bad_report"
