"""The table of targets, from made-up runs whose ratios are known."""

from __future__ import annotations

from typing import Any

import pytest

from bench.rounds import Figures
from bench.targets import Target, targets


def runs(*values: float, figure: str = "tokens_per_second") -> list[Figures]:
    return [{"round": float(number), figure: value} for number, value in enumerate(values)]


def report(**cases: list[Figures]) -> dict[str, Any]:
    return {"cases": cases}


THROUGHPUT = {
    "base, beside vLLM": runs(20, 22, 30),
    "vLLM: base": runs(10, 11, 10),
    "base": runs(100, 110, 90),
    "8 adapters": runs(80, 99, 90),
    "vLLM: 8 adapters": runs(8, 9),
    "PEFT: mixed, bfloat16": runs(1, 2, 1),
    "PEFT: mixed, float32": runs(40, 33, 30),
}
SINGLE = {
    "base": [{"round": 0, "first_token": 0.9, "between_tokens": 0.8}],
    "1 adapter": [{"round": 0, "first_token": 1.0, "between_tokens": 1.0}],
}


def find(text: str, shape: str = "0.5b") -> Target:
    (row,) = [row for row in targets() if row.text.startswith(text) and row.shape == shape]
    return row


@pytest.mark.parametrize(
    ("text", "figures", "reached"),
    [
        ("base-only, 8 clients", [2, 2, 3], True),
        ("8 adapters, 8 clients, against vLLM", [10, 11], False),
        ("8 adapters, 8 clients, against PEFT", [2, 3, 3], False),
        ("8 adapters against base, 8 clients", [0.8, 0.9, 1.0], True),
        ("8 adapters against base, 32 clients", [], None),
        ("one request with one adapter against base, first token", [0.9], True),
        ("one request with one adapter against base, decode", [0.8], False),
    ],
)
def test_a_target_is_the_median_of_ratios_within_rounds(
    text: str, figures: list[float], reached: bool | None
) -> None:
    reports = {("throughput", "0.5b"): report(**THROUGHPUT), ("single", "0.5b"): report(**SINGLE)}
    row = find(text)

    assert row.figures(reports) == pytest.approx(figures)
    assert row.reached(row.figures(reports)) is reached


def test_what_must_stay_below_its_bound() -> None:
    row = find("decode step of 32 requests against the floor")
    reports = {("floor", "0.5b"): report(**{"32 requests": runs(2.1, 2.3, 2.2, figure="times_floor")})}

    assert row.reached(row.figures(reports)) is True
    assert row.reached([2.21]) is False


def test_a_figure_without_a_bound_is_only_reported() -> None:
    assert find("start to ready, base").reached([3.0]) is None
    assert find("8 adapters against base, 8 clients", "135m").reached([0.1]) is None


def test_the_gap_of_others_is_set_against_their_own_before_anything_is_published() -> None:
    cases = {"quiet": runs(0.2, figure="worst"), "while publishing": runs(0.3, figure="worst")}
    reports = {("hot-swap", "0.5b"): report(**cases)}

    assert find("worst gap between tokens of others").figures(reports) == pytest.approx([300])
    assert find("the same against their worst gap").figures(reports) == pytest.approx([1.5])
