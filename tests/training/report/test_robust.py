"""Robust statistics, against noise of known size."""

from __future__ import annotations

import math
import random

import pytest

from training.report.robust import bent, fall, noise, spread


def normal(count: int, deviation: float) -> list[float]:
    rng = random.Random(0)
    return [rng.gauss(0, deviation) for _ in range(count)]


def test_they_find_the_deviation_of_normal_noise_and_leave_wild_values_out() -> None:
    values = normal(4000, 0.5)
    for measured in (spread(values), noise(values), bent(values)):
        assert measured == pytest.approx(0.5, rel=0.06)
    wild = [1e6 if place % 50 == 0 else value for place, value in enumerate(values)]
    assert spread(wild) == pytest.approx(0.5, rel=0.1)


def test_a_curve_is_no_noise() -> None:
    line = [place / 100 for place in range(1000)]
    assert noise(line) == pytest.approx(0, abs=1e-9)
    slope = [3 * place for place in range(10)]
    assert bent(slope) == pytest.approx(0)
    both = [curve + value for curve, value in zip(line, normal(1000, 0.5), strict=True)]
    assert noise(both) == pytest.approx(0.5, rel=0.15)


def test_few_values_have_none() -> None:
    assert spread([1.0]) == noise([1.0]) == bent([1.0, 2.0]) == 0.0


def test_a_fall_has_its_standard_error() -> None:
    noisy = normal(2000, 0.1)
    found = fall([2 + value for value in noisy[:1600]], [1 + value for value in noisy[1600:]])
    assert found.share == pytest.approx(0.5, abs=0.01)
    of_median = math.sqrt(math.pi / 2)
    assert found.doubt == pytest.approx(of_median * 0.1 * math.hypot(1 / 40, 1 / 20) / 2, rel=0.2)
    assert fall([0.0], [1.0]).doubt == math.inf
