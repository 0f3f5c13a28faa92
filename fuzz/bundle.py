"""For any bytes, `decode_bundle` refuses them with an error of ours, or returns what is written and read as it is."""

from __future__ import annotations

from teesign import MalformedError, VerificationError
from teesign.verify.bundle import EvidenceBundle, decode_bundle, encode_bundle
from teesign.verify.policy import Policy

BUNDLE = EvidenceBundle(
    1, Policy(), bytes(32), None, {"info": [1.5, "\u65e5", None]}, {"tcb_info": ""}, b"in", b"out", {}
)
SEEDS = [encode_bundle(BUNDLE)]


def check(data: bytes) -> None:
    """Fail if the invariant does not hold for these bytes."""
    try:
        bundle = decode_bundle(data)
    except MalformedError as error:
        assert error.code in ("bad_bundle", "unknown_bundle_format")
    except VerificationError as error:
        assert error.code == "bundle_changed"
    else:
        assert decode_bundle(encode_bundle(bundle)) == bundle
