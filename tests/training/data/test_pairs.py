"""Preferences as tokens: the same prompt twice, and only the answers learned."""

from __future__ import annotations

import pytest

from tests.training.data.tokenizers import CHATML, of_bytes, spoken
from training.base.tokenizer import build_tokenizer
from training.data import Message, PlainText, Preference, Problem, TextExample, encode_pairs, tokenize


def test_each_answer_is_as_if_it_were_alone() -> None:
    tokenizer = build_tokenizer()
    found = encode_pairs([Preference("a\n", "yes", "no")], tokenizer, 50)
    assert found.rows[0].chosen == tokenize(TextExample("a\n", "yes"), tokenizer)
    assert found.rows[0].rejected == tokenize(TextExample("a\n", "no"), tokenizer)
    assert (found.sources, found.skipped, found.truncated) == ([0], (), 0)


def test_answers_of_the_prompt_are_only_read() -> None:
    tokenizer = of_bytes(CHATML)
    prompt = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    example = Preference(prompt, (Message("assistant", "yes"),), (Message("assistant", "no"),))
    (pair,) = encode_pairs([example], tokenizer, 200).rows
    texts = [spoken(tokenizer, row.ids, row.labels) for row in (pair.chosen, pair.rejected)]
    assert texts == [["yes<|im_end|>"], ["no<|im_end|>"]]


def test_what_does_not_differ_within_the_length_is_skipped() -> None:
    examples = [Preference("a", "xxxy", "xxxz"), Preference("abcdef", "x", "y"), Preference("a", "x", "y")]
    found = encode_pairs(examples, build_tokenizer(), 5)
    assert found.sources == [2]
    assert found.skipped == (
        Problem(1, "both answers are the same within max_length=5", "no_trainable_tokens"),
        Problem(2, "all 2 trained tokens of 9 are beyond max_length=5", "no_trainable_tokens"),
    )


def test_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="example 1 is no preference"):
        encode_pairs([PlainText("a")], build_tokenizer(), 5)
