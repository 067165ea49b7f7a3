"""What an adapter holds beside its linear deltas, in computing form: plain tensors on one device.

Embeddings, fused experts, modules that it replaces and a task head. Few adapters have any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from adapters.delta import AdapterWeights, EmbeddingDelta, ExpertsDelta, all_finite
from adapters.errors import InvalidAdapter

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Extras:
    """As in `AdapterWeights`, in the type that the model computes in."""

    embeddings: Mapping[str, EmbeddingDelta]
    experts: Mapping[str, ExpertsDelta]
    replaced: Mapping[str, Mapping[str, Tensor]]
    head: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All of them."""
        for records in (self.embeddings, self.experts):
            for record in records.values():
                yield from record.tensors()
        for parameters in (*self.replaced.values(), self.head):
            yield from parameters.values()

    def to(self, device: torch.device) -> Extras:
        """The same on `device`; a copy from pinned memory does not block."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def each(self, change: Callable[[Tensor], Tensor]) -> Extras:
        """The same with `change` of every tensor."""
        return Extras(
            {name: _embedding(record, change) for name, record in self.embeddings.items()},
            {name: replace(e, a=change(e.a), b=change(e.b)) for name, e in self.experts.items()},
            {name: _each(parameters, change) for name, parameters in self.replaced.items()},
            _each(self.head, change),
        )


def place_extras(weights: AdapterWeights, dtype: torch.dtype, *, pin: bool = False) -> Extras | None:
    """The extras of `weights` in `dtype` on the host (`pin`: in page-locked memory); None if it has none.

    Raises:
        InvalidAdapter: a value is too large for `dtype`.
    """
    if not (weights.embeddings or weights.experts or weights.replaced or weights.head):
        return None

    def cast(tensor: Tensor) -> Tensor:
        # Always a copy: what was read may be mapped from a file, which may go.
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        placed = torch.empty(tensor.shape, dtype=kind, pin_memory=pin).copy_(tensor)
        if tensor.is_floating_point() and not all_finite(placed):
            raise InvalidAdapter(f"adapter {weights.digest[:12]} has values too large for {dtype}")
        return placed

    return Extras(weights.embeddings, weights.experts, weights.replaced, weights.head).each(cast)


def _embedding(record: EmbeddingDelta, change: Callable[[Tensor], Tensor]) -> EmbeddingDelta:
    def changed(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else change(tensor)

    return EmbeddingDelta(
        changed(record.a), changed(record.b), record.scale, changed(record.ids), changed(record.rows)
    )


def _each(parameters: Mapping[str, Tensor], change: Callable[[Tensor], T]) -> dict[str, T]:
    return {name: change(tensor) for name, tensor in parameters.items()}
