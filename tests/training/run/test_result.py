"""The result of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.run import RunResult


@pytest.mark.parametrize(
    ("losses", "loss"), [((9.0, 1.0), 1.0), ((*[9.0] * 18, 1.0, 2.0), 1.5), ((4.0,), 4.0), ((), 0.0)]
)
def test_its_loss_is_the_mean_of_the_last_tenth(losses: tuple[float, ...], loss: float) -> None:
    assert RunResult(Path(), True, "done", losses, len(losses), 1.0, 1, 1, 2).loss == loss
