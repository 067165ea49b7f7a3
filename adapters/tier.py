"""One tier of memory for adapters: an LRU under a byte budget."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from adapters.batch.placed import Placed
from adapters.pins import Pins

TierName = Literal["device", "host"]


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """One adapter in memory. `rank`: the largest of its modules."""

    digest: str
    tier: TierName
    rank: int
    pinned: bool


class Tier:
    """An LRU of adapters under a byte budget; leased ones stay, and those that somebody waits to arrive.

    Attributes:
        pins: those that stay as long as there is any other way.
    """

    def __init__(self, budget: int, pins: Pins | None = None) -> None:
        self.budget = budget
        self.pins = Pins() if pins is None else pins
        self.bytes = 0
        self.evictions = 0
        self.changes = 0
        self.items: OrderedDict[str, Placed] = OrderedDict()
        self.leases: dict[str, int] = {}
        self.arriving: set[str] = set()

    def get(self, digest: str) -> Placed | None:
        adapter = self.items.get(digest)
        if adapter is not None:
            self.items.move_to_end(digest)
        return adapter

    @property
    def unpinned(self) -> int:
        """Bytes of the budget that the pins leave to others."""
        return self.budget - sum(self.items[digest].nbytes for digest in self.pins.among(self.items))

    def make_room(self, nbytes: int, *, asked: bool = False) -> bool:
        """Evict the least recently used until `nbytes` fit. False, with nothing evicted, if they can't.

        `asked`: pins go too, after all others, if `nbytes` could never fit beside them.
        """
        free = self.budget - self.bytes
        victims: list[str] = []
        for pinned in (False, True) if asked and free < nbytes > self.unpinned else (False,):
            for digest, adapter in self.items.items():
                if free >= nbytes:
                    break
                if (digest in self.pins) == pinned and not self._stays(digest):
                    victims.append(digest)
                    free += adapter.nbytes
        if free < nbytes:
            return False
        for digest in victims:
            self.remove(digest)
            self.pins.made_room(digest)
            self.evictions += 1
        return True

    def _stays(self, digest: str) -> bool:
        return bool(self.leases.get(digest)) or digest in self.arriving

    def put(self, adapter: Placed) -> bool:
        """Add an adapter; False if leased ones leave no room for it."""
        if adapter.digest in self.items:
            return True
        if not self.make_room(adapter.nbytes):
            return False
        self.items[adapter.digest] = adapter
        self.bytes += adapter.nbytes
        self.changes += 1
        return True

    def remove(self, digest: str) -> None:
        self.bytes -= self.items.pop(digest).nbytes
        self.changes += 1
        self.arriving.discard(digest)

    def lease(self, digest: str) -> None:
        self.leases[digest] = self.leases.get(digest, 0) + 1

    def release(self, digest: str) -> None:
        self.leases[digest] -= 1
        if not self.leases[digest]:
            del self.leases[digest]
