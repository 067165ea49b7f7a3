"""Attention over paged KV for one flat row of tokens, in plain torch operations.

The base's own model classes call `paged_attention` through transformers' attention interface. Which
tokens belong together is in the `AttentionPlan` of the step: decode rows first, then prefill chunks.
Grouped query heads are packed beside their key head, 13 to 25 times faster on the CPU than `enable_gqa`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "multilora_paged"


class KVCache:
    """Keys and values of all layers: `(slots, kv_heads, head_dim)` each, a slot for every token of a block.

    Made when a layer is first seen, since some models cache other widths than their config says.
    """

    def __init__(self, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.slots = slots
        self._dtype = dtype
        self._device = device
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store `key` and `value`, `(tokens, kv_heads, head_dim)`, and return the layer's whole store."""
        if layer not in self._layers:
            self._layers[layer] = (self._new(key), self._new(value))
        keys, values = self._layers[layer]
        keys.index_copy_(0, slots, key)
        values.index_copy_(0, slots, value)
        return keys, values

    def _new(self, like: Tensor) -> Tensor:
        # Left unwritten, so that memory is taken as it is used.
        return torch.empty(self.slots, *like.shape[1:], dtype=self._dtype, device=self._device)

    @property
    def slot_bytes(self) -> int:
        """Bytes that one token takes over the layers seen so far."""
        return sum(t[0].nbytes for pair in self._layers.values() for t in pair)


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


class AttentionPlan:
    """What every layer of one step needs to know. Gathers are made once for each window and kept."""

    def __init__(self, cache: KVCache, write: Tensor, spans: Sequence[Span]) -> None:
        """`write`: the slot of every row, `(tokens,)`."""
        self.cache = cache
        self.write = write
        self.spans = spans
        self.calls: list[tuple[int, int | None]] = []
        self._gathers: dict[int | None, list[Gather]] = {}

    def gathers(self, window: int | None) -> list[Gather]:
        if window is not None and all(span.length <= window for span in self.spans):
            window = None
        if window not in self._gathers:
            single = [span for span in self.spans if span.stop - span.start == 1]
            chunks = [span for span in self.spans if span.stop - span.start > 1]
            self._gathers[window] = [
                *(_gather_single(group, window) for group in _similar(single, window)),
                *(_gather_chunk(span, window) for span in chunks),
            ]
        return self._gathers[window]


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
    slots = torch.stack([F.pad(s, (0, width - len(s)), value=int(s[0])) for s in kept])
    if len(spans) == 1 or bool((lengths == width).all()):
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


_plan: ContextVar[AttentionPlan] = ContextVar("attention_plan")


@contextmanager
def attention_plan(plan: AttentionPlan) -> Iterator[None]:
    """Use `plan` for the forward pass inside."""
    token = _plan.set(plan)
    try:
        yield
    finally:
        _plan.reset(token)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """The function behind transformers' attention interface.

    Args:
        query: `(1, heads, tokens, head_dim)`, positions applied.
        key, value: `(1, kv_heads, tokens, head_dim)`, likewise.
        scaling: factor of the scores, `head_dim ** -0.5` by default.
        sliding_window: a token sees this many tokens, itself included.
        softcap: scores become `softcap * tanh(scores / softcap)` (Gemma 2, arXiv 2408.00118).
        s_aux: `(heads,)` logits of attention sinks, which take part in the softmax only (gpt-oss).

    Returns:
        `(1, tokens, heads, head_dim)`, None
    """
    plan = _plan.get()
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    plan.calls.append((layer, sliding_window))
    keys, values = plan.cache.write(layer, plan.write, key[0].transpose(0, 1), value[0].transpose(0, 1))
    rows = query[0].transpose(0, 1)
    scale = rows.shape[-1] ** -0.5 if scaling is None else scaling
    gathers = plan.gathers(sliding_window)
    parts = [_attend(rows[g.rows], keys, values, g, scale, softcap, s_aux) for g in gathers]
    if len(parts) == 1:
        return parts[0][None], None
    out = rows.new_empty(rows.shape[0], rows.shape[1], values.shape[-1])
    for gather, part in zip(gathers, parts, strict=True):
        out[gather.rows] = part
    return out[None], None


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


def register() -> None:
    """Make the interface known to transformers under `NAME`, with no mask built by the model."""
    AttentionInterface.register(NAME, paged_attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
