"""Files of training data: every bad line is named at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from training.data.examples import Example, FormatName
from training.data.lines import decode, read_lines
from training.data.problems import DataError, Fault, Problem, RowError
from training.data.rows import parse_row, recognise

KEPT_LINES = 10
"""Lines of each format that are remembered."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one line gave: an example, or its faults."""

    line: int
    format: FormatName | None
    example: Example | None
    faults: tuple[Fault, ...] = ()


@dataclass
class Formats:
    """Which formats a file has, and where: a file has one."""

    counts: dict[FormatName, int] = field(default_factory=dict)
    lines: dict[FormatName, list[int]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Count one row."""
        if row.format is not None:
            self.counts[row.format] = self.counts.get(row.format, 0) + 1
            first = self.lines.setdefault(row.format, [])
            if len(first) < KEPT_LINES:
                first.append(row.line)

    @property
    def usual(self) -> FormatName | None:
        """That of most rows, the earlier of two that are as common."""
        return max(self.counts, key=lambda name: self.counts[name], default=None)

    def strangers(self) -> Iterator[tuple[Problem, int]]:
        """The first rows of each other format; with the last of them, how many there are beyond."""
        for name, lines in self.lines.items():
            if name != self.usual:
                reason = f"a {name} row in a file of {self.usual} rows: give each format a file of its own"
                for line in lines:
                    beyond = self.counts[name] - len(lines) if line == lines[-1] else 0
                    yield Problem(line, reason, "mixed_formats"), 1 + beyond


def scan(lines: Iterable[tuple[int, bytes | None]], format: FormatName | None = None) -> Iterator[Row]:
    """Check line after line, in bounded memory. `format`: what all rows are read as."""
    for number, raw in lines:
        name = format
        try:
            value = decode(raw)
            name = format or recognise(value)
            yield Row(number, name, parse_row(value, format))
        except RowError as error:
            yield Row(number, name, None, error.faults)


def read_jsonl(path: Path, format: FormatName | None = None) -> list[Example]:
    """Read and check a training file.

    Args:
        format: what its rows are; None: their keys tell.

    Raises:
        DataError: some lines are bad, or there is none.
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        return _collect(scan(read_lines(file), format), path.name)


def parse_lines(
    lines: Iterable[str], source: str = "data", format: FormatName | None = None
) -> list[Example]:
    """Check JSON lines; blank lines are skipped.

    Raises:
        DataError: some lines are bad, or there is none.
    """
    filled = ((number, line.encode()) for number, line in enumerate(lines, start=1) if line.strip())
    return _collect(scan(filled, format), source)


def _collect(rows: Iterable[Row], source: str) -> list[Example]:
    examples: list[Example] = []
    problems: list[Problem] = []
    formats = Formats()
    for row in rows:
        formats.add(row)
        problems += (Problem(row.line, fault.reason, fault.kind) for fault in row.faults)
        if row.example is not None:
            examples.append(row.example)
    problems += (problem for problem, _ in formats.strangers())
    if not examples and not problems:
        problems.append(Problem(1, "there is no example in this file", "empty_file"))
    if problems:
        raise DataError(source, sorted(problems, key=lambda problem: problem.line))
    return examples
