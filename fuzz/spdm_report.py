"""For any bytes, an SPDM report is read whose parts lie within it, or VerificationError `gpu_bad_report` is raised."""

from __future__ import annotations

from teesign import VerificationError
from teesign.verify.gpu import parse_spdm_report

REQUEST = b"\x11\xe0\x01\xff" + bytes(range(32)) + b"\0"
SEEDS = [
    REQUEST + b"\x11\x60\0\0\1" + b"\2\0\0" + b"ab" + bytes(32) + b"\1\0" + b"o" + bytes(96),
    REQUEST + b"\x11\x60\0\0\0" + b"\0\0\0" + bytes(32) + b"\0\0" + bytes(96),
]


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for these bytes."""
    try:
        report = parse_spdm_report(data)
    except VerificationError as error:
        assert error.code == "gpu_bad_report"
        return
    assert report.signed_part + report.signature == data
    assert len(report.nonce) == 32
    assert report.measurements in report.signed_part
