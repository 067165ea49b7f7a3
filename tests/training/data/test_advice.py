"""Advice: OpenAI's epochs, the seed texts' sizes, and what else figures say."""

from __future__ import annotations

import pytest

from training.data.advice import advise, auto_epochs
from training.data.statistics import Statistics


@pytest.mark.parametrize(
    ("rows", "epochs"),
    [
        (0, 25),
        (1, 25),
        (4, 25),
        (5, 20),
        (33, 3),
        (34, 3),
        (100, 3),
        (8333, 3),
        (8334, 2),
        (12501, 1),
        (10**6, 1),
    ],
)
def test_epochs_are_what_openai_would_take(rows: int, epochs: int) -> None:
    assert auto_epochs(rows) == epochs


def advice(
    longest: int = 0, max_length: int | None = None, *, validated: bool = True, **found: object
) -> str:
    rows = Statistics(**{"rows": 500, "examples": 500, **found})  # type: ignore[arg-type]
    return "\n".join(advise(rows, longest, max_length, validated))


def test_the_bands_of_the_seed_texts_are_told() -> None:
    for band in (
        "3,000 to 5,000 for 10 billion",
        "5,000 to 10,000 for 32",
        "10,000 to 20,000 for 64 billion",
    ):
        assert band in advice()
    assert advice(examples=0) == ""


def test_what_figures_say() -> None:
    assert "refuses files under 10 rows" in advice(examples=9)
    assert "refuses" not in advice(examples=10)
    assert "max_length=80 would keep every row whole" in advice(80, 64, truncated=3)
    assert "The longest row has 30 tokens: max_length=30 is enough" in advice(30, 64)
    assert "max_length" not in advice(40, 64)
    assert "'a' is there 90 times, 'b' 9 times" in advice(labels={"a": 90, "b": 9})
    assert "is there" not in advice(labels={"a": 90, "b": 10})
    assert "No validation file" in advice(validated=False)
    assert "No validation file" not in advice()
