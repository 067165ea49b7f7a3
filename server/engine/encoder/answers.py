"""What becomes of last hidden states: embeddings, or what a head makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters.batch.placed import Placed
from adapters.errors import InvalidAdapter
from server.engine.encoder.model import EncoderModel
from server.engine.encoder.sequence import EncoderSequence
from server.engine.request import Pooling, PoolingOutput


@torch.inference_mode()
def answers(
    model: EncoderModel, sequences: Sequence[EncoderSequence], hidden: Tensor, mask: Tensor
) -> list[PoolingOutput]:
    """The answers of one pass, whose heads may all be different.

    Args:
        hidden: `(sequences, tokens, hidden_size)`; mask: `(sequences, tokens)`.
    """
    vectors: dict[int, Tensor] = {}
    by_head: dict[tuple[str, Placed | None], list[int]] = {}
    for row, sequence in enumerate(sequences):
        if sequence.task is None:
            vectors[row] = pooled(hidden[row, : sequence.length], sequence.request.pooling)
        else:
            by_head.setdefault((sequence.task, sequence.adapter), []).append(row)
    for (task, adapter), rows in by_head.items():
        head = adapter.extras.head if adapter and adapter.extras else {}
        logits = model.classify(task, head, hidden[rows], mask[rows]).float()
        vectors |= zip(rows, logits, strict=True)
    return [
        PoolingOutput(sequence.request.request_id, _rows(vectors[row], sequence))
        for row, sequence in enumerate(sequences)
    ]


def pooled(hidden: Tensor, pooling: Pooling) -> Tensor:
    """`(hidden_size,)` float32 of the hidden states `(tokens, hidden_size)` of one sequence."""
    if pooling == "mean":
        return hidden.float().mean(0)
    return hidden[0 if pooling == "cls" else -1].float()


def check_answers(model: EncoderModel, sequence: EncoderSequence) -> None:
    """Raise `InvalidAdapter` if the sequence's adapter can't do what is asked: it has no head for it."""
    adapter = sequence.adapter
    if adapter is not None and adapter.invocation:
        raise InvalidAdapter(
            f"adapter {adapter.digest[:12]} has invocation tokens, which encoders do not serve"
        )
    if adapter is None or sequence.task is None:
        return
    if adapter.extras is None or not adapter.extras.head:
        raise InvalidAdapter(f"adapter {adapter.digest[:12]} has no head for {sequence.task}")
    model.check_head(sequence.task, adapter.extras.head)


def _rows(vectors: Tensor, sequence: EncoderSequence) -> tuple[tuple[float, ...], ...]:
    """One vector, or those of the sequence's tokens."""
    if vectors.dim() == 1:
        return (tuple(vectors.tolist()),)
    return tuple(map(tuple, vectors[: sequence.length].tolist()))
