"""The served side of the proof: one pass of the batched path, the adapter's rows beside the base's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.batch.placed import Placed
from adapters.batch.segment import Segment
from server.engine.attention import KVCache, StepLayout
from server.engine.base import ServedModel
from server.engine.encoder.model import EncoderModel
from server.engine.pooling import head_of
from server.engine.seq2seq.memory import Memory
from server.engine.seq2seq.model import Seq2SeqModel
from server.engine.sequence import invoked_at
from server.proof.stock import target_tokens
from server.proof.subject import EMBEDS, Subject

Rows = tuple[Tensor, Tensor]
"""The base's and the adapter's, float32 `(rows, width)` each."""


def served_rows(model: Any, adapter: Placed, subject: Subject, prompt: Sequence[int], positions: int) -> Rows:
    """What `stock_rows` computes with transformers and PEFT, from one pass over both.

    A head is the adapter's in both. Call it between two steps of the engine.
    """
    if isinstance(model, EncoderModel):
        return _encoded(model, adapter, subject, prompt, positions)
    if isinstance(model, Seq2SeqModel):
        return _translated(model, adapter, prompt, positions)
    return _decoded(model, adapter, subject, prompt, positions)


def _decoded(
    model: ServedModel, adapter: Placed, subject: Subject, prompt: Sequence[int], positions: int
) -> Rows:
    """From one forward pass with a KV cache of its own."""
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
        with model.hidden_states() as hidden:
            logits = model.forward(ids, placed, model.plan_type(cache, layout), rows)
    finally:
        model.batch.end()
    if subject.task == EMBEDS or subject.labels:
        logits = hidden[0][rows]
    if subject.labels:
        weight, bias = head_of(adapter)
        logits = F.linear(logits.to(weight.dtype), weight, bias)
    return _split(logits, kept, 1 if subject.task == "SEQ_CLS" else kept)


def _encoded(
    model: EncoderModel, adapter: Placed, subject: Subject, prompt: Sequence[int], positions: int
) -> Rows:
    padded = model.pad([prompt, prompt], [None, adapter])
    rows = model.encode(padded)
    if subject.labels:
        head = adapter.extras.head if adapter.extras is not None else {}
        rows = model.classify(subject.task, head, rows, padded.mask)
    if rows.dim() == 2:
        return _split(rows, 1, 1)
    return _split(rows.flatten(0, 1), len(prompt), positions)


def _translated(model: Seq2SeqModel, adapter: Placed, prompt: Sequence[int], positions: int) -> Rows:
    """The prompt as a source, and as what was answered so far."""
    source = [*prompt]
    targets = target_tokens(model.start, source, positions)
    memories = [Memory(model.shape, len(source), len(targets)) for _ in range(2)]
    adapters = [None, adapter]
    model.encode([source, source], memories, adapters)
    steps = [model.decode([token, token], memories, adapters) for token in targets]
    return _split(torch.stack(steps, 1).flatten(0, 1), len(targets), positions)


def _split(rows: Tensor, count: int, last: int) -> Rows:
    """The last rows of the base's `count` and of as many of the adapter."""
    rows = rows.float().cpu()
    return rows[:count][-last:], rows[count:][-last:]


def _segments(rows: int, acts: int, adapter: Placed) -> list[Segment[Any]]:
    """`rows` of the base, then as many of the adapter, which acts from its row `acts` on."""
    parts = ((0, rows + acts, None), (rows + acts, 2 * rows, adapter))
    return [Segment(*part) for part in parts if part[0] < part[1]]
