"""How long a process trains before it gives way, and the checkpoints at which it did."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Collection

from adapters.errors import RegistryUnavailable
from server.jobs.records import Job
from server.jobs.site import Entry, Site
from training.folder import RunFolder

log = logging.getLogger(__name__)
LOOK_SECONDS = 5.0
"""Between two looks at who waits, once the time of a process is over."""
_FILE = "turn_end"


class Slice:
    """The time of one process: it counts from its first step, so that every turn comes further."""

    def __init__(self, site: Site, joins: Callable[[Job], bool]) -> None:
        """
        Args:
            joins: whether a job that waits could train together with those of the process.
        """
        self._site, self._joins = site, joins
        self._stepped, self._end = False, math.inf

    def step(self) -> None:
        """A step was taken."""
        if not self._stepped:
            self._stepped = True
            self._end = time.monotonic() + self._site.bounds.slice_seconds

    def is_over(self, entries: Collection[Entry]) -> bool:
        """Whether those that still train are to stop now."""
        training = [entry for entry in entries if entry.trains]
        if time.monotonic() < self._end or not training or self._site.stopping.is_set():
            return False
        if any(entry.trained and not entry.ended for entry in entries):
            return True  # its result comes when the others have stopped
        room = len(training) < self._site.bounds.together
        try:
            turn = self._site.jobs.whose_turn(
                [entry.job.id for entry in training], self._joins if room else None
            )
        except RegistryUnavailable as error:
            log.warning("who waits for a turn is not known now: %s", error)
            turn = "free"
        again = self._site.bounds.slice_seconds if turn == "again" else LOOK_SECONDS
        self._end = time.monotonic() + again
        return turn == "others"


def turn_end(run: RunFolder) -> int | None:
    """The step at which a run gave way, if it has no checkpoint after it: to go on from, not to be asked."""
    path = run.run / _FILE
    text = path.read_text() if path.is_file() else ""
    return int(text) if text.isdecimal() else None


def note_checkpoint(run: RunFolder, step: int, *, ends_turn: bool) -> None:
    """There is a new one: that of the turn before is not needed any more."""
    before = turn_end(run)
    if before is not None and before != step:
        shutil.rmtree(run.checkpoint(before), ignore_errors=True)
    path = run.run / _FILE
    if ends_turn:
        half = path.with_suffix(".part")
        half.write_text(str(step))
        os.replace(half, path)
    else:
        path.unlink(missing_ok=True)
