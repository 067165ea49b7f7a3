"""Pauses between tokens within a time."""

from __future__ import annotations

import pytest

from bench.hot_swap import gaps


def test_only_gaps_within_the_time_count() -> None:
    assert gaps([[0, 5, 6, 8], [5.5, 6.5, 30]], 5, 10) == {"median": 1, "p99": 1, "worst": 2}


def test_no_token_at_all_is_no_measurement() -> None:
    with pytest.raises(RuntimeError):
        gaps([[0, 5]], 6, 10)
