"""teesign: proof of what a language model inside a trusted execution environment was asked and what it answered.

This package is the core. It does no I/O: a gateway feeds an `Exchange` with the bytes it relays, keeps what comes out
in a `SignatureCache` or a store of its own, and answers attestation challenges with a `Challenge`. The proxy that does
all of that by itself is `teesign_asgi`.
"""

from __future__ import annotations

from .attestation import Challenge, GpuEvidence, Quote, report_data
from .cache import SignatureCache, SignatureStore
from .errors import FetchError, MalformedError, SourceError, TeesignError, UsageError, VerificationError
from .exchange import Exchange, SignedExchange
from .quote import TdxQuote, compose_hash, parse_event_log, parse_quote, replay_event_log
from .signing import (
    EcdsaSigner,
    Ed25519Signer,
    Identity,
    SignedChat,
    SigningAlgorithm,
    SigningPair,
    recover_ecdsa_address,
    verify_ecdsa,
    verify_ed25519,
)
from .sse import EventStreamScanner
from .text import TextVersion, is_target, parse_signed_text, signed_text
from .verify import (
    VerifiedAnswer,
    VerifiedExchange,
    verify_answer,
    verify_digest,
    verify_exchange,
    verify_report_data,
)

__version__ = "0.1.0"

__all__ = [
    "Challenge",
    "EcdsaSigner",
    "Ed25519Signer",
    "EventStreamScanner",
    "Exchange",
    "FetchError",
    "GpuEvidence",
    "Identity",
    "MalformedError",
    "Quote",
    "SignatureCache",
    "SignatureStore",
    "SignedChat",
    "SignedExchange",
    "SigningAlgorithm",
    "SigningPair",
    "SourceError",
    "TdxQuote",
    "TeesignError",
    "TextVersion",
    "UsageError",
    "VerificationError",
    "VerifiedAnswer",
    "VerifiedExchange",
    "__version__",
    "compose_hash",
    "is_target",
    "parse_event_log",
    "parse_quote",
    "parse_signed_text",
    "recover_ecdsa_address",
    "replay_event_log",
    "report_data",
    "signed_text",
    "verify_answer",
    "verify_digest",
    "verify_ecdsa",
    "verify_ed25519",
    "verify_exchange",
    "verify_report_data",
]
