"""Latencies of answers as they were timed."""

from __future__ import annotations

import pytest

from bench.training_beside import latencies


def test_first_tokens_and_gaps_are_told_apart() -> None:
    answers = [[0.0, 1.0, 1.1, 1.2], [10.0, 12.0, 12.1, 12.6]]
    assert latencies(answers) == pytest.approx(
        {"first_token": 2.0, "first_token_p99": 2.0, "between_tokens": 0.1, "between_tokens_p99": 0.5}
    )


def test_the_99th_percentile_is_near_the_worst() -> None:
    answers = [[0.0, float(seconds), float(seconds) + 1] for seconds in range(1, 101)]
    assert latencies(answers)["first_token_p99"] == 99
