"""What a verifier accepts: a policy, which says so itself when it pins nothing."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import msgspec

from ..documents import UNDECODABLE, decode_unambiguous
from ..errors import UsageError
from ..hexadecimal import unhex

__all__ = ["Policy", "UnsafeSimulatedPolicy", "parse_policy", "policy_members"]

_DIGEST_LENGTHS: Final = {"mr_td": 48, "rtmr0": 48, "rtmr1": 48, "rtmr2": 48, "rtmr3": 48, "compose_hash": 32}
_LISTS: Final = (tuple, list, set, frozenset)


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a report must prove. Each pin lists the values that are good, in hex; an empty one pins nothing.

    Attributes:
        mr_td: measurements of the domain's initial contents, 48 bytes each.
        rtmr0: values of the first run-time register, 48 bytes each: the virtual hardware.
        rtmr1: of the second: the kernel.
        rtmr2: of the third: its command line and initial file system.
        rtmr3: of the fourth: what dstack started.
        compose_hash: SHA-256 of the application's compose file, 32 bytes each.
        tcb_statuses: Intel's words for the state of the machine that are good enough.
        require_gpus: whether a report without GPU evidence is refused.
        require_tls_key: whether the report must bind the TLS key of the connection that it came over.

    Raises:
        UsageError: `bad_policy` if a field is of another type, which one text instead of several is too, or a pin is
            not hex of its length.
    """

    mr_td: tuple[str, ...] = ()
    rtmr0: tuple[str, ...] = ()
    rtmr1: tuple[str, ...] = ()
    rtmr2: tuple[str, ...] = ()
    rtmr3: tuple[str, ...] = ()
    compose_hash: tuple[str, ...] = ()
    tcb_statuses: tuple[str, ...] = ("UpToDate",)
    require_gpus: bool = True
    require_tls_key: bool = False

    def __post_init__(self) -> None:
        for name, length in _DIGEST_LENGTHS.items():
            if any(unhex(pin, length) is None for pin in _texts(name, self)):
                raise _wrong(name, f"list values of {length} bytes in hex only")
        if not all(status.isascii() for status in _texts("tcb_statuses", self)):
            raise _wrong("tcb_statuses", "list words of Intel's only, like UpToDate")
        for name in ("require_gpus", "require_tls_key"):
            # None and 0 would ask less, and any text more, than whoever wrote them may have meant.
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, "be True or False")

    @property
    def accepts_simulated(self) -> bool:
        """Whether evidence that no hardware stands behind is accepted."""
        return False

    @property
    def pinned(self) -> tuple[str, ...]:
        """The names of what this policy pins; empty if any software would do."""
        return tuple(name for name in _DIGEST_LENGTHS if getattr(self, name))

    def check_pin(self, name: str, value: bytes) -> bool:
        """Tell whether a measured value is one of those pinned under this name, or nothing is."""
        pins = getattr(self, name)
        return not pins or value in [unhex(pin) for pin in pins]


def _texts(name: str, policy: Policy) -> Collection[str]:
    """Return the texts that a field lists."""
    value = getattr(policy, name)
    # In one text there are others: "OutOfDate" is in "OutOfDateConfigurationNeeded". What is read once is empty then.
    if not isinstance(value, _LISTS) or not all(isinstance(text, str) for text in value):
        raise _wrong(name, 'be a tuple of texts, like ("…",)')
    return value


def _wrong(name: str, must: str) -> UsageError:
    return UsageError(f"The policy's {name} must {must}.", code="bad_policy")


class UnsafeSimulatedPolicy(Policy, frozen=True, forbid_unknown_fields=True):
    """Accept reports that say they are simulated: for development. They prove nothing about any machine.

    A report that does not say so is checked as strictly as under a `Policy`.
    """

    @property
    def accepts_simulated(self) -> bool:
        """Whether evidence that no hardware stands behind is accepted: yes."""
        return True


_KINDS: Final = {"Policy": Policy, "UnsafeSimulatedPolicy": UnsafeSimulatedPolicy}


def parse_policy(text: str | bytes) -> Policy:
    """Read a policy from JSON: an object with the attributes of `Policy`, and in `policy` the name of its class.

    Args:
        text: the JSON; without a member `policy` it is a `Policy`.

    Raises:
        UsageError: `bad_policy` if it is something else, has a member that no policy has, or one twice.
    """
    try:
        fields = decode_unambiguous(text)
        kind = _KINDS[fields.pop("policy", "Policy")]
        return msgspec.convert(fields, kind)
    except (*UNDECODABLE, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            "The policy is not a JSON object that has known members, each once, and a `policy` that is one of "
            f"{', '.join(_KINDS)}.",
            code="bad_policy",
        ) from error


def policy_members(policy: Policy) -> dict[str, Any]:
    """Return a policy as the object, ready to be encoded as JSON, that `parse_policy` reads; every member is there.

    Raises:
        UsageError: `bad_policy` if it is of a class that has no name in JSON.
    """
    kind = next((name for name, kind in _KINDS.items() if type(policy) is kind), None)
    if kind is None:
        raise UsageError("A policy of another class cannot be written as JSON.", code="bad_policy")
    members: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(policy))
    return {"policy": kind, **members}
