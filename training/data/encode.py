"""From examples to rows of tokens with the mask of the loss, for each task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from training.data.examples import (
    ChatExample,
    Example,
    LabelledText,
    LabelledTokens,
    PlainText,
    Preference,
    TextExample,
)
from training.data.problems import Problem, RowError, one
from training.data.render import Rendered, render
from training.data.tokens import IGNORE, ChatTokenizer, Tokens, continued, cut, learn, token_ids
from training.spec import TaskName

FITS: Mapping[TaskName, tuple[type, ...]] = {
    "CAUSAL_LM": (TextExample, ChatExample, PlainText),
    "SEQ_2_SEQ_LM": (TextExample,),
    "SEQ_CLS": (LabelledText,),
    "TOKEN_CLS": (LabelledTokens,),
}
"""What each task learns from; preferences are for `encode_pairs`."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What training gets.

    Attributes:
        skipped: examples that would train on nothing, by their number from 1, with the reason.
        sources: index of the example that each row is from. A chat gives a row for each answer where the chat
            template rewrites earlier messages, else one.
        truncated: rows that lost tokens at their end.
    """

    rows: list[Tokens]
    skipped: tuple[Problem, ...]
    sources: list[int]
    truncated: int = 0


def encode(
    examples: Sequence[Example],
    tokenizer: ChatTokenizer,
    task: TaskName,
    max_length: int,
    labels: Sequence[str] = (),
) -> Encoded:
    """Tokens and labels of every example that has something to learn.

    A row over `max_length` keeps its first tokens; of an encoder-decoder, source and target are cut each by
    itself. For classifiers the tokenizer cuts, so that its special tokens stay.

    Args:
        labels: names of the classes, in the order of the head's outputs.

    Raises:
        RowError: an example is not for this task.
    """
    rows: list[Tokens] = []
    sources: list[int] = []
    skipped: list[Problem] = []
    truncated = 0
    for index, example in enumerate(examples):
        check_fits(example, task)
        try:
            for whole in encode_example(example, tokenizer, task, labels):
                row = shorten(whole, example, tokenizer, max_length, labels)
                check_trained(row, whole, max_length)
                truncated += row != whole
                rows.append(row)
                sources.append(index)
        except RowError as error:
            skipped += (Problem(index + 1, fault.reason, fault.kind) for fault in error.faults)
    return Encoded(rows, tuple(skipped), sources, truncated)


def check_fits(example: Example, task: TaskName, pairs: bool = False) -> None:
    """Whether the task can learn from this kind of example. `pairs`: preferences are taken too.

    Raises:
        RowError: it can't.
    """
    if isinstance(example, FITS[task]) or (pairs and task == "CAUSAL_LM" and isinstance(example, Preference)):
        return
    wanted = " or ".join(kind.__name__ for kind in FITS[task])
    hint = ": they are for the objective dpo" if isinstance(example, Preference) else ""
    raise one("wrong_task", f"{task} learns from {wanted} rows, not from {type(example).__name__} rows{hint}")


def check_trained(row: Tokens, whole: Tokens, max_length: int | None) -> None:
    """Whether a row teaches anything.

    Raises:
        RowError: it does not.
    """
    if row.trained:
        return
    if whole.trained:
        reason = f"all {whole.trained} trained tokens of {len(whole.ids)} are beyond max_length={max_length}"
        raise one("no_trainable_tokens", reason)
    raise one("no_trainable_tokens", "no token is trained")


def tokenize(example: Example, tokenizer: ChatTokenizer) -> Tokens:
    """The tokens of an example; only completions and assistant messages have labels.

    Raises:
        ValueError: a chat that the tokenizer's chat template can't render as one row.
    """
    check_fits(example, "CAUSAL_LM")
    rows = encode_example(example, tokenizer, "CAUSAL_LM")
    if len(rows) > 1:
        raise ValueError("the chat template rewrites earlier messages: train on single answers instead")
    return rows[0]


def encode_example(
    example: Example, tokenizer: ChatTokenizer, task: TaskName, labels: Sequence[str] = ()
) -> list[Tokens]:
    """The rows of one example that fits the task, at their full length.

    Raises:
        RowError: it can't be encoded.
    """
    if isinstance(example, LabelledText):
        return [Tokens(token_ids(tokenizer, example.text, special=True), [_class(example.label, labels)])]
    if isinstance(example, LabelledTokens):
        return [_tagged(example, tokenizer, labels, None)]
    if isinstance(example, PlainText):
        return [learn([_ended(token_ids(tokenizer, example.text, special=True), tokenizer)], [True])]
    if isinstance(example, ChatExample):
        return [spoken(text, tokenizer) for text in render(example, tokenizer)]
    assert isinstance(example, TextExample)
    if task == "SEQ_2_SEQ_LM":
        source = token_ids(tokenizer, example.prompt, special=True)
        target = list(tokenizer(text_target=example.completion)["input_ids"])
        return [Tokens(source, _ended(target, tokenizer))]
    return [answered(example.prompt, example.completion, tokenizer)]


def shorten(
    whole: Tokens,
    example: Example,
    tokenizer: ChatTokenizer,
    max_length: int | None,
    labels: Sequence[str] = (),
) -> Tokens:
    """The row as it is trained."""
    if max_length is None or max(len(whole.ids), len(whole.labels)) <= max_length:
        return whole
    if isinstance(example, LabelledText):
        found = tokenizer(example.text, truncation=True, max_length=max_length)
        return Tokens(list(found["input_ids"]), whole.labels)
    if isinstance(example, LabelledTokens):
        return _tagged(example, tokenizer, labels, max_length)
    return cut(whole, max_length)


def spoken(text: Rendered, tokenizer: ChatTokenizer) -> Tokens:
    """The tokens of a chat. A last answer that no special token ends gets the one for the end of all."""
    pieces = continued(tokenizer, text.pieces)
    if pieces and not text.ended:
        pieces[-1] = _ended(pieces[-1], tokenizer)
    return learn(pieces, text.learned)


def answered(prompt: str, completion: str, tokenizer: ChatTokenizer) -> Tokens:
    asked, answer = continued(tokenizer, (prompt, completion), special=True)
    return learn([asked, _ended(answer, tokenizer)], [False, True])


def _ended(ids: list[int], tokenizer: ChatTokenizer) -> list[int]:
    """The ids with the token for the end, once."""
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _class(label: str, labels: Sequence[str]) -> int:
    if label not in labels:
        raise one("unknown_label", f"the label {label!r} is none of {', '.join(labels[:10]) or '(none)'}")
    return labels.index(label)


def _tagged(
    example: LabelledTokens, tokenizer: ChatTokenizer, labels: Sequence[str], max_length: int | None
) -> Tokens:
    """Each word's label on its first token. The words are joined by spaces, as the server sees them."""
    classes = [_class(label, labels) for label in example.labels]
    cutting = {} if max_length is None else {"truncation": True, "max_length": max_length}
    found = tokenizer(" ".join(example.tokens), return_offsets_mapping=True, **cutting)
    marks = [IGNORE] * len(found["input_ids"])
    starts = _starts(example.tokens)
    word = 0
    for index, (start, stop) in enumerate(found["offset_mapping"]):
        while word < len(classes) and stop > start and starts[word] + len(example.tokens[word]) <= start:
            word += 1  # a word that became no token
        if word < len(classes) and start < stop and stop > starts[word]:
            marks[index] = classes[word]
            word += 1
    return Tokens(list(found["input_ids"]), marks)


def _starts(words: Iterable[str]) -> list[int]:
    """Where each word begins in the joined text."""
    starts, place = [], 0
    for word in words:
        starts.append(place)
        place += len(word) + 1
    return starts


def label_names(examples: Iterable[Example]) -> tuple[str, ...]:
    """The labels that occur, sorted; whole numbers by their value."""
    found: set[str] = set()
    for example in examples:
        if isinstance(example, LabelledText):
            found.add(example.label)
        elif isinstance(example, LabelledTokens):
            found.update(example.labels)
    return sort_labels(found)


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The order of a head's outputs."""
    names = set(labels)
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
