"""Paged attention in plain torch operations, for machines without native code or kernels.

Keys and values of sequences of similar length are gathered side by side; each prefill chunk is on its own.
Grouped query heads are packed beside their key head, 13 to 25 times faster on the CPU than `enable_gqa`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.attention import AttentionPlan, KVCache, StepLayout


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's part of the step: rows `start:stop` are its tokens up to `length`, cached in `slots`.

    `slots`: `(length,)`, where each of its tokens is kept, those of this step included.
    """

    start: int
    stop: int
    slots: Tensor

    @property
    def length(self) -> int:
        return self.slots.shape[0]


@dataclass(frozen=True, slots=True)
class Gather:
    """Attention of some rows in one call: `slots` `(sequences, kv)`, `mask` `(sequences, 1, queries, kv)`.

    `rows` is a slice where they lie side by side, which saves copies.
    """

    rows: Tensor | slice
    queries: int
    slots: Tensor
    mask: Tensor | None


class GatheredPlan(AttentionPlan):
    """Gathers are made once for each window and kept."""

    def __init__(self, cache: KVCache, layout: StepLayout) -> None:
        super().__init__(cache, layout)
        self._spans: list[Span] | None = None
        self._write: Tensor | None = None
        self._gathers: dict[int | None, list[Gather]] = {}

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
        keys, values = self.cache.layer(layer, key, value)
        if self._write is None:
            self._write = torch.from_numpy(self.layout.slots).to(keys.device)
        keys.index_copy_(0, self._write, key[0].transpose(0, 1))
        values.index_copy_(0, self._write, value[0].transpose(0, 1))
        rows = query[0].transpose(0, 1)
        gathers = self.gathers(window, keys.device)
        parts = [_attend(rows[g.rows], keys, values, g, scale, softcap, sinks) for g in gathers]
        if len(parts) == 1:
            return parts[0][None]
        out = rows.new_empty(rows.shape[0], rows.shape[1], values.shape[-1])
        for gather, part in zip(gathers, parts, strict=True):
            out[gather.rows] = part
        return out[None]

    def gathers(self, window: int | None, device: torch.device) -> list[Gather]:
        if self._spans is None:
            self._spans = _spans(self.layout, device)
        if window is not None and all(span.length <= window for span in self._spans):
            window = None
        if window not in self._gathers:
            single = [span for span in self._spans if span.stop - span.start == 1]
            chunks = [span for span in self._spans if span.stop - span.start > 1]
            self._gathers[window] = [
                *(_gather_single(group, window) for group in _similar(single, window)),
                *(_gather_chunk(span, window) for span in chunks),
            ]
        return self._gathers[window]


def _spans(layout: StepLayout, device: torch.device) -> list[Span]:
    offsets = torch.arange(layout.block_size)
    blocks = torch.from_numpy(layout.block_tables).long()[:, :, None] * layout.block_size
    slots = (blocks + offsets).flatten(1).to(device)
    starts, lengths = layout.query_starts.tolist(), layout.kv_lengths.tolist()
    return [Span(starts[i], starts[i + 1], slots[i, :length]) for i, length in enumerate(lengths)]


def _similar(spans: Sequence[Span], window: int | None) -> list[list[Span]]:
    """Spans whose lengths differ by at most twice, so that padding costs at most that."""
    groups: dict[int, list[Span]] = {}
    for span in spans:
        groups.setdefault(min(span.length, window or span.length).bit_length(), []).append(span)
    return list(groups.values())


def _gather_single(spans: Sequence[Span], window: int | None) -> Gather:
    kept = [span.slots[-window:] if window else span.slots for span in spans]
    starts = [span.start for span in spans]
    rows: Tensor | slice = slice(starts[0], starts[-1] + 1)
    if starts != list(range(starts[0], starts[-1] + 1)):
        rows = torch.tensor(starts, device=kept[0].device)
    lengths = torch.tensor([len(slots) for slots in kept], device=kept[0].device)
    width = max(len(slots) for slots in kept)
    # Padding repeats the sequence's own first slot: one never written to may hold NaN, which no mask hides.
    slots = torch.stack([torch.cat([s, s[:1].expand(width - len(s))]) for s in kept])
    if len({len(slots) for slots in kept}) == 1:
        return Gather(rows, 1, slots, None)
    mask = torch.arange(width, device=slots.device) < lengths[:, None]
    return Gather(rows, 1, slots, mask[:, None, None, :])


def _gather_chunk(span: Span, window: int | None) -> Gather:
    queries = span.stop - span.start
    first = max(0, span.length - queries - window + 1) if window else 0
    slots = span.slots[first:]
    device = slots.device
    asks = torch.arange(span.length - queries, span.length, device=device)[:, None]
    holds = torch.arange(first, span.length, device=device)[None, :]
    mask = holds <= asks
    if window:
        mask &= holds > asks - window
    return Gather(slice(span.start, span.stop), queries, slots[None], mask[None, None])


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    gather: Gather,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """`query`: the gather's rows, `(rows, heads, head_dim)`; returns the like of `values`' width."""
    sequences, kv = gather.slots.shape
    heads, kv_heads, queries = query.shape[1], keys.shape[1], gather.queries
    packed = heads // kv_heads
    flat = gather.slots.view(-1)
    k = keys.index_select(0, flat).view(sequences, kv, kv_heads, -1).transpose(1, 2)
    v = values.index_select(0, flat).view(sequences, kv, kv_heads, -1).transpose(1, 2)
    q = query.reshape(sequences, queries, kv_heads, packed, -1)
    q = q.permute(0, 2, 3, 1, 4).reshape(sequences, kv_heads, packed * queries, -1)
    mask = gather.mask
    if mask is not None and queries > 1:
        mask = mask.expand(-1, packed, -1, -1).reshape(sequences, 1, packed * queries, kv)
    if softcap is None and sinks is None:
        y = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    else:
        if sinks is not None:
            sinks = sinks.view(kv_heads, packed, 1).expand(-1, -1, queries).reshape(kv_heads, -1, 1)
        y = _explicit(q, k, v, mask, scale, softcap, sinks)
    y = y.view(sequences, kv_heads, packed, queries, -1).permute(0, 3, 1, 2, 4)
    return y.reshape(sequences * queries, heads, -1)


def _explicit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention with what the fused kernels do not know, scores in float32."""
    scores = (q @ k.transpose(-1, -2)).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().expand(scores.shape[0], -1, -1, -1)], dim=-1)
    weights = scores.softmax(-1)[..., : k.shape[-2]]
    return weights.to(v.dtype) @ v
