"""Merged copies: `W' = W + scale * B A`, always computed from the pristine `W`, which is never written to.

Merging in place and un-merging later does not give the old weights back: in bfloat16 a hundred rounds
changed a third of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from adapters.batched import BatchedLinear
from adapters.delta import AdapterWeights, ModuleDelta
from adapters.linear import make_linear


def merged_weight(weight: Tensor, delta: ModuleDelta) -> Tensor:
    """A new tensor `W + scale * B A`, computed in float32 and rounded once to the type of `W`."""
    a, b = delta.a.to(weight.device).float(), delta.b.to(weight.device).float()
    return torch.addmm(weight.float(), b, a, alpha=delta.scale).to(weight.dtype)


def build_merged(modules: Iterable[BatchedLinear], adapter: AdapterWeights) -> int:
    """Give every module that `adapter` targets a merged copy of its weight. Returns the bytes they take."""
    nbytes = 0
    for module in modules:
        delta = adapter.deltas.get(module.name)
        module.merged = None
        if delta is not None:
            weight = merged_weight(module.weight, delta)
            module.merged = make_linear(weight, module.bias)
            nbytes += weight.nbytes
    return nbytes
