"""The pauses of running answers, from made-up arrival times."""

from __future__ import annotations

import pytest

from bench.long_prompt import gaps_of


def test_the_worst_gap_is_counted_in_intervals() -> None:
    # Steps of 1 second; the prompt comes at 4.5, its first token at 8; from 5 to 7.5 nothing comes.
    times = [[0.5, 1, 2, 3, 4, 5, 7.5, 8.5], [1, 2, 3, 4, 5, 7.5, 8.5, 30]]
    figures = gaps_of(times, 4.5, 8)

    assert figures["interval"] == 1
    assert figures["worst_gap"] == 2.5  # not the 21.5 after the prompt was done
    assert figures["steps"] == 2.5
    assert figures["first_token"] == pytest.approx(3.5)


def test_an_answer_stands_still_from_before_the_prompt_until_after_it() -> None:
    assert gaps_of([[1, 2, 3, 9], [1, 2, 3, 9]], 3.5, 8)["steps"] == 6
