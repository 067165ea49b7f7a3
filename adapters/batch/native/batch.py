"""Deltas through the native products: each segment of rows meets its own adapter's matrices, nothing else.

No concatenation, no mask, no padding, nothing to rebuild when the active adapters change. A row's delta does
not depend on its neighbours, bit for bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from adapters.batch.batched import AdapterBatch, BatchedLinear
from adapters.batch.inputs import ScaledInputs
from adapters.batch.native.linear import Deltas, NativeLinear, NativeLinears
from adapters.batch.native.placed import EXPAND_FIELDS, SHRINK_FIELDS, NativeAdapter, place
from adapters.batch.placed import Groups
from adapters.batch.segment import Segment, coalesce
from adapters.delta import AdapterWeights

_PIECE = 56  # most rows of one share of work, so that a long segment is spread over the threads
_WORD = 8  # bytes of a table's entry


class _Rows:
    """Where the rows of a set and the matrices of their adapters lie, as the native code wants to know it."""

    def __init__(self, segments: Sequence[Segment[NativeAdapter]]) -> None:
        self.count = segments[-1].stop
        self.inputs = ScaledInputs(segments)
        active: dict[NativeAdapter, int] = {}
        pieces = []
        for segment in coalesce(segments):
            if segment.adapter:
                slot = active.setdefault(segment.adapter, len(active))
                for start in range(segment.start, segment.stop, _PIECE):
                    pieces.append((start, min(start + _PIECE, segment.stop), slot))
        # The tables hold addresses: the adapters must stay for as long as they do.
        self._adapters = tuple(active)
        self._segments = np.array(pieces, np.int64)
        self._shrink = np.stack([adapter.shrink for adapter in active])
        self._expand = np.stack([adapter.expand for adapter in active])
        self._shrunk = torch.empty(self.count, max(adapter.columns for adapter in active))
        self.groups = np.any([adapter.groups for adapter in active], 0).tolist()
        self.segments = self._segments.ctypes.data, len(pieces)
        self.shrink = self._shrink.ctypes.data, self._shrink.shape[1]
        self.expand = self._expand.ctypes.data, self._expand.shape[1]
        self.shrunk = self._shrunk.data_ptr(), self._shrunk.shape[1]
        self.shrunk_of: tuple[Tensor, int, Deltas | None] | None = None


class NativeBatch(AdapterBatch[NativeAdapter, _Rows]):
    """Float32 or bfloat16 rows on a CPU; sums are float32."""

    def __init__(self, groups: Groups, library: ctypes.CDLL, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(groups, dtype)
        self._library = library
        first = np.cumsum([0, *(len(names) for names in groups)]).tolist()
        self._modules = [range(*edges) for edges in pairwise(first)]
        self._layers: dict[int, list[BatchedLinear]] = {}
        self._linears: dict[tuple[int, bool], NativeLinears] = {}
        self._done: tuple[Tensor, NativeLinears, list[Tensor]] | None = None

    def attach(self, layer: BatchedLinear) -> None:
        self._layers.setdefault(layer.group, []).append(layer)

    def _place(self, weights: AdapterWeights) -> NativeAdapter:
        return place(self._library, weights, self.groups)

    def _rows(self, segments: Sequence[Segment[NativeAdapter]], on_logits: bool) -> _Rows:
        return _Rows(segments)

    def end(self) -> None:
        super().end()
        self._done = None

    def apply(self, module: BatchedLinear, source: Tensor, x: Tensor) -> Tensor:
        rows = self._logits if module.on_logits else self._tokens
        alone = rows is not None and module.group in rows.inputs.groups
        linears = None if alone else self._together(module.group)
        if linears is None:
            return super().apply(module, source, x)
        # All modules of the group are computed together, when the first of them is called.
        done = self._done
        if done is None or done[0] is not source or done[1] is not linears:
            deltas = None if rows is None else self._deltas(rows, module, x)
            done = self._done = source, linears, linears(x, deltas)
        return done[2][module.member]

    def _together(self, group: int) -> NativeLinears | None:
        """The maps of a group as one call, unless some of them are not native ones."""
        frozen = [layer.frozen(merged=self.use_merged) for layer in self._layers[group]]
        linears = self._linears.get((group, self.use_merged))
        if linears is None or not linears.has(frozen):
            native = [linear for linear in frozen if isinstance(linear, NativeLinear)]
            if len(native) < len(frozen):
                return None
            linears = self._linears[group, self.use_merged] = NativeLinears(self._library, native)
        return linears

    def _apply(self, rows: _Rows, module: BatchedLinear, source: Tensor, x: Tensor) -> Tensor:
        """For a base whose products are not ours (bfloat16, on CPUs that know it), and for scaled inputs."""
        y = module.linear(rows.inputs.of(module.group, module.member, x))
        if rows.shrunk_of is None or rows.shrunk_of[0] is not source or rows.shrunk_of[1] != module.group:
            deltas = self._deltas(rows, module, x)
            rows.shrunk_of = source, module.group, deltas
            if deltas is not None:
                x = x.float().contiguous()
                shrinks = *deltas.segments, *deltas.shrinks
                self._library.shrink(x.data_ptr(), x.shape[1], *shrinks, *deltas.shrunk)
        deltas = rows.shrunk_of[2]
        if deltas is not None:
            expand = self._library.expand_bf16 if y.dtype == torch.bfloat16 else self._library.expand_f32
            table = deltas.tables[module.member]
            expand(*deltas.segments, table, deltas.stride, *deltas.shrunk, y.data_ptr(), y.shape[1])
        return y

    def _deltas(self, rows: _Rows, module: BatchedLinear, x: Tensor) -> Deltas | None:
        """Of the module's group; None if no adapter of the step adds to it."""
        if x.shape[0] != rows.count:
            raise RuntimeError(f"{module.name} got {x.shape[0]} rows where the step has {rows.count}")
        group = module.group
        if not rows.groups[group]:
            return None
        shrink, shrink_stride = rows.shrink
        expand, expand_stride = rows.expand
        return Deltas(
            rows.segments,
            (shrink + group * SHRINK_FIELDS * _WORD, shrink_stride),
            expand_stride,
            rows.shrunk,
            tuple(expand + index * EXPAND_FIELDS * _WORD for index in self._modules[group]),
        )
