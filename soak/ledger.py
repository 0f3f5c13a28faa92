"""What has been seen: counts, what was wrong, and the check of every signature."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from teesign import TeesignError, verify_answer

from .client import Answer, connect, get
from .stack import Stack

__all__ = ["Ledger", "Signatures", "percentile"]

_SHOWN: Final = 20


class Measured(NamedTuple):
    """A figure: what it is, what was found, what is asked, and whether it is met."""

    what: str
    found: str
    asked: str
    met: bool


class Ledger:
    """Counts of what went as it should, and the first things that did not.

    Attributes:
        counts: how often each thing was seen.
        wrong: what should not have been, in words.
        figures: what was measured against a target.
    """

    def __init__(self) -> None:
        self.figures: Final[list[Measured]] = []
        self.counts: Final[Counter[str]] = Counter()
        self.wrong: Final[list[str]] = []
        self._begun = time.monotonic()

    def check(self, right: object, what: str) -> None:
        """Note something wrong unless it is right."""
        if not right:
            self.counts["wrong"] += 1
            if len(self.wrong) < _SHOWN:
                self.wrong.append(f"after {time.monotonic() - self._begun:.0f} s: {what}")

    def at_most(self, what: str, found: float, limit: float, unit: str = "") -> None:
        """Note a figure that must not exceed a limit."""
        self.figures.append(Measured(what, f"{found:.6g}{unit}", f"at most {limit:g}{unit}", found <= limit))

    def exactly(self, what: str, found: float, number: float) -> None:
        """Note a figure that must be a certain number."""
        self.figures.append(Measured(what, f"{found:g}", f"{number:g}", found == number))

    def at_least(self, what: str, found: float, limit: float, unit: str = "") -> None:
        """Note a figure that must reach a limit."""
        self.figures.append(Measured(what, f"{found:.6g}{unit}", f"at least {limit:g}{unit}", found >= limit))

    def seen(self, what: str, found: float, unit: str = "") -> None:
        """Note a figure of which nothing is asked."""
        self.figures.append(Measured(what, f"{found:.6g}{unit}", "", met=True))


class Signatures:
    """Fetches and verifies signatures, by ids in heads and in bodies.

    Args:
        stack: whose they are.
        ledger: where it is counted.
        address: the ECDSA address that signs; `attest` asks for it.
    """

    def __init__(self, stack: Stack, ledger: Ledger, address: str = "") -> None:
        self._stack = stack
        self._ledger = ledger
        self._address = address

    async def attest(self) -> None:
        """Ask the proxy for the address that signs."""
        async with connect(self._stack.port) as connection:
            report = (await connection.ask(get(f"/v1/attestation/report?nonce={'07' * 32}"))).json()
        self._address = report["signing_address"]

    async def check(self, answer: Answer, request: bytes, body_id: str | None = None) -> None:
        """Check that a whole answer is signed under its ids, over these bytes, by the attested key."""
        own = answer.headers.get("x-signature-id", "")
        for each in (own, body_id) if body_id is not None else (own,):
            async with connect(self._stack.port) as connection:
                found = await connection.ask(get(f"/v1/signature/{each}"))
            self._ledger.counts["signatures asked for"] += 1
            self.verify(found, answer, request)

    def verify(self, found: Answer, answer: Answer, request: bytes) -> None:
        """Check what the signature endpoint said about an answer."""
        self._ledger.check(found.status == 200, f"a signature was answered with {found.status}")
        if found.status != 200:
            return
        try:
            verify_answer(request, bytes(answer.body), found.json(), algorithm="ecdsa", address=self._address)
        except TeesignError as error:
            self._ledger.check(right=False, what=f"a signature does not verify: {error.code}")
        else:
            self._ledger.counts["signatures verified"] += 1

    async def check_unsigned(self, answer: Answer) -> None:
        """Check that an answer that is not whole, or no success, has no signature."""
        own = answer.headers.get("x-signature-id")
        if own is not None:
            async with connect(self._stack.port) as connection:
                found = await connection.ask(get(f"/v1/signature/{own}"))
            self._ledger.check(found.status == 404, "an answer is signed that was not whole")
        self._ledger.counts["unsigned as they must be"] += 1


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that this part of them do not exceed; nan where there are none."""
    if not values:
        return float("nan")
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]
