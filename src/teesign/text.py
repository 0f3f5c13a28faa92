"""The signed text: what binds a request to its response, and how it is built and read."""

from __future__ import annotations

import re
from typing import Final, Literal

from .errors import UsageError, VerificationError

__all__ = ["TextVersion", "check_text_version", "is_target", "parse_signed_text", "signed_target", "signed_text"]

TextVersion = Literal["v1", "v2"]
"""The forms of the signed text, see `signed_text`."""

_TARGET: Final = re.compile(rb"/[\x21-\x7e]*+")


def signed_text(request_sha256: str, response_sha256: str, *, version: TextVersion = "v1", model: str = "") -> str:
    """Return the text that is signed for one request and its response.

    Args:
        request_sha256: 64 lowercase hex digits.
        response_sha256: 64 lowercase hex digits.
        version: "v1" is `{request}:{response}`, 129 characters; "v2" puts the model's name in front.
        model: the name for "v2"; not used by "v1".

    Raises:
        UsageError: as from `check_text_version`.
    """
    check_text_version(version, model)
    if version == "v1":
        return f"{request_sha256}:{response_sha256}"
    return f"{model}:{request_sha256}:{response_sha256}"


def is_target(data: bytes) -> bool:
    """Tell whether bytes are a target as it stands in a request line (RFC 3986, section 2), or could be one.

    The text does not say whether a body or a target was hashed. So nothing else may be signed as a target, though some
    servers let it through, and none of these as a body: else the answer to one could pass for the answer to the other.

    Args:
        data: a whole target, or a body.
    """
    return _TARGET.fullmatch(data) is not None


def signed_target(target: bytes) -> bytes:
    """Return what is hashed of a request without a body: its target, where a query of nothing is none.

    Most servers do not tell `/x?` from `/x`, so that no gateway has to, and no verifier may.

    Args:
        target: the raw request target, `path` or `path?query`.
    """
    path, _, query = target.partition(b"?")
    return target if query else path


def check_text_version(version: str, model: str) -> None:
    """Refuse what could not be signed, or not be verified.

    Raises:
        UsageError: `bad_text_version` if there is no such form; `bad_model` if version "v2" is to name a model, and the
            name is empty or cannot be encoded as UTF-8.
    """
    if version == "v1":
        return
    if version != "v2":
        raise UsageError(
            f'There is no signed text of version "{version}"; there are v1 and v2.', code="bad_text_version"
        )
    if not model:
        raise UsageError('Text version "v2" names the model: pass its name as `model`.', code="bad_model")
    try:
        model.encode()
    except UnicodeEncodeError as error:
        raise UsageError("The model's name cannot be encoded as UTF-8.", code="bad_model") from error


def parse_signed_text(text: str) -> tuple[str | None, str, str]:
    """Return the parts of a signed text: the model's name (None where it names none), and both digests in hex.

    Raises:
        VerificationError: `bad_text` if it does not end in two digests.
    """
    *model, request_sha256, response_sha256 = text.rsplit(":", 2) if ":" in text else ("", "")
    if len(request_sha256) != 64 or len(response_sha256) != 64:
        raise VerificationError("The signed text does not end in two SHA-256 digests.", code="bad_text")
    # An empty name is none: servers have to have one.
    return "".join(model) or None, request_sha256, response_sha256
