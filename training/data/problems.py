"""What is wrong with a line of training data, in OpenAI's vocabulary and words of ours beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_SHOWN = 50
"""Lines that an error's text names; `problems` has all of them."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a row. `kind` is a word for programs, `reason` a line for people."""

    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Why one line can't be used, or one example: then `line` is its number, from 1."""

    line: int
    reason: str
    kind: str = "invalid_value"


class RowError(ValueError):
    """A row that can't be used; `faults` has all its reasons."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(fault.reason for fault in self.faults))


class DataError(ValueError):
    """A training file with bad lines; `problems` has all of them."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [f"  line {problem.line}: {problem.reason}" for problem in self.problems[:MOST_SHOWN]]
        if len(self.problems) > MOST_SHOWN:
            lines.append(f"  ... and {len(self.problems) - MOST_SHOWN} more")
        bad = len({problem.line for problem in self.problems})
        super().__init__("\n".join([f"{source}: {bad} bad line{'s' * (bad != 1)}", *lines]))


def one(kind: str, reason: str) -> RowError:
    """An error of a single fault."""
    return RowError([Fault(kind, reason)])
