"""One planned step as one forward pass: builds the flat token row, runs the model, returns the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.forms import Segment
from server.engine.attention import AttentionPlan, KVCache, Span
from server.engine.base import ServedModel
from server.engine.scheduler import Plan
from server.engine.sequence import Sequence


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
    """Runs steps on one model with one KV cache."""

    def __init__(self, model: ServedModel, blocks: int, block_size: int) -> None:
        self.model = model
        self._cache = KVCache(blocks * block_size, model.dtype, model.device)
        self._offsets = torch.arange(block_size)
        self._block_size = block_size
        self.merged_digest: str | None = None

    def run(self, plan: Plan) -> tuple[Tensor, list[Scored]]:
        """Compute the planned tokens. Returns `(rows, vocabulary)` logits and whose they are."""
        # Decode rows first, and neighbours with the same adapter, so that they form long segments.
        order = sorted(plan, key=lambda s: (plan[s] > 1, s.request.adapter or ""))
        tokens: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        segments: list[Segment] = []
        for sequence in order:
            start, count, done = len(tokens), plan[sequence], sequence.computed
            tokens += sequence.tokens[done : done + count]
            positions += range(done, done + count)
            spans.append(Span(start, start + count, self._slots(sequence, done + count)))
            segments.append(Segment(start, start + count, sequence.adapter))
        scored, rows, heads = _logit_rows(order, plan, spans)
        device = self.model.device
        write = torch.cat([span.slots[span.start - span.stop :] for span in spans])
        self._set_adapters(order, segments, heads)
        logits = self.model.forward(
            torch.tensor(tokens, device=device),
            torch.tensor(positions, device=device),
            AttentionPlan(self._cache, write, spans),
            torch.tensor(rows, device=device),
        )
        return logits, scored

    def _slots(self, sequence: Sequence, length: int) -> Tensor:
        blocks = torch.tensor(sequence.blocks)
        slots = (blocks[:, None] * self._block_size + self._offsets).view(-1)[:length]
        return slots.to(self.model.device)

    def _set_adapters(self, order: list[Sequence], segments: list[Segment], heads: list[Segment]) -> None:
        batch = self.model.batch
        merged = self.merged_digest
        batch.use_merged = merged is not None and all(s.request.adapter == merged for s in order)
        if batch.use_merged:
            batch.end()
        else:
            batch.begin(segments, heads)


def _logit_rows(
    order: list[Sequence], plan: Plan, spans: list[Span]
) -> tuple[list[Scored], list[int], list[Segment]]:
    """Which rows need logits: the last token of a sequence that is complete, and prompt tokens to score."""
    scored: list[Scored] = []
    rows: list[int] = []
    heads: list[Segment] = []
    for sequence, span in zip(order, spans, strict=True):
        samples = plan[sequence] == sequence.remaining
        scores = (
            sequence.request.sampling.prompt_logprobs is not None
            and sequence.computed < sequence.prompt_length
        )
        first = span.start if scores else span.stop - 1
        # A forward pass must compute some logits; an unfinished chunk gives its last row, which nobody reads.
        own = range(first, span.stop)
        if samples or scores:
            scored.append(Scored(sequence, len(rows), len(rows) + len(own), samples))
            heads.append(Segment(len(rows), len(rows) + len(own), sequence.adapter))
            rows += own
    if not rows:
        rows, heads = [0], [Segment(0, 1, order[0].adapter)]
    return scored, rows, heads
