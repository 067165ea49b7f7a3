"""Rows of a step cut into tiles of one adapter each, for the kernels that multiply by tensor cores."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Run = tuple[int, int, int]
"""Rows `start:stop` use the adapter in a slot, or the bare base if it is -1."""


class Tiles:
    """A table of tiles on the device, of fixed length and at a fixed address.

    The launch grid covers the whole table and tiles that are not used end at once, so one table serves a
    captured CUDA graph; for steps that are not captured, one of just the length is the faster.

    Attributes:
        table: int32 `(capacity, 3)`: first row, row behind the last, slot.
        rows: most rows of a tile, a power of two from 16. 64 for prefill; 16 wastes least on decode rows.
    """

    def __init__(self, capacity: int, rows: int, device: torch.device) -> None:
        if rows < 16 or rows & (rows - 1):
            raise ValueError(f"tiles of {rows} rows: not a power of two from 16")
        self.rows = rows
        self.table = torch.zeros(capacity, 3, dtype=torch.int32, device=device)
        self.table[:, 2] = -1

    @staticmethod
    def of(runs: Sequence[Run], rows: int, device: torch.device) -> Tiles:
        """A table of just the length that `runs` need."""
        tiles = Tiles(tiles_needed(runs, rows), rows, device)
        tiles.fill(runs)
        return tiles

    def fill(self, runs: Sequence[Run]) -> None:
        """Set the tiles of the next launches, without synchronization.

        Raises:
            ValueError: the runs do not ascend, or they need more tiles than there are.
        """
        cut = _cut(runs, self.rows)
        if len(cut) > len(self.table):
            raise ValueError(f"{len(cut)} tiles do not fit into a table of {len(self.table)}")
        cut += [(0, 0, -1)] * (len(self.table) - len(cut))
        host = torch.tensor(cut, dtype=torch.int32, pin_memory=self.table.is_cuda)
        self.table.copy_(host.view(-1, 3), non_blocking=True)


def tiles_needed(runs: Sequence[Run], rows: int) -> int:
    """How many tiles of at most `rows` rows the runs need."""
    return sum(-(-(stop - start) // rows) for start, stop, slot in runs if slot >= 0)


def _cut(runs: Sequence[Run], rows: int) -> list[Run]:
    tiles: list[Run] = []
    last = 0
    for start, stop, slot in runs:
        if not last <= start <= stop:
            raise ValueError(f"rows {start}:{stop} follow row {last}")
        last = stop
        if slot >= 0:
            tiles += [(first, min(first + rows, stop), slot) for first in range(start, stop, rows)]
    return tiles
