"""Statistics that a few wild values do not move, and what is said of falling losses with their doubt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

_NORMAL = 1.4826
"""From a median absolute deviation to a standard deviation of normal noise."""

_OF_MEDIAN = math.sqrt(math.pi / 2)
"""The standard error of a median of normal values, in that of their mean."""


def spread(values: Sequence[float]) -> float:
    """The standard deviation, as the median absolute deviation tells it; 0 of fewer than two values."""
    if len(values) < 2:
        return 0.0
    middle = median(values)
    return _NORMAL * median(abs(value - middle) for value in values)


def noise(values: Sequence[float]) -> float:
    """The standard deviation around whatever slow curve the values follow: of differences of neighbours."""
    return spread([after - before for before, after in pairwise(values)]) / math.sqrt(2)


def bent(values: Sequence[float]) -> float:
    """As `noise`, for few values on a curve that is not slow: how far three neighbours are from a line."""
    off = [values[at - 1] - 2 * values[at] + values[at + 1] for at in range(1, len(values) - 1)]
    return _NORMAL * median(map(abs, off)) / math.sqrt(6) if off else 0.0


@dataclass(frozen=True, slots=True)
class Fall:
    """By how much values fell, as a share of what they were before; `doubt`: its standard error."""

    share: float
    doubt: float


def fall(before: Sequence[float], after: Sequence[float]) -> Fall:
    """From the median of `before` to that of `after`, which are successive values of positive curves."""
    first, last = median(before), median(after)
    if first <= 0:
        return Fall(0.0, math.inf)
    of_first, of_last = noise(before) / math.sqrt(len(before)), noise(after) / math.sqrt(len(after))
    return Fall((first - last) / first, _OF_MEDIAN * math.hypot(of_first, of_last) / first)
