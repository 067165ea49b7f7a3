"""Figures against Python's own statistics."""

from __future__ import annotations

import statistics
from array import array

from training.data.statistics import Distribution, Statistics, distribution


def test_figures_are_those_of_the_standard_library() -> None:
    values = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    found = distribution(array("Q", values))
    mean, median = round(statistics.fmean(values), 1), statistics.median(values)
    assert found == Distribution(sum(values), mean, median, cuts[0], cuts[-1], 9)


def test_nothing_has_no_figures() -> None:
    assert distribution(array("Q")) is None
    assert Statistics(0, 0).to_json()["tokens"] is None


def test_one_value_is_everything() -> None:
    assert distribution(array("Q", [7])) == Distribution(7, 7.0, 7.0, 7.0, 7.0, 7)
