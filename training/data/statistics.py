"""Figures of a file of training data."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Distribution:
    """How a count for each row is spread. Percentiles are between the nearest rows, as numpy has them."""

    total: int
    mean: float
    median: float
    p5: float
    p95: float
    max: int


def distribution(values: array[int]) -> Distribution | None:
    """Of one value for each row; None where there is none."""
    import numpy as np

    if not values:
        return None
    found = np.frombuffer(values, dtype=f"u{values.itemsize}")
    p5, median, p95 = (round(float(value), 1) for value in np.percentile(found, (5, 50, 95)))
    return Distribution(int(found.sum()), round(float(found.mean()), 1), median, p5, p95, int(found.max()))


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of the rows without a fault.

    Attributes:
        rows: all lines that are not blank.
        examples: those without a fault.
        messages: of chats.
        tokens: of each row as it is trained, of both answers of a preference; None without a tokenizer.
        trained_tokens: those that the loss counts, in one epoch.
        labels: how often each is there, by name.
    """

    rows: int
    examples: int
    messages: Distribution | None = None
    tokens: Distribution | None = None
    trained_tokens: Distribution | None = None
    truncated: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)
