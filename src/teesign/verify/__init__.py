"""Checks for the far end: each raises a `VerificationError`, or returns what it has verified.

What is here needs nothing but the core. `teesign.verify.report` checks attestation reports, with the extra `verify`.
"""

from __future__ import annotations

from .answer import VerifiedAnswer, verify_answer
from .exchange import VerifiedExchange, verify_digest, verify_exchange, verify_report_data

__all__ = [
    "VerifiedAnswer",
    "VerifiedExchange",
    "verify_answer",
    "verify_digest",
    "verify_exchange",
    "verify_report_data",
]
