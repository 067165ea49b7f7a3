"""Which adapters are pinned: kept on the device, within its budget, and brought back when they had to leave.

Pins count in the budget like all others, and are never evicted to make room for what was only used more
recently. But a request is always served: where pins leave too little of the budget for an adapter that is
asked, the least recently used of them go out for a while.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

log = logging.getLogger(__name__)
_AGAIN_SECONDS = 60.0
"""How long a pin that made room, or could not be loaded, is left alone."""
_NO_ROOM_SECONDS = 5.0
"""The same of one for which only leased adapters leave no room."""


@dataclass(slots=True)
class _Pin:
    """`nbytes`: its size once it was loaded. `not_before`: when to try to bring it, by the clock."""

    nbytes: int | None = None
    not_before: float = 0.0
    told: bool = False


class Pins:
    """The pinned adapters in the order in which they were given: the first ones get room first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pins: dict[str, _Pin] = {}
        self._look_at = 0.0
        self.changes = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._pins

    def __len__(self) -> int:
        return len(self._pins)

    def set(self, digests: Iterable[str]) -> None:
        """Exactly these are pinned from now on."""
        self._pins = {digest: self._pins.get(digest, _Pin()) for digest in digests}
        self._look_at = 0.0
        self.changes += 1

    def remove(self, digest: str) -> None:
        """It is deleted."""
        self._pins.pop(digest, None)
        self.changes += 1

    def among(self, there: Container[str]) -> list[str]:
        """Those that are `there`."""
        return [digest for digest in self._pins if digest in there]

    def missing(self, there: Container[str]) -> list[str]:
        """Those that are not `there`."""
        return [digest for digest in self._pins if digest not in there]

    def due(self) -> bool:
        """Whether to ask for the `next` one; costs nothing."""
        return bool(self._pins) and self._clock() >= self._look_at

    def next(self, there: Container[str], room: int) -> str | None:
        """One to bring now beside those that are `there` and leave `room` bytes of the budget to others.

        Those that are known not to fit are told of in the log, once.
        """
        now = self._clock()
        missing = self.missing(there)
        for digest in missing:
            pin = self._pins[digest]
            if now < pin.not_before:
                continue
            if pin.nbytes is None or pin.nbytes <= room:
                return digest
            self._tell(digest, pin, room)
        later = [pin.not_before for pin in map(self._pins.__getitem__, missing) if pin.not_before > now]
        self._look_at = min(later, default=now + _AGAIN_SECONDS)
        return None

    def loaded(self, digest: str, nbytes: int) -> None:
        """Its size is known."""
        if digest in self._pins:
            self._pins[digest].nbytes = nbytes
            self._look_at = 0.0

    def failed(self, digest: str, reason: Exception) -> None:
        """It could not be loaded or copied."""
        if self._postpone(digest, _AGAIN_SECONDS) and not self._pins[digest].told:
            self._pins[digest].told = True
            log.warning("pinned adapter %s is not in memory: %s", digest[:12], reason)

    def no_room(self, digest: str) -> None:
        """Requests hold what would have to leave for it."""
        self._postpone(digest, _NO_ROOM_SECONDS)

    def made_room(self, digest: str) -> None:
        """It had to leave for a request."""
        if self._postpone(digest, _AGAIN_SECONDS):
            log.warning(
                "pinned adapter %s made room for an adapter that was asked; raise --adapter-memory-gb or "
                "pin fewer",
                digest[:12],
            )

    def _postpone(self, digest: str, seconds: float) -> bool:
        """False if it is not pinned."""
        if digest not in self._pins:
            return False
        self._pins[digest].not_before = self._clock() + seconds
        self._look_at = 0.0
        return True

    def _tell(self, digest: str, pin: _Pin, room: int) -> None:
        if not pin.told:
            pin.told = True
            log.warning(
                "pinned adapter %s has no room: it takes %.1f MiB, and the others leave %.1f MiB; raise "
                "--adapter-memory-gb or pin fewer",
                digest[:12],
                (pin.nbytes or 0) / 2**20,
                max(room, 0) / 2**20,
            )
