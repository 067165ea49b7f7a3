"""Whether the values of an adapter can be computed with in the type that the base is served in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor

from adapters.delta import AdapterWeights, all_finite
from adapters.errors import InvalidAdapter


def check_values(adapter: AdapterWeights, dtype: torch.dtype) -> None:
    """See that every value is finite in `dtype`, and every product with a scale that is made of them.

    Raises:
        InvalidAdapter: naming the first record of which that is not so.
    """
    deltas = (module for module, delta in adapter.deltas.items() if not delta.fits(dtype))
    others = (
        name
        for name, tensors in _beside_deltas(adapter)
        if not all(all_finite(tensor.to(dtype)) for tensor in tensors)
    )
    misfit = next(chain(deltas, others), None)
    if misfit is not None:
        raise InvalidAdapter(
            f"{misfit} has values too large for {dtype}, in which the base is served; "
            "start with --dtype float32"
        )


def _beside_deltas(adapter: AdapterWeights) -> Iterator[tuple[str, Iterable[Tensor]]]:
    """Each record that is not of a linear map, with its tensors."""
    for name, table in adapter.embeddings.items():
        yield name, table.tensors()
    for name, experts in adapter.experts.items():
        yield name, experts.tensors()
    for name, parameters in (*adapter.replaced.items(), ("the head", adapter.head)):
        yield name, parameters.values()
