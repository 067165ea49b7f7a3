"""Verdicts of the gate: better than the base, no worse than the current version, beyond what is chance."""

from __future__ import annotations

import math

import pytest

from training.events import Evaluated
from training.report.verdict import tolerance, verdict


def look(score: float | None, loss: float = 1.0) -> Evaluated:
    return Evaluated(0, loss, None, "exact_match", score)


BASE = look(0.0, 3.0)


def test_a_good_one_passes_and_all_figures_are_told() -> None:
    found = {"base": BASE, "adapter": look(0.9, 0.1), "current": look(0.8, 0.2)}
    assert verdict(found, 100, None) == (
        True,
        "exact_match 0.90, loss 0.1; the base has 0.00 and 3; the current version 0.80 and 0.2",
    )
    del found["current"]
    assert verdict(found, 100, 0.9) == (True, "exact_match 0.90, loss 0.1; the base has 0.00 and 3")


def test_one_that_is_below_says_what_it_is_below() -> None:
    found = {"base": BASE, "adapter": look(0.42), "current": look(0.61)}
    assert verdict(found, 100, None) == (False, "exact_match 0.42 is below the current version's 0.61")
    assert verdict({**found, "base": look(0.6)}, 100, None) == (
        False,
        "exact_match 0.42 is below the base's 0.60",
    )
    assert verdict(found, 100, 0.5) == (False, "exact_match 0.42 is below the minimum of 0.5")


@pytest.mark.parametrize(
    ("adapter", "base", "passed"),
    [
        (look(0.5, 2.0), look(0.1, 1.0), True),  # clearly more right, whatever the loss
        (look(0.0, 1.0), look(0.0, 2.0), True),  # free answers are never exact: the loss decides
        (look(0.0, 1.99), look(0.0, 2.0), False),
        (look(0.0, 2.0), look(0.0, 2.0), False),  # nothing was learned
        (look(0.52, 2.0), look(0.5, 1.9), False),  # within chance, and the loss is worse
        (look(0.48, 1.0), look(0.5, 2.0), True),  # within chance, and the loss is better
        (look(0.2, 1.0), look(0.5, 2.0), False),
        (look(None, 1.0), look(None, 2.0), True),
    ],
)
def test_better_than_the_base(adapter: Evaluated, base: Evaluated, passed: bool) -> None:
    assert verdict({"adapter": adapter, "base": base}, 100, None)[0] is passed


@pytest.mark.parametrize(
    ("adapter", "current", "passed"),
    [
        (look(0.9, 0.5), look(0.9, 0.1), True),  # as good
        (look(0.88, 0.1), look(0.9, 0.1), True),  # within chance
        (look(0.88, 0.3), look(0.9, 0.1), False),  # within chance, but the loss says it is worse
        (look(0.7, 0.01), look(0.9, 0.1), False),
        (look(0.0, 1.04), look(0.0, 1.0), True),
        (look(0.0, 1.2), look(0.0, 1.0), False),
        (look(1.0, 0.02), look(1.0, 0.001), True),
    ],
)
def test_no_worse_than_the_current_version(adapter: Evaluated, current: Evaluated, passed: bool) -> None:
    assert verdict({"adapter": adapter, "base": BASE, "current": current}, 100, None)[0] is passed


def test_few_rows_are_said_and_widen_the_tolerance() -> None:
    found = {"base": BASE, "adapter": look(0.7, 0.2), "current": look(0.8, 0.2)}
    passed, reason = verdict(found, 10, None)
    assert passed
    assert reason.endswith("; 10 rows are few to judge by")
    assert not verdict(found, 1000, None)[0]


def test_the_tolerance_is_a_standard_error() -> None:
    """Of the difference of two independent shares; a hundredth part for a hundred times as many rows."""
    assert tolerance(0.5, 0.5, 50) == pytest.approx(math.sqrt(2 * 0.25 / 50))
    assert tolerance(0.5, 0.5, 5000) == 0.02
    assert tolerance(1.0, 1.0, 3) == 0.02


def test_a_loss_that_is_no_number_never_passes() -> None:
    passed, reason = verdict({"base": BASE, "adapter": look(1.0, math.nan)}, 100, None)
    assert (passed, reason) == (False, "the validation loss is nan")
