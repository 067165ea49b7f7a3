"""Rows as the model gets them, token by token, with what of them is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from training.data.encode import check_fits, check_trained
from training.data.examples import Example, LabelledText, LabelledTokens, Preference
from training.data.inspection import Setting, encoded, labels_of, task_of
from training.data.lines import read_lines
from training.data.problems import RowError
from training.data.reading import scan
from training.data.tokens import IGNORE, ChatTokenizer, Tokens, is_special
from training.spec import TaskName

MOST_PIECES = 16
"""Tokens that are looked at together for one character."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One token; several where a character is spread over them.

    Attributes:
        label: its class, where each token has one.
    """

    text: str
    trained: bool
    special: bool
    label: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens that follow each other. `name`: what they are; "" for a row of one part.

    Attributes:
        cut: tokens that were cut off.
    """

    name: str
    pieces: tuple[Piece, ...]
    tokens: int
    trained: int
    special: int
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Preview:
    """One line of the file: its parts, or why it can't be used."""

    line: int
    parts: tuple[Part, ...]
    faults: tuple[str, ...] = ()
    label: str = ""


def preview_file(path: Path, setting: Setting, rows: int) -> Iterator[Preview]:
    """The first rows of a file. The setting must have a tokenizer.

    Raises:
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        for row, _ in zip(scan(read_lines(file), setting.format), range(rows), strict=False):
            if row.example is None:
                yield Preview(row.line, (), tuple(fault.reason for fault in row.faults))
                continue
            try:
                task = setting.task or task_of(row.format)
                yield preview_example(row.line, row.example, task, setting)
            except RowError as error:
                yield Preview(row.line, (), tuple(fault.reason for fault in error.faults))


def preview_example(line: int, example: Example, task: TaskName, setting: Setting) -> Preview:
    """One row.

    Raises:
        RowError: it can't be encoded, or trains nothing.
    """
    assert setting.tokenizer is not None
    parts: list[Part] = []
    check_fits(example, task, pairs=True)
    for whole, row in encoded(example, setting.tokenizer, task, setting.max_length):
        check_trained(row, whole, setting.max_length)
        parts += _parts(example, whole, row, setting.tokenizer, task)
    if isinstance(example, Preference):
        parts = [replace(part, name=name) for part, name in zip(parts, ("chosen", "rejected"), strict=True)]
    elif len(parts) > 1 and not parts[0].name:
        parts = [replace(part, name=f"answer {number}") for number, part in enumerate(parts, start=1)]
    return Preview(line, tuple(parts), (), example.label if isinstance(example, LabelledText) else "")


def _parts(
    example: Example, whole: Tokens, row: Tokens, tokenizer: ChatTokenizer, task: TaskName
) -> Iterator[Part]:
    cut = len(whole.ids) - len(row.ids)
    if task == "SEQ_2_SEQ_LM":
        yield _part("source", row.ids, [IGNORE] * len(row.ids), tokenizer, cut)
        lost = len(whole.labels) - len(row.labels)
        yield _part("target", row.labels, row.labels, tokenizer, lost)
    elif isinstance(example, LabelledText):
        yield _part("", row.ids, [IGNORE] * len(row.ids), tokenizer, cut)
    else:
        names = sorted(set(labels_of(example))) if isinstance(example, LabelledTokens) else []
        yield _part("", row.ids, row.labels, tokenizer, cut, names)


def _part(
    name: str,
    ids: Sequence[int],
    labels: Sequence[int],
    tokenizer: ChatTokenizer,
    cut: int,
    names: Sequence[str] = (),
) -> Part:
    pieces = tuple(_pieces(ids, labels, tokenizer, names))
    trained = sum(label != IGNORE for label in labels)
    special = sum(is_special(token, tokenizer) for token in ids)
    return Part(name, pieces, len(ids), trained, special, cut)


def _pieces(
    ids: Sequence[int], labels: Sequence[int], tokenizer: ChatTokenizer, names: Sequence[str]
) -> Iterator[Piece]:
    start = 0
    while start < len(ids):
        trained, special = labels[start] != IGNORE, is_special(ids[start], tokenizer)
        stop = start + 1
        text = _text(ids[start:stop], tokenizer)
        while "\ufffd" in text and stop < min(len(ids), start + MOST_PIECES):
            if is_special(ids[stop], tokenizer) or (labels[stop] != IGNORE) != trained:
                break
            stop += 1
            text = _text(ids[start:stop], tokenizer)
        yield Piece(text, trained, special, names[labels[start]] if names and trained else "")
        start = stop


def _text(ids: Sequence[int], tokenizer: ChatTokenizer) -> str:
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(list(ids))]
    if any("\u2581" in token for token in tokens):  # decoding would drop the first space
        return "".join(tokens).replace("\u2581", " ")
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
