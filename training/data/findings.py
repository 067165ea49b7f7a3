"""What a check found, in bounded space: of each kind the first lines, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.data.problems import Problem

SHOWN = 10
"""Lines that are kept of each kind."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of error or warning in one file.

    Attributes:
        count: how often it was found.
        problems: the first of them, by line.
    """

    file: str
    kind: str
    count: int
    problems: tuple[Problem, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        problems = [{"line": problem.line, "reason": problem.reason} for problem in self.problems]
        return {"file": self.file, "kind": self.kind, "count": self.count, "problems": problems}


class Findings:
    """Collects the errors, or the warnings, of one file."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._counts: dict[str, int] = {}
        self._first: dict[str, list[Problem]] = {}

    def add(self, problem: Problem, count: int = 1) -> None:
        """Count so many more, of which this is the first."""
        self._counts[problem.kind] = self._counts.get(problem.kind, 0) + count
        first = self._first.setdefault(problem.kind, [])
        if len(first) < SHOWN:
            first.append(problem)

    def sorted(self) -> tuple[Finding, ...]:
        """By the first line of each kind."""
        found = (
            Finding(self._file, kind, count, tuple(self._first[kind])) for kind, count in self._counts.items()
        )
        return tuple(sorted(found, key=lambda finding: finding.problems[0].line))
