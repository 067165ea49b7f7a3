"""How a run goes, for who sits before it: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import shutil
import sys
from typing import Any

from server.cli.text import clean
from training.events import Advised, Evaluated, Event, Finished, Progress, Started

_TEXT = 60


class Lines:
    """Lines on stderr, so that the output stays the command's own; above a bar where there is one."""

    def __init__(self) -> None:
        self._bar: Any = None

    def say(self, text: str) -> None:
        if self._bar is None:
            print(clean(text), file=sys.stderr, flush=True)
        else:
            self._bar.write(clean(text), file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Bar(Lines):
    """Shows what a run tells."""

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self._start(event)
            case Progress():
                self._step(event)
            case Evaluated():
                self._evaluated(event)
            case Advised():
                self.say(f"advice: {event.message}" if event.step else event.message)
            case Finished():
                self.close()
            case _:
                pass

    def _start(self, event: Started) -> None:
        share = event.trainable_parameters / event.total_parameters
        again = f", going on after step {event.resumed_from}" if event.resumed_from else ""
        self.say(
            f"{event.train_rows} rows, {event.validation_rows} to validate, {event.steps} steps{again}; "
            f"{event.trainable_parameters:,} of {event.total_parameters:,} parameters train ({share:.2%})"
        )
        if sys.stderr.isatty():
            from tqdm import tqdm

            size = shutil.get_terminal_size()  # tqdm shows nothing where a terminal says that it has none
            self._bar = tqdm(
                total=event.steps,
                initial=event.resumed_from,
                desc="train",
                unit="step",
                ncols=size.columns,
                nrows=size.lines,
            )

    def _step(self, event: Progress) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss={event.loss:.3f}, lr={event.learning_rate:.1e}, {event.tokens_per_second:.0f} tok/s",
                refresh=False,
            )
            self._bar.update(event.step - self._bar.n)

    def _evaluated(self, event: Evaluated) -> None:
        score = "" if event.score is None else f", {event.metric} {event.score:.2f}"
        self.say(f"step {event.step}: validation loss {event.loss:.3f}{score}")
        for sample in event.samples:
            mark = "" if sample.answer == sample.wanted else f", not {_short(sample.wanted)}"
            self.say(f"    {_short(sample.prompt)} -> {_short(sample.answer)}{mark}")


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= _TEXT else f"{shown[:_TEXT]}..."
