"""What it means when a check fails, for people: what may have happened, and what to do."""

from __future__ import annotations

from typing import Final

__all__ = ["meaning_of"]

_ALTERED: Final = "The report was altered, or its server is broken: its parts do not belong together."
_NO_REPORT: Final = "This is not what servers of this family answer with. Does the address lead to one?"
_OTHER_SOFTWARE: Final = (
    "The machine is genuine, but runs other software than the policy pins: another release, or somebody else's code."
)
_NOT_NVIDIA: Final = "The GPUs' reports were altered, or were not made by NVIDIA's hardware."
_FORGED: Final = "Somebody without the attested key made or changed this signature, or the text that it is of."
_NOT_SIGNED: Final = "There is no proof of this answer: take it for one from anybody."
_EDITED: Final = "The file is not the one that was written. Use the original."

_BY_CODE: Final = {
    # report and key
    "bad_report": _NO_REPORT,
    "simulated": (
        "The server runs in development mode. Nothing but its own word stands behind its answers, and anybody can "
        'pretend to be it. To try it all the same, give a --policy file with {"policy": "UnsafeSimulatedPolicy"}.'
    ),
    "algorithm_mismatch": "The question for one of the two keys was changed on its way into one for the other.",
    "bad_address": _ALTERED,
    "public_key_mismatch": _ALTERED,
    "nonce_mismatch": "The report was not made for this question: an old one is replayed, or another's is passed on.",
    # quote and its signature
    "bad_quote": _ALTERED,
    "debug_mode": "Whoever runs the host can read prompts and keys out of this machine. It must not be trusted.",
    "no_collateral": "Intel's word about the machine is missing: give it with --collateral, or let it be fetched.",
    "quote_without_certificate": "The quote does not say which machine made it, so that nobody vouches for it.",
    "quote_not_verified": (
        "No genuine machine made this quote as it is, its host can look into the machine, or the collateral belongs to "
        "another kind of machine."
    ),
    "collateral_signer": (
        "Somebody has made up Intel's word about the machine, with a key that Intel has certified for something else: "
        "that of a machine, for instance, of which its owner has got hold."
    ),
    "collateral_expired": (
        "Intel's word about the machine is out of date, or not valid yet: check the clock here, and leave --collateral "
        "out, to fetch it anew."
    ),
    "certificate_revoked": "Intel has withdrawn its word for this machine. It must not be trusted.",
    "tcb_unknown": "The machine lacks security updates that Intel insists on. Its operator has to install them.",
    "tcb_not_accepted": (
        "Intel knows weaknesses of this machine as it is. Its operator has to install updates; a policy can accept "
        "any state but Revoked all the same, under `tcb_statuses`."
    ),
    # report data
    "report_data_mismatch": (
        "The machine may be genuine, but did not vouch for this key, this question and this connection: somebody "
        "passes off another machine's quote."
    ),
    "tls_key_missing": "The policy wants the connection's TLS key in the report: that takes https.",
    "tls_key_not_bound": (
        "The policy wants the connection's TLS key in the report, and the server binds none: its operator has to set "
        "TLS_CERT_PATH. Without it nobody can tell whether the connection ends in the attested machine."
    ),
    "tls_key_mismatch": (
        "The connection ends elsewhere than in the attested machine: somebody can read along. It may be a proxy in "
        "front that ends TLS, or a renewed certificate of which the server does not know: its operator has to let TLS "
        "end in the machine, with the certificate at TLS_CERT_PATH."
    ),
    # event log and software
    "bad_event_log": "What was started in the machine cannot be told from this event log.",
    "event_log_mismatch": "The event log is not that of this machine: an event was changed, added or left out.",
    "event_payload_mismatch": "An event was given another name or content than was measured.",
    # GPUs
    "gpu_missing": 'No GPU was attested. For a machine that has none, give a policy with {"require_gpus": false}.',
    "gpu_bad_evidence": _NOT_NVIDIA,
    "gpu_bad_report": _NOT_NVIDIA,
    "gpu_chain_invalid": _NOT_NVIDIA,
    "gpu_certificate_expired": (
        "A GPU's certificate is out of date, or not valid yet: check the clock here. If that is right, the GPU proves "
        "nothing."
    ),
    "gpu_untrusted_root": _NOT_NVIDIA,
    "gpu_signature_mismatch": _NOT_NVIDIA,
    "gpu_nonce_mismatch": "The GPUs' reports were not made for this question: old ones are replayed, or another's.",
    "gpu_duplicate": "One GPU is passed off as several.",
    # the answer
    "signature_missing": _NOT_SIGNED,
    "answer_incomplete": _NOT_SIGNED,
    "request_incomplete": "The server cannot have seen the whole request when it answered: ask again.",
    "request_changed": "A redirect, which nobody signs, led to another question than the one that was asked.",
    "encoded_answer": "A server in between has changed the answer's bytes.",
    "protocol_switched": "The answer is to go on in a protocol in which nothing is signed, such as that of websockets.",
    "bad_signature_answer": _NO_REPORT,
    "bad_text": _NO_REPORT,
    "request_hash_mismatch": "The machine was asked something else: the request was changed on its way.",
    "response_hash_mismatch": "The machine answered something else: the answer was changed on its way.",
    "stream_hash_mismatch": "The machine answered something else: the answer was changed on its way.",
    "identity_mismatch": "Another key than the attested one signed the answer: another machine gave it, or nobody's.",
    "bad_signature": _FORGED,
    "ecdsa_unrecoverable": _FORGED,
    "ecdsa_mismatch": _FORGED,
    "ed25519_mismatch": _FORGED,
    # bundles
    "not_a_bundle": "This is another file than one that --bundle has written, or not all of one. Give the right one.",
    "bad_bundle": _EDITED,
    "unknown_bundle_format": "The file is no bundle, or was written by another release: look for a newer teesign.",
    "bundle_changed": _EDITED,
    "attestations_differ": _ALTERED,
    "bad_collateral": _EDITED,
    "unsafe_policy": (
        "Whoever made the bundle accepted a server in development mode, which anybody can run. To do so too, give a "
        '--policy file with {"policy": "UnsafeSimulatedPolicy"}.'
    ),
    # what could not be had
    "unreachable": (
        "Nothing is known: the server that was asked gave no answer. Is its address right, and does it run? If the "
        "environment names a proxy (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY), does that?"
    ),
    "untrusted": (
        "Nothing is known: the certificate of the server that was asked is not believed here. Are its address and this "
        "machine's clock right? If it is of an authority of your own, name a file with that authority's certificate in "
        "the variable SSL_CERT_FILE. It takes the place of the public ones."
    ),
    "timeout": "Nothing is known: the server that was asked may be busy. Try again, or give it more with --timeout.",
    "no_connection": "The program had no connection left to ask with: its pool is too small.",
    "refused": "The server wants a token, or another one: in a file for --token-file, or in the variable TOKEN.",
    "bad_status": "The server that was asked may be in trouble: try again. Or its address leads to something else.",
    "bad_answer": _NO_REPORT,
    "too_large": _NO_REPORT,
    "bad_url": "Give an address like https://example.org, here or for --pccs.",
    "model_unknown": "Name one with --model.",
    **dict.fromkeys(
        (f"{name}_mismatch" for name in ("mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "compose_hash")), _OTHER_SOFTWARE
    ),
}


def meaning_of(code: str) -> str:
    """Return what the failure with this code means; an empty text for one that is not known."""
    return _BY_CODE.get(code, "")
