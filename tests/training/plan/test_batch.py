"""Effective batch = rows x passes x devices: each from the others; what can't be is told with its numbers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.plan.batch import Batch, solve_batch

SMALL = st.integers(1, 12)


@given(SMALL, SMALL, SMALL)
def test_any_one_of_the_four_follows_from_the_others(rows: int, passes: int, devices: int) -> None:
    whole = Batch(rows, passes, devices)
    effective = rows * passes * devices
    assert whole.effective == effective
    assert solve_batch(rows, passes, None, devices) == whole
    assert solve_batch(rows, None, effective, devices) == whole
    assert solve_batch(None, passes, effective, devices) == whole
    assert solve_batch(rows, passes, effective, None) == whole
    assert solve_batch(rows, passes, effective, devices) == whole


def test_the_example_of_the_texts() -> None:
    assert solve_batch(rows=2, effective=8).accumulation == 4


def test_devices_count() -> None:
    assert solve_batch(rows=2, effective=16, devices=4).accumulation == 2


def test_what_is_free_makes_the_usual_batch() -> None:
    assert solve_batch() == Batch(16, 1, 1)
    assert solve_batch(rows=4) == Batch(4, 4, 1)
    assert solve_batch(accumulation=2) == Batch(8, 2, 1)
    assert solve_batch(devices=3) == Batch(5, 1, 3)
    assert solve_batch(rows=32) == Batch(32, 1, 1)
    assert solve_batch(most_rows=5) == Batch(4, 4, 1)
    assert solve_batch(effective=7, most_rows=5) == Batch(1, 7, 1)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (
            {"rows": 8, "accumulation": 2, "effective": 10, "devices": 1},
            "batch size 8 x accumulation 2 x 1 devices is 16, not the effective batch 10: leave one out",
        ),
        (
            {"rows": 4, "effective": 10},
            "an effective batch of 10 can't be made of 4 rows x 1 devices: 10 / 4 is no whole number; "
            "8 or 12 would do",
        ),
        ({"accumulation": 3, "effective": 10}, "10 / 3 is no whole number; 9 or 12 would do"),
        ({"rows": 3, "accumulation": 2, "effective": 9}, "9 / 6 is no whole number; 6 or 12 would do"),
        ({"effective": 2, "devices": 4}, "2 / 4 is no whole number; 4 would do"),
        ({"rows": 0}, "the batch size must be at least 1, not 0"),
    ],
)
def test_contradictions_are_told_with_the_numbers(numbers: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"must be|can't be made|leave one") as refused:
        solve_batch(**numbers)
    assert said in str(refused.value)
