"""Scores of classes, against sums done by hand."""

from __future__ import annotations

import pytest

from training.report.scores import accuracy, constant, macro_f1, micro_f1

# Ten decisions over classes 0 (nothing), 1 and 2.
COUNTS = {(0, 0): 4, (0, 1): 1, (1, 1): 2, (1, 2): 1, (2, 0): 1, (2, 2): 1}


def test_accuracy_is_the_share_of_the_right() -> None:
    assert accuracy(COUNTS) == 7 / 10
    assert accuracy({}) == 0.0


def test_macro_f1_is_the_mean_over_classes() -> None:
    """0: 4 right of 5 wanted and 5 said; 1: 2 of 3 and 3; 2: 1 of 2 and 2."""
    assert macro_f1(COUNTS) == pytest.approx((8 / 10 + 4 / 6 + 2 / 4) / 3)
    assert macro_f1({(0, 1): 5}) == 0.0  # a class that was only said counts too


def test_micro_f1_leaves_nothing_out_of_it() -> None:
    """3 right; 5 wanted are not class 0, and 5 said are not."""
    assert micro_f1(COUNTS, {1, 2}) == pytest.approx(6 / 10)
    assert micro_f1({(0, 0): 9}, {1, 2}) == 0.0


def test_the_best_constant_says_what_is_wanted_most() -> None:
    said = constant(COUNTS)
    assert said == {(0, 0): 5, (1, 0): 3, (2, 0): 2}
    assert accuracy(said) == 0.5
