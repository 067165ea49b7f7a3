"""How the learning rate goes over a run: up in a line, then down or on as it is."""

from __future__ import annotations

import math
from collections.abc import Callable

from training.spec import Schedule

_FLOOR = 0.02


def rate(schedule: Schedule, steps: int, warmup: int) -> Callable[[int], float]:
    """The factor on the learning rate at each step, counted from 0.

    It rises to 1 over `warmup` steps. Then `cosine` falls along half a cosine and `linear` in a line, both
    to a fiftieth at the end; `constant` stays.
    """

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / (warmup + 1))
        return rise * (_FLOOR + (1 - _FLOOR) * _falls[schedule](min(step, steps) / steps))

    return factor


_falls: dict[Schedule, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}
