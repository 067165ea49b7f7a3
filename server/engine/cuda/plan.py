"""A step's attention by the GPU's kernels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.engine.attention import AttentionPlan, KVCache, StepLayout
from server.engine.cuda.paged import (
    AttentionOptions,
    PagedStep,
    paged_attention,
    prefill_tiles,
    tile_queries,
    write_kv,
)
from server.engine.transfer import to_device


class PagedPlan(AttentionPlan):
    """The layout goes to the device once, when the first layer asks."""

    def __init__(self, cache: KVCache, layout: StepLayout, step: PagedStep | None = None) -> None:
        """`step`: on the device already; of `layout` only the block size is used then."""
        super().__init__(cache, layout)
        self._step = step

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        size = self.layout.block_size
        keys, values = (
            store.view(-1, size, store.shape[1], store.shape[2])
            for store in self.cache.layer(layer, key, value)
        )
        rows = query[0].transpose(0, 1)
        if self._step is None:
            dim = max(keys.shape[3], values.shape[3])
            queries = tile_queries(rows.shape[1], keys.shape[2], dim, rows.dtype)
            self._step = paged_step(self.layout, queries, rows.device)
        write_kv(self._step, key[0].transpose(0, 1), value[0].transpose(0, 1), keys, values)
        options = AttentionOptions(scale, window, softcap, sinks)
        return paged_attention(self._step, rows, keys, values, options)[None]


def paged_step(layout: StepLayout, queries: int, device: torch.device) -> PagedStep:
    """`layout` on the device. `queries`: of one prefill tile."""
    decodes = layout.decodes
    host_tiles = prefill_tiles(np.diff(layout.query_starts)[decodes:].tolist(), decodes, queries)
    slots, tables, lengths, starts, tiles = to_device(
        (layout.slots, layout.block_tables, layout.kv_lengths, layout.query_starts, host_tiles.numpy()),
        device,
    )
    return PagedStep(slots, tables, lengths, starts, tiles, queries, decodes)
