"""What a generative model is asked at an evaluation: prompts out of the validation rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from training.data import IGNORE, Tokens
from training.evaluate import greedy, until
from training.events import Sample
from training.spec import TaskName

NEW_TOKENS = 128
"""Rows with longer answers are not asked: they would take long, and an exact match means little there."""
_CONTINUED = 48
_BEYOND = 8
"""How many tokens more than wanted an answer may have: enough to see that it does not end."""


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt. What is wanted ends with an end token, unless its row was cut off."""

    prompt: list[int]
    wanted: list[int]


def questions(rows: Sequence[Tokens], task: TaskName, special: Collection[int], most: int) -> list[Question]:
    """At most `most`, evenly out of all rows that have a prompt and an answer of bounded length.

    The prompt is what comes before the last trained part of a row, the generation prompt of the chat template
    included: exactly what the model was trained to go on from.

    Args:
        special: ids of the tokenizer's special tokens.
    """
    asked = [question for row in rows if (question := _question(row, task)) is not None]
    asked = [each for each in asked if set(each.prompt) - set(special) and len(each.wanted) <= NEW_TOKENS]
    return evenly(asked, most)


def continuations(rows: Sequence[Tokens], most: int) -> list[Question]:
    """For plain text, which has no prompt: first halves of rows, to be gone on from."""
    halves = [(row.ids, len(row.ids) // 2) for row in rows if len(row.ids) >= 2]
    found = [Question(ids[:half], ids[half : half + _CONTINUED]) for ids, half in halves]
    return evenly(found, most)


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of them, from all over; the same each time."""
    count = min(most, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def ask(
    model: Any, tokenizer: Any, asked: Sequence[Question], stop: Collection[int], pad: int, batch_size: int
) -> list[tuple[Sample, bool]]:
    """What the model says to each, and whether that is exactly what was wanted, as text."""
    prompts, lengths = [each.prompt for each in asked], [len(each.wanted) + _BEYOND for each in asked]
    answers = greedy(model, prompts, lengths, stop=stop, pad=pad, batch_size=batch_size)
    found = []
    for question, answer in zip(asked, answers, strict=True):
        ends = any(token in stop for token in question.wanted)
        compared = answer if ends else answer[: len(question.wanted)]
        said, wanted = _text(tokenizer, compared), _text(tokenizer, until(question.wanted, stop))
        found.append((Sample(_text(tokenizer, question.prompt), wanted, said), said == wanted))
    return found


def _question(row: Tokens, task: TaskName) -> Question | None:
    """None for a row without a trained token."""
    if task == "SEQ_2_SEQ_LM":
        wanted = [label for label in row.labels if label != IGNORE]
        return Question(row.ids, wanted) if wanted else None
    trained = [place for place, label in enumerate(row.labels) if label != IGNORE]
    if not trained:
        return None
    start = end = trained[-1]
    while start > 0 and row.labels[start - 1] != IGNORE:
        start -= 1
    return Question(row.ids[:start], row.ids[start : end + 1])


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
    return text
