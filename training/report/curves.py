"""The curves of a run, from its events alone: one line also where a run was killed and went on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

from training.events import Evaluated, Event, Finished, Progress, Started, event_from_json

_Point = TypeVar("_Point", Progress, Evaluated)


class Curves:
    """Collects events; a `Report`.

    A run that goes on from a checkpoint takes the steps behind it once more: what was told of them before
    is dropped.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.started: Started | None = None
        self.finished: Finished | None = None
        self._progress: dict[int, Progress] = {}
        self._evaluated: dict[int, Evaluated] = {}
        for event in events:
            self(event)

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self.started, self.finished = event, None
                self._progress = _until(self._progress, event.resumed_from)
                self._evaluated = _until(self._evaluated, event.resumed_from)
            case Progress():
                self._progress[event.step] = event
            case Evaluated():
                self._evaluated[event.step] = event
            case Finished():
                self.finished = event
            case _:
                pass

    @property
    def progress(self) -> list[Progress]:
        """One for each step, ascending."""
        return [self._progress[step] for step in sorted(self._progress)]

    @property
    def evaluated(self) -> list[Evaluated]:
        """One for each evaluation, ascending."""
        return [self._evaluated[step] for step in sorted(self._evaluated)]

    @property
    def best(self) -> Evaluated | None:
        """The evaluation with the lowest validation loss, the first of equals."""
        found = [each for each in self.evaluated if math.isfinite(each.loss)]
        return min(found, key=lambda each: each.loss, default=None)


def read_events(path: Path) -> Iterator[Event]:
    """What `events.jsonl` has. A line that a kill cut off is left out."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                yield event_from_json(json.loads(line))
            except (ValueError, AttributeError):
                continue


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Means over about `window` values around each: the line does not lag behind. Fewer at both ends."""
    sums = [0.0, *accumulate(values)]
    found = []
    for place in range(len(values)):
        reach = min(window // 2, place, len(values) - 1 - place)
        found.append((sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1))
    return found


def _until(points: dict[int, _Point], last: int) -> dict[int, _Point]:
    return {step: point for step, point in points.items() if step <= last}
