"""Deltas in plain torch operations: any type, any device, no compiler.

Decode rows are multiplied with all active adapters, concatenated along the rank; long prefill segments each
with their own adapter. `forms.py` says which rows are which.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters.batch.batched import AdapterBatch, BatchedLinear
from adapters.batch.forms import short_segments
from adapters.batch.inputs import ScaledInputs
from adapters.batch.pack import PackCache, PackedGroup
from adapters.batch.placed import Groups, PlacedAdapter, PlacedPart, place
from adapters.batch.segment import Segment, coalesce
from adapters.delta import AdapterWeights

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # the integer as wide as a float, by bytes


class _Rows:
    """The adapters of one set of rows: those of all tokens, or those whose logits are computed.

    Rows `0:concatenated` use the concatenated form, the segments behind them a product of their own.
    """

    def __init__(self, segments: Sequence[Segment[PlacedAdapter]], packs: PackCache) -> None:
        segments = coalesce(segments)
        self.count = segments[-1].stop
        self.inputs = ScaledInputs(segments)
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
            self._masks[layout] = (self.slots(owners.device)[:, None] == owners).to(bits).neg_()
        return self._masks[layout]

    def slots(self, device: torch.device) -> Tensor:
        """Of the concatenated rows, `(rows,)`; for the bare base, the one behind the last adapter's."""
        assert self.pack is not None
        if self._slots is None:
            lengths = torch.tensor([s.stop - s.start for s in self._short])
            base = len(self.pack.adapters)
            own = [self.pack.slots[s.adapter.digest] if s.adapter else base for s in self._short]
            self._slots = torch.tensor(own).repeat_interleave(lengths).to(device)
        return self._slots


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
        inputs = rows.inputs.of(module.group, module.member, x)
        y: Tensor | None = None
        if first is not None and rows.pack is not None:
            packed = rows.pack.groups[module.group].parts[module.member]
            if packed is not None:
                delta = first[:, packed.start : packed.stop] @ packed.bt
                plain = packed.magnitude is None and packed.shift is None
                if plain and rows.concatenated == rows.count:
                    return module.linear(inputs, delta)
                y = module.linear(inputs)
                own = y[: rows.concatenated]
                if not plain:
                    slots = rows.slots(y.device)
                    _scale_and_shift(own, _chosen(packed.magnitude, slots), _chosen(packed.shift, slots))
                own += delta
        y = module.linear(inputs) if y is None else y
        for segment, shrunk in zip(rows.long, others, strict=True):
            part = _part(segment.adapter, module)
            if part is not None and shrunk is not None:
                own = y[segment.start : segment.stop]
                _scale_and_shift(own, part.magnitude, part.shift)
                own.addmm_(shrunk[:, part.start : part.stop], part.bt)
        return y


def _scale_and_shift(y: Tensor, magnitude: Tensor | None, shift: Tensor | None) -> None:
    """`magnitude * y + shift` in place, rounded once."""
    if magnitude is None and shift is None:
        return
    result = y.float()
    if magnitude is not None:
        result = result * magnitude
    if shift is not None:
        result = result + shift
    y.copy_(result)


def _chosen(terms: Tensor | None, slots: Tensor) -> Tensor | None:
    """Each row's own."""
    return None if terms is None else terms.index_select(0, slots)


def _part(adapter: PlacedAdapter | None, module: BatchedLinear) -> PlacedPart | None:
    group = adapter.groups.get(module.group) if adapter else None
    return group.parts[module.member] if group else None
