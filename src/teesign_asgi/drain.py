"""How a server comes to its end: what it still serves meanwhile, and when there is nothing left to wait for.

Theory of operation. A `Drain` is a clock's worth of rules, without any I/O of its own:

    SERVING --begin--> LEAVING --delay--> FINISHING --nothing to wait for--> OVER

    - LEAVING: not ready any more, but everything is served, so that load balancers can look elsewhere first
    - FINISHING: open responses get until the deadline; new requests for the backend are refused, everything else is
      served, above all signatures
    - OVER: no response is open, or the deadline has passed; and the last signature could be fetched for a while

Who has a server to stop calls `begin`, asks `is_over` now and then, and stops listening only when it is: a signature
cannot be fetched from a server that takes no connections. A server that is idle is over at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

__all__ = ["Drain"]


class Drain:
    """The state of a server's end.

    Args:
        delay: for how many seconds everything is served on.
        timeout: for how many seconds after that open responses may go on.
        linger: for how many seconds the last signature can be fetched.
        clock: returns seconds that never go backwards.

    Attributes:
        open_responses: how many responses are being relayed; kept up to date by the app.
        last_signed: when the last response was signed; kept up to date by the app.
    """

    def __init__(self, *, delay: float, timeout: float, linger: float, clock: Callable[[], float]) -> None:
        self._delay: Final = delay
        self._timeout: Final = timeout
        self._linger: Final = linger
        self._clock: Final = clock
        self._begun: float | None = None
        self.open_responses = 0
        self.last_signed = -math.inf

    def begin(self) -> None:
        """Begin to come to an end. Does nothing the second time."""
        if self._begun is None:
            self._begun = self._clock()

    @property
    def is_ready(self) -> bool:
        """Whether clients should be sent here: nothing has begun to end."""
        return self._begun is None

    @property
    def takes_work(self) -> bool:
        """Whether new requests for the backend are served."""
        return self._begun is None or self._clock() < self._begun + self._delay

    @property
    def remaining(self) -> float:
        """For how many more seconds open responses may go on; infinite before the drain has begun."""
        if self._begun is None:
            return math.inf
        return max(0.0, self._begun + self._delay + self._timeout - self._clock())

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to wait for any more, and the server may stop."""
        if self._begun is None or self.takes_work or (self.open_responses and self.remaining):
            return False
        # What is signed after the deadline does not prolong the end.
        deadline = self._begun + self._delay + self._timeout
        return self._clock() >= min(self.last_signed, deadline) + self._linger
