"""Preferences as tokens: two answers to one prompt, for DPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from training.data.encode import answered, check_trained, spoken
from training.data.examples import ChatExample, Example, Message, Preference
from training.data.problems import Problem, RowError, one
from training.data.render import render
from training.data.tokens import ChatTokenizer, Tokens, cut


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt as tokens; in both only the answer has labels."""

    chosen: Tokens
    rejected: Tokens


@dataclass(frozen=True, slots=True)
class EncodedPairs:
    """As `Encoded`, for preferences."""

    rows: list[Pair]
    skipped: tuple[Problem, ...]
    sources: list[int]
    truncated: int = 0


def encode_pairs(examples: Sequence[Example], tokenizer: ChatTokenizer, max_length: int) -> EncodedPairs:
    """Tokens of both answers of every preference that has something to learn; each is cut at `max_length`.

    Raises:
        ValueError: an example is none.
    """
    rows: list[Pair] = []
    sources: list[int] = []
    skipped: list[Problem] = []
    truncated = 0
    for index, example in enumerate(examples):
        if not isinstance(example, Preference):
            raise one(
                "wrong_task",
                f"example {index + 1} is no preference: DPO wants a chosen and a rejected answer",
            )
        try:
            whole = encode_preference(example, tokenizer)
            row = cut_pair(whole, max_length)
            check_pair(row, whole, max_length)
        except RowError as error:
            skipped += (Problem(index + 1, fault.reason, fault.kind) for fault in error.faults)
            continue
        truncated += row != whole
        rows.append(row)
        sources.append(index)
    return EncodedPairs(rows, tuple(skipped), sources, truncated)


def cut_pair(whole: Pair, max_length: int | None) -> Pair:
    """The first tokens of both."""
    return Pair(cut(whole.chosen, max_length), cut(whole.rejected, max_length))


def check_pair(row: Pair, whole: Pair, max_length: int | None) -> None:
    """Whether both answers are still there, and still differ.

    Raises:
        RowError: they are not, or don't.
    """
    check_trained(row.chosen, whole.chosen, max_length)
    check_trained(row.rejected, whole.rejected, max_length)
    if row.chosen == row.rejected:
        raise one("no_trainable_tokens", f"both answers are the same within max_length={max_length}")


def encode_preference(example: Preference, tokenizer: ChatTokenizer) -> Pair:
    """Both answers at their full length.

    Raises:
        RowError: they can't be encoded.
    """
    chosen, rejected = (
        _preferred(example, answer, tokenizer) for answer in (example.chosen, example.rejected)
    )
    return Pair(chosen, rejected)


def _preferred(example: Preference, answer: str | tuple[Message, ...], tokenizer: ChatTokenizer) -> Tokens:
    if isinstance(example.prompt, str) and isinstance(answer, str):
        return answered(example.prompt, answer, tokenizer)
    prompt = tuple(replace(message, weight=0) for message in example.prompt if isinstance(message, Message))
    given = tuple(message for message in answer if isinstance(message, Message))
    rows = render(ChatExample((*prompt, *given), example.tools), tokenizer)
    if len(rows) > 1:
        raise one("template_refused", "the chat template rewrites earlier messages: prefer one message only")
    return spoken(rows[0], tokenizer)
