"""Who is next: waiting sequences in fair turns between adapters.

Each turn (scope and adapter) has a counter of the tokens it was served; the one with the lowest goes first.
A turn that comes back after a pause starts at the lowest counter of those that stayed, so that idleness
earns no credit. This is the virtual token counter of Sheng et al. 2024 (arXiv 2401.00588).
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Generic, Protocol

from typing_extensions import TypeVar

from server.engine.sequence import PagedSequence

Turn = tuple[str, str | None]
_REMEMBERED = 4096  # counters of absent turns to keep


class Waiting(Protocol):
    """Something that takes turns. `arrival` grows from one to the next."""

    arrival: int

    @property
    def turn(self) -> Turn: ...


S = TypeVar("S", bound=Waiting, default=PagedSequence)


class FairQueue(Generic[S]):
    """The waiting sequences. A sequence is live from `push` until `leave`, also while it runs."""

    def __init__(self) -> None:
        self._queues: dict[Turn, deque[S]] = {}
        self._served: dict[Turn, float] = {}
        self._live: Counter[Turn] = Counter()

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def push(self, sequence: S) -> None:
        """A new sequence at the end of its turn's queue."""
        turn = sequence.turn
        if not self._live[turn]:
            floor = min((self._served[other] for other in +self._live), default=0.0)
            self._served[turn] = max(self._served.get(turn, 0.0), floor)
        self._live[turn] += 1
        self._queues.setdefault(turn, deque()).append(sequence)

    def push_back(self, sequence: S) -> None:
        """A preempted sequence returns to the head of its turn's queue."""
        self._queues.setdefault(sequence.turn, deque()).appendleft(sequence)

    def take(self, sequence: S) -> None:
        """A sequence stops waiting, to run or to leave."""
        queue = self._queues[sequence.turn]
        queue.remove(sequence)
        if not queue:
            del self._queues[sequence.turn]

    def leave(self, sequence: S) -> None:
        """A sequence is over."""
        self._live[sequence.turn] -= 1
        if not self._live[sequence.turn]:
            del self._live[sequence.turn]
        if len(self._served) > _REMEMBERED + len(self._live):
            self._served = {turn: self._served[turn] for turn in self._live}

    @property
    def adapters(self) -> set[str | None]:
        """Those of all live sequences, waiting or running; None is the base."""
        return {adapter for _, adapter in self._live}

    def charge(self, turn: Turn, tokens: int) -> None:
        self._served[turn] += tokens

    def served(self, sequence: S) -> tuple[float, int]:
        """The sort key of fair order."""
        return self._served[sequence.turn], sequence.arrival

    def heads(self) -> list[S]:
        """The first waiting sequence of every turn, in fair order."""
        return sorted((queue[0] for queue in self._queues.values()), key=self.served)

    def waiting(self) -> list[S]:
        return [sequence for queue in self._queues.values() for sequence in queue]
