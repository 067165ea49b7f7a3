"""How long the server takes from the start of its process until it answers, part by part."""

from __future__ import annotations

import os
import time
from pathlib import Path


class Startup:
    """A clock that runs from the start of the process. `parts`: seconds by name; their sum is the whole."""

    def __init__(self) -> None:
        self._last = time.perf_counter() - process_age()
        self.parts: dict[str, float] = {}

    def lap(self, part: str) -> None:
        """What was done since the last call was `part`."""
        now = time.perf_counter()
        self.parts[part] = now - self._last
        self._last = now

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    def __str__(self) -> str:
        return ", ".join(f"{part} {seconds:.1f} s" for part, seconds in self.parts.items())


def process_age() -> float:
    """Seconds since this process was started; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, AttributeError):
        return 0.0
