"""Embeddings and classes: what becomes of a prompt's last hidden states when nothing is generated.

A pooling sequence goes through the same steps as one that generates, and ends when its prompt is computed.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.batch.placed import Placed
from adapters.errors import InvalidAdapter
from server.engine.request import PoolingOutput, PoolingRequest
from server.engine.sequence import PagedSequence

_HEADS = ("score", "classifier")  # what transformers calls the one linear layer on top of a decoder


class PoolingSequence(PagedSequence):
    """One prompt whose hidden states are wanted: of its last token, of its first, or all."""

    request: PoolingRequest

    def __init__(
        self, request: PoolingRequest, base_digest: str, block_size: int, pad_token: int | None
    ) -> None:
        """`pad_token`: transformers' classifiers pool the last token that is not this one."""
        super().__init__(request, base_digest, block_size)
        self._place = _pooled_place(request, pad_token)
        self._rows: list[Tensor] = []

    @property
    def reusable(self) -> int:
        """Whatever comes from the cache comes without its hidden states."""
        return 0 if self._pools_all else self._place

    @property
    def _pools_all(self) -> bool:
        return self.request.task == "token_classify" or self.request.pooling == "mean"

    def accept(self, adapter: Placed) -> None:
        """See `PagedSequence.accept`: an adapter without a head can't classify."""
        if self.request.task != "embed":
            head_of(adapter)
        super().accept(adapter)

    def collect(self, hidden: Tensor) -> None:
        """Take the last hidden states of this step's tokens, `(tokens, hidden_size)`: from `computed` on."""
        if not self.computed:
            self._rows = []  # after a preemption all comes again
        if self.request.task == "token_classify":
            self._rows.append(self._classify(hidden))
        elif self.request.pooling == "mean":
            self._rows.append(hidden.float().sum(0, keepdim=True))
        elif self.computed <= self._place < self.computed + hidden.shape[0]:
            place = self._place - self.computed
            self._rows = [hidden[place : place + 1].clone()]

    def vectors(self) -> Tensor:
        """`(vectors, width)` float32: all of the answer, once the prompt is computed."""
        rows = torch.cat(self._rows)
        if self.request.task == "token_classify":
            return rows
        if self.request.pooling == "mean":
            rows = rows.sum(0, keepdim=True) / self.prompt_length
        return self._classify(rows) if self.request.task == "classify" else rows.float()

    def _classify(self, hidden: Tensor) -> Tensor:
        """`(rows, labels)` float32 logits of the adapter's own head."""
        assert self.adapter is not None
        weight, bias = head_of(self.adapter)
        return F.linear(hidden.to(weight.dtype), weight, bias).float()


def pooling_outputs(sequences: Rows[PoolingSequence]) -> list[PoolingOutput]:
    """The answers of sequences whose prompts are computed: all of them in one copy from the device."""
    vectors = [sequence.vectors() for sequence in sequences]
    values: list[float] = torch.cat([tensor.flatten() for tensor in vectors]).tolist()
    outputs: list[PoolingOutput] = []
    start = 0
    for sequence, tensor in zip(sequences, vectors, strict=True):
        count, width = tensor.shape
        starts = range(start, start + count * width, width)
        rows = tuple(tuple(values[first : first + width]) for first in starts)
        outputs.append(PoolingOutput(sequence.request.request_id, rows, sequence.cached or 0))
        start += count * width
    return outputs


def _pooled_place(request: PoolingRequest, pad_token: int | None) -> int:
    """The place of the one token whose hidden state is taken, where it is one."""
    if request.pooling == "cls":
        return 0
    if request.task == "embed":
        return len(request.prompt) - 1
    # As `GenericForSequenceClassification`: with nothing but padding it is the first token.
    return max((place for place, token in enumerate(request.prompt) if token != pad_token), default=0)


def head_of(adapter: Placed) -> tuple[Tensor, Tensor | None]:
    """Weight, `(labels, hidden_size)`, and bias of the adapter's head."""
    head = adapter.extras.head if adapter.extras is not None else {}
    for name in _HEADS:
        if f"{name}.weight" in head:
            return head[f"{name}.weight"], head.get(f"{name}.bias")
    raise InvalidAdapter(
        f"adapter {adapter.digest[:12]} has no head to classify with: none of its tensors is "
        f"{' or '.join(f'{name}.weight' for name in _HEADS)}"
    )
