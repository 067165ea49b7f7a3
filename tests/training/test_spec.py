"""Specs refuse what can't be run, in one line that names the value."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from training.spec import LoraSpec, TrainSpec


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoraSpec(rank=0), "rank must be at least 1, not 0"),
        (lambda: LoraSpec(alpha=0), "alpha must be above 0, not 0"),
        (lambda: LoraSpec(dropout=1), "dropout must be from 0 to below 1, not 1"),
        (lambda: LoraSpec(target_modules=()), "target_modules is empty"),
        (lambda: TrainSpec(epochs=0), "epochs must be at least 1, not 0"),
        (lambda: TrainSpec(steps=0), "steps must be at least 1, not 0"),
        (lambda: TrainSpec(batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda: TrainSpec(learning_rate=-1), "learning_rate must be above 0, not -1"),
        (lambda: TrainSpec(warmup=1), "warmup must be from 0 to below 1, not 1"),
        (lambda: TrainSpec(weight_decay=-1), "weight_decay must be at least 0, not -1"),
        (lambda: TrainSpec(max_length=1), "max_length must be at least 2, not 1"),
    ],
)
def test_bad_values_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_steps_win_over_epochs() -> None:
    assert TrainSpec(epochs=2, batch_size=8).total_steps(17) == 6
    assert TrainSpec(epochs=2, batch_size=8, steps=5).total_steps(17) == 5
