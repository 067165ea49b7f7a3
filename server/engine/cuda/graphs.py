"""Decode steps on tensors of fixed address and few sizes, captured once as CUDA graphs and replayed.

A decode step of a model with 32 layers launches hundreds of kernels, each quicker than its launch. A replay
launches them all at once. What a step differs by (tokens, places in the cache, lengths, the adapters' slots)
is written into the tensors that the kernels read; Python code does not run again.

    rows  1 2 4 8 16 24 ..   x   {bare base, adapters}   one graph each, in one pool of memory

A step is padded to the next size with rows of length 0 whose keys go nowhere. Bare base steps have graphs of
their own, without any kernel of the adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.batch.cuda.batch import CudaBatch
from server.engine.attention import KVCache, StepLayout
from server.engine.base import ServedModel
from server.engine.cuda.paged import PagedStep
from server.engine.cuda.plan import PagedPlan
from server.engine.transfer import to_device


def padded(rows: int) -> int:
    """The size that a step of so many rows runs in: a power of two up to 8, then a multiple of 8."""
    return -(-rows // 8) * 8 if rows > 8 else 1 << (rows - 1).bit_length()


class DecodeInputs:
    """What the kernels of a decode step read, for up to `rows` sequences of `blocks` blocks each.

    Attributes:
        longs: `(3, rows)` int64: tokens, positions, and the slots of the cache that keys and values go to.
        ints: `(2, rows)` int32: lengths with the step's own token, and the adapters' slots.
        tables: `(rows, blocks)` int32.
    """

    def __init__(self, rows: int, blocks: int, device: torch.device) -> None:
        self.longs = torch.zeros(3, rows, dtype=torch.int64, device=device)
        self.ints = torch.zeros(2, rows, dtype=torch.int32, device=device)
        self.tables = torch.zeros(rows, blocks, dtype=torch.int32, device=device)
        self.indices = torch.arange(rows, device=device)
        self.query_starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self.no_tiles = torch.empty(0, 2, dtype=torch.int32, device=device)
        self.longs[2], self.ints[1] = -1, -1

    def fill(self, size: int, tokens: Sequence[int], layout: StepLayout, adapters: Sequence[int]) -> None:
        """Write a step's inputs, padded to `size` rows: one copy to the device, three on it."""
        rows, width = layout.block_tables.shape
        longs = np.zeros((3, size), np.int64)
        longs[2] = -1
        longs[:, :rows] = tokens, layout.positions, layout.slots
        ints = np.zeros((2, size), np.int32)
        ints[1] = -1
        ints[:, :rows] = layout.kv_lengths, adapters
        sent = to_device((longs, ints, layout.block_tables), self.longs.device)
        self.longs[:, :size].copy_(sent[0])
        self.ints[:, :size].copy_(sent[1])
        self.tables[:rows, :width].copy_(sent[2])

    def step(self, size: int) -> PagedStep:
        """The first `size` rows, as attention wants to know them."""
        return PagedStep(
            slots=self.longs[2, :size],
            block_tables=self.tables[:size],
            kv_lengths=self.ints[0, :size],
            query_starts=self.query_starts[: size + 1],
            tiles=self.no_tiles,
            tile_queries=1,
            decodes=size,
        )


class StaticDecode:
    """Decode steps through `DecodeInputs`, each launched anew. `GraphedDecode` replays them instead."""

    def __init__(
        self,
        model: ServedModel,
        cache: KVCache,
        *,
        block_size: int,
        max_rows: int,
        max_length: int,
    ) -> None:
        """`max_rows`, `max_length`: of sequences in a step, and of their tokens.

        Raises:
            TypeError: the model does not apply adapters by a `CudaBatch`.
        """
        if not isinstance(model.batch, CudaBatch):
            raise TypeError(f"{type(model.batch).__name__} can't read slots that change after a capture")
        self._model = model
        self._batch = model.batch
        self._cache = cache
        self._block_size = block_size
        self._rows = padded(max_rows)
        self._inputs = DecodeInputs(self._rows, -(-max_length // block_size), model.device)

    def run(self, tokens: Sequence[int], layout: StepLayout, adapters: Sequence[Any | None]) -> Tensor | None:
        """See `DecodePath`."""
        size = padded(len(tokens))
        if size > self._rows or layout.block_tables.shape[1] > self._inputs.tables.shape[1]:
            return None
        if any(adapter is not None and (adapter.input_scales or adapter.extras) for adapter in adapters):
            return None  # not by kernels that look their rows' slots up
        slots = self._batch.slots(adapters)
        self._inputs.fill(size, tokens, layout, slots)
        return self._forward(size, any(slot >= 0 for slot in slots))[: len(tokens)]

    def _forward(self, size: int, adapters: bool) -> Tensor:
        """`(size, vocabulary)` logits of what the inputs hold. It reads nothing else that changes."""
        inputs = self._inputs
        layout = StepLayout.of(self._block_size, [[0]] * size, [1] * size, [1] * size)
        plan = PagedPlan(self._cache, layout, inputs.step(size))
        self._batch.use_merged = False
        self._batch.end()
        if adapters:
            self._batch.begin_decode(inputs.ints[1, :size])
        try:
            return self._model.forward(
                inputs.longs[0, :size], inputs.longs[1, :size], plan, inputs.indices[:size]
            )
        finally:
            self._batch.end()


class GraphedDecode(StaticDecode):
    """Decode steps by CUDA graphs, all of them captured at start: nothing else may use the GPU then."""

    def __init__(self, *args: Any, **sizes: Any) -> None:
        """As `StaticDecode`.

        Raises:
            RuntimeError: the model does what can't be captured, such as waiting for a result of the device.
        """
        super().__init__(*args, **sizes)
        self._graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        # From the largest down, so that the smaller ones find the pool's memory large enough.
        for size in sorted({padded(rows) for rows in range(1, self._rows + 1)}, reverse=True):
            for adapters in (True, False):
                self._graphs[size, adapters] = self._capture(size, adapters)

    def _capture(self, size: int, adapters: bool) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        super()._forward(size, adapters)  # compiles, and takes the memory that is not the graph's
        torch.cuda.synchronize(self._model.device)
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
        graph = torch.cuda.CUDAGraph()
        # A capture that fails leaves its own stream as the current one: the outer block restores it.
        stream = torch.cuda.current_stream(self._model.device)
        with torch.cuda.stream(stream), torch.cuda.graph(graph, pool=pool):
            logits = super()._forward(size, adapters)
        return graph, logits

    def _forward(self, size: int, adapters: bool) -> Tensor:
        graph, logits = self._graphs[size, adapters]
        graph.replay()
        return logits
