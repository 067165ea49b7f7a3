"""How several runs go, for who sits before them: one bar over all their steps, a line for each that ends."""

from __future__ import annotations

import sys
from typing import Any

from server.cli.text import clean
from training.events import Event, Finished, Progress, Started


class Tally:
    """Hears of all runs. On stderr, so that the output stays the command's own."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._taken: dict[str, int] = {}
        self._total = self._ended = 0
        self._bar: Any = None
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

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._bar is None:
            print(clean(text), file=sys.stderr, flush=True)
        else:
            self._bar.write(clean(text), file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self) -> None:
        if self._bar is None:
            return
        self._bar.total = self._total
        self._bar.set_postfix_str(f"{self._ended} of {self._runs} done", refresh=False)
        self._bar.update(sum(self._taken.values()) - self._bar.n)
