"""How `teesign verify` shows what it finds: step by step for people, or at the end as one JSON object.

A verdict starts with nothing verified, and only `verified` changes that: whatever goes wrong on the way leaves one that
says no.
"""

from __future__ import annotations

import json
import ssl
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import click

from teesign.errors import FetchError, TeesignError, VerificationError
from teesign.verify.answer import ANSWER_STEPS
from teesign.verify.bundle import VerifiedBundle
from teesign.verify.policy import policy_members
from teesign.verify.report import STEPS
from teesign.verify.steps import Passed

from .meanings import meaning_of

__all__ = ["Verdict"]

_STEPS: Final = (*STEPS, *ANSWER_STEPS)
_INDENT: Final = " " * 22
_WIDTH: Final = 110
_MARKS: Final = {"passed": "✓", "skipped": "-", "failed": "✗", "not reached": "-"}
_PLAIN_MARKS: Final = _MARKS | {"passed": "+", "failed": "x"}
_COLOURS: Final = {"passed": "green", "skipped": "yellow", "failed": "red", "not reached": "yellow"}
_SIMULATED: Final = """\
THIS PROVES NOTHING ABOUT ANY MACHINE. The report is simulated: no hardware stands behind it, only the word of whoever
runs the server, and the policy accepts that. Anybody can pass every check above."""

Kind = TypeVar("Kind", bound=BaseException)


class Verdict:
    """What is known so far, and the showing of it.

    Args:
        subject: what is verified: an address or a file.
        as_json: whether to show it at the end, for machines.
    """

    def __init__(self, subject: str, *, as_json: bool) -> None:
        self._as_json: Final = as_json
        self._marks: Final = _MARKS if _can_write("".join(_MARKS.values())) else _PLAIN_MARKS
        self._found: Final[dict[str, Any]] = {"verified": False, "subject": subject, "error": None}
        self._steps: Final[list[dict[str, Any]]] = []
        self._say(f"Verifying {_plain(subject)}\n")

    def passed(self, step: Passed) -> None:
        """Note a step that has passed, or that the policy let pass without its check."""
        state = "skipped" if step.skipped else "passed"
        self._note(step.number, step.name, step.establishes, state, value=step.value)
        self._line(state, str(step.number), step.name, step.value)

    def failed(self, error: TeesignError) -> None:
        """Note what ended the verification: a step that failed, or something that could not be had."""
        name = (error.step if isinstance(error, VerificationError) else None) or ""
        means = meaning_of(_kind_of(error))
        self._found["error"] = {"code": error.code, "step": name or None, "message": str(error), "means": means}
        remaining = _STEPS[len(self._steps) :]
        at_a_step = bool(remaining) and remaining[0].name == name
        why = f": {_reason_of(error)}" if error.code == "unreachable" else ""
        self._line(
            "failed",
            str(len(self._steps) + 1) if at_a_step else "",
            name,
            f"{error} ({error.code}{why})",
        )
        if means:
            self._say(textwrap.fill(means, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT))
        for place, step in enumerate(remaining, len(self._steps) + 1):
            reached = at_a_step and step.name == name
            self._note(place, step.name, step.establishes, "failed" if reached else "not reached")
            if not reached:
                self._line("not reached", str(place), step.name, "not reached")
        self._say("\nNot verified.", fg="red", bold=True)

    def verified(self, result: VerifiedBundle, not_established: Sequence[str], verified_at: int) -> None:
        """Note that every step has passed.

        Args:
            result: what was established.
            not_established: what nobody has checked, in words.
            verified_at: the time at which it holds, in seconds since 1970.
        """
        report, answer, policy = result.report, result.answer, result.policy
        self._found.update(
            {
                "verified": True,
                "verified_at": verified_at,
                "simulated": report.simulated,
                "signing_algo": answer.signing_algo,
                "signing_address": answer.signing_address,
                "request_sha256": answer.request_sha256,
                "response_sha256": answer.response_sha256,
                "model": answer.model,
                "tcb_status": report.tcb and report.tcb.status,
                "compose_hash": report.compose_hash and report.compose_hash.hex(),
                "gpus": [gpu.name for gpu in report.gpus],
                "policy": policy_members(policy),
                "pinned": policy.pinned,
                "not_established": not_established,
            }
        )
        moment = f"{datetime.fromtimestamp(verified_at, UTC):%Y-%m-%d %H:%M:%S} UTC"
        self._say(f"\nVerified, as of {moment}: this answer to this request was signed by", fg="green", bold=True)
        self._say(answer.signing_address, fg="green", bold=True)
        if report.simulated:
            self._say(f"\n{_SIMULATED}", fg="red", bold=True)
        self._say(f"\nThe policy: {json.dumps(_given(policy_members(policy)))}")
        if not policy.pinned:
            self._say("It pins NOTHING: any software, of anybody, would have passed.", fg="yellow", bold=True)
        self._say("\nWhat nobody has established:")
        for item in not_established:
            self._say(f"  - {item}")

    def kept(self, file: str, sha256: str) -> None:
        """Note in which file the evidence is, and the digest that tells it from any other."""
        self._found["bundle"] = {"file": file, "sha256": sha256}
        self._say(f"\nThe evidence is in {_plain(file)}, whose SHA-256 is {sha256}.")

    def end(self) -> None:
        """Show what is shown at the end."""
        if self._as_json:
            click.echo(json.dumps({**self._found, "steps": self._steps}, indent=1))

    def _note(self, number: int, name: str, establishes: str, state: str, **more: str) -> None:
        self._steps.append({"number": number, "name": name, "establishes": establishes, "state": state, **more})

    def _line(self, state: str, number: str, name: str, value: str) -> None:
        self._say(f"{click.style(self._marks[state], fg=_COLOURS[state])} {number:>2} {name:17} {_plain(value)}")

    def _say(self, text: str, **style: Any) -> None:
        if not self._as_json:
            click.secho(text, **style)


def _kind_of(error: TeesignError) -> str:
    """Return the error's code, or a closer word for what it is, for its meaning."""
    if isinstance(error, FetchError) and error.status in (401, 403):
        return "refused"
    return error.code if _behind(error, ssl.SSLCertVerificationError) is None else "untrusted"


def _reason_of(error: TeesignError) -> str:
    """Return why nobody was reached: the system's words, or else the kind of the library's error.

    The library's own words quote what the other side has sent, which may be the token or a proxy's password.
    """
    return str(_behind(error, OSError) or type(error.__cause__).__name__)


def _behind(error: BaseException, kind: type[Kind]) -> Kind | None:
    """Return the first of this kind among an error and what has led to it; None if there is none."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, kind):
        found = found.__cause__ or found.__context__
    return found


def _can_write(text: str) -> bool:
    """Tell whether the standard output has these letters."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _given(members: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a policy what pins nothing."""
    return {name: value for name, value in members.items() if value != []}


def _plain(text: str) -> str:
    """Return text from elsewhere as a terminal can bear it."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
