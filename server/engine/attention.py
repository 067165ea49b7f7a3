"""Attention over paged KV: what a step tells it, and the interface of its implementations.

The base's own model classes call `paged_attention` through transformers' attention interface. It hands over
to the step's `AttentionPlan`: native code (`native/paged.py`) or plain torch operations (`gathered.py`), as
`plans.py` chooses at start.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
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

    def layer(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The store of a layer whose keys and values, `(1, kv_heads, tokens, head_dim)`, look like these."""
        found = self._layers.get(layer)
        if found is None:
            found = self._layers[layer] = (self._new(key), self._new(value))
        return found

    def _new(self, like: Tensor) -> Tensor:
        # Left unwritten, so that memory is taken as it is used.
        return torch.empty(self.slots, like.shape[1], like.shape[3], dtype=self._dtype, device=self._device)

    @property
    def slot_bytes(self) -> int:
        """Bytes that one token takes over the layers seen so far."""
        return sum(t[0].nbytes for pair in self._layers.values() for t in pair)


@dataclass(frozen=True, slots=True, eq=False)
class StepLayout:
    """Whose the rows of a step are, and where their KV is. All on the host.

    Attributes:
        block_size: tokens of a block; slot `i` of block `b` is `b * block_size + i`.
        block_tables: `(sequences, max_blocks)` int32, each sequence's blocks in order, then zeros.
        kv_lengths: `(sequences,)` int32, tokens of each sequence, those of this step included.
        query_starts: `(sequences + 1,)` int32, the first row of each sequence, and the number of rows.
        positions: `(tokens,)` int64, the place of each row's token in its sequence.
        slots: `(tokens,)` int64, where each row's key and value go.
    """

    block_size: int
    block_tables: NDArray[np.int32]
    kv_lengths: NDArray[np.int32]
    query_starts: NDArray[np.int32]
    positions: NDArray[np.int64]
    slots: NDArray[np.int64]

    @classmethod
    def of(
        cls, block_size: int, blocks: Sequence[Sequence[int]], lengths: Sequence[int], counts: Sequence[int]
    ) -> StepLayout:
        """Args:
        blocks, lengths: of each sequence; more blocks than its length needs may be given.
        counts: how many of each sequence's last tokens are computed now, at least one.
        """
        kv_lengths = np.array(lengths, np.int32)
        queries = np.array(counts, np.int64)
        starts = np.zeros(len(queries) + 1, np.int32)
        np.cumsum(queries, out=starts[1:])
        held = np.array([len(own) for own in blocks], np.int64)
        tables = np.zeros((len(queries), int(held.max())), np.int32)
        tables[np.arange(tables.shape[1]) < held[:, None]] = np.fromiter(
            chain.from_iterable(blocks), np.int32, int(held.sum())
        )
        rows = np.arange(starts[-1], dtype=np.int64)
        positions = rows + np.repeat(kv_lengths - starts[1:], queries)
        owners = np.repeat(np.arange(len(queries)), queries)
        block, offset = np.divmod(positions, block_size)
        slots = tables[owners, block].astype(np.int64) * block_size + offset
        return cls(block_size, tables, kv_lengths, starts, positions, slots)

    @property
    def tokens(self) -> int:
        return int(self.query_starts[-1])

    @property
    def decodes(self) -> int:
        """How many sequences stand before the first that has more than one row."""
        more = np.flatnonzero(np.diff(self.query_starts) > 1)
        return int(more[0]) if len(more) else len(self.kv_lengths)


class AttentionPlan(ABC):
    """One step's attention, for all layers. Subclasses are the implementations.

    Attributes:
        calls: layer and window of each call so far.
    """

    def __init__(self, cache: KVCache, layout: StepLayout) -> None:
        self.cache = cache
        self.layout = layout
        self.calls: list[tuple[int, int | None]] = []

    @abstractmethod
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
        """Store the step's keys and values, and attend. Arguments and result as in `paged_attention`."""


_plan: ContextVar[AttentionPlan] = ContextVar("attention_plan")


@contextmanager
def attention_plan(plan: AttentionPlan) -> Iterator[None]:
    """Use `plan` for the forward pass inside."""
    token = _plan.set(plan)
    try:
        yield
    finally:
        _plan.reset(token)


def current_plan() -> AttentionPlan:
    """The plan of the forward pass that is going on."""
    return _plan.get()


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
        key, value: `(1, kv_heads, tokens, head_dim)`, likewise; a value's width may differ.
        scaling: factor of the scores, `head_dim ** -0.5` by default.
        sliding_window: a token sees this many tokens, itself included.
        softcap: scores become `softcap * tanh(scores / softcap)` (Gemma 2, arXiv 2408.00118).
        s_aux: `(heads,)` logits of attention sinks, which take part in the softmax only (gpt-oss).

    Returns:
        `(1, tokens, heads, value_dim)`, None
    """
    plan = _plan.get()
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    plan.calls.append((layer, sliding_window))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = plan.attend(
        layer, query, key, value, scale=scale, window=sliding_window, softcap=softcap, sinks=s_aux
    )
    return out, None


def register() -> None:
    """Make the interface known to transformers under `NAME`, with no mask built by the model."""
    AttentionInterface.register(NAME, paged_attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
