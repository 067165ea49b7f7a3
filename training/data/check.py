"""Checks a file of training data before anything is trained: every error at once, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.advice import advise
from training.data.examples import FormatName
from training.data.findings import SHOWN
from training.data.fingerprints import firsts, normalised, shared
from training.data.inspection import Inspection, Setting
from training.data.problems import Problem
from training.data.report import DataReport
from training.data.tokens import ChatTokenizer
from training.spec import TaskName

if TYPE_CHECKING:
    import numpy as np


def check_file(
    path: Path,
    *,
    validation: Path | None = None,
    tokenizer: ChatTokenizer | None = None,
    task: TaskName | None = None,
    max_length: int | None = None,
    format: FormatName | None = None,
) -> DataReport:
    """Check a file, and what it has in common with a file for validation.

    Args:
        tokenizer: of the base; without it tokens are not counted, and nothing is known of what is learned.
        max_length: tokens at which rows are cut; None: they are not.

    Raises:
        OSError: a file can't be read.
    """
    setting = Setting(tokenizer, task, max_length, format)
    found = Inspection(path, setting)
    _duplicates(found)
    _labels(found)
    other = None if validation is None else Inspection(validation, setting)
    if other is not None:
        _compare(found, other)
    files = [found] if other is None else [found, other]
    statistics = found.statistics()
    return DataReport(
        file=path.name,
        format=found.formats.usual,
        task=found.task,
        errors=tuple(finding for file in files for finding in file.errors.sorted()),
        warnings=tuple(finding for file in files for finding in file.warnings.sorted()),
        statistics=statistics,
        validation=None if other is None else other.statistics(),
        advice=tuple(advise(statistics, found.longest, max_length, other is not None)),
    )


def _duplicates(found: Inspection) -> None:
    exact, loose = firsts(found.prints.exact), firsts(found.prints.loose)
    _warn(found, "duplicate_rows", "the same as line {}", exact, found)
    alike = "differs only in case or spaces from line {}"
    _warn(found, "duplicate_rows_normalised", alike, _unless(exact, loose), found)
    if found.prints.inputs and len(found.prints.inputs) == len(loose):
        asked = _unless(loose, firsts(found.prints.inputs))
        _warn(found, "conflicting_labels", "the text of line {} with another label", asked, found)


def _labels(found: Inspection) -> None:
    if len(found.labels) == 1:
        ((name, label),) = found.labels.items()
        reason = f"every label is {name!r}: there is nothing to tell apart"
        found.errors.add(Problem(label.line, reason, "single_label"))
    alike: dict[str, str] = {}
    for name, label in found.labels.items():
        other = alike.setdefault(normalised(name), name)
        if other != name:
            reason = f"the labels {other!r} and {name!r} differ only in case or spaces"
            found.warnings.add(Problem(label.line, reason, "similar_labels"))
        if label.count == 1:
            found.warnings.add(Problem(label.line, f"the label {name!r} is there once", "rare_label"))


def _compare(training: Inspection, validation: Inspection) -> None:
    """What only both files together tell."""
    usual = validation.formats.usual
    if usual is not None and usual != training.formats.usual:
        reason = f"{usual} rows, where {training.name} has {training.formats.usual} rows"
        validation.errors.add(Problem(validation.formats.lines[usual][0], reason, "mixed_formats"))
    for name, label in validation.labels.items():
        if name not in training.labels:
            reason = f"the label {name!r} is not in {training.name}"
            validation.errors.add(Problem(label.line, reason, "unknown_label"))
    exact = shared(validation.prints.exact, training.prints.exact)
    loose = _unless(exact, shared(validation.prints.loose, training.prints.loose))
    _warn(validation, "leakage", "also trained: the same as line {} of " + training.name, exact, training)
    alike = "also trained: differs only in case or spaces from line {} of " + training.name
    _warn(validation, "leakage_normalised", alike, loose, training)


def _unless(found: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`others`, save where something was found already."""
    import numpy as np

    return np.where(found >= 0, -1, others)


def _warn(file: Inspection, kind: str, reason: str, rows: np.ndarray[Any, Any], other: Inspection) -> None:
    """`rows`: for each row of the file the row of `other` that it is like; -1: none."""
    places = (rows >= 0).nonzero()[0]
    for number, place in enumerate(places[:SHOWN]):
        line, there = file.prints.lines[place], other.prints.lines[rows[place]]
        rest = len(places) - SHOWN if number == SHOWN - 1 else 0
        file.warnings.add(Problem(line, reason.format(there), kind), 1 + max(0, rest))
