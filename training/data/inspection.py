"""One file of training data, read once: its faults, its figures and a fingerprint of each row."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.data.encode import check_fits, check_trained, encode_example, shorten
from training.data.examples import (
    ChatExample,
    Example,
    FormatName,
    LabelledText,
    LabelledTokens,
    Preference,
)
from training.data.findings import Findings
from training.data.fingerprints import Fingerprints
from training.data.lines import read_lines
from training.data.pairs import check_pair, cut_pair, encode_preference
from training.data.problems import Problem, RowError
from training.data.reading import Formats, Row, scan
from training.data.statistics import Statistics, distribution
from training.data.tokens import ChatTokenizer, Tokens
from training.spec import TaskName

MOST_LABELS = 10_000
"""Classes of one file; more are no classes."""
_TASKS: dict[FormatName, TaskName] = {
    "source_target": "SEQ_2_SEQ_LM",
    "labelled_text": "SEQ_CLS",
    "labelled_tokens": "TOKEN_CLS",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What rows are checked against; `format` and `task` are recognised where they are None."""

    tokenizer: ChatTokenizer | None = None
    task: TaskName | None = None
    max_length: int | None = None
    format: FormatName | None = None


@dataclass(slots=True)
class Label:
    """How often a label is there, and the first line that has it."""

    count: int
    line: int


class Inspection:
    """What one file has.

    Attributes:
        longest: tokens of the longest row before it is cut.

    Raises:
        OSError: the file can't be read.
    """

    def __init__(self, path: Path, setting: Setting) -> None:
        self.name, self.task = path.name, setting.task
        self.errors, self.warnings = Findings(path.name), Findings(path.name)
        self.formats, self.prints = Formats(), Fingerprints()
        self.labels: dict[str, Label] = {}
        self.longest = 0
        self._setting = setting
        self._rows = self._truncated = 0
        self._messages, self._tokens, self._trained = array("Q"), array("Q"), array("Q")
        with path.open("rb") as file:
            for row in scan(read_lines(file), setting.format):
                self._add(row)
        for problem, count in self.formats.strangers():
            self.errors.add(problem, count)
        if not self._rows:
            self.errors.add(Problem(1, "there is no example in this file", "empty_file"))

    def statistics(self) -> Statistics:
        """The figures; labels from the commonest to the rarest."""
        labels = sorted(self.labels.items(), key=lambda item: (-item[1].count, item[0]))
        return Statistics(
            rows=self._rows,
            examples=len(self.prints.lines),
            messages=distribution(self._messages),
            tokens=distribution(self._tokens),
            trained_tokens=distribution(self._trained),
            truncated=self._truncated,
            labels={name: label.count for name, label in labels},
        )

    def _add(self, row: Row) -> None:
        self._rows += 1
        self.formats.add(row)
        faults = row.faults
        if row.example is not None:
            self.prints.add(row.line, row.example)
            self._add_labels(row.line, row.example)
            if isinstance(row.example, ChatExample):
                self._add_messages(row.line, row.example)
            self.task = self.task or task_of(row.format)
            try:
                self._add_tokens(row.line, row.example, self.task)
            except RowError as error:
                faults = error.faults
        for fault in faults:
            self.errors.add(Problem(row.line, fault.reason, fault.kind))

    def _add_labels(self, line: int, example: Example) -> None:
        for name in labels_of(example):
            if name in self.labels:
                self.labels[name].count += 1
            elif len(self.labels) < MOST_LABELS:
                self.labels[name] = Label(1, line)
            else:
                reason = f"more than {MOST_LABELS} different labels: these are no classes"
                self.errors.add(Problem(line, reason, "too_many_labels"))

    def _add_messages(self, line: int, example: ChatExample) -> None:
        self._messages.append(len(example.messages))
        roles = {message.role for message in example.messages}
        if not roles & {"system", "developer"}:
            self.warnings.add(Problem(line, "there is no system message", "missing_system_message"))
        if "user" not in roles:
            self.warnings.add(Problem(line, "there is no user message", "missing_user_message"))

    def _add_tokens(self, line: int, example: Example, task: TaskName) -> None:
        check_fits(example, task, pairs=True)
        if self._setting.tokenizer is None:
            return
        limit = self._setting.max_length
        for whole, row in encoded(example, self._setting.tokenizer, task, limit):
            self._tokens.append(_length(row, task))
            self._trained.append(row.trained)
            self.longest = max(self.longest, len(whole.ids), len(whole.labels))
            if row.ids != whole.ids or row.labels != whole.labels:
                self._truncated += 1
                reason = f"{_length(whole, task)} tokens: those beyond max_length={limit} are cut off"
                self.warnings.add(Problem(line, reason, "truncated"))
            check_trained(row, whole, limit)


def encoded(
    example: Example, tokenizer: ChatTokenizer, task: TaskName, max_length: int | None
) -> Iterator[tuple[Tokens, Tokens]]:
    """Each row of an example, whole and as it is trained; the two answers of a preference follow each other.

    Raises:
        RowError: it can't be encoded, or both answers are the same.
    """
    if isinstance(example, Preference):
        whole = encode_preference(example, tokenizer)
        row = cut_pair(whole, max_length)
        yield from ((whole.chosen, row.chosen), (whole.rejected, row.rejected))
        check_pair(row, whole, max_length)
        return
    labels = sorted(set(labels_of(example)))
    for tokens in encode_example(example, tokenizer, task, labels):
        yield tokens, shorten(tokens, example, tokenizer, max_length, labels)


def task_of(format: FormatName | None) -> TaskName:
    """What rows of a format are for."""
    return "CAUSAL_LM" if format is None else _TASKS.get(format, "CAUSAL_LM")


def _length(row: Tokens, task: TaskName) -> int:
    return len(row.ids) + (len(row.labels) if task == "SEQ_2_SEQ_LM" else 0)


def labels_of(example: Example) -> tuple[str, ...]:
    """The labels of a row."""
    if isinstance(example, LabelledText):
        return (example.label,)
    return example.labels if isinstance(example, LabelledTokens) else ()
