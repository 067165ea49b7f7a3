"""Words: seeded, of a bounded length, and on one side of the split for ever."""

from __future__ import annotations

import random

import pytest

from training.base.words import Split, draw_word, split_of


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_words_stay_on_their_side(split: Split) -> None:
    words = [draw_word(random.Random(seed), split) for seed in range(300)]
    assert {split_of(word) for word in words} == {split}
    assert all(3 <= len(word) <= 10 and word.isascii() and word.islower() for word in words)


def test_case_does_not_move_a_word() -> None:
    assert split_of("River") == split_of("river") == split_of("RIVER")


def test_about_a_tenth_is_held_out() -> None:
    held = sum(split_of(f"word{number}") == "held-out" for number in range(5000))
    assert 400 < held < 600
