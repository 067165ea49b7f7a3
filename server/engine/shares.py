"""Which cached block goes when room is needed: every tenant keeps a fair share.

Cached blocks that nobody holds belong to owners, a tenant and an adapter within it. With one queue for
all, a flood of prompts on one adapter would push out what all others have cached. So the tenant with most
blocks gives one, from its adapter with most, the one that was used the longest time ago: whoever has less
than an equal share loses nothing. A share that lay unused for long goes first; otherwise a thousand adapters
that were asked once would leave nothing to the few in use.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Owner = tuple[str, str | None]
"""Tenant and adapter digest."""
PROTECTED_SECONDS = 600.0
"""How long after its last use an owner keeps its share."""
Key = TypeVar("Key", bound=Hashable)


class Largest(Generic[Key]):
    """Counts that change by one, and the key with the largest at any time, each in constant time."""

    def __init__(self) -> None:
        self.counts: dict[Key, int] = {}
        self._with_count: dict[int, OrderedDict[Key, None]] = {}
        self._most = 0

    def increment(self, key: Key) -> None:
        """Add one to the count of `key`, which may be new."""
        self._set(key, self.counts.get(key, 0) + 1)

    def decrement(self, key: Key) -> None:
        """Take one from the count of `key`; with none it is forgotten."""
        self._set(key, self.counts[key] - 1)

    def largest(self) -> Key:
        """A key with the largest count; of several, the one that has had it longest."""
        return next(iter(self._with_count[self._most]))

    def _set(self, key: Key, count: int) -> None:
        before = self.counts.pop(key, 0)
        if before:
            del self._with_count[before][key]
            if not self._with_count[before]:
                del self._with_count[before]
        if count:
            self.counts[key] = count
            self._with_count.setdefault(count, OrderedDict())[key] = None
        if count > before:
            self._most = max(self._most, count)
        elif self._most not in self._with_count:
            self._most = count  # the only one that had most has one less now


class CachedBlocks:
    """Blocks that nobody holds and that can still be found, by owner."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds, for `PROTECTED_SECONDS`."""
        self._clock = clock
        self._owner_of: dict[int, Owner] = {}
        self._blocks: dict[Owner, OrderedDict[int, None]] = {}  # the least recently used first
        self._used: OrderedDict[Owner, float] = OrderedDict()  # likewise
        self._tenants: Largest[str] = Largest()
        self._adapters: dict[str, Largest[Owner]] = {}

    def __len__(self) -> int:
        return len(self._owner_of)

    def blocks(self) -> set[int]:
        """All of them."""
        return set(self._owner_of)

    def count(self, owner: Owner) -> int:
        """How many of them are the owner's."""
        return len(self._blocks.get(owner, ()))

    def add(self, block: int, owner: Owner) -> None:
        """A block that was let go just now."""
        self._owner_of[block] = owner
        self._blocks.setdefault(owner, OrderedDict())[block] = None
        self._tenants.increment(owner[0])
        self._adapters.setdefault(owner[0], Largest()).increment(owner)
        self._touch(owner)

    def take(self, block: int) -> None:
        """A block is in use again."""
        self._touch(self._remove(block))

    def evict(self) -> int:
        """Give up one block; there must be one."""
        oldest, used = next(iter(self._used.items()))
        if self._clock() - used <= PROTECTED_SECONDS:
            oldest = self._adapters[self._tenants.largest()].largest()
        block = next(iter(self._blocks[oldest]))
        self._remove(block)
        return block

    def _remove(self, block: int) -> Owner:
        owner = self._owner_of.pop(block)
        del self._blocks[owner][block]
        self._tenants.decrement(owner[0])
        self._adapters[owner[0]].decrement(owner)
        if not self._blocks[owner]:
            del self._blocks[owner], self._used[owner]
            if not self._adapters[owner[0]].counts:
                del self._adapters[owner[0]]
        return owner

    def _touch(self, owner: Owner) -> None:
        if owner in self._blocks:
            self._used[owner] = self._clock()
            self._used.move_to_end(owner)
