"""Who is next: waiting sequences in fair turns between tenants, and within a tenant between adapters.

At both levels each has a counter of the tokens it was served, a tenant's divided by its weight; the one with
the lowest goes first. Whoever begins to wait starts no lower than the lowest of those that wait already, so
that neither idleness nor a small demand earns credit. This is the virtual token counter of Sheng et al. 2024
(arXiv 2401.00588).
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Generic, Protocol

from typing_extensions import TypeVar

from server.engine.sequence import PagedSequence, Turn
from server.engine.stats import TenantStats

_REMEMBERED = 4096  # counters of absent members to keep


class Waiting(Protocol):
    """Something that takes turns. `arrival` grows from one to the next."""

    arrival: int

    @property
    def turn(self) -> Turn: ...


K = TypeVar("K")
S = TypeVar("S", bound=Waiting, default=PagedSequence)


class Counters(Generic[K]):
    """The tokens that each member of one level was served, and which of them wait."""

    def __init__(self) -> None:
        self._served: dict[K, float] = {}
        self._waiting: set[K] = set()
        self._last: tuple[K, ...] = ()  # the one that stopped waiting last

    def __getitem__(self, key: K) -> float:
        return self._served[key]

    def __len__(self) -> int:
        return len(self._served)

    def begin(self, key: K) -> None:
        """`key` waits from now on."""
        level = min((self._served[other] for other in self._waiting or self._last), default=0.0)
        self._served[key] = max(self._served.get(key, 0.0), level)
        self._waiting.add(key)

    def end(self, key: K) -> None:
        """`key` waits no more."""
        self._waiting.discard(key)
        self._last = (key,)

    def charge(self, key: K, tokens: float) -> None:
        self._served[key] += tokens

    def forget(self, live: Mapping[K, object]) -> None:
        """Drop the counters of those that are not live, if there are too many of them."""
        if len(self._served) > _REMEMBERED + len(live):
            kept = {*live, *self._last}
            self._served = {key: served for key, served in self._served.items() if key in kept}


class _Tenant(Generic[S]):
    """One tenant's waiting sequences by adapter, and how many are live."""

    def __init__(self) -> None:
        self.queues: dict[str | None, deque[S]] = {}
        self.adapters: Counters[str | None] = Counters()
        self.live: Counter[str | None] = Counter()
        self.waiting = 0

    def order(self) -> list[tuple[float, int, str | None]]:
        """A heap of the adapters with something that waits, by fair order."""
        heap = [(self.adapters[name], queue[0].arrival, name) for name, queue in self.queues.items()]
        heapq.heapify(heap)
        return heap


class FairQueue(Generic[S]):
    """The waiting sequences. A sequence is live from `push` until `leave`, also while it runs."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant[S]] = {}
        self._counters: Counters[str] = Counters()
        self._weights: dict[str, float] = {}
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """How much each tenant gets beside the others, from now on; 1 for those that are not named."""
        self._weights = check_weights(weights)

    def weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)

    def push(self, sequence: S) -> None:
        """A new sequence at the end of its turn's queue."""
        tenant, adapter = sequence.turn
        self._tenants.setdefault(tenant, _Tenant()).live[adapter] += 1
        self._queue(sequence).append(sequence)

    def push_back(self, sequence: S) -> None:
        """A preempted sequence returns to the head of its turn's queue."""
        self._queue(sequence).appendleft(sequence)

    def _queue(self, sequence: S) -> deque[S]:
        """Where it is about to wait."""
        tenant, adapter = sequence.turn
        own = self._tenants[tenant]
        if not own.queues:
            self._counters.begin(tenant)
        if adapter not in own.queues:
            own.adapters.begin(adapter)
        own.waiting += 1
        self._waiting += 1
        return own.queues.setdefault(adapter, deque())

    def take(self, sequence: S) -> None:
        """A sequence stops waiting, to run or to leave."""
        tenant, adapter = sequence.turn
        own = self._tenants[tenant]
        own.queues[adapter].remove(sequence)
        own.waiting -= 1
        self._waiting -= 1
        if not own.queues[adapter]:
            del own.queues[adapter]
            own.adapters.end(adapter)
        if not own.queues:
            self._counters.end(tenant)

    def leave(self, sequence: S) -> None:
        """A sequence is over."""
        tenant, adapter = sequence.turn
        own = self._tenants[tenant]
        own.live[adapter] -= 1
        if not own.live[adapter]:
            del own.live[adapter]
            own.adapters.forget(own.live)
        if not own.live:
            del self._tenants[tenant]
            self._counters.forget(self._tenants)

    def charge(self, turn: Turn, tokens: int) -> None:
        """A live turn was served `tokens`."""
        tenant, adapter = turn
        self._tenants[tenant].adapters.charge(adapter, tokens)
        self._counters.charge(tenant, tokens / self.weight(tenant))

    def served(self, sequence: S) -> tuple[float, float, int]:
        """The sort key of fair order."""
        tenant, adapter = sequence.turn
        return self._counters[tenant], self._tenants[tenant].adapters[adapter], sequence.arrival

    def heads(self) -> Iterator[S]:
        """The first waiting sequence of every turn, in fair order, as it changes meanwhile.

        When the caller takes the one that it got, and charges it, that turn goes on with its next sequence at
        its new place; otherwise the turn is passed over. It takes O(turns), and O(log turns) for each.
        """
        heap = [
            (self._counters[tenant], turns[0][1], tenant, own, turns)
            for tenant, own in self._tenants.items()
            if (turns := own.order())
        ]
        heapq.heapify(heap)
        while heap:
            _, _, tenant, own, turns = heap[0]
            adapter = turns[0][2]
            queue = own.queues.get(adapter)
            if not queue:
                heapq.heappop(turns)
            else:
                head = queue[0]
                yield head
                if queue and queue[0] is not head:
                    heapq.heapreplace(turns, (own.adapters[adapter], queue[0].arrival, adapter))
                else:
                    heapq.heappop(turns)
            if turns:
                heapq.heapreplace(heap, (self._counters[tenant], turns[0][1], tenant, own, turns))
            else:
                heapq.heappop(heap)

    def waiting(self) -> list[S]:
        return [
            sequence for own in self._tenants.values() for queue in own.queues.values() for sequence in queue
        ]

    def waits_for(self, adapter: str) -> bool:
        """Whether anything that waits names this adapter."""
        return any(adapter in own.queues for own in self._tenants.values())

    @property
    def adapters(self) -> set[str | None]:
        """Those of all live sequences, waiting or running; None is the base."""
        return {adapter for own in self._tenants.values() for adapter in own.live}

    @property
    def waiting_adapters(self) -> set[str | None]:
        """Those of all waiting sequences."""
        return {adapter for own in self._tenants.values() for adapter in own.queues}

    @property
    def tenants(self) -> tuple[str, ...]:
        """Those with live sequences."""
        return tuple(self._tenants)

    def adapters_of(self, tenant: str) -> tuple[str | None, ...]:
        """Those of a tenant's live sequences."""
        return tuple(self._tenants[tenant].live)

    def tenant_stats(self) -> dict[str, TenantStats]:
        """How many sequences of each tenant run, and how many wait."""
        return {
            tenant: TenantStats(own.live.total() - own.waiting, own.waiting)
            for tenant, own in self._tenants.items()
        }


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """A copy of them.

    Raises:
        ValueError: one is not a positive, finite number.
    """
    for tenant, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"the weight of tenant {tenant!r} is {weight}; it must be a positive number")
    return dict(weights)
