"""Runs that never were: curves of any shape, with noise, as events."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from training.events import Evaluated, Event, Finished, Progress, Sample, Started

Curve = Callable[[float], float]
"""A loss at a share of the run, 0 to 1."""


def healthy(share: float) -> float:
    return 0.3 + 2.0 * math.exp(-6 * share)


def started(steps: int, resumed_from: int = 0) -> Started:
    return Started(1e9, steps, 1000, 100_000, 400, 50, resumed_from)


def progress(step: int, loss: float, norm: float = 0.5, steps: int = 100) -> Progress:
    rate = 2e-4 * 0.5 * (1 + math.cos(math.pi * step / steps))
    return Progress(
        step, loss, rate, norm, 1200.0, 1.0 * (steps - step), step * 64, min(1.0, math.exp(-loss))
    )


def evaluated(step: int, loss: float) -> Evaluated:
    right = math.exp(-loss)
    samples = (Sample("do: river\n", "RIVER", "RIVER!"),)
    return Evaluated(step, loss, right, "exact_match", right**4, samples, {"other": 0.25})


def run(
    training: Curve,
    validation: Curve | None = None,
    *,
    steps: int = 200,
    noise: float = 0.0,
    seed: int = 0,
    every: int = 0,
    norm: Curve = lambda share: 0.5,
    spikes: Sequence[int] = (),
    finished: str | None = "done",
) -> list[Event]:
    """The events of a run.

    Args:
        noise: standard deviation of the training loss, as a share of it; an eighth of it for validation.
        every: steps between two evaluations; 0: a tenth of the run.
        spikes: steps at which the loss is four times as high.
    """
    rng = random.Random(seed)
    events: list[Event] = [started(steps)]
    for step in range(1, steps + 1):
        share = step / steps
        loss = training(share) * math.exp(rng.gauss(0, noise)) * (4 if step in spikes else 1)
        events.append(progress(step, loss, norm(share), steps))
        if validation is not None and step % (every or max(1, steps // 10)) == 0:
            events.append(evaluated(step, validation(share) * math.exp(rng.gauss(0, noise / 8))))
    if finished is not None:
        events.append(Finished(steps, finished, 12.0, training(1.0), steps * 64))
    return events
