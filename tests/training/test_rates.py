"""The learning rate rises in a line, falls along a cosine, and never is zero."""

from __future__ import annotations

import pytest

from training.rates import warmup_cosine


def test_rises_then_falls() -> None:
    rate = warmup_cosine(steps=100, warmup=10)
    values = [rate(step) for step in range(100)]
    peak = values.index(max(values))
    assert 8 <= peak <= 11
    assert values[:peak] == sorted(values[:peak])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert min(values) > 0


def test_ends_at_a_fiftieth_and_stays_there() -> None:
    rate = warmup_cosine(steps=50, warmup=0)
    assert rate(0) == pytest.approx(1.0)
    assert rate(50) == rate(80) == pytest.approx(0.02)
