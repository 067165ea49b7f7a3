"""What a check of training data says, for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.data.examples import FormatName
from training.data.findings import Finding
from training.data.statistics import Statistics
from training.spec import Objective, TaskName

IN_SUMMARY = 3


@dataclass(frozen=True, slots=True)
class DataReport:
    """All that a check found; there is nothing to train on unless it is `ok`.

    Attributes:
        format: of most rows; None where none was recognised.
        task: what the rows can be trained for.
        validation: None without such a file.
        advice: lines for people.
    """

    file: str
    format: FormatName | None
    task: TaskName | None
    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    statistics: Statistics
    validation: Statistics | None
    advice: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    @property
    def objective(self) -> Objective:
        """What the rows can be trained with."""
        return "dpo" if self.format in ("preference_openai", "preference_trl") else "supervised"

    def summary(self) -> str:
        """The first errors on one line; "" where there is none."""
        shown = [
            f"{finding.file} line {problem.line}: {problem.reason}"
            for finding in self.errors
            for problem in finding.problems[:1]
        ]
        total = sum(finding.count for finding in self.errors)
        more = total - len(shown[:IN_SUMMARY])
        return "; ".join(shown[:IN_SUMMARY]) + (f"; and {more} more" if more else "")

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "object": "training.data_report",
            "file": self.file,
            "format": self.format,
            "task": self.task,
            "objective": self.objective,
            "ok": self.ok,
            "errors": [finding.to_json() for finding in self.errors],
            "warnings": [finding.to_json() for finding in self.warnings],
            "statistics": self.statistics.to_json(),
            "validation": None if self.validation is None else self.validation.to_json(),
            "advice": list(self.advice),
        }
