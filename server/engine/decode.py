"""A faster way through steps in which each sequence has one row: its interface, and the choice at start."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from adapters.batch.cuda.available import has_kernels
from server.engine.attention import KVCache, StepLayout
from server.engine.base import ServedModel

log = logging.getLogger(__name__)


class DecodePath(Protocol):
    """Runs what it can of such steps; the others go the way of all steps."""

    def run(self, tokens: Sequence[int], layout: StepLayout, adapters: Sequence[Any | None]) -> Tensor | None:
        """Args:
            tokens, adapters: of each row, which is a sequence of `layout`; None is the bare base.

        Returns:
            `(rows, vocabulary)` logits, which the next call may overwrite; None if it can't run this step.
        """
        ...


def choose_decode(
    model: ServedModel, cache: KVCache, *, block_size: int, max_rows: int, max_length: int
) -> DecodePath | None:
    """A faster way through decode steps, where there is one: CUDA graphs, captured now.

    `cache`: of the model's runner, and of `block_size`; `max_rows`, `max_length`: of sequences in a step, and
    of their tokens.
    """
    if not has_kernels(model.device):
        return None
    from server.engine.cuda.graphs import GraphedDecode

    try:
        return GraphedDecode(model, cache, block_size=block_size, max_rows=max_rows, max_length=max_length)
    except RuntimeError as error:
        log.warning("decode steps of this model can't be captured as CUDA graphs: %s", error)
        return None
