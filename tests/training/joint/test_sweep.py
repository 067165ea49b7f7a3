"""Combinations, their names, and the choice among results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.events import Evaluated
from training.joint.sweep import Trial, advise, best_of, combinations, name_of
from training.run import RunResult


def trial(
    loss: float | None,
    size: int = 100,
    *,
    validation: float | None = None,
    score: float | None = None,
    complete: bool = True,
    **values: Any,
) -> Trial:
    name = name_of(values)
    if loss is None:
        return Trial(name, values, error="the loss is nan")
    looked = None if validation is None else Evaluated(5, validation, None, "exact_match", score)
    result = RunResult(Path(name), complete, "done", (loss,), 1, 1.0, 10, size, 1000, looked)
    return Trial(name, values, result)


def test_all_combinations_in_the_order_that_they_were_given() -> None:
    found = combinations({"rank": [4, 8, 4], "learning_rate": [1e-3, 1e-2]})
    assert [name_of(values) for values in found] == ["r4-lr0.001", "r4-lr0.01", "r8-lr0.001", "r8-lr0.01"]
    assert combinations({}) == [{}]


def test_names_are_of_all_that_differs() -> None:
    values = {"rank": 4, "alpha": 16.0, "dropout": 0.05, "learning_rate": 2e-4, "batch_size": 8, "seed": 3}
    assert name_of(values) == "r4-a16-dropout0.05-lr0.0002-b8-seed3"


def test_the_lowest_validation_loss_is_best() -> None:
    trials = [
        trial(0.1, validation=0.5, rank=1),
        trial(0.4, validation=0.3, rank=2),
        trial(None, rank=3),
        trial(0.0, validation=float("nan"), rank=4),
        trial(0.0, validation=0.1, rank=5, complete=False),
    ]
    best = best_of(trials)
    assert best is not None
    assert best.name == "r2"


def test_without_validation_the_lowest_training_loss_is_best_and_the_smaller_of_equals() -> None:
    best = best_of([trial(0.2, 50, rank=1), trial(0.1, 90, rank=2), trial(0.1, 70, rank=3)])
    assert best is not None
    assert best.name == "r3"
    assert best_of([trial(None, rank=1)]) is None


def test_advice_names_the_best_and_what_is_nearly_as_good() -> None:
    trials = [
        trial(0.1, 100, validation=0.101, score=0.9, rank=2, learning_rate=0.01),
        trial(0.1, 200, validation=0.1, score=0.95, rank=4, learning_rate=0.01),
        trial(0.1, 400, validation=0.2, score=0.95, rank=8, learning_rate=0.01),
    ]
    assert advise(trials) == [
        "take r4-lr0.01: the lowest validation loss, 0.1, exact_match 0.95",
        "r2-lr0.01 is within 2% of it with 50% of its parameters",
    ]


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ({"rank": 4, "learning_rate": 0.1}, ["rate, 0.1, is the highest", "rank, 4, is the highest"]),
        ({"rank": 2, "learning_rate": 0.001}, ["rate, 0.001, is the lowest"]),
        ({"rank": 2, "learning_rate": 0.01}, []),
    ],
)
def test_advice_where_better_values_may_lie_beyond(best: dict[str, Any], said: list[str]) -> None:
    trials = [
        trial(0.1 if values == best else 0.9, validation=0.1 if values == best else 0.9, **values)
        for values in combinations({"rank": [2, 4], "learning_rate": [0.001, 0.01, 0.1]})
    ]
    lines = [line for line in advise(trials) if "that was tried" in line]
    assert len(lines) == len(said)
    assert all(part in line for part, line in zip(said, lines, strict=True))


def test_advice_without_validation_or_without_results() -> None:
    assert any("--validation" in line for line in advise([trial(0.1, rank=1)]))
    assert advise([trial(None, rank=1)]) == []
