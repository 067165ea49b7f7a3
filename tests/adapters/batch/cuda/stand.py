"""Adapters of mixed ranks in the slots of a table, and what each row's result must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from adapters.batch.cuda.lora import expand, shrink
from adapters.batch.cuda.table import AdapterTable, GroupShape
from adapters.batch.cuda.tiles import Run, Tiles
from adapters.batch.placed import PlacedAdapter, place
from adapters.delta import AdapterWeights, ModuleDelta

GROUPS = [("q", "k", "v"), ("down",)]
SHAPES = [GroupShape(300, (272, 40, 24)), GroupShape(1100, (48,))]
WIDTHS = {"q": (300, 272), "k": (300, 40), "v": (300, 24), "down": (1100, 48)}
RANKS = [
    {"q": 16, "k": 16, "v": 16, "down": 16},
    {"q": 5, "v": 8},
    {"q": 64, "k": 32, "v": 5, "down": 64},
    {"k": 8, "down": 5},
]
MAX_RANK = 64


def weights(digest: str, ranks: Mapping[str, int], size: float = 1.0) -> AdapterWeights:
    generator = torch.Generator().manual_seed(sum(digest.encode()))
    deltas = {}
    for name, rank in ranks.items():
        inputs, outputs = WIDTHS[name]
        a = torch.randn(rank, inputs, generator=generator) * size / inputs**0.5
        b = torch.randn(outputs, rank, generator=generator) * size / rank**0.5
        deltas[name] = ModuleDelta(a, b, 0.5)
    return AdapterWeights(digest, deltas)


class Stand:
    """Four adapters in their slots."""

    def __init__(self, dtype: torch.dtype, device: torch.device, slots: int = 6) -> None:
        self.dtype = dtype
        self.device = device
        self.table = AdapterTable(SHAPES, slots, MAX_RANK, dtype, device)
        self.adapters: dict[int, PlacedAdapter] = {}
        self.weights: dict[int, AdapterWeights] = {}
        for number, ranks in enumerate(RANKS):
            self.add(weights(f"adapter {number}", ranks))

    def add(self, own: AdapterWeights) -> int:
        adapter = self.placed(own)
        slot = self.table.assign(adapter)
        self.adapters[slot] = adapter
        self.weights[slot] = own
        return slot

    def placed(self, own: AdapterWeights) -> PlacedAdapter:
        return place(own, GROUPS, self.dtype).to(self.device)

    def random(self, *sizes: int, seed: int = 0) -> Tensor:
        values = torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))
        return values.to(self.dtype).to(self.device)

    def rows(self, slots: Sequence[int], tile: int | None, unused: int = 0) -> Tensor | Tiles:
        """The rows' slots in the form by rows, or by tiles of `tile` rows and some that are not used."""
        if tile is None:
            return torch.tensor(slots, dtype=torch.int32, device=self.device)
        runs: list[Run] = []
        for row, slot in enumerate(slots):
            start = runs.pop()[0] if runs and runs[-1][2] == slot else row
            runs.append((start, row + 1, slot))
        tiles = Tiles(len(slots) + unused, tile, self.device)
        tiles.fill(runs)
        return tiles

    def apply(self, x: Tensor, y: Tensor, group: int, rows: Tensor | Tiles) -> Tensor:
        """`y` with every module's delta in it; the one given stays as it is."""
        y = y.clone()
        table = self.table.groups[group]
        expand(y, shrink(x, table, rows), table, rows)
        return y

    def expected(self, x: Tensor, y: Tensor, group: int, slots: Sequence[int]) -> Tensor:
        """The same in float64, one row and module after another, from the adapters' own matrices."""
        result = y.double().cpu()
        for row, slot in enumerate(slots):
            column = 0
            for name in GROUPS[group]:
                width = WIDTHS[name][1]
                delta = self.weights[slot].deltas.get(name) if slot >= 0 else None
                if delta is not None:
                    own = result[row, column : column + width]
                    if delta.magnitude is not None:
                        own *= delta.magnitude.double()
                    a = delta.a.to(self.dtype).double()
                    b = (delta.b * delta.scale).to(self.dtype).double()
                    own += b @ (a @ x[row].double().cpu())
                    if delta.shift is not None:
                        own += delta.shift.double()
                column += width
        return result
