"""The served side of the proof: one step of the batched path, the adapter's rows beside the base's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adapters.batch.placed import Placed
from adapters.batch.segment import Segment
from server.engine.attention import KVCache, StepLayout
from server.engine.base import ServedModel
from server.engine.sequence import invoked_at


def served_logits(
    model: ServedModel, adapter: Placed, prompt: Sequence[int], positions: int
) -> tuple[Tensor, Tensor]:
    """The base's and the adapter's logits of the last tokens of `prompt`, float32 `(positions, vocabulary)`.

    They come from one forward pass with a KV cache of its own. Call it between two steps of the engine.
    """
    count = len(prompt)
    kept = min(positions, count)
    acts = min(invoked_at(prompt, adapter.invocation), count)
    first = count - kept
    heads = _segments(kept, min(max(acts - first, 0), kept), adapter)
    slots = list(range(2 * count))
    cache = KVCache(2 * count, model.dtype, model.device)
    layout = StepLayout.of(1, [slots[:count], slots[count:]], [count, count], [count, count])
    ids = torch.tensor([*prompt, *prompt], device=model.device)
    rows = torch.tensor([*range(first, count), *range(count + first, 2 * count)], device=model.device)
    model.batch.use_merged = False
    model.batch.begin(_segments(count, acts, adapter), heads)
    try:
        placed = torch.from_numpy(layout.positions).to(model.device)
        logits = model.forward(ids, placed, model.plan_type(cache, layout), rows).float().cpu()
    finally:
        model.batch.end()
    return logits[:kept], logits[kept:]


def _segments(rows: int, acts: int, adapter: Placed) -> list[Segment[Any]]:
    """`rows` of the base, then as many of the adapter, which acts from its row `acts` on."""
    parts = ((0, rows + acts, None), (rows + acts, 2 * rows, adapter))
    return [Segment(*part) for part in parts if part[0] < part[1]]
