"""Whether a result is better than its base, and no worse than the version that it would replace.

A score is clearly higher or lower where the difference is above the tolerance: 0.02, or one standard error
of the difference of two shares of so many rows, if that is larger. The result

- is better than the base if its score is clearly higher, or if it is not clearly lower and the loss is
  lower by at least 2%;
- is no worse than the current version if its score is at least as high; or, where it is lower but not
  clearly, or where neither gets anything right, if the loss is at most 5% or 0.02 nats higher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from training.events import Evaluated

FEW_ROWS = 20
TOLERANCE = 0.02
BETTER_LOSS = 0.98
WORSE_LOSS, WORSE_NATS = 1.05, 0.02


def verdict(found: Mapping[str, Evaluated], rows: int, minimum: float | None) -> tuple[bool, str]:
    """Whether the result passes, and why.

    Args:
        found: evaluations of `adapter`, `base` and, where there is one, `current`, on so many rows.
        minimum: the score that the result must reach at least, besides.
    """
    adapter, base, current = found["adapter"], found["base"], found.get("current")
    passed, reason = _judge(adapter, base, current, rows, minimum)
    return passed, f"{reason}; {rows} rows are few to judge by" if rows < FEW_ROWS else reason


def tolerance(first: float, second: float, rows: int) -> float:
    """How far two shares of so many rows may be apart without one being clearly higher."""
    return max(TOLERANCE, math.sqrt((first * (1 - first) + second * (1 - second)) / rows))


def _judge(
    adapter: Evaluated, base: Evaluated, current: Evaluated | None, rows: int, minimum: float | None
) -> tuple[bool, str]:
    score = _score(adapter)
    if not math.isfinite(adapter.loss):
        return False, f"the validation loss is {adapter.loss}"
    if minimum is not None and score < minimum:
        return False, f"{adapter.metric} {score:.2f} is below the minimum of {minimum:g}"
    if not _better(adapter, base, rows):
        return False, _short_of(adapter, base, "the base's", rows)
    if current is not None and _worse(adapter, current, rows):
        return False, _short_of(adapter, current, "the current version's", rows)
    told = f"{adapter.metric} {score:.2f}, loss {adapter.loss:.3g}; the base has {_both(base)}"
    return True, told if current is None else f"{told}; the current version {_both(current)}"


def _better(adapter: Evaluated, base: Evaluated, rows: int) -> bool:
    ahead, clear = _ahead(adapter, base, rows)
    return ahead > clear or (ahead >= -clear and adapter.loss < BETTER_LOSS * base.loss)


def _worse(adapter: Evaluated, current: Evaluated, rows: int) -> bool:
    ahead, clear = _ahead(adapter, current, rows)
    if ahead < -clear:
        return True
    if ahead >= 0 and _score(adapter) > 0:
        return False
    return adapter.loss > max(WORSE_LOSS * current.loss, current.loss + WORSE_NATS)


def _short_of(adapter: Evaluated, other: Evaluated, whose: str, rows: int) -> str:
    """The figures that decided: the score where it is clearly lower, else the loss too."""
    ahead, clear = _ahead(adapter, other, rows)
    relation = "below" if ahead < 0 else "not clearly above"
    said = f"{adapter.metric} {_score(adapter):.2f} is {relation} {whose} {_score(other):.2f}"
    if ahead < -clear:
        return said
    return f"{said}, and the loss {adapter.loss:.3g} is not better than {whose} {other.loss:.3g}"


def _ahead(adapter: Evaluated, other: Evaluated, rows: int) -> tuple[float, float]:
    """By how much the adapter's score is higher, and from where on that is clear."""
    first, second = _score(adapter), _score(other)
    return first - second, tolerance(first, second, rows)


def _both(evaluated: Evaluated) -> str:
    return f"{_score(evaluated):.2f} and {evaluated.loss:.3g}"


def _score(evaluated: Evaluated) -> float:
    return 0.0 if evaluated.score is None else evaluated.score
