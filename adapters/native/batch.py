"""Deltas through the native products: each segment of rows meets its own adapter's matrices, nothing else.

No concatenation, no mask, no padding, nothing to rebuild when the active adapters change. A row's delta does
not depend on its neighbours, bit for bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from adapters.batched import AdapterBatch, BatchedLinear
from adapters.delta import AdapterWeights
from adapters.native.deltas import Deltas
from adapters.native.linear import NativeLinear
from adapters.native.placed import EXPAND_FIELDS, SHRINK_FIELDS, NativeAdapter, place
from adapters.placed import Groups
from adapters.segment import Segment, coalesce

_PIECE = 56  # most rows of one share of work, so that a long segment is spread over the threads
_WORD = 8  # bytes of a table's entry


class _Rows:
    """Where the rows of a set and the matrices of their adapters lie, as the native code wants to know it.

    Attributes:
        modules: not zero where some active adapter adds to the module.
    """

    def __init__(self, segments: Sequence[Segment[NativeAdapter]]) -> None:
        self.count = segments[-1].stop
        owned = [segment for segment in coalesce(segments) if segment.adapter]
        active: dict[NativeAdapter, int] = {}
        pieces = []
        for segment in owned:
            if segment.adapter:
                slot = active.setdefault(segment.adapter, len(active))
                for start in range(segment.start, segment.stop, _PIECE):
                    pieces.append((start, min(start + _PIECE, segment.stop), slot))
        # The tables hold addresses: the adapters must stay for as long as they do.
        self._adapters = tuple(active)
        self._segments = np.array(pieces, np.int64).reshape(-1, 3)
        self._shrink = np.stack([adapter.shrink for adapter in active])
        self._expand = np.stack([adapter.expand for adapter in active])
        self.modules = self._expand[:, :, 0].sum(0).tolist()
        self.segments = self._segments.ctypes.data, len(pieces)
        self.shrink = self._shrink.ctypes.data, self._shrink.shape[1]
        self.expand = self._expand.ctypes.data, self._expand.shape[1]
        self.width = max(adapter.columns for adapter in active)
        self.shrunk = torch.empty(self.count, self.width)
        self.shrunk_of: tuple[Tensor, int] | None = None


class NativeBatch(AdapterBatch[NativeAdapter, _Rows]):
    """Float32 or bfloat16 rows on a CPU; sums are float32."""

    def __init__(self, groups: Groups, library: ctypes.CDLL) -> None:
        super().__init__(groups)
        self._library = library
        self._first = np.cumsum([0, *(len(names) for names in groups)]).tolist()

    def place(self, weights: AdapterWeights) -> NativeAdapter:
        return place(weights, self.groups)

    def _rows(self, segments: Sequence[Segment[NativeAdapter]], on_logits: bool) -> _Rows:
        return _Rows(segments)

    def _apply(self, rows: _Rows, module: BatchedLinear, source: Tensor, x: Tensor) -> Tensor:
        if x.shape[0] != rows.count:
            raise RuntimeError(f"{module.name} got {x.shape[0]} rows where the step has {rows.count}")
        index = self._first[module.group] + module.member
        if not rows.modules[index]:
            return module.linear(x)
        if rows.shrunk_of is None or rows.shrunk_of[0] is not source or rows.shrunk_of[1] != module.group:
            self._shrink(rows, module.group, x)
            rows.shrunk_of = source, module.group
        address, stride = rows.expand
        table = address + index * EXPAND_FIELDS * _WORD
        deltas = Deltas(self._library, (*rows.segments, table, stride, rows.shrunk.data_ptr(), rows.width))
        if isinstance(module.linear, NativeLinear):
            return module.linear.with_deltas(x, deltas)
        y = module.linear(x)
        deltas.add_to(y)
        return y

    def _shrink(self, rows: _Rows, group: int, x: Tensor) -> None:
        x = x.float().contiguous()
        address, stride = rows.shrink
        table = address + group * SHRINK_FIELDS * _WORD
        self._library.shrink(
            x.data_ptr(), x.shape[1], *rows.segments, table, stride, rows.shrunk.data_ptr(), rows.width
        )
