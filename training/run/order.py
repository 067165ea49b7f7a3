"""In which order a run sees its rows: a pure function of seed and step, so that a position is a number."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import lru_cache

Rows = tuple[int, ...]


class Order:
    """Epochs of permutations. Each has every row once, and its last step may be smaller than the others.

    Args:
        rows: how many there are.
        batch: rows of one forward pass.
        accumulation: forward passes of one optimizer step. What a step sees depends on the product alone.
    """

    def __init__(self, rows: int, batch: int, seed: int, accumulation: int = 1) -> None:
        self.rows, self.batch, self.seed = rows, batch, seed
        self._effective = batch * accumulation
        self.steps_per_epoch = -(-rows // self._effective)
        self.passes_per_epoch = -(-rows // batch)
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def step(self, number: int) -> list[Rows]:
        """The rows of each forward pass of optimizer step `number`, which counts from 0."""
        epoch, index = divmod(number, self.steps_per_epoch)
        return self._cut(self._epoch(epoch)[index * self._effective : (index + 1) * self._effective])

    def epoch(self, number: int) -> list[Rows]:
        """The rows of each forward pass of a whole epoch."""
        return self._cut(self._epoch(number))

    def _cut(self, rows: Rows) -> list[Rows]:
        return [rows[start : start + self.batch] for start in range(0, len(rows), self.batch)]

    def _permutation(self, epoch: int) -> Rows:
        return tuple(random.Random(f"order {self.seed} {epoch}").sample(range(self.rows), self.rows))


class EpochBatches:
    """What a `DataLoader` takes as `batch_sampler`: the epoch that `step()` lies in, from its beginning."""

    def __init__(self, order: Order, step: Callable[[], int]) -> None:
        self._order, self._step = order, step

    def __len__(self) -> int:
        return self._order.passes_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self._order.epoch(self._step() // self._order.steps_per_epoch):
            yield list(rows)
