"""Numbered steps: what each establishes and needs, and running them in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

import msgspec

from ..errors import MalformedError, VerificationError

__all__ = ["SKIPPED", "Passed", "Step", "run_steps"]

SKIPPED: Final = "skipped: "
"""What a step's value starts with if the policy let it pass without its check; the reason follows."""

Evidence = TypeVar("Evidence")


class Step(msgspec.Struct, Generic[Evidence], frozen=True):
    """One check.

    Attributes:
        name: a few words; the same between releases.
        establishes: what is known once it has passed.
        needs: what it looks at.
        check: raises `VerificationError`, or returns the value to show. It may add to the evidence for later steps.
    """

    name: str
    establishes: str
    needs: str
    check: Callable[[Evidence], str]


class Passed(msgspec.Struct, frozen=True):
    """A step that has passed.

    Attributes:
        number: its place, from 1.
        name: the step's.
        establishes: what is known now.
        value: what was found, for people.
    """

    number: int
    name: str
    establishes: str
    value: str

    @property
    def skipped(self) -> bool:
        """Whether the policy let it pass without its check, so that nothing is known now."""
        return self.value.startswith(SKIPPED)


def run_steps(
    steps: Sequence[Step[Evidence]], evidence: Evidence, passed: Callable[[Passed], None]
) -> tuple[Passed, ...]:
    """Run steps in order, up to the first that fails.

    Args:
        steps: the steps.
        evidence: what each of them is given.
        passed: called after each step that has passed.

    Raises:
        VerificationError: of the step that failed, with its name in `step`. Malformed evidence fails it too.
    """
    done = []
    for number, step in enumerate(steps, 1):
        try:
            value = step.check(evidence)
        except VerificationError as error:
            error.step = step.name
            raise
        except MalformedError as error:
            raise VerificationError(str(error), code=error.code, step=step.name) from error
        done.append(Passed(number, step.name, step.establishes, value))
        passed(done[-1])
    return tuple(done)
