"""How several runs go, for who sits before them: one bar over all their steps, a line for each that ends."""

from __future__ import annotations

import sys

from server.cli.train.progress import Lines
from training.events import Event, Finished, Progress, Started


class Tally(Lines):
    """Hears of all runs."""

    def __init__(self, runs: int) -> None:
        super().__init__()
        self._runs = runs
        self._taken: dict[str, int] = {}
        self._total = self._ended = 0
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(desc="sweep", unit="step")

    def __call__(self, run: str, event: Event) -> None:
        match event:
            case Started():
                self._total += event.steps
                self._taken[run] = event.resumed_from
            case Progress():
                self._taken[run] = event.step
            case Finished():
                self._ended += 1
                self.say(f"{run}: {event.reason} after {event.step} steps, loss {event.loss:.4f}")
            case _:
                return
        self._show()

    def _show(self) -> None:
        if self._bar is None:
            return
        self._bar.total = self._total
        self._bar.set_postfix_str(f"{self._ended} of {self._runs} done", refresh=False)
        self._bar.update(sum(self._taken.values()) - self._bar.n)
