"""The learning rate rises in a line, falls as it is told, and never is zero."""

from __future__ import annotations

import pytest

from training.rates import rate
from training.spec import Schedule


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_rises_then_falls(schedule: Schedule) -> None:
    factor = rate(schedule, steps=100, warmup=10)
    values = [factor(step) for step in range(100)]
    peak = values.index(max(values))
    assert 8 <= peak <= 11
    assert values[:peak] == sorted(values[:peak])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert min(values) > 0


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_ends_at_a_fiftieth_and_stays_there(schedule: Schedule) -> None:
    factor = rate(schedule, steps=50, warmup=0)
    assert factor(0) == pytest.approx(1.0)
    assert factor(50) == factor(80) == pytest.approx(0.02)


def test_half_way() -> None:
    assert rate("linear", 50, 0)(25) == pytest.approx(0.51)
    assert rate("cosine", 50, 0)(25) == pytest.approx(0.51)
    assert rate("cosine", 50, 0)(10) > rate("linear", 50, 0)(10)


def test_constant_stays_after_its_warmup() -> None:
    factor = rate("constant", steps=20, warmup=4)
    assert [factor(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert {factor(step) for step in range(5, 20)} == {1.0}
