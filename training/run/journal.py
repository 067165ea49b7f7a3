"""What a run tells, kept as a file: a resume knows from it what was, and goes on writing it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from training.events import Event, Finished, Progress, Report, event_to_json
from training.report.curves import read_events


class Journal:
    """Writes each event as a line, then hands it on to `reports`.

    Args:
        step: of the checkpoint that the run goes on from. What was told of later steps is taken back: it will
            happen again.
    """

    def __init__(self, path: Path, reports: Sequence[Report], step: int = 0) -> None:
        self._reports = reports
        self.past: list[Event] = []
        if step and path.is_file():
            self.past = [event for event in read_events(path) if _stays(event, step)]
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f".{path.name}.part")
        half.write_text("".join(_line(event) for event in self.past), encoding="utf-8")
        os.replace(half, path)
        self._file = path.open("a", encoding="utf-8")

    def tell(self, event: Event) -> None:
        self.past.append(event)
        self._file.write(_line(event))
        self._file.flush()  # survives the end of this process, however it comes
        for report in self._reports:
            report(event)

    def losses(self) -> tuple[float, ...]:
        """Of each step so far."""
        return tuple(event.loss for event in self.past if isinstance(event, Progress))

    def close(self) -> None:
        self._file.close()


def _stays(event: Event, step: int) -> bool:
    return not isinstance(event, Finished) and getattr(event, "step", 0) <= step


def _line(event: Event) -> str:
    return json.dumps(event_to_json(event)) + "\n"
