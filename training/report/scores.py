"""Scores of classes from how often each was wanted and said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

Confusion = Mapping[tuple[int, int], int]
"""How often a class was wanted (first) where another, or the same, was said (second)."""


def accuracy(counts: Confusion) -> float:
    """The share that was said as wanted; 0 of nothing."""
    total = sum(counts.values())
    return sum(count for (wanted, said), count in counts.items() if wanted == said) / total if total else 0.0


def macro_f1(counts: Confusion) -> float:
    """The mean F1 of all classes that were wanted or said; 0 of nothing."""
    classes = sorted({each for pair in counts for each in pair})
    return sum(micro_f1(counts, {each}) for each in classes) / len(classes) if classes else 0.0


def micro_f1(counts: Confusion, classes: set[int]) -> float:
    """F1 of all decisions for one of `classes` together: `2 right / (wanted + said)`; 0 of nothing."""
    wanted, said, right = 0, 0, 0
    for (true, found), count in counts.items():
        wanted += count * (true in classes)
        said += count * (found in classes)
        right += count * (true == found and true in classes)
    return 2 * right / (wanted + said) if wanted + said else 0.0


def constant(counts: Confusion) -> Confusion:
    """As if the class that was wanted most often had been said always."""
    wanted: Counter[int] = Counter()
    for (true, _), count in counts.items():
        wanted[true] += count
    most = max(sorted(wanted), key=lambda each: wanted[each])
    return {(true, most): count for true, count in wanted.items()}
