"""`multilora train check`: every error of a file of training examples at once."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from server.cli.exits import Failed
from server.cli.text import as_json, as_numbers, clean, table
from server.cli.train.reading import add_reading, cut_at, load_tokenizer, unreadable

if TYPE_CHECKING:
    from training.data.findings import Finding
    from training.data.report import DataReport
    from training.data.statistics import Distribution, Statistics

WIDTH = 100
"""Of a line of advice."""
MOST_LABELS = 20
"""Labels that are shown; `--json` has all."""
_COLUMNS = ("total", "mean", "median", "p5", "p95", "max")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags, and what the command does."""
    parser.description = (
        "Find every error in a file of training examples at once, with line numbers; then warnings, figures "
        "and advice. Nothing is trained. Exits with 1 if there is an error."
    )
    add_reading(parser)
    parser.add_argument(
        "--validation", metavar="FILE", type=Path, help="validation data: must not be trained"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report. Returns 0; raises where there are errors."""
    from training.data import check_file

    tokenizer = load_tokenizer(arguments.model)
    try:
        report = check_file(
            arguments.file,
            validation=arguments.validation,
            tokenizer=tokenizer,
            task=arguments.task,
            max_length=cut_at(arguments),
            format=arguments.format,
        )
    except OSError as error:
        raise unreadable(error, arguments.file) from None
    print(as_json(report.to_json()) if arguments.json else as_text(report))
    if not report.ok:
        count = sum(finding.count for finding in report.errors)
        raise Failed(f"{arguments.file}: {count} error{'s' * (count != 1)}; mend them before you train")
    return 0


def as_text(report: DataReport) -> str:
    """The report for people."""
    kind = "no format recognised"
    if report.format is not None:
        dpo = " with the objective dpo" * (report.objective == "dpo")
        kind = f"{report.format} rows for {report.task}{dpo}"
    blocks = [f"{clean(report.file)}: {kind}"]
    blocks += _findings("errors", report.errors)
    blocks += _findings("warnings", report.warnings)
    blocks += _statistics(report.file, report.statistics)
    if report.validation is not None:
        blocks += _statistics("validation", report.validation)
    if report.ok and report.advice:
        wrapped = (
            fill(clean(line), WIDTH, initial_indent="- ", subsequent_indent="  ") for line in report.advice
        )
        blocks.append("\n".join(["advice", *wrapped]))
    return "\n\n".join(blocks)


def _findings(title: str, findings: tuple[Finding, ...]) -> Iterator[str]:
    if not findings:
        yield f"{title}: none"
        return
    lines = [f"{title}: {sum(finding.count for finding in findings)}"]
    for finding in findings:
        lines.append(f"  {finding.kind}, {finding.count} in {clean(finding.file)}")
        by_reason: dict[str, list[int]] = {}
        for problem in finding.problems:
            by_reason.setdefault(problem.reason, []).append(problem.line)
        for reason, numbers in by_reason.items():
            lines.append(f"    line{'s' * (len(numbers) > 1)} {as_numbers(numbers)}: {clean(reason)}")
        if finding.count > len(finding.problems):
            lines.append(f"    and {finding.count - len(finding.problems)} more")
    yield "\n".join(lines)


def _statistics(title: str, found: Statistics) -> Iterator[str]:
    """Figures of one file, if there is any row."""
    if not found.rows:
        return
    rows = [
        (f"{clean(title)}: {found.rows} row{'s' * (found.rows != 1)}", *_COLUMNS),
        *_figures("messages", found.messages),
        *_figures("tokens", found.tokens),
        *_figures("trained tokens", found.trained_tokens),
    ]
    yield table(rows[0], rows[1:]) if len(rows) > 1 else rows[0][0]
    if found.labels:
        shown = [(name, count) for name, count in found.labels.items()][:MOST_LABELS]
        more = len(found.labels) - len(shown)
        yield table(("LABEL", "COUNT"), shown) + (f"\nand {more} more" if more else "")


def _figures(name: str, found: Distribution | None) -> Iterator[tuple[str, ...]]:
    if found is not None:
        yield f"  {name}", *(f"{getattr(found, column):,}" for column in _COLUMNS)
