"""Deltas in plain torch operations: any type, any device, no compiler.

Decode rows are multiplied with all active adapters, concatenated along the rank; long prefill segments each
with their own adapter. `forms.py` says which rows are which.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters.batched import AdapterBatch, BatchedLinear
from adapters.delta import AdapterWeights
from adapters.forms import short_segments
from adapters.pack import PackCache, PackedGroup
from adapters.placed import Groups, PlacedAdapter, PlacedPart, place
from adapters.segment import Segment, coalesce

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # the integer as wide as a float, by bytes


class _Rows:
    """The adapters of one set of rows: those of all tokens, or those whose logits are computed.

    Rows `0:concatenated` use the concatenated form, the segments behind them a product of their own.
    """

    def __init__(self, segments: Sequence[Segment[PlacedAdapter]], packs: PackCache) -> None:
        segments = coalesce(segments)
        self.count = segments[-1].stop
        short = short_segments(segments)
        self.pack = packs.get(short)
        self.concatenated = short[-1].stop if short and self.pack else 0
        self.long = [s for s in segments if s.start >= self.concatenated and s.adapter]
        self._short = short
        self._slots: Tensor | None = None
        self._masks: dict[int, Tensor] = {}
        self._shrunk: tuple[Tensor, int, list[Tensor | None]] | None = None

    def deltas(self, source: Tensor, x: Tensor, index: int) -> list[Tensor | None]:
        """`x A^T` of group `index`, for the concatenated rows and for each long segment.

        The modules of a group are called with the same tensor, `source`, and share these products.
        """
        if self._shrunk is None or self._shrunk[0] is not source or self._shrunk[1] != index:
            packed = self.pack.groups.get(index) if self.pack else None
            shrunk = [self._shrink(x, packed) if packed else None]
            for segment in self.long:
                group = segment.adapter.groups.get(index) if segment.adapter else None
                shrunk.append(x[segment.start : segment.stop] @ group.at if group else None)
            self._shrunk = (source, index, shrunk)
        return self._shrunk[2]

    def _shrink(self, x: Tensor, group: PackedGroup) -> Tensor:
        """`x A^T` of the concatenated rows with foreign columns zeroed.

        Their bits are cleared: another adapter may overflow here, and its `0 * inf` would be NaN for all.
        """
        shrunk = x[: self.concatenated] @ group.at
        bits = _BITS[shrunk.element_size()]
        shrunk.view(bits).bitwise_and_(self._mask(group.layout, bits))
        return shrunk

    def _mask(self, layout: int, bits: torch.dtype) -> Tensor:
        """`(rows, total rank)` integers: all bits set where the row's adapter owns the column, else none."""
        if layout not in self._masks:
            assert self.pack is not None
            owners = self.pack.layouts[layout]
            if self._slots is None:
                lengths = torch.tensor([s.stop - s.start for s in self._short])
                own = [self.pack.slots[s.adapter.digest] if s.adapter else -1 for s in self._short]
                self._slots = torch.tensor(own).repeat_interleave(lengths).to(owners.device)
            self._masks[layout] = (self._slots[:, None] == owners).to(bits).neg_()
        return self._masks[layout]


class PlainBatch(AdapterBatch[PlacedAdapter, _Rows]):
    """Concatenated and by segment, in torch operations."""

    def __init__(self, groups: Groups, dtype: torch.dtype, *, pin: bool = False) -> None:
        """`dtype`: of the adapters' matrices; `pin`: place them in page-locked memory, to be copied on."""
        super().__init__(groups, dtype, pin=pin)
        self._packs = PackCache()
        self._head_packs = PackCache()

    def _place(self, weights: AdapterWeights) -> PlacedAdapter:
        return place(weights, self.groups, self.dtype, pin=self.pin)

    def _rows(self, segments: Sequence[Segment[PlacedAdapter]], on_logits: bool) -> _Rows:
        return _Rows(segments, self._head_packs if on_logits else self._packs)

    def _apply(self, rows: _Rows, module: BatchedLinear, source: Tensor, x: Tensor) -> Tensor:
        if x.shape[0] != rows.count:
            raise RuntimeError(f"{module.name} got {x.shape[0]} rows where the step has {rows.count}")
        first, *others = rows.deltas(source, x, module.group)
        y: Tensor | None = None
        if first is not None and rows.pack is not None:
            part = rows.pack.groups[module.group].parts[module.member]
            if part is not None:
                delta = first[:, part.start : part.stop] @ part.bt
                if rows.concatenated == rows.count:
                    return module.linear(x, delta)
                y = module.linear(x)
                y[: rows.concatenated] += delta
        y = module.linear(x) if y is None else y
        for segment, shrunk in zip(rows.long, others, strict=True):
            part = _part(segment.adapter, module)
            if part is not None and shrunk is not None:
                y[segment.start : segment.stop].addmm_(shrunk[:, part.start : part.stop], part.bt)
        return y


def _part(adapter: PlacedAdapter | None, module: BatchedLinear) -> PlacedPart | None:
    group = adapter.groups.get(module.group) if adapter else None
    return group.parts[module.member] if group else None
