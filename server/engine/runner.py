"""One planned step as one forward pass: builds the flat token row, runs the model, returns the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from adapters.batch.segment import Segment
from server.engine.attention import KVCache, StepLayout
from server.engine.base import ServedModel
from server.engine.decode import DecodePath
from server.engine.pooling import PoolingSequence
from server.engine.scheduler import Plan
from server.engine.sequence import PagedSequence, Sequence
from server.engine.transfer import to_device


@dataclass(frozen=True, slots=True)
class Scored:
    """Rows `start:stop` of the step's logits belong to `sequence`.

    The last row predicts the next token if `samples`; the rows before it score prompt tokens.
    """

    sequence: Sequence
    start: int
    stop: int
    samples: bool


class Runner:
    """Runs steps on one model with one KV cache.

    Attributes:
        decode: a faster way through steps of one row for each sequence, if there is one.
        merged_digest: the adapter that is in the merged weights.
    """

    def __init__(self, model: ServedModel, blocks: int, block_size: int) -> None:
        self.model = model
        self.cache = KVCache(blocks * block_size, model.dtype, model.device)
        self.decode: DecodePath | None = None
        self.merged_digest: str | None = None
        self._block_size = block_size

    def run(self, plan: Plan) -> tuple[Tensor, list[Scored]]:
        """Compute the planned tokens. Returns `(rows, vocabulary)` logits and whose they are."""
        # Decode rows first, and neighbours with the same adapter, so that they form long segments.
        order = sorted(plan, key=lambda s: (plan[s] > 1, s.request.adapter or ""))
        tokens: list[int] = []
        spans: list[tuple[int, int]] = []
        segments: list[Segment[Any]] = []
        for sequence in order:
            start, done = len(tokens), sequence.computed
            tokens += sequence.tokens[done : done + plan[sequence]]
            spans.append((start, len(tokens)))
            segments += _segments(sequence, done, *spans[-1])
        layout = StepLayout.of(
            self._block_size,
            [sequence.blocks for sequence in order],
            [sequence.computed + plan[sequence] for sequence in order],
            [plan[sequence] for sequence in order],
        )
        scored, rows, heads = _logit_rows(order, plan, spans)
        batch = self.model.batch
        merged = self.merged_digest
        batch.use_merged = merged is not None and all(
            s.request.adapter == merged and not s.adapted_from for s in order
        )
        pooling = [(s, span) for s, span in zip(order, spans, strict=True) if isinstance(s, PoolingSequence)]
        decodes = not pooling and rows == [*range(len(tokens))]
        if self.decode is not None and not batch.use_merged and decodes:
            logits = self.decode.run(tokens, layout, [segment.adapter for segment in segments])
            if logits is not None:
                return logits, scored
        if batch.use_merged:
            batch.end()
        else:
            batch.begin(segments, heads)
        arrays = (np.array(tokens), layout.positions, np.array(rows))
        ids, positions, logits_of = to_device(arrays, self.model.device)
        attention = self.model.plan_type(self.cache, layout)
        if not pooling:
            return self.model.forward(ids, positions, attention, logits_of), scored
        with self.model.hidden_states() as seen:
            logits = self.model.forward(ids, positions, attention, logits_of)
        for sequence, (start, stop) in pooling:
            sequence.collect(seen[0][start:stop])
        return logits, scored


def _segments(sequence: PagedSequence, first: int, start: int, stop: int) -> list[Segment[Any]]:
    """Rows `start:stop` of `sequence`, from its token `first` on: the base up to where its adapter acts."""
    split = min(max(start, start + sequence.adapted_from - first), stop)
    parts = ((start, split, None), (split, stop, sequence.adapter))
    return [Segment(*part) for part in parts if part[0] < part[1]]


def _logit_rows(
    order: list[PagedSequence], plan: Plan, spans: list[tuple[int, int]]
) -> tuple[list[Scored], list[int], list[Segment[Any]]]:
    """Which rows need logits: the last token of a sequence that is complete, and prompt tokens to score."""
    scored: list[Scored] = []
    rows: list[int] = []
    heads: list[Segment[Any]] = []
    for sequence, (start, stop) in zip(order, spans, strict=True):
        if not isinstance(sequence, Sequence):
            continue
        samples = plan[sequence] == sequence.remaining
        scores = sequence.scores_prompt and sequence.computed < sequence.prompt_length
        if samples or scores:
            first = len(rows)
            skipped = 0 if scores else stop - 1 - start
            rows += range(start + skipped, stop)
            scored.append(Scored(sequence, first, len(rows), samples))
            heads += _segments(sequence, sequence.computed + skipped, first, len(rows))
    if not rows:  # a forward pass must compute some logits; nobody reads these
        rows, heads = [0], _segments(order[0], order[0].computed, 0, 1)
    return scored, rows, heads
