"""How the learning rate goes over a run: up in a line, then down along half a cosine."""

from __future__ import annotations

import math
from collections.abc import Callable

_FLOOR = 0.02


def warmup_cosine(steps: int, warmup: int) -> Callable[[int], float]:
    """The factor on the learning rate at each step, from 0 up to 1 and down to a fiftieth."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / (warmup + 1))
        fall = 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))
        return rise * (_FLOOR + (1 - _FLOOR) * fall)

    return factor
