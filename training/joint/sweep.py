"""Combinations of settings tried together, and which of them to take."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.run import RunResult

_CLOSE = 0.02
"""Losses are as good as equal within this share."""
_SHORT = {"rank": "r", "alpha": "a", "learning_rate": "lr", "batch_size": "b", "weight_decay": "wd"}
_ENDS = {"learning_rate": "learning rate", "rank": "rank"}
"""Fields whose best value may lie beyond those that were tried."""


def combinations(swept: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every choice of one value for each field, the last field changing first; equal values count once."""
    values = [dict.fromkeys(each) for each in swept.values()]
    return [dict(zip(swept, chosen, strict=True)) for chosen in itertools.product(*values)]


def name_of(values: Mapping[str, Any]) -> str:
    """Of a combination, as the name of its folder: `r8-a16-lr0.01`."""
    return "-".join(f"{_SHORT.get(field, field)}{value:g}" for field, value in values.items())


@dataclass(frozen=True, slots=True)
class Trial:
    """A combination and what came of it. `error`: why nothing did."""

    name: str
    values: Mapping[str, Any]
    result: RunResult | None = None
    error: str | None = None

    @property
    def loss(self) -> float:
        """What trials are compared by: the validation loss, or without validation rows that of training."""
        if self.result is None:
            return math.inf
        evaluation = self.result.evaluation
        found = self.result.loss if evaluation is None else evaluation.loss
        return found if math.isfinite(found) else math.inf


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The complete trial with the lowest loss, the smaller one of equals; None if there is none."""
    complete = [trial for trial in trials if trial.result is not None and trial.result.complete]
    return min(complete, key=lambda trial: (trial.loss, _size(trial)), default=None)


def advise(trials: Sequence[Trial]) -> list[str]:
    """Which to take and what to try next, a line each; none where nothing came of any."""
    best = best_of(trials)
    if best is None or best.result is None:
        return []
    evaluation = best.result.evaluation
    what = "training loss" if evaluation is None else "validation loss"
    score = ""
    if evaluation is not None and evaluation.score is not None:
        score = f", {evaluation.metric} {evaluation.score:.2f}"
    lines = [f"take {best.name}: the lowest {what}, {best.loss:.4g}{score}"]
    if evaluation is None:
        lines.append("give --validation: the lowest training loss may be learned by heart")
    smaller = [
        trial for trial in trials if trial.loss <= best.loss * (1 + _CLOSE) and _size(trial) < _size(best)
    ]
    if smaller:
        least = min(smaller, key=_size)
        share = _size(least) / _size(best)
        lines.append(f"{least.name} is within {_CLOSE:.0%} of it with {share:.0%} of its parameters")
    return lines + [line for field in _ENDS if (line := _beyond(field, best, trials))]


def _beyond(field: str, best: Trial, trials: Sequence[Trial]) -> str | None:
    """What to say where the best value is the last one on its side."""
    tried = sorted({trial.values[field] for trial in trials if field in trial.values})
    if len(tried) < 2 or best.values[field] not in (tried[0], tried[-1]):
        return None
    highest = best.values[field] == tried[-1]
    where, further = ("highest", "higher") if highest else ("lowest", "lower")
    if field == "rank" and not highest:
        return None  # small and best: nothing is wrong with that
    found = f"{best.values[field]:g}"
    return f"the best {_ENDS[field]}, {found}, is the {where} that was tried: try {further} ones too"


def _size(trial: Trial) -> float:
    return trial.result.trainable_parameters if trial.result is not None else math.inf
