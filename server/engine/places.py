"""Who gives way when a newcomer finds no place, or no KV: fair shares of what runs.

Turns alone would let a tenant that came first hold every place for as long as its answers are. So a newcomer
whose tenant has less than its share takes the place of the newest sequence of the tenant that is most over
its own. Shares go by weight among the tenants that are live now. Within a tenant its adapters share in the
same way what it has.

What was computed for a sequence that is set back may have to be computed again, so this is kept rare:

- both sides of an exchange come nearer to their shares and pass neither, so that it never turns round;
- a newcomer first waits some steps for a place to become free by itself;
- a sequence is set back a few times at most;
- what was lost is a debt that a small part of all tokens pays; while there is any, nobody is set back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from server.engine.fairness import FairQueue
from server.engine.kv import BlockPool
from server.engine.sequence import PagedSequence

_GRACE = 8  # steps
_SET_BACK = 2
_OVERHEAD = 0.05  # of the tokens computed
K = TypeVar("K")


class Places:
    """Chooses who gives way. The scheduler tells what it computes, and whom it sets back."""

    def __init__(self, pool: BlockPool, queue: FairQueue, max_running: int) -> None:
        self._pool = pool
        self._queue = queue
        self._max_running = max_running
        self._debt = 0.0
        self.preemptions = 0

    def givers(
        self, newcomer: PagedSequence, blocks: int, running: Sequence[PagedSequence]
    ) -> list[PagedSequence]:
        """Those to set back, so that `newcomer` can start with `blocks` more; none: it has to wait."""
        newcomer.denied += 1
        if newcomer.denied <= _GRACE or self._debt > 0:
            return []
        # What is short: blocks, or else one place.
        short = blocks - self._pool.free

        def held(sequence: PagedSequence) -> int:
            return len(sequence.blocks) if short > 0 else 1

        def freed(sequence: PagedSequence) -> int:
            return self._pool.held_alone(sequence.blocks) if short > 0 else 1

        need, wanted = (blocks, short) if short > 0 else (1, 1)
        tenant, adapter = newcomer.turn
        weights = {other: self._queue.weight(other) for other in self._queue.tenants}
        total = self._pool.total if short > 0 else self._max_running
        by_tenant = _groups(running, lambda sequence: sequence.turn[0])
        shares = _shares(total, weights)
        givers = _choose(by_tenant, shares, tenant, need, wanted, held, freed)
        own = by_tenant.get(tenant, [])
        if givers or not own:
            return givers
        by_adapter = _groups(own, lambda sequence: sequence.turn[1])
        equal = dict.fromkeys(self._queue.adapters_of(tenant), 1.0)
        shares_within = _shares(sum(map(held, own)), equal)
        return _choose(by_adapter, shares_within, adapter, need, wanted, held, freed)

    def set_back(self, sequence: PagedSequence) -> None:
        """`sequence` is about to give way."""
        self.preemptions += 1
        sequence.set_back += 1
        sequence.lost = sequence.computed
        self._debt += sequence.lost

    def resumed(self, sequence: PagedSequence) -> None:
        """It runs again: what the prefix cache still had of it was not lost."""
        self._debt -= min(sequence.lost, sequence.computed)
        sequence.lost = 0

    def computed(self, tokens: int) -> None:
        """A step computed `tokens`."""
        self._debt = max(0.0, self._debt - _OVERHEAD * tokens)

    def newest_of_largest(self, running: Sequence[PagedSequence]) -> PagedSequence:
        """Who gives blocks when one that runs needs more: the newest of the tenant with most by weight.

        The oldest of all is spared while there are others, so that it surely ends.
        """
        held: dict[str, float] = {}
        for sequence in running:
            tenant = sequence.turn[0]
            held[tenant] = held.get(tenant, 0.0) + len(sequence.blocks) / self._queue.weight(tenant)
        newest = {sequence.turn[0]: sequence for sequence in running[1:]} or {"": running[0]}
        return max(newest.values(), key=lambda sequence: held[sequence.turn[0]])


def _groups(
    sequences: Sequence[PagedSequence], key: Callable[[PagedSequence], K]
) -> dict[K, list[PagedSequence]]:
    groups: dict[K, list[PagedSequence]] = {}
    for sequence in sequences:
        groups.setdefault(key(sequence), []).append(sequence)
    return groups


def _shares(total: float, weights: Mapping[K, float]) -> dict[K, float]:
    """Of `total`, by weight."""
    whole = sum(weights.values())
    return {key: total * weight / whole for key, weight in weights.items()}


def _choose(
    groups: Mapping[K, list[PagedSequence]],
    shares: Mapping[K, float],
    key: K,
    need: int,
    wanted: int,
    held: Callable[[PagedSequence], int],
    freed: Callable[[PagedSequence], int],
) -> list[PagedSequence]:
    """The newest of the groups most over their shares, until `wanted` is free; none if that can't be reached.

    Args:
        groups: what runs, the oldest first.
        key: the newcomer's group, which may have its first one whatever its share is.
        need: what the newcomer will hold.
        held: what a running sequence holds. freed: what others can have when it is set back.
    """
    has = {group: sum(map(held, sequences)) for group, sequences in groups.items()}
    if has.get(key) and has[key] + need > shares[key]:
        return []
    left = {group: [s for s in sequences if s.set_back < _SET_BACK] for group, sequences in groups.items()}
    chosen: list[PagedSequence] = []
    while wanted > 0:
        over = [
            group
            for group, sequences in left.items()
            if group != key and sequences and has[group] - held(sequences[-1]) >= max(1, shares[group])
        ]
        if not over:
            return []
        most = max(over, key=lambda group: has[group] / shares[group])
        giver = left[most].pop()
        has[most] -= held(giver)
        wanted -= freed(giver)
        chosen.append(giver)
    return chosen
