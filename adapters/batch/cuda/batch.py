"""Deltas by the GPU's kernels: the adapters of a step lie in slots, each row of it names its own.

Decode rows, which come first, are multiplied row by row; what follows them by tiles. A step of bare base rows
launches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from adapters.base import LinearSpec
from adapters.batch.batched import AdapterBatch, BatchedLinear, BatchSizes
from adapters.batch.cuda.lora import expand, shrink
from adapters.batch.cuda.table import AdapterTable, GroupShape, GroupTable
from adapters.batch.cuda.tiles import Tiles
from adapters.batch.inputs import ScaledInputs
from adapters.batch.placed import Groups, PlacedAdapter, place
from adapters.batch.segment import Segment, coalesce
from adapters.delta import AdapterWeights
from adapters.errors import InvalidAdapter

_TILE_ROWS = 64


class _Rows:
    """Which rows use which slot, in one or both of the forms that the kernels know.

    Attributes:
        by_row: the slots of the first rows, or None if all of these are the bare base's.
        tiles: those of the rows behind them, likewise.
        modules: (group, member) of those that some active adapter changes; None: it may be any.
        inputs: which of them have their input scaled.
    """

    def __init__(
        self,
        count: int,
        by_row: Tensor | None,
        tiles: Tiles | None,
        modules: set[tuple[int, int]] | None,
        inputs: ScaledInputs,
    ) -> None:
        self.count = count
        self.inputs = inputs
        self.by_row = by_row
        self.tiles = tiles
        self.modules = modules
        self._shrunk: tuple[Tensor, int, Tensor | None, Tensor | None] | None = None

    def touches(self, module: BatchedLinear) -> bool:
        return self.modules is None or (module.group, module.member) in self.modules

    def add(self, y: Tensor, source: Tensor, x: Tensor, table: GroupTable, module: BatchedLinear) -> None:
        """Every row's own terms into `y`, the base's output of `module`."""
        if self._shrunk is None or self._shrunk[0] is not source or self._shrunk[1] != module.group:
            self._shrunk = source, module.group, *self._shrink(x, table)
        _, _, rows, tiles = self._shrunk
        first, stop = module.member, module.member + 1
        if self.by_row is not None and rows is not None:
            expand(y[: len(self.by_row)], rows, table, self.by_row, first, stop)
        if self.tiles is not None and tiles is not None:
            expand(y, tiles, table, self.tiles, first, stop)

    def _shrink(self, x: Tensor, table: GroupTable) -> tuple[Tensor | None, Tensor | None]:
        x = x if x.stride(1) == 1 else x.contiguous()
        rows = None if self.by_row is None else shrink(x[: len(self.by_row)], table, self.by_row)
        return rows, None if self.tiles is None else shrink(x, table, self.tiles)


class CudaBatch(AdapterBatch[PlacedAdapter, _Rows]):
    """Float32, float16 or bfloat16 rows; sums are float32."""

    def __init__(
        self,
        groups: Groups,
        linears: Mapping[str, LinearSpec],
        dtype: torch.dtype,
        device: torch.device,
        sizes: BatchSizes,
    ) -> None:
        super().__init__(groups, dtype, pin=device.type == "cuda")
        shapes = [
            GroupShape(linears[names[0]].in_features, tuple(linears[name].out_features for name in names))
            for names in groups
        ]
        self._max_rank = sizes.rank
        self._table = AdapterTable(shapes, sizes.adapters, sizes.rank, dtype, device)

    def _place(self, weights: AdapterWeights) -> PlacedAdapter:
        for name, delta in weights.deltas.items():
            if delta.rank > self._max_rank:
                raise InvalidAdapter(
                    f"adapter {weights.digest[:12]}: {name} has rank {delta.rank}, more than {self._max_rank}"
                )
        return place(weights, self.groups, self.dtype, pin=self.pin)

    def slots(self, adapters: Sequence[PlacedAdapter | None]) -> list[int]:
        """The slot of each row's adapter, -1 for the bare base.

        Raises:
            ValueError: they are more than there are slots.
        """
        active = dict.fromkeys(adapter for adapter in adapters if adapter)
        found = {adapter: self._slot(adapter, active) for adapter in active}
        return [found[adapter] if adapter else -1 for adapter in adapters]

    def _slot(self, adapter: PlacedAdapter, active: Mapping[PlacedAdapter, None]) -> int:
        slot = self._table.slot(adapter)
        if slot is None:
            idle = [other for other in self._table.assigned if other not in active]
            if self._table.full and idle:
                self._table.free(idle[0])
            slot = self._table.assign(adapter)
        return slot

    def begin_decode(self, slots: Tensor) -> None:
        """`begin` for one token of each sequence, and its logits; the kernels read its slot when they run.

        Every module is multiplied: which of them the adapters add to is not known yet. Not for adapters with
        `input_scales`: those are applied by torch operations, to rows that are known beforehand.

        Args:
            slots: `(sequences,)` int32 on the device, at an address that stays. -1: the bare base.
        """
        self._tokens = self._logits = _Rows(len(slots), slots, None, None, ScaledInputs([]))

    def _rows(self, segments: Sequence[Segment[PlacedAdapter]], on_logits: bool) -> _Rows:
        device = self._table.device
        singles = 0
        while singles < len(segments) and segments[singles].stop - segments[singles].start == 1:
            singles += 1
        long = coalesce(segments[singles:])
        adapters = [segment.adapter for segment in (*segments[:singles], *long)]
        slots = self.slots(adapters)
        by_row, tiles = None, None
        if any(slot >= 0 for slot in slots[:singles]):
            host = torch.tensor(slots[:singles], dtype=torch.int32, pin_memory=device.type == "cuda")
            by_row = host.to(device, non_blocking=True)
        if any(slot >= 0 for slot in slots[singles:]):
            runs = [(s.start, s.stop, slot) for s, slot in zip(long, slots[singles:], strict=True)]
            tiles = Tiles.of(runs, _TILE_ROWS, device)
        modules = {
            (index, member)
            for adapter in {*adapters}
            if adapter
            for index, group in adapter.groups.items()
            for member, part in enumerate(group.parts)
            if part
        }
        return _Rows(segments[-1].stop, by_row, tiles, modules, ScaledInputs(segments))

    def _apply(self, rows: _Rows, module: BatchedLinear, source: Tensor, x: Tensor) -> Tensor:
        if x.shape[0] != rows.count:
            raise RuntimeError(f"{module.name} got {x.shape[0]} rows where the step has {rows.count}")
        y = module.linear(rows.inputs.of(module.group, module.member, x))
        if rows.touches(module):
            rows.add(y, source, x, self._table.groups[module.group], module)
        return y
