"""How a command that trains ends early, and stays silent about what libraries say."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self


class Interrupts:
    """Ctrl-C ends the run after its step. Before the first step, and the second time, it ends the command.

    Attributes:
        running: there is a step to end.
        asked: whether it was pressed.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.running = self.asked = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.asked or not self.running:
            raise KeyboardInterrupt
        self.asked = True
        self._say("stopping after this step, and saving; again to stop at once")


@contextmanager
def quiet() -> Iterator[None]:
    """Libraries say nothing: not how they load, nor what will be deprecated."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
